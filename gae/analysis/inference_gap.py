"""Inference gap: decomposition into approximation gap and amortisation gap (Cremer et al. 2018)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal

from gae.analysis.best_flow import best_flow, need_copies
from gae.analysis.gap import Bound, Gap
from gae.autoencoder import Autoencoder
from gae.evidence import estimate, exact
from gae.evidence.base import need_proper
from gae.evidence.laplace import mode_approximation
from gae.inference import Argmax, Ascent, Code, Detach, Family, FullCovariance, Inference, MeanField, Status
from gae.inference.curvature import expansion
from gae.inference.flows import NormalizingFlow
from gae.inference.laws import codes_from, need_density, need_rows, point_of, spread_of
from gae.inference.modes import density_step
from gae.inference.starts import Given
from gae.likelihood import CodebookDistribution, Likelihood
from gae.likelihood.codebook import ENUMERABLE
from gae.likelihood.door import checked, door
from gae.training.group import over_blocks

if TYPE_CHECKING:
    import lightning_fabric

FAMILIES: dict[str, type[MeanField]] = {"mean-field": MeanField, "full covariance": FullCovariance}
FLOW = "flow"  # the family of an encoder whose densities are flows
ONE_CODE = "one code"  # the family of an encoder of codebook vectors: all mass at one code
WIDER = 1.2  # scale of a proposal relative to q*, whose tails are lighter than those of the posterior


@torch.no_grad()
def inference_gap(
    autoencoder: Autoencoder | Likelihood,
    x: Num[Tensor, "B *X"],
    families: Sequence[str] = ("mean-field", "full covariance"),
    samples: int = 5000,
    draws: int = 1000,
    noise: int | None = None,
    steps: int = 200,
    batch_size: int = 100,
    fabric: "lightning_fabric.Fabric | None" = None,
) -> Gap:
    """Approximation and amortisation gap of each observation.

    For every family, L-BFGS maximises the ELBO of each observation separately, with noise that is fixed during the
    optimisation and matched in its first two moments. It starts from the encoder's density, or without an encoder from
    the Laplace approximation at the highest of several modes (``mode_approximation``). All bounds are then estimated
    with fresh samples.

    If the encoder's densities are flows of a ``FlowEncoder``, the flows are one more family, ``"flow"``, whose best
    member is found by ``best_flow``, from the encoder's flow or, where it is better, that flow with the moments of the
    last normal family. For any other density, the columns are those of the normal families, the encoder's
    own bound and the inference gap; its amortisation gap is not defined, since the best member of its family is not
    known.

    A code of codebook vectors is discrete: its log joint mass is a bound, that of a density with all mass at one code.
    The only family is then ``"one code"``, whose best member is the best of all K^P codes by enumeration, and log p(x)
    is the sum over them. Everything is exact, without draws.

    Args:
        autoencoder: a model whose engine has a density q(z|x), for the amortisation gap. With any other engine, or a
            likelihood alone, only approximation gaps are estimated.
        x: (B, *X).
        families: names in ``FAMILIES``.
        samples: number S of importance samples, if log p(x) is not known exactly.
        draws: number of samples per observation, to estimate each bound.
        noise: number of samples per objective value of the optimisation; by default four times the size of a code.
        steps: maximum number of optimisation steps; a flow takes twice as many, by Adam.
        batch_size: number of observations at a time; bounds the memory, most of which is for importance samples.
        fabric: shares the batches among its processes (``gae.training.launch``), each of which returns the whole gap;
            the model and x are on its device. The draws of a batch then follow from its index and the last seed of
            ``torch.manual_seed``, which is the same in each process.

    Raises:
        ValueError: for unknown families, arguments out of range, a flat prior, codes that are not vectors, more than
            4096 codes of a codebook, or x that does not fit the likelihood.
        TypeError: for a flow of which there cannot be a copy for each observation.

    >>> from gae.likelihood import LinearMixture
    >>> from gae.inference import ClosedForm
    >>> model = Autoencoder(LinearMixture(1, 2, (5,)).double(), ClosedForm())
    >>> gap = inference_gap(model, torch.randn(3, 5, dtype=torch.float64))
    >>> bool(gap.approximation("full covariance").abs().max() < 1e-5)
    True
    """
    likelihood, engine = _parts(autoencoder)
    with door(likelihood, x):
        _check(likelihood, families, samples, draws, batch_size)
        batches = x.split(batch_size)

        def work(batch: Tensor) -> Gap:
            return _gap(likelihood, engine, batch, families, samples, draws, noise, steps)

        if fabric is None:
            return Gap.join([work(batch) for batch in batches])
        return Gap.join(list(over_blocks(fabric, batches, work, torch.initial_seed())))


def _gap(
    likelihood: Likelihood,
    engine: Inference | None,
    x: Tensor,
    families: Sequence[str],
    samples: int,
    draws: int,
    noise: int | None,
    steps: int,
) -> Gap:
    if isinstance(likelihood.prior, CodebookDistribution):
        return _code_gap(likelihood, engine, x)
    q = None if engine is None else encoder_density(engine, likelihood, x)
    if isinstance(q, NormalizingFlow):
        need_copies(q)
    start = q if q is not None and _normal(q) is not None else mode_approximation(likelihood, x)
    width = likelihood.latent_shape.numel()
    best = {}
    for name in families:
        density, status = best_normal(name, likelihood, x, start, noise or 4 * width, steps)
        best[name] = replace(lower_bound(likelihood, x, density, draws), status=status)
    proposal = best[families[-1]].q
    assert proposal is not None
    if isinstance(q, NormalizingFlow):
        start = flow_start(likelihood, x, q, proposal, draws)
        best[FLOW] = lower_bound(likelihood, x, best_flow(likelihood, x, start, steps=2 * steps), draws)
    encoder = None if q is None else lower_bound(likelihood, x, q, draws)
    evidence = estimate(likelihood, x, lambda _: widened(proposal), samples, batch_size=len(x))
    return Gap(evidence, best, encoder, _family_of(q, best))


def _code_gap(likelihood: Likelihood, engine: Inference | None, x: Tensor) -> Gap:
    """The gap of a code of codebook vectors, by enumeration."""
    best = _code_bound(Argmax().infer(likelihood, x), likelihood, x)
    best = replace(best, status=torch.full((len(x),), int(Status.converged), device=x.device))
    code = None if engine is None else engine.infer(likelihood, x)
    encoder = None if code is None or len(code.z) != 1 else _code_bound(code, likelihood, x)
    return Gap(exact(likelihood, x), {ONE_CODE: best}, encoder, None if encoder is None else ONE_CODE)


def _code_bound(code: Code, likelihood: Likelihood, x: Tensor) -> Bound:
    value = likelihood.log_joint(x, code.z)[0]
    return Bound(value, torch.zeros_like(value), None)


def flow_start(
    likelihood: Likelihood, x: Tensor, q: NormalizingFlow, normal: Distribution, draws: int
) -> NormalizingFlow:
    """The encoder's flow, or where it is better, the same flow moved and scaled to the moments of a normal density."""
    ratio = normal.stddev / spread_of(q)
    moved = NormalizingFlow(q.flow, normal.mean + ratio * (q.loc - point_of(q)), ratio * q.scale, q.context)
    bounds = [lower_bound(likelihood, x, law, draws).value for law in (q, moved)]
    is_moved = (bounds[0] <= bounds[1]).unsqueeze(1)
    loc, scale = torch.where(is_moved, moved.loc, q.loc), torch.where(is_moved, moved.scale, q.scale)
    return NormalizingFlow(q.flow, loc, scale, q.context)


@torch.no_grad()
@checked
def lower_bound(
    likelihood: Likelihood, x: Num[Tensor, "B *X"], q: Distribution, draws: int = 1000, chunk: int = 100
) -> Bound:
    """Unbiased estimate of the ELBO of densities q, E_q[log q(x, z)] + H(q), with fresh samples.

    For a normal q, the second-order expansion of log q(x, z) at its mean, whose expectation is known, is a control
    variate; its weight for one half of the samples is estimated from the other half. The value is exact for a
    linear-Gaussian decoder.

    Raises:
        ValueError: for fewer than four draws, or a distribution of another shape than (B,), or that is not a density
            over all elements of a code.
    """
    if draws < 4:
        raise ValueError(f"draws must be at least 4, got {draws}.")
    need_rows(q, likelihood, x, "(B,)")
    need_density(q)
    normal = _normal(q)
    parts = []
    expanded = None if normal is None else expansion(likelihood, x, normal.mean)
    for size in _chunks(draws, chunk):
        z = codes_from(q if normal is None else normal, size)
        log_joint = likelihood.log_joint(x, z)
        variate = -q.log_prob(z) if normal is None or expanded is None else _quadratic(z - normal.mean, *expanded)
        parts.append(torch.stack([log_joint, variate]))
    log_joint, variate = torch.cat(parts, 1)
    if normal is None or expanded is None:
        values = log_joint + variate
    else:
        known = expanded[0] + 0.5 * torch.einsum("bij,bij->b", expanded[2], normal.covariance_matrix)
        values = _controlled(log_joint, variate, known) + normal.entropy()
    return Bound(values.mean(0), values.std(0) / math.sqrt(draws), q)


def widened(q: Distribution, factor: float = WIDER) -> Distribution:
    """A normal of ``factor`` times the standard deviations of a normal q, as a proposal; any other q itself."""
    normal = _normal(q)
    if normal is None:
        return q
    return MultivariateNormal(normal.mean, scale_tril=factor * normal.scale_tril, validate_args=False)


def _parts(autoencoder: Autoencoder | Likelihood) -> tuple[Likelihood, Inference | None]:
    if isinstance(autoencoder, Autoencoder):
        return autoencoder.likelihood, autoencoder.inference
    return autoencoder, None


def _check(likelihood: Likelihood, families: Sequence[str], samples: int, draws: int, batch_size: int) -> None:
    prior = likelihood.prior
    if isinstance(prior, CodebookDistribution) and not prior.is_enumerable:
        raise ValueError(
            f"The gap of a code of codebook vectors needs the best of all codes and the sum over them, but "
            f"{prior.event_shape[0]} positions of {len(prior.vectors)} vectors each have more than {ENUMERABLE} codes. "
            "Compare the `log_joint` of the model's codes with that of `IteratedConditionalModes(engine)`, which shows "
            "at least how much its encoder loses, or train a model of fewer positions or vectors."
        )
    if not isinstance(prior, CodebookDistribution):
        need_proper(likelihood)
    unknown = [name for name in families if name not in FAMILIES]
    if unknown or not families:
        raise ValueError(f"Unknown family {unknown[0] if unknown else '(none)'}. Valid names: {', '.join(FAMILIES)}.")
    if len(likelihood.latent_shape) != 1 and not isinstance(prior, CodebookDistribution):
        raise ValueError(f"The inference gap needs vector codes, got codes of shape {tuple(likelihood.latent_shape)}.")
    if samples < 2 or draws < 4:
        raise ValueError(f"Need samples >= 2 and draws >= 4, got {samples} and {draws}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")


def encoder_density(engine: Inference, likelihood: Likelihood, x: Tensor) -> Distribution | None:
    """The engine's density q(z|x) of batch shape (B,); None if it has none."""
    code = engine.infer(likelihood, x)
    if code.q is None or code.k is not None:
        return None
    return one_row(code.q)


def one_row(q: Distribution) -> Distribution:
    """The density of batch shape (B,) that a density of batch shape (S, B) repeats.

    Raises:
        ValueError: for a distribution that is neither normal nor a flow, whose rows cannot be separated.
    """
    if len(q.batch_shape) < 2:
        return q
    if isinstance(q, NormalizingFlow):
        return NormalizingFlow(q.flow, q.loc[0], q.scale[0], q.context[0])
    if isinstance(q, MultivariateNormal):
        return MultivariateNormal(q.loc[0], scale_tril=q.scale_tril[0], validate_args=False)
    if _normal(q) is None:
        raise ValueError(
            f"One density q(z|x) per observation is needed, got {type(q).__name__} of batch {tuple(q.batch_shape)}. "
            "Set the engine's samples to 1."
        )
    base = torch.distributions.Normal(q.mean[0], q.stddev[0], validate_args=False)
    return Independent(base, 1, validate_args=False)


def best_normal(
    name: str, likelihood: Likelihood, x: Num[Tensor, "B *X"], start: Distribution, noise: int, steps: int
) -> tuple[Distribution, Int[Tensor, " B"]]:
    """The density q* of a family in ``FAMILIES`` that maximises the ELBO of each observation, and how each solve ended.

    Args:
        name: of the family.
        likelihood: the decoder and its prior.
        x: (B, *X).
        start: a normal density of batch shape (B,).
        noise: number of samples per objective value.
        steps: maximum number of optimisation steps.
    """
    family: Family = FAMILIES[name](noise, matched=True)
    engine = Ascent(Given.density(start), density_step(likelihood, x), steps, tol=1e-5, family=family, adjoint=Detach())
    code = engine.infer(likelihood, x)
    assert code.q is not None and code.solve is not None
    return one_row(code.q), code.solve.status[0]


def _family_of(q: Distribution | None, best: dict[str, Bound]) -> str | None:
    if isinstance(q, NormalizingFlow):
        return FLOW
    if q is None or _normal(q) is None:
        return None
    name = "full covariance" if isinstance(q, MultivariateNormal) else "mean-field"
    return name if name in best else None


def _normal(q: Distribution) -> MultivariateNormal | None:
    """q as a multivariate normal; None if it is not normal."""
    if isinstance(q, MultivariateNormal):
        return q
    base = q.base_dist if isinstance(q, torch.distributions.Independent) else None
    if isinstance(base, torch.distributions.Normal) and len(q.event_shape) == 1:
        return MultivariateNormal(base.loc, scale_tril=base.scale.diag_embed(), validate_args=False)
    return None


def _quadratic(offset: Tensor, value: Tensor, grad: Tensor, hessian: Tensor) -> Float[Tensor, "S B"]:
    quadratic = torch.einsum("sbi,bij,sbj->sb", offset, hessian, offset)
    return value + (offset * grad).sum(2) + 0.5 * quadratic


def _controlled(values: Float[Tensor, "S B"], variate: Float[Tensor, "S B"], known: Tensor) -> Float[Tensor, "S B"]:
    """Control variates: values - c (variate - known), with c by regression on the other half of the samples."""
    centred = [part - part.mean(0) for half in (values, variate) for part in half.chunk(2)]
    weights = []
    for value, other in zip(centred[:2], centred[2:], strict=True):
        square = other.square().sum(0)
        weights.append(torch.where(square > 0, (value * other).sum(0) / square.clamp_min(1e-300), 0.0))
    halves = zip(values.chunk(2), variate.chunk(2), reversed(weights), strict=True)
    return torch.cat([value - weight * (other - known) for value, other, weight in halves])


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
