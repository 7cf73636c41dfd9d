"""What a check of a derivation returns: numeric statements, and the verdict that follows from them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["Check", "Relation", "Verdict", "at_most", "check", "equal", "estimate"]

Side = Tensor | float | int

CLEAR = 10.0  # a statement is broken, not merely inaccurate, when its error is this many tolerances ...
VISIBLE = 1e-3  # ... and large enough to be no matter of rounding


class Verdict(StrEnum):
    """What the numbers say of a claim."""

    holds = "holds"
    holds_if = "holds if"
    fails = "fails"
    undecided = "undecided"


@dataclass(frozen=True)
class Relation:
    """One numeric statement, lhs = rhs or lhs ≤ rhs, of two sides that were computed independently.

    Of many instances it keeps the worst. ``error`` is by how much the statement is missed, ``tolerance`` by how much
    it may be; for an estimate that is 4 standard errors.
    """

    what: str
    lhs: float
    sign: str
    rhs: float
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the two sides stand as the sign says; never for what is not a number."""
        return self.error <= self.tolerance

    @property
    def broken(self) -> bool:
        """Whether it is missed by far more than rounding or noise."""
        return self.error > max(CLEAR * self.tolerance, VISIBLE)

    def __str__(self) -> str:
        return f"{self.what}: {self.lhs:.6g} {self.sign} {self.rhs:.6g} (error {self.error:.1e})"


@dataclass(frozen=True)
class Check:
    """The evidence for or against one claim of the ledger.

    Args:
        claim: the claim as its source writes it, under its condition if it has one; the first relation stands for it.
        without: the same claim where the condition is not met. All of these must be broken.
        correction: what is true instead, or besides. All of these must hold.
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
        """By how much the claim's first relation is missed."""
        return self.claim[0].error

    @property
    def verdict(self) -> Verdict:
        """What follows; ``undecided`` where the relations fit no verdict.

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
    """lhs = rhs, elementwise; the relation keeps the element that misses it most."""
    left, right = _sides(lhs, rhs)
    return _worst(what, left, "=", right, (left - right).abs(), tolerance)


def at_most(what: str, lhs: Side, rhs: Side, tolerance: float = 1e-10) -> Relation:
    """lhs ≤ rhs, elementwise; where all hold, the relation keeps the element with the least room."""
    left, right = _sides(lhs, rhs)
    found = _worst(what, left, "≤", right, left - right, tolerance)
    return Relation(what, found.lhs, "≤", found.rhs, max(found.error, 0.0), tolerance)


def estimate(what: str, samples: Tensor, rhs: Side) -> Relation:
    """The mean over the first dimension of independent samples (N, ...) = rhs, within 4 standard errors.

    >>> estimate("a fair coin", torch.tensor([0.0, 1.0] * 50), 0.5).holds
    True
    """
    samples = samples.detach()
    left, right = _sides(samples.mean(0), rhs)
    standard_error = (samples.std(0) / math.sqrt(len(samples))).reshape(-1)
    worst = int(((left - right).abs() / standard_error.clamp_min(1e-300)).argmax())
    tolerance = 4 * float(standard_error[worst])
    return equal(f"{what} (4 s.e. = {tolerance:.1e})", left[worst], right[worst], tolerance)


def check(function: Callable[..., Check]) -> Callable[[int], Check]:
    """Marks the check of a claim: it runs in float64, under random numbers of its own; torch's state is restored."""

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
