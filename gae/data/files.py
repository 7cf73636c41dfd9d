"""Atomic file writes, and early checks that a path is writable."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROWS = (".npz", ".npy", ".csv", ".parquet")  # suffixes of files with one row per observation


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Writes a file atomically: yields a temporary path of the same suffix, which replaces ``path`` on success.

    Raises:
        OSError: if the file cannot be written, as on a full disk; the message names ``path``, whose content is kept.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with whole(Path(folder) / "new" / "a.txt") as temporary:
    ...         _ = temporary.write_text("done")
    ...     [(path.name, path.read_text()) for path in (Path(folder) / "new").iterdir()]
    [('a.txt', 'done')]
    """
    target = path.resolve()
    temporary = target.with_name(f".unfinished-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise unwritten(path, error, "Make room, or write elsewhere.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def unwritten(path: Path, error: Exception, remedy: str) -> OSError:
    """The OSError for a file that could not be written, with the system's error number."""
    number = error.errno if isinstance(error, OSError) else None
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    message = f"Cannot write {path} ({reason}). {remedy}"
    return OSError(message) if number is None else OSError(number, message)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically, the same bytes on every system.

    Characters that UTF-8 cannot encode (bytes of file names) are escaped.
    """
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def check_file(path: Path, *suffixes: str) -> None:
    """Raises ValueError for a wrong suffix, and OSError if a file cannot be written to ``path``."""
    if path.suffix not in suffixes:
        raise ValueError(f"The output must end in {' or '.join(suffixes)}, got {path}.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Name a file.")
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """Raises OSError unless the folder exists or can be created, and is writable."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file, so nothing can be written to {path}. Name another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing} is not writable, so nothing can be written to {path}. Name another folder.")
