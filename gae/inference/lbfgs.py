"""Limited-memory BFGS, one independent search per row."""

import torch
from jaxtyping import Float
from torch import Tensor

from gae.inference.problem import Problem, rounding
from gae.inference.steps import State, Step

SUFFICIENT = 1e-4  # Armijo's constant
CURVATURE = 1e-8  # a pair is kept if cos(s, y) exceeds this: the inverse Hessian stays positive definite


class LBFGS(Step):
    """L-BFGS with a backtracking search per row (Liu & Nocedal 1989; Nocedal & Wright 2006, algorithm 7.4).

    Every step costs one evaluation for every row: a row whose trial fails Armijo's condition shortens its step by
    the parabola through what it knows, while others go on. Curvature pairs that are not safely convex are left out.

    Args:
        history: number m of curvature pairs kept.

    >>> LBFGS(history=5).searches
    True
    """

    proposes = searches = True

    def __init__(self, history: int = 10):
        super().__init__()
        if history < 1:
            raise ValueError(f"history must be at least 1, got {history}.")
        self.history = history

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        flat = u.flatten(2)
        row, pairs = flat.new_zeros(flat.shape[:2]), flat.new_zeros(*flat.shape[:2], self.history, flat.shape[2])
        zero = torch.zeros_like(flat)
        return {
            "point": flat,
            "value": row - torch.inf,
            "grad": zero,
            "direction": zero,
            "length": row + 1,
            "moves": pairs,
            "changes": pairs,
            "inverse": pairs[..., 0],
            "curvature": row,
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
        slope = _dot(state["grad"], state["direction"])
        taken = value >= state["value"] + SUFFICIENT * state["length"] * slope - rounding(value)
        taken = taken & torch.isfinite(value)
        memory = self._remember(state, taken, flat, grad, t)
        point = torch.where(taken.unsqueeze(2), flat, state["point"])
        reached = torch.where(taken, value, state["value"])
        gradient = torch.where(taken.unsqueeze(2), grad, state["grad"])
        direction = torch.where(taken.unsqueeze(2), self._direction(gradient, memory), state["direction"])
        length = torch.where(taken, torch.ones_like(value), self._shorter(state, value, slope))
        following = {"point": point, "value": reached, "grad": gradient, "direction": direction, "length": length}
        return (point + length.unsqueeze(2) * direction).view_as(u), following | memory

    def correct(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> Float[Tensor, "S B *U"]:
        return u + self._direction(grad.flatten(2), state).view_as(u)

    def _remember(self, state: State, taken: Tensor, flat: Tensor, grad: Tensor, t: int) -> State:
        move, change = flat - state["point"], state["grad"] - grad
        inner, square = _dot(move, change), _dot(change, change)
        keep = taken & (inner > CURVATURE * (_dot(move, move) * square).clamp_min(0).sqrt()) & (t > 0)
        safe_inner, safe_square = torch.where(keep, inner, 1.0), torch.where(keep, square, 1.0)
        first = 1 / _dot(grad, grad).clamp_min(1).sqrt() if t == 0 else state["curvature"]
        return {
            "moves": _push(state["moves"], move, keep),
            "changes": _push(state["changes"], change, keep),
            "inverse": _push(state["inverse"], 1 / safe_inner, keep),
            "curvature": torch.where(keep, inner / safe_square, first),
        }

    def _direction(self, grad: Tensor, memory: State) -> Tensor:
        """The two-loop recursion; a pair not yet filled has inverse 0 and does nothing."""
        moves, changes, inverse = (memory[name].unbind(2) for name in ("moves", "changes", "inverse"))
        q, weights = grad, []
        for s, y, r in zip(reversed(moves), reversed(changes), reversed(inverse), strict=True):
            weights.append(r * _dot(s, q))
            q = q - weights[-1].unsqueeze(2) * y
        q = memory["curvature"].unsqueeze(2) * q
        for s, y, r, a in zip(moves, changes, inverse, reversed(weights), strict=True):
            q = q + (a - r * _dot(y, q)).unsqueeze(2) * s
        return q

    def _shorter(self, state: State, value: Tensor, slope: Tensor) -> Tensor:
        """The maximum of the parabola through both values and the first slope, between 0.1 and 0.5 of the length."""
        length = state["length"]
        drop = 2 * (state["value"] + length * slope - value)
        known = torch.isfinite(drop) & (drop > 0)
        best = length.square() * slope / torch.where(known, drop, 1.0)
        return torch.where(known, best.clamp(min=0.1 * length, max=0.5 * length), 0.1 * length)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _push(memory: Tensor, new: Tensor, keep: Tensor) -> Tensor:
    shifted = torch.cat([memory[:, :, 1:], new.unsqueeze(2)], 2)
    return torch.where(keep.reshape(keep.shape + (1,) * (memory.dim() - 2)), shifted, memory)
