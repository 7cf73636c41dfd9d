"""Checks of ``02_ascent.md``: the bound that t steps of ascent reach, and its gradient in the parameters."""

from functools import reduce
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.func import jacrev, vmap
from torch.nn.utils import parameters_to_vector

from gae import nets
from gae.inference import Adjoint, Ascent, Constant, Detach, Encoding, GradientAscent, Status, Unroll, Zeros
from gae.ledger.claims import Check, Relation, at_most, check, equal
from gae.likelihood import Gaussian, LinearMixture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@check
def check_D03() -> Check:
    """gae's ascent against the maximum of the quadratic, solved as a linear system and written out as a density."""
    model, x = _linear(), torch.randn(12, 5)
    with torch.no_grad():
        precision, best = _solution(model, x)
        limit = 2 / float(torch.linalg.eigvalsh(precision)[-1])
        highest = _log_joint(model, x, best)
        found = Ascent(Zeros(), GradientAscent(0.95 * limit), max_steps=25, trace=True)(model, x)
        fast = Ascent(Zeros(), GradientAscent(0.5 * limit), max_steps=25)(model, x)
        start = torch.randn(12, 2)
        wild = Ascent(Constant(start), GradientAscent(1.2 * limit), max_steps=35)(model, x)
    assert found.solve is not None and found.solve.trace is not None and wild.solve is not None
    reached = torch.cat([found.solve.trace.squeeze(1), found.log_joint])
    grown = best + (start - best) @ torch.linalg.matrix_power(torch.eye(2) - 1.2 * limit * precision, 35)
    return Check(
        [
            at_most("l_m(z_t) ≤ max_z log q(z) q(x|z), t = 0 … 25", reached, highest),
            at_most("non-decreasing in t, step 1.9 / λ_max", reached[:-1], reached[1:]),
            equal("t → ∞: equality", fast.log_joint, highest),
            at_most("as printed, without the log, for each x: l ≤ max_z q(z) q(x|z)", reached, highest.exp()),
            equal("step 2.4 / λ_max: z_t − ẑ = (I − βΛ)^t (z_0 − ẑ)", wild.z[0] / grown.norm(), grown / grown.norm()),
            equal("and every solve says so", (wild.solve.status == Status.diverged).double().mean(), 1.0),
        ]
    )


@check
def check_D05() -> Check:
    """gae's gradients against central differences of whole solves, and against the gradient of the exact maximum."""
    decoder = Gaussian(nets.mlp(2, [6], 4, nn.Tanh), 2, 0.7)
    x, steps = torch.randn(8, 4), 5
    direction = [torch.randn_like(p) for p in decoder.decoder.parameters()]
    unrolled, detached = (_parameter_gradient(decoder, x, steps, mode) for mode in (Unroll(), Detach()))
    second_order = unrolled - detached
    along, (pushed, change) = parameters_to_vector(direction), _differences(decoder, x, steps, direction)
    return Check(
        claim=[
            equal("∇l(z_t), unrolled = central differences", unrolled @ along, change, 1e-7),
            equal("its second-order part = ∂l/∂z · dz_t/dm", second_order @ along, pushed, 1e-7),
            at_most("which is there", 1e-2, second_order.norm()),
        ],
        correction=_limits(),
    )


@check
def check_D47() -> Check:
    """Residual layers of torch, with copied weights, against the codes and the gradient of gae's unrolled ascent."""
    model, x, start, steps = _linear(flat_prior=True), torch.randn(8, 5), torch.randn(8, 2), 6
    rows = model.loadings.detach()[0]
    largest = float(torch.linalg.eigvalsh(rows @ rows.T)[-1])
    beta, weights = 0.3 / largest, torch.randn(8, 2)
    path = torch.stack([_ascend(model, x, start, beta, t).z[0] for t in range(steps + 1)])
    (unrolled,) = torch.autograd.grad((weights * path[-1]).sum(), model.loadings)

    layers = [_ResidualLayer(model, beta) for _ in range(steps)]
    states = list(accumulate(layers, lambda z, layer: layer(z, x), initial=start))
    (weights * states[-1]).sum().backward()
    shares = torch.stack([layer.to_loadings(rows, beta) for layer in layers])
    feedback = torch.eye(2) - 2 * beta * rows @ rows.T
    power = torch.linalg.matrix_power(feedback, steps)
    pushed = torch.linalg.solve(rows @ rows.T, (torch.eye(2) - power) @ rows @ (x - model.means[0].detach()).T).T
    with torch.no_grad():
        far = _ascend(model, x, start, 0.7 / largest, 30).z[0]
        wild = _ascend(model, x, start, 1.2 / largest, 35)
        fed_once = reduce(lambda z, layer: layer(z, None), layers[1:] * 20, layers[0](start, x))
    assert wild.solve is not None
    return Check(
        claim=[
            equal("z_t = t residual layers, t = 0 … 6", path, torch.stack(states), 1e-12),
            equal("∇_W of z_6, unrolled = the sum of the shares of 6 layers", unrolled, shares.sum(0), 1e-12),
            equal("a decoder with tanh units: z_t = t layers z + β (J(z)ᵀ(x − f(z))/σ² − z)", *_curved(steps), 1e-12),
        ],
        correction=[
            equal("linear decoder: T layers are one affine map", states[-1], start @ power + pushed, 1e-12),
            equal("T → ∞, from any start: least squares", far, (x - model.means[0]) @ torch.linalg.pinv(rows)),
            equal("β = 1.2/λ_max: every solve diverges", (wild.solve.status == Status.diverged).double().mean(), 1.0),
            equal("x at the first layer only: the code forgets x", fed_once, 0.0, 1e-9),
        ],
    )


def figure_D03() -> "Figure":
    """Ascent below and above the largest stable step."""
    from matplotlib.figure import Figure

    torch.manual_seed(0)
    model, x = _linear().double(), torch.randn(1, 5, dtype=torch.float64)
    with torch.no_grad():
        precision, best = _solution(model, x)
        highest = _log_joint(model, x, best)
    largest = float(torch.linalg.eigvalsh(precision)[-1])
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


def _linear(flat_prior: bool = False) -> LinearMixture:
    """Five observed dimensions, two latent ones, a condition number of 4 or less; with a flat prior, -‖x − μ − Wz‖²."""
    model = LinearMixture(1, 2, (5,), scale=0.5**0.5 if flat_prior else 0.8, flat_prior=flat_prior)
    model.loadings.data = (torch.linalg.qr(torch.randn(5, 2)).Q * torch.tensor([1.5, 1.0])).T.unsqueeze(0)
    model.means.data = torch.randn(1, 5)
    return model


def _solution(model: LinearMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Λ = I + WᵀW / σ² and the maximiser Λ⁻¹ Wᵀ(x − μ) / σ²."""
    rows, variance = model.loadings[0], (2 * model.log_scale[0]).exp()
    precision = torch.eye(len(rows), dtype=x.dtype) + rows @ rows.T / variance
    pulled = (x - model.means.detach()[0]) @ rows.T / variance
    return precision, torch.linalg.solve(precision, pulled.T).T


def _log_joint(model: LinearMixture, x: Tensor, z: Tensor) -> Tensor:
    mean = model.means.detach()[0] + z @ model.loadings[0]
    scale = model.log_scale.exp()[0]
    return Normal(0.0, 1.0).log_prob(z).sum(1) + Normal(mean, scale).log_prob(x).sum(1)


def _parameter_gradient(model: Gaussian, x: Tensor, steps: int, mode: Adjoint) -> Tensor:
    """The gradient of Σ l(z_t) in the decoder's parameters, by gae, as one vector."""
    value = Ascent(Zeros(), GradientAscent(0.1), steps, adjoint=mode)(model, x).log_joint.sum()
    return parameters_to_vector(torch.autograd.grad(value, list(model.decoder.parameters())))


def _differences(model: Gaussian, x: Tensor, steps: int, direction: list[Tensor]) -> tuple[Tensor, Tensor]:
    """∂l/∂z at z_t times the difference quotient of z_t, and the difference quotient of l(z_t)."""
    epsilon, codes, values = 3e-6, [], []
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


def _limits() -> list[Relation]:
    """Both gradients in the loadings on a quadratic, where the maximum and the rate r of the ascent are known."""
    model, x = _linear(), torch.randn(6, 5)
    precision, best = _solution(model, x)
    low, high = torch.linalg.eigvalsh(precision.detach()).tolist()
    maximum, size = _gradient(model, _log_joint(model, x, best)), _gradient(model, 0.5 * best.square().sum(1))

    far = [_solve(model, x, 2 / (low + high), 26, mode) for mode in (Unroll(), Detach())]
    unrolled, detached = (_gradient(model, code.log_joint) for code in far)
    fit_unrolled, fit_detached = (_gradient(model, code.log_joint - code.log_prior) for code in far)

    rate = 1 - low / high  # with the step 1 / λ_max, which leaves no error along the other eigenvector
    (early, late), (second, third, fourth) = (
        [
            (_gradient(model, _solve(model, x, 1 / high, t, mode).log_joint) - maximum) / rate ** (order * t)
            for t in times
        ]
        for mode, order, times in ((Detach(), 1, (10, 11)), (Unroll(), 2, (2, 3, 4)))
    )
    size_of_early = early.norm()
    return [
        equal("t = 26: ∇l(z_t), unrolled = ∇ max_z l", unrolled, maximum),
        equal("t = 26: ∇l(z_t), detached = ∇ max_z l", detached, maximum),
        equal("the detached error / rᵗ is constant in t", late / size_of_early, early / size_of_early, 1e-3),
        equal("the unrolled error / r²ᵗ is affine in t", fourth + second, 2 * third, 1e-9),
        equal("another objective, log q(x|z_t), unrolled: ∇ max_z l + ∇ ½‖ẑ‖²", fit_unrolled, maximum + size),
        equal("... and detached: without the second term", fit_detached, maximum),
        at_most("... which does not vanish", 0.1, size.norm()),
    ]


def _solve(model: LinearMixture, x: Tensor, step: float, steps: int, mode: Adjoint) -> Encoding:
    return Ascent(Zeros(), GradientAscent(step), steps, adjoint=mode)(model, x)


def _gradient(model: LinearMixture, values: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), model.loadings, retain_graph=True)[0][0]


class _ResidualLayer(nn.Module):
    """z + U (x − μ) + V z with its own copy of U = 2βWᵀ and V = −2βWᵀW; without x, z + V z."""

    def __init__(self, model: LinearMixture, beta: float):
        super().__init__()
        rows, self.mean = model.loadings.detach()[0], model.means.detach()[0]
        self.inject, self.feedback = nn.Linear(5, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.inject.weight.data, self.feedback.weight.data = 2 * beta * rows, -2 * beta * rows @ rows.T

    def forward(self, z: Tensor, x: Tensor | None) -> Tensor:
        state = z + self.feedback(z)
        return state if x is None else state + self.inject(x - self.mean)

    def to_loadings(self, rows: Tensor, beta: float) -> Tensor:
        """The layer's gradients in U and V, carried on to the Wᵀ that both are made of."""
        of_u, of_v = self.inject.weight.grad, self.feedback.weight.grad
        assert of_u is not None and of_v is not None
        return 2 * beta * (of_u - (of_v + of_v.T) @ rows)


def _ascend(model: LinearMixture | Gaussian, x: Tensor, start: Tensor, beta: float, steps: int) -> Encoding:
    return Ascent(Constant(start), GradientAscent(beta), steps, adjoint=Unroll())(model, x)


def _curved(steps: int) -> tuple[Tensor, Tensor]:
    """Codes of a network decoder by gae's ascent, and by residual layers with its Jacobian matrix."""
    decoder = nets.mlp(2, [6], 4, nn.Tanh)
    model, x, z, beta = Gaussian(decoder, 2, 0.7), torch.randn(8, 4), torch.randn(8, 2), 0.05
    with torch.no_grad():
        ascended = _ascend(model, x, z, beta, steps).z[0]
        for _ in range(steps):
            pulled = torch.einsum("nde,nd->ne", vmap(jacrev(decoder))(z), x - decoder(z))
            z = z + beta * (pulled / 0.7**2 - z)
    return ascended, z
