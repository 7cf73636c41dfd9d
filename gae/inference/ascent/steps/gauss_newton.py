"""Generalised Gauss–Newton with Levenberg damping, one independent trust region per row."""

import torch
from jaxtyping import Float, Num
from torch import Tensor

from gae.inference.ascent.family import Delta
from gae.inference.ascent.problem import Problem, expand_rows, rounding, row_dot
from gae.inference.ascent.steps.conjugate import Product, conjugate_gradients
from gae.inference.ascent.steps.first_order import State, Step
from gae.inference.ascent.steps.trials import accept, no_trial
from gae.inference.curvature import curvature, curvature_matrix
from gae.likelihood import DecoderLikelihood, Likelihood


class GaussNewton(Step):
    """Gauss–Newton step u + (G + damping I)⁻¹ ∇, with G = Jᵀ H J + prior curvature.

    J is the decoder's Jacobian, H the curvature of -log q_r in the decoder's output (Schraudolph 2002). G is positive
    semi-definite, and exact for linear Gaussians. A row whose trial fails to improve multiplies its damping by 10 and
    tries again from the same point; success divides it by 10, and sets it to 0 once it is at most ``damping / 10``.
    ``Solve.evaluations`` counts only the objective: a linearisation also costs about one decoder evaluation per
    element of a code (dense), or two per conjugate-gradient iteration.

    Args:
        dense: G as a (Z, Z) matrix per row, solved by Cholesky: for small Z. Otherwise matrix-free products with
            conjugate gradients.
        iterations: maximum number of conjugate-gradient iterations if not dense.
        damping: first value after a failed trial, relative to the mean curvature, or to that along the gradient if
            not dense; 0 before.

    >>> GaussNewton(dense=False, iterations=10).returns_best
    True
    """

    is_trial = returns_best = True

    def __init__(self, dense: bool = True, iterations: int = 50, damping: float = 1.0):
        super().__init__()
        if iterations < 1 or not damping > 0:
            raise ValueError(f"Need iterations >= 1 and damping > 0, got {iterations} and {damping}.")
        self.dense, self.iterations, self.damping = dense, iterations, damping

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        if not isinstance(problem.family, Delta) or not isinstance(problem.likelihood, DecoderLikelihood):
            raise TypeError(
                f"Cannot use `GaussNewton` with {type(problem.likelihood).__name__} and "
                f"`{type(problem.family).__name__}()`: it needs point codes and a decoder output. Use `LBFGS`."
            )
        if problem.k is None and problem.likelihood.components > 1:
            raise TypeError(
                "Cannot use `GaussNewton` with a summed-out component. Use `Argmax(Ascent(...))`, or `LBFGS`."
            )
        return no_trial(u) | {"damping": u.new_zeros(u.shape[:2])}

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        is_accepted = (value >= state["value"] - rounding(value)) & torch.isfinite(value)
        accepted = accept(is_accepted, u, value, grad, state)
        relaxed = torch.where(state["damping"] <= self.damping / 10, 0.0, state["damping"] / 10)
        tightened = (state["damping"] * 10).clamp_min(self.damping)
        damping = torch.where(is_accepted, relaxed, tightened)
        following = accepted | {"damping": damping}
        known, inputs = torch.isfinite(accepted["value"]), (accepted["point"], accepted["grad"], damping)
        if bool(known.all()):
            return self._moved(problem, *inputs), following
        # The curvature of a row without a finite start must not enter the graph.
        (moved,) = problem.only(known, (inputs[0].detach(),), inputs, lambda part, *row: (self._moved(part, *row),))
        return moved, following

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
            matrix = curvature_matrix(problem.likelihood, problem.x, u, problem.k)
        return u + _solve(matrix, grad.flatten(2), state["damping"]).view_as(u)

    def _moved(self, problem: Problem, u: Tensor, grad: Tensor, damping: Tensor) -> Tensor:
        if self.dense:
            return u + _solve(
                curvature_matrix(problem.likelihood, problem.x, u, problem.k), grad.flatten(2), damping
            ).view_as(u)
        return u + self._matrix_free(curvature(problem.likelihood, problem.x, u, problem.k), grad, damping)

    def _matrix_free(self, product: Product, grad: Tensor, damping: Tensor) -> Tensor:
        """(G + damping · curvature along the gradient)⁻¹ grad, by conjugate gradients."""
        shift = torch.zeros_like(damping)
        if bool((damping > 0).any()):
            square = row_dot(grad, grad)
            level = row_dot(grad, product(grad)) / torch.where(square > 0, square, 1.0)
            shift = torch.where(damping > 0, damping * level, 0.0)  # 0 · inf is not 0
        most, tol = min(self.iterations, grad[0, 0].numel() + 10), torch.finfo(grad.dtype).eps ** 0.5
        return conjugate_gradients(lambda v: product(v) + expand_rows(shift, v) * v, grad, most, tol)[0]


def _solve(matrix: Tensor, grad: Tensor, damping: Tensor) -> Tensor:
    """(matrix + damping · mean diagonal)⁻¹ grad; a scaled gradient where that is not positive definite."""
    level = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    damped = matrix + (damping * level)[..., None, None] * identity
    factor, failed = torch.linalg.cholesky_ex(damped)
    solved = failed == 0
    if not bool(solved.all()):  # a failed factorisation has no derivative
        factor = torch.linalg.cholesky_ex(torch.where(solved[..., None, None], damped, identity))[0]
    step = torch.cholesky_solve(grad.unsqueeze(-1), factor).squeeze(-1)
    return torch.where(solved.unsqueeze(-1), step, grad / level.clamp_min(1).unsqueeze(-1))


def mean_curvature(likelihood: Likelihood, x: Num[Tensor, "N *X"], z: Float[Tensor, "N *Z"]) -> Float[Tensor, "U U"]:
    """The mean curvature of -log_joint (Gauss–Newton's, prior included) over codes z, with U elements each.

    For ``LBFGS(curvature=...)``, some 16 codes drawn from the prior are enough, and any x works if the output is a
    natural parameter or a Gaussian mean. Costs a few decoder evaluations per element of each code.

    Raises:
        TypeError: for a likelihood without a decoder output.

    >>> from gae.likelihood import LinearMixture
    >>> model = LinearMixture(1, 2, (5,))
    >>> mean_curvature(model, torch.zeros(12, 5), model.prior.sample((12,))).shape
    torch.Size([2, 2])
    """
    with torch.no_grad():
        return curvature_matrix(likelihood, x, z.detach().unsqueeze(0)).squeeze(0).mean(0)
