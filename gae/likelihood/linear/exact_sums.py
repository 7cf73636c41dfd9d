"""Sums of rows in fixed point, which do not depend on the order of the rows."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

BITS = 52  # of a float64 sum, without its sign
ENTRIES = 2**16  # numbers of rows at once, so that their copies in float64 stay in cache


class ExactSums:
    """Sums over the rows of each component, in which adding and removing rows leaves no trace of rounding.

    Rows are rounded to multiples of a power of two such that every sum is exact in float64. So a sum that was updated
    row by row equals one over all rows, bit by bit, at any order and number of threads.

    Args:
        components: K.
        largest: the largest |x| of any element of the N rows.
        rows: N.
        width: D.

    >>> sums, x = ExactSums(2, 4.0, rows=3, width=1), torch.tensor([[0.1], [4.0], [0.3]])
    >>> sums.add(x, torch.tensor([0, 0, 1]))
    >>> sums.move(x, torch.tensor([1]), torch.tensor([0]), torch.tensor([1]))
    >>> sums.value
    tensor([[0.1000],
            [4.3000]], dtype=torch.float64)
    """

    def __init__(self, components: int, largest: float, rows: int, width: int):
        exponent = math.frexp(largest * rows)[1] - BITS  # every partial sum is below 2^BITS units
        self.shift = 1.5 * 2.0 ** (BITS + exponent)  # adding it rounds to multiples of the unit
        self.value = torch.zeros(components, width, dtype=torch.float64)
        self.height = max(1, ENTRIES // width)

    def add(self, x: Float[Tensor, "n D"], k: Int[Tensor, " n"]) -> None:
        """Adds rows to their components."""
        for rows, own in zip(x.split(self.height), k.split(self.height), strict=True):
            self.value.index_add_(0, own, self._rounded(rows))

    def move(
        self, x: Float[Tensor, "n D"], index: Int[Tensor, " m"], old: Int[Tensor, " m"], new: Int[Tensor, " m"]
    ) -> None:
        """Moves the rows at some indices from one component to another."""
        for part, last, own in zip(*(each.split(self.height) for each in (index, old, new)), strict=True):
            rows = self._rounded(x[part])
            self.value.index_add_(0, own, rows)
            self.value.index_add_(0, last, rows.neg_())

    def _rounded(self, rows: Tensor) -> Tensor:
        return rows.to(torch.float64, copy=True).add_(self.shift).sub_(self.shift)
