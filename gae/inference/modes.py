"""Searches for modes of the joint density of each code, and for the best density of a family."""

import torch
from jaxtyping import Float, Num
from torch import Tensor

from gae.inference.ascent.engine import Ascent
from gae.inference.ascent.gradients.unrolled import Detach
from gae.inference.ascent.steps.lbfgs import LBFGS
from gae.inference.base import Inference
from gae.inference.curvature import curvature_matrix
from gae.inference.decoder import twice_differentiable
from gae.inference.starts import Constant, DecoderInit, Zeros
from gae.likelihood import DecoderLikelihood, Likelihood

BLOCK = 1024  # codes that are searched at a time


def mode_search(start: Inference | None = None, max_steps: int = 100, grad_tol: float = 1e-4) -> Ascent:
    """L-BFGS to a mode of the joint density of each code, as Laplace approximations need it: without gradients.

    Args:
        start: the engine of the first code; by default ``Zeros()``.
        max_steps: the most steps.
        grad_tol: a sample has converged when its gradient norm (nats per unit of z) is at most this.

    >>> import torch
    >>> from gae.inference import ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> model, x = LinearMixture(1, 2, (5,)).double(), torch.randn(3, 5, dtype=torch.float64)
    >>> bool((mode_search()(model, x).z - ClosedForm()(model, x).z).abs().max() < 1e-3)  # the posterior mean
    True
    """
    return Ascent(start, LBFGS(), max_steps, grad_tol=grad_tol, adjoint=Detach())


def several_modes(likelihood: Likelihood, x: Num[Tensor, "B *X"], starts: int) -> tuple[Float[Tensor, "S B *Z"], int]:
    """The modes that L-BFGS reaches from zero and, for all but the first, from draws of ``likelihood.initial``.

    Beside them the number of evaluations of the decoder per observation, over all starts.
    """
    zeros, drawn = (start.infer(likelihood, x).z for start in (Zeros(), DecoderInit(starts - 1)))
    rows, z = x.repeat(starts, *[1] * (x.dim() - 1)), torch.cat([zeros, drawn]).flatten(0, 1)
    size = max(len(x), BLOCK)
    blocks = zip(rows.split(size), z.split(size), strict=True)
    ends = [mode_search(Constant(start))(likelihood, block) for block, start in blocks]
    evaluations = sum(int(end.solve.evaluations.sum()) for end in ends if end.solve is not None)
    return torch.cat([end.point for end in ends]).unflatten(0, (starts, len(x))), round(evaluations / len(x))


def highest_mode(likelihood: Likelihood, x: Num[Tensor, "B *X"], starts: int = 16) -> tuple[Float[Tensor, "B *Z"], int]:
    """The highest of ``several_modes`` of each observation, and the number of evaluations.

    That reached from zero alone may be lower by any amount.
    """
    every, evaluations = several_modes(likelihood, x, starts)
    with torch.no_grad():
        best = torch.stack([likelihood.log_joint(x, z.unsqueeze(0))[0] for z in every]).argmax(0)
    return every[best, torch.arange(len(x), device=x.device)], evaluations + starts


def density_step(likelihood: Likelihood, x: Num[Tensor, "B *X"]) -> LBFGS:
    """The step rule for the parameters of a density: L-BFGS, under the curvature of each row if that can be computed.

    >>> import torch
    >>> from gae.likelihood import Gaussian, LinearMixture
    >>> x = torch.zeros(1, 5)
    >>> heads = Gaussian(torch.nn.Linear(2, 5), 2), LinearMixture(1, 2, (5,)), LinearMixture(3, 2, (5,))
    >>> [density_step(head, x).by_row for head in heads]
    [True, True, False]
    """
    single = isinstance(likelihood, DecoderLikelihood) and likelihood.components <= 1
    return LBFGS(curvature="gauss-newton" if single and _has_curvature(likelihood, x[:1]) else None)


@torch.no_grad()
def _has_curvature(likelihood: Likelihood, x: Num[Tensor, "B *X"]) -> bool:
    """Whether the decoder's operations have forward derivatives, and rules for batches of them."""
    try:
        with twice_differentiable(likelihood):
            curvature_matrix(likelihood, x, x.new_zeros(1, len(x), *likelihood.latent_shape))
    except (RuntimeError, NotImplementedError):
        return False
    return True
