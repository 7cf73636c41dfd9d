"""A neural decoder alone: codes by ascent."""

from collections.abc import Sequence

from gae import nets
from gae.autoencoder import Autoencoder
from gae.inference import (
    Adam,
    Ascent,
    Detach,
    FreeCodes,
    GradientAscent,
    Langevin,
    Prior,
    ProximalAscent,
    Unroll,
    Zeros,
)
from gae.likelihood import Flat, Gaussian, LaplacePrior
from gae.objective import joint
from gae.systems.parts import Shape, head_of


def gon(
    event_shape: Shape, latent: int = 8, hidden: Sequence[int] = (128, 128), scale: float = 0.5**0.5, rate: float = 1.0
) -> Autoencoder:
    """The gradient origin network (Bond-Taylor & Willcocks 2021): one unrolled step from the origin.

    ``scale=√½`` makes log q_r(x|z) = -‖x - f(z)‖² up to a constant; the prior is flat.
    """
    decoder = Gaussian(nets.mlp(latent, hidden[::-1], event_shape), latent, scale, prior=Flat(latent))
    return Autoencoder(decoder, Ascent(Zeros(), GradientAscent(rate), max_steps=1, backprop=Unroll()), joint)


def sparse_coding(
    event_shape: Shape, latent: int = 128, rate: float = 10.0, scale: float = 0.1, steps: int = 50
) -> Autoencoder:
    """Sparse coding (Olshausen & Field 1996): unit atoms, a Laplace prior of the given rate, codes by FISTA.

    Each code finds its own step by backtracking, so that FISTA converges however alike the learned atoms are.
    """
    decoder = Gaussian(nets.Dictionary(latent, event_shape), latent, scale, prior=LaplacePrior(latent, rate=rate))
    climb = Ascent(Zeros(), ProximalAscent(accelerated=True), steps, backprop=Detach())
    return Autoencoder(decoder, climb, joint)


def glo(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    steps: int = 100,
    rate: float = 0.05,
) -> Autoencoder:
    """An auto-decoder: free codes for the training data (Bojanowski et al. 2018), under N(0, I) (Park et al. 2019).

    New data are encoded by ``steps`` steps of Adam from the origin.
    """
    decoder = head_of(head)(nets.mlp(latent, hidden[::-1], event_shape), latent)
    inner = Ascent(Zeros(), Adam(rate), steps, backprop=Detach())
    return Autoencoder(decoder, FreeCodes(latent, inner), joint)


def short_run(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    scale: float = 0.2,
    steps: int = 30,
    rate: float = 0.03,
) -> Autoencoder:
    """Alternating back-propagation (Han et al. 2017): codes by a short run of Langevin dynamics from the prior."""
    decoder = Gaussian(nets.mlp(latent, hidden[::-1], event_shape), latent, scale)
    return Autoencoder(decoder, Ascent(Prior(), Langevin(rate), steps, backprop=Detach()), joint)
