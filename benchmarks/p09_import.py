"""``python -c "import gae"`` against ``python -c "import torch, pyro"``, each in a process of its own."""

import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

from benchmarks.common import ROOT, Row, agree, first_line, report, row, take_turns

HELP_SECONDS = 1.0  # `gae --help`, beyond the import of torch


def python(*arguments: str) -> Callable[[], str]:
    """Runs a fresh interpreter."""
    return lambda: (
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    )


def help_row(torch_alone: list[float], helped: list[float]) -> Row:
    """`gae --help` beyond `import torch`, as a share of the second that it may take."""
    pairs = [a - b for a, b in zip(helped, torch_alone, strict=True)]
    beyond = statistics.median(helped) - statistics.median(torch_alone)
    return Row("gae --help beyond import torch / 1 s", beyond / HELP_SECONDS, min(pairs), max(pairs), 1.0)


def main() -> None:
    modules = "print('torch' in __import__('sys').modules and 'pyro' in __import__('sys').modules)"
    loads = python("-c", f"import gae; {modules}")().strip() == "True"
    agree("import gae loads torch and pyro", float(loads), 1.0, 0.0)
    sides = [python("-c", "import gae"), python("-c", "import torch, pyro")]
    if find_spec("gae.cli") is not None:
        sides += [python("-c", "import torch"), python("-c", "from gae.cli import main; main()", "--help")]
    ours, theirs, *command = take_turns(*sides)
    rows = [row("import gae", ours, theirs, 1.15)]
    if command:
        rows.append(help_row(*command))
    report("P9", "time of import gae / time of import torch, pyro", first_line(__doc__), "none", rows)


if __name__ == "__main__":
    main()
