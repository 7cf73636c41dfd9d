"""Checks of ``18_tangents.md``: singular vectors of an encoder's Jacobian on a curve, a surface and a plane."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, vmap

from gae.autoencoder import Autoencoder
from gae.inference import Amortized
from gae.ledger.claims import Check, at_most, check, equal
from gae.likelihood import Flat, Gaussian
from gae.training.penalty import Contractive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHT = 0.05  # of the contractive penalty, in nats
CLOSE = 5.0  # degrees, between a plane and a tangent
DEGREE = 5  # of the polynomials that encode a curve


@check
def check_D46() -> Check:
    """Minimisers of gae's training loss in closed form or by BFGS: singular vectors of ∂z/∂x against tangents."""
    curve, surface = _random_parabola(79), _random_bowl(11)
    start, kept, trained = _encoders(curve)
    bowl = _encoders(surface)[2]
    x = torch.randn(40, 4) * torch.tensor([1.2, 1.0, 0.4, 0.3])
    plane = torch.linalg.eigh(torch.cov(x.T, correction=0))[1]
    linear, principal = _tied(x, 4, nn.Identity()), _Manifold(x[:1], plane[None, :, 2:])
    turned, scale = torch.eye(4) + 9 * plane[:, :1] @ plane[:, :1].T, 300.0
    evading = _contractive(_linear(turned / scale), _linear(scale * torch.linalg.inv(turned)), 4)
    turned_by = _angles(_guide(evading), principal)
    slope = _slope(_contractive(trained, nn.Identity(), 2), curve.x[::2])
    few = _random_parabola(9)
    memory, seen = _encoders(few)[2], few.x[::2]
    still = torch.cat([(memory(seen) - seen).detach(), vmap(jacrev(memory))(seen).detach().flatten(0, 1)])
    squashed = _tied(curve.x[::4], 6, nn.Tanh())
    return Check(
        claim=[
            at_most("a curve, mean angle in degrees ≤ 5", _mean_angle(trained, curve), CLOSE),
            at_most("a surface in space ≤ 5", _mean_angle(bowl, surface), CLOSE),
            equal("a plane, linear and tied: the angle is 0", _angles(_guide(linear), principal), 0.0, 1e-3),
        ],
        without=[
            at_most("a curve before training ≤ 5", _mean_angle(start, curve), CLOSE),
            at_most("a curve without contraction ≤ 5", _mean_angle(kept, curve), CLOSE),
            at_most("a curve, tanh units with tied weights ≤ 5", _mean_angle(_guide(squashed), curve), CLOSE),
            equal("a plane, free weights: the angle is 0", turned_by, 0.0, 1e-3),
        ],
        correction=[
            equal("without contraction: r(x) = x", kept(curve.x[::2]), curve.x[::2]),
            equal("gae's loss has no slope there: curve", slope, 0.0, 1e-8),
            equal("gae's loss has no slope there: tanh units", _slope(squashed, curve.x[::4]), 0.0, 1e-6),
            equal("gae's loss has no slope there: plane", _slope(linear, x), 0.0, 1e-6),
            equal("five points, 21 polynomials: r(x) = x and ∂z/∂x = 0", still, 0.0, 1e-6),
            equal("free weights: the angle is 90°", turned_by, 90.0, 1e-3),
            at_most("free weights reach a lower loss", evading(x), linear(x)),
        ],
    )


def figure_D46() -> "Figure":
    """Leading singular vectors on a curve: before training, with contraction, and with tanh units and tied weights."""
    from matplotlib.figure import Figure

    curve = _random_parabola(40)
    start, _, trained = _encoders(curve)
    named = ("before training", start), ("contractive, polynomials", trained), ("contractive, tied tanh units", None)
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    for axes, (title, encoder) in zip(figure.subplots(1, 3), named, strict=True):
        encoder = encoder or _guide(_tied(curve.x[::4], 6, nn.Tanh()))
        directions = _leading(encoder, curve)[:, 0]
        axes.plot(*curve.x.T, color="0.7", zorder=0)
        axes.quiver(
            *curve.x[::3].T,
            *directions[::3].T,
            color="#0072B2",
            pivot="mid",
            headwidth=0,
            headlength=0,
            headaxislength=0,
        )
        axes.set(title=f"{title}\nmean angle {float(_mean_angle(encoder, curve)):.1f}°", aspect="equal")
    return figure


class _Manifold(NamedTuple):
    """Points (N, D) of a manifold and orthonormal bases of its tangents, (N, D, d)."""

    x: Tensor
    tangents: Tensor


def _random_parabola(points: int) -> _Manifold:
    t, bend, turn = torch.linspace(-1.2, 1.2, points), 0.5 + 0.7 * torch.rand(()), _rotation(2)
    tangents = torch.stack([torch.ones(points), 2 * bend * t], 1)
    return _Manifold(torch.stack([t, bend * (t.square() - 0.5)], 1) @ turn.T, _bases((tangents @ turn.T)[:, :, None]))


def _random_bowl(side: int) -> _Manifold:
    line, bends, turn = torch.linspace(-1, 1, side), 0.3 + 0.4 * torch.rand(2), _rotation(3)
    u = torch.cartesian_prod(line, line)
    x = torch.cat([u, (bends * u.square()).sum(1, keepdim=True) - bends.mean() / 1.5], 1)
    tangents = torch.cat([torch.eye(2).expand(len(u), 2, 2), (2 * bends * u)[:, None]], 1)
    return _Manifold(x @ turn.T, _bases(turn @ tangents))


def _rotation(width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width))[0]


def _bases(tangents: Tensor) -> Tensor:
    return torch.linalg.qr(tangents)[0]


class _Powers(nn.Module):
    """All monomials of D variables up to a degree."""

    def __init__(self, width: int, degree: int):
        super().__init__()
        every = torch.cartesian_prod(*[torch.arange(degree + 1)] * width)
        self.exponents = every[every.sum(1) <= degree]

    def forward(self, x: Tensor) -> Tensor:
        return (x[..., None, :] ** self.exponents).prod(-1)


def _encoders(manifold: _Manifold, degree: int = DEGREE) -> list[nn.Module]:
    """Polynomial encoders of x for the identity as decoder: random, the nearest to it with r(x) = x, contractive.

    The last two are minimisers of ‖f(x) − x‖² on every second point, without and with 2 WEIGHT ‖∂f/∂x‖²_F.
    """
    x = manifold.x[::2]
    powers = _Powers(x.shape[1], degree)
    design, slopes = powers(x), vmap(jacfwd(powers))(x).mT.flatten(0, 1)
    start = torch.randn(design.shape[1], x.shape[1])
    kept = start + torch.linalg.pinv(design) @ (x - design @ start)
    rows = torch.cat([design, math.sqrt(2 * WEIGHT) * slopes])
    trained = torch.linalg.lstsq(rows, torch.cat([x, torch.zeros(len(slopes), x.shape[1])]), driver="gelsd").solution
    return [nn.Sequential(powers, _linear(weight.T)) for weight in (start, kept, trained)]


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.contiguous()
    return layer


def _leading(encoder: nn.Module, manifold: _Manifold) -> Tensor:
    """The d leading right singular vectors of ∂z/∂x at each point, (N, d, D)."""
    jacobian = vmap(jacrev(encoder))(manifold.x).detach()
    return torch.linalg.svd(jacobian)[2][:, : manifold.tangents.shape[2]]


def _angles(encoder: nn.Module, manifold: _Manifold) -> Tensor:
    """The largest angle between the span of those vectors and the tangent, in degrees."""
    vectors = _leading(encoder, manifold)
    outside = vectors - vectors @ manifold.tangents @ manifold.tangents.mT
    return torch.linalg.matrix_norm(outside, 2).clamp(max=1).arcsin().rad2deg()


def _mean_angle(encoder: nn.Module, manifold: _Manifold) -> Tensor:
    return _angles(encoder, manifold).mean()


def _contractive(encoder: nn.Module, decoder: nn.Module, codes: int) -> Autoencoder:
    head = Gaussian(decoder, codes, prior=Flat(codes))
    return Autoencoder(head, Amortized(encoder), penalties=[Contractive(WEIGHT)])


class _Transposed(nn.Module):
    """The decoder whose weights are those of the encoder's first layer."""

    def __init__(self, layer: nn.Linear, width: int):
        super().__init__()
        self.layer, self.shift = layer, nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.layer.weight + self.shift


def _tied(x: Tensor, units: int, activation: nn.Identity | nn.Tanh) -> Autoencoder:
    """One layer with tied weights (Rifai et al. 2011), at a minimum of gae's contractive loss by BFGS."""
    size, width = x.shape
    seen, parts, tanh = x.numpy(), [units * width, units * (width + 1)], isinstance(activation, nn.Tanh)

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias, shift = np.split(free, parts)
        weight = weight.reshape(units, width)
        inner = seen @ weight.T + bias
        h = np.tanh(inner) if tanh else inner
        slope = 1 - h**2 if tanh else np.ones_like(h)
        bend = -2 * h * slope if tanh else np.zeros_like(h)
        error, squares = h @ weight + shift - seen, np.square(weight).sum(1)
        back = error @ weight.T * slope + 2 * WEIGHT * slope * bend * squares
        gradients = h.T @ error + back.T @ seen + 2 * WEIGHT * weight * np.square(slope).sum(0)[:, None]
        value = np.square(error).sum() / 2 + WEIGHT * (np.square(slope) @ squares).sum()
        return value / size, np.concatenate([gradients.ravel(), back.sum(0), error.sum(0)]) / size

    start = torch.cat([torch.randn(parts[0]), torch.zeros(units + width)]).numpy()
    best = torch.as_tensor(minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x).to(x)
    layer = nn.Linear(width, units)
    decoder = _Transposed(layer, width)
    weight, layer.bias.data, decoder.shift.data = best.tensor_split(parts)
    layer.weight.data = weight.reshape(units, width)
    return _contractive(nn.Sequential(layer, activation), decoder, units)


def _slope(model: Autoencoder, x: Tensor) -> Tensor:
    """The gradient of gae's training loss in all weights."""
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(model(x), list(model.parameters()))])


def _guide(model: Autoencoder) -> nn.Module:
    assert isinstance(model.inference, Amortized) and isinstance(model.inference.guide, nn.Module)
    return model.inference.guide
