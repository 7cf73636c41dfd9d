"""Importance sampling of log p(x)."""

import math
from dataclasses import replace

import torch
from jaxtyping import Num
from torch import Tensor
from torch.distributions import Distribution

from gae.data.checks import at_least_one
from gae.evidence.base import Evidence, from_log_weights, need_proper
from gae.inference import Inference
from gae.inference.laws import codes_from, log_density, need_cover, need_density, need_rows
from gae.likelihood import Likelihood
from gae.likelihood.door import checked
from gae.likelihood.evidence import HEAVY, TIGHT_ESS


@torch.no_grad()
@checked
def importance(
    likelihood: Likelihood,
    x: Num[Tensor, "B *X"],
    proposal: Distribution | Inference,
    samples: int = 500,
    chunk: int = 100,
) -> Evidence:
    """Importance sampling, log 1/S Σ_s q(x, z_s) / proposal(z_s): a lower bound of log p(x) in expectation.

    Args:
        likelihood: the decoder and its prior.
        x: (B, *X).
        proposal: a distribution, batch (B,) or (R, B), event Z, or an engine with such a density. It must cover the
            posterior.
        samples: S, rounded up to a multiple of R.
        chunk: maximum number of draws in memory at once.

    Raises:
        ValueError: for fewer than two samples; under a flat prior, for which no density p(x) exists; for an engine
            without a density, or one that chooses a component; for a proposal of another shape, without a density over
            all elements of a code, or that does not cover the prior.

    >>> from gae.inference import ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> model, x = LinearMixture(1, 2, (5,)), torch.randn(3, 5)
    >>> evidence = importance(model, x, ClosedForm(), samples=4)
    >>> bool((evidence.log_p - model.log_evidence(x).log_p).abs().max() < 1e-4)  # the exact posterior has no variance
    True
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, for a standard error, got {samples}.")
    at_least_one("chunk", chunk)
    need_proper(likelihood)
    if isinstance(proposal, Inference):
        proposal = _density(proposal, likelihood, x)
    need_rows(proposal, likelihood, x, "(B,) or (R, B)")
    need_density(proposal)
    need_cover(proposal, likelihood, x)
    rows = 1 if len(proposal.batch_shape) == 1 else proposal.batch_shape[0]
    log_weights = []
    rounds, step = math.ceil(samples / rows), max(chunk // rows, 1)
    for start in range(0, rounds, step):
        z = codes_from(proposal, min(step, rounds - start))
        log_q = log_density(proposal, z).reshape(-1, len(x))
        log_weights.append(likelihood.log_joint(x, z.reshape(-1, len(x), *likelihood.latent_shape)) - log_q)
    return _judged(from_log_weights(torch.cat(log_weights), rounds * rows))


def _judged(evidence: Evidence) -> Evidence:
    """The evidence with its method, and whether it is tight: effective sample size >= 100 and Pareto k <= 0.7."""
    assert evidence.ess is not None and evidence.pareto_k is not None
    tight = (evidence.ess >= TIGHT_ESS) & ~(evidence.pareto_k > HEAVY)
    rows = zip(evidence.ess.tolist(), evidence.pareto_k.tolist(), tight.tolist(), strict=True)
    reasons = tuple(f"{'tight' if good else 'loose'}: Pareto k {k:.2f}, ESS {ess:.0f}" for ess, k, good in rows)
    return replace(evidence, method=("importance",) * len(reasons), reason=reasons, tight=tight)


def _density(engine: Inference, likelihood: Likelihood, x: Tensor) -> Distribution:
    code = engine.infer(likelihood, x)
    if code.q is None or code.k is not None:
        reason = "returns no density q(z|x)" if code.q is None else "also chooses a component k"
        raise ValueError(
            f"`{type(engine).__name__}` {reason}. Use an engine with a density over z alone, or "
            "`laplace_approximation(likelihood, x, code)` as the proposal."
        )
    return code.q
