"""Functions on rectangular grids of a plane: quadrature, and highest-density regions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LogDensity = Callable[[Float[Tensor, "P 2"]], Float[Tensor, " P"]]

DEPTH = 25.0  # nats below the highest value, at which a window ends
EDGE = 257  # points on each side of a window, where its growth is decided
GROWTHS = 8  # of a window, at most
INSIDE = 33  # points along each axis, for the highest value in a window
CHUNK = 4096  # points evaluated at once
SIZES = (201, 401)  # points along each axis, until the integral is accurate
ACCURATE = 1e-6  # nats


@dataclass(frozen=True)
class Field:
    """A log density, normalised or not, on a rectangular grid: ``value[j, i]`` at (``across[i]``, ``up[j]``).

    >>> field = Field.of(lambda z: -0.5 * z.square().sum(1), torch.tensor([-8.0, -8.0]), torch.tensor([8.0, 8.0]), 65)
    >>> field.value.shape, field.log_integral  # log 2 pi
    (torch.Size([65, 65]), 1.8378770664)
    """

    across: Float[Tensor, " M"]
    up: Float[Tensor, " N"]
    value: Float[Tensor, "N M"]

    @staticmethod
    def of(function: LogDensity, low: Float[Tensor, " 2"], high: Float[Tensor, " 2"], size: int) -> "Field":
        """A function between two corners, at ``size`` points along each axis."""
        across, up = (torch.linspace(float(a), float(b), size).to(low) for a, b in zip(low, high, strict=True))
        points = torch.stack(torch.meshgrid(across, up, indexing="xy"), -1).flatten(0, 1)
        return Field(across, up, _evaluated(function, points).view(size, size))

    @property
    def points(self) -> Float[Tensor, "N M 2"]:
        """The coordinates of the grid."""
        return torch.stack(torch.meshgrid(self.across, self.up, indexing="xy"), -1)

    @property
    def share(self) -> Float[Tensor, "N M"]:
        """The probability of each point: the weights of the trapezoidal rule for the normalised density."""
        value = self.value.double()
        weight = (value - value.max()).exp() * _weights(self.up).unsqueeze(1) * _weights(self.across)
        return weight / weight.sum()

    @property
    def log_integral(self) -> float:
        """The logarithm of the integral over the grid, by the trapezoidal rule."""
        weight = _weights(self.up).unsqueeze(1) * _weights(self.across)
        return float((self.value.double() + weight.log()).flatten().logsumexp(0))

    @property
    def error(self) -> float:
        """The change of ``log_integral`` when only every second point is used."""
        half = Field(self.across[::2], self.up[::2], self.value[::2, ::2])
        return abs(self.log_integral - half.log_integral)

    def mean(self, values: Float[Tensor, "N M"]) -> float:
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
    def corners(self) -> tuple[Float[Tensor, " 2"], Float[Tensor, " 2"]]:
        """The lowest and the highest coordinates."""
        return torch.stack([self.across[0], self.up[0]]), torch.stack([self.across[-1], self.up[-1]])

    def region(self, mass: float) -> tuple[Float[Tensor, " 2"], Float[Tensor, " 2"]]:
        """The corners of the box around the highest-density region of a mass."""
        inside = self.points[self.value >= self.levels([mass])[0]]
        return inside.amin(0), inside.amax(0)


def quadrature(function: LogDensity, low: Float[Tensor, " 2"], high: Float[Tensor, " 2"]) -> Field:
    """A function on a grid that is fine enough to integrate it to 1e-6 nats, or has 401 points along each axis."""
    field = Field.of(function, low, high, SIZES[0])
    for size in SIZES[1:]:
        if field.error <= ACCURATE:
            break
        field = Field.of(function, low, high, size)
    return field


def grown(
    function: LogDensity, low: Float[Tensor, " 2"], high: Float[Tensor, " 2"]
) -> tuple[Float[Tensor, " 2"], Float[Tensor, " 2"], bool]:
    """The corners of a window that grows until the function is 25 nats below its highest value on each side.

    Also returns whether it does; otherwise, as for a function without a finite integral, the corners are as given.
    """
    top, given = -torch.inf, (low, high)
    for _ in range(GROWTHS):
        top = max(top, float(Field.of(function, low, high, INSIDE).value.max()))
        across, up = (torch.linspace(float(a), float(b), EDGE).to(low) for a, b in zip(low, high, strict=True))
        sides = [(low[0].expand(EDGE), up), (across, low[1].expand(EDGE))]  # left, below, right, above
        sides += [(high[0].expand(EDGE), up), (across, high[1].expand(EDGE))]
        value = _evaluated(function, torch.cat([torch.stack(side, 1) for side in sides])).view(4, EDGE).amax(1)
        top = max(top, float(value.max()))
        reaches = value > top - DEPTH
        if not bool(reaches.any()):
            return low, high, True
        width = 0.5 * (high - low)
        low, high = low - width * reaches[:2], high + width * reaches[2:]
    return *given, False


def _evaluated(function: LogDensity, points: Float[Tensor, "P 2"]) -> Float[Tensor, " P"]:
    return torch.cat([function(part) for part in points.split(CHUNK)])


def _weights(at: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The weights of the trapezoidal rule."""
    step = at.double().diff()
    return 0.5 * (torch.nn.functional.pad(step, (1, 0)) + torch.nn.functional.pad(step, (0, 1)))
