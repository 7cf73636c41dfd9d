"""Proximal ascent under a Laplace prior: codes with exact zeros."""

import torch
from jaxtyping import Float
from torch import Tensor

from gae.inference.problem import Problem, widened
from gae.inference.steps import State, Step, positive


class ProximalAscent(Step):
    """u ← soft(u + rate · ∇ log q_r(x|u), rate · λ): ISTA, or FISTA where ``accelerated`` (Beck & Teboulle 2009).

    λ is the rate of the likelihood's ``LaplacePrior``, whose kink is taken by soft thresholding instead of a gradient.
    It converges for rates of at most 1 / L, L the largest curvature of -log q_r(x|z). The accelerated rule evaluates
    at points beyond its iterates and returns the iterate; with tolerances the best evaluated point is returned, which
    need not have zeros, so leave them out there.

    Raises:
        TypeError: at the first step, for a likelihood with another prior.

    >>> ProximalAscent(0.1).accelerated
    False
    """

    def __init__(self, rate: float, accelerated: bool = False):
        super().__init__()
        self.rate, self.accelerated = positive("rate", rate), accelerated

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        return {"point": u, "weight": u.new_ones(u.shape[:2])} if self.accelerated else {}

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        penalty = _rate(problem).to(u)
        smooth = u + self.rate * (grad + penalty * u.sign())
        point = smooth.sign() * (smooth.abs() - self.rate * penalty).clamp_min(0)
        if not self.accelerated:
            return point, {}
        weight = 0.5 * (1 + (1 + 4 * state["weight"].square()).sqrt())
        ahead = widened((state["weight"] - 1) / weight, u)
        return point + ahead * (point - state["point"]), {"point": point, "weight": weight}

    def settled(self, u: Float[Tensor, "S B *U"], state: State) -> Float[Tensor, "S B *U"]:
        return state["point"] if self.accelerated else u


def _rate(problem: Problem) -> Tensor:
    base = getattr(problem.likelihood.prior, "base_dist", None)
    if not isinstance(base, torch.distributions.Laplace) or bool((base.loc != 0).any()):
        raise TypeError(
            "`ProximalAscent` needs a Laplace prior around 0, whose kink it thresholds. "
            "Build the likelihood with `prior=LaplacePrior(...)`, or use another step."
        )
    return 1 / base.scale
