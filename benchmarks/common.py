"""The protocol of a side-by-side timing: results first, then both sides in turns, then ratios within one run."""

import gc
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 7
ROUND_SECONDS = 0.2  # shorter work is repeated within a round until it takes about this long
DEVICE = torch.device(os.environ.get("GAE_BENCHMARK_DEVICE", "cpu"))

Side = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """Ratio of the medians of two sides within a run, and its range over the rounds; goal None means for reference.

    On a GPU also both sides' seconds, and the most bytes that tensors took beyond those there before.
    """

    what: str
    ratio: float
    low: float
    high: float
    goal: float | None
    at_least: bool = False
    seconds: tuple[float, float] | None = None
    peak: tuple[int, int] | None = None

    @property
    def margin(self) -> float:
        """Distance from the goal; above 1 if the goal is missed."""
        if self.goal is None:
            return 0.0
        return self.goal / self.ratio if self.at_least else self.ratio / self.goal

    @property
    def holds(self) -> bool:
        return self.margin <= 1


class UnequalResults(AssertionError):
    """Raised if the two sides compute different results, so that their timings are not comparable."""


def agree(what: str, ours: Tensor | float, theirs: Tensor | float, tolerance: float) -> None:
    """Raises UnequalResults unless max |ours - theirs| <= tolerance · max |theirs|; prints the difference."""
    relative = difference(what, ours, theirs)
    if not relative <= tolerance:  # NaN fails too
        raise UnequalResults(f"{what}: relative difference {relative:.3g}, allowed {tolerance:.3g}")
    print(f"equal: {what}, relative difference {relative:.1e} (allowed {tolerance:.0e})")


def difference(what: str, ours: Tensor | float, theirs: Tensor | float) -> float:
    """max |ours - theirs| / max |theirs|; raises UnequalResults for two shapes."""
    a, b = (torch.as_tensor(side).detach().double() for side in (ours, theirs))
    if a.shape != b.shape:
        raise UnequalResults(f"{what}: shape {tuple(a.shape)} against {tuple(b.shape)}")
    return float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


class Rounds(list[float]):
    """Seconds per call of a side in each round, and on a GPU the most bytes that its tensors took."""

    peak: int | None = None


def take_turns(*sides: Side, rounds: int = ROUNDS) -> list[Rounds]:
    """Seconds per call, by side and round. The sides run A B A B …, after a warm-up of two calls each."""
    repeats, taken = [], [Rounds() for _ in sides]
    for side, seconds in zip(sides, taken, strict=True):
        seconds.peak = peak_bytes(side)
        repeats.append(max(1, math.ceil(ROUND_SECONDS / _seconds(side, 1))))
    for _ in range(rounds):
        for side, repeat, seconds in zip(sides, repeats, taken, strict=True):
            gc.collect()
            seconds.append(_seconds(side, repeat))
    return taken


def training(loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter], rate: float = 1e-4) -> Side:
    """One training step: forward, backward, Adam."""
    optimizer = torch.optim.Adam(parameters, rate)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def peak_bytes(side: Side, device: torch.device = DEVICE) -> int | None:
    """The most bytes of a GPU that the tensors of a call take, beyond those there before; None on the CPU."""
    if device.type != "cuda":
        side()
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    side()
    return int(torch.cuda.max_memory_allocated()) - before


def finished(device: torch.device = DEVICE) -> float:
    """The time when all computations of the device are done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(side: Side, repeat: int) -> float:
    start = finished()
    for _ in range(repeat):
        side()
    return (finished() - start) / repeat


def row(what: str, upper: Sequence[float], lower: Sequence[float], goal: float | None, at_least: bool = False) -> Row:
    """Ratio of the medians of two sides, from the result of ``take_turns``."""
    pairs = [a / b for a, b in zip(upper, lower, strict=True)]
    medians = statistics.median(upper), statistics.median(lower)
    measured = Row(what, medians[0] / medians[1], min(pairs), max(pairs), goal, at_least)
    if DEVICE.type != "cuda" or not (isinstance(upper, Rounds) and isinstance(lower, Rounds)):
        return measured
    peak = None if upper.peak is None or lower.peak is None else (upper.peak, lower.peak)
    return replace(measured, seconds=medians, peak=peak)


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Text table; the first column is left-aligned, the others right-aligned."""
    cells = [list(header), *map(list, lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def report(benchmark: str, unit: str, compared: str, data: str, rows: Sequence[Row]) -> None:
    """Prints a table of all ratios, then one line of JSON that starts with the row closest to missing its goal."""
    lines = [(r.what, f"{r.ratio:.3f}", f"{r.low:.3f} … {r.high:.3f}", goal_of(asdict(r)), verdict(r)) for r in rows]
    print(f"\n{benchmark}: {compared}\nRatio: {unit}. Data: {data}. Threads: {torch.get_num_threads()}. {DEVICE}.\n")
    print(table(("", "ratio", "range over rounds", "goal", "holds"), lines))
    worst = max(rows, key=lambda r: r.margin)
    print(
        json.dumps(
            {
                "benchmark": benchmark,
                "ratio": round(worst.ratio, 4),
                "goal": worst.goal,
                "unit": unit,
                "holds": all(r.holds for r in rows),
                "worst": worst.what,
                "compared": compared,
                "data": data,
                "threads": torch.get_num_threads(),
                "details": [{**_rounded(asdict(r)), "holds": None if r.goal is None else r.holds} for r in rows],
            },
            ensure_ascii=False,
        )
    )


def goal_of(row: dict[str, Any]) -> str:
    """A goal in words."""
    return "–" if row["goal"] is None else f"{'≥' if row['at_least'] else '≤'} {row['goal']:g}"


def verdict(row: Row) -> str:
    return "–" if row.goal is None else "yes" if row.holds else "no"


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in values.items() if value is not None or name == "goal"}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in known.items()}


def first_line(doc: str | None) -> str:
    """First paragraph of the docstring of a benchmark, on one line."""
    assert doc is not None
    return " ".join(doc.split("\n\n")[0].split())


def mnist_folder() -> Path | None:
    """The folder with MNIST's idx files, of those in ``GAE_DATA`` or of ``shared/data`` beside the checkout."""
    from gae.data.readers import idx_places

    beside = ROOT.parent / "shared" / "data"
    folder = beside if not os.environ.get("GAE_DATA") and beside.is_dir() else None
    return next(idx_places("mnist", folder), None)


def mnist(binarised: bool = False) -> tuple[str, Float[Tensor, "60000 1 28 28"]]:
    """Name of the data and training images: MNIST if its files exist, else random images of its shape."""
    from gae import data

    folder = mnist_folder()
    if folder is not None:
        name, images = "MNIST", data.load("mnist", folder=folder).train
    else:
        name, images = "synthetic stand-in for MNIST", _stand_in()
    images = images.to(DEVICE)
    return (f"{name}, binarised at 0.5", (images > 0.5).float()) if binarised else (name, images)


def _stand_in() -> Float[Tensor, "60000 1 28 28"]:
    """Ten blurred prototypes with 20 shared directions of variation, clamped to [0, 1], and a rim of zeros."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.randn(30, 1, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(shapes, (20, 20), mode="bicubic").flatten(1)
    label = torch.randint(10, (60_000,), generator=generator)
    inner = smooth[label] + 0.2 * torch.randn(60_000, 20, generator=generator) @ smooth[10:]
    return torch.nn.functional.pad(inner.clamp(0, 1).reshape(-1, 1, 20, 20), (4, 4, 4, 4))
