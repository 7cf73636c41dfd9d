"""The running command's options, which its job writes into a folder so that the command can be repeated."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from gae.data.files import write_text
from gae.training.processes import is_first

FILE = "config.yaml"
_running: ContextVar[str | None] = ContextVar("options of the running command", default=None)


@contextmanager
def repeatable(options: str) -> Iterator[None]:
    """Context manager of a command with these options, the text of its file."""
    token = _running.set(options)
    try:
        yield
    finally:
        _running.reset(token)


def keep_options(folder: Path) -> None:
    """Writes the options of the running command, if there is one, into its folder; of several processes by the first.

    >>> keep_options(Path("nowhere"))
    """
    options = _running.get()
    if options is not None and is_first():
        write_text(folder / FILE, options)
