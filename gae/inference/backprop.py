"""How gradients flow back through a solve: a choice apart from how the code is found."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Advance = Callable[[Any, int, bool], Any]


class Backprop(nn.Module, ABC):
    """Runs ``advance(iterate, t, create_graph)`` for T steps and decides what the result remembers."""

    @abstractmethod
    def forward(self, advance: Advance, start: Any, max_steps: int) -> Any:
        """The last iterate."""


class Unroll(Backprop):
    """Keeps every step in the graph: exact gradients of the T-step solve, second-order terms included.

    Graph memory grows with T. Without gradient mode (``torch.no_grad()``) no graph is built.
    """

    def forward(self, advance: Advance, start: Any, max_steps: int) -> Any:
        keep = torch.is_grad_enabled()
        for t in range(max_steps):
            start = advance(start, t, keep)
        return start


class Detach(Backprop):
    """Keeps nothing: the code is a constant to the outer loss.

    Exact for ``joint`` at a stationary point, by the envelope theorem.
    """

    def forward(self, advance: Advance, start: Any, max_steps: int) -> Any:
        start = start.detach()
        for t in range(max_steps):
            start = advance(start, t, False)
        return start
