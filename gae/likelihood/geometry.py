"""Distances between points, and principal components."""

import torch
from jaxtyping import Float
from torch import Tensor

FEW = 4  # least ratio of D to the number of eigenvectors at which computing only these is faster


def squared_distances(a: Float[Tensor, "*L M D"], b: Float[Tensor, "*L N D"]) -> Float[Tensor, "*L M N"]:
    """Pairwise squared distances ‖a_i - b_j‖² by one matrix product about the mean of b; L has at most one dimension.

    >>> squared_distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor([[25.,  1.]])
    """
    centre = b.mean(-2, keepdim=True)
    a, b = a - centre, b - centre
    square = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
    if b.shape[-2] == 1:
        return square
    product = torch.addmm if a.dim() == 2 else torch.baddbmm
    return product(square, a, b.mT, alpha=-2).clamp_min(0)


def principal_components(
    x: Float[Tensor, "*L N D"],
) -> tuple[Float[Tensor, "*L N R"], Float[Tensor, "*L R"], Float[Tensor, "*L R D"]]:
    """Principal component scores, singular values, and unit directions whose largest entry is positive.

    The singular value of a component is √N times the standard deviation of its scores.

    >>> scores, size, directions = principal_components(torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 0.0]]))
    >>> directions[0]
    tensor([1., 0.])
    """
    left, size, right = torch.linalg.svd(x - x.mean(-2, keepdim=True), full_matrices=False)
    sign = _sign(right)
    return left * sign.mT * size.unsqueeze(-2), size, right * sign


def explained(size: Float[Tensor, " R"], components: int) -> Float[Tensor, ""]:
    """Fraction of the variance explained by the first components, from all singular values."""
    return size[:components].square().sum() / size.square().sum().clamp_min(1e-30)


def principal_directions(covariance: Float[Tensor, "K D D"], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading eigenvalues (K, E), the sum of the others (K,), and directions (K, E, D), largest entry positive.

    The covariance must be float64: in float32, constant pixels give NaN.
    """
    if covariance.is_cpu and FEW * width <= covariance.shape[-1]:
        values, vectors = _leading(covariance, width)
    else:
        values, vectors = torch.linalg.eigh(covariance)
    top, directions = values[:, -width:].flip(-1), vectors[..., -width:].flip(-1).mT
    rest = covariance.diagonal(dim1=-2, dim2=-1).sum(-1) - top.sum(-1)
    return top, rest, directions * _sign(directions)


def _leading(covariance: Float[Tensor, "K D D"], width: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, ascending, and their eigenvectors, without the others."""
    from scipy.linalg import eigh

    last = covariance.shape[-1] - 1
    pairs = [eigh(matrix, subset_by_index=[last + 1 - width, last]) for matrix in covariance.numpy()]
    values, vectors = (torch.stack([torch.from_numpy(part) for part in parts]) for parts in zip(*pairs, strict=True))
    return values, vectors


def _sign(directions: Float[Tensor, "*L R D"]) -> Float[Tensor, "*L R 1"]:
    """The sign of the largest entry of each direction, which makes directions reproducible across machines."""
    largest = directions.gather(-1, directions.abs().argmax(-1, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(directions.dtype)
