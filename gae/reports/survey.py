"""Table, figures and a self-contained HTML page of a survey of systems."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gae.reports.answers import code, survey_answer, text_answer
from gae.reports.comparison import load_arrays, made
from gae.reports.figures import DENSE, INK, LINES, Figure, canvas, clouds_seen, log_axis, save_all, scatter, style
from gae.reports.observations import Drawing, drawing
from gae.reports.pages import write_page
from gae.reports.plates import squared_errors, variety
from gae.reports.seen import compared
from gae.reports.tables import Column, Row, TableCell, format_cell, number_cell, squared_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

COLUMNS = (
    Column("accuracy", "5-NN accuracy", "%", 1, 1e2),
    Column("log_p", "log p̂(x)", "nats", 1),
    Column("elbo", "ELBO", "nats", 1),
    Column("milliseconds", "encoding", "ms per sample", 3),
    Column("evaluations", "decoder evaluations", "per sample", 0),
)

NOTHING = "No system encodes single observations here: the tables say what was fitted, and why the others are missing."

TEXT_COLUMNS = (
    Column("tokens", "tokens restored", "% of a line, its end included", 1, 1e2),
    Column("log_p", "log p̂(x)", "nats per line", 2),
    Column("elbo", "ELBO", "nats per line", 2),
    Column("milliseconds", "encoding", "ms per line", 3),
)


def columns(results: dict[str, Any]) -> tuple[Column, ...]:
    """Columns of the table, for samples or for text."""
    return TEXT_COLUMNS if results["texts"] else (_squared_error(results["rows"]), *COLUMNS)


def _squared_error(rows: Iterable[dict[str, Any]]) -> Column:
    return squared_error(row["squared_error"]["mean"] for row in rows)


def table(results: dict[str, Any]) -> tuple[list[Row], dict[str, str]]:
    """Rows in the order of the table of systems, and the footnotes {mark: reason} of missing numbers."""
    notes: dict[str, str] = {}
    rows = [_row(row, columns(results), notes) for row in results["rows"] + results["texts"]]
    return rows, {mark: reason for reason, mark in notes.items()}


def _row(row: dict[str, Any], shown: tuple[Column, ...], notes: dict[str, str]) -> Row:
    cells = [format_cell(row, column, False, notes) for column in shown]
    if "length" in row:
        cells = [_per_token(row, column, cell) for column, cell in zip(shown, cells, strict=True)]
    return Row(row["system"], [TableCell(code(row)), number_cell(row["training_seconds"]), *cells])


def _per_token(row: dict[str, Any], column: Column, cell: TableCell) -> TableCell:
    """Adds nats per token to a cell with nats per line."""
    mean = row[column.key]["mean"]
    if mean is None or column.unit != "nats per line":
        return cell
    return replace(cell, detail=f"{mean / row['length']:.2f} per token".replace("-", "−"))


def command(configuration: dict[str, Any], data: dict[str, Any]) -> str:
    """Command that reproduces these results."""
    words = ["gae", "compare", configuration["data"], "--systems", ",".join(configuration["systems"])]
    words += ["--epochs", str(configuration["epochs"]), "--seed", str(configuration["seed"])]
    words += [] if data["binarization"] == "none" else ["--binarize", data["binarization"]]
    words += [] if data["split"] in (None, "predefined", "fraction:0.2") else ["--split-by", data["split"]]
    words += data.get("options", [])
    return shlex.join(words + (["--quick"] if configuration["quick"] else []))


def write(out: Path) -> Path:
    """Writes the figures and the report of the survey in ``out``: ``out/figures/*.png`` and ``out/report.html``."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    rows = results["rows"] + results["embeddings"]
    pictures = {row["system"]: _pictures(out, row["system"]) for row in rows}
    with style():
        figures = draw_survey(results, pictures)
    lines, notes = table(results)
    test = results["data"]["test"]
    page = out / "report.html"
    write_page(
        page,
        "survey.html",
        results=results,
        columns=columns(results),
        answer=[*survey_answer(results["rows"], test), *text_answer(results["texts"], test)] or [NOTHING],
        rows=lines,
        notes=notes,
        figures=figures,
        images=save_all(figures, out / "figures"),
        made=made(results, command(results["configuration"], results["data"])),
    )
    return page


def _pictures(out: Path, system: str) -> dict[str, np.ndarray]:
    return load_arrays(out / "pictures" / f"{system}.npz", f"Delete {out / 'phases' / system}.json")


Arrays = dict[str, dict[str, np.ndarray]]


def draw_survey(results: dict[str, Any], pictures: Arrays) -> list[Figure]:
    """All figures of a survey for which it has results, in reading order."""
    figures, encoded = [], {row["system"]: pictures[row["system"]] for row in results["rows"]}
    data = results["data"]
    how = drawing(data["event_shape"], data["value_range"], data.get("columns"))
    if encoded:
        figures += [overview(results), survey_reconstructions(encoded, how), survey_codes(encoded)]
    if any("sample" in arrays for arrays in encoded.values()):
        figures.insert(2, survey_samples(encoded, how))
    if results["embeddings"]:
        figures.append(embeddings(results, pictures))
    return figures


def overview(results: dict[str, Any]) -> Figure:
    """Squared error, accuracy and time of every system, ordered by error."""
    rows = sorted(results["rows"], key=lambda row: -row["squared_error"]["mean"])
    figure = canvas(10.5, 1.2 + 0.27 * len(rows))
    panels = figure.subplots(1, 3, sharey=True)
    error = _squared_error(rows)
    shown = (
        (error.key, f"{error.title}, {error.unit}", error.scale),
        ("accuracy", "5-NN accuracy on the codes, %", 1e2),
        ("milliseconds", "encoding, ms per sample", 1.0),
    )
    for i, (axes, (key, label, scale)) in enumerate(zip(panels, shown, strict=True)):
        _dots(axes, rows, key, scale, LINES[i])
        axes.set(xlabel=label)
        if key != "accuracy":
            log_axis(axes)
    panels[0].set_yticks(range(len(rows)), [f"{row['system']}  ({code(row)})" for row in rows])
    caption = (
        "Means over the test set ± standard error (mostly too small to see), a line per system, the lowest squared "
        "error on top; in brackets the size of the code. Wider codes keep more information: compare systems of equal "
        "size. A missing dot is a missing number."
    )
    errors = {row["system"]: row["squared_error"]["mean"] for row in rows}
    alt = compared(errors, "Squared error per element")
    return Figure("overview", "Reconstruction, accuracy and cost of each system", caption, figure, alt)


def _dots(axes: "Axes", rows: list[dict[str, Any]], key: str, scale: float, colour: str) -> None:
    for place, row in enumerate(rows):
        mean, error = row[key]["mean"], row[key]["se"]
        if mean is not None:
            spread = scale * error if error else None
            axes.errorbar(scale * mean, place, xerr=spread, fmt="o", ms=4, color=colour, capsize=2)


def survey_reconstructions(pictures: Arrays, how: Drawing) -> Figure:
    """Reconstructions of the same test samples by every system."""
    originals = next(iter(pictures.values()))["original"]
    rebuilt = {name: arrays["reconstruction"] for name, arrays in pictures.items()}
    caption = f"The same test samples and the decoder's mean at their codes. {how.note}"
    alt = compared(squared_errors(originals, rebuilt), f"Squared error per element of {len(originals)} test samples")
    return Figure("reconstructions", "Reconstructions", caption, how.compared(originals, rebuilt), alt)


def survey_samples(pictures: Arrays, how: Drawing) -> Figure:
    """Decoder means at draws from the prior, for systems with a proper prior."""
    draws = {name: arrays["sample"] for name, arrays in pictures.items() if "sample" in arrays}
    originals = next(iter(pictures.values()))["original"]
    caption = (
        "Decoder means at codes drawn from each system's prior. A flat prior cannot be drawn from, and "
        f"systems trained at point codes were not trained to match their prior. {how.note}"
    )
    alt = variety(draws, originals)
    return Figure("samples", "Samples from the prior", caption, how.drawn(draws, originals), alt)


def survey_codes(pictures: Arrays) -> Figure:
    """Test codes of every system with a continuous code, on their first two principal components."""
    clouds = {name: arrays for name, arrays in pictures.items() if np.ptp(arrays["codes"]) > 0}
    titles = [f"{name}, {100 * float(arrays['explained']):.0f} %" for name, arrays in clouds.items()]
    drawn = len(next(iter(clouds.values()))["codes"]) if clouds else 0
    caption = (
        f"Codes of the first {drawn} test samples, drawn as their labels where there are any, on their first two "
        "principal components; the title gives the share of variance that these show. Charts of a mixture share no "
        "axes, so their codes may overlap here without being similar."
    )
    return Figure("codes", "Codes", caption, _clouds(list(clouds.values()), titles), _seen(clouds))


def embeddings(results: dict[str, Any], pictures: Arrays) -> Figure:
    """Codes of systems that embed a whole data set."""
    rows = results["embeddings"]
    titles = [f"{row['system']}, trustworthiness {row['trustworthiness']['mean']:.3f}" for row in rows]
    caption = (
        f"The first {rows[0]['points']} test samples, embedded as one observation by systems that encode a whole data "
        "set; drawn as their labels, which the systems did not use. Axes have no unit."
    )
    clouds = {row["system"]: pictures[row["system"]] for row in rows}
    return Figure("embeddings", "Embeddings", caption, _clouds(list(clouds.values()), titles), _seen(clouds))


def _seen(clouds: Arrays) -> str:
    labels = next((arrays.get("labels") for arrays in clouds.values()), None)
    return clouds_seen({name: arrays["codes"][:, :2] for name, arrays in clouds.items()}, labels)


def _clouds(clouds: list[dict[str, np.ndarray]], titles: list[str]) -> "Canvas":
    across = min(4, max(len(clouds), 2))
    down = max(1, -(-len(clouds) // across))
    side, dense = 12.0 / across, sum(len(arrays["codes"]) for arrays in clouds) > DENSE
    figure = canvas(12.0, 0.9 * side * down)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(clouds) :]:
        axes.remove()
    for axes, arrays, title in zip(panels, clouds, titles, strict=False):
        scatter(axes, arrays["codes"][:, :2], arrays.get("labels"), 14.0, dense)
        axes.set_title(title, fontsize=9, color=INK)
        axes.tick_params(labelsize=7)
    return figure
