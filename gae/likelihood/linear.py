"""Mixtures of linear-Gaussian decoders: PCA, PPCA, k-means, spherical GMM and LLGAE are special cases."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from pyro.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from gae.likelihood.base import Likelihood, LogJoint, parameter_or_buffer
from gae.likelihood.moments import (
    Moments,
    chart_moments,
    hard_point_moments,
    point_moments,
    principal_directions,
    squared_distances,
    starting_means,
)
from gae.likelihood.priors import Flat, StandardNormal


class LinearMixture(Likelihood):
    """q(k) q(z) N(x; mean_k + z loadings_k, scale_k² I): K local linear charts with E-dimensional codes.

    ===================  ====  =====  ==========  ===========  =============
    system               K     E      flat_prior  learn_scale  learn_weights
    ===================  ====  =====  ==========  ===========  =============
    PCA                  1     E      yes         no           no
    PPCA                 1     E      no          yes          no
    k-means              K     0      --          no           no
    spherical GMM        K     0      --          yes          yes
    LLGAE                K     E      yes         no           no
    ===================  ====  =====  ==========  ===========  =============

    Its work is matrix products: projections (B, K E), Gram matrices (K, E, E), and never a (B, K, D, E) tensor.

    Args:
        components: K.
        latent: E, the width of the continuous code; 0 for none.
        event_shape: X; D is its number of elements.
        flat_prior: maximum-likelihood codes (improper prior) instead of z ~ N(0, I).
        scale: noise standard deviation in data units, the start if it is learned.
        learn_scale: whether each component's scale is learned, or fixed.
        learn_weights: whether log q(k) is learned, or uniform.
        means: (K, *X) starting means; otherwise ``initialize`` chooses them from data by k-means++.

    >>> model = LinearMixture(1, 1, (2,), scale=0.1)
    >>> model.loadings.data, model.means.data = torch.tensor([[[1.0, 2.0]]]), torch.zeros(1, 2)
    >>> model.log_evidence(torch.tensor([[0.5, 0.7]])).detach()  # ledger D02
    tensor([-1.3131])
    """

    exact_given = False  # sufficient statistics subtract large numbers; residuals do not
    log_scale: Tensor
    logits: Tensor
    initialized: Tensor

    def __init__(
        self,
        components: int,
        latent: int,
        event_shape: Size | tuple[int, ...],
        *,
        flat_prior: bool = False,
        scale: float = 1.0,
        learn_scale: bool = False,
        learn_weights: bool = False,
        means: Num[Tensor, "K *X"] | None = None,
    ):
        dim = math.prod(event_shape)
        if not event_shape:
            raise ValueError("event_shape must have at least one dimension, got (). Use (1,) for scalar observations.")
        if components < 1 or not 0 <= latent <= dim:
            raise ValueError(f"Need components >= 1 and 0 <= latent <= {dim}, got K={components}, E={latent}.")
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}.")
        prior = Flat(latent) if flat_prior and latent else StandardNormal(latent)
        super().__init__((latent,), event_shape, prior, components)
        self.flat_prior, self.learn_scale, self.learn_weights = flat_prior, learn_scale, learn_weights
        self.means = nn.Parameter(torch.zeros(components, dim))
        self.loadings = nn.Parameter(torch.linalg.qr(torch.randn(components, dim, latent))[0].mT.contiguous())
        parameter_or_buffer(self, "log_scale", torch.full((components,), math.log(scale)), learn_scale)
        parameter_or_buffer(self, "logits", torch.zeros(components), learn_weights)
        self.register_buffer("initialized", torch.tensor(means is not None))
        if means is not None:
            if means.shape != (components, *event_shape):
                raise ValueError(f"means must have shape {(components, *event_shape)}, got {tuple(means.shape)}.")
            self.means.data.copy_(means.flatten(1))

    @property
    def log_weights(self) -> Float[Tensor, " K"]:
        """log q(k), in nats."""
        return self.logits.log_softmax(0)

    def forward(self, z: Float[Tensor, "*L E"], k: Int[Tensor, "..."] | None = None) -> Distribution:
        event, scale = len(self.event_shape), self.log_scale.exp()
        if k is None and self.components > 1:
            means = self.means + (z @ self.loadings.movedim(0, 1).flatten(1)).unflatten(-1, self.means.shape)
            parts = Normal(means.unflatten(-1, self.event_shape), self._spread(scale), validate_args=False)
            weights = Categorical(logits=self.log_weights.expand(means.shape[:-1]), validate_args=False)
            return MixtureSameFamily(weights, Independent(parts, event, validate_args=False), validate_args=False)
        k = self._codes(z, k)
        mean = self._mean(z, k).unflatten(-1, self.event_shape)
        spread = self._spread(scale[k]).expand_as(mean)
        return Independent(Normal(mean, spread, validate_args=False), event, validate_args=False)

    def log_joint(
        self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B E"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        if k is None and self.components > 1:
            return super().log_joint(x, z)
        k = self._codes(z, k)
        return self.prior.log_prob(z) + self.log_weights[k] + self.log_likelihood(x, self._mean(z, k), k)

    has_outputs = True

    def outputs(self, z: Float[Tensor, "*L E"], k: Int[Tensor, "..."] | None = None) -> Float[Tensor, "*L D"]:
        return self._mean(z, self._codes(z, k))

    def signal(self, output: Float[Tensor, "*L D"]) -> Float[Tensor, "..."]:
        return output.unflatten(-1, self.event_shape)

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "S B D"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        k = self._codes(output, k)
        square = (x.flatten(1) - output).square().sum(-1)
        return self._normalizer[k] - self.log_weights[k] - 0.5 * square / (2 * self.log_scale[k]).exp()

    def given(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        base, projection, gram = self._bound(x)

        def log_joint(z: Tensor, k: Tensor | None = None) -> Tensor:
            if k is not None and k.shape[1] != 1:
                return self.log_joint(x, z, k)
            branches = torch.arange(self.components, device=z.device) if k is None else k[:, 0]
            if k is None and self.components > 1:
                value = base + (z.unsqueeze(-2) * (projection - 0.5 * torch.einsum("sbe,kef->sbkf", z, gram))).sum(-1)
                return self.prior.log_prob(z) + value.logsumexp(-1)
            if not self.latent_shape[0]:
                return base.index_select(1, branches).mT.expand(max(len(z), len(branches)), -1)
            curvature = z @ gram[branches]
            value = base[:, branches].mT + (z * (projection[:, branches].movedim(1, 0) - 0.5 * curvature)).sum(-1)
            return self.prior.log_prob(z) + value

        return log_joint

    def posterior(self, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Distribution:
        """q(z|x, k), exactly: batch (S, B), event E. Bishop, PRML (2006), eq. 12.42; proper also under a flat prior."""
        zero = torch.zeros(1, 1, dtype=torch.long, device=x.device)
        k = zero if k is None and self.components == 1 else k
        if k is None:
            raise ValueError("The posterior of z needs a component k when K > 1; see `log_responsibilities`.")
        if not self.latent_shape[0]:
            empty = x.new_zeros(len(k), len(x), 0)
            return Independent(Normal(empty, empty, validate_args=False), 1, validate_args=False)
        projection, gram = self._projected(*self._centred(x.flatten(1)))
        precision = torch.linalg.cholesky(self._precision(gram))
        mean = torch.cholesky_solve(projection.permute(1, 2, 0), precision)  # (K, E, B)
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor = torch.linalg.cholesky(torch.cholesky_solve(identity.expand_as(gram), precision))
        loc = mean.mT[k.expand(-1, len(x)), torch.arange(len(x), device=x.device)]
        return MultivariateNormal(loc, scale_tril=factor[k], validate_args=False)

    def log_responsibilities(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "B K"]:
        """log q(k|x), exactly, in nats."""
        return self._log_marginals(x).log_softmax(1)

    def log_evidence(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, " B"]:
        """log p(x) = log Σ_k q(k) N(x; mean_k, loadings_kᵀ loadings_k + scale_k² I), exactly, in nats.

        Raises:
            ValueError: under a flat prior, where no density p(x) exists.
        """
        if self.flat_prior and self.latent_shape[0]:
            raise ValueError("log p(x) does not exist under a flat prior. Use flat_prior=False (PPCA instead of PCA).")
        return self._log_marginals(x).logsumexp(1)

    def _log_marginals(self, x: Tensor) -> Tensor:
        """log q(k) ∫ q(z) q(x|z, k) dz, (B, K), by the matrix determinant and inversion lemmas."""
        base, projection, gram = self._bound(x)
        factor = torch.linalg.cholesky(self._precision(gram))
        white = torch.linalg.solve_triangular(factor, projection.permute(1, 2, 0), upper=False)  # (K, E, B)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        volume = 0.5 * self.latent_shape[0] * math.log(2 * math.pi) if self.flat_prior else 0.0
        return base + 0.5 * white.square().sum(1).mT - log_det + volume

    def _precision(self, gram: Tensor) -> Tensor:
        if self.flat_prior:
            return gram
        return gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)

    def _bound(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log q(k) N(x; mean_k, scale_k² I), (B, K), and what ``_projected`` gives."""
        centred = self._centred(x.flatten(1))
        base = self._normalizer - 0.5 * (-2 * self.log_scale).exp() * squared_distances(*centred)
        return base, *self._projected(*centred)

    def _projected(self, flat: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """With W = loadings: W(x - mean) / scale², (B, K, E), and WWᵀ / scale², (K, E, E)."""
        scaled = self.loadings * (-2 * self.log_scale).exp()[:, None, None]
        offset = (scaled @ means.unsqueeze(-1)).flatten()
        projection = torch.addmm(-offset, flat, scaled.flatten(0, 1).T).unflatten(1, scaled.shape[:2])
        return projection, scaled @ self.loadings.mT

    def _centred(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """x and the means about a common centre, which limits cancellation in matrix products."""
        centre = self.means.mean(0)
        return flat - centre, self.means - centre

    @property
    def _normalizer(self) -> Tensor:
        dim = self.means.shape[1]
        return self.log_weights - dim * (self.log_scale + 0.5 * math.log(2 * math.pi))

    def _codes(self, z: Tensor, k: Tensor | None) -> Tensor:
        lead = z.shape[:-1]
        return torch.zeros(lead, dtype=torch.long, device=z.device) if k is None else k.expand(lead)

    def _mean(self, z: Tensor, k: Tensor) -> Tensor:
        """mean_k + z loadings_k, (*L, D): one matrix product per component in use, over its own rows."""
        if not self.latent_shape[0]:
            return self.means[k]
        if self.components == 1:
            return self.means[0] + z @ self.loadings[0]
        flat, index = z.flatten(0, -2), k.flatten()
        order = index.argsort(stable=True)
        counts = index.bincount(minlength=self.components).tolist()
        parts = [rows @ self.loadings[j] for j, rows in enumerate(flat[order].split(counts)) if len(rows)]
        return (self.means[index] + torch.cat(parts)[order.argsort()]).unflatten(0, k.shape)

    def _spread(self, scale: Tensor) -> Tensor:
        return scale.reshape(*scale.shape, *[1] * len(self.event_shape))

    def initialize(self, x: Num[Tensor, "N *X"], seed: int) -> None:
        """k-means++ means (the data for K = N, their mean for K = 1), one hard M-step; nothing once initialised."""
        if self.initialized:
            return
        flat = x.flatten(1)
        if len(flat) < self.components:
            raise ValueError(f"K={self.components} components need at least as many samples, got N={len(flat)}.")
        with torch.no_grad():
            self.means.copy_(starting_means(flat, self.components, seed))
            if self.components > 1 and (self.latent_shape[0] or self.learn_scale or self.learn_weights):
                k = squared_distances(*self._centred(flat)).argmin(1)
                self.maximize(self._hard_moments(flat, k))
            self.initialized.fill_(True)

    @torch.no_grad()
    def statistics(self, x: Num[Tensor, "B *X"], code: Any) -> Moments:
        """Moments of a batch under its codes: hard for one code per sample, else weighted by q(k|x) over S."""
        flat = x.flatten(1)
        if self.components > 1 and code.k is None:
            raise ValueError(
                f"Closed-form M-steps of K={self.components} components need codes with a component k, got k=None. "
                "Use `Argmax(...)`, `Enumerate(...)` or `ClosedForm()`, or give `fit` an optimizer."
            )
        if self.components == 1 or len(code.k) == 1:
            return self._hard_moments(flat, None if self.components == 1 else code.k[0])
        score = self.log_joint(x, code.z, code.k) if code.score is None else code.score
        log_weight = score if code.log_q is None else score - code.log_q
        weight = log_weight.softmax(0)
        share = flat.new_zeros(len(flat), self.components).scatter_add_(1, code.k.expand_as(weight).mT, weight.mT)
        if self.latent_shape[0]:
            return chart_moments([(flat, column) for column in share.unbind(1)], self.means)
        return point_moments(flat, self.means, share, self._squares(flat))

    @torch.no_grad()
    def maximize(self, moments: Moments) -> float:
        """Sets means, loadings, scales and weights to their maximum-likelihood values.

        With N(0, I) codes this is the closed form of Tipping & Bishop (1999, eqs. 3.7-3.8); with a flat prior the
        loadings are the leading principal directions. A component without samples stays where it is.
        """
        before = [p.clone() for p in (self.means, self.loadings, self.log_scale, self.logits)]
        live = moments.count > 0
        count = moments.count[live]
        shift = moments.first[live] / count[:, None]
        self.means[live] += shift.to(self.means.dtype)
        if self.latent_shape[0]:
            covariance = moments.second[live] / count[:, None, None] - shift.unsqueeze(-1) * shift.unsqueeze(-2)
            self._set_loadings(live, covariance)
        elif self.learn_scale:
            variance = (moments.second[live] / count - shift.square().sum(1)) / self.means.shape[1]
            self._set_scale(live, variance)
        if self.learn_weights:
            floored = moments.count + 10 * torch.finfo(moments.count.dtype).eps
            self.logits.copy_((floored / floored.sum()).log())
        after = (self.means, self.loadings, self.log_scale, self.logits)
        return max((float((a - b).abs().max()) for a, b in zip(after, before, strict=True) if a.numel()), default=0.0)

    def _set_loadings(self, live: Tensor, covariance: Tensor) -> None:
        width, dim = self.latent_shape[0], self.means.shape[1]
        top, rest, directions = principal_directions(covariance, width)
        if self.learn_scale:
            self._set_scale(live, rest.sum(1) / (dim if self.flat_prior else max(dim - width, 1)))
        if not self.flat_prior:
            noise = (2 * self.log_scale[live]).exp().to(top.dtype)
            directions = directions * (top - noise[:, None]).clamp_min(0).sqrt().unsqueeze(-1)
        self.loadings[live] = directions.to(self.loadings.dtype)

    def _set_scale(self, live: Tensor, variance: Tensor) -> None:
        floor = 1e-12 + 1e-6 * variance.mean()
        self.log_scale[live] = (0.5 * torch.maximum(variance, floor).log()).to(self.log_scale.dtype)

    def _hard_moments(self, flat: Tensor, k: Tensor | None) -> Moments:
        """From hard codes k (B,), or without them from the one component that owns all samples."""
        k = torch.zeros(len(flat), dtype=torch.long, device=flat.device) if k is None else k
        if not self.latent_shape[0]:
            return hard_point_moments(flat, self.means, k, self._squares(flat))
        if self.components == 1:
            return chart_moments([(flat, None)], self.means)
        counts = k.bincount(minlength=self.components).tolist()
        return chart_moments([(rows, None) for rows in flat[k.argsort()].split(counts)], self.means)

    def _squares(self, flat: Tensor) -> Tensor | None:
        return squared_distances(*self._centred(flat)) if self.learn_scale else None
