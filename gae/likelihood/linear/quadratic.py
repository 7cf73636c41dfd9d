"""Log densities of linear-Gaussian charts as quadratic functions of the code, at the precision their scale requires."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gae.likelihood.door import hidden


@dataclass(frozen=True)
class Charts:
    """Charts N(mean_k + z loadings_k, scale_k² I), and the precision of the prior N(0, I / prior) of z (0 for flat)."""

    means: Float[Tensor, "K D"]
    loadings: Float[Tensor, "K E D"]
    log_scale: Float[Tensor, " K"]
    constant: Float[Tensor, " K"]  # the log density at the mean, in nats, with log q(k)
    prior: float

    @property
    def precision(self) -> Float[Tensor, " K"]:
        return (-2 * self.log_scale).exp()

    def to(self, dtype: torch.dtype) -> "Charts":
        means, loadings = self.means.to(dtype), self.loadings.to(dtype)
        return Charts(means, loadings, self.log_scale.to(dtype), self.constant.to(dtype), self.prior)


@dataclass(frozen=True)
class Quadratic:
    """Coefficients of log q(k) N(x; mean_k + z loadings_k, scale_k² I) = base + δ·pull - ½ δ gram δ, δ = z - anchor."""

    base: Float[Tensor, "B K"]
    pull: Float[Tensor, "B K E"]
    gram: Float[Tensor, "K E E"]
    anchor: Float[Tensor, "B K E"] | None = None  # constants near the modes; None for 0


def quadratic(x: Float[Tensor, "B D"], charts: Charts, tolerance: float) -> Quadratic:
    """The quadratic of each observation, with rounding errors of at most about ``tolerance`` nats.

    ‖x‖² and its projections cancel if the noise is small relative to the data. Matrix products about a common centre
    are used in the dtype of x if that is precise enough, else in float64; if that does not suffice, residuals at the
    mode of each chart, which do not cancel. Under ``torch.vmap`` residuals are always used.
    """
    for dtype in dict.fromkeys((x.dtype, torch.float64)):
        wide, parts = x.to(dtype), charts.to(dtype)
        centre = parts.means.mean(0)
        rows, means = wide - centre, parts.means - centre
        norm = torch.einsum("bd,bd->b", rows, rows)  # twice differentiable at 0, unlike ``vector_norm``
        if not hidden(norm) and _rounding(norm, means, parts) <= tolerance:
            return _from_products(rows, norm, means, parts)
    return _from_residuals(wide, parts)


@torch.no_grad()
def _rounding(norm: Tensor, means: Tensor, charts: Charts) -> float:
    """An estimate of rounding errors, in nats."""
    far = norm.max() + means.square().sum(1).max()
    return torch.finfo(norm.dtype).eps * float(far * charts.precision.max())


def _from_products(rows: Tensor, norm: Tensor, means: Tensor, charts: Charts) -> Quadratic:
    """The quadratic from matrix products of x and the means about a common centre."""
    square = norm.unsqueeze(1)
    if len(means) > 1:
        square = torch.addmm(square + means.square().sum(1), rows, means.T, alpha=-2).clamp_min(0)
    loadings, precision = charts.loadings, charts.precision[:, None, None]
    offset = (loadings @ means.unsqueeze(-1)).flatten()
    pull = torch.addmm(-offset, rows, loadings.flatten(0, 1).T).unflatten(1, loadings.shape[:2]) * precision[..., 0]
    return Quadratic(charts.constant - 0.5 * charts.precision * square, pull, loadings @ loadings.mT * precision)


def _from_residuals(x: Tensor, charts: Charts) -> Quadratic:
    """The quadratic from residuals x - mean_k - anchor loadings_k, chart by chart, without a (B, K, D) tensor."""
    scaled = charts.loadings * charts.precision[:, None, None]
    gram = scaled @ charts.loadings.mT
    with torch.no_grad():
        size = gram.diagonal(dim1=-2, dim2=-1)
        penalty = torch.full_like(size, charts.prior) if charts.prior else 1e-10 * size + (size == 0)
        factor = _factor(charts, penalty)
    parts = []
    for k, (mean, loadings, push) in enumerate(zip(charts.means, charts.loadings, scaled, strict=True)):
        residual = x - mean
        with torch.no_grad():
            white = torch.linalg.solve_triangular(factor[k].mT, push @ residual.mT, upper=True)
            anchor = torch.linalg.solve_triangular(factor[k], white, upper=False).mT
        residual = residual - anchor @ loadings
        base = charts.constant[k] - 0.5 * charts.precision[k] * residual.square().sum(1)
        parts.append((base, residual @ push.mT, anchor))
    base, pull, anchor = (torch.stack(part, 1) for part in zip(*parts, strict=True))
    return Quadratic(base, pull, gram, anchor)


def precision_factor(charts: Charts) -> Float[Tensor, "K E E"]:
    """Lower triangular A with positive diagonal such that AᵀA = prior I + loadings loadingsᵀ / scale², in float64.

    Computed by a QR decomposition, which does not square the condition number (as in ``LinearRegression``).

    Raises:
        ValueError: for linearly dependent loadings under a flat prior.
    """
    charts = charts.to(torch.float64)
    size = charts.loadings[..., 0].detach()
    factor = _factor(charts, torch.full_like(size, charts.prior))
    with torch.no_grad():
        length = charts.loadings.square().sum(-1).mul(charts.precision[:, None]).add(charts.prior).sqrt()
        bad = (factor.diagonal(dim1=-2, dim2=-1) <= 1e-13 * length).any(1)
    if bool(bad.any()):
        raise ValueError(
            f"The loadings of component {int(bad.nonzero()[0])} are linearly dependent, and under a flat prior their "
            "codes have no posterior. Use a smaller latent, other loadings, or flat_prior=False."
        )
    return factor


def _factor(charts: Charts, penalty: Float[Tensor, "K E"]) -> Tensor:
    scaled = charts.loadings * (-charts.log_scale).exp()[:, None, None]
    rows = torch.cat([scaled, penalty.sqrt().diag_embed()], -1).mT.flip(-1)  # reversed columns make A lower triangular
    r = torch.linalg.qr(rows)[1].flip(-2, -1)
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r.dtype)
    return sign.unsqueeze(-1) * r


def peak(
    form: Quadratic, factor: Float[Tensor, "K E E"], prior: float
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K E"]]:
    """The maximum over z of base + δ·pull - ½ δ gram δ - ½ prior ‖z‖², and its maximiser; both in float64."""
    value, white = _whitened(form, factor, prior)
    code = torch.linalg.solve_triangular(factor, white, upper=False).permute(2, 0, 1)
    return value, code if form.anchor is None else form.anchor + code


def height(form: Quadratic, factor: Float[Tensor, "K E E"], prior: float) -> Float[Tensor, "B K"]:
    """The maximum of ``peak`` alone."""
    return _whitened(form, factor, prior)[0]


def _whitened(form: Quadratic, factor: Float[Tensor, "K E E"], prior: float) -> tuple[Tensor, Tensor]:
    """The maximum, and factor @ δ at the maximiser, (K, E, B)."""
    base, slope = form.base.double(), form.pull.double()
    if form.anchor is not None:
        slope, base = slope - prior * form.anchor, base - 0.5 * prior * form.anchor.square().sum(-1)
    white = torch.linalg.solve_triangular(factor.mT, slope.permute(1, 2, 0), upper=True)
    return base + 0.5 * white.square().sum(1).mT, white
