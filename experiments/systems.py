"""Claim: every system of the table passes its independent check; here are the checks that take minutes.

Checks that take seconds are in the test suite. Each part returns its rows: check, measured value, goal, and whether the
goal is met. Failed rows are marked.

    python -m experiments.systems [PART ...]

runs the named parts (all by default); the table is written once all are finished. Finished parts are in
``runs/systems``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from experiments import (
    systems_factor,
    systems_mixtures,
    systems_relational,
    systems_sequences,
    systems_variational,
)
from experiments.common import ROOT, arguments, write

RUNS = ROOT.parent / "runs" / "systems"
Rows = dict[str, dict[str, Any]]
PARTS: dict[str, Callable[[], Rows]] = {
    "relational": systems_relational.run,
    "mixtures": systems_mixtures.run,
    "factor": systems_factor.run,
    "variational": systems_variational.run,
    "sequences": systems_sequences.run,
}


@dataclass(frozen=True)
class Configuration:
    """Configuration; each part reports its settings with its numbers."""

    parts: tuple[str, ...] = tuple(PARTS)


def part(name: str) -> Rows:
    """The rows of one part, computed once."""
    path = RUNS / f"{name}.json"
    if not path.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(PARTS[name](), allow_nan=False))
    rows = dict(json.loads(path.read_text()))
    for row, entry in rows.items():
        print(f"{'holds' if entry['holds'] else 'FAILS'}  {row}: {text(entry['value'])} ({entry['goal']})", flush=True)
    return rows


def text(value: Any) -> str:
    """Formats a number, or several by name, to a few digits."""
    match value:
        case dict():
            return ", ".join(f"{name} {text(item)}" for name, item in value.items())
        case [dict(), *_]:
            return f"{len(value)} settings, in the JSON"
        case list() | tuple():
            return ", ".join(text(item) for item in value)
        case float():
            return f"{value:.4g}"
    return str(value)


def draw(rows: Rows) -> Any:
    """The table as a picture."""
    import textwrap

    from matplotlib.figure import Figure

    def wrapped(value: Any, width: int) -> str:
        return "\n".join(textwrap.wrap(text(value), width))

    lines = [
        [
            wrapped(name, 18),
            wrapped(entry["check"], 30),
            wrapped(entry["value"], 36),
            wrapped(entry["goal"], 24),
            "holds" if entry["holds"] else "fails",
        ]
        for name, entry in rows.items()
    ]
    heights = [1 + max(cell.count("\n") for cell in line) for line in lines]
    figure = Figure(figsize=(9, 0.6 + 0.17 * sum(heights)), layout="tight")
    axes = figure.subplots()
    axes.axis("off")
    titles = ["system", "check", "measured", "goal", ""]
    table = axes.table(lines, colLabels=titles, colWidths=[0.17, 0.25, 0.3, 0.21, 0.07], loc="center", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    total = sum(heights) + 1
    for (i, j), cell in table.get_celld().items():
        cell.set_height((heights[i - 1] if i else 1) / total)
        cell.set_edgecolor("#dddddd")
        if i and j == 4:
            cell.set_text_props(color="#117733" if lines[i - 1][4] == "holds" else "#882255", weight="bold")
    return figure


def main(names: list[str]) -> None:
    rows_by_part = {name: part(name) for name in names or PARTS}
    if len(rows_by_part) == len(PARTS):
        rows = {row: entry for rows in rows_by_part.values() for row, entry in rows.items()}
        write("systems", Configuration(), {"systems": rows}, draw(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(arguments(__doc__, PARTS))
