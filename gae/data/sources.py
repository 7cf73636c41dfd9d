"""One door for all kinds of data: names, paths and data in memory, read as arrays."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gae.data.adapters import (
    anndata_arrays,
    hugging_face_arrays,
    is_anndata,
    is_hugging_face,
    is_saved,
    read_h5ad,
    read_saved,
)
from gae.data.arrays import CHANNELS, Arrays, channels_first
from gae.data.bundled import read_bundled
from gae.data.columns import listed
from gae.data.frames import SUFFIXES as TABLES
from gae.data.frames import frame_cells, is_frame, read_table
from gae.data.names import NAMES, OPENML
from gae.data.objects import KINDS, is_object, read_object
from gae.data.preparation import Preparation
from gae.data.readers import read_mnist, read_path
from gae.data.resizing import Resize
from gae.data.row_order import NOTE, by_rows
from gae.data.tables import table_arrays
from gae.data.values import ceiling, extremes

BYTE, BRIGHT = 255, 128  # highest value of a byte, and the least maximum of images that are read as bytes

# Kinds of sources that an option applies to, in words.
USES = {
    "words": (("text",), ".txt files"),
    "channels": (("array file", "array"), ".npy and .npz files"),
    "labels": (("table", "AnnData", "Hugging Face"), "tables with column names"),
    "drop": (("table", "Hugging Face"), "tables with column names"),
    "size": (("folder", "Hugging Face"), "folders of images"),
}


@dataclass(frozen=True)
class Reading:
    """Options of reading; see ``gae.data.load``. ``column`` is the name of the column by which rows are split."""

    folder: str | os.PathLike[str] | None = None
    words: bool = False
    channels: str | None = None
    labels: str | None = None
    drop: Sequence[str] = ()
    resize: Resize | None = None
    column: str | None = None
    like: Preparation | None = None

    def check(self, source: Any) -> None:
        """Raises ValueError for an option that does not apply to the source, or that the model decides."""
        kind, name = kind_of(source), name_of(source)
        if self.folder is not None and name not in OPENML:
            raise ValueError(
                f"folder is for {' and '.join(OPENML)} only, got {name!r}. Give the path itself as the name."
            )
        if self.channels not in (None, "first", "last"):
            raise ValueError(f"channels must be 'first' or 'last', got {self.channels!r}.")
        given = {"words": self.words, "channels": self.channels, "labels": self.labels, "drop": self.drop}
        for option, value in {**given, "size": self.resize}.items():
            kinds, what = USES[option]
            if value and kind not in kinds:
                raise ValueError(f"{option}={getattr(value, 'size', value)!r} is for {what} only, got {name!r}.")
        if self.like is not None and self.resize not in (None, self.like.resize):
            raise ValueError("The size of images is that of the model's data. Omit size and crop.")


def is_path(source: Any) -> bool:
    """Whether a source is a path, or the name of a data set."""
    return isinstance(source, (str, os.PathLike))


def name_of(source: Any) -> str:
    """The name or path of a source, or the type of an object."""
    return os.fspath(source) if is_path(source) else type(source).__name__


def kind_of(source: Any) -> str:
    """The kind of a source, which decides how it is read and which options apply.

    Raises:
        TypeError: for an object of another type.
    """
    if is_path(source):
        return _kind_of_path(os.fspath(source))
    pair = isinstance(source, tuple) and len(source) == 2
    for kind, fits in (("AnnData", is_anndata), ("Hugging Face", is_hugging_face), ("table", is_frame)):
        if fits(source[0] if pair and kind == "table" else source):
            return kind
    if is_object(source):
        return "array"
    raise TypeError(f"Data must be {KINDS}, got {type(source).__name__}. Convert it with `numpy.asarray`.")


def _kind_of_path(name: str) -> str:
    suffix = Path(name).suffix.lower()
    if name in NAMES or not name.strip():
        return "name"
    folder = Path(name).expanduser()
    if folder.is_dir():
        return "Hugging Face" if is_saved(folder) else "folder"
    kinds = {".txt": "text", ".npy": "array file", ".npz": "array file", ".h5ad": "AnnData"}
    return "table" if suffix in TABLES else kinds.get(suffix, "path")


def read_source(source: Any, reading: Reading, seed: int) -> Arrays:
    """Reads a source as arrays, in the channels, columns, classes and units of ``reading.like`` if it is given."""
    kind, like = kind_of(source), reading.like
    event_shape = None if like is None else like.event_shape
    match kind:
        case "name" if name_of(source) in OPENML:
            arrays = read_mnist(name_of(source), reading.folder)
        case "table":
            arrays = _read_table(source, reading)
        case "AnnData":
            adata = read_h5ad(_file(source)) if is_path(source) else source
            arrays = anndata_arrays(adata, name_of(source), reading.labels, reading.column, like)
        case "Hugging Face":
            saved = read_saved(Path(source).expanduser()) if is_path(source) else source
            arrays = hugging_face_arrays(saved, reading.labels, reading.drop, _resize(reading), reading.column, like)
        case "array":
            arrays = read_object(source)
        case _:
            arrays = _read_path(name_of(source), reading, seed)
    if kind == "array":
        arrays = channels_first(arrays, reading.channels, event_shape, None if like is None else like.channels)
    if like is not None and like.table is not None and arrays.table is None:
        warnings.warn(
            f"{name_of(source)} has no column names: its features are taken in the order of the model's columns, "
            f"{listed(like.table.features)}.",
            stacklevel=4,
        )
    return _in_classes(_scaled(_by_rows(arrays), like), like)


def _read_path(name: str, reading: Reading, seed: int) -> Arrays:
    if name in NAMES:
        return read_bundled(name, seed)
    like = reading.like
    options: Any = {"resize": _resize(reading), "column": reading.column}
    if like is not None:
        options |= {"vocabulary": like.vocabulary, "event_shape": like.event_shape, "usual": like.channels}
    return read_path(name, reading.words, reading.channels, **options)


def _resize(reading: Reading) -> Resize | None:
    return reading.resize if reading.like is None else reading.like.resize


def _read_table(source: Any, reading: Reading) -> Arrays:
    frame, y = source if isinstance(source, tuple) else (source, None)
    cells = read_table(_file(source)) if is_path(source) else frame_cells(frame)
    name = name_of(source) if is_path(source) else "The table"
    arrays = table_arrays(cells, name, reading.labels, reading.drop, reading.column, reading.like)
    if y is None:
        return arrays
    if arrays.y is not None:
        raise ValueError(f"Labels are given twice: as y, and as the column {reading.labels!r}. Give one of them.")
    labelled = read_object((arrays.x, y))
    return arrays._replace(y=labelled.y, classes=labelled.classes)


def _file(source: str | os.PathLike[str]) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}. Check the path.")
    return path


def _by_rows(arrays: Arrays) -> Arrays:
    """Arrays whose rows can be read from their files, and notes on those that were copied for that."""
    x, x_test = by_rows(arrays.x), None if arrays.x_test is None else by_rows(arrays.x_test)
    copied = [name for name, is_copy in (("x", x is not arrays.x), ("x_test", x_test is not arrays.x_test)) if is_copy]
    return arrays._replace(x=x, x_test=x_test, notes=(*arrays.notes, *map(NOTE.format, copied)))


def _scaled(arrays: Arrays, like: Preparation | None) -> Arrays:
    """Images (C, H, W) of whole numbers 0–255 of any type in units of 255, as uint8 is, and a note on the units.

    Without a model, the highest value must be at least 128. With one, its range must be [0, 1]. Other arrays of such
    numbers keep them.
    """
    x, parts = arrays.x, [part for part in (arrays.x, arrays.x_test) if part is not None]
    is_image = x.ndim == 4 and x.shape[1] in CHANNELS
    wide = all(part.dtype.kind in "iu" and part.size and ceiling(part) is None for part in parts)
    ranges = [extremes(part) for part in parts] if wide else []
    if wide and min(low for low, _ in ranges) >= 0:
        highest = max(high for _, high in ranges)
        is_byte = highest >= BRIGHT if like is None else like.value_range == (0.0, 1.0) and highest > 1
        if highest <= BYTE and is_byte and is_image:
            note = f"x is {x.dtype}, images with values 0–255: divided by 255, as uint8 is"
            return arrays._replace(unit=BYTE, notes=(*arrays.notes, note))
        if highest <= BYTE and is_byte:
            note = f"x is {x.dtype} of shape {x.shape} with values 0–255, kept as they are: give uint8 to divide by 255"
            return arrays._replace(notes=(*arrays.notes, note))
    divisor = ceiling(x)
    if divisor is not None and divisor > 1:
        return arrays._replace(notes=(*arrays.notes, f"x is {x.dtype}: divided by {divisor}, to [0, 1]"))
    return arrays


def _in_classes(arrays: Arrays, like: Preparation | None) -> Arrays:
    """Labels in the numbering of the model's classes.

    Raises:
        ValueError: for a class that they do not have.
    """
    if like is None or like.classes is None or arrays.classes in (None, like.classes):
        return arrays
    assert arrays.classes is not None
    used = {int(code) for part in (arrays.y, arrays.y_test) if part is not None for code in np.unique(part)}
    unknown = [arrays.classes[code] for code in sorted(used) if arrays.classes[code] not in like.classes]
    if unknown:
        raise ValueError(
            f"The labels {listed(unknown)} are not classes of the model's data, which are {listed(like.classes)}. "
            "Rename them, or give the data without labels."
        )
    number = np.array([like.classes.index(name) if name in like.classes else -1 for name in arrays.classes])
    y, y_test = (None if part is None else number[part] for part in (arrays.y, arrays.y_test))
    return arrays._replace(y=y, y_test=y_test, classes=like.classes)
