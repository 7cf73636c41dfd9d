"""Numerical check of training gradients."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Num
from torch import Tensor

from gae.autoencoder import Autoencoder


def check_gradient(
    autoencoder: Autoencoder, x: Num[Tensor, "B *X"], directions: int = 5, seed: int = 0, epsilon: float = 1e-6
) -> float:
    """Relative error of the training gradient against central finite differences of the loss, in float64.

    Returns ‖g·d - Δ‖ / ‖Δ‖ over random directions d in all trainable parameters, where the differences Δ repeat the
    whole inference; an adjoint that omits terms (``Detach``, ``Truncate``, ``OneStep`` away from a solution) shows its
    bias. About 1e-8 is exact. The model is copied, not changed, and the noise is the same in every evaluation. A
    stopping rule or branch makes the loss piecewise smooth: use tolerances so small that no branch lies within
    ``epsilon``.

    Args:
        autoencoder: the model, checked in its current training or evaluation mode.
        x: (B, *X).
        directions: number of random directions.
        seed: seed of directions and noise.
        epsilon: step of the differences, relative to each parameter tensor's root mean square (at least 1).

    Raises:
        ValueError: if no parameter is trainable, or the loss does not depend on the trainable parameters.
        TypeError: for a guide that is a plain function with parameters, which cannot be copied.

    >>> from gae.systems import gon
    >>> check_gradient(gon((6,), latent=2, hidden=(8,)), torch.rand(4, 6)) < 1e-6
    True
    """
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        model, x = _copied(autoencoder, x).double(), x.double()
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("No parameter of the autoencoder requires a gradient, so there is nothing to check.")
        moves = [[_direction(p) for p in parameters] for _ in range(directions)]
        analytic = torch.stack([_derivative_along(model, x, parameters, move, seed) for move in moves])
        numeric = torch.stack([_difference(model, x, parameters, move, seed, epsilon) for move in moves])
    if not bool(numeric.norm() > 0):
        raise ValueError("The loss does not change along any direction: it does not depend on the parameters.")
    return float((analytic - numeric).norm() / numeric.norm())


def _copied(autoencoder: Autoencoder, x: Tensor) -> Autoencoder:
    model = copy.deepcopy(autoencoder)
    model(x)  # a guide may create its parameters at its first call and raise an error if copied afterwards
    return copy.deepcopy(model)


def _direction(parameter: Tensor) -> Tensor:
    return torch.randn_like(parameter) * parameter.detach().square().mean().sqrt().clamp_min(1)


def _loss(model: Autoencoder, x: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return model(x)


def _derivative_along(
    model: Autoencoder, x: Tensor, parameters: Sequence[Tensor], move: Sequence[Tensor], seed: int
) -> Tensor:
    grads = torch.autograd.grad(_loss(model, x, seed), parameters, allow_unused=True)
    terms = [(grad * d).sum() for grad, d in zip(grads, move, strict=True) if grad is not None]
    return torch.stack(terms).sum() if terms else x.new_zeros(())


@torch.no_grad()
def _difference(
    model: Autoencoder, x: Tensor, parameters: Sequence[Tensor], move: Sequence[Tensor], seed: int, epsilon: float
) -> Tensor:
    saved = [p.clone() for p in parameters]
    values = []
    for sign in (1.0, -1.0):
        for p, start, d in zip(parameters, saved, move, strict=True):
            p.copy_(start + sign * epsilon * d)
        values.append(_loss(model, x, seed))
    for p, start in zip(parameters, saved, strict=True):
        p.copy_(start)
    return (values[0] - values[1]) / (2 * epsilon)
