"""Rate and distortion of a code, and their curve over the weight of the KL."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from gae.analysis.inference_gap import lower_bound, one_row
from gae.autoencoder import Autoencoder
from gae.data.checks import at_least_one
from gae.evidence.base import need_proper
from gae.inference.laws import codes_from
from gae.likelihood import Likelihood
from gae.likelihood.door import door
from gae.training import fit
from gae.training.collapse import CollapseWarning


@dataclass(frozen=True)
class RateDistortion:
    """Rate KL(q(z|x) ‖ q_w(z)) and distortion -E_q[log q_r(x|z)] of each observation, in nats (Alemi et al. 2018)."""

    rate: Float[Tensor, " N"]
    distortion: Float[Tensor, " N"]

    @property
    def bound(self) -> Float[Tensor, " N"]:
        """The evidence lower bound, -(rate + distortion)."""
        return -(self.rate + self.distortion)


@torch.no_grad()
def rate_distortion(
    model: Autoencoder, x: Num[Tensor, "N *X"], draws: int = 100, batch_size: int = 100
) -> RateDistortion:
    """Rate and distortion of a model on observations x, with its own engine.

    Their sum is minus ``gae.analysis.inference_gap.lower_bound``, with its control variates. The rate is exact where
    the KL has a closed form, else estimated from as many samples.

    Raises:
        ValueError: for an engine without a density q(z|x); under a flat prior; for fewer than four draws.

    >>> from gae.systems import ppca
    >>> model, x = ppca((5,), latent=2), torch.randn(30, 5)
    >>> bool((rate_distortion(model, x).bound - model.likelihood.log_evidence(x).log_p).abs().max() < 1e-4)
    True
    """
    parts = []
    for batch, q in densities(model, x, batch_size):
        rate = _kl(q, model.likelihood, draws)
        parts.append(torch.stack([rate, -lower_bound(model.likelihood, batch, q, draws).value - rate]))
    return RateDistortion(*torch.cat(parts, 1))


def rate_distortion_curve(
    build: Callable[[float], Autoencoder],
    data: Any,
    betas: Iterable[float],
    x: Num[Tensor, "N *X"],
    **options: Any,
) -> dict[float, RateDistortion]:
    """Rate–distortion curve: rate and distortion on x of a model trained for each weight β of the KL.

    Args:
        build: the untrained model of one β, such as ``lambda beta: gae.vae(digits, beta=beta)``.
        data: training data, as for ``gae.fit``.
        betas: weights of the KL.
        x: observations to evaluate on.
        options: of ``gae.fit``. A collapsed code is a point of the curve, so it is not warned of.

    Raises:
        ValueError: as ``rate_distortion`` and ``gae.fit`` do.

    >>> from gae.systems import vae
    >>> x = torch.randn(20, 5)
    >>> curve = rate_distortion_curve(
    ...     lambda beta: vae((5,), latent=2, beta=beta), x, [0.5, 2.0], x, epochs=1, progress=False
    ... )
    >>> list(curve)
    [0.5, 2.0]
    """
    points = {}
    for beta in betas:
        model = build(beta)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)
            fit(model, data, **options)
        points[beta] = rate_distortion(model.eval(), x)
    return points


def densities(model: Autoencoder, x: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Distribution]]:
    """Batches of x with the engine's densities q(z|x) of batch shape (B,).

    Raises:
        ValueError: for an engine without a density q(z|x); under a flat prior.
    """
    need_proper(model.likelihood)
    at_least_one("batch_size", batch_size)
    with door(model.likelihood, x):
        for batch in x.split(batch_size):
            code = model.inference.infer(model.likelihood, batch)
            if code.q is None or code.k is not None:
                raise ValueError(
                    f"`{type(model.inference).__name__}` has no density q(z|x) over z alone, so its code has no "
                    "KL. Use an engine with one: `Amortized` with a guide, `Ascent(family=MeanField())`, `ClosedForm`."
                )
            yield batch, one_row(code.q)


def _kl(q: Distribution, likelihood: Likelihood, draws: int) -> Float[Tensor, " B"]:
    try:
        return kl_divergence(q, likelihood.prior)
    except NotImplementedError:
        z = codes_from(q, draws)
        return (q.log_prob(z) - likelihood.prior.log_prob(z)).mean(0)
