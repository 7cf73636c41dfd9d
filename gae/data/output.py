"""Files with one row per observation, written block by block: ``.npz``, ``.npy``, ``.csv`` and ``.parquet``."""

import csv
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gae.data.extras import optional
from gae.data.files import whole

TITLES = {"labels": "label", "files": "file"}  # columns of a table; arrays have the plural

Block = Mapping[str, np.ndarray]


@contextmanager
def row_file(
    path: Path, rows: int, main: str, facts: Mapping[str, str] | None = None, names: Sequence[str] | None = None
) -> Iterator["RowWriter"]:
    """Opens a file of rows that replaces ``path`` when all of them have been added.

    ``.npz`` has an array for each column, and ``.npy`` the main one alone. In ``.csv`` and ``.parquet`` a column z of
    shape (N, 2) becomes the columns z0 and z1, and one of shape (N, 2, 3) the columns z_0_0 to z_1_2. Memory does not
    grow with the number of rows.

    Args:
        path: the file, whose suffix selects the format.
        rows: N, the number of rows that will be added.
        main: the column of an ``.npy`` file.
        facts: texts that hold for all rows: arrays () in an ``.npz`` file, and metadata of a ``.parquet`` file.
        names: of the elements of the main column in ``.csv`` and ``.parquet``, in place of z0, z1; one that is the name
            of another column is given as z.name.

    Raises:
        ImportError: for ``.parquet`` without pyarrow.
        ValueError: if another number of rows was added; nothing is written.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with row_file(Path(folder) / "codes.csv", 2, "z") as file:
    ...         file.add({"index": np.arange(2), "z": np.float32([[0.1, 2], [3, 4]])})
    ...     print((Path(folder) / "codes.csv").read_text(), end="")
    index,z0,z1
    0,0.1,2.0
    1,3.0,4.0
    """
    kind = {".npz": _Arrays, ".npy": _Main, ".csv": _Csv, ".parquet": _Parquet}[path.suffix]
    with whole(path) as temporary, ExitStack() as files:
        writer = kind(temporary, rows, main, facts or {}, names, files)
        yield writer
        writer.close()


class RowWriter(ABC):
    """A file of rows under construction.

    Attributes:
        kinds: dtype and shape of one row of each column; empty before the first block.
    """

    def __init__(
        self,
        path: Path,
        rows: int,
        main: str,
        facts: Mapping[str, str],
        names: Sequence[str] | None,
        files: ExitStack,
    ):
        self.path, self.rows, self.main, self.facts, self.names, self.files = path, rows, main, facts, names, files
        self.added = 0
        self.kinds: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}

    def add(self, block: Block) -> None:
        """Appends the rows of a block: for each column an array (B, ...), of the same kind in every block.

        Raises:
            ValueError: if columns differ in length, or from those of the first block in dtype or shape.
        """
        kinds = {name: (column.dtype, column.shape[1:]) for name, column in block.items()}
        sizes = {len(column) for column in block.values()}
        if len(sizes) != 1:
            raise ValueError(f"The columns of a block must have one length, got {sorted(sizes)}.")
        if not self.kinds:
            self.kinds = kinds
            self._begin()
        if kinds != self.kinds:
            raise ValueError(f"Blocks must have the same columns, got {kinds} after {self.kinds}.")
        self._append(block)
        self.added += sizes.pop()

    def close(self) -> None:
        """Ends the file.

        Raises:
            ValueError: if the number of rows is not the announced one.
        """
        if self.added != self.rows or not self.kinds:
            raise ValueError(f"{self.rows} rows were announced, and {self.added} were added.")
        self._end()

    @abstractmethod
    def _begin(self) -> None:
        """Opens the file, when the kinds of the columns are known."""

    @abstractmethod
    def _append(self, block: Block) -> None:
        """Writes a block."""

    def _end(self) -> None:
        """Writes the end of the file."""
        self.files.close()

    def _titles(self) -> dict[str, list[str]]:
        """The names of the columns of a table that hold each column."""
        named = {name: titles(name, shape) for name, (_, shape) in self.kinds.items()}
        if self.names is not None:
            others = {title for name in named if name != self.main for title in named[name]}
            named[self.main] = [f"{self.main}.{name}" if name in others else name for name in self.names]
        return named

    def _array(self, path: Path, name: str) -> Any:
        """A binary file that begins with the header of a column's array."""
        dtype, shape = self.kinds[name]
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (self.rows, *shape),
        }
        file = self.files.enter_context(path.open("wb"))
        np.lib.format.write_array_header_1_0(file, header)
        return file


class _Main(RowWriter):
    """An ``.npy`` file of the main column."""

    def _begin(self) -> None:
        self.file = self._array(self.path, self.main)

    def _append(self, block: Block) -> None:
        self.file.write(block[self.main].tobytes())


class _Arrays(RowWriter):
    """An ``.npz`` file, whose arrays are collected in files beside it."""

    def _begin(self) -> None:
        beside = self.files.enter_context(tempfile.TemporaryDirectory(prefix=self.path.name, dir=self.path.parent))
        self.parts = {name: Path(beside) / f"{i}.npy" for i, name in enumerate(self.kinds)}
        self.columns = {name: self._array(part, name) for name, part in self.parts.items()}

    def _append(self, block: Block) -> None:
        for name, column in block.items():
            self.columns[name].write(column.tobytes())

    def _end(self) -> None:
        for file in self.columns.values():
            file.close()
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, part in self.parts.items():
                archive.write(part, f"{name}.npy")
            for name, text in self.facts.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.array(text), allow_pickle=False)
        super()._end()


class _Csv(RowWriter):
    """A ``.csv`` file with a line of names; numbers have the digits that their dtype needs to be read back."""

    def _begin(self) -> None:
        file = self.path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        self.lines = csv.writer(self.files.enter_context(file), lineterminator="\n")
        self.lines.writerow([title for named in self._titles().values() for title in named])

    def _append(self, block: Block) -> None:
        columns = [column.reshape(len(column), -1).astype(str) for column in block.values()]
        self.lines.writerows(np.concatenate(columns, 1).tolist())


class _Parquet(RowWriter):
    """A ``.parquet`` file."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        optional("pyarrow", "tables", "A .parquet file")  # reported before any work

    def _begin(self) -> None:
        self.file: Any = None

    def _append(self, block: Block) -> None:
        import pyarrow
        from pyarrow import parquet

        named = self._titles()
        columns = {
            title: _plain(column.reshape(len(column), -1)[:, i])
            for name, column in block.items()
            for i, title in enumerate(named[name])
        }
        table = pyarrow.table(columns).replace_schema_metadata(self.facts)
        if self.file is None:
            self.file = self.files.enter_context(parquet.ParquetWriter(self.path, table.schema))
        self.file.write_table(table)


def _plain(column: np.ndarray) -> Any:
    """A column for Arrow; texts are escaped as in a text file."""
    if column.dtype.kind != "U":
        return column
    return [text.encode("utf-8", "backslashreplace").decode() for text in column.tolist()]


def titles(name: str, shape: tuple[int, ...]) -> list[str]:
    """Names of the columns of a table that hold an array of N rows of some shape.

    >>> titles("k", ()), titles("z", (2,)), titles("z", (1, 2))
    (['k'], ['z0', 'z1'], ['z_0_0', 'z_0_1'])
    """
    name = TITLES.get(name, name)
    joint = "" if len(shape) == 1 else "_"
    return [joint.join([name, *map(str, place)]) if shape else name for place in product(*map(range, shape))]
