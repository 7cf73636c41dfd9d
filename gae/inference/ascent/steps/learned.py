"""Learned iterative inference: a network proposes each step."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gae import nets
from gae.inference.ascent.problem import Problem
from gae.inference.ascent.steps.first_order import State, Step
from gae.likelihood import AcceptsMissing

SCALE = 0.2  # of logarithmic magnitudes: gradients from 1 to 1e4 nats per unit become inputs between 0.2 and 2


class IterativeAmortized(Step):
    """Iterative amortised inference, u ← g ⊙ u + (1 - g) ⊙ f, with g and f from a network (Marino et al. 2018).

    The network sees the point u, its gradient as a logarithmic magnitude with a sign (arsinh, smooth at 0, after
    Andrychowicz et al. 2016; the authors' layer normalisation would leave a code of two elements only their order),
    and x if ``event_shape`` is given. The same network takes every step.

    Its parameters are trained with the model, through ``Unroll`` or ``CheckpointedUnroll``: by the ELBO of the last
    point, or by ``stepwise_elbo`` (the paper's objective). Under a density it sees new draws at each step, as in the
    paper; under the same draws it would learn to fit them instead of the posterior.

    Args:
        shape: the shape of one point u: that of a code for ``Delta``, (2, *Z) for ``MeanField``, (1 + Z, Z) for
            ``FullCovariance``.
        hidden: widths of the network's hidden layers.
        event_shape: X, if the network sees x too, standardised by statistics of the training data.
        missing: whether it then also sees the mask of the observed elements of x (``nets.Standardized``).

    Raises:
        TypeError: at the first step, for a likelihood of partially observed data without ``missing``.
        ValueError: for an ``event_shape`` without dimensions; at the first step, for points of another shape.

    >>> from gae.inference import Ascent, MeanField
    >>> from gae.likelihood import LinearMixture
    >>> step = IterativeAmortized((2, 3), hidden=(8,), event_shape=(5,))
    >>> Ascent(step=step, max_steps=4, family=MeanField())(LinearMixture(1, 3, (5,)), torch.randn(6, 5)).log_q.shape
    torch.Size([1, 6])
    """

    is_monotone = False
    draws_noise = True

    def __init__(
        self,
        shape: Sequence[int],
        hidden: Sequence[int] = (128, 128),
        event_shape: Sequence[int] | None = None,
        missing: bool = False,
    ):
        super().__init__()
        nets.need_sizes(shape=shape)
        if event_shape is not None and not len(event_shape):
            raise ValueError("The network sees arrays of at least one dimension, got event_shape=(). Use None.")
        self.shape = torch.Size(shape)
        self.observe = None if event_shape is None else nets.Standardized(nn.Flatten(), event_shape, missing)
        seen = 0 if event_shape is None else math.prod(nets.with_mask(event_shape) if missing else event_shape)
        self.network = nets.mlp(2 * self.shape.numel() + seen, hidden, (2, *shape))

    def start(self, problem: Problem, u: Float[Tensor, "S B *U"]) -> State:
        if u.shape[2:] != self.shape:
            raise ValueError(
                f"`IterativeAmortized` is for points of shape {tuple(self.shape)}, but "
                f"`{type(problem.family).__name__}` has points of shape {tuple(u.shape[2:])} here. Use "
                f"`shape={tuple(u.shape[2:])}`."
            )
        if self.observe is not None and not self.observe.missing and isinstance(problem.likelihood, AcceptsMissing):
            raise TypeError(
                f"The network of `IterativeAmortized` sees x, which may have missing elements under "
                f"{type(problem.likelihood).__name__}. Use `IterativeAmortized(..., missing=True)`."
            )
        return {} if problem.noise is None else {"noise": problem.noise}

    def observed(self, problem: Problem, state: State) -> Problem:
        return problem.with_noise(state["noise"]) if "noise" in state else problem

    def forward(
        self,
        problem: Problem,
        u: Float[Tensor, "S B *U"],
        value: Float[Tensor, "S B"],
        grad: Float[Tensor, "S B *U"],
        state: State,
        t: int,
    ) -> tuple[Tensor, State]:
        seen = [u.flatten(2), SCALE * grad.flatten(2).asinh()]
        if self.observe is not None:
            seen.append(self.observe(problem.x).expand(*u.shape[:2], -1))
        gate, proposal = self.network(torch.cat(seen, 2).flatten(0, 1)).unflatten(0, u.shape[:2]).unbind(2)
        noise = problem.family.noise(u)
        return torch.lerp(proposal, u, gate.sigmoid()), {} if noise is None else {"noise": noise}
