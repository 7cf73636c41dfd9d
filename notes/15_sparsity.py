"""Checks of ``15_sparsity.md``: the share of non-zero codes as a penalty, and the codes of wide decoders."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.linear_model import Lasso, lars_path
from torch import Tensor, nn

from gae.autoencoder import Autoencoder
from gae.inference import Amortized, Ascent, Constant, Encoding, GradientAscent, ProximalAscent, Zeros
from gae.ledger.claims import Check, at_most, check, equal
from gae.likelihood import Flat, Gaussian, LaplacePrior
from gae.objective import joint
from gae.training import fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM = 6  # D, the width of an observation
WIDE = 24  # E, the width of a code of an over-complete decoder


@check
def check_D37() -> Check:
    """Training by gae's ``fit`` with and without the penalty; shares counted by numpy, L1 codes by gae's ascent."""
    x, target = torch.randn(50, DIM), 0.1
    start = _autoencoder().state_dict()
    plain, penalised = (_trained(x, start, weight, target) for weight in (0.0, 5.0))
    codes = penalised.encode(x).point
    shares = torch.arange(WIDE + 1) / WIDE
    targets = torch.tensor([0.05, 0.1, 0.5, 0.9])
    penalty = shares - targets[:, None]

    active = codes[codes > 1e-3].requires_grad_()
    (slope,) = torch.autograd.grad(_share(active), active)
    dense = nn.Linear(DIM, WIDE)(x)
    l1_share = _share_of_l1_codes(0.25)
    return Check(
        claim=[
            at_most("the penalty at s = s* ≤ at any s", 0.0, shares - target),
            equal("after training with it: s = s*", _counted(codes), target),
            at_most("0.01 ≤ the largest |∂(s − s*)/∂z|", 0.01, slope.abs().max()),
        ],
        correction=[
            equal("weights trained with the penalty = without", _weights(penalised), _weights(plain), 1e-12),
            equal("its value = 5 (s − s*)", penalised(x) - plain(x), 5 * (_counted(codes) - target)),
            equal("∂(s − s*)/∂z = 0 at z ≠ 0, by differences", _by_differences(_counted, active), slope),
            equal(
                "and ∂ mean |z|/∂z = 1, by the same",
                _by_differences(lambda z: float(z.abs().mean()), active),
                1.0,
                1e-9,
            ),
            equal("s − s*, for every s*: lowest −s*, at s = 0", penalty.amin(1), -targets),
            equal("highest 1 − s*", penalty.amax(1), 1 - targets),
            equal("codes of a linear encoder: s = 1", _counted(dense), 1.0),
            equal("L1 with the rate at a quantile of |Aᵀx|: s = ¼", l1_share, 0.25),
        ],
    )


@check
def check_D49() -> Check:
    """gae's codes without a penalty against the pseudo-inverse, and with one against scikit-learn's lasso."""
    x, dictionary = torch.randn(40, DIM), _wide()
    ascended = Ascent(Zeros(), GradientAscent(0.6), max_steps=60)(_decoder(dictionary, Flat(WIDE)), x).z[0].detach()
    shortest = x @ torch.linalg.pinv(dictionary).T
    spread = ascended.abs() > 0.1 * ascended.square().mean().sqrt()
    units = nn.Linear(DIM, WIDE, bias=False)
    both = sum(_counted(units(side).relu().detach()) for side in (x, -x))

    rate = 0.3
    lasso, vertices = _lasso(dictionary, x, rate), _end_of_path(dictionary, x[:8])
    step = Ascent(Constant(lasso), ProximalAscent(0.4), max_steps=1)(
        _decoder(dictionary, LaplacePrior(WIDE, rate=rate)), x
    )
    return Check(
        claim=[
            at_most("no penalty: share of non-zero codes ≤ ½", _counted(ascended), 0.5),
            at_most("no penalty: share of codes above a tenth of their r.m.s. ≤ ½", _counted(spread), 0.5),
            at_most("ReLU units with random weights: active share at x + at −x ≤ ½", both, 0.5),
        ],
        correction=[
            equal("no penalty: ascent from 0 = the code of least norm", ascended, shortest),
            equal("its share of non-zero elements = 1", _counted(shortest), 1.0),
            equal("and x̂ = x", shortest @ dictionary.T, x),
            equal("ReLU units: active share at x + at −x = 1", both, 1.0),
            at_most("L1: number of non-zero elements ≤ D", (lasso != 0).sum(1), DIM),
            equal("L1 of vanishing rate: number of non-zero elements = D", (vertices.abs() > 1e-9).sum(1), DIM),
            equal("and x̂ = x", vertices @ dictionary.T, x[:8], 1e-6),
            equal("L1: a step of gae's ProximalAscent leaves the lasso's code", step.z[0].detach(), lasso, 1e-8),
        ],
    )


def figure_D49() -> "Figure":
    """One observation's codes, by size, without a penalty and with L1."""
    from matplotlib.figure import Figure

    torch.manual_seed(0)
    with torch.no_grad():
        dictionary, x = _wide().double(), torch.randn(1, DIM, dtype=torch.float64)
        codes = x @ torch.linalg.pinv(dictionary).T, _lasso(dictionary, x, 0.3)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for code, name, color, shift in zip(codes, ("least norm", "L1"), ("#0072B2", "#D55E00"), (-0.2, 0.2), strict=True):
        heights = code[0].abs().sort(descending=True).values
        axes.bar((torch.arange(WIDE) + shift).numpy(), heights.numpy(), width=0.4, color=color, label=name)
    axes.set(xlabel="element of the code, by size", ylabel="|z|")
    axes.legend()
    return figure


def _autoencoder() -> Autoencoder:
    encoder = nn.Sequential(nn.Linear(DIM, WIDE), nn.ReLU())
    return Autoencoder(Gaussian(nn.Linear(WIDE, DIM), WIDE, prior=Flat(WIDE)), Amortized(encoder), joint)


def _weights(model: Autoencoder) -> Tensor:
    return torch.cat([part.detach().flatten() for part in model.parameters()])


def _trained(x: Tensor, start: dict[str, Tensor], weight: float, target: float) -> Autoencoder:
    """Trained from the same weights, by SGD, on the objective less weight (s - target)."""
    model = _autoencoder()
    model.load_state_dict(start)

    def objective(encoding: Encoding) -> Tensor:
        return joint(encoding) - weight * (_share(encoding.z.flatten(2), dim=(0, 2)) - target)

    model.objective = objective
    fit(model, x, optimizer=partial(torch.optim.SGD, lr=0.01), batch_size=len(x), epochs=10, progress=False)
    return model


def _share(z: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """The share of non-zero elements, as a function that autograd can differentiate."""
    return z.sign().abs().mean(dim)


def _counted(z: Tensor) -> float:
    return np.count_nonzero(z.detach().numpy()) / z.numel()


def _by_differences(function: Callable[[Tensor], float], z: Tensor) -> float:
    """The slope of a function where all elements of z move together."""
    step = 1e-4
    return (function(z.detach() + step) - function(z.detach() - step)) / (2 * step)


def _share_of_l1_codes(share: float) -> float:
    """The share of non-zero MAP codes of an orthonormal dictionary, with the rate at a quantile of |Aᵀx|."""
    x, dictionary = torch.randn(40, DIM), torch.linalg.qr(torch.randn(DIM, DIM))[0]
    rate = float((x @ dictionary).abs().quantile(1 - share))
    model = _decoder(dictionary, LaplacePrior(DIM, rate=rate))
    return _counted(Ascent(Zeros(), ProximalAscent(1.0), max_steps=3)(model, x).z[0])


def _wide() -> Tensor:
    """A random over-complete dictionary (D, E) with singular values from 1 to 1.5."""
    left, right = torch.linalg.qr(torch.randn(DIM, DIM))[0], torch.linalg.qr(torch.randn(WIDE, DIM))[0]
    return left @ torch.linspace(1, 1.5, DIM).diag() @ right.T


def _decoder(dictionary: Tensor, prior: nn.Module) -> Gaussian:
    """x = Az + noise of variance 1."""
    layer = nn.Linear(dictionary.shape[1], len(dictionary), bias=False)
    layer.weight.data = dictionary
    return Gaussian(layer, dictionary.shape[1], prior=prior)


def _lasso(dictionary: Tensor, x: Tensor, rate: float) -> Tensor:
    """The minimiser of ½‖x − Az‖² + rate Σ|z|, (B, E); scikit-learn divides the square by D."""
    solver = Lasso(alpha=rate / len(dictionary), fit_intercept=False, tol=1e-14, max_iter=100_000)
    return torch.stack([torch.from_numpy(solver.fit(dictionary.numpy(), row).coef_.copy()) for row in x.numpy()])


def _end_of_path(dictionary: Tensor, x: Tensor) -> Tensor:
    """The lasso's solution for a rate near 0, by least-angle regression."""
    ends = [lars_path(dictionary.numpy(), row, method="lasso", alpha_min=1e-9)[2][:, -1] for row in x.numpy()]
    return torch.from_numpy(np.stack(ends))
