"""Numbers as text: rounded by their error, with a typographic minus."""

import math

DIGITS = 2  # significant digits of an error
ROUNDING = 1e-9  # an error below this share of its mean is one of floating point, and not shown


def rounded(mean: float, error: float | None = None, decimals: int = 1) -> str:
    """A mean ± its error, both to the second significant digit of the error; ``decimals`` if there is no error.

    >>> rounded(2.0617, 0.1349), rounded(-1234.56, 25.1), rounded(0.5, None)
    ('2.06 ± 0.13', '−1,235 ± 25', '0.5')
    """
    known = decimals_of(mean, error)
    if known is None or error is None:
        return plain(mean, decimals)
    return f"{plain(mean, known)} ± {plain(error, known)}"


def decimals_of(mean: float, error: float | None) -> int | None:
    """Decimals that show two significant digits of an error; None without one. Below zero: tens, hundreds, ….

    >>> decimals_of(1.0, 0.0996), decimals_of(1.0, 0.13), decimals_of(1e4, 132.0), decimals_of(1.0, 0.0)
    (2, 2, -1, None)
    """
    if not error or not math.isfinite(error) or error < ROUNDING * abs(mean):
        return None
    exponent = int(f"{error:.{DIGITS - 1}e}".partition("e")[2])
    return DIGITS - 1 - exponent


def plain(value: float, decimals: int) -> str:
    """A number with so many decimals and a typographic minus, and no minus for zero.

    >>> plain(-1234.56, 1), plain(-0.004, 2), plain(1267.0, -1)
    ('−1,234.6', '0.00', '1,270')
    """
    text = f"{round(value, decimals) if decimals < 0 else value:,.{max(decimals, 0)}f}"
    return text.replace("-", "−") if any(digit in text for digit in "123456789") else text.lstrip("-")
