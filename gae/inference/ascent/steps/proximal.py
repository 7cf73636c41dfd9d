"""Proximal ascent under a Laplace prior: codes with exact zeros."""

import torch
from jaxtyping import Float
from torch import Tensor

from gae.inference.ascent.problem import Problem, expand_rows, rounding
from gae.inference.ascent.steps.first_order import State, Step, positive

MARGIN = 1.1  # by which a curvature that was met is exceeded
WILD = 10.0  # times the last one: the curvature towards a point where the density is not finite


class ProximalAscent(Step):
    """u ← soft(u + rate · ∇ log q_r(x|u), rate · λ): ISTA, or FISTA where ``accelerated`` (Beck & Teboulle 2009).

    λ is the rate of the likelihood's ``LaplacePrior``, whose kink is taken by soft thresholding instead of a gradient.
    A given rate converges if it is at most 1 / L, L the largest curvature of -log q_r(x|z). Without one, each sample
    finds its own: it begins with 1 / the curvature along the first gradient, and wherever -log q_r(x|z) rises above the
    parabola that a move relies on, the move is taken back and the rate lowered to 1 / (1.1 times the curvature met).
    This is their rule with backtracking, with measured in place of constant factors: rates never rise, end at
    1 / (1.1 L) or above, and for a convex -log q_r(x|z), as that of a linear decoder is, ISTA and FISTA converge from
    any start. A move taken back is one of the T steps, as is the first, which only measures.

    The accelerated rule evaluates at points beyond its iterates and returns the iterate; with tolerances the best
    evaluated point is returned, which need not have zeros, so leave them out there.

    Args:
        rate: of all samples; None for one that each finds. Gradients through a solve take a rate that was found as
            constant.
        accelerated: FISTA.

    Raises:
        TypeError: at the first step, for a likelihood with another prior; by ``Ascent``, with a family over codes.

    >>> ProximalAscent(0.1).accelerated
    False
    """

    codes_only = True

    def __init__(self, rate: float | None = None, accelerated: bool = False):
        super().__init__()
        self.rate = None if rate is None else positive("rate", rate)
        self.accelerated = accelerated
        self.evaluations = 1 if self.rate is not None else 2  # the second one judges the move

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
            point = _shrunk(u + self.rate * smooth, self.rate * penalty)
            return self._ahead(point, state, {}) if self.accelerated else (point, {})
        if t == 0:
            unit = smooth.detach() / expand_rows(_norm(smooth).clamp_min(torch.finfo(u.dtype).tiny), u)
            curvature = _curvature(problem, penalty, u, value, smooth, u + unit)
            measured = (curvature > 0) & curvature.isfinite()
            return u, state | {"curvature": torch.where(measured, curvature, _norm(smooth))}
        rate = expand_rows(1 / state["curvature"].clamp_min(torch.finfo(u.dtype).tiny), u)
        point = _shrunk(u + rate * smooth, rate * penalty)
        met = _curvature(problem, penalty, u, value, smooth, point)
        met = torch.where(met.isfinite(), met, WILD * state["curvature"])
        kept = met <= state["curvature"]
        found = {"curvature": torch.where(kept, state["curvature"], MARGIN * met)}
        moved, after = self._ahead(point, state, found) if self.accelerated else (point, found)
        before = state | found
        return torch.where(expand_rows(kept, u), moved, u), {
            name: torch.where(expand_rows(kept, new), new, before[name]) for name, new in after.items()
        }

    def _ahead(self, point: Tensor, state: State, found: State) -> tuple[Tensor, State]:
        """Where FISTA evaluates next, and what it remembers."""
        weight = 0.5 * (1 + (1 + 4 * state["weight"].square()).sqrt())
        share = expand_rows((state["weight"] - 1) / weight, point)
        return point + share * (point - state["point"]), found | {"point": point, "weight": weight}

    def final_point(self, u: Float[Tensor, "S B *U"], state: State) -> Float[Tensor, "S B *U"]:
        return state["point"] if self.accelerated else u


def _shrunk(u: Tensor, threshold: Tensor | float) -> Tensor:
    """Soft thresholding: the proximal map of threshold · |u|."""
    return u.sign() * (u.abs() - threshold).clamp_min(0)


@torch.no_grad()
def _curvature(
    problem: Problem, penalty: Tensor, u: Tensor, value: Tensor, smooth: Tensor, point: Tensor
) -> Float[Tensor, "S B"]:
    """The curvature of the parabola that touches -log q_r(x|·) at u and meets it at another point, less rounding."""
    move = point - u
    there = problem(point)
    risen = _likelihood(value, penalty, u) - _likelihood(there, penalty, point) + (smooth * move).flatten(2).sum(2)
    slack = rounding(value) + rounding(there)
    square = move.flatten(2).square().sum(2)
    return 2 * (risen - slack) / square.clamp_min(torch.finfo(u.dtype).tiny)


def _likelihood(value: Tensor, penalty: Tensor, u: Tensor) -> Tensor:
    """log q_r(x|u) but for a constant, from the log joint density."""
    return value + (penalty * u.abs()).flatten(2).sum(2)


def _norm(grad: Tensor) -> Tensor:
    return torch.linalg.vector_norm(grad.detach().flatten(2), dim=2)


def _rate(problem: Problem) -> Tensor:
    prior = problem.likelihood.prior
    base = prior.base_dist if isinstance(prior, torch.distributions.Independent) else None
    if not isinstance(base, torch.distributions.Laplace) or bool((base.loc != 0).any()):
        raise TypeError(
            "`ProximalAscent` needs a Laplace prior around 0, whose kink it thresholds. "
            "Build the likelihood with `prior=LaplacePrior(...)`, or use another step."
        )
    return 1 / base.scale
