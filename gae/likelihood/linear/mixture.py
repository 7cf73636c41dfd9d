"""Mixtures of linear-Gaussian decoders: PCA, PPCA, k-means, spherical GMM and LLGAE are special cases."""

import math
from collections.abc import Callable
from functools import reduce
from operator import iadd

import torch
from jaxtyping import Float, Int, Num
from pyro.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from gae.data.mapped import Mapped
from gae.likelihood.base import LogJoint, parameter_or_buffer, positive_scale
from gae.likelihood.distributions import Normal
from gae.likelihood.evidence import Evidence
from gae.likelihood.linear.alternation import Alternation
from gae.likelihood.linear.moments import Moments, point_moments
from gae.likelihood.linear.pruned import PrunedLloyd, can_prune
from gae.likelihood.linear.quadratic import Charts, Quadratic, height, peak, precision_factor, quadratic
from gae.likelihood.linear.search import best_points
from gae.likelihood.linear.single import MeanScores, mean_scores
from gae.likelihood.priors import Flat, StandardNormal

VALUE = 1e-7  # nats per element of x: rounding error allowed in ``bind``
SURE = 1e-5  # nats: rounding error allowed in a log marginal, and thus in a responsibility
CLOSE = 8.0  # rounding errors by which the two best charts must differ
BLOCK = 12 * 2**20  # bytes of the rows whose components are compared at a time


class LinearMixture(Alternation):
    """Mixture of linear-Gaussian decoders, q(k) q(z) N(x; mean_k + z loadings_k, scale_k² I), with E-dimensional z.

    ===================  ====  =====  ==========  ===========  =============
    system               K     E      flat_prior  learn_scale  learn_weights
    ===================  ====  =====  ==========  ===========  =============
    PCA                  1     E      yes         no           no
    PPCA                 1     E      no          yes          no
    k-means              K     0      --          no           no
    spherical GMM        K     0      --          yes          yes
    LLGAE                K     E      yes         no           no
    ===================  ====  =====  ==========  ===========  =============

    It is computed by matrix products: projections (B, K E) and Gram matrices (K, E, E), never a (B, K, D, E) tensor.

    Args:
        components: K.
        latent: E, the width of the continuous code z; 0 for none.
        event_shape: X; D is its number of elements.
        flat_prior: whether the prior of z is flat (maximum-likelihood codes) rather than N(0, I).
        scale: noise standard deviation in data units, or its initial value if it is learned.
        learn_scale: whether each component's scale is learned.
        learn_weights: whether q(k) is learned rather than uniform.
        means: (K, *X) initial means; by default ``initialize`` chooses them from data by k-means++.

    >>> model = LinearMixture(1, 1, (2,), scale=0.1)
    >>> model.loadings.data, model.means.data = torch.tensor([[[1.0, 2.0]]]), torch.zeros(1, 2)
    >>> model.log_evidence(torch.tensor([[0.5, 0.7]])).log_p.detach()  # ledger D02
    tensor([-1.3131])
    """

    bind_is_surrogate = True  # a quadratic in z suffices for an ascent; residuals are more exact

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
        prior = Flat(latent) if flat_prior and latent else StandardNormal(latent)
        super().__init__((latent,), event_shape, prior, components)
        self.flat_prior, self.learn_scale, self.learn_weights = flat_prior, learn_scale, learn_weights
        self.means = nn.Parameter(torch.zeros(components, dim))
        self.loadings = nn.Parameter(torch.linalg.qr(torch.randn(components, dim, latent))[0].mT.contiguous())
        parameter_or_buffer(self, "log_scale", torch.full((components,), math.log(positive_scale(scale))), learn_scale)
        parameter_or_buffer(self, "logits", torch.zeros(components), learn_weights)
        self.register_buffer("initialized", torch.tensor(means is not None))
        if means is not None:
            if means.shape != (components, *event_shape):
                raise ValueError(f"means must have shape {(components, *event_shape)}, got {tuple(means.shape)}.")
            self.means.data.copy_(means.flatten(1))

    def forward(self, z: Float[Tensor, "*L E"], k: Int[Tensor, "..."] | None = None) -> Distribution:
        event, scale = len(self.event_shape), self.log_scale.exp()
        if k is None and self.components > 1:
            means = self.means + (z @ self.loadings.movedim(0, 1).flatten(1)).unflatten(-1, self.means.shape)
            parts = self._elements(means.unflatten(-1, self.event_shape), self._spread(scale))
            weights = Categorical(logits=self.log_weights.expand(means.shape[:-1]), validate_args=False)
            return MixtureSameFamily(weights, Independent(parts, event, validate_args=False), validate_args=False)
        k = self._codes(z, k)
        return Independent(self.distribution(self._mean(z, k), k), event, validate_args=False)

    def log_joint(
        self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B E"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        if k is None and self.components > 1:
            return super().log_joint(x, z)
        k = self._codes(z, k)
        residual = x.flatten(1) - self._at(k)
        if self.components == 1:
            loadings = self.loadings.expand(len(z), -1, -1)
            residual = torch.baddbmm(residual.expand(len(z), -1, -1), z.expand(-1, len(x), -1), loadings, alpha=-1)
        elif self.latent_shape[0]:
            residual = residual - self._along(z, k)
        return self.prior.log_prob(z) + self.log_weights[k] + self._log_normal(residual, k)

    def outputs(self, z: Float[Tensor, "*L E"], k: Int[Tensor, "..."] | None = None) -> Float[Tensor, "*L D"]:
        return self._mean(z, self._codes(z, k))

    def distribution(self, output: Float[Tensor, "*L D"], k: Int[Tensor, "..."] | None = None) -> Distribution:
        """N(output, scale_k² I), elementwise; with several components, k is the component of the output."""
        if k is None and self.components > 1:
            raise ValueError("With several components `distribution` needs k, got None. Give that of `outputs`.")
        mean = output.unflatten(-1, self.event_shape)
        spread = self._spread(self.log_scale.exp()[self._codes(output, k)])
        return self._elements(mean, spread.expand_as(mean))

    def _elements(self, mean: Tensor, spread: Tensor) -> Distribution:
        """The elementwise distribution of x."""
        return Normal(mean, spread, validate_args=False)

    def reconstruction(self, output: Float[Tensor, "*L D"]) -> Float[Tensor, "..."]:
        return output.unflatten(-1, self.event_shape)

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "S B D"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        return self._log_normal(x.flatten(1) - output, self._codes(output, k))

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        return self._bound(x, self._quadratic(x, VALUE * self.means.shape[1]), x.dtype)

    def scores(self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B E"], k: Int[Tensor, "S 1"]) -> Float[Tensor, "S B"]:
        """``log_joint`` in float64, to resolve small differences between components."""
        return self._bound(x, quadratic(x.flatten(1).double(), self._charts(), SURE), torch.float64)(z, k)

    def _bound(self, x: Tensor, form: Quadratic, dtype: torch.dtype) -> LogJoint:
        base, pull, gram, anchor = form.base, form.pull, form.gram, form.anchor

        def log_joint(z: Tensor, k: Tensor | None = None) -> Tensor:
            if k is not None and k.shape[1] != 1:
                return self.log_joint(x, z, k)
            branches = torch.arange(self.components, device=z.device) if k is None else k[:, 0]
            if not self.latent_shape[0] and (k is not None or self.components == 1):
                return base.index_select(1, branches).mT.expand(max(len(z), len(branches)), -1).to(dtype)
            move = z.to(gram.dtype)
            log_prior = self.prior.log_prob(move)
            if k is None and self.components > 1:
                moves = move.unsqueeze(-2) if anchor is None else move.unsqueeze(-2) - anchor
                curvature = torch.einsum("sbke,kef->sbkf", moves.expand(-1, -1, self.components, -1), gram)
                value = base + (moves * (pull - 0.5 * curvature)).sum(-1)
                return (log_prior + value.logsumexp(-1)).to(dtype)
            if anchor is not None:
                move = move - anchor[:, branches].movedim(1, 0)
            slope = pull[:, branches].movedim(1, 0) - 0.5 * move @ gram[branches]
            return (log_prior + base[:, branches].mT + (move * slope).sum(-1)).to(dtype)

        return log_joint

    def posterior(self, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Distribution:
        """The exact q(z|x, k), batch (S, B), event E (Bishop, PRML, 2006, eq. 12.42); proper even with a flat prior."""
        zero = torch.zeros(1, 1, dtype=torch.long, device=x.device)
        k = zero if k is None and self.components == 1 else k
        if k is None:
            raise ValueError("The posterior of z needs a component k when K > 1; see `log_responsibilities`.")
        if not self.latent_shape[0]:
            empty = x.new_zeros(len(k), len(x), 0)
            return Independent(Normal(empty, empty, validate_args=False), 1, validate_args=False)
        charts = self._charts()
        factor = precision_factor(charts)
        code = peak(self._quadratic(x, VALUE * self.means.shape[1]), factor, charts.prior)[1].to(x.dtype)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        spread = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).to(x.dtype)
        loc = code.movedim(1, 0)[k.expand(-1, len(x)), torch.arange(len(x), device=x.device)]
        return MultivariateNormal(loc, scale_tril=spread[k], validate_args=False)

    def log_responsibilities(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "B K"]:
        """The exact log q(k|x), in nats."""
        return self._log_marginals(x).log_softmax(1).to(x.dtype)

    def log_evidence(self, x: Num[Tensor, "B *X"]) -> Evidence:
        """The exact log p(x) = log Σ_k q(k) N(x; mean_k, loadings_kᵀ loadings_k + scale_k² I), in nats.

        Raises:
            ValueError: under a flat prior, for which p(x) is not a density.
        """
        if self.flat_prior and self.latent_shape[0]:
            raise ValueError("log p(x) does not exist under a flat prior. Use flat_prior=False (PPCA instead of PCA).")
        return Evidence.exact(self._log_marginals(x).logsumexp(1).to(x.dtype))

    def _log_marginals(self, x: Tensor) -> Tensor:
        """log q(k) ∫ q(z) q(x|z, k) dz, (B, K), by the matrix determinant and inversion lemmas, in float64."""
        form, charts = self._quadratic(x, SURE), self._charts()
        if not self.latent_shape[0]:
            return form.base
        factor = precision_factor(charts)
        volume = 0.0 if charts.prior else 0.5 * self.latent_shape[0] * math.log(2 * math.pi)
        return height(form, factor, charts.prior) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + volume

    def _charts(self) -> Charts:
        return Charts(self.means, self.loadings, self.log_scale, self._normalizer, 0.0 if self.flat_prior else 1.0)

    def _quadratic(self, x: Tensor, tolerance: float) -> Quadratic:
        """The quadratic of each observation; for points always in float64, since near ties decide the component."""
        flat = x.flatten(1)
        return quadratic(flat if self.latent_shape[0] else flat.double(), self._charts(), tolerance)

    def nearest(self, x: Num[Tensor, "B *X"], **limits: int) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
        """The most probable component, argmax_k log q(k) q(x|k), and its value in nats, for points (E = 0).

        Of ties, the first. Accurate to float64 differences, and not differentiable. ``limits`` as in ``best_points``.
        """
        points = self._points()
        k, square = best_points(x.flatten(1), points, **limits)
        points = points.double()
        return k, points.bias[k] - 0.5 * points.precision[k] * square

    @torch.no_grad()
    def mean_scores(self, moments: Moments, about: Float[Tensor, "1 D"]) -> MeanScores:
        """The means over observations of their scores, from their moments about a point; K = 1."""
        return mean_scores(self._charts(), moments, about)

    @torch.no_grad()
    def sweep_of_points(self, x: Num[Tensor, "N *X"]) -> Callable[[], tuple[Float[Tensor, ""], Moments]] | None:
        """Passes of ``nearest`` and ``statistics`` over all x (``PrunedLloyd``), for points that differ only in means.

        Each call returns the sum of ``log_joint`` and the moments at the current means. None if bounds do not pay or
        would not be tight: for K = 1 or K > D, data in a file, and data of a large offset.
        """
        points = self._points()
        equal = bool((points.bias == points.bias[0]).all() & (points.precision == points.precision[0]).all())
        fixed = equal and not (self.latent_shape[0] or self.learn_scale or self.learn_weights)
        if not fixed or not can_prune(x, points):
            return None
        lloyd = PrunedLloyd(x.flatten(1), self.components)

        def sweep() -> tuple[Tensor, Moments]:
            points = self._points()
            moments, points = lloyd(points), points.double()
            return moments.count @ points.bias - 0.5 * points.precision @ moments.second, moments

        return sweep

    def sweep_of_mixture(self, x: Num[Tensor, "N *X"]) -> Callable[[], tuple[Float[Tensor, ""], Moments]] | None:
        """Passes of EM over all x, for points (E = 0): the sum of log p(x), and moments weighted by q(k|x).

        None for charts, and for data in a file.
        """
        if isinstance(x, Mapped) or self.latent_shape[0]:
            return None
        flat = x.flatten(1)

        @torch.no_grad()
        def sweep() -> tuple[Tensor, Moments]:
            parts, charts = [], self._charts()
            for rows in _split(flat):
                score = quadratic(rows.double(), charts, SURE).base
                parts.append((score.logsumexp(1).sum(), point_moments(rows, self.means, score.softmax(1))))
            totals, moments = zip(*parts, strict=True)
            return torch.stack(totals).sum(), reduce(iadd, moments)

        return sweep

    def sweep_of_charts(self, x: Num[Tensor, "N *X"]) -> Callable[[], tuple[Float[Tensor, ""], Moments]] | None:
        """Passes over all x, each assigned to the chart of its best code, for charts (E > 0).

        Each call returns the sum of ``log_joint`` at these codes, and the moments. A chart's moments are one product of
        all its observations, and no code is computed, since moments of hard assignments do not need it. None for K = 1,
        and for data in a file or on another device.
        """
        if isinstance(x, Mapped) or not x.is_cpu or self.components == 1 or not self.latent_shape[0]:
            return None
        flat = x.flatten(1)

        @torch.no_grad()
        def sweep() -> tuple[Tensor, Moments]:
            charts = self._charts()
            factor = precision_factor(charts)
            best = [self._best_charts(rows, charts, factor) for rows in _split(flat)]
            score, k = (torch.cat(parts) for parts in zip(*best, strict=True))
            return score.sum(), self._hard_moments(flat, k, flat.new_zeros(0))

        return sweep

    def _best_charts(self, flat: Tensor, charts: Charts, factor: Tensor) -> tuple[Tensor, Tensor]:
        """max_k max_z log_joint in float64, and k (B,); where rounding could decide, both from products in float64."""
        tolerance = VALUE * self.means.shape[1]
        constant = self.prior.log_prob(flat.new_zeros(1, *self.latent_shape).double())
        value = height(quadratic(flat, charts, tolerance), factor, charts.prior)
        top, k = value.topk(2, dim=1)
        score, best = top[:, 0], k[:, 0]
        rows = (top[:, 0] - top[:, 1] <= CLOSE * tolerance).nonzero().squeeze(1)
        if len(rows) and flat.dtype != torch.float64:
            score[rows], best[rows] = height(quadratic(flat[rows].double(), charts, SURE), factor, charts.prior).max(1)
        return score + constant, best

    def _codes(self, z: Tensor, k: Tensor | None) -> Tensor:
        lead = z.shape[:-1]
        return torch.zeros(lead, dtype=torch.long, device=z.device) if k is None else k.expand(lead)

    def _mean(self, z: Tensor, k: Tensor) -> Tensor:
        """mean_k + z loadings_k, (*L, D)."""
        return self._at(k) + self._along(z, k) if self.latent_shape[0] else self.means[k]

    def _at(self, k: Tensor) -> Tensor:
        return self.means[0] if self.components == 1 else self.means[k]

    def _along(self, z: Tensor, k: Tensor) -> Tensor:
        """z loadings_k, (*L, D), by one matrix product per component in use, over its rows."""
        if self.components == 1:
            return z @ self.loadings[0]
        flat, index = z.flatten(0, -2), k.flatten()
        order = index.argsort(stable=True)
        counts = index.bincount(minlength=self.components).tolist()
        parts = [rows @ self.loadings[j] for j, rows in enumerate(flat[order].split(counts)) if len(rows)]
        return torch.cat(parts)[order.argsort()].unflatten(0, k.shape)

    def _log_normal(self, residual: Tensor, k: Tensor) -> Tensor:
        square = (residual / self.log_scale[k].exp().unsqueeze(-1)).square().sum(-1)  # scale² may underflow or overflow
        return self._normalizer[k] - self.log_weights[k] - 0.5 * square

    def _spread(self, scale: Tensor) -> Tensor:
        return scale.reshape(*scale.shape, *[1] * len(self.event_shape))


def _split(flat: Float[Tensor, "N D"]) -> tuple[Tensor, ...]:
    return flat.split(max(1, BLOCK // (flat.shape[1] * flat.element_size())))
