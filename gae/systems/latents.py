"""The latent is a network's weights, its input, or the code of a decoder seen through a measurement."""

from collections.abc import Sequence

import torch

from gae import nets
from gae.autoencoder import Autoencoder
from gae.inference import LBFGS, Adam, Ascent, Box, Constant, Detach, Prior, Projected, Scheduled, Step
from gae.likelihood import Activation, Downsample, GaussianProjection, LinearOperator, Mask, Measured
from gae.objective import joint
from gae.systems.parts import Shape, decoder_of, need_image
from gae.systems.table import System

THRESHOLD = 1e6  # of a binary unit, far above any activation


@System(
    likelihood="Activation(network)",
    prior="flat, in [0, 1]",
    inference="Ascent(Adam in a box)",
    objective="joint",
    source="GAE note",
    observation="a unit",
)
def maximal_activation(
    event_shape: Shape, units: int = 10, hidden: Sequence[int] = (128, 128), steps: int = 400
) -> Autoencoder:
    """Maximal activation (ledger D20): an observation is a unit's number, its code the input in [0, 1] that excites it.

    The network has the shape of ``ae``'s encoder, whose weights ``likelihood.decoder`` can load.
    ``gae.analysis.activation`` looks into fitted models, with several starts.
    """
    network = nets.Standardized(nets.mlp(event_shape, hidden, units), event_shape)
    likelihood = Activation(network, tuple(event_shape), "logit", threshold=THRESHOLD)
    start = Constant(torch.full(tuple(event_shape), 0.5))
    return Autoencoder(likelihood, Ascent(start, boxed_adam(0.0, 1.0, steps), steps, adjoint=Detach()), joint)


def boxed_adam(low: float, high: float, steps: int) -> Step:
    """Adam with a rate that falls from a 20th of the range to 0, projected onto the box."""
    return Projected(Scheduled(Adam(0.05 * (high - low)), lambda t: 1 - t / steps), Box(low, high))


@System(
    likelihood="Measured(head, projections)",
    prior="N(0, I)",
    inference="Ascent(Prior, L-BFGS, restarts)",
    objective="joint",
    source="Bora et al. 2017",
    observation="projections of a sample",
)
def compressed_sensing(
    event_shape: Shape,
    measurements: int = 25,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    scale: float = 0.1,
    restarts: int = 10,
    steps: int = 500,
) -> Autoencoder:
    """Compressed sensing with a decoder (Bora et al. 2017): an observation is so many random projections of a sample.

    The decoder has the shape of ``vae``'s, whose parameters ``likelihood.likelihood`` can load; ``likelihood.restored``
    gives the whole sample that a code stands for. ``scale`` is the standard deviation of the measurement noise.
    """
    return _observed(
        event_shape, GaussianProjection(measurements, event_shape), latent, hidden, head, scale, restarts, steps
    )


@System(
    likelihood="Measured(head, mask)",
    prior="N(0, I)",
    inference="Ascent(Prior, L-BFGS, restarts)",
    objective="joint",
    source="Bora et al. 2017",
    observation="seen elements of a sample",
)
def inpainting(
    event_shape: Shape,
    seen: float = 0.5,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    scale: float = 0.1,
    restarts: int = 10,
    steps: int = 500,
) -> Autoencoder:
    """Inpainting with a decoder: an observation is the fraction ``seen`` of a sample, the same elements of each."""
    if not 0 < seen <= 1:
        raise ValueError(f"seen must lie in (0, 1], got {seen}.")
    size = torch.Size(event_shape).numel()
    order = torch.randperm(size)
    mask = torch.zeros(size, dtype=torch.bool).index_fill(0, order[: max(1, round(seen * size))], True)
    operator = Mask(mask.reshape(tuple(event_shape)), event_shape)
    return _observed(event_shape, operator, latent, hidden, head, scale, restarts, steps)


@System(
    likelihood="Measured(head, downsampling)",
    prior="N(0, I)",
    inference="Ascent(Prior, L-BFGS, restarts)",
    objective="joint",
    source="Bora et al. 2017",
    observation="a smaller image",
)
def superresolution(
    event_shape: Shape,
    factor: int = 2,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    scale: float = 0.1,
    restarts: int = 10,
    steps: int = 500,
) -> Autoencoder:
    """Super-resolution with a decoder: an observation is an image (C, H, W) shrunk by ``factor``."""
    need_image("superresolution", event_shape)
    return _observed(event_shape, Downsample(event_shape, factor), latent, hidden, head, scale, restarts, steps)


def _observed(
    event_shape: Shape,
    operator: LinearOperator,
    latent: int,
    hidden: Sequence[int],
    head: str,
    scale: float,
    restarts: int,
    steps: int,
) -> Autoencoder:
    decoder = decoder_of(nets.mlp(latent, hidden[::-1], event_shape), latent, event_shape, head)
    engine = Ascent(Prior(), LBFGS(), steps, tol=1e-3, restarts=restarts, adjoint=Detach())
    return Autoencoder(Measured(decoder, operator, scale), engine, joint)
