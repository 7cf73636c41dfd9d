"""Ascent by the monotone update rule of a likelihood."""

from jaxtyping import Float
from torch import Tensor

from gae.inference.ascent.problem import Problem
from gae.inference.ascent.steps.first_order import State, Step
from gae.likelihood import MonotoneCodes


class MonotoneAscent(Step):
    """Updates of codes by the likelihood's own rule (``MonotoneCodes``), which never lower the objective.

    For non-negative factorisation: exact coordinate ascent to a fixed point for a Gaussian likelihood, a
    multiplicative update for a Poisson likelihood. Neither has a rate. A multiplicative update leaves an entry of 0 at
    0, so start from positive codes, such as ``Constant(torch.ones(Z))``.

    Raises:
        TypeError: for a likelihood without such a rule, or a family other than ``Delta()``.

    >>> import torch
    >>> from gae.inference import Ascent, Constant
    >>> from gae.likelihood import NonNegativeGaussian
    >>> model, start = NonNegativeGaussian(2, (3,)), Constant(torch.ones(2))
    >>> bool((Ascent(start, MonotoneAscent(), 50)(model, torch.rand(4, 3)).z >= 0).all())
    True
    """

    codes_only = True
    evaluations = 2  # the objective's, and the update's own

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        if not isinstance(problem.likelihood, MonotoneCodes):
            raise TypeError(
                f"`MonotoneAscent` needs a likelihood with an update rule, which {type(problem.likelihood).__name__} "
                "does not have. Use `GradientAscent`, `LBFGS` or another step."
            )
        return problem.likelihood.update_codes(problem.x, u), {}
