"""Normalizing flows as densities q(z|x), conditioned on the output of an encoder."""

from typing import Any

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
        return _Kept(flow.get_submodule("transform")(context).inv)
    raise TypeError(
        f"A flow is a conditional transform of Pyro, such as `conditional_affine_coupling(latent, context)`, or a "
        f"`zuko.flows.Flow`, such as `gae.nets.flows.maf(latent, context)`, got {type(flow).__name__}."
    )


class _Kept(Transform):
    """A transform of zuko that keeps its last code and Jacobian, so that the density of a draw needs no inverse.

    Pyro's transforms do so themselves.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, transform: Any):
        super().__init__(cache_size=1)
        self._transform = transform
        self._log_det: Tensor | None = None  # of the cached pair

    def _call(self, x: Tensor) -> Tensor:
        y: Tensor
        y, self._log_det = self._transform.call_and_ladj(x)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        self._log_det = None
        x: Tensor = self._transform.inv(y)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        known: tuple[Any, Any] = self._cached_x_y
        if self._log_det is not None and x is known[0] and y is known[1]:
            return self._log_det
        log_det: Tensor = self._transform.log_abs_det_jacobian(x, y)
        return log_det

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_cached_x_y": (None, None), "_log_det": None}


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
        affine = AffineTransform(loc, scale, event_dim=1, cache_size=1)
        base = Independent(noise, 1, validate_args=False)
        super().__init__(base, [noise_to_code(flow, context), affine], validate_args=False)

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
