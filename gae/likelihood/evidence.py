"""log p(x) of a model, exact or estimated, with the error of the estimate."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gae.display import LINES, axes_for, html_table, legend, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEAVY, DOMINATED = 0.7, 2.0  # above this Pareto k or below this ess, the standard error is too small
TIGHT_ESS = 100.0  # least effective sample size of a tight estimate


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x) per sample, in nats, with its standard error and cost.

    Attributes:
        log_p: the estimate.
        standard_error: sampling error, by the delta method for the logarithm of a mean; 0 for a deterministic value,
            NaN if unknown. It is meaningless where a few weights dominate (``unreliable``): it is never much above
            1 nat, while ``log_p`` may be off by far more.
        ess: effective sample size of the weights, (Σw)² / Σw²; None without weights.
        pareto_k: the shape of a generalised Pareto distribution fitted to the largest weights (Vehtari et al. 2024),
            which have 1 / k finite moments. NaN for fewer than 100 weights, and where the largest are equal.
        evaluations: decoder evaluations per sample, averaged over samples if they differ.
        method: the method of each sample: ``"exact"``, ``"importance"`` or ``"ais"``; empty if not recorded.
        reason: the reason why the method was taken and whether its value is tight, for each sample.
        tight: whether the value can stand for log p(x); where False, it is a lower bound in expectation. None if
            not known.
    """

    log_p: Float[Tensor, " B"]
    standard_error: Float[Tensor, " B"]
    ess: Float[Tensor, " B"] | None = None
    evaluations: int = 0
    pareto_k: Float[Tensor, " B"] | None = None
    method: tuple[str, ...] = ()
    reason: tuple[str, ...] = ()
    tight: Bool[Tensor, " B"] | None = None

    @classmethod
    def exact(cls, log_p: Float[Tensor, " B"]) -> "Evidence":
        """A known log p(x), without an error.

        >>> Evidence.exact(torch.tensor([-1.5])).standard_error
        tensor([0.])
        """
        rows = len(log_p)
        tight = torch.ones_like(log_p, dtype=torch.bool)
        return cls(
            log_p, torch.zeros_like(log_p), method=("exact",) * rows, reason=("closed form",) * rows, tight=tight
        )

    @classmethod
    def join(cls, parts: "Sequence[Evidence]") -> "Evidence":
        """The evidence of all samples from that of consecutive batches, by one method.

        >>> Evidence.join([Evidence.exact(torch.zeros(2)), Evidence.exact(torch.ones(1))]).log_p
        tensor([0., 0., 1.])
        """
        sizes = [part.ess for part in parts if part.ess is not None]
        shapes = [part.pareto_k for part in parts if part.pareto_k is not None]
        tight = [part.tight for part in parts if part.tight is not None]
        rows = sum(len(part.log_p) for part in parts)
        return cls(
            torch.cat([part.log_p for part in parts]),
            torch.cat([part.standard_error for part in parts]),
            torch.cat(sizes) if sizes else None,
            round(sum(part.evaluations * len(part.log_p) for part in parts) / max(rows, 1)),
            torch.cat(shapes) if shapes else None,
            tuple(name for part in parts for name in part.method),
            tuple(text for part in parts for text in part.reason),
            torch.cat(tight) if tight else None,
        )

    def summary(self) -> str:
        """Mean, methods, and the ranges of effective sample size and Pareto k, as one line.

        >>> Evidence.exact(torch.tensor([-1.5, -2.5])).summary()
        'log p(x) of 2 samples: mean -2 nats; exact: 2'
        """
        text = f"log p(x) of {len(self.log_p)} samples: mean {float(self.log_p.mean()):.5g} nats"
        if self.method:
            counts = Counter(self.method)
            text += "; " + ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
        for name, values in (("effective sample size", self.ess), ("Pareto k", self.pareto_k)):
            known = values[~values.isnan()] if values is not None else None
            if known is not None and len(known):
                text += f"; {name} {float(known.min()):.3g} to {float(known.max()):.3g}"
        loose = 0 if self.tight is None else int((~self.tight).sum())
        return f"{text}; {loose} lower bounds only" if loose else text

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws log p(x) of every sample, from the lowest, with one standard error to both sides.

        Lower bounds and estimates whose standard error is meaningless have marks of their own.
        """
        ax, order = axes_for(ax), self.log_p.argsort()
        value, error = self.log_p[order].cpu(), self.standard_error[order].cpu().nan_to_num(0.0)
        doubtful = self.unreliable if self.tight is None else self.unreliable | ~self.tight
        for rows, color, mark, name in (
            (~doubtful, LINES[0], "o", "estimate"),
            (doubtful, LINES[1], "^", "lower bound, or a few weights outweigh all"),
        ):
            (at,) = rows[order].cpu().nonzero(as_tuple=True)
            if len(at):
                ax.errorbar(at, value[at], error[at], fmt=mark, ms=3, lw=0.8, color=color, label=f"{name} ± s.e.")
        whole_ticks(ax)
        ax.set(xlabel="samples, by their log p(x)", ylabel="log p(x) (nats)")
        legend(ax)
        return ax

    def _repr_html_(self) -> str:
        count = len(self.log_p)
        tight = ["–"] * count if self.tight is None else ["yes" if tight else "lower bound" for tight in self.tight]
        values = zip(
            self.log_p.tolist(), self.standard_error.tolist(), self.method or ("–",) * count, tight, strict=True
        )
        rows = [(index, *cells) for index, cells in enumerate(values)]
        return html_table(self.summary(), rows, ("sample", "log p(x) (nats)", "standard error", "method", "tight"))

    @property
    def unreliable(self) -> Bool[Tensor, " B"]:
        """Whether the standard error is meaningless: Pareto k > 0.7, or one weight above half of the sum."""
        if self.ess is None or self.pareto_k is None:
            return torch.zeros_like(self.log_p, dtype=torch.bool)
        return (self.pareto_k > HEAVY) | (self.ess < DOMINATED)
