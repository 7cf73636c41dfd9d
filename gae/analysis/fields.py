"""Functions on grids of a line or a plane: quadrature, and highest-density regions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LogDensity = Callable[[Float[Tensor, "P A"]], Float[Tensor, " P"]]

DEPTH = 25.0  # nats below the highest value, at which a window ends
EDGE = 257  # points along each edge of a window, where its growth is decided
GROWTHS = 8  # of a window, at most
INSIDE = 33  # points along each axis, for the highest value in a window
CHUNK = 4096  # points evaluated at once
SIZES = {1: (2001, 4001), 2: (201, 401)}  # points along each axis, by their number, until the integral is accurate
ACCURATE = 1e-6  # nats


@dataclass(frozen=True)
class Field:
    """A log density, normalised or not, on a rectangular grid along one or two axes.

    Attributes:
        along: the coordinates along each axis.
        value: with two axes, ``value[i, j]`` at (``along[0][i]``, ``along[1][j]``).

    >>> field = Field.of(lambda z: -0.5 * z.square().sum(1), torch.tensor([-8.0, -8.0]), torch.tensor([8.0, 8.0]), 65)
    >>> field.value.shape, field.log_integral  # log 2 pi
    (torch.Size([65, 65]), 1.8378770664)
    """

    along: tuple[Tensor, ...]
    value: Float[Tensor, "*N"]

    @staticmethod
    def of(function: LogDensity, low: Float[Tensor, " A"], high: Float[Tensor, " A"], size: int) -> "Field":
        """A function between two corners, at ``size`` points along each axis."""
        along = tuple(torch.linspace(float(a), float(b), size).to(low) for a, b in zip(low, high, strict=True))
        return Field(along, _evaluated(function, grid(along).flatten(0, -2)).view([size] * len(along)))

    @property
    def points(self) -> Float[Tensor, "*N A"]:
        """The coordinates of the grid."""
        return grid(self.along)

    @property
    def share(self) -> Float[Tensor, "*N"]:
        """The probability of each point: the weights of the trapezoidal rule for the normalised density."""
        value = self.value.double()
        weight = (value - value.max()).exp() * _weights(self.along)
        return weight / weight.sum()

    @property
    def log_integral(self) -> float:
        """The logarithm of the integral over the grid, by the trapezoidal rule."""
        return float((self.value.double() + _weights(self.along).log()).flatten().logsumexp(0))

    @property
    def error(self) -> float:
        """The change of ``log_integral`` when only every second point is used."""
        half = Field(tuple(at[::2] for at in self.along), self.value[(slice(None, None, 2),) * len(self.along)])
        return abs(self.log_integral - half.log_integral)

    def mean(self, values: Float[Tensor, "*N"]) -> float:
        """The expectation of other values on the grid under the normalised density."""
        share = self.share
        return float((share * torch.where(share > 0, values, 0).double()).sum())

    def levels(self, masses: Sequence[float]) -> list[float]:
        """The lowest values in the highest-density regions of the given masses.

        >>> field = Field.of(lambda z: -0.5 * z.square().sum(1), torch.full((2,), -8.0), torch.full((2,), 8.0), 401)
        >>> field.levels([0.5])  # log 1/2: half of a normal's mass lies where its density is above half of the highest
        [-0.69...]
        """
        order = self.value.flatten().argsort(descending=True)
        covered = self.share.flatten()[order].cumsum(0)
        last = torch.searchsorted(covered, torch.tensor(masses).to(covered)).clamp_max(len(order) - 1)
        return [float(value) for value in self.value.flatten()[order[last]]]

    @property
    def corners(self) -> tuple[Float[Tensor, " A"], Float[Tensor, " A"]]:
        """The lowest and the highest coordinates."""
        return torch.stack([at[0] for at in self.along]), torch.stack([at[-1] for at in self.along])

    def region(self, mass: float) -> tuple[Float[Tensor, " A"], Float[Tensor, " A"]]:
        """The corners of the box around the highest-density region of a mass."""
        inside = self.points[self.value >= self.levels([mass])[0]]
        return inside.amin(0), inside.amax(0)


def grid(along: Sequence[Tensor]) -> Float[Tensor, "*N A"]:
    """The points of a rectangular grid with the given coordinates along its axes.

    >>> grid([torch.tensor([0.0, 1.0]), torch.tensor([2.0])])
    tensor([[[0., 2.]],
    <BLANKLINE>
            [[1., 2.]]])
    """
    return torch.stack(torch.meshgrid(*along, indexing="ij"), -1)


def quadrature(function: LogDensity, low: Float[Tensor, " A"], high: Float[Tensor, " A"]) -> Field:
    """A function on a grid that is fine enough to integrate it to 1e-6 nats, or on the finest."""
    coarse, fine = SIZES[len(low)]
    field = Field.of(function, low, high, coarse)
    return field if field.error <= ACCURATE else Field.of(function, low, high, fine)


def grown(
    function: LogDensity, low: Float[Tensor, " A"], high: Float[Tensor, " A"]
) -> tuple[Float[Tensor, " A"], Float[Tensor, " A"], bool]:
    """The corners of a window that grows until the function is 25 nats below its highest value on each side.

    Also returns whether it does; otherwise, as for a function without a finite integral, the corners are as given.
    """
    top, given = -torch.inf, (low, high)
    for _ in range(GROWTHS):
        top = max(top, float(Field.of(function, low, high, INSIDE).value.max()))
        sides = [_side(low, high, axis, end) for end in (low, high) for axis in range(len(low))]
        value = torch.stack([_evaluated(function, side).max() for side in sides]).view(2, len(low))
        top = max(top, float(value.max()))
        reaches = value > top - DEPTH
        if not bool(reaches.any()):
            return low, high, True
        width = 0.5 * (high - low)
        low, high = low - width * reaches[0], high + width * reaches[1]
    return *given, False


def _side(low: Float[Tensor, " A"], high: Float[Tensor, " A"], axis: int, end: Tensor) -> Float[Tensor, "P A"]:
    """Points on the side of a window on which the coordinate along an axis is that of ``end``."""
    along = [torch.linspace(float(a), float(b), EDGE).to(low) for a, b in zip(low, high, strict=True)]
    along[axis] = end[axis : axis + 1]
    return grid(along).flatten(0, -2)


def _evaluated(function: LogDensity, points: Float[Tensor, "P A"]) -> Float[Tensor, " P"]:
    return torch.cat([function(part) for part in points.split(CHUNK)])


def _weights(along: Sequence[Tensor]) -> Float[Tensor, "*N"]:
    """The weights of the trapezoidal rule."""
    weight = torch.ones((), dtype=torch.float64, device=along[0].device)
    for at in along:
        step = at.double().diff()
        ends = torch.nn.functional.pad(step, (1, 0)) + torch.nn.functional.pad(step, (0, 1))
        weight = weight.unsqueeze(-1) * (0.5 * ends)
    return weight
