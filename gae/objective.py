"""Objectives, functions Encoding -> (B,) in nats to be maximised, and aggregates of their values over the data."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import kl_divergence

from gae.data.checks import positive
from gae.inference import Encoding

Objective = Callable[[Encoding], Tensor]
Aggregate = Callable[[Tensor], Tensor]

__all__ = ["elbo", "iwae", "joint", "laplace_evidence", "logsumexp", "mean", "minimum", "soft_minimum"]


def joint(encoding: Encoding) -> Float[Tensor, " B"]:
    """Log joint density log q_w(z) q_r(x|z) at the code, averaged over S: the GAE / MAP bound of the GAE note.

    For a discrete code it bounds log p(x) from below; for a continuous one it is a log density at a point, and may
    exceed log p(x) (ledger D02).

    >>> from gae.inference import Zeros
    >>> from gae.likelihood import LinearMixture
    >>> import torch
    >>> model = LinearMixture(1, 1, (1,))
    >>> joint(Zeros()(model, torch.zeros(3, 1))).detach()  # two standard normals at their modes: -log 2 pi
    tensor([-1.8379, -1.8379, -1.8379])
    """
    return encoding.log_joint.mean(0)


def laplace_evidence(encoding: Encoding) -> Float[Tensor, " B"]:
    """Laplace evidence, log q_w(z*) q_r(x|z*) + d/2 log 2π - ½ log det Λ, at the mode z* with the curvature Λ.

    ``joint`` under a proper prior has no maximiser: larger weights of the decoder and smaller codes always raise it.
    The two further terms, those of ledger D02, fix the scale. For linear-Gaussian models it is log p(x), so that its
    maximiser is probabilistic PCA; for others it is Laplace's approximation of log p(x), and no bound. With a diagonal
    covariance it is smaller: the determinant is that of the diagonal of Λ.

    At a mode, log_joint does not depend on z* to first order, but Λ does: for the exact gradient, the engine that finds
    the mode must pass gradients (``Unroll``, ``Implicit``); with ``Detach`` the derivative of Λ in z* is left out.

    Args:
        encoding: a code that is the mean of its normal q(z|x): from ``Laplace(..., samples=None)``, or for a
            linear-Gaussian model ``ClosedForm()``.

    Raises:
        ValueError: for codes without a density, draws of one, several codes for each observation, or components.

    >>> from gae.inference import Ascent, GaussNewton, Laplace, Zeros
    >>> from gae.likelihood import LinearMixture
    >>> import torch
    >>> model, x = LinearMixture(1, 2, (5,)).double(), torch.randn(3, 5, dtype=torch.float64)
    >>> engine = Laplace(Ascent(Zeros(), GaussNewton(), max_steps=2), samples=None)
    >>> bool((laplace_evidence(engine(model, x)) - model.log_evidence(x).log_p).abs().max() < 1e-9)
    True
    """
    q, z = encoding.q, encoding.z
    if q is None or encoding.k is not None or len(z) != 1 or not torch.equal(q.mean.expand_as(z), z):
        raise ValueError(
            f"Cannot use `laplace_evidence` with `{encoding.engine}`: it needs one code for each observation, without "
            "a component, and a normal q(z|x) around it. Use `Laplace(..., samples=None)` around an engine that "
            "ascends, or `iwae` for draws of a density."
        )
    return (encoding.log_joint - q.log_prob(z))[0]


def elbo(encoding: Encoding, beta: float = 1.0, analytic: bool = False) -> Float[Tensor, " B"]:
    """Evidence lower bound E_q[log q_r(x|z)] - KL(q(z|x) ‖ q_w(z)), with the KL times beta (Kingma & Welling 2014).

    Args:
        encoding: from an engine with a density (``log_q``).
        beta: weight of the KL (Higgins et al. 2017); only 1 gives the evidence lower bound.
        analytic: whether the KL is computed in closed form, by ``torch.distributions.kl_divergence``, instead of
            estimated from the same draws.

    Raises:
        ValueError: for an engine without a density q(z|x); with ``analytic``, for a KL without a closed form; for
            codes of a mixture unless beta = 1; for a beta that is negative or not finite.
    """
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be finite and not negative, got {beta}.")
    log_q = _density(encoding, "elbo")
    if not analytic and beta == 1.0:
        return (encoding.log_joint - log_q).mean(0)
    if encoding.k is not None:
        raise ValueError(
            "The KL over (k, z) of a mixture has no closed form and cannot be weighted. "
            "Use `analytic=False` and `beta=1`."
        )
    log_likelihood = (encoding.log_joint - encoding.log_prior).mean(0)
    kl = _analytic_kl(encoding) if analytic else (log_q - encoding.log_prior).mean(0)
    return log_likelihood - beta * kl


def iwae(encoding: Encoding) -> Float[Tensor, " B"]:
    """Importance-weighted bound log 1/S Σ_s q(x, z_s) / q(z_s|x), tighter with S (Burda et al. 2016, eq. 8).

    Raises:
        ValueError: for an engine without a density q(z|x).
    """
    log_weight = encoding.log_joint - _density(encoding, "iwae")
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def logsumexp(encoding: Encoding) -> Float[Tensor, " B"]:
    """Sum over the distinct values of a discrete code, log Σ_k q(x, k): with ``Enumerate``, log p(x).

    Raises:
        ValueError: for codes with a continuous part, without a discrete one, or that repeat, since their sum would
            count one mode several times.

    >>> from gae.inference import Enumerate
    >>> from gae.likelihood import LinearMixture
    >>> import torch
    >>> model, x = LinearMixture(3, 0, (2,)), torch.ones(4, 2)
    >>> bool((logsumexp(Enumerate()(model, x)) - model.log_evidence(x).log_p).abs().max() < 1e-5)
    True
    """
    if encoding.k is None or encoding.z.shape[2:].numel():
        raise ValueError(
            f"Cannot use `logsumexp` with codes of `{encoding.engine}` that are continuous: densities at points do not "
            "add up to log p(x), and a mode reached by S restarts or draws would count S times. `logsumexp` is for "
            "discrete codes only, from `Enumerate()`. Use `iwae` for an engine with a density q(z|x), else `joint`."
        )
    if not _distinct(encoding.k):
        raise ValueError(
            f"Cannot use `logsumexp` with `{encoding.engine}`: a sample has the same k more than once, which would "
            "be counted repeatedly. Use `Enumerate()`, or `iwae` for draws."
        )
    return encoding.log_joint.logsumexp(0)


def mean(values: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """The mean over the data."""
    return values.mean()


def minimum(values: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """The minimum over the data: the worst sample of the batch."""
    return values.min()


def soft_minimum(beta: float) -> Aggregate:
    """Soft minimum -1/β log mean exp(-β v), from the minimum (β → ∞) to the mean (β → 0): ledger D07, corrected.

    >>> import torch
    >>> round(float(soft_minimum(1e4)(torch.tensor([1.0, 2.0]))), 3)
    1.0
    """
    positive("beta", beta)

    def aggregate(values: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        least = values.detach().amin()
        least = torch.where(least.isfinite(), least, 0)
        power = -beta * (values - least)
        excess = power.expm1().mean()  # the mean of powers minus 1, accurate for a small beta
        return least - torch.where(excess < -0.5, power.exp().mean().log(), excess.log1p()) / beta

    return aggregate


def _distinct(k: Int[Tensor, "S B"]) -> bool:
    """Whether no sample repeats a component."""
    if bool((k == k[:, :1]).all()) and len(k[:, 0].unique()) == len(k):  # all components, the same for all samples
        return True
    return not bool((k.sort(0).values.diff(dim=0) == 0).any())


def _density(encoding: Encoding, name: str) -> Tensor:
    if encoding.log_q is None and encoding.q is not None:
        raise ValueError(
            f"Cannot use `{name}` with `{encoding.engine}`: its code is no draw of q(z|x). Use `samples=1`, or "
            "`laplace_evidence`."
        )
    if encoding.log_q is None:
        raise ValueError(
            f"Cannot use `{name}` with `{encoding.engine}`: it returns no density q(z|x). "
            "Use `joint`, or an engine with one: `Amortized` with a guide, `Ascent(family=MeanField())`, `ClosedForm`."
        )
    return encoding.log_q


def _analytic_kl(encoding: Encoding) -> Tensor:
    assert encoding.q is not None
    try:
        kl = kl_divergence(encoding.q, encoding.prior)
    except NotImplementedError as error:
        raise ValueError(
            f"No closed-form KL is known between q and the prior ({error or type(encoding.q).__name__}). "
            "Use `analytic=False`."
        ) from error
    return kl.mean(0) if kl.dim() == 2 else kl
