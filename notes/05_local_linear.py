"""Checks of ``05_local_linear.md``: local linear charts, smooth and hierarchical, and their codes by iteration."""

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gae.inference import Argmax, Ascent, ChartGate, ClosedForm, GradientAscent, Status, Zeros
from gae.ledger.claims import Check, at_most, check, equal
from gae.likelihood import BlendedCharts, LinearMixture
from gae.likelihood.base import LogJoint
from gae.objective import joint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHARTS, LATENT, DIM = 4, 2, 5


@check
def check_D15() -> Check:
    """gae's blended charts against its best chart, least squares, and the best charts of all partitions."""
    model, x = _charts(2**-0.5), 1.5 * torch.randn(60, DIM)
    hierarchical, residuals = _hierarchical(model, x), _to_charts(model, x)
    nearest = torch.cdist(x, model.means.detach()).argmin(1, keepdim=True)
    agree = nearest.squeeze(1) == residuals.argmin(1)
    written, by_centre, by_residual = (
        _smooth(model, x, *gate) for gate in ((1.0, "centre"), (1e-9, "centre"), (1e-9, "residual"))
    )
    to_centre = (x[:, None] - model.means.detach()).square().sum(2)

    y = torch.randn(6, 3)
    highest, means, directions = _best_charts(y, 1)
    best = _with_charts(means, directions)
    others = [_with_charts(torch.randn(2, 3), torch.randn(2, 1, 3)) for _ in range(5)]

    def sharpened(charts: LinearMixture, by: str) -> Tensor:
        return _smooth(charts, y, 1e-9, by).mean()

    by_centres = torch.stack([sharpened(charts, "centre") for charts in (best, *others)])

    line = torch.tensor([[-1.0], [0.0], [1.0]])
    best_of_line, *_ = _best_charts(line, 0)
    centre = torch.tensor(1.0)
    for _ in range(30):
        centre = 1 / (2 * centre).tanh()  # of the charts ±centre, whose blend at x is centre · tanh(2 centre x)
    blend = (-(line - torch.stack([centre, -centre])).square()).softmax(1) @ torch.stack([centre, -centre])
    return Check(
        claim=[
            at_most("sharpened, by centres: E smooth ≤ max_{μ,W} E max_k max_z", by_centres, highest),
            equal(
                "sharpened, by residuals: equality at the best charts",
                sharpened(best, "residual"),
                highest,
            ),
            equal("any charts, each x, by residuals: smooth = max_k max_z", by_residual, hierarchical),
            at_most("any charts, each x, by centres: smooth ≤ max_k max_z", by_centre, hierarchical),
            equal(
                "which is the value on the chart of the nearest centre", by_centre, -residuals.gather(1, nearest)[:, 0]
            ),
            equal("= where the nearest centre has the best chart", by_centre[agree], hierarchical[agree]),
        ],
        without=[
            at_most(
                "as written, {−1, 0, 1}: E smooth ≤ max_{μ,W} E max_k",
                -(line[:, 0] - blend).square().mean(),
                best_of_line,
            ),
            at_most("as written, any charts, each x: smooth ≤ max_k max_z", written, hierarchical),
            equal("sharpened, by centres: smooth = max_k max_z", by_centre, hierarchical),
        ],
        correction=[
            equal("{−1, 0, 1}: max_{μ,W} E max_k = −1/6, two points on one chart", best_of_line, -1 / 6),
            equal("{−1, 0, 1}: the blend of two charts passes through all three points", blend, line[:, 0]),
            equal(
                "gae's smooth form = least squares in the blended chart",
                written,
                -_residual(x, model, (-to_centre).softmax(1)),
            ),
            equal(
                "gae's E max_k max_z at the best charts = that of all partitions",
                _hierarchical(best, y).mean(),
                highest,
            ),
            equal("for one x alone, max_{μ,W} gives 0", _hierarchical(_with_charts(y[:2], directions), y[:2]), 0.0),
        ],
    )


@check
def check_D16() -> Check:
    """The recursion in numpy, sample by sample, against gae's ``Argmax(Ascent)``; its limit by least squares."""
    model, x, steps = _charts(1.0), torch.randn(20, DIM), 5
    top = torch.linalg.eigvalsh((model.loadings @ model.loadings.mT).detach())[:, -1]
    largest, steepest = float(top.max()), int(top.argmax())
    codes, choices = _recursion(model, x, 0.9 / largest, steps)
    counter = _Counting(model)
    with torch.no_grad():
        found = Argmax(Ascent(Zeros(), GradientAscent(0.9 / largest), steps))(counter, x)
        far = Argmax(Ascent(Zeros(), GradientAscent(1.6 / largest), 50))(model, x)
        wild = Ascent(Zeros(), GradientAscent(2.4 / largest), 35)(model, x, torch.arange(CHARTS)[:, None])
    assert found.solve is not None and found.k is not None and far.k is not None and wild.solve is not None
    return Check(
        claim=[
            equal("codes: the recursion = Argmax(Ascent)", found.z[0], codes, 1e-12),
            equal("the same charts", found.k[0].double(), choices.double(), 0.0),
            equal("decoder evaluations to find them = N K T", found.solve.evaluations.sum(), 20 * CHARTS * steps, 0.0),
            equal("counted, with N K more to compare the charts", counter.rows, 20 * CHARTS * (steps + 1), 0.0),
            equal("β = 1.6 / λ_max, t → ∞: least squares", far.z[0], _least_squares(model, x, far.k[0])),
            equal(
                "β = 2.4 / λ_max: every solve on the steepest chart diverges",
                (wild.solve.status[steepest] == Status.diverged).double().mean(),
                1.0,
                0.0,
            ),
        ],
        correction=[
            equal("evaluations for codes of width E = 1, 2, 4", *_evaluations((1, 2, 4), x, steps), 0.0),
            equal(
                "multiplications of the recursion for E = 1, 2, 4: N K T · 2DE",
                *_multiplications((1, 2, 4), x, steps),
                0.0,
            ),
        ],
    )


def figure_D16() -> "Figure":
    """The distance from the least-squares code, below and above the largest stable step."""
    from matplotlib.figure import Figure

    torch.manual_seed(0)
    model, x = LinearMixture(1, LATENT, (DIM,), flat_prior=True).double(), torch.randn(1, DIM, dtype=torch.float64)
    model.loadings.data[0] *= torch.tensor([[1.5], [1.0]])
    largest = 1.5**2
    best = _least_squares(model, x, torch.zeros(1, dtype=torch.long))
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    styles = (("#0072B2", "-"), ("#009E73", "--"), ("#CC79A7", "-."), ("#D55E00", ":"))
    for share, (color, dash) in zip((0.5, 1.0, 1.9, 2.1), styles, strict=True):
        errors = []
        for steps in range(41):
            with torch.no_grad():
                code = Ascent(Zeros(), GradientAscent(share / largest), steps)(model, x).z
            errors.append(max(float((code - best).norm()), 1e-16))
        axes.semilogy(errors, color=color, ls=dash, label=f"β = {share:g} / λ_max")
    axes.set(xlabel="step t", ylabel="‖b_t − b̂‖")
    axes.legend()
    return figure


class _Counting(LinearMixture):
    """A copy of a mixture that counts the codes whose density it is asked for."""

    def __init__(self, model: LinearMixture):
        super().__init__(CHARTS, LATENT, (DIM,), flat_prior=True)
        self.load_state_dict(model.state_dict())
        self.rows = 0

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        log_joint = super().bind(x)

        def counted(z: Tensor, k: Tensor | None = None) -> Tensor:
            value = log_joint(z, k)
            self.rows += value.numel()
            return value

        return counted


def _evaluations(widths: tuple[int, ...], x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Evaluations by gae's own account for codes of several widths, and N K T."""
    counts = []
    for width in widths:
        model = LinearMixture(CHARTS, width, (DIM,), flat_prior=True, means=torch.randn(CHARTS, DIM))
        with torch.no_grad():
            solve = Argmax(Ascent(Zeros(), GradientAscent(0.5), steps))(model, x).solve
        assert solve is not None
        counts.append(solve.evaluations.sum())
    return torch.stack(counts), torch.tensor(len(x) * CHARTS * steps)


def _multiplications(widths: tuple[int, ...], x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Multiplications of the recursion as torch counts them (two operations for each), and N K T · 2DE."""
    counts = []
    for width in widths:
        rows, b = torch.randn(CHARTS, width, DIM), torch.zeros(CHARTS, len(x), width)
        with FlopCounterMode(display=False) as counter:
            for _ in range(steps):
                b = b + 0.1 * (x - b @ rows) @ rows.mT
        counts.append(counter.get_total_flops() / 2)
    return torch.tensor(counts), len(x) * CHARTS * steps * 2 * DIM * torch.tensor(widths)


def _hierarchical(model: LinearMixture, x: Tensor) -> Tensor:
    """max_k max_z −‖x − μ_k − W_k z‖² by gae: without the constant of a Gaussian with variance ½, and log q(k)."""
    return joint(Argmax(ClosedForm())(model, x)) + 0.5 * x.shape[1] * math.log(math.pi) + math.log(model.components)


def _smooth(model: LinearMixture, x: Tensor, temperature: float, by: str) -> Tensor:
    """−‖x − Σ_k f_k (μ_k + W_k z)‖² by gae's gate and blended decoder, with z by least squares."""
    charts, width = model.components, model.latent_shape[0]
    blended = BlendedCharts(charts, width, model.event_shape)
    blended.means.data, blended.loadings.data = model.means.detach(), model.loadings.detach()
    gate = ChartGate(temperature, by)(blended, x).z[0, :, :charts]
    codes = torch.cat([gate, _in_blend(x, model, gate.softmax(1))], 1)
    return blended.log_joint(x, codes[None])[0] + 0.5 * x.shape[1] * math.log(math.pi)


def _with_charts(means: Tensor, directions: Tensor) -> LinearMixture:
    charts, width, dim = directions.shape
    model = LinearMixture(charts, width, (dim,), flat_prior=True, scale=2**-0.5, means=means)
    model.loadings.data = directions
    return model


def _best_charts(x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """max over two charts of E max_k max_z: principal components of both parts of every partition of the points."""
    labels = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(x))))
    parts = torch.stack([labels, 1 - labels], 1)  # (P, 2, N)
    means = parts @ x / parts.sum(2, keepdim=True).clamp_min(1)
    centred = parts[..., None] * (x - means[:, :, None])
    values, vectors = torch.linalg.eigh(centred.mT @ centred)
    left_over = values[..., : x.shape[1] - width].sum((1, 2))
    best = left_over.argmin()
    return -left_over[best] / len(x), means[best], vectors[best].mT[:, x.shape[1] - width :]


def _charts(scale: float) -> LinearMixture:
    """Charts at random places, with directions that are neither orthogonal nor of unit length."""
    model = LinearMixture(CHARTS, LATENT, (DIM,), flat_prior=True, scale=scale, means=torch.randn(CHARTS, DIM))
    stretch = torch.linspace(1.0, 1.5, CHARTS * LATENT).reshape(CHARTS, LATENT, 1)
    mixing = torch.tensor([[1.0, 0.3], [0.0, 1.0]])
    model.loadings.data = mixing @ (model.loadings.data * stretch)
    return model


def _in_blend(x: Tensor, model: LinearMixture, weights: Tensor) -> Tensor:
    """argmin_z ‖x − Σ_k f_k (μ_k + W_k z)‖² for weights f (N, K)."""
    rows = torch.einsum("nk,ked->ned", weights, model.loadings.detach())
    return torch.linalg.lstsq(
        rows.mT, (x - weights @ model.means.detach()).unsqueeze(2), driver="gelsd"
    ).solution.squeeze(2)


def _residual(x: Tensor, model: LinearMixture, weights: Tensor) -> Tensor:
    """min_z ‖x − Σ_k f_k (μ_k + W_k z)‖², by projection on the orthogonal complement of the blended directions."""
    rows = torch.einsum("nk,ked->ned", weights, model.loadings.detach())
    centred = (x - weights @ model.means.detach()).unsqueeze(2)
    basis = torch.linalg.qr(rows.mT).Q
    return (centred - basis @ (basis.mT @ centred)).square().sum((1, 2))


def _to_charts(model: LinearMixture, x: Tensor) -> Tensor:
    """min_z ‖x − μ_k − W_k z‖², (N, K)."""
    return torch.stack([_residual(x, model, one.expand(len(x), -1)) for one in torch.eye(model.components)], 1)


def _recursion(model: LinearMixture, x: Tensor, beta: float, steps: int) -> tuple[Tensor, Tensor]:
    """b_t = b_{t−1} + β Wᵀ(x − μ − W b_{t−1}) for every sample and chart, and the best chart by its squared error."""
    means, loadings = model.means.detach().numpy(), model.loadings.detach().numpy()
    codes, choices = [], []
    for row in x.numpy():
        found, errors = [], []
        for mean, directions in zip(means, loadings, strict=True):
            b = np.zeros(LATENT)
            for _ in range(steps):
                b = b + beta * directions @ (row - mean - b @ directions)
            found.append(b)
            errors.append(0.5 * np.sum((row - mean - b @ directions) ** 2))
        choices.append(int(np.argmin(errors)))
        codes.append(found[choices[-1]])
    return torch.as_tensor(np.array(codes)), torch.tensor(choices)


def _least_squares(model: LinearMixture, x: Tensor, k: Tensor) -> Tensor:
    means, loadings = model.means.detach().numpy(), model.loadings.detach().numpy()
    solved = [
        np.linalg.lstsq(loadings[j].T, row - means[j], rcond=None)[0] for row, j in zip(x.numpy(), k, strict=True)
    ]
    return torch.as_tensor(np.array(solved))
