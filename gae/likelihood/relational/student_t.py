"""Log likelihood of pairs of points under a Student-t kernel, and its gradient, in chunks of rows."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gae.likelihood.relational.neighbours import chunks

BLOCK = 2**16  # pairs per chunk, of which a dozen matrices stay in a processor's cache


def pair_log_likelihood(
    p: Float[Tensor, "*L N N"], z: Float[Tensor, "*L N E"], degrees: Float[Tensor, ""], attraction: float = 1.0
) -> Float[Tensor, "*L"]:
    """Log likelihood of pair probabilities p under Student-t kernels of points z, (*L), in nats.

    It is attraction · Σ_ij p_ij log w_ij - log Σ_ij w_ij over i ≠ j, w_ij = (1 + ‖z_i - z_j‖² / ν)^(-(ν + 1) / 2). With
    attraction 1, and p that sums to 1, this equals Σ_ij p_ij log q_ij, q_ij = w_ij / Σ w. Besides p, forward and
    backward pass need memory of order N, not N². The forward pass computes the gradient in z too, from the same kernel.
    A second derivative builds a graph of N² elements.

    Args:
        p: symmetric, with zeros on its diagonal.
        z: the points.
        degrees: ν, the degrees of freedom.
        attraction: factor of the first term.
    """
    return _Pairs.apply(p, z, degrees, attraction)[0]


class _Pairs(torch.autograd.Function):
    @staticmethod
    def forward(p: Tensor, z: Tensor, degrees: Tensor, attraction: float) -> tuple[Tensor, Tensor]:
        return _value_and_gradient(p, z, degrees, attraction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.attraction = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        p, z, degrees, known = ctx.saved_tensors
        expand_rows = grad[..., None, None]
        grad_p = grad_z = grad_degrees = None
        if ctx.needs_input_grad[0]:
            logs = [_stretch(z, degrees, part, 0.0).log1p() for part in _parts(z)]
            grad_p = -0.5 * (degrees + 1) * ctx.attraction * expand_rows * torch.cat(logs, -2)
        if ctx.needs_input_grad[1]:
            again = torch.is_grad_enabled()  # a second derivative needs its graph
            grad_z = expand_rows * (_value_and_gradient(p, z, degrees, ctx.attraction)[1] if again else known)
        if ctx.needs_input_grad[2]:
            grad_degrees = (grad * _degrees_gradient(p, z, degrees, ctx.attraction)).sum()
        return grad_p, grad_z, grad_degrees, None


def _value_and_gradient(p: Tensor, z: Tensor, degrees: Tensor, attraction: float) -> tuple[Tensor, Tensor]:
    """The log likelihood, and its gradient in z, (*L, N, E).

    The gradient is -2 (1 + 1/ν) Σ_j (attraction p_ij - q_ij) (z_i - z_j) / (1 + ‖z_i - z_j‖² / ν).
    """
    extended = torch.cat([z, torch.ones_like(z[..., :1])], -1)
    pulls, pushes, masses, heights = [], [], [], []
    for part in _parts(z):
        stretch, shrink, w = _kernel(z, degrees, part)
        heights.append((p[..., part, :] * stretch.log()).sum((-2, -1)))
        masses.append(w.sum((-2, -1)))
        pulls.append((p[..., part, :] * shrink) @ extended)
        pushes.append((w * shrink) @ extended)
    mass = torch.stack(masses).sum(0)
    total = attraction * torch.cat(pulls, -2) - torch.cat(pushes, -2) / mass[..., None, None]
    grad = -2 * (1 + 1 / degrees) * (z * total[..., -1:] - total[..., :-1])
    return -0.5 * (degrees + 1) * attraction * torch.stack(heights).sum(0) - mass.log(), grad


def _degrees_gradient(p: Tensor, z: Tensor, degrees: Tensor, attraction: float) -> Tensor:
    """Gradient in ν, Σ_ij (attraction p_ij - q_ij) ∂ log w_ij / ∂ν, (*L)."""
    pulls, pushes, masses = [], [], []
    for part in _parts(z):
        stretch, shrink, w = _kernel(z, degrees, part)
        slope = -0.5 * stretch.log() + 0.5 * (1 + 1 / degrees) * (1 - shrink)
        masses.append(w.sum((-2, -1)))
        pulls.append((p[..., part, :] * slope).sum((-2, -1)))
        pushes.append((w * slope).sum((-2, -1)))
    pull, push, mass = (torch.stack(values).sum(0) for values in (pulls, pushes, masses))
    return attraction * pull - push / mass


def _parts(z: Tensor) -> list[slice]:
    return chunks(z.shape[-2], z[..., 0].numel(), BLOCK)


def _stretch(z: Tensor, degrees: Tensor, part: slice, least: float = 1.0) -> Tensor:
    """``least`` + ‖z_i - z_j‖² / ν, (*L, n, N), for the rows i of a slice, without cancellation."""
    total = z.new_tensor(least)
    for column in (z / degrees.sqrt()).unbind(-1):
        offset = column[..., part, None] - column[..., None, :]
        total = torch.addcmul(total, offset, offset)
    return total


def _kernel(z: Tensor, degrees: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """s = 1 + ‖z_i - z_j‖² / ν, 1 / s, and w_ij, which is 0 for i = j; (*L, n, N) for the rows i of a slice."""
    stretch = _stretch(z, degrees, part)
    shrink = stretch.reciprocal()
    w = shrink if bool(degrees == 1) and not degrees.requires_grad else shrink ** (0.5 * (degrees + 1))
    own = w.new_zeros(()).expand(w.diagonal(part.start, -2, -1).shape)
    return stretch, shrink, torch.diagonal_scatter(w, own, part.start, -2, -1)
