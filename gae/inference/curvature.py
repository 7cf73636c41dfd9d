"""The curvature of -log_joint at codes: Gauss–Newton's products and matrix, the exact Hessian, and normals of it."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Num
from pyro.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Distribution
from torch.func import jvp, vjp, vmap

from gae.data.memory import VARIABLE, limit
from gae.inference.decoder import thrice_differentiable, twice_differentiable
from gae.inference.laws import NotFiniteError
from gae.likelihood import DecoderLikelihood, Likelihood
from gae.likelihood.door import checked, hidden

COLUMNS = 256  # directions at once
JACOBIANS = 2**24  # elements of the decoder's Jacobians at once


class _Linearised:
    """The linear maps of the curvature at z: v -> J v, J' v, and the symmetric H v and prior part of G v.

    ``slope`` is the gradient of -log q_r in the output, and ``diagonal`` that of H where H has no other elements.
    """

    def __init__(self, likelihood: Likelihood, x: Tensor, z: Tensor, k: Tensor | None):
        if not isinstance(likelihood, DecoderLikelihood):
            raise TypeError(f"{type(likelihood).__name__} has no single decoder output. Use `LBFGS()`.")
        self.z, self.outputs = z, thrice_differentiable(lambda z: likelihood.outputs(z, k))
        self.output, self._pull = vjp(self.outputs, z)  # type: ignore[misc]
        slope = _slope(lambda o: likelihood.log_likelihood(x, o, k))
        self.slope, self._hessian = vjp(slope, self.output)  # type: ignore[misc]
        self.diagonal = self._hessian(torch.ones_like(self.output))[0] if likelihood.separable else None
        _, self._prior = vjp(_slope(likelihood.prior.log_prob), z)  # type: ignore[misc]

    def push(self, v: Tensor) -> Tensor:
        return jvp(self.outputs, (self.z,), (v,))[1]

    def pull(self, v: Tensor) -> Tensor:
        return self._pull(v)[0]

    def hessian(self, v: Tensor) -> Tensor:
        return self._hessian(v)[0] if self.diagonal is None else self.diagonal * v

    def prior(self, v: Tensor) -> Tensor:
        return self._prior(v)[0]


def _slope(log_density: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def slope(at: Tensor) -> Tensor:
        total, pull = vjp(thrice_differentiable(lambda a: -log_density(a).sum()), at)  # type: ignore[misc]
        return pull(torch.ones_like(total))[0]

    return slope


def curvature(
    likelihood: Likelihood, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B *Z"], k: Int[Tensor, "S _"] | None = None
) -> Callable[[Tensor], Tensor]:
    """v -> G v of each row at z: Gauss–Newton curvature of -log q_r(x|z) plus the exact curvature of -log q_w(z)."""
    at = _Linearised(likelihood, x, z, k)
    return lambda v: at.pull(at.hessian(at.push(v))) + at.prior(v)


def curvature_matrix(
    likelihood: Likelihood, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B *Z"], k: Int[Tensor, "S _"] | None = None
) -> Float[Tensor, "S B U U"]:
    """G of each row at z; U is the number of elements of one code."""
    at, width = _Linearised(likelihood, x, z, k), z[0, 0].numel()
    basis = torch.eye(width, dtype=z.dtype, device=z.device).reshape(width, 1, 1, *z.shape[2:]).expand(width, *z.shape)
    columns = vmap(at.push, chunk_size=COLUMNS)(basis)
    hessian, prior = (vmap(map_, chunk_size=COLUMNS)(v) for map_, v in ((at.hessian, columns), (at.prior, basis)))
    return torch.einsum("usbo,vsbo->sbuv", columns.flatten(3), hessian.flatten(3)) + prior.flatten(3).movedim(0, -1)


def need_curved(
    engine: str,
    likelihood: Likelihood,
    x: Num[Tensor, "B *X"],
    z: Float[Tensor, "S B *Z"],
    k: Int[Tensor, "S _"] | None,
) -> None:
    """Raises TypeError if log q_r has no curvature in the decoder's output, as that of a Laplace head has none.

    Its Gauss–Newton matrix is that of the prior alone, whatever the decoder. One product with it shows that.
    """
    if hidden(z) or bool(x.isnan().all()):
        return
    with torch.no_grad(), twice_differentiable(likelihood):
        at = _Linearised(likelihood, x, z.detach().contiguous(), k)
        move = at.push(torch.ones_like(at.z))
        flat = bool((move != 0).any()) and not bool((at.hessian(move) != 0).any())
    if flat:
        raise TypeError(
            f"Cannot use `{engine}(curvature='gauss-newton')` with {type(likelihood).__name__}: log q(x|z) has no "
            "curvature in the decoder's output, so the matrix is that of the prior alone. Use another head, such as "
            "Gaussian, or `Ascent(family=MeanField())` for a density."
        )


def hessian(
    likelihood: Likelihood, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B *Z"], k: Int[Tensor, "S _"] | None = None
) -> Callable[[Tensor], Tensor]:
    """v -> -∇² log_joint v of each row at z."""
    _, pull = vjp(_slope(lambda z: likelihood.log_joint(x, z, k)), z)  # type: ignore[misc]
    return lambda v: pull(v)[0]


def derivatives(
    likelihood: Likelihood, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B Z"], k: Int[Tensor, "S _"] | None = None
) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B Z"], Float[Tensor, "S B Z Z"]]:
    """log_joint at vector codes, its gradient and its Hessian, in the graph; the Hessian costs Z backward passes."""
    with twice_differentiable(likelihood):
        if isinstance(likelihood, DecoderLikelihood) and likelihood.separable:
            value, grad, hessian = _through_output(likelihood, x, z, k)
        else:
            value, grad, hessian = _of_joint(likelihood, x, z, k)
    return value, grad, 0.5 * (hessian + hessian.mT)


def _of_joint(likelihood: Likelihood, x: Tensor, z: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The same, of any log_joint; the Hessian is not yet symmetrised."""

    def gradient(code: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = vjp(thrice_differentiable(lambda z: likelihood.log_joint(x, z, k)), code)  # type: ignore[misc]
        return pull(torch.ones_like(value))[0], value

    grad, pull, value = vjp(gradient, z, has_aux=True)  # type: ignore[misc]
    return value, grad, torch.stack([pull(direction)[0] for direction in _directions(z)], -2)


def _through_output(
    likelihood: DecoderLikelihood, x: Tensor, z: Tensor, k: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, where the elements of the output add up: J' H J with a diagonal H, and the outputs' own curvature."""
    at = _Linearised(likelihood, x, z, k)
    assert at.diagonal is not None
    prior = _slope(likelihood.prior.log_prob)

    def fall(code: Tensor, slope: Tensor) -> Tensor:
        return vjp(at.outputs, code)[1](slope)[0] + prior(code)

    grad, pull = vjp(fall, z, at.slope)  # type: ignore[misc]
    bent, columns = (torch.stack(parts) for parts in zip(*map(pull, _directions(z)), strict=True))
    jacobian = columns.flatten(3)
    curved = torch.einsum("usbo,vsbo->sbuv", jacobian, at.diagonal.flatten(2) * jacobian)
    value = likelihood.prior.log_prob(z) + likelihood.log_likelihood(x, at.output, k)
    return value, -grad, -curved - bent.permute(1, 2, 0, 3)


def _directions(z: Tensor) -> list[Tensor]:
    return [direction.expand_as(z) for direction in torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)]


@torch.no_grad()
@checked
def expansion(
    likelihood: Likelihood, x: Num[Tensor, "B *X"], z: Float[Tensor, "B *Z"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B Z"], Float[Tensor, "B Z Z"]]:
    """log_joint at codes z, its gradient and its Hessian; the dense Hessian costs Z decoder derivatives.

    Raises:
        ValueError: for codes that are not vectors.
    """
    if z.dim() != 2:
        raise ValueError(f"A dense Hessian needs vector codes (B, Z), got shape {tuple(z.shape)}. Use `lanczos`.")
    need_room_for_matrices(z, "Take fewer observations at a time, or use curvature='lanczos' in `laplace`.")
    rows = max(1, JACOBIANS // (z.shape[1] * likelihood.event_shape.numel()))
    pairs = zip(x.split(rows), z.detach().split(rows), strict=True)
    parts = zip(*(derivatives(likelihood, some, codes.unsqueeze(0)) for some, codes in pairs), strict=True)
    value, grad, hessian = (torch.cat([each[0] for each in part]) for part in parts)
    return value, grad, hessian


def need_finite(curvature: Float[Tensor, "*L B"]) -> None:
    """Raises NotFiniteError, with the first such sample, for values of a curvature that are not finite."""
    if hidden(curvature):
        return
    bad = ~torch.isfinite(curvature.detach()).flatten(0, -2).all(0)
    if bool(bad.any()):
        raise NotFiniteError(
            f"The curvature of sample {int(bad.nonzero()[0])} is not finite at its code ({int(bad.sum())} such "
            "samples): the decoder or its derivatives overflow there."
        )


def need_room_for_matrices(z: Float[Tensor, "*L Z"], remedy: str) -> None:
    """Raises ValueError if the curvature of codes as matrices takes more memory than ``gae.data.memory.limit()``."""
    size = 8 * z.numel() * z.shape[-1]
    if size > limit():
        raise ValueError(
            f"The curvature of {z.shape[:-1].numel()} codes of {z.shape[-1]} elements takes {size:,} bytes as matrices;"
            f" the limit is {limit():,} (the environment variable {VARIABLE}). {remedy}"
        )


def unit(distribution: Distribution) -> Tensor:
    """The standard deviations of a distribution over codes, the units of step sizes and precisions; 1 if unknown."""
    try:
        spread = distribution.stddev
    except NotImplementedError:
        return torch.ones(())
    return torch.where(spread.isfinite() & (spread > 0), spread, 1)


def normal_at(
    z: Float[Tensor, "*L Z"], precision: Float[Tensor, "*L Z Z"], prior: Distribution, floor: float
) -> MultivariateNormal:
    """The normal of mean z and the given precision, with eigenvalues of at least ``floor`` in units of the prior.

    Differentiable in z and in the precision. Computed in float64, since the precision may be ill-conditioned.
    """
    scale = unit(prior).to(z.device, torch.float64).expand(z.shape[-1])
    scaled = raised(precision.double() * scale * scale.unsqueeze(-1), floor)
    factor = MultivariateNormal(torch.zeros_like(scale), precision_matrix=scaled, validate_args=False).scale_tril
    return MultivariateNormal(z, scale_tril=(scale.unsqueeze(-1) * factor).to(z.dtype), validate_args=False)


def raised(matrix: Float[Tensor, "*L Z Z"], floor: float) -> Float[Tensor, "*L Z Z"]:
    """Symmetric matrices with their eigenvalues raised to at least ``floor``, once differentiable.

    The derivative is that of Daleckii and Krein: unlike ``eigh``'s own, it exists where eigenvalues coincide.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    low = torch.linalg.cholesky_ex(matrix.detach() - floor * identity)[1] != 0
    if not bool(low.any()):
        return matrix
    part = matrix[low]
    values, vectors = torch.linalg.eigh(part.detach())
    lifted = values.clamp_min(floor)
    rise, run = (a.unsqueeze(-1) - a.unsqueeze(-2) for a in (lifted, values))
    slope = torch.where(run == 0, (values > floor).to(values).unsqueeze(-1), rise / torch.where(run == 0, 1.0, run))
    move = vectors.mT @ (part - part.detach()) @ vectors  # 0, with the gradient of the matrix
    return matrix.index_put((low,), vectors @ (lifted.diag_embed() + slope * move) @ vectors.mT)
