"""Matrix factorisations under constraints."""

from collections.abc import Callable

import torch

from gae.autoencoder import Autoencoder
from gae.inference import Ascent, Constant, Detach, MonotoneAscent
from gae.likelihood import NonNegativeGaussian, NonNegativeLinear, NonNegativePoisson
from gae.objective import joint
from gae.systems.parts import Shape
from gae.systems.table import System

LAWS: dict[str, Callable[..., NonNegativeLinear]] = {"gaussian": NonNegativeGaussian, "poisson": NonNegativePoisson}


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
    """Non-negative matrix factorisation (Lee & Seung 1999, 2001): least squares, or for counts a Poisson law.

    Each code is solved anew, by at most ``steps`` updates, until it gains less than ``tol`` nats in each of two. Parts
    follow in closed form: exact least squares, or one multiplicative update an epoch.

    >>> nmf((1, 8, 8), latent=5).likelihood.parts.shape
    torch.Size([5, 1, 8, 8])
    """
    if head not in LAWS:
        raise ValueError(f"Unknown head {head!r}. Valid heads: {', '.join(LAWS)}.")
    start = Constant(torch.ones(latent))
    return Autoencoder(
        LAWS[head](latent, event_shape), Ascent(start, MonotoneAscent(), steps, tol=tol, adjoint=Detach()), joint
    )
