"""Tables of a page: cells with their text, and the numbers by which the page sorts them and writes its CSV files."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gae.reports.rounding import rounded


@dataclass(frozen=True)
class Column:
    """A column of a table: its unit, its scale, and the decimals of numbers that have no error."""

    key: str
    title: str
    unit: str
    decimals: int
    scale: float = 1.0

    def text(self, entry: dict[str, Any]) -> str:
        """Mean ± standard error, rounded by the error, or a dash if missing."""
        value, error = self.numbers(entry)
        return "–" if value is None else rounded(value, error, self.decimals)

    def numbers(self, entry: dict[str, Any]) -> tuple[float | None, float | None]:
        """Mean and standard error in the unit of the column."""
        mean, error = entry["mean"], entry.get("se")
        return None if mean is None else self.scale * mean, None if error is None else self.scale * error


def squared_error(means: Iterable[float | None], decimals: int = 2) -> Column:
    """The column of squared errors, in thousandths unless all of them are at least 1, as of data in large units.

    >>> squared_error([0.02, 3.0]).unit, squared_error([3.0, 1950.5]).unit
    ('×10⁻³ per element', 'per element')
    """
    if all(mean is None or mean >= 1 for mean in means):
        return Column("squared_error", "squared error", "per element", decimals)
    return Column("squared_error", "squared error", "×10⁻³ per element", decimals, 1e3)


@dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    Attributes:
        text: its text.
        detail: a second line in small print.
        note: a footnote mark.
        best: whether it is marked as the best.
        value: the number that the text rounds, by which the page sorts.
        error: the standard error of that number.
    """

    text: str
    detail: str = ""
    note: str = ""
    best: bool = False
    value: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Row:
    label: str
    cells: list[TableCell]


@dataclass(frozen=True)
class Table:
    """Rows grouped under headings, and the footnotes that explain missing numbers."""

    groups: list[tuple[str, list[Row]]]
    notes: dict[str, str]


def number_cell(value: float | None, error: float | None = None, decimals: int = 1, detail: str = "") -> TableCell:
    """A cell of a number and its error; empty for a missing one."""
    text = "" if value is None else rounded(value, error, decimals)
    return TableCell(text, detail, value=value, error=error)


def format_cell(cell: dict[str, Any], column: Column, best: bool, notes: dict[str, str]) -> TableCell:
    """Formats a number of a cell; the reason for a missing one gets a footnote mark in ``notes`` (reason: mark)."""
    entry = cell[column.key]
    if entry["mean"] is None:
        mark = notes.setdefault(entry["reason"], chr(ord("a") + len(notes)))
        return TableCell("–", note=mark)
    detail = ""
    if "method" in entry:
        sampled = entry["method"] != "exact"
        detail = f"s.e. {entry['sampling_se']:.2f}, ESS {entry['ess']:.0f}" if sampled else "exact"
        if entry.get("unreliable"):
            detail += f", unreliable for {entry['unreliable']:.0%}"
    value, error = column.numbers(entry)
    return TableCell(column.text(entry), detail, best=best, value=value, error=error)


def in_words(items: Iterable[object], last: str = "and") -> str:
    """An enumeration in a sentence.

    >>> in_words("a"), in_words("ab"), in_words("abc")
    ('a', 'a and b', 'a, b and c')
    """
    *first, end = map(str, items)
    return f"{', '.join(first)} {last} {end}" if first else end
