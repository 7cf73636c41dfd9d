"""Conversion of stored arrays to tensors, with checks of dtypes, shapes and values."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gae.data.columns import listed
from gae.data.mapped import Mapped, blocks, bounds, each, is_large, refuse_rows

CEILINGS = {"bool": 1, "uint8": 255, "uint16": 65535}  # the stored value that represents 1, by dtype
REMEDY = "Remove or impute such values first."


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
    need_rows(array.shape, what)
    highest = unit or ceiling(array) or 1
    x = _in_float32(array)
    if highest > 1 and bounds(x)[1] == 1:
        raise ValueError(f"{what} is {array.dtype}, read as 0–{highest}, but its highest value is 1. Save 0/1 as bool.")
    _refuse_values(x, what, missing, names)
    return x if highest == 1 else each(x, lambda rows: rows.div_(highest))


def need_rows(shape: Sequence[int], what: str) -> None:
    """Raises ValueError for a shape other than (N, *X), or without elements."""
    if len(shape) < 2:
        raise ValueError(f"{what} must have shape (N, *X), got {tuple(shape)}. For scalars use `x[:, None]`.")
    if 0 in shape:
        raise ValueError(f"{what} is empty: it has shape {tuple(shape)}. A data set needs observations.")


def _in_float32(array: np.ndarray) -> Tensor:
    if is_large(array):
        return Mapped(array, None, lambda rows: _rounded(rows.numpy(), copy=False))
    return _rounded(array)


def _rounded(array: np.ndarray, copy: bool = True) -> Tensor:
    with np.errstate(over="ignore", under="ignore"):
        return torch.from_numpy(array.astype(np.float32, order="C", copy=copy))


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


def measured(*parts: Tensor) -> tuple[float, float]:
    """The lowest and highest value of some tensors, NaN left out; raises ValueError if there is none."""
    ranges = [bounds(part) for part in parts]
    low, high = min(least for least, _ in ranges), max(most for _, most in ranges)
    if low > high:
        raise ValueError("The data hold no value: every element is NaN, that is, not observed.")
    return low, high
