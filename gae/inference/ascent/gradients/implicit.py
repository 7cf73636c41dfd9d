"""Gradients through a solve by the implicit function theorem."""

import warnings
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from gae.inference.ascent.gradients.unrolled import Adjoint, dependencies, replaced
from gae.inference.ascent.problem import expand_rows, finite
from gae.inference.ascent.solver import Iterate, Solver
from gae.inference.ascent.steps.conjugate import Product, conjugate_gradients
from gae.inference.decoder import twice_differentiable


class Implicit(Adjoint):
    """Differentiates the stationarity condition ∇_u objective = 0 at the solution: dz = (-∇²)⁻¹ ∂_θ∇ dθ.

    The linear system is solved per row by conjugate gradients on (-∇² + damping); memory does not depend on T. Valid
    only at a stationary point; elsewhere it warns with the gradient norm.

    After a backward pass, ``residual`` holds ‖(-∇² + damping) w - v‖ / ‖v‖ per row, (S, B).

    Args:
        damping: added to the curvature, in nats per squared unit of u; for flat or slightly indefinite solutions.
        iterations: maximum number of conjugate-gradient iterations; by default 10 more than u has elements per row.
        tol: relative residual at which a row stops.
        stationary: gradient norm (nats per unit of u) above which it warns.
    """

    def __init__(
        self, damping: float = 0.0, iterations: int | None = None, tol: float = 1e-6, stationary: float = 1e-2
    ):
        super().__init__()
        if damping < 0 or not tol > 0:
            raise ValueError(f"Need damping >= 0 and tol > 0, got damping={damping}, tol={tol}.")
        self.damping, self.iterations, self.tol, self.stationary = damping, iterations, tol, stationary
        self.residual: Tensor | None = None

    def forward(self, solver: Solver, start: Iterate) -> Iterate:
        at = solver.run(start.detach(), 0, solver.max_steps, False)
        point = solver.point(at)
        if not torch.is_grad_enabled():
            return at
        evaluation = solver.problem.evaluate(point, False)
        usable = evaluation.usable & torch.isfinite(evaluation.value.square())  # as in the graph of the backward pass
        norm = torch.where(usable, evaluation.norm, torch.inf)
        point = torch.where(expand_rows(usable, point), point, at["best"])
        if not bool((norm <= self.stationary).all()):
            warnings.warn(
                f"Implicit gradients need a stationary point, but the gradient norm is {norm.max().item():.3g} at the "
                f"worst sample (at most {self.stationary:.3g} is allowed). Take more steps or use a better step rule.",
                stacklevel=2,
            )
        solution = _AtSolution.apply(self, solver, point.detach(), *dependencies(solver))
        at = replaced(at, solution, usable)
        return replace(at, rows=at.rows | {"grad_norm": norm})

    def solve(self, curvature: Product, right: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B *U"]:
        """Solves (curvature + damping) w = right, each row up to its tolerance or to a direction of negative curvature.

        w is 0 where the system overflows.
        """
        most = right[0, 0].numel() + 10 if self.iterations is None else self.iterations
        solution, residual = conjugate_gradients(lambda v: curvature(v) + self.damping * v, right, most, self.tol)
        solved = finite(solution, residual)
        self.residual = torch.where(solved, residual, 1.0)
        return torch.where(expand_rows(solved, solution), solution, 0.0)


class _AtSolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mode, solver, point, *parameters):  # type: ignore[no-untyped-def]
        ctx.mode, ctx.solver, ctx.point, ctx.parameters = mode, solver, point, parameters
        return point.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        with torch.enable_grad(), twice_differentiable(ctx.solver.problem.likelihood):
            point = ctx.point.detach().requires_grad_()
            grad = ctx.solver.problem.rebind().evaluate(point, True).grad

        def curvature(v: Tensor) -> Tensor:
            (image,) = torch.autograd.grad(grad, point, -v, retain_graph=True)
            return image

        if not grad.requires_grad:  # no row is finite
            return (None,) * (3 + len(ctx.parameters))
        weight = ctx.mode.solve(curvature, cotangent)
        grads = torch.autograd.grad(grad, ctx.parameters, weight, allow_unused=True) if ctx.parameters else ()
        return (None, None, None, *grads)
