"""Rules that say which rows of a data set are its test set."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gae.data.memory import need_room

RULES = "fraction:0.2, column:NAME, column:NAME=VALUE or file:PATH"
PREDEFINED = "predefined"
WORDS = ("train", "test")
IN_LINES = 64  # bytes of memory per line as Python strings, at most 20 characters each


@dataclass(frozen=True)
class SplitRule:
    """A rule as a user states it.

    ===========================  ==================================================================================
    ``fraction:0.2``             a random fraction, stratified by label if every label is frequent enough
    ``column:NAME``              a column of the source, which holds the words train and test
    ``column:NAME=VALUE``        the same: test where the column has this value
    ``file:PATH``                a text file with train or test in each line, one for each observation; or the rows
                                 of the test set as numbers, one in each line, counted from 0 in the source
    ===========================  ==================================================================================

    Attributes:
        kind: ``"fraction"``, ``"column"`` or ``"file"``.
        value: the text after the colon.

    >>> SplitRule.of("column:fold=3").column, SplitRule.of("fraction:0.1").fraction
    ('fold', 0.1)
    """

    kind: str
    value: str

    @classmethod
    def of(cls, text: str) -> "SplitRule":
        """Parses a rule; raises ValueError for one that is not among the above."""
        kind, colon, value = text.partition(":")
        rule = cls(kind, value)
        if kind not in ("fraction", "column", "file") or not colon or not value or rule.column == "":
            raise ValueError(f"Unknown split {text!r}. Give {RULES}.")
        if kind == "fraction" and not 0 < rule.fraction < 1:
            raise ValueError(f"The test fraction must lie strictly between 0 and 1, got {text!r}.")
        return rule

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"

    @property
    def fraction(self) -> float:
        """The fraction of test observations; NaN if it is not a number."""
        try:
            return float(self.value)
        except ValueError:
            return float("nan")

    @property
    def column(self) -> str | None:
        """The name of the column that decides; None for the other rules."""
        return self.value.partition("=")[0] if self.kind == "column" else None

    def rows(self, rows: np.ndarray, column: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the training and of the test observations, by column or file.

        Args:
            rows: (N,) row of each observation in the source.
            column: (N,) the values of the column, if the source has one of this name.

        Raises:
            ValueError: if the column or the file does not say so for each observation, and for one kind only.
            FileNotFoundError: if the file is missing.
        """
        test = self._by_column(rows, column) if self.kind == "column" else self._by_file(rows)
        if test.all() or not test.any():
            kinds = "test" if test.all() else "training"
            raise ValueError(f"By {self}, all {len(rows)} observations are {kinds} observations. Both are needed.")
        return np.flatnonzero(~test), np.flatnonzero(test)

    def _by_column(self, rows: np.ndarray, column: np.ndarray | None) -> np.ndarray:
        if column is None:
            raise ValueError(
                f"The data have no column {self.column!r}, by which {self} would split them. Add it, or state another "
                "rule by split (--split-by), such as fraction:0.2."
            )
        if column.shape != rows.shape:
            raise ValueError(f"The column {self.column!r} must have shape {rows.shape}, got {column.shape}.")
        _, equals, value = self.value.partition("=")
        texts = [str(entry) for entry in column.tolist()]
        if equals:
            return np.array([text == value for text in texts])
        return _of_words(texts, f"The column {self.column!r}", f" For other values use column:{self.column}=VALUE.")

    def _by_file(self, rows: np.ndarray) -> np.ndarray:
        path = Path(self.value).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"No file {path}, by which {self} would split the data. Check the path.")
        need_room(path.stat().st_size // 2 * IN_LINES, path, "a line for each row")
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split()
        if not lines or not all(line.isdecimal() for line in lines):
            words = _of_words(lines, str(path), " Or give the rows of the test set as numbers.")
            if len(words) != len(rows):
                raise ValueError(f"{path} has {len(words)} lines, but the data have {len(rows)} observations.")
            return words
        numbers = np.array([int(line) for line in lines], dtype=object)
        for name, wrong in (("twice", _repeated(numbers)), ("not in the data", np.setdiff1d(numbers, rows))):
            if len(wrong):
                raise ValueError(f"{path} has row {wrong[0]}, which is {name}: rows are {rows[0]} to {rows[-1]}.")
        return np.isin(rows, numbers.astype(np.int64))


def _of_words(words: list[str], where: str, remedy: str) -> np.ndarray:
    for i, word in enumerate(words):
        if word not in WORDS:
            raise ValueError(f"{where} must say train or test for each row, got {word!r} at row {i}.{remedy}")
    return np.array([word == "test" for word in words], dtype=bool)


def _repeated(numbers: np.ndarray) -> np.ndarray:
    unique, counts = np.unique(numbers, return_counts=True)
    return unique[counts > 1]
