"""Conjugate gradients, one independent linear system per row."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gae.inference.ascent.problem import expand_rows, row_dot

Product = Callable[[Tensor], Tensor]


def conjugate_gradients(
    product: Product, right: Float[Tensor, "S B *U"], iterations: int, tol: float
) -> tuple[Float[Tensor, "S B *U"], Float[Tensor, "S B"]]:
    """Solves product(w) = right; returns w and ‖product(w) - right‖ / ‖right‖ (Hestenes & Stiefel 1952).

    Each row stops at the relative residual ``tol``, or at a direction without positive curvature.
    """
    solution, residual, direction = torch.zeros_like(right), right, right
    square = row_dot(residual, residual)
    first = square.detach()
    for _ in range(iterations):
        image = product(direction)
        curvature = row_dot(direction, image)
        active = (square > tol**2 * first) & (curvature > 0) & torch.isfinite(curvature)
        if not bool(active.any()):
            break
        length = expand_rows(torch.where(active, square / torch.where(active, curvature, 1.0), 0.0), right)
        image = torch.where(expand_rows(active, right), image, 0.0)
        solution, residual = solution + length * direction, residual - length * image
        following = row_dot(residual, residual)
        ratio = torch.where(active, following / torch.where(active, square, 1.0), 0.0)
        direction = torch.where(expand_rows(active, right), residual + expand_rows(ratio, right) * direction, direction)
        square = following
    relative = (square.detach() / first.clamp_min(torch.finfo(first.dtype).tiny)).sqrt()
    return solution, relative
