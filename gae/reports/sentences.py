"""The sentences of "in short", as pure functions of results: nothing is claimed that the numbers do not carry."""

from gae.analysis.costs import Costs
from gae.analysis.estimates import Estimate
from gae.reports.rounding import decimals_of, plain, rounded

CONVERGED = 0.99  # share of solves below which q* is "at least"
UNKNOWN = "log p(x) is known only as a lower bound, so no gap to it is quoted and the cost of the family is not known"
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def answer(costs: Costs, subject: str = "On this decoder") -> str:
    """The sentence on the cost of the encoder, and on how it divides.

    It names the population of its errors. Collapse comes first; without a tight log p(x) no gap to it is quoted; with
    optimisations that did not converge, q* is a lower bound of the best density.
    """
    if costs.active == 0:
        return f"{subject} {collapsed(costs.width, costs.kl)}"
    return f"{subject} {_given_up(costs)}{units(costs.active, costs.width)}"


def density_answer(
    total: Estimate | None,
    amortisation: Estimate | None,
    active: int | None,
    width: int,
    kl: float,
    engine: str = "the encoder",
) -> str:
    """The sentence on an engine whose densities are not normal, such as flows.

    The best density of its family, if known, is that of a fixed number of steps, so the loss against it is "at least".

    Args:
        total: log p(x) - L[q]; None without a tight log p(x).
        amortisation: L[q*] - L[q]; None if q* is not known.
        active: number of active units; None if unknown.
        width: number of units.
        kl: mean KL of q(z|x) from the prior.
        engine: the subject.
    """
    subject = "On this decoder"
    if active == 0:
        return f"{subject} {collapsed(width, kl)}"
    if total is None:
        told = f"{engine}'s loss is not known: {UNKNOWN}; {_found(amortisation)}."
    else:
        told = _nothing(engine, total) or f"{engine} gives up {named(total)}; {_found(amortisation)}."
    return f"{subject} {told}{units(active, width)}"


def _found(gap: Estimate | None) -> str:
    """The clause on the best density of a family that some steps have found, compared with the encoder's."""
    if gap is None:
        return "the best density of its family is not known"
    if not gap.significant:
        return f"no density of its family was found that beats it by more than can be told from zero ({quoted(gap)})"
    if gap.mean < 0:
        return f"the search for the best density of its family ended below it ({quoted(gap)}), so it failed"
    return (
        f"against the best density of its family, found by a fixed number of steps, it gives up at least {quoted(gap)}"
    )


def collapsed(width: int, kl: float) -> str:
    """The clause on a code that no unit of which is active.

    >>> collapsed(2, 0.001).partition(":")[0]
    'the code has collapsed (0 of 2 units active, KL 0.00 nats)'
    """
    return (
        f"the code has collapsed (0 of {width} units active, KL {nats(kl)} nats): the decoder ignores it, and a gap "
        "near zero says nothing about inference."
    )


def _given_up(costs: Costs) -> str:
    if costs.total is None:
        return _without_evidence(costs)
    nothing = _nothing(costs.engine, costs.total)
    if nothing is not None:
        return nothing
    return f"{costs.engine} gives up {named(costs.total)}; {_won(costs, costs.total)}; {_rest(costs, costs.total)}."


def _nothing(engine: str, total: Estimate) -> str | None:
    """The clause on a loss that is no loss, or that cannot be told from zero; None for any other."""
    if total.significant and total.mean > 0:
        return None
    if total.significant:
        return (
            f"{engine}'s bound came out {quoted(total, sign=-1)} above log p(x), which is impossible: the estimate of "
            "log p(x) is wrong, and no gap is quoted."
        )
    told = f"{engine} gives up nothing that can be told from zero ({named(total)})"
    return f"{told}: there is nothing to win." if total.excludes else f"{told}, but errors of this size hide gaps."


def _without_evidence(costs: Costs) -> str:
    """The amortisation gap alone, which needs no log p(x)."""
    gap = costs.amortisation
    if not gap.significant:
        if costs.converged < CONVERGED:
            return f"no density better than {costs.engine}'s was reached, but {_unfinished(costs)}; {UNKNOWN}."
        return (
            f"no {costs.family} density beats {costs.engine}'s by more than can be told from zero ({quoted(gap)}); "
            f"{UNKNOWN}."
        )
    if gap.mean < 0:
        return f"the local optimisation ended below {costs.engine}'s density ({quoted(gap)}), so it failed; {UNKNOWN}."
    least = "at least " if costs.converged < CONVERGED else ""
    shortfall = f" ({_unfinished(costs)})" if least else ""
    return (
        f"{costs.engine} gives up {least}{named(gap)} against the best {costs.family} density{shortfall}; "
        f"{_won(costs, gap)}; {UNKNOWN}."
    )


def _won(costs: Costs, whole: Estimate) -> str:
    steps = f"{number(costs.steps)} {costs.rule} step{'s' if costs.steps > 1 else ''}"
    verb = "wins" if costs.steps == 1 else "win"
    if not costs.gain.significant:
        return f"{steps} {verb} back nothing that can be told from zero"
    if costs.gain.mean < 0:
        return f"{steps} {'loses' if costs.steps == 1 else 'lose'} {part(-costs.gain.mean, whole)} more"
    return f"{steps} {verb} back {part(costs.gain.mean, whole)} of them"


def _rest(costs: Costs, whole: Estimate) -> str:
    """The clause on the remainder after the steps: more steps, family, or neither."""
    assert costs.approximation is not None
    family, more = costs.approximation, costs.left
    if costs.converged < CONVERGED:
        return f"the rest is family or unfinished optimisation, since {_unfinished(costs)}"
    if family.significant and family.mean < 0:
        return "the bound of q* came out above log p(x), so the rest is not split"
    waits = more.significant and more.mean > 0
    if waits and family.significant:
        return f"more steps win back {part(more.mean, whole)}, and {part(family.mean, whole)} are family"
    if waits:
        return "the rest takes more steps, and none of it can be told to be family"
    if family.significant:
        return "the rest is family"
    return "nothing of the rest can be told from zero"


def _unfinished(costs: Costs) -> str:
    return f"only {costs.converged:.0%} of the local optimisations converged"


def units(active: int | None, width: int) -> str:
    """The remark on units that are not active; none if all are, or if their number is unknown."""
    return f" ({active} of {width} units are active.)" if active is not None and active < width else ""


def family_cost(gain: Estimate, diagonal: float, full: float) -> str:
    """The sentence on the family: L[q*] of a full covariance less that of a diagonal one, and both converged shares."""
    if diagonal < CONVERGED or full < CONVERGED:
        return (
            f"The families are not compared at their optima: {diagonal:.0%} (diagonal) and {full:.0%} (full "
            "covariance) of "
            "the local optimisations converged."
        )
    if not gain.significant:
        return f"A full covariance is worth nothing that can be told from zero ({quoted(gain)}), each family at its q*."
    if gain.mean < 0:
        return (
            f"The full covariance's q* ended {quoted(gain, sign=-1)} below the diagonal one's, so its optimisation "
            "failed."
        )
    return f"A full covariance is worth {quoted(gain)}, each family at its own q*."


def flow_cost(gain: Estimate, flow: str) -> str:
    """The sentence on a flow: L[q*] of the flow, which a fixed number of steps has reached, less the full normal's."""
    if not gain.significant:
        return f"A flow ({flow}) is worth nothing over it that can be told from zero ({quoted(gain)})."
    if gain.mean < 0:
        return (
            f"The flow's q* ({flow}) ended {quoted(gain, sign=-1)} below the full covariance's: its fixed number of "
            "steps was too small."
        )
    return f"A flow ({flow}) is worth at least {quoted(gain)} more: its q* is that of a fixed number of steps."


def wide_gain(gain: Estimate) -> str:
    """The sentence on an encoder of twice the width: its bound less that of the encoder, on the same decoder."""
    if not gain.significant:
        return (
            f"An encoder of twice the width has a bound that cannot be told from the encoder's ({quoted(gain)} apart)."
        )
    if gain.mean < 0:
        return f"An encoder of twice the width, trained as long, is {quoted(gain, sign=-1)} below the encoder."
    return (
        f"An encoder of twice the width is {quoted(gain)} above the encoder: so much of its loss is a matter of size."
    )


def ordered(name: str, other: str, gain: Estimate, what: str) -> str:
    """The sentence on two bounds of one kind: which is higher, or that they cannot be told apart."""
    if not gain.significant:
        return f"{what}: {name} and {other} cannot be told apart ({quoted(gain)})."
    first, second = (name, other) if gain.mean > 0 else (other, name)
    return f"{what}: {first} is above {second} by {quoted(gain, sign=1 if gain.mean > 0 else -1)}."


def simpler(model: str, gain: Estimate, tight: bool) -> str:
    """The sentence on a baseline: the best decoder's log p(x) less the baseline's."""
    if gain.significant and gain.mean > 0:
        least = "" if tight else "at least "
        return f"The best decoder's log p(x) is above that of {model} by {least}{quoted(gain)}."
    if not tight:
        return f"No decoder is shown to beat {model}: its log p(x) is known only as a lower bound ({quoted(gain)})."
    if gain.significant:
        return f"{_opening(model)} wins: its log p(x) is above the best decoder's by {quoted(gain, sign=-1)}."
    return f"The best decoder's log p(x) cannot be told from that of {model} ({quoted(gain)} apart)."


def _opening(model: str) -> str:
    """A phrase at the start of a sentence; the names of systems, which are written small, stay as they are."""
    return "A" + model[1:] if model.startswith("a ") else model


def runaway(name: str, square: float, prior: float) -> str:
    """The sentence on a decoder that was trained by the joint density at a code under a proper prior."""
    return (
        f"The {name} engine maximised the joint density at a code, which under a proper prior has no maximiser "
        "(scaling the codes down and the decoder up always raises it): E‖z‖² of its codes is "
        f"{nats(square)}, where the prior says {nats(prior)}."
    )


def errors(one: Estimate) -> str:
    """The sentence that names the population of every error."""
    if one.over == "trainings":
        few = ", fewer than the 3 that a claim about trainings needs" if one.n < 3 else ""
        return f"Errors are standard errors over {one.population}{few}."
    return f"Errors are standard errors over {one.population}: they say nothing about other trainings (--seeds)."


def quoted(one: Estimate, sign: int = 1) -> str:
    """A mean with its error.

    >>> quoted(Estimate(2.0617, 0.1349, 3, "trainings"))
    '2.06 ± 0.13 nats'
    """
    return f"{rounded(sign * one.mean, one.error)} nats"


def named(one: Estimate) -> str:
    """A mean with its error, and the population that the error is over.

    >>> named(Estimate(2.0617, 0.1349, 3, "trainings"))
    '2.06 ± 0.13 nats (s.e. over 3 trainings)'
    """
    return quoted(one) if one.error is None else f"{quoted(one)} (s.e. over {one.population})"


def part(value: float, whole: Estimate) -> str:
    """A part of a sum, with the decimals of the sum; with its own if it is smaller.

    >>> part(1.5812, Estimate(2.06, 0.13, 64, "test samples")), part(0.004, Estimate(2.0, 0.5, 3, "trainings"))
    ('1.58', '0.004')
    """
    known = decimals_of(whole.mean, whole.error)
    own = decimals_of(0.0, abs(value))
    decimals = 1 if known is None else known
    return plain(value, decimals if own is None or round(value, decimals) else own - 1)


def nats(value: float) -> str:
    """A number of nats without its unit or error.

    >>> nats(-0.04), nats(1.618)
    ('−0.04', '1.6')
    """
    return plain(value, 1 if abs(value) >= 0.095 else 2)


def number(count: int) -> str:
    """A small number in words.

    >>> number(4), number(16)
    ('four', '16')
    """
    return WORDS[count] if count < len(WORDS) else str(count)
