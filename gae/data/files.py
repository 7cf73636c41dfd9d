"""Files that are written whole or not at all, and places that can be written to, checked before long work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path of the same suffix, which replaces ``path`` when the block ends without an error.

    Raises:
        OSError: where it cannot be written, such as on a full disk; it names ``path``, whose old content stays.

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
    """The error of a file that could not be written, with the number that the system gave."""
    number = error.errno if isinstance(error, OSError) else None
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    message = f"Cannot write {path} ({reason}). {remedy}"
    return OSError(message) if number is None else OSError(number, message)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file whole; characters that UTF-8 lacks (bytes of file names) are written as escapes."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_file(path: Path, *suffixes: str) -> None:
    """Raises unless a file can be written there: ValueError for another suffix, else OSError."""
    if path.suffix not in suffixes:
        raise ValueError(f"The output must end in {' or '.join(suffixes)}, got {path}.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Name a file.")
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """Raises OSError unless the folder exists or can be made, and files can be written into it."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file, so nothing can be written to {path}. Name another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing} is not writable, so nothing can be written to {path}. Name another folder.")
