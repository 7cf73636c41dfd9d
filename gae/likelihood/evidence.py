"""log p(x) of a model, exact or estimated, with the error of the estimate."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

HEAVY, DOMINATED = 0.7, 2.0  # shape and effective size of weights beyond which their mean's standard error is too small


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x) per sample, in nats, and what it cost.

    Attributes:
        log_p: the estimate.
        standard_error: of sampling, by the delta method for the logarithm of a mean; 0 where nothing is sampled,
            NaN where it is unknown. It means nothing where a few weights outweigh all others (``unreliable``): it is
            never much above 1 nat, and ``log_p`` may be off by far more.
        ess: effective sample size of the weights, (Σw)² / Σw²; None where nothing is weighted.
        pareto_k: the shape of a generalised Pareto law fitted to the largest weights (Vehtari et al. 2024): they have
            1 / k finite moments. NaN for fewer than 100 weights, and where the largest are equal.
        evaluations: decoder evaluations per sample, the mean over samples where they differ.
    """

    log_p: Float[Tensor, " B"]
    standard_error: Float[Tensor, " B"]
    ess: Float[Tensor, " B"] | None = None
    evaluations: int = 0
    pareto_k: Float[Tensor, " B"] | None = None

    @classmethod
    def exact(cls, log_p: Float[Tensor, " B"]) -> "Evidence":
        """log p(x) as it is known, without an error.

        >>> Evidence.exact(torch.tensor([-1.5])).standard_error
        tensor([0.])
        """
        return cls(log_p, torch.zeros_like(log_p))

    @classmethod
    def join(cls, parts: "Sequence[Evidence]") -> "Evidence":
        """The evidence of all samples from that of consecutive batches, by one method.

        >>> Evidence.join([Evidence.exact(torch.zeros(2)), Evidence.exact(torch.ones(1))]).log_p
        tensor([0., 0., 1.])
        """
        sizes = [part.ess for part in parts if part.ess is not None]
        shapes = [part.pareto_k for part in parts if part.pareto_k is not None]
        rows = sum(len(part.log_p) for part in parts)
        return cls(
            torch.cat([part.log_p for part in parts]),
            torch.cat([part.standard_error for part in parts]),
            torch.cat(sizes) if sizes else None,
            round(sum(part.evaluations * len(part.log_p) for part in parts) / max(rows, 1)),
            torch.cat(shapes) if shapes else None,
        )

    @property
    def unreliable(self) -> Bool[Tensor, " B"]:
        """Where the standard error means nothing: Pareto k > 0.7, or one weight above half of the sum."""
        if self.ess is None or self.pareto_k is None:
            return torch.zeros_like(self.log_p, dtype=torch.bool)
        return (self.pareto_k > HEAVY) | (self.ess < DOMINATED)
