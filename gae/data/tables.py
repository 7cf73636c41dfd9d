"""Tables as arrays: numbers as they are, categories one-hot, columns matched by name to those of a model."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gae.data.arrays import Arrays
from gae.data.columns import TableColumn, TableSchema, listed
from gae.data.precision import need_float32

if TYPE_CHECKING:
    from gae.data.preparation import Preparation

ROWS = 10  # fewer rows are too few to recognise an identifier
NUMBERS = 10  # fewer different numbers beside words may be categories, such as 0, 1, 2 and 3+
IDENTIFIER = re.compile(r"^unnamed: \d+$|(^|[^a-z])(id|uuid|guid|index|idx|key|rownames?)$", re.IGNORECASE)


class Cells(NamedTuple):
    """A column as it was read.

    Attributes:
        name: its name.
        values: (N,) numbers, NaN where missing; with categories their numbers, -1 where missing.
        categories: names of the categories in their order; None for numbers.
    """

    name: str
    values: np.ndarray
    categories: tuple[str, ...] | None = None

    def texts(self) -> np.ndarray:
        """The values (N,) as text, as in ``column=VALUE``; empty where missing."""
        codes, names = (self.values, self.categories) if self.categories is not None else _as_categories(self.values)
        return np.array(["" if code < 0 else names[code] for code in codes.tolist()], dtype=object)

    def used(self) -> tuple[str, ...]:
        """The categories that occur, in their order."""
        assert self.categories is not None
        return tuple(self.categories[code] for code in np.unique(self.values).tolist() if code >= 0)


def table_arrays(
    cells: Sequence[Cells],
    source: str,
    labels: str | None = None,
    drop: Sequence[str] = (),
    split: str | None = None,
    like: "Preparation | None" = None,
) -> Arrays:
    """A table as observations (N, D) and labels (N,).

    Args:
        cells: all columns of the table.
        source: name of the table in messages.
        labels: name of the column of labels; defaults to that of ``like``, if the table has it.
        drop: names of columns to leave out, beside those that ``like`` leaves out.
        split: name of the column by which rows are split, which is left out unless ``like`` has it.
        like: preparation of a model, whose columns and categories the table must have.

    Raises:
        ValueError: for columns that repeat a name, are missing, unknown or identifiers, unknown categories, or integers
            that lose digits; the message names the column.
        TypeError: for labels that are neither integers nor categories.
    """
    by_name = {each.name: each for each in cells}
    if len(by_name) < len(cells):
        names = [each.name for each in cells]
        twice = [name for name in by_name if names.count(name) > 1]
        raise ValueError(f"{source} has several columns named {listed(twice)}. Give each column a name of its own.")
    for name in [*drop, *([] if labels is None else [labels])]:
        if name not in by_name:
            raise ValueError(f"{source} has no column {name!r}. Its columns: {listed(list(by_name))}.")
    known = None if like is None else like.table
    label = labels if labels is not None else (known.label if known is not None else None)
    learnt = set() if known is None else {column.name for column in known.columns}
    left_out = {*drop, *(() if known is None else known.dropped), *({split} - {label, *learnt})}
    if label in drop:
        raise ValueError(f"Column {label!r} cannot be both the labels and left out.")
    chosen = [each for each in cells if each.name not in left_out and each.name != label]
    if not chosen:
        raise ValueError(f"{source} has no column left to learn from. Its columns: {listed(list(by_name))}.")
    target = None if label is None else by_name.get(label)
    y, classes = (None, None) if target is None else _labels(target, None if like is None else like.classes)
    if known is None:
        _refuse_unlearnable(chosen, source)
        if like is not None:
            _need_numbers(chosen, source)
        columns = tuple(TableColumn(each.name, None if each.categories is None else each.used()) for each in chosen)
        table = TableSchema(columns, label, tuple(name for name in by_name if name in left_out))
    else:
        _need_columns(chosen, known, source)
        table = replace(known, label=label if target is not None else known.label)
    x = np.concatenate([_features(by_name[column.name], column) for column in table.columns], 1)
    column = by_name[split].texts() if split is not None and split in by_name else None
    return Arrays(x, y, table=table, classes=classes, notes=_notes(table), column=column)


def matrix_arrays(
    x: np.ndarray,
    names: Sequence[str],
    source: str,
    target: Cells | None = None,
    like: "Preparation | None" = None,
) -> Arrays:
    """A matrix (N, D) with named columns, all numbers, as a table; see ``table_arrays``."""
    known = None if like is None else like.table
    if len(set(names)) < len(names):
        raise ValueError(f"{source} has columns of the same name. Give each column a name of its own.")
    y, classes = (None, None) if target is None else _labels(target, None if like is None else like.classes)
    if known is None:
        table = TableSchema(tuple(TableColumn(name) for name in names), None if target is None else target.name)
        return Arrays(x, y, table=table, classes=classes)
    _need_columns([Cells(name, x[:0, 0]) for name in names], known, source)
    place = {name: i for i, name in enumerate(names)}
    return Arrays(x[:, [place[column.name] for column in known.columns]], y, table=known, classes=classes)


def is_number(text: str) -> bool:
    """Whether text is read as a number.

    >>> is_number("-1.5e3"), is_number("1,5")
    (True, False)
    """
    try:
        float(text)
    except ValueError:
        return False
    return True


def numbered(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The numbers (N,) of category names (None where missing: -1), and the sorted names.

    >>> numbered(np.array(["red", "blue", None, "red"], dtype=object))
    (array([ 1,  0, -1,  1]), ('blue', 'red'))
    """
    names = tuple(sorted({name for name in values.tolist() if name is not None}))
    number = {name: i for i, name in enumerate(names)} | {None: -1}
    return np.array([number[name] for name in values.tolist()], dtype=np.int64), names


def _features(cells: Cells, column: TableColumn) -> np.ndarray:
    """The features of a column, (N, 1) numbers or (N, C) of categories; NaN where missing."""
    if column.categories is None:
        if cells.values.dtype.kind in "iu":
            need_float32(cells.name, cells.values[:, None], names=(cells.name,))
        return cells.values.astype(np.float64)[:, None]
    number = {name: i for i, name in enumerate(column.categories)}
    # a category may have been read as a number, such as 1 for "1"
    codes, names = (cells.values, cells.categories) if cells.categories is not None else _as_categories(cells.values)
    present = [(code, names[code]) for code in np.unique(codes).tolist() if code >= 0]
    unknown = [name for _, name in present if name not in number]
    if unknown:
        raise ValueError(
            f"Column {column.name!r} has the categories {listed(unknown)}, which the model's data do not have. Known: "
            f"{listed(column.categories)}. Remove these rows, or train a model on data that include them."
        )
    features = np.zeros((len(codes), len(column.categories)))
    features[codes < 0] = np.nan
    for code, name in present:
        features[codes == code, number[name]] = 1
    return features


def _as_categories(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    words = [
        None if np.isnan(value) else str(int(value) if value == int(value) else value) for value in values.tolist()
    ]
    return numbered(np.array(words, dtype=object))


def _labels(target: Cells, classes: tuple[str, ...] | None) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels (N,), and the names of the classes unless they are numbers."""
    if target.categories is None and classes is None:
        if target.values.dtype.kind not in "iu":
            raise TypeError(
                f"Column {target.name!r} holds {target.values.dtype}, but labels are integers or categories. Bin it, "
                "or learn it as one of the columns."
            )
        return target.values, None
    codes, names = (target.values, target.categories) if target.categories else _as_categories(target.values)
    if (codes < 0).any():
        raise ValueError(f"Column {target.name!r}, the labels, has no value in row {int((codes < 0).argmax())}.")
    used = Cells(target.name, codes, names).used()
    unknown = [name for name in used if classes is not None and name not in classes]
    if unknown:
        raise ValueError(
            f"Column {target.name!r} has the classes {listed(unknown)}, which the model's data do not have. Known: "
            f"{listed(classes or ())}. Rename them, or leave the column out."
        )
    known = used if classes is None else classes
    number = np.array([known.index(name) if name in known else -1 for name in names])
    return number[codes], known


def _refuse_unlearnable(cells: Sequence[Cells], source: str) -> None:
    for each in cells:
        _refuse_numbers_in_text(each, source)
        _refuse_identifier(each, source)


def _refuse_numbers_in_text(cells: Cells, source: str) -> None:
    """Raises ValueError for a column of numbers that a few words, or commas, would turn into categories."""
    used = () if cells.categories is None else cells.used()
    words = [name for name in used if not is_number(name)]
    numbers = sum(is_number(name.replace(",", "")) for name in used)
    if words and numbers >= max(NUMBERS, len(used) / 2):
        raise ValueError(
            f"Column {cells.name!r} of {source} has {numbers} different numbers as text, and {listed(words)}, so that "
            "each would be a category. Leave missing values empty, and write numbers as 1234.5; if they are "
            "categories, give them names that are no numbers."
        )


def _refuse_identifier(cells: Cells, source: str) -> None:
    """Raises ValueError for a column that numbers or names the rows, and would be learnt."""
    reason = _identifies(cells) if len(cells.values) >= ROWS else None
    if reason is not None:
        raise ValueError(
            f"Column {cells.name!r} of {source} {reason}: it identifies rows, and nothing can be learnt from it. "
            f"Leave it out by drop=[{cells.name!r}] (--drop {cells.name!r}); if it is a measurement, save it as "
            "floating-point numbers."
        )


def _identifies(cells: Cells) -> str | None:
    values = cells.values
    if cells.categories is not None:
        different = len(cells.used())
        return None if 2 * different <= len(values) else f"has {different} different values in {len(values)} rows"
    if values.dtype.kind not in "iu" or len(np.unique(values)) < len(values):
        return None
    if (np.diff(values.astype(np.float64)) == 1).all():
        return f"counts the rows from {values[0]} to {values[-1]}"
    return "is different in every row" if IDENTIFIER.search(cells.name) else None


def _need_numbers(cells: Sequence[Cells], source: str) -> None:
    words = [each.name for each in cells if each.categories is not None]
    if words:
        raise ValueError(
            f"{source} has the columns {listed(words)} of categories, but the model was trained on an array without "
            "column names. Give an array of its features."
        )


def _need_columns(cells: Sequence[Cells], known: TableSchema, source: str) -> None:
    """Raises ValueError unless the columns are those of the model, in any order, and of the same kinds."""
    expected = {column.name: column for column in known.columns}
    names = [each.name for each in cells]
    missing = [name for name in expected if name not in names]
    extra = [name for name in names if name not in expected]
    if missing or extra:
        parts = [f"lacks {listed(missing)}"] if missing else []
        parts += [f"also has {listed(extra)}"] if extra else []
        raise ValueError(
            f"{source} {' and '.join(parts)}; the model takes the columns {listed(list(expected))}. Rename or add "
            "columns, and leave others out."
        )
    for each in cells:
        if each.categories is not None and expected[each.name].categories is None:
            raise ValueError(
                f"Column {each.name!r} of {source} holds {listed(each.used())}, but numbers in the model's data."
            )


def _notes(table: TableSchema) -> tuple[str, ...]:
    words = [f"{column.name} ({len(column.categories)})" for column in table.columns if column.categories is not None]
    notes = [f"one-hot columns: {', '.join(words)}"] if words else []
    return (*notes, f"left out: {', '.join(table.dropped)}") if table.dropped else tuple(notes)
