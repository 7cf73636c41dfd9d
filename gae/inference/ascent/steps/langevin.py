"""Langevin dynamics: an ascent with noise, whose stationary distribution is the posterior."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gae.data.checks import positive
from gae.inference.ascent.problem import Problem, row_dot
from gae.inference.ascent.steps.first_order import State, Step
from gae.inference.ascent.steps.trials import accept, no_trial


class Langevin(Step):
    """Langevin dynamics, u + rate ∇ + √(2 rate) ε, unadjusted or with a Metropolis test (Roberts & Tweedie 1996).

    The noise of step t is drawn before step t and kept in the state, so that a replayed step uses the same noise.
    With ``adjusted``, u is a proposal that the next step accepts or rejects. Do not set tolerances, with which the best
    point is returned instead of a sample.

    >>> Langevin(1e-2, adjusted=True).rate
    0.01
    """

    is_monotone = False
    is_sampler = True

    def __init__(self, rate: float, adjusted: bool = False):
        super().__init__()
        self.rate, self.adjusted = positive("rate", rate), adjusted
        self.is_trial = adjusted

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        state = {"noise": torch.randn_like(u)}
        if self.adjusted:
            state |= no_trial(u) | {"chance": u.new_zeros(u.shape[:2])}
        return state

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        following = {"noise": torch.randn_like(u)}
        if self.adjusted:
            ratio = value - state["value"] + self._log_proposals(u, grad, state)
            accepted = accept((ratio >= state["chance"]) & torch.isfinite(value), u, value, grad, state)
            u, grad = accepted["point"], accepted["grad"]
            following |= accepted | {"chance": torch.rand_like(value).log()}
        return u + self.rate * grad + math.sqrt(2 * self.rate) * state["noise"], following

    def final_point(self, u: Float[Tensor, "S B *U"], state: State) -> Float[Tensor, "S B *U"]:
        return state["point"] if self.adjusted else u

    def _log_proposals(self, u: Tensor, grad: Tensor, state: State) -> Tensor:
        """log of the proposal density of the reverse move over that of the move to u, (S, B)."""
        forth = u - state["point"] - self.rate * state["grad"]
        back = state["point"] - u - self.rate * grad
        return (row_dot(forth, forth) - row_dot(back, back)) / (4 * self.rate)
