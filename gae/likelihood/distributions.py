"""Elementwise distributions in the parameters that decoders put out, accurate over the whole range of floats.

torch's own clamp probabilities, and square scales that underflow. These are subclasses of Pyro's, with the same
parameters, whose densities, moments and draws agree with each other.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.distributions import register_kl
from torch.distributions.utils import broadcast_all, lazy_property
from torch.nn.functional import softplus

TERMS = 10  # of a series in (logit)² for |logit| < 1: the first left out is below 1e-17 of the sum


class Normal(dist.Normal):
    """A normal law whose residual is divided by the scale before it is squared: scale² may underflow or overflow.

    >>> Normal(torch.tensor(0.0), torch.tensor(1e-30)).log_prob(torch.tensor(0.0))
    tensor(68.1586)
    """

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        standard = (value - self.loc) / self.scale
        return -0.5 * standard.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)


class Bernoulli(dist.Bernoulli):
    """A Bernoulli law of given logits, whose variance and entropy do not round to 0 where its mean rounds to 1.

    >>> Bernoulli(logits=torch.tensor([-50.0, 50.0])).variance
    tensor([1.9287e-22, 1.9287e-22])
    """

    @property
    def variance(self) -> Tensor:
        return self.logits.sigmoid() * (-self.logits).sigmoid()

    def entropy(self) -> Tensor:
        """-p log p - (1 - p) log(1 - p), in nats."""
        return self.logits.sigmoid() * softplus(-self.logits) + (-self.logits).sigmoid() * softplus(self.logits)


class ContinuousBernoulli(dist.ContinuousBernoulli):
    """The density exp(logit x) / M on [0, 1], M = (exp(logit) - 1) / logit (Loaiza-Ganem & Cunningham 2019).

    It is an exponential family in its logits, so mean, variance and all derivatives are cumulants: those of log M.

    >>> q = ContinuousBernoulli(logits=torch.tensor([-0.004, 100.0]))
    >>> q.mean, q.variance
    (tensor([0.4997, 0.9900]), tensor([0.0833, 0.0001]))
    """

    @lazy_property
    def probs(self) -> Tensor:
        """The sigmoid of the logits: no probability and no mean, but torch's other parameter."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        return _cumulant(self.logits, 1) + (self.logits > 0)

    @property
    def variance(self) -> Tensor:
        return _cumulant(self.logits, 2)

    def _cont_bern_log_norm(self) -> Tensor:
        return softplus(-self.logits.abs()) - _cumulant(self.logits, 0)

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        logits, value = broadcast_all(self.logits, value)
        return logits * torch.where(logits > 0, value - 1, value) - _cumulant(logits, 0)

    def entropy(self) -> Tensor:
        """Differential entropy in nats: at most 0, that of the uniform law."""
        return _cumulant(self.logits, 0) - self.logits * _cumulant(self.logits, 1)

    def cdf(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        logits, value = broadcast_all(self.logits, value)
        inside = value.clamp(0, 1)
        shift = torch.where(logits > 0, logits * (inside - 1), 0)
        return inside * (shift + _cumulant(logits * inside, 0) - _cumulant(logits, 0)).exp()

    def icdf(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        logits, value = broadcast_all(self.logits, value)
        near = logits.abs() < torch.finfo(logits.dtype).eps ** 0.2
        return torch.where(near, _near_quantile(logits, value), _far_quantile(logits, value, near))

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        uniform = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
        return self.icdf(uniform)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        return self.rsample(sample_shape)


def _near_quantile(logits: Tensor, u: Tensor) -> Tensor:
    """log(1 - u + u exp(logit)) / logit as a series: Σ_n κ_n logit^(n-1) / n!, with the cumulants κ_n of a coin."""
    spread, skew = u * (1 - u), 1 - 2 * u
    cubic, quartic = spread * skew / 6, spread * (1 - 6 * spread) / 24
    return u + logits * (spread / 2 + logits * (cubic + logits * (quartic + logits * cubic * (1 - 12 * spread) / 20)))


def _far_quantile(logits: Tensor, u: Tensor, near: Tensor) -> Tensor:
    """The same for logits far from 0, counted from the end of [0, 1] where the density is highest."""
    rising = logits > 0
    slope = torch.where(near, 1, logits.abs())
    here, there = torch.where(rising, u, 1 - u), torch.where(rising, 1 - u, u)
    change = there * torch.expm1(-slope)
    deep = change < -0.5
    shallow_log = torch.where(deep, 0, change).log1p()
    distance = -torch.where(deep, torch.logaddexp(here.log(), there.log() - slope), shallow_log) / slope
    distance = distance.clamp(0, 1)
    return torch.where(rising, 1 - distance, distance)


class _Cumulant(torch.autograd.Function):
    """The derivative of a given order of K(|logit|) with respect to the logit, K(a) = log((1 - exp(-a)) / a).

    log M is max(logit, 0) + K(|logit|). At 0 all orders are those of logits below it, so that the two kinks cancel.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, order: int) -> Tensor:
        a = logits.abs()
        near, sign = a < 1, torch.where(logits > 0, 1.0, -1.0).to(a.dtype)
        value = torch.where(near, _near_zero(a.clamp_max(1), order), _far_from_zero(a.clamp_min(1), order))
        return sign * value if order % 2 else value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.order = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * _cumulant(ctx.saved_tensors[0], ctx.order + 1), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent * _cumulant(ctx.saved_tensors[0], ctx.order + 1)


def _cumulant(logits: Tensor, order: int) -> Tensor:
    found: Tensor = _Cumulant.apply(logits, order)
    return found


def _near_zero(a: Tensor, order: int) -> Tensor:
    value = polynomial(_taylor(order), a.square())
    value = value * a if order % 2 else value
    return value - 0.5 * a if order == 0 else value - 0.5 if order == 1 else value


def _far_from_zero(a: Tensor, order: int) -> Tensor:
    if order == 0:
        return (-torch.expm1(-a)).log() - a.log()
    value = polynomial(_in_odds(order), 1 / torch.expm1(a))
    return value + (-1) ** order * math.factorial(order - 1) * a.reciprocal() ** order


def polynomial(coefficients: Sequence[float], a: Tensor) -> Tensor:
    """Σ_n coefficients[n] aⁿ for |a| <= 1, less what is below a's precision; in place, for inner loops."""
    least = torch.finfo(a.dtype).eps * abs(coefficients[0]) / 4
    degree = max(n for n, coefficient in enumerate(coefficients) if abs(coefficient) > least)
    value = torch.full_like(a, coefficients[degree])
    for coefficient in reversed(coefficients[:degree]):
        value.mul_(a).add_(coefficient)
    return value


@cache
def _taylor(order: int) -> list[float]:
    """Coefficients in a² of the derivative of K(a) + a/2, less a factor a where the order is odd."""
    size = 2 * TERMS + order + 2
    mass = [Fraction((-1) ** n, math.factorial(n + 1)) for n in range(size)]  # (1 - exp(-a)) / a
    log: list[Fraction] = [Fraction(0)]
    for n in range(1, size):
        log.append(mass[n] - sum((k * log[k] * mass[n - k] for k in range(1, n)), Fraction(0)) / n)
    log[1] = Fraction(0)
    return [float(log[n] * math.perm(n, order)) for n in range(order + order % 2, size, 2)]


@cache
def _in_odds(order: int) -> list[int]:
    """The derivative of log(1 - exp(-a)) as a polynomial in p = 1 / (exp(a) - 1), whose own is -p - p²."""
    if order == 1:
        return [0, 1]
    slope = [n * coefficient for n, coefficient in enumerate(_in_odds(order - 1))][1:]
    return [-(low + high) for low, high in zip([0, *slope, 0], [0, 0, *slope], strict=True)]


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _kl_continuous_bernoulli(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    """-H(p) - E_p log q: torch's own takes the clamped probabilities of p."""
    mean = _cumulant(p.logits, 1) + (p.logits > 0).to(p.logits) - (q.logits > 0).to(p.logits)
    return _cumulant(q.logits, 0) - q.logits * mean - p.entropy()
