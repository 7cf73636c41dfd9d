"""Limited-memory BFGS, with an independent line search per row."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gae.data.checks import at_least_one
from gae.inference.ascent.family import BLOCK
from gae.inference.ascent.problem import Problem, expand_rows, rounding, row_dot
from gae.inference.ascent.steps.first_order import State, Step
from gae.inference.ascent.steps.trials import accept, no_trial
from gae.inference.curvature import curvature_matrix, raised
from gae.likelihood import DecoderLikelihood

SUFFICIENT = 1e-4  # Armijo's constant
LEAST = 1e-6  # eigenvalue of a curvature, whose diagonal is 1, below which it is raised
CURVATURE = 1e-8  # a pair is kept if cos(s, y) exceeds this: the inverse Hessian stays positive definite


class LBFGS(Step):
    """L-BFGS with a backtracking line search per row (Liu & Nocedal 1989; Nocedal & Wright 2006, algorithm 7.4).

    Every step costs one evaluation for every row: a row whose trial fails Armijo's condition shortens its step by
    parabolic interpolation, while others continue. Curvature pairs that are not safely convex are skipped.

    Args:
        history: number m of curvature pairs kept.
        curvature: an estimate of -∇² of the objective, whose inverse replaces the identity in the recursion; since it
            has a scale already, it is multiplied by the square root of the usual scale. Either (U, U), positive
            definite, for points of U elements, such as ``mean_curvature``; or ``"gauss-newton"``, the Gauss–Newton
            curvature of each row at its start, carried over to the parameters of a density. That takes one decoder
            evaluation per element of a code, which pays where an objective value takes more, as those of densities do.

    Raises:
        ValueError: for a curvature that is not positive definite, or an unknown name.
        TypeError: in a solve with ``"gauss-newton"``, for a likelihood without a decoder output, or a summed-out
            component.

    >>> LBFGS(history=5).returns_best
    True
    """

    is_trial = returns_best = True
    metric: Tensor | None

    def __init__(self, history: int = 10, curvature: Float[Tensor, "U U"] | Literal["gauss-newton"] | None = None):
        super().__init__()
        at_least_one("history", history)
        if isinstance(curvature, str) and curvature != "gauss-newton":
            raise ValueError(f"curvature must be a matrix, 'gauss-newton' or None, got {curvature!r}.")
        self.history, self.by_row = history, isinstance(curvature, str)
        matrix = _inverse(curvature) if isinstance(curvature, Tensor) else None
        self.register_buffer("metric", matrix, persistent=False)

    @property
    def _has_scale(self) -> bool:
        return self.by_row or self.metric is not None

    def overhead(self, problem: Problem) -> int:
        return problem.likelihood.latent_shape.numel() if self.by_row else 0

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        flat = u.flatten(2)
        own = {"metric": problem.family.metric(u, _factor(problem, u))} if self.by_row else {}
        row, pairs = flat.new_zeros(flat.shape[:2]), flat.new_zeros(*flat.shape[:2], self.history, 2, flat.shape[2])
        return no_trial(flat) | {
            "direction": torch.zeros_like(flat),
            "length": row + 1,
            "pairs": pairs,
            "scale": row,
            **own,
        }

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        flat, grad = u.flatten(2), grad.flatten(2)
        slope = row_dot(state["grad"], state["direction"])
        is_accepted = value >= state["value"] + SUFFICIENT * state["length"] * slope - rounding(value)
        is_accepted = is_accepted & torch.isfinite(value)
        memory = self._remember(problem, state, is_accepted, flat, grad, t)
        accepted = accept(is_accepted, flat, value, grad, state)
        ascent = self._direction(problem, accepted["grad"], memory, min(t, self.history))
        direction = torch.where(is_accepted.unsqueeze(2), ascent, state["direction"])
        length = torch.where(is_accepted, torch.ones_like(value), self._shorter(state, value, slope))
        moved = accepted["point"] + length.unsqueeze(2) * direction
        return moved.view_as(u), accepted | {"direction": direction, "length": length} | memory

    def correct(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> Float[Tensor, "S B *U"]:
        return u + self._direction(problem, grad.flatten(2), state, self.history).view_as(u)

    def _remember(
        self, problem: Problem, state: State, is_accepted: Tensor, flat: Tensor, grad: Tensor, t: int
    ) -> State:
        """The pairs, each divided by the root of its inner product, and the scale of the initial inverse Hessian."""
        known = {name: state[name] for name in ("pairs", "metric") if name in state}
        if t == 0:
            norm = row_dot(grad, grad).clamp_min(1).sqrt()
            return known | {"scale": torch.ones_like(norm) if self._has_scale else 1 / norm}
        move, change = flat - state["point"], state["grad"] - grad
        inner, image = row_dot(move, change), self._image(problem, change, state)
        keep = is_accepted & (inner > CURVATURE * (row_dot(move, move) * row_dot(change, change)).clamp_min(0).sqrt())
        safe = torch.where(keep, inner, 1.0)
        root = safe.sqrt().unsqueeze(2)
        scale = safe / torch.where(keep, row_dot(change, image), 1.0)
        if self._has_scale:
            scale = scale.sqrt()
        pair = torch.stack([move, change], 2) / root.unsqueeze(3)
        return known | {"pairs": _push(state["pairs"], pair, keep), "scale": torch.where(keep, scale, state["scale"])}

    def _direction(self, problem: Problem, grad: Tensor, memory: State, pairs: int) -> Tensor:
        """The two-loop recursion over the last pairs; unfilled ones are zero and have no effect."""
        moves, changes = (half.unbind(2)[self.history - pairs :] for half in memory["pairs"].unbind(3))
        q, weights = grad, []
        for s, y in zip(reversed(moves), reversed(changes), strict=True):
            weights.append(row_dot(s, q).unsqueeze(2))
            q = torch.addcmul(q, weights[-1], y, value=-1)
        q = memory["scale"].unsqueeze(2) * self._image(problem, q, memory)
        for s, y, weight in zip(moves, changes, reversed(weights), strict=True):
            q = torch.addcmul(q, weight - row_dot(y, q).unsqueeze(2), s)
        return q

    def _image(self, problem: Problem, v: Tensor, memory: State) -> Tensor:
        """v times the inverse curvature that is given."""
        if self.by_row:
            return problem.family.rescaled(v, memory["metric"])
        return v if self.metric is None else v @ self.metric.to(v)

    def _shorter(self, state: State, value: Tensor, slope: Tensor) -> Tensor:
        """The maximum of the parabola through both values and the initial slope, between 0.1 and 0.5 of the length."""
        length = state["length"]
        drop = 2 * (state["value"] + length * slope - value)
        known = torch.isfinite(drop) & (drop > 0)
        best = length.square() * slope / torch.where(known, drop, 1.0)
        return torch.where(known, best.clamp(min=0.1 * length, max=0.5 * length), 0.1 * length)


def _push(memory: Tensor, new: Tensor, keep: Tensor) -> Tensor:
    shifted = torch.cat([memory[:, :, 1:], new.unsqueeze(2)], 2)
    return torch.where(expand_rows(keep, memory), shifted, memory)


def _inverse(curvature: Tensor) -> Tensor:
    """The inverse in float64, exactly symmetric."""
    factor, failed = torch.linalg.cholesky_ex(curvature.detach().double())
    if bool(failed):
        raise ValueError("The curvature must be positive definite. Pass that of -∇², with the prior's part.")
    return torch.cholesky_inverse(factor)


def _curvatures(problem: Problem, z: Float[Tensor, "S B *Z"], rows: Int[Tensor, " n"]) -> Float[Tensor, "S n Z Z"]:
    """The Gauss–Newton matrices of some rows: all at once would hold a derivative of each output for each element."""
    k = problem.k
    part = k if k is None or k.shape[1] == 1 else k[:, rows]
    return curvature_matrix(problem.likelihood, problem.x[rows], z[:, rows], part)


def _factor(problem: Problem, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B Z Z"]:
    """C, lower triangular, where C Cᵀ is the inverse of the Gauss–Newton curvature at the centre of each row.

    Directions in which the curvature vanishes get a small one, and rows without a finite curvature the identity.
    """
    likelihood = problem.likelihood
    if not isinstance(likelihood, DecoderLikelihood) or (problem.k is None and likelihood.components > 1):
        raise TypeError(
            f"`LBFGS(curvature='gauss-newton')` needs a decoder output, and no component that is summed out, which "
            f"{type(likelihood).__name__} does not give here. Use `LBFGS()`."
        )
    z = problem.family.centre(u)
    rows = torch.arange(z.shape[1], device=z.device).split(max(1, BLOCK // z[0, 0].numel()))
    matrix = torch.cat([_curvatures(problem, z, part) for part in rows], 1).double()
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    finite = matrix.detach().isfinite().flatten(2).all(2)[..., None, None]
    matrix = torch.where(finite, matrix, identity)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = raised(matrix * scale.unsqueeze(-1) * scale.unsqueeze(-2), LEAST)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(scaled))
    return (scale.unsqueeze(-1) * torch.linalg.cholesky(inverse)).to(u.dtype)
