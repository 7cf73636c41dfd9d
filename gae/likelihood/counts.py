"""Poisson distributions by rate or log rate, accurate over the whole range of floats."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from torch import Size, Tensor

FEW = 16  # smaller counts use lgamma for the factorial, others Stirling's series, both accurate to 1e-16
MANY = 2.0**30  # larger rates are sampled from the normal limit: torch's 32-bit counts overflow on some devices
NONE = 1e-100  # replaces a count of 0, which has no logarithm
LARGE = 1e300  # replaces an infinite log rate, since inf - inf is NaN


class Poisson(dist.Poisson):
    """Poisson distribution by rate, without the cancellation of x log(rate) - rate - log x! (Loader 2000).

    >>> Poisson(torch.tensor(1e6)).log_prob(torch.tensor(1e6))
    tensor(-7.8267)
    """

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        return Counts(value).log_prob(self.rate)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Draws counts as floats; for rates above 2^30, from the normal limit, rounded.

        Raises:
            ValueError: if a rate is not finite.
        """
        rate = self.rate.expand(self._extended_shape(sample_shape))
        if not bool(rate.isfinite().all()):
            raise ValueError(
                f"Cannot draw counts at a Poisson rate of {float(rate[~rate.isfinite()][0])}: in {rate.dtype} it must "
                f"be at most {torch.finfo(rate.dtype).max:.1e}. Decode codes nearer to those of the data."
            )
        counts = torch.poisson(rate.clamp_max(MANY))
        many = rate > MANY
        if bool(many.any()):
            counts = torch.where(many, (rate + rate.sqrt() * torch.randn_like(rate)).round(), counts)
        return counts


class LogRatePoisson(Poisson):
    """Poisson distribution by log rate, exact even if the rate underflows to 0.

    >>> LogRatePoisson(torch.tensor(-120.0)).log_prob(torch.tensor(5.0))
    tensor(-604.7875)
    """

    def __init__(self, log_rate: Float[Tensor, "..."], validate_args: bool | None = None):
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LogRatePoisson":
        return LogRatePoisson(self.log_rate.expand(Size(batch_shape)), validate_args=False)

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        return Counts(value).log_prob_at(self.log_rate)


class Counts:
    """Counts x with the terms of their Poisson log density that depend only on x, in float64.

    log Poisson(x; rate) = log Poisson(x; x) - D, D = x (exp(d) - 1 - d) >= 0, d = log(rate / x) (Loader 2000, "Fast and
    accurate computation of binomial probabilities"): neither term is a small difference of large numbers. For a count
    of 0, D uses x = 1e-100, and equals the rate to full precision.
    """

    def __init__(self, x: Num[Tensor, "..."]):
        self.some, exact = x > 0, x.double()
        self.x = torch.where(self.some, exact, NONE)
        self.log = self.x.log()
        outside = exact.masked_fill(x < 0, -torch.inf)
        self.log_mode = torch.where(self.some, _log_mass_at_mean(self.x, self.log), outside)

    def log_prob(self, rate: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log Poisson(x; rate), elementwise in nats."""
        exact = rate.double()
        excess = (exact - self.x) / self.x
        near = excess.abs() < 0.5
        by_log = torch.where(self.some & ~near, exact, 1).log() - self.log
        ratio = torch.where(near, torch.where(near, excess, 0).log1p(), by_log)
        return (self.log_mode - (exact - self.x - self.x * ratio.clamp_max(LARGE))).to(rate.dtype)

    def log_prob_at(self, log_rate: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log Poisson(x; exp(log_rate)), elementwise in nats; -inf if the rate overflows."""
        ratio = log_rate.double() - self.log
        return (self.log_mode - self.x * (torch.expm1(ratio) - ratio.clamp_max(LARGE))).to(log_rate.dtype)


def _log_mass_at_mean(n: Tensor, log: Tensor) -> Tensor:
    """log Poisson(n; n) = n log n - n - log n! in float64, by Stirling's series unless n is small."""
    few = n < FEW
    inverse = 1 / n.clamp_min(FEW)
    square = inverse.square()
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))))
    exact = n * log - n - (torch.where(few, n, 1) + 1).lgamma()
    return torch.where(few, exact, -0.5 * (math.log(2 * math.pi) + log) - series)
