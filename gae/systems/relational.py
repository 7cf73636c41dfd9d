"""Systems with a whole data set as one observation: linear regression, t-SNE and LLE.

The event shape is that of the targets (linear regression), or of one of the ``points`` of an observation (t-SNE, LLE):
encode a data set x (N, *X) as ``x.unsqueeze(0)``. Held-out data are another data set of N points.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gae.autoencoder import Autoencoder
from gae.inference import Ascent, ClosedForm, DecoderInit, DeltaBarDelta, Detach, EarlyExaggeration, Inference, Mode
from gae.inference import PrincipalComponents as Components
from gae.likelihood import LLE, TSNE, LinearRegression
from gae.objective import joint
from gae.systems.parts import Shape
from gae.systems.table import System


@System(
    likelihood="LinearRegression (design)",
    prior="flat or N(0, s² I)",
    inference="ClosedForm",
    objective="joint",
    source="Legendre 1805",
    observation="targets of a design",
)
def linear_regression(
    event_shape: Shape,
    design: Tensor | None = None,
    prior_scale: float | None = None,
    intercept: bool = True,
    scale: float = 1.0,
    learn_scale: bool = False,
) -> Autoencoder:
    """Linear regression of targets (*X) on a design matrix (*X, F): least squares, or ridge with ``prior_scale``.

    Without a design the inputs are the coordinates of the targets, from -1 to 1 along each axis: a linear trend.

    >>> linear_regression((5,)).encode(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])).point  # 3 + 2 t
    tensor([[3.0000, 2.0000]])
    """
    if design is None:
        design = _coordinates(event_shape)
    elif design.shape[:-1] != torch.Size(event_shape):
        raise ValueError(f"design must have shape {(*event_shape, 'F')}, got {tuple(design.shape)}.")
    return Autoencoder(LinearRegression(design, prior_scale, intercept, scale, learn_scale), ClosedForm(), joint)


@System(
    likelihood="TSNE (pairs of points)",
    prior="flat",
    inference="Ascent(EarlyExaggeration, DeltaBarDelta)",
    objective="joint",
    source="van der Maaten & Hinton 2008",
    observation="data set",
    reads={"points": "observations"},
)
def tsne(
    event_shape: Shape,
    points: int = 1000,
    latent: int = 2,
    perplexity: float = 30.0,
    init: str = "pca",
    exaggeration: float = 12.0,
    early_steps: int = 250,
    steps: int = 1000,
    rate: float | None = None,
) -> Autoencoder:
    """Exact t-SNE on all N² pairs (van der Maaten & Hinton 2008), with the schedule of scikit-learn.

    Of ``steps`` steps in total, the first ``early_steps`` use exaggerated attractions and momentum 0.5, the others
    momentum 0.8. ``rate=None`` is N / exaggeration / 4, but at least 50 (Belkina et al. 2019).
    """
    if init not in ("pca", "random"):
        raise ValueError(f"Unknown init {init!r}. Valid inits: pca, random.")
    if not 0 <= early_steps <= steps:
        raise ValueError(f"Need 0 <= early_steps <= steps, got {early_steps} and {steps}.")
    rate = max(points / exaggeration / 4, 50.0) if rate is None else rate
    start: Inference = Components() if init == "pca" else DecoderInit()
    early = Ascent(start, DeltaBarDelta(rate, momentum=0.5), early_steps, adjoint=Detach())
    late = DeltaBarDelta(rate, momentum=0.8)
    engine = Ascent(EarlyExaggeration(early, exaggeration), late, steps - early_steps, adjoint=Detach())
    return Autoencoder(TSNE(points, event_shape, latent, perplexity), engine, joint)


@System(
    likelihood="LLE (neighbour weights)",
    prior="flat",
    inference="Mode",
    objective="joint, whitened codes",
    source="Roweis & Saul 2000",
    observation="data set",
    reads={"points": "observations"},
)
def lle(
    event_shape: Shape, points: int = 1000, latent: int = 2, neighbours: int = 10, reg: float = 1e-3
) -> Autoencoder:
    """Locally linear embedding (Roweis & Saul 2000), in closed form; ``likelihood.transform`` embeds new points."""
    return Autoencoder(LLE(points, event_shape, latent, neighbours, reg), Mode(), joint)


def _coordinates(event_shape: Shape) -> Float[Tensor, "*X F"]:
    """The coordinates of each element, along the axes of more than one element."""
    axes = [torch.linspace(-1, 1, size) for size in event_shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return grid[..., [size > 1 for size in event_shape]]
