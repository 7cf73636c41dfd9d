"""The Laplace approximation as an engine: a normal around the code of another engine, of the curvature there."""

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
from gae.inference.curvature import curvature_matrix, derivatives, normal_at, unit
from gae.inference.decoder import need_fixed, twice_differentiable
from gae.inference.laws import NotFiniteError
from gae.likelihood import DecoderLikelihood, Likelihood
from gae.likelihood.distributions import Normal
from gae.likelihood.door import hidden

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
        TypeError: for a likelihood without a single decoder output, unless with ``curvature="hessian"``.
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
        for name, value, valid in (("covariance", covariance, COVARIANCES), ("curvature", curvature, CURVATURES)):
            if value not in valid:
                raise ValueError(f"{name} must be {' or '.join(map(repr, valid))}, got {value!r}.")
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
            with twice_differentiable(likelihood):
                precision = curvature_matrix(likelihood, x, z, k)
        if not hidden(precision):
            bad = ~torch.isfinite(precision.detach()).flatten(2).all(2).all(0)
            if bool(bad.any()):
                raise NotFiniteError(
                    f"The curvature of sample {int(bad.nonzero()[0])} is not finite at its code ({int(bad.sum())} such "
                    "samples): the decoder or its derivatives overflow there."
                )
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
        if self.curvature == "hessian":
            return
        if not isinstance(likelihood, DecoderLikelihood):
            raise TypeError(
                f"Cannot use `Laplace(curvature='gauss-newton')` with {type(likelihood).__name__}, which has no single "
                "decoder output. Use curvature='hessian'."
            )
        if k is None and likelihood.components > 1:
            raise TypeError(
                "Cannot use `Laplace(curvature='gauss-newton')` with a summed-out component. Use "
                "`Enumerate(Laplace(...))`, or curvature='hessian'."
            )

    def _need_one_code(self, z: Tensor) -> None:
        if len(z) > 1 and self.samples not in (None, 1):
            raise ValueError(
                f"`Laplace` draws several samples around one code for each observation, got samples={self.samples} and "
                f"{len(z)} codes from `{type(self.inner).__name__}`. Use `samples=1`."
            )


def _with_curvature(solve: Solve, samples: int, width: int) -> Solve:
    """The report of a solve for each of several draws, with the cost of one curvature; that of the others is 0."""
    cost = solve.evaluations + width
    rows = max(samples, len(cost))
    names = ("status", "steps", "grad_norm", "reconstruction", "spread")
    values = {name: getattr(solve, name) for name in names}
    repeated: dict[str, Any] = {name: None if v is None else v.expand(rows, *v.shape[1:]) for name, v in values.items()}
    evaluations = torch.cat([cost, cost.new_zeros(rows - len(cost), cost.shape[1])])
    trace = None if solve.trace is None else solve.trace.expand(-1, rows, -1)
    return replace(solve, **repeated, evaluations=evaluations, trace=trace)
