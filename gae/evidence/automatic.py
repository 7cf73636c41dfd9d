"""Choice of the estimator of log p(x): exact, else importance sampling, else annealed importance sampling."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Num
from torch import Tensor
from torch.distributions import Distribution

from gae.data.checks import at_least_one
from gae.data.progress import counted
from gae.evidence.annealed import BDMC, ais, sandwich
from gae.evidence.base import Evidence, exact, is_exact, need_proper, without_warning
from gae.evidence.coverage import SHARE, defended, misses_mass
from gae.evidence.importance import importance
from gae.evidence.laplace import mixture_of_modes
from gae.likelihood import Likelihood
from gae.likelihood.door import door

Method = Literal["auto", "exact", "importance", "ais"]
Result = TypeVar("Result")
Over = Callable[[Sequence[Tensor], Callable[[Tensor], Any], str], list[Any]]  # does work on batches, in order
MORE = 10  # times as many samples from Laplace approximations, where the first proposal failed
ANNEALED = 32  # observations to which "auto" applies annealed importance sampling, at most, by default
TEMPERATURES, CHAINS, LEAPFROG = 200, 16, 5
SIMULATED = 16  # observations of the model, for the gap between forward and reverse annealing
GAP = 0.5  # nats; a larger gap, or one that is not known to be smaller, makes an estimate a lower bound


def in_turn(batches: Sequence[Tensor], work: Callable[[Tensor], Result], what: str) -> list[Result]:
    """Work on one batch after the other, by this process; ``what`` names the progress.

    >>> in_turn([torch.ones(1), torch.zeros(1)], float, "numbers")
    [1.0, 0.0]
    """
    return [work(batch) for batch in counted(batches, what)]


@torch.no_grad()
def estimate(
    likelihood: Likelihood,
    x: Num[Tensor, "N *X"],
    propose: Callable[[Tensor], Distribution],
    samples: int = 500,
    method: Method = "auto",
    batch_size: int = 100,
    annealed: int = ANNEALED,
    over: Over = in_turn,
) -> Evidence:
    """log p(x) by the first method that is tight, with the reason for each observation.

    ``"auto"`` takes the closed form if there is one, or the sum over the codes of a codebook. Otherwise it draws
    importance samples from the proposals; where Pareto k is above 0.7, the effective sample size below 100, or more
    than 2 % of p(x) lies where a proposal does not draw (``gae.evidence.coverage.misses_mass``), ten times as many from
    a mixture of the prior and Laplace approximations at several modes (vector codes only); and where that fails too,
    for at most ``annealed`` observations, it runs annealed importance sampling, checked by its reverse on 16 draws of
    the model. ``Evidence.tight`` is False where nothing is tight: the value is then a lower bound in expectation. No
    estimate is chosen by its value.

    Args:
        likelihood: the decoder and its prior.
        x: (N, *X).
        propose: maps a batch of x to proposal densities of batch (B,) or (R, B).
        samples: importance samples per observation.
        method: the rule above, or one method for all observations.
        batch_size: number of observations at a time.
        annealed: largest number of observations to which ``"auto"`` applies annealed importance sampling.
        over: does the work on the batches; ``gae.analysis.rows.scores`` shares it among processes.

    Raises:
        TypeError: with ``"exact"``, for a likelihood without a closed form.
        ValueError: for an unknown method; under a flat prior.

    >>> from gae.likelihood import LinearMixture
    >>> evidence = estimate(LinearMixture(1, 2, (5,)), torch.randn(3, 5), lambda x: None)
    >>> evidence.method, bool(evidence.tight.all())
    (('exact', 'exact', 'exact'), True)
    """
    if method not in ("auto", "exact", "importance", "ais"):
        raise ValueError(f"method must be 'auto', 'exact', 'importance' or 'ais', got {method!r}.")
    at_least_one("batch_size", batch_size)
    with door(likelihood, x), without_warning():  # `tight` says so for each observation
        if method == "exact" or (method == "auto" and is_exact(likelihood)):
            return Evidence.join(over(x.split(batch_size), partial(exact, likelihood), "log p(x)"))
        need_proper(likelihood)
        if method == "ais":
            return _annealed(likelihood, x, ("chosen",) * len(x), batch_size, over)

        def drawn(batch: Tensor) -> Evidence:
            proposal = propose(batch)
            drawn = importance(likelihood, batch, proposal, samples)
            return drawn if method == "importance" else _checked(likelihood, batch, proposal, drawn, samples)

        evidence = Evidence.join(over(x.split(batch_size), drawn, "importance sampling"))
        if method == "importance":
            return evidence
        return _improved(likelihood, x, evidence, samples, batch_size, annealed, over)


def _checked(likelihood: Likelihood, x: Tensor, proposal: Distribution, evidence: Evidence, samples: int) -> Evidence:
    """The evidence, loose where the proposal misses a part of the posterior, which its draws do not show."""
    if _loose(evidence).all():
        return evidence
    misses, spent = misses_mass(likelihood, x, proposal, evidence.log_p, samples)
    flagged = misses & ~_loose(evidence)
    reasons = tuple(
        f"{reason.replace('tight', 'loose')}, but codes elsewhere hold over {SHARE:.0%} of p(x)" if flag else reason
        for reason, flag in zip(evidence.reason, flagged.tolist(), strict=True)
    )
    assert evidence.tight is not None
    return replace(evidence, tight=evidence.tight & ~misses, reason=reasons, evaluations=evidence.evaluations + spent)


def _improved(
    likelihood: Likelihood, x: Tensor, evidence: Evidence, samples: int, batch_size: int, annealed: int, over: Over
) -> Evidence:
    """The evidence with other estimates where importance sampling is not tight."""
    if len(likelihood.latent_shape) == 1 and (failed := _loose(evidence)).any():

        def around(batch: Tensor) -> Evidence:
            proposal = defended(mixture_of_modes(likelihood, batch), likelihood.prior)
            return importance(likelihood, batch, proposal, MORE * samples)

        better = Evidence.join(over(x[failed].split(batch_size), around, "importance sampling about the modes"))
        reasons = tuple(f"{reason} (proposal: Laplace approximations at several modes)" for reason in better.reason)
        evidence = _patched(evidence, failed, replace(better, reason=reasons))
    failed = _loose(evidence)
    first = failed & (failed.cumsum(0) <= annealed)
    for i in (failed & ~first).nonzero().flatten().tolist():
        reason = f"{evidence.reason[i]}; annealing is limited to {annealed} observations"
        evidence = replace(evidence, reason=(*evidence.reason[:i], reason, *evidence.reason[i + 1 :]))
    if not first.any():
        return evidence
    causes = tuple(evidence.reason[i] for i in first.nonzero().flatten().tolist())
    return _patched(evidence, first, _annealed(likelihood, x[first], causes, batch_size, over))


def _annealed(likelihood: Likelihood, x: Tensor, causes: tuple[str, ...], batch_size: int, over: Over) -> Evidence:
    """Annealed importance sampling, tight if forward and reverse agree on draws of the model."""
    options = (TEMPERATURES, CHAINS, LEAPFROG)
    evidence = Evidence.join(over(x.split(batch_size), lambda batch: ais(likelihood, batch, *options), "annealing"))
    bounds: BDMC = over([x[:1]], lambda _: sandwich(likelihood, SIMULATED, *options), "reverse annealing")[0]
    gap, error = float(bounds.gap.mean()), float(bounds.gap.std()) / math.sqrt(SIMULATED)
    tight = ~evidence.unreliable & (gap + 2 * error <= GAP)
    checked = f"gap {gap:.2g} ± {error:.2g} nats to reverse annealing on {SIMULATED} draws of the model"
    reasons = tuple(f"{cause}; annealed, {checked}" for cause in causes)
    return replace(evidence, method=("ais",) * len(x), reason=reasons, tight=tight)


def _loose(evidence: Evidence) -> Bool[Tensor, " B"]:
    assert evidence.tight is not None
    return ~evidence.tight


def _patched(evidence: Evidence, rows: Bool[Tensor, " B"], other: Evidence) -> Evidence:
    """The evidence with other estimates in some rows. Evaluations add up, on average over all rows."""
    places = {int(i): j for j, i in enumerate(rows.nonzero().flatten())}

    def tensor(name: str) -> Tensor | None:
        value, new = getattr(evidence, name), getattr(other, name)
        return None if value is None or new is None else value.masked_scatter(rows, new)

    def texts(name: str) -> tuple[str, ...]:
        old, new = getattr(evidence, name), getattr(other, name)
        return tuple(new[places[i]] if i in places else text for i, text in enumerate(old))

    values: dict[str, Any] = {name: tensor(name) for name in ("log_p", "standard_error", "ess", "pareto_k", "tight")}
    spent = round(other.evaluations * len(places) / len(rows))
    return replace(
        evidence, **values, evaluations=evidence.evaluations + spent, method=texts("method"), reason=texts("reason")
    )
