"""Distributions of given programs and networks as laws of one vector for each observation."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from pyro.distributions import Delta, Independent, MultivariateNormal, Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.distributions import Independent as Reinterpreted
from torch.distributions import MultivariateNormal as FullNormal
from torch.distributions import Normal as DiagonalNormal

from gae.adapters.programs import from_rows, repeated
from gae.inference.laws import rearranged


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


def leading_law(law: Any, axis: int) -> Any:
    """A law with the axis of the observations moved to the front, if it is not there: of a normal law only."""
    if axis + len(law.batch_shape) <= 0:
        return law
    base = law
    while isinstance(base, Reinterpreted):
        base = base.base_dist
    if not isinstance(base, DiagonalNormal):
        raise ValueError(
            f"The observations of a {type(base).__name__} code must run along the first axis of its batch shape, got "
            f"{tuple(law.batch_shape)}. Give its plate the leftmost dim."
        )
    loc, scale = (value.expand(base.batch_shape).movedim(axis, 0) for value in (base.loc, base.scale))
    return DiagonalNormal(loc, scale, validate_args=False)


class RowsOfSite(TorchDistribution):
    """The law of an observed site, of batch shape L and the shape of an observation as its event.

    Args:
        laws: laws of one or more runs, and how many of the rows of each count.
        axis: the axis of the observations in their batch shapes.
        lead: L.
        event_shape: X.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, laws: list[tuple[Any, int]], axis: int, lead: Size, event_shape: Size):
        self.laws, self.axis = laws, axis
        super().__init__(lead, event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.laws[0][0].has_rsample

    @property
    def support(self) -> Any:
        inner = elementwise(self.laws[0][0].support)
        return constraints.independent(inner, len(self.event_shape))

    def _rows(self, of: Callable[[Any], Tensor], lead: Any = ()) -> Tensor:
        parts = []
        for law, size in self.laws:
            values = of(law)
            axis = self.axis - (values.dim() - len(lead) - len(law.batch_shape))
            rows = values.movedim(axis, len(lead)).reshape(*lead, values.shape[axis], -1)
            parts.append(rows.narrow(len(lead), 0, size))
        return torch.cat(parts, len(lead)).reshape(*lead, *self.batch_shape, *self.event_shape)

    @property
    def mean(self) -> Tensor:
        return self._rows(lambda law: law.mean)

    @property
    def mode(self) -> Tensor:
        return self._rows(lambda law: law.mode)

    @property
    def variance(self) -> Tensor:
        return self._rows(lambda law: law.variance)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self._rows(lambda law: law.sample(Size(sample_shape)), Size(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._rows(lambda law: law.rsample(Size(sample_shape)), Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(value.shape[: value.dim() - len(self.event_shape)], self.batch_shape)
        if lead != self.batch_shape:
            return torch.stack([self.log_prob(part) for part in value.expand(*lead, *self.event_shape)])
        rows, parts, start = value.expand(*lead, *self.event_shape).reshape(-1, *self.event_shape), [], 0
        for law, size in self.laws:
            shape, count = law.batch_shape + law.event_shape, law.batch_shape[self.axis]
            filled = repeated(rows[start : start + size], count)
            log_density = law.log_prob(from_rows(filled.flatten(1), shape, self.axis, len(law.event_shape)))
            parts.append(log_density.movedim(self.axis, 0).reshape(count, -1).sum(1)[:size])
            start += size
        return torch.cat(parts).view(self.batch_shape)


def elementwise(support: Any) -> Any:
    """The support of one element; all real numbers where the elements of an event are bound to each other."""
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    return constraints.real if support.event_dim else support


def rows_of(law: Distribution, index: Int[Tensor, " M"]) -> Distribution:
    """Some rows of a law of batch shape (N,), in the order of their indices."""
    return rearranged([law], lambda values, axis: values[0].index_select(axis, index))
