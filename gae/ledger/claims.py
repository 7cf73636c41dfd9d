"""Results of checking a derivation: numeric relations and the verdict that follows from them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

__all__ = ["Check", "Relation", "Verdict", "at_most", "check", "equal", "estimate"]

Side = Tensor | float | int

NORMAL = NormalDist()
CLEAR = 10.0  # a relation is broken, not merely inaccurate, if its error exceeds this many tolerances ...
VISIBLE = 1e-3  # ... and this size, which rounding cannot explain


class Verdict(StrEnum):
    """Verdict on a claim."""

    holds = "holds"
    holds_if = "holds if"
    fails = "fails"
    undecided = "undecided"


@dataclass(frozen=True)
class Relation:
    """Numeric relation lhs = rhs or lhs ≤ rhs between two independently computed sides.

    Of several instances the worst is kept. ``error`` is the violation of the relation, ``tolerance`` the permitted
    violation; for an estimate that is 4 standard errors, and more for the worst of several.
    """

    what: str
    lhs: float
    sign: str
    rhs: float
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the relation holds within its tolerance; False for NaN."""
        return self.error <= self.tolerance

    @property
    def broken(self) -> bool:
        """Whether the relation is violated by far more than rounding or noise."""
        return self.error > max(CLEAR * self.tolerance, VISIBLE)

    @property
    def outcome(self) -> str:
        """``holds``, ``broken``, or ``undecided`` if neither is clear."""
        return "holds" if self.holds else "broken" if self.broken else "undecided"

    def __str__(self) -> str:
        return f"{self.what}: {self.lhs:.6g} {self.sign} {self.rhs:.6g} (error {self.error:.1e})"


@dataclass(frozen=True)
class Check:
    """The evidence for or against one claim of the ledger.

    Args:
        claim: relations of the claim as stated in its source, under its condition if it has one; the first relation
            represents the claim.
        without: relations of the same claim without its condition. All of these must be broken.
        correction: relations that are true instead, or in addition. All of these must hold.
    """

    claim: Sequence[Relation]
    without: Sequence[Relation] = ()
    correction: Sequence[Relation] = ()

    @property
    def lhs(self) -> float:
        """The left side of the claim's first relation."""
        return self.claim[0].lhs

    @property
    def rhs(self) -> float:
        """The right side of the claim's first relation."""
        return self.claim[0].rhs

    @property
    def error(self) -> float:
        """The error of the claim's first relation."""
        return self.claim[0].error

    @property
    def verdict(self) -> Verdict:
        """The verdict that follows from the relations; ``undecided`` if they fit no verdict.

        >>> Check([equal("2 + 2", 4.0, 4.0)]).verdict.value
        'holds'
        >>> Check([equal("2 + 2", 4.0, 5.0)], correction=[equal("2 + 3", 5.0, 5.0)]).verdict.value
        'fails'
        """
        if not all(relation.holds for relation in self.correction):
            return Verdict.undecided
        if all(relation.holds for relation in self.claim):
            if not self.without:
                return Verdict.holds
            return Verdict.holds_if if all(relation.broken for relation in self.without) else Verdict.undecided
        refuted = all(relation.broken for relation in self.claim) and self.correction and not self.without
        return Verdict.fails if refuted else Verdict.undecided


def equal(what: str, lhs: Side, rhs: Side, tolerance: float = 1e-10) -> Relation:
    """Elementwise equality lhs = rhs; the relation keeps the element with the largest error."""
    left, right = _sides(lhs, rhs)
    return _worst(what, left, "=", right, (left - right).abs(), tolerance)


def at_most(what: str, lhs: Side, rhs: Side, tolerance: float = 1e-10) -> Relation:
    """Elementwise inequality lhs ≤ rhs; the relation keeps the element with the largest lhs - rhs."""
    left, right = _sides(lhs, rhs)
    worst = _worst(what, left, "≤", right, left - right, tolerance)
    return Relation(what, worst.lhs, "≤", worst.rhs, max(worst.error, 0.0), tolerance)


def estimate(what: str, samples: Tensor, rhs: Side) -> Relation:
    """Equality of rhs and the mean over independent samples (N, ...), within 4 standard errors.

    The worst of several means may deviate further, as far as keeps the chance of a false alarm at that of one mean.

    >>> estimate("a fair coin", torch.tensor([0.0, 1.0] * 50), 0.5).holds
    True
    """
    samples = samples.detach()
    left, right = _sides(samples.mean(0), rhs)
    standard_error = (samples.std(0) / math.sqrt(len(samples))).reshape(-1)
    worst = int(((left - right).abs() / standard_error.clamp_min(1e-300)).argmax())
    allowed = -NORMAL.inv_cdf(NORMAL.cdf(-4) / len(left))
    tolerance = allowed * float(standard_error[worst])
    return equal(f"{what} ({allowed:.2g} s.e. = {tolerance:.1e})", left[worst], right[worst], tolerance)


def check(function: Callable[..., Check]) -> Callable[[int], Check]:
    """Decorator of the check of a claim: runs it in float64 with seeded random numbers, then restores torch's state."""

    @wraps(function)
    def run(seed: int = 0) -> Check:
        dtype = torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            torch.set_default_dtype(torch.float64)
            try:
                return function()
            finally:
                torch.set_default_dtype(dtype)

    return run


def _sides(lhs: Any, rhs: Any) -> tuple[Tensor, Tensor]:
    left, right = (torch.as_tensor(side, dtype=torch.float64).detach() for side in (lhs, rhs))
    left, right = torch.broadcast_tensors(left, right)
    return left.reshape(-1), right.reshape(-1)


def _worst(what: str, left: Tensor, sign: str, right: Tensor, error: Tensor, tolerance: float) -> Relation:
    worst = int(error.nan_to_num(nan=math.inf).argmax())
    return Relation(what, float(left[worst]), sign, float(right[worst]), float(error[worst]), tolerance)
