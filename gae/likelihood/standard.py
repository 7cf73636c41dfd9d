"""Models in standard units: a likelihood of standardised observations as a likelihood of the observations as given."""

from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.distributions import AffineTransform, Distribution

from gae.data.mapped import column_bounds, each, row_mean
from gae.likelihood.base import (
    ClosedFormLearning,
    DataDependentInit,
    DecoderLikelihood,
    DecoderWrapper,
    ExactPosterior,
    Likelihood,
    LogJoint,
)
from gae.likelihood.evidence import Evidence
from gae.likelihood.missing import AcceptsMissing


class AffineDistribution(dist.TransformedDistribution):
    """The distribution of loc + scale · u for a distribution of u; unlike its base class, it has moments.

    >>> law = AffineDistribution(dist.Normal(1.0, 2.0), [AffineTransform(10.0, 3.0)])
    >>> law.mean, law.variance, law.log_prob(torch.tensor(13.0))
    (tensor(13.), tensor(36.), tensor(-2.7107))
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density at loc + scale · u; an element that is NaN, not observed, has no volume."""
        affine = self.transforms[0]
        volume = torch.where(value.isnan(), 0, torch.as_tensor(affine.scale).log())
        dims = tuple(range(-len(self.event_shape), 0))
        return self.base_dist.log_prob(affine.inv(value)) - (volume.sum(dims) if dims else volume)

    @property
    def mean(self) -> Tensor:
        return self.transforms[0](self.base_dist.mean)

    @property
    def variance(self) -> Tensor:
        return self.transforms[0].scale ** 2 * self.base_dist.variance


class StandardUnits(Likelihood):
    """A likelihood in standard units: a model of (x - mean) / deviation, elementwise, as a model of x as given.

    Its log densities are those of x: log p(x) = log p_u((x - loc) / scale) - Σ log scale (change of variables).
    Inference engines act on the model and the observations in standard units (``in_standard_units``), so that an
    encoder is given standardised x; codes and q(z|x) are the same in both.

    Args:
        likelihood: the model of standardised observations. ``StandardUnits.of`` chooses the class for its capabilities.

    >>> from gae.likelihood import LinearMixture
    >>> x = torch.tensor([[1.0, 200.0], [3.0, 600.0]])
    >>> model = StandardUnits.of(LinearMixture(1, 0, (2,), means=torch.zeros(1, 2)))
    >>> model.set_units(x)
    >>> model.loc, model.scale, model.log_evidence(x[:1]).log_p  # of N(2, 1) and N(400, 200²), one deviation below
    (tensor([  2., 400.]), tensor([  1., 200.]), tensor([-8.1362], grad_fn=<SubBackward0>))
    """

    loc: Tensor
    scale: Tensor
    initialized: Tensor

    def __init__(self, likelihood: Likelihood):
        shape, event_shape = likelihood.latent_shape, likelihood.event_shape
        super().__init__(shape, event_shape, likelihood.latent_prior, likelihood.components)
        self.likelihood = likelihood
        self.bind_is_surrogate = likelihood.bind_is_surrogate
        self.register_buffer("loc", torch.zeros(event_shape))
        self.register_buffer("scale", torch.ones(event_shape))
        self.register_buffer("initialized", torch.tensor(False))

    @staticmethod
    def of(likelihood: Likelihood, x: Num[Tensor, "N *X"] | None = None) -> "StandardUnits":
        """A likelihood in standard units, with all of its capabilities, and the units of training data x if given.

        Raises:
            TypeError: for a likelihood whose closed form is not in standard units, or one that is in them already.
        """
        exact, learns = isinstance(likelihood, ExactPosterior), isinstance(likelihood, ClosedFormLearning)
        if isinstance(likelihood, StandardUnits) or exact != learns:
            name = type(likelihood).__name__
            raise TypeError(f"{name} cannot be put in standard units. Standardise the data before loading them.")
        if not isinstance(likelihood, DecoderLikelihood):
            model = StandardUnits(likelihood)
        elif isinstance(likelihood, AcceptsMissing):
            model = (ObservedMixtureUnits if exact else ObservedDecoderUnits)(likelihood)
        else:
            model = (MixtureStandardUnits if exact else DecoderStandardUnits)(likelihood)
        if x is not None:
            model.set_units(x)
        return model

    @torch.no_grad()
    def set_units(self, x: Num[Tensor, "N *X"]) -> None:
        """Sets the mean and the standard deviation of each element of the training data x, where it was observed.

        Raises:
            ValueError: for an element without variance.
        """
        loc = row_mean(x)
        scale = row_mean(x, lambda rows: (rows - loc).square()).sqrt()
        low, high = column_bounds(x)
        constant = (low >= high).nonzero()
        if len(constant):
            place = tuple(constant[0].tolist())
            raise ValueError(f"Standard units need variance, but element {place} is constant, or was never observed.")
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        self.initialized.fill_(True)

    def initialize(self, x: Num[Tensor, "N *X"], seed: int) -> None:
        """Sets the units, unless they are set, and initialises the model in them."""
        if not self.initialized:
            self.set_units(x)
        if isinstance(self.likelihood, DataDependentInit):
            self.likelihood.initialize(self.standardize(x), seed)

    def standardize(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """x in standard units."""
        return each(x, lambda rows: (rows - self.loc) / self.scale)

    def restore(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The inverse of ``standardize``."""
        return torch.addcmul(self.loc, self.scale, u)

    def log_volume(self, x: Float[Tensor, "B *X"]) -> Float[Tensor, "..."]:
        return self.scale.double().log().sum().to(self.scale.dtype)

    def in_standard_units(self, x: Float[Tensor, "B *X"]) -> tuple[Likelihood, Float[Tensor, "B *X"]]:
        return self.likelihood, self.standardize(x)

    def in_data_units(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.restore(x)

    def forward(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Distribution:
        affine = AffineTransform(self.loc, self.scale, event_dim=len(self.event_shape))
        return AffineDistribution(self.likelihood(z, k), [affine], validate_args=False)

    def point(self, decoded: Any) -> Float[Tensor, "..."]:
        return self.restore(self.likelihood.point(decoded.base_dist))

    def log_joint(
        self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B *Z"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        return self.likelihood.log_joint(self.standardize(x), z, k) - self.log_volume(x)

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        bound, volume = self.likelihood.bind(self.standardize(x)), self.log_volume(x)
        return lambda z, k=None: bound(z, k) - volume

    def initial(self, n: int) -> Float[Tensor, "n *Z"]:
        return self.likelihood.initial(n)

    def sample_joint(self, n: int, mean: bool = False) -> tuple[Float[Tensor, "n *X"], Float[Tensor, "n *Z"]]:
        u, z = self.likelihood.sample_joint(n, mean)
        return self.restore(u), z

    def check_support(self, x: Num[Tensor, "B *X"]) -> None:
        self.likelihood.check_support(self.standardize(x))


class DecoderStandardUnits(StandardUnits, DecoderWrapper):
    """A decoder in standard units; see ``StandardUnits``. Decoder outputs remain those of its likelihood.

    >>> from gae.likelihood import Gaussian
    >>> StandardUnits.of(Gaussian(torch.nn.Linear(2, 3), 2)).reconstruction(torch.zeros(5, 3)).shape
    torch.Size([5, 3])
    """

    likelihood: DecoderLikelihood
    separable = True  # if the given likelihood is

    def __init__(self, likelihood: DecoderLikelihood):
        super().__init__(likelihood)
        self.stochastic = likelihood.stochastic
        self.separable = type(self).separable and likelihood.separable

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        return self._in_data_units(self.likelihood.distribution(output))

    def _in_data_units(self, law: Distribution) -> Distribution:
        affine = AffineTransform(self.loc, self.scale, len(law.event_shape))
        return AffineDistribution(law, [affine], validate_args=False)

    def reconstruction(self, output: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.restore(self.likelihood.reconstruction(output))

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "S B ..."], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        return self.likelihood.log_likelihood(self.standardize(x), output, k) - self.log_volume(x)


class MixtureStandardUnits(DecoderStandardUnits):
    """A likelihood with exact posteriors and closed-form learning in standard units; see ``StandardUnits``.

    >>> from gae.likelihood import LinearMixture
    >>> isinstance(StandardUnits.of(LinearMixture(3, 1, (5,))), (ExactPosterior, ClosedFormLearning))
    True
    """

    likelihood: Any

    def distribution(self, output: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Distribution:
        """The elementwise distribution of x; with several components, k is the component of the output."""
        return self._in_data_units(self.likelihood.distribution(output, k))

    @property
    def log_weights(self) -> Float[Tensor, " K"]:
        """log q(k), in nats."""
        weights: Tensor = self.likelihood.log_weights
        return weights

    def posterior(self, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Distribution:
        """The exact q(z|x, k): batch (S, B), event Z."""
        law: Distribution = self.likelihood.posterior(self.standardize(x), k)
        return law

    def log_responsibilities(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "B K"]:
        """The exact log q(k|x), in nats."""
        log_k: Tensor = self.likelihood.log_responsibilities(self.standardize(x))
        return log_k

    def log_evidence(self, x: Num[Tensor, "B *X"]) -> Evidence:
        """The exact log p(x) of x as given, in nats."""
        evidence: Evidence = self.likelihood.log_evidence(self.standardize(x))
        return replace(evidence, log_p=evidence.log_p - self.log_volume(x))

    def statistics(self, x: Num[Tensor, "B *X"], code: Any) -> Any:
        """Sufficient statistics in standard units."""
        log_joint = None if code.log_joint is None else code.log_joint + self.log_volume(x)
        return self.likelihood.statistics(self.standardize(x), replace(code, log_joint=log_joint))

    def maximize(self, moments: Any) -> float:
        """Sets the parameters to their optimum; returns the largest change."""
        change: float = self.likelihood.maximize(moments)
        return change


class _ObservedUnits(AcceptsMissing, DecoderStandardUnits):
    """A likelihood of observed elements in standard units: each has the volume of its own."""

    likelihood: Any

    def log_volume(self, x: Float[Tensor, "B *X"]) -> Float[Tensor, " B"]:
        volume = torch.where(x.isnan(), 0, self.scale.double().log())
        return volume.flatten(1).sum(1).to(self.scale.dtype)

    def check_support(self, x: Num[Tensor, "B *X"]) -> None:
        self.likelihood.check_support(self.standardize(x))

    def need_observations(self, x: Num[Tensor, "N *X"]) -> None:
        """Raises ValueError for training data with too few observed elements."""
        self.likelihood.need_observations(self.standardize(x))


class ObservedDecoderUnits(_ObservedUnits):
    """A decoder of partially observed data in standard units; see ``StandardUnits`` and ``PartiallyObserved``.

    >>> from gae.likelihood import Gaussian, PartiallyObserved
    >>> model = StandardUnits.of(PartiallyObserved(Gaussian(torch.nn.Linear(2, 3), 2)))
    >>> model.set_units(torch.tensor([[1.0, 3.0, torch.nan], [2.0, torch.nan, 8.0], [3.0, 5.0, 4.0]]))
    >>> model.loc
    tensor([2., 4., 6.])
    """


class ObservedMixtureUnits(_ObservedUnits, MixtureStandardUnits):
    """A mixture of partially observed data in standard units; see ``StandardUnits`` and ``PartiallyObservedMixture``.

    >>> from gae.likelihood import PartiallyObservedMixture
    >>> isinstance(StandardUnits.of(PartiallyObservedMixture(3, 1, (5,))), AcceptsMissing)
    True
    """
