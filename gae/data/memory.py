"""Memory limits: the largest file to unpack, and the memory available to this process."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

VARIABLE = "GAE_MAX_BYTES"
DEFAULT = 4 * 2**30
GROUPS = Path("/sys/fs/cgroup")


def limit() -> int:
    """The maximum size in memory of one file, folder or batch of matrices, in bytes: ``GAE_MAX_BYTES``, or 4 GiB.

    Raises:
        ValueError: if the environment variable is not a positive whole number.
    """
    stated = os.environ.get(VARIABLE, "")
    if not stated:
        return DEFAULT
    if not stated.isdecimal() or int(stated) == 0:
        raise ValueError(f"The environment variable {VARIABLE} must be a positive number of bytes, got {stated!r}.")
    return int(stated)


def need_room(size: int, path: Path, what: str) -> None:
    """Raises ValueError for contents larger than ``limit()``.

    Args:
        size: bytes in memory.
        path: file or folder.
        what: description of the contents, as stated in the header.

    Raises:
        ValueError: if they are larger; the message names both numbers and the environment variable.

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


def free_memory(device: torch.device) -> int | None:
    """Free memory of a device in bytes, or None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [size for size in (_available(), *_in_groups()) if size is not None]
    return min(known) if known else None


def _available() -> int | None:
    """Available memory of the machine in bytes; without /proc (macOS), its total memory."""
    info = Path("/proc/meminfo")
    if info.exists():
        line = next(
            (line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("MemAvailable:")), None
        )
        return None if line is None else 1024 * int(line.split()[1])
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _in_groups() -> Iterator[int]:
    """Bytes left in each control group from this process up to the root; file cache counts as free."""
    own = _own_groups()
    layouts = (
        (GROUPS, own.get(""), "memory.max", "memory.current", "inactive_file"),
        (GROUPS / "memory", own.get("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for root, group, limit, usage, cache in layouts:
        folder = root / (group or "").strip("/")
        for place in (folder, *folder.parents):
            highest, used = _number(place / limit), _number(place / usage)
            if place.is_relative_to(root) and highest is not None and used is not None:
                yield max(0, highest - used + _cache(place / "memory.stat", cache))


def _own_groups() -> dict[str, str]:
    """Control groups of this process by controller; version 2 has the empty name."""
    own = Path("/proc/self/cgroup")
    lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()] if own.exists() else []
    return {kind: path for _, kinds, path in lines for kind in kinds.split(",")}


def _number(path: Path) -> int | None:
    """The number in a file; None for "max" or a missing file."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _cache(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
