"""Every named system against something independent: scikit-learn, Pyro, a loop or a formula written by hand."""

import math
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from conftest import FULL
from margins import within
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy.linalg import subspace_angles
from scipy.stats import multivariate_normal, norm
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import softplus

from gae import Autoencoder, systems
from gae.data import Dataset, load
from gae.inference import Amortized, Argmax, Ascent, Encoding, to_pyro
from gae.likelihood import Gaussian, LinearMixture
from gae.objective import elbo, iwae
from gae.training import fit

train = partial(fit, progress=False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """The training digits in float64, (1437, 1, 8, 8)."""
    return load("digits").train.double()


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    return load("digits").test.double()


@pytest.fixture(scope="module")
def binary() -> Dataset:
    return load("digits", binarize="threshold")


def flat(x: Tensor) -> np.ndarray:
    return x.detach().flatten(1).numpy()


def build(name: str, event_shape: tuple[int, ...] = (1, 8, 8), **options: Any) -> Autoencoder:
    """The named system in float64, from fixed initial weights."""
    torch.manual_seed(0)
    return systems.build(name, event_shape, **options).double()


def linear(model: Autoencoder) -> LinearMixture:
    assert isinstance(model.likelihood, LinearMixture)
    return model.likelihood


def start_at(model: Autoencoder, means: np.ndarray) -> None:
    linear(model).means.data.copy_(torch.as_tensor(means))
    linear(model).initialized.fill_(True)


def angle(loadings: Tensor, components: np.ndarray) -> float:
    """The largest principal angle between row spaces, in radians."""
    return float(subspace_angles(loadings.detach().numpy().T, components.T).max())


def lbfgs(parameters: list[nn.Parameter], steps: int = 100) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(
        parameters, max_iter=steps, max_eval=2 * steps, tolerance_grad=1e-10, tolerance_change=1e-14,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip


# PCA and PPCA.


@pytest.mark.parametrize("latent", [1, 8])
def test_pca_is_scikit_learns(images: Tensor, held_out: Tensor, latent: int) -> None:
    model = build("pca", latent=latent)
    train(model, images)
    oracle = PCA(latent, svd_solver="full").fit(flat(images))
    assert angle(linear(model).loadings[0], oracle.components_) < 1e-6
    assert np.allclose(linear(model).means[0].detach(), oracle.mean_, atol=1e-12)
    for x in (images, held_out):
        found = flat(model.reconstruct(x)) - flat(x)
        wanted = oracle.inverse_transform(oracle.transform(flat(x))) - flat(x)
        assert np.allclose((found**2).sum(1), (wanted**2).sum(1), rtol=0, atol=1e-6)
    # one code per direction, up to the sign that an eigenvector is free to have
    codes = model.encode(held_out).point.detach().numpy()
    assert np.allclose(np.abs(codes), np.abs(oracle.transform(flat(held_out))), atol=1e-6)


@pytest.mark.slow
def test_pca_by_gradient_finds_the_same_subspace(images: Tensor) -> None:
    model, images = build("pca", latent=8), images[:300]
    history = train(model, images, epochs=2, batch_size=len(images), optimizer=lbfgs)
    oracle = PCA(8, svd_solver="full").fit(flat(images))
    assert angle(linear(model).loadings[0], oracle.components_) < 1e-3
    error = (model.reconstruct(images) - images).square().sum().item()
    wanted = ((oracle.inverse_transform(oracle.transform(flat(images))) - flat(images)) ** 2).sum()
    assert error == pytest.approx(wanted, rel=1e-6)
    assert history.rows[-1].train_loss < history.rows[0].train_loss


@pytest.mark.parametrize("latent", [1, 8])
def test_ppca_likelihood_is_scikit_learns(images: Tensor, held_out: Tensor, latent: int) -> None:
    model = build("ppca", latent=latent)
    history = train(model, images, epochs=20)
    oracle = PCA(latent, svd_solver="full").fit(flat(images))
    share = 1 - 1 / len(images)  # scikit-learn's variances are the unbiased ones, maximum likelihood divides by N
    oracle.explained_variance_ *= share
    oracle.noise_variance_ *= share
    for x in (images, held_out):
        found = model.log_evidence(x).log_p.mean().item()
        assert found == pytest.approx(oracle.score(flat(x)), rel=1e-8)
    assert -history.rows[-1].train_loss == pytest.approx(oracle.score(flat(images)), rel=1e-8)  # the ELBO is tight


# k-means and Gaussian mixtures.


def test_kmeans_goes_where_scikit_learns_goes(images: Tensor) -> None:
    start = flat(images)[::150]
    oracle = KMeans(len(start), init=start, n_init=1, tol=0, max_iter=1000, algorithm="lloyd").fit(flat(images))
    model = build("kmeans", components=len(start))
    start_at(model, start)
    history = train(model, images, epochs=1000, tol=1e-12)
    assert history.stopped_early and 3 < len(history.rows) < 200
    assert np.allclose(linear(model).means.detach(), oracle.cluster_centers_, atol=1e-5)
    assert np.array_equal(model.encode(images).component, oracle.labels_)
    assert np.array_equal(model.encode(images[:50]).component, oracle.predict(flat(images[:50])))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kmeans_from_plus_plus_reaches_scikit_learns_inertia(images: Tensor, seed: int) -> None:
    start, _ = kmeans_plusplus(flat(images), 10, random_state=seed)
    oracle = KMeans(10, init=start, n_init=1, tol=0, max_iter=1000, algorithm="lloyd").fit(flat(images))
    model = build("kmeans", components=10)
    train(model, images, epochs=1000, tol=1e-12, seed=seed)
    inertia = (model.reconstruct(images) - images).square().sum().item()
    assert inertia == pytest.approx(oracle.inertia_, rel=1e-3)


def test_kmeans_loss_is_the_inertia_in_nats(images: Tensor) -> None:
    model = build("kmeans", components=5)
    train(model, images, epochs=3)
    inertia = (model.reconstruct(images) - images).square().sum(dim=(1, 2, 3)).mean().item()
    constant = 32 * math.log(2 * math.pi) + math.log(5)
    assert model(images).item() == pytest.approx(inertia / 2 + constant)


def gmm_step(x: np.ndarray, means: np.ndarray, precisions: np.ndarray, weights: np.ndarray) -> GaussianMixture:
    start = {"means_init": means, "precisions_init": precisions, "weights_init": weights}
    oracle = GaussianMixture(
        len(means), covariance_type="spherical", reg_covar=0, max_iter=1, init_params="random", random_state=0, **start
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one step is meant
        return oracle.fit(x)


def test_gmm_step_is_scikit_learns(images: Tensor) -> None:
    generator = np.random.default_rng(0)
    means, weights = flat(images)[::200], generator.dirichlet(np.full(8, 5.0))
    precisions = generator.uniform(5, 15, 8)
    model = build("gmm", components=8)
    start_at(model, means)
    linear(model).log_scale.data.copy_(torch.as_tensor(-0.5 * np.log(precisions)))
    linear(model).logits.data.copy_(torch.as_tensor(np.log(weights)))
    train(model, images, epochs=1)
    oracle = gmm_step(flat(images), means, precisions, weights)
    assert np.abs(oracle.means_ - means).max() > 0.1
    assert np.allclose(linear(model).means.detach(), oracle.means_, atol=1e-6)
    assert np.allclose((2 * linear(model).log_scale).exp().detach(), oracle.covariances_, atol=1e-6)
    assert np.allclose(linear(model).log_weights.exp().detach(), oracle.weights_, atol=1e-6)
    assert np.allclose(model.log_evidence(images).log_p.detach(), oracle.score_samples(flat(images)), atol=1e-6)
    assert np.allclose(linear(model).log_responsibilities(images).exp().detach(), oracle.predict_proba(flat(images)))


def test_gmm_converges_where_scikit_learns_does(images: Tensor) -> None:
    """EM until nothing moves, from the same start; the loss is minus scikit-learn's mean log-likelihood."""
    means = flat(images)[::300]
    model = build("gmm", components=5)
    start_at(model, means)
    history = train(model, images, epochs=500, tol=1e-9)
    assert history.stopped_early
    start = {"means_init": means, "precisions_init": np.ones(5), "weights_init": np.full(5, 0.2)}
    oracle = GaussianMixture(5, covariance_type="spherical", reg_covar=0, max_iter=500, tol=1e-14, **start)
    oracle.fit(flat(images))
    assert np.allclose(linear(model).means.detach(), oracle.means_, atol=1e-5)
    assert model(images).item() == pytest.approx(-oracle.score(flat(images)), rel=1e-9)


# LLGAE.


@pytest.fixture(scope="module")
def llgae(images: Tensor) -> tuple[Autoencoder, list[float]]:
    model = build("llgae", latent=5, components=8)
    history = train(model, images, epochs=30)
    return model, [row.train_loss for row in history.rows]


def test_llgae_loss_never_rises(llgae: tuple[Autoencoder, list[float]]) -> None:
    _, losses = llgae
    assert len(losses) > 5 and losses[-1] < losses[0] - 0.05
    assert np.diff(losses).max() < 1e-10


def test_llgae_beats_pca_at_equal_code_width(
    llgae: tuple[Autoencoder, list[float]], images: Tensor, held_out: Tensor
) -> None:
    model, _ = llgae
    oracle = PCA(5, svd_solver="full").fit(flat(images))
    pca = ((oracle.inverse_transform(oracle.transform(flat(held_out))) - flat(held_out)) ** 2).mean()
    within("error, by PCA's", (model.reconstruct(held_out) - held_out).square().mean() / pca, below=0.8)


def test_llgae_code_is_the_nearest_chart(llgae: tuple[Autoencoder, list[float]], held_out: Tensor) -> None:
    """max_k max_z by least squares on every chart, one at a time."""
    model, _ = llgae
    x, means, loadings = flat(held_out), linear(model).means.detach().numpy(), linear(model).loadings.detach().numpy()
    fits = [np.linalg.lstsq(chart.T, (x - mean).T, rcond=None) for mean, chart in zip(means, loadings, strict=True)]
    best = np.argmin([residual for _, residual, _, _ in fits], axis=0)
    encoding = model.encode(held_out)
    assert np.array_equal(encoding.component, best) and len(np.unique(best)) == 8
    assert np.allclose(encoding.point.detach(), np.array([fits[k][0][:, row] for row, k in enumerate(best)]))


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (0.5, 45)])
def test_llgae_by_ascent_agrees_with_closed_form(
    llgae: tuple[Autoencoder, list[float]], held_out: Tensor, rate: float, steps: int
) -> None:
    """With orthonormal loadings and unit noise one full step lands on the code (ledger D13); half steps close in."""
    exact, _ = llgae
    model = build("llgae", latent=5, components=8, steps=steps, rate=rate)
    model.load_state_dict(exact.state_dict())
    assert isinstance(model.inference, Argmax) and isinstance(model.inference.inner, Ascent)
    found, wanted = model.encode(held_out), exact.encode(held_out)
    assert torch.equal(found.component, wanted.component)  # type: ignore[arg-type]
    assert torch.allclose(found.point, wanted.point, atol=1e-10)
    assert torch.allclose(found.log_joint, wanted.log_joint, atol=1e-10)


@pytest.mark.slow
def test_llgae_learns_by_its_update_rule(images: Tensor) -> None:
    """The notes' rule: a few ascent steps for the code, the gradient of the loss for the charts."""
    model = build("llgae", latent=5, components=4, steps=5)
    history = train(model, images, epochs=4, batch_size=50, optimizer=partial(torch.optim.Adam, lr=3e-3))
    losses = [row.train_loss for row in history.rows]
    within("nats learned", losses[0] - losses[-1], above=0.02)
    closed = build("llgae", latent=5, components=4, steps=5)
    assert train(closed, images, epochs=20).rows[-1].train_loss < losses[0]


# Deterministic autoencoders.


@pytest.mark.slow
def test_linear_autoencoder_spans_the_principal_subspace(images: Tensor) -> None:
    model, images = build("ae", latent=4, hidden=()), images[:300]
    train(model, images, epochs=2, batch_size=len(images), optimizer=partial(lbfgs, steps=400))
    oracle = PCA(4, svd_solver="full").fit(flat(images))
    decoder = dict(model.likelihood.named_parameters())["decoder.0.weight"]
    assert angle(decoder.T, oracle.components_) < 1e-3
    error = (model.reconstruct(images) - images).square().sum().item()
    wanted = ((oracle.inverse_transform(oracle.transform(flat(images))) - flat(images)) ** 2).sum()
    assert wanted * (1 - 1e-12) <= error <= wanted * (1 + 1e-6)
    assert isinstance(model.likelihood, Gaussian)
    assert model.likelihood.scale.item() ** 2 == pytest.approx(wanted / images.numel(), rel=1e-4)


def test_autoencoder_beats_pca_at_equal_code_width(images: Tensor, held_out: Tensor) -> None:
    model = build("ae", latent=2, hidden=(64,))
    train(model, images, epochs=20, batch_size=50, optimizer=partial(torch.optim.Adam, lr=5e-3))
    oracle = PCA(2, svd_solver="full").fit(flat(images))
    pca = ((oracle.inverse_transform(oracle.transform(flat(held_out))) - flat(held_out)) ** 2).mean()
    within("error, by PCA's", (model.reconstruct(held_out) - held_out).square().mean() / pca, below=0.9)


# Variational autoencoders.

VAES: list[tuple[str, dict[str, Any]]] = [
    ("vae", {"latent": 3, "hidden": (20,)}),
    ("vae", {"latent": 3, "hidden": (20,), "head": "bernoulli"}),
    ("vae", {"latent": 3, "hidden": (20,), "head": "laplace"}),
    ("conv-vae", {"latent": 3, "channels": (4, 8)}),
    ("conv-vae", {"latent": 3, "channels": (4, 8), "head": "continuous-bernoulli"}),
]
vaes = pytest.mark.parametrize(("name", "options"), VAES)


def vary(model: Autoencoder) -> Autoencoder:
    """No parameter at a special value."""
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@vaes
@pytest.mark.parametrize("analytic", [False, True])
def test_vae_loss_is_pyros(name: str, options: dict[str, Any], analytic: bool, binary: Dataset) -> None:
    """Value and gradients of Trace_ELBO (sampled KL) and TraceMeanField_ELBO (analytic), at the same seed."""
    model, x = vary(build(name, analytic=analytic, **options)), binary.train[:32].double()
    assert isinstance(model.inference, Amortized)
    oracle = TraceMeanField_ELBO() if analytic else Trace_ELBO()
    pyro.clear_param_store()
    torch.manual_seed(5)
    wanted = oracle.differentiable_loss(to_pyro(model.likelihood), model.inference.guide, x) / len(x)
    torch.manual_seed(5)
    found = model(x)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    pyro.clear_param_store()


def test_vae_with_several_samples_is_pyros(binary: Dataset) -> None:
    model = vary(build("vae", latent=3, hidden=(20,), samples=7, analytic=False))
    x = binary.train[:32].double()
    assert isinstance(model.inference, Amortized)
    pyro.clear_param_store()
    oracle = Trace_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(5)
    wanted = oracle.loss(to_pyro(model.likelihood), model.inference.guide, x) / len(x)
    torch.manual_seed(5)
    assert model(x).item() == pytest.approx(wanted, rel=1e-12)
    pyro.clear_param_store()


class Recorder:
    """Every batch that an encoder saw in training, and the generator's state when it drew its noise."""

    def __init__(self, encoder: nn.Module):
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.handle = encoder.register_forward_pre_hook(self._record)

    def _record(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():  # training, not a trial run
            self.seen.append((arguments[0].clone(), torch.get_rng_state()))

    def batches(self) -> Iterator[Tensor]:
        """The batches again, each with torch's generator as it was."""
        self.handle.remove()
        for x, state in self.seen:
            torch.set_rng_state(state)
            yield x


def plain_mlp() -> tuple[nn.Module, nn.Module]:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 8))
    return encoder, nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 64), nn.Unflatten(1, (1, 8, 8)))


def plain_conv() -> tuple[nn.Module, nn.Module]:
    def down(before: int, after: int) -> nn.Module:
        return nn.Conv2d(before, after, 3, stride=2, padding=1)

    def up(before: int, after: int) -> nn.Module:
        return nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1)

    flatten = (nn.Flatten(), nn.Linear(64, 8))
    encoder = nn.Sequential(down(1, 8), nn.SiLU(), down(8, 16), nn.SiLU(), *flatten)
    unflatten = (nn.Linear(4, 64), nn.SiLU(), nn.Unflatten(1, (16, 2, 2)))
    return encoder, nn.Sequential(*unflatten, up(16, 8), nn.SiLU(), up(8, 1))


def plain_vae_losses(
    parts: tuple[nn.Module, nn.Module],
    mean: Tensor,
    unit: Tensor,
    log_scale: Tensor | None,
    beta: float,
    batches: Iterator[Tensor],
) -> list[float]:
    """A plain implementation of a VAE: Gaussian (learned scale) or Bernoulli pixels, Adam, closed-form KL.

    Its networks see and paint pixels in the unit of the data, about their mean.
    """
    encoder, decoder = parts
    extra = [] if log_scale is None else [log_scale]
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *extra], lr=1e-2)
    losses = []
    for x in batches:
        loc, log_sigma = encoder((x - mean) / unit).chunk(2, 1)
        z = loc + log_sigma.exp() * torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
        output = decoder(z)
        if log_scale is None:
            error = (softplus(output) - x * output).sum(dim=(1, 2, 3))
        else:
            pixel = (
                (x - mean - unit * output) ** 2 / (2 * torch.exp(2 * log_scale))
                + log_scale
                + 0.5 * math.log(2 * math.pi)
            )
            error = pixel.sum(dim=(1, 2, 3))
        kl = 0.5 * (loc**2 + torch.exp(2 * log_sigma) - 1 - 2 * log_sigma).sum(1)
        loss = (error + beta * kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "options", "plain", "head"),
    [
        ("vae", {"hidden": (32,)}, plain_mlp, "bernoulli"),
        ("vae", {"hidden": (32,), "beta": 2.0}, plain_mlp, "gaussian"),
        ("conv-vae", {"channels": (8, 16)}, plain_conv, "gaussian"),
    ],
    ids=["mlp", "mlp-beta", "conv"],
)
def test_vae_training_curve_is_that_of_a_plain_loop(
    name: str,
    options: dict[str, Any],
    plain: Callable[[], tuple[nn.Module, nn.Module]],
    head: str,
    images: Tensor,
    binary: Dataset,
) -> None:
    """Same weights, data order and noise, in the same run: the loss of every epoch within 1 %."""
    model = build(name, latent=4, head=head, **options)
    parts = [part.double() for part in plain()]
    assert isinstance(model.inference, Amortized)
    for part, source in zip(parts, (model.inference.guide.network, model.likelihood.decoder), strict=True):  # type: ignore[union-attr]
        for own, given in zip(part.parameters(), source.parameters(), strict=True):  # type: ignore[union-attr]
            own.data.copy_(given.data)
    recorder = Recorder(model.inference.guide)  # type: ignore[arg-type]
    x = (images if head == "gaussian" else binary.train.double())[:600]
    history = train(model, x, epochs=4, batch_size=64, optimizer=partial(torch.optim.Adam, lr=1e-2))
    mean, unit = x.mean(0), (x - x.mean(0)).square().mean().sqrt()
    log_scale = unit.log().requires_grad_() if head == "gaussian" else None
    sizes = [len(batch) for batch, _ in recorder.seen]
    losses = plain_vae_losses((parts[0], parts[1]), mean, unit, log_scale, options.get("beta", 1.0), recorder.batches())
    per_epoch = len(losses) // 4
    for epoch, row in enumerate(history.rows):
        rows = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        assert sum(sizes[rows]) == len(x)
        wanted = np.average(losses[rows], weights=sizes[rows])
        assert row.train_loss == pytest.approx(wanted, rel=1e-2)
    within("nats learned", history.rows[0].train_loss - history.rows[-1].train_loss, above=0.5)


@pytest.mark.parametrize(("name", "options"), [VAES[0], VAES[3]])
@pytest.mark.parametrize("variance", [0.3, 5.0])
@pytest.mark.parametrize("analytic", [False, True])
def test_decoder_variance_is_beta(
    name: str, options: dict[str, Any], variance: float, analytic: bool, images: Tensor
) -> None:
    """Ledger D26: ∇ elbo(beta=c, variance=1) = c ∇ elbo(beta=1, variance=c) for decoder mean and encoder."""

    def gradient(beta: float, variance: float) -> dict[str, Tensor]:
        model = vary(build(name, beta=beta, analytic=analytic, **options))
        assert isinstance(model.likelihood, Gaussian)
        model.likelihood.log_scale.data.fill_(0.5 * math.log(variance))
        torch.manual_seed(2)
        model(images[:64]).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None and "log_scale" not in n}

    left, right = gradient(variance, 1.0), gradient(1.0, variance)
    assert len(left) >= 8
    for parameter in left:
        assert torch.allclose(left[parameter], variance * right[parameter], rtol=1e-9, atol=1e-12), parameter


# Bounds of the evidence.


def test_elbo_below_iwae_below_evidence_on_ppca(images: Tensor) -> None:
    """With a deliberately wrong encoder, each bound has the theoretical expectation."""
    model = build("ppca", latent=2)
    train(model, images)
    likelihood, x = linear(model), images[:10]
    exact = likelihood.posterior(x)
    mean, covariance = exact.mean[0].detach(), exact.covariance_matrix[0].detach()  # type: ignore[attr-defined]
    scale = 1.5 * covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    draws, particles = 2000, 8
    encoding = Amortized(lambda x: Independent(Normal(mean + 0.1, scale), 1), draws * particles)(likelihood, x)
    assert encoding.log_q is not None
    weights = (encoding.log_joint - encoding.log_q).detach()
    assert torch.allclose(elbo(encoding), weights.mean(0))
    parts = weights.unflatten(0, (particles, draws))
    values = torch.log(torch.exp(parts - parts.amax(0)).mean(0)) + parts.amax(0)
    one = Encoding(encoding.z[:8], None, weights[:8], 0 * weights[:8], None, encoding.prior, "Amortized")
    assert torch.allclose(iwae(one), torch.log(torch.exp(weights[:8] - weights[0]).mean(0)) + weights[0])
    q = MultivariateNormal(mean + 0.1, torch.diag_embed(scale**2))
    gap = kl_divergence(q, MultivariateNormal(mean, covariance))
    low, low_error = weights.mean(0), weights.std(0) / math.sqrt(len(weights))
    middle, middle_error = values.mean(0), values.std(0) / math.sqrt(draws)
    evidence = likelihood.log_evidence(x).log_p.detach()
    assert ((low - (evidence - gap)).abs() / low_error).max() < 4  # ledger D25: the gap of the ELBO is a KL
    assert (middle - low > 4 * (low_error**2 + middle_error**2).sqrt()).all()
    assert (evidence - middle > 4 * middle_error).all()


def test_iwae_is_tighter_on_a_trained_vae(binary: Dataset) -> None:
    model = systems.build("vae", (1, 8, 8), latent=4, hidden=(32,), head="bernoulli", samples=16, analytic=False)
    train(model, binary.train, epochs=3)
    with torch.no_grad():
        encoding = model.encode(binary.test)
        estimate = model.log_evidence(binary.test)
    gain = iwae(encoding) - elbo(encoding)
    assert (gain >= 0).all() and gain.mean() > 0.1
    loose = elbo(encoding).mean()
    assert loose < iwae(encoding).mean() < estimate.log_p.mean() + 4 * estimate.standard_error.mean()


# Gradient origin networks.


def test_gon_code_is_minus_the_gradient_of_the_error_at_the_origin(images: Tensor) -> None:
    model, x = vary(build("gon", latent=3, hidden=(20,), scale=0.5**0.5)), images[:16]
    decoder = dict(model.likelihood.named_modules())["decoder"]
    origin = torch.zeros(16, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((x - decoder(origin)).square().sum(), origin)
    assert torch.allclose(model.encode(x).point, -gradient, atol=1e-10)
    error = (x - decoder(-gradient)).square().sum(dim=(1, 2, 3)).mean().item()
    assert model(x).item() == pytest.approx(error + 32 * math.log(math.pi))  # -log N(x; f(z), ½)


def central_difference(function: Callable[[], Tensor], parameter: nn.Parameter, entry: int, step: float) -> float:
    values, cell = [], parameter.data.view(-1)
    original = cell[entry].item()
    for shift in (step, -step):
        cell[entry] = original + shift
        values.append(function().item())
    cell[entry] = original
    return (values[0] - values[1]) / (2 * step)


def test_gon_gradient_is_that_of_central_differences(images: Tensor) -> None:
    """Through the inner step too: the second-order terms count (ledger D05)."""
    model, x = vary(build("gon", latent=3, hidden=(10,), rate=0.1, scale=0.5**0.5)), images[:8]
    model(x).backward()
    through_code = 0.0
    detached = build("gon", latent=3, hidden=(10,), rate=0.1, scale=0.5**0.5)
    detached.load_state_dict(model.state_dict())
    code = model.encode(x).z.detach()
    (-detached.likelihood.log_joint(x, code).mean()).backward()
    for parameter, other in zip(model.parameters(), detached.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        for entry in range(0, parameter.numel(), max(1, parameter.numel() // 15)):
            with torch.no_grad():
                wanted = central_difference(partial(model, x), parameter, entry, 1e-5)
            assert parameter.grad.view(-1)[entry].item() == pytest.approx(wanted, rel=1e-6, abs=1e-7)
        through_code = max(through_code, (parameter.grad - other.grad).abs().max().item())
    assert through_code > 0.01  # the differences agree to 1e-6


def test_gon_learns(images: Tensor, held_out: Tensor) -> None:
    """Better than the mean image on held-out data, by codes of one gradient step."""
    model = build("gon", latent=8, hidden=(64,))
    history = train(model, images, epochs=8, batch_size=50, optimizer=partial(torch.optim.Adam, lr=5e-3))
    assert history.rows[-1].train_loss < history.rows[0].train_loss
    error = (model.reconstruct(held_out) - held_out).square().mean().item()
    within("error, by the mean image's", error / (held_out - images.mean(0)).square().mean(), below=0.6)


@pytest.mark.slow
def test_short_runs_learn(images: Tensor, held_out: Tensor) -> None:
    """Codes of 30 Langevin steps from the prior come nearer to held-out data than the mean image."""
    model, x = build("short-run", hidden=(32,)), held_out[:100]
    train(model, images[:300], epochs=12, batch_size=50, optimizer=partial(torch.optim.Adam, lr=1e-2))
    with torch.no_grad():
        error = (model.reconstruct(x) - x).square().mean()
    within("error, by the mean image's", error / (images.mean(0) - x).square().mean(), below=0.6)


# Semi-amortised VAEs.


def log_density(likelihood: Gaussian, x: Tensor, z: Tensor) -> Tensor:
    """log q_r(x|z) of a Gaussian head, (B,)."""
    residual = (x - likelihood.decoder(z)) / likelihood.scale
    pixel = residual.square() / 2 + likelihood.scale.log() + 0.5 * math.log(2 * math.pi)
    return -pixel.flatten(1).sum(1)


def sampled_elbo(likelihood: Gaussian, x: Tensor, loc: Tensor, scale: Tensor, noise: list[Tensor]) -> Tensor:
    """The mean of log q_r(x|z) + log q_w(z) over the given noise, plus the entropy of q."""
    codes = [loc + scale * draw for draw in noise]
    values = [log_density(likelihood, x, z) - (z.square() / 2 + 0.5 * math.log(2 * math.pi)).sum(1) for z in codes]
    return torch.stack(values).mean(0) + (scale.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(1)


@pytest.mark.parametrize("epochs", [0, 5])
def test_savae_never_ends_below_its_start(images: Tensor, epochs: int) -> None:
    """With the noise of the solve, every sample's ELBO after refinement is at least that of the encoder's density."""
    model = build("savae", latent=4, hidden=(32,))
    if epochs:
        train(model, images, epochs=epochs)
    likelihood, engine, x = model.likelihood, model.inference, images[:200]
    assert isinstance(likelihood, Gaussian) and isinstance(engine, Ascent) and isinstance(engine.init, Amortized)
    torch.manual_seed(3)
    start = engine.init(likelihood, x).q
    draw = torch.normal(torch.zeros(1, 200, 4).double(), torch.ones(1, 200, 4).double())[0]
    torch.manual_seed(3)
    refined = model.encode(x).q
    assert start is not None and refined is not None
    before = sampled_elbo(likelihood, x, start.mean, start.stddev, [draw, -draw])
    after = sampled_elbo(likelihood, x, refined.mean[0], refined.stddev[0], [draw, -draw])
    assert (after >= before).all()
    assert (after - before).mean() > 0.01


def exact_elbo(likelihood: Gaussian, x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """A linear decoder: the expectation over q is a formula."""
    weight = likelihood.decoder.scale * dict(likelihood.named_parameters())["decoder.0.weight"]  # type: ignore[operator]
    spread = (scale.square() * weight.square().sum(0)).sum(1) / (2 * likelihood.scale.square())
    kl = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum(1)
    return log_density(likelihood, x, loc) - spread - kl


def test_savae_gap_is_smaller_than_the_amortised_one(images: Tensor, held_out: Tensor) -> None:
    """A linear-Gaussian decoder knows log p(x): the gaps KL(q ‖ posterior) are exact, and refinement shrinks them.

    The encoder is left behind: the gap of one that is good is as small as the noise of two draws per step.
    """
    model = build("savae", latent=3, hidden=())
    train(model, images, epochs=1, optimizer=partial(torch.optim.Adam, lr=1e-4))
    likelihood, engine = model.likelihood, model.inference
    assert isinstance(likelihood, Gaussian) and isinstance(engine, Ascent) and isinstance(engine.init, Amortized)
    parameters = {name: value.detach().numpy() for name, value in likelihood.named_parameters()}
    unit, mean = likelihood.decoder.scale.item(), flat(images).mean(0)  # type: ignore[union-attr, operator]
    weight, bias = unit * parameters["decoder.0.weight"], mean + unit * parameters["decoder.0.bias"]
    covariance = weight @ weight.T + likelihood.scale.item() ** 2 * np.eye(64)
    evidence = multivariate_normal.logpdf(flat(held_out), bias, covariance)
    amortised, refined = engine.init(likelihood, held_out).q, model.encode(held_out).q
    assert amortised is not None and refined is not None
    gaps = [
        evidence - exact_elbo(likelihood, held_out, loc, scale).detach().numpy()
        for loc, scale in ((amortised.mean, amortised.stddev), (refined.mean[0], refined.stddev[0]))
    ]
    assert min(gap.min() for gap in gaps) > -1e-9  # a bound is a bound
    within("refined gap, by the amortised one", gaps[1].mean() / gaps[0].mean(), below=0.8)
    within("share of smaller gaps", (gaps[1] < gaps[0]).mean(), above=0.9)


def test_savae_without_steps_is_the_vae(images: Tensor) -> None:
    refined, plain = build("savae", latent=3, hidden=(20,), steps=0), build("vae", latent=3, hidden=(20,))
    x = images[:50]
    assert isinstance(refined.likelihood, Gaussian)
    start, end = plain.encode(x).q, refined.encode(x).q
    assert start is not None and end is not None
    assert torch.allclose(end.mean[0], start.mean) and torch.allclose(end.stddev[0], start.stddev)


# The unit of the data.

SMALL: dict[str, dict[str, Any]] = {
    **{name: {"hidden": (16,)} for name in ("ae", "vae", "iwae", "dae", "cae", "gon", "savae", "sparse-ae")},
    "short-run": {"hidden": (16,), "steps": 3},
    "conv-vae": {"channels": (4,)},
    "stacked-ae": {"hidden": (16,), "latent": 4},
    "overcomplete-ae": {},
}


def fitted(name: str, x: Tensor) -> Autoencoder:
    """After four steps."""
    model = build(name, tuple(x.shape[1:]), **SMALL[name])
    optimizer = model.optimizer or partial(torch.optim.Adam, lr=3e-3)
    train(model, x, epochs=2, batch_size=50, optimizer=optimizer)
    return model.eval()


def loss(model: Autoencoder, x: Tensor) -> float:
    torch.manual_seed(1)
    return float(model(x).detach())


def reconstructed(model: Autoencoder, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    return model.reconstruct(x[:10]).detach()


@pytest.mark.parametrize("name", SMALL)
def test_data_in_another_unit_give_the_same_model(name: str, images: Tensor) -> None:
    """log p of a x + b is log p of x minus D log a, and the codes are the same."""
    x = images[:100]
    one = fitted(name, x)
    known, shown = loss(one, x), reconstructed(one, x)
    for factor, offset in ((255.0, 1e4), (1e-3, 0.0)):
        y = factor * x + offset
        other = fitted(name, y)
        assert loss(other, y) == pytest.approx(known + 64 * math.log(factor), rel=1e-4, abs=1e-3)
        assert torch.allclose((reconstructed(other, y) - offset) / factor, shown, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "conv-vae"])
def test_a_raw_table_is_as_good_as_a_standardised_one(name: str) -> None:
    """Breast cancer, whose columns have scales of 1e-3 to 1e3: log densities differ by the logarithms of the scales."""
    raw = torch.from_numpy(load_breast_cancer().data[:100])
    scale = raw.std(0, unbiased=False)
    standard = (raw - raw.mean(0)) / scale
    wanted = loss(fitted(name, standard), standard) + float(scale.log().sum())
    assert loss(fitted(name, raw), raw) == pytest.approx(wanted, rel=1e-4, abs=1e-3)


def test_a_learned_scale_has_a_floor_where_a_pixel_is_constant(images: Tensor) -> None:
    """For any value of the parameter, log q_r(x|z) is finite and equals scipy's at the scale of the model."""
    model = build("vae", latent=2, hidden=(8,), learn="pixel")
    train(model, images[:50], epochs=1)
    likelihood, x, z = model.likelihood, images[:5], torch.randn(1, 5, 2, dtype=torch.float64)
    assert isinstance(likelihood, Gaussian)
    likelihood.log_scale.data[0, 0, 0] = -1e4
    unit = (images[:50] - images[:50].mean(0)).square().mean().sqrt()
    assert likelihood.scale.min().item() == pytest.approx(1e-4 * unit.item())
    decoded = norm(likelihood(z).mean.detach().numpy(), likelihood.scale.detach().numpy())
    wanted = decoded.logpdf(x.numpy()).sum((2, 3, 4)) + norm.logpdf(z.numpy()).sum(2)
    value = likelihood.log_joint(x, z)
    assert np.allclose(value.detach().numpy(), wanted, rtol=1e-9)
    value.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in likelihood.parameters() if parameter.grad is not None)


def test_an_encoders_scale_neither_vanishes_nor_overflows() -> None:
    output = torch.tensor([[0.0, 0.0, 1e4, -1e4]])
    q = systems.NormalEncoder(nn.Identity()).density(output)
    divergence = kl_divergence(q, Independent(Normal(torch.zeros(1, 2), torch.ones(1, 2)), 1))
    assert divergence.isfinite().all() and (q.stddev > 0).all()


# The table.


@pytest.mark.parametrize(
    ("name", "option", "bad"),
    [
        ("vae", "latent", 0),
        ("vae", "latent", -1),
        ("vae", "hidden", (16, 0)),
        ("vae", "samples", 0),
        ("conv-vae", "channels", (-1,)),
        ("pca", "latent", 0),
        ("kmeans", "components", 0),
        ("kmeans", "components", -1),
        ("gon", "hidden", (0,)),
        ("glo", "steps", -1),
        ("gan", "restarts", 0),
        ("stacked-ae", "hidden", (-1,)),
        ("sparse-coding", "latent", 0),
        ("nmf", "latent", -1),
        ("tsne", "points", 0),
        ("lle", "neighbours", 0),
        ("deep-image-prior", "channels", 0),
        ("deep-image-prior", "scales", -1),
        ("compressed-sensing", "measurements", 0),
        ("superresolution", "factor", 0),
        ("maximal-activation", "units", 0),
        ("attention-vae", "heads", 0),
        ("sequence-vae", "classes", 0),
        ("music-vae", "segment", 0),
    ],
)
def test_sizes_are_checked_by_name(name: str, option: str, bad: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{option} must be .* of at least \d, got .*{'-1' if '-' in str(bad) else '0'}"
    ):
        systems.build(name, (8,) if name in OF_SEQUENCES else (1, 8, 8), **{option: bad})


# The narrowest; the digits are tried in test_table.py, and linear-gaussian has ten elements.
BUNDLED = ("circles", "swiss-roll") if FULL else ("circles",)


@pytest.mark.parametrize("name", systems.SYSTEMS)
@pytest.mark.parametrize("data", BUNDLED)
def test_defaults_fit_every_bundled_data_set_or_say_what_they_need(name: str, data: str) -> None:
    x = load(data).train[:12]
    try:
        model = systems.build(name, tuple(x.shape[1:]))
        model.likelihood.check(x)
    except ValueError as error:
        observed = systems.SYSTEMS[name].observation
        needs = r"needs images|must have shape|x must have shape|sequence|needs x in the classes"
        assert re.search(needs, str(error)) and (observed != "sample" or name == "conv-vae"), str(error)
        return
    if name == "nmf":
        with pytest.raises(ValueError, match="Negative values in data"):
            fit(model, x, epochs=1, progress=False)
    elif any(parameter.requires_grad for parameter in model.parameters()):
        history = fit(model, x, epochs=1, progress=False)
        assert math.isfinite(history.rows[-1].train_loss)


def test_a_chart_has_no_more_directions_than_the_data() -> None:
    assert [build(name, (2,)).likelihood.latent_shape[0] for name in ("pca", "ppca", "llgae")] == [2, 2, 2]
    with pytest.raises(ValueError, match="latent <= 2, got K=1, E=8"):
        build("pca", (2,), latent=8)


def test_unknown_system() -> None:
    with pytest.raises(
        ValueError,
        match=r"Unknown system 'pcaa'\. Did you mean 'pca'\? Valid systems: pca, ppca, kmeans, gmm, llgae, ae, ",
    ):
        systems.build("pcaa", (4,))


def test_unknown_option() -> None:
    with pytest.raises(ValueError, match=r"kmeans has no option 'latent'\. Valid options: components"):
        systems.build("kmeans", (4,), latent=3)


@pytest.mark.parametrize("name", ["ae", "vae", "conv-vae", "savae"])
def test_unknown_head(name: str) -> None:
    with pytest.raises(ValueError, match=r"Unknown head 'normal'\. Valid heads: gaussian, laplace, bernoulli"):
        systems.build(name, (1, 8, 8), head="normal")


OF_SEQUENCES = ("sequence-vae", "attention-vae", "music-vae")


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_every_option_is_listed_and_accepted(name: str) -> None:
    """Its own default for each listed option builds the same model."""
    event_shape = (8,) if name in OF_SEQUENCES else (1, 8, 8)
    model, other = build(name, event_shape), build(name, event_shape, **systems.defaults(name))
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    assert model.state_dict().keys() == other.state_dict().keys()


def test_convolutions_need_images() -> None:
    with pytest.raises(ValueError, match=r"needs images \(C, H, W\), got shape \(64,\)"):
        systems.build("conv-vae", (64,))
