"""The three costs of an encoder on a fixed decoder, apart: amortisation, iterations not taken, and family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gae.analysis.estimates import Estimate, difference, estimate
from gae.analysis.matrix import ENCODER, LBFGS_STEPS, OPTIMUM, TIGHT, after
from gae.analysis.metrics import Entry


@dataclass(frozen=True)
class Costs:
    """Costs of the encoder of one family, in nats, as far as they are known.

    ``total = amortisation + approximation``, and of the amortisation gap ``gain`` is won back by a few steps.

    Attributes:
        family: the encoder's family of densities.
        total: log p(x) - L[q]; None without a tight log p(x).
        approximation: log p(x) - L[q*], the cost of the family; None without a tight log p(x).
        amortisation: L[q*] - L[q].
        gain: L[q after ``steps`` steps] - L[q].
        left: L[q*] - L[q after ``steps`` steps].
        steps: number of steps.
        rule: their step rule.
        converged: the least share over trainings of local optimisations of q* that converged.
        active: the least number of active units over trainings; None if unknown.
        width: number of units.
        kl: mean KL of q(z|x) from the prior.
        engine: the engine whose density L[q] is, as the subject of a sentence.
    """

    family: str
    total: Estimate | None
    approximation: Estimate | None
    amortisation: Estimate
    gain: Estimate
    left: Estimate
    steps: int
    rule: str
    converged: float
    active: int | None
    width: int
    kl: float
    engine: str = "the encoder"


def costs(matrices: Sequence[Entry], uses: Sequence[Entry], family: str, steps: int, rule: str = LBFGS_STEPS) -> Costs:
    """Costs from the matrices of bounds and the use of the code, one of each per training (``bound_matrix``)."""
    encoder, optimum, moved = (bounds(matrices, family, name) for name in (ENCODER, OPTIMUM, after(steps, rule)))
    tight = all(entry["log_p"]["tight"] for entry in matrices)
    evidence = [entry["log_p"]["values"] for entry in matrices]
    return Costs(
        family,
        difference(evidence, encoder) if tight else None,
        difference(evidence, optimum) if tight else None,
        difference(optimum, encoder),
        difference(moved, encoder),
        difference(optimum, moved),
        steps,
        rule,
        min(entry["cells"][family][OPTIMUM]["converged"] for entry in matrices),
        None if uses[0]["active"] is None else min(use["active"] for use in uses),
        uses[0]["width"],
        sum(use["kl"] for use in uses) / len(uses),
    )


def gap_costs(
    trainings: Sequence[Mapping[str, Tensor]],
    family: str,
    use: Entry,
    steps: int,
    rule: str = LBFGS_STEPS,
    engine: str = "the encoder",
) -> Costs:
    """Costs from the columns of inference gaps (``Gap.columns``) and of the engine's density after some steps.

    Args:
        trainings: the columns of each, over the same observations.
        use: of the code, over all trainings.
    """

    def column(name: str) -> list[list[float]]:
        return [columns[name].tolist() for columns in trainings]

    tight = all(float(columns["tight log p(x)"].double().mean()) >= TIGHT for columns in trainings)
    moved = column(f"L[q after {steps} {rule} steps]")
    optimum, encoder = column(f"L[q*], {family}"), column("L[q]")
    return Costs(
        family,
        estimate(column("inference gap")) if tight else None,
        estimate(column(f"approximation gap, {family}")) if tight else None,
        estimate(column("amortisation gap")),
        difference(moved, encoder),
        difference(optimum, moved),
        steps,
        rule,
        min(float(columns[f"converged, {family}"].mean()) for columns in trainings),
        use["active"],
        use["width"],
        use["kl"],
        engine,
    )


def bounds(matrices: Sequence[Entry], family: str, engine: str) -> list[list[float]]:
    """The bounds of an engine, one list over test samples per training."""
    return [entry["cells"][family][engine]["values"] for entry in matrices]


def worst(matrix: Entry, family: str, count: int = 8) -> list[tuple[int, float]]:
    """The test samples on which the encoder gives up most, and how much: of log p(x) if it is tight, else of L[q*]."""
    encoder = matrix["cells"][family][ENCODER]["values"]
    evidence = matrix["log_p"]
    upper = evidence["values"] if evidence["tight"] else matrix["cells"][family][OPTIMUM]["values"]
    gaps = [high - low for high, low in zip(upper, encoder, strict=True)]
    return [(i, gaps[i]) for i in sorted(range(len(gaps)), key=lambda i: -gaps[i])[:count]]
