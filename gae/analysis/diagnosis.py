"""Diagnosis of a code: active units, KL per dimension, information, rate and distortion, gain over no code."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.distributions import Distribution

from gae.analysis.baseline import without_code
from gae.analysis.metrics import Entry, mean_and_error
from gae.analysis.rate_distortion import RateDistortion, densities, rate_distortion
from gae.autoencoder import Autoencoder
from gae.data.checks import at_least_one
from gae.evidence.usage import CodeUsage, code_usage, kl_per_dimension
from gae.inference.laws import codes_from
from gae.likelihood import Likelihood

__all__ = [
    "Diagnosis",
    "Information",
    "active_units",
    "diagnose",
    "kl_per_dimension",
    "mutual_information",
    "without_code",
]

AT_ONCE = 2**22  # numbers in memory for the densities of draws under all q(z|x)


@dataclass(frozen=True)
class Information:
    """The mean KL split into mutual information and the aggregate's distance from the prior (Hoffman & Johnson 2016).

    E_x KL(q(z|x) ‖ q_w(z)) = I_q(x; z) + KL(q(z) ‖ q_w(z)), with the aggregate posterior q(z) = 1/N Σ_n q(z|x_n). The
    parts are those of the N given observations. As an estimate for the distribution that they come from, the mutual
    information is a lower bound in expectation, at most log N, and the aggregate's KL an upper bound.

    Attributes:
        kl: of each observation, by sampling, in nats.
        mutual_information: each observation's contribution, in nats; the mean over observations is I_q(x; z).
    """

    kl: Float[Tensor, " N"]
    mutual_information: Float[Tensor, " N"]

    @property
    def aggregate_kl(self) -> Float[Tensor, " N"]:
        """Contributions to KL(q(z) ‖ q_w(z)), their mean."""
        return self.kl - self.mutual_information


@dataclass(frozen=True)
class Diagnosis:
    """Evidence on whether a code is used: usage of its units, information, rate and distortion.

    Attributes:
        gain: the bound minus log p(x) of a model without a code, for each observation; None without training data.
    """

    usage: CodeUsage
    information: Information
    rate_distortion: RateDistortion
    gain: Float[Tensor, " N"] | None

    def table(self) -> dict[str, Entry]:
        """Means over observations with standard errors, in nats, and the number of active units."""
        columns = {
            "rate": self.rate_distortion.rate,
            "distortion": self.rate_distortion.distortion,
            "mutual information": self.information.mutual_information,
            "aggregate KL": self.information.aggregate_kl,
        }
        if self.gain is not None:
            columns["gain over no code"] = self.gain
        units = {"active units": {"mean": float(self.usage.active.sum()), "se": None}}
        return {**units, **{name: mean_and_error(values) for name, values in columns.items()}}


def diagnose(
    model: Autoencoder,
    x: Num[Tensor, "N *X"],
    train: Num[Tensor, "M *X"] | None = None,
    draws: int = 100,
    batch_size: int = 100,
) -> Diagnosis:
    """Diagnosis of a model's code on observations x.

    Args:
        x: observations.
        train: training data, to which a model without a code is fitted, for ``Diagnosis.gain``.
        draws: number of samples of q(z|x) per observation for rate and distortion; a tenth of them, at least one, for
            the information.
        batch_size: number of observations encoded at a time.

    Raises:
        ValueError: for an engine without a density q(z|x); under a flat prior; for fewer than two observations.
        TypeError: with ``train``, for a likelihood that is not a head (``without_code``).

    >>> from gae.systems import vae
    >>> diagnose(vae((5,), latent=2), torch.randn(30, 5), torch.randn(30, 5)).usage.variance.shape
    torch.Size([2])
    """
    gain = None
    trade = rate_distortion(model, x, draws, batch_size)
    if train is not None:
        gain = trade.bound - without_code(model.likelihood, train, x)
    information = mutual_information(model, x, max(draws // 10, 1), batch_size)
    return Diagnosis(active_units(model, x, batch_size), information, trade, gain)


@torch.no_grad()
def active_units(model: Autoencoder, x: Num[Tensor, "N *X"], batch_size: int = 100) -> CodeUsage:
    """Active units of a model's code on observations x (Burda et al. 2016), and the KL of each dimension.

    Raises:
        ValueError: for an engine without a density q(z|x); under a flat prior; for fewer than two observations.

    >>> from gae.systems import ppca
    >>> active_units(ppca((5,), latent=2), torch.randn(30, 5)).active.shape
    torch.Size([2])
    """
    return code_usage((q for _, q in densities(model, x, batch_size)), model.likelihood.prior)


@torch.no_grad()
def mutual_information(
    model: Autoencoder, x: Num[Tensor, "N *X"], draws: int = 10, batch_size: int = 100
) -> Information:
    """Mutual information I_q(x; z) and the aggregate's distance from the prior, by sampling from each q(z|x).

    The cost is N² · draws densities of a code.

    Raises:
        ValueError: for an engine without a density q(z|x); under a flat prior.

    >>> from gae.systems import ppca
    >>> information = mutual_information(ppca((5,), latent=2), torch.randn(30, 5))
    >>> bool(information.mutual_information.mean() < torch.tensor(30.0).log())
    True
    """
    at_least_one("draws", draws)
    laws = [q for _, q in densities(model, x, batch_size)]
    parts = [_information(q, laws, model.likelihood, draws, len(x)) for q in laws]
    kl, mutual = (torch.cat(column) for column in zip(*parts, strict=True))
    return Information(kl, mutual)


def _information(
    q: Distribution, laws: list[Distribution], likelihood: Likelihood, draws: int, size: int
) -> Float[Tensor, "2 B"]:
    """KL and mutual information of the observations of q, whose draws are compared with all densities."""
    z = codes_from(q, draws)
    own, prior = q.log_prob(z), likelihood.prior.log_prob(z)
    rows = max(AT_ONCE // (size * likelihood.latent_shape.numel()), 1)
    flat = z.flatten(0, 1).unsqueeze(1).split(rows)
    aggregate = torch.cat([torch.cat([law.log_prob(part) for law in laws], 1).logsumexp(1) for part in flat])
    aggregate = aggregate.reshape(own.shape) - torch.tensor(size).log().to(own)
    return torch.stack([(own - prior).mean(0), (own - aggregate).mean(0)])
