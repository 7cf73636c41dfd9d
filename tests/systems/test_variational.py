"""Variational autoencoders on images of several sizes, and with fixed and learned decoder variances."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import pad

from gae import Autoencoder, systems
from gae.data import Dataset, load
from gae.inference import Amortized
from gae.likelihood import Gaussian, Laplace
from gae.training import fit

train = partial(fit, progress=False)
Fast = partial(torch.optim.Adam, lr=5e-3)

SIZES = [(1, 28, 28), (1, 32, 32), (3, 32, 32), (2, 7, 9)]
sizes = pytest.mark.parametrize("shape", SIZES, ids=str)


def build(name: str, shape: tuple[int, ...] = (1, 8, 8), **options: Any) -> Autoencoder:
    torch.manual_seed(0)
    return systems.build(name, shape, **options)


# Convolutions of several sizes.


@sizes
@pytest.mark.parametrize("channels", [(4,), (4, 8), (4, 8, 8)])
def test_images_come_back_in_their_size(shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
    model, x = build("conv-vae", shape, latent=3, channels=channels), torch.rand(5, *shape)
    assert model.likelihood.event_shape == shape and model.encode(x).point.shape == (5, 3)
    assert model.reconstruct(x).shape == x.shape and model.sample(4).shape == (4, *shape)
    assert model.likelihood.log_joint(x, torch.zeros(2, 5, 3)).shape == (2, 5)
    model(x).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@sizes
def test_every_pixel_is_reached(shape: tuple[int, ...]) -> None:
    """The decoder covers all borders of an image, and the encoder sees them."""
    model, x = build("conv-vae", shape, latent=3, channels=(4, 8)), torch.rand(1, *shape, requires_grad=True)
    assert isinstance(model.inference, Amortized)
    mean = model.inference.guide.density(x).mean  # type: ignore[union-attr, operator]
    (seen,) = torch.autograd.grad(mean.sum(), x)
    assert (seen != 0).all()
    z = torch.randn(200, 3)
    assert (model.decode(z).mean.var(0) > 0).all()


def against_ppca(train_set: Tensor, test_set: Tensor, latent: int, epochs: int) -> float:
    """Bound after a short training minus the exact evidence of PPCA of equal code width, in nats."""
    linear = PCA(latent, svd_solver="full").fit(train_set.flatten(1).double().numpy())
    model = build("conv-vae", tuple(train_set.shape[1:]), latent=latent, channels=(8, 16), scale=0.2)
    train(model, train_set, epochs=epochs, batch_size=32, optimizer=Fast)
    with torch.no_grad():
        bound = model.objective(model.eval().encode(test_set)).mean().item()
    return bound - linear.score(test_set.flatten(1).double().numpy())


@pytest.mark.slow
@pytest.mark.parametrize("margin", [0, 2], ids=["28x28", "32x32"])
def test_it_beats_linear_models_of_mnist(margin: int, mnist_folder: Path) -> None:
    data = load("mnist", folder=str(mnist_folder))
    train_set, test_set = (pad(x, (margin,) * 4) for x in (data.train[:3000], data.test[:500]))
    assert train_set.shape[2] == 28 + 2 * margin
    assert against_ppca(train_set, test_set, latent=8, epochs=4) > 20


def blobs(n: int, seed: int) -> Tensor:
    """Coloured blobs at random places, with noise: (n, 3, 32, 32), on a manifold of five dimensions."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.linspace(-1, 1, 32)
    place = 1.2 * torch.rand(n, 2, generator=generator) - 0.6
    colour = 0.5 + 0.5 * torch.rand(n, 3, 1, 1, generator=generator)
    square = (side[:, None] - place[:, :1, None]).square() + (side - place[:, 1:, None]).square()
    return colour * (-10 * square).exp().unsqueeze(1) + 0.05 * torch.randn(n, 3, 32, 32, generator=generator)


@pytest.mark.slow
def test_it_beats_linear_models_of_coloured_images() -> None:
    assert against_ppca(blobs(600, 0), blobs(200, 1), latent=5, epochs=10) > 100


# The decoder's variance.


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load("digits").train.double()


def expected_error(model: Autoencoder, x: Tensor) -> Tensor:
    """E_q (x - f(z))² of every pixel, the mean over x: a formula for a linear decoder."""
    assert isinstance(model.inference, Amortized)
    q = model.inference.guide.density(x)  # type: ignore[union-attr, operator]
    weight = dict(model.likelihood.named_parameters())["decoder.0.weight"]
    weight = model.likelihood.decoder.scale * weight  # type: ignore[union-attr, operator]
    residual = (x - model.likelihood.decoder(q.mean)).flatten(1)  # type: ignore[operator]
    return (residual.square() + q.variance @ weight.square().T).mean(0).detach()


@pytest.mark.parametrize(("learn", "beta"), [("scalar", 4.0), ("pixel", 1.0)])
def test_a_learned_variance_is_the_expected_squared_error(learn: str, beta: float, images: Tensor) -> None:
    """At a stationary point σ² = E_q (x - f(z))², over all pixels or for each one, for any weight of the KL."""
    images = images[:800]
    model = build("vae", latent=3, hidden=(), learn=learn, scale=0.5, beta=beta).double()
    train(model, images, epochs=9, optimizer=Fast)
    likelihood = model.likelihood
    assert isinstance(likelihood, Gaussian) and isinstance(model.inference, Amortized)
    model.inference.samples = 60
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("log_scale"))
    solve = partial(torch.optim.LBFGS, max_iter=15, line_search_fn="strong_wolfe")
    train(model, images, epochs=1, batch_size=len(images), optimizer=solve)
    wanted = expected_error(model, images)
    assert likelihood.scale.shape == ((1, 8, 8) if learn == "pixel" else ())
    found = likelihood.scale.detach().square().flatten()
    assert torch.allclose(found, wanted if learn == "pixel" else wanted.mean(), rtol=2e-2)


def test_the_learned_variance_of_an_autoencoder_is_its_mean_squared_error(images: Tensor) -> None:
    model, images = build("ae", latent=3, hidden=(16,), scale=0.3).double(), images[:300]
    train(model, images, epochs=4, optimizer=Fast)
    model.likelihood.decoder.requires_grad_(False)  # type: ignore[union-attr]
    model.inference.requires_grad_(False)
    solve = partial(torch.optim.LBFGS, max_iter=50, tolerance_grad=1e-12, tolerance_change=1e-14)
    train(model, images, epochs=1, batch_size=len(images), optimizer=solve)
    assert isinstance(model.likelihood, Gaussian)
    error = (model.reconstruct(images) - images).square().mean().item()
    assert model.likelihood.scale.item() ** 2 == pytest.approx(error, rel=1e-8)


@pytest.mark.parametrize("name", ["ae", "vae", "conv-vae"])
@pytest.mark.parametrize(("head", "kind"), [("gaussian", Gaussian), ("laplace", Laplace)])
def test_a_fixed_scale_stays(name: str, head: str, kind: type[Gaussian] | type[Laplace], digits: Dataset) -> None:
    model = build(name, head=head, scale=0.3, learn="fixed")
    train(model, digits.train[:100], epochs=1, optimizer=Fast)
    assert isinstance(model.likelihood, kind)
    assert model.likelihood.scale.item() == pytest.approx(0.3)
    assert "log_scale" not in dict(model.likelihood.named_parameters())


@pytest.mark.parametrize("name", ["ae", "vae", "conv-vae"])
@pytest.mark.parametrize("learn", ["scalar", "pixel"])
def test_a_learned_scale_starts_where_it_is_told(name: str, learn: str, digits: Dataset) -> None:
    model = build(name, scale=0.3, learn=learn)
    assert isinstance(model.likelihood, Gaussian)
    assert torch.allclose(model.likelihood.scale, torch.full(((1, 8, 8) if learn == "pixel" else ()), 0.3))
    train(model, digits.train[:100], epochs=1, optimizer=Fast)
    assert not torch.allclose(model.likelihood.scale, torch.tensor(0.3))


@pytest.mark.parametrize("name", ["vae", "conv-vae"])
def test_a_fixed_variance_is_the_weight_of_the_kl(name: str, images: Tensor) -> None:
    """Ledger D26, by the options alone: training with beta = c at unit variance, or with variance c at a rate c times
    as large, is the same course of plain gradient descent."""
    found = []
    for variance, beta, rate in ((1.0, 0.25, 2e-2), (0.25, 1.0, 0.5e-2)):
        model = build(name, latent=2, scale=math.sqrt(variance), learn="fixed", beta=beta).double()
        train(model, images[:200], epochs=3, optimizer=partial(torch.optim.SGD, lr=rate))
        found.append([parameter.detach() for parameter in model.parameters()])
    start = list(build(name, latent=2, learn="fixed").double().parameters())
    for left, right, before in zip(*found, start, strict=True):
        assert torch.allclose(left, right, rtol=1e-6, atol=1e-9)  # a scale is kept in float32
        assert not torch.allclose(left, before, atol=1e-5)


@pytest.mark.parametrize("name", ["ae", "vae", "conv-vae"])
@pytest.mark.parametrize("option", [{"scale": 0.1}, {"learn": "fixed"}])
def test_a_head_without_a_scale_takes_none(name: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'bernoulli' has no scale: .* would have no effect.*: gaussian, laplace\."):
        build(name, head="bernoulli", **option)


def test_bad_scales(unchecked_types: None) -> None:
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        build("vae", scale=0.0)
    with pytest.raises(ValueError, match="learn must be 'fixed', 'scalar' or 'pixel', got 'image'"):
        build("vae", learn="image")
