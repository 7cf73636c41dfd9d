"""The best normalizing flow of each observation, which defines the amortisation gap of a flow encoder."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Num
from pyro.distributions import Independent, Normal, TransformedDistribution
from torch import Tensor, nn
from torch.distributions import AffineTransform, Transform, constraints
from torch.func import functional_call, vmap

from gae.data.progress import counted
from gae.inference.flows import FlowTransform, NormalizingFlow, noise_to_code, with_log_det
from gae.likelihood import Likelihood
from gae.likelihood.door import checked

RATE = 1e-2  # first step size of Adam, which falls to 0
DRAWS = 32  # per observation and step


@checked
def best_flow(
    likelihood: Likelihood,
    x: Num[Tensor, "B *X"],
    q: NormalizingFlow,
    samples: int = DRAWS,
    steps: int = 400,
    rate: float = RATE,
) -> TransformedDistribution:
    """The flow of each observation that maximises its ELBO, separately from all others.

    Every observation has its own copy of all that the encoder shares or predicts: the weights of the flow, location,
    scale and context. They start from the encoder's, and ascend by Adam on fresh draws, since so flexible a density
    would fit draws that are fixed. The step size falls to 0 along a cosine.

    Args:
        likelihood: the decoder and its prior.
        x: (B, *X).
        q: the encoder's density, of batch (B,).
        samples: draws per observation and step.
        steps: number of steps.
        rate: the first step size.

    Raises:
        TypeError: for a flow that cannot be copied, as ``need_copies``.
    """
    need_copies(q)
    leaves = {"loc": q.loc, "log_scale": q.scale.log(), "context": q.context}
    leaves = {name: value.detach().clone().requires_grad_() for name, value in leaves.items()}
    state = {name: value.requires_grad_() for name, value in _copied(q.flow, len(x)).items()}
    every = [*leaves.values(), *state.values()]
    log_joint = likelihood.bind(x)
    optimizer = torch.optim.Adam(every, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)))
    with torch.enable_grad():
        for _ in counted(range(steps), "steps of the flow"):
            flow = _Copies(q.flow, state, leaves["context"])
            noise = torch.randn(samples, *q.loc.shape, dtype=q.loc.dtype, device=q.loc.device)
            code, log_det = flow.call_and_ladj(noise)
            log_q = -log_det - leaves["log_scale"].sum(1)  # up to the log density of the noise
            value = log_joint(leaves["loc"] + leaves["log_scale"].exp() * code) - log_q
            for leaf, gradient in zip(every, torch.autograd.grad(-value.mean(0).sum(), every), strict=True):
                leaf.grad = gradient
            optimizer.step()
            schedule.step()
    leaves, state = ({name: value.detach() for name, value in group.items()} for group in (leaves, state))
    affine = AffineTransform(leaves["loc"], leaves["log_scale"].exp(), event_dim=1)
    standard = Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc), validate_args=False)
    transform = FlowTransform(_Copies(q.flow, state, leaves["context"]), affine)
    return TransformedDistribution(Independent(standard, 1, validate_args=False), [transform], validate_args=False)


@torch.no_grad()
def need_copies(q: NormalizingFlow) -> None:
    """Raises TypeError for a flow that does not compute the same with a copy of its weights for each observation.

    Copies are computed at once by ``torch.func.vmap``, which some transforms of Pyro do not allow. They are compared in
    double precision, since a flow may amplify rounding.
    """
    flow, context = copy.deepcopy(q.flow).cpu().double(), q.context.cpu().double()
    noise = torch.linspace(-1, 1, q.loc.numel()).to(context).view(1, *q.loc.shape)
    try:
        copies = _Copies(flow, _copied(flow, len(context)), context).call_and_ladj(noise)
        for one, other in zip(copies, with_log_det(noise_to_code(flow, context), noise), strict=True):
            torch.testing.assert_close(one, other)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise TypeError(
            f"The best flow of each observation needs a copy of {type(q.flow).__name__} for each, which it does not "
            f"support ({str(error).splitlines()[0]}). Use `gae.nets.flows.iaf`, `maf` or `nsf`, or affine transforms "
            "of Pyro such as `conditional_affine_coupling`."
        ) from error


def _copied(flow: nn.Module, copies: int) -> dict[str, Tensor]:
    """The parameters of a flow, (copies, ...) by name."""
    return {name: value.detach().expand(copies, *value.shape).clone() for name, value in flow.named_parameters()}


class _Copies(Transform):
    """One copy of a conditional flow for each observation, from noise (*S, B, Z) to codes.

    Args:
        flow: the flow, whose own parameters are not used.
        state: those of each copy, (B, ...) by name.
        context: (B, C).
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: nn.Module, state: Mapping[str, Tensor], context: Float[Tensor, "B C"]):
        super().__init__()
        self._conditioned = _Conditioned(flow)
        self._state = {f"flow.{name}": value for name, value in state.items()}
        self._context = context

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The codes (*S, B, Z) of noise, and the logarithm of the Jacobian's determinant, (*S, B)."""
        return self._mapped(with_log_det, (-2, -1), x)

    def _call(self, x: Tensor) -> Tensor:
        return self._mapped(lambda step, x: step(x), -2, x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._mapped(lambda step, y: step.inv(y), -2, y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._mapped(lambda step, x, y: step.log_abs_det_jacobian(x, y), -1, x, y)

    def _mapped(self, function: Callable[..., Any], out: Any, *values: Tensor) -> Any:
        def of_one(state: dict[str, Tensor], context: Tensor, *values: Tensor) -> Any:
            return functional_call(self._conditioned, state, (function, context, *values))

        return vmap(of_one, (0, 0, *[-2] * len(values)), out)(self._state, self._context, *values)


class _Conditioned(nn.Module):
    """A function of a flow's transform, as a module, whose parameters can be replaced."""

    def __init__(self, flow: nn.Module):
        super().__init__()
        self.flow = flow

    def forward(self, function: Callable[..., Any], context: Tensor, *values: Tensor) -> Any:
        return function(noise_to_code(self.flow, context), *values)
