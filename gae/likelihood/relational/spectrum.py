"""The eigenvectors of locally linear embedding, of a dense matrix or, for many points, of a sparse one."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

SPARSE = 300  # points from which a sparse factorisation is faster than all eigenvectors


def spread(
    weights: Float[Tensor, "B M count"], index: Int[Tensor, "B M count"], points: int
) -> Float[Tensor, "B M {points}"]:
    """The matrix with the weights of each row at the columns of its neighbours."""
    return weights.new_zeros(*index.shape[:2], points).scatter(-1, index, weights)


def smoothest(
    weights: Float[Tensor, "B N count"], index: Int[Tensor, "B N count"], width: int
) -> tuple[Float[Tensor, "B N {width}"], bool]:
    """The orthonormal columns of sum 0 that W reconstructs best, in order; and whether a further one has no residual.

    They are the eigenvectors of (I - W)ᵀ(I - W) with the smallest eigenvalues, without the constant one. A further
    residual of 0, up to rounding, means that the graph of neighbours is disconnected.
    """
    few = index.shape[1] >= max(SPARSE, 10 * (width + 1))
    if few and index.device.type == "cpu" and not weights.requires_grad:
        parts = [_sparse(w.numpy(), i.numpy(), width) for w, i in zip(weights, index, strict=True)]
        if all(part is not None for part in parts):
            return torch.stack([torch.from_numpy(part) for part in parts]), False
    return _dense(weights, index, width)


def _dense(weights: Tensor, index: Tensor, width: int) -> tuple[Tensor, bool]:
    points = index.shape[1]
    residual = torch.eye(points, dtype=weights.dtype, device=weights.device) - spread(weights, index, points)
    curvature = residual.mT @ residual
    # Shifts the constant code, of eigenvalue 0, behind all others.
    bound = curvature.detach().abs().sum(-1).amax(-1)
    values, vectors = torch.linalg.eigh(curvature + (bound / points)[:, None, None])
    split = values[:, 0] < points * torch.finfo(values.dtype).eps * bound
    return vectors[..., :width], bool(split.any())


def _sparse(weights: np.ndarray, index: np.ndarray, width: int) -> Any:
    """The same of one data set, by inverse iteration from a fixed start; None if the graph is disconnected."""
    from scipy import sparse
    from scipy.sparse.linalg import eigsh

    points, count = index.shape
    starts = np.arange(0, points * count + 1, count)
    residual = sparse.identity(points, format="csr") - sparse.csr_matrix((weights.ravel(), index.ravel(), starts))
    curvature = (residual.T @ residual).tocsc()
    negligible = points * np.finfo(weights.dtype).eps * abs(curvature).sum(1).max()
    start = np.random.default_rng(0).uniform(-1, 1, points)
    values, vectors = eigsh(curvature, width + 1, sigma=-negligible, which="LM", v0=start)
    order = np.argsort(values)
    if values[order[1]] < negligible:
        return None
    columns = vectors[:, order[1:]]
    return columns - columns.mean(0)
