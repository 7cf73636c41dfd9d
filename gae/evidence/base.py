"""What every estimator of log p(x) returns."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.distributions import Distribution

from gae.likelihood import ExactPosterior, FlatDistribution, Likelihood
from gae.likelihood.door import checked


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x) per sample, in nats, and what it cost.

    Attributes:
        log_p: the estimate.
        standard_error: of sampling, by the delta method for the logarithm of a mean; 0 where nothing is sampled,
            NaN where it is unknown. It is of use where ``ess`` is large: where one weight outweighs all others
            both are close to 1, and ``log_p`` may be too low by far more.
        effective: effective sample size of the weights, (Σw)² / Σw²; None where nothing is weighted.
        evaluations: decoder evaluations per sample, the mean over samples where they differ.
    """

    log_p: Float[Tensor, " B"]
    standard_error: Float[Tensor, " B"]
    ess: Float[Tensor, " B"] | None = None
    evaluations: int = 0


def from_log_weights(log_weight: Float[Tensor, "S B"], evaluations: int) -> Evidence:
    """log 1/S Σ_s w_s with its standard error sd(w) / (mean(w) √S), from independent unbiased weights of p(x).

    The standard error of a single weight is NaN.

    >>> found = weighted(torch.zeros(8, 3), 8)
    >>> found.log_p, found.ess
    (tensor([0., 0., 0.]), tensor([8., 8., 8.]))
    """
    size = len(log_weight)
    top = log_weight.amax(0)
    top = torch.where(top.isfinite(), top, 0)
    weight = (log_weight - top).exp()  # relative to the largest: ratios are no differences of large logarithms
    mean = weight.mean(0)
    log_p = top + mean.log()
    ess = weight.sum(0).square() / weight.square().sum(0)
    error = weight.std(0) / (mean * math.sqrt(size)) if size > 1 else torch.full_like(log_p, torch.nan)
    return Evidence(log_p, error, ess, evaluations)


@torch.no_grad()
@checked
def exact(likelihood: Likelihood, x: Num[Tensor, "B *X"]) -> Evidence:
    """log p(x) in closed form: conjugate models, and mixtures of them, which are summed over k.

    Raises:
        TypeError: for a likelihood that does not know it.
        ValueError: under a flat prior.

    >>> from gae.likelihood import LinearMixture
    >>> exact(LinearMixture(3, 2, (5,)), torch.zeros(4, 5)).log_p.shape
    torch.Size([4])
    """
    if not isinstance(likelihood, ExactPosterior):
        raise TypeError(f"log p(x) of {type(likelihood).__name__} has no closed form. Use `importance` or `ais`.")
    log_p = likelihood.log_evidence(x)
    return Evidence(log_p, torch.zeros_like(log_p))


def need_proper(likelihood: Likelihood) -> None:
    """Raises ValueError under a flat prior, where no density p(x) exists."""
    if isinstance(likelihood.prior, FlatDistribution):
        raise ValueError("log p(x) does not exist under a flat prior. Use a proper prior such as `StandardNormal`.")


def unit(law: Distribution) -> Tensor:
    """The standard deviations of a law over codes, in whose units steps and precisions are small or large; else 1."""
    try:
        spread = law.stddev
    except NotImplementedError:
        return torch.ones(())
    return torch.where(spread.isfinite() & (spread > 0), spread, 1)
