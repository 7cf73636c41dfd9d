"""Constrained matrix factorisations."""

from collections.abc import Callable

import torch

from gae.autoencoder import Autoencoder
from gae.inference import Ascent, Constant, Detach, MonotoneAscent, WarmStart
from gae.likelihood import NonNegativeGaussian, NonNegativeLinear, NonNegativePoisson
from gae.objective import joint
from gae.systems.parts import Shape
from gae.systems.table import System

LIKELIHOODS: dict[str, Callable[..., NonNegativeLinear]] = {
    "gaussian": NonNegativeGaussian,
    "poisson": NonNegativePoisson,
}
SWEEPS = {"gaussian": 2, "poisson": 1}  # of the codes in each epoch


@System(
    likelihood="NonNegativeGaussian or NonNegativePoisson",
    prior="flat, z >= 0",
    inference="WarmStart(Ascent(MonotoneAscent))",
    objective="joint",
    source="Lee & Seung 1999, 2001",
)
def nmf(
    event_shape: Shape, latent: int = 8, head: str = "gaussian", steps: int = 100, tol: float = 1e-5
) -> Autoencoder:
    """Non-negative matrix factorisation (Lee & Seung 1999, 2001), with a Gaussian or, for counts, a Poisson likelihood.

    Codes of new data are inferred by at most ``steps`` updates, until two consecutive updates each gain less than
    ``tol`` nats. Training alternates updates of codes and parts in each epoch: two sweeps of exact coordinate descent,
    or for counts one multiplicative update, with a Newton step of the codes where that is better.

    >>> nmf((1, 8, 8), latent=5).likelihood.parts.shape
    torch.Size([5, 1, 8, 8])
    """
    if head not in LIKELIHOODS:
        raise ValueError(f"Unknown head {head!r}. Valid heads: {', '.join(LIKELIHOODS)}.")
    cold = Ascent(Constant(torch.ones(latent)), MonotoneAscent(), steps, tol=tol, adjoint=Detach())
    return Autoencoder(LIKELIHOODS[head](latent, event_shape), WarmStart(cold, SWEEPS[head]), joint)
