"""Early stopping from decoder outputs, without ground truth."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gae.data.checks import fraction
from gae.inference.ascent.problem import expand_rows
from gae.inference.ascent.steps.first_order import State
from gae.storage import Part


class StoppingDecision(NamedTuple):
    """A stopping rule's decision for each row after one more decoder output."""

    state: State
    better: Bool[Tensor, "S B"]  # this point is the best one so far
    done: Bool[Tensor, "S B"]


class Stopping(Part, nn.Module, ABC):
    """Early stopping from decoder outputs, without ground truth: (reconstruction, state) -> decision, for each row.

    Rows never mix, and every state tensor is (S, B, ...). Callers read two entries of the state: ``reconstruction``,
    the best estimate so far, and ``average``, the current one.
    """

    @abstractmethod
    def start(self, reconstruction: Float[Tensor, "S B *X"]) -> State:
        """The state before the first output, which gives only shape, dtype and device."""

    @abstractmethod
    def forward(self, reconstruction: Float[Tensor, "S B *X"], state: State, t: int) -> StoppingDecision:
        """The decision after the output of step t, from 0; the state may be updated in place."""


class ESWMV(Stopping):
    """Stops where successive outputs vary least (Wang et al. 2023, arXiv 2112.06074: ES-WMV).

    The outputs of a network settle while it learns the image, and vary more again when it begins to fit the noise. A
    row is done when the variance of the outputs of the last ``window`` steps, averaged over pixels, has had no new
    minimum for ``patience`` steps.

    The solve returns the code and a running average of the outputs (``Solve.reconstruction``), both ``delay`` · t steps
    after the minimum at step t: the average lags the outputs, and the variance rises before the error does. Window and
    delay were chosen on four photographs, none of which ``experiments.dip`` reports.

    Args:
        window: number of steps over whose outputs the variance is taken.
        every: only every n-th of these outputs is kept in memory and used.
        patience: number of steps without a new minimum of the variance after which a row is done.
        delay: as a fraction of the steps up to the minimum.
        decay: decay rate of the running average.

    >>> ESWMV(patience=300).patience
    300
    """

    def __init__(
        self, window: int = 200, every: int = 4, patience: int = 500, delay: float = 0.25, decay: float = 0.99
    ):
        super().__init__()
        if not 1 <= every <= window // 2 or patience < 1:
            raise ValueError(f"Need 1 <= every <= window / 2 and patience >= 1, got {every=}, {window=}, {patience=}.")
        if not delay >= 0:
            raise ValueError(f"delay must not be negative, got {delay}.")
        self.window, self.every, self.patience, self.delay = window, every, patience, delay
        self.decay = fraction("decay", decay)

    def start(self, reconstruction: Float[Tensor, "S B *X"]) -> State:
        rows = reconstruction.shape[:2]
        return {
            "recent": reconstruction.new_zeros(*rows, self.window // self.every, *reconstruction.shape[2:]),
            "average": torch.zeros_like(reconstruction),
            "reconstruction": torch.zeros_like(reconstruction),
            "lowest": torch.full(rows, torch.inf, dtype=reconstruction.dtype, device=reconstruction.device),
            "lowest_step": torch.zeros(rows, dtype=torch.long, device=reconstruction.device),
        }

    def forward(self, reconstruction: Float[Tensor, "S B *X"], state: State, t: int) -> StoppingDecision:
        average = reconstruction if t == 0 else torch.lerp(reconstruction, state["average"], self.decay)
        recent, lowest, lowest_step = state["recent"], state["lowest"], state["lowest_step"]
        kept, extra = divmod(t, self.every)
        if not extra:
            recent[:, :, kept % recent.shape[2]] = reconstruction
            if kept + 1 >= recent.shape[2]:
                variance = recent.var(2, unbiased=False).reshape(*lowest.shape, -1).mean(2)
                lowest_step = torch.where(variance < lowest, t, lowest_step)
                lowest = torch.minimum(variance, lowest)
        lowest_step = torch.where(torch.isfinite(lowest), lowest_step, t)
        better = t - lowest_step <= self.delay * lowest_step
        reconstruction = torch.where(expand_rows(better, reconstruction), average, state["reconstruction"])
        after = {
            "recent": recent,
            "average": average,
            "reconstruction": reconstruction,
            "lowest": lowest,
            "lowest_step": lowest_step,
        }
        return StoppingDecision(after, better, t - lowest_step >= self.patience)
