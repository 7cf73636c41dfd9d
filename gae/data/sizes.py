"""The memory that a file's contents would take, limited before any of them is unpacked."""

import os
from pathlib import Path

VARIABLE = "GAE_MAX_BYTES"
DEFAULT = 4 * 2**30


def limit() -> int:
    """The most bytes that the contents of one file or folder may take in memory: ``GAE_MAX_BYTES``, or 4 GiB.

    Raises:
        ValueError: the environment variable is no positive whole number.
    """
    stated = os.environ.get(VARIABLE, "")
    if not stated:
        return DEFAULT
    if not stated.isdecimal() or int(stated) == 0:
        raise ValueError(f"The environment variable {VARIABLE} must be a positive number of bytes, got {stated!r}.")
    return int(stated)


def need_room(size: int, path: Path, what: str) -> None:
    """Refuses contents that would take more than ``limit()``.

    Args:
        size: bytes in memory.
        path: of the file or folder.
        what: the contents, as its header states them.

    Raises:
        ValueError: they would take more; the message names both numbers and the environment variable.

    >>> need_room(10**15, Path("bomb.npy"), "an array of shape (1000000, 125000000)")
    Traceback (most recent call last):
    ValueError: bomb.npy holds an array of shape (1000000, 125000000), which would take 1,000,000,000,000,000 bytes of \
memory; the limit is 4,294,967,296. If this is no mistake, set the environment variable GAE_MAX_BYTES to a higher limit.
    """
    allowed = limit()
    if size > allowed:
        raise ValueError(
            f"{path} holds {what}, which would take {size:,} bytes of memory; the limit is {allowed:,}. If this is no "
            f"mistake, set the environment variable {VARIABLE} to a higher limit."
        )
