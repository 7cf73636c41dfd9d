"""Shares of processor time, by operation and by function of gae, of each side of a benchmark row.

    python -m benchmarks.profile_row P5        # every side that the row times, one after the other, after a warm-up
    python -m benchmarks.profile_row P5 --top 30

It runs the row's own module, whose sides are profiled instead of timed. A row that times nothing in turns is profiled
as a whole. Results are compared as in the benchmark, before any profile.

With GAE_BENCHMARK_DEVICE=cuda it prints the time of the kernels and the number of their launches. On both devices it
counts the operations, and the lines that read results.
"""

import argparse
import cProfile
import importlib
import linecache
import pstats
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import DEVICE, ROOT, Rounds, Side, finished, table

FOLDER = Path(__file__).resolve().parent
Entry = tuple[str, float, int]


def module_of(row: str) -> ModuleType:
    """The module of a row such as P5."""
    rows = {f"P{int(path.stem[1:3])}": path.stem for path in sorted(FOLDER.glob("p[0-9]*.py"))}
    if row.upper() not in rows:
        raise SystemExit(f"No row {row}. Rows: {', '.join(rows)}.")
    return importlib.import_module(f"benchmarks.{rows[row.upper()]}")


def profile(what: str, side: Callable[[], Any], top: int) -> None:
    """Prints the shares of one call."""
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(side)
    stats: dict[tuple[str, int, str], Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(entry[2] for entry in stats.values())
    own = [(_name(place), entry[2], entry[1]) for place, entry in stats.items()]
    whole = [(_name(place), entry[3], entry[1]) for place, entry in stats.items() if str(ROOT / "gae") in place[0]]
    print(f"\n{what}: {1e3 * total:.0f} ms of processor time\n")
    print(_shares("operation, without the calls that it makes", own, total, top))
    print()
    print(_shares("function of gae, with the calls that it makes", whole, total, top))


def profile_gpu(what: str, side: Callable[[], Any], top: int) -> None:
    """Prints the kernels of one call and the number of their launches."""
    with torch.profiler.profile(acc_events=True) as profiler:
        start = finished()
        side()
        seconds = finished() - start
    events = profiler.key_averages()
    launches = sum(event.count for event in events if "LaunchKernel" in event.key)
    kernels = [(event.key, event.self_device_time_total / 1e6, event.count) for event in events]
    busy = sum(kernel[1] for kernel in kernels)
    print(f"\n{what}: {1e3 * seconds:.1f} ms under the profiler, of which kernels {1e3 * busy:.1f} ms")
    print(f"{launches} launches\n")
    print(_shares("kernel or operation, time on the GPU", kernels, busy, top))


class Reads(TorchDispatchMode):
    """Counts operations, and by line those whose result is read, as by ``bool``: a GPU then waits for all before it."""

    NAMES = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal")

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.lines: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        if str(function).startswith(self.NAMES):
            self.lines[_line()] += 1
        return function(*args, **(kwargs or {}))


def _line() -> str:
    """The innermost line of gae or a benchmark that is running."""
    for frame, number in traceback.walk_stack(None):
        path = frame.f_code.co_filename
        if path.startswith((str(ROOT / "gae"), str(FOLDER))) and path != __file__:
            return _name((path, number, linecache.getline(path, number).strip()))
    return "elsewhere"


def reads(side: Callable[[], Any], top: int) -> None:
    """Prints how many operations a call takes, and the lines that read their results."""
    with Reads() as counted:
        side()
    print(f"\n{counted.operations} operations, {counted.lines.total()} results read\n")
    print(table(("results read at", "calls"), [(line, str(count)) for line, count in counted.lines.most_common(top)]))


def _shares(header: str, entries: list[Entry], total: float, top: int) -> str:
    largest = sorted(entries, key=lambda entry: -entry[1])[:top]
    lines = [(name, f"{seconds / total:.1%}", f"{1e3 * seconds:.1f}", str(calls)) for name, seconds, calls in largest]
    return table((header, "share", "ms", "calls"), lines)


def _name(place: tuple[str, int, str]) -> str:
    path, line, name = place
    if path == "~":
        return name.strip("<>").replace("built-in method ", "").replace("method ", "")
    file = Path(path)
    return f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name}:{line} {name}"


def in_turns(top: int, *sides: Side, rounds: int = 2) -> list[Rounds]:
    """In place of ``take_turns``: profiles each side; the times that it returns mean nothing."""
    for i, side in enumerate(sides, 1):
        code = getattr(getattr(side, "func", side), "__code__", None)
        source = "" if code is None else linecache.getline(code.co_filename, code.co_firstlineno).strip(" ,\n")
        side()
        (profile_gpu if DEVICE.type == "cuda" else profile)(f"Side {i} of {len(sides)}: {source}", side, top)
        reads(side, top)
    return [Rounds([1.0] * rounds) for _ in sides]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", help="such as P5")
    parser.add_argument("--top", type=int, default=12, help="number of lines of each table")
    given = parser.parse_args()
    module: Any = module_of(given.row)
    if not hasattr(module, "take_turns"):
        profile(given.row, module.main, given.top)
        return
    module.take_turns = partial(in_turns, given.top)
    module.report = lambda *facts: None  # ratios of a profiled run mean nothing
    module.main()


if __name__ == "__main__":
    main()
