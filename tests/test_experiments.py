"""The command lines of the experiments, none of which is run here, and the accounts that the studies keep."""

import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import entropy
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from experiments import inference_by_compute as compute
from experiments.gon import SCALE, error_of_loss
from experiments.inference_by_compute import Bench, Engine
from experiments.llgae import Codes, error
from experiments.study import best_rate
from experiments.training_by_inference import SMOKE, Parts, build, evaluations, marks
from gae.data import Dataset
from gae.inference import Ascent, GradientAscent, Zeros
from gae.likelihood import Bernoulli, Gaussian, Likelihood
from gae.systems import NormalEncoder, gon, llgae, pca, vae
from gae.training import fit

EXPERIMENTS = [
    path.stem
    for path in sorted((Path(__file__).resolve().parent.parent / "experiments").glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_help_is_offered(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"experiments.{name}", run_name="__main__")
    assert not ended.value.code
    assert capsys.readouterr().out.startswith(f"usage: {name}")


def test_parts_of_a_pass_hold_every_row_once_and_the_next_pass_draws_anew() -> None:
    pixels = torch.rand(12, 1, 4, 4)
    parts = Parts.of(Dataset("x", pixels, pixels, None, None, (0.0, 1.0), "dynamic"), 4)
    whole = super(Parts, parts).epoch
    assert torch.equal(torch.cat([parts.epoch(i, 5) for i in range(3)]), whole(0, 5))
    assert torch.equal(parts.epoch(4, 5), whole(1, 5)[4:8])


def test_a_rate_at_an_edge_is_marked_and_a_failed_one_is_never_chosen() -> None:
    chosen = best_rate({0.1: -3.0, 0.01: -2.0, 1.0: None})
    assert (chosen["rate"], chosen["edge"]) == (0.01, True)
    assert not best_rate({0.1: -1.0, 0.01: -2.0, 1.0: -4.0})["edge"]
    with pytest.raises(FloatingPointError, match="No rate"):
        best_rate({0.1: None})


def test_marks_are_within_the_training_and_include_the_budgets() -> None:
    assert marks(10, (7, 12, 0)) == [1, 2, 3, 4, 6, 7, 9, 10]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vae", 1),
        ("iwae50", 50),
        ("savae", 5 * 2 + 1),  # draws for each of the steps, and the code
        ("rws", 10),
        ("unrolled-map", 10 + 1),
        ("short-run", 30 + 1),
        ("mcmc-em", 6 * 5 + 1 + 1),  # trajectories, the last state, and the bound of the encoder's draw
        ("vlae", 5 * (1 + 3) + 3 + 1),  # values and their curvatures, the curvature of the density, and its draw
    ],
)
def test_decoder_evaluations_of_a_training_step(name: str, expected: int) -> None:
    model = build(SMOKE, name, torch.Size((1, 4, 4)), 0.01, 0)
    assert evaluations(model, torch.rand(6, 1, 4, 4).round()) == expected


@pytest.mark.parametrize("name", ["vae", "vlae", "short-run"])
def test_every_training_starts_from_the_same_decoder(name: str) -> None:
    model = build(SMOKE, name, torch.Size((1, 4, 4)), 0.01, 3)
    torch.manual_seed(3)
    first = vae((1, 4, 4), SMOKE.latent, SMOKE.hidden, "bernoulli").likelihood
    for a, b in zip(model.likelihood.parameters(), first.parameters(), strict=True):
        assert torch.equal(a, b)


BUDGET = compute.smoke()
EVERY = list(compute.engines(BUDGET))


def bench(decoder: Likelihood, family: str) -> Bench:
    """A decoder of codes of two elements, four observations of five, and an encoder that knows nothing."""
    x = torch.rand(4, 5, dtype=torch.float64).round()
    return Bench(decoder.double(), x, NormalEncoder(torch.nn.Linear(5, 4)).double(), family)


@pytest.mark.parametrize(
    ("engine", "rate", "steps", "expected"),
    [
        (Engine("laplace", "zeros", "Adam"), 0.1, 0, 2),  # the curvature alone
        (Engine("laplace", "encoder", "L-BFGS"), None, 3, 3 + 2),
        (Engine("laplace", "zeros", "Gauss-Newton"), None, 3, 3 * (1 + 2) + 2),
        (Engine("ascent", "encoder", "momentum"), 0.1, 3, 3 * BUDGET.noise * 2),
        (Engine("chain", "encoder", "Langevin"), 0.1, 4, BUDGET.chains * 4),
        (Engine("chain", "zeros", "HMC"), 0.1, 4, BUDGET.chains * 4 * BUDGET.leapfrog),
    ],
    ids=str,
)
def test_decoder_evaluations_of_an_engine(engine: Engine, rate: float | None, steps: int, expected: int) -> None:
    stages = bench(Bernoulli(torch.nn.Linear(2, 5), 2), "full").curve(engine, BUDGET, rate, (steps,))
    assert [stage.evaluations for stage in stages] == [expected]


def test_a_recorded_solve_is_that_of_as_many_steps() -> None:
    one = bench(Bernoulli(torch.nn.Linear(2, 5), 2), "full")
    record = compute.Record((0, 1, 4))
    with torch.no_grad():
        Ascent(Zeros(), GradientAscent(0.1), 4, adjoint=record).infer(one.decoder, one.x)
        for steps, mark in record.marks.items():
            alone = Ascent(Zeros(), GradientAscent(0.1), steps).infer(one.decoder, one.x)
            assert torch.equal(mark.point, alone.z) and mark.evaluations == steps


def test_a_chain_forgets_its_first_half(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def nearest(states: torch.Tensor, family: str) -> Independent:
        seen.append(states)
        return Independent(Normal(states[-1], 1.0), 1)

    monkeypatch.setattr(compute, "nearest_normal", nearest)
    one = bench(Bernoulli(torch.nn.Linear(2, 5), 2), "full")
    one.curve(Engine("chain", "zeros", "Langevin"), BUDGET, 1e-3, (4, 10))
    assert [len(states) for states in seen] == [2, 5]
    assert all(bool((states[0] != 0).any()) for states in seen)


def test_ascent_from_the_laplace_approximation_pays_for_it() -> None:
    one = bench(Bernoulli(torch.nn.Linear(2, 5), 2), "full")
    engine = Engine("ascent", "Laplace", "L-BFGS")
    begin = one.start(engine, BUDGET)
    assert begin.evaluations > 2
    stage = one.curve(engine, BUDGET, None, (3,))[0]
    assert stage.evaluations == begin.evaluations + 3 * BUDGET.noise * 2


@pytest.mark.parametrize("family", compute.FAMILIES)
def test_bounds_of_a_linear_decoder_are_below_the_closed_form_that_the_optimum_reaches(family: str) -> None:
    """log p(x) for a full covariance; with a diagonal one, less half the log ratio of diagonal and determinant."""
    weight = torch.tensor([[1.0, 0.8], [-0.5, 0.4], [0.2, 0.9], [0.7, 0.1], [0.0, 1.0]], dtype=torch.float64)
    network = torch.nn.Linear(2, 5, bias=False)
    network.weight = torch.nn.Parameter(weight)
    one = bench(Gaussian(network, 2, scale=0.5), family)
    variance = 0.25 * torch.eye(5).double()
    limit = MultivariateNormal(torch.zeros(5).double(), weight @ weight.mT + variance).log_prob(one.x)
    if family == "diagonal":
        precision = torch.eye(2) + weight.mT @ weight / 0.25
        limit = limit - 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    optimum, _ = one.optimum(BUDGET)
    assert torch.allclose(optimum.value, limit, atol=1e-6)
    newton = one.curve(Engine("laplace", "zeros", "Gauss-Newton"), BUDGET, None, (2,))[0]
    assert torch.allclose(one.bound(newton.q, 10), limit, atol=1e-6)
    for engine in EVERY:
        rates = BUDGET.grids[engine.part][engine.rule].rates
        for stage in one.curve(engine, BUDGET, rates[0] if rates else None, (3, 6)):
            assert bool((one.bound(stage.q, 10) <= limit + 1e-6).all()), (engine, one.bound(stage.q, 10) - limit)


class TwoBumps(torch.nn.Module):
    """Five pixels that are half white at codes near (½, ·), where an ascent from zeros ends, and white near (-2, ·)."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        near, far = (torch.exp(-((z[..., :1] - place) ** 2) / 0.1) for place in (0.5, -2.0))
        return (0.5 * near + far).expand(*z.shape[:-1], 5)


def test_the_optimum_is_the_better_of_two_modes() -> None:
    one = bench(Gaussian(TwoBumps(), 2, scale=0.2), "full")
    with torch.no_grad():
        last = one.encoder.network
        assert isinstance(last, torch.nn.Linear)
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-2.0, 0.0, -2.0, 0.0]))  # mean and log scale near the better mode
    one.x.fill_(1.0)
    optimum, other = one.optimum(BUDGET)
    laplace = one.curve(Engine("laplace", "zeros", "L-BFGS"), BUDGET, None, (60,))[0]
    assert bool((optimum.value > one.bound(laplace.q, 100) + 1).all()) and bool(other.all())


def test_the_normal_of_a_chain_is_the_nearest_of_its_family() -> None:
    states = torch.randn(50_000, 1, 2, dtype=torch.float64) @ torch.tensor([[1.0, 0.9], [0.0, 0.4]]).double()
    exact = compute.nearest_normal(states, "full")
    assert isinstance(exact, MultivariateNormal)
    assert torch.allclose(exact.covariance_matrix[0], states[:, 0].mT.cov(), atol=1e-3)
    nearest = compute.nearest_normal(states, "diagonal")

    def divergence(factor: torch.Tensor) -> float:
        scale = (nearest.stddev * factor).diag_embed()
        return float(kl_divergence(MultivariateNormal(nearest.mean, scale_tril=scale), exact))

    least = divergence(torch.ones(2))
    for move in ([1.05, 1.0], [0.95, 1.0], [1.0, 1.05], [1.0, 0.95]):
        assert divergence(torch.tensor(move)) > least


def test_states_of_a_chain_that_never_moved_give_a_density() -> None:
    for family in compute.FAMILIES:
        q = compute.nearest_normal(torch.ones(2, 4, 2), family)
        assert bool((q.stddev > 0).all()) and bool(q.log_prob(q.mean).isfinite().all())


def test_one_state_has_no_moments() -> None:
    with pytest.raises(ValueError, match="at least two states, got 1"):
        compute.nearest_normal(torch.ones(1, 4, 2), "full")


def test_rates_and_steps_are_chosen_by_validation_scores_alone() -> None:
    scores: dict[float | None, list[float | None]] = {0.1: [-3.0, None], 0.01: [-2.0, -4.0], 1.0: [-9.0, -5.0]}
    assert compute.choice(scores, 0) == {"rate": 0.01, "edge": True, "validation": -2.0}
    assert compute.choice({None: [-1.0]}, 0) == {"rate": None, "edge": False, "validation": -1.0}
    assert not compute.choice(scores, 0, is_start=True)["edge"]  # without a step no rate counts
    points = [
        {"evaluations": 5.0, "validation": -1.0, "values": [-9.0]},
        {"evaluations": 10.0, "validation": -2.0, "values": [-1.0]},
        {"evaluations": 40.0, "validation": 0.0, "values": [-1.0]},
    ]
    assert compute.best_within(points, 10) is points[0]
    assert compute.best_within(points, 4) is None


def test_an_engine_overtakes_at_the_first_resolved_gain() -> None:
    c = compute.smoke()
    engine = Engine("laplace", "zeros", "L-BFGS")
    cells: dict[str, Any] = {}
    for seed in c.seeds:
        optimum = {"values": [0.0, 0.0], "converged": 1.0}
        cells[compute.encoder_name("full", seed)] = {"values": [-2.0, -2.0], "optimum": optimum}
        bounds = [-5.0, -0.6 - 1.3 * seed, -1.0 - 0.01 * seed, -0.5]  # the second is ahead, and not resolved
        cells[compute.cell_name(engine, "full", seed)] = {
            "points": [
                {"steps": i, "rate": None, "edge": False, "validation": bound, "evaluations": 10.0 * i, "seconds": 1.0}
                | {"values": [bound, bound]}
                for i, bound in enumerate(bounds)
            ]
        }
    line = compute.line(cells, c, engine, "full")
    assert line.overtaking is line.rows[2]
    assert line.rows[2].gain.mean == pytest.approx(0.995) and line.rows[2].gap.mean == pytest.approx(1.005)
    assert {budget: row.steps for budget, row in line.within.items()} == {10: [1, 1], 30: [3, 3], 100: [3, 3]}


@pytest.mark.slow
@pytest.mark.parametrize("components", [1, 3])
def test_rounded_codes_have_the_error_of_the_reconstruction_and_the_bits_of_their_histogram(components: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 6).double() @ torch.randn(6, 6).double()
    model = (llgae((6,), 4, components) if components > 1 else pca((6,), 4)).double()
    fit(model, x, epochs=5, progress=False)
    codes = Codes(model, x)
    assert float(codes.rounded(codes, 1e-6)[1][-1]) == pytest.approx(error(model, x)["mean"], rel=1e-6)
    charts, left = codes.rounded(codes, 1e6)  # every coordinate is 0
    assert torch.allclose(left, left[0].expand(5))
    probability = codes.k.bincount(minlength=components) / len(x)
    assert charts.tolist() == pytest.approx(5 * [entropy(probability, base=2)], abs=0.01)
    bits = codes.rounded(codes, 1.0)[0]
    lengths = []
    for chart in range(components):
        levels = (codes.z[codes.k == chart, 0] / 1.0).round().long().tolist()
        seen = range(min(levels), max(levels) + 1)
        size = len(levels) + len(seen) / 2
        lengths += [-math.log2((levels.count(level) + 0.5) / size) for level in levels]
    assert float(bits[1] - bits[0]) == pytest.approx(sum(lengths) / len(x))


def test_the_error_of_a_gradient_origin_network_is_read_from_its_loss() -> None:
    torch.manual_seed(0)
    x = torch.rand(5, 7).double()
    model = gon((7,), 2, (4,), scale=SCALE).double()
    square = (model.reconstruct(x) - x).detach().square().sum(1).mean()
    assert error_of_loss(float(model(x).detach()), 7) == pytest.approx(float(square))
