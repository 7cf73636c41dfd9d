"""Scores of a single linear-Gaussian component, which are quadratic in x, from the moments of the observations."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gae.likelihood.linear.moments import Moments
from gae.likelihood.linear.quadratic import Charts, precision_factor


@dataclass(frozen=True)
class MeanScores:
    """Means over observations, in nats."""

    joint: float  # max_z log q(z) q(x|z)
    elbo: float  # log_joint - log q(z|x) at the mode of the exact posterior; log p(x) under a proper prior
    unexplained: float  # share of ‖x - mean‖² outside the chart, in units of its noise


def mean_scores(charts: Charts, moments: Moments, about: Float[Tensor, "1 D"]) -> MeanScores:
    """The mean scores of observations from their moments about a point, in float64."""
    charts = charts.to(torch.float64)
    factor, width = precision_factor(charts), charts.loadings.shape[1]
    precision, count = charts.precision[0], moments.count.sum()
    white = torch.linalg.solve_triangular(factor[0].mT, precision * charts.loadings[0], upper=True)
    first, shift = moments.first[0] / count, charts.means[0] - about[0].double()
    square = moments.second[0].trace() / count - 2 * first @ shift + shift @ shift
    along, moved = white @ first, white @ shift
    explained = ((white @ moments.second[0]) * white).sum() / count - 2 * along @ moved + moved @ moved
    volume = 0.5 * width * math.log(2 * math.pi)
    joint = charts.constant[0] - 0.5 * (precision * square - explained) - (volume if charts.prior else 0.0)
    elbo = joint + volume - factor[0].diagonal().log().sum()
    total = (precision * square).clamp_min(torch.finfo(square.dtype).tiny)
    return MeanScores(float(joint), float(elbo), float(1 - explained / total))
