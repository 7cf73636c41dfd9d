"""Inference without iterations: exact posteriors, exact modes, and enumeration of K components."""

import math

import torch
from jaxtyping import Int, Num
from torch import Tensor

from gae.inference.base import Code, Inference, Sweep
from gae.likelihood import CodebookDistribution, ExactMode, ExactPosterior, Likelihood, LinearMixture


class ClosedForm(Inference):
    """The exact posterior q(k, z|x), for a likelihood with a closed form (``ExactPosterior``).

    Without ``samples``, the code is the posterior mean (for a mixture: of the most probable component); with
    ``samples=S``, S exact draws. Either way ``log_joint - log_q`` is log p(x), with no variance.

    >>> from gae.likelihood import LinearMixture
    >>> model, x = LinearMixture(1, 2, (5,)), torch.randn(3, 5)
    >>> code = ClosedForm(samples=4)(model, x)
    >>> bool((code.log_joint - code.log_q - model.log_evidence(x).log_p).abs().max() < 1e-4)
    True
    """

    def __init__(self, samples: int | None = None):
        super().__init__()
        if samples is not None and samples < 1:
            raise ValueError(f"samples must be at least 1 or None, got {samples}.")
        self.samples = samples

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        if not isinstance(likelihood, ExactPosterior):
            raise TypeError(
                f"Cannot use `ClosedForm` with {type(likelihood).__name__}: its posterior has no closed form. "
                "Use `Ascent`, or `Amortized` with an encoder."
            )
        log_k = None
        if k is None and likelihood.components > 1:
            k, log_k = self._choose(likelihood.log_responsibilities(x))
        q = likelihood.posterior(x, k)
        if self.samples is None:
            z = q.mean
        elif log_k is None:
            z = q.rsample((self.samples,))
        else:
            z = q.rsample()
        log_q = q.log_prob(z) if log_k is None else q.log_prob(z) + log_k
        z, log_q = z.flatten(0, -2 - len(likelihood.latent_shape)), log_q.flatten(0, -2)
        k = None if k is None else k.repeat(len(z) // len(k), 1).expand(log_q.shape)
        return Code(z, k, log_q, q)

    def _choose(self, log_responsibilities: Tensor) -> tuple[Tensor, Tensor]:
        if self.samples is None:
            k = log_responsibilities.argmax(1, keepdim=True)
        else:
            k = log_responsibilities.exp().multinomial(self.samples, replacement=True)
        return k.mT, log_responsibilities.gather(1, k).mT


class Mode(Inference):
    """The best code in closed form, for a likelihood with one (``ExactMode``). A point estimate: ``log_q`` is None.

    >>> from gae.likelihood import LLE
    >>> Mode()(LLE(points=8, event_shape=(3,)), torch.randn(2, 8, 3)).z.shape
    torch.Size([1, 2, 8, 2])
    """

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        if not isinstance(likelihood, ExactMode):
            raise TypeError(
                f"Cannot use `Mode` with {type(likelihood).__name__}: its best code has no closed form. "
                "Use `Ascent`, or `ClosedForm` where the posterior is known."
            )
        if k is not None:
            raise ValueError("`Mode` takes no component, got a given k. Use `ClosedForm` or `Ascent`.")
        z, log_joint = likelihood.scored_mode(x)
        return Code(z.unsqueeze(0), log_joint=log_joint.unsqueeze(0))


class Enumerate(Inference):
    """Enumeration of all components as S = K branches, each encoded by ``inner``; ``logsumexp`` sums over them.

    For a likelihood without a continuous code (k-means, GMM) ``inner`` is not needed, and ``logsumexp`` is the
    exact evidence. So it is for codes of codebook vectors, all K^P of which are branches (at most 4096).

    >>> from gae.likelihood import LinearMixture
    >>> Enumerate()(LinearMixture(4, 0, (5,)), torch.randn(3, 5)).log_joint.shape
    torch.Size([4, 3])
    """

    def __init__(self, inner: Inference | None = None):
        super().__init__()
        self.inner = inner

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        self._check(likelihood, k)
        if isinstance(likelihood.prior, CodebookDistribution):
            z = likelihood.prior.expand((len(x),)).enumerate_support()
            return Code(z, log_joint=likelihood.bind(x)(z))
        branches = torch.arange(likelihood.components, device=x.device).unsqueeze(1)
        code = self._inner_codes(likelihood, x, branches)
        if len(code.z) != len(branches):
            raise ValueError(
                f"`{type(self).__name__}` needs one code per component, got S={len(code.z)} for K={len(branches)} from "
                f"`{type(self.inner).__name__}`. Use it without `samples`."
            )
        score = _scores(likelihood, x, code, branches)
        log_q = None if code.log_q is None else code.log_q - math.log(likelihood.components)  # all branches alike
        return Code(code.z, branches.expand(score.shape), log_q, code.q, code.solve, score)

    def sweep(self, likelihood: Likelihood, x: Num[Tensor, "N *X"], bound: str) -> Sweep | None:
        if not isinstance(likelihood, LinearMixture) or self.inner is not None or bound != "logsumexp":
            return None
        return likelihood.sweep_of_mixture(x)

    def _check(self, likelihood: Likelihood, k: Tensor | None) -> None:
        if not likelihood.components and not isinstance(likelihood.prior, CodebookDistribution):
            raise TypeError(
                f"Cannot use `{type(self).__name__}` with {type(likelihood).__name__}: it has no discrete code. "
                "Use a mixture such as LinearMixture, or `Ascent` / `Amortized` directly."
            )
        if k is not None:
            raise ValueError(f"`{type(self).__name__}` chooses k itself, got a given k. Use its inner engine directly.")

    def _inner_codes(self, likelihood: Likelihood, x: Tensor, branches: Tensor) -> Code:
        if self.inner is not None:
            return self.inner.infer(likelihood, x, branches)
        if likelihood.latent_shape.numel():
            raise ValueError(
                f"`{type(self).__name__}()` alone finds no continuous code, but a code here has shape "
                f"{tuple(likelihood.latent_shape)}. Use `{type(self).__name__}(ClosedForm())` or "
                f"`{type(self).__name__}(Ascent(...))`."
            )
        return Code(x.new_zeros(len(branches), len(x), *likelihood.latent_shape))


def _scores(likelihood: Likelihood, x: Tensor, code: Code, branches: Tensor) -> Tensor:
    if code.log_joint is not None:
        return code.log_joint
    if isinstance(likelihood, LinearMixture):
        return likelihood.scores(x, code.z, branches)
    return likelihood.bind(x)(code.z, branches)


class Argmax(Enumerate):
    """The best component: k = argmax_k max_z log q(k) q(z) q_r(x|z, k), all K branches at once.

    Alone it is the assignment step of k-means; around ``ClosedForm()`` or ``Ascent(...)`` it is the encoder of
    LLGAE (the GAE note's hierarchical form, max_k max_z). For codes of codebook vectors it is the best of all K^P. A
    point estimate: ``log_q`` is None. Points are compared as in ``Nearest``: near ties by differences in float64, exact
    ties by the first component.

    >>> from gae.likelihood import LinearMixture
    >>> Argmax(ClosedForm())(LinearMixture(4, 2, (5,)), torch.randn(3, 5)).k.shape
    torch.Size([1, 3])
    """

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        if self.inner is None and isinstance(likelihood, LinearMixture) and not likelihood.latent_shape.numel():
            self._check(likelihood, k)
            best, score = likelihood.nearest(x)
            return Code(x.new_zeros(1, len(x), 0), best.unsqueeze(0), log_joint=score.unsqueeze(0))
        branches = super().infer(likelihood, x, k)
        assert branches.log_joint is not None
        best = branches.log_joint.argmax(0, keepdim=True)
        z = branches.z[best, torch.arange(len(x), device=x.device)]
        solve = None if branches.solve is None else branches.solve.choose(best)
        k = None if branches.k is None else best
        return Code(z, k, solve=solve, log_joint=branches.log_joint.gather(0, best))

    def sweep(self, likelihood: Likelihood, x: Num[Tensor, "N *X"], bound: str) -> Sweep | None:
        if not isinstance(likelihood, LinearMixture) or bound != "joint":
            return None
        if self.inner is None:
            return likelihood.sweep_of_points(x)
        is_exact = isinstance(self.inner, ClosedForm) and self.inner.samples is None
        return likelihood.sweep_of_charts(x) if is_exact else None
