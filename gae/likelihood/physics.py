"""Measurement operators of other libraries, with ``A`` and ``A_adjoint`` on batches of images."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Size, Tensor

from gae.likelihood.operators import LinearOperator

TOLERANCE = 1e-3  # of the adjoint, relative; some are computed by FFT in float32


class PhysicsOperator(LinearOperator):
    """Linear operator on images (*L, C, H, W) from an object with ``A(x)`` and ``A_adjoint(y)``, as deepinv's physics.

    Both take batches (B, C, H, W). The noise model of a physics is not used.

    Raises:
        TypeError: if the object has no ``A`` or no ``A_adjoint``.

    >>> class Half:
    ...     def A(self, x): return x / 2
    ...     def A_adjoint(self, y): return y / 2
    >>> PhysicsOperator(Half())(torch.ones(2, 5, 1, 3, 3)).shape
    torch.Size([2, 5, 1, 3, 3])
    """

    def __init__(self, physics: Any):
        super().__init__()
        missing = [name for name in ("A", "A_adjoint") if not callable(getattr(physics, name, None))]
        if missing:
            raise TypeError(
                f"{type(physics).__name__} has no {' and no '.join(missing)}. Give a linear physics of deepinv, or an "
                "object with A(x) and A_adjoint(y)."
            )
        self.physics = physics

    def forward(self, x: Float[Tensor, "*L C H W"]) -> Float[Tensor, "..."]:
        return _batched(self.physics.A, x)

    def adjoint(self, y: Float[Tensor, "*L c h w"]) -> Float[Tensor, "..."]:
        return _batched(self.physics.A_adjoint, y)


def _batched(function: Any, images: Tensor) -> Tensor:
    lead = images.shape[:-3]
    result = function(images.reshape(-1, *images.shape[-3:]))
    if not isinstance(result, Tensor):
        raise TypeError(f"An operator must return one tensor, got {type(result).__name__}.")
    return result.reshape(*lead, *result.shape[1:])


def check_operator(operator: LinearOperator, like: Float[Tensor, "C h w"]) -> Size:
    """Shape (C, H, W) of the images that an operator measures, from measurements like these.

    The adjoint must be that of the operator's derivative at a random image, which automatic differentiation gives.

    Raises:
        TypeError: if gradients do not flow through the operator.
        ValueError: if the shapes do not fit, or the operator is not linear with this adjoint.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(shape: Size) -> Tensor:
        return torch.rand(shape, generator=generator).to(like)

    name = type(getattr(operator, "physics", operator)).__name__
    y = noise(like.shape)
    back = operator.adjoint(y).detach()
    if back.dim() != 3 or len(back) != len(like) or operator(noise(back.shape)).shape != like.shape:
        raise ValueError(
            f"{name} does not map images of the size of its adjoint, {tuple(back.shape)}, to the photograph's "
            f"{tuple(like.shape)}, with the same channels (channels, height, width). Build it for this photograph."
        )
    with torch.enable_grad():
        x = noise(back.shape).requires_grad_()
        output = operator(x)
    if not output.requires_grad:
        raise TypeError(f"Gradients do not flow through {name}. Write its A in differentiable operations of torch.")
    (expected,) = torch.autograd.grad(output, x, y)
    if not (back - expected).norm() <= TOLERANCE * expected.norm():
        raise ValueError(
            f"{name} is not linear, is random, or its adjoint is not that of A: ⟨A x, y⟩ and ⟨x, Aᵀ y⟩ differ."
        )
    return back.shape
