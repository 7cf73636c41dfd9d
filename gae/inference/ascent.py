"""Gradient ascent on the code: the only inner loop of the library."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int, Num
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gae.inference.backprop import Backprop, Unroll
from gae.inference.base import Code, Inference, Solve, Status
from gae.inference.family import Delta, Family, Objective
from gae.inference.starts import Zeros
from gae.inference.steps import GradientAscent, State, Step
from gae.likelihood import Likelihood


@dataclass(frozen=True)
class _Iterate:
    u: Tensor
    state: State
    grad_norm: Tensor
    trace: tuple[Tensor, ...] = ()

    def detach(self) -> "_Iterate":
        return replace(self, u=self.u.detach(), state={name: value.detach() for name, value in self.state.items()})


class Ascent(Inference):
    """Finds codes by ``max_steps`` ascent steps from ``init``: the GAE / MAP bound l_m(z_0, t) of the GAE note.

    Each sample ascends its own objective: the loss is summed over S and B, so a code does not depend on its batch.

    Args:
        init: the engine that gives the start: ``Zeros()``, ``Prior()``, ``Fixed(z)``, or any encoder (a warm start).
        step: the step rule.
        max_steps: T; 0 returns the start.
        family: what is ascended: ``Delta()`` the code, ``MeanField()`` a density over codes.
        backprop: how gradients flow back through the solve.
        trace: whether ``Solve.trace`` records the objective before each step.

    Raises:
        ValueError: for a decoder whose layers make the objective random or couple samples (Dropout, BatchNorm in
            training mode).
        RuntimeError: under ``torch.inference_mode()``, which rules out gradients.

    >>> from gae.likelihood import LinearMixture
    >>> from gae.inference import ClosedForm
    >>> model, x = LinearMixture(1, 2, (5,), scale=1.0), torch.randn(3, 5)
    >>> found = Ascent(step=GradientAscent(0.4), max_steps=50)(model, x).z
    >>> bool((found - ClosedForm()(model, x).z).abs().max() < 1e-5)  # the MAP code is the posterior mean
    True
    """

    def __init__(
        self,
        init: Inference | None = None,
        step: Step | None = None,
        max_steps: int = 20,
        family: Family | None = None,
        backprop: Backprop | None = None,
        trace: bool = False,
    ):
        super().__init__()
        if max_steps < 0:
            raise ValueError(f"max_steps must be at least 0, got {max_steps}.")
        self.init = init or Zeros()
        self.step = step or GradientAscent(0.1)
        self.max_steps = max_steps
        self.family = family or Delta()
        self.backprop = backprop or Unroll()
        self.trace = trace

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "`Ascent` needs gradients, which `torch.inference_mode()` rules out. Use `torch.no_grad()`."
            )
        _refuse_coupling(likelihood)
        first = self.init.infer(likelihood, x, k)
        k = first.k if k is None else k
        log_joint = likelihood.given(x)
        u = self.family.start(likelihood, first)
        objective = self.family.objective(likelihood, u, lambda z: log_joint(z, k))
        start = _Iterate(u, self.step.start(u), u.new_full(u.shape[:2], torch.nan))
        last = self.backprop(lambda at, t, keep: self._advance(objective, at, t, keep), start, self.max_steps)
        code = self.family.code(likelihood, last.u)
        k = None if k is None else k.expand(u.shape[:2])
        return replace(code, k=k, solve=self._account(last, first))

    def _advance(self, objective: Objective, at: _Iterate, t: int, create_graph: bool) -> _Iterate:
        with torch.enable_grad():
            u = at.u if at.u.requires_grad else at.u.detach().requires_grad_()
            value = objective(u)
            (grad,) = torch.autograd.grad(value.sum(), u, create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            after, state = self.step(u, grad, at.state, t)
        norm = torch.linalg.vector_norm(grad.detach().flatten(2), dim=2)
        trace = (*at.trace, value.detach()) if self.trace else ()
        following = _Iterate(after, state, norm, trace)
        return following if create_graph else following.detach()

    def _account(self, last: _Iterate, first: Code) -> Solve:
        shape = last.u.shape[:2]
        counts = torch.zeros(shape, dtype=torch.long, device=last.u.device)
        before = counts if first.solve is None else first.solve.evaluations
        finite = torch.isfinite(last.u.detach().flatten(2)).all(2)
        return Solve(
            status=counts + torch.where(finite, Status.max_steps, Status.nonfinite),
            steps=counts + self.max_steps,
            evaluations=before + counts + self.max_steps * self.family.evaluations,
            grad_norm=last.grad_norm,
            trace=torch.stack(last.trace) if last.trace else None,
        )


def _refuse_coupling(likelihood: Likelihood) -> None:
    for name, module in likelihood.named_modules():
        if module.training and isinstance(module, (_BatchNorm, _DropoutNd)):
            raise ValueError(
                f"An ascent through {type(module).__name__} ({name!r}) has no fixed objective per sample: it changes "
                "with the batch or from step to step. Use GroupNorm or InstanceNorm, or freeze it with `.eval()`."
            )
