"""Score matching against closed forms, quadrature over data and noise, and maximum likelihood."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from gae import Autoencoder
from gae.autoencoder import load
from gae.inference import Amortized, ClosedForm, Zeros
from gae.likelihood import Flat, Gaussian, LinearMixture
from gae.training import fit
from gae.training.score_matching import (
    ScoreMatching,
    denoiser_score,
    denoising_loss,
    evidence_score,
    explicit_loss,
    implicit_loss,
)

LBFGS = partial(torch.optim.LBFGS, max_iter=20, line_search_fn="strong_wolfe")


GRID = torch.arange(-12, 12, 0.1).double()[:, None]  # the trapezoidal rule is exact for what decays smoothly


def mixture(spread: float = 1.0, shift: float = 1.5) -> LinearMixture:
    """Two normals on the line, by charts of width 1: of standard deviations √(spread² + 0.2²) and √(spread² + 0.7²)."""
    model = LinearMixture(2, 1, (1,), means=torch.tensor([[-shift], [shift]]), scale=spread).double()
    model.loadings.data = torch.tensor([0.2, 0.7]).double().view(2, 1, 1)
    return model


def log_density(x: Tensor, noise: float = 0.0) -> Tensor:
    """That of ``mixture()`` with additional noise."""
    deviation = (1 + noise**2 + torch.tensor([0.2, 0.7]).double().square()).sqrt()
    parts = Normal(torch.tensor([-1.5, 1.5]).double(), deviation)
    return MixtureSameFamily(Categorical(torch.ones(2).double()), parts).log_prob(x)


def known(noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weights of the grid under the data's law, and its score there."""
    x = GRID.clone().requires_grad_()
    value = log_density(x, noise)
    (score,) = torch.autograd.grad(value.sum(), x)
    return 0.1 * value.detach().exp().flatten(), score


def test_the_score_of_a_normal_is_linear() -> None:
    model = LinearMixture(1, 2, (4,), scale=0.7).double()
    x = torch.randn(6, 4).double()
    loadings = model.loadings[0].detach()
    covariance = loadings.T @ loadings + 0.49 * torch.eye(4).double()
    precision = torch.linalg.inv(covariance)
    score = evidence_score(model)
    wanted = -(x - model.means[0].detach()) @ precision
    torch.testing.assert_close(score(x).detach(), wanted, rtol=1e-6, atol=1e-8)
    implicit = implicit_loss(score, x).detach()
    torch.testing.assert_close(implicit, 0.5 * wanted.square().sum(1) - precision.trace(), rtol=1e-6, atol=1e-8)


def test_implicit_and_explicit_losses_differ_by_a_constant() -> None:
    """Hyvärinen 2005, theorem 1: the constant is -½ E‖∇ log p‖²."""
    weight, target = known()
    torch.testing.assert_close(evidence_score(mixture())(GRID).detach(), target, rtol=1e-6, atol=1e-7)
    for spread, shift in ((1.3, 0.5), (0.8, 2.0)):
        score = evidence_score(mixture(spread, shift))
        difference = (weight * (implicit_loss(score, GRID) - explicit_loss(score, GRID, target)).detach()).sum()
        torch.testing.assert_close(difference, -0.5 * (weight * target[:, 0].square()).sum(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("components", [1, 2])
def test_the_score_has_a_derivative_where_x_is_the_centre_of_the_means(components: int) -> None:
    model = LinearMixture(components, 1, (2,), means=torch.tensor([[-1.0, 0.0], [1.0, 0.0]])[:components]).double()
    centre = model.means.detach().mean(0, keepdim=True)
    found = implicit_loss(evidence_score(model), torch.cat([centre, centre + 1e-6])).detach()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_denoising_and_explicit_losses_of_noisy_data_differ_by_a_constant() -> None:
    """Vincent 2011, eq. 11: the constant is ½ E(ε/σ²)² - ½ E(∇ log p_σ)², with E(ε/σ²)² = 1/σ²."""
    noise = 0.6
    weight, _ = known()
    density, target = known(noise)
    step = 0.15
    shift = torch.arange(-5, 5, step).double()
    clean = GRID.repeat_interleave(len(shift), 0)
    noisy = (GRID + shift).reshape(-1, 1)
    both = torch.outer(weight, step * Normal(0, noise).log_prob(shift).exp()).flatten()
    constant = 0.5 / noise**2 - 0.5 * (density * target[:, 0].square()).sum()
    for spread, move in ((1.3, 0.5), (0.8, 2.0)):
        score = evidence_score(mixture(spread, move))
        denoising = (both * denoising_loss(score, clean, noisy, noise).detach()).sum()
        explicit = (density * explicit_loss(score, GRID, target).detach()).sum()
        torch.testing.assert_close(denoising - explicit, constant, rtol=1e-6, atol=1e-8)


def test_the_best_denoiser_has_the_score_of_the_noisy_data() -> None:
    """Data N(0, s²): r(x̃) = c x̃, c = s²/(s² + σ²), and the score is -x̃/(s² + σ²)."""
    decoder = nn.Linear(1, 1, bias=False).double()
    decoder.weight.data.fill_(2.25 / 3.25)
    model = Autoencoder(Gaussian(decoder, 1, prior=Flat(1)), Amortized(nn.Identity()))
    x = torch.randn(5, 1).double()
    torch.testing.assert_close(denoiser_score(model, 1.0)(x).detach(), -x / 3.25)


def test_denoising_score_matching_is_the_loss_of_a_denoising_autoencoder() -> None:
    """With a noise scale of σ² in the decoder, -log q(x | code of x̃) is the denoising loss up to a constant."""
    noise = 0.5
    model = Autoencoder(Gaussian(nn.Linear(2, 3), 2, noise**2, prior=Flat(2)), Amortized(nn.Linear(3, 2))).double()
    x = torch.randn(6, 3).double()
    noisy = x + noise * torch.randn_like(x)
    log_q = model.likelihood.log_joint(x, model.inference.infer(model.likelihood, noisy).z)[0]
    loss = denoising_loss(denoiser_score(model, noise), x, noisy, noise)
    torch.testing.assert_close(loss, -log_q - 1.5 * math.log(2 * math.pi * noise**4))


def test_implicit_score_matching_of_a_spherical_normal_is_maximum_likelihood() -> None:
    x = 1 + 2 * torch.randn(100, 3).double()
    model = ScoreMatching(LinearMixture(1, 0, (3,), learn_scale=True), ClosedForm()).double()
    fit(model, x, epochs=4, batch_size=100, optimizer=LBFGS, progress=False)
    deviation = float((x - x.mean(0)).square().mean().sqrt())
    assert float(model.likelihood.log_scale.detach().exp()) == pytest.approx(deviation, rel=1e-3)  # type: ignore[operator]


def test_the_training_loss_is_that_of_the_noisy_data(tmp_path: object) -> None:
    model, x = ScoreMatching(mixture(), Zeros(), noise=0.5), torch.randn(8, 1).double()
    torch.manual_seed(3)
    loss = model(x)
    torch.manual_seed(3)
    noisy = x + 0.5 * torch.randn_like(x)
    wanted = denoising_loss(evidence_score(model.likelihood), x, noisy, 0.5).mean()
    torch.testing.assert_close(loss, wanted)
    gradients = torch.autograd.grad(loss, [model.likelihood.loadings, model.likelihood.means])
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)
    assert load(model.save(f"{tmp_path}/model")).noise == 0.5
    assert not torch.equal(model.eval()(x), loss)


def test_models_without_a_closed_form_score_are_refused() -> None:
    head = Gaussian(nn.Linear(2, 3), 2)
    with pytest.raises(TypeError, match=r"log p\(x\) of Gaussian has no closed form.*denoiser_score"):
        ScoreMatching(head, Zeros())(torch.zeros(2, 3))
    flat = LinearMixture(1, 2, (4,), flat_prior=True)
    with pytest.raises(ValueError, match="does not exist under a flat prior"):
        ScoreMatching(flat, Zeros())(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="noise must be positive"):
        ScoreMatching(flat, Zeros(), noise=0.0)
