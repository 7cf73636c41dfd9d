"""log p(x): the value that every bound is a bound of."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from gae.likelihood import FlatDistribution, Likelihood


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x) per sample, in nats, with its standard error (0 where it is exact)."""

    log_p: Float[Tensor, " B"]
    standard_error: Float[Tensor, " B"]


@torch.no_grad()
def importance_sampling(
    likelihood: Likelihood, x: Num[Tensor, "B *X"], proposal: Distribution, samples: int = 500, chunk: int = 100
) -> Evidence:
    """log 1/S Σ_s q(x, z_s) / proposal(z_s), z_s from the proposal: a lower bound of log p(x) in expectation.

    The standard error is that of the log, by the delta method: sd(w) / (mean(w) √S).

    Args:
        likelihood: the decoder and its prior.
        x: (B, *X).
        proposal: batch (B,) or (R, B), event Z; it must cover the posterior.
        samples: S, rounded up to a multiple of R.
        chunk: draws held in memory at once.

    Raises:
        ValueError: for fewer than two samples, or under a flat prior, where no density p(x) exists.

    >>> from gae.inference import ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> model, x = LinearMixture(1, 2, (5,)), torch.randn(3, 5)
    >>> exact = importance_sampling(model, x, model.posterior(x), samples=4)
    >>> bool((exact.log_p - model.log_evidence(x)).abs().max() < 1e-4)  # the exact posterior has no variance
    True
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, for a standard error, got {samples}.")
    if isinstance(likelihood.prior, FlatDistribution):
        raise ValueError("log p(x) does not exist under a flat prior. Use a proper prior such as `StandardNormal`.")
    rows = 1 if len(proposal.batch_shape) == 1 else proposal.batch_shape[0]
    log_weights = []
    draws, step = math.ceil(samples / rows), max(chunk // rows, 1)
    for start in range(0, draws, step):
        z = proposal.sample(torch.Size((min(step, draws - start),)))
        log_q = proposal.log_prob(z).reshape(-1, len(x))
        log_weights.append(likelihood.log_joint(x, z.reshape(-1, len(x), *likelihood.latent_shape)) - log_q)
    log_weight = torch.cat(log_weights)
    log_p = log_weight.logsumexp(0) - math.log(len(log_weight))
    relative = (log_weight - log_p).exp()
    return Evidence(log_p, relative.std(0) / math.sqrt(len(log_weight)))


def laplace(
    likelihood: Likelihood, x: Num[Tensor, "B *X"], z: Float[Tensor, "B *Z"], floor: float = 1e-2
) -> MultivariateNormal:
    """The normal around codes z whose precision is -∇²_z log_joint, with eigenvalues of at least ``floor``.

    Exact for linear-Gaussian decoders at the posterior mean; elsewhere a proposal for ``importance_sampling``.
    Codes must be vectors (Z of one dimension); the dense Hessian costs Z decoder derivatives per sample.
    """
    if z.dim() != 2:
        raise ValueError(f"laplace needs vector codes (B, Z), got shape {tuple(z.shape)}.")
    with torch.enable_grad():
        code = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(likelihood.log_joint(x, code.unsqueeze(0)).sum(), code, create_graph=True)
        rows = [torch.autograd.grad(g, code, retain_graph=True)[0] for g in grad.sum(0)]
    precision = -torch.stack(rows, 1).to(torch.float64)
    values, vectors = torch.linalg.eigh(0.5 * (precision + precision.mT))
    factor = vectors * values.clamp_min(floor).rsqrt().unsqueeze(1)
    covariance = factor @ factor.mT
    return MultivariateNormal(z.detach(), scale_tril=torch.linalg.cholesky(covariance).to(z.dtype), validate_args=False)
