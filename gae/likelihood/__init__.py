"""Models: likelihoods q_r(x|z) and priors q_w(z)."""

from gae.likelihood.base import (
    ClosedFormLearning,
    DataDependentInit,
    DecoderLikelihood,
    ExactMode,
    ExactPosterior,
    Likelihood,
    MonotoneCodes,
    NoiseScale,
    OnlineLearning,
)
from gae.likelihood.codebook import Codebook, CodebookDistribution, CodebookMoments
from gae.likelihood.frequencies import Multinomial, MultinomialDistribution
from gae.likelihood.heads import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Gaussian,
    Head,
    Laplace,
    LocationScaleHead,
    Poisson,
)
from gae.likelihood.hierarchical import HierarchicalNormal
from gae.likelihood.linear.blended import BlendedCharts
from gae.likelihood.linear.conditional import ObservedMoments
from gae.likelihood.linear.kernel import GaussianKernel
from gae.likelihood.linear.mixture import LinearMixture
from gae.likelihood.linear.moments import Moments
from gae.likelihood.linear.nonnegative import NonNegativeGaussian, NonNegativeLinear, NonNegativePoisson
from gae.likelihood.linear.observed import PartiallyObservedMixture
from gae.likelihood.linear.regression import LinearRegression
from gae.likelihood.measured import Measured
from gae.likelihood.missing import AcceptsMissing, PartiallyObserved
from gae.likelihood.operators import Blur, Crop, Downsample, GaussianProjection, LinearOperator, Mask
from gae.likelihood.priors import Flat, FlatDistribution, LaplacePrior, StandardNormal
from gae.likelihood.relational.lle import LLE
from gae.likelihood.relational.tsne import TSNE, Relational
from gae.likelihood.sequence import CategoricalSequence, SequenceDistribution, StepwiseDecoder
from gae.likelihood.spherical import VonMisesFisher, VonMisesFisherDistribution
from gae.likelihood.standard import (
    AffineDistribution,
    DecoderStandardUnits,
    MixtureStandardUnits,
    ObservedDecoderUnits,
    ObservedMixtureUnits,
    StandardUnits,
)
from gae.likelihood.weights import Activation, WeightDecoder, WeightLikelihood

HEADS: dict[str, type[Head]] = {  # heads with one output per element of x, by command-line name
    "gaussian": Gaussian,
    "laplace": Laplace,
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "poisson": Poisson,
    "von-mises-fisher": VonMisesFisher,
}

__all__ = [
    "LLE",
    "TSNE",
    "AcceptsMissing",
    "Activation",
    "AffineDistribution",
    "Bernoulli",
    "BlendedCharts",
    "Blur",
    "Categorical",
    "CategoricalSequence",
    "ClosedFormLearning",
    "Codebook",
    "CodebookDistribution",
    "CodebookMoments",
    "ContinuousBernoulli",
    "Crop",
    "DataDependentInit",
    "DecoderLikelihood",
    "DecoderStandardUnits",
    "Downsample",
    "ExactMode",
    "ExactPosterior",
    "Flat",
    "FlatDistribution",
    "Gaussian",
    "GaussianKernel",
    "GaussianProjection",
    "Head",
    "HierarchicalNormal",
    "Laplace",
    "LaplacePrior",
    "Likelihood",
    "LinearMixture",
    "LinearOperator",
    "LinearRegression",
    "LocationScaleHead",
    "Mask",
    "Measured",
    "MixtureStandardUnits",
    "Moments",
    "MonotoneCodes",
    "Multinomial",
    "MultinomialDistribution",
    "NoiseScale",
    "NonNegativeGaussian",
    "NonNegativeLinear",
    "NonNegativePoisson",
    "ObservedDecoderUnits",
    "ObservedMixtureUnits",
    "ObservedMoments",
    "OnlineLearning",
    "PartiallyObserved",
    "PartiallyObservedMixture",
    "Poisson",
    "Relational",
    "SequenceDistribution",
    "StandardNormal",
    "StandardUnits",
    "StepwiseDecoder",
    "VonMisesFisher",
    "VonMisesFisherDistribution",
    "WeightDecoder",
    "WeightLikelihood",
]
