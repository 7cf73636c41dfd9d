"""Simulation-based calibration of exact posteriors, and of densities that are wrong in known ways."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from gae import Autoencoder
from gae.analysis.calibration import Calibration, simulation_based_calibration
from gae.inference import Amortized, Ascent, ClosedForm
from gae.likelihood import Flat, Gaussian, LinearMixture
from gae.reports.calibration import calibration_figure


def ppca() -> LinearMixture:
    model = LinearMixture(1, 3, (6,), scale=0.7).double()
    model.loadings.data.normal_()
    return model


class Scaled(nn.Module):
    """The exact posterior with its deviations multiplied and its mean shifted, in posterior deviations."""

    def __init__(self, model: LinearMixture, width: float, shift: float):
        super().__init__()
        self.model, self.width, self.shift = (model,), width, shift

    def forward(self, x: Tensor) -> Distribution:
        q = self.model[0].posterior(x)
        deviation = q.variance[0].sqrt()
        return MultivariateNormal(q.mean[0] + self.shift * deviation, scale_tril=self.width * q.scale_tril[0])


def calibrated(width: float, shift: float = 0.0) -> Calibration:
    model = ppca()
    return simulation_based_calibration(Autoencoder(model, Amortized(Scaled(model, width, shift))), 600)


def test_ranks_of_the_exact_posterior_are_uniform() -> None:
    model = ppca()
    found = simulation_based_calibration(Autoencoder(model, ClosedForm()), 600, batch_size=250)
    assert found.ranks.shape == (600, 3) and found.log_joint_ranks.shape == (600,)
    assert found.p_values().min() > 1e-5
    wanted = [stats.chisquare(column).pvalue for column in found.histogram().T.numpy()]
    assert np.allclose(found.p_values(), wanted, rtol=1e-8)
    assert found.ecdf_difference().abs().max() < 3 / np.sqrt(600)  # Kolmogorov's statistic, p < 1e-7


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_ranks_show_a_wrong_width(width: float) -> None:
    """Half as wide: a U. Twice as wide: a hump. The counts follow from normal probabilities."""
    found = calibrated(width)
    assert found.p_values()[:3].max() < 1e-6
    counts = found.histogram()[:, :3].double()
    ends, middle = counts[[0, -1]].mean(0), counts[4:6].mean(0)
    assert bool((ends > 2 * middle).all()) if width < 1 else bool((middle > 2 * ends).all())
    # the rank of a normal of deviation 1 among draws of deviation w: its u has P(u < a) = Φ(w Φ⁻¹(a))
    wanted = 600 * stats.norm.cdf(width * stats.norm.ppf(0.1))
    assert (counts[0] - wanted).abs().max() < 5 * np.sqrt(wanted) + 12


def test_ranks_show_a_shift() -> None:
    found = calibrated(1.0, shift=1.0)
    assert found.p_values()[:3].max() < 1e-6
    assert found.ecdf_difference()[:, :3].amax(0).min() > 0.2  # true codes lie to the left of q
    assert found.ecdf_difference()[:, :3].amin(0).max() > -0.05


def test_the_prior_as_q_is_seen_by_the_log_joint_alone() -> None:
    """The ranks of the elements are uniform for a q that ignores x, and those of the log joint are not."""

    class Ignorant(nn.Module):
        def forward(self, x: Tensor) -> Distribution:
            return MultivariateNormal(torch.zeros(len(x), 3).double(), torch.eye(3).double())

    found = simulation_based_calibration(Autoencoder(ppca(), Amortized(Ignorant())), 600)
    assert found.p_values()[:3].min() > 1e-5 and found.p_values()[3] < 1e-10


def test_ranks_by_hand() -> None:
    ranks = torch.tensor([[0], [3], [1], [0]])
    found = Calibration(ranks, torch.tensor([3, 3, 3, 3]), 3)
    assert found.histogram(2).tolist() == [[3, 0], [1, 4]] and found.histogram(4)[:, 0].tolist() == [2, 1, 0, 1]
    assert found.ecdf_difference()[:, 0].tolist() == [0.25, 0.25, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"bins must divide .* 4, got 3"):
        found.histogram(3)

    with pytest.raises(ValueError, match="at least 10 observations, got 4"):
        found.p_values(2)


def test_a_test_of_few_observations_is_refused() -> None:
    """Five expected in each bin suffice: an error of the first kind at 1 % happens about that often."""
    torch.manual_seed(0)
    values = Calibration(torch.randint(100, (50, 500)), torch.zeros(50, dtype=torch.long), 99).p_values()[:-1]
    assert 0.003 < (values < 0.01).double().mean() < 0.03
    with pytest.raises(ValueError, match="needs at least 50 observations, got 49"):
        Calibration(torch.randint(100, (49, 2)), torch.zeros(49, dtype=torch.long), 99).p_values()


def test_engines_without_a_density_are_refused() -> None:
    points = Autoencoder(Gaussian(nn.Linear(2, 5), 2), Ascent(max_steps=1))
    with pytest.raises(ValueError, match="`Ascent` has no density"):
        simulation_based_calibration(points, 10)
    flat = Autoencoder(Gaussian(nn.Linear(2, 5), 2, prior=Flat(2)), Ascent(max_steps=1))
    with pytest.raises(ValueError, match="flat prior"):
        simulation_based_calibration(flat, 10)


def test_the_picture_of_a_calibration() -> None:
    """One panel for each element and the log joint, with the counts as bars, and the curves."""
    found = calibrated(0.5)
    figure = calibration_figure(found)
    *panels, curves = figure.canvas.axes
    assert [panel.get_title().split(",")[0] for panel in panels][-1] == "log joint" and len(panels) == 4
    assert len(curves.get_lines()) == 5
    i = int(panels[0].get_title()[2])
    assert [bar.get_height() for bar in panels[0].containers[0]] == found.histogram()[:, i].tolist()
    assert "too narrow" in figure.caption and "600 observations" in figure.caption
