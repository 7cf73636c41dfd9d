"""The matrix of families × engines against closed forms of a linear-Gaussian decoder."""

import json
import math
from dataclasses import replace

import pytest
import torch
from margins import within
from problems import posterior, ppca
from pyro.distributions.transforms import conditional_affine_autoregressive
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from gae.analysis import matrix
from gae.analysis.best_flow import DRAWS, RATE
from gae.analysis.costs import costs
from gae.analysis.gap import Bound
from gae.analysis.inference_gap import FAMILIES, FLOW, lower_bound
from gae.analysis.matrix import (
    DIAGONAL,
    ENCODER,
    FULL,
    LAPLACE,
    OPTIMUM,
    MatrixBudget,
    bound_matrix,
    log_evidence_entry,
    refined,
    reliability,
    tuned_rate,
)
from gae.evidence import Evidence
from gae.inference import LBFGS, Adam, Ascent, Detach, GradientAscent, Step
from gae.inference.flows import NormalizingFlow
from gae.inference.starts import Given
from gae.likelihood import Gaussian, Likelihood, LinearMixture

BUDGET = MatrixBudget(6, importance_samples=500, draws=20, steps=(4,), rates=(0.01, 0.1), tuning_samples=3)


def neural_twin(model: LinearMixture) -> Gaussian:
    """The same model as a head with a linear decoder, whose evidence has no closed form in gae."""
    decoder = torch.nn.Linear(3, 6).double()
    with torch.no_grad():
        decoder.weight.copy_(model.loadings[0].T)
        decoder.bias.copy_(model.means[0])
    return Gaussian(decoder, 3, scale=model.log_scale.detach().exp().item()).double().requires_grad_(False)


def encoders(model: LinearMixture, x: Tensor, shift: float) -> dict[str, Distribution]:
    mean, covariance = posterior(model, x)
    spread = torch.linalg.inv(covariance).diagonal().rsqrt().expand_as(mean)
    full = MultivariateNormal(mean + shift, covariance.expand(len(x), -1, -1))
    return {DIAGONAL: Independent(Normal(mean + shift, spread), 1), FULL: full}


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_every_cell_has_its_closed_form(shift: float) -> None:
    """L of a normal of covariance C at mean m + s: log p(x) − KL, for a posterior N(m, Λ⁻¹)."""
    torch.manual_seed(0)
    model = ppca()
    x, held = torch.randn(6, 6).double(), torch.randn(3, 6).double()
    with torch.no_grad():
        log_p = model.log_evidence(x).log_p
        precision = torch.linalg.inv(posterior(model, x)[1])
        q, tuning = encoders(model, x, shift), encoders(model, held, shift)
    entry = bound_matrix(neural_twin(model), x, q, (held, tuning), BUDGET)
    family = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    moved = 0.5 * (torch.full((3,), shift).double() @ precision @ torch.full((3,), shift).double())
    for name, cost in ((FULL, 0.0), (DIAGONAL, float(family))):
        cells = {engine: torch.tensor(cell["values"]).double() for engine, cell in entry["cells"][name].items()}
        assert torch.allclose(cells[ENCODER], log_p - cost - moved, atol=1e-6)
        for engine in (OPTIMUM, LAPLACE):
            assert torch.allclose(cells[engine], log_p - cost, atol=1e-4), (name, engine)
            assert entry["cells"][name][engine]["converged"] == 1
    costs_of = [entry["cells"][name][LAPLACE]["evaluations"] for name in (FULL, DIAGONAL)]
    climb = Ascent(Given.density(q[DIAGONAL]), LBFGS(), 100, grad_tol=1e-4, adjoint=Detach())
    solve = climb.infer(neural_twin(model), x).solve
    assert solve is not None and costs_of == [float(solve.evaluations.double().mean()) + 3] * 2  # and the curvature
    assert entry["log_p"]["tight"] and torch.allclose(torch.tensor(entry["log_p"]["values"]).double(), log_p, atol=0.3)
    known = costs([entry], [{"active": 3, "width": 3, "kl": 1.0}], DIAGONAL, 4)
    assert known.amortisation.mean == pytest.approx(float(moved), abs=1e-4)
    assert known.left.mean < known.amortisation.mean or shift == 0
    assert entry["rates"][DIAGONAL]["edge"]  # both rates of the grid are edges


def test_an_evidence_is_tight_if_nearly_all_samples_are() -> None:
    def evidence(tight: list[bool], method: tuple[str, ...], shape: float = 0.5) -> Evidence:
        zeros, rows = torch.zeros(len(tight)), len(tight)
        shapes = torch.tensor([shape if name == "importance" else math.nan for name in method])
        return Evidence(zeros, zeros, zeros + 500, 0, shapes, method, ("because",) * rows, torch.tensor(tight))

    weights = ("importance",) * 10
    assert reliability(evidence([True] * 10, weights), 1000)["tight"]
    entry = reliability(evidence([True] * 9 + [False], weights, math.inf), 1000)
    assert not entry["tight"] and entry["reliable"] == pytest.approx(0.9) and entry["largest_pareto_k"] is None
    entry = reliability(evidence([True] * 10, (*weights[:9], "ais")), 1000)
    assert entry["tight"] and entry["methods"] == {"importance": 9, "ais": 1} and entry["largest_pareto_k"] == 0.5
    entry = reliability(evidence([False] * 2, ("ais", "ais")), 1000)
    assert entry["ess"] is None and json.dumps(entry, allow_nan=False)
    assert reliability(Evidence.exact(torch.zeros(2)), 1000) == {"method": "exact", "tight": True}


def test_a_proposal_that_fails_is_replaced_with_a_reason() -> None:
    """From a density far from the posterior, log p(x) still has its closed form, and the reason says why."""
    torch.manual_seed(0)
    model, x = ppca(), torch.randn(4, 6).double()
    with torch.no_grad():
        far = encoders(model, x, 5.0)[FULL]
        log_p = model.log_evidence(x).log_p
    zeros = torch.zeros(4).double()
    entry = log_evidence_entry(neural_twin(model), x, Bound(zeros, zeros, far), 200)
    error = (torch.tensor(entry["values"]).double() - log_p).abs()
    assert entry["tight"] and error.max() < 5 * entry["sampling_se"] < 0.2
    assert all("proposal: Laplace approximation" in reason for reason in entry["reasons"])


def test_the_rate_is_the_best_of_the_grid() -> None:
    torch.manual_seed(0)
    model, x = ppca(), torch.randn(3, 6).double()
    with torch.no_grad():
        q = encoders(model, x, 1.0)[DIAGONAL]
    for rates, best, edge in (((1e-6, 0.1, 9.0), 0.1, False), ((1e-6, 0.1), 0.1, True), ((0.1, 9.0), 0.1, True)):
        entry = tuned_rate(neural_twin(model), x, q, DIAGONAL, replace(BUDGET, rates=rates))
        assert entry == {"rate": best, "edge": edge, "steps": 4, "samples": 3}


def test_a_flow_has_the_bounds_of_its_encoder_of_steps_and_of_the_best_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow that is nearly the identity: its bounds are those of diagonal normals. The ascent itself is replaced."""
    torch.manual_seed(0)
    budget = replace(BUDGET, draws=200, optimum_steps=25, rates=(0.03, 9.0))
    model, x, held = ppca(), torch.randn(6, 6).double(), torch.randn(3, 6).double()
    flow = conditional_affine_autoregressive(3, 1, hidden_dims=[4]).double()
    for parameter in flow.parameters():
        parameter.data *= 1e-9
    ascents = []

    def ascent(likelihood: Likelihood, x: Tensor, q: NormalizingFlow, steps: int, rate: float) -> Distribution:
        ascents.append((len(x), steps, rate))
        return NormalizingFlow(q.flow, q.loc - (0.3 if rate == 0.03 else 0.0), q.scale, q.context)

    monkeypatch.setattr(matrix, "best_flow", ascent)

    def densities(rows: Tensor) -> dict[str, Distribution]:
        normals = encoders(model, rows, 0.3)
        q = normals[DIAGONAL]
        return normals | {FLOW: NormalizingFlow(flow, q.mean, q.stddev, torch.ones(len(rows), 1).double())}

    with torch.no_grad():
        q, tuning = densities(x), densities(held)
        best = lower_bound(neural_twin(model), x, encoders(model, x, 0.0)[DIAGONAL], 20).value
    entry = bound_matrix(neural_twin(model), x, q, (held, tuning), budget)
    assert list(entry["cells"]) == [DIAGONAL, FULL, FLOW] and entry["rates"][FLOW]["rate"] == 0.03
    assert ascents == [(3, 4, 0.03), (3, 4, 9.0), (6, 4, 0.03), (6, 50, RATE)]
    row = entry["cells"][FLOW]
    assert [cell["evaluations"] for cell in row.values()] == [0, 4 * DRAWS, 50 * DRAWS]
    assert all(cell["converged"] is None for cell in row.values())
    start = torch.tensor(entry["cells"][DIAGONAL][ENCODER]["values"]).double()
    for name, wanted in ((ENCODER, start), ("encoder + 4 gradient steps", best)):
        error = (torch.tensor(row[name]["values"]).double() - wanted).mean() / row[name]["sampling_se"]
        within(name, error * math.sqrt(6), above=-4.5, below=4.5)
    within("gain", (torch.tensor(row[OPTIMUM]["values"]).double() - start).mean(), above=0.0)  # moved to q* of normals
    assert (best - start).mean() > 0.05


@pytest.mark.filterwarnings("ignore")
def test_steps_that_overflow_end_at_their_best_point() -> None:
    torch.manual_seed(0)
    model, x = ppca(), torch.randn(3, 6).double()
    with torch.no_grad():
        q = encoders(model, x, 5.0)[DIAGONAL]
    (cell,) = refined(neural_twin(model), x, q, DIAGONAL, GradientAscent(1e308), [1], draws=20)
    start = lower_bound(neural_twin(model), x, q, 20).value
    assert torch.allclose(cell.bound.value, start, atol=1e-6)


@pytest.mark.parametrize("step", [LBFGS(), Adam(0.1)], ids=["l-bfgs", "adam"])
@pytest.mark.parametrize("family", [DIAGONAL, FULL])
def test_the_densities_after_some_steps_are_those_of_solves_of_as_many(step: Step, family: str) -> None:
    torch.manual_seed(0)
    model, x = ppca(), torch.randn(6, 6).double()
    with torch.no_grad():
        q = encoders(model, x, 0.5)[family]
    likelihood = neural_twin(model)
    torch.manual_seed(1)
    cells = refined(likelihood, x, q, family, step, (2, 5), draws=20)
    for steps, cell in zip((2, 5), cells, strict=True):
        torch.manual_seed(1)
        member = FAMILIES[family](12, matched=True)
        alone = Ascent(Given.density(q), step, steps, family=member, adjoint=Detach()).infer(likelihood, x)
        assert cell.bound.q is not None and alone.q is not None and alone.solve is not None
        assert torch.allclose(cell.bound.q.mean, alone.q.mean[0]) and torch.allclose(
            cell.bound.q.variance, alone.q.variance[0]
        )
        assert torch.equal(cell.evaluations, alone.solve.evaluations[0])
