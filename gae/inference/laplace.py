"""Laplace approximations as engines: a normal around the code of another engine, or its log volume for large codes."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Num
from pyro.distributions import Independent
from torch import Tensor
from torch.distributions import Distribution

from gae.data.checks import at_least_one, positive
from gae.inference.ascent.family import Delta
from gae.inference.base import Code, Inference, Solve
from gae.inference.curvature import (
    curvature,
    curvature_matrix,
    derivatives,
    hessian,
    need_curved,
    need_finite,
    need_room_for_matrices,
    normal_at,
    unit,
)
from gae.inference.decoder import need_fixed, twice_differentiable
from gae.inference.lanczos import Krylov, lanczos, signs
from gae.likelihood import DecoderLikelihood, Likelihood
from gae.likelihood.distributions import Normal

COVARIANCES, CURVATURES = ("full", "diagonal"), ("gauss-newton", "hessian")


class Laplace(Inference):
    """Laplace approximation: the density N(z*, Λ⁻¹) around the code z* of another engine, Λ the curvature there.

    Λ is the curvature of -log q_w(z) q_r(x|z). For a linear-Gaussian decoder the density is the exact posterior after
    one Gauss–Newton step. Gradients pass through z* as far as ``inner`` lets them (``Unroll`` and ``Implicit``: through
    the mode; ``Detach``: not at all), and always reach Λ as a function of the decoder, the prior and z*.

    Args:
        inner: the engine of z*, such as an ``Ascent``; of a density, its mean.
        covariance: ``"full"``, or ``"diagonal"`` for 1 / diag(Λ), the best diagonal covariance for the quadratic
            expansion of log_joint; it is not the diagonal of Λ⁻¹.
        curvature: ``"gauss-newton"`` for Λ = JᵀHJ + the prior's curvature, with J the Jacobian of the decoder's output
            and H the curvature of -log q_r in that output (Schraudolph 2002): positive definite under a normal prior if
            log q_r is concave in the output, and equal to the Hessian for a piecewise linear decoder. ``"hessian"`` for
            the Hessian of -log_joint, which need not be positive definite.
        samples: S reparameterised draws for each observation, as ``elbo`` and ``iwae`` need them; None for z* itself,
            as ``laplace_evidence`` needs it, which is no draw and has no ``log_q``.
        floor: the least eigenvalue of Λ (for a diagonal covariance, the least element of its diagonal) in units of the
            prior's precision, or of 1 / z² if the prior has none; smaller and negative ones are raised to it.

    ``Solve.evaluations`` counts Λ as one decoder evaluation for each element of a code.

    Raises:
        ValueError: for codes that are not vectors; for several draws of each of several codes; for a decoder that is
            random or couples the samples of a batch.
        TypeError: for a likelihood without a single decoder output, or whose log density has no curvature in it, as a
            Laplace head's, unless with ``curvature="hessian"``.
        NotFiniteError: for a curvature that is not finite.

    >>> from gae.inference import Ascent, GaussNewton, Zeros
    >>> from gae.likelihood import LinearMixture
    >>> model, x = LinearMixture(1, 2, (5,)), torch.randn(3, 5)
    >>> encoding = Laplace(Ascent(Zeros(), GaussNewton(), max_steps=2), samples=4)(model, x)
    >>> bool((encoding.log_joint - encoding.log_q - model.log_evidence(x).log_p).abs().max() < 1e-4)
    True
    """

    def __init__(
        self,
        inner: Inference,
        covariance: Literal["full", "diagonal"] = "full",
        curvature: Literal["gauss-newton", "hessian"] = "gauss-newton",
        samples: int | None = 1,
        floor: float = 1e-2,
    ):
        super().__init__()
        _need_one_of("covariance", covariance, COVARIANCES)
        _need_one_of("curvature", curvature, CURVATURES)
        if samples is not None:
            at_least_one("samples", samples)
        self.inner, self.covariance, self.curvature, self.samples = inner, covariance, curvature, samples
        self.floor = positive("floor", floor)

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        self._refuse(likelihood, k)
        inner = self.inner.infer(likelihood, x, k)
        z, k = Delta().start(inner), inner.k if k is None else k
        self._need_one_code(z)
        need_fixed(likelihood, x, z, "A curvature")
        need_room_for_matrices(z, "Take fewer observations at a time, or use `LanczosLaplace` for the evidence alone.")
        q = self._normal(z, self._precision(likelihood, x, z, k), likelihood.prior)
        solve = None if inner.solve is None else _with_curvature(inner.solve, self.samples or 1, z.shape[2])
        if self.samples is not None:
            z = q.rsample((self.samples,)).flatten(0, 1)
        log_q = None if self.samples is None else q.log_prob(z)
        return Code(z, None if k is None else k.expand(z.shape[:2]), log_q, q, solve)

    def _precision(self, likelihood: Likelihood, x: Tensor, z: Tensor, k: Tensor | None) -> Float[Tensor, "S B Z Z"]:
        if self.curvature == "hessian":
            precision = -derivatives(likelihood, x, z, k)[2]
        else:
            need_curved("Laplace", likelihood, x, z, k)
            with twice_differentiable(likelihood):
                precision = curvature_matrix(likelihood, x, z, k)
        need_finite(precision.flatten(2).sum(2))
        return precision

    def _normal(self, z: Tensor, precision: Tensor, prior: Distribution) -> Distribution:
        if self.covariance == "full":
            return normal_at(z, precision, prior, self.floor)
        scale = unit(prior).to(z)
        diagonal = precision.diagonal(dim1=-2, dim2=-1) * scale.square()
        spread = scale * diagonal.clamp_min(self.floor).rsqrt()
        return Independent(Normal(z, spread, validate_args=False), 1, validate_args=False)

    def _refuse(self, likelihood: Likelihood, k: Tensor | None) -> None:
        """Raises an error for a likelihood whose curvature is no matrix, or that has no Gauss–Newton matrix."""
        if len(likelihood.latent_shape) != 1 or not likelihood.latent_shape.numel():
            raise ValueError(
                f"`Laplace` needs vector codes (S, B, Z), got codes of shape {tuple(likelihood.latent_shape)}. Flatten "
                "them in the decoder, or use `Ascent(family=MeanField())`."
            )
        if self.curvature == "gauss-newton":
            _need_outputs("Laplace", likelihood, k)

    def _need_one_code(self, z: Tensor) -> None:
        if len(z) > 1 and self.samples not in (None, 1):
            raise ValueError(
                f"`Laplace` draws several samples around one code for each observation, got samples={self.samples} and "
                f"{len(z)} codes from `{type(self.inner).__name__}`. Use `samples=1`."
            )


class LanczosLaplace(Inference):
    """The code z* of another engine with an estimate of log det Λ, Λ the curvature there, for ``laplace_evidence``.

    For large codes, of any shape: Λ, as in ``Laplace``, is never a matrix. log det Λ is the mean of vᵀ log(Λ) v over
    random signs v, by Lanczos quadrature (Ubaru et al. 2017), and its gradient that of wᵀ Λ v with constant w = Λ⁻¹ v,
    in expectation tr(Λ⁻¹ ∂Λ) (as in Dong et al. 2017). There is no density q(z|x) and no draw of one.

    ``Encoding.log_volume`` is ½ Z log 2π - ½ log det Λ, with its standard error ``volume_error`` over the probes.
    ``Solve.evaluations`` counts one decoder evaluation for each product with Λ.

    Args:
        inner: the engine of z*, such as an ``Ascent``; of a density, its mean.
        curvature: ``"gauss-newton"`` or ``"hessian"``, as in ``Laplace``.
        probes: number of random signs v for each observation.
        iterations: the most Lanczos steps; never more than a code has elements.
        tol: relative residual ‖Λ w - v‖ / ‖v‖ at which a recursion ends, which bounds the bias of the gradient.

    Raises:
        ValueError: for a decoder that is random or couples the samples of a batch; for a curvature that is not positive
            definite; for a recursion that has not reached ``tol``.
        TypeError: for a likelihood without a single decoder output, or whose log density has no curvature in it, as a
            Laplace head's, unless with ``curvature="hessian"``.
        NotFiniteError: for a curvature that is not finite.

    >>> from gae.inference import Ascent, GaussNewton, Zeros
    >>> from gae.likelihood import LinearMixture
    >>> from gae.objective import laplace_evidence
    >>> model, x = LinearMixture(1, 40, (50,)), torch.randn(3, 50)
    >>> encoding = LanczosLaplace(Ascent(Zeros(), GaussNewton(), max_steps=2), probes=50)(model, x)
    >>> error = laplace_evidence(encoding) - model.log_evidence(x).log_p
    >>> bool((error.abs() < 5 * encoding.volume_error + 1e-3).all())
    True
    """

    def __init__(
        self,
        inner: Inference,
        curvature: Literal["gauss-newton", "hessian"] = "gauss-newton",
        probes: int = 8,
        iterations: int = 100,
        tol: float = 1e-3,
    ):
        super().__init__()
        _need_one_of("curvature", curvature, CURVATURES)
        if probes < 2 or iterations < 1:
            raise ValueError(f"Need probes >= 2 and iterations >= 1, got {probes} and {iterations}.")
        self.inner, self.curvature, self.probes = inner, curvature, probes
        self.iterations, self.tol = iterations, positive("tol", tol)

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        if self.curvature == "gauss-newton":
            _need_outputs("LanczosLaplace", likelihood, k)
        inner = self.inner.infer(likelihood, x, k)
        z, k = Delta().start(inner), inner.k if k is None else k
        need_fixed(likelihood, x, z, "A curvature")
        if self.curvature == "gauss-newton":
            need_curved("LanczosLaplace", likelihood, x, z, k)
        log_det, evaluations = self._log_det(likelihood, x, z, k)
        volume = 0.5 * (z[0, 0].numel() * math.log(2 * math.pi) - log_det)
        error = volume.std(0) / math.sqrt(self.probes)
        solve = None if inner.solve is None else replace(inner.solve, evaluations=inner.solve.evaluations + evaluations)
        k = None if k is None else k.expand(z.shape[:2])
        return Code(z, k, solve=solve, log_volume=volume.mean(0).to(z.dtype), volume_error=error.detach().to(z.dtype))

    def _log_det(
        self, likelihood: Likelihood, x: Tensor, z: Tensor, k: Tensor | None
    ) -> tuple[Float[Tensor, "P S B"], Int[Tensor, "S B"]]:
        """The estimate of log det Λ by each probe, and the number of products with Λ."""
        rows = (self.probes * len(z), z.shape[1])
        at = z.repeat(self.probes, *[1] * (z.dim() - 1))
        every_k = None if k is None else k.repeat(self.probes, 1)
        curved = curvature if self.curvature == "gauss-newton" else hessian

        def products(at: Tensor) -> Callable[[Tensor], Tensor]:
            product = curved(likelihood, x, at, every_k)
            return lambda v: product(v.view_as(at).to(at.dtype)).reshape(*rows, -1).double()

        probe = signs(len(at), z[0]).reshape(*rows, -1)
        with twice_differentiable(likelihood):
            with torch.no_grad():
                krylov = lanczos(products(at.detach()), probe, min(self.iterations, probe.shape[2]), self.tol)
            self._need_solved(krylov, probe.shape[2])
            estimate = krylov.log_form
            if torch.is_grad_enabled():
                along = (krylov.solution * products(at)(probe)).sum(2)
                estimate = estimate + (along - along.detach())
        shape = (self.probes, *z.shape[:2])
        return estimate.view(shape), krylov.steps.view(shape).sum(0)

    def _need_solved(self, krylov: Krylov, width: int) -> None:
        bad = ~(krylov.lowest > 0).all(0)
        if bool(bad.any()):
            cure = "a proper prior" if self.curvature == "gauss-newton" else "curvature='gauss-newton'"
            raise ValueError(
                f"The curvature of sample {int(bad.nonzero()[0])} is not positive definite at its code "
                f"({int(bad.sum())} such samples). Use {cure}, or more steps to the mode."
            )
        bad = (krylov.residual > self.tol).any(0)
        if bool(bad.any()) and self.iterations < width:
            raise ValueError(
                f"{self.iterations} Lanczos steps leave a relative residual of {float(krylov.residual.max()):.2g} "
                f"(at most {self.tol:.2g} is allowed): the curvature of sample {int(bad.nonzero()[0])} is too "
                f"ill-conditioned ({int(bad.sum())} such samples). Raise `iterations` or `tol`, or use `Laplace`."
            )


def _need_one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{name} must be {' or '.join(map(repr, valid))}, got {value!r}.")


def _need_outputs(engine: str, likelihood: Likelihood, k: Tensor | None) -> None:
    """Raises TypeError for a likelihood without a Gauss–Newton matrix."""
    if not isinstance(likelihood, DecoderLikelihood):
        raise TypeError(
            f"Cannot use `{engine}(curvature='gauss-newton')` with {type(likelihood).__name__}, which has no single "
            "decoder output. Use curvature='hessian'."
        )
    if k is None and likelihood.components > 1:
        raise TypeError(
            f"Cannot use `{engine}(curvature='gauss-newton')` with a summed-out component. Use "
            f"`Enumerate({engine}(...))`, or curvature='hessian'."
        )


def _with_curvature(solve: Solve, samples: int, width: int) -> Solve:
    """The report of a solve for each of several draws, with the cost of one curvature; that of the others is 0."""
    cost = solve.evaluations + width
    rows = max(samples, len(cost))
    names = ("status", "steps", "grad_norm", "reconstruction", "spread", "acceptance")
    values = {name: getattr(solve, name) for name in names}
    repeated: dict[str, Any] = {name: None if v is None else v.expand(rows, *v.shape[1:]) for name, v in values.items()}
    evaluations = torch.cat([cost, cost.new_zeros(rows - len(cost), cost.shape[1])])
    trace = None if solve.trace is None else solve.trace.expand(-1, rows, -1)
    return replace(solve, **repeated, evaluations=evaluations, trace=trace)
