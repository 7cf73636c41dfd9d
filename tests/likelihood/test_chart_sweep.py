"""Passes of closed-form learning over charts, against the engine's codes and the likelihood's statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gae import Autoencoder
from gae.inference import Argmax, ClosedForm
from gae.likelihood import LinearMixture
from gae.likelihood.linear import mixture
from gae.objective import joint
from gae.training import fit

KINDS: list[dict[str, Any]] = [{"flat_prior": True}, {"learn_scale": True, "learn_weights": True}]


def charts(n: int, dtype: torch.dtype) -> Tensor:
    """Observations near four planes in nine dimensions."""
    planes = torch.randn(4, 2, 9, dtype=dtype)
    return torch.cat([torch.randn(n, 2, dtype=dtype) @ plane + 3 * torch.randn(9, dtype=dtype) for plane in planes])


def model(x: Tensor, kind: dict[str, Any]) -> LinearMixture:
    start = LinearMixture(4, 2, (9,), scale=0.5, **kind).to(x)
    start.initialize(x, 0)
    return start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("kind", KINDS, ids=["charts", "scales"])
def test_a_pass_has_the_scores_and_moments_of_the_codes(
    kind: dict[str, Any], offset: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture, "BLOCK", 64)  # not a divisor of N
    x = charts(75, dtype) + torch.randn(300, 9, dtype=dtype) + offset
    likelihood, engine = model(x, kind), Argmax(ClosedForm())
    sweep = engine.sweep(likelihood, x)
    assert sweep is not None
    total, moments = sweep()
    code = engine.infer(likelihood, x)
    wanted = likelihood.statistics(x, code)
    assert code.log_joint is not None
    assert total.item() == pytest.approx(code.log_joint.sum().item(), rel=1e-6)
    for name in ("count", "first", "second"):
        torch.testing.assert_close(getattr(moments, name), getattr(wanted, name), rtol=1e-6, atol=1e-4)
    assert torch.equal(moments.count, wanted.count) and len(moments.count) == 4


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
        history = fit(Autoencoder(likelihood, Argmax(ClosedForm()), joint), x, batch_size=150, progress=False)
        fits.append((likelihood, [row.loss for row in history.rows]))
    (fast_one, losses), (plain, others) = fits
    assert len(losses) > 2 and losses == pytest.approx(others, rel=1e-12)
    torch.testing.assert_close(fast_one.means, plain.means, rtol=0, atol=1e-9)
    torch.testing.assert_close(fast_one.loadings, plain.loadings, rtol=0, atol=1e-9)
    assert bool((fast_one.means[4] == 1e3).all())


def test_passes_are_for_exact_codes_of_several_charts() -> None:
    x = torch.randn(30, 4)
    two = LinearMixture(2, 1, (4,), flat_prior=True, means=x[:2])
    assert Argmax(ClosedForm()).sweep(two, x) is not None
    assert Argmax(ClosedForm(samples=2)).sweep(two, x) is None
    assert Argmax(ClosedForm()).sweep(LinearMixture(2, 0, (4,), means=x[:2]), x) is None
    assert Argmax(ClosedForm()).sweep(LinearMixture(1, 1, (4,), means=x[:1]), x) is None
