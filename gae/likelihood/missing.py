"""Likelihoods of partially observed data, in which NaN marks an element of x that was not observed."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor
from torch.distributions import Distribution

from gae.data.mapped import blocks
from gae.likelihood.base import DataDependentInit, DecoderLikelihood, DecoderWrapper, Likelihood, LogJoint
from gae.likelihood.distributions import ObservedElements
from gae.nets import first_tensor

TYPICAL = (0.0, 1.0, 0.5)  # one of these lies in the support of every elementwise distribution of Pyro


class AcceptsMissing(Likelihood):
    """Mix-in for likelihoods of which NaN in x marks an element that was not observed; list it before the likelihood.

    log p is that of the observed elements: the others are integrated out. If nothing was observed, log q_r(x|z) is 0,
    and the posterior of a code is its prior.
    """

    _typical: float = 0.0  # a value inside the support of each element

    def check_values(self, x: Tensor) -> None:
        """Raises TypeError or ValueError unless x is non-empty, of the model's dtype, and finite or NaN."""
        super().check_values(torch.where(x.isnan(), 0, x))

    def check_support(self, x: Num[Tensor, "B *X"]) -> None:
        """Raises ValueError if an observed element lies outside the support of q_r(x|z), naming the first."""
        super().check_support(torch.where(x.isnan(), self._typical, x))

    def need_observations(self, x: Num[Tensor, "N *X"]) -> None:
        """Raises ValueError unless every element of x was observed in some row: the others cannot be learned."""
        never = torch.stack([rows.isnan().all(0) for _, rows in blocks(x)]).all(0)
        if bool(never.any()):
            place = ", ".join(map(str, never.nonzero()[0].tolist()))
            raise ValueError(
                f"x[:, {place}] is NaN in all {len(x)} training observations ({int(never.sum())} such elements), so "
                "nothing can be learned about it. Leave out elements that were never observed."
            )


class PartiallyObserved(AcceptsMissing, DecoderWrapper):
    """A likelihood conditioned on the observed elements of each x alone: log q_r(x_obs|z) is a sum over them.

    x has NaN where an element was not observed, in other places for each row; the code, the prior and the decoder are
    those of the given likelihood. Every engine and every estimate of log p(x) then refers to the observed part, and
    the decoder's mean imputes the rest. For one mask for all rows use ``Measured`` with a ``Mask``, which does not
    evaluate unobserved elements; for a linear decoder with exact posteriors use ``PartiallyObservedMixture``.

    Values are missing at random (Rubin 1976): whether an element is observed may depend on the observed values, but
    not on its own.

    Args:
        likelihood: a head, or another decoder likelihood, whose elements of x are independent given the code.

    Raises:
        TypeError: for a likelihood whose elements depend on each other given the code (directions, frequencies,
            sequences), or whose parameters start from complete data.

    >>> from gae.likelihood import Gaussian
    >>> model = PartiallyObserved(Gaussian(torch.nn.Linear(2, 3), 2))
    >>> x, z = torch.tensor([[0.5, torch.nan, -1.0], 3 * [torch.nan]]), torch.zeros(1, 2, 2)
    >>> (model.log_joint(x, z) - model.prior.log_prob(z))[0, 1].item()  # nothing was observed
    0.0
    """

    separable = True  # if the given likelihood is

    def __init__(self, likelihood: Likelihood):
        name = type(likelihood).__name__
        if not isinstance(likelihood, DecoderLikelihood) or isinstance(likelihood, AcceptsMissing):
            raise TypeError(
                f"`PartiallyObserved` needs a decoder likelihood of complete observations, got {name}. Use a neural "
                "head such as `Gaussian`, or remove or impute missing values."
            )
        if isinstance(likelihood, DataDependentInit):
            raise TypeError(
                f"The parameters of {name} start from complete data, or are learned from them in closed form. Use "
                "`PartiallyObservedMixture` for PCA, PPCA and mixtures, or `PartiallyObserved` of a neural head."
            )
        super().__init__(likelihood.latent_shape, likelihood.event_shape, likelihood.latent_prior)
        self.likelihood = likelihood
        self.support, self.support_text = likelihood.support, likelihood.support_text
        self.support_remedy = likelihood.support_remedy
        self.stochastic, self.output_is_mean = likelihood.stochastic, likelihood.output_is_mean
        self.separable = type(self).separable and likelihood.separable
        inside = _typical(likelihood)
        if inside is None or not _is_elementwise(likelihood, inside):
            raise TypeError(
                f"The elements of x are not independent given the code in {name}, so the density of some of them is "
                "not a sum. Use a head with one distribution for each element, such as `Gaussian` or `Bernoulli`, or "
                "remove or impute missing values."
            )
        self._typical = inside

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        return ObservedElements(self.likelihood.distribution(output), self._typical)

    def reconstruction(self, output: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.likelihood.reconstruction(output)

    def point(self, decoded: Distribution) -> Float[Tensor, "..."]:
        return self.likelihood.point(decoded)

    def log_joint(
        self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B *Z"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        return self.prior.log_prob(z) + self.log_likelihood(x, self.outputs(z, k), k)

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "S B ..."], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        return self._log_observed(*self._split(x), output)

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        prior, parts = self.prior, self._split(x)  # the mask, once for an inner loop
        return lambda z, k=None: prior.log_prob(z) + self._log_observed(*parts, self.sample_outputs(z, k))

    def _split(self, x: Tensor) -> tuple[Bool[Tensor, "B *X"], Num[Tensor, "B *X"]]:
        """The mask of observed elements, and x with the others replaced by a value inside the support."""
        seen = ~x.isnan()
        return seen, torch.where(seen, x, self._typical)

    def _log_observed(self, seen: Tensor, x: Tensor, output: Tensor) -> Float[Tensor, "S B"]:
        """Σ over observed elements; outputs of the others become constants, so that no gradient passes them."""
        size = len(self.event_shape)
        kept = seen.reshape(*seen.shape, *[1] * (output.dim() - 2 - size))
        density = self.likelihood.distribution(torch.where(kept, output, 0)).log_prob(x)
        density = torch.where(seen, density, 0)
        return density.sum(tuple(range(-size, 0))) if size else density


def _typical(likelihood: Likelihood) -> float | None:
    """A value inside the support of every element of x; None if the elements are constrained jointly."""
    support: Any = likelihood.support
    like = first_tensor(likelihood)
    for value in TYPICAL:
        inside = support.check(like.new_full(likelihood.event_shape, value))
        if inside.shape == likelihood.event_shape and bool(inside.all()):
            return value
    return None


@torch.no_grad()
def _is_elementwise(likelihood: DecoderLikelihood, inside: float) -> bool:
    """Whether x has one distribution for each element of a decoder output, which is regular at the output 0."""
    like, size = first_tensor(likelihood), len(likelihood.event_shape)
    output = likelihood.outputs(like.new_zeros(1, *likelihood.latent_shape))
    law = likelihood.distribution(torch.zeros_like(output))
    if law.batch_shape != (1, *likelihood.event_shape) or output.shape[1 : 1 + size] != likelihood.event_shape:
        return False
    return bool(law.log_prob(like.new_full(law.batch_shape, inside)).isfinite().all())
