"""The inference gap of each sample as a result, with its table and its picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import Distribution

from gae.analysis.metrics import Entry, mean_and_error
from gae.display import INK, LINES, axes_for, html_table, legend, whole_ticks
from gae.evidence import Evidence
from gae.inference import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SLACK = 4.0  # a difference of up to SLACK standard errors ...
TOLERANCE = 1e-3  # ... plus TOLERANCE nats does not indicate a failed optimisation


@dataclass(frozen=True)
class Bound:
    """Lower bound L[q] of log p(x) of each sample, in nats, with the standard error of its estimate.

    Attributes:
        q: the densities, of batch (B,); None for the joined bounds of several batches.
        status: termination status of each local optimisation, if there was one.
    """

    value: Float[Tensor, " B"]
    standard_error: Float[Tensor, " B"]
    q: Distribution | None
    status: Int[Tensor, " B"] | None = None

    @staticmethod
    def join(parts: "Sequence[Bound]") -> "Bound":
        """Concatenates the bounds of several batches."""
        statuses = [part.status for part in parts if part.status is not None]
        return Bound(
            torch.cat([part.value for part in parts]),
            torch.cat([part.standard_error for part in parts]),
            parts[0].q if len(parts) == 1 else None,
            torch.cat(statuses) if statuses else None,
        )


@dataclass(frozen=True)
class Gap:
    """The inference gap of each sample: log p(x) - L[q] = (log p(x) - L[q*]) + (L[q*] - L[q]).

    Attributes:
        evidence: log p(x) by the rule of ``gae.evidence.estimate``, with the optimised density as first proposal.
        best: L[q*] of each family.
        encoder: L[q] of the model's engine; None if it has no density q(z|x).
        family: the family of the encoder's densities, whose q* defines the amortisation gap; None if that q* is not
            known, as for densities other than normal ones and flows of a ``FlowEncoder``.
    """

    evidence: Evidence
    best: dict[str, Bound]
    encoder: Bound | None
    family: str | None

    @staticmethod
    def join(parts: "Sequence[Gap]") -> "Gap":
        """Concatenates the gaps of several batches."""
        encoders = [part.encoder for part in parts if part.encoder is not None]
        best = {name: Bound.join([part.best[name] for part in parts]) for name in parts[0].best}
        return Gap(
            Evidence.join([part.evidence for part in parts]),
            best,
            Bound.join(encoders) if encoders else None,
            parts[0].family,
        )

    def approximation(self, family: str) -> Float[Tensor, " B"]:
        """Approximation gap of a family, log p(x) - L[q*]: the loss of its best member."""
        return self.evidence.log_p - self.best[family].value

    @property
    def amortisation(self) -> Float[Tensor, " B"] | None:
        """Amortisation gap L[q*] - L[q]: the loss of the encoder relative to the best member of its family."""
        if self.encoder is None or self.family is None:
            return None
        return self.best[self.family].value - self.encoder.value

    @property
    def suspicious(self) -> Bool[Tensor, " B"]:
        """Samples with a failed optimisation: L[q*] is below L[q] by more than 4 standard errors plus 1e-3 nats."""
        if self.encoder is None or self.family is None:
            return torch.zeros_like(self.evidence.log_p, dtype=torch.bool)
        best = self.best[self.family]
        slack = SLACK * (best.standard_error.square() + self.encoder.standard_error.square()).sqrt() + TOLERANCE
        return best.value + slack < self.encoder.value

    def columns(self) -> dict[str, Float[Tensor, " B"]]:
        """All quantities of each sample, in nats unless the name says otherwise."""
        columns = {"log p(x)": self.evidence.log_p, "sampling s.e. of log p(x)": self.evidence.standard_error}
        if self.evidence.ess is not None:
            columns["effective sample size"] = self.evidence.ess
            if self.evidence.pareto_k is not None:
                columns["Pareto k"] = self.evidence.pareto_k
            columns["unreliable weights"] = self.evidence.unreliable.to(self.evidence.log_p)
        if self.evidence.tight is not None:
            columns["tight log p(x)"] = self.evidence.tight.to(self.evidence.log_p)
        for name, bound in self.best.items():
            columns[f"L[q*], {name}"] = bound.value
            columns[f"sampling s.e. of L[q*], {name}"] = bound.standard_error
            if bound.status is not None:
                columns[f"converged, {name}"] = _converged(bound)
            columns[f"approximation gap, {name}"] = self.approximation(name)
        if self.encoder is not None:
            columns["L[q]"] = self.encoder.value
            columns["sampling s.e. of L[q]"] = self.encoder.standard_error
        if self.amortisation is not None:
            columns["amortisation gap"] = self.amortisation
            columns["q* below q"] = self.suspicious.to(self.evidence.log_p)
        if self.encoder is not None:
            columns["inference gap"] = self.evidence.log_p - self.encoder.value
        return columns

    def table(self) -> dict[str, Entry]:
        """The mean of each column over samples, and its standard error."""
        return {name: mean_and_error(values) for name, values in self.columns().items()}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws every bound below log p(x) for each sample, the largest loss of the encoder first."""
        ax = axes_for(ax)
        bounds = dict(self.best) if self.encoder is None else {**self.best, "encoder": self.encoder}
        losses = {name: (self.evidence.log_p - bound.value).cpu() for name, bound in bounds.items()}
        order = losses[next(reversed(losses))].argsort(descending=True)
        for i, (name, loss) in enumerate(losses.items()):
            label = "L[q] of the encoder" if name == "encoder" else f"L[q*], {name}"
            ax.plot(-loss[order], "o", color=LINES[i], ms=3, label=label)
        ax.axhline(0, color=INK, lw=1, label="log p(x)")
        whole_ticks(ax)
        ax.set(xlabel="samples, the largest gap first", ylabel="bound − log p(x) (nats)")
        legend(ax)
        return ax

    def _repr_html_(self) -> str:
        caption = f"Inference gap of {len(self.evidence.log_p)} samples: means over samples, in nats"
        nats = {
            name: entry for name, entry in self.table().items() if name.startswith(("log p", "L[")) or "gap" in name
        }
        rows = [(name, entry["mean"], "–" if entry["se"] is None else entry["se"]) for name, entry in nats.items()]
        return html_table(caption, rows, ("", "mean", "standard error"))


def _converged(bound: Bound) -> Float[Tensor, " B"]:
    """1 if the local optimisation converged, otherwise 0."""
    assert bound.status is not None
    return torch.eq(bound.status, Status.converged).to(bound.value)
