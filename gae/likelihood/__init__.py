"""q_r(x|z) and q_w(z): what a model is."""

from gae.likelihood.base import ClosedFormLearning, ExactPosterior, Likelihood, MonotoneCodes
from gae.likelihood.heads import Bernoulli, Categorical, ContinuousBernoulli, Gaussian, Head, Laplace, Poisson
from gae.likelihood.linear import LinearMixture
from gae.likelihood.moments import Moments
from gae.likelihood.nonnegative import NonNegativeGaussian, NonNegativeLinear, NonNegativePoisson
from gae.likelihood.observed import Observed
from gae.likelihood.operators import Blur, Crop, Downsample, GaussianProjection, LinearOperator, Mask
from gae.likelihood.priors import Flat, FlatDistribution, LaplacePrior, StandardNormal
from gae.likelihood.weights import Activation, WeightDecoder, WeightLikelihood

__all__ = [
    "Activation",
    "Bernoulli",
    "Blur",
    "Categorical",
    "ClosedFormLearning",
    "ContinuousBernoulli",
    "Crop",
    "Downsample",
    "ExactPosterior",
    "Flat",
    "FlatDistribution",
    "Gaussian",
    "GaussianProjection",
    "Head",
    "Laplace",
    "LaplacePrior",
    "Likelihood",
    "LinearMixture",
    "LinearOperator",
    "Mask",
    "Moments",
    "MonotoneCodes",
    "NonNegativeGaussian",
    "NonNegativeLinear",
    "NonNegativePoisson",
    "Observed",
    "Poisson",
    "StandardNormal",
    "WeightDecoder",
    "WeightLikelihood",
]
