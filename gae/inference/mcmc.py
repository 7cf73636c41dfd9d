"""Posterior draws by a Markov chain that starts at the draws of an encoder."""

from dataclasses import replace

import torch
from jaxtyping import Int, Num
from torch import Tensor

from gae.inference.ascent.engine import Ascent
from gae.inference.ascent.gradients.unrolled import Detach
from gae.inference.ascent.steps.first_order import Step
from gae.inference.base import Code, Inference
from gae.inference.starts import Given
from gae.likelihood import Likelihood


class MCMC(Inference):
    """A Markov chain from each draw of an encoder's q(z|x); its last states are the codes (Hoffman 2017).

    The codes are constants, and have no density. Longer chains come closer to posterior draws. For training by
    ``monte_carlo_em``, ``Solve.path`` holds the ELBO of the draws that the chains start from, (1, S, B), as a function
    of the encoder's parameters alone.

    Args:
        init: an engine with a density q(z|x), such as ``Amortized`` with a guide; a chain for each of its S draws.
        step: a rule that leaves the posterior invariant: ``HMC``, or ``Langevin(adjusted=True)``.
        max_steps: T, steps of the chain; the last proposal is not tested, so there are T - 1 transitions.

    Raises:
        TypeError: for an engine without a density, or codes of a mixture.

    >>> from gae.inference import HMC, ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> engine = MCMC(ClosedForm(samples=3), HMC(0.3, leapfrog=3), max_steps=4)
    >>> engine(LinearMixture(1, 2, (5,)), torch.randn(4, 5)).z.shape
    torch.Size([3, 4, 2])
    """

    is_sampler = True

    def __init__(self, init: Inference, step: Step, max_steps: int = 10):
        super().__init__()
        if max_steps < 2:
            raise ValueError(f"A chain needs at least 2 steps for one transition, got max_steps={max_steps}.")
        self.init, self.step, self.max_steps = init, step, max_steps

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        start = self.init.infer(likelihood, x, k)
        if start.log_q is None or start.k is not None:
            raise TypeError(
                f"`MCMC` starts at draws of a density q(z|x) over continuous codes, which `{type(self.init).__name__}` "
                "does not give here. Start from `Amortized` with a guide."
            )
        chain = Ascent(Given(Code(start.z.detach())), self.step, self.max_steps, adjoint=Detach())
        code = chain.infer(likelihood, x)
        assert code.solve is not None
        path = _bound(likelihood, x, start).unsqueeze(0) if torch.is_grad_enabled() else None
        return replace(code, solve=replace(code.solve, path=path))


def _bound(likelihood: Likelihood, x: Tensor, start: Code) -> Tensor:
    """log q(x, z) - log q(z|x) of draws z (S, B), in the graph of the draws but not of the likelihood."""
    assert start.log_q is not None
    z = start.z.detach().requires_grad_()
    value = likelihood.bind(x)(z)
    (grad,) = torch.autograd.grad(value.sum(), z)
    return value.detach() + (grad * (start.z - z.detach())).flatten(2).sum(2) - start.log_q
