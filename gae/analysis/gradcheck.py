"""Certificates: whether a gradient is what it claims to be."""

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

    The loss is differenced along random directions in all trainable parameters with the whole solve repeated, so a
    mode that leaves terms out (``Detach``, ``Truncate``, ``OneStep`` away from a solution) shows its bias:
    ‖g·d - Δ‖ / ‖Δ‖ over the directions d. About 1e-8 is exact; the model itself is copied, not changed. Noise is the
    same in every evaluation. A rule that stops or branches makes the loss piecewise smooth: check it with tolerances
    so small that no branch lies within ``epsilon``.

    Args:
        autoencoder: any; it is checked in the training or evaluation mode it is in.
        x: (B, *X).
        directions: number of random directions.
        seed: of directions and noise.
        epsilon: step of the differences, relative to each parameter tensor's root mean square (at least 1).

    Raises:
        ValueError: when nothing is trainable, or the loss does not depend on what is.
        TypeError: for a guide that is a plain function with parameters, which a copy cannot reach.

    >>> from gae.systems import gon
    >>> check_gradient(gon((6,), latent=2, hidden=(8,)), torch.rand(4, 6)) < 1e-6
    True
    """
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        model, x = _copied(autoencoder, x).double(), x.double()
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("Nothing to check: no parameter of the autoencoder requires a gradient.")
        moves = [[_direction(p) for p in parameters] for _ in range(directions)]
        claimed = torch.stack([_claimed(model, x, parameters, move, seed) for move in moves])
        found = torch.stack([_difference(model, x, parameters, move, seed, epsilon) for move in moves])
    if not bool(found.norm() > 0):
        raise ValueError("The loss does not change along any direction: it does not depend on the parameters.")
    return float((claimed - found).norm() / found.norm())


def _copied(autoencoder: Autoencoder, x: Tensor) -> Autoencoder:
    model = copy.deepcopy(autoencoder)
    model(x)  # a guide may make its parameters at its first call, and refuse to be copied after it
    return copy.deepcopy(model)


def _direction(parameter: Tensor) -> Tensor:
    return torch.randn_like(parameter) * parameter.detach().square().mean().sqrt().clamp_min(1)


def _loss(model: Autoencoder, x: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return model(x)


def _claimed(model: Autoencoder, x: Tensor, parameters: Sequence[Tensor], move: Sequence[Tensor], seed: int) -> Tensor:
    grads = torch.autograd.grad(_loss(model, x, seed), parameters, allow_unused=True)
    terms = [(grad * d).sum() for grad, d in zip(grads, move, strict=True) if grad is not None]
    return torch.stack(terms).sum() if terms else x.new_zeros(())


@torch.no_grad()
def _difference(
    model: Autoencoder, x: Tensor, parameters: Sequence[Tensor], move: Sequence[Tensor], seed: int, epsilon: float
) -> Tensor:
    kept = [p.clone() for p in parameters]
    values = []
    for sign in (1.0, -1.0):
        for p, start, d in zip(parameters, kept, move, strict=True):
            p.copy_(start + sign * epsilon * d)
        values.append(_loss(model, x, seed))
    for p, start in zip(parameters, kept, strict=True):
        p.copy_(start)
    return (values[0] - values[1]) / (2 * epsilon)
