"""Distributions of given programs and networks as laws of one vector for each observation."""

from typing import Any

from pyro.distributions import Delta, Independent, MultivariateNormal, Normal
from torch import Size
from torch.distributions import Distribution
from torch.distributions import Independent as Reinterpreted
from torch.distributions import MultivariateNormal as FullNormal
from torch.distributions import Normal as DiagonalNormal


def flat_law(law: Distribution, rows: int, width: int) -> Any:
    """A distribution over codes of any shape as one of batch (rows,) and event (width,).

    Elements of a normal law or of a point may lie in its batch or in its event; any other law must have the shape
    already.

    Raises:
        ValueError: for a law of other rows or elements.

    >>> import torch
    >>> flat_law(DiagonalNormal(torch.zeros(3, 2, 2), 1.0), rows=3, width=4).event_shape
    torch.Size([4])
    """
    shape = law.batch_shape + law.event_shape
    base: Any = law
    while isinstance(base, Reinterpreted):
        base = base.base_dist
    fits = bool(shape) and shape[0] == rows and shape.numel() == rows * width and len(law.batch_shape) > 0
    if fits and isinstance(base, DiagonalNormal):
        loc, scale = (value.expand(shape).reshape(rows, width) for value in (base.loc, base.scale))
        return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
    if fits and isinstance(base, Delta):
        return Delta(base.v.expand(shape).reshape(rows, width), event_dim=1)
    if fits and isinstance(base, FullNormal) and base.event_shape == Size([width]):
        loc, scale = base.loc.reshape(rows, width), base.scale_tril.expand(*shape, width).reshape(rows, width, width)
        return MultivariateNormal(loc, scale_tril=scale, validate_args=False)
    if (law.batch_shape, law.event_shape) != (Size([rows]), Size([width])):
        raise ValueError(
            f"One density over {width} elements is needed for each of {rows} observations, got {type(law).__name__} of "
            f"batch shape {tuple(law.batch_shape)} and event shape {tuple(law.event_shape)}."
        )
    return law
