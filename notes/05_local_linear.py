"""Checks of ``05_local_linear.md``: local linear charts, smooth and hierarchical, and their codes by iteration."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from gae.inference import Argmax, Ascent, ClosedForm, GradientAscent, Status, Zeros
from gae.ledger.claims import Check, at_most, check, equal
from gae.likelihood import LinearMixture
from gae.likelihood.base import LogJoint
from gae.objective import joint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHARTS, LATENT, DIM = 4, 2, 5


@check
def check_D15() -> Check:
    """The blended chart by least squares against gae's ``Argmax(ClosedForm())`` over the charts."""
    model, x = _charts(2**-0.5), 1.5 * torch.randn(60, DIM)
    constant = -0.5 * DIM * np.log(np.pi) - np.log(CHARTS)  # of a Gaussian with variance 1/2, and of log q(k)
    hierarchical = joint(Argmax(ClosedForm())(model, x)) - constant
    to_centre = (x[:, None] - model.means.detach()).square().sum(2)
    to_chart = torch.stack([_residual(x, model, torch.eye(CHARTS)[k].expand(60, -1)) for k in range(CHARTS)], 1)
    by_centre = -_residual(x, model, torch.softmax(-1e9 * to_centre, 1))
    nearest = torch.cdist(x, model.means.detach()).argmin(1, keepdim=True)
    agree = nearest.squeeze(1) == to_chart.argmin(1)
    return Check(
        claim=[
            equal(
                "β → ∞ on residuals: smooth = max_k max_z",
                -_residual(x, model, torch.softmax(-1e9 * to_chart, 1)),
                hierarchical,
            ),
            at_most("β → ∞ on distances to μ_k: smooth ≤ max_k max_z", by_centre, hierarchical),
            equal(
                "which is the value on the chart of the nearest centre", by_centre, -to_chart.gather(1, nearest)[:, 0]
            ),
            equal("= where the nearest centre has the best chart", by_centre[agree], hierarchical[agree]),
        ],
        without=[
            at_most(
                "β = 1, as written: smooth ≤ max_k max_z", -_residual(x, model, (-to_centre).softmax(1)), hierarchical
            ),
            equal("β → ∞ on distances to μ_k: smooth = max_k max_z", by_centre, hierarchical),
        ],
    )


@check
def check_D16() -> Check:
    """The recursion in numpy, sample by sample, against gae's ``Argmax(Ascent)``; its limit by least squares."""
    model, x, steps = _charts(1.0), torch.randn(20, DIM), 7
    top = torch.linalg.eigvalsh((model.loadings @ model.loadings.mT).detach())[:, -1]
    largest, steepest = float(top.max()), int(top.argmax())
    codes, choices = _recursion(model, x, 0.9 / largest, steps)
    counter = _Counting(model)
    with torch.no_grad():
        found = Argmax(Ascent(Zeros(), GradientAscent(0.9 / largest), steps))(counter, x)
        far = Argmax(Ascent(Zeros(), GradientAscent(1.9 / largest), 400))(model, x)
        wild = Ascent(Zeros(), GradientAscent(2.1 / largest), 150)(model, x, torch.arange(CHARTS)[:, None])
    assert found.solve is not None and found.k is not None and far.k is not None and wild.solve is not None
    return Check(
        [
            equal("codes: the recursion = Argmax(Ascent)", found.z[0], codes, 1e-12),
            equal("the same charts", found.k[0].double(), choices.double(), 0.0),
            equal("decoder evaluations to find them = N K T", found.solve.evaluations.sum(), 20 * CHARTS * steps, 0.0),
            equal("counted, with N K more to compare the charts", counter.rows, 20 * CHARTS * (steps + 1), 0.0),
            equal("β = 1.9 / λ_max, t → ∞: least squares", far.z[0], _least_squares(model, x, far.k[0])),
            equal(
                "β = 2.1 / λ_max: every solve on the steepest chart diverges",
                (wild.solve.status[steepest] == Status.diverged).double().mean(),
                1.0,
                0.0,
            ),
        ]
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


def _charts(scale: float) -> LinearMixture:
    """Charts at random places, with directions that are neither orthogonal nor of unit length."""
    model = LinearMixture(CHARTS, LATENT, (DIM,), flat_prior=True, scale=scale, means=torch.randn(CHARTS, DIM))
    stretch = torch.linspace(1.0, 1.5, CHARTS * LATENT).reshape(CHARTS, LATENT, 1)
    mixing = torch.tensor([[1.0, 0.3], [0.0, 1.0]])
    model.loadings.data = mixing @ (model.loadings.data * stretch)
    return model


def _residual(x: Tensor, model: LinearMixture, weights: Tensor) -> Tensor:
    """min_z ‖x − Σ_k f_k (μ_k + W_k z)‖² for weights f (N, K), by least squares in the blended chart."""
    centre = weights @ model.means.detach()
    rows = torch.einsum("nk,ked->ned", weights, model.loadings.detach())
    target = (x - centre).unsqueeze(2)
    z = torch.linalg.lstsq(rows.mT, target).solution
    return (target - rows.mT @ z).squeeze(2).square().sum(1)


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
