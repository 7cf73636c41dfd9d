"""Codes of linear-Gaussian charts given the observed elements of each x, and the moments of them for EM."""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from gae.data.mapped import blocks
from gae.likelihood.linear.quadratic import Charts

DEPENDENT = 1e-12  # relative squared pivot of a precision below which codes under a flat prior are not determined
ENTRIES = 2**23  # entries of precisions held at once


@dataclass(frozen=True)
class Conditional:
    """The posterior of the code of each chart given the observed elements, with precision factorᵀ factor, in float64.

    ``log_marginal`` is log ∫ q(z) q(x_obs|z, k) dz in nats, without log q(k).
    """

    mean: Float[Tensor, "B K E"]
    factor: Float[Tensor, "B K E E"]  # lower triangular
    log_marginal: Float[Tensor, "B K"]

    @property
    def spread(self) -> Float[Tensor, "B K E E"]:
        """Lower triangular factor of the covariance."""
        identity = torch.eye(self.factor.shape[-1], dtype=self.factor.dtype, device=self.factor.device)
        return torch.linalg.solve_triangular(self.factor, identity.expand_as(self.factor), upper=False)


def conditional(x: Float[Tensor, "B D"], charts: Charts) -> Conditional:
    """The posterior of each chart given the elements of x that are not NaN, chart by chart.

    The precision of a row is that of the prior plus Σ_d w_d w_dᵀ over its observed elements d, by one matrix product
    for all rows (the matrix inversion lemma for each row). Log densities come from residuals at the mean, which do not
    cancel, after one step of iterative refinement.

    Raises:
        ValueError: under a flat prior, for a row whose observed elements do not determine its code.
    """
    charts, seen = charts.to(torch.float64), ~x.isnan()
    parts = [_chart(x.double(), seen, charts, k) for k in range(len(charts.means))]
    return Conditional(*(torch.stack(part, 1) for part in zip(*parts, strict=True)))


def _chart(x: Tensor, seen: Tensor, charts: Charts, k: int) -> tuple[Tensor, Tensor, Tensor]:
    mask, unit = seen.to(x), (-charts.log_scale[k]).exp()
    residual = torch.where(seen, x - charts.means[k], 0) * unit  # scale² may underflow or overflow
    loadings, width = charts.loadings[k] * unit, charts.loadings.shape[1]
    number = mask.sum(1)
    constant = -number * (charts.log_scale[k] + 0.5 * math.log(2 * math.pi))
    if not width:
        empty = residual.new_zeros(len(x), 0, 0)
        return empty.flatten(1), empty, constant - 0.5 * residual.square().sum(1)
    identity = torch.eye(width, dtype=x.dtype, device=x.device)
    products = (loadings.unsqueeze(1) * loadings).flatten(0, 1)
    precision = (mask @ products.mT).unflatten(1, (width, width)) + charts.prior * identity
    factor = _factor(precision, number, flat=charts.prior == 0)
    code = _solved(factor, residual @ loadings.mT)
    left = residual - mask * (code @ loadings)
    code = code + _solved(factor, left @ loadings.mT - charts.prior * code)
    left = residual - mask * (code @ loadings)
    square = left.square().sum(1) + charts.prior * code.square().sum(1)
    volume = 0.0 if charts.prior else 0.5 * width * math.log(2 * math.pi)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return code, factor, constant - 0.5 * square - log_det + volume


def _factor(precision: Float[Tensor, "B E E"], number: Float[Tensor, " B"], flat: bool) -> Float[Tensor, "B E E"]:
    """Lower triangular A with AᵀA the precision; raises ValueError where that is singular."""
    upper, failed = torch.linalg.cholesky_ex(precision.flip(-2, -1))
    factor = upper.flip(-2, -1).mT
    if flat:
        with torch.no_grad():
            size = precision.diagonal(dim1=-2, dim2=-1)
            bad = (failed > 0) | (factor.diagonal(dim1=-2, dim2=-1).square() <= DEPENDENT * size).any(1)
        _refuse_rows(bad, number, precision.shape[-1])
    return factor


def need_enough(x: Float[Tensor, "B D"], width: int) -> None:
    """Raises ValueError for rows with fewer than ``width`` observed elements."""
    number = torch.cat([(~rows.isnan()).sum(1) for _, rows in blocks(x)])
    _refuse_rows(number < width, number, width)


def _refuse_rows(bad: Bool[Tensor, " B"], number: Num[Tensor, " B"], width: int) -> None:
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"Sample {row} has {int(number[row])} observed elements, which do not determine its code of {width} "
            f"elements under a flat prior ({int(bad.sum())} such samples). Use flat_prior=False (ppca instead of pca), "
            "a smaller latent, or leave such samples out."
        )


def _solved(factor: Float[Tensor, "B E E"], right: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    """(factorᵀ factor)⁻¹ right."""
    white = torch.linalg.solve_triangular(factor.mT, right.unsqueeze(-1), upper=True)
    return torch.linalg.solve_triangular(factor, white, upper=False).squeeze(-1)


@dataclass(frozen=True)
class ObservedMoments:
    """Sufficient statistics of K charts for EM with missing elements, in float64; they add over batches.

    With a = (1, z), weights q(k|x), and residuals r = x - mean_k of observed elements; expectations are over z.
    """

    codes: Float[Tensor, "K F F"]  # Σ_n E[a aᵀ], F = 1 + E
    cross: Float[Tensor, "K D F"]  # Σ_n r_d E[a], over the rows that observe d
    gram: Float[Tensor, "K D F F"]  # Σ_n E[a aᵀ], over the rows that observe d
    square: Float[Tensor, "K D"]  # Σ_n r_d²

    def __add__(self, other: "ObservedMoments") -> "ObservedMoments":
        names = [field.name for field in fields(self)]
        return ObservedMoments(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def number(self) -> Float[Tensor, "K D"]:
        """The weighted number of observations of each element."""
        return self.gram[..., 0, 0]

    def overall(self, means: Float[Tensor, "K D"]) -> tuple[Tensor, Tensor]:
        """The variance of the observed elements about their means over all rows, and the mean square of those."""
        means, number, total = means.double(), self.number, self.number.sum()
        sums = self.cross[..., 0]
        mean = (number * means + sums).sum(0) / number.sum(0).clamp_min(1e-300)
        offset = means - mean
        scatter = (self.square + 2 * sums * offset + number * offset.square()).sum()
        return (scatter / total.clamp_min(1e-300)).clamp_min(0), mean.square().mean()


def observed_moments(x: Float[Tensor, "B D"], charts: Charts, weight: Float[Tensor, "B K"]) -> ObservedMoments:
    """The moments of x, about the means of the charts, with weights of their rows."""
    size = charts.loadings.shape[0] * (1 + charts.loadings.shape[1]) ** 2
    rows = max(1, ENTRIES // max(size, x.shape[1]))
    parts = zip(x.split(rows), weight.split(rows), strict=True)
    first, *rest = [_moments(part.double(), charts, share.double()) for part, share in parts]
    return sum(rest, first)


def _moments(x: Tensor, charts: Charts, weight: Tensor) -> ObservedMoments:
    given, seen = conditional(x, charts), ~x.isnan()
    ones, spreads = x.new_ones(len(x), 1), given.spread
    parts = []
    for k, share in enumerate(weight.unbind(1)):
        a = torch.cat([ones, given.mean[:, k]], 1)
        second = a.unsqueeze(2) * a.unsqueeze(1)
        if charts.prior:
            second[:, 1:, 1:] += spreads[:, k] @ spreads[:, k].mT
        flat = second.flatten(1)
        residual = torch.where(seen, x - charts.means[k].double(), 0)
        cross = (share.unsqueeze(1) * residual).mT @ a
        gram = (share.unsqueeze(1) * seen).mT @ flat
        codes = (share @ flat).view_as(second[0])
        parts.append((codes, cross, gram.unflatten(1, second.shape[1:]), share @ residual.square()))
    return ObservedMoments(*(torch.stack(part) for part in zip(*parts, strict=True)))
