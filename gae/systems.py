"""The table: every named system as a composition of likelihood, inference and objective."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
from jaxtyping import Float, Num
from torch import Size, Tensor, nn

from gae import nets
from gae.autoencoder import Autoencoder
from gae.inference import Amortized, Argmax, Ascent, ClosedForm, Enumerate, GradientAscent, MeanField, Unroll, Zeros
from gae.likelihood import Bernoulli, ContinuousBernoulli, Flat, Gaussian, Head, Laplace, LinearMixture, Poisson
from gae.objective import elbo, joint, logsumexp

Shape = Size | tuple[int, ...]

HEADS: dict[str, Callable[..., Head]] = {
    "gaussian": partial(Gaussian, learn="scalar"),
    "laplace": partial(Laplace, learn="scalar"),
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "poisson": Poisson,
}


class NormalEncoder(nn.Module):
    """q(z|x) = N(mean(x), scale(x)²), independent over the code: a network with 2 Z outputs, as a Pyro guide.

    >>> import torch
    >>> encoder = NormalEncoder(nn.Linear(3, 4))
    >>> encoder.density(torch.zeros(5, 3)).batch_shape
    torch.Size([5])
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def density(self, x: Num[Tensor, "B *X"]) -> dist.Independent:
        """q(z|x): batch (B,), event (Z,)."""
        loc, log_scale = self.network(x).chunk(2, -1)
        return dist.Independent(dist.Normal(loc, log_scale.exp(), validate_args=False), 1, validate_args=False)

    def forward(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "..."]:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.density(x))


def pca(event_shape: Shape, latent: int = 8) -> Autoencoder:
    """Principal component analysis: one linear chart, orthonormal loadings, flat prior.

    >>> pca((1, 8, 8)).likelihood.loadings.shape
    torch.Size([1, 8, 64])
    """
    return Autoencoder(LinearMixture(1, latent, event_shape, flat_prior=True), ClosedForm(), joint)


def ppca(event_shape: Shape, latent: int = 8) -> Autoencoder:
    """Probabilistic PCA (Tipping & Bishop 1999): z ~ N(0, I), learned noise; the ELBO is the evidence."""
    return Autoencoder(LinearMixture(1, latent, event_shape, learn_scale=True), ClosedForm(), elbo)


def kmeans(event_shape: Shape, components: int = 10) -> Autoencoder:
    """k-means as an autoencoder: K points, no continuous code, argmax (the GAE note; ledger D10)."""
    return Autoencoder(LinearMixture(components, 0, event_shape), Argmax(), joint)


def gmm(event_shape: Shape, components: int = 10) -> Autoencoder:
    """A mixture of spherical Gaussians by EM: the evidence is a logsumexp over the components."""
    likelihood = LinearMixture(components, 0, event_shape, learn_scale=True, learn_weights=True)
    return Autoencoder(likelihood, Enumerate(), logsumexp)


def llgae(
    event_shape: Shape, latent: int = 8, components: int = 10, steps: int | None = None, rate: float = 0.5
) -> Autoencoder:
    """The locally linear autoencoder, hierarchical form: max_k max_z over K charts of width E.

    ``steps=None`` finds z in closed form; otherwise by that many ascent steps of the given rate from zero, as
    the update rule of the notes does (ledger D16).
    """
    likelihood = LinearMixture(components, latent, event_shape, flat_prior=True)
    inner = ClosedForm() if steps is None else Ascent(Zeros(), GradientAscent(rate), steps, backprop=Unroll())
    return Autoencoder(likelihood, Argmax(inner), joint)


def ae(event_shape: Shape, latent: int = 8, hidden: Sequence[int] = (128, 128), head: str = "gaussian") -> Autoencoder:
    """The undercomplete autoencoder: a flat prior and a deterministic encoder."""
    decoder = _head(head)(nets.mlp(latent, hidden[::-1], event_shape), latent, prior=Flat(latent))
    return Autoencoder(decoder, Amortized(nets.mlp(event_shape, hidden, latent)), joint)


def vae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    beta: float = 1.0,
    samples: int = 1,
    analytic: bool = True,
) -> Autoencoder:
    """The variational autoencoder (Kingma & Welling 2014); ``beta`` weighs the KL (Higgins et al. 2017)."""
    decoder = _head(head)(nets.mlp(latent, hidden[::-1], event_shape), latent)
    encoder = NormalEncoder(nets.mlp(event_shape, hidden, 2 * latent))
    return Autoencoder(decoder, Amortized(encoder, samples), partial(elbo, beta=beta, analytic=analytic))


def conv_vae(
    event_shape: Shape,
    latent: int = 8,
    channels: Sequence[int] = (32, 64),
    head: str = "gaussian",
    beta: float = 1.0,
    analytic: bool = True,
) -> Autoencoder:
    """A VAE with convolutions; images are (C, H, W)."""
    decoder = _head(head)(nets.conv_decoder(latent, event_shape, channels[::-1]), latent)
    encoder = NormalEncoder(nets.conv_encoder(event_shape, 2 * latent, channels))
    return Autoencoder(decoder, Amortized(encoder), partial(elbo, beta=beta, analytic=analytic))


def gon(
    event_shape: Shape, latent: int = 8, hidden: Sequence[int] = (128, 128), scale: float = 0.5**0.5, rate: float = 1.0
) -> Autoencoder:
    """The gradient origin network (Bond-Taylor & Willcocks 2021): one unrolled step from the origin.

    ``scale=√½`` makes log q_r(x|z) = -‖x - f(z)‖² up to a constant; the prior is flat.
    """
    decoder = Gaussian(nets.mlp(latent, hidden[::-1], event_shape), latent, scale, prior=Flat(latent))
    return Autoencoder(decoder, Ascent(Zeros(), GradientAscent(rate), max_steps=1, backprop=Unroll()), joint)


def savae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    steps: int = 5,
    rate: float = 0.01,
) -> Autoencoder:
    """The semi-amortised VAE (Kim et al. 2018): an encoder's density, refined by unrolled ascent on the ELBO."""
    model = vae(event_shape, latent, hidden, head)
    refine = Ascent(model.inference, GradientAscent(rate), steps, family=MeanField(samples=2), backprop=Unroll())
    return Autoencoder(model.likelihood, refine, partial(elbo, analytic=True))


@dataclass(frozen=True)
class System:
    """One row of the table, and the function that builds it for an event shape."""

    build: Callable[..., Autoencoder]
    likelihood: str
    prior: str
    inference: str
    objective: str
    source: str


SYSTEMS: dict[str, System] = {
    "pca": System(pca, "LinearMixture(K=1)", "flat", "ClosedForm", "joint", "Pearson 1901; GAE note, LGAE"),
    "ppca": System(ppca, "LinearMixture(K=1)", "N(0, I)", "ClosedForm", "elbo (tight)", "Tipping & Bishop 1999"),
    "kmeans": System(kmeans, "LinearMixture(E=0)", "uniform k", "Argmax", "joint", "Lloyd 1982; GAE note"),
    "gmm": System(gmm, "LinearMixture(E=0)", "learned k", "Enumerate", "logsumexp (exact)", "Dempster et al. 1977"),
    "llgae": System(
        llgae, "LinearMixture(K, E)", "uniform k, flat z", "Argmax(ClosedForm or Ascent)", "joint", "GAE note"
    ),
    "ae": System(ae, "neural head", "flat", "Amortized (deterministic)", "joint", "Hinton & Salakhutdinov 2006"),
    "vae": System(vae, "neural head", "N(0, I)", "Amortized (guide)", "elbo", "Kingma & Welling 2014"),
    "conv-vae": System(conv_vae, "neural head", "N(0, I)", "Amortized (guide)", "elbo", "Kingma & Welling 2014"),
    "gon": System(gon, "Gaussian head", "flat", "Ascent(Zeros, 1 step)", "joint", "Bond-Taylor & Willcocks 2021"),
    "savae": System(savae, "neural head", "N(0, I)", "Ascent(Amortized, MeanField)", "elbo", "Kim et al. 2018"),
}


def build(name: str, event_shape: Shape, **options: Any) -> Autoencoder:
    """The named system for observations of the given shape.

    Raises:
        ValueError: for an unknown name or option; the valid ones are listed.

    >>> type(build("vae", (1, 8, 8), latent=2).inference).__name__
    'Amortized'
    """
    if name not in SYSTEMS:
        raise ValueError(f"Unknown system {name!r}. Valid systems: {', '.join(SYSTEMS)}.")
    accepted = option_names(name)
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}. Valid options: {', '.join(accepted)}.")
    return SYSTEMS[name].build(event_shape, **options)


def option_names(name: str) -> list[str]:
    """The keyword options of a system."""
    return list(inspect.signature(SYSTEMS[name].build).parameters)[1:]


def _head(name: str) -> Callable[..., Head]:
    if name not in HEADS:
        raise ValueError(f"Unknown head {name!r}. Valid heads: {', '.join(HEADS)}.")
    return HEADS[name]
