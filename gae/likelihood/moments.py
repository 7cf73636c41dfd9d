"""Sufficient statistics of linear mixtures, and what their closed-form M-steps make of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

LEAF = 128  # columns that are not worth halving


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of K components about their current means, in float64; they add over batches."""

    count: Float[Tensor, " K"]
    first: Float[Tensor, "K D"]
    second: Float[Tensor, "K *DD"]  # scatter matrices (K, D, D), or squared distances (K,) without a continuous code

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.first + other.first, self.second + other.second)


def point_moments(
    flat: Float[Tensor, "B D"], means: Float[Tensor, "K D"], weight: Float[Tensor, "B K"], square: Tensor | None
) -> Moments:
    """Moments of components that are points; ``square`` are the squared distances (B, K) where a scale is learned."""
    count = weight.sum(0, dtype=torch.float64)
    first = (weight.mT @ flat).double() - count[:, None] * means.double()
    second = torch.zeros_like(count) if square is None else (weight * square).sum(0, dtype=torch.float64)
    return Moments(count, first, second)


def hard_point_moments(
    flat: Float[Tensor, "B D"], means: Float[Tensor, "K D"], k: Int[Tensor, " B"], square: Tensor | None
) -> Moments:
    """``point_moments`` where each row counts for one component: sums of rows, not a product with one-hot rows."""
    count = k.bincount(minlength=len(means))
    total = embedding_bag(k.argsort(), flat.contiguous(), count.cumsum(0) - count, mode="sum")
    first = total.double() - count[:, None] * means.double()
    own = torch.zeros_like(first[:, 0])
    second = own if square is None else own.index_add(0, k, square.gather(1, k[:, None]).squeeze(1).double())
    return Moments(count.double(), first, second)


def chart_moments(parts: Sequence[tuple[Tensor, Tensor | None]], means: Float[Tensor, "K D"]) -> Moments:
    """Moments of components with directions, from the rows (n, D) of each and their weights (n,), if not all 1."""
    count, first = [], []
    second = means.new_empty(len(means), means.shape[1], means.shape[1], dtype=torch.float64)
    for (rows, weight), mean, scatter in zip(parts, means, second, strict=True):
        residual = rows - mean
        weighted = residual if weight is None else weight.sqrt().unsqueeze(1) * residual
        count.append(mean.new_tensor(len(rows)) if weight is None else weight.sum())
        first.append(residual.sum(0) if weight is None else weight @ residual)
        _gram(weighted, scatter)
    return Moments(torch.stack(count).double(), torch.stack(first).double(), second)


def principal_directions(covariance: Float[Tensor, "K D D"], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading eigenvalues (K, E), the rest (K, D - E), and the directions (K, E, D), largest entry positive.

    The covariance must be float64: in float32, constant pixels give NaN.
    """
    values, vectors = torch.linalg.eigh(covariance)
    top, directions = values[:, -width:].flip(-1), vectors[..., -width:].flip(-1).mT
    largest = directions.gather(-1, directions.abs().argmax(-1, keepdim=True))
    return top, values[:, :-width], directions * torch.where(largest < 0, -1.0, 1.0).to(directions.dtype)


def squared_distances(flat: Float[Tensor, "B D"], means: Float[Tensor, "K D"]) -> Float[Tensor, "B K"]:
    """‖x - mean_k‖² by one matrix product, for x and means about a common centre; a single mean must be that centre."""
    if len(means) == 1:
        return flat.square().sum(1, keepdim=True)
    square = torch.linalg.vector_norm(flat, dim=1, keepdim=True).square() + means.square().sum(1)
    return torch.addmm(square, flat, means.T, alpha=-2).clamp_min(0)


def starting_means(flat: Float[Tensor, "N D"], components: int, seed: int) -> Float[Tensor, "K D"]:
    """The data mean for K = 1, the data for K = N, else k-means++ (Arthur & Vassilvitskii 2007)."""
    if components == 1:
        return flat.mean(0, keepdim=True)
    if components == len(flat):
        return flat.clone()
    from sklearn.cluster import kmeans_plusplus

    centres, _ = kmeans_plusplus(flat.detach().cpu().numpy(), components, random_state=seed)
    return torch.as_tensor(centres, dtype=flat.dtype, device=flat.device)


def _gram(rows: Float[Tensor, "n D"], out: Float[Tensor, "D D"]) -> None:
    """out = rowsᵀ rows, halving the columns: the products of the halves are needed once, not twice."""
    half = rows.shape[1] // 2
    if rows.shape[1] <= LEAF:
        out.copy_(rows.mT @ rows)
        return
    left, right = rows[:, :half], rows[:, half:]
    out[:half, half:] = left.mT @ right
    out[half:, :half] = out[:half, half:].mT
    _gram(left, out[:half, :half])
    _gram(right, out[half:, half:])
