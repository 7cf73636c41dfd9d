"""Summary of a sweep as a LaTeX table, a figure and a self-contained HTML page."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gae.data.files import write_text
from gae.reports.answers import sweep_answer
from gae.reports.figures import INK, LINES, Figure, canvas, save_all, style
from gae.reports.pages import made_by, write_page
from gae.reports.seen import compared
from gae.reports.tables import Column, TableCell, number_cell, squared_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = (
    Column("train_loss", "training loss", "nats", 3),
    Column("validation_loss", "validation loss", "nats", 3),
    Column("test_loss", "test loss", "nats", 3),
    Column("log_evidence", "log p(x)", "nats, exact", 3),
    Column("tokens_restored", "tokens restored", "%", 1, 1e2),
    Column("seconds", "training", "seconds", 1),
)
DRAWN = ("test_loss", "squared_error", "tokens_restored")


def shown_columns(results: dict[str, Any]) -> list[Column]:
    """The columns that some training has."""
    rows = results["summary"]
    error = squared_error((row["squared_error_mean"] for row in rows), 3)
    columns = (*COLUMNS[:4], error, *COLUMNS[4:])
    return [each for each in columns if any(row[f"{each.key}_mean"] is not None for row in rows)]


def table(results: dict[str, Any]) -> list[list[TableCell]]:
    """A line for each combination: the values that vary, the number of trainings, and mean ± standard error."""
    return [
        [
            *(TableCell(text(row.get(name))) for name in results["axes"]),
            TableCell(str(row["trainings"]) + (f" of {row['trainings'] + row['failed']}" if row["failed"] else "")),
            *(_cell(row, column) for column in shown_columns(results)),
        ]
        for row in results["summary"]
    ]


def _cell(row: dict[str, Any], column: Column) -> TableCell:
    value, error = column.numbers(_entry(row, column))
    return TableCell("–") if value is None else number_cell(value, error, column.decimals)


def text(value: Any) -> str:
    """A value of an option; a dash for an option that a system does not have."""
    return "–" if value is None else str(value)


def constants(results: dict[str, Any]) -> dict[str, str]:
    """The values of data, system and options that all trainings share."""
    first = results["summary"][0]
    return {name: text(first[name]) for name in given(first) if name not in results["axes"]}


def given(row: dict[str, Any]) -> list[str]:
    """The columns of data, system and options of a row of the summary, which come first."""
    return list(row)[: list(row).index("trainings")]


def latex(results: dict[str, Any]) -> str:
    """The table in LaTeX, for the package booktabs."""
    import pandas

    titles = [f"{column.title} ({column.unit})" for column in shown_columns(results)]
    lines = [[cell.text for cell in line] for line in table(results)]
    frame = pandas.DataFrame(lines, columns=[*results["axes"], "trainings", *titles])
    escaped = frame.style.format(escape="latex").format_index(escape="latex", axis=1).hide(axis="index")
    written = escaped.to_latex(hrules=True)
    for sign, command in (("−", "$-$"), ("±", r"$\pm$"), ("×10⁻³", r"$\times 10^{-3}$"), ("–", "--")):
        written = written.replace(sign, command)
    return written


def write(out: Path) -> None:
    """Writes ``report.html``, the figure, and with pandas ``summary.tex`` of the sweep in ``out``."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    if find_spec("pandas") is not None:
        write_text(out / "summary.tex", latex(results))
    with style():
        figures = [draw(results)] if any(row["trainings"] for row in results["summary"]) else []
    write_page(
        out / "report.html",
        "sweep.html",
        results=results,
        columns=shown_columns(results),
        lines=table(results),
        constants=constants(results),
        label=lambda row: label(results, row),
        answer=answer(results),
        figures=figures,
        images=save_all(figures, out / "figures"),
        made=_made(results),
    )


def _made(results: dict[str, Any]) -> list[tuple[str, str]]:
    command, commit = results.get("command"), results.get("commit")
    return made_by(command, commit, results["versions"], results["machine"], float(results["seconds"]))


def answer(results: dict[str, Any]) -> list[str]:
    """The paragraph that the page begins with."""
    names = list(dict.fromkeys(name for row in results["summary"] for name in given(row)))
    return sweep_answer(results["rows"], names, results["axes"])


def label(results: dict[str, Any], row: dict[str, Any]) -> str:
    """The values of a combination that vary."""
    return ", ".join(f"{name}={text(row[name])}" for name in results["axes"] if row.get(name) is not None)


def draw(results: dict[str, Any]) -> Figure:
    """Test loss and reconstruction of each combination: a dot for each training, and mean ± standard error."""
    columns = [each for each in shown_columns(results) if each.key in DRAWN]
    figure = canvas(10.5, 1.2 + 0.3 * len(results["summary"]))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for i, (axes, column) in enumerate(zip(panels, columns, strict=True)):
        _dots(axes, results, column, LINES[i])
        axes.set(xlabel=f"{column.title}, {column.unit}")
    panels[0].set_yticks(range(len(results["summary"])), [label(results, row) for row in results["summary"]])
    panels[0].invert_yaxis()
    caption = "A grey dot for each training; the mean over trainings ± its standard error in colour."
    losses = {label(results, row) or "the one combination": row["test_loss_mean"] for row in results["summary"]}
    alt = compared({name: loss for name, loss in losses.items() if loss is not None}, "Mean test loss in nats")
    return Figure("sweep", "Results of each combination", caption, figure, alt)


def _dots(axes: "Axes", results: dict[str, Any], column: Column, colour: str) -> None:
    for place, row in enumerate(results["summary"]):
        alike = [each for each in results["rows"] if all(each.get(name) == row[name] for name in given(row))]
        single = [column.scale * each[column.key] for each in alike if each[column.key] is not None]
        axes.plot(single, [place] * len(single), "o", ms=3, color=INK, alpha=0.3)
        entry = _entry(row, column)
        if entry["mean"] is not None:
            spread = column.scale * entry["se"] if entry["se"] else None
            axes.errorbar(column.scale * entry["mean"], place, xerr=spread, fmt="o", ms=5, color=colour, capsize=3)


def _entry(row: dict[str, Any], column: Column) -> dict[str, Any]:
    return {"mean": row[f"{column.key}_mean"], "se": row[f"{column.key}_se"]}
