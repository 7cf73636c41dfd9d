"""The gap of a model's engine on test samples, of one training or over several of the same system."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from gae.analysis.costs import gap_costs
from gae.analysis.engines import SUBJECTS
from gae.analysis.estimates import estimate
from gae.analysis.inference_gap import FAMILIES, ONE_CODE, encoder_density, inference_gap
from gae.analysis.matrix import LBFGS_STEPS, code_use, drawn_use, refined
from gae.analysis.metrics import Entry, codebook_perplexity, mean_and_error
from gae.autoencoder import Autoencoder
from gae.data.progress import progress
from gae.evidence import Evidence
from gae.inference.laws import rearranged
from gae.inference.modes import density_step
from gae.likelihood import CodebookDistribution
from gae.reports.answers import codes_answer, families_answer, other_answer
from gae.reports.sentences import answer
from gae.training.group import over_blocks

if TYPE_CHECKING:
    import lightning_fabric

FEW_STEPS = 4  # from the encoder
BATCH_SIZE = 100  # observations per step of the progress bar
SAMPLING = "sampling s.e."

Columns = dict[str, Tensor]
Block = tuple[Columns, str | None, list[Distribution], Evidence]


@dataclass(frozen=True)
class GapMeasurement:
    """The gap of a model's engine on some observations.

    Attributes:
        model: on the CPU, as is ``x``.
        x: (N, *X).
        columns: a value of each observation for each quantity, (N,), most in nats; see ``Gap.columns``.
        family: of the engine's densities; None if it has none whose best member is found.
        use: of the code (``code_use``); None if it is not known.
        evidence: log p(x), with the method for each observation.
    """

    model: Autoencoder
    x: Tensor
    columns: Columns
    family: str | None
    use: Entry | None
    evidence: Evidence


def measure_gap(
    fabric: "lightning_fabric.Fabric",
    model: Autoencoder,
    x: Tensor,
    *,
    samples: int,
    draws: int,
    steps: int,
    seed: int,
) -> GapMeasurement:
    """Measures the gap; several processes share blocks of observations, and each gets all values.

    Args:
        fabric: of the model's device.
        model: moved to the CPU in the end.
        x: (N, *X).
        samples: importance samples per observation.
        draws: draws per bound and observation.
        steps: the most steps of each local optimisation.
        seed: of all draws.
    """
    batches = x.split(BATCH_SIZE)
    total = math.ceil(len(batches) / fabric.world_size)
    with progress("samples, by the hundred", total, shown=fabric.is_global_zero) as advance:

        def work(batch: Tensor) -> Block:
            result = _block(model, batch, samples, draws, steps)
            advance()
            return result

        parts = list(over_blocks(fabric, batches, work, seed))
    columns = {name: torch.cat([part[name] for part, *_ in parts]) for name in parts[0][0]}
    family, laws = parts[0][1], [law for part in parts for law in part[2]]
    model, x = model.cpu(), x.cpu()
    return GapMeasurement(model, x, columns, family, _use(model, x, laws), Evidence.join([part[3] for part in parts]))


def _block(model: Autoencoder, batch: Tensor, samples: int, draws: int, steps: int) -> Block:
    """Columns, the family of the engine's densities, these (of normal ones only), and log p(x)."""
    gaps = inference_gap(model, batch, samples=samples, draws=draws, steps=steps)
    columns, family, laws = gaps.columns(), gaps.family, []
    if gaps.encoder is not None and gaps.encoder.q is not None and family in FAMILIES:
        laws = [rearranged([gaps.encoder.q], lambda values, dimension: values[0].cpu())]
        (moved,) = refined(
            model.likelihood, batch, gaps.encoder.q, family, density_step(model.likelihood, batch), [FEW_STEPS], draws
        )
        columns[f"L[q after {FEW_STEPS} {LBFGS_STEPS} steps]"] = moved.bound.value
    return {name: values.cpu() for name, values in columns.items()}, family, laws, gaps.evidence


def _use(model: Autoencoder, x: Tensor, laws: list[Distribution]) -> Entry | None:
    """Use of the code by normal densities, or by those of another kind that the engine has; None without any."""
    prior = model.likelihood.prior
    if laws:
        try:
            return code_use(rearranged(laws, torch.cat), prior)
        except TypeError:  # the prior's marginals have no closed form, as those of a hierarchical one
            return drawn_use(laws, prior)
    if isinstance(prior, CodebookDistribution):
        return None
    others = [encoder_density(model.inference, model.likelihood, batch) for batch in x.split(BATCH_SIZE)]
    return None if None in others else drawn_use([law for law in others if law is not None], prior)


def over_trainings(trainings: Sequence[GapMeasurement]) -> Columns:
    """The mean over trainings of each value that all have; of a sampling error, that of this mean."""
    first, *others = (training.columns for training in trainings)
    if not others:
        return first
    means = {}
    for name in first:
        if all(name in columns for columns in others):
            values = torch.stack([training.columns[name].double() for training in trainings])
            means[name] = values.norm(dim=0) / len(values) if name.startswith(SAMPLING) else values.mean(0)
    return means


def gap_results(trainings: Sequence[GapMeasurement]) -> dict[str, Entry]:
    """Mean and standard error of each quantity: over trainings where there are several, else over observations."""
    results = {name: mean_and_error(values) for name, values in over_trainings(trainings).items()}
    for name, entry in results.items() if len(trainings) > 1 else ():
        if entry["mean"] is not None:
            entry["se"] = estimate([training.columns[name].tolist() for training in trainings]).error
    return results


def shared_use(trainings: Sequence[GapMeasurement]) -> Entry | None:
    """The use of the code over trainings: the least number of active units, and means; None if one has none."""
    uses = [training.use for training in trainings if training.use is not None]
    if len(uses) < len(trainings):
        return None
    others = [name for name in uses[0] if name not in ("active", "width")]
    means = {name: torch.tensor([use[name] for use in uses], dtype=torch.float64).mean(0).tolist() for name in others}
    active = [use["active"] for use in uses]
    return {"width": uses[0]["width"], "active": None if None in active else min(active)} | means


def gap_answer(trainings: Sequence[GapMeasurement], engine: str | None) -> str:
    """The sentence on the cost of the model's encoder, or of the named engine."""
    first, use = trainings[0], shared_use(trainings)
    values = [{name: column.tolist() for name, column in training.columns.items()} for training in trainings]
    prior, subject = first.model.likelihood.prior, SUBJECTS[engine or "encoder"]
    if first.family == ONE_CODE and isinstance(prior, CodebookDistribution):
        codes = len(prior.vectors) ** prior.event_shape[0]
        perplexity = codebook_perplexity(prior, first.model.encode(first.x).point)
        return codes_answer(values, codes, len(prior.vectors), perplexity)
    if use is None:
        return families_answer(values)
    if first.family in FAMILIES:
        columns = [training.columns for training in trainings]
        return answer(gap_costs(columns, first.family, use, FEW_STEPS, engine=subject))
    return other_answer(values, use, subject)
