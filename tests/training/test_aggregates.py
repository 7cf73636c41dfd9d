"""Training by each aggregate over the data: one centre, whose optimum is known."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from gae import Autoencoder, load
from gae.inference import Argmax
from gae.likelihood import LinearMixture
from gae.objective import Aggregate, joint, mean, minimum, soft_minimum
from gae.training import fit
from gae.training.learners import has_closed_form

POINTS = torch.tensor([0.0, 1.0, 1.5, 6.0, 2.0]).double()
HALVES = np.log(2 * np.pi) / 2
lbfgs = partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-14)
sgd = partial(torch.optim.SGD, lr=0.01)  # of a subgradient: ends within one step of the optimum


def one_centre(aggregate: Aggregate) -> Autoencoder:
    return Autoencoder(LinearMixture(1, 0, (1,)).double(), Argmax(), joint, aggregate)


def best(aggregated: Callable[[np.ndarray], float]) -> float:
    """The centre c of N(c, 1) with the largest aggregate of the log densities, by Brent's method."""

    def loss(centre: float) -> float:
        return -aggregated(-HALVES - (POINTS.numpy() - centre) ** 2 / 2)

    return float(minimize_scalar(loss, bounds=(0, 6), method="bounded", options={"xatol": 1e-10}).x)


SOFT = best(lambda v: -np.log(np.exp(-0.2 * v).mean()) / 0.2)
HARD = best(lambda v: float(-logsumexp(-0.5 * v)) / 0.5)


@pytest.mark.parametrize(
    ("aggregate", "optimizer", "wanted", "tolerance"),
    [
        (mean, None, POINTS.mean().item(), 1e-12),
        (mean, lbfgs, POINTS.mean().item(), 1e-7),
        (minimum, sgd, 3.0, 0.04),  # the middle of the range
        (soft_minimum(0.2), lbfgs, SOFT, 1e-5),
        (soft_minimum(0.5, "sum"), lbfgs, HARD, 1e-5),
    ],
    ids=["mean, closed form", "mean", "minimum", "soft minimum", "soft minimum, sum"],
)
def test_the_centre_is_best_for_the_aggregate(
    aggregate: Aggregate, optimizer: Callable[..., torch.optim.Optimizer] | None, wanted: float, tolerance: float
) -> None:
    model = one_centre(aggregate)
    fit(model, POINTS.unsqueeze(1), epochs=100 if optimizer is sgd else 5, optimizer=optimizer, progress=False)
    assert model.likelihood.means.item() == pytest.approx(wanted, abs=tolerance)


def test_the_optima_differ() -> None:
    assert np.diff([POINTS.mean().item(), SOFT, HARD, 3.0]).min() > 0.07


def test_an_m_step_raises_the_mean_alone() -> None:
    assert has_closed_form(one_centre(mean))
    for aggregate in (minimum, soft_minimum(1.0), soft_minimum(1.0, "sum"), torch.median):
        assert not has_closed_form(one_centre(aggregate))
    with pytest.raises(ValueError, match="tol is for closed-form learning"):
        fit(one_centre(minimum), POINTS.unsqueeze(1), tol=1e-3, progress=False)


@pytest.mark.parametrize("aggregate", [minimum, soft_minimum(0.5), soft_minimum(0.5, "sum")])
@pytest.mark.parametrize("exchanged", [False, True])
def test_the_aggregate_is_saved(aggregate: Aggregate, exchanged: bool, tmp_path: Path) -> None:
    model, x = one_centre(mean if exchanged else aggregate), POINTS.unsqueeze(1)
    model.aggregate = aggregate
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load(model.save(tmp_path / "model"))
    loss, loaded, other = (m(x).item() for m in (model, again, one_centre(mean)))
    assert loss == loaded and abs(loss - other) > 0.1
