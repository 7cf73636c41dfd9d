"""Checks of ``04_linear.md``: linear decoders and principal component analysis."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from gae import systems
from gae.autoencoder import Autoencoder
from gae.inference import Amortized, Ascent, ClosedForm, Constant, GradientAscent, Inference
from gae.ledger.claims import Check, at_most, check, equal
from gae.likelihood import Flat, Gaussian, Likelihood, LinearMixture
from gae.objective import joint
from gae.training import fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNIT = math.sqrt(0.5)  # the noise scale at which log q(x|z) = −‖x − μ − Wz‖² + constant
LBFGS = partial(torch.optim.LBFGS, max_iter=100, history_size=50, tolerance_change=1e-10, line_search_fn="strong_wolfe")


@check
def check_D12() -> Check:
    """Automatic derivatives of gae's log densities, by three ways through the library, against the formula."""
    w, mean, x, z = torch.randn(6, 3), torch.randn(6), torch.randn(40, 6), torch.randn(5, 40, 3)
    residual = x - mean - torch.einsum("de,sbe->sbd", w, z)
    formula = 2 * torch.einsum("de,sbd->sbe", w, residual)
    model, noisy = _linear(w, mean), _linear(w, mean, scale=0.3)
    layer = nn.Linear(3, 6)
    layer.weight.data, layer.bias.data = w, mean
    network = Gaussian(layer, 3, UNIT, prior=Flat(3))
    distance = residual.square().sum(2)
    return Check(
        claim=[
            equal("∂/∂z log q(x|z), σ² = ½, by autodiff = 2Wᵀ(x − μ − Wz)", _slope(model, x, z), formula),
            equal("log q(x|z) = −‖x − μ − Wz‖² − D/2 log π", model.log_joint(x, z), -distance - 3 * math.log(math.pi)),
            equal("the same slope from sufficient statistics", _gradient(model.bind(x), z), formula),
            equal("the same slope of a linear network", _slope(network, x, z), formula),
        ],
        correction=[equal("any σ: Wᵀ(x − μ − Wz) / σ²", _slope(noisy, x, z), formula / (2 * 0.3**2))],
    )


@check
def check_D13() -> Check:
    """One step of gae's ``Ascent`` against the formula; least squares by numpy where W is not orthonormal."""
    mean, x, start = torch.randn(6), torch.randn(40, 6), 5 * torch.randn(40, 3)
    w, skew = torch.linalg.qr(torch.randn(6, 3))[0], torch.randn(6, 3)
    model, general = _linear(w, mean), _linear(skew, mean)
    landed = _half_step(model, x, start)
    curvature = torch.autograd.functional.hessian(lambda z: model.log_joint(x[:1], z.view(1, 1, 3)).squeeze(), start[0])

    best = torch.from_numpy(np.linalg.lstsq(skew.numpy(), (x - mean).T.numpy())[0].T)
    missed, expected = _half_step(general, x, start) - best, (start - best) @ (torch.eye(3) - skew.T @ skew)
    newton = start + _slope(general, x, start.unsqueeze(0)) @ torch.linalg.inv(2 * skew.T @ skew)
    example, seen = _linear(torch.tensor([[1.0], [2.0]]), torch.zeros(2)), torch.tensor([[0.5, 0.7]])
    return Check(
        claim=[
            equal("z + ½ ∂L/∂z from random z = Wᵀ(x − μ)", landed, (x - mean) @ w, 1e-12),
            equal("the gradient there = 0", _slope(model, x, landed.unsqueeze(0)), 0.0, 1e-12),
            equal("∂²L/∂z² = −2I", curvature, -2 * torch.eye(3), 1e-12),
        ],
        correction=[
            equal("any W: the half step is off by (I − WᵀW)(z − ẑ)", missed, expected),
            equal("any W: one Newton step lands on ẑ", newton, best),
            equal("W = (1, 2), x = (0.5, 0.7): a half step from 0", _half_step(example, seen, torch.zeros(1)), 1.9),
            equal("its optimum", ClosedForm()(example, seen).z, 0.38),
        ],
    )


@check
def check_D14() -> Check:
    """gae's closed form, an ascent inside L-BFGS training, and a linear encoder, against scikit-learn and an SVD."""
    x = _ellipsoid(60)
    theirs = PCA(2).fit(x.numpy())
    principal, scores = torch.from_numpy(theirs.components_), torch.from_numpy(theirs.transform(x.numpy()))
    closed = systems.pca((4,), latent=2)
    fit(closed, x, progress=False)
    loadings = closed.likelihood.get_parameter("loadings").detach()[0]
    constant, centred = 2 * math.log(2 * math.pi), x - x.mean(0)
    discarded = torch.linalg.svdvals(centred)[2:].square().sum() / len(x)
    highest = -discarded / 2 - constant
    frames = [_orthonormal(loadings.T + size * torch.randn(4, 2)) for size in 10 * [0.01, 1.0]]
    at_frames = torch.stack([_value(_linear(w, x.mean(0), 1.0), x) for w in frames])
    misfit = torch.stack([(centred.square().sum() - (centred @ w).square().sum()) / len(x) for w in frames])
    remixed = _linear(loadings.T @ torch.randn(2, 2), x.mean(0), 1.0)

    constrained, free = orthogonal(nn.Linear(2, 4), orthogonal_map="matrix_exp"), nn.Linear(2, 4)
    ascended = _trained(constrained, Ascent(step=GradientAscent(0.5), max_steps=1), x)
    encoded = _trained(free, Amortized(nn.Linear(4, 2)), x)
    return Check(
        claim=[
            equal("largest angle to PCA: gae's closed form", _largest_angle(loadings, principal), 0.0, 1e-6),
            equal("the same: codes by one step, L-BFGS for W", _angle_of(constrained, principal), 0.0, 1e-3),
            equal("the same: linear encoder and decoder", _angle_of(free, principal), 0.0, 1e-3),
            equal("codes = PCA's scores, up to signs", closed.encode(x).point.abs(), scores.abs()),
            equal("L(W) = −½ (tr C − tr WᵀCW) + constant, WᵀW = I", at_frames, -misfit / 2 - constant),
            at_most("L(W) ≤ −½ (discarded variance) + constant", at_frames, highest),
            equal("max L by gae's closed form", -closed(x), highest),
            equal("E ‖x − x̂‖² with codes by one step", ascended, discarded, 1e-6),
            equal("E ‖x − x̂‖² with a linear encoder", encoded, discarded, 1e-6),
        ],
        correction=[equal("L(WR) = max L for invertible R", _value(remixed, x), highest)],
    )


def figure_D13() -> "Figure":
    """Half steps from many codes: on one point where W is orthonormal, past it where it is not."""
    from matplotlib.figure import Figure

    x, mean = torch.tensor([[0.8, 0.6, 0.0]]), torch.zeros(3)
    skew = torch.tensor([[1.3, 0.3], [0.0, 0.7], [0.2, 0.1]])
    angle = torch.linspace(0, 2 * math.pi, 13)[:-1]
    starts = torch.stack([0.7 + 1.5 * angle.cos(), 0.5 + 1.5 * angle.sin()], 1)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    for axes, w, title in zip(figure.subplots(1, 2), (torch.eye(3, 2), skew), ("WᵀW = I", "another W"), strict=True):
        model, seen = _linear(w, mean), x.expand(12, -1)
        ends, best = _half_step(model, seen, starts), ClosedForm()(model, x).z[0].detach()
        axes.quiver(*starts.T, *(ends - starts).T, angles="xy", scale_units="xy", scale=1, color="#0072B2", width=0.006)
        axes.plot(*best.T, "o", color="#D55E00", label="optimal code")
        axes.set(xlabel="z₁", ylabel="z₂", title=title, xlim=(-1.5, 3), ylim=(-1.3, 3), aspect="equal")
        axes.legend(loc="upper right")
    return figure


def _linear(w: Tensor, mean: Tensor, scale: float = UNIT) -> LinearMixture:
    """x = μ + Wz + σε with W (D, E), under a flat prior."""
    model = LinearMixture(1, w.shape[1], (len(w),), flat_prior=True, scale=scale, means=mean.unsqueeze(0))
    model.loadings.data = w.T.unsqueeze(0)
    return model


def _gradient(density: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    code = z.clone().requires_grad_()
    return torch.autograd.grad(density(code).sum(), code)[0]


def _angle_of(layer: nn.Module, principal: Tensor) -> Tensor:
    """The largest angle of a linear decoder's column space to the principal one."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return _largest_angle(weight.T, principal)


def _slope(model: Likelihood, x: Tensor, z: Tensor) -> Tensor:
    """The gradient of gae's log q(x|z) in z, by automatic differentiation."""
    return _gradient(partial(model.log_joint, x), z)


def _half_step(model: LinearMixture, x: Tensor, start: Tensor) -> Tensor:
    """Where one step of rate ½ of gae's ascent from given codes (B, E) lands."""
    return Ascent(Constant(start), GradientAscent(0.5), max_steps=1)(model, x).z[0].detach()


def _value(model: LinearMixture, x: Tensor) -> Tensor:
    """E max_z log q(x|z)."""
    return joint(ClosedForm()(model, x)).mean()


def _trained(layer: nn.Module, engine: Inference, x: Tensor) -> Tensor:
    """Trains a linear decoder with codes from the engine; E ‖x − x̂‖² after it."""
    autoencoder = Autoencoder(Gaussian(layer, 2, UNIT, prior=Flat(2)), engine)
    fit(autoencoder, x, optimizer=LBFGS, batch_size=len(x), epochs=1, progress=False)
    return (autoencoder.reconstruct(x) - x).square().sum(1).mean()


def _ellipsoid(size: int) -> Tensor:
    """Points with two long axes and two short ones, in a random orientation."""
    axes = torch.tensor([2.0, 1.8, 0.4, 0.3])
    return (torch.randn(size, 4) * axes) @ _orthonormal(torch.randn(4, 4)) + torch.randn(4)


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns)[0]


def _largest_angle(rows: Tensor, others: Tensor) -> Tensor:
    """The largest principal angle between two row spaces, by its sine, which is accurate for small angles."""
    a, b = _orthonormal(rows.detach().T), _orthonormal(others.T)
    return torch.linalg.matrix_norm(b - a @ (a.T @ b), 2).clamp_max(1.0).asin()
