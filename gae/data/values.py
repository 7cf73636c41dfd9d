"""Conversion of stored arrays to tensors, with checks of dtypes, shapes and float32 precision."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gae.data.columns import listed
from gae.data.mapped import Mapped, blocks, bounds, each, is_large, refuse_rows

CEILINGS = {"bool": 1, "uint8": 255, "uint16": 65535}  # the stored value that represents 1, by dtype
EXACT = 2**24  # float32 represents all integers up to this
TOLERATED = 1e-3  # rounding error, in standard deviations of a feature
NOISE = 1e-12  # relative standard deviation that float64 rounding leaves on a constant
REMEDY = "Remove or impute such values first."
AT_ONCE = 2**22  # values compared at a time


def ceiling(array: np.ndarray) -> int | None:
    """The stored value that represents 1, or None if the dtype does not define it."""
    return CEILINGS.get(array.dtype.name)


def extremes(array: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest value of an array that is not empty; of a large memory map, block by block."""
    return bounds(_in_float32(array)) if is_large(array) else (float(array.min()), float(array.max()))


def observations(
    array: np.ndarray,
    what: str,
    names: Sequence[str] | None = None,
    missing: bool = False,
    unit: int | None = None,
) -> Tensor:
    """Converts an array (N, *X) of real numbers to float32; uint8 and uint16 are divided by 255 and 65535.

    The rows of a large memory map stay in their file (``Mapped``).

    Args:
        array: the numbers.
        what: name of the data in messages.
        names: names of the columns of a table (N, D).
        missing: whether NaN marks elements that were not observed, and is kept.
        unit: the stored value that represents 1, if the dtype does not imply it.

    Raises:
        TypeError: for an array that does not hold real numbers.
        ValueError: for another shape, an empty array, values that are not finite in float32, or unsigned integers that
            are all 0 or 1.
    """
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{what} must hold real numbers, got {array.dtype}. Convert it with `astype`.")
    if array.ndim < 2:
        raise ValueError(f"{what} must have shape (N, *X), got {array.shape}. For scalars use `x[:, None]`.")
    if array.size == 0:
        raise ValueError(f"{what} is empty: it has shape {array.shape}. A data set needs observations.")
    highest = unit or ceiling(array) or 1
    x = _in_float32(array)
    if highest > 1 and bounds(x)[1] == 1:
        raise ValueError(f"{what} is {array.dtype}, read as 0–{highest}, but its highest value is 1. Save 0/1 as bool.")
    _refuse_values(x, what, missing, names)
    return x if highest == 1 else each(x, lambda rows: rows.div_(highest))


def _in_float32(array: np.ndarray) -> Tensor:
    if is_large(array):
        return Mapped(array, None, lambda rows: rows.to(torch.float32))
    with np.errstate(over="ignore", under="ignore"):
        return torch.from_numpy(array.astype(np.float32, order="C"))


def _refuse_values(x: Tensor, what: str, missing: bool, names: Sequence[str] | None) -> None:
    """Raises ValueError for values that are not finite, other than NaN if that marks missing values."""

    def bad(rows: Tensor) -> Tensor:
        return ~(rows.isfinite() | rows.isnan()) if missing else ~rows.isfinite()

    if not any(bool(bad(rows).any()) for _, rows in blocks(x)):
        return
    remedy = REMEDY
    if not missing and any(bool(rows.isnan().any()) for _, rows in blocks(x)):
        remedy += ' If NaN means not observed, train with `load(..., missing="mask")` (`gae fit --missing mask`).'
    if names is not None:
        columns = torch.stack([bad(rows).any(0) for _, rows in blocks(x)]).any(0).nonzero()[:, 0]
        remedy = f"Columns: {listed([names[i] for i in columns])}. {remedy}"
    refuse_rows(x, bad, f"{what} must be finite in float32", remedy)


def labels(array: np.ndarray | None, n: int, what: str) -> Tensor | None:
    """Converts labels (N,) to int64.

    Raises:
        TypeError: for labels that are not integers.
        ValueError: for another shape, or integers that int64 cannot represent.
    """
    if array is None:
        return None
    if array.dtype.kind not in "biu":
        raise TypeError(
            f"{what} must hold integers, got {array.dtype}. Number the labels: "
            f"`np.unique({what}, return_inverse=True)[1]`."
        )
    if array.shape != (n,):
        raise ValueError(f"{what} must have shape ({n},), one label per observation, got {array.shape}.")
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"{what} has labels above 2^63 - 1, such as {array.max()}. Number them: "
            f"`np.unique({what}, return_inverse=True)[1]`."
        )
    return torch.from_numpy(array.astype(np.int64))


def need_float32(what: str, *parts: np.ndarray, names: Sequence[str] | None = None) -> None:
    """Raises ValueError for features (elements of X) that lose precision in float32.

    For floats, the rounding error must be below a thousandth of the feature's standard deviation, and the median error
    below a thousandth of its median deviation from the median (outliers would hide a loss from the first test).
    Features that are constant up to float64 rounding pass. For integers, distinct values must also remain distinct.

    Args:
        what: name of the data in messages.
        parts: arrays (N, *X), finite or NaN.
        names: names of the columns of a table (N, D).

    Raises:
        ValueError: names the first such feature, and the remedy.
    """
    if all(part.dtype.itemsize < 4 or part.dtype == np.float32 for part in parts):
        return
    flat = [part.reshape(len(part), -1) for part in parts]
    width = flat[0].shape[1]
    step = max(1, AT_ONCE // sum(map(len, flat)))
    for start in range(0, width, step):
        columns = np.concatenate([part[:, start : start + step] for part in flat])
        spoiled = _first_spoiled(columns) if np.isnan(columns).any() else _spoiled(columns)
        if spoiled is not None:
            column, reason = spoiled
            place = ", ".join(str(i) for i in np.unravel_index(start + column, parts[0].shape[1:]))
            feature = f"{what}[:, {place}]" if names is None else repr(names[start + column])
            raise ValueError(
                f"float32, in which models compute, cannot hold feature {feature}: {reason}. Subtract each "
                "feature's mean, and divide by its standard deviation where that is tiny, in float64 before saving: "
                f"`{what} = ({what} - {what}.mean(0)) / {what}.std(0)`. Leave out identifiers."
            )


def _first_spoiled(columns: np.ndarray) -> tuple[int, str] | None:
    """``_spoiled`` for columns of which only the numbers count."""
    for index, column in enumerate(columns.T):
        known = column[~np.isnan(column)]
        spoiled = _spoiled(known[:, None]) if len(known) else None
        if spoiled is not None:
            return index, spoiled[1]
    return None


def _spoiled(columns: np.ndarray) -> tuple[int, str] | None:
    """The first column that loses precision in float32, and a description of the loss."""
    exact = columns.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        rounded = columns.astype(np.float32)
    error = np.abs(exact - rounded)
    largest, mean, deviation = np.abs(exact).max(0), exact.mean(0), exact.std(0)
    mixed = deviation > NOISE * largest
    lost = mixed & (np.linalg.norm(error, axis=0) > TOLERATED * np.sqrt(len(error)) * deviation)
    lost |= (largest > 0) & (largest < np.finfo(np.float32).tiny)
    if not lost.any() and error.any():
        sparse = slice(None, None, -(-len(exact) // 1000))  # a median of 1000 rows is enough
        median = np.median(exact[sparse], 0)
        spread = np.median(np.abs(exact[sparse] - median), 0)
        lost = (spread > NOISE * np.abs(median)) & (np.median(error[sparse], 0) > TOLERATED * spread)
    if lost.any():
        column = int(lost.argmax())
        return column, (
            f"its mean is {mean[column]:.9g} and its standard deviation {deviation[column]:.3g}, and rounding changes "
            f"its values by up to {error[:, column].max():.3g}"
        )
    if columns.dtype.kind in "iu":
        for column in np.flatnonzero(largest > EXACT).tolist():
            before, after = (len(np.unique(each[:, column])) for each in (columns, rounded))
            if after < before:
                return column, f"its {before} different integers would become {after}"
    return None


def measured(*parts: Tensor) -> tuple[float, float]:
    """The lowest and highest value of some tensors, NaN left out; raises ValueError if there is none."""
    ranges = [bounds(part) for part in parts]
    low, high = min(least for least, _ in ranges), max(most for _, most in ranges)
    if low > high:
        raise ValueError("The data hold no value: every element is NaN, that is, not observed.")
    return low, high
