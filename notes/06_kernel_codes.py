"""Checks of ``06_kernel_codes.md``: codes in a space of Gaussian kernels."""

import math
from typing import TYPE_CHECKING

import torch
from scipy.optimize import brentq, linprog
from torch import Tensor, nn

from gae.inference import LBFGS, Ascent, Constant, GradientAscent, Status, Zeros
from gae.ledger.claims import Check, Relation, at_most, check, equal
from gae.likelihood import Categorical, Flat

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Kernels(nn.Module):
    """Logits −‖v − w_k‖² of K Gaussian kernels, with +‖v‖² of an absorbing component where there is one."""

    def __init__(self, centres: Tensor, absorbing: bool):
        super().__init__()
        self.register_buffer("centres", centres)
        self.absorbing = absorbing

    def forward(self, v: Tensor) -> Tensor:
        logits = -(v.unsqueeze(1) - self.get_buffer("centres")).square().sum(2)
        return torch.cat([logits, v.square().sum(1, keepdim=True)], 1) if self.absorbing else logits


@check
def check_D17() -> Check:
    """gae's ``Categorical`` over kernels, ascended, against the root of the stationarity condition by bisection."""
    centres, first = torch.tensor([[0.0], [-1.0]]), torch.zeros(1)
    root = brentq(lambda v: 2 * v * math.exp(2 * v * v + 2 * v + 1) - 1, 0, 1, xtol=1e-14)
    bounded, free = (Categorical(Kernels(centres, absorbing), 1, Flat(1)) for absorbing in (True, False))
    with torch.no_grad():
        found = Ascent(Zeros(), LBFGS(), max_steps=60, grad_tol=1e-12)(bounded, first)
        path = torch.stack(
            [Ascent(Zeros(), GradientAscent(1.0), t)(free, first).z.squeeze() for t in (0, 1, 3, 10, 30)]
        )

    by_hand = [torch.tensor(0.0)]
    for _ in range(30):
        by_hand.append(by_hand[-1] + _slope(by_hand[-1]))

    places = torch.linspace(-4, 9, 40).reshape(-1, 1, 1).requires_grad_()
    (slope,) = torch.autograd.grad(free.log_joint(first, places).sum(), places)
    w, v = torch.randn(5, 3), torch.randn(20, 3)
    exponent = 2 * v @ w.T - w.square().sum(1)
    shares = (exponent.exp().T / exponent.exp().sum(1)).T
    return Check(
        [
            equal("v̂ by ascent = root of 2v exp(2v² + 2v + 1) = 1", found.z.squeeze(), root, 1e-9),
            equal("the recorded digits", root, 0.1352900712, 5e-11),
            equal("without absorption: ∂ log u_1 / ∂v = 2 / (1 + e^(2v + 1))", slope, _slope(places), 1e-12),
            at_most("so that it is positive everywhere", 0.0, slope, 0.0),
            equal(
                "steps of ascent = v + 2 / (1 + e^(2v + 1)), repeated", path, torch.stack(by_hand)[[0, 1, 3, 10, 30]]
            ),
            at_most("and move on for ever", path[:-1], path[1:], 0.0),
            equal("‖v‖² inside the softargmax cancels", Kernels(w, False)(v).softmax(1), shares, 1e-15),
            *_absorbing(w),
        ]
    )


@check
def check_D18() -> Check:
    """Automatic derivatives of log Σ_k q(k|z) p_k against both formulas; fixed points by iteration and by ascent."""
    codes, b, log_p = torch.randn(6, 2), 0.3, 2 * torch.randn(6)
    z = torch.randn(5, 2).requires_grad_()
    (slope,) = torch.autograd.grad(_log_density(z, codes, b, log_p).sum(), z)
    written, dropped = _formulas(z.detach(), codes, b, log_p)

    fixed = z.detach()
    for _ in range(400):
        fixed = fixed + 0.5 * _formulas(fixed, codes, b, log_p)[0]
    here = fixed.clone().requires_grad_()
    (left,) = torch.autograd.grad(_log_density(here, codes, b, log_p).sum(), here)

    line, preferred = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([-3.0, -1.0, 0.0])
    model = _Mixed(line, 1e-3, preferred)
    with torch.no_grad():
        found = Ascent(Constant(torch.ones(1)), LBFGS(), max_steps=200, grad_tol=1e-10)(model, torch.zeros(1))
    assert found.solve is not None and bool((found.solve.status == Status.converged).all())
    best = found.z.reshape(1, 1)
    root = brentq(lambda v: _derivative(torch.tensor([[v]]), line, 1e-3, preferred), 1.05, 9.0, xtol=1e-14)
    return Check(
        claim=[
            equal("∂ log Σ q p / ∂z = 2 Σ_k [p q / Σ p q](B_k − z)", slope, written),
            equal("zero at z = Σ p q B / Σ p q", left, 0.0),
        ],
        correction=[
            equal("the same, minus 2 Σ_k q(k|z)(B_k − z)", slope, written - dropped),
            equal("the written fixed point lies in the hull of B", _distance_from_hull(fixed, codes), 0.0, 1e-9),
            equal("at that point it is −2 Σ_k q(k|z)(B_k − z)", left, -_formulas(fixed, codes, b, log_p)[1]),
            equal("the maximiser need not: ẑ = root of the derivative, B = −1, 0, 1", best, root, 1e-8),
            equal("the recorded digits", root, 2.46266, 5e-6),
            equal(
                "its distance from the hull, and that of −ẑ",
                _distance_from_hull(torch.cat([best, -best]), line),
                root - 1,
                1e-8,
            ),
        ],
    )


def figure_D17() -> "Figure":
    """Without an absorbing component the code is pushed away; with one it stays."""
    from matplotlib.figure import Figure

    v = torch.linspace(-2, 3, 300, dtype=torch.float64)
    centres = torch.tensor([[0.0], [-1.0]], dtype=torch.float64)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for absorbing, color, dash in ((False, "#D55E00", "--"), (True, "#0072B2", "-")):
        log_u = Kernels(centres, absorbing)(v[:, None]).log_softmax(1)[:, 0]
        axes.plot(v, log_u, color=color, ls=dash, label=("with" if absorbing else "without") + " exp(vᵀv)")
    axes.axvline(0.1352900712, color="#888888", lw=1)
    axes.set(xlabel="code v", ylabel="log u₁   (nats)", ylim=(-6, 0.2))
    axes.legend(title="absorbing component", loc="lower right")
    return figure


class _Mixed(Categorical):
    """log Σ_k q(k|z) p_k in the place of a log likelihood, so that gae's engines can ascend it."""

    def __init__(self, codes: Tensor, b: float, log_p: Tensor):
        super().__init__(Kernels(codes, False), codes.shape[1], Flat(codes.shape[1]))
        self.codes, self.b, self.log_p = codes, b, log_p

    def log_likelihood(self, x: Tensor, output: Tensor, k: Tensor | None = None) -> Tensor:
        normalizer = torch.logaddexp(output.logsumexp(-1), torch.tensor(math.log(self.b)))
        return (output + self.log_p).logsumexp(-1) - normalizer


def _slope(v: Tensor) -> Tensor:
    return 2 / (1 + (2 * v.detach() + 1).exp())


def _absorbing(w: Tensor) -> list[Relation]:
    """In three dimensions: v̂ is finite, and its gradient as derived by hand is zero there."""
    model = Categorical(Kernels(w, True), 3, Flat(3))
    with torch.no_grad():
        found = Ascent(Zeros(), LBFGS(), max_steps=300, grad_tol=1e-9)(model, torch.zeros(1))
    v = found.z.reshape(3)
    u = torch.cat([-(v - w).square().sum(1), v.square().sum().reshape(1)]).softmax(0)
    pulled = (w[0] - v) - u[:-1] @ (w - v) - u[-1] * v
    return [equal("random kernels in 3-D: ∂ log u_1 / ∂v = 0 at a finite v̂", pulled, 0.0, 1e-8)]


def _log_density(z: Tensor, codes: Tensor, b: float, log_p: Tensor) -> Tensor:
    kernel = (-(z[:, None] - codes).square().sum(2)).exp()
    return ((kernel / (b + kernel.sum(1, keepdim=True))) @ log_p.exp()).log()


def _formulas(z: Tensor, codes: Tensor, b: float, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient as written, 2 Σ r_k (B_k − z), and what it leaves out, 2 Σ q(k|z)(B_k − z)."""
    kernel = (-(z[:, None] - codes).square().sum(2)).exp()
    q = kernel / (b + kernel.sum(1, keepdim=True))
    r = q * log_p.exp() / (q * log_p.exp()).sum(1, keepdim=True)
    offset = codes - z[:, None]
    return 2 * torch.einsum("nk,nke->ne", r, offset), 2 * torch.einsum("nk,nke->ne", q, offset)


def _derivative(z: Tensor, codes: Tensor, b: float, log_p: Tensor) -> float:
    """The gradient of log Σ_k q(k|z) p_k in one dimension, by the two formulas."""
    written, dropped = _formulas(z, codes, b, log_p)
    return float(written - dropped)


def _distance_from_hull(points: Tensor, codes: Tensor) -> Tensor:
    """The smallest ‖Σ a_k B_k − z‖₁ over convex weights a, by linear programming."""
    size, dim = codes.shape
    distances = []
    for point in points:
        # weights a, and slacks s⁺, s⁻ ≥ 0 with Bᵀa + s⁺ − s⁻ = z
        equations = torch.cat(
            [torch.cat([codes.T, torch.eye(dim), -torch.eye(dim)], 1), torch.zeros(1, size + 2 * dim)]
        )
        equations[-1, :size] = 1.0
        target = torch.cat([point, torch.ones(1)])
        cost = torch.cat([torch.zeros(size), torch.ones(2 * dim)])
        distances.append(linprog(cost.numpy(), A_eq=equations.numpy(), b_eq=target.numpy()).fun)
    return torch.tensor(distances)
