"""Means with the error that belongs to them: over trainings where there are several, else over test samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

CONFIDENCE = 0.975  # two-sided 95 %
NEGLIGIBLE = 0.01  # nats: differences below this are not claimed, however small their error
SMALL = 0.1  # nats: "nothing to win" means that this much is excluded


@dataclass(frozen=True)
class Estimate:
    """A mean in nats, its standard error, and the population that the error is over.

    Attributes:
        n: number of trainings if there are several, else of test samples.
        over: ``"trainings"`` or ``"test samples"``.
        sample_error: standard error over test samples, of the mean over trainings.

    >>> Estimate(2.0, 0.5, 64, "test samples").significant, Estimate(2.0, 0.5, 3, "trainings").significant
    (True, False)
    """

    mean: float
    error: float | None
    n: int
    over: str
    sample_error: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the mean differs from zero: by at least 0.01 nats, and in a two-sided t test at 5 %."""
        if self.error is None or not math.isfinite(self.mean):
            return False
        return abs(self.mean) >= NEGLIGIBLE and abs(self.mean) > self._margin

    @property
    def excludes(self) -> bool:
        """Whether a mean of 0.1 nats or more is excluded, by the upper end of the 95 % interval."""
        return self.error is not None and self.mean + self._margin < SMALL

    @property
    def _margin(self) -> float:
        from scipy.special import stdtrit

        assert self.error is not None
        return float(stdtrit(self.n - 1, CONFIDENCE)) * self.error

    @property
    def population(self) -> str:
        """The population of the error, in words.

        >>> Estimate(2.0, 0.5, 64, "test samples").population
        '64 test samples of one training'
        """
        return f"{self.n} {self.over}" + (" of one training" if self.over == "test samples" else "")


def estimate(values: Sequence[Sequence[float]]) -> Estimate:
    """The mean of one list of values per training, all over the same test samples.

    With several trainings its error is that of their means; with one, that over the samples.

    >>> estimate([[1.0, 3.0]])
    Estimate(mean=2.0, error=1.0, n=2, over='test samples', sample_error=1.0)
    >>> estimate([[1.0, 1.0], [3.0, 3.0]]).error
    1.0
    """
    table = torch.tensor(values, dtype=torch.float64)
    within = _error(table.mean(0))
    if len(table) == 1:
        return Estimate(float(table.mean()), within, table.shape[1], "test samples", within)
    return Estimate(float(table.mean()), _error(table.mean(1)), len(table), "trainings", within)


def difference(upper: Sequence[Sequence[float]], lower: Sequence[Sequence[float]]) -> Estimate:
    """The mean of ``upper - lower``, paired by training and test sample.

    >>> difference([[2.0, 5.0]], [[1.0, 4.0]])
    Estimate(mean=1.0, error=0.0, n=2, over='test samples', sample_error=0.0)
    """
    pairs = zip(upper, lower, strict=True)
    return estimate([[a - b for a, b in zip(high, low, strict=True)] for high, low in pairs])


def _error(values: torch.Tensor) -> float | None:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
