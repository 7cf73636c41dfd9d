"""Annealed importance sampling, forward and reverse: stochastic lower and upper bounds of log p(x)."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Num
from torch import Size, Tensor
from torch.distributions import Distribution

from gae.data.checks import at_least_one
from gae.data.progress import counted
from gae.evidence.base import Evidence, from_log_weights, need_proper
from gae.inference import ClosedForm
from gae.inference.ascent.problem import expand_rows
from gae.inference.ascent.steps.hamiltonian import leapfrog as trajectory
from gae.inference.curvature import unit
from gae.inference.laws import codes_from, log_density, need_cover, need_density, need_rows
from gae.likelihood import ExactPosterior, Likelihood
from gae.likelihood.door import check_codes, checked

Schedule = Literal["sigmoid", "linear"]
JITTER = 0.5  # step sizes vary by ± 50 %, so that no trajectory is periodic (Neal 2011, section 3.2)
TARGET, CHANGE = 0.65, 1.02  # acceptance rate, and the factor by which a step size adapts to it (Wu et al. 2017)


@dataclass(frozen=True)
class BDMC:
    """Bidirectional Monte Carlo: observations simulated from the model, with bounds of their log p(x).

    ``lower`` is a lower bound in expectation and ``upper`` an upper one. Each lies on the wrong side of log p(x) by
    more than b nats with a probability of at most e^-b (Grosse et al. 2015), so the gap bounds the error of both.
    The upper bound uses one exact draw for each x, so its ``standard_error`` is NaN; see ``gap``.
    """

    x: Num[Tensor, "B *X"]
    z: Float[Tensor, "B *Z"]
    lower: Evidence
    upper: Evidence

    @property
    def gap(self) -> Float[Tensor, " B"]:
        """upper - lower in nats. Observations are independent, so the spread gives the standard error of the mean."""
        return self.upper.log_p - self.lower.log_p


def inverse_temperatures(number: int, schedule: Schedule = "sigmoid") -> Float[Tensor, " T"]:
    """Inverse temperatures β_0 = 0 … β_T = 1 in T = ``number`` steps, equal or sigmoid (Wu et al. 2017).

    The sigmoid schedule has small steps at both ends.

    >>> inverse_temperatures(4, "linear")
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    if number < 1:
        raise ValueError(f"The number of temperatures must be at least 1, got {number}.")
    if schedule not in ("sigmoid", "linear"):
        raise ValueError(f"schedule must be 'sigmoid' or 'linear', got {schedule!r}.")
    steps = torch.linspace(0, 1, number + 1, dtype=torch.float64)
    if schedule == "linear":
        return steps
    curve = (4 * (2 * steps - 1)).sigmoid()
    return (curve - curve[0]) / (curve[-1] - curve[0])


@torch.no_grad()
@checked
def ais(
    likelihood: Likelihood,
    x: Num[Tensor, "B *X"],
    temperatures: int = 1000,
    chains: int = 16,
    leapfrog: int = 10,
    schedule: Schedule = "sigmoid",
    start: Distribution | None = None,
    pilot: int = 4,
) -> Evidence:
    """Annealed importance sampling (Neal 2001) by Hamiltonian transitions: a lower bound of log p(x) in expectation.

    From ``start`` to the posterior through the densities ∝ start^(1-β) q(x, z)^β. Separate pilot chains tune the step
    size of every transition, so the weights of the main chains are unbiased.

    Args:
        likelihood: the decoder and its prior.
        x: (B, *X).
        temperatures: T, the number of steps from β = 0 to β = 1.
        chains: S, independent chains per observation.
        leapfrog: steps of each transition.
        schedule: spacing of β, see ``inverse_temperatures``.
        start: initial distribution, batch (B,) or (), event Z, that can be sampled and covers the prior; by default
            the prior.
        pilot: number of chains that tune the step sizes.

    Raises:
        ValueError: under a flat prior; for numbers out of range; for a start of another shape.

    >>> from gae.likelihood import LinearMixture
    >>> model, x = LinearMixture(1, 2, (5,)), torch.randn(3, 5)
    >>> evidence = ais(model, x, temperatures=100, chains=50)
    >>> bool(((evidence.log_p - model.log_evidence(x).log_p).abs() < 4 * evidence.standard_error + 0.05).all())
    True
    """
    if chains < 2:
        raise ValueError(f"chains must be at least 2, for a standard error, got {chains}.")
    betas, path = _prepare(likelihood, x, temperatures, chains, leapfrog, schedule, start, pilot)
    sizes = _pilot(path, betas, pilot, leapfrog)
    return from_log_weights(
        _forward(path, betas, path.draw(chains), sizes, leapfrog), _cost(betas, chains, pilot, leapfrog)
    )


@torch.no_grad()
@checked
def reverse_ais(
    likelihood: Likelihood,
    x: Num[Tensor, "B *X"],
    z: Float[Tensor, "..."] | None = None,
    temperatures: int = 1000,
    chains: int = 16,
    leapfrog: int = 10,
    schedule: Schedule = "sigmoid",
    start: Distribution | None = None,
    pilot: int = 4,
) -> Evidence:
    """``ais`` run backwards from exact posterior draws z: an upper bound of log p(x) in expectation.

    Simulated data come with such a draw: z ~ q(z), x ~ q(x|z) (Grosse et al. 2015). All chains from one draw share
    its error, which their spread does not show, so ``standard_error`` and ``ess`` compare the means of independent
    draws; with a single draw the standard error is NaN, unknown. With one draw per observation, the standard error of
    the mean of ``log_p`` over observations follows from their spread (``BDMC.gap``).

    Args:
        likelihood, x, temperatures, leapfrog, schedule, start, pilot: as for ``ais``.
        z: one exact draw for each x, (B, *Z), or R independent ones, (R, B, *Z). By default every chain starts from a
            draw of its own, which needs a likelihood with an exact posterior.
        chains: chains from each draw; without z, the number of draws.

    Raises:
        ValueError: as in ``ais``; for draws of another shape.
        TypeError: without z, for a likelihood without an exact posterior.

    >>> from gae.likelihood import LinearMixture
    >>> model, x = LinearMixture(1, 2, (5,)), torch.randn(3, 5)
    >>> evidence = reverse_ais(model, x, temperatures=50, chains=50)
    >>> bool(((evidence.log_p - model.log_evidence(x).log_p).abs() < 4 * evidence.standard_error + 0.05).all())
    True
    """
    if z is None:
        z, chains = _exact_draws(likelihood, x, chains), 1
    draws = z.unsqueeze(0) if z.dim() == 1 + len(likelihood.latent_shape) else z
    check_codes(likelihood, draws, None, len(x), True)
    betas, path = _prepare(likelihood, x, temperatures, chains, leapfrog, schedule, start, pilot)
    sizes = _pilot(path, betas, pilot, leapfrog)
    starts = draws.expand(-1, len(x), *likelihood.latent_shape)
    log_weight = _backward(path, betas, starts.repeat(chains, *[1] * (starts.dim() - 1)), sizes, leapfrog)
    per_draw = log_weight.unflatten(0, (chains, len(draws))).logsumexp(0) - math.log(chains)
    evidence = from_log_weights(per_draw, _cost(betas, chains * len(draws), pilot, leapfrog))
    return replace(evidence, log_p=-evidence.log_p)


@torch.no_grad()
def sandwich(
    likelihood: Likelihood,
    samples: int,
    temperatures: int = 1000,
    chains: int = 16,
    leapfrog: int = 10,
    schedule: Schedule = "sigmoid",
) -> BDMC:
    """Bidirectional Monte Carlo on data simulated from the model, which bounds the error of ``ais`` there.

    Raises:
        ValueError: under a flat prior; for numbers out of range.

    >>> from gae.likelihood import LinearMixture
    >>> bounds = sandwich(LinearMixture(1, 2, (5,)), 3, temperatures=50, chains=20)
    >>> bounds.x.shape, bounds.gap.shape
    (torch.Size([3, 5]), torch.Size([3]))
    """
    need_proper(likelihood)
    at_least_one("samples", samples)
    x, z = likelihood.sample_joint(samples)
    options = (temperatures, chains, leapfrog, schedule)
    return BDMC(x, z, ais(likelihood, x, *options), reverse_ais(likelihood, x, z, *options))


def _exact_draws(likelihood: Likelihood, x: Tensor, number: int) -> Float[Tensor, "S B *Z"]:
    """Independent draws of the exact posterior, of a component each for a mixture."""
    need_proper(likelihood)
    if not isinstance(likelihood, ExactPosterior):
        raise TypeError(
            f"The posterior of {type(likelihood).__name__} cannot be sampled exactly, so reverse annealing needs exact "
            "draws z. Simulate x with them, by `likelihood.sample_joint(n)` or `sandwich`."
        )
    at_least_one("chains", number)
    return ClosedForm(number).infer(likelihood, x).z


@dataclass(frozen=True)
class _State:
    """Chains (S, B, *Z) with the log densities of the start and of the joint, (S, B)."""

    z: Tensor
    log_start: Tensor
    log_joint: Tensor

    @property
    def slope(self) -> Tensor:
        """The derivative of the annealed log density in β."""
        return self.log_joint - self.log_start

    def where(self, accepted: Tensor, other: "_State") -> "_State":
        pairs = ((self.z, other.z), (self.log_start, other.log_start), (self.log_joint, other.log_joint))
        return _State(*(torch.where(expand_rows(accepted, a), a, b) for a, b in pairs))


class _Path:
    """The path of densities from ``start`` to the joint, for one batch x."""

    def __init__(self, likelihood: Likelihood, x: Tensor, start: Distribution | None):
        self.likelihood, self.x = likelihood, x
        self.start = likelihood.prior if start is None else start
        if start is not None:
            need_rows(start, likelihood, x, "() or (B,)")
            need_density(start)
            need_cover(start, likelihood, x)
        self.unit = unit(self.start).to(x)
        self.log_joint = likelihood.bind(x)

    def draw(self, chains: int) -> Tensor:
        single = not self.start.batch_shape
        z = self.start.sample(Size((chains, len(self.x)))) if single else codes_from(self.start, chains)
        log_density(self.start, z)
        return z

    def at(self, z: Tensor) -> _State:
        return _State(z, self.start.log_prob(z), self.log_joint(z))

    def force(self, z: Tensor, beta: float) -> tuple[_State, Tensor]:
        """The state at z and the gradient of its annealed log density."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            state = self.at(leaf)
            (grad,) = torch.autograd.grad((state.log_start + beta * state.slope).sum(), leaf)
        return _State(z, state.log_start.detach(), state.log_joint.detach()), grad

    def move(self, state: _State, beta: float, size: Tensor, leapfrog: int) -> tuple[_State, Tensor]:
        """One Hamiltonian transition (Neal 2011), and whether each chain accepted it.

        ``size`` (B,) is the mean step size, in units of the start's standard deviations.
        """
        step = self.unit * expand_rows(size * (1 + JITTER * (2 * torch.rand_like(state.log_joint) - 1)), state.z)
        momentum = torch.randn_like(state.z)
        _, grad = self.force(state.z, beta)
        z, kick = trajectory(state.z, momentum, grad, step, leapfrog, lambda z: self.force(z, beta)[1])
        after, grad = self.force(z, beta)
        kick = kick + 0.5 * step * grad
        change = (after.log_start + beta * after.slope) - (state.log_start + beta * state.slope)
        energy = 0.5 * (momentum.square() - kick.square()).flatten(2).sum(2)
        accepted = (change + energy >= torch.rand_like(change).log()) & torch.isfinite(after.log_joint)
        return after.where(accepted, state), accepted


def _prepare(
    likelihood: Likelihood,
    x: Tensor,
    temperatures: int,
    chains: int,
    leapfrog: int,
    schedule: Schedule,
    start: Distribution | None,
    pilot: int,
) -> tuple[list[float], _Path]:
    need_proper(likelihood)
    if chains < 1 or leapfrog < 1 or pilot < 1:
        raise ValueError(f"Need chains >= 1, leapfrog >= 1 and pilot >= 1, got {chains}, {leapfrog} and {pilot}.")
    return inverse_temperatures(temperatures, schedule).tolist(), _Path(likelihood, x, start)


def _pilot(path: _Path, betas: list[float], chains: int, leapfrog: int) -> Float[Tensor, "T B"]:
    """Step sizes of each transition and observation, adapted to the acceptance rate of a few chains."""
    state = path.at(path.draw(chains))
    size = state.log_joint.new_full((len(path.x),), 0.5 / math.sqrt(state.z[0, 0].numel()))
    sizes = [size]
    for beta in betas[1:-1]:
        state, accepted = path.move(state, beta, size, leapfrog)
        better = accepted.to(size.dtype).mean(0) > TARGET
        size = torch.where(better, size * CHANGE, size / CHANGE)
        sizes.append(size)
    return torch.stack(sizes)


def _forward(path: _Path, betas: list[float], z: Tensor, sizes: Tensor, leapfrog: int) -> Float[Tensor, "S B"]:
    state, log_weight = path.at(z), torch.zeros_like(z.flatten(2)[..., 0])
    for t in counted(range(1, len(betas)), "temperatures"):
        log_weight = log_weight + (betas[t] - betas[t - 1]) * state.slope
        if t + 1 < len(betas):
            state, _ = path.move(state, betas[t], sizes[t], leapfrog)
    return log_weight


def _backward(path: _Path, betas: list[float], z: Tensor, sizes: Tensor, leapfrog: int) -> Float[Tensor, "S B"]:
    state, log_weight = path.at(z), torch.zeros_like(z.flatten(2)[..., 0])
    for t in counted(range(len(betas) - 1, 0, -1), "temperatures, reversed"):
        log_weight = log_weight - (betas[t] - betas[t - 1]) * state.slope
        if t > 1:
            state, _ = path.move(state, betas[t - 1], sizes[t - 1], leapfrog)
    return log_weight


def _cost(betas: list[float], chains: int, pilot: int, leapfrog: int) -> int:
    return (len(betas) - 2) * (leapfrog + 1) * (chains + pilot) + chains + pilot
