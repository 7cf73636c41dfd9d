"""q_r(x|z) and q_w(z): what a model is."""

from gae.likelihood.base import ClosedFormLearning, ExactPosterior, Likelihood
from gae.likelihood.heads import Bernoulli, Categorical, ContinuousBernoulli, Gaussian, Head, Laplace, Poisson
from gae.likelihood.linear import LinearMixture
from gae.likelihood.moments import Moments
from gae.likelihood.priors import Flat, FlatDistribution, StandardNormal

__all__ = [
    "Bernoulli",
    "Categorical",
    "ClosedFormLearning",
    "ContinuousBernoulli",
    "ExactPosterior",
    "Flat",
    "FlatDistribution",
    "Gaussian",
    "Head",
    "Laplace",
    "Likelihood",
    "LinearMixture",
    "Moments",
    "Poisson",
    "StandardNormal",
]
