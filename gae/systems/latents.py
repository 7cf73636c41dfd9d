"""Systems whose latent is a network's input, or the code of a decoder observed through a measurement."""

from collections.abc import Sequence

import torch

from gae import nets
from gae.autoencoder import Autoencoder
from gae.inference import LBFGS, Adam, Ascent, Box, Constant, Detach, Prior, Projected, Scheduled, Step
from gae.likelihood import Activation, Downsample, GaussianProjection, LinearOperator, Mask, Measured
from gae.objective import joint
from gae.systems.parts import Shape, decoder_of, need_image
from gae.systems.table import System

THRESHOLD = 1e6  # threshold of a binary unit, far above any activation


@System(
    likelihood="Activation(network)",
    prior="flat, in [0, 1]",
    inference="Ascent(Adam in a box)",
    objective="joint",
    source="GAE note",
    observation="index of a unit",
)
def maximal_activation(
    event_shape: Shape, units: int = 10, hidden: Sequence[int] = (128, 128), steps: int = 400
) -> Autoencoder:
    """Activation maximisation (ledger D20): an observation is the index of a unit, its code an input in [0, 1].

    The code maximises the unit's activation. The network has the architecture of the encoder of ``ae``, whose weights
    ``likelihood.decoder`` can load. See ``gae.analysis.activation`` for fitted models and several starts.
    """
    network = nets.Standardized(nets.mlp(event_shape, hidden, units), event_shape)
    likelihood = Activation(network, tuple(event_shape), "logit", threshold=THRESHOLD)
    start = Constant(torch.full(tuple(event_shape), 0.5))
    return Autoencoder(likelihood, Ascent(start, boxed_adam(0.0, 1.0, steps), steps, adjoint=Detach()), joint)


def boxed_adam(low: float, high: float, steps: int) -> Step:
    """Adam projected onto a box, with a rate that decreases from a 20th of the range to 0."""
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
    """Compressed sensing with a decoder (Bora et al. 2017): observations are random projections of samples.

    The decoder has the architecture of that of ``vae``, whose parameters ``likelihood.likelihood`` can load: training
    by MAP codes has no maximiser. ``likelihood.restored`` decodes a code to the whole sample. ``scale`` is the standard
    deviation of the measurement noise.
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
    observation="observed elements of a sample",
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
    """Inpainting with a decoder: an observation is a fraction ``seen`` of a sample's elements, the same for each."""
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
    observation="a downsampled image",
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
    """Super-resolution with a decoder: an observation is an image (C, H, W) downsampled by ``factor``."""
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
    """MAP codes on a decoder that was trained elsewhere; training it here, by ``joint``, would have no maximiser."""
    decoder = decoder_of(nets.mlp(latent, hidden[::-1], event_shape), latent, event_shape, head)
    engine = Ascent(Prior(), LBFGS(), steps, tol=1e-3, restarts=restarts, adjoint=Detach())
    return Autoencoder(Measured(decoder, operator, scale), engine, joint, accepts_rescaling=True)
