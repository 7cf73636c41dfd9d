"""Readers of ``.npy`` and ``.npz`` files, which check the size stated in the header first."""

import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gae.data import mapped
from gae.data.columns import TableSchema
from gae.data.memory import need_room
from gae.data.text import Vocabulary

NPZ_KEYS = ("x", "y", "x_train", "y_train", "x_test", "y_test")
CHANNELS = (1, 3, 4)  # of images
FLOAT32 = 4  # bytes per value in a data set
LOCAL_HEADER = 30  # bytes before the name of a member of a zip archive
UNREADABLE = (ValueError, EOFError, OSError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)


class Arrays(NamedTuple):
    """Observations (N, *X) and labels (N,) as stored; ``x_test`` is None if the source is not split.

    Attributes:
        vocabulary: vocabulary of text.
        value_range: range of the source's format, if the dtype does not imply it.
        rows: (N,) row of each observation in the source, if it differs from the row in ``x``.
        files: file name of each observation, those of ``x`` before those of ``x_test``.
        table: columns of a table.
        classes: names of the labels 0, 1, …, if they are names.
        notes: sentences on the conversion of the source, for the user.
        column: (N,) values of the column that was asked for, to split by it.
        unit: the stored value that represents 1, if the dtype does not imply it.
    """

    x: np.ndarray
    y: np.ndarray | None = None
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    vocabulary: Vocabulary | None = None
    value_range: tuple[float, float] | None = None
    rows: np.ndarray | None = None
    files: np.ndarray | None = None
    table: TableSchema | None = None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    column: np.ndarray | None = None
    unit: int | None = None


def read_arrays(path: Path, column: str | None = None) -> Arrays:
    """Reads an ``.npy`` array (N, *X), or an ``.npz`` with x (and y), or with x_train and x_test (and y_train, y_test).

    A large array whose bytes lie in the file as they are, of ``np.save`` or ``np.savez``, is mapped rather than read.

    Args:
        path: the file.
        column: name of an additional array of an ``.npz`` file.

    Raises:
        ValueError: for a damaged file, pickled objects, other keys, or more than ``gae.data.memory.limit()`` bytes.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            return _read_npz(file, path, column) if zipped else Arrays(_read_npy(file, path, path.stat().st_size, at=0))
    except _Refused as error:
        raise ValueError(str(error)) from None
    except UNREADABLE as error:
        raise ValueError(
            f"Cannot read an array from {path}: {str(error).rstrip('.')}. Write plain numbers with `np.save` or "
            "`np.savez`; arrays of objects (ragged lists) are pickles, which are never loaded."
        ) from error


def channels_first(
    arrays: Arrays,
    channels: str | None = None,
    event_shape: Sequence[int] | None = None,
    usual: str | None = None,
) -> Arrays:
    """Converts images (N, H, W, C) to (N, C, H, W); other arrays are returned unchanged.

    In an array of shape (N, A, B, C), the last axis is read as channels if its size is 1, 3 or 4 and the second axis
    has another size, or would leave an image one pixel wide. A warning reports this.

    Args:
        arrays: arrays as read from the file.
        channels: ``"first"`` or ``"last"`` to choose the layout.
        event_shape: shape of one observation of a model, which may also determine the layout.
        usual: the layout where neither does.

    Raises:
        ValueError: if both layouts are possible, or if ``"last"`` is given and the array does not have four axes.
    """
    shape = arrays.x.shape
    if channels == "last" and len(shape) != 4:
        raise ValueError(f"channels='last' is for arrays (N, H, W, C), got {shape}.")
    if channels != "last" and not _channels_last(shape, channels, event_shape, usual):
        return arrays
    if channels is None and event_shape is None:
        warnings.warn(
            f"x of shape {shape} is read as images (N, H, W, C), with observations {(shape[3], *shape[1:3])}. If it "
            "holds something else, use `load(..., channels='first')` (--channels first).",
            stacklevel=2,
        )
    x_test = arrays.x_test
    if x_test is not None and x_test.ndim == 4:
        x_test = np.moveaxis(x_test, -1, 1)
    return arrays._replace(x=np.moveaxis(arrays.x, -1, 1), x_test=x_test)


def _channels_last(
    shape: Sequence[int], channels: str | None, event_shape: Sequence[int] | None, usual: str | None
) -> bool:
    if len(shape) != 4 or channels == "first":
        return False
    first, middle, last = shape[1:]
    if last not in CHANNELS or min(first, middle) < max(2, last):
        return False
    readings: list[tuple[int, ...]] = [(first, middle, last), (last, first, middle)]
    if event_shape is not None and readings.count(tuple(event_shape)) == 1:
        return tuple(event_shape) == readings[1]
    if usual is not None:
        return usual == "last"
    if first in CHANNELS and min(middle, last) >= 2:
        raise ValueError(
            f"x has shape {tuple(shape)}, which may be (N, C, H, W) or (N, H, W, C). Say which with "
            "`load(..., channels='first')` or `channels='last'` (--channels first or last)."
        )
    return True


class _Refused(ValueError):
    """An error whose message is complete, unlike those of numpy and zipfile."""


def _read_npz(source: Any, path: Path, column: str | None) -> Arrays:
    with zipfile.ZipFile(source) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        selected = {key: info for key, info in members.items() if key in NPZ_KEYS or key == column}
        places = {key: _place(source, info) for key, info in selected.items()}
        read = [info.file_size for key, info in selected.items() if places[key] is None]
        _need_room(sum(read), path, f"{len(read)} arrays")
        stored = {}
        for key, info in selected.items():
            with archive.open(info) as file:
                stored[key] = _read_npy(file, path, info.file_size, f"{key}, ", places[key])
                while file.read(mapped.BLOCK):  # to the end, where the checksum is compared
                    pass
    extra = stored.pop(column, None) if column is not None and column not in NPZ_KEYS else None
    return _pick(path, stored, sorted(members))._replace(column=extra)


def _place(source: Any, member: zipfile.ZipInfo) -> int | None:
    """The position of a large member's bytes in an archive (PKWARE's APPNOTE.TXT, 4.3.7); None if compressed."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < mapped.LARGE:
        return None
    source.seek(member.header_offset)
    name, extra = struct.unpack("<26x2H", source.read(LOCAL_HEADER))
    return int(member.header_offset + LOCAL_HEADER + name + extra)


def _read_npy(file: Any, path: Path, size: int, name: str = "", at: int | None = None) -> np.ndarray:
    """Reads an array from a binary file of ``size`` bytes after checking its header.

    If these are the bytes from ``at`` in the file at ``path``, and many, the array is mapped.
    """
    at = at if size >= mapped.LARGE else None
    version = np.lib.format.read_magic(file)
    read_header: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"its format is version {version}, and 1.0 and 2.0 are read")
    if at is None:
        _need_room(size, path, f"{name}{size:,} bytes")  # the header also states its own length
    shape, column_major, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    at = at if mapped.can_stay(dtype, shape) else None
    values = int(np.prod(shape, dtype=object)) if shape else 1
    if at is None:
        _need_room(values * max(dtype.itemsize, FLOAT32), path, f"{name}an array of {dtype} and shape {shape}")
    start = file.tell()
    if size - start != values * dtype.itemsize:
        raise ValueError(
            f"{name}its header states {dtype} of shape {shape}, {values * dtype.itemsize:,} bytes, and "
            f"{size - start:,} follow"
        )
    order: Any = "F" if column_major else "C"
    if at is not None:
        return np.memmap(path, dtype, "r", at + start, shape, order)
    return np.frombuffer(_exactly(file, size - start), dtype).reshape(shape, order=order)


def _exactly(file: Any, size: int) -> bytes:
    raw = file.read(size)
    if len(raw) < size:
        raise EOFError(f"{size:,} bytes are stated, but the file has {len(raw):,}")
    return raw


def _need_room(size: int, path: Path, what: str) -> None:
    try:
        need_room(size, path, what)
    except ValueError as error:
        raise _Refused(str(error)) from None


def _pick(path: Path, stored: dict[str, np.ndarray], names: list[str]) -> Arrays:
    keys = stored.keys()
    if keys == {"x"} or keys == {"x", "y"}:
        return Arrays(stored["x"], stored.get("y"))
    if keys in ({"x_train", "x_test"}, {"x_train", "x_test", "y_train", "y_test"}):
        return Arrays(stored["x_train"], stored.get("y_train"), stored["x_test"], stored.get("y_test"))
    raise _Refused(
        f"{path} has the keys {', '.join(names) or '(none)'}, but it needs x (with or without y), or x_train and "
        "x_test (with or without both y_train and y_test)."
    )
