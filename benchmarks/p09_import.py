"""``import gae`` and all that it offers against ``import torch, pyro``; ``gae --help`` against a bare interpreter.

Names are loaded when they are first used. ``gae.sklearn`` is left out: its time is the import of scikit-learn.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common import ROOT, Row, agree, first_line, report, row, take_turns

HELP_SECONDS = 0.5  # of processor time, for `gae --help` beyond the start of the interpreter
ALL = "import gae; [getattr(gae, name) for name in gae.__all__ if name != 'sklearn']"


def python(*arguments: str) -> Callable[[], str]:
    """Runs a fresh interpreter, which keeps the modules that it compiles, as an installed package is compiled."""
    keeping = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    options: Any = {"cwd": ROOT, "env": keeping, "check": True, "capture_output": True, "text": True}
    return lambda: subprocess.run([sys.executable, *arguments], **options).stdout


def processor_seconds(run: Callable[[], str], rounds: int = 9) -> list[float]:
    """Processor time of the processes that a function starts and waits for."""
    taken = []
    for _ in range(rounds):
        before = os.times()
        run()
        after = os.times()
        taken.append(sum(after[2:4]) - sum(before[2:4]))
    return taken


def help_row(bare: Sequence[float], helped: Sequence[float]) -> Row:
    """`gae --help` beyond a bare interpreter, as a share of its time limit."""
    beyond = [a - statistics.median(bare) for a in helped]
    low, middle, high = (each / HELP_SECONDS for each in (min(beyond), statistics.median(beyond), max(beyond)))
    return Row("gae --help beyond python / 0.5 s, processor time", middle, low, high, 1.0)


def main() -> None:
    modules = "print('torch' in __import__('sys').modules and 'pyro' in __import__('sys').modules)"
    agree("gae loads torch and pyro", float(python("-c", f"{ALL}; {modules}")().strip() == "True"), 1.0, 0.0)
    alone, ours, theirs = take_turns(*(python("-c", code) for code in ("import gae", ALL, "import torch, pyro")))
    bare, helped = map(
        processor_seconds, (python("-c", ""), python("-c", "from gae.cli.main import main; main()", "--help"))
    )
    rows = [row("import gae", alone, theirs, 1.0), row("all of gae", ours, theirs, 1.15), help_row(bare, helped)]
    report("P9", "time of gae / time of import torch, pyro", first_line(__doc__), "none", rows)


if __name__ == "__main__":
    main()
