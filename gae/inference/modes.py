"""Searches for a mode of the joint density of each code, and for the best density of a family."""

import torch
from jaxtyping import Num
from torch import Tensor

from gae.inference.ascent.engine import Ascent
from gae.inference.ascent.gradients.unrolled import Detach
from gae.inference.ascent.steps.lbfgs import LBFGS
from gae.inference.base import Inference
from gae.inference.curvature import curvature_matrix
from gae.inference.decoder import twice_differentiable
from gae.likelihood import DecoderLikelihood, Likelihood


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
