"""Lloyd's algorithm without the distances that the triangle inequality bounds."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from gae.data.mapped import Mapped
from gae.likelihood.linear.exact_sums import ExactSums
from gae.likelihood.linear.moments import FAR, OFFSET, Moments, furthest, mean_of, nothing_far
from gae.likelihood.linear.search import Points, best_points, rounding_of_squares

ENTRIES, LEAST, MOST = 2**19, 1024, 2**14  # bounds in a block, which should stay in cache, and limits of its rows
DENSE = 0.4  # share of a block's distances from which all are computed, by one matrix product


def can_prune(x: Num[Tensor, "N *X"], points: Points) -> bool:
    """Whether ``PrunedLloyd`` suits the data: a function of x, K and the device alone."""
    means, flat = points.means, x.flatten(1)
    if isinstance(x, Mapped) or not x.is_cpu or x.dtype != means.dtype or not 1 < len(means) <= means.shape[1]:
        return False
    offset, square = mean_of(flat).square().sum(), torch.linalg.vector_norm(flat).double().square() / len(flat)
    return bool(offset <= OFFSET * (square - offset))


class PrunedLloyd:
    """The nearest of K means for each observation, and the sums of each mean's observations, from pass to pass.

    Each x keeps an upper bound of the distance to its mean and a lower bound for each other mean (Elkan 2003), relative
    to how far the means have moved in total (Newling & Fleuret 2016), so that a pass writes only what it computes. Only
    distances whose bounds overlap are computed, and those that would overlap after another such move of the means.
    Bounds contain the rounding errors of the products, and near ties are decided as in ``best_points``, so that the
    assignments are those of a search among all means. Only rows that change their mean change the sums, which are exact
    (``ExactSums``): the result of a pass depends on the data and the means alone, not on the passes before it.

    Args:
        x: the observations, (N, D), of no large offset, since products are computed without subtracting a centre.
        components: K.
    """

    def __init__(self, x: Float[Tensor, "N D"], components: int):
        self.x, size = x, (len(x), components)
        self.height = min(MOST, max(LEAST, ENTRIES // components))
        self.norm = torch.cat([rows.double().square().sum(1) for rows in x.split(LEAST)])
        self.owner = torch.zeros(len(x), dtype=torch.long)
        self.lower, self.upper = x.new_empty(size), x.new_empty(len(x))
        self.count = torch.zeros(components, dtype=torch.long)
        self.first = ExactSums(components, max(-float(x.min()), float(x.max())), len(x), x.shape[1])
        self.square = ExactSums(components, float(self.norm.max()), len(x), 1)
        self.drift = torch.zeros(components, dtype=torch.float64)
        self.means: Tensor | None = None

    def __call__(self, points: Points) -> Moments:
        """The moments of all observations about the given means, each assigned to the nearest."""
        step = torch.zeros_like(self.drift)
        if self.means is not None:
            step = torch.linalg.vector_norm(points.means.double() - self.means.double(), dim=1)
        self.drift += step
        task = _Pass(points, self.drift, step, self.norm)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support")  # is in beta state
            for start in range(0, len(self.x), self.height):
                self._visit(task, slice(start, start + self.height))
        self.means = points.means.clone()
        return self._moments(points)

    def _visit(self, task: "_Pass", block: slice) -> None:
        """Updates the assignments of a block."""
        x, lower, upper, owner = self.x[block], self.lower[block], self.upper[block], self.owner[block]
        pairs = None if self.means is None else task.overlapping(lower, upper, owner)
        if pairs is None or len(pairs.row) > DENSE * lower.numel():
            rows = torch.arange(len(x))
            square = torch.mm(task.points.means, x.mT).mT.mul(-2).add_(task.offset)
            lower.copy_(
                task.below(square, self.norm[block].unsqueeze(1), task.error[block].unsqueeze(1)).add_(task.drift)
            )
        else:
            rows, row, column = pairs.rows, pairs.rows[pairs.row], pairs.column
            value = task.products(x, row, column).add_(task.offset[column])
            square = x.new_full((len(rows), lower.shape[1]), torch.inf)
            square.view(-1).scatter_(0, pairs.row * lower.shape[1] + column, value)
            low = task.below(value, self.norm[block][row], task.error[block][row]).add_(task.drift[column])
            lower.view(-1).scatter_(0, row * lower.shape[1] + column, low)
        best, least = task.nearest(x, rows, square, task.error[block][rows])
        lower.view(-1)[rows * lower.shape[1] + best] = torch.inf
        upper[rows] = task.below(least, self.norm[block][rows], -task.error[block][rows]) - task.drift[best]
        old = owner[rows]
        owner[rows] = best
        self._count(x, self.norm[block], rows, old, best)

    def _count(self, x: Tensor, norm: Tensor, rows: Tensor, old: Tensor, new: Tensor) -> None:
        """Adds observations to their means at the first pass, else moves those that changed."""
        norm = norm.unsqueeze(1)
        if self.means is None:
            self.first.add(x, new)
            self.square.add(norm, new)
        else:
            changed = (old != new).nonzero().squeeze(1)
            rows, old, new = rows[changed], old[changed], new[changed]
            self.first.move(x, rows, old, new)
            self.square.move(norm, rows, old, new)
            self.count -= old.bincount(minlength=len(self.count))
        self.count += new.bincount(minlength=len(self.count))

    def _moments(self, points: Points) -> Moments:
        means, count, total = points.means.double(), self.count.double(), self.first.value
        first = total - count.unsqueeze(1) * means
        second = self.square.value.squeeze(1) - (means * (total + first)).sum(1)
        far = nothing_far(means)
        if not bool(self.count.all()):
            far = furthest(self.x, self.owner, points.square(self.x, self.owner), min(len(means), FAR))
        return Moments(count, first, second.clamp_min(0), far)


@dataclass(frozen=True)
class _Pairs:
    """Rows of a block and the means whose distances to compute for them."""

    rows: Int[Tensor, " m"]
    row: Int[Tensor, " p"]  # index into ``rows``
    column: Int[Tensor, " p"]


class _Pass:
    """The means of one pass, and bounds on the rounding errors of squared distances to them."""

    def __init__(self, points: Points, drift: Tensor, step: Tensor, norm: Tensor):
        self.points, self.offset = points, points.means.square().sum(1)
        self.drift, self.step = drift.to(points.means), step.to(points.means)
        reach = float(self.offset.max().sqrt())
        self.error = 2 * rounding_of_squares(norm.sqrt().to(points.means), reach, points.means.shape[1])
        largest = float(norm.max().sqrt()) + reach + float(drift.max())
        self.margin = 16 * torch.finfo(points.means.dtype).eps * largest  # of the arithmetic with bounds

    def overlapping(self, lower: Float[Tensor, "n K"], upper: Float[Tensor, " n"], owner: Int[Tensor, " n"]) -> _Pairs:
        """The rows that may have another nearest mean, and the means that may be it now or after another such step."""
        low = lower - self.drift
        high = upper + self.drift[owner] + self.margin
        rows = (low.amin(1) < high).nonzero().squeeze(1)
        own = owner[rows]
        wanted = low[rows] - self.step < (high[rows] + self.step[own]).unsqueeze(1)
        return _Pairs(rows, *wanted.scatter_(1, own.unsqueeze(1), True).nonzero().unbind(1))

    def products(
        self, x: Float[Tensor, "n D"], row: Int[Tensor, " p"], column: Int[Tensor, " p"]
    ) -> Float[Tensor, " p"]:
        """-2 x·mean for pairs of rows and means, in the order of rows."""
        means, zeros = self.points.means, x.new_zeros(len(row))
        start = row.new_zeros(len(x) + 1)
        torch.cumsum(row.bincount(minlength=len(x)), 0, out=start[1:])
        pattern = torch.sparse_csr_tensor(start, column, zeros, (len(x), len(means)), check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, x, means.mT, beta=0.0, alpha=-2.0).values()

    def below(self, square: Tensor, norm: Tensor, error: Tensor) -> Tensor:
        """A lower bound of ‖x - mean‖ from ‖x - mean‖² - ‖x‖² and ‖x‖²; an upper bound for the negative error."""
        return (square + (norm.to(square) - error)).clamp_min_(0).sqrt_()

    def nearest(
        self, x: Tensor, rows: Tensor, square: Float[Tensor, "m K"], error: Float[Tensor, " m"]
    ) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
        """The nearest mean of each row, the first of ties, and its value of ``square``."""
        least, best = square.min(1)
        others = square.scatter(1, best.unsqueeze(1), torch.inf).amin(1)
        unsure = (others <= least + error).nonzero().squeeze(1)
        if len(unsure):
            best[unsure] = best_points(x[rows[unsure]], self.points)[0]
            least[unsure] = square[unsure, best[unsure]]
        return best, least
