"""Search for posterior mass that a proposal of importance sampling misses, which its own draws cannot show."""

import math

import torch
from jaxtyping import Bool, Float, Num
from pyro.distributions import MultivariateNormal
from torch import Size, Tensor
from torch.distributions import Distribution

from gae.evidence.laplace import laplace_approximation
from gae.evidence.mixture import NormalMixture
from gae.inference.curvature import unit
from gae.inference.laws import log_density
from gae.inference.modes import mode_search
from gae.inference.starts import Constant
from gae.likelihood import DecoderLikelihood, Likelihood

SHARE = 0.02  # of p(x), above which mass that a proposal misses makes its estimate a lower bound
RARE = 10.0  # at codes with weights of so many times p(x), 500 draws of the proposal are too few
ALL = 500
STARTS = 16  # ascents from draws of the prior, in search of other modes
DEFENCE = 0.2  # weight of the prior in a defended proposal


@torch.no_grad()
def misses_mass(
    likelihood: Likelihood,
    x: Num[Tensor, "B *X"],
    proposal: Distribution,
    log_p: Float[Tensor, " B"],
    samples: int,
    chunk: int = 100,
) -> tuple[Bool[Tensor, " B"], int]:
    """Whether more than 2 % of p(x) lies at codes that a proposal is too unlikely to draw, and the evaluations spent.

    Such are codes whose weights q(x, z) / proposal(z) are at least 10 times the estimate (of more than 500 draws, in
    proportion): the proposal has less than a tenth of their share of the posterior. Their share is the mean of the
    likelihood there over draws of the prior, which see broad posteriors and long tails; and Laplace's approximation
    at the modes that L-BFGS reaches from a few of these draws (of vector codes), which are sharp. Neither finds all
    modes, and the estimate is not changed. torch's global generator is restored.

    Args:
        likelihood: the decoder and its prior.
        x: (B, *X).
        proposal: a distribution, batch (B,) or (R, B), event Z.
        log_p: the estimate from its draws.
        samples: number of these draws, and of those of the prior.
        chunk: maximum number of draws in memory at once.
    """
    least = log_p + math.log(RARE * max(1.0, samples / ALL))
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        sizes = [min(chunk, samples - i) for i in range(0, samples, chunk)]
        parts, starts = [], []
        for size in sizes:
            z = likelihood.prior.sample(Size((size, len(x))))
            log_joint = likelihood.log_joint(x, z)
            rare = log_joint - _log_proposal(proposal, z) > least
            parts.append(torch.where(rare, log_joint - likelihood.prior.log_prob(z), -torch.inf).logsumexp(0))
            starts.append(z[:STARTS])
    log_mass = torch.stack(parts).logsumexp(0) - math.log(samples)
    if len(likelihood.latent_shape) != 1 or (isinstance(likelihood, DecoderLikelihood) and likelihood.stochastic):
        return log_mass - log_p > math.log(SHARE), samples
    modes, cost = _mass_of_modes(likelihood, x, proposal, torch.cat(starts)[:STARTS], least, log_p)
    return torch.maximum(log_mass, modes) - log_p > math.log(SHARE), samples + cost


def _log_proposal(proposal: Distribution, z: Float[Tensor, "S B *Z"]) -> Float[Tensor, "S B"]:
    """The log density of a proposal, or of the mixture of R of them, at codes that it need not have drawn."""
    if len(proposal.batch_shape) == 1:
        return log_density(proposal, z)
    return log_density(proposal, z.unsqueeze(1)).logsumexp(1) - math.log(proposal.batch_shape[0])


def _mass_of_modes(
    likelihood: Likelihood, x: Tensor, proposal: Distribution, starts: Tensor, least: Tensor, log_p: Tensor
) -> tuple[Float[Tensor, " B"], int]:
    """Laplace's approximation of log p(x) at the largest mode that the proposal misses; -inf if there is none."""
    number, width = len(starts), likelihood.latent_shape.numel()
    rows = x.repeat(number, *[1] * (x.dim() - 1))
    encoding = mode_search(Constant(starts.flatten(0, 1)))(likelihood, rows)
    z = encoding.point.unflatten(0, (number, len(x)))
    height = likelihood.log_joint(x, z)
    missed = height - _log_proposal(proposal, z) > least
    volume = 0.5 * width * math.log(2 * math.pi)
    broadest = volume + unit(likelihood.prior).log().expand(width).sum()  # of a mode with the curvature of the prior
    missed &= height + broadest - log_p > math.log(SHARE)
    mass = torch.full_like(height, -torch.inf)
    if missed.any():
        s, b = missed.nonzero().unbind(1)
        normal = laplace_approximation(likelihood, x[b], z[s, b])
        mass[s, b] = height[s, b] + volume + normal.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    assert encoding.solve is not None
    return mass.amax(0), round(number * float(encoding.solve.evaluations.double().mean()))


def defended(proposal: NormalMixture, prior: Distribution) -> NormalMixture:
    """A mixture of normals with a normal of the prior's moments as a further component, which bounds the weights.

    It is a defensive mixture (Hesterberg 1995): where the proposal has too little mass, a weight is at most that of a
    draw of the prior, divided by the weight of the component.
    """
    normals = proposal.component_distribution
    assert isinstance(normals, MultivariateNormal)
    loc, tril = normals.loc, normals.scale_tril
    try:
        centre = prior.mean.to(loc).expand_as(loc[:, :1])
    except NotImplementedError:
        centre = torch.zeros_like(loc[:, :1])
    scale = unit(prior).to(loc).expand_as(loc[:, :1]).diag_embed()
    logits = proposal.mixture_distribution.logits + math.log(1 - DEFENCE)
    weights = torch.cat([logits, torch.full_like(logits[:, :1], math.log(DEFENCE))], 1)
    return NormalMixture.of(weights, torch.cat([loc, centre], 1), torch.cat([tril, scale], 1))
