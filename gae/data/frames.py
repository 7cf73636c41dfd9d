"""Readers of tables: pandas and polars frames, CSV, TSV and Parquet files."""

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gae.data.extras import optional
from gae.data.memory import need_room
from gae.data.tables import Cells, is_number, numbered

SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".parquet")
REMEDY = "Convert it to numbers or text, or leave it out by `drop`."


def library(source: Any) -> str:
    """The package that an object is from, such as ``"pandas"``."""
    return type(source).__module__.partition(".")[0]


def is_frame(source: Any) -> bool:
    """Whether an object is a pandas or polars frame."""
    return library(source) in ("pandas", "polars") and hasattr(type(source), "columns")


def frame_cells(frame: Any) -> list[Cells]:
    """The columns of a pandas or polars frame; an index of pandas is no column.

    Raises:
        TypeError: for a column that holds neither numbers nor categories, such as dates.
    """
    if library(frame) == "polars":
        whole = frame.collect() if hasattr(frame, "collect") else frame
        return [_of_polars(whole[name]) for name in whole.columns]
    return [_of_pandas(str(name), frame.iloc[:, i]) for i, name in enumerate(frame.columns)]


def series_cells(series: Any) -> Cells:
    """The values of a pandas or polars series, named ``labels`` unless it has a name."""
    name = str(series.name) if series.name not in (None, "") else "labels"
    return _of_polars(series.alias(name)) if library(series) == "polars" else _of_pandas(name, series)


def read_table(path: Path) -> list[Cells]:
    """Reads a ``.csv``, ``.tsv`` or ``.parquet`` file.

    A first line in which every field is a number is data; its columns are named 0, 1, ….

    Raises:
        ImportError: without pandas (and pyarrow, for Parquet).
        ValueError: for a file that is damaged, is empty, or has lines longer than the header.
    """
    pandas = optional("pandas", "tables", "A table")
    if path.suffix.lower() == ".parquet":
        parquet = optional("pyarrow.parquet", "tables", "A .parquet file")
        facts = _read(path, parquet.read_metadata)
        shape = facts.num_rows, facts.num_columns
        need_room(8 * shape[0] * shape[1], path, f"a table of shape {shape}")
        return frame_cells(_read(path, pandas.read_parquet))
    need_room(4 * path.stat().st_size, path, f"{path.stat().st_size:,} bytes of text")
    separator = SEPARATORS[path.suffix.lower()]
    names, is_header = _first_line(path, separator)
    options = {"sep": separator, "names": names, "header": 0 if is_header else None, "index_col": False}
    options |= {"encoding": "utf-8-sig", "float_precision": "round_trip", "low_memory": False}
    return frame_cells(_read(path, pandas.read_csv, **options))


def _read(path: Path, read: Any, **options: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Length of header")  # lines with more fields than the header
            return read(path, **options)
    except (ValueError, OSError, Warning) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"Cannot read a table from {path}: {str(error).rstrip('.')}.") from error


def _first_line(path: Path, separator: str) -> tuple[list[str], bool]:
    """Names of the columns, and whether the first line holds them."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            fields = next((line for line in csv.reader(file, delimiter=separator) if line), None)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Cannot read a table from {path}: {error}. Save it as UTF-8 text.") from None
    if fields is None:
        raise ValueError(f"{path} is empty. A table needs a line of column names and rows.")
    names = [field.strip() or f"Unnamed: {i}" for i, field in enumerate(fields)]
    if len(names) == 1 and separator == "," and any(other in names[0] for other in ";\t"):
        raise ValueError(
            f"{path} is not separated by commas: its first line is {names[0]!r}. Read it by "
            "`pandas.read_csv(path, sep=..., decimal=...)` and give the frame."
        )
    if all(map(is_number, names)):
        return [str(i) for i in range(len(names))], False
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has several columns named {twice[0]!r}. Give each column a name of its own.")
    return names, True


def _of_pandas(name: str, series: Any) -> Cells:
    types = optional("pandas", "tables", "A table").api.types
    dtype = series.dtype
    if isinstance(dtype, optional("pandas", "tables", "A table").CategoricalDtype):
        return Cells(name, series.cat.codes.to_numpy().astype(np.int64), tuple(map(str, dtype.categories)))
    if types.is_bool_dtype(dtype) or types.is_object_dtype(dtype) or types.is_string_dtype(dtype):
        return _words(name, series.tolist(), series.isna().to_numpy())
    if types.is_complex_dtype(dtype) or not types.is_numeric_dtype(dtype):
        raise TypeError(f"Column {name!r} holds {dtype}. {REMEDY}")
    if types.is_integer_dtype(dtype) and not series.isna().any():
        return Cells(name, series.to_numpy(dtype=str(dtype).lower()))
    return Cells(name, series.to_numpy(dtype=np.float64, na_value=np.nan))


def _of_polars(series: Any) -> Cells:
    polars = optional("polars", "tables", "A frame of polars")
    name, dtype = series.name, series.dtype
    if dtype == polars.Enum:
        codes = series.to_physical().fill_null(len(dtype.categories)).to_numpy().astype(np.int64)
        missing = series.is_null().to_numpy()
        return Cells(name, np.where(missing, -1, codes), tuple(dtype.categories))
    if dtype in (polars.Boolean, polars.String, polars.Categorical):
        return _words(name, series.to_list(), series.is_null().to_numpy())
    if not dtype.is_numeric():
        raise TypeError(f"Column {name!r} holds {dtype}. {REMEDY}")
    if dtype.is_integer() and not series.null_count():
        return Cells(name, series.to_numpy())
    return Cells(name, series.cast(polars.Float64).to_numpy())


def _words(name: str, values: list[Any], missing: np.ndarray) -> Cells:
    """A column of text or truth values."""
    kinds = {type(value) for value in _present(values, missing)} - {str, bool, np.bool_}
    if kinds:
        raise TypeError(f"Column {name!r} holds {', '.join(sorted(kind.__name__ for kind in kinds))}. {REMEDY}")
    words = [None if absent else str(value) for value, absent in zip(values, missing.tolist(), strict=True)]
    if all(word is None for word in words):
        return Cells(name, np.full(len(words), np.nan))
    return Cells(name, *numbered(np.array(words, dtype=object)))


def _present(values: list[Any], missing: np.ndarray) -> Iterator[Any]:
    return (value for value, absent in zip(values, missing.tolist(), strict=True) if not absent)
