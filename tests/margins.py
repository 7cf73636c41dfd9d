"""How far what tests measure stays from their bounds.

A bound on a statistic, or on what training reached, is asserted by ``within``. With ``GAE_MARGINS`` set to a file, each
call appends a line to it; ``python -m tests.margins LINES TABLE`` makes a table of them. ``tests/seeds.py`` does both.
"""

import json
import os
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def within(name: str, value: Any, *, above: float | None = None, below: float | None = None) -> None:
    """Asserts ``above < value < below`` of one number, and writes it down."""
    value = float(value.item() if hasattr(value, "item") else value)  # also of a tensor with a graph
    if "GAE_MARGINS" in os.environ:
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        line = {"test": test, "name": name, "value": value, "above": above, "below": below}
        with Path(os.environ["GAE_MARGINS"]).open("a") as file:
            file.write(json.dumps(line) + "\n")
    assert above is None or value > above, f"{name}: {value} is not above {above}"
    assert below is None or value < below, f"{name}: {value} is not below {below}"


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: of each bounded quantity its mean and range, and the mean distance from its bound in deviations."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        for side in ("above", "below"):
            if line[side] is not None:
                groups[line["test"], line["name"], side].append(line)
    rows = ["| test | quantity | runs | mean | range | bound | s.d. from it |", "|---|---|---|---|---|---|---|"]
    for (test, name, side), group in sorted(groups.items()):
        values, bounds = [line["value"] for line in group], [line[side] for line in group]
        gaps = [abs(value - bound) for value, bound in zip(values, bounds, strict=True)]
        spread = statistics.stdev(gaps) if len(gaps) > 1 else 0.0
        away = f"{statistics.fmean(gaps) / spread:.1f}" if spread else "-"
        rows.append(
            f"| `{test.removeprefix('tests/')}` | {name} | {len(group)} | {statistics.fmean(values):.4g} | "
            f"{min(values):.4g} … {max(values):.4g} | {side} {statistics.fmean(bounds):.4g} | {away} |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    records = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    Path(sys.argv[2]).write_text("# Margins of tests with bounds\n\n" + table(records))
