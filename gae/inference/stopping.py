"""When an ascent that would overfit has done, judged without ground truth by what the decoder puts out."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gae.inference.problem import widened
from gae.inference.steps import State


class Verdict(NamedTuple):
    """What a stopping rule says of each row after one more signal."""

    state: State
    better: Bool[Tensor, "S B"]  # this point stands for the solve, until a better one comes
    done: Bool[Tensor, "S B"]


class Stopping(nn.Module, ABC):
    """A rule (signal, state) -> verdict, per row: it never mixes rows. Every state tensor is (S, B, ...).

    ``average`` is the entry of the state that a caller sees: the best picture of the signal so far.
    """

    @abstractmethod
    def start(self, signal: Float[Tensor, "S B *X"]) -> State:
        """The state before the first signal, of which only shape, dtype and device count."""

    @abstractmethod
    def forward(self, signal: Float[Tensor, "S B *X"], state: State, t: int) -> Verdict:
        """The verdict after the signal of step t, from 0; the state may be updated in place."""


class RunningVariance(Stopping):
    """Stops where the outputs of successive steps vary least (Wang et al. 2023, arXiv 2112.06074: ES-WMV).

    While a network learns the image its outputs settle; when it begins to fit the noise they vary more again. The
    variance of the outputs of the last ``window`` steps, averaged over pixels, is followed to its lowest value, and a
    row is done when that is ``patience`` steps old.

    The signal reported, ``Solve.signal``, is a running average of the outputs, which trails them by 1 / (1 - decay)
    steps. So it is taken that many steps after the lowest variance; the code returned is of the same step.

    Args:
        window: steps over whose outputs the variance is taken.
        every: of these, one in so many is kept in memory and counts.
        patience: steps without a new lowest variance that end a row; at least the lag of the average.
        decay: of the average.

    >>> RunningVariance().lag
    100
    """

    def __init__(self, window: int = 200, every: int = 4, patience: int = 500, decay: float = 0.99):
        super().__init__()
        if not 1 <= every <= window // 2 or not 0 <= decay < 1:
            raise ValueError(f"Need 1 <= every <= window / 2 and 0 <= decay < 1, got {every=}, {window=}, {decay=}.")
        self.window, self.every, self.patience, self.decay = window, every, patience, decay
        self.lag = round(1 / (1 - decay))
        if patience < self.lag:
            raise ValueError(f"patience must be at least the lag of the average, {self.lag} steps, got {patience}.")

    def start(self, signal: Float[Tensor, "S B *X"]) -> State:
        rows = signal.shape[:2]
        low = torch.full(rows, torch.inf, dtype=signal.dtype, device=signal.device)
        return {
            "recent": signal.new_zeros(*rows, self.window // self.every, *signal.shape[2:]),
            "average": torch.zeros_like(signal),
            "signal": torch.zeros_like(signal),
            "lowest": low,
            "since": torch.zeros(rows, dtype=torch.long, device=signal.device),
        }

    def forward(self, signal: Float[Tensor, "S B *X"], state: State, t: int) -> Verdict:
        average = signal if t == 0 else torch.lerp(signal, state["average"], self.decay)
        recent, lowest, since = state["recent"], state["lowest"], state["since"] + 1
        if t % self.every == 0:
            recent[:, :, t // self.every % recent.shape[2]] = signal
            if t // self.every + 1 >= recent.shape[2]:
                variance = recent.var(2, unbiased=False).flatten(2).mean(2)
                since = torch.where(variance < lowest, 0, since)
                lowest = torch.minimum(variance, lowest)
        since = torch.where(torch.isfinite(lowest), since, 0)
        better = since <= self.lag
        after = {
            "recent": recent,
            "average": average,
            "signal": torch.where(widened(better, signal), average, state["signal"]),
            "lowest": lowest,
            "since": since,
        }
        return Verdict(after, better, since >= self.patience)
