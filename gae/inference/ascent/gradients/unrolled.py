"""Gradients through a solve: unrolled, truncated, one-step, checkpointed or detached."""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gae.inference.ascent.problem import expand_rows, finite, rounding
from gae.inference.ascent.solver import CORRECTED, PREFIX, Iterate, Solver
from gae.inference.base import Status
from gae.inference.decoder import twice_differentiable
from gae.likelihood.door import door
from gae.storage import Part

BLOCK = 32  # iterates


class Adjoint(Part, nn.Module, ABC):
    """Base class of adjoints: runs a solver and decides which steps enter the graph. Without gradient mode, none do."""

    @abstractmethod
    def forward(self, solver: Solver, start: Iterate) -> Iterate:
        """The last iterate."""


class Unroll(Adjoint):
    """Keeps every step in the graph: the exact gradient of the T-step solve, second-order terms included.

    Graph memory grows with T; ``CheckpointedUnroll`` gives the same gradient without this cost.
    """

    def forward(self, solver: Solver, start: Iterate) -> Iterate:
        return solver.run(start, 0, solver.max_steps, torch.is_grad_enabled())


class Detach(Adjoint):
    """Keeps no step in the graph: the code is a constant for the outer loss.

    Exact for ``joint`` at a stationary point, by the envelope theorem.
    """

    def forward(self, solver: Solver, start: Iterate) -> Iterate:
        return solver.run(start.detach(), 0, solver.max_steps, False)


class Truncate(Adjoint):
    """Keeps the last n steps in the graph; a solve that returns its best point takes n corrections there instead.

    A correction that would lower a row's objective is rejected, and its code stays unchanged.

    >>> Truncate(5).steps
    5
    """

    def __init__(self, steps: int):
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}. Use `Detach()` to keep none.")
        self.steps = steps

    def forward(self, solver: Solver, start: Iterate) -> Iterate:
        keep = torch.is_grad_enabled()
        if solver.keeps_best:
            at = solver.run(start.detach(), 0, solver.max_steps, False)
            for _ in range(self.steps if keep else 0):
                at = _correct(solver, at)
            return at
        tail = max(solver.max_steps - self.steps, 0)
        at = solver.run(start.detach(), 0, tail, False) if tail else start
        return solver.run(at, tail, solver.max_steps, keep)


class OneStep(Adjoint):
    """Differentiates one step of the rule, taken at the solution (Bolte et al. 2023).

    The gradient is exact if the step is a Newton step: nearly so for ``GaussNewton`` and ``LBFGS``, to first order in
    rate · curvature for ``GradientAscent``. A step that would lower the objective does not approximate Newton's; it is
    rejected, and the code is a constant, as under ``Detach``.
    """

    def forward(self, solver: Solver, start: Iterate) -> Iterate:
        at = solver.run(start.detach(), 0, solver.max_steps, False)
        return _correct(solver, at) if torch.is_grad_enabled() else at


class CheckpointedUnroll(Adjoint):
    """The gradient of ``Unroll`` with graph memory that does not grow with T.

    Only each step's point and state are kept; the backward pass replays the steps one by one (without new noise:
    a stochastic rule keeps its noise in its state). Not twice differentiable.
    """

    def forward(self, solver: Solver, start: Iterate) -> Iterate:
        if not torch.is_grad_enabled():
            return solver.run(start, 0, solver.max_steps, False)
        flowing = [name for name in start.rows if name in ("u", "best") or name.startswith(PREFIX)]
        parameters = dependencies(solver)
        tensors = [start[name] for name in flowing]
        ends: list[Iterate] = []
        results = _Replay.apply(solver, start.detach(), ends, flowing, len(tensors), *tensors, *parameters)
        (last,) = ends
        return replace(last, rows=last.rows | dict(zip(flowing, results, strict=True)))


class _Tape:
    """The iterates of a solve, stored in blocks: single small tensors would fragment the heap between large ones."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, Tensor]] = []
        self.intact: list[bool] = []

    def __len__(self) -> int:
        return len(self.intact)

    def append(self, at: Iterate) -> None:
        block, row = divmod(len(self), BLOCK)
        if not row:
            self.blocks.append({name: value.new_empty(BLOCK, *value.shape) for name, value in at.rows.items()})
        for name, value in at.rows.items():
            self.blocks[block][name][row] = value
        self.intact.append(at.intact)

    def __getitem__(self, t: int) -> Iterate:
        block, row = divmod(t, BLOCK)
        return Iterate({name: values[row] for name, values in self.blocks[block].items()}, intact=self.intact[t])


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, solver, start, ends, flowing, count, *tensors):  # type: ignore[no-untyped-def]
        at, tape = start, _Tape()
        for t in range(solver.max_steps):
            tape.append(at)
            at = solver.advance(at, t, False)
            if solver.finished(at):
                break
        ctx.solver, ctx.tape, ctx.flowing, ctx.parameters = solver, tape, flowing, tensors[count:]
        ends.append(at)
        return tuple(at[name].clone() for name in flowing)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *cotangents):  # type: ignore[no-untyped-def]
        problem = ctx.solver.problem
        with twice_differentiable(problem.likelihood), door(problem.likelihood, problem.x):
            return _Replay._replayed(ctx, cotangents)

    @staticmethod
    def _replayed(ctx, cotangents):  # type: ignore[no-untyped-def]
        flowing, parameters = ctx.flowing, ctx.parameters
        total: list[Tensor | None] = [None] * len(parameters)
        for t in reversed(range(len(ctx.tape))):
            at = ctx.tape[t]
            leaves = {name: at[name].requires_grad_() for name in flowing}
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                after = ctx.solver.rebind().advance(at, t, True)
            flows = [after[name].requires_grad for name in flowing]
            outputs = [after[name] for name, flow in zip(flowing, flows, strict=True) if flow]
            received = [cotangent for cotangent, flow in zip(cotangents, flows, strict=True) if flow]
            grads = torch.autograd.grad(outputs, [*leaves.values(), *parameters], received, allow_unused=True)
            cotangents = tuple(
                torch.zeros_like(leaf) if grad is None else grad
                for leaf, grad in zip(leaves.values(), grads, strict=False)
            )
            total = [_sum(a, b) for a, b in zip(total, grads[len(leaves) :], strict=True)]
        return (None, None, None, None, None, *cotangents, *total)


def dependencies(solver: Solver) -> list[Tensor]:
    """Every tensor besides the start that the solve depends on and that requires a gradient."""
    return [*solver.problem.parameters(), *(p for p in solver.step.parameters() if p.requires_grad)]


def _correct(solver: Solver, at: Iterate) -> Iterate:
    """One more step of the rule from the solution, in the graph; rows that it would lower keep their point."""
    point, problem = solver.point(at), solver.problem
    evaluation = problem.evaluate(point, True)
    usable = evaluation.usable
    point, grad = (
        torch.where(expand_rows(usable, point), a, b) for a, b in ((point, at["best"]), (evaluation.grad, 0.0))
    )
    moved = solver.step.correct(problem, point, evaluation.value, grad, solver.state(at), solver.max_steps)
    accepted = (
        usable & _is_not_lowered(solver, evaluation.value.detach(), moved.detach())
        if solver.step.is_monotone
        else usable
    )
    return replaced(at, torch.where(expand_rows(accepted, point), moved, point), usable)


@torch.no_grad()
def _is_not_lowered(solver: Solver, value: Float[Tensor, "S B"], moved: Float[Tensor, "S B *U"]) -> Bool[Tensor, "S B"]:
    """Whether a move does not lower the objective beyond rounding."""
    reached = solver.problem(moved)
    return (reached >= value - rounding(value)) & finite(moved, reached)


def replaced(at: Iterate, point: Float[Tensor, "S B *U"], usable: Bool[Tensor, "S B"]) -> Iterate:
    """The iterate with another point as its solution; rows whose solution was unusable become ``nonfinite``."""
    status = torch.where(usable, at["status"], Status.nonfinite)
    return replace(at, rows=at.rows | {CORRECTED: point, "status": status})


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, in the memory of a, which is a copy of the first b: gradients may share theirs."""
    if b is None:
        return a
    return b.clone() if a is None else a.add_(b)
