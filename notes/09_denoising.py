"""Checks of ``09_denoising.md``: denoisers, the score of the data, chains and contraction."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.linalg import solveh_banded
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.func import jacrev, vmap
from torch.nn.functional import one_hot

from gae import nets
from gae.autoencoder import Autoencoder
from gae.inference import ClosedForm
from gae.ledger.claims import Check, at_most, check, equal, estimate
from gae.likelihood import LinearMixture, WeightDecoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYMBOLS = 5  # values of x in the tables
LONG = 4096  # steps after which a chain has forgotten its start
WIDTH = 0.7  # standard deviation of the mixture's components


@check
def check_D28() -> Check:
    """Conditional means by Bayes' rule, by quadrature and by gae's encoder, against autodiff of gae's evidence."""
    centres, logits, x = 1.5 * torch.randn(3, 2), torch.randn(3), 1.5 * torch.randn(8, 2)
    clean, noisy = _mixture(centres, logits, 0.0), _mixture(centres, logits, 0.5)
    drift = {noise: (_denoised(centres, logits, noise, x) - x) / noise**2 for noise in (1e-4, 0.002, 0.01, 0.02, 0.5)}
    score = _score(clean, x)
    error = {noise: found - score for noise, found in drift.items()}
    bend = vmap(jacrev(lambda v: 0.5 * _relative_laplacian(clean, v)))(x)

    linear, y = LinearMixture(1, 3, (3,), scale=0.5), torch.randn(8, 3)
    linear.loadings.data *= 0.7 + 0.8 * torch.rand(3, 1)
    linear.means.data = torch.randn(1, 3)
    mean, rows = linear.means[0].detach(), linear.loadings[0].detach()
    wiener = mean + (y - mean) @ _wiener(rows.T @ rows, 0.5)
    return Check(
        [
            equal("(r(x) − x)/σ² = ∇log p(x), mixture, σ = 10⁻⁴", drift[1e-4], score, 1e-5),
            equal("error at σ = 0.02 is 4 × that at 0.01", error[0.02].norm() / error[0.01].norm(), 4.0, 0.02),
            equal("error/σ² = ½∇(Δp/p), σ = 0.002", error[0.002] / 0.002**2, bend, 5e-3),
            equal("(r(x̃) − x̃)/σ² = ∇log p_σ(x̃), σ = ½, r by Bayes' rule", drift[0.5], _score(noisy, x)),
            equal("the same, r by quadrature", _conditional_mean(centres, logits, 0.5, x), x + _score(noisy, x) / 4),
            equal("Gaussian data: gae's reconstruction", Autoencoder(linear, ClosedForm()).reconstruct(y), wiener),
            equal("Gaussian data: (r(x̃) − x̃)/σ² = ∇log p_σ(x̃)", (wiener - y) / 0.25, _score(linear, y)),
        ]
    )


@check
def check_D29() -> Check:
    """Powers, spectra and simulations of transition tables, one of them from gae's responsibilities, against p."""
    data, full, banded = _table(SYMBOLS), _table(SYMBOLS, 4), _banded()
    chain = full @ _reverse(data, full)
    spectrum = torch.linalg.eigvals(chain).real
    blocks = torch.block_diag(_table(2, 2), _table(SYMBOLS - 2, 4))
    parts = torch.block_diag(torch.ones(2, 2), torch.ones(SYMBOLS - 2, SYMBOLS - 2)) * data
    return Check(
        claim=[
            equal("long-run law of the chain = p, from every start", _long_run(data, full), data),
            equal("the same where x̃ is x or a neighbour", _long_run(data, banded), data),
            estimate("simulated chains from x = 0", one_hot(_simulated(data, full), SYMBOLS).double(), data),
            equal("Gaussian noise on four points, gae's q(k|x̃)", *_points_on_a_line()),
            equal("detailed balance: p(x) T(x, x′) = p(x′) T(x′, x)", data[:, None] * chain, data * chain.T),
            at_most("no eigenvalue of T below 0, so no period", 0.0, spectrum),
        ],
        without=[equal("two blocks that noise does not join: long-run law = p", _long_run(data, blocks), data)],
        correction=[
            equal("there: long-run law = p given the block", _long_run(data, blocks), parts / parts.sum(1, True)),
            equal("there: p T = p all the same", data @ blocks @ _reverse(data, blocks), data),
        ],
    )


@check
def check_D30() -> Check:
    """Expectations by Gauss–Hermite quadrature against Jacobians and Laplacians by automatic differentiation."""
    first = nn.Linear(2, 3, bias=False)
    layer, lengths = nn.Sequential(first, nn.Tanh()), first.weight.square().sum(1)
    x, origin = torch.randn(12, 2), torch.zeros(1, 2)
    at_origin, response = (_error(layer, v, 1e-3, layer(v)) / 1e-6 for v in (origin, x))
    slack = (1 - layer(x).square()).square()

    net = nets.mlp(2, [8], 2, nn.Tanh)
    next(net.parameters()).data *= 3.0
    squared = vmap(jacrev(net))(x).square().sum((1, 2))
    curvature = ((net(x) - x) * vmap(jacrev(jacrev(net)))(x).diagonal(dim1=2, dim2=3).sum(2)).sum(1)
    affine = nn.Linear(2, 2)
    exact = (affine(x) - x).square().sum(1) + affine.weight.square().sum()
    score, coarse, fine = _contracted(0.06, 0.03)
    return Check(
        claim=[
            equal("004: at x = 0, E‖h(ε) − h(0)‖²/σ² = ‖∂h/∂W‖²_F", at_origin, _by_weights(layer, origin), 1e-4),
            equal("004: at any x, E‖h(x+ε) − h(x)‖²/σ² = ‖∂h/∂W‖²_F", response, _by_weights(layer, x), 1e-4),
        ],
        correction=[
            equal("E‖h(x+ε) − h(x)‖²/σ² = ‖∂h/∂x‖²_F", response, _by_input(layer, x), 1e-4),
            equal("‖∂h/∂x‖²_F = Σ (1 − h_i²)² ‖W_i‖²", _by_input(layer, x), slack @ lengths),
            equal("‖∂h/∂W‖²_F = ‖x‖² Σ (1 − h_i²)²", _by_weights(layer, x), x.square().sum(1) * slack.sum(1)),
            equal("E‖r(x+ε) − x‖²: what is left is of order σ⁴", _order(net, x, squared + curvature), 4.0, 0.05),
            equal("without the curvature term: of order σ²", _order(net, x, squared), 2.0, 0.05),
            equal("affine r: nothing is left, σ = 1", _error(affine, x, 1.0, x), exact),
            equal(
                "001: contractive r, (r(x) − x)/σ² = ∇log p, extrapolated to σ = 0",
                (4 * fine - coarse) / 3,
                score,
                2e-3,
            ),
            equal(
                "its error at σ = 0.06 is 4 × that at 0.03", (coarse - score).norm() / (fine - score).norm(), 4.0, 0.3
            ),
        ],
    )


def figure_D28() -> "Figure":
    """The field (r(x) − x)/σ² of a mixture at two noise levels, over its density."""
    from matplotlib.figure import Figure

    centres, logits = torch.tensor([[-1.6, -0.8], [1.5, -0.9], [0.2, 1.6]]), torch.tensor([0.0, 0.5, 0.2])
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    side, fine = torch.linspace(-3.3, 3.3, 14), torch.linspace(-3.6, 3.6, 120)
    points, dense = torch.cartesian_prod(side, side), torch.cartesian_prod(fine, fine)
    for axes, noise in zip(figure.subplots(1, 2, sharey=True), (0.1, 1.0), strict=True):
        density = _mixture(centres, logits, noise).log_evidence(dense).log_p.detach().exp().unflatten(0, (120, 120))
        arrows = (_denoised(centres, logits, noise, points) - points) / noise**2
        axes.contour(fine, fine, density.T, colors="#D55E00", linewidths=0.8, levels=6)
        axes.quiver(*points.T, *arrows.T, color="#0072B2", angles="xy")
        axes.set(title=f"σ = {noise:g}", xlabel="x₁", aspect="equal")
    figure.suptitle("(r(x) − x)/σ² and contours of the density of noisy data")
    figure.axes[0].set_ylabel("x₂")
    return figure


def _contracted(*noises: float) -> list[Tensor]:
    """A line, ∇log p of a mixture on it, and (r(x) − x)/σ² for the r that minimises E(r − x)² + σ² E r′².

    r solves (p r′)′ σ² = p (r − x), by finite differences on a line of 4001 points.
    """
    centres, logits, x = torch.tensor([[-1.0], [1.2]]), torch.randn(2), torch.linspace(-6.0, 6.0, 4001)
    model = LinearMixture(2, 0, (1,), scale=WIDTH, learn_weights=True, means=centres)
    model.logits.data = logits
    inner = x.abs() < 2
    step, middles = float(x[1] - x[0]), (x[1:] + x[:-1]) / 2
    p, between = (model.log_evidence(v[:, None]).log_p.detach().exp() for v in (x, middles))
    drifts = []
    for noise in noises:
        flow = noise**2 / step**2 * between
        bands = torch.stack(
            [p + nn.functional.pad(flow, (0, 1)) + nn.functional.pad(flow, (1, 0)), nn.functional.pad(-flow, (0, 1))]
        )
        r = torch.as_tensor(solveh_banded(bands.numpy(), (p * x).numpy(), lower=True))
        drifts.append((r - x)[inner] / noise**2)
    return [_score(model, x[:, None])[inner, 0], *drifts]


def _mixture(centres: Tensor, logits: Tensor, noise: float) -> LinearMixture:
    """The mixture of width WIDTH after Gaussian noise: p_σ."""
    model = LinearMixture(3, 0, (2,), scale=math.hypot(WIDTH, noise), learn_weights=True, means=centres)
    model.logits.data = logits
    return model


def _denoised(centres: Tensor, logits: Tensor, noise: float, x: Tensor) -> Tensor:
    """E(clean | x): Bayes' rule for the component, then for the point within it."""
    total = WIDTH**2 + noise**2
    offset = centres - x[:, None]
    weight = (logits - offset.square().sum(2) / (2 * total)).softmax(1)
    return x + noise**2 / total * (weight[:, :, None] * offset).sum(1)


def _conditional_mean(centres: Tensor, logits: Tensor, noise: float, x: Tensor) -> Tensor:
    """E(clean | x) by sums over a grid of clean points."""
    side = torch.arange(-9.0, 9.0, 0.15)
    clean = torch.cartesian_prod(side, side)
    density = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(centres, WIDTH), 1)).log_prob(clean)
    seen = Independent(Normal(clean, noise), 1).log_prob(x[:, None])
    return (density + seen).softmax(1) @ clean


def _score(model: LinearMixture, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model.log_evidence(x).log_p.sum(), x)[0]


def _relative_laplacian(model: LinearMixture, point: Tensor) -> Tensor:
    """Δp/p = Δ log p + ‖∇ log p‖² at one point."""

    def log_p(v: Tensor) -> Tensor:
        return model.log_evidence(v[None]).log_p[0]

    return jacrev(jacrev(log_p))(point).trace() + jacrev(log_p)(point).square().sum()


def _wiener(covariance: Tensor, noise: float) -> Tensor:
    """S(S + σ²I)⁻¹, which is symmetric."""
    return torch.linalg.solve(covariance + noise**2 * torch.eye(len(covariance)), covariance)


def _table(*shape: int) -> Tensor:
    """A random probability table: its last dimension sums to 1."""
    return torch.randn(*shape).softmax(-1)


def _banded() -> Tensor:
    """A corruption that stays or goes to a neighbour."""
    near = (torch.arange(SYMBOLS)[:, None] - torch.arange(SYMBOLS)).abs() <= 1
    weight = torch.randn(SYMBOLS, SYMBOLS).exp() * near
    return weight / weight.sum(1, keepdim=True)


def _reverse(data: Tensor, corruption: Tensor) -> Tensor:
    """P(x|x̃) by Bayes' rule."""
    joint = data[:, None] * corruption
    return (joint / joint.sum(0)).T


def _long_run(data: Tensor, corruption: Tensor) -> Tensor:
    """The law of x after many rounds, one row for each start."""
    return torch.linalg.matrix_power(corruption @ _reverse(data, corruption), LONG)


def _simulated(data: Tensor, corruption: Tensor, chains: int = 4000, rounds: int = 40) -> Tensor:
    reverse, x = _reverse(data, corruption), torch.zeros(chains, dtype=torch.long)
    for _ in range(rounds):
        x = reverse[corruption[x].multinomial(1).squeeze(1)].multinomial(1).squeeze(1)
    return x


def _points_on_a_line() -> tuple[Tensor, Tensor]:
    """The long-run law over four points under Gaussian noise, x̃ integrated out on a grid, and their weights."""
    places, grid = 1.2 * torch.arange(4.0)[:, None], torch.arange(-8.0, 12.0, 0.02)[:, None]
    model = LinearMixture(4, 0, (1,), scale=0.8, learn_weights=True, means=places)
    model.logits.data = torch.randn(4)
    noise = 0.02 * Normal(places, 0.8).log_prob(grid.T).exp()
    chain = noise @ model.log_responsibilities(grid).exp()
    return torch.linalg.matrix_power(chain, LONG), model.logits.softmax(0)


def _error(r: Callable[[Tensor], Tensor], x: Tensor, noise: float, target: Tensor) -> Tensor:
    """E‖r(x + σε) − target‖² for each x in the plane, by 12 × 12 Gauss–Hermite nodes."""
    nodes, weights = (torch.as_tensor(side) for side in np.polynomial.hermite_e.hermegauss(12))
    weights = weights / weights.sum()
    moved = r(x[:, None] + noise * torch.cartesian_prod(nodes, nodes))
    return (moved - target[:, None]).square().sum(2) @ torch.outer(weights, weights).flatten()


def _order(r: Callable[[Tensor], Tensor], x: Tensor, second: Tensor) -> Tensor:
    """The power of σ with which E‖r(x+ε) − x‖² − ‖r(x) − x‖² − σ² second goes to zero."""
    rest = [_error(r, x, noise, x) - (r(x) - x).square().sum(1) - noise**2 * second for noise in (0.02, 0.01)]
    return (rest[0].norm() / rest[1].norm()).log2()


def _by_input(layer: nn.Module, x: Tensor) -> Tensor:
    """‖∂h/∂x‖²_F."""
    return vmap(jacrev(layer))(x).square().sum((1, 2))


def _by_weights(layer: nn.Module, x: Tensor) -> Tensor:
    """‖∂h/∂W‖²_F, through gae's decoder of weights."""
    weights = next(layer.parameters()).detach().reshape(1, -1)
    return torch.stack([jacrev(WeightDecoder(layer, row))(weights).square().sum() for row in x])
