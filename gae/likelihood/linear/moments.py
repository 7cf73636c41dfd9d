"""Sufficient statistics of linear mixtures for closed-form M-steps."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from gae.data.mapped import Mapped
from gae.likelihood.geometry import squared_distances

LEAF = 128  # columns below which halving does not pay
RUN = 512  # rows summed in the data's dtype before float64
POOL = 2**26  # bytes of rows among which k-means++ chooses, if the data are in a file
FAR = 32  # most empty components relocated after one pass over the data; others wait for the next pass
OFFSET = 8.0  # ratio of ‖centre‖² to the mean squared distance from it, above which it is subtracted


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of K components about their current means, in float64; they add over batches.

    ``far`` holds the R observations furthest from their means, furthest first: the squared distance, the component, and
    x in each row, padded with rows of distance 0. R = 0 if none are requested.
    """

    count: Float[Tensor, " K"]
    first: Float[Tensor, "K D"]
    second: Float[Tensor, "K *DD"]  # scatter matrices (K, D, D), or squared distances (K,) without a continuous code
    far: Float[Tensor, "R D2"]

    def __add__(self, other: "Moments") -> "Moments":
        far = torch.cat([self.far, other.far])
        far = far[far[:, 0].argsort(descending=True, stable=True)[: len(self.far)]]
        return Moments(self.count + other.count, self.first + other.first, self.second + other.second, far)

    def __iadd__(self, other: "Moments") -> "Moments":
        if len(self.far):
            return self + other
        for own, part in ((self.count, other.count), (self.first, other.first), (self.second, other.second)):
            own += part
        return self

    def overall(self, means: Float[Tensor, "K D"]) -> tuple[Tensor, Tensor]:
        """The variance of all observations about their mean, and the squared mean, averaged over features."""
        means, total = means.double(), self.count.sum()
        mean = (self.count @ means + self.first.sum(0)) / total
        offset = means - mean
        scatter = self.second.diagonal(dim1=-2, dim2=-1).sum() if self.second.dim() > 1 else self.second.sum()
        scatter = scatter + 2 * (self.first * offset).sum() + self.count @ offset.square().sum(1)
        return (scatter / (total * means.shape[1])).clamp_min(0), mean.square().mean()


def relocated(moments: Moments, means: Float[Tensor, "K D"]) -> Moments:
    """Relocates empty components to the furthest observations, as in scikit-learn's k-means.

    Warns if all observations equal their means, so that there are fewer distinct ones than components.
    """
    empty = (moments.count == 0).nonzero().squeeze(1)
    if not len(empty) or not len(moments.far):
        return moments
    owner, x = moments.far[:, 1].long(), moments.far[:, 2:]
    residual = x - means[owner].double()
    rounding = (8 * torch.finfo(means.dtype).eps) ** 2 * x.square().sum(1)
    away = ((moments.far[:, 0] > 0) & (residual.square().sum(1) > rounding)).nonzero().squeeze(1)[: len(empty)]
    if not len(away):
        live = len(means) - len(empty)
        warnings.warn(
            f"The data have {live} distinct points, fewer than the K={len(means)} components: {len(empty)} of these "
            "stay empty. Use fewer components.",
            stacklevel=2,
        )
        return moments
    taken, owner = empty[: len(away)], owner[away]
    count = moments.count.index_add(0, owner, -torch.ones_like(residual[away, 0])).index_fill(0, taken, 1.0)
    first = moments.first.index_add(0, owner, -residual[away])
    first = first.index_copy(0, taken, x[away] - means[taken].double())
    return replace(moments, count=count, first=first)


def point_moments(flat: Float[Tensor, "B D"], means: Float[Tensor, "K D"], weight: Float[Tensor, "B K"]) -> Moments:
    """Moments of point components (E = 0)."""
    weight, centre = weight.double(), means.double().mean(0)
    rows, count = flat.double() - centre, weight.sum(0)
    first = weight.mT @ rows - count[:, None] * (means.double() - centre)
    square = squared_distances(flat.double(), means.double())
    return Moments(count, first, (weight * square).sum(0), nothing_far(means))


def hard_point_moments(
    flat: Float[Tensor, "B D"],
    means: Float[Tensor, "K D"],
    k: Int[Tensor, " B"],
    square: Float[Tensor, " B"],
    far: int,
) -> Moments:
    """``point_moments`` for hard assignments, by sums over short runs of rows.

    Args:
        flat: observations.
        means: current means.
        k: component of each observation.
        square: squared distance of each observation to its mean.
        far: number of the furthest observations to keep.
    """
    count = k.bincount(minlength=len(means))
    order = k.argsort()
    owner = k[order]
    begin = (count.cumsum(0) - count)[owner]
    starts = ((torch.arange(len(k), device=k.device) - begin) % RUN == 0).nonzero().squeeze(1)
    rows, centred = about(flat, means)
    sums = embedding_bag(order, rows.contiguous(), starts, mode="sum")
    first = (-count[:, None] * centred.double()).index_add_(0, owner[starts], sums.double())
    second = torch.zeros_like(first[:, 0]).index_add_(0, k, square)
    return Moments(count.double(), first, second, furthest(flat, k, square, far))


def nothing_far(means: Float[Tensor, "K D"], rows: int = 0) -> Float[Tensor, "R D2"]:
    """An empty ``Moments.far``."""
    return means.new_zeros(rows, 2 + means.shape[1], dtype=torch.float64)


def furthest(
    flat: Float[Tensor, "B D"], k: Int[Tensor, " B"], square: Float[Tensor, " B"], rows: int
) -> Float[Tensor, "R D2"]:
    """``Moments.far`` from the component of each observation and the squared distance to its mean."""
    far = nothing_far(flat, rows)
    distance, index = square.topk(min(rows, len(square)))
    far[: len(index)] = torch.cat([distance.unsqueeze(1), k[index].unsqueeze(1), flat[index]], 1)
    return far


def chart_moments(parts: Iterable[tuple[Tensor, Tensor | None]], means: Float[Tensor, "K D"], wide: bool) -> Moments:
    """Moments of charts (E > 0).

    Args:
        parts: rows (n, D) of each component and their weights (n,), or None if all are 1.
        means: current means.
        wide: whether products use float64 for any D, rather than only for small D. The residual variance needs it; the
            leading directions do not.
    """
    dtype = torch.float64 if wide or means.shape[1] <= LEAF else means.dtype
    count, first = [], []
    second = means.new_empty(len(means), means.shape[1], means.shape[1], dtype=torch.float64)
    for (rows, weight), mean, scatter in zip(parts, means, second, strict=True):
        residual = rows.to(dtype) - mean
        weight = None if weight is None else weight.to(dtype)
        weighted = residual if weight is None else weight.sqrt().unsqueeze(1) * residual
        count.append(second.new_tensor(len(rows)) if weight is None else weight.sum(dtype=torch.float64))
        first.append((residual.sum(0) if weight is None else weight @ residual).double())
        _gram(weighted, scatter)
    return Moments(torch.stack(count), torch.stack(first), second, nothing_far(means))


def one_chart_moments(rows: Float[Tensor, "n D"], mean: Float[Tensor, "1 D"], wide: bool) -> Moments:
    """``chart_moments`` of a single component.

    Where the mean is no further from 0 than the observations are from it, products about 0 are as precise, and save the
    pass over memory that subtracts it.
    """
    number = len(rows)
    if wide or rows.shape[1] <= LEAF or not 2 * number * mean.double().square().sum() <= _squared_norm(rows):
        return chart_moments([(rows, None)], mean, wide)
    second = mean.new_empty(1, rows.shape[1], rows.shape[1], dtype=torch.float64)
    _gram(rows, second[0])
    sums, centre = _sums(rows), mean[0].double()
    lean = sums - 0.5 * number * centre
    second[0].addmm_(torch.stack([lean, centre], 1), torch.stack([centre, lean]), alpha=-1)
    return Moments(second.new_tensor([number]), (sums - number * centre)[None], second, nothing_far(mean))


def _squared_norm(rows: Float[Tensor, "n D"]) -> float:
    """The sum of the squares; 0 if it overflows in the dtype of the rows."""
    norm = float(torch.linalg.vector_norm(rows))
    return norm**2 if math.isfinite(norm) else 0.0


def about(flat: Float[Tensor, "B D"], means: Float[Tensor, "K D"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "K D"]]:
    """Subtracts the centre of the means from x and the means if it is far from 0 relative to their spread."""
    centre = means.mean(0)
    centred = means - centre
    if bool(centre.square().sum() <= OFFSET * centred.square().sum(1).mean()):
        return flat, means
    return flat - centre, centred


def mean_of(flat: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    """The mean of the rows, in float64."""
    return _sums(flat) / len(flat)


def _sums(flat: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    """The sum of the rows, over short runs that are added in float64."""
    return torch.stack([rows.sum(0) for rows in flat.split(RUN)]).double().sum(0)


def starting_means(flat: Float[Tensor, "N D"], components: int, seed: int) -> Float[Tensor, "K D"]:
    """Initial means: the data mean for K = 1, the data for K = N, else k-means++ (Arthur & Vassilvitskii 2007).

    Of a tensor in a file (``gae.data.mapped``), k-means++ sees a random part of 64 MiB.
    """
    mean = mean_of(flat)
    if components == 1:
        return mean.to(flat.dtype).unsqueeze(0)
    if components == len(flat):
        return flat.clone()
    from sklearn.cluster import kmeans_plusplus

    pool = _pool(flat, components, seed)
    _, index = kmeans_plusplus((pool - mean.to(flat.dtype)).detach().cpu().numpy(), components, random_state=seed)
    return pool[torch.as_tensor(index, device=flat.device)]


def _pool(flat: Float[Tensor, "N D"], least: int, seed: int) -> Float[Tensor, "n D"]:
    if not isinstance(flat, Mapped):
        return flat
    size = max(least, POOL // (flat.shape[1] * flat.element_size()))
    if size >= len(flat):
        return flat[:]
    return flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[:size].sort().values]


def _gram(rows: Float[Tensor, "n D"], out: Float[Tensor, "D D"]) -> None:
    """out = rowsᵀ rows, by half of the products, since it is symmetric."""
    if rows.is_cpu and rows.dtype in (torch.float32, torch.float64):
        values = rows.detach().numpy()
        with np.errstate(over="ignore", invalid="ignore"):  # as torch; learners refuse what is not finite
            out.copy_(torch.from_numpy(values.T @ values))  # numpy calls BLAS's syrk for a matrix and its transpose
    else:
        gram_by_halves(rows, out)


def gram_by_halves(rows: Float[Tensor, "n D"], out: Float[Tensor, "D D"]) -> None:
    """out = rowsᵀ rows, by halving the columns: the symmetric off-diagonal block is computed once."""
    half = rows.shape[1] // 2
    if rows.shape[1] <= LEAF:
        out.copy_(rows.mT @ rows)
        return
    left, right = rows[:, :half], rows[:, half:]
    out[:half, half:] = left.mT @ right
    out[half:, :half] = out[:half, half:].mT
    gram_by_halves(left, out[:half, :half])
    gram_by_halves(right, out[half:, half:])
