"""Mixtures of linear-Gaussian decoders with missing elements: exact posteriors, evidence and EM."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal

from gae.data.mapped import each, row_mean
from gae.likelihood.base import LogJoint
from gae.likelihood.distributions import Normal, ObservedElements
from gae.likelihood.linear.conditional import (
    DEPENDENT,
    Conditional,
    ObservedMoments,
    conditional,
    need_enough,
    observed_moments,
)
from gae.likelihood.linear.mixture import LinearMixture
from gae.likelihood.missing import AcceptsMissing


class PartiallyObservedMixture(AcceptsMissing, LinearMixture):
    """``LinearMixture`` of the observed elements of each x: NaN marks the others, in other places for each row.

    Posterior, responsibilities and evidence are exact for the observed elements, N(x_obs; mean_obs, (loadingsᵀ
    loadings + scale² I)_obs), in float64; the posterior mean decodes to the conditional mean of the unobserved ones.
    Closed-form learning is EM (Ilin & Raiko 2010, section 4, with full posterior covariances), whose M-step is
    exact for the observed elements and never lowers their likelihood; under a flat prior it alternates codes and
    parameters by least squares, and for points it is k-means on observed distances (k-POD, Chi et al. 2016).
    Parameter expansion (Liu, Rubin & Wu 1998) absorbs mean and covariance of the codes into the loadings, which saves
    most of EM's iterations. An empty component stays where it is.

    Arguments as for ``LinearMixture``, with the same parameters.

    >>> model = PartiallyObservedMixture(1, 1, (2,), scale=0.1)
    >>> model.loadings.data, model.means.data = torch.tensor([[[1.0, 2.0]]]), torch.zeros(1, 2)
    >>> x = torch.tensor([[0.5, torch.nan]])
    >>> model.posterior(x).mean[0] @ model.loadings[0]  # the second element is about twice the first
    tensor([[0.4950, 0.9901]], grad_fn=<MmBackward0>)
    """

    def _elements(self, mean: Tensor, spread: Tensor) -> Distribution:
        return ObservedElements(super()._elements(mean, spread))

    def log_joint(
        self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B E"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        if k is None and self.components > 1:
            return super().log_joint(x, z)
        k = self._codes(z, k)
        return self.prior.log_prob(z) + self.log_weights[k] + self.log_likelihood(x, self._mean(z, k), k)

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "S B D"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        return self._log_observed(x.flatten(1), output, self.log_scale[self._codes(output, k)])

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        return lambda z, k=None: self.log_joint(x, z, k)

    def scores(self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B E"], k: Int[Tensor, "S 1"]) -> Float[Tensor, "S B"]:
        """``log_joint`` in float64, to resolve small differences between components."""
        charts, flat = self._charts().to(torch.float64), x.flatten(1).double()
        rows = []
        for code, component in zip(z.double(), k[:, 0].tolist(), strict=True):
            output = charts.means[component] + code @ charts.loadings[component]
            rows.append(self._log_observed(flat, output, charts.log_scale[component]))
        return torch.stack(rows) + self.prior.log_prob(z).double() + self.log_weights.double()[k]

    def _log_observed(self, flat: Tensor, output: Tensor, log_scale: Tensor) -> Tensor:
        """log N of the observed elements; no gradient passes the others."""
        seen = ~flat.isnan()
        residual = torch.where(seen, flat - output, 0) * (-log_scale).exp().unsqueeze(-1)
        return -0.5 * residual.square().sum(-1) - seen.sum(-1) * (log_scale + 0.5 * math.log(2 * math.pi))

    def posterior(self, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Distribution:
        """The exact q(z|x_obs, k), batch (S, B), event E.

        Raises:
            ValueError: under a flat prior, for an x whose observed elements do not determine its code.
        """
        if k is None and self.components > 1:
            raise ValueError("The posterior of z needs a component k when K > 1; see `log_responsibilities`.")
        k = torch.zeros(1, 1, dtype=torch.long, device=x.device) if k is None else k
        if not self.latent_shape[0]:
            empty = x.new_zeros(len(k), len(x), 0)
            return Independent(Normal(empty, empty, validate_args=False), 1, validate_args=False)
        given = self._conditional(x)
        rows, k = torch.arange(len(x), device=x.device), k.expand(-1, len(x))
        spread = given.spread.to(x.dtype)[rows, k]
        return MultivariateNormal(given.mean.to(x.dtype)[rows, k], scale_tril=spread, validate_args=False)

    def nearest(self, x: Num[Tensor, "B *X"], **limits: int) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
        """The most probable component of the observed elements, and its value in nats, for points (E = 0)."""
        score, k = self._log_marginals(x).detach().max(1)
        return k, score

    def sweep_of_points(self, x: Num[Tensor, "N *X"]) -> None:
        return None

    def sweep_of_charts(self, x: Num[Tensor, "N *X"]) -> None:
        return None

    def sweep_of_mixture(self, x: Num[Tensor, "N *X"]) -> None:
        return None

    def _log_marginals(self, x: Tensor) -> Tensor:
        return self._conditional(x).log_marginal + self.log_weights.double()

    def _conditional(self, x: Tensor) -> Conditional:
        return conditional(x.flatten(1), self._charts())

    def need_observations(self, x: Num[Tensor, "N *X"]) -> None:
        super().need_observations(x)
        need_enough(x.flatten(1), self.latent_shape[0] if self.flat_prior else 0)

    @torch.no_grad()
    def initialize(self, x: Num[Tensor, "N *X"], seed: int) -> None:
        """Initialises as ``LinearMixture`` does, from x with missing elements replaced by their column's mean.

        These are starting values only: learning uses the observed elements alone. Does nothing once initialised.
        """
        if self.initialized:
            return
        self.need_observations(x)
        mean = row_mean(x).to(x.dtype)
        filled = each(x, lambda rows: torch.where(rows.isnan(), mean, rows))
        start = LinearMixture(
            self.components,
            self.latent_shape[0],
            self.event_shape,
            flat_prior=self.flat_prior,
            learn_scale=self.learn_scale,
            learn_weights=self.learn_weights,
        ).to(self.means)
        start.log_scale.copy_(self.log_scale)
        start.initialize(filled, seed)
        if self.components == 1:
            start.learn_in_one_step(filled)
        self.load_state_dict(start.state_dict())

    @torch.no_grad()
    def statistics(self, x: Num[Tensor, "B *X"], code: Any) -> ObservedMoments:  # type: ignore[override]
        """Expected moments of a batch: hard for one code per sample, else weighted by q(k|x) over S."""
        k = self._chosen(x, code)
        weight = self._shares(x, code) if k is None else torch.nn.functional.one_hot(k, self.components)
        return observed_moments(x.flatten(1), self._charts(), weight.double())

    @torch.no_grad()
    def maximize(self, moments: ObservedMoments) -> float:  # type: ignore[override]
        """One M-step of EM: the maximum of the expected log joint of the observed elements.

        An element without observations in a component keeps its parameters there, and dependent codes change them as
        little as possible.

        Returns:
            The largest change of a parameter, with means and loadings in standard deviations of the data.
        """
        limits, unit = self._limits(*moments.overall(self.means))
        before = self._copies()
        live = moments.number.sum(1) > 0
        rows = _regressed(moments, self.loadings)[live]
        if self.learn_scale:
            number = moments.number[live]
            fitted = torch.einsum("kdf,kdfg,kdg->kd", rows, moments.gram[live], rows)
            square = moments.square[live] - 2 * (rows * moments.cross[live]).sum(-1) + fitted
            self._set_scale(live, (square.sum(1) / number.sum(1)).clamp_min(0), limits)
        shift, loadings = rows[..., 0], rows[..., 1:].mT
        length = torch.ones_like(self.loadings[..., :1])
        if self.latent_shape[0]:
            centre, loadings, size = _principal(moments.codes[live], loadings, self.flat_prior)
            shift = shift + centre
            if self.flat_prior:  # weigh a change of direction by its effect on the data
                length[live] = size.unsqueeze(-1).to(length)
            self.loadings[live] = loadings.to(self.loadings.dtype)
        self.means[live] = (self.means[live].double() + shift).to(self.means.dtype)
        self._set_weights(moments.codes[:, 0, 0])
        return self._change(before, length, unit)


def _regressed(moments: ObservedMoments, loadings: Float[Tensor, "K E D"]) -> Float[Tensor, "K D F"]:
    """Regression of each observed element on (1, z), as a shift of its mean and its loadings."""
    start = torch.cat([loadings.new_zeros(len(loadings), 1, loadings.shape[2]), loadings], 1).mT.double()
    slope = moments.cross - (moments.gram @ start.unsqueeze(-1)).squeeze(-1)
    unit = moments.gram.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = torch.where(unit > 0, unit, 1)  # codes under a flat prior are in units of the data
    inverse = torch.linalg.pinv(
        moments.gram / (unit.unsqueeze(-1) * unit.unsqueeze(-2)), rtol=DEPENDENT, hermitian=True
    )
    return start + (inverse @ (slope / unit).unsqueeze(-1)).squeeze(-1) / unit


def _principal(
    codes: Float[Tensor, "K F F"], loadings: Float[Tensor, "K E D"], flat: bool
) -> tuple[Float[Tensor, "K D"], Float[Tensor, "K E D"], Float[Tensor, "K E"]]:
    """The same charts with codes of mean 0 along principal axes: the shift of the means, loadings, and deviations.

    Under a flat prior loadings have unit length; otherwise codes have covariance I.
    """
    count = codes[:, :1, :1]
    mean = codes[:, :1, 1:] / count
    covariance = codes[:, 1:, 1:] / count - mean.mT @ mean
    values, vectors = torch.linalg.eigh(covariance)
    root = values.clamp_min(0).sqrt().unsqueeze(-1) * vectors.mT
    _, size, axes = torch.linalg.svd(root @ loadings, full_matrices=False)
    largest = axes.gather(-1, axes.abs().argmax(-1, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    return (mean @ loadings).squeeze(1), axes if flat else size.unsqueeze(-1) * axes, size
