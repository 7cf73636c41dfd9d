"""The joint density over a plane of codes: closed forms of linear models, and quadrature on a grid of its own."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyro.distributions import Normal
from scipy.stats import chi2, multivariate_normal
from torch import Tensor, nn
from torch.distributions import kl_divergence

from gae import Autoencoder
from gae.analysis.fields import Field, grown, quadrature
from gae.analysis.landscape import MASSES, follow, landscape
from gae.inference import LBFGS, Adam, Amortized, Ascent, Constant, Detach, GradientAscent, Mode, Zeros
from gae.likelihood import Flat, Gaussian, NonNegativeGaussian
from gae.systems import gmm, smooth_llgae, tsne, vq_vae

WEIGHT = torch.tensor([[2.0, 0.5, -1.0, 0.3], [1.5, -0.2, 0.4, 1.0], [0.0, 0.7, 0.1, -0.6]]).double()
SCALE = 0.7


def linear(width: int, engine: nn.Module | None = None) -> Autoencoder:
    """x = W z + noise, of posterior precision I + Wᵀ W / scale²."""
    decoder = nn.Linear(width, 3).double()
    decoder.weight.data, decoder.bias.data = WEIGHT[:, :width].clone(), torch.tensor([0.1, -0.2, 0.3]).double()
    return Autoencoder(Gaussian(decoder, width, scale=SCALE).double(), engine or Ascent(Zeros(), adjoint=Detach()))


def posterior(model: Autoencoder, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the posterior of a linear model."""
    decoder = model.likelihood.decoder
    weight, rest = decoder.weight.detach().numpy(), (x[0] - decoder.bias.detach()).numpy()
    covariance = np.linalg.inv(np.eye(weight.shape[1]) + weight.T @ weight / SCALE**2)
    return covariance @ weight.T @ rest / SCALE**2, covariance


class Guide(nn.Module):
    """The same density for every observation."""

    def __init__(self, width: int):
        super().__init__()
        self.mean = torch.tensor([0.3, -0.4]).double()[:width]

    def forward(self, x: Tensor) -> Normal:
        return Normal(self.mean.expand(len(x), -1), 0.5).to_event(1)


X = torch.tensor([[1.2, -0.5, 0.4]]).double()


@pytest.fixture(scope="module")
def amortised() -> Autoencoder:
    return linear(2, Amortized(Guide(2)))


@pytest.mark.parametrize("width", [1, 2])
def test_a_linear_model_agrees_with_its_closed_form(width: int) -> None:
    model = linear(width, Amortized(Guide(width)))
    seen = landscape(model, X)
    mean, covariance = posterior(model, X)
    weight, bias = (part.detach().numpy() for part in (model.likelihood.decoder.weight, model.likelihood.decoder.bias))
    log_p = multivariate_normal(bias, weight @ weight.T + SCALE**2 * np.eye(3)).logpdf(X[0].numpy())
    assert seen.evidence == pytest.approx(log_p, abs=1e-6) and seen.evidence_error < 1e-6
    assert seen.laplace == pytest.approx(log_p, abs=1e-6)
    assert np.allclose(seen.mode, mean, atol=1e-6) and np.allclose(seen.covariance, covariance, atol=1e-9)
    share, points = seen.posterior.share.numpy(), seen.posterior.points.numpy()
    offset = points - mean
    assert np.allclose(np.einsum("...,...a->...a", share, points).reshape(-1, width).sum(0), mean, atol=1e-6)
    square = np.einsum("...,...a,...b->...ab", share, offset, offset)
    assert np.allclose(square.reshape(-1, width, width).sum(0), covariance, atol=1e-6)
    exact = torch.distributions.MultivariateNormal(torch.tensor(mean), torch.tensor(covariance))
    q = torch.distributions.MultivariateNormal(Guide(width).mean, 0.25 * torch.eye(width).double())
    assert seen.evidence - seen.elbo == pytest.approx(float(kl_divergence(q, exact)), abs=1e-6)
    squares = chi2(width).ppf(MASSES)  # of a normal
    assert np.allclose(seen.posterior.levels(MASSES), seen.height - squares / 2, atol=0.03)
    assert np.allclose(np.square(seen.radii), squares)
    assert seen.peaked and not seen.is_slice and not seen.flat


def test_the_path_starts_at_the_encoder_and_ends_at_the_mode(amortised: Autoencoder) -> None:
    seen = landscape(amortised, X)
    assert torch.equal(seen.path.z[0], torch.tensor([0.3, -0.4]).double())
    assert (seen.path.z[seen.path.accepted][-1] - seen.mode).abs().max() < 1e-3
    assert seen.ascent == "LBFGS from the encoder's mean" and seen.engine == "Amortized"
    again = landscape(amortised, X, "gauss-newton")
    assert torch.equal(again.path.z[0], torch.zeros(2).double()) and again.ascent == "GaussNewton from 0"


def test_a_slice_shows_the_two_widest_directions() -> None:
    model = linear(4)
    seen = landscape(model, X)
    mean, covariance = posterior(model, X)
    values, vectors = np.linalg.eigh(covariance)
    assert np.allclose(seen.origin, mean, atol=1e-6) and np.allclose(seen.mode, 0)
    assert np.allclose(np.abs(seen.axes.numpy() @ vectors[:, :1:-1]), np.eye(2), atol=1e-6)
    assert np.allclose(seen.covariance, np.diag(values[:1:-1]), atol=1e-6)
    share, points = seen.posterior.share.numpy(), seen.posterior.points.numpy()
    assert np.allclose(np.einsum("ij,ija,ijb", share, points, points), np.diag(values[:1:-1]), atol=1e-6)
    assert seen.is_slice and seen.evidence is None and seen.elbo is None and seen.encoder is None


class Fold(nn.Module):
    """z and -z decode alike."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([z[:, 0] ** 2, z[:, 0] * z[:, 1], z[:, 1] ** 2], 1)


FOLDED = torch.tensor([[2.0, 0.8, 0.3]]).double()


def test_all_modes_are_in_the_window() -> None:
    model = Autoencoder(
        Gaussian(Fold(), 2, scale=0.2).double(), Ascent(Constant(torch.ones(2).double()), LBFGS(), adjoint=Detach())
    )
    seen = landscape(model, FOLDED)
    a = np.linspace(-6, 6, 1201)
    first, second = np.meshgrid(a, a)
    outputs = np.stack([first**2, first * second, second**2], -1)
    log_joint = -0.5 * (first**2 + second**2) - math.log(2 * math.pi) - 3 * math.log(0.2 * math.sqrt(2 * math.pi))
    log_joint = log_joint - 0.5 * ((FOLDED[0].numpy() - outputs) ** 2).sum(-1) / 0.04
    assert seen.evidence == pytest.approx(float(np.log(np.exp(log_joint).sum() * 0.01**2)), abs=1e-5)
    low, high = seen.posterior.corners
    assert torch.all(low < -seen.mode.abs()) and torch.all(high > seen.mode.abs())


def test_a_flat_prior_has_no_evidence() -> None:
    decoder = nn.Linear(2, 3).double()
    decoder.weight.data = WEIGHT[:, :2].clone()
    seen = landscape(Autoencoder(Gaussian(decoder, 2, prior=Flat(2)), Ascent(Zeros(), adjoint=Detach())), X)
    assert seen.flat and seen.evidence is None and seen.elbo is None


def test_a_path_visits_the_points_of_every_shorter_ascent(amortised: Autoencoder) -> None:
    likelihood = amortised.likelihood
    path = follow(Ascent(Zeros(), Adam(0.2), 4), likelihood, X)
    shorter = [Ascent(Zeros(), Adam(0.2), steps, adjoint=Detach())(likelihood, X).point[0] for steps in range(5)]
    assert torch.equal(path.z, torch.stack(shorter)) and bool(path.accepted.all())
    assert torch.allclose(path.log_joint, likelihood.log_joint(X, path.z.unsqueeze(1))[:, 0])
    start = follow(Ascent(Zeros(), GradientAscent(0.1), 0), likelihood, X)
    assert torch.equal(start.z, torch.zeros(1, 2).double())


def test_a_path_marks_the_trials_that_were_rejected() -> None:
    likelihood = Gaussian(Fold(), 2, scale=0.2).double()
    engine = Ascent(Constant(torch.tensor([0.05, 0.05]).double()), LBFGS(), 30, tol=1e-8, adjoint=Detach())
    path, code = follow(engine, likelihood, FOLDED), engine(likelihood, FOLDED)
    assert len(path.z) == int(code.solve.evaluations)
    heights = path.log_joint.tolist()
    highest = [max(heights[: t + 1]) for t in range(len(heights))]
    assert path.accepted.tolist() == [height == top for height, top in zip(heights, highest, strict=True)]
    assert not bool(path.accepted.all()) and bool((path.z == code.point).all(1).any())


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (lambda: gmm((3,), components=2), X, "needs continuous codes"),
        (lambda: vq_vae((3,), positions=2), X, "needs continuous codes"),
        (lambda: smooth_llgae((3,), components=2, latent=1), X, "needs continuous codes"),
        (lambda: tsne((3,), points=5, perplexity=2.0), X, r"got codes of shape \(5, 2\)"),
        (lambda: Autoencoder(NonNegativeGaussian(2, (3,)), Mode()), X, "non-negative"),
        (lambda: linear(2), X.expand(2, 3), r"got 2\. Pass"),
    ],
)
def test_models_without_a_landscape(model: object, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        landscape(model(), x)  # type: ignore[operator]


def test_an_unknown_ascent_is_refused(amortised: Autoencoder) -> None:
    with pytest.raises(ValueError, match=r"Unknown ascent 'encoder'\. Choose one of lbfgs"):
        landscape(amortised, X, "encoder")


def test_a_window_grows_until_the_density_ends() -> None:
    low, high, ends = grown(lambda z: -0.5 * (z - 3).square().sum(1), torch.zeros(2), torch.ones(2))
    assert ends and bool((low < -2).all()) and bool((high > 8).all())
    box = torch.zeros(2), torch.ones(2)
    assert grown(lambda z: -z[:, 0].square(), *box) == (*box, False)


def test_quadrature_refines_its_grid() -> None:
    """A narrow ridge across the axes needs the finer grid; half of its points give the error."""
    precision = np.linalg.inv([[1.0, 0.999], [0.999, 1.0]])

    def ridge(z: Tensor) -> Tensor:
        return -0.5 * torch.einsum("pi,ij,pj->p", z, torch.tensor(precision), z)

    low = torch.full((2,), -8.0).double()
    field = quadrature(ridge, low, -low)
    assert len(field.along[1]) == 401 and len(quadrature(lambda z: -0.5 * z.square().sum(1), low, -low).along[1]) == 201
    exact = math.log(2 * math.pi) - 0.5 * math.log(np.linalg.det(precision))
    assert abs(field.log_integral - exact) < 1e-6 and field.error > 1e-6
    assert field.mean(field.value) == pytest.approx(-1.0, abs=1e-5)  # half of the degrees of freedom
    assert replace(field, value=field.value - 1e4).log_integral == pytest.approx(exact - 1e4)
    assert isinstance(field, Field)
