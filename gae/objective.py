"""Objectives, functions Encoding -> (B,) in nats to be maximised, and aggregates of their values over the data."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import kl_divergence

from gae.data.checks import positive
from gae.inference import Encoding
from gae.inference.laws import score
from gae.likelihood import CodebookDistribution

Objective = Callable[[Encoding], Tensor]
Aggregate = Callable[[Tensor], Tensor]

__all__ = [
    "elbo",
    "iwae",
    "joint",
    "laplace_evidence",
    "logsumexp",
    "mean",
    "minimum",
    "monte_carlo_em",
    "soft_minimum",
    "stepwise_elbo",
    "wake_sleep",
    "wake_wake",
]


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
    the mode must pass gradients (``Unroll``, ``Implicit``); with ``Detach`` the derivative of Λ in z* is left out. Away
    from a mode an exact Hessian may not be positive definite; ``Laplace(floor=...)`` then raises its eigenvalues.

    Args:
        encoding: a code that is the mean of its normal q(z|x), from ``Laplace(..., samples=None)``, or for a
            linear-Gaussian model ``ClosedForm()``; or a large code with an estimate of log det Λ, from
            ``LanczosLaplace``, whose standard error is ``encoding.volume_error``.

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
    if encoding.log_volume is not None and encoding.k is None and len(z) == 1:
        return (encoding.log_joint + encoding.log_volume)[0]
    if q is None or encoding.k is not None or len(z) != 1 or not torch.equal(q.mean.expand_as(z), z):
        raise ValueError(
            f"Cannot use `laplace_evidence` with `{encoding.engine}`: it needs one code for each observation, without "
            "a component, and a normal q(z|x) around it. Use `Laplace(..., samples=None)` around an engine that "
            "ascends (`LanczosLaplace` for large codes), or `iwae` for draws of a density."
        )
    return (encoding.log_joint - q.log_prob(z))[0]


def elbo(encoding: Encoding, beta: float = 1.0, analytic: bool = False, gradient: str = "total") -> Float[Tensor, " B"]:
    """Evidence lower bound E_q[log q_r(x|z)] - KL(q(z|x) ‖ q_w(z)), with the KL times beta (Kingma & Welling 2014).

    Args:
        encoding: from an engine with a density (``log_q``).
        beta: weight of the KL (Higgins et al. 2017); only 1 gives the evidence lower bound.
        analytic: whether the KL is computed in closed form, by ``torch.distributions.kl_divergence``, instead of
            estimated from the same draws.
        gradient: "total", the derivative of the value, or "stl", sticking the landing (Roeder et al. 2017): log q(z|x)
            depends on the parameters of q through the draws z alone. The value and the expected gradient are the
            same, and at the exact posterior the gradient in the parameters of q is 0 for each draw. First derivatives
            only.

    Raises:
        ValueError: for an engine without a density q(z|x); with ``analytic``, for a KL without a closed form or for
            gradient="stl"; for codes of a mixture unless beta = 1 and gradient="total"; for a beta that is negative or
            not finite; for an unknown gradient.
    """
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be finite and not negative, got {beta}.")
    _need_gradient(gradient, "stl")
    if gradient == "stl" and analytic:
        raise ValueError('gradient="stl" needs draws of log q(z|x), got analytic=True. Use `analytic=False`.')
    log_q = _density(encoding, "elbo")
    if gradient == "stl":
        log_q = _through_draws(encoding, log_q)[0]
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


def iwae(encoding: Encoding, gradient: str = "total") -> Float[Tensor, " B"]:
    """Importance-weighted bound log 1/S Σ_s q(x, z_s) / q(z_s|x), tighter with S (Burda et al. 2016, eq. 8).

    Args:
        encoding: from an engine with a density (``log_q``).
        gradient: "total", the derivative of the value, or "dreg", doubly reparameterised (Tucker et al. 2019, eq. 8):
            the gradient through the draws z_s has the squared normalised weights, and log q(z|x) no other gradient;
            the gradient of the decoder is that of "total". The value and the expected gradient are the same; the
            signal-to-noise ratio for the parameters of q grows with S instead of falling (Rainforth et al. 2018). First
            derivatives only; costs one more backward pass through the decoder to the codes.

    Raises:
        ValueError: for an engine without a density q(z|x); with gradient="dreg", for codes of a mixture and for an
            encoding cut from another one; for an unknown gradient.
    """
    _need_gradient(gradient, "dreg")
    log_q = _density(encoding, "iwae")
    if gradient == "total":
        return _log_mean(encoding.log_joint - log_q)
    log_q, slope_q = _through_draws(encoding, log_q)
    log_weight = encoding.log_joint - log_q
    bound = _log_mean(log_weight)  # its gradient through z_s has the weight of s, once
    if not (encoding.z.requires_grad and torch.is_grad_enabled()):
        return bound
    slope = _slope(encoding)
    weight = _normalised(log_weight)
    return bound + ((weight.square() - weight) * _along(slope - slope_q, encoding.z)).sum(0)


def stepwise_elbo(encoding: Encoding) -> Float[Tensor, " B"]:
    """Mean of the ELBOs after each step of an ascent, which trains a learned step (Marino et al. 2018, algorithm 1).

    Each of the T bounds lies below log p(x), and so does their mean. The paper trains the decoder by the last of them
    only; here both networks maximise the mean.

    Raises:
        ValueError: for an engine without a density q(z|x); for an ascent without ``trace=True``; for a gradient through
            an ascent whose steps are not all in the graph.
    """
    last = (encoding.log_joint - _density(encoding, "stepwise_elbo")).mean(0)
    solve = encoding.solve
    if solve is None or solve.trace is None:
        raise ValueError(
            f"Cannot use `stepwise_elbo` with `{encoding.engine}` here: it reports no bound for each step. Use "
            "`Ascent(..., family=MeanField(), trace=True)` with at least one step, or `elbo`."
        )
    if solve.path is None and last.requires_grad:
        raise ValueError(
            "`stepwise_elbo` needs every step of the ascent in the graph. Use `adjoint=Unroll()`, or `elbo` to train "
            "by the last point."
        )
    bounds = solve.trace if solve.path is None else solve.path
    return torch.cat([bounds[1:].mean(1), last.unsqueeze(0)]).mean(0)


def monte_carlo_em(encoding: Encoding) -> Float[Tensor, " B"]:
    """Monte Carlo EM (Hoffman 2017): the decoder ascends ``joint`` at the states of ``MCMC``, the encoder its own ELBO.

    At posterior draws the decoder's gradient is that of log p(x), without bias (Fisher's identity). The value is that
    of ``joint``; its gradient is not, since the two networks have different objectives.

    Raises:
        ValueError: for a gradient with another engine.
    """
    value = joint(encoding)
    path = None if encoding.solve is None or encoding.z.requires_grad else encoding.solve.path
    if path is not None:
        bound = path.mean((0, 1))
        return value + (bound - bound.detach())
    if torch.is_grad_enabled():
        raise ValueError(
            f"`monte_carlo_em` needs the last states of chains, and the ELBO of the draws that they start from, which "
            f"`{encoding.engine}` does not give. Use `MCMC(Amortized(guide), HMC(rate))`."
        )
    return value


def wake_wake(encoding: Encoding) -> Float[Tensor, " B"]:
    """Reweighted wake-sleep with wake phases only: the decoder ascends ``iwae``, the encoder Σ_s w_s log q(z_s|x).

    With normalised importance weights w_s, which are constants, the encoder lowers an estimate of KL(p(z|x) ‖ q(z|x))
    (Bornschein & Bengio 2015; "wake-wake" of Le et al. 2019). Both estimates have a bias that falls with S. The value
    is that of ``iwae``; its gradient is not, since the two networks have different objectives.

    Raises:
        ValueError: for an engine without a density q(z|x); for draws that depend on the encoder; for a single draw,
            whose weight is always 1.
    """
    log_q = _density(encoding, "wake_wake")
    if encoding.z.requires_grad:
        raise ValueError(
            f"`wake_wake` scores constant draws, but those of `{encoding.engine}` depend on parameters, which its "
            "gradient would reach twice. Use `DetachedDraws(engine)`."
        )
    if len(log_q) < 2:
        raise ValueError(
            "`wake_wake` compares draws, got S=1, which has the weight 1 everywhere. Use samples=5 or more."
        )
    log_weight = encoding.log_joint - log_q.detach()
    wake = (_normalised(log_weight) * log_q).sum(0)
    return _log_mean(log_weight) + (wake - wake.detach())


def wake_sleep(encoding: Encoding) -> Float[Tensor, " B"]:
    """Wake-sleep (Hinton et al. 1995): the decoder ascends ``iwae``, the encoder log q(z|x) of draws of the model.

    In its sleep phase the encoder lowers E KL(p(z|x) ‖ q(z|x)) over observations x ~ p(x) of the model, not of the
    data, without bias ("wake-sleep" of Le et al. 2019; with a single draw, the decoder's phase is the original one).
    The value is that of ``iwae``; its gradient is not, since the two networks have different objectives.

    Raises:
        ValueError: for an engine without a density q(z|x); for a gradient with draws that depend on the encoder, or
            without draws of the model.
    """
    log_q = _density(encoding, "wake_sleep")
    asleep = encoding.asleep
    if torch.is_grad_enabled() and (asleep is None or encoding.z.requires_grad):
        raise ValueError(
            f"`wake_sleep` needs constant draws, and log q(z|x) of draws of the model, which `{encoding.engine}` does "
            "not give. Use `DetachedDraws(engine, sleep=True)`."
        )
    value = _log_mean(encoding.log_joint - log_q.detach())
    return value if asleep is None else value + (asleep - asleep.detach())[0]


def logsumexp(encoding: Encoding) -> Float[Tensor, " B"]:
    """Sum over the distinct values of a discrete code, log Σ_k q(x, k): with ``Enumerate``, log p(x).

    The code is the component of a mixture of points, or codebook vectors.

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
    discrete = isinstance(encoding.prior, CodebookDistribution)
    if not discrete and (encoding.k is None or encoding.z.shape[2:].numel()):
        raise ValueError(
            f"Cannot use `logsumexp` with codes of `{encoding.engine}` that are continuous: densities at points do not "
            "add up to log p(x), and a mode reached by S restarts or draws would count S times. `logsumexp` is for "
            "discrete codes only, from `Enumerate()`. Use `iwae` for an engine with a density q(z|x), else `joint`."
        )
    name, k = ("code", _numbered(encoding.z)) if encoding.k is None else ("k", encoding.k)
    if not _distinct(k):
        raise ValueError(
            f"Cannot use `logsumexp` with `{encoding.engine}`: a sample has the same {name} more than once, which "
            "would be counted repeatedly. Use `Enumerate()`, or `iwae` for draws."
        )
    return _log_sum(encoding.log_joint)


def mean(values: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """The mean over the data, of which the mean over a batch is an unbiased estimate.

    >>> import torch
    >>> mean(torch.tensor([1.0, 2.0, 6.0]))
    tensor(3.)
    """
    return values.mean()


def minimum(values: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """The minimum over the data: the worst sample of the batch.

    >>> import torch
    >>> minimum(torch.tensor([1.0, 2.0, 6.0]))
    tensor(1.)
    """
    return values.min()


def soft_minimum(beta: float, reduction: str = "mean") -> Aggregate:
    """Soft minimum, -1/β log mean exp(-β v) or -1/β log Σ exp(-β v): ledger D07, corrected.

    The first lies between the minimum (β → ∞) and the mean (β → 0). The second lies below the minimum, to which it
    tends as β → ∞, by at most log B / β. They are log B / β apart, and their gradient is the same: that of a mean with
    the weights softmax(-β v), largest for the worst samples. B is the size of the batch: for a soft minimum over the
    data, train with batches that hold all of them.

    Args:
        beta: inverse temperature β.
        reduction: "mean" or "sum", of the exponentials.

    Raises:
        ValueError: for a beta that is not positive, or an unknown reduction.

    >>> import torch
    >>> values = torch.tensor([1.0, 2.0, 6.0])
    >>> [round(float(soft_minimum(beta)(values)), 3) for beta in (1e-3, 1.0, 1e3)]
    [2.998, 1.781, 1.001]
    >>> [round(float(soft_minimum(beta, "sum")(values)), 3) for beta in (1.0, 1e3)]
    [0.682, 1.0]

    The centre of three points that maximises their worst log density is the middle of their range:

    >>> from functools import partial
    >>> from gae import Autoencoder
    >>> from gae.inference import Argmax
    >>> from gae.likelihood import LinearMixture
    >>> from gae.training import fit
    >>> model = Autoencoder(LinearMixture(1, 0, (1,)), Argmax(), joint, soft_minimum(100.0, "sum"))
    >>> lbfgs = partial(torch.optim.LBFGS, line_search_fn="strong_wolfe")
    >>> _ = fit(model, torch.tensor([[0.0], [1.0], [6.0]]), epochs=5, optimizer=lbfgs, progress=False)
    >>> round(model.likelihood.means.item(), 2)
    3.0
    """
    positive("beta", beta)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"Unknown reduction {reduction!r}. Valid reductions: mean, sum.")
    return partial(_soft_minimum, beta=beta, reduction=reduction)


def _soft_minimum(values: Float[Tensor, " B"], beta: float, reduction: str) -> Float[Tensor, ""]:
    least = values.detach().amin()
    least = torch.where(least.isfinite(), least, 0)
    power = -beta * (values - least)
    excess = power.expm1().mean()  # the mean of powers minus 1, accurate for a small beta
    soft = least - torch.where(excess < -0.5, power.exp().mean().log(), excess.log1p()) / beta
    return soft if reduction == "mean" else soft - math.log(len(values)) / beta


def _distinct(k: Int[Tensor, "S _"]) -> bool:
    """Whether no sample repeats a component."""
    if bool((k == k[:, :1]).all()) and len(k[:, 0].unique()) == len(k):  # all components, the same for all samples
        return True
    return not bool((k.sort(0).values.diff(dim=0) == 0).any())


def _numbered(z: Float[Tensor, "S B *Z"]) -> Int[Tensor, "S _"]:
    """Equal numbers for equal codes; one column if all samples have the same codes, as in an enumeration."""
    rows = z[:, :1] if bool((z == z[:, :1]).all()) else z
    return rows.flatten(2).flatten(0, 1).unique(dim=0, return_inverse=True)[1].view(rows.shape[:2])


def _need_gradient(gradient: str, other: str) -> None:
    if gradient not in ("total", other):
        raise ValueError(f"Unknown gradient {gradient!r}. Valid gradients: total, {other}.")


def _log_sum(log_weight: Float[Tensor, "S B"]) -> Float[Tensor, " B"]:
    """log Σ_s exp(log_weight), where weights that rounding loses beside the largest have no gradient.

    As subnormal numbers, they would slow the gradient several times on some processors.
    """
    return log_weight.clamp(min=log_weight.detach().amax(0) + math.log(_lost(log_weight))).logsumexp(0)


def _log_mean(log_weight: Float[Tensor, "S B"]) -> Float[Tensor, " B"]:
    return _log_sum(log_weight) - math.log(len(log_weight))


def _normalised(log_weight: Float[Tensor, "S B"]) -> Float[Tensor, "S B"]:
    """Weights of sum 1, as constants; zero where ``_log_sum`` has no gradient."""
    weight = log_weight.detach().softmax(0)
    return torch.where(weight < _lost(weight), 0, weight)


def _lost(weight: Tensor) -> float:
    """A share of a sum that rounding loses, also if there are thousands."""
    return torch.finfo(weight.dtype).eps ** 2


def _through_draws(
    encoding: Encoding, log_q: Float[Tensor, "S B"]
) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B *Z"]]:
    """log q(z|x) with the gradient through the draws z alone, and its slope in z."""
    if encoding.k is not None or encoding.q is None:
        raise ValueError(
            f"A gradient through the draws needs continuous codes of a density q(z|x), which `{encoding.engine}` does "
            'not return. Use gradient="total".'
        )
    slope = score(encoding.q, encoding.z)
    return log_q.detach() + _along(slope, encoding.z), slope


def _slope(encoding: Encoding) -> Float[Tensor, "S B *Z"]:
    """∂ log_joint / ∂z, as a constant."""
    total, slope = encoding.log_joint.sum(), None
    if total.requires_grad:
        (slope,) = torch.autograd.grad(total, encoding.z, retain_graph=True, allow_unused=True)
    if slope is None:
        raise ValueError(
            'gradient="dreg" needs the derivative of log_joint in the codes z, but the log_joint of this encoding was '
            "not computed from its z. Encode x itself instead of taking rows of another encoding."
        )
    return slope


def _along(slope: Float[Tensor, "S B *Z"], z: Float[Tensor, "S B *Z"]) -> Float[Tensor, "S B"]:
    """Zeros with the gradient ``slope`` in z."""
    return (slope.detach() * (z - z.detach())).flatten(2).sum(2)


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
