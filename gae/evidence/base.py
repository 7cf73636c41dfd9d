"""The result of every estimator of log p(x), its reliability, and the closed form."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Num
from torch import Tensor

from gae.inference import Enumerate
from gae.likelihood import CodebookDistribution, ExactPosterior, FlatDistribution, Likelihood
from gae.likelihood.door import checked
from gae.likelihood.evidence import Evidence
from gae.objective import logsumexp

SMALLEST_TAIL = 5  # weights of which a shape can be estimated


class UnreliableWarning(UserWarning):
    """Warning that a few weights dominate an estimate of log p(x), so that its standard error is too small."""


@contextmanager
def without_warning() -> Iterator[None]:
    """Silences ``UnreliableWarning``, for callers that report ``Evidence.unreliable`` themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableWarning)
        yield


def from_log_weights(log_weight: Float[Tensor, "S B"], evaluations: int) -> Evidence:
    """log 1/S Σ_s w_s with its standard error sd(w) / (mean(w) √S), from independent unbiased weights of p(x).

    The standard error of a single weight is NaN. Warns if an estimate from three or more weights is unreliable.

    >>> evidence = from_log_weights(torch.zeros(8, 3), 8)
    >>> evidence.log_p, evidence.ess
    (tensor([0., 0., 0.]), tensor([8., 8., 8.]))
    """
    size = len(log_weight)
    top = log_weight.amax(0)
    top = torch.where(top.isfinite(), top, 0)
    weight = (log_weight - top).exp()  # relative to the largest, so ratios are not differences of large logarithms
    mean = weight.mean(0)
    log_p = top + mean.log()
    ess = weight.sum(0).square() / weight.square().sum(0)
    error = weight.std(0) / (mean * math.sqrt(size)) if size > 1 else torch.full_like(log_p, torch.nan)
    evidence = Evidence(log_p, error, ess, evaluations, pareto_shape(weight))
    if size > 2 and bool(evidence.unreliable.any()):
        warnings.warn(
            "A few importance weights outweigh all others for some observations (`Evidence.unreliable`): log_p may be "
            "off by far more than its standard error says. Use more samples, or a proposal that is closer to the "
            "posterior and has wider tails.",
            UnreliableWarning,
            stacklevel=5,
        )
    return evidence


def pareto_shape(weight: Float[Tensor, "S B"]) -> Float[Tensor, " B"]:
    """The shape k of a generalised Pareto distribution fitted to the largest min(S / 5, 3 √S) weights, per column.

    Uses the empirical Bayes estimator of Zhang & Stephens (2009), with the weak prior at 0.5 of Vehtari et al.
    (2024), and the tail size of their paper, rounded up as in ``loo`` and ``arviz`` before 1.0. Weights equal to the
    largest outside the tail do not belong to it. NaN for fewer than 100 weights, whose k is noise; and where fewer
    than five weights of the tail are above the rest, unless that rest is 0: then infinite.
    """
    size = len(weight)
    tail = math.ceil(min(size / 5, 3 * math.sqrt(size)))
    if size < 100:
        return torch.full_like(weight[0], torch.nan)
    ordered = weight.double().sort(0).values
    cutoff = ordered[-tail - 1]
    excess = ordered[-tail:] - cutoff
    number = (excess > 0).sum(0)
    shape = torch.where((cutoff == 0) & (number > 0), torch.inf, torch.nan).to(excess)
    for count in number.unique().tolist():  # one count, without ties
        if count >= SMALLEST_TAIL:
            columns = number == count
            shape[columns] = _tail_shape(excess[-count:, columns])
    return shape.to(weight)


def _tail_shape(excess: Float[Tensor, "T B"]) -> Float[Tensor, " B"]:
    tail, points = len(excess), 30 + int(math.sqrt(len(excess)))
    grid = torch.arange(1, points + 1, dtype=excess.dtype, device=excess.device).unsqueeze(1) - 0.5
    slope = 1 / excess[-1] + (1 - (points / grid).sqrt()) / (3 * excess[int(tail / 4 + 0.5) - 1])
    shape = torch.log1p(-slope.unsqueeze(1) * excess).mean(1)
    share = (tail * ((-slope / shape).log() - shape - 1)).softmax(0)
    best = torch.log1p(-(share * slope).sum(0) * excess).mean(0)
    return (tail * best + 5) / (tail + 10)


def is_exact(likelihood: Likelihood) -> bool:
    """Whether ``exact`` knows the evidence: of conjugate models, and of codes from a codebook.

    >>> from gae.likelihood import LinearMixture
    >>> is_exact(LinearMixture(3, 2, (5,)))
    True
    """
    return isinstance(likelihood, ExactPosterior) or isinstance(likelihood.prior, CodebookDistribution)


@torch.no_grad()
@checked
def exact(likelihood: Likelihood, x: Num[Tensor, "B *X"]) -> Evidence:
    """log p(x) in closed form: for conjugate models, and by a sum over the codes of mixtures of them or of a codebook.

    Raises:
        TypeError: for a likelihood without a closed-form evidence.
        ValueError: under a flat prior; for more than 4096 codes of a codebook.

    >>> from gae.likelihood import LinearMixture
    >>> exact(LinearMixture(3, 2, (5,)), torch.zeros(4, 5)).log_p.shape
    torch.Size([4])
    """
    if isinstance(likelihood.prior, CodebookDistribution):
        return Evidence.exact(logsumexp(Enumerate()(likelihood, x)))
    if not isinstance(likelihood, ExactPosterior):
        raise TypeError(f"log p(x) of {type(likelihood).__name__} has no closed form. Use `importance` or `ais`.")
    return likelihood.log_evidence(x)


def need_proper(likelihood: Likelihood) -> None:
    """Raises ValueError under a flat prior, for which no density p(x) exists, and for discrete codes.

    Estimates from draws or curvature need a density over codes.
    """
    if isinstance(likelihood.prior, FlatDistribution):
        raise ValueError("log p(x) does not exist under a flat prior. Use a proper prior such as `StandardNormal`.")
    if isinstance(likelihood.prior, CodebookDistribution):
        raise ValueError(
            "Codes of codebook vectors are discrete, and log p(x) cannot be estimated as for a density over codes. Use "
            "`gae.evidence.exact` for at most 4096 codes; `joint` bounds log p(x) from below. The use of such a code "
            "is `gae.analysis.metrics.codebook_perplexity`."
        )
