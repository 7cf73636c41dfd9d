"""The ascent as a solver: status, returned point and cost of each sample."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import FULL
from hypothesis import given
from hypothesis import strategies as st
from problems import FIRST, Landscape, Rows, neural, posterior, ppca
from torch import Tensor, nn

from gae.inference import (
    LBFGS,
    Adam,
    Adjoint,
    Amortized,
    Argmax,
    Ascent,
    Box,
    CheckpointedUnroll,
    Clipped,
    ClosedForm,
    Constant,
    Delta,
    DeltaBarDelta,
    Detach,
    Encoding,
    Family,
    FullCovariance,
    GaussNewton,
    GradientAscent,
    Implicit,
    Inference,
    Langevin,
    MeanField,
    Momentum,
    OneStep,
    Prior,
    Projected,
    ProximalAscent,
    Simplex,
    Solve,
    Status,
    Step,
    Truncate,
    UnitSphere,
    Unroll,
    Zeros,
)
from gae.inference.ascent.engine import _finite
from gae.likelihood import Bernoulli, Flat, Gaussian, Laplace, LaplacePrior, Likelihood, LinearMixture, Poisson

SEARCHES: dict[str, Callable[[], Step]] = {
    "lbfgs": LBFGS,
    "gauss-newton": GaussNewton,
    "matrix-free": lambda: GaussNewton(dense=False),
}
RULES: dict[str, Callable[[], Step]] = {
    **SEARCHES,
    "gradient": lambda: GradientAscent(0.1),
    "momentum": lambda: Momentum(0.05, 0.5),
    "adam": lambda: Adam(0.1),
    "langevin": lambda: Langevin(0.01),
    "adjusted langevin": lambda: Langevin(0.01, adjusted=True),
}
QUIET = [name for name in RULES if "langevin" not in name]


def solve(step: Step, max_steps: int, init: Inference | None = None, **options: Any) -> Ascent:
    return Ascent(init, step, max_steps, adjoint=Detach(), **options).double()


def account(encoding: Encoding) -> Solve:
    assert encoding.solve is not None
    return encoding.solve


def statuses(encoding: Encoding) -> list[list[str]]:
    return [[Status(code).name for code in row] for row in account(encoding).status.tolist()]


def bowl(width: int = 2) -> Landscape:
    """-½ ‖z - x‖²."""
    return Landscape(lambda x, z: -0.5 * (z - x).square().sum(2), width, (width,))


# Status of each sample.


def test_a_rate_beyond_twice_the_inverse_curvature_diverges_and_is_reported() -> None:
    """Ledger D16 and D03: on -½ a (z - x)² a step of rate r multiplies the error by 1 - r a."""
    model = Landscape(lambda x, z: -0.5 * x[:, 1] * (z[..., 0] - x[:, 0]).square(), 1, (2,))
    x = torch.tensor([[1.0, 1.0], [1.0, 1.9], [1.0, 2.1], [1.0, 50.0]], dtype=torch.float64)
    for tol in (None, 1e-12):
        found = solve(GradientAscent(1.0), 30, tol=tol)(model, x)
        assert [name == "diverged" for name in statuses(found)[0]] == [False, False, True, True]
        assert bool(torch.isfinite(found.z).all())
    error = (found.z[0, :, 0] - 1).abs()
    assert error[2] == error[3] == 1  # with a tolerance the best point is returned: the start
    last = solve(GradientAscent(1.0), 30)(model, x).z[0, :, 0]
    assert torch.allclose(last[2], 1 - (1 - 2.1 * x.new_ones(())) ** 30, rtol=1e-4)


def test_a_rate_that_overflows_is_nonfinite_and_its_best_finite_point_comes_back() -> None:
    model, x = bowl(1), torch.tensor([[1.0], [2.0]])
    engine = Ascent(step=GradientAscent(1e6), max_steps=40, adjoint=Detach())  # single precision: 1e6^40
    found = engine(model, x)
    assert statuses(found) == [["nonfinite", "nonfinite"]]
    assert bool((found.z == 0).all()) and bool(torch.isfinite(found.log_joint).all())


def hole(log_joint: Callable[[Tensor, Tensor], Tensor], bad: float) -> Landscape:
    """A landscape whose value beyond z = 2 is ``bad``."""
    return Landscape(lambda x, z: torch.where(z[..., 0] > 2, bad + 0 * z[..., 0], log_joint(x, z)), 1, (1,))


BAD = (torch.nan, torch.inf, -torch.inf)
REGIONS = [  # without a tolerance, and with one; a search could take +∞ for a rise
    *((rule, None, torch.nan) for rule in RULES),
    *((rule, 1e-9, torch.inf) for rule in RULES),
    *((rule, None, torch.inf) for rule in SEARCHES),
    *((rule, None, -torch.inf) for rule in ("lbfgs", "gradient")),
]
EVERY_REGION = [(rule, tol, bad) for rule in RULES for tol in (None, 1e-9) for bad in BAD]


@pytest.mark.parametrize(("rule", "tol", "bad"), EVERY_REGION if FULL else REGIONS)
def test_a_region_without_values_is_never_returned(rule: str, bad: float, tol: float | None) -> None:
    """One sample reaches it; two others do not and are unaffected."""
    if rule in ("gauss-newton", "matrix-free"):
        decoder: Any = _Hole(bad)
        model: Likelihood = Gaussian(decoder, 1, 0.5).double()
    else:
        model = hole(lambda x, z: -2 * (z - x).square().sum(2) - 0.5 * z.square().sum(2), bad)
    x = torch.tensor([[0.5], [30.0], [-1.0]], dtype=torch.float64)
    torch.manual_seed(0)
    found = solve(RULES[rule](), 30, tol=tol)(model, x)
    solved = account(found)
    assert bool(torch.isfinite(found.z).all()) and bool(torch.isfinite(found.log_joint).all())
    assert bool((found.z <= 2).all()) and bool(torch.isfinite(solved.grad_norm).all())
    if rule not in QUIET:
        return
    assert (statuses(found)[0][1] == "nonfinite") == (rule in ("gradient", "momentum", "adam"))
    alone = solve(RULES[rule](), 30, tol=tol)(model, x[[0, 2]])
    assert torch.equal(found.z[:, [0, 2]], alone.z)
    assert torch.equal(solved.status[:, [0, 2]], account(alone).status)
    if rule in SEARCHES:
        assert found.z[0, 1].item() > 1.9  # as far as there are values


class _Hole(nn.Module):
    def __init__(self, bad: float):
        super().__init__()
        self.bad = bad

    def forward(self, z: Tensor) -> Tensor:
        return torch.where(z > 2, self.bad + 0 * z, z)


def test_a_last_step_into_nothing_is_reported_too() -> None:
    """The point after step T is first evaluated when it is scored."""
    model = hole(lambda x, z: -0.5 * (z - x).square().sum(2), torch.nan)
    found = solve(GradientAscent(1.0), 1)(model, torch.tensor([[1.0], [30.0]], dtype=torch.float64))
    assert statuses(found) == [["max_steps", "nonfinite"]]
    assert found.z.flatten().tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("rule", RULES)
def test_a_start_without_value_is_reported_and_the_others_go_on(rule: str) -> None:
    model = Gaussian(_Hole(torch.nan), 1, 0.5).double()
    x = torch.tensor([[0.5], [0.5]], dtype=torch.float64)
    start = Constant(torch.tensor([[5.0], [0.0]]))
    torch.manual_seed(0)
    found = solve(RULES[rule](), 3, start)(model, x)
    assert statuses(found)[0][0] == "nonfinite" and statuses(found)[0][1] != "nonfinite"
    assert found.z[0, 0].item() == 5.0 and bool(torch.isfinite(found.log_joint[0, 1]))
    assert not bool(torch.isnan(account(found).grad_norm).any())


@pytest.mark.parametrize("rule", SEARCHES)
def test_huge_inputs_leave_finite_codes(rule: str) -> None:
    model = neural().float()
    x = torch.tensor([1.0, 1e15, 1e19, 3e38]).unsqueeze(1) * torch.ones(5)
    found = Ascent(step=SEARCHES[rule](), max_steps=40, tol=1e-3, adjoint=Detach())(model, x)
    assert bool(torch.isfinite(found.z).all())
    assert statuses(found)[0][0] == "converged" and statuses(found)[0][3] == "nonfinite"
    assert torch.allclose(found.z[:, :1], Ascent(step=SEARCHES[rule](), max_steps=40, tol=1e-3)(model, x[:1]).z)


@pytest.mark.parametrize("rule", QUIET)
@pytest.mark.parametrize("kind", ["zero gradient", "flat", "flat direction"])
def test_flat_places_are_left_as_they_are(rule: str, kind: str) -> None:
    """At a stationary start, on a plateau, and with an element that nothing depends on."""
    scale = {"zero gradient": [1.0, 1.0], "flat": [0.0, 0.0], "flat direction": [1.0, 0.0]}[kind]
    decoder = nn.Linear(2, 2, bias=False)
    decoder.weight.data = torch.diag(torch.tensor(scale))
    model = Gaussian(decoder, 2, prior=Flat(2)).double()
    start = torch.tensor([0.7, -0.3], dtype=torch.float64)
    x = (start * torch.tensor(scale)).expand(2, 2).clone()
    x[1, 0] += 0.5 * scale[0]
    found = solve(RULES[rule](), 400, Constant(start), tol=1e-10)(model, x)
    assert statuses(found) == [["converged", "converged"]]
    assert torch.allclose(found.z[0, 0], start) and found.z[0, 1, 1] == start[1]
    if kind != "flat":
        assert abs(found.z[0, 1, 0].item() - 1.2) < 1e-4


def test_statuses_are_counted_in_the_summary() -> None:
    model = Landscape(
        lambda x, z: torch.where(z[..., 0] > 9, torch.nan, -0.5 * x[:, 1] * (z[..., 0] - x[:, 0]).square()), 1, (2,)
    )
    x = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 2.5], [40.0, 1.0], [1.0, 1e-3]], dtype=torch.float64)
    found = solve(GradientAscent(1.0), 4, grad_tol=1e-6)(model, x)
    assert statuses(found) == [["converged", "converged", "diverged", "nonfinite", "max_steps"]]
    summary = found.summary()
    assert summary.startswith("Ascent: S=1, B=5, mean log_joint")
    assert summary.endswith("; converged: 2, diverged: 1, max_steps: 1, nonfinite: 1")


# Stopping and cost.


def test_grad_tol_stops_each_sample_at_its_own_step() -> None:
    """Of -½(z - x)² a step of rate r leaves the gradient |x| (1 - r)^t: the step to stop at is known."""
    x = torch.tensor([[0.5], [1.0], [8.0], [1e-4]], dtype=torch.float64)
    found = solve(GradientAscent(0.5), 100, grad_tol=1e-3)(bowl(1), x)
    wanted = (torch.log2(x[:, 0] / 1e-3)).ceil().clamp_min(0)
    solved = account(found)
    assert statuses(found) == [["converged"] * 4]
    assert solved.steps[0].tolist() == wanted.tolist()
    assert solved.evaluations[0].tolist() == (wanted + 1).tolist()
    assert torch.allclose(solved.grad_norm[0], x[:, 0] * 0.5**wanted, rtol=1e-5)
    assert torch.allclose(found.z[0], x * (1 - 0.5 ** wanted.unsqueeze(1)), rtol=1e-6)


def test_tol_stops_after_two_calm_steps() -> None:
    """The objective of step t is -½ x² 4^-t: it rises by less than tol twice in a row."""
    x, tol = torch.tensor([[0.5], [1.0], [8.0]], dtype=torch.float64), 1e-4
    solved = account(solve(GradientAscent(0.5), 100, tol=tol)(bowl(1), x))
    for start, steps in zip(x[:, 0].tolist(), solved.steps[0].tolist(), strict=True):
        values = [-0.5 * start**2 * 4.0**-t for t in range(steps + 1)]
        rises = [b - a for a, b in pairwise(values)]
        assert max(rises[-2:]) <= tol < min(rises[:-2])


def misfit(scale: float) -> tuple[Gaussian, Tensor, Tensor, Tensor]:
    """A linear decoder with noise 1000 times what its scale says, x, the best codes, and the curvature there.

    log_joint is about -1e7 nats, of which single precision rounds one away.
    """
    torch.manual_seed(0)
    model = Gaussian(nn.Linear(3, 20), 3, scale)
    weight, bias = (p.detach().double() for p in (model.decoder.weight, model.decoder.bias))
    x = (torch.randn(50, 3).double() @ weight.mT + bias + 1000 * scale * torch.randn(50, 20)).float()
    curvature = torch.eye(3).double() + weight.mT @ weight / scale**2
    return model, x, torch.linalg.solve(curvature, weight.mT @ (x - bias).mT / scale**2).mT, curvature


@pytest.mark.parametrize("rule", [name for name in QUIET if name != "gradient"])
def test_a_gain_below_the_rounding_of_the_objective_is_not_missed(rule: str) -> None:
    """Converged samples are within 1 nat of the best code, and rounding prevents none from converging."""
    model, x, best, curvature = misfit(1e-3)
    rate = 0.2 / float(torch.linalg.eigvalsh(curvature)[-1])
    step = Momentum(rate) if rule == "momentum" else RULES[rule]()
    found = Ascent(step=step, max_steps=800, tol=1e-3, adjoint=Detach())(model, x)
    away = found.z[0].detach() - best
    lost = 0.5 * ((away @ curvature) * away).sum(1)
    assert statuses(found) == [["converged"] * len(x)]
    assert float(lost.max()) < 1


def test_max_steps_stops_the_rest() -> None:
    x = torch.tensor([[0.5], [1e6]], dtype=torch.float64)
    found = solve(GradientAscent(0.5), 12, grad_tol=1e-3)(bowl(1), x)
    assert statuses(found) == [["converged", "max_steps"]]
    assert account(found).steps.tolist() == [[9, 12]]


@pytest.mark.parametrize("family", [None, 2])
@pytest.mark.parametrize("rule", ["lbfgs", "adam", "gradient"])
@pytest.mark.parametrize("tol", [None, 1e-2])
def test_stopped_samples_cost_no_decoder_work(rule: str, tol: float | None, family: int | None) -> None:
    """``Solve.evaluations`` counts every decoded row except the first checks of the decoder and the final scoring."""
    decoder = Rows(neural().decoder)
    model = Gaussian(decoder, 2, 0.5).double()
    x = torch.randn(9, 5, dtype=torch.float64) * torch.logspace(-2, 0.5, 9, dtype=torch.float64).unsqueeze(1)
    engine = solve(RULES[rule](), 80, tol=tol, family=None if family is None else MeanField(samples=family))
    decoder.rows = 0
    solved = account(engine(model, x))
    assert decoder.rows == int(solved.evaluations.sum()) + 9 + FIRST
    if tol is None:
        assert bool((solved.evaluations == 80 * (family or 1)).all())
    else:
        assert len(solved.evaluations.unique()) > 1, "all stop together: nothing is tested"
    decoder.rows = 0
    with torch.no_grad():  # a best point whose objective is its log joint is not scored again
        solved = account(engine(model, x))
    scored = 0 if family is None and (rule == "lbfgs" or tol is not None) else 9
    assert decoder.rows == int(solved.evaluations.sum()) + scored


def test_a_score_that_is_known_is_the_score() -> None:
    model, x = neural(), torch.randn(9, 5, dtype=torch.float64)
    engine = solve(LBFGS(), 40, tol=1e-3)
    with torch.no_grad():
        found = engine(model, x)
    assert torch.allclose(found.log_joint, model.log_joint(x, found.z), rtol=1e-12)


@pytest.mark.parametrize("rule", ["lbfgs", "gauss-newton", "adam"])
def test_restarts_are_in_the_account(rule: str) -> None:
    decoder = Rows(neural().decoder)
    model = Gaussian(decoder, 2, 0.5).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    decoder.rows = 0
    found = solve(RULES[rule](), 25, Prior(), tol=1e-3, restarts=3)(model, x)
    assert account(found).evaluations.shape == (1, 4)
    assert bool((account(found).evaluations >= 3 * 2).all())
    if rule != "gauss-newton":  # its curvature evaluates the decoder too
        decoder.rows = 0
        solved = account(solve(RULES[rule](), 25, Prior(), tol=1e-3, restarts=3)(model, x))
        assert decoder.rows == int(solved.evaluations.sum()) + 4


def test_zero_steps_return_the_start_and_look_at_nothing() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    found = solve(LBFGS(), 0, Constant(torch.ones(2)))(neural(), x)
    assert bool((found.z == 1).all()) and int(account(found).evaluations.sum()) == 0
    assert statuses(found) == [["max_steps"] * 3]


# The best point.


def test_the_last_point_counts_without_tolerance_and_the_best_with_one() -> None:
    """A rate past the optimum swings between worse points: 1 - 2.1 t of the way at step t."""
    model, x = bowl(1), torch.tensor([[1.0]], dtype=torch.float64)
    start = Constant(torch.tensor([0.5]))
    last = solve(GradientAscent(2.1), 3, start)(model, x)
    assert abs(last.z.item() - (1 - 0.5 * (1 - 2.1) ** 3)) < 1e-6
    best = solve(GradientAscent(2.1), 3, start, tol=1e-9)(model, x)
    assert best.z.item() == 0.5 and statuses(best) == statuses(last) == [["diverged"]]


@pytest.mark.parametrize("rule", RULES)
def test_trace_is_the_objective_before_each_step(rule: str) -> None:
    """Recomputed from shorter solves; a stopped row repeats its last value."""
    model, x = ppca(), torch.randn(4, 6, dtype=torch.float64)
    torch.manual_seed(0)
    trace = account(solve(RULES[rule](), 6, trace=True)(model, x)).trace
    assert trace is not None and trace.shape == (6, 1, 4)
    assert torch.allclose(trace[0], model.log_joint(x, torch.zeros(1, 4, 3).double()).detach())
    for t in range(1, 6):
        torch.manual_seed(0)
        before = solve(RULES[rule](), t)(model, x).log_joint.detach()
        if rule in ("gradient", "momentum", "adam", "langevin"):
            assert torch.allclose(trace[t], before)
        elif rule in SEARCHES:  # which return the best point evaluated
            assert torch.allclose(trace[:t].amax(0), before)
    assert account(solve(RULES[rule](), 6)(model, x)).trace is None


def test_trace_of_rows_that_stop() -> None:
    x = torch.tensor([[0.5], [1.0], [8.0], [1e-4]], dtype=torch.float64)
    found = solve(GradientAscent(0.5), 100, grad_tol=1e-3, trace=True)(bowl(1), x)
    trace, steps = account(found).trace, account(found).steps[0]
    assert trace is not None and trace.shape == (int(steps.max()) + 1, 1, 4)
    t = torch.minimum(torch.arange(len(trace)).unsqueeze(1), steps)
    assert torch.allclose(trace[:, 0], -0.5 * x[:, 0].square() * 4.0**-t, rtol=1e-5)


def test_mean_field_stops_and_finds_the_posterior_of_a_separable_model() -> None:
    """With orthogonal loadings the posterior is a mean field. The objective is quadratic: of the noise only its second
    moment matters, and antithetic pairs make the mean exact."""
    model = ppca(2, 4)
    with torch.no_grad():
        model.loadings.copy_(torch.linalg.qr(torch.randn(4, 2).double())[0].mT * torch.tensor([[1.0], [0.5]]))
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.manual_seed(3)
    found = solve(LBFGS(), 200, family=MeanField(samples=20), tol=1e-10)(model, x)
    torch.manual_seed(3)
    moment = torch.stack([torch.randn(1, 5, 2, dtype=torch.float64) for _ in range(10)]).square().mean(0)
    mean, covariance = posterior(model, x)
    assert statuses(found) == [["converged"] * 5] and len(account(found).steps.unique()) > 1
    assert found.q is not None and found.log_q is not None
    assert torch.allclose(found.q.mean[0], mean, atol=1e-4)
    assert torch.allclose(found.q.stddev, (covariance.diagonal() / moment).sqrt(), rtol=1e-3)
    assert torch.allclose(found.log_q, found.q.log_prob(found.z))


# Restarts.


def comb(x: Tensor, z: Tensor) -> Tensor:
    """cos(2πz) - (z - x)²/20: a maximum near every integer, the best near the integer that x rounds to."""
    return ((2 * torch.pi * z).cos() - (z - x).square() / 20).sum(2)


@pytest.mark.parametrize("rule", ["lbfgs", "gradient"])
def test_restarts_keep_the_best_basin_and_report_the_spread(rule: str) -> None:
    model = Landscape(comb, 1, (1,)).double()
    model.latent_prior = _Wide()
    x = torch.tensor([[0.1], [2.2], [-1.9]], dtype=torch.float64)
    step = GradientAscent(0.02) if rule == "gradient" else RULES[rule]()
    torch.manual_seed(1)
    found = solve(step, 300, Prior(), grad_tol=1e-6, restarts=60)(model, x)
    # maxima lie near integers n, at values close to 1 - (n - x)²/20
    grid = torch.linspace(-9, 9, 180_001, dtype=torch.float64)
    values = comb(x, grid.reshape(-1, 1, 1).expand(-1, 3, 1))
    assert torch.allclose(found.log_joint[0], values.amax(0), atol=1e-5)
    assert torch.allclose(found.z[0, :, 0], grid[values.argmax(0)], atol=1e-3)
    spread = account(found).spread
    assert spread is not None and spread.shape == (1, 3)
    torch.manual_seed(1)
    alone = solve(step, 300, Constant(torch.cat(_starts(60))), grad_tol=1e-6)  # each start as a sample of its own
    runs = alone(model, x.repeat(60, 1)).log_joint.view(60, 3)
    assert torch.allclose(spread[0], runs.amax(0) - runs.amin(0), atol=1e-5) and bool((spread > 0.5).all())


class _Wide(nn.Module):
    """N(0, 3²)."""

    def forward(self) -> torch.distributions.Distribution:
        normal = torch.distributions.Normal(torch.zeros(1).double(), 3 * torch.ones(1).double())
        return torch.distributions.Independent(normal, 1)


def _starts(count: int) -> list[Tensor]:
    """Draws of ``count`` restarts for three samples."""
    return [_Wide()().sample(torch.Size((1, 3)))[0] for _ in range(count)]


def test_a_single_solve_has_no_spread_and_one_basin_none_to_report() -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    model = neural()
    assert account(solve(LBFGS(), 5)(model, torch.randn(3, 5).double())).spread is None
    gaussian = Landscape(lambda x, z: -0.5 * (z - x).square().sum(2), 2, (2,))
    gaussian.latent_prior = type(model.latent_prior)(2).double()
    spread = account(solve(LBFGS(), 60, Prior(), grad_tol=1e-8, restarts=4)(gaussian, x)).spread
    assert spread is not None and float(spread.max()) < 1e-12


@pytest.mark.parametrize("init", [Zeros(), Constant(torch.ones(2)), Amortized(nn.Linear(5, 2))])
def test_restarts_from_one_place_are_refused(init: Inference) -> None:
    with pytest.raises(ValueError, match=f"3 restarts from `{type(init).__name__}` would all be the same.*`Prior()"):
        solve(LBFGS(), 5, init, restarts=3)(neural(), torch.randn(2, 5).double())


def test_restarts_where_some_or_all_fail() -> None:
    """A failed run loses against any other, and the spread is infinite."""
    model = hole(lambda x, z: -0.5 * (z - x).square().sum(2), torch.nan)
    model.latent_prior = _Wide()
    x = torch.zeros(3, 1, dtype=torch.float64)
    torch.manual_seed(1)
    some = solve(LBFGS(), 20, Prior(), grad_tol=1e-6, restarts=30)(model, x)
    assert statuses(some) == [["converged"] * 3] and bool((account(some).spread == torch.inf).all())
    empty = Landscape(lambda x, z: (z * torch.nan).sum(2)).double()
    empty.latent_prior = _Wide()
    none = solve(LBFGS(), 20, Prior(), restarts=3)(empty, x)
    spread = account(none).spread
    assert statuses(none) == [["nonfinite"] * 3] and spread is not None and not bool(torch.isnan(spread).any())


def test_restarts_on_every_branch_of_a_mixture() -> None:
    """The best of all branches and starts, against the closed form."""
    model = LinearMixture(4, 2, (5,), scale=0.6).double()
    with torch.no_grad():
        model.means.normal_()
        model.loadings.normal_()
    x = torch.randn(12, 5, dtype=torch.float64)
    found = Argmax(solve(LBFGS(), 100, Prior(), grad_tol=1e-9, restarts=3))(model, x)
    exact = Argmax(ClosedForm())(model, x)
    assert found.k is not None and exact.k is not None
    assert torch.equal(found.k, exact.k) and torch.allclose(found.z, exact.z, atol=1e-6)
    solved = account(found)
    assert solved.status.shape == (1, 12) and bool((solved.status == Status.converged).all())
    branch = solve(LBFGS(), 100, Prior(), grad_tol=1e-9, restarts=3)
    torch.manual_seed(0)
    each = branch(model, x, torch.arange(4).unsqueeze(1))
    assert each.k is not None and each.log_joint.shape == (4, 12)
    assert torch.equal(each.k, torch.arange(4).unsqueeze(1).expand(4, 12))
    assert torch.allclose(each.z[found.k[0], torch.arange(12)], found.z[0], atol=1e-6)


# Independence of the batch.


def strongly_concave(latent: int) -> Landscape:
    """A smooth objective with one maximum, of very different curvatures over samples and elements."""

    def objective(x: Tensor, z: Tensor) -> Tensor:
        scale = x[:, latent:].exp()
        return -(scale * (z - x[:, :latent]).square() + (z - x[:, :latent]).cosh() - 1).sum(2)

    return Landscape(objective, latent, (2 * latent,))


BATCH = st.integers(1, 6)
SETTINGS = {"lbfgs": (LBFGS, 200), "gauss-newton": (GaussNewton, 30), "adam": (lambda: Adam(0.3), 100)}


@pytest.mark.parametrize("rule", SETTINGS)
@given(seed=st.integers(0, 10**6), batch=BATCH, latent=st.integers(1, 3))
def test_a_code_does_not_depend_on_its_batch(rule: str, seed: int, batch: int, latent: int) -> None:
    """Any order and any part of a batch, one sample too, gives the same codes, steps and status."""
    torch.manual_seed(seed)
    build, steps = SETTINGS[rule]
    model = ppca(latent, 2 * latent) if rule == "gauss-newton" else strongly_concave(latent)
    x = 1.5 * torch.randn(batch, 2 * latent, dtype=torch.float64)
    engine = solve(build(), steps, grad_tol=1e-4 if rule == "adam" else 1e-7)
    whole = engine(model, x)
    order = torch.randperm(batch)
    for rows in (order, order[: batch // 2 + 1], order[:1]):
        part = engine(model, x[rows])
        assert torch.allclose(part.z[0], whole.z[0, rows], atol=1e-9)
        assert torch.equal(account(part).status[0], account(whole).status[0, rows])
        assert torch.equal(account(part).steps[0], account(whole).steps[0, rows])


@pytest.mark.parametrize("rule", SETTINGS)
def test_compaction_changes_nothing(rule: str) -> None:
    """Samples that stop at many different steps, since they start near and far from an optimum, against each alone."""
    model, x = neural(), torch.randn(8, 5, dtype=torch.float64)
    best = solve(LBFGS(), 200, grad_tol=1e-9)(model, x).z[0]
    offset = torch.logspace(-4, 2, 8, dtype=torch.float64).unsqueeze(1)
    starts = best + offset * torch.nn.functional.normalize(torch.randn(8, 2).double(), dim=1)

    def engine(rows: slice) -> Ascent:
        build, steps = SETTINGS[rule]
        return solve(build(), steps, Constant(starts[rows]), tol=1e-4 if rule == "adam" else 1e-8)

    whole = engine(slice(8))(model, x)
    assert len(account(whole).steps.unique()) > 2
    for i in range(8) if FULL else (0, 4, 7):
        alone = engine(slice(i, i + 1))(model, x[i : i + 1])
        assert torch.allclose(alone.z[0, 0], whole.z[0, i], atol=1e-9)
        assert torch.allclose(alone.log_joint[0, 0], whole.log_joint[0, i])
        assert account(alone).steps.item() == account(whole).steps[0, i].item()


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 10**6), batch=BATCH, latent=st.integers(1, 3), size=st.floats(-2, 4), cliff=st.booleans())
def test_nothing_but_finite_codes_no_worse_than_their_start(
    rule: str, seed: int, batch: int, latent: int, size: float, cliff: bool
) -> None:
    """On random networks, with or without non-finite regions, from random starts, in single precision, at any scale."""
    torch.manual_seed(seed)
    network = neural(latent, 4, activation=nn.SiLU)
    model = Gaussian(_Cliffs(network.decoder) if cliff else network.decoder, latent, 0.3).float()
    x = 10**size * torch.randn(batch, 4)
    start = torch.randn(batch, latent)
    before = model.log_joint(x, start.unsqueeze(0))[0].detach()
    engine = Ascent(Constant(start), RULES[rule](), 12, tol=1e-3, adjoint=Detach())
    found = engine(model, x)
    usable = torch.isfinite(before)
    solved = account(found)
    assert bool(torch.isfinite(found.z).all())
    assert bool(torch.isfinite(found.log_joint[0, usable]).all())
    assert not bool(torch.isnan(solved.grad_norm).any())
    rounding = 10 * torch.finfo(torch.float32).eps * (1 + before.abs())
    assert bool((found.log_joint[0] >= before - rounding)[usable].all())
    assert bool((solved.status[0, ~usable] == Status.nonfinite).all())
    assert torch.equal(found.z[0, ~usable], start[~usable])


class _Cliffs(nn.Module):
    """The same decoder, without values where its first output is large."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        mean = self.decoder(z)
        return mean + (0.3 - mean[..., :1]).sqrt()


class _Plain(nn.Module):
    """Codes of two elements through operations on single numbers: a row's arithmetic is that of the row alone."""

    def __init__(self, gain: float, bend: str):
        super().__init__()
        self.first, self.second = nn.Parameter(gain * torch.randn(3, 2)), nn.Parameter(gain * torch.randn(3, 2))
        self.bend = bend

    def forward(self, z: Tensor) -> Tensor:
        h = z[:, :1] * self.first[0] + z[:, 1:] * self.first[1] + self.first[2]
        h = {"soft": h / (1 + h.abs()), "square": h * h, "exp": h.exp(), "cliff": h + (2 - h).sqrt()}[self.bend]
        return h[:, :1] * self.second[0] + h[:, 1:] * self.second[1] + self.second[2]


HEADS: dict[str, Callable[[nn.Module], Likelihood]] = {
    "gaussian": lambda decoder: Gaussian(decoder, 2, 0.5, learn="scalar"),
    "flat": lambda decoder: Gaussian(decoder, 2, 0.1, prior=Flat(2)),
    "laplace": lambda decoder: Laplace(decoder, 2, prior=LaplacePrior(2)),
    "bernoulli": lambda decoder: Bernoulli(decoder, 2),
}
FAMILIES: dict[str, Callable[[], Family]] = {
    "delta": Delta,
    "mean field": lambda: MeanField(samples=2),
    "full covariance": lambda: FullCovariance(samples=2),
}
MODES: dict[str, Callable[[], Adjoint]] = {
    "unroll": Unroll,
    "checkpoint": CheckpointedUnroll,
    "truncate": lambda: Truncate(2),
    "one step": OneStep,
    "implicit": lambda: Implicit(stationary=1e30),
    "detach": Detach,
}
ROWS = 6


def wild(choose: random.Random) -> tuple[Likelihood, Tensor, Tensor, Ascent]:
    """A decoder, data, starts and an ascent, each at a moderate scale or far beyond single precision."""

    def size(*largest: float) -> float:
        return 10 ** choose.uniform(-1, choose.choice(largest))

    rate = size(0, 1, 6, 20)
    rules: list[tuple[Step, bool]] = [
        (build(), "gauss" in name or name == "matrix-free") for name, build in SEARCHES.items()
    ]
    rules += [(GradientAscent(rate, learn=True), False), (Momentum(rate), False), (Adam(rate), False)]
    rules += [(DeltaBarDelta(rate), False), (Clipped(Adam(rate), 1.0), False), (Langevin(rate, adjusted=True), False)]
    rules += [(Projected(GradientAscent(rate), onto), True) for onto in (Box(-1, 2), UnitSphere(), Simplex())]
    step, points = choose.choice(rules)
    head, family = choose.choice(list(HEADS)), "delta" if points else choose.choice(list(FAMILIES))
    if head == "laplace" and choose.random() < 0.5:
        step, family = ProximalAscent(choose.choice([None, rate]), choose.random() < 0.5), "delta"
    likelihood = HEADS[head](_Plain(size(0.5, 2, 8), choose.choice(["soft", "square", "exp", "cliff"])))
    some = torch.rand(ROWS, 1) < 0.5
    x = torch.where(some, 1.0, size(1, 5, 19, 38)) * torch.randn(ROWS, 2)
    x = x.sign().clamp_min(0) if head == "bernoulli" else x
    start = torch.where(torch.rand(ROWS, 1) < 0.5, 1.0, size(0.5, 2, 10, 30)) * torch.randn(ROWS, 2)
    tolerances = {name: choose.choice([None, 1e-3]) for name in ("tol", "grad_tol")}
    mode = MODES[choose.choice(list(MODES))]()
    engine = Ascent(
        Constant(start), step, choose.choice([1, 3, 8]), **tolerances, family=FAMILIES[family](), adjoint=mode
    )
    return likelihood, x, start, engine


@pytest.mark.filterwarnings("ignore:Implicit gradients need")
@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("block", range(3))
def test_whatever_is_solved_nothing_fails_or_falls_without_its_status(block: int) -> None:
    """Random heads, steps, families and adjoints, at scales beyond single precision.

    What is returned is finite or ``nonfinite``; where a finite point was known it is finite all the same, and no lower
    than the start unless the status says so. Each row ends as it does alone.
    """
    statuses_seen: set[int] = set()
    for case in range(12):
        torch.manual_seed(100 * block + case)
        likelihood, x, start, engine = wild(random.Random(100 * block + case))
        found = engine(likelihood, x)
        status = account(found).status[0]
        statuses_seen |= set(status.tolist())
        finite = found.log_joint[0].isfinite() & found.z[0].isfinite().all(1)
        finite &= found.log_q[0].isfinite() if found.log_q is not None else True
        assert bool((finite | (status == Status.nonfinite)).all())
        assert not bool(account(found).grad_norm.isnan().any())
        if not isinstance(engine.family, Delta):
            continue
        first = engine.step.project_start(start.unsqueeze(0)).requires_grad_()
        before = likelihood.log_joint(x, first)
        (slope,) = torch.autograd.grad(before.sum(), first)
        before, known = before[0].detach(), before[0].isfinite() & slope[0].norm(dim=1).isfinite()
        assert bool((finite | ~known).all())
        if engine.step.is_monotone:
            rounding = 1e-5 * (10 + before.abs())
            fine = (
                (found.log_joint[0] >= before - rounding) | (status == Status.diverged) | (status == Status.nonfinite)
            )
            assert bool((fine | ~known).all())
            for row in range(2):
                engine.init = Constant(start[row : row + 1])
                alone = engine(likelihood, x[row : row + 1])
                assert account(alone).status[0, 0] == status[row]
                assert torch.allclose(alone.z[0, 0], found.z[0, row], rtol=1e-4, equal_nan=True)
    assert {Status.max_steps, Status.nonfinite} <= statuses_seen


def test_draws_of_other_rows_stay_when_one_fails() -> None:
    """Codes beyond 1 have no density: a row drawn there is ``nonfinite``, and no other row is drawn again."""
    model = Landscape(lambda x, z: torch.where(z[..., 0] > 1, torch.nan, -0.5 * (z[..., 0] - x[:, 0]).square()))
    draws: list[Tensor] = []

    class Recorded(MeanField):
        def draw(self, u: Tensor) -> Tensor:
            draws.append(super().draw(u))
            return draws[-1]

    found = Ascent(Zeros(), max_steps=0, family=Recorded(scale=1.0))(model, torch.zeros(400, 1))
    (draw,) = draws
    assert torch.equal(found.z, draw) and 20 < int((draw > 1).sum()) < 120
    assert torch.equal(account(found).status == Status.nonfinite, draw[..., 0] > 1)
    assert torch.equal(found.log_joint.isfinite(), draw[..., 0] <= 1)


def test_a_density_of_no_width_or_endless_width_is_nonfinite() -> None:
    """The log joint of what it draws may be finite, but log q is not."""
    for log_scale in (-1e4, 1e4):
        q = torch.tensor([[[[0.3], [log_scale]], [[0.3], [0.0]]]])
        code = MeanField().code(bowl(1), q, torch.ones(1, 2, 1))
        assert torch.equal(_finite(code, torch.zeros(1, 2)), torch.tensor([[False, True]]))


@pytest.mark.parametrize("others", [0, 1])
def test_the_point_to_fall_back_on_is_that_of_the_row_alone(others: int) -> None:
    """The values of steps 0 ... 3 are 0, 1000, 1000 less rounding, and none: the best is that of step 1.

    A row beside it that fails at once does not make another one the best.
    """
    values, slopes = torch.tensor([0.0, 1000.0, 999.9999]), torch.tensor([1.0, 1.0, 0.5])

    def stairs(x: Tensor, z: Tensor) -> Tensor:
        at = z[..., 0]
        near = at.detach().round().clamp(0, 2).long()
        value = values[near] + slopes[near] * (at - near)
        return torch.where((at > 2.2) | (x[:, 0] > 0), torch.nan, value)

    x = torch.tensor([[0.0], [1.0]])[: 1 + others]
    found = Ascent(Zeros(), GradientAscent(1.0), 5, adjoint=Detach())(Landscape(stairs), x)
    assert statuses(found)[0][0] == "nonfinite" and found.z[0, 0].item() == 1.0


def test_an_endless_code_is_not_finite_though_its_density_is() -> None:
    """A decoder that saturates under a flat prior: the objective has a value at infinity, and slope 0."""
    model = Gaussian(nn.Sequential(nn.Tanh()), 1, prior=Flat(1))
    found = Ascent(Constant(torch.tensor([0.5])), GradientAscent(3e38), 3)(model, torch.tensor([[20.0], [0.4621172]]))
    assert bool(found.z.isfinite().all()) and bool(found.log_joint.isfinite().all())
    assert statuses(found)[0][0] == "nonfinite"


@pytest.mark.parametrize("rate", [1e3, 1e20, 1e37])
@pytest.mark.parametrize("rule", [GradientAscent, Momentum, Adam, DeltaBarDelta])
def test_steep_objectives_and_huge_rates_leave_finite_codes(rule: Callable[[float], Step], rate: float) -> None:
    """exp(z) of a Poisson law, data up to the largest number of single precision, and what was finite stays so."""
    decoder = nn.Linear(1, 2, bias=False)
    nn.init.ones_(decoder.weight)
    x = torch.tensor([0.0, 1.0, 1e6, 1e30, 3.4e38]).view(-1, 1).expand(5, 2)
    for model in (Poisson(decoder, 1), Gaussian(decoder, 1)):
        with torch.no_grad():
            known = model.log_joint(x, torch.zeros(1, 5, 1)).isfinite()
        for tol in (None, 1e-3):
            found = Ascent(Zeros(), rule(rate), 20, tol=tol, adjoint=Detach())(model, x)
            assert bool(found.z.isfinite().all()) and bool((found.log_joint.isfinite() | ~known).all())
            assert bool((found.log_joint.isfinite() | (account(found).status == Status.nonfinite)).all())


@pytest.mark.parametrize(("rule", "tol"), [*((rule, 1e-3) for rule in RULES), ("lbfgs", None), ("adam", None)])
def test_one_sample_of_one_element(rule: str, tol: float | None) -> None:
    model, x = ppca(1, 1), torch.ones(1, 1, dtype=torch.float64)
    found = solve(RULES[rule](), 50, tol=tol)(model, x)
    assert found.z.shape == (1, 1, 1) and account(found).status.shape == (1, 1)
    if rule in QUIET:
        assert abs(found.z.item() - posterior(model, x)[0].item()) < 0.1


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="got -1 and 1"):
        Ascent(max_steps=-1)
    with pytest.raises(ValueError, match="got 20 and 0"):
        Ascent(restarts=0)
    for options in ({"tol": 0.0}, {"grad_tol": -1.0}, {"tol": float("nan")}):
        with pytest.raises(ValueError, match="Tolerances must be positive or None"):
            Ascent(**options)  # type: ignore[arg-type]
