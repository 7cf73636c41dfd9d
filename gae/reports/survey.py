"""Table, figures and a self-contained HTML page of a survey of systems."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gae.reports.comparison import Column, Row, TableCell, format_cell, load_arrays
from gae.reports.figures import INK, LINES, Figure, canvas, grid, save_all, scatter, style
from gae.reports.pages import write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

COLUMNS = (
    Column("squared_error", "squared error", "×10⁻³ per element", 2, 1e3),
    Column("accuracy", "5-NN accuracy", "%", 1, 1e2),
    Column("log_p", "log p̂(x)", "nats", 1),
    Column("elbo", "ELBO", "nats", 1),
    Column("milliseconds", "encoding", "ms per sample", 3),
    Column("evaluations", "decoder evaluations", "per sample", 0),
)

TEXT_COLUMNS = (
    Column("tokens", "tokens restored", "% of a line, its end included", 1, 1e2),
    Column("log_p", "log p̂(x)", "nats per line", 2),
    Column("elbo", "ELBO", "nats per line", 2),
    Column("milliseconds", "encoding", "ms per line", 3),
)


def columns(results: dict[str, Any]) -> tuple[Column, ...]:
    """Columns of the table, for samples or for text."""
    return TEXT_COLUMNS if results["texts"] else COLUMNS


def table(results: dict[str, Any]) -> tuple[list[Row], dict[str, str]]:
    """Rows in the order of the table of systems, and the footnotes {mark: reason} of missing numbers."""
    notes: dict[str, str] = {}
    rows = [_row(row, columns(results), notes) for row in results["rows"] + results["texts"]]
    return rows, {mark: reason for reason, mark in notes.items()}


def _row(row: dict[str, Any], shown: tuple[Column, ...], notes: dict[str, str]) -> Row:
    cells = [format_cell(row, column, False, notes) for column in shown]
    if "length" in row:
        cells = [_per_token(row, column, cell) for column, cell in zip(shown, cells, strict=True)]
    return Row(row["system"], [TableCell(code(row)), TableCell(f"{row['training_seconds']:.1f}"), *cells])


def _per_token(row: dict[str, Any], column: Column, cell: TableCell) -> TableCell:
    """Adds nats per token to a cell with nats per line."""
    mean = row[column.key]["mean"]
    if mean is None or column.unit != "nats per line":
        return cell
    return replace(cell, detail=f"{mean / row['length']:.2f} per token".replace("-", "−"))


def code(row: dict[str, Any]) -> str:
    """Size of a code: the number of components to choose from, and of real numbers."""
    parts = [f"1 of {row['components']}"] if row["components"] > 1 else []
    parts += [str(row["width"])] if row["width"] else []
    return " × ".join(parts)


def write(out: Path) -> Path:
    """Writes the figures and the report of the survey in ``out``: ``out/figures/*.png`` and ``out/report.html``."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    rows = results["rows"] + results["embeddings"]
    pictures = {row["system"]: _pictures(out, row["system"]) for row in rows}
    with style():
        figures = draw_survey(results, pictures)
    lines, notes = table(results)
    page = out / "report.html"
    write_page(
        page,
        "survey.html",
        results=results,
        columns=columns(results),
        rows=lines,
        notes=notes,
        figures=figures,
        images=save_all(figures, out / "figures"),
    )
    return page


def _pictures(out: Path, system: str) -> dict[str, np.ndarray]:
    return load_arrays(out / "pictures" / f"{system}.npz", f"Delete {out / 'phases' / system}.json")


Arrays = dict[str, dict[str, np.ndarray]]


def draw_survey(results: dict[str, Any], pictures: Arrays) -> list[Figure]:
    """All figures of a survey for which it has results, in reading order."""
    figures, encoded = [], {row["system"]: pictures[row["system"]] for row in results["rows"]}
    if encoded:
        figures += [overview(results), survey_reconstructions(results, encoded), survey_codes(results, encoded)]
    if any("sample" in arrays for arrays in encoded.values()):
        figures.insert(2, survey_samples(results, encoded))
    if results["embeddings"]:
        figures.append(embeddings(results, pictures))
    return figures


def overview(results: dict[str, Any]) -> Figure:
    """Squared error, accuracy and time of every system, ordered by error."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rows = sorted(results["rows"], key=lambda row: -row["squared_error"]["mean"])
    figure = canvas(10.5, 1.2 + 0.27 * len(rows))
    panels = figure.subplots(1, 3, sharey=True)
    shown = (
        ("squared_error", "squared error, ×10⁻³ per element", 1e3),
        ("accuracy", "5-NN accuracy on the codes, %", 1e2),
        ("milliseconds", "encoding, ms per sample", 1.0),
    )
    for i, (axes, (key, label, scale)) in enumerate(zip(panels, shown, strict=True)):
        _dots(axes, rows, key, scale, LINES[i])
        axes.set(xlabel=label)
        if key != "accuracy":
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 300 * low else (1.0,)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_yticks(range(len(rows)), [f"{row['system']}  ({code(row)})" for row in rows])
    caption = (
        "Means over the test set ± standard error (mostly too small to see), a line per system, the lowest squared "
        "error on top; in brackets the size of the code. Wider codes keep more information: compare systems of equal "
        "size. A missing dot is a missing number."
    )
    return Figure("overview", "Reconstruction, accuracy and cost of each system", caption, figure)


def _dots(axes: "Axes", rows: list[dict[str, Any]], key: str, scale: float, colour: str) -> None:
    for place, row in enumerate(rows):
        mean, error = row[key]["mean"], row[key]["se"]
        if mean is not None:
            spread = scale * error if error else None
            axes.errorbar(scale * mean, place, xerr=spread, fmt="o", ms=4, color=colour, capsize=2)


def survey_reconstructions(results: dict[str, Any], pictures: Arrays) -> Figure:
    """Reconstructions of the same test samples by every system."""
    originals = next(iter(pictures.values()))["original"]
    rows = {"test sample": originals, **{name: arrays["reconstruction"] for name, arrays in pictures.items()}}
    caption = (
        "The same test samples (first row) and the decoder's mean at their codes. Grey values are in data units, "
        f"clipped to {results['data']['value_range']}."
    )
    return Figure("reconstructions", "Reconstructions", caption, grid(rows, results["data"]["value_range"]))


def survey_samples(results: dict[str, Any], pictures: Arrays) -> Figure:
    """Decoder means at draws from the prior, for systems with a proper prior."""
    rows = {name: arrays["sample"] for name, arrays in pictures.items() if "sample" in arrays}
    caption = (
        "Decoder means at codes drawn from each system's prior. A flat prior cannot be drawn from, and "
        "systems trained at point codes were not trained to match their prior."
    )
    return Figure("samples", "Samples from the prior", caption, grid(rows, results["data"]["value_range"]))


def survey_codes(results: dict[str, Any], pictures: Arrays) -> Figure:
    """Test codes of every system with a continuous code, on their first two principal components."""
    clouds = {name: arrays for name, arrays in pictures.items() if np.ptp(arrays["codes"]) > 0}
    titles = [f"{name}, {100 * float(arrays['explained']):.0f} %" for name, arrays in clouds.items()]
    drawn = len(next(iter(clouds.values()))["codes"]) if clouds else 0
    caption = (
        f"Codes of the first {drawn} test samples, drawn as their labels where there are any, on their first two "
        "principal components; the title gives the share of variance that these show. Charts of a mixture share no "
        "axes, so their codes may overlap here without being similar."
    )
    return Figure("codes", "Codes", caption, _clouds(list(clouds.values()), titles))


def embeddings(results: dict[str, Any], pictures: Arrays) -> Figure:
    """Codes of systems that embed a whole data set."""
    rows = results["embeddings"]
    titles = [f"{row['system']}, trustworthiness {row['trustworthiness']['mean']:.3f}" for row in rows]
    caption = (
        f"The first {rows[0]['points']} test samples, embedded as one observation by systems that encode a whole data "
        "set; drawn as their labels, which the systems did not use. Axes have no unit."
    )
    return Figure("embeddings", "Embeddings", caption, _clouds([pictures[row["system"]] for row in rows], titles))


def _clouds(clouds: list[dict[str, np.ndarray]], titles: list[str]) -> "Canvas":
    across = min(4, max(len(clouds), 2))
    down = max(1, -(-len(clouds) // across))
    side = 12.0 / across
    figure = canvas(12.0, 0.9 * side * down)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(clouds) :]:
        axes.remove()
    for axes, arrays, title in zip(panels, clouds, titles, strict=False):
        scatter(axes, arrays["codes"][:, :2], arrays.get("labels"), 14.0)
        axes.set_title(title, fontsize=9, color=INK)
        axes.tick_params(labelsize=7)
    return figure
