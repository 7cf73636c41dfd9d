"""Progress of long jobs on standard error: bars with the time left on a terminal, elsewhere a line now and then."""

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

FIRST, EVERY = 5.0, 60.0  # seconds to the first line of a job and between lines, where there is no terminal
DELAY = 1.0  # seconds after which a job within another gets a bar of its own
REFRESH = 0.1  # seconds between changes of a bar


Advance = Callable[..., None]  # (text="", by=1, stored=False)


@contextmanager
def progress(
    what: str, total: int, done: int = 0, *, shown: bool = True, keep: bool = False, alone: bool = False
) -> Iterator[Advance]:
    """Shows how many steps of a job are done and how long the others will take; a job within another, below it.

    Yields a function (text="", by=1, stored=False) that counts ``by`` more steps and shows a text. Steps that were
    ``stored`` took no time, and are left out of the rate.

    Args:
        what: the steps, in a word or two.
        total: their number.
        done: number of steps done before.
        shown: False for nothing.
        keep: whether the end of a job that is in no other stays on the terminal, or is a line of its own.
        alone: whether loops of ``counted`` within are not shown.

    >>> with progress("samples", 3) as advance:
    ...     for i in range(3):
    ...         advance(f"sample {i}")
    """
    with _loops(_never) if alone else nullcontext():
        if not shown or sys.stderr is None:
            yield lambda text="", by=1, stored=False: None
            return
        job = _jobs.enter(what, total, done, keep)
        try:
            yield job.advance
        finally:
            _jobs.leave(job)


def _always() -> bool:
    return True


def _never() -> bool:
    return False


@contextmanager
def announced(shown: Callable[[], bool] = _always) -> Iterator[None]:
    """Shows the loops of ``counted`` within; at the end nothing is shown any more.

    Args:
        shown: whether a loop that begins is shown. A process may have joined a group by then.
    """
    with _loops(shown):
        try:
            yield
        finally:
            _jobs.close()


def counted(items: Sequence[T], what: str) -> Iterable[T]:
    """The items of a loop, whose progress is shown within ``announced``.

    >>> list(counted(range(3), "rows"))
    [0, 1, 2]
    """
    return _count(items, what) if _jobs.loops() else items


def _count(items: Sequence[T], what: str) -> Iterator[T]:
    with progress(what, len(items)) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def _loops(shown: Callable[[], bool]) -> Iterator[None]:
    before, _jobs.loops = _jobs.loops, shown
    try:
        yield
    finally:
        _jobs.loops = before


class _Jobs:
    """The jobs that are shown, each within the one before it."""

    def __init__(self) -> None:
        self.loops = _never
        self.running: list[_Job] = []
        self.bars: Any = None  # of rich, on a terminal

    def enter(self, what: str, total: int, done: int, keep: bool) -> "_Job":
        if not self.running and _on_terminal():
            self.bars = _bars(keep)
            self.bars.start()
        depth, bars, kept = len(self.running), self.bars, keep and not self.running
        job = _Line(what, total, done, kept) if bars is None else _Bar(what, total, done, depth, bars)
        self.running.append(job)
        return job

    def leave(self, job: "_Job") -> None:
        if job not in self.running:  # all were closed
            return
        self.running.remove(job)
        job.end()
        if not self.running:
            self.close()

    def close(self) -> None:
        bars, self.bars, self.running = self.bars, None, []
        if bars is not None:
            bars.stop()


_jobs = _Jobs()


class _Job(ABC):
    """The count of a job's steps, and its time."""

    def __init__(self, what: str, total: int, done: int):
        self.what, self.total, self.count, self.before = what, total, done, done
        self.text, self.began = "", time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> str:
        """The time that the remaining steps take at the mean rate so far."""
        own, remaining = self.count - self.before, max(self.total - self.count, 0)
        return f"{timedelta(seconds=round(self.seconds * remaining / own))} left" if own and remaining else ""

    def advance(self, text: str = "", by: int = 1, stored: bool = False) -> None:
        self.count, self.text = self.count + by, text
        self.before += by if stored else 0
        self.show()

    @abstractmethod
    def show(self) -> None:
        """Shows the count and the text, unless they were shown a moment ago."""

    @abstractmethod
    def end(self) -> None:
        """Ends the display of this job."""


class _Bar(_Job):
    def __init__(self, what: str, total: int, done: int, depth: int, bars: Any):
        super().__init__("  " * depth + what, total, done)
        self.bars, self.nested, self.due = bars, depth > 0, DELAY if depth else 0.0
        self.task = None if depth else self._added()

    def _added(self) -> Any:
        return self.bars.add_task(self.what, total=self.total, completed=self.count, left="", text="")

    def show(self) -> None:
        seconds = self.seconds
        if seconds < self.due:
            return
        self.due = seconds + REFRESH
        self.task = self._added() if self.task is None else self.task
        self._update()

    def _update(self) -> None:
        self.bars.update(self.task, completed=self.count, left=self.left, text=self.text)

    def end(self) -> None:
        if self.nested and self.task is not None:
            self.bars.remove_task(self.task)
        elif not self.nested:
            self._update()


class _Line(_Job):
    def __init__(self, what: str, total: int, done: int, keep: bool):
        super().__init__(what, total, done)
        self.keep, self.due = keep, FIRST

    def show(self) -> None:
        if self.seconds >= self.due:
            self.due = self.seconds + EVERY
            self._print()

    def _print(self) -> None:
        facts = filter(None, (f"{self.what} {self.count}/{self.total}", self.left, self.text))
        print("[gae]", ", ".join(facts), file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.keep:
            self._print()


def _on_terminal() -> bool:
    if os.environ.get("TERM") == "dumb":
        return False
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _bars(keep: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    texts = [TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[left]", "fields[text]")]
    columns = (texts[0], BarColumn(20), MofNCompleteColumn(), *texts[1:])
    shared = sys.stdout is not None and sys.stdout.isatty()  # otherwise printed text belongs into a file
    return Progress(*columns, console=Console(stderr=True), transient=not keep, redirect_stdout=shared)
