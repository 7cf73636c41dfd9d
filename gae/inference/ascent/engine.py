"""Gradient ascent on the code: the only inner loop of the library."""

import warnings
from dataclasses import replace
from weakref import WeakKeyDictionary, WeakSet

import torch
from jaxtyping import Int, Num
from torch import Tensor, nn

from gae.inference.ascent.family import Delta, Family
from gae.inference.ascent.gradients.implicit import Implicit
from gae.inference.ascent.gradients.unrolled import Adjoint, CheckpointedUnroll, Detach, Unroll
from gae.inference.ascent.problem import Problem, expand_rows, finite
from gae.inference.ascent.solver import Solver, Watch
from gae.inference.ascent.steps.first_order import GradientAscent, Step
from gae.inference.ascent.stopping import Stopping
from gae.inference.base import Code, Inference, Status
from gae.inference.decoder import (
    NONDETERMINISTIC_LAYERS,
    is_nondeterministic,
    is_piecewise_linear,
    need_fixed,
    need_gradient,
    transformed,
    twice_differentiable,
)
from gae.inference.starts import Zeros
from gae.likelihood import CodebookDistribution, DecoderLikelihood, Likelihood
from gae.likelihood.door import hidden

PIECEWISE_LINEAR = (
    *(nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.PReLU, nn.RReLU, nn.Threshold),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink),
)
NOTABLE = (*NONDETERMINISTIC_LAYERS, *PIECEWISE_LINEAR)
_LINEAR: WeakKeyDictionary[Likelihood, bool] = WeakKeyDictionary()  # whether its decoder is piecewise linear
_DIFFERENTIABLE: WeakSet[Likelihood] = WeakSet()  # those known to pass gradients to codes


class Ascent(Inference):
    """Gradient ascent on the code, ``max_steps`` steps from ``init``: the GAE / MAP bound l_m(z_0, t) of the GAE note.

    Each sample ascends its own objective: the loss is summed over S and B, so a code does not depend on its batch.

    Without tolerances the code is z_T, the point after exactly T steps. With a tolerance, each sample stops when it
    converges, is not decoded any more, and returns its best point. Step rules that search (``LBFGS``,
    ``GaussNewton``) always return the best point. A non-finite point is never returned if a finite one is known.

    Args:
        init: the engine for the initial code: ``Zeros()``, ``Prior()``, ``Constant(z)``, or any encoder (a warm start).
        step: the step rule.
        max_steps: T; 0 returns the start.
        tol: a sample has converged when, in 2 successive steps, its objective (nats) is within ``tol`` or rounding of
            its best, and the first-order gain of the next step is at most ``tol``.
        grad_tol: a sample has also converged when its gradient norm (nats per unit of u) is at most this.
        restarts: R starts from ``init``, which must be random; the best is kept, ``Solve.spread`` reports how much
            they differ.
        family: ``Delta()`` to optimise the code, ``MeanField()`` a density over codes.
        adjoint: how gradients flow back through the solve.
        trace: whether ``Solve.trace`` records the objective before each step.
        stop: early stopping from decoder outputs instead of tolerances, for an ascent that would overfit; needs
            ``Detach()``.
        watch: called after every step with a ``Progress``; for progress bars and previews.

    Raises:
        TypeError: for incompatible arguments.
        ValueError: for a decoder that is random or couples the samples of a batch, as Dropout and BatchNorm in training
            mode. Its layers are checked, and a few codes are decoded twice (not counted in ``Solve.evaluations``).
        RuntimeError: under ``torch.inference_mode()``, which disables gradients.

    Supports the transforms of ``torch.func`` (``grad``, ``jacrev``, ``vjp``, ``jvp``, ``functional_call``) except
    ``vmap``. ``CheckpointedUnroll``, ``Implicit`` and ``stop`` raise TypeError under any of them.

    >>> from gae.likelihood import LinearMixture
    >>> from gae.inference import ClosedForm
    >>> model, x = LinearMixture(1, 2, (5,), scale=1.0), torch.randn(3, 5)
    >>> z = Ascent(step=GradientAscent(0.4), max_steps=50)(model, x).z
    >>> bool((z - ClosedForm()(model, x).z).abs().max() < 1e-5)  # the MAP code is the posterior mean
    True
    """

    def __init__(
        self,
        init: Inference | None = None,
        step: Step | None = None,
        max_steps: int = 20,
        tol: float | None = None,
        grad_tol: float | None = None,
        restarts: int = 1,
        family: Family | None = None,
        adjoint: Adjoint | None = None,
        trace: bool = False,
        stop: Stopping | None = None,
        watch: Watch | None = None,
    ):
        super().__init__()
        if max_steps < 0 or restarts < 1:
            raise ValueError(f"Need max_steps >= 0 and restarts >= 1, got {max_steps} and {restarts}.")
        if any(value is not None and not value > 0 for value in (tol, grad_tol)):
            raise ValueError(f"Tolerances must be positive or None, got tol={tol}, grad_tol={grad_tol}.")
        self.init = init or Zeros()
        self.step = step or GradientAscent(0.1)
        self.max_steps, self.tol, self.grad_tol, self.restarts = max_steps, tol, grad_tol, restarts
        self.family = family or Delta()
        self.adjoint = adjoint or Unroll()
        self.trace, self.stop, self.watch = trace, stop, watch
        self._refuse_family()
        if stop is not None:
            self._need_deterministic(f"`stop={type(stop).__name__}()`")
        self._warned = False

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "`Ascent` needs gradients, which `torch.inference_mode()` disables. Use `torch.no_grad()`."
            )
        if transformed():
            self._refuse_transforms(likelihood, x)
        self._refuse_or_warn(likelihood)
        self._refuse_likelihood(likelihood)
        with twice_differentiable(likelihood):
            return self._solve(likelihood, x, k)

    def _solve(self, likelihood: Likelihood, x: Tensor, k: Tensor | None) -> Code:
        starts = [self.init.infer(likelihood, x, k) for _ in range(self.restarts)]
        self._need_decoder(likelihood, x, starts[0].z)
        k = starts[0].k if k is None else k
        u = self.step.project_start(torch.cat([self.family.start(start) for start in starts]))
        if self.restarts > 1:
            self._require_different_starts(u)
        repeated = k if k is None or self.restarts == 1 else k.repeat(self.restarts, 1)
        problem = Problem(likelihood, self.family, x, repeated, self.family.noise(u))
        solver = Solver(
            *(problem, self.step, self.max_steps, self.tol, self.grad_tol, self.trace, self.restarts > 1),
            *(self.stop, self.watch),
        )
        last = self.adjoint(solver, solver.start(u))
        points = solver.point(last), last["best"]
        if self.restarts == 1:
            known = self._known(solver, last["best_value"])
            code, score, failed = self._score(problem, k, *points, known, last["best_value"], last["status"])
            reached = last["value"] if solver.keeps_best or code.log_q is not None else score.detach()
            solve = solver.summary(last, reached)
        else:
            runs = last["best_value"].unflatten(0, (self.restarts, -1))
            best = runs.argmax(0)
            known = self._known(solver, runs.amax(0))
            u, fallback, status = (_pick(values, best) for values in (*points, last["status"]))
            code, score, failed = self._score(problem, k, u, fallback, known, runs.amax(0), status)
            solve = solver.summary(last, last["value"]).choose(best, runs)
        evaluations = sum((start.solve.evaluations for start in starts if start.solve is not None), solve.evaluations)
        status = torch.where(failed, Status.nonfinite, solve.status)
        solve = replace(solve, status=status, evaluations=evaluations)
        return replace(code, k=None if k is None else k.expand(score.shape), solve=solve, log_joint=score)

    def _known(self, solver: Solver, best: Tensor) -> Tensor | None:
        """The objective of the best points, if it is their log joint and needs no graph."""
        is_log_joint = solver.keeps_best and isinstance(self.family, Delta) and not torch.is_grad_enabled()
        return best if is_log_joint and bool(torch.isfinite(best).all()) else None

    def _score(
        self,
        problem: Problem,
        k: Tensor | None,
        u: Tensor,
        fallback: Tensor,
        known: Tensor | None,
        best: Tensor,
        status: Tensor,
    ) -> tuple[Code, Tensor, Tensor]:
        """The code of u, its log joint, and the rows that failed, which fall back to their best finite points.

        Fallback points are constants. Without one, the log joint is a constant too, or 0 · NaN would reach every
        parameter.
        """
        draw = self.family.draw(u)
        code = self.family.code(problem.likelihood, u, draw)
        score = problem.log_joint(code.z, k) if known is None else known
        failed = (status == Status.nonfinite) | ~_finite(code, score)
        if bool(failed.any()):
            u = torch.where(expand_rows(failed, u), fallback.detach(), u)
            code = self.family.code(problem.likelihood, u, draw)
            score = problem.log_joint(code.z, k)
            kept = _finite(code, score) & (~failed | torch.isfinite(best))
            if score.requires_grad and not bool(kept.all()):
                scorer = Problem(problem.likelihood, self.family, problem.x, k, None)
                (score,) = scorer.only(kept, (score.detach(),), (code.z,), lambda p, z: (p.log_joint(z, p.k),))
        return code, score, failed

    def _require_different_starts(self, u: Tensor) -> None:
        runs = u.detach().unflatten(0, (self.restarts, -1))
        if self.max_steps and bool((runs == runs[:1]).all()):
            raise ValueError(
                f"{self.restarts} restarts from `{type(self.init).__name__}` would all be the same. "
                "Start from `Prior()` or another random engine."
            )

    def _refuse_likelihood(self, likelihood: Likelihood) -> None:
        """Raises TypeError for a likelihood that the step, the adjoint or the stopping rule does not support."""
        self._refuse_family()
        if isinstance(likelihood.prior, CodebookDistribution):
            raise TypeError(
                f"`Ascent` follows gradients, but a code of this {type(likelihood).__name__} consists of vectors of a "
                "codebook. Use `VectorQuantizer`, `IteratedConditionalModes`, or `Argmax()` for at most 4096 codes."
            )
        if isinstance(likelihood, DecoderLikelihood) and likelihood.stochastic:
            self._need_deterministic(f"{type(likelihood).__name__} with noise drawn at each step")
        if self.stop is not None and (not isinstance(likelihood, DecoderLikelihood) or likelihood.components > 1):
            raise TypeError(
                f"`{type(self.stop).__name__}` needs a single decoder output, which {type(likelihood).__name__} does "
                "not have. Use `tol` or `grad_tol`."
            )

    def _refuse_family(self) -> None:
        if self.step.codes_only and not isinstance(self.family, Delta):
            raise TypeError(
                f"`{type(self.step).__name__}` moves codes, got `{type(self.family).__name__}`, which ascends the "
                "parameters of a density over codes. Use `Delta()`, or a step without projection such as `Adam`."
            )
        compares = self.tol is not None or self.grad_tol is not None or self.restarts > 1
        if self.step.draws_noise and not isinstance(self.family, Delta) and compares:
            raise TypeError(
                f"`{type(self.step).__name__}` draws new noise at each step, so `tol`, `grad_tol` and `restarts` would "
                f"compare objectives of `{type(self.family).__name__}` under different draws. Leave them out, or use "
                "`Delta()`."
            )

    def _need_deterministic(self, subject: str) -> None:
        """Raises TypeError for options that need a deterministic objective."""
        if self.step.is_trial or self.step.returns_best:
            conflict = (
                f"`{type(self.step).__name__}`, which compares objectives: use `Adam`, `Momentum` or `GradientAscent`"
            )
        elif not isinstance(self.adjoint, Detach):
            conflict = f"`{type(self.adjoint).__name__}`: use `adjoint=Detach()`"
        elif self.tol is not None or self.grad_tol is not None or self.restarts > 1:
            conflict = "`tol`, `grad_tol` or `restarts`, which depend on the objective: leave them out"
        elif not isinstance(self.family, Delta):
            conflict = f"`{type(self.family).__name__}`: use `Delta()`"
        else:
            return
        raise TypeError(f"Cannot use {subject} with {conflict}.")

    def _refuse_transforms(self, likelihood: Likelihood, x: Tensor) -> None:
        """Raises TypeError under ``torch.vmap``, and for adjoints that no transform of ``torch.func`` supports."""
        if hidden(x) or any(hidden(parameter) for parameter in likelihood.parameters()):
            raise TypeError(
                "An ascent cannot be mapped by `torch.vmap`, which hides the values that its control flow depends on. "
                "Its rows are separate problems already: pass the whole batch, and loop over models. For per-sample "
                "gradients, use `torch.func.jacrev` of the samples' objectives."
            )
        if isinstance(self.adjoint, (CheckpointedUnroll, Implicit)) or self.stop is not None:
            part = type(self.stop or self.adjoint).__name__
            raise TypeError(
                f"Cannot use `{part}` inside a transform of `torch.func`. Use `Unroll()`, `Truncate(n)`, `OneStep()` "
                f"or `Detach()` without `stop`, or `torch.autograd.grad` instead of the transform."
            )

    def _refuse_or_warn(self, likelihood: Likelihood) -> None:
        for name, module in likelihood.named_modules():
            if not isinstance(module, NOTABLE):
                continue
            if is_nondeterministic(module):
                raise ValueError(
                    f"An ascent through {type(module).__name__} ({name!r}) has no fixed objective per sample: it "
                    "changes with the batch or from step to step. Use GroupNorm or InstanceNorm, or `.eval()`."
                )
            if isinstance(module, PIECEWISE_LINEAR) and self._unrolls:
                self._warn_once(f"{type(module).__name__} ({name!r})")

    def _need_decoder(self, likelihood: Likelihood, x: Tensor, z: Tensor) -> None:
        """Checks the decoder at a few codes near the start, since its modules do not reveal the functions they call."""
        if not self.max_steps:
            return
        need_fixed(likelihood, x, z)
        if likelihood not in _DIFFERENTIABLE and not transformed():
            need_gradient(likelihood, z)
            _DIFFERENTIABLE.add(likelihood)
        if self._unrolls and not self._warned and not transformed():
            if likelihood not in _LINEAR:
                _LINEAR[likelihood] = is_piecewise_linear(likelihood, z)
            if _LINEAR[likelihood]:
                self._warn_once(f"The decoder of {type(likelihood).__name__}")

    @property
    def _unrolls(self) -> bool:
        return isinstance(self.adjoint, (Unroll, CheckpointedUnroll)) and torch.is_grad_enabled()

    def _warn_once(self, subject: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{subject} is piecewise linear: its second derivative is zero, so an unrolled ascent has no "
                "second-order terms from it. Use a smooth activation (SiLU, ELU, softplus, tanh), or `Detach()`.",
                stacklevel=5,
            )


def _finite(code: Code, score: Tensor) -> Tensor:
    """Whether code and log densities are finite; in a graph, also their square, as in ``Evaluation``."""
    total = score.detach() if code.log_q is None else score.detach() + code.log_q.detach()
    return finite(code.z, total.square() if score.requires_grad else total)


def _pick(values: Tensor, best: Tensor) -> Tensor:
    """Selects run best[s, b] of the R runs in values (R · S, B, ...)."""
    samples, batch = best.shape
    row = best * samples + torch.arange(samples, device=best.device).unsqueeze(1)
    return values[row, torch.arange(batch, device=best.device)]
