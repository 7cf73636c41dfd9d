"""Laplace's method: log p(x) from the height and curvature of the joint density at its mode."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Num
from pyro.distributions import MultivariateNormal
from torch import Tensor

from gae.evidence.base import Evidence, need_proper
from gae.evidence.mixture import NormalMixture
from gae.inference import Inference
from gae.inference.curvature import expansion, hessian, normal_at
from gae.inference.decoder import twice_differentiable
from gae.inference.lanczos import Krylov, lanczos, signs
from gae.inference.modes import highest_mode, mode_search, several_modes
from gae.inference.starts import Constant
from gae.likelihood import Likelihood
from gae.likelihood.door import checked

FEW = 5  # elements of a code, up to which the normals of a proposal are as wide as they are given


@checked
def laplace_approximation(
    likelihood: Likelihood, x: Num[Tensor, "B *X"], z: Float[Tensor, "B *Z"], floor: float = 1e-2
) -> MultivariateNormal:
    """Laplace approximation: a normal around z of precision -∇²_z log_joint, at least ``floor`` times the prior's.

    The floor applies to eigenvalues, in units of the prior's standard deviations, or of z if the prior has none.

    Exact for linear-Gaussian decoders at the posterior mean; otherwise a proposal for ``importance``.
    Codes must be vectors (Z of one dimension); the dense Hessian costs Z decoder derivatives per sample.
    """
    return normal_at(z.detach(), -expansion(likelihood, x, z)[2], likelihood.prior, floor)


def mode_approximation(likelihood: Likelihood, x: Num[Tensor, "B *X"], starts: int = 16) -> MultivariateNormal:
    """``laplace_approximation`` at the ``highest_mode``."""
    return laplace_approximation(likelihood, x, highest_mode(likelihood, x, starts)[0])


def mixture_of_modes(
    likelihood: Likelihood, x: Num[Tensor, "B *X"], starts: int = 32, wider: float = 1.5
) -> NormalMixture:
    """Mixture of the Laplace approximations at ``several_modes``.

    Each start is a component, weighted by its Laplace evidence, so a proposal covers a posterior of several modes as
    far as some start reaches them.

    Args:
        likelihood: the decoder and its prior.
        x: (B, *X).
        starts: number of components, of which all but the first start from ``likelihood.initial``.
        wider: factor of the standard deviations: a posterior has heavier tails than the normal at its mode. For codes
            of more than 5 elements its excess over 1 falls as the root of their number, since the variance of the
            weights would grow exponentially with it.
    """
    factor = 1 + (wider - 1) * min(1.0, math.sqrt(FEW / likelihood.latent_shape.numel()))
    rows, z = x.repeat(starts, *[1] * (x.dim() - 1)), several_modes(likelihood, x, starts)[0].flatten(0, 1)
    normals = laplace_approximation(likelihood, rows, z)
    height = likelihood.log_joint(rows, z.unsqueeze(0))[0]
    volume = normals.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    weights, loc, tril = (
        part.unflatten(0, (starts, len(x))).transpose(0, 1)
        for part in (height + volume, normals.loc, factor * normals.scale_tril)
    )
    return NormalMixture.of(weights, loc, tril)


@checked
def laplace(
    likelihood: Likelihood,
    x: Num[Tensor, "B *X"],
    mode: Inference | None = None,
    curvature: Literal["dense", "lanczos"] = "dense",
    probes: int = 16,
    iterations: int = 30,
) -> Evidence:
    """Laplace's method, log p(x) ≈ max_z log q(x, z) + (Z/2) log 2π - ½ log det(-∇²_z log q(x, z)).

    Exact for linear-Gaussian decoders (ledger D02). Otherwise an approximation, neither a bound nor consistent;
    ``standard_error`` does not include its error.

    Args:
        likelihood: the decoder and its prior.
        x: (B, *X).
        mode: the engine that finds the maximum; by default L-BFGS from the ``highest_mode``.
        curvature: ``"dense"`` for the Hessian as a matrix; ``"lanczos"`` for its products with vectors only, by
            stochastic Lanczos quadrature (Ubaru et al. 2017), for high-dimensional codes. The sampling error of the
            quadrature is in ``standard_error``.
        probes: random directions of the quadrature.
        iterations: Lanczos steps, at most as many as a code has elements.

    Raises:
        ValueError: under a flat prior; for codes that are not maxima, naming the first such sample.

    >>> from gae.likelihood import LinearMixture
    >>> model, x = LinearMixture(1, 2, (5,)).double(), torch.randn(3, 5, dtype=torch.float64)
    >>> bool((laplace(model, x).log_p - model.log_evidence(x).log_p).abs().max() < 1e-8)
    True
    """
    need_proper(likelihood)
    if curvature not in ("dense", "lanczos"):
        raise ValueError(f"curvature must be 'dense' or 'lanczos', got {curvature!r}.")
    if probes < 2 or iterations < 1:
        raise ValueError(f"Need probes >= 2 and iterations >= 1, got {probes} and {iterations}.")
    search = 0
    with torch.no_grad():
        if mode is None:
            start, search = highest_mode(likelihood, x)
            mode = mode_search(Constant(start), max_steps=200, grad_tol=1e-9)
        encoding = mode(likelihood, x)
    z, solve = encoding.point, encoding.solve
    search += 0 if solve is None else round(float(solve.evaluations.sum(0).double().mean()))
    width = z[0].numel()
    volume = 0.5 * width * math.log(2 * math.pi)
    with torch.no_grad():
        height = likelihood.log_joint(x, z.unsqueeze(0))[0]
    if curvature == "dense":
        eigenvalues = torch.linalg.eigvalsh(-expansion(likelihood, x, z)[2].double())
        _need_peak(eigenvalues[:, 0])
        log_det, error, cost = eigenvalues.log().sum(1), torch.zeros_like(height), width + 1
    else:
        krylov = _krylov(likelihood, x, z, probes, min(iterations, width))
        _need_peak(krylov.lowest.amin(0))
        log_det, error = krylov.log_form.mean(0), 0.5 * krylov.log_form.std(0) / math.sqrt(probes)
        cost = probes * min(iterations, width)
    return Evidence(height + volume - 0.5 * log_det.to(height.dtype), error.to(height.dtype), None, search + cost)


def _need_peak(lowest: Tensor) -> None:
    bad = ~(lowest > 0)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"The code of sample {first} is not a maximum of log_joint: its curvature has the eigenvalue "
            f"{float(lowest[first]):.3g} ({int(bad.sum())} such samples). Pass an engine that converges as `mode`, or "
            "use `importance` or `ais`."
        )


def _krylov(likelihood: Likelihood, x: Tensor, z: Tensor, probes: int, iterations: int) -> Krylov:
    """Lanczos' recursions of -∇² log_joint from random signs, (P, B)."""
    code = z.detach().repeat(probes, *[1] * z.dim()).view(probes, *z.shape)
    with twice_differentiable(likelihood):
        product = hessian(likelihood, x, code)
        return lanczos(
            lambda v: product(v.view_as(code).to(code.dtype)).flatten(2).double(),
            signs(probes, z).flatten(2),
            iterations,
        )
