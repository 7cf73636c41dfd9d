"""Inference gaps as figures and a self-contained HTML page: mean gaps, bounds, and the observations that lose most."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gae.reports.figures import INK, LINES, Figure, canvas, save, style, vector
from gae.reports.observations import Drawing
from gae.reports.pages import write_page
from gae.reports.rounding import plain
from gae.reports.seen import compared, short
from gae.reports.tables import Row, TableCell, number_cell

if TYPE_CHECKING:
    from torch import Tensor

ASIDE = ("sampling s.e.", "converged", "q* below", "effective sample size", "unreliable", "Pareto", "tight")
TOTAL = "inference gap"


@dataclass(frozen=True)
class Worst:
    """The observations that lose most.

    Attributes:
        samples: their indices in the test set.
        rows: their rows in the data.
        x: (N, *X).
        reconstruction: (N, *X), the decoder's mean at the code of the model's engine.
        drawing: the way to draw them.
    """

    samples: Sequence[int]
    rows: Sequence[int]
    x: np.ndarray
    reconstruction: np.ndarray
    drawing: Drawing


def rows(results: dict[str, Any]) -> list[Row]:
    """Mean ± standard error (``population``), and mean sampling error, of every quantity in nats."""
    lines = []
    for name, entry in results.items():
        if not name.startswith(ASIDE):
            sampling = results.get(f"sampling s.e. of {name}")
            cells = number_cell(entry["mean"], entry["se"], 3), number_cell(sampling and sampling["mean"], None, 3)
            lines.append(Row(name, list(cells)))
    return lines


def population(account: dict[str, Any]) -> str:
    """The population of the standard errors.

    >>> population({"trainings": 3, "observations": 100}), population({"trainings": 1, "observations": 100})
    ('3 trainings, means of 100 observations', '100 observations of one training')
    """
    if account["trainings"] > 1:
        return f"{account['trainings']} trainings, means of {account['observations']} observations"
    return f"{account['observations']} observations of one training"


def converged(results: dict[str, Any]) -> dict[str, float]:
    """Share of converged local optimisations, by family."""
    prefix = "converged, "
    return {name.removeprefix(prefix): entry["mean"] for name, entry in results.items() if name.startswith(prefix)}


def lost(columns: "Mapping[str, Tensor]") -> str:
    """The name of the gap by which observations are ordered: the engine's own, else that of the last family."""
    return TOTAL if TOTAL in columns else [name for name in columns if "gap" in name][-1]


def sampling_error(columns: "Mapping[str, Tensor]", gap: str, sample: int) -> float | None:
    """The sampling error of log p(x) - L of an observation; None for another gap, or if log p(x) is exact."""
    bound = "L[q]" if gap == TOTAL else gap.replace("approximation gap", "L[q*]")
    names = [f"sampling s.e. of {name}" for name in ("log p(x)", bound)]
    if not all(name in columns for name in names):
        return None
    return math.hypot(*(float(columns[name][sample]) for name in names))


def write(
    columns: "Mapping[str, Tensor]", account: dict[str, Any], worst: Worst, made: list[tuple[str, str]], folder: Path
) -> None:
    """Writes gap.png, worst.png and a self-contained gap.html."""
    gaps = sorted((name for name in columns if "gap" in name), key=lambda name: name != lost(columns))
    with style():
        figures = [ladder(columns, account), losers(columns, worst)]
    for figure, name in zip(figures, ("gap", "worst"), strict=True):
        save(figure.canvas, folder / f"{name}.png")
    write_page(
        folder / "gap.html",
        "gap.html",
        account=account,
        answer=account["answer"],
        population=population(account),
        rows=rows(account["results"]),
        converged=converged(account["results"]),
        lost=gaps,
        worst=[
            Row(
                str(sample),
                [TableCell(str(row)), *(_loss(columns, name, sample) for name in gaps)],
            )
            for sample, row in zip(worst.samples, worst.rows, strict=True)
        ],
        figures=figures,
        images={figure.name: vector(figure) for figure in figures},
        made=made,
    )


def _loss(columns: "Mapping[str, Tensor]", gap: str, sample: int) -> TableCell:
    return number_cell(float(columns[gap][sample]), sampling_error(columns, gap, sample), 2)


def ladder(columns: "Mapping[str, Tensor]", account: dict[str, Any]) -> Figure:
    """The mean gaps ± standard error, and each observation's bounds relative to log p(x)."""
    figure = canvas(9.6, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    gaps = [name for name in columns if "gap" in name]
    entries = [account["results"][name] for name in gaps]
    for i, entry in enumerate(entries):
        left.barh(i, entry["mean"], xerr=entry["se"], color=LINES[i % len(LINES)], capsize=4, height=0.6)
    left.set_yticks(range(len(gaps)), [name.replace(", ", ",\n") for name in gaps])
    left.invert_yaxis()
    left.set_axisbelow(True)
    left.set(xlabel="nats per observation", title="mean ± standard error")
    order = columns[lost(columns)].argsort()
    bounds = [name for name in columns if name.startswith("L[")]
    for i, name in enumerate(bounds):
        below = columns[name][order] - columns["log p(x)"][order]
        right.plot(below.cpu(), ".", color=LINES[i % len(LINES)], ms=4, label=name, rasterized=len(below) > 1000)
    right.axhline(0, color=INK, lw=1, label="log p(x)")
    right.set(
        xlabel=f"observations, ordered by {lost(columns)}",
        ylabel="bound − log p(x)   (nats)",
        title="every observation",
    )
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    caption = (
        f"Left: mean gaps ± standard error over {population(account)}. Right: every bound of every observation, less "
        f"its log p(x), in the order of the {lost(columns)}. Where a gap is small, sampling error may put a bound "
        "above the line."
    )
    alt = compared({name: entry["mean"] for name, entry in zip(gaps, entries, strict=True)}, "Mean gaps in nats")
    return Figure("gaps", "Gaps and ladder of bounds", caption, figure, alt)


def losers(columns: "Mapping[str, Tensor]", worst: Worst) -> Figure:
    """The observations that lose most, and their reconstructions."""
    losses = [float(columns[lost(columns)][sample]) for sample in worst.samples]
    titles = [f"row {row}\n{plain(-loss, 1)} nats" for row, loss in zip(worst.rows, losses, strict=True)]
    caption = (
        f"The observations with the largest {lost(columns)}, by their row in the data, and the decoder's mean at their "
        f"codes. {worst.drawing.note}"
    )
    named = ", ".join(f"row {row} {short(loss)}" for row, loss in zip(worst.rows, losses, strict=True))
    alt = f"Observations with the largest {lost(columns)}, in nats: {named}."
    return Figure(
        "worst",
        "The observations that lose most",
        caption,
        worst.drawing.listed(worst.x, worst.reconstruction, titles),
        alt,
    )
