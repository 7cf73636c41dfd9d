"""Checks of ``13_shrinkage.md``: early stopping against an L2 penalty, and the weights of a copy."""

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from gae.autoencoder import Autoencoder
from gae.inference import Amortized, Ascent, ClosedForm, GradientAscent, Zeros
from gae.ledger.claims import Check, at_most, check, equal
from gae.likelihood import Flat, Gaussian, LinearMixture
from gae.objective import joint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 20  # T
DIM = 3  # D, the width of an observation


@check
def check_D40() -> Check:
    """torch's ``SGD`` against scikit-learn's ``Ridge``, and gae's stopped ``Ascent`` against its ``ClosedForm``."""
    rate, small, large = 0.02, torch.tensor([0.001, 0.004, 0.01]), torch.tensor([0.3, 2.5, 5.0])
    early, late = (_Problem(product / (rate * STEPS), rate) for product in (small, large))
    start = 1 + torch.rand(3)
    stopped, stopped_late, moved = early.by_sgd(), late.by_sgd(), early.by_sgd(start)
    grid = torch.linspace(0.01, 10, 1000)
    flow, ridge = 1 - (-grid).exp(), grid / (1 + grid)
    widest = _crossing()
    matching = late.curvature * (late.optimum / stopped_late - 1)  # the λ that shrinks each direction as much
    worst = _steepest()
    few = _Problem(large / (rate * STEPS), rate, rows=3)
    return Check(
        claim=[
            equal("ηTλ_i ≤ 0.01: w after T steps of SGD = ridge, λ = 1/(ηT)", stopped, early.by_ridge(), 1e-4),
            equal("the same of a code: T steps of Ascent = MAP, z ~ N(0, I)", *early.codes(), 1e-4),
        ],
        without=[
            equal("ηTλ_i = 0.3, 2.5, 5: w after T steps of SGD = ridge", stopped_late, late.by_ridge(), 1e-4),
            equal("the same of a code", *late.codes(), 1e-4),
            equal("one λ for ηTλ_i = 0.3 and 5: λ that matches the first = the last", matching[0], matching[-1]),
            equal("ηTλ_i ≤ 0.01, from another w₀: SGD = ridge", moved, early.by_ridge(), 1e-4),
        ],
        correction=[
            equal("largest difference of 1 − e⁻ˣ and x/(1 + x), x = ηTλ", (flow - ridge).max(), _gap(widest), 1e-4),
            equal("SGD from 0: w_T = 1 − (1 − ηλ)ᵀ of the optimum", stopped_late, late.shrinkage() * late.optimum),
            equal("their difference/x² = (1 + 1/T)/2 to first order", _second_order(1e-3), (1 + 1 / STEPS) / 2, 2e-3),
            equal(
                "any x: w_T = ridge with λ_i (w*_i/w_i − 1) along direction i", stopped_late, late.penalised(matching)
            ),
            equal(
                "from another w₀: w_T − w₀ = ridge of w − w₀, ηTλ_i ≤ 0.01",
                moved - start,
                early.by_ridge(start),
                5e-4,
            ),
            equal(
                "mean over all orders of T = 2 single samples = T full steps", few.over_orders(2), few.by_sgd(steps=2)
            ),
            equal(
                "largest ratio of the biases e⁻ˣ and 1/(1 + x): 1, at 0", ((-grid).exp() * (1 + grid)).max(), 1.0, 1e-4
            ),
            equal(
                "largest ratio of their variances, at eˣ = 1 + x + x²",
                (flow / ridge).square().max(),
                ((1 + worst).square() / (1 + worst + worst.square())).square(),
                1e-4,
            ),
            equal("ηTλ_i as stated: ηT XᵀX", *_stated((early, small), (late, large))),
        ],
    )


@check
def check_D41() -> Check:
    """Best decoders of tanh features by least squares, against expansions in s; gae's ``Autoencoder`` for the slope."""
    x, mix = 2 * torch.rand(300, DIM) - 1, torch.linalg.qr(torch.randn(DIM, DIM))[0]
    tiny, large = 0.01, 3.0
    y, ladder = x @ mix.T, torch.logspace(-2, 1, 13)
    log_errors = torch.stack([_best(x, (s * y).tanh())[0] for s in ladder]).log()
    error, decoder = _best(x, (tiny * y).tanh())
    pairs, bits = torch.cat([(large * y).relu(), (-large * y).relu()], 1), x.sign()

    nodes = (torch.arange(4000.0)[:, None] + 0.5) / 2000 - 1  # the midpoints of 4000 intervals
    staircase = (50 * (nodes - torch.linspace(-1.05, 1.05, 43))).tanh()
    ramps, sides = torch.cat([(large * nodes).relu(), (-large * nodes).relu()], 1), nodes.sign()
    expected = _error_of_one_unit(large)
    by_staircase, by_ramps = _best(nodes, staircase)[0], _best(nodes, ramps)[0]
    by_sides = _best(sides, (large * sides).tanh())[0]
    uniform, half = _best(nodes, (tiny * nodes).tanh())[0], 0.03
    twice = torch.cat([(half * y).tanh(), (2 * half * y).tanh()], 1)
    ratio = _best(x, twice)[0] / half**8 / _unexplained(8 / 15 * y**5, torch.cat([y, y**3], 1))
    return Check(
        claim=[
            equal(
                "s = 0.01: error/s⁴ = E‖(Rx)³/3 less its linear part‖²",
                error / tiny**4,
                _unexplained(y**3 / 3, y),
                2e-5,
            ),
            equal("s = 0.01: decoder = Rᵀ/s", tiny * decoder, mix, 1e-3),
            at_most("log error at smaller s ≤ at larger s, 0.01 … 10", log_errors[:-1], log_errors[1:]),
            equal("∂ log error/∂ log s = 4: training lowers s", _slope(x, mix, tiny), 4.0, 1e-2),
            equal(
                "s = 3: error = E x² − (E x tanh sx)²/E tanh² sx",
                _best(nodes, (large * nodes).tanh())[0],
                expected,
                1e-4,
            ),
        ],
        without=[
            equal("ReLU pair, s = 3: the same error", by_ramps, expected, 1e-4),
            equal("binary x, s = 3: the same error", by_sides, expected, 1e-4),
            equal("43 tanh units, s = 50: the same error", by_staircase, expected, 1e-4),
        ],
        correction=[
            equal("x uniform on (−1, 1): 1575/4 error/s⁴ = 1", 1575 / 4 * uniform / tiny**4, 1.0, 4e-4),
            equal("x uniform on (−1, 1), s → ∞: error = 1/12", _best(nodes, (1e6 * nodes).tanh())[0], 1 / 12, 1e-3),
            equal("43 tanh units, s = 50: log₁₀ error = −6, within 1", by_staircase.log10(), -6.0, 1.0),
            equal("ReLU pair, s = 3: error = 0", by_ramps, 0.0),
            equal("binary x, s = 3: error = 0", by_sides, 0.0),
            equal("ReLU pairs with weights s and 1/s, any s: error = 0", pairs @ torch.cat([mix, -mix]) / large, x),
            equal("binary x: decoder 1/tanh(s): error = 0", (large * bits).tanh() / math.tanh(large), bits),
            equal("slopes s and 2s for each element: error = s⁸ E‖(8/15)(Rx)⁵ less its cubic part‖²", ratio, 1.0, 0.02),
        ],
    )


def figure_D40() -> "Figure":
    """The shrinkage factors of gradient flow stopped at T, and of ridge regression."""
    from matplotlib.figure import Figure

    x = torch.logspace(-2, 2, 300)
    widest = float(_crossing())
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(x, 1 - (-x).exp(), color="#0072B2", label="stopped: 1 − exp(−ηTλ)")
    axes.plot(x, x / (1 + x), color="#D55E00", ls="--", label="L2 penalty 1/(ηT): ηTλ/(1 + ηTλ)")
    axes.vlines(widest, widest / (1 + widest), 1 - math.exp(-widest), color="0.3", lw=1.0)
    axes.annotate("0.20", (widest, 0.82), xytext=(0.93 * widest, 0.8), ha="right")
    axes.set(xlabel="ηTλ", ylabel="share of the optimum", xscale="log")
    axes.legend()
    return figure


def figure_D41() -> "Figure":
    """The error of the best decoder against the scale of the encoder."""
    from matplotlib.figure import Figure

    x, scales = torch.linspace(-1, 1, 401, dtype=torch.float64)[:, None], torch.logspace(-1, 2, 60, dtype=torch.float64)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    one = [float(_best(x, (s * x).tanh())[0]) for s in scales]
    two = [float(_best(x, torch.cat([(s * x).tanh(), (2 * s * x).tanh()], 1))[0]) for s in scales]
    axes.plot(scales, one, color="#0072B2", label="one tanh unit")
    axes.plot(scales, 4 / 1575 * scales**4, color="0.5", ls=":", label="4 s⁴/1575")
    axes.plot(scales, two, color="#D55E00", label="two units, s and 2s")
    axes.set(xlabel="s, weight of the encoder", ylabel="squared error", xscale="log", yscale="log", ylim=(1e-12, 1))
    axes.legend()
    return figure


class _Problem:
    """Least squares ½‖y − Xw‖² with given eigenvalues of XᵀX, in its eigenvectors; the optimum is of size 1."""

    def __init__(self, curvature: Tensor, rate: float, rows: int = 12):
        width = len(curvature)
        self.curvature, self.rate = curvature, rate
        self.inputs = torch.linalg.qr(torch.randn(rows, width))[0] * curvature.sqrt()
        self.optimum = torch.randn(width).sign() * (0.5 + 0.5 * torch.rand(width))
        outside = torch.randn(rows)
        outside = (
            outside - self.inputs @ torch.linalg.lstsq(self.inputs, outside[:, None], driver="gelsd").solution[:, 0]
        )
        self.targets = self.inputs @ self.optimum + outside

    def shrinkage(self) -> Tensor:
        return 1 - (1 - self.rate * self.curvature) ** STEPS

    def by_sgd(self, start: Tensor | None = None, steps: int = STEPS) -> Tensor:
        everything = slice(None)
        return self._descend([everything] * steps, 1.0, start)

    def over_orders(self, steps: int) -> Tensor:
        """The mean of the weights over all sequences of single samples, whose gradients estimate that of the sum."""
        rows = [slice(n, n + 1) for n in range(len(self.targets))]
        orders = itertools.product(rows, repeat=steps)
        return torch.stack([self._descend(list(order), len(rows), None) for order in orders]).mean(0)

    def by_ridge(self, start: Tensor | None = None) -> Tensor:
        """scikit-learn's ridge regression with λ = 1/(ηT); of y − X start if given."""
        targets = self.targets if start is None else self.targets - self.inputs @ start
        solver = Ridge(alpha=1 / (self.rate * STEPS), fit_intercept=False, solver="svd")
        return torch.from_numpy(solver.fit(self.inputs.numpy(), targets.numpy()).coef_)

    def penalised(self, weights: Tensor) -> Tensor:
        """The minimiser of ½‖y − Xw‖² + ½ Σ weights_i w_i²."""
        return torch.linalg.solve(self.inputs.T @ self.inputs + weights.diag(), self.inputs.T @ self.targets)

    def codes(self) -> tuple[Tensor, Tensor]:
        """Codes of the targets: T steps from zero under a flat prior, and the mode under N(0, I) at variance 1/(ηT)."""
        flat = self._decoder(flat_prior=True)
        proper = self._decoder(scale=(self.rate * STEPS) ** -0.5)
        seen = self.targets[None]
        stopped = Ascent(Zeros(), GradientAscent(self.rate), max_steps=STEPS)(flat, seen)
        return stopped.z[0], ClosedForm()(proper, seen).z[0]

    def _decoder(self, flat_prior: bool = False, scale: float = 1.0) -> LinearMixture:
        rows, width = self.inputs.shape
        model = LinearMixture(1, width, (rows,), flat_prior=flat_prior, scale=scale, means=torch.zeros(1, rows))
        model.loadings.data = self.inputs.T[None].clone()
        return model

    def _descend(self, batches: list[slice], weight: float, start: Tensor | None) -> Tensor:
        layer = nn.Linear(len(self.curvature), 1, bias=False)
        layer.weight.data = torch.zeros_like(layer.weight) if start is None else start[None].clone()
        optimizer = torch.optim.SGD(layer.parameters(), self.rate)
        for rows in batches:
            optimizer.zero_grad()
            residual = self.targets[rows] - layer(self.inputs[rows])[:, 0]
            (0.5 * weight * residual.square().sum()).backward()
            optimizer.step()
        return layer.weight.detach()[0]


def _stated(*problems: tuple[_Problem, Tensor]) -> tuple[Tensor, Tensor]:
    """ηT XᵀX of each problem, and what it should be."""
    products = [problem.rate * STEPS * problem.inputs.T @ problem.inputs for problem, _ in problems]
    return torch.stack(products), torch.stack([product.diag() for _, product in problems])


def _gap(x: Tensor) -> Tensor:
    return 1 / (1 + x) - (-x).exp()


def _second_order(x: float) -> float:
    return (1 - (1 - x / STEPS) ** STEPS - x / (1 + x)) / x**2


def _crossing() -> Tensor:
    """The largest x with eˣ = (1 + x)², by Newton's method."""
    x = torch.tensor(3.0)
    for _ in range(20):
        x = x - (x - 2 * torch.log1p(x)) / (1 - 2 / (1 + x))
    return x


def _steepest() -> Tensor:
    """The positive x with eˣ = 1 + x + x², by Newton's method."""
    x = torch.tensor(3.0)
    for _ in range(20):
        x = x - (x.exp() - 1 - x - x.square()) / (x.exp() - 1 - 2 * x)
    return x


def _best(x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """E‖x − features A‖² of the best A, and A."""
    decoder = torch.linalg.lstsq(features, x, driver="gelsd").solution
    return (x - features @ decoder).square().sum(1).mean(), decoder


def _unexplained(y: Tensor, features: Tensor) -> Tensor:
    """E‖y‖² less the part that is linear in the features, from second moments."""
    cross = features.T @ y
    return (y.square().sum() - (cross * torch.linalg.solve(features.T @ features, cross)).sum()) / len(y)


def _error_of_one_unit(s: float) -> float:
    """The least E(x − a tanh sx)² over a, for x uniform on (−1, 1), by Gauss-Legendre quadrature."""
    x, weights = np.polynomial.legendre.leggauss(40)
    unit = np.tanh(s * x)
    return float(1 / 3 - (weights @ (x * unit)) ** 2 / (weights @ unit**2) / 2)


def _slope(x: Tensor, mix: Tensor, scale: float) -> Tensor:
    """∂ log error/∂ log s at the best decoder, by automatic differentiation of gae's training loss."""
    encode, decode = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
    encode.weight.data = scale * mix
    decode.weight.data = _best(x, encode(x).detach().tanh())[1].T.contiguous()
    model = Gaussian(decode, DIM, scale=math.sqrt(0.5), prior=Flat(DIM))
    loss = Autoencoder(model, Amortized(nn.Sequential(encode, nn.Tanh())), joint)(x)
    (gradient,) = torch.autograd.grad(loss, encode.weight)
    error = (x - decode(encode(x).tanh())).square().sum(1).mean()
    return (gradient * encode.weight).sum() / error
