"""Generalised Gauss–Newton with Levenberg damping, one independent trust region per row."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp, vjp, vmap

from gae.inference.family import Delta
from gae.inference.problem import Problem, rounding
from gae.inference.steps import State, Step

Product = Callable[[Tensor], Tensor]


class GaussNewton(Step):
    """u + (G + damping I)⁻¹ ∇, with G = Jᵀ H J + prior curvature: positive semi-definite, exact for linear Gaussians.

    J is the decoder's Jacobian, H the curvature of -log q_r in the decoder's output (Schraudolph 2002). A row whose
    trial fails to improve multiplies its damping by 10 and tries again from the same point; success divides it by 10.

    Args:
        dense: G as a (Z, Z) matrix per row, solved by Cholesky: for small Z. Otherwise matrix-free products with
            conjugate gradients.
        iterations: most conjugate-gradient iterations when not dense.
        damping: relative to the mean curvature, the first value tried after a failure.

    >>> GaussNewton(dense=False, iterations=10).searches
    True
    """

    proposes = searches = True

    def __init__(self, dense: bool = True, iterations: int = 50, damping: float = 1e-3):
        super().__init__()
        if iterations < 1 or not damping > 0:
            raise ValueError(f"Need iterations >= 1 and damping > 0, got {iterations} and {damping}.")
        self.dense, self.iterations, self.damping = dense, iterations, damping

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        if not isinstance(problem.family, Delta) or not problem.likelihood.has_outputs:
            raise TypeError(
                f"Cannot use `GaussNewton` with {type(problem.likelihood).__name__} and "
                f"`{type(problem.family).__name__}()`: it needs point codes and a decoder output. Use `LBFGS`."
            )
        row = u.new_zeros(u.shape[:2])
        return {"point": u, "value": row - torch.inf, "grad": torch.zeros_like(u), "damping": row}

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        taken = (value >= state["value"] - rounding(value)) & torch.isfinite(value)
        wide = taken.reshape(*taken.shape, *[1] * (u.dim() - 2))
        point, gradient = torch.where(wide, u, state["point"]), torch.where(wide, grad, state["grad"])
        relaxed = torch.where(state["damping"] <= self.damping, 0.0, state["damping"] / 10)
        tightened = (state["damping"] * 10).clamp_min(self.damping)
        damping = torch.where(taken, relaxed, tightened)
        following = {"point": point, "value": torch.where(taken, value, state["value"]), "grad": gradient}
        return self._moved(curvature(problem, point), point, gradient, damping), following | {"damping": damping}

    def correct(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> Float[Tensor, "S B *U"]:
        with torch.no_grad():
            matrix = self._matrix(curvature(problem, u), u)
        return u + _solve(matrix, grad.flatten(2), state["damping"]).view_as(u)

    def _moved(self, product: Product, u: Tensor, grad: Tensor, damping: Tensor) -> Tensor:
        if self.dense:
            return u + _solve(self._matrix(product, u), grad.flatten(2), damping).view_as(u)
        return u + self._matrix_free(product, grad.flatten(2), damping, u.shape).view_as(u)

    def _matrix(self, product: Product, u: Tensor) -> Tensor:
        width = u[0, 0].numel()
        basis = torch.eye(width, dtype=u.dtype, device=u.device)
        columns = vmap(lambda v: product(v.expand(*u.shape[:2], width).reshape(u.shape)).flatten(2))(basis)
        return columns.movedim(0, -1)

    def _matrix_free(self, product: Product, grad: Tensor, damping: Tensor, shape: torch.Size) -> Tensor:
        def shifted(v: Tensor) -> Tensor:
            return product(v.reshape(shape)).flatten(2) + damping.unsqueeze(2) * v

        solution, residual, direction = torch.zeros_like(grad), grad, grad
        square = residual.square().sum(2)
        goal = square.detach() * torch.finfo(grad.dtype).eps
        for _ in range(min(self.iterations, grad.shape[2] + 10)):
            image = shifted(direction)
            bend = (direction * image).sum(2)
            going = (square > goal) & (bend > 0)
            if not bool(going.any()):
                break
            length = torch.where(going, square / torch.where(going, bend, 1.0), 0.0).unsqueeze(2)
            solution, residual = solution + length * direction, residual - length * image
            following = residual.square().sum(2)
            ratio = torch.where(going, following / torch.where(going, square, 1.0), 0.0).unsqueeze(2)
            direction, square = residual + ratio * direction, following
        return solution


def _solve(matrix: Tensor, grad: Tensor, damping: Tensor) -> Tensor:
    """(matrix + damping · mean diagonal)⁻¹ grad; a scaled gradient where that is not positive definite."""
    level = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(matrix + (damping * level)[..., None, None] * identity)
    step = torch.cholesky_solve(grad.unsqueeze(-1), factor).squeeze(-1)
    return torch.where((failed == 0).unsqueeze(-1), step, grad / level.clamp_min(1).unsqueeze(-1))


def curvature(problem: Problem, u: Float[Tensor, "S B *Z"]) -> Product:
    """v -> G v of each row at u: Gauss–Newton curvature of -log q_r(x|z) plus the exact curvature of -log q_w(z)."""
    likelihood, k = problem.likelihood, problem.k

    def outputs(z: Tensor) -> Tensor:
        return likelihood.outputs(z, k)

    def slope(output: Tensor) -> Tensor:
        total, pull = vjp(lambda o: -likelihood.log_likelihood(problem.x, o, k).sum(), output)  # type: ignore[misc]
        return pull(torch.ones_like(total))[0]

    def prior_slope(z: Tensor) -> Tensor:
        total, pull = vjp(lambda z: -likelihood.prior.log_prob(z).sum(), z)  # type: ignore[misc]
        return pull(torch.ones_like(total))[0]

    output, pull = vjp(outputs, u)  # type: ignore[misc]

    def product(v: Tensor) -> Tensor:
        _, moved = jvp(outputs, (u,), (v,))
        _, bent = jvp(slope, (output,), (moved,))
        _, prior = jvp(prior_slope, (u,), (v,))
        return pull(bent)[0] + prior

    return product
