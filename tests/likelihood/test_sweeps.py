"""Passes of closed-form learning over all data, against the engine's codes and the likelihood's statistics."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from gae import Autoencoder
from gae.inference import Argmax, ClosedForm, Enumerate, Inference, Nearest
from gae.likelihood import LinearMixture
from gae.likelihood.linear import mixture
from gae.objective import Objective, joint, logsumexp
from gae.training import fit
from gae.training.learners import BOUNDS


@dataclass(frozen=True)
class Case:
    """A mixture, its engine, and the objective that closed-form learning raises."""

    latent: int
    engine: Inference
    bound: Objective
    options: dict[str, Any] = field(default_factory=dict)


LEARNED = {"learn_scale": True, "learn_weights": True}
CASES = {
    "charts": Case(2, Argmax(ClosedForm()), joint, {"flat_prior": True}),
    "scales": Case(2, Argmax(ClosedForm()), joint, LEARNED),
    "mixture": Case(0, Enumerate(), logsumexp, LEARNED),
    "equal": Case(0, Enumerate(), logsumexp),
}


def charts(n: int, dtype: torch.dtype) -> Tensor:
    """Observations near four planes in nine dimensions."""
    planes = torch.randn(4, 2, 9, dtype=dtype)
    return torch.cat([torch.randn(n, 2, dtype=dtype) @ plane + 3 * torch.randn(9, dtype=dtype) for plane in planes])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_pass_has_the_scores_and_moments_of_the_codes(
    case: Case, offset: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture, "BLOCK", 64 * 9 * 4)  # rows that do not divide N
    x = charts(75, dtype) + torch.randn(300, 9, dtype=dtype) + offset
    likelihood = LinearMixture(4, case.latent, (9,), scale=0.5, **case.options).to(x)
    likelihood.initialize(x, 0)
    sweep = case.engine.sweep(likelihood, x, BOUNDS[case.bound])
    assert sweep is not None
    total, moments = sweep()
    wanted = likelihood.statistics(x, case.engine.infer(likelihood, x))
    value = case.bound(case.engine(likelihood, x))
    assert total.item() == pytest.approx(value.sum().item(), rel=1e-5 if dtype == torch.float32 else 1e-10)
    for name in ("count", "first", "second"):
        torch.testing.assert_close(getattr(moments, name), getattr(wanted, name), rtol=1e-6, atol=1e-4)
    assert len(moments.count) == 4 and moments.count.sum() == pytest.approx(300)


def test_rounding_in_float32_does_not_choose_a_chart() -> None:
    """Two lines at almost equal distances, whose order float32's products would decide."""
    means = torch.zeros(2, 3)
    means[1, 2] = 1.0
    lines = LinearMixture(2, 1, (3,), flat_prior=True, means=means)
    lines.loadings.data.copy_(torch.tensor([1.0, 0.0, 0.0]).expand_as(lines.loadings))
    x = torch.zeros(400, 3)
    x[:, 0], x[:, 2] = torch.linspace(0, 1, 400), 0.5 + 1e-7 * torch.linspace(-3, 3, 400)
    sweep = lines.sweep_of_charts(x)
    assert sweep is not None
    assert 0 < sweep()[1].count[1] == (x[:, 2] > 0.5).sum()  # of ties, the first


def test_fits_are_those_without_a_pass_over_all_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores fall to the same optimum, with a chart that stays empty too."""
    x = charts(200, torch.float64) + 2 * torch.randn(800, 9, dtype=torch.float64)
    fits = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(LinearMixture, "sweep_of_charts", lambda *_: None)
        likelihood = LinearMixture(5, 2, (9,), flat_prior=True).double()
        likelihood.initialize(x, 0)
        with torch.no_grad():
            likelihood.means[4] = 1e3
        history = fit(Autoencoder(likelihood, Argmax(ClosedForm()), joint), x, progress=False)
        fits.append((likelihood, [row.loss for row in history.rows]))
    (fast_one, losses), (plain, others) = fits
    assert len(losses) > 2 and losses == pytest.approx(others, rel=1e-12)
    torch.testing.assert_close(fast_one.means, plain.means, rtol=0, atol=1e-9)
    torch.testing.assert_close(fast_one.loadings, plain.loadings, rtol=0, atol=1e-9)
    assert bool((fast_one.means[4] == 1e3).all())


def test_passes_are_for_one_objective_and_exact_codes() -> None:
    x = torch.randn(30, 4)
    lines, points = (LinearMixture(2, latent, (4,), means=x[:2]) for latent in (1, 0))
    for engine, likelihood, bound in [
        (Argmax(ClosedForm()), lines, "joint"),
        (Argmax(), points, "joint"),
        (Nearest(), points, "joint"),
        (Enumerate(), points, "logsumexp"),
    ]:
        assert engine.sweep(likelihood, x, bound) is not None
        assert engine.sweep(likelihood, x, {"joint": "logsumexp", "logsumexp": "joint"}[bound]) is None
    assert Argmax(ClosedForm(samples=2)).sweep(lines, x, "joint") is None
    assert Argmax(ClosedForm()).sweep(points, x, "joint") is None
    assert Argmax(ClosedForm()).sweep(LinearMixture(1, 1, (4,), means=x[:1]), x, "joint") is None
    assert Enumerate(ClosedForm()).sweep(lines, x, "logsumexp") is None
