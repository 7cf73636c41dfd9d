"""Variational families of an ascent: a point, or a normal density over codes."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from pyro.distributions import Independent, MultivariateNormal
from torch import Tensor, nn

from gae.inference.base import Code
from gae.inference.laws import point_of, spread_of
from gae.likelihood import Likelihood
from gae.likelihood.base import LogJoint
from gae.likelihood.distributions import Normal
from gae.storage import Part

BLOCK = 256  # codes decoded at once: many small calls are slow, and large ones leave the processor's cache


class Family(Part, nn.Module, ABC):
    """A family of densities q(z; u), and the per-sample objective of its parameters u."""

    evaluations: int = 1  # decoder evaluations per objective value

    @abstractmethod
    def start(self, start: Code) -> Float[Tensor, "S B *U"]:
        """The initial u, from the code or density of another engine."""

    def noise(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B M *Z"] | None:
        """Noise for one solve, drawn once; None for a deterministic family."""
        return None

    @abstractmethod
    def objective(self, u: Float[Tensor, "S B *U"], noise: Tensor | None, log_joint: LogJoint) -> Float[Tensor, "S B"]:
        """The objective of each row in nats, a deterministic function of u and the noise."""

    def draw(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B *Z"] | None:
        """Noise for one code per row; None for a deterministic family."""
        return None

    @abstractmethod
    def centre(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B *Z"]:
        """The code at the centre of the density."""

    @abstractmethod
    def metric(self, u: Float[Tensor, "S B *U"], factor: Float[Tensor, "S B Z Z"]) -> Float[Tensor, "S B *_"]:
        """The argument of ``rescaled``: C, and where necessary the scales at u, on which the curvature depends.

        Args:
            u: the parameters.
            factor: C, lower triangular, where C Cᵀ is the inverse curvature of -log_joint at the centre, as a matrix of
                the Z elements of a code.
        """

    @abstractmethod
    def rescaled(self, v: Float[Tensor, "S B U"], metric: Float[Tensor, "S B *_"]) -> Float[Tensor, "S B U"]:
        """v times the inverse of the curvature of -objective, if log_joint is quadratic."""

    @abstractmethod
    def code(self, likelihood: Likelihood, u: Float[Tensor, "S B *U"], draw: Tensor | None) -> Code:
        """The code of parameters u and noise ``draw``."""


class Delta(Family):
    """A point estimate: the code itself ascends ``log_joint`` (MAP).

    >>> Delta().evaluations
    1
    """

    def start(self, start: Code) -> Float[Tensor, "S B *U"]:
        if start.q is None:
            return start.z
        point = point_of(start.q)
        return point if point.dim() == start.z.dim() else point.unsqueeze(0)

    def objective(self, u: Float[Tensor, "S B *U"], noise: Tensor | None, log_joint: LogJoint) -> Float[Tensor, "S B"]:
        return log_joint(u)

    def centre(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B *Z"]:
        return u

    def metric(self, u: Float[Tensor, "S B *U"], factor: Float[Tensor, "S B Z Z"]) -> Float[Tensor, "S B Z Z"]:
        return factor

    def rescaled(self, v: Float[Tensor, "S B U"], metric: Float[Tensor, "S B Z Z"]) -> Float[Tensor, "S B U"]:
        return _times(metric, _times(metric.mT, v))

    def code(self, likelihood: Likelihood, u: Float[Tensor, "S B *U"], draw: Tensor | None) -> Code:
        return Code(u)


class MeanField(Family):
    """A mean-field normal, whose means and log scales ascend the ELBO (semi-amortised inference).

    The inner objective E_q[log_joint] + H(q) uses ``samples`` reparameterised draws, in antithetic pairs if that
    number is even, with noise fixed for the whole solve; the returned code uses new noise, so that the ELBO of the
    encoding is unbiased.

    Args:
        samples: draws per objective value.
        scale: initial standard deviation, if the start has no density.
        matched: whether the noise has mean exactly 0 and covariance exactly I, so that the expectation of a
            quadratic function is exact; needs an even number of samples, at least twice the elements of a code.

    >>> MeanField(samples=2).evaluations
    2
    """

    def __init__(self, samples: int = 1, scale: float = 0.1, matched: bool = False):
        super().__init__()
        if samples < 1 or not scale > 0:
            raise ValueError(f"Need samples >= 1 and scale > 0, got samples={samples}, scale={scale}.")
        self.evaluations = samples
        self.log_scale = math.log(scale)
        self.matched = matched

    def start(self, start: Code) -> Float[Tensor, "S B *U"]:
        if start.q is None:
            return torch.stack([start.z, torch.full_like(start.z, self.log_scale)], 2)
        loc, scale = point_of(start.q), spread_of(start.q)
        if loc.dim() < start.z.dim():
            loc, scale = loc.unsqueeze(0), scale.unsqueeze(0)
        return torch.stack([loc, scale.log()], 2)

    def noise(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B M *Z"]:
        return _noise(u[:, :, 0].detach(), self.evaluations, self.matched)

    def objective(self, u: Float[Tensor, "S B *U"], noise: Tensor | None, log_joint: LogJoint) -> Float[Tensor, "S B"]:
        assert noise is not None
        loc, log_scale = u[:, :, 0], u[:, :, 1]
        expected = _expected(log_joint, loc, log_scale.exp().unsqueeze(2) * noise)
        entropy = (log_scale + 0.5 * math.log(2 * math.pi * math.e)).flatten(2).sum(2)
        return expected + entropy

    def draw(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B *Z"]:
        return torch.randn_like(u[:, :, 0])

    def centre(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B *Z"]:
        return u[:, :, 0]

    def metric(self, u: Float[Tensor, "S B *U"], factor: Float[Tensor, "S B Z Z"]) -> Float[Tensor, "S B Q Z"]:
        precision = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
        variance = (2 * u[:, :, 1].flatten(2)).exp()  # 1 / precision at the optimum
        return torch.cat([factor, 1 / (1 + precision * variance).unsqueeze(2)], 2)

    def rescaled(self, v: Float[Tensor, "S B U"], metric: Float[Tensor, "S B Q Z"]) -> Float[Tensor, "S B U"]:
        factor, weight = metric[:, :, :-1], metric[:, :, -1]
        mean, log_scale = v.chunk(2, 2)
        return torch.cat([_times(factor, _times(factor.mT, mean)), weight * log_scale], 2)

    def code(self, likelihood: Likelihood, u: Float[Tensor, "S B *U"], draw: Tensor | None) -> Code:
        assert draw is not None
        loc, scale = u[:, :, 0], u[:, :, 1].exp()
        q = Independent(Normal(loc, scale, validate_args=False), len(likelihood.latent_shape), validate_args=False)
        z = loc + scale * draw
        return Code(z, log_q=q.log_prob(z), q=q)


class FullCovariance(MeanField):
    """A normal with a full covariance: its mean and Cholesky factor (log diagonal) ascend the ELBO.

    u holds the mean in its first row and the factor below. Codes must be vectors (Z of one dimension). For a
    linear-Gaussian decoder with ``matched`` noise, the optimum is the exact posterior.

    >>> from gae.inference import LBFGS, Ascent, Zeros
    >>> from gae.likelihood import LinearMixture
    >>> model, x = LinearMixture(1, 2, (5,)).double(), torch.randn(3, 5, dtype=torch.float64)
    >>> best = Ascent(Zeros(), LBFGS(), 100, grad_tol=1e-8, family=FullCovariance(4, matched=True))(model, x)
    >>> bool((best.log_joint - best.log_q - model.log_evidence(x).log_p).abs().max() < 1e-6)
    True
    """

    def start(self, start: Code) -> Float[Tensor, "S B U Z"]:
        if start.z.dim() != 3:
            raise ValueError(f"A full covariance needs vector codes (S, B, Z), got shape {tuple(start.z.shape)}.")
        if isinstance(start.q, torch.distributions.MultivariateNormal):
            loc, factor = start.q.mean, start.q.scale_tril
            if loc.dim() < 3:
                loc, factor = loc.unsqueeze(0), factor.unsqueeze(0)
            diagonal = factor.diagonal(dim1=-2, dim2=-1).log()
            below = factor.tril(-1)
        else:
            loc, diagonal = super().start(start).unbind(2)
            below = torch.zeros(*loc.shape, loc.shape[-1], dtype=loc.dtype, device=loc.device)
        return torch.cat([loc.unsqueeze(2), below + diagonal.diag_embed()], 2)

    def objective(self, u: Float[Tensor, "S B *U"], noise: Tensor | None, log_joint: LogJoint) -> Float[Tensor, "S B"]:
        assert noise is not None
        loc, factor, log_diagonal = _factor(u)
        expected = _expected(log_joint, loc, torch.einsum("sbij,sbmj->sbmi", factor, noise))
        return expected + (log_diagonal + 0.5 * math.log(2 * math.pi * math.e)).sum(2)

    def metric(self, u: Float[Tensor, "S B *U"], factor: Float[Tensor, "S B Z Z"]) -> Float[Tensor, "S B Q Z"]:
        return torch.cat([factor, _factor(u)[1].diagonal(dim1=-2, dim2=-1).unsqueeze(2)], 2)

    def rescaled(self, v: Float[Tensor, "S B U"], metric: Float[Tensor, "S B Q Z"]) -> Float[Tensor, "S B U"]:
        """With the density's factor C R, the curvature in R is I, and 1 + R² for the logarithms on its diagonal."""
        factor, diagonal = metric[:, :, :-1], metric[:, :, -1]
        rows = v.unflatten(2, (-1, diagonal.shape[2]))
        mean = _times(factor, _times(factor.mT, rows[:, :, 0]))
        in_r = (factor.mT @ _scaled_diagonal(rows[:, :, 1:].tril(), 1 / diagonal)).tril()
        own = (diagonal / factor.diagonal(dim1=-2, dim2=-1)).square()
        moved = factor @ _scaled_diagonal(in_r, own / (1 + own))
        return torch.cat([mean.unsqueeze(2), _scaled_diagonal(moved, 1 / diagonal)], 2).flatten(2)

    def code(self, likelihood: Likelihood, u: Float[Tensor, "S B *U"], draw: Tensor | None) -> Code:
        assert draw is not None
        loc, factor, _ = _factor(u)
        q = MultivariateNormal(loc, scale_tril=factor, validate_args=False)
        z = loc + (factor @ draw.unsqueeze(-1)).squeeze(-1)
        return Code(z, log_q=q.log_prob(z), q=q)


def _factor(u: Float[Tensor, "S B U Z"]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, Cholesky factor, and the logarithm of its diagonal."""
    log_diagonal = u[:, :, 1:].diagonal(dim1=-2, dim2=-1)
    return u[:, :, 0], u[:, :, 1:].tril(-1) + log_diagonal.exp().diag_embed(), log_diagonal


def _scaled_diagonal(matrix: Float[Tensor, "S B Z Z"], scale: Float[Tensor, "S B Z"]) -> Float[Tensor, "S B Z Z"]:
    """A matrix with its diagonal multiplied by a scale."""
    return matrix + (matrix.diagonal(dim1=-2, dim2=-1) * (scale - 1)).diag_embed()


def _times(matrix: Float[Tensor, "S B Z Z"], v: Float[Tensor, "S B Z"]) -> Float[Tensor, "S B Z"]:
    return (matrix @ v.unsqueeze(-1)).squeeze(-1)


def _expected(
    log_joint: LogJoint, loc: Float[Tensor, "S B *Z"], moves: Float[Tensor, "S B M *Z"]
) -> Float[Tensor, "S B"]:
    """The mean of a log joint density over M moves from ``loc``, with about ``BLOCK`` codes in each call."""
    blocks = moves.movedim(2, 0).split(max(1, BLOCK // max(1, loc.shape[:2].numel())))
    sums = [log_joint((loc + block).flatten(0, 1)).unflatten(0, (len(block), -1)).sum(0) for block in blocks]
    return torch.stack(sums).sum(0) / moves.shape[2]


def _noise(like: Float[Tensor, "S B *Z"], samples: int, matched: bool) -> Float[Tensor, "S B M *Z"]:
    halves, odd = divmod(samples, 2)
    width = like[0, 0].numel()
    if matched and (odd or halves < width):
        raise ValueError(f"Matched noise needs an even number of samples, {2 * width} or more here, got {samples}.")
    draws = torch.stack([torch.randn_like(like) for _ in range(samples if odd else halves)], 2)
    if matched:
        flat = draws.flatten(3)
        factor = torch.linalg.cholesky(flat.mT @ flat / halves)
        draws = torch.linalg.solve_triangular(factor.mT, flat, upper=True, left=False).view_as(draws)
    return draws if odd else torch.cat([draws, -draws], 2)
