"""Linear regression as a likelihood: one observation holds all targets, and the code is the coefficients."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from pyro.distributions import Independent, MultivariateNormal
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from gae.likelihood.distributions import Normal
from gae.likelihood.door import need_no_component
from gae.likelihood.evidence import Evidence
from gae.likelihood.heads import Gaussian
from gae.likelihood.priors import Flat, FlatDistribution


class LinearRegression(Gaussian):
    """Linear regression y ~ N(design w, scale² I), with the coefficients w as the latent.

    An observation y (*X) holds the targets of all inputs; B observations are B regressions on one design. Encoding is
    ordinary least squares under the flat prior, and ridge regression with λ = scale² / prior_scale² under
    w ~ N(0, prior_scale² I). The intercept is the first coefficient, and always has a flat prior.

    The posterior over coefficients is exact (``ExactPosterior``; Bishop, PRML (2006), section 3.3), by a QR
    decomposition in float64, which does not square the condition number of the design.

    Args:
        design: inputs, (*X, F): a row of F features for each target.
        prior_scale: prior standard deviation of the coefficients; None for a flat prior.
        intercept: whether a column of ones precedes the inputs.
        scale: noise standard deviation in units of y, or its initial value if it is learned.
        learn_scale: whether the scale is learned.

    Raises:
        ValueError: for a design whose columns under a flat prior are linearly dependent, so that the coefficients are
            not unique.

    >>> from gae.inference import ClosedForm
    >>> inputs = torch.tensor([[0.0], [1.0], [2.0]])
    >>> y = torch.tensor([[1.0, 3.0, 5.0]])
    >>> ClosedForm()(LinearRegression(inputs), y).point  # y = 1 + 2 x
    tensor([[1.0000, 2.0000]])
    """

    def __init__(
        self,
        design: Float[Tensor, "*X F"],
        prior_scale: float | None = None,
        intercept: bool = True,
        scale: float = 1.0,
        learn_scale: bool = False,
    ):
        if design.dim() < 2 or not bool(torch.isfinite(design).all()):
            raise ValueError(f"design must be finite and of shape (*X, F), got shape {tuple(design.shape)}.")
        if prior_scale is not None and not prior_scale > 0:
            raise ValueError(f"prior_scale must be positive, or None for a flat prior, got {prior_scale}.")
        decoder = _Design(design, intercept)
        width = decoder.columns.shape[1]
        if width < 1:
            raise ValueError("A regression needs inputs or an intercept, got a design without columns.")
        _need_rank(decoder.columns if prior_scale is None else decoder.columns[:, : int(intercept)])
        prior: nn.Module = Flat(width)
        if prior_scale is not None:
            prior = _CoefficientPrior(design.new_full((width,), prior_scale), intercept)
        super().__init__(decoder, width, scale, "scalar" if learn_scale else "fixed", prior)
        self.intercept, self.prior_scale = intercept, prior_scale

    def predict(self, inputs: Float[Tensor, "*M F"], z: Float[Tensor, "... C"]) -> Float[Tensor, "..."]:
        """Predicted mean targets (*L, *M) of new inputs under coefficients z (*L, C)."""
        columns = _columns(inputs, self.intercept)
        if columns.shape[1] != z.shape[-1]:
            raise ValueError(
                f"inputs must have shape (*M, {z.shape[-1] - int(self.intercept)}), got {tuple(inputs.shape)}."
            )
        return (z @ columns.mT).unflatten(-1, inputs.shape[:-1])

    def posterior(self, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Distribution:
        """The exact posterior q(w|y), batch (1, B), event C; proper also under a flat prior."""
        need_no_component(self, k)
        pull, factor = self._solve()
        identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        spread = torch.linalg.solve_triangular(factor, identity, upper=False)
        mean = x.flatten(1).double() @ (spread @ pull).mT
        return MultivariateNormal(mean.to(x.dtype).unsqueeze(0), scale_tril=spread.to(x.dtype), validate_args=False)

    def log_responsibilities(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "B 1"]:
        """log q(k|y) = 0, for a single component."""
        return x.new_zeros(len(x), 1)

    def log_evidence(self, x: Num[Tensor, "B *X"]) -> Evidence:
        """The exact log p(y) = log N(y; 0, prior_scale² design designᵀ + scale² I), in nats.

        Raises:
            ValueError: under a flat prior, including that of an intercept, for which p(y) is not a density.
        """
        if isinstance(self.prior, FlatDistribution):
            raise ValueError(
                "log p(y) does not exist under a flat prior. Give a prior_scale, and centre the data instead of "
                "fitting an intercept."
            )
        pull, factor = self._solve()
        y, columns, scale = x.flatten(1).double(), self._inputs.double(), self.scale.double()
        mean = torch.linalg.solve_triangular(factor, pull @ y.mT, upper=False).mT
        # Bayes' rule at the posterior's mean, in float64: its residuals are small differences of large numbers.
        likelihood = Normal(mean @ columns.mT, scale).log_prob(y).sum(1)
        assert isinstance(self.latent_prior, _CoefficientPrior)
        prior = Normal(torch.zeros_like(mean), self.latent_prior.spread.double()).log_prob(mean).sum(1)
        density = factor.diagonal().log().sum() - 0.5 * len(factor) * math.log(2 * math.pi)
        return Evidence.exact((likelihood + prior - density).to(x.dtype))

    def _solve(self) -> tuple[Tensor, Tensor]:
        """G (C, N) and lower triangular A (C, C) in float64: the precision of q(w|y) is AᵀA, its mean A⁻¹ G y.

        Computed by a QR decomposition of the least-squares problem whose rows are the targets and the prior, with
        columns in reverse order, which makes A lower triangular.
        """
        columns, scale = self._inputs.double(), self.scale.double()
        prior = self.latent_prior
        flat = columns.new_zeros(columns.shape[1])
        penalty = 1 / prior.spread.double() if isinstance(prior, _CoefficientPrior) else flat
        q, r = torch.linalg.qr(torch.cat([columns / scale, penalty.diag()]).flip(1))
        sign = torch.where(r.diagonal() < 0, -1.0, 1.0)
        return (q * sign).flip(1)[: len(columns)].mT / scale, (sign[:, None] * r).flip(0, 1)

    @property
    def _inputs(self) -> Tensor:
        assert isinstance(self.decoder, _Design)
        return self.decoder.columns


class _Design(nn.Module):
    """Decoder of coefficients (n, C) to mean targets (n, *X)."""

    columns: Tensor

    def __init__(self, design: Tensor, intercept: bool):
        super().__init__()
        self.shape = design.shape[:-1]
        self.register_buffer("columns", _columns(design.detach(), intercept).clone())

    def forward(self, z: Float[Tensor, "n C"]) -> Float[Tensor, "n *X"]:
        return (z @ self.columns.mT).unflatten(1, self.shape)


class _CoefficientPrior(nn.Module):
    """Normal prior of coefficients with given standard deviations, flat over an intercept."""

    spread: Tensor

    def __init__(self, spread: Float[Tensor, " C"], intercept: bool):
        super().__init__()
        spread[: int(intercept)] = torch.inf
        self.register_buffer("spread", spread, persistent=False)

    def forward(self) -> Distribution:
        spread = self.spread[self.spread.isfinite()]
        rest = Independent(Normal(torch.zeros_like(spread), spread, validate_args=False), 1, validate_args=False)
        return rest if len(spread) == len(self.spread) else _FlatIntercept(rest)


class _FlatIntercept(FlatDistribution):
    """Improper distribution: flat over the first element, and ``rest`` over the others."""

    def __init__(self, rest: Distribution, batch_shape: Any = ()):
        self.rest = rest
        super().__init__(Size([rest.event_shape[0] + 1]), batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_FlatIntercept":
        return _FlatIntercept(self.rest, batch_shape)

    def log_prob(self, value: Num[Tensor, "..."]) -> Num[Tensor, "..."]:
        return super().log_prob(value) + self.rest.log_prob(value[..., 1:])


def _columns(inputs: Tensor, intercept: bool) -> Tensor:
    flat = inputs.flatten(0, -2)
    return torch.cat([flat.new_ones(len(flat), 1), flat], 1) if intercept else flat


def _need_rank(columns: Tensor) -> None:
    """Raises ValueError unless the columns under a flat prior are linearly independent."""
    rank, width = int(torch.linalg.matrix_rank(columns.double())), columns.shape[1]
    if rank < width:
        raise ValueError(
            f"The design has {width} columns under a flat prior but rank {rank}, for {len(columns)} targets: many "
            "coefficients fit equally well. Remove dependent columns, or give a prior_scale."
        )
