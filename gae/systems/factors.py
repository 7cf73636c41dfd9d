"""Constrained matrix factorisations."""

from collections.abc import Callable

import torch

from gae.autoencoder import Autoencoder
from gae.inference import Ascent, Constant, Detach, MonotoneAscent
from gae.likelihood import NonNegativeGaussian, NonNegativeLinear, NonNegativePoisson
from gae.objective import joint
from gae.systems.parts import Shape
from gae.systems.table import System

LIKELIHOODS: dict[str, Callable[..., NonNegativeLinear]] = {
    "gaussian": NonNegativeGaussian,
    "poisson": NonNegativePoisson,
}


@System(
    likelihood="NonNegativeGaussian or NonNegativePoisson",
    prior="flat, z >= 0",
    inference="Ascent(MonotoneAscent)",
    objective="joint",
    source="Lee & Seung 1999, 2001",
)
def nmf(
    event_shape: Shape, latent: int = 8, head: str = "gaussian", steps: int = 100, tol: float = 1e-5
) -> Autoencoder:
    """Non-negative matrix factorisation (Lee & Seung 1999, 2001), with a Gaussian or, for counts, a Poisson likelihood.

    Codes are inferred from scratch by at most ``steps`` updates, until two consecutive updates each gain less than
    ``tol`` nats. Parts are updated in closed form: exact least squares, or one multiplicative update per epoch.

    >>> nmf((1, 8, 8), latent=5).likelihood.parts.shape
    torch.Size([5, 1, 8, 8])
    """
    if head not in LIKELIHOODS:
        raise ValueError(f"Unknown head {head!r}. Valid heads: {', '.join(LIKELIHOODS)}.")
    start = Constant(torch.ones(latent))
    return Autoencoder(
        LIKELIHOODS[head](latent, event_shape), Ascent(start, MonotoneAscent(), steps, tol=tol, adjoint=Detach()), joint
    )
