"""Use of a code: active units and the KL of each dimension."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from gae.inference.curvature import unit
from gae.inference.laws import codes_from

ACTIVE = 0.01  # minimum variance over the data of an active unit, in units of the prior's variance
DRAWS = 64  # at least, that estimate a mean without a closed form
CODES = 8192  # that are drawn for a batch: the fewer observations, the more exact their means must be


@dataclass(frozen=True)
class CodeUsage:
    """The use that densities q(z|x) of N observations make of each dimension of a code.

    Attributes:
        variance: variance over x of the mean of q(z|x), in units of the prior's variance.
        kl: mean over x of KL(q(z_d|x) ‖ q_w(z_d)), in nats; None if the marginals have no closed form.
    """

    variance: Float[Tensor, "*Z"]
    kl: Float[Tensor, "*Z"] | None

    @property
    def active(self) -> Bool[Tensor, "*Z"]:
        """Whether each unit is active: a variance above 0.01 (Burda et al. 2016, section 5.2)."""
        return self.variance > ACTIVE

    @property
    def collapsed(self) -> bool:
        """Whether no unit is active, so that codes say nothing about x (posterior collapse)."""
        return not bool(self.active.any())

    def summary(self) -> str:
        """The number of active units and the sum of the units' KL, as a phrase."""
        text = f"{int(self.active.sum())} of {self.active.numel()} units active"
        return text if self.kl is None else f"{text}, KL {float(self.kl.sum()):.3g} nats, summed over units"


def code_usage(laws: Iterable[Distribution], prior: Distribution) -> CodeUsage:
    """Use of a code by densities q(z|x), given in consecutive batches (B,) or (S, B), whose first row counts.

    A mean without a closed form is estimated from two independent halves of draws, whose covariance over x has the
    expectation of the variance of the means.

    Raises:
        ValueError: for fewer than two observations.

    >>> from gae.likelihood import StandardNormal
    >>> laws = [Independent(Normal(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([0.5, 1.0])), 1)]
    >>> code_usage(laws, StandardNormal(2)()).active
    tensor([ True, False])
    """
    pairs, divergences = [], []
    for q in laws:
        repeated = len(q.batch_shape) > 1
        pairs.append(_means(q)[:, 0] if repeated else _means(q))
        kl = _known_kl(q, prior)
        divergences.append(kl[0] if repeated and kl is not None else kl)
    first, second = torch.cat(pairs, 1)
    if len(first) < 2:
        raise ValueError(f"The variance over observations needs at least two of them, got {len(first)}.")
    covariance = ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / (len(first) - 1)
    known = [kl for kl in divergences if kl is not None]
    complete = len(known) == len(divergences)
    return CodeUsage(covariance / unit(prior).square(), torch.cat(known).mean(0) if complete else None)


def kl_per_dimension(q: Distribution, prior: Distribution) -> Float[Tensor, "..."]:
    """KL(q(z_d|x) ‖ q_w(z_d)) of the marginals of each dimension d, (*batch, *Z), in nats.

    For independent dimensions they add up to the KL of the whole code. For a full covariance they add up to less, by
    the total correlation of q(z|x), as long as the prior's dimensions are independent.

    Raises:
        TypeError: for densities whose marginals, or their KL, have no closed form.

    >>> from gae.likelihood import StandardNormal
    >>> q = Independent(Normal(torch.tensor([[1.0, 0.0]]), torch.ones(2)), 1)
    >>> kl_per_dimension(q, StandardNormal(2)())
    tensor([[0.5000, 0.0000]])
    """
    kl = _known_kl(q, prior)
    if kl is None:
        raise TypeError(
            f"The marginals of {type(q).__name__}, or their KL from those of the prior ({type(prior).__name__}), have "
            "no closed form. Use a diagonal or full normal, or `gae.analysis.diagnosis.mutual_information`, which "
            "estimates the KL of the whole code."
        )
    return kl


def total_correlation(q: Distribution) -> Float[Tensor, "..."]:
    """KL of normal densities q(z|x) from the product of their marginals, (*batch,), in nats: 0 for independent ones.

    >>> total_correlation(MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 1.0]])))  # -log 0.8
    tensor(0.2231)
    """
    if not isinstance(q, MultivariateNormal):
        return torch.zeros(q.batch_shape)
    log_scale = q.scale_tril.diagonal(dim1=-2, dim2=-1).log()
    return (0.5 * q.variance.log() - log_scale).sum(-1)


def _known_kl(q: Distribution, prior: Distribution) -> Float[Tensor, "..."] | None:
    own, reference = _marginals(q), _marginals(prior)
    if own is None or reference is None:
        return None
    try:
        return kl_divergence(own, reference)
    except NotImplementedError:
        return None


def _marginals(law: Distribution) -> Distribution | None:
    """The distribution of each dimension, of batch (*batch, *Z); None without a closed form."""
    if isinstance(law, MultivariateNormal):
        return Normal(law.mean, law.variance.sqrt(), validate_args=False)
    while isinstance(law, Independent):
        law = law.base_dist
    return None if law.event_shape else law


def _means(q: Distribution) -> Float[Tensor, "2 ..."]:
    """The mean of q twice, or its estimates from two halves of draws."""
    try:
        mean = q.mean
    except NotImplementedError:
        half = max(DRAWS, CODES // max(1, q.batch_shape.numel())) // 2
        halves = codes_from(q, 2 * half).unflatten(0, (2, half))
        return halves.mean(1)
    return torch.stack([mean, mean])
