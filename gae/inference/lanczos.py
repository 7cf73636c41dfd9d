"""Lanczos' recursion: log determinants and linear systems of matrices known by their products with vectors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gae.inference.curvature import need_finite

NEGLIGIBLE = 1e-14  # share of a start in an eigenvector, below which its eigenvalue is rounding


@dataclass(frozen=True)
class Krylov:
    """Symmetric matrices A, one for each start v, in orthonormal bases of the spaces spanned by v, A v, A² v, …

    Attributes:
        basis: the basis vectors in order; 0 where a recursion has ended.
        length: ‖v‖.
        values: eigenvalues of A in the basis (Ritz values); 1 where v has no share in the eigenvector.
        vectors: the eigenvectors in the basis, as columns.
        residual: ‖A w - v‖ / ‖v‖ of the solution w, if A is positive definite.
        steps: products with A that the recursion took.
    """

    basis: list[Float[Tensor, "R B N"]]
    length: Float[Tensor, "R B"]
    values: Float[Tensor, "R B m"]
    vectors: Float[Tensor, "R B m m"]
    residual: Float[Tensor, "R B"]
    steps: Int[Tensor, "R B"]

    @property
    def lowest(self) -> Float[Tensor, "R B"]:
        """The lowest eigenvalue in the basis."""
        return torch.where(self._share > NEGLIGIBLE, self.values, torch.inf).amin(-1)

    @property
    def log_form(self) -> Float[Tensor, "R B"]:
        """vᵀ log(A) v by Gauss' quadrature (Golub & Meurant 1994), exact once the recursion has ended.

        Its mean over random signs v is log det A (Ubaru et al. 2017).
        """
        return self.length.square() * (self._share * self.values.clamp_min(1e-300).log()).sum(-1)

    @property
    def solution(self) -> Float[Tensor, "R B N"]:
        """A⁻¹ v, as conjugate gradients have it after as many steps."""
        weights = (self.vectors * (self.vectors[..., :1, :] / self.values.unsqueeze(-2))).sum(-1)
        weights = weights * self.length.unsqueeze(-1)
        return sum((vector * weights[..., i, None] for i, vector in enumerate(self.basis)), torch.zeros(()))

    @property
    def _share(self) -> Float[Tensor, "R B m"]:
        return self.vectors[..., 0, :].square()


@torch.no_grad()
def lanczos(
    product: Callable[[Tensor], Tensor], start: Float[Tensor, "R B N"], iterations: int, tol: float = 0.0
) -> Krylov:
    """Lanczos' recursion with reorthogonalisation, one for each start.

    Args:
        product: v -> A v for all rows at once.
        start: float64.
        iterations: the most products with A.
        tol: a row ends when the residual of its solution is below it.

    Raises:
        NotFiniteError: for products that are not finite.

    >>> matrix = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> krylov = lanczos(lambda v: v @ matrix, torch.ones(1, 1, 3, dtype=torch.float64), 3)
    >>> krylov.solution, round(float(krylov.log_form.exp()), 6)
    (tensor([[[1.0000, 0.5000, 0.2500]]], dtype=torch.float64), 8.0)
    """
    length = start.norm(dim=-1)
    basis = [start / length.unsqueeze(-1)]
    matrix = torch.eye(iterations, dtype=start.dtype, device=start.device).repeat(*length.shape, 1, 1)
    live, steps = torch.ones_like(length, dtype=torch.bool), torch.zeros_like(length, dtype=torch.long)
    residual, pivot, coupling = torch.ones_like(length), torch.ones_like(length), torch.zeros_like(length)
    for i in range(iterations):
        image = product(basis[-1])
        matrix[..., i, i] = torch.where(live, (image * basis[-1]).sum(-1), 1.0)
        pivot = matrix[..., i, i] - coupling.square() / pivot  # of LDLᵀ; the residual is that of conjugate gradients
        for _ in range(2):  # twice is enough (Parlett 1998)
            for known in basis:
                image = image - (image * known).sum(-1, keepdim=True) * known
        norm = image.norm(dim=-1)
        residual, steps = torch.where(live, residual * norm / pivot.abs(), residual), steps + live
        live = live & (norm >= 1e-10 * matrix[..., 0, 0].abs()) & (residual > tol)
        if i + 1 == iterations or not bool(live.any()):
            break
        coupling = torch.where(live, norm, 0.0)
        matrix[..., i, i + 1] = matrix[..., i + 1, i] = coupling
        basis.append(torch.where(live.unsqueeze(-1), image / norm.clamp_min(1e-300).unsqueeze(-1), 0.0))
    need_finite(matrix.flatten(-2).sum(-1))
    values, vectors = torch.linalg.eigh(matrix)
    values = torch.where(vectors[..., 0, :].square() > NEGLIGIBLE, values, 1.0)
    return Krylov(basis, length, values, vectors, residual, steps)


def signs(rows: int, like: Float[Tensor, "*L"]) -> Float[Tensor, "R *L"]:
    """Independent random signs (Rademacher), float64."""
    return torch.randint(2, (rows, *like.shape), device=like.device).double() * 2 - 1
