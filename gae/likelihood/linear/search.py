"""Nearest weighted points, by matrix products, with direct differences for near ties."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gae.likelihood.linear.moments import about

ROWS = 4096  # observations compared with points at once
ENTRIES = 2**22  # scores held at once
RELATIVE = 1e-4  # relative rounding error above which a squared distance is recomputed from differences


@dataclass(frozen=True)
class Points:
    """K weighted points, with scores bias_k - ½ precision_k ‖x - mean_k‖²."""

    means: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    precision: Float[Tensor, " K"]

    def double(self) -> "Points":
        return Points(self.means.double(), self.bias.double(), self.precision.double())

    def square(self, x: Float[Tensor, "n D"], k: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """‖x_i - mean_k_i‖² from differences, in float64."""
        size = max(1, ENTRIES // x.shape[1])
        pairs = zip(x.split(size), k.split(size), strict=True)
        return torch.cat([(rows.double() - self.means[own].double()).square().sum(1) for rows, own in pairs])


@torch.no_grad()
def best_points(
    x: Float[Tensor, "B D"], points: Points, entries: int = ENTRIES
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The point of highest score for each x (the first of ties), and ‖x - mean‖² in float64.

    Scores are computed by matrix products in the dtype of x. Rows whose best scores differ by less than rounding are
    recomputed in float64, and remaining near ties from differences.

    Args:
        x: observations.
        points: the weighted points.
        entries: the largest number of scores held at once, instead of B · K.
    """
    if len(x) == 0:
        return torch.zeros(0, dtype=torch.long, device=x.device), x.new_zeros(0).double()
    k, square, rough, unsure = _Scan(x, points, entries).best()
    if points.means.dtype != torch.float64 and bool(unsure.any()):
        rows = unsure.nonzero().squeeze(1)
        k[rows], square[rows], rough[rows], unsure[rows] = _Scan(x[rows], points.double(), entries).best()
    if bool(unsure.any()):
        rows = unsure.nonzero().squeeze(1)
        k[rows] = _Scan(x[rows], points.double(), entries).among_ties()
    rows = (rough | unsure).nonzero().squeeze(1)
    if len(rows):
        square[rows] = points.square(x[rows], k[rows])
    return k, square


def rounding_of_squares(norm: Float[Tensor, " n"], reach: Tensor | float, width: int) -> Float[Tensor, " n"]:
    """A bound on the rounding error of ‖x - mean‖² by matrix products, for ‖x‖, the largest ‖mean‖, and D."""
    return _steps(width) * torch.finfo(norm.dtype).eps * (norm + reach).square()


def _steps(width: int) -> float:
    return 2 + 0.5 * width**0.5


class _Scan:
    """Blockwise scores bias_k + precision_k (x·mean_k - ½ ‖mean_k‖²) - ½ (precision_k - least) ‖x‖²."""

    def __init__(self, x: Tensor, points: Points, entries: int):
        self.x, self.points = x, points
        self.rows, means = about(x.to(points.means.dtype), points.means)
        self.bias = points.bias - points.bias.max()
        self.least = points.precision.min()
        self.extra = None if bool((points.precision == self.least).all()) else points.precision - self.least
        self.directions = points.precision.unsqueeze(1) * means
        square = means.square().sum(1)
        self.offset, self.reach = self.bias - 0.5 * points.precision * square, square.max().sqrt()
        self.height = min(ROWS, entries)
        width = max(1, entries // min(self.height, len(x)))
        self.blocks = [slice(start, start + width) for start in range(0, len(means), width)]

    def best(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For each row: the best point, its squared distance, whether that is inexact, whether another may be best."""
        parts = []
        for rows in self.rows.split(self.height):
            norm, rounding = self._sizes(rows)
            best = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
            value, unsure = torch.full_like(norm, -torch.inf), torch.zeros_like(norm, dtype=torch.bool)
            for start, score in self._scores(rows, norm):
                top, index = score.max(1)
                tied = (score >= (top - rounding).unsqueeze(1)).sum(1) > 1
                gap = top - value
                unsure = torch.where(gap.abs() <= rounding, True, torch.where(gap > 0, tied, unsure))
                best, value = torch.where(gap > 0, index + start, best), torch.maximum(top, value)
            own = self.points.precision[best]
            square = (2 * (self.bias[best] - value) + norm * self.least) / own
            parts.append((best, square.double(), 2 * rounding > RELATIVE * own * square, unsure))
        best, square, rough, unsure = (torch.cat(part) for part in zip(*parts, strict=True))
        return best, square, rough, unsure

    def among_ties(self) -> Int[Tensor, " B"]:
        """The best point of each row, by differences to all points whose score is within rounding of the best."""
        parts = []
        for rows, x in zip(self.rows.split(self.height), self.x.split(self.height), strict=True):
            norm, rounding = self._sizes(rows)
            least = torch.stack([score.amax(1) for _, score in self._scores(rows, norm)]).amax(0) - rounding
            best = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
            value = torch.full_like(least, -torch.inf)
            for start, score in self._scores(rows, norm):
                row, k = (score >= least.unsqueeze(1)).nonzero().unbind(1)
                k = k + start
                exact = self.bias[k] - 0.5 * self.points.precision[k] * self.points.square(x[row], k)
                top = value.scatter_reduce(0, row, exact, "amax")
                won = (exact == top[row]) & (exact > value[row])
                first = torch.full_like(best, len(self.bias)).scatter_reduce(0, row[won], k[won], "amin")
                best, value = torch.where(top > value, first, best), top
            parts.append(best)
        return torch.cat(parts)

    def _sizes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """‖x‖², and a bound on the rounding error of a score, in nats."""
        norm = torch.linalg.vector_norm(rows, dim=1)
        square = rounding_of_squares(norm, self.reach, rows.shape[1])
        bias = _steps(rows.shape[1]) * torch.finfo(rows.dtype).eps * self.bias.min()
        return norm.square(), 0.5 * self.points.precision.max() * square - bias

    def _scores(self, rows: Tensor, norm: Tensor) -> Iterator[tuple[int, Tensor]]:
        for block in self.blocks:
            score = torch.addmm(self.offset[block], rows, self.directions[block].T)
            yield block.start, score if self.extra is None else score - 0.5 * norm.unsqueeze(1) * self.extra[block]
