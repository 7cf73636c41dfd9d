"""Proximal ascent under a Laplace prior: codes with exact zeros."""

import torch
from jaxtyping import Float
from torch import Tensor

from gae.data.checks import positive
from gae.inference.ascent.problem import Problem, choose_rows, expand_rows, rounding, row_dot, row_norm
from gae.inference.ascent.steps.first_order import State, Step

MARGIN = 1.1  # factor on a measured curvature
WILD = 10.0  # factor on the last curvature, towards a point where the density is not finite


class ProximalAscent(Step):
    """ISTA, u ← soft(u + rate · ∇ log q_r(x|u), rate · λ), or FISTA if ``accelerated`` (Beck & Teboulle 2009).

    λ is the rate of the likelihood's ``LaplacePrior``, whose kink is handled by soft thresholding instead of a
    gradient. A given rate converges if it is at most 1 / L, L the largest curvature of -log q_r(x|z). Without one, each
    sample adapts its rate: it starts at 1 / (curvature along the first gradient), and if -log q_r(x|z) exceeds the
    parabola that a move relies on, the move is rejected and the rate lowered to 1 / (1.1 · measured curvature). This is
    the authors' backtracking with measured instead of constant factors: rates never rise and end at 1 / (1.1 L) or
    above, and for a convex -log q_r(x|z), as with a linear decoder, ISTA and FISTA converge from any start. A rejected
    move counts as one of the T steps, as does the first, which only measures.

    The accelerated rule evaluates at points beyond its iterates and returns the iterate. Do not combine it with
    tolerances, which return the best evaluated point: that need not have zeros.

    Args:
        rate: step size of all samples; None to adapt it for each. Gradients through a solve treat an adapted rate as
            a constant.
        accelerated: whether to use FISTA.

    Raises:
        TypeError: at the first step, for a likelihood with another prior; by ``Ascent``, for a density over codes.

    >>> ProximalAscent(0.1).accelerated
    False
    """

    codes_only = True

    def __init__(self, rate: float | None = None, accelerated: bool = False):
        super().__init__()
        self.rate = None if rate is None else positive("rate", rate)
        self.accelerated = accelerated
        self.evaluations = 1 if self.rate is not None else 2  # the second one tests the move

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        state = {"curvature": u.new_zeros(u.shape[:2])} if self.rate is None else {}
        return state | ({"point": u, "weight": u.new_ones(u.shape[:2])} if self.accelerated else {})

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
        smooth = grad + penalty * u.sign()
        if self.rate is not None:
            point = _soft_threshold(u + self.rate * smooth, self.rate * penalty)
            return self._extrapolate(point, state, {}) if self.accelerated else (point, {})
        if t == 0:
            unit = smooth.detach() / expand_rows(row_norm(smooth).clamp_min(torch.finfo(u.dtype).tiny), u)
            curvature = _curvature(problem, penalty, u, value, smooth, u + unit)
            measured = (curvature > 0) & curvature.isfinite()
            return u, state | {"curvature": torch.where(measured, curvature, row_norm(smooth))}
        rate = expand_rows(1 / state["curvature"].clamp_min(torch.finfo(u.dtype).tiny), u)
        point = _soft_threshold(u + rate * smooth, rate * penalty)
        observed = _curvature(problem, penalty, u, value, smooth, point)
        observed = torch.where(observed.isfinite(), observed, WILD * state["curvature"])
        kept = observed <= state["curvature"]
        update = {"curvature": torch.where(kept, state["curvature"], MARGIN * observed)}
        moved, after = self._extrapolate(point, state, update) if self.accelerated else (point, update)
        before = state | update
        return torch.where(expand_rows(kept, u), moved, u), choose_rows(kept, after, before)

    def _extrapolate(self, point: Tensor, state: State, update: State) -> tuple[Tensor, State]:
        """The next point that FISTA evaluates, and its state."""
        weight = 0.5 * (1 + (1 + 4 * state["weight"].square()).sqrt())
        share = expand_rows((state["weight"] - 1) / weight, point)
        return point + share * (point - state["point"]), update | {"point": point, "weight": weight}

    def final_point(self, u: Float[Tensor, "S B *U"], state: State) -> Float[Tensor, "S B *U"]:
        return state["point"] if self.accelerated else u


def _soft_threshold(u: Tensor, threshold: Tensor | float) -> Tensor:
    """Soft thresholding: the proximal map of threshold · |u|."""
    return u.sign() * (u.abs() - threshold).clamp_min(0)


@torch.no_grad()
def _curvature(
    problem: Problem, penalty: Tensor, u: Tensor, value: Tensor, smooth: Tensor, point: Tensor
) -> Float[Tensor, "S B"]:
    """The curvature of the parabola that touches -log q_r(x|·) at u and meets it at another point, less rounding."""
    move = point - u
    there = problem(point)
    excess = _likelihood(value, penalty, u) - _likelihood(there, penalty, point) + row_dot(smooth, move)
    slack = rounding(value) + rounding(there)
    return 2 * (excess - slack) / row_dot(move, move).clamp_min(torch.finfo(u.dtype).tiny)


def _likelihood(value: Tensor, penalty: Tensor, u: Tensor) -> Tensor:
    """log q_r(x|u) up to a constant, from the log joint density."""
    return value + (penalty * u.abs()).flatten(2).sum(2)


def _rate(problem: Problem) -> Tensor:
    prior = problem.likelihood.prior
    base = prior.base_dist if isinstance(prior, torch.distributions.Independent) else None
    if not isinstance(base, torch.distributions.Laplace) or bool((base.loc != 0).any()):
        raise TypeError(
            "`ProximalAscent` needs a Laplace prior around 0, for its soft thresholding. "
            "Build the likelihood with `prior=LaplacePrior(...)`, or use another step."
        )
    return 1 / base.scale
