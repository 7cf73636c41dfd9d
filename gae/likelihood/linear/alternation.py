"""Closed-form learning of mixtures of linear-Gaussian decoders: k-means, EM and principal components."""

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from gae.likelihood.base import DecoderLikelihood, NoiseScale
from gae.likelihood.linear.moments import (
    Moments,
    chart_moments,
    hard_point_moments,
    point_moments,
    principal_directions,
    relocated,
    starting_means,
)
from gae.likelihood.linear.search import Points, best_points

SMALL = 1e-6  # of the mean noise variance of all components: the least that one of them has
SURE = 256  # units of rounding: noise scales, and variances, below are told to be uncertain
FAR = 32  # components that can be found empty and placed anew after one pass over the data; others wait for the next


class Alternation(NoiseScale, DecoderLikelihood):
    """The M-steps of ``LinearMixture``, whose parameters these are; moments and eigenvectors are taken in float64."""

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
        """In float64 where a precision overflows or underflows in the dtype of the means."""
        precision = (-2 * self.log_scale.detach().double()).exp()
        limits = torch.finfo(self.means.dtype)
        points = Points(self.means.detach(), self._normalizer.detach(), precision)
        if bool((precision < limits.tiny).any() | (precision > limits.max).any()):
            return points.double()
        return replace(points, precision=precision.to(self.means))

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
                equal = Points(self.means.detach(), *torch.ones(2, self.components).to(flat))
                self.maximize(self._hard_moments(flat, *best_points(flat, equal)))
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
            k = flat.new_zeros(len(flat), dtype=torch.long) if self.components == 1 else code.k[0]
            return self._hard_moments(flat, k, self._squares(flat, k, code.log_joint))
        score = self.log_joint(x, code.z, code.k) if code.log_joint is None else code.log_joint
        log_weight = score if code.log_q is None else score - code.log_q
        weight = log_weight.softmax(0)
        share = weight.new_zeros(len(flat), self.components).scatter_add_(1, code.k.expand_as(weight).mT, weight.mT)
        if self.latent_shape[0]:
            return chart_moments([(flat, column) for column in share.unbind(1)], self.means, self.learn_scale)
        return point_moments(flat, self.means, share)

    @torch.no_grad()
    def maximize(self, moments: Moments) -> float:
        """Sets means, loadings, scales and weights to their maximum-likelihood values.

        With N(0, I) codes this is the closed form of Tipping & Bishop (1999, eqs. 3.7-3.8); with a flat prior the
        loadings are the leading principal directions. A component without samples stays where it is, but in k-means it
        moves to the sample that is furthest from its own mean.

        Returns:
            The largest change of a parameter, that of means and loadings in standard deviations of the data.
        """
        moments = relocated(moments, self.means)
        variance, offset = (float(part) for part in moments.overall(self.means))
        eps, dim = torch.finfo(self.means.dtype).eps, self.means.shape[1]
        of_data, of_sums = eps**2 * (variance + offset), torch.finfo(torch.float64).eps * dim * variance
        limits = of_data + of_sums, max(SURE**2 * of_data, SURE * of_sums)
        unit = max(variance, limits[0]) ** 0.5 or 1.0
        before = [p.clone() for p in (self.means, self.loadings, self.log_scale, self.logits)]
        live = moments.count > 0
        count = moments.count[live]
        shift = moments.first[live] / count[:, None]
        self.means[live] = (self.means[live].double() + shift).to(self.means.dtype)
        length = torch.ones_like(self.loadings[..., :1])
        if self.latent_shape[0]:
            covariance = moments.second[live] / count[:, None, None] - shift.unsqueeze(-1) * shift.unsqueeze(-2)
            top = self._set_loadings(live, covariance, limits)
            if self.flat_prior:  # directions: as much as they move the data
                length[live] = top.sqrt().unsqueeze(-1).to(length)
        elif self.learn_scale:
            noise = (moments.second[live] / count - shift.square().sum(1)) / dim
            self._set_scale(live, noise, limits)
        if self.learn_weights:
            floored = moments.count + 10 * torch.finfo(moments.count.dtype).eps
            self.logits.copy_((floored / floored.sum()).log())
        moved = (self.means - before[0]) / unit, length * (self.loadings - before[1]) / unit
        changes = *moved, self.log_scale - before[2], self.logits - before[3]
        return max((float(change.abs().max()) for change in changes if change.numel()), default=0.0)

    def _set_loadings(self, live: Tensor, covariance: Tensor, limits: tuple[float, float]) -> Tensor:
        """From the covariances of live components, and the limits of ``_set_scale``; returns the leading variances."""
        width, dim = self.latent_shape[0], self.means.shape[1]
        top, rest, directions = principal_directions(covariance, width)
        top = top.clamp_min(0)
        if self.learn_scale:
            rest = top[:, -1:] if width == dim and not self.flat_prior else rest  # the same density as E = D - 1
            self._set_scale(live, rest.sum(1) / (dim if self.flat_prior else max(dim - width, 1)), limits)
        if not self.flat_prior:
            noise = (2 * self.log_scale[live].to(top.dtype)).exp()
            directions = directions * (top - noise[:, None]).clamp_min(0).sqrt().unsqueeze(-1)
        self.loadings[live] = directions.to(self.loadings.dtype)
        return top

    def _set_scale(self, live: Tensor, variance: Tensor, limits: tuple[float, float]) -> None:
        """Variances no smaller than their rounding; warns of those that may be rounding, or are raised without it.

        Args:
            limits: the variance that rounding alone makes, and one that stands out from it.
        """
        rounding, sure = limits
        small = SMALL * variance.mean().clamp_min(0)
        raised = (variance > sure) & (variance < small)
        found, variance = variance, variance.clamp_min(small + (rounding or torch.finfo(self.means.dtype).tiny))
        self.log_scale[live] = (0.5 * variance.log()).to(self.log_scale.dtype)
        least = float(variance.min().sqrt())
        if least**2 <= sure:
            warnings.warn(
                f"The noise scale {least:.3g} is hardly more than rounding, which is {rounding**0.5:.3g} in these "
                f"{self.means.dtype} data: log densities of single samples are uncertain. If the data have noise, "
                "centre them, bring their features to one scale, or use float64; if they have none, give a smaller "
                "latent or a fixed scale.",
                stacklevel=3,
            )
        elif bool(raised.any()):
            warnings.warn(
                f"{int(raised.sum())} of {len(found)} components have noise scales down to "
                f"{float(found[raised].min().sqrt()):.3g}, raised to {least:.3g}: none may be below {SMALL**0.5:g} of "
                "their root mean square, as single points would have densities without limit. Use fewer components, or "
                "fit groups of so different widths apart.",
                stacklevel=3,
            )

    def _hard_moments(self, flat: Tensor, k: Tensor, square: Tensor) -> Moments:
        """From hard codes k (B,); for points, with the squared distances to their means."""
        if not self.latent_shape[0]:
            kmeans = not (self.learn_scale or self.learn_weights)
            return hard_point_moments(flat, self.means, k, square, min(self.components, FAR) if kmeans else 0)
        if self.components == 1:
            return chart_moments([(flat, None)], self.means, self.learn_scale)
        counts = k.bincount(minlength=self.components).tolist()
        parts = [(rows, None) for rows in flat[k.argsort()].split(counts)]
        return chart_moments(parts, self.means, self.learn_scale)

    def _squares(self, flat: Tensor, k: Tensor, score: Tensor | None) -> Tensor:
        """‖x - mean_k‖² of hard codes, (B,), for points; from the engine's score, where that tells it."""
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
