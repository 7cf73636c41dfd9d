"""The paragraph that a page begins with, as pure functions of its results: the answer, its error, and its limits."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gae.analysis.estimates import Estimate, estimate
from gae.analysis.matrix import TIGHT
from gae.ledger.claims import Verdict
from gae.ledger.notes import Finding, contradictions
from gae.reports.rounding import rounded
from gae.reports.sentences import density_answer, named, number, quoted
from gae.reports.tables import Column, in_words, squared_error

CLOSE = 1.96  # standard errors within which two numbers are not told apart
WORST = 0.1  # share of the observations whose share of the loss is quoted

ACCURACY = Column("accuracy", "5-NN accuracy", "%", 1, 1e2)
TOKENS = Column("tokens", "tokens restored", "% of a line", 1, 1e2)

Row = Mapping[str, Any]
Columns = Mapping[str, Sequence[float]]  # a value of each observation for each quantity


def code(row: Row) -> str:
    """Size of a code: the number of components to choose from, and of real numbers."""
    parts = [f"1 of {row['components']}"] if row["components"] > 1 else []
    parts += [str(row["width"])] if row["width"] else []
    return " × ".join(parts)


def survey_answer(rows: Sequence[Row], test: int) -> list[str]:
    """Sentences on the systems whose code has the most common size: reconstruction and accuracy, with their errors."""
    if not rows:
        return []
    sizes = Counter(map(code, rows))
    size = max(sizes, key=lambda each: sizes[each])
    alike = [row for row in rows if code(row) == size]
    column = squared_error(row["squared_error"]["mean"] for row in rows)
    if len(alike) == 1:
        answers = [f"{_quoted(rows[0], column)} with a code of {size}."] if len(rows) == 1 else []
        answers += ["No two systems have codes of one size, so their errors are not ranked."] if len(rows) > 1 else []
    else:
        answers = [f"Of the {number(len(alike))} systems with a code of {size}, {_first(alike, column, lowest=True)}."]
        answers += [f"By labels, {_first(alike, ACCURACY)}."] if sum(map(_labelled, alike)) > 1 else []
    over = f"{test} test samples of one training each" if test > 1 else "no more than one test sample"
    return [*answers, f"Errors are standard errors over {over}: they say nothing about other seeds."]


def text_answer(rows: Sequence[Row], test: int) -> list[str]:
    """Sentences on systems of text: the share of the tokens that is restored."""
    if not rows:
        return []
    best = _first(rows, TOKENS) if len(rows) > 1 else _quoted(rows[0], TOKENS)
    return [f"{best}.", f"Errors are standard errors over {test} test lines of one training each."]


def _labelled(row: Row) -> bool:
    return row["accuracy"]["mean"] is not None


def _quoted(row: Row, column: Column) -> str:
    return f"{row['system']} has a {column.title} of {column.text(row[column.key])} {column.unit}"


def _first(rows: Sequence[Row], column: Column, lowest: bool = False) -> str:
    """The clause on the best of some rows, and on the next one; or on those that cannot be told from the best."""
    known = [row for row in rows if row[column.key]["mean"] is not None]
    first, *rest = sorted(known, key=lambda row: (1 if lowest else -1) * row[column.key]["mean"])
    near = [row["system"] for row in rest if not _apart(first[column.key], row[column.key])]
    value = f"{column.text(first[column.key])} {column.unit}"
    word = "lowest" if lowest else "highest"
    if near:
        others = in_words(near)
        return f"{first['system']} has the {word} {column.title} ({value}), which cannot be told from that of {others}"
    following = f"{rest[0]['system']} with {column.text(rest[0][column.key])}"
    return f"{first['system']} has the {word} {column.title}: {value}; next is {following}"


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two means differ by more than their errors, taken as independent."""
    errors = [entry.get("se") for entry in (one, other)]
    if None in errors:
        return False
    return bool(abs(one["mean"] - other["mean"]) > CLOSE * math.hypot(*(float(error or 0) for error in errors)))


def sweep_answer(rows: Sequence[Row], given: Sequence[str], axes: Sequence[str]) -> list[str]:
    """Sentences on each system of a sweep: its combination with the lowest test loss, and the next, paired by seed.

    Args:
        rows: one for each training.
        given: names of the columns of data, system and options.
        axes: those that vary.
    """
    groups: dict[tuple[str, str], dict[tuple[Any, ...], dict[int, float]]] = {}
    for row in rows:
        if row["test_loss"] is not None:
            cells = groups.setdefault((row["data"], row["system"]), {})
            cells.setdefault(tuple(row.get(name) for name in given), {})[row["seed"]] = row["test_loss"]
    several = len({data for data, _ in groups}) > 1
    answers = []
    for (data, system), cells in groups.items():
        losses = {_choice(dict(zip(given, cell, strict=True)), axes): values for cell, values in cells.items()}
        answers.append(f"{system}{f' on {data}' if several else ''}: {_lowest(losses)}.")
    failed = sum(row["error"] is not None for row in rows)
    return [*answers, *([f"{failed} of {len(rows)} trainings failed."] if failed else [])]


def _choice(options: Row, axes: Sequence[str]) -> str:
    shown = [f"{name}={options[name]}" for name in axes if name not in ("data", "system") and options[name] is not None]
    return ", ".join(shown)


def _lowest(losses: Mapping[str, Mapping[int, float]]) -> str:
    """The clause on the combination with the lowest test loss."""
    means = {name: _over_trainings(list(values.values())) for name, values in losses.items()}
    first, *rest = sorted(means, key=lambda name: means[name].mean)
    at = f"test loss {named(means[first])}" + (f" with {first}" if first else "")
    if not rest:
        return at
    shared = losses[first].keys() & losses[rest[0]].keys()
    if len(shared) < 2:
        other = f"{quoted(means[rest[0]])} with {rest[0]}"
        return f"lowest {at}; one training does not show that this is below {other} (--seeds)"
    gain = _over_trainings([losses[rest[0]][seed] - losses[first][seed] for seed in shared])
    if not gain.significant:
        return f"lowest {at}, which cannot be told from {rest[0]} ({quoted(gain)} apart)"
    return f"lowest {at}, below {rest[0]} by {quoted(gain)}"


def _over_trainings(values: Sequence[float]) -> Estimate:
    if len(values) == 1:
        return Estimate(values[0], None, 1, "trainings")
    return estimate([[value] for value in values])


def loss_answer(lost: str, values: Sequence[float], sample: int, row: int, error: float | None = None) -> str:
    """The sentence on the observation that loses most, a test sample and a row of the data, and on the worst tenth.

    >>> loss_answer("gap", [1.0, 9.0, *8 * [0.0]], 1, 31, 0.25)
    'Row 31 (test sample 1) has the largest gap, 9.00 ± 0.25 nats; the worst tenth of the rows has 90 % of the sum.'
    """
    text = f"Row {row} (test sample {sample}) has the largest {lost}, {rounded(values[sample], error, 2)} nats"
    total, count = sum(values), round(WORST * len(values))
    if count and total > 0:
        share = sum(sorted(values)[-count:]) / total
        return f"{text}; the worst tenth of the rows has {100 * share:.0f} % of the sum."
    return f"{text}."


def families_answer(trainings: Sequence[Columns]) -> str:
    """The sentence on the best density of each family, for a model whose engine has no density to compare."""
    prefix = "approximation gap, "
    gaps = {name: _of(trainings, name) for name in trainings[0] if name.startswith(prefix)}
    least = "" if _is_tight(trainings) else "at least "
    costs = in_words(f"{least}{quoted(gap)} ({name.removeprefix(prefix)})" for name, gap in gaps.items())
    return (
        "This model's engine has no density q(z|x), so no loss of its own is quoted. The best density of a "
        f"family for each observation gives up {costs}; errors are over {next(iter(gaps.values())).population}."
    )


def other_answer(trainings: Sequence[Columns], use: Mapping[str, Any], engine: str = "the encoder") -> str:
    """The sentence on an engine whose densities are not normal, such as flows, and on the use of its code."""
    known = trainings[0].keys()
    total, amortisation = (
        _of(trainings, name) if name in known else None for name in ("inference gap", "amortisation gap")
    )
    return density_answer(
        total if _is_tight(trainings) else None, amortisation, use["active"], use["width"], use["kl"], engine
    )


def _of(trainings: Sequence[Columns], name: str) -> Estimate:
    return estimate([list(columns[name]) for columns in trainings])


def _is_tight(trainings: Sequence[Columns]) -> bool:
    columns = [columns["tight log p(x)"] for columns in trainings if "tight log p(x)" in columns]
    return all(sum(tight) >= TIGHT * len(tight) for tight in columns)


def codes_answer(trainings: Sequence[Columns], codes: int, vectors: int, perplexity: float) -> str:
    """The sentence on the code of a codebook that an encoder chooses, against the best one and against all.

    >>> gaps = {"inference gap": [2.0, 3.0], "amortisation gap": [1.2, 1.4], "approximation gap, one code": [0.8, 1.6]}
    >>> codes_answer([gaps], 9, 3, 2.5).partition(": ")[2]  # doctest: +NORMALIZE_WHITESPACE
    '1.30 ± 0.10 nats against the best of all 9 codes, and 1.20 ± 0.40 nats because one code is not the sum over all.
    Its codes use 2.5 of 3 vectors (perplexity).'
    """
    total, choice, rest = (
        _of(trainings, name) for name in ("inference gap", "amortisation gap", "approximation gap, one code")
    )
    return (
        f"On this decoder the encoder's code gives up {named(total)}: {quoted(choice)} against the best of all {codes} "
        f"codes, and {quoted(rest)} because one code is not the sum over all. Its codes use {perplexity:.1f} of "
        f"{vectors} vectors (perplexity)."
    )


def restoration_answer(quality: Mapping[str, Mapping[str, float]], last: Sequence[float]) -> str:
    """The paragraph on a restored photograph.

    Args:
        quality: PSNR (dB) and SSIM of the pictures by name; empty without a clean photograph.
        last: the last squared error per measured value of each run.
    """
    runs = len(last)
    networks = "one network" if runs == 1 else f"the mean of {number(runs)} networks"
    if not quality:
        root = math.sqrt(sum(last) / runs)
        return (
            f"There is no clean photograph to measure the result against. It is {networks}; the last fit deviates from "
            f"the measured values by {root:.3g} (root mean square, on values from 0 to 1)."
        )
    psnr, ssim = quality.values()
    similar = f"SSIM {ssim['degraded']:.3f} → {ssim['restored']:.3f}"
    if math.isinf(psnr["degraded"]):
        return f"The photograph was the clean one already, and there was nothing to restore: {similar}."
    gain = psnr["restored"] - psnr["degraded"]
    verdict = "is closer to" if gain > 0 else "is no closer to"
    return (
        f"The restored photograph {verdict} the clean one: PSNR {psnr['degraded']:.2f} → {psnr['restored']:.2f} dB "
        f"({'+' if gain > 0 else '−'}{abs(gain):.2f}), {similar}. This is one photograph and {networks}, so the "
        "gain has no error: other photographs and seeds have other gains."
    )


VERDICTS = {  # of one claim, and of several
    Verdict.holds: ("holds", "hold"),
    Verdict.holds_if: ("holds under a condition that is not stated", "hold under a condition that is not stated"),
    Verdict.fails: ("fails and is corrected", "fail and are corrected"),
    Verdict.undecided: ("is undecided", "are undecided"),
}


def ledger_answer(findings: Sequence[Finding]) -> str:
    """The paragraph on a ledger: the verdicts, whether they are those of the notes, and the numerical slack."""
    first = [finding for finding in findings if finding.seed == findings[0].seed]
    counts = Counter(finding.check.verdict for finding in first)
    known = {verdict: words for verdict, words in VERDICTS.items() if counts[verdict]}
    told = in_words(f"{counts[verdict]} {words[counts[verdict] > 1]}" for verdict, words in known.items())
    wrong, seeds = contradictions(findings), len({finding.seed for finding in findings})
    agree = f"these contradict their note: {', '.join(wrong)}" if wrong else "all reach the verdict of their note"
    many = f", with {seeds} seeds" if seeds > 1 else ""
    relations = [relation for finding in findings for _, group in finding.groups for relation in group]
    used = [relation.error / relation.tolerance for relation in relations if relation.holds and relation.tolerance]
    claims = f"{len(first)} claim{'s' if len(first) > 1 else ''}"
    return (
        f"Of {claims}, {told}; {agree}{many}. Where a relation holds, its two sides differ by at most "
        f"{100 * max(used, default=0.0):.2g} % of the tolerance ({len(used)} relations)."
    )
