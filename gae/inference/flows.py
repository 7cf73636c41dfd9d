"""Normalizing flows as densities q(z|x), conditioned on the output of an encoder."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro.distributions import Independent, Normal, TransformedDistribution
from pyro.distributions.conditional import ConditionalTransform
from torch import Size, Tensor, nn
from torch.distributions import AffineTransform, Distribution, Transform, constraints


def noise_to_code(flow: nn.Module, context: Float[Tensor, "*B C"]) -> Transform:
    """The transform of a conditional flow, from noise (B, Z) to codes, given the context.

    Raises:
        TypeError: for a module that is neither a conditional transform of Pyro nor a flow of zuko.
    """
    if isinstance(flow, ConditionalTransform):
        return flow.condition(context)
    if all(isinstance(getattr(flow, part, None), nn.Module) for part in ("transform", "base")):  # a flow of zuko
        inverse: Transform = flow.get_submodule("transform")(context).inv
        return inverse
    raise TypeError(
        f"A flow is a conditional transform of Pyro, such as `conditional_affine_coupling(latent, context)`, or a "
        f"`zuko.flows.Flow`, such as `gae.nets.flows.maf(latent, context)`, got {type(flow).__name__}."
    )


def with_log_det(transform: Any, x: Float[Tensor, "*B Z"]) -> tuple[Tensor, Tensor]:
    """The image (*B, Z) of x under a transform, and the logarithm of the Jacobian's determinant, (*B)."""
    if hasattr(transform, "call_and_ladj"):  # zuko's name: both in one pass
        y, log_det = transform.call_and_ladj(x)
    else:
        y = transform(x)
        log_det = transform.log_abs_det_jacobian(x, y)
    return y, over_elements(transform, log_det)


def over_elements(transform: Transform, log_det: Tensor) -> Tensor:
    """The log determinant of vectors, from that of each element where a transform acts on each alone."""
    return log_det if transform.domain.event_dim else log_det.sum(-1)


class _Draw(NamedTuple):
    noise: Tensor
    code: Tensor
    log_det: Tensor
    in_graph: bool


class FlowTransform(Transform):
    """A flow from noise to codes, then an affine transform, which keeps the last draw: its density costs no inverse.

    Where gradients are recorded, a draw without a graph does not count, since they would be lost.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: Transform, affine: AffineTransform):
        super().__init__()
        self.flow, self.affine = flow, affine
        self._last: _Draw | None = None

    def _call(self, x: Tensor) -> Tensor:
        code, log_det = with_log_det(self.flow, x)
        y: Tensor = self.affine(code)
        log_det = log_det + self.affine.log_abs_det_jacobian(code, y)
        self._last = _Draw(x, y, log_det, torch.is_grad_enabled())
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        draw = self._drawn(y)
        x: Tensor = self.flow.inv(self.affine.inv(y)) if draw is None else draw.noise
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        draw = self._drawn(y)
        if draw is not None and draw.noise is x:
            return draw.log_det
        code = self.affine.inv(y)
        log_det = over_elements(self.flow, self.flow.log_abs_det_jacobian(x, code))
        return log_det + self.affine.log_abs_det_jacobian(code, y)

    def _drawn(self, y: Tensor) -> _Draw | None:
        draw = self._last
        known = draw is not None and draw.code is y and (draw.in_graph or not torch.is_grad_enabled())
        return draw if known else None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_last": None}


PARAMETERS = ("loc", "scale", "context")  # of a NormalizingFlow, for each observation


class NormalizingFlow(TransformedDistribution):
    """The density of z = loc + scale ε', where ε' is standard normal noise transformed by a conditional flow.

    The flow is shared by all observations, and loc, scale and context are parameters of each.

    Args:
        flow: a conditional transform of Pyro, or a flow of zuko, whose own base distribution is not used.
        loc: (B, Z).
        scale: (B, Z).
        context: (B, C).

    >>> from pyro.distributions.transforms import conditional_affine_coupling
    >>> flow = conditional_affine_coupling(2, context_dim=3)
    >>> q = NormalizingFlow(flow, torch.zeros(5, 2), torch.ones(5, 2), torch.zeros(5, 3))
    >>> q.rsample().shape, q.batch_shape
    (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        flow: nn.Module,
        loc: Float[Tensor, "*B Z"],
        scale: Float[Tensor, "*B Z"],
        context: Float[Tensor, "*B C"],
    ):
        self.flow, self.loc, self.scale, self.context = flow, loc, scale, context
        noise = Normal(torch.zeros_like(loc), torch.ones_like(scale), validate_args=False)
        transform = FlowTransform(noise_to_code(flow, context), AffineTransform(loc, scale, event_dim=1))
        super().__init__(Independent(noise, 1, validate_args=False), [transform], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "NormalizingFlow":
        new = self._get_checked_instance(NormalizingFlow, _instance)
        new.flow = self.flow
        for name in PARAMETERS:
            setattr(new, name, getattr(self, name).expand(*Size(batch_shape), -1))
        expanded: NormalizingFlow = super().expand(batch_shape, _instance=new)
        return expanded


def with_base(q: Distribution) -> Distribution:
    """A flow of zuko as the equivalent ``TransformedDistribution``; any other distribution as it is."""
    transform, base = getattr(q, "transform", None), getattr(q, "base", None)
    if isinstance(transform, Transform) and isinstance(base, Distribution):
        return TransformedDistribution(base, [transform.inv], validate_args=False)
    return q
