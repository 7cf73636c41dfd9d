"""Columns of a table: numbers, and categories that are one-hot features of the observations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN = 5  # names listed in a message


@dataclass(frozen=True)
class TableColumn:
    """A column of a table.

    Attributes:
        name: its name.
        categories: names of its categories, one feature each; None for a column of numbers.

    >>> TableColumn("colour", ("blue", "red")).features
    ('colour=blue', 'colour=red')
    """

    name: str
    categories: tuple[str, ...] | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """Names of its features: the column's own, or ``column=category`` for each category."""
        return (self.name,) if self.categories is None else tuple(f"{self.name}={each}" for each in self.categories)


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table that are learnt, in the order of the features, and those that are not.

    Attributes:
        columns: the columns of x.
        label: name of the column of labels, if there is one.
        dropped: names of columns that were left out on request.
    """

    columns: tuple[TableColumn, ...]
    label: str | None = None
    dropped: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "TableSchema":
        """The inverse of ``dataclasses.asdict``, from JSON."""
        columns = tuple(
            TableColumn(each["name"], None if each["categories"] is None else tuple(each["categories"]))
            for each in record["columns"]
        )
        return cls(columns, record["label"], tuple(record["dropped"]))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features of an observation."""
        return tuple(feature for column in self.columns for feature in column.features)


def listed(names: Sequence[object]) -> str:
    """The first names of a list, quoted.

    >>> listed("abcdefg")
    "'a', 'b', 'c', 'd', 'e', …"
    """
    return ", ".join(repr(str(name)) for name in names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
