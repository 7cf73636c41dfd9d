"""The interface of step rules, and first-order rules: batched over rows, with per-row state, differentiable."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gae.data.checks import at_least_one, fraction, positive
from gae.inference.ascent.problem import Problem
from gae.storage import Part

State = dict[str, Tensor]


class Step(Part, nn.Module, ABC):
    """Base class of step rules (u_t, value, gradient, state) -> (u_{t+1}, state), which never mix rows.

    Every state tensor is (S, B, ...).
    """

    is_trial: bool = False  # its points are trials that it may reject, non-finite ones included
    returns_best: bool = False  # its solve returns the best point
    codes_only: bool = False  # it moves codes, not the parameters of a density
    is_sampler: bool = False  # its points are draws of the posterior, rather than modes
    is_monotone: bool = True  # it ascends, so an end below the start means that it diverged
    draws_noise: bool = False  # it sees the objective of a density under new noise at each step (``observed``)
    evaluations: int = 1  # decoder evaluations per step, in units of one objective value

    def project_start(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B *U"]:
        """Projects the initial point onto the points that the rule allows."""
        return u

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        """The state before the first step."""
        return {}

    def overhead(self, problem: Problem) -> int:
        """Decoder evaluations per row before the first step."""
        return 0

    def observed(self, problem: Problem, state: State) -> Problem:
        """The problem whose value and gradient the rule sees at its next step."""
        return problem

    @abstractmethod
    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        """The next point and state, from the value and gradient of each row's objective at u; t counts from 0."""

    def final_point(self, u: Float[Tensor, "S B *U"], state: State) -> Float[Tensor, "S B *U"]:
        """The solution of a solve that ended at u."""
        return u

    def acceptance(self, state: State) -> Float[Tensor, "S B"] | None:
        """The mean acceptance probability of the transitions of a chain; None for other rules."""
        return None

    def correct(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> Float[Tensor, "S B *U"]:
        """One step at a solution, to be differentiated; the state is a constant."""
        return self(problem, u, value, grad, state, t)[0]


class GradientAscent(Step):
    """Gradient ascent, u + rate · ∇. For LLGAE with noise scale σ, the note's β is rate / σ² (ledger D16).

    Args:
        rate: the step size; its initial value if it is learned.
        learn: whether log rate is a parameter, trained with the model through ``Unroll`` or ``CheckpointedUnroll``.
        steps: a learned rate for each of the first ``steps`` steps (the last one is used from there on).
        shape: a learned rate for each element of a point of this shape.

    >>> GradientAscent(0.1, learn=True, steps=3, shape=(2,)).log_rate.shape
    torch.Size([3, 2])
    """

    def __init__(self, rate: float, learn: bool = False, steps: int = 1, shape: Sequence[int] = ()):
        super().__init__()
        at_least_one("steps", steps)
        if not learn and (steps > 1 or len(shape)):
            raise ValueError(
                "`steps` and `shape` are for learned rates, got learn=False. Use `learn=True`, or leave them out."
            )
        self.rate = positive("rate", rate)
        self.log_rate = nn.Parameter(torch.full((steps, *shape), self.rate).log()) if learn else None

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        rate = self.rate if self.log_rate is None else self.log_rate[min(t, len(self.log_rate) - 1)].exp().to(u)
        return u + rate * grad, state


class Momentum(Step):
    """Heavy ball: v ← momentum · v + ∇, u ← u + rate · v (Polyak 1964; torch.optim.SGD's convention).

    >>> Momentum(0.1).momentum
    0.9
    """

    def __init__(self, rate: float, momentum: float = 0.9):
        super().__init__()
        self.rate = positive("rate", rate)
        self.momentum = fraction("momentum", momentum)

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        return {"velocity": torch.zeros_like(u)}

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        velocity = self.momentum * state["velocity"] + grad
        return u + self.rate * velocity, {"velocity": velocity}


class DeltaBarDelta(Step):
    """Momentum with a gain for each element: v ← momentum · v + rate · gain · ∇, u ← u + v (Jacobs 1988).

    A gain, 1 at first, grows by 0.2 where the gradient still points along v and shrinks by a fifth where it does not,
    down to 0.01: the rule of t-SNE (van der Maaten & Hinton 2008).

    >>> DeltaBarDelta(50.0).momentum
    0.8
    """

    def __init__(self, rate: float, momentum: float = 0.8):
        super().__init__()
        self.rate = positive("rate", rate)
        self.momentum = fraction("momentum", momentum)

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        return {"velocity": torch.zeros_like(u), "gain": torch.ones_like(u)}

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        gain = state["gain"]
        gain = torch.where(state["velocity"] * grad > 0, gain + 0.2, 0.8 * gain).clamp_min(0.01)
        velocity = self.momentum * state["velocity"] + self.rate * gain * grad
        return u + velocity, {"velocity": velocity, "gain": gain}


class Adam(Step):
    """Adam (Kingma & Ba 2015), per element. ε² is added under the root, whose derivative is then finite at v = 0.

    >>> Adam(0.1).betas
    (0.9, 0.999)
    """

    def __init__(self, rate: float = 0.05, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__()
        self.rate = positive("rate", rate)
        self.betas = (fraction("betas", betas[0]), fraction("betas", betas[1]))
        self.eps = positive("eps", eps)

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        return {"first": torch.zeros_like(u), "second": torch.zeros_like(u)}

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        a, b = self.betas
        first = torch.lerp(grad, state["first"], a)
        second = (b * state["second"]).addcmul_(grad, grad, value=1 - b)
        root = (second / (1 - b ** (t + 1))).add_(self.eps**2).sqrt_()
        moved = torch.addcdiv(u, first, root, value=self.rate / (1 - a ** (t + 1)))
        return moved, {"first": first, "second": second}
