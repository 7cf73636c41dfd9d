"""Tables, figures and a self-contained HTML page of a comparison."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error

import numpy as np

from gae.analysis.costs import Costs, bounds, costs
from gae.analysis.estimates import Estimate, difference, estimate
from gae.analysis.inference_gap import FLOW
from gae.analysis.matrix import DIAGONAL, ENCODER, FULL, OPTIMUM, WIDE
from gae.likelihood import HEADS
from gae.reports.comparison_figures import draw
from gae.reports.figures import save_all
from gae.reports.pages import made_by, write_page
from gae.reports.sentences import (
    answer,
    errors,
    family_cost,
    flow_cost,
    nats,
    ordered,
    quoted,
    runaway,
    simpler,
    wide_gain,
)
from gae.reports.tables import Column, Row, Table, TableCell, format_cell, in_words, number_cell, squared_error

NEAR = 1.25  # ratio of two budgets of training that are compared, at most
BOUND_COLUMNS = ("bound", "above encoder", "evaluations")

COLUMNS = (
    Column("joint", "joint log density", "nats", 1),
    Column("accuracy", "5-NN accuracy", "%", 1, 1e2),
    Column("milliseconds", "time", "ms per sample", 3),
    Column("evaluations", "decoder evaluations", "per sample", 0),
)


def columns(results: dict[str, Any]) -> tuple[Column, ...]:
    """Columns of the table of points."""
    decoders = [side["points"] for side in results["trainings"][0]["decoders"].values()]
    cells = [*chain(*decoders), *results["baselines"], results["neighbours"]]
    return COLUMNS[0], squared_error(cell["squared_error"]["mean"] for cell in cells), *COLUMNS[1:]


def leading(results: dict[str, Any]) -> str:
    """The training whose decoder leads the report: amortised if it was asked for, else the first."""
    names = results["configuration"]["engines"]
    return "amortised" if "amortised" in names else names[0]


def families(results: dict[str, Any]) -> list[str]:
    """The families of densities, in the order of the table."""
    first = next(iter(results["trainings"][0]["decoders"].values()))
    return list(first["matrix"]["cells"])


def parts(results: dict[str, Any], name: str, part: str) -> list[Any]:
    """A part of the measurements on the decoders that an engine trained, one per training."""
    return [training["decoders"][name][part] for training in results["trainings"]]


def matrix_table(results: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """Families × engines, a group for each decoder: each bound, and its gain over the encoder of its family."""
    groups = []
    for name in results["configuration"]["engines"]:
        matrices = parts(results, name, "matrix")
        rows = []
        for engine in matrices[0]["cells"][DIAGONAL]:
            cells = [cell for family in families(results) for cell in _bound_cells(matrices, family, engine)]
            rows.append(Row(engine, cells))
        groups.append((decoder_facts(results, name), rows))
    return groups


def population(results: dict[str, Any]) -> str:
    """The population of the errors of a table, in words."""
    samples, trainings = results["configuration"]["matrix"]["samples"], len(results["trainings"])
    over = f"{min(samples, results['data']['test'])} test samples"
    return (
        f"± s.e. over {trainings} trainings [over {over}]" if trainings > 1 else f"± s.e. over {over} of one training"
    )


def _bound_cells(matrices: list[dict[str, Any]], family: str, engine: str) -> Iterator[TableCell]:
    if engine not in matrices[0]["cells"][family]:
        yield from (TableCell("–"), TableCell(""), TableCell(""))
        return
    entries = [matrix["cells"][family][engine] for matrix in matrices]
    value, gain = (
        estimate(bounds(matrices, family, engine)),
        difference(bounds(matrices, family, engine), bounds(matrices, family, ENCODER)),
    )
    shares = [entry["converged"] for entry in entries if entry["converged"] is not None]
    converged = f"{min(shares):.0%} converged" if shares else ""
    evaluations = sum(entry["evaluations"] for entry in entries) / len(entries)
    yield estimate_cell(value, converged)
    yield TableCell("") if engine == ENCODER else estimate_cell(gain)
    yield number_cell(evaluations, decimals=0)


def estimate_cell(one: Estimate, detail: str = "") -> TableCell:
    """Mean ± error; with several trainings, the error over test samples in brackets."""
    cell = number_cell(one.mean, one.error, detail=detail)
    if one.over != "trainings" or one.sample_error is None:
        return cell
    return replace(cell, text=f"{cell.text} [{one.sample_error:.2g}]")


def decoder_facts(results: dict[str, Any], name: str) -> str:
    """The heading of a decoder: collapse first, then log p(x) with the evidence that it is tight."""
    uses, matrices, curves = (parts(results, name, part) for part in ("use", "matrix", "curve"))
    spent = ""
    if given(results) is None:
        steps, evaluations = curves[0]["steps"][-1], curves[0]["evaluations"][-1]
        spent = f" ({steps:,} steps, {evaluations:,} decoder evaluations)"
    active = ", ".join("?" if use["active"] is None else str(use["active"]) for use in uses)
    kl, square = (sum(use[key] for use in uses) / len(uses) for key in ("kl", "square"))
    evidence = [matrix["log_p"] for matrix in matrices]
    above = difference([e["values"] for e in evidence], [results["without code"]["values"]] * len(evidence))
    return (
        f"{origin(results, name)}{spent}: "
        f"{active} of {uses[0]['width']} units active, KL {nats(kl)} nats, E‖z‖² {nats(square)} (prior "
        f"{nats(uses[0]['prior_square'])}); log p(x) {_evidence(evidence)}, {quoted(above)} above a model without a "
        "code"
    )


def _evidence(evidence: list[dict[str, Any]]) -> str:
    value = quoted(estimate([entry["values"] for entry in evidence]))
    if evidence[0]["method"] == "exact":
        return f"{value} (exact)"
    reliable, annealed = min(e["reliable"] for e in evidence), sum(e["methods"].get("ais", 0) for e in evidence)
    sizes, shapes = ([e[key] for e in evidence if e["ess"] is not None] for key in ("ess", "largest_pareto_k"))
    ess = f"{min(sizes):.0f}" if sizes else "unknown"
    worst_shape = "unknown" if None in shapes or not shapes else f"{max(shapes):.2f}"
    kind = "importance sampling" if all(entry["tight"] for entry in evidence) else "lower bound, by importance sampling"
    samples = sum(len(entry["values"]) for entry in evidence)
    also = f"; annealed importance sampling for {annealed} of {samples} samples" if annealed else ""
    return (
        f"{value} ({kind} with {evidence[0]['draws']:,} draws: mean ESS {ess}, largest Pareto k {worst_shape}{also}, "
        f"reliable for {reliable:.0%})"
    )


def points_table(results: dict[str, Any]) -> Table:
    """Codes as points: joint density only between points on one decoder; baselines last. Of the first training."""
    notes: dict[str, str] = {}
    groups = []
    first = results["trainings"][0]["decoders"]
    for heading, label, cells in [
        *((origin(results, name), "engine", first[name]["points"]) for name in first),
        (_baselines(results["configuration"]), "decoder", [*results["baselines"], results["neighbours"]]),
    ]:
        best = max((c["joint"]["mean"] for c in cells if c["joint"]["mean"] is not None), default=None)
        rows = []
        for cell in cells:
            row = [
                format_cell(
                    cell, column, label == "engine" and column.key == "joint" and cell["joint"]["mean"] == best, notes
                )
                for column in columns(results)
            ]
            rows.append(Row(cell[label], row))
        groups.append((heading, rows))
    return Table(groups, {mark: reason for reason, mark in notes.items()})


def cotrained_table(results: dict[str, Any]) -> list[Row]:
    """Bounds of encoders on the decoder that was trained with them, beside q* there: how a decoder adapts."""
    rows = []
    for name in results["configuration"]["engines"]:
        entries, matrices = parts(results, name, "co-trained"), parts(results, name, "matrix")
        for label in entries[0] or ():
            own = [entry[label] for entry in entries]
            gap = difference(bounds(matrices, DIAGONAL, OPTIMUM), own)
            fitted = difference(bounds(matrices, DIAGONAL, OPTIMUM), bounds(matrices, DIAGONAL, ENCODER))
            rows.append(Row(f"{name}: {label}", [estimate_cell(each) for each in (estimate(own), gap, fitted)]))
    return rows


def _baselines(configuration: dict[str, Any]) -> str:
    return (
        f"Baselines; codes of the same width ({configuration['latent']}): k-means with as many points as a one-hot "
        f"code, LLGAE with one of {configuration['components']} charts in addition. The nearest of the training "
        "samples needs no model, and has no code of that width"
    )


def is_mass(results: dict[str, Any]) -> bool:
    """Whether the decoders define probability masses, whose nats are not comparable with those of densities."""
    return HEADS[results["configuration"]["head"]].support.is_discrete


def highlights(results: dict[str, Any]) -> list[str]:
    """Main results: a paragraph that leads, then single sentences.

    The paragraph is the answer. Where simpler models win, the best of them is named before it.
    """
    lead = leading(results)
    names = [lead, *(name for name in results["configuration"]["engines"] if name != lead)]
    known = {name: _costs(results, name) for name in names}
    answers = [answer(known[lead]), _origin(results, lead)]
    answers += [errors(known[lead].amortisation), _family(results, lead), *_flow(results, lead), *_wide(results, lead)]
    answers += [answer(known[name], f"On the decoder trained by the {name} engine") for name in names[1:]]
    pointwise = [] if given(results) else [n for n in names if parts(results, n, "co-trained")[0] is None]
    uses = {name: parts(results, name, "use") for name in pointwise}
    answers += [
        runaway(name, sum(u["square"] for u in use) / len(use), use[0]["prior_square"]) for name, use in uses.items()
    ]
    answers += [text for name in names[1:] for text in _training(results, lead, name)]
    simple = _simpler(results)
    winners = [text for text in simple if " wins: " in text]
    lead_paragraph = " ".join([*winners[:1], answers[0]])
    return [lead_paragraph, *winners[1:], *answers[1:], *(text for text in simple if text not in winners)]


def given(results: dict[str, Any]) -> dict[str, Any] | None:
    """Facts about the given decoder, if none was trained."""
    return results["configuration"].get("given")


def origin(results: dict[str, Any], name: str) -> str:
    """The origin of a decoder, as a phrase."""
    facts = given(results)
    return f"Decoder trained by {name}" if facts is None else f"Given decoder ({facts['decoder']})"


def _origin(results: dict[str, Any], lead: str) -> str:
    facts = given(results)
    if facts is None:
        return f"That decoder was trained by the {lead} engine and then frozen; the encoder was fitted to it."
    fitted = "The encoder was fitted to it."
    if facts["family"] is not None:
        other = FULL if facts["family"] == DIAGONAL else DIAGONAL
        fitted = f"The {facts['family']} encoder was given with it, and that of the family {other} was fitted to it."
    return f"That decoder was given and is frozen. {fitted} No decoder was trained, so there are no training curves."


def _costs(results: dict[str, Any], name: str) -> Costs:
    steps = results["configuration"]["matrix"]["steps"][0]
    return costs(parts(results, name, "matrix"), parts(results, name, "use"), DIAGONAL, steps)


def _family(results: dict[str, Any], name: str) -> str:
    matrices = parts(results, name, "matrix")
    shares = [min(m["cells"][family][OPTIMUM]["converged"] for m in matrices) for family in (DIAGONAL, FULL)]
    gain = difference(bounds(matrices, FULL, OPTIMUM), bounds(matrices, DIAGONAL, OPTIMUM))
    return family_cost(gain, *shares)


def _flow(results: dict[str, Any], name: str) -> Iterator[str]:
    matrices = parts(results, name, "matrix")
    if FLOW in matrices[0]["cells"]:
        gain = difference(bounds(matrices, FLOW, OPTIMUM), bounds(matrices, FULL, OPTIMUM))
        yield flow_cost(gain, results["configuration"]["flow"])


def _wide(results: dict[str, Any], name: str) -> Iterator[str]:
    matrices = parts(results, name, "matrix")
    if WIDE in matrices[0]["cells"][DIAGONAL]:
        yield wide_gain(difference(bounds(matrices, DIAGONAL, WIDE), bounds(matrices, DIAGONAL, ENCODER)))


def _training(results: dict[str, Any], lead: str, other: str) -> Iterator[str]:
    """Two trainings at equal steps and at nearly equal decoder evaluations, by the same lower bound on log p(x)."""
    curves = [parts(results, name, "curve") for name in (lead, other)]
    for axis, unit in (("steps", "optimiser steps"), ("evaluations", "decoder evaluations")):
        spent = _budgets(*(curve[0][axis] for curve in curves))
        if spent is not None:
            first, second = ([_at(curve, axis, n) for curve in each] for each, n in zip(curves, spent, strict=True))
            told = f"{spent[0]:,}"
            if spent[0] != spent[1]:
                told = f"{told} ({lead}) and {spent[1]:,} ({other})"
            what = f"After {told} {unit} of training (rates not tuned; lower bounds on log p(x))"
            yield ordered(lead, other, difference(first, second), what)


def _budgets(one: list[int], other: list[int]) -> tuple[int, int] | None:
    """The last points of two curves whose budgets are nearly equal; None if none are."""
    near = [(a, b) for a in one for b in other if max(a, b) <= NEAR * min(a, b)]
    return max(near, key=lambda spent: (min(spent), -max(spent)), default=None)


def _at(curve: dict[str, Any], axis: str, spent: int) -> list[float]:
    """The point of a training curve at a budget, a value per sample."""
    values: list[float] = curve["values"][curve[axis].index(spent)]
    return values


def _simpler(results: dict[str, Any]) -> list[str]:
    """Sentences on the models without a network or without a code, the strongest first.

    The best decoder is that of the highest mean.
    """
    evidence = {
        name: [matrix["log_p"] for matrix in parts(results, name, "matrix")]
        for name in results["configuration"]["engines"]
    }
    values = {name: [entry["values"] for entry in entries] for name, entries in evidence.items()}
    best = max(values, key=lambda name: estimate(values[name]).mean)
    tight = all(entry["tight"] for entry in evidence[best])
    models = [("a model without a code", results["without code"]["values"])]
    if not is_mass(results):
        models += [(row["decoder"], row["values"]) for row in results["baselines"]]
    models.append(("a kernel density estimate", results["neighbours"]["values"]))
    gains = [
        (model, difference(values[best], [rows] * len(values[best]))) for model, rows in models if rows is not None
    ]
    return [simpler(model, gain, tight) for model, gain in sorted(gains, key=lambda pair: pair[1].mean)]


def command(configuration: dict[str, Any], data: dict[str, Any]) -> str:
    """Command that reproduces these results."""
    model, split = configuration.get("given"), data.get("split")
    parts, options = ["gae compare", shlex.quote(configuration["data"])], ["epochs", "seed"]
    if model is None:
        parts += ["--engines", ",".join(configuration["engines"])]
        options = ["epochs", "latent", "head", "seed", "seeds"]
    else:
        parts += [model["reference"]] if model["reference"] else ["--decoder …"]
    for option in (*options, "flow"):
        parts += [] if configuration.get(option) is None else [f"--{option}", str(configuration[option])]
    parts += [] if configuration["binarize"] == "none" else ["--binarize", configuration["binarize"]]
    parts += [] if split in (None, "predefined", "fraction:0.2") else ["--split-by", shlex.quote(split)]
    parts += map(shlex.quote, data.get("options", []))
    parts += ["--wide"] if configuration.get("wide") else []
    return " ".join(parts + (["--quick"] if configuration["quick"] else []))


def write(out: Path) -> Path:
    """Writes the figures and the report of the comparison in ``out``: ``out/figures/*.png`` and ``out/report.html``.

    Reads only ``out/results.json`` and ``out/pictures.npz``, so a report can be rewritten at any time.
    """
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    figures = draw(results, load_arrays(out / "pictures.npz", "Delete it"))
    page = out / "report.html"
    write_page(
        page,
        "report.html",
        results=results,
        columns=columns(results),
        matrix=matrix_table(results),
        families=families(results),
        absent=absent(results),
        points=points_table(results),
        cotrained=cotrained_table(results),
        rates=rates(results),
        highlights=highlights(results),
        made=made(results, command(results["configuration"], results["data"])),
        population=population(results),
        mass=is_mass(results),
        given=given(results),
        figures=figures,
        images=save_all(figures, out / "figures"),
    )
    return page


def absent(results: dict[str, Any]) -> tuple[str, str] | None:
    """The encoders that were not fitted, in words, and the command that fits them too; None if all were."""
    chosen = results["configuration"]
    options: dict[str, Any] = {} if chosen.get("flow") else {"flow": "maf"}
    if not chosen.get("wide") and not (given(results) or {}).get("encoder"):
        options["wide"] = True
    names = [{"flow": "a normalizing flow", "wide": f"an {WIDE}"}[option] for option in options]
    return (in_words(names), command({**chosen, **options}, results["data"])) if names else None


def made(results: dict[str, Any], command: str) -> list[tuple[str, str]]:
    """The facts at the foot of the page of a study."""
    seconds = float(results["seconds"]["total"])
    return made_by(command, results.get("commit"), results["versions"], results["machine"], seconds)


def rates(results: dict[str, Any]) -> list[str]:
    """The rates that were chosen for the gradient steps, and whether one is an edge of its grid."""
    texts = []
    for name in results["configuration"]["engines"]:
        for family in families(results):
            chosen = [matrix["rates"][family] for matrix in parts(results, name, "matrix")]
            shown = ", ".join(f"{one['rate']}{' (an edge of the grid)' if one['edge'] else ''}" for one in chosen)
            texts.append(f"{name}, {family}: {shown}")
    return texts


def load_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """Arrays of a picture file; raises ValueError with a remedy if it is damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (ValueError, KeyError, EOFError, NotImplementedError, BadZipFile, error) as reason:
        raise ValueError(f"{path} is damaged ({reason}). {remedy}, and resume with the same options.") from None
