"""Hamiltonian Monte Carlo: trajectories by the leapfrog rule, each accepted or rejected as a whole."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gae.data.checks import at_least_one, positive
from gae.inference.ascent.problem import Problem, expand_rows, row_dot
from gae.inference.ascent.steps.first_order import State, Step
from gae.inference.ascent.steps.trials import accept, no_trial

SHRINKAGE, DELAY, FORGETTING = 0.05, 10.0, 0.75  # γ, t0 and κ of dual averaging, as in the paper


def leapfrog(
    z: Tensor, momentum: Tensor, grad: Tensor, size: Tensor | float, steps: int, force: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The end of a trajectory of ``steps`` moves, and the momentum there before its last half kick (Neal 2011).

    ``grad`` is the force at z. The caller evaluates the force at the end, and adds ½ size · force to the momentum.

    >>> end, kick = leapfrog(torch.ones(1), torch.zeros(1), -torch.ones(1), 0.5, 1, lambda z: -z)  # an oscillator
    >>> end, kick - 0.25 * end
    (tensor([0.8750]), tensor([-0.4688]))
    """
    kick = momentum + 0.5 * size * grad
    for i in range(steps):
        z = z + size * kick
        if i + 1 < steps:
            kick = kick + size * force(z)
    return z, kick


class HMC(Step):
    """Hamiltonian Monte Carlo with a Metropolis test, which leaves the posterior invariant (Neal 2011).

    One step is one trajectory of ``leapfrog`` moves. Its end is tested at the next step, so T steps make T - 1
    transitions. Do not set tolerances, with which the best point is returned instead of a sample.

    ``Solve.acceptance`` is the mean acceptance probability of each chain's transitions after those that adapt; NaN
    without any.

    Args:
        rate: the mean size of a leapfrog move, in units of the code; each trajectory has its own, within ± 50 %, so
            that none is periodic.
        leapfrog: moves of each trajectory.
        adapt: number of first transitions that adapt the mean size of each chain to the acceptance probability
            ``target``, by dual averaging from ``rate`` (Hoffman & Gelman 2014, section 3.2). They are warm-up: only
            later ones, whose mean size is fixed, leave the posterior invariant.
        target: mean acceptance probability that ``adapt`` aims at.

    >>> HMC(0.1, leapfrog=5).evaluations
    5
    """

    is_trial = True
    is_monotone = False
    is_sampler = True
    codes_only = True

    def __init__(self, rate: float, leapfrog: int = 10, adapt: int = 0, target: float = 0.8):
        super().__init__()
        at_least_one("leapfrog", leapfrog)
        if adapt < 0 or not 0 < target < 1:
            raise ValueError(f"Need adapt >= 0 and 0 < target < 1, got {adapt} and {target}.")
        self.rate, self.leapfrog, self.adapt, self.target = positive("rate", rate), leapfrog, adapt, target
        self.evaluations = leapfrog

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        row = u.new_zeros(u.shape[:2])
        state = no_trial(u) | {"kick": torch.zeros_like(u), "kinetic": row, "size": row, "chance": row}
        state |= {"tested": row, "accepted": row}
        return state | ({"log_rate": row + math.log(self.rate), "shortfall": row} if self.adapt else {})

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        kick = state["kick"] + 0.5 * expand_rows(state["size"], u) * grad
        ratio = value - state["value"] + state["kinetic"] - 0.5 * row_dot(kick, kick)
        kept = accept((ratio >= state["chance"]) & torch.isfinite(value), u, value, grad, state)
        chance = torch.where(torch.isfinite(value), ratio.clamp_max(0).exp(), 0.0).detach()
        rate, record = self._tested(state, chance, t)
        momentum, size = torch.randn_like(u), rate * (0.5 + torch.rand_like(value))
        moved, kick = leapfrog(
            *(kept["point"], momentum, kept["grad"], expand_rows(size, u), self.leapfrog),
            lambda z: problem.evaluate(z, torch.is_grad_enabled()).grad,
        )
        kinetic, chance = 0.5 * row_dot(momentum, momentum), torch.rand_like(value).log()
        return moved, kept | record | {"kick": kick, "kinetic": kinetic, "size": size, "chance": chance}

    def _tested(self, state: State, chance: Float[Tensor, "S B"], t: int) -> tuple[Tensor | float, State]:
        """The mean size of the next move, and the record of t transitions, the last accepted with this chance."""
        record = {name: state[name] for name in ("tested", "accepted")}
        if t > self.adapt:
            record = {"tested": state["tested"] + 1, "accepted": state["accepted"] + chance}
        if not self.adapt:
            return self.rate, record
        average, shortfall = state["log_rate"], state["shortfall"]
        if not 0 < t <= self.adapt:
            return average.exp(), record | {"log_rate": average, "shortfall": shortfall}
        shortfall = shortfall + (self.target - chance - shortfall) / (t + DELAY)
        log_rate = math.log(10 * self.rate) - math.sqrt(t) / SHRINKAGE * shortfall
        average = torch.lerp(average, log_rate, t**-FORGETTING)
        rate = average if t == self.adapt else log_rate
        return rate.exp(), record | {"log_rate": average, "shortfall": shortfall}

    def acceptance(self, state: State) -> Float[Tensor, "S B"]:
        return state["accepted"] / state["tested"]

    def final_point(self, u: Float[Tensor, "S B *U"], state: State) -> Float[Tensor, "S B *U"]:
        return state["point"]
