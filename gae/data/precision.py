"""The check that features keep their precision in float32, in which models compute."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gae.data import mapped

EXACT = 2**24  # float32 represents all integers up to this
TOLERATED = 1e-3  # rounding error, in standard deviations of a feature
NOISE = 1e-12  # relative standard deviation that float64 rounding leaves on a constant
AT_ONCE = 2**22  # values compared at a time
SAMPLE = 1000  # rows, which are enough for a median


class _Features(NamedTuple):
    """Statistics (D,) of features, of the elements that are known.

    Attributes:
        known: number of known elements.
        mean: their mean.
        deviation: their standard deviation.
        largest: highest magnitude.
        error: root mean square of the rounding errors.
        worst: highest rounding error.
    """

    known: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    largest: np.ndarray
    error: np.ndarray
    worst: np.ndarray


def need_float32(what: str, *parts: np.ndarray, names: Sequence[str] | None = None) -> None:
    """Raises ValueError for features (elements of X) that lose precision in float32.

    For floats, the rounding error must be below a thousandth of the feature's standard deviation, and the median error
    below a thousandth of its median deviation from the median (outliers would hide a loss from the first test).
    Features that are constant up to float64 rounding pass. For integers, distinct values must also remain distinct.
    Memory maps are read block by block.

    Args:
        what: name of the data in messages.
        parts: arrays (N, *X), finite or NaN.
        names: names of the columns of a table (N, D).

    Raises:
        ValueError: names the first such feature, and the remedy.
    """
    if all(part.dtype.itemsize < 4 or part.dtype == np.float32 for part in parts):
        return
    of = _features(parts)
    lost = (of.deviation > NOISE * of.largest) & (of.error > TOLERATED * of.deviation)
    lost |= (of.largest > 0) & (of.largest < np.finfo(np.float32).tiny)
    lost |= _lost_beside_outliers(parts, of)
    first = int(lost.argmax()) if lost.any() else len(lost)
    merged = _merged_integers(parts, np.flatnonzero(of.largest[:first] > EXACT))
    if merged is not None:
        first, before, after = merged
        reason = f"its {before} different integers would become {after}"
    elif first < len(lost):
        reason = (
            f"its mean is {of.mean[first]:.9g} and its standard deviation {of.deviation[first]:.3g}, and rounding "
            f"changes its values by up to {of.worst[first]:.3g}"
        )
    else:
        return
    place = ", ".join(str(i) for i in np.unravel_index(first, parts[0].shape[1:]))
    feature = f"{what}[:, {place}]" if names is None else repr(names[first])
    raise ValueError(
        f"float32, in which models compute, cannot hold feature {feature}: {reason}. Subtract each feature's mean, and "
        "divide by its standard deviation where that is tiny, in float64 before saving: "
        f"`{what} = ({what} - {what}.mean(0)) / {what}.std(0)`. Leave out identifiers."
    )


def _blocks(parts: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Consecutive rows (B, D) of arrays."""
    for part in parts:
        plain, width = np.asarray(part), part[:1].size
        step = max(1, mapped.BLOCK // (width * part.itemsize))
        for start in range(0, len(part), step):
            rows = plain[start : start + step]
            yield rows.reshape(len(rows), width)
            mapped.release(part)


def _features(parts: Sequence[np.ndarray]) -> _Features:
    """Statistics in one pass; the moments of blocks are merged as by Chan, Golub and LeVeque (1983)."""
    width = parts[0][:1].size
    count, mean, squares, largest, errors, worst = np.zeros((6, width))
    for rows in _blocks(parts):
        exact = rows.astype(np.float64)
        known = ~np.isnan(exact)
        with np.errstate(over="ignore", under="ignore"):
            error = np.where(known, np.abs(exact - rows.astype(np.float32)), 0)
        number, origin = known.sum(0), np.where(known[0], exact[0], 0)
        centre = origin + np.where(known, exact - origin, 0).sum(0) / np.maximum(number, 1)  # exact for a constant
        shift, weight = centre - mean, number / np.maximum(count + number, 1)
        squares += np.where(known, (exact - centre) ** 2, 0).sum(0) + shift**2 * count * weight
        mean += shift * weight
        count += number
        largest = np.maximum(largest, np.where(known, np.abs(exact), 0).max(0))
        errors += (error**2).sum(0)
        worst = np.maximum(worst, error.max(0))
    some = np.maximum(count, 1)
    return _Features(count, mean, np.sqrt(squares / some), largest, np.sqrt(errors / some), worst)


def _lost_beside_outliers(parts: Sequence[np.ndarray], of: _Features) -> np.ndarray:
    """(D,) whether the median error is large for the median deviation from the median, in a sample of rows."""
    lost = np.zeros(len(of.known), dtype=bool)
    if not of.worst.any():
        return lost
    step = AT_ONCE // SAMPLE
    for start in range(0, len(lost), step):
        columns = slice(start, start + step)
        sample = _sample(parts, columns, of.known[columns])
        median_of = np.nanmedian if np.isnan(sample).any() else np.median
        exact = sample.astype(np.float64)
        with np.errstate(over="ignore", under="ignore"):
            error = median_of(np.abs(exact - sample.astype(np.float32)), 0)
        median = median_of(exact, 0)
        spread = median_of(np.abs(exact - median), 0)
        lost[columns] = (spread > NOISE * np.abs(median)) & (error > TOLERATED * spread)
    return lost


def _sample(parts: Sequence[np.ndarray], columns: slice, count: np.ndarray) -> np.ndarray:
    """Known values of some columns at equal distances, at most 1000 of each; zeros for a column without any."""
    total, step = sum(map(len, parts)), -(-np.maximum(count, 1).astype(np.int64) // SAMPLE)
    if (count == total).all():
        rows, skip = [], 0
        for part in parts:
            chosen = np.asarray(part)[skip :: step[0]]
            rows.append(chosen.reshape(len(chosen), part[:1].size)[:, columns])
            skip = int((skip - len(part)) % step[0])
        return np.concatenate(rows)
    sample = np.full((SAMPLE, len(count)), np.nan, np.result_type(*parts))
    before = np.zeros(len(count), np.int64)
    for block in _blocks(parts):
        values = block[:, columns]
        known = ~np.isnan(values)
        number = before + known.cumsum(0) - 1
        row, column = np.nonzero(known & (number % step == 0))
        sample[(number // step)[row, column], column] = values[row, column]
        before = number[-1] + 1
    sample[:, count == 0] = 0
    return sample


def _merged_integers(parts: Sequence[np.ndarray], columns: np.ndarray) -> tuple[int, int, int] | None:
    """The first of some columns of integers with fewer distinct values in float32, and their numbers."""
    if np.result_type(*parts).kind not in "iu":
        return None
    step = max(1, AT_ONCE // sum(map(len, parts)))
    for start in range(0, len(columns), step):
        few = columns[start : start + step]
        values = np.concatenate([rows[:, few] for rows in _blocks(parts)])
        for column, exact in zip(few.tolist(), values.T, strict=True):
            before, after = len(np.unique(exact)), len(np.unique(exact.astype(np.float32)))
            if after < before:
                return column, before, after
    return None
