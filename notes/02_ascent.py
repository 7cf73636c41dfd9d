"""Checks of ``02_ascent.md``: the bound that t steps of ascent reach, and its gradient in the parameters."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from gae import nets
from gae.inference import Adjoint, Ascent, Constant, Detach, GradientAscent, Status, Unroll, Zeros
from gae.ledger.claims import Check, Relation, at_most, check, equal
from gae.likelihood import Gaussian, LinearMixture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@check
def check_D03() -> Check:
    """gae's ascent against the maximum of the quadratic, solved as a linear system and written out as a density."""
    model, x = _linear(), torch.randn(12, 5)
    precision, best = _solution(model, x)
    limit = 2 / float(torch.linalg.eigvalsh(precision)[-1])
    highest = _log_joint(model, x, best)
    with torch.no_grad():
        found = Ascent(Zeros(), GradientAscent(0.95 * limit), max_steps=60, trace=True)(model, x)
        fast = Ascent(Zeros(), GradientAscent(0.5 * limit), max_steps=200)(model, x)
        start = torch.randn(12, 2)
        wild = Ascent(Constant(start), GradientAscent(1.05 * limit), max_steps=150)(model, x)
    assert found.solve is not None and found.solve.trace is not None and wild.solve is not None
    reached = torch.cat([found.solve.trace.squeeze(1), found.log_joint])
    grown = best + (start - best) @ torch.linalg.matrix_power(torch.eye(2) - 1.05 * limit * precision, 150)
    return Check(
        [
            at_most("l_m(z_t) ≤ max_z log q(z) q(x|z), t = 0 … 60", reached, highest),
            at_most("non-decreasing in t, step 1.9 / λ_max", reached[:-1], reached[1:]),
            equal("t → ∞: equality", fast.log_joint, highest),
            at_most("as printed, without the log: E l ≤ E max_z q(z) q(x|z)", reached.mean(1), highest.exp().mean()),
            equal("step 2.1 / λ_max: z_t − ẑ = (I − βΛ)^t (z_0 − ẑ)", wild.z[0] / grown.norm(), grown / grown.norm()),
            equal("and every solve says so", (wild.solve.status == Status.diverged).double().mean(), 1.0),
        ]
    )


@check
def check_D05() -> Check:
    """gae's gradients against central differences of whole solves, and the rate against the spectrum of Λ."""
    decoder = Gaussian(nets.mlp(2, [6], 4, nn.Tanh), 2, 0.7)
    x, steps = torch.randn(8, 4), 5
    parameters = list(decoder.decoder.parameters())
    direction = [torch.randn_like(p) for p in parameters]
    slopes = {mode: _slope(decoder, x, steps, mode, direction) for mode in (Unroll(), Detach())}
    unrolled, detached = slopes.values()
    pushed, change = _differences(decoder, x, steps, direction)
    return Check(
        [
            equal("∇l(z_t), unrolled = central differences", unrolled, change, 1e-7),
            equal("its second-order part = ∂l/∂z · dz_t/dm", unrolled - detached, pushed, 1e-7),
            at_most("which is there", 1e-3, abs(unrolled - detached)),
            *_envelope(),
        ]
    )


def figure_D03() -> "Figure":
    """Ascent below and above the largest stable step."""
    from matplotlib.figure import Figure

    torch.manual_seed(0)
    model, x = _linear().double(), torch.randn(1, 5, dtype=torch.float64)
    precision, best = _solution(model, x)
    largest = float(torch.linalg.eigvalsh(precision)[-1])
    highest = _log_joint(model, x, best)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    styles = (("#0072B2", "-"), ("#009E73", "--"), ("#CC79A7", "-."), ("#D55E00", ":"))
    for share, (color, dash) in zip((0.5, 1.0, 1.9, 2.1), styles, strict=True):
        with torch.no_grad():
            found = Ascent(Zeros(), GradientAscent(share / largest), max_steps=40, trace=True)(model, x)
        assert found.solve is not None and found.solve.trace is not None
        gap = (highest - found.solve.trace[:, 0, 0]).clamp_min(1e-15)
        axes.semilogy(gap, color=color, ls=dash, label=f"step {share:g} / λ_max")
    axes.set(xlabel="step t", ylabel="max − l(z_t)   (nats)")
    axes.legend()
    return figure


def _linear() -> LinearMixture:
    """Five observed dimensions, two latent ones, a condition number of 4 or less."""
    model = LinearMixture(1, 2, (5,), scale=0.8)
    model.loadings.data = (torch.linalg.qr(torch.randn(5, 2)).Q * torch.tensor([1.5, 1.0])).T.unsqueeze(0)
    model.means.data = torch.randn(1, 5)
    return model


def _solution(model: LinearMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Λ = I + WᵀW / σ² and the maximiser Λ⁻¹ Wᵀ(x − μ) / σ²."""
    rows, variance = model.loadings.detach()[0], (2 * model.log_scale[0]).exp()
    precision = torch.eye(len(rows), dtype=x.dtype) + rows @ rows.T / variance
    pulled = (x - model.means.detach()[0]) @ rows.T / variance
    return precision, torch.linalg.solve(precision, pulled.T).T


def _log_joint(model: LinearMixture, x: Tensor, z: Tensor) -> Tensor:
    mean = model.means.detach()[0] + z @ model.loadings.detach()[0]
    scale = model.log_scale.exp()[0]
    return Normal(0.0, 1.0).log_prob(z).sum(1) + Normal(mean, scale).log_prob(x).sum(1)


def _slope(model: Gaussian, x: Tensor, steps: int, mode: Adjoint, direction: list[Tensor]) -> float:
    """The derivative of Σ l(z_t) along a direction in the parameters, by gae."""
    value = Ascent(Zeros(), GradientAscent(0.1), steps, adjoint=mode)(model, x).log_joint.sum()
    gradient = torch.autograd.grad(value, list(model.decoder.parameters()))
    return sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))


def _differences(model: Gaussian, x: Tensor, steps: int, direction: list[Tensor]) -> tuple[Tensor, Tensor]:
    """∂l/∂z at z_t times the difference quotient of z_t, and the difference quotient of l(z_t)."""
    epsilon, codes, values = 1e-5, [], []
    ascent = Ascent(Zeros(), GradientAscent(0.1), steps)
    here = ascent(model, x).z.detach().requires_grad_()
    (force,) = torch.autograd.grad(model.log_joint(x, here).sum(), here)
    for sign in (1, -1):
        _shift(model, direction, sign * epsilon)
        with torch.no_grad():
            found = ascent(model, x)
        _shift(model, direction, -sign * epsilon)
        codes.append(found.z)
        values.append(found.log_joint.sum())
    rate = (codes[0] - codes[1]) / (2 * epsilon)
    return (force * rate).sum(), (values[0] - values[1]) / (2 * epsilon)


@torch.no_grad()
def _shift(model: Gaussian, direction: list[Tensor], length: float) -> None:
    for parameter, move in zip(model.decoder.parameters(), direction, strict=True):
        parameter.add_(length * move)


def _envelope() -> list[Relation]:
    """How far the unrolled gradient is from the detached one as t grows, on a quadratic with a known rate."""
    model, x = _linear(), torch.randn(6, 5)
    spectrum = torch.linalg.eigvalsh(_solution(model, x)[0])
    step = 0.3 / float(spectrum[-1])
    gaps = []
    for steps in (60, 61, 200):
        gradients = []
        for mode in (Unroll(), Detach()):
            value = Ascent(Zeros(), GradientAscent(step), steps, adjoint=mode)(model, x).log_joint.sum()
            gradients.append(torch.autograd.grad(value, model.loadings)[0])
        gaps.append((gradients[0] - gradients[1]).norm())
    rate = (1 - step * spectrum).abs().max()
    return [
        equal("‖∇unroll − ∇detach‖ shrinks by max |1 − βλ| a step", gaps[1] / gaps[0], rate, 2e-3),
        equal("and vanishes: t = 200", gaps[2], 0.0, 1e-7),
    ]
