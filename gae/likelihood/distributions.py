"""Elementwise distributions parameterised by decoder outputs, accurate over the whole range of floats.

torch clamps probabilities, and squares scales, which underflow. These subclasses of Pyro's distributions have the same
parameters, and consistent densities, moments and samples.
"""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from torch import Size, Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, constraints, register_kl
from torch.distributions.utils import lazy_property
from torch.nn.functional import softplus

NEAR = 0.03  # logits closer to 0 than this use the series
EVEN = (
    1 / 24,
    -1 / 2880,
    1 / 181440,
)  # series of log(sinh(h) / h) in (2h)²: the next term is below 1e-15 of the sum for |2h| < NEAR

LOG_BOUND = 15.0  # bound of a network's log scale: float32 can square e^15 and its inverse


def bounded_exp(log_scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The scale of a network's log scale, which is clamped to a range whose scales float32 can square."""
    return log_scale.clamp(-LOG_BOUND, LOG_BOUND).exp()


class Normal(dist.Normal):
    """Normal distribution that divides by the scale before squaring, since scale² may underflow or overflow.

    >>> Normal(torch.tensor(0.0), torch.tensor(1e-30)).log_prob(torch.tensor(0.0))
    tensor(68.1586)
    """

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        standard = (value - self.loc) / self.scale
        return -0.5 * standard.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)


class Bernoulli(dist.Bernoulli):
    """Bernoulli distribution by logits, whose variance and entropy do not round to 0 if its mean rounds to 1.

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
    """Continuous Bernoulli distribution by logits (Loaiza-Ganem & Cunningham 2019).

    Its density is exp(logit x) / M on [0, 1], M = (exp(logit) - 1) / logit. Computed in float64: for logits near 0 by a
    series, elsewhere from the absolute value a, since the densities of a and -a are mirror images.

    >>> q = ContinuousBernoulli(logits=torch.tensor([-0.004, 100.0]))
    >>> q.mean, q.variance
    (tensor([0.4997, 0.9900]), tensor([0.0833, 0.0001]))
    """

    @lazy_property
    def probs(self) -> Tensor:
        """The sigmoid of the logits: torch's other parameter, neither a probability nor the mean."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        logits = self.logits.double()
        near, small, a = _split(logits)
        far = _distance(a)
        mean = torch.where(near, 0.5 + small * _even(small, 1), torch.where(logits > 0, 1 - far, far))
        return mean.to(self.logits)

    @property
    def variance(self) -> Tensor:
        near, small, a = _split(self.logits.double())
        odds = _odds(a)
        return torch.where(near, _even(small, 2), a.reciprocal().square() - odds * (1 + odds)).to(self.logits)

    def _cont_bern_log_norm(self) -> Tensor:
        near, small, a = _split(self.logits.double())
        log_mass = torch.where(near, _even(small) - small.abs() / 2, _log_mass(a))
        return softplus(-self.logits.abs()) - log_mass.to(self.logits)

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        logits = self.logits.double()
        near, small, a = _split(logits)
        end = torch.where(near, 0.5, (logits > 0).double())
        log_mass = torch.where(near, _even(small), _log_mass(a))
        return (logits * (value - end) - log_mass).to(self.logits)

    def entropy(self) -> Tensor:
        """Differential entropy in nats: at most 0, that of the uniform distribution."""
        near, small, a = _split(self.logits.double())
        by_series = _even(small) - small.square() * _even(small, 1)
        return torch.where(near, by_series, _log_mass(a) + a * _distance(a)).to(self.logits)

    def cdf(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        logits = self.logits.double()
        near, small, a = _split(logits)
        x = value.double().clamp(0, 1)
        by_series = x * (small * (x - 1) / 2 + _even(small * x) - _even(small)).exp()
        falling = torch.expm1(-a * x) / torch.expm1(-a)
        far = torch.where(logits > 0, (a * (x - 1)).exp(), 1) * falling
        return torch.where(near, by_series, far).to(self.logits)

    def icdf(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        logits = self.logits.double()
        near, small, a = _split(logits, bound=1e-3)
        u = value.double()
        return torch.where(near, _near_quantile(small, u), _far_quantile(logits > 0, a, u)).to(self.logits)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        uniform = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
        return self.icdf(uniform)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        return self.rsample(sample_shape)


def _split(logits: Tensor, bound: float = NEAR) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of logits near 0, with safe values for both branches: the logit or 0, and its absolute value or 1."""
    near = logits.abs() < bound
    return near, torch.where(near, logits, 0), torch.where(near, 1, logits.abs())


def _even(logits: Tensor, order: int = 0) -> Tensor:
    """Series of log M - logit / 2, or of a derivative; the first derivative is divided by the logit."""
    first, second, third = (c * math.perm(2 * n, order) for n, c in enumerate(EVEN, 1))
    square = logits.square()
    value = (third * square + second) * square + first
    return value if order else square * value


def _log_mass(a: Tensor) -> Tensor:
    """log M at the logit -a."""
    return (torch.expm1(-a) / -a).log()


def _odds(a: Tensor) -> Tensor:
    """1 / (exp(a) - 1), without overflow."""
    return (-a).exp() / -torch.expm1(-a)


def _distance(a: Tensor) -> Tensor:
    """Distance of the mean from the end of highest density."""
    return a.reciprocal() - _odds(a)


def _near_quantile(logits: Tensor, u: Tensor) -> Tensor:
    """Series of log(1 - u + u exp(logit)) / logit: Σ_n κ_n logit^(n-1) / n!, with Bernoulli cumulants κ_n."""
    spread, skew = u * (1 - u), 1 - 2 * u
    cubic, quartic = spread * skew / 6, spread * (1 - 6 * spread) / 24
    return u + logits * (spread / 2 + logits * (cubic + logits * (quartic + logits * cubic * (1 - 12 * spread) / 20)))


def _far_quantile(rising: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """log(1 - u + u exp(logit)) / logit far from 0, measured from the end of [0, 1] of highest density."""
    here, there = torch.where(rising, u, 1 - u), torch.where(rising, 1 - u, u)
    change = there * torch.expm1(-a)
    deep = change < -0.5
    log = torch.where(deep, torch.logaddexp(here.log(), there.log() - a), torch.where(deep, 0, change).log1p())
    distance = (-log / a).clamp(0, 1)
    return torch.where(rising, 1 - distance, distance)


class ObservedElements(dist.TorchDistribution):
    """An elementwise distribution whose log density at NaN, an element that was not observed, is 0.

    All else, its moments and samples, is that of the given distribution: the decoder's answer for every element.

    Args:
        base: an elementwise distribution.
        inside: a value in its support, which replaces NaN.

    >>> ObservedElements(Normal(torch.zeros(2), torch.ones(2))).log_prob(torch.tensor([torch.nan, 0.0]))
    tensor([ 0.0000, -0.9189])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, base: Distribution, inside: float = 0.0):
        self.base, self.inside = base, inside
        super().__init__(base.batch_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ObservedElements":
        return ObservedElements(self.base.expand(Size(batch_shape)), self.inside)

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        seen = ~value.isnan()
        return torch.where(seen, self.base.log_prob(torch.where(seen, value, self.inside)), 0)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    @property
    def support(self) -> Any:
        return self.base.support

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    @property
    def mode(self) -> Tensor:
        return self.base.mode

    @property
    def variance(self) -> Tensor:
        return self.base.variance

    def entropy(self) -> Tensor:
        return self.base.entropy()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.rsample(Size(sample_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.sample(Size(sample_shape))


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _kl_continuous_bernoulli(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    """-H(p) - E_p log q, without the clamped probabilities of torch."""
    return -p.entropy() - q.log_prob(p.mean)


@register_kl(MultivariateNormal, Independent)
def _kl_multivariate_independent(p: MultivariateNormal, q: Independent) -> Tensor:
    """The KL of a normal with a full covariance to independent normals."""
    base = q.base_dist
    if not isinstance(base, torch.distributions.Normal) or len(q.event_shape) != 1:
        raise NotImplementedError
    log_det = p.scale_tril.diagonal(dim1=-2, dim2=-1).log()
    move = (p.loc - base.loc) / base.scale
    spread = (p.scale_tril / base.scale.unsqueeze(-1)).square().sum(-1)
    return (0.5 * (spread + move.square() - 1) + base.scale.log() - log_det).sum(-1)
