"""Step rules of an ascent: batched over samples, with per-sample state, differentiable."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

State = dict[str, Tensor]


class Step(nn.Module, ABC):
    """One rule u_{t+1} = rule(u_t, ∇_t). It acts elementwise or per sample, never across the batch."""

    def start(self, u: Float[Tensor, "S B *U"]) -> State:
        """The state before the first step."""
        return {}

    @abstractmethod
    def forward(
        self, u: Float[Tensor, "S B *U"], grad: Float[Tensor, "S B *U"], state: State, t: int
    ) -> tuple[Tensor, State]:
        """The next point and state; ``grad`` is the gradient of each sample's own objective, t counts from 0."""


class GradientAscent(Step):
    """u + rate · ∇. For LLGAE with noise scale σ, the note's β is rate / σ² (ledger D16).

    >>> GradientAscent(0.1)(torch.zeros(1, 1, 2), torch.ones(1, 1, 2), {}, 0)[0]
    tensor([[[0.1000, 0.1000]]])
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = _positive("rate", rate)

    def forward(
        self, u: Float[Tensor, "S B *U"], grad: Float[Tensor, "S B *U"], state: State, t: int
    ) -> tuple[Tensor, State]:
        return u + self.rate * grad, state


class Momentum(Step):
    """Heavy ball: v ← momentum · v + ∇, u ← u + rate · v (Polyak 1964; torch.optim.SGD's convention).

    >>> Momentum(0.1).start(torch.zeros(1, 1, 2))["velocity"].shape
    torch.Size([1, 1, 2])
    """

    def __init__(self, rate: float, momentum: float = 0.9):
        super().__init__()
        self.rate = _positive("rate", rate)
        self.momentum = _fraction("momentum", momentum)

    def start(self, u: Float[Tensor, "S B *U"]) -> State:
        return {"velocity": torch.zeros_like(u)}

    def forward(
        self, u: Float[Tensor, "S B *U"], grad: Float[Tensor, "S B *U"], state: State, t: int
    ) -> tuple[Tensor, State]:
        velocity = self.momentum * state["velocity"] + grad
        return u + self.rate * velocity, {"velocity": velocity}


class Adam(Step):
    """Adam (Kingma & Ba 2015), per element. ε stands inside the root, whose derivative is then finite at v = 0.

    >>> sorted(Adam().start(torch.zeros(1, 1, 2)))
    ['first', 'second']
    """

    def __init__(self, rate: float = 0.05, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__()
        self.rate = _positive("rate", rate)
        self.betas = tuple(_fraction("betas", beta) for beta in betas)
        self.eps = _positive("eps", eps)

    def start(self, u: Float[Tensor, "S B *U"]) -> State:
        return {"first": torch.zeros_like(u), "second": torch.zeros_like(u)}

    def forward(
        self, u: Float[Tensor, "S B *U"], grad: Float[Tensor, "S B *U"], state: State, t: int
    ) -> tuple[Tensor, State]:
        a, b = self.betas
        first = a * state["first"] + (1 - a) * grad
        second = b * state["second"] + (1 - b) * grad.square()
        root = (second / (1 - b ** (t + 1)) + self.eps**2).sqrt()
        return u + self.rate / (1 - a ** (t + 1)) * first / root, {"first": first, "second": second}


def _positive(name: str, value: Any) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")
    return float(value)


def _fraction(name: str, value: Any) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}.")
    return float(value)
