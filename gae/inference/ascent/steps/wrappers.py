"""Wrappers of step rules: clipped gradients, schedules, masks, and constraints by projection."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gae.data.checks import positive
from gae.inference.ascent.problem import Problem, expand_rows
from gae.inference.ascent.steps.first_order import State, Step
from gae.storage import Part

Projection = Callable[[Tensor], Tensor]


class _Wrapper(Step):
    def __init__(self, step: Step):
        super().__init__()
        if step.is_trial:
            raise TypeError(
                f"`{type(self).__name__}` changes the points that `{type(step).__name__}` tests. "
                "Use it with `GradientAscent`, `Momentum`, `Adam` or unadjusted `Langevin`."
            )
        self.step = step
        self.is_monotone, self.codes_only = step.is_monotone, step.codes_only

    def project_start(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B *U"]:
        return self.step.project_start(u)

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        return self.step.start(problem, u)


class Clipped(_Wrapper):
    """A step with gradients clipped to a norm of at most ``norm`` (nats per unit of u), per row.

    >>> from gae.inference import GradientAscent
    >>> Clipped(GradientAscent(0.1), norm=10.0).norm
    10.0
    """

    def __init__(self, step: Step, norm: float):
        super().__init__(step)
        self.norm = positive("norm", norm)

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        square = grad.flatten(2).square().sum(2)
        large = square > self.norm**2
        factor = torch.where(large, self.norm * torch.where(large, square, 1.0).rsqrt(), 1.0)
        return self.step(problem, u, value, grad * expand_rows(factor, u), state, t)


class Scheduled(_Wrapper):
    """A step whose move is multiplied by ``factor(t)``, t from 0.

    >>> from gae.inference import GradientAscent
    >>> Scheduled(GradientAscent(0.1), lambda t: 1 / (1 + t)).factor(1)
    0.5
    """

    def __init__(self, step: Step, factor: Callable[[int], float]):
        super().__init__(step)
        self.factor = factor

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        moved, state = self.step(problem, u, value, grad, state, t)
        return u + self.factor(t) * (moved - u), state


class Projected(_Wrapper):
    """Projected gradient ascent: the start and each step are projected onto a set.

    Only for codes: ``Ascent`` refuses it with a density over codes (``MeanField``, ``FullCovariance``), since
    projecting the parameters would not keep its draws in the set.

    >>> from gae.inference import GradientAscent
    >>> Projected(GradientAscent(0.1), NonNegative()).onto(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def __init__(self, step: Step, onto: Projection):
        super().__init__(step)
        self.onto, self.codes_only = onto, True

    def project_start(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B *U"]:
        return self.onto(self.step.project_start(u))

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        moved, state = self.step(problem, u, value, grad, state, t)
        return self.onto(moved), state


class MaskedStep(_Wrapper):
    """A step on some elements of a point only; the others keep their initial values.

    Args:
        step: the wrapped step.
        free: mask of the elements that move, of the shape of one point.

    Raises:
        ValueError: at the first step, for points of another shape.

    >>> from gae.inference import GradientAscent
    >>> MaskedStep(GradientAscent(0.1), torch.tensor([False, True])).free
    tensor([False,  True])
    """

    free: Tensor

    def __init__(self, step: Step, free: Bool[Tensor, "*U"]):
        super().__init__(step)
        self.register_buffer("free", free.detach().clone(), persistent=False)

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        if u.shape[2:] != self.free.shape:
            raise ValueError(f"`MaskedStep` is for points of shape {tuple(self.free.shape)}, got {tuple(u.shape[2:])}.")
        moved, state = self.step(problem, u, value, torch.where(self.free, grad, 0.0), state, t)
        return torch.where(self.free, moved, u), state


class NonNegative(Part, nn.Module):
    """z >= 0, elementwise.

    >>> NonNegative()(torch.tensor([-0.5, 1.5]))
    tensor([0.0000, 1.5000])
    """

    def forward(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return z.clamp_min(0)


class Box(Part, nn.Module):
    """low <= z <= high, elementwise.

    >>> Box(0.0, 1.0)(torch.tensor([-0.5, 0.5, 1.5]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    def __init__(self, low: float, high: float):
        super().__init__()
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}.")
        self.low, self.high = low, high

    def forward(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return z.clamp(self.low, self.high)


class UnitSphere(Part, nn.Module):
    """‖z‖₂ = 1 over the last dimension; the origin, which has no nearest point, goes to the first axis.

    >>> UnitSphere()(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """

    def forward(self, z: Float[Tensor, "*L Z"]) -> Float[Tensor, "*L Z"]:
        largest = z.detach().abs().amax(-1, keepdim=True)
        origin = largest == 0
        scaled = z / torch.where(origin, 1.0, largest)  # so that the square neither overflows nor underflows
        square = scaled.square().sum(-1, keepdim=True)
        first = torch.zeros_like(z).index_fill(-1, torch.zeros(1, dtype=torch.long, device=z.device), 1.0)
        return torch.where(origin, first, scaled * torch.where(origin, 1.0, square).rsqrt())


class Simplex(Part, nn.Module):
    """z >= 0 with sum 1 over the last dimension (Duchi et al. 2008, figure 1).

    >>> Simplex()(torch.tensor([0.5, 1.5]))
    tensor([0., 1.])
    """

    def forward(self, z: Float[Tensor, "*L Z"]) -> Float[Tensor, "*L Z"]:
        # Only differences matter, and an element 1 or more below the largest becomes 0, so all sums are of small
        # numbers. The clamp is at -2, not at -1, where the last line has a kink.
        below = (z - z.detach().amax(-1, keepdim=True)).clamp_min(-2)
        ordered = below.sort(-1, descending=True).values
        count = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
        excess = (ordered.cumsum(-1) - 1) / count
        last = (ordered > excess).sum(-1, keepdim=True).clamp_min(1) - 1  # none is above if z is NaN
        return (below - excess.gather(-1, last)).clamp_min(0)


class Whiten(Part, nn.Module):
    """Whitening: the nearest codes (N, d) of one data set that are centred with identity covariance.

    Raises:
        ValueError: for N <= d, when there are no such codes.

    >>> z = Whiten()(torch.randn(50, 2))
    >>> torch.allclose(z.mT @ z / 50, torch.eye(2), atol=1e-5)
    True
    """

    def forward(self, z: Float[Tensor, "*L N d"]) -> Float[Tensor, "*L N d"]:
        points, width = z.shape[-2:]
        if points <= width:
            raise ValueError(f"Whitening codes of {width} dimensions needs at least {width + 1} points, got {points}.")
        centred = z - z.mean(-2, keepdim=True)
        known = torch.isfinite(centred).all(-1).all(-1)[..., None, None]
        left, _, right = torch.linalg.svd(torch.where(known, centred, 0.0), full_matrices=False)  # raises on NaN
        return torch.where(known, left @ right * points**0.5, torch.nan)
