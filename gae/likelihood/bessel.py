"""Modified Bessel functions of the first kind, in logarithms that neither underflow nor overflow."""

import math
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

LARGE = 30.0  # orders from which the expansion is exact in float64; smaller ones follow by recurrence
TERMS = 9


def _debye() -> list[list[float]]:
    """Coefficients of Debye's polynomials u_1 ... u_9, lowest power first (DLMF 10.41.9)."""
    polynomials = [[Fraction(1)]]
    for _ in range(TERMS):
        last = polynomials[-1]
        following = [Fraction(0)] * (len(last) + 3)
        for power, c in enumerate(last):
            following[power + 1] += c * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
            following[power + 3] -= c * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
        polynomials.append(following)
    return [[float(c) for c in polynomial] for polynomial in polynomials[1:]]


DEBYE = _debye()


def log_bessel(order: float, x: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """The scaled logarithm log(x^-ν e^-x I_ν(x)) and the ratio I_{ν+1}(x) / (x I_ν(x)), in float64, finite at x = 0.

    For orders from 30 by Debye's expansion, which is uniform in x (DLMF 10.41.3); for smaller ones from there by the
    ratios of successive orders, a continued fraction (DLMF 10.33.1). Twice differentiable. The error is below 1e-13 of
    the larger of 1 and the logarithm.

    Args:
        order: ν ≥ 0.
        x: not negative.

    >>> value, ratio = log_bessel(0.5, torch.tensor(2.0))  # √(2/π) sinh(x) / x e^-x, and coth(x) / x - 1 / x²
    >>> round(float(value - math.log(math.sqrt(2 / math.pi) * math.sinh(2) / 2 * math.exp(-2))), 12)
    0.0
    """
    x = x.double()
    steps = max(0, math.ceil(LARGE - order))
    value = _expansion(order + steps, x)
    ratio = (_expansion(order + steps + 1, x) - value).exp()
    square, ratios = x.square(), [ratio]
    for j in reversed(range(steps)):
        ratios.append(1 / (2 * (order + j + 1) + square * ratios[-1]))
    if steps:
        value = value - torch.stack(ratios[1:]).log().sum(0)
    return value, ratios[-1]


def _expansion(order: float, x: Tensor) -> Tensor:
    """log(x^-ν e^-x I_ν(x)) for a large order ν."""
    size = (x.square() + order**2).sqrt()
    p = order / size
    series = torch.zeros_like(x)
    for k, polynomial in enumerate(DEBYE, 1):
        term = torch.zeros_like(x)
        for c in reversed(polynomial):
            term = term * p + c
        series = series + term / order**k
    return order**2 / (size + x) - order * (size + order).log() - 0.5 * (2 * math.pi * size).log() + series.log1p()
