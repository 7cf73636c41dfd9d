"""The loop over steps: per-row bookkeeping, stopping, and the active set."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gae.data.progress import counted
from gae.inference.ascent.problem import Evaluation, Problem, choose_rows, expand_rows, rounding
from gae.inference.ascent.steps.first_order import Step
from gae.inference.ascent.stopping import Stopping
from gae.inference.base import Solve, Status

RUNNING = -1
LARGE = 10_000  # elements of a point from which on a copy costs more than a look at the rows
PATIENCE = 2  # successive steps within ``tol`` after which a row has converged
PREFIX, JUDGED = "state/", "judged/"  # keys of the state of the step rule and of the stopping rule
CORRECTED = "corrected"  # key of the point that an adjoint returns as the solution; the best point stays as a fallback


@dataclass(frozen=True)
class Iterate:
    """The state of a solve between steps: tensors (S, B, ...) by name."""

    rows: dict[str, Tensor]
    trace: tuple[Tensor, ...] = ()
    intact: bool = True  # every row has been usable and is running
    unrolled: bool = True  # every step is in the graph

    def __getitem__(self, name: str) -> Tensor:
        return self.rows[name]

    @property
    def shape(self) -> tuple[int, int]:
        return self["u"].shape[0], self["u"].shape[1]

    @cached_property
    def running(self) -> int:
        """The number of running rows, read once, since reading waits for a GPU."""
        return int((self["status"] == RUNNING).sum())

    def detach(self) -> "Iterate":
        return replace(self, rows={name: value.detach() for name, value in self.rows.items()})


class Progress(NamedTuple):
    """The progress of a solve after a step, for ``watch``."""

    step: int  # from 0
    objective: Float[Tensor, "S B"]  # nats, before the step
    reconstruction: Float[Tensor, "S B *X"] | None  # the best estimate so far, with a stopping rule
    average: Float[Tensor, "S B *X"] | None  # the current running average, with a stopping rule
    running: Bool[Tensor, "S B"]
    point: Float[Tensor, "S B *U"]  # where the objective was evaluated: a code, or the parameters of a ``Family``


Watch = Callable[[Progress], None]


@dataclass
class Solver:
    """Solves one problem by one step rule. Rows stop one by one by ``tol``, ``grad_tol`` or ``stop``, or after T steps.

    The solution is the best point if rows may stop or have restarts, or if the step rule searches (its last point may
    be only a trial); otherwise it is the last point u_T, which defines the T-step bound. The best point has the
    highest objective, or is the one that the stopping rule calls better.
    """

    problem: Problem
    step: Step
    max_steps: int
    tol: float | None = None
    grad_tol: float | None = None
    record: bool = False
    restarted: bool = False
    stop: Stopping | None = None
    watch: Watch | None = None
    _bound: dict[int, Problem] = field(default_factory=dict)

    @property
    def stopping(self) -> bool:
        return self.tol is not None or self.grad_tol is not None or self.stop is not None

    @property
    def keeps_best(self) -> bool:
        return self.stopping or self.step.returns_best or self.restarted

    def start(self, u: Float[Tensor, "S B *U"]) -> Iterate:
        """The iterate before the first step."""
        shape = u.shape[:2]
        count = torch.zeros(shape, dtype=torch.long, device=u.device)
        low = torch.full(shape, -torch.inf, dtype=u.dtype, device=u.device)
        rows = {"u": u, "best": u, "best_value": low, "value": low, "first": low, "grad_norm": -low}
        rows |= {"status": count + RUNNING, "steps": count, "calm": count}
        rows["evaluations"] = count + self.step.overhead(self.problem)
        return Iterate(rows | _prefixed(self.step.start(self.problem, u), PREFIX))

    def run(self, at: Iterate, begin: int, end: int, create_graph: bool) -> Iterate:
        """Steps begin ... end - 1, or fewer when every row has stopped."""
        for t in counted(range(begin, end), "steps of the ascent"):
            point = at["u"].detach()
            at = self.advance(at, t, create_graph)
            if self.watch is not None:
                reconstruction, average = (at.rows.get(JUDGED + name) for name in ("reconstruction", "average"))
                self.watch(Progress(t, at["value"], reconstruction, average, at["status"] == RUNNING, point))
            if self.finished(at):
                break
        return at

    def finished(self, at: Iterate) -> bool:
        """Whether every row has stopped."""
        return self.stopping and not at.running

    def state(self, at: Iterate) -> dict[str, Tensor]:
        """The step rule's state."""
        return _state_of(at.rows, PREFIX)

    def point(self, at: Iterate) -> Float[Tensor, "S B *U"]:
        """The solution."""
        if CORRECTED in at.rows:
            return at[CORRECTED]
        return at["best"] if self.keeps_best else self.step.final_point(at["u"], self.state(at))

    def rebind(self) -> "Solver":
        """The same solver with the problem bound again, under the current gradient mode."""
        return replace(self, problem=self.problem.rebind(), _bound={})

    def advance(self, at: Iterate, t: int, create_graph: bool) -> Iterate:
        """One evaluation and one step of every running row."""
        index = self._running(at)
        part = at.rows
        if index is not None:
            part = {name: v.flatten(0, 1).index_select(0, index).unsqueeze(0) for name, v in part.items()}
        problem = self.problem if index is None else self._problem(index, at.shape)
        problem = self.step.observed(problem, _state_of(part, PREFIX))
        evaluation = (
            problem.evaluate(part["u"], create_graph) if self.stop is None else problem.evaluate_with_output(part["u"])
        )
        intact = at.intact and not self.keeps_best and bool(evaluation.usable.all())
        with torch.set_grad_enabled(create_graph):
            after = (self._advance_unmasked if intact else self._advance_masked)(problem, part, evaluation, t)
        if index is not None:
            after = {
                name: at[name].flatten(0, 1).index_copy(0, index, new.squeeze(0)).view_as(at[name])
                for name, new in after.items()
            }
        trace = (*at.trace, self._recorded(at, evaluation, index)) if self.record else ()
        following = Iterate(after, trace, intact, at.unrolled and create_graph)
        return following if create_graph else following.detach()

    def _recorded(self, at: Iterate, evaluation: Evaluation, index: Tensor | None) -> Tensor:
        """The objective of every row, in the graph of the evaluation; rows that have stopped keep theirs."""
        value = torch.where(evaluation.usable, evaluation.value, -torch.inf)
        if index is None:
            return value
        return at["value"].flatten().index_copy(0, index, value.squeeze(0)).view_as(at["value"])

    def _advance_unmasked(
        self, problem: Problem, part: dict[str, Tensor], evaluation: Evaluation, t: int
    ) -> dict[str, Tensor]:
        """``_advance_masked`` with less work, if all rows run and their best points are only fallbacks."""
        u, plain = part["u"], evaluation.value.detach()
        moved, state = self.step(problem, u, evaluation.value, evaluation.grad, _state_of(part, PREFIX), t)
        after = part | {"u": moved, "value": plain, "grad_norm": evaluation.norm, "steps": part["steps"] + 1}
        after["evaluations"] = part["evaluations"] + self._cost
        if t == 0:
            return after | {"first": plain, "best_value": plain} | _prefixed(state, PREFIX)
        after["best"] = _chosen(plain > part["best_value"], u, part["best"])
        after["best_value"] = torch.maximum(plain, part["best_value"])
        return after | _prefixed(state, PREFIX)

    def _advance_masked(
        self, problem: Problem, part: dict[str, Tensor], evaluation: Evaluation, t: int
    ) -> dict[str, Tensor]:
        u, norm, usable = part["u"], evaluation.norm, evaluation.usable
        judged, better, done = self._stopping_decision(part, evaluation, t)
        value = torch.where(usable, evaluation.value, -torch.inf)
        plain, grad = value.detach(), _chosen(usable, evaluation.grad, evaluation.grad.new_zeros(()))
        after = part | judged
        after["best"] = _chosen(better, u, part["best"])
        after["grad_norm"] = torch.where(better if self.keeps_best else usable, norm, part["grad_norm"])
        after["value"] = plain
        after["first"] = plain if t == 0 else part["first"]
        after["evaluations"] = part["evaluations"] + self._cost
        moved, state = self.step(problem, u, value, grad, _state_of(part, PREFIX), t)
        still = self._is_still(part, plain, u, moved, grad) if self.tol is not None and t > 0 else None
        status, after["calm"] = self._update_status(part, evaluation, better, still, t)
        status = torch.where((status == RUNNING) & done, Status.converged, status)
        best = plain if self.stop is not None else torch.maximum(plain, part["best_value"])
        after["best_value"] = torch.where(better, best, part["best_value"])
        after["u"] = _chosen(status == RUNNING, moved, after["best"])
        after["steps"] = part["steps"] + (status == RUNNING)
        after["status"] = status
        return after | _prefixed(state, PREFIX)

    def _stopping_decision(
        self, part: dict[str, Tensor], evaluation: Evaluation, t: int
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The stopping rule's state, which rows are at their best point, and which are done."""
        if self.stop is None:
            better = self._improves(part, evaluation.value.detach(), evaluation.norm)
            return {}, evaluation.usable & better, torch.zeros_like(evaluation.usable)
        assert evaluation.reconstruction is not None
        before = _state_of(part, JUDGED) or self.stop.start(evaluation.reconstruction)
        state, better, done = self.stop(evaluation.reconstruction, before, t)
        if not bool(evaluation.usable.all()):
            state = choose_rows(evaluation.usable, state, before)
        return _prefixed(state, JUDGED), evaluation.usable & better, done

    @property
    def _cost(self) -> int:
        """Decoder evaluations per step."""
        return self.step.evaluations * self.problem.family.evaluations

    def _improves(self, part: dict[str, Tensor], value: Tensor, norm: Tensor) -> Tensor:
        """Whether a point is better than the best: a higher objective or, if the solve returns its best point, an equal
        one up to rounding with a smaller gradient."""
        if not self.keeps_best:  # as in ``_advance_unmasked``, so that a row does not depend on its batch
            return value > part["best_value"]
        level = (value >= part["best_value"] - rounding(value)) & (value >= part["first"]) & (norm <= part["grad_norm"])
        return (value > part["best_value"]) | level

    @torch.no_grad()
    def _is_still(self, part: dict[str, Tensor], value: Tensor, u: Tensor, moved: Tensor, grad: Tensor) -> Tensor:
        """Whether the objective has stopped rising.

        Changes below its rounding error show nothing, so the step's first-order gain ∇ · move, with far smaller
        rounding error, must be within ``tol`` too.
        """
        tol = cast(float, self.tol)
        gain = torch.linalg.vecdot((moved - u).flatten(2), grad.flatten(2)).abs()
        level = (value - part["best_value"]).abs() <= rounding(value).clamp_min(tol)
        return level & (gain <= tol) & value.isfinite()

    def _update_status(
        self, part: dict[str, Tensor], evaluation: Evaluation, better: Tensor, still: Tensor | None, t: int
    ) -> tuple[Tensor, Tensor]:
        status, calm = part["status"], part["calm"]
        broken = ~evaluation.usable if t == 0 or not self.step.is_trial else torch.zeros_like(evaluation.usable)
        status = torch.where((status == RUNNING) & broken, Status.nonfinite, status)
        if still is not None:
            calm = torch.where(still, calm + 1, 0)
            status = torch.where((status == RUNNING) & (calm >= PATIENCE), Status.converged, status)
        if self.grad_tol is not None:
            flat = (evaluation.norm <= self.grad_tol) & better
            status = torch.where((status == RUNNING) & flat, Status.converged, status)
        return status, calm

    def _running(self, at: Iterate) -> Int[Tensor, " n"] | None:
        if not self.stopping or at.running == at["status"].numel():
            return None
        return (at["status"] == RUNNING).flatten().nonzero().squeeze(1)

    def _problem(self, index: Tensor, shape: tuple[int, int]) -> Problem:
        """The problem of the running rows, cached by their number: rows never resume, so it identifies them."""
        if len(index) not in self._bound:
            self._bound = {len(index): self.problem.rows(index, shape)}
        return self._bound[len(index)]

    def summary(self, last: Iterate, reached: Float[Tensor, "S B"]) -> Solve:
        """The report of a solve, given the objective of its last point."""
        status = last["status"]
        if self.step.is_monotone and not self.step.is_trial:
            fell = reached < last["first"] - rounding(last["first"])
            status = torch.where((status == RUNNING) & fell, Status.diverged, status)
        status = torch.where(status == RUNNING, Status.max_steps, status)
        path = torch.stack(last.trace) if last.trace else None
        return Solve(
            *(status, last["steps"], last["evaluations"], last["grad_norm"]),
            trace=None if path is None else path.detach(),
            path=path if last.unrolled else None,
            reconstruction=last.rows.get(JUDGED + "reconstruction"),
            acceptance=self.step.acceptance(self.state(last)),
        )


def _chosen(rows: Tensor, points: Tensor, others: Tensor) -> Tensor:
    """One of two points per row, without a copy of large ones, such as a network's weights, if all rows agree."""
    if points.numel() > LARGE * rows.numel() and bool(rows.all()):
        return points
    return torch.where(expand_rows(rows, points), points, others)


def _state_of(rows: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in rows.items() if name.startswith(prefix)}


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}
