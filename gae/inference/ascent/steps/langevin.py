"""Langevin dynamics: an ascent with noise, whose stationary law is the posterior."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gae.inference.ascent.problem import Problem, expand_rows
from gae.inference.ascent.steps.first_order import State, Step, positive


class Langevin(Step):
    """u + rate ∇ + √(2 rate) ε: the unadjusted algorithm, or with a Metropolis test (Roberts & Tweedie 1996).

    The noise of step t is drawn before step t and kept in the state, so that a replayed step meets the same noise.
    With ``adjusted``, u is a proposal that the next step takes or leaves; with tolerances the best point is returned,
    which is no sample, so leave them out.

    >>> Langevin(1e-2, adjusted=True).rate
    0.01
    """

    is_monotone = False

    def __init__(self, rate: float, adjusted: bool = False):
        super().__init__()
        self.rate, self.adjusted = positive("rate", rate), adjusted
        self.is_trial = adjusted

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        state = {"noise": torch.randn_like(u)}
        if self.adjusted:
            row = u.new_zeros(u.shape[:2])
            state |= {"point": u, "value": row - torch.inf, "grad": torch.zeros_like(u), "chance": row}
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
            u, value, grad = self._accepted(u, value, grad, state)
            following |= {"point": u, "value": value, "grad": grad, "chance": torch.rand_like(value).log()}
        return u + self.rate * grad + math.sqrt(2 * self.rate) * state["noise"], following

    def final_point(self, u: Float[Tensor, "S B *U"], state: State) -> Float[Tensor, "S B *U"]:
        return state["point"] if self.adjusted else u

    def _accepted(self, u: Tensor, value: Tensor, grad: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        forth = (u - state["point"] - self.rate * state["grad"]).square().flatten(2).sum(2)
        back = (state["point"] - u - self.rate * grad).square().flatten(2).sum(2)
        ratio = value - state["value"] + (forth - back) / (4 * self.rate)
        taken = (ratio >= state["chance"]) & torch.isfinite(value)
        wide = expand_rows(taken, u)
        return (
            torch.where(wide, u, state["point"]),
            torch.where(taken, value, state["value"]),
            torch.where(wide, grad, state["grad"]),
        )
