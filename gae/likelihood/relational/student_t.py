"""Log likelihood of pairs of points under a Student-t kernel, and its gradient, in chunks of rows."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gae.likelihood.relational.neighbours import chunks


def pair_log_likelihood(
    p: Float[Tensor, "*L N N"], z: Float[Tensor, "*L N E"], degrees: Float[Tensor, ""], attraction: float = 1.0
) -> Float[Tensor, "*L"]:
    """Log likelihood of pair probabilities p under Student-t kernels of points z, (*L), in nats.

    It is attraction · Σ_ij p_ij log w_ij - log Σ_ij w_ij over i ≠ j, w_ij = (1 + ‖z_i - z_j‖² / ν)^(-(ν + 1) / 2). With
    attraction 1, and p that sums to 1, this equals Σ_ij p_ij log q_ij, q_ij = w_ij / Σ w. Besides p, forward and
    backward pass need memory of order N, not N². A second derivative builds a graph of N² elements.

    Args:
        p: symmetric, with zeros on its diagonal.
        z: the points.
        degrees: ν, the degrees of freedom.
        attraction: factor of the first term.
    """
    return _Pairs.apply(p, z, degrees, attraction)


class _Pairs(torch.autograd.Function):
    @staticmethod
    def forward(p: Tensor, z: Tensor, degrees: Tensor, attraction: float) -> Tensor:
        pull, mass = z.new_zeros(z.shape[:-2]), z.new_zeros(z.shape[:-2])
        for part in _parts(z):
            _, log_w = _kernel(z, degrees, part)
            pull += (p[..., part, :] * log_w).sum((-2, -1))
            mass += _without_self(log_w.exp(), part).sum((-2, -1))
        return attraction * pull - mass.log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.attraction = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, z, degrees = ctx.saved_tensors
        expand_rows = grad[..., None, None]
        grad_p = grad_z = grad_degrees = None
        if ctx.needs_input_grad[0]:
            log_w = [_kernel(z, degrees, part)[1] for part in _parts(z)]
            grad_p = expand_rows * ctx.attraction * torch.cat(log_w, -2)
        if ctx.needs_input_grad[1]:
            grad_z = expand_rows * _point_gradient(p, z, degrees, ctx.attraction)
        if ctx.needs_input_grad[2]:
            grad_degrees = (grad * _degrees_gradient(p, z, degrees, ctx.attraction)).sum()
        return grad_p, grad_z, grad_degrees, None


def _point_gradient(p: Tensor, z: Tensor, degrees: Tensor, attraction: float) -> Tensor:
    """Gradient in z, -2 (1 + 1/ν) Σ_j (attraction p_ij - q_ij) (z_i - z_j) / (1 + ‖z_i - z_j‖² / ν), (*L, N, E)."""
    extended = torch.cat([z, torch.ones_like(z[..., :1])], -1)
    pulls, pushes, masses = [], [], []
    for part in _parts(z):
        shrink, log_w = _kernel(z, degrees, part)
        w = _without_self(log_w.exp(), part)
        masses.append(w.sum((-2, -1)))
        pulls.append((p[..., part, :] * shrink) @ extended)
        pushes.append((w * shrink) @ extended)
    mass = torch.stack(masses).sum(0)[..., None, None]
    total = attraction * torch.cat(pulls, -2) - torch.cat(pushes, -2) / mass
    return -2 * (1 + 1 / degrees) * (z * total[..., -1:] - total[..., :-1])


def _degrees_gradient(p: Tensor, z: Tensor, degrees: Tensor, attraction: float) -> Tensor:
    """Gradient in ν, Σ_ij (attraction p_ij - q_ij) ∂ log w_ij / ∂ν, (*L)."""
    pulls, pushes, masses = [], [], []
    for part in _parts(z):
        shrink, log_w = _kernel(z, degrees, part)
        w = _without_self(log_w.exp(), part)
        slope = log_w / (degrees + 1) + 0.5 * (1 + 1 / degrees) * (1 - shrink)
        masses.append(w.sum((-2, -1)))
        pulls.append((p[..., part, :] * slope).sum((-2, -1)))
        pushes.append((w * slope).sum((-2, -1)))
    pull, push, mass = (torch.stack(values).sum(0) for values in (pulls, pushes, masses))
    return attraction * pull - push / mass


def _parts(z: Tensor) -> list[slice]:
    return chunks(z.shape[-2], z[..., 0].numel())


def _kernel(z: Tensor, degrees: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """1 / (1 + ‖z_i - z_j‖² / ν) and log w_ij, (*L, n, N), for the rows i of a slice, without cancellation."""
    squares = [(column[..., part, None] - column[..., None, :]).square() for column in z.unbind(-1)]
    ratio = sum(squares[1:], squares[0]) / degrees
    return (1 + ratio).reciprocal(), -0.5 * (degrees + 1) * ratio.log1p()


def _without_self(w: Tensor, part: slice) -> Tensor:
    index = torch.arange(part.start, part.stop, device=w.device)
    return w * (index[:, None] != torch.arange(w.shape[-1], device=w.device))
