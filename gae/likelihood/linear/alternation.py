"""Closed-form M-steps of mixtures of linear-Gaussian decoders: k-means, EM and principal components."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from gae.data.mapped import Mapped, blocks
from gae.likelihood.base import DecoderLikelihood, NoiseScale
from gae.likelihood.geometry import principal_directions
from gae.likelihood.linear.moments import (
    FAR,
    Moments,
    chart_moments,
    hard_point_moments,
    one_chart_moments,
    point_moments,
    relocated,
    starting_means,
)
from gae.likelihood.linear.search import Points, best_points

SMALL = 1e-6  # lower bound of a noise variance, relative to the mean over components
SURE = 256  # noise scales and variances below this multiple of rounding trigger a warning


class Alternation(NoiseScale, DecoderLikelihood):
    """The M-steps of ``LinearMixture``, with moments and eigenvectors in float64."""

    means: nn.Parameter
    loadings: nn.Parameter
    logits: Tensor
    initialized: Tensor
    flat_prior: bool
    learn_scale: bool
    learn_weights: bool

    @property
    def log_weights(self) -> Float[Tensor, " K"]:
        """log q(k), in nats."""
        return self.logits.log_softmax(0)

    @property
    def _normalizer(self) -> Tensor:
        dim = self.means.shape[1]
        return self.log_weights - dim * (self.log_scale + 0.5 * math.log(2 * math.pi))

    def _points(self) -> Points:
        """The components as weighted points, in float64 if a precision overflows or underflows in the means' dtype."""
        precision = (-2 * self.log_scale.detach().double()).exp()
        limits = torch.finfo(self.means.dtype)
        points = Points(self.means.detach(), self._normalizer.detach(), precision)
        if bool((precision < limits.tiny).any() | (precision > limits.max).any()):
            return points.double()
        return replace(points, precision=precision.to(self.means))

    def initialize(self, x: Num[Tensor, "N *X"], seed: int) -> None:
        """Initialises means by k-means++ (the data for K = N, their mean for K = 1), then takes one hard M-step.

        Does nothing once initialised.
        """
        if self.initialized:
            return
        flat = x.flatten(1)
        if len(flat) < self.components:
            raise ValueError(f"K={self.components} components need at least as many samples, got N={len(flat)}.")
        with torch.no_grad():
            self.means.copy_(starting_means(flat, self.components, seed))
            if self.components > 1 and (self.latent_shape[0] or self.learn_scale or self.learn_weights):
                equal = Points(self.means.detach(), *torch.ones(2, self.components).to(self.means))
                self.maximize(
                    reduce(add, (self._hard_moments(part, *best_points(part, equal)) for part in _parts(flat)))
                )
            self.initialized.fill_(True)

    @torch.no_grad()
    def moments_of_one(self, x: Num[Tensor, "B *X"], wide: bool) -> Moments:
        """The moments of observations of a single component; ``wide`` as in ``chart_moments``."""
        return one_chart_moments(x.flatten(1), self.means, wide)

    @torch.no_grad()
    def learn_in_one_step(self, x: Num[Tensor, "N *X"]) -> None:
        """Learns a single component from all observations: the closed-form optimum."""
        codes = ((part, part.new_zeros(len(part), dtype=torch.long)) for part in _parts(x.flatten(1)))
        self.maximize(reduce(add, (self._hard_moments(part, k, self._squares(part, k, None)) for part, k in codes)))

    @torch.no_grad()
    def statistics(self, x: Num[Tensor, "B *X"], code: Any) -> Moments:
        """Moments of a batch and its codes: hard for one code per sample, else weighted by q(k|x) over S."""
        flat, k = x.flatten(1), self._chosen(x, code)
        if k is not None:
            return self._hard_moments(flat, k, self._squares(flat, k, code.log_joint))
        share = self._shares(x, code)
        if self.latent_shape[0]:
            return chart_moments([(flat, column) for column in share.unbind(1)], self.means, self.learn_scale)
        return point_moments(flat, self.means, share)

    def _chosen(self, x: Tensor, code: Any) -> Int[Tensor, " B"] | None:
        """The component of each sample, if its codes name only one; raises ValueError if they name none."""
        if self.components == 1:
            return x.new_zeros(len(x), dtype=torch.long)
        if code.k is None:
            raise ValueError(
                f"Closed-form M-steps of K={self.components} components need codes with a component k, got k=None. "
                "Use `Argmax(...)`, `Enumerate(...)` or `ClosedForm()`, or give `fit` an optimizer."
            )
        return code.k[0] if len(code.k) == 1 else None

    def _shares(self, x: Tensor, code: Any) -> Float[Tensor, "B K"]:
        """q(k|x) from the weights of several codes for each sample."""
        score = self.log_joint(x, code.z, code.k) if code.log_joint is None else code.log_joint
        weight = (score if code.log_q is None else score - code.log_q).softmax(0)
        return weight.new_zeros(len(x), self.components).scatter_add_(1, code.k.expand_as(weight).mT, weight.mT)

    @torch.no_grad()
    def maximize(self, moments: Moments) -> float:
        """Sets means, loadings, scales and weights to their maximum-likelihood values.

        With N(0, I) codes this is the closed form of Tipping & Bishop (1999, eqs. 3.7-3.8); with a flat prior the
        loadings are the leading principal directions. A component without samples is unchanged, except in k-means,
        where it moves to the sample furthest from its mean.

        Returns:
            The largest change of a parameter, with means and loadings in standard deviations of the data.
        """
        moments = relocated(moments, self.means)
        limits, unit = self._limits(*moments.overall(self.means))
        before = self._copies()
        live = moments.count > 0
        count = moments.count[live]
        shift = moments.first[live] / count[:, None]
        self.means[live] = (self.means[live].double() + shift).to(self.means.dtype)
        length = torch.ones_like(self.loadings[..., :1])
        if self.latent_shape[0]:
            covariance = moments.second[live].div_(count[:, None, None])
            covariance.baddbmm_(shift.unsqueeze(-1), shift.unsqueeze(-2), alpha=-1)
            top = self._set_loadings(live, covariance, limits)
            if self.flat_prior:  # weigh a change of direction by its effect on the data
                length[live] = top.sqrt().unsqueeze(-1).to(length)
        elif self.learn_scale:
            noise = (moments.second[live] / count - shift.square().sum(1)) / self.means.shape[1]
            self._set_scale(live, noise, limits)
        self._set_weights(moments.count)
        return self._change(before, length, unit)

    def _set_weights(self, count: Float[Tensor, " K"]) -> None:
        if self.learn_weights:
            floored = count + 10 * torch.finfo(count.dtype).eps
            self.logits.copy_((floored / floored.sum()).log())

    def _change(self, before: list[Tensor], length: Tensor, unit: float) -> float:
        """The largest change of means and loadings, in the unit, and of logarithms of scales and weights."""
        moved = (self.means - before[0]) / unit, length * (self.loadings - before[1]) / unit
        changes = *moved, self.log_scale - before[2], self.logits - before[3]
        return max((float(change.abs().max()) for change in changes if change.numel()), default=0.0)

    def _copies(self) -> list[Tensor]:
        """The parameters before an M-step."""
        return [p.clone() for p in (self.means, self.loadings, self.log_scale, self.logits)]

    def _limits(self, variance: Tensor, offset: Tensor) -> tuple[tuple[float, float], float]:
        """Limits of a noise variance, and the unit of changes, from the variance and the squared mean of the data.

        The limits are the variance due to rounding, and the least one that clearly exceeds it.
        """
        eps, dim, spread = torch.finfo(self.means.dtype).eps, self.means.shape[1], float(variance)
        of_data, of_sums = eps**2 * (spread + float(offset)), torch.finfo(torch.float64).eps * dim * spread
        rounding = of_data + of_sums
        return (rounding, max(SURE**2 * of_data, SURE * of_sums)), max(spread, rounding) ** 0.5 or 1.0

    def _set_loadings(self, live: Tensor, covariance: Tensor, limits: tuple[float, float]) -> Tensor:
        """Sets the loadings, and scales, of live components from their covariances; returns the leading variances."""
        width, dim = self.latent_shape[0], self.means.shape[1]
        top, rest, directions = principal_directions(covariance, width)
        top = top.clamp_min(0)
        if self.learn_scale:
            rest = top[:, -1] if width == dim and not self.flat_prior else rest  # the same density as E = D - 1
            self._set_scale(live, rest / (dim if self.flat_prior else max(dim - width, 1)), limits)
        if not self.flat_prior:
            noise = (2 * self.log_scale[live].to(top.dtype)).exp()
            directions = directions * (top - noise[:, None]).clamp_min(0).sqrt().unsqueeze(-1)
        self.loadings[live] = directions.to(self.loadings.dtype)
        return top

    def _set_scale(self, live: Tensor, variance: Tensor, limits: tuple[float, float]) -> None:
        """Sets the noise scales from variances, with a lower bound; warns if they may be rounding, or are raised.

        Args:
            live: mask of the components.
            variance: their noise variances.
            limits: the variance due to rounding, and the least variance that clearly exceeds it.
        """
        rounding, sure = limits
        small = SMALL * variance.mean().clamp_min(0)
        raised = (variance > sure) & (variance < small)
        raw, variance = variance, variance.clamp_min(small + (rounding or torch.finfo(self.means.dtype).tiny))
        self.log_scale[live] = (0.5 * variance.log()).to(self.log_scale.dtype)
        least = float(variance.min().sqrt())
        if least**2 <= sure:
            warnings.warn(
                f"The noise scale {least:.3g} is close to the rounding error, which is {rounding**0.5:.3g} in these "
                f"{self.means.dtype} data: log densities of single samples are uncertain. If the data are noisy, "
                "centre them, standardise their features, or use float64; if they are noise-free, use a smaller "
                "latent or a fixed scale.",
                stacklevel=3,
            )
        elif bool(raised.any()):
            warnings.warn(
                f"{int(raised.sum())} of {len(raw)} components have noise scales down to "
                f"{float(raw[raised].min().sqrt()):.3g}, raised to {least:.3g}: the lower bound is {SMALL**0.5:g} of "
                "their root mean square, since densities of single points are unbounded. Use fewer components, or "
                "fit groups of such different widths separately.",
                stacklevel=3,
            )

    def _hard_moments(self, flat: Tensor, k: Tensor, square: Tensor) -> Moments:
        """Moments from hard codes k (B,); for points, also from the squared distances to their means."""
        if not self.latent_shape[0]:
            kmeans = not (self.learn_scale or self.learn_weights)
            return hard_point_moments(flat, self.means, k, square, min(self.components, FAR) if kmeans else 0)
        if self.components == 1:
            return chart_moments([(flat, None)], self.means, self.learn_scale)
        parts = ((flat[k == component], None) for component in range(self.components))
        return chart_moments(parts, self.means, self.learn_scale)

    def _squares(self, flat: Tensor, k: Tensor, score: Tensor | None) -> Tensor:
        """‖x - mean_k‖² of hard codes, (B,), for points; from the engine's score if it is precise enough."""
        points = self._points()
        if self.latent_shape[0]:
            return flat.new_zeros(0)
        if score is not None and score.dtype == torch.float64 and flat.dtype != torch.float64:
            points64 = points.double()
            square = 2 * (points64.bias[k] - score[0]) / points64.precision[k]
            rounding = torch.finfo(score.dtype).eps * (points64.bias.abs() / points64.precision).max()
            if bool(square.mean() > 1e8 * rounding):
                return square.clamp_min(0)
        return points.square(flat, k)


def _parts(flat: Float[Tensor, "N D"]) -> Iterable[Tensor]:
    """The rows at once, or block by block if they stay in a file."""
    return (block for _, block in blocks(flat)) if isinstance(flat, Mapped) else [flat]
