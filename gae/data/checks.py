"""Argument checks that raise a ValueError with the argument's name and value."""

from typing import Any

from torch import Tensor


def refuse(
    x: Tensor, bad: Tensor, what: str, remedy: str, at: str = "index", start: int = 0, number: int | None = None
) -> None:
    """Raises ValueError if any element of x is bad, with the first one, its index, and the number of bad elements.

    For a block of rows, ``start`` is the number of rows before it, and ``number`` that of all bad elements.
    """
    if bad.any():
        index = tuple(int(i) for i in bad.nonzero()[0])
        place, count = (index[0] + start, *index[1:]), int(bad.sum()) if number is None else number
        raise ValueError(f"{what}, got {x[index].item():g} at {at} {place} ({count} such values). {remedy}")


def positive(name: str, value: Any) -> float:
    """Returns value as a float; raises ValueError unless it is positive.

    >>> positive("rate", -1)
    Traceback (most recent call last):
    ValueError: rate must be positive, got -1.
    """
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")
    return float(value)


def fraction(name: str, value: Any) -> float:
    """Returns value as a float; raises ValueError unless it lies in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}.")
    return float(value)


def at_least_one(name: str, value: int) -> int:
    """Returns value; raises ValueError unless it is at least 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")
    return value
