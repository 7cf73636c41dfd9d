"""Non-negative matrix factorisation, with codes z >= 0 and parts W >= 0, under Gaussian or Poisson likelihoods."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints

from gae.data.mapped import refuse_rows
from gae.likelihood.base import LogJoint
from gae.likelihood.counts import Counts, Poisson
from gae.likelihood.heads import Gaussian, Head
from gae.likelihood.priors import Flat

FLOOR = 1e-7  # lower bound of Poisson parts, relative to the largest: a rate of 0 would exclude x > 0
NOTHING = 1e-6  # initial parts below this, relative to the largest entry, count as 0
SWEEPS, SETTLED = 200, 1e-6  # of least squares: maximum number of sweeps, and relative change for convergence
NEWTON_PARTS, NEWTON_SWEEPS = 32, 3  # of a Newton step for Poisson codes, whose cost grows with the square of its parts
HESSIANS = 2**22  # elements of Hessians in memory
OVERRELAXATION = 1.9  # power of the factors that update Poisson parts
PART_SWEEPS = 2  # of an M-step: more of them cost more than the epochs that they save


@dataclass(frozen=True)
class Products:
    """Sufficient statistics of codes z and data x for the M-step of the parts, in float64; they add over batches."""

    own: Float[Tensor, "Z *_"]  # zᵀz (Z, Z) for Gaussian, Σ_n z_n (Z,) for Poisson likelihoods
    cross: Float[Tensor, "Z D"]  # zᵀx, or zᵀ(x / zW)

    def __add__(self, other: "Products") -> "Products":
        return Products(self.own + other.own, self.cross + other.cross)


class _Parts(nn.Module):
    """Linear decoder z |weights|, (N, *X): the absolute value keeps parts non-negative under any optimiser."""

    def __init__(self, latent: int, event_shape: Size):
        super().__init__()
        self.event_shape = event_shape
        self.weights = nn.Parameter(torch.rand(latent, event_shape.numel()))

    def forward(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N *X"]:
        return (z @ self.weights.abs()).unflatten(1, self.event_shape)


class NonNegativeLinear(Head):
    """Base class of linear decoders z W with parts W >= 0 and codes z >= 0 (Lee & Seung 1999).

    The prior is 1 on the positive orthant and 0 elsewhere: ``log_joint`` is log q_r(x|z) for z >= 0, in nats with every
    constant, and -inf for a code with a negative entry.

    Args:
        latent: Z, the number of parts.
        event_shape: X; D is its number of elements.
    """

    decoder: _Parts
    initialized: Tensor

    def _build_parts(self, latent: int, event_shape: Size | tuple[int, ...]) -> _Parts:
        if latent < 1 or not event_shape:
            raise ValueError(
                f"Need latent >= 1 and an event of at least one dimension, got {latent} and {tuple(event_shape)}."
            )
        return _Parts(latent, Size(event_shape))

    def _register_initialized(self) -> None:
        self.register_buffer("initialized", torch.tensor(False))

    @property
    def parts(self) -> Float[Tensor, "Z *X"]:
        """The parts W >= 0."""
        return self._matrix().unflatten(1, self.event_shape)

    def _matrix(self) -> Tensor:
        return self.decoder.weights.abs()

    @torch.no_grad()
    def initialize(self, x: Num[Tensor, "N *X"], seed: int) -> None:
        """Initialises parts by NNDSVD, with zeros set to the mean of x (Boutsidis & Gallopoulos 2008; "nndsvda").

        If Z > min(N, D), parts are drawn as √(mean(x) / Z) |N(0, 1)| instead. Does nothing once initialised.

        Raises:
            ValueError: for negative values, as scikit-learn's ``NMF``, since z W >= 0 cannot approximate them.
        """
        name, remedy = type(self).__name__, "Subtract each feature's minimum, or use PCA."
        refuse_rows(x, lambda rows: rows < 0, f"Negative values in data: {name} factorises x >= 0", remedy)
        if self.initialized:
            return
        flat, weights = x.flatten(1).double(), self.decoder.weights
        if len(weights) <= min(flat.shape):
            parts = nndsvd(flat, len(weights))
            parts = torch.where(parts > NOTHING * parts.max(), parts, flat.mean().abs())
        else:
            drawn = torch.randn(weights.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            parts = (flat.mean().abs() / len(weights)).sqrt() * drawn.abs().to(flat.device)
        weights.copy_(parts)
        self.initialized.fill_(True)

    def _replace(self, parts: Tensor) -> float:
        """Sets the parts; returns the largest change, relative to the largest entry."""
        weights = self.decoder.weights
        before = self._matrix().clone()
        weights.copy_(parts)
        return float((weights - before).abs().max() / weights.max().clamp_min(torch.finfo(weights.dtype).tiny))


class NonNegativeGaussian(NonNegativeLinear, Gaussian):
    """Least-squares non-negative matrix factorisation: x ~ N(zW, scale²), z >= 0, W >= 0 (Lee & Seung 1999).

    Codes (``update_codes``) and parts (``maximize``) descend non-negative least-squares problems by exact minimisation
    over one entry after the other: HALS (Cichocki & Phan 2009).

    Args:
        latent: Z, the number of parts.
        event_shape: X.
        scale: noise standard deviation in data units, fixed.

    >>> model = NonNegativeGaussian(2, (3,))
    >>> model.log_joint(torch.ones(1, 3), torch.tensor([[[-0.1, 1.0]]])).detach()
    tensor([[-inf]])
    """

    def __init__(self, latent: int, event_shape: Size | tuple[int, ...], scale: float = 1.0):
        Gaussian.__init__(
            self, self._build_parts(latent, event_shape), latent, scale, prior=Flat(latent, nonnegative=True)
        )
        self._register_initialized()

    def update_codes(
        self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B Z"], sweeps: int | None = None
    ) -> Float[Tensor, "S B Z"]:
        """Exact coordinate updates of each code, in at most so many sweeps; by default, until convergence.

        Convergence is relative to the code's size: in nats, small data would always seem to have converged.
        """
        parts = self._matrix()
        return least_squares(parts @ parts.mT, x.flatten(1) @ parts.mT, z, sweeps or SWEEPS)

    @torch.no_grad()
    def statistics(self, x: Num[Tensor, "B *X"], code: Any) -> Products:
        """The products zᵀz and zᵀx of a batch and its codes."""
        z, flat = code.z[0].double(), x.flatten(1).double()
        return Products(z.mT @ z, z.mT @ flat)

    @torch.no_grad()
    def maximize(self, moments: Products) -> float:
        """A few exact coordinate updates of the parts, for these codes. A part without codes is unchanged."""
        start = self._matrix().double().mT
        return self._replace(least_squares(moments.own, moments.cross.mT, start, PART_SWEEPS).mT)


class NonNegativePoisson(NonNegativeLinear):
    """Kullback-Leibler non-negative matrix factorisation: x ~ Poisson(zW) for counts x, z >= 0, W >= 0.

    -log q_r(x|z) is Σ_d rate_d - x_d log rate_d + log x_d!, which equals the generalised divergence of Lee & Seung
    (2001) up to a function of x. Their multiplicative updates are EM steps, and never decrease ``log_joint``. Grey
    values must be converted to counts.

    Args:
        latent: Z, the number of parts.
        event_shape: X.

    >>> NonNegativePoisson(2, (3,)).check(torch.tensor([[0.0, 1.0, 0.5]]))
    Traceback (most recent call last):
        ...
    ValueError: NonNegativePoisson needs x in the counts 0, 1, 2, ..., got 0.5 at index (0, 2) (1 such values). \
Multiply grey values by their number of steps (16 for the bundled digits, 255 for MNIST) and round, or use \
NonNegativeGaussian.
    """

    support = constraints.nonnegative_integer
    support_text = "the counts 0, 1, 2, ..."
    support_remedy = (
        "Multiply grey values by their number of steps (16 for the bundled digits, 255 for MNIST) and round, "
        "or use NonNegativeGaussian."
    )
    output_is_mean = True

    def __init__(self, latent: int, event_shape: Size | tuple[int, ...]):
        super().__init__(self._build_parts(latent, event_shape), latent, Flat(latent, nonnegative=True))
        self._register_initialized()

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        return Poisson(output.clamp_min(0), validate_args=False)  # negative only if the prior is 0

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "S B *X"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        return self._log_mass(Counts(x), output)

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        prior, counts = self.prior, Counts(x)  # the factorials, once for an inner loop
        return lambda z, k=None: prior.log_prob(z) + self._log_mass(counts, self.outputs(z, k))

    def _log_mass(self, counts: Counts, output: Tensor) -> Tensor:
        return self._over_event(counts.log_prob(output.clamp_min(0)))

    def update_codes(
        self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B Z"], sweeps: int | None = None
    ) -> Float[Tensor, "S B Z"]:
        """So many updates of each code, by default one: a multiplicative one, and a Newton step where that is better.

        A multiplicative update alone is slow for entries near 0.
        """
        parts, flat = self._matrix(), x.flatten(1)
        for _ in range(sweeps or 1):
            z = z * _share(_ratio(flat, z @ parts) @ parts.mT, parts.sum(1))
            blocks = _blocks(len(flat), max(1, HESSIANS // min(len(parts), NEWTON_PARTS) ** 2))
            z = torch.cat([_newton(flat[rows], parts, z[:, rows]) for rows in blocks], 1)
        return z

    @torch.no_grad()
    def statistics(self, x: Num[Tensor, "B *X"], code: Any) -> Products:
        """The sums Σ_n z_n and zᵀ(x / zW) of a batch and its codes, at the current parts."""
        z, flat, parts = code.z[0].double(), x.flatten(1).double(), self._matrix().double()
        return Products(z.sum(0), z.mT @ _ratio(flat, z @ parts))

    @torch.no_grad()
    def maximize(self, moments: Products) -> float:
        """One multiplicative update of the parts at which the moments were computed, overrelaxed where that is safe."""
        parts = self._matrix().double() * _overrelaxed(_share(moments.cross, moments.own.unsqueeze(1)))
        return self._replace(parts.clamp_min(FLOOR * float(parts.max())))


def least_squares(
    gram: Float[Tensor, "Z Z"], target: Float[Tensor, "*#L Z"], z: Float[Tensor, "*#L Z"], sweeps: int
) -> Float[Tensor, "*#L Z"]:
    """Non-negative least squares by coordinate sweeps, until no entry of a row moves by ``SETTLED`` of its largest."""
    tolerance = max(SETTLED, 10 * torch.finfo(z.dtype).eps)
    running = torch.ones_like(z[..., :1], dtype=torch.bool)
    for _ in range(sweeps):
        swept = least_squares_sweep(gram, target, z)
        moves = (swept - z).detach().abs().amax(-1, keepdim=True) > tolerance * swept.detach().amax(-1, keepdim=True)
        z = torch.where(running, swept, z)
        running = running & moves
        if not bool(running.any()):
            break
    return z


def least_squares_sweep(
    gram: Float[Tensor, "*#L Z Z"], target: Float[Tensor, "*#L Z"], z: Float[Tensor, "*#L Z"]
) -> Float[Tensor, "*#L Z"]:
    """One sweep of exact coordinate minimisation of ½ zᵀ gram z - targetᵀ z over z >= 0.

    >>> least_squares_sweep(torch.eye(2), torch.tensor([3.0, -1.0]), torch.ones(2))
    tensor([3., 0.])
    """
    residual = target - (z.unsqueeze(-2) @ gram).squeeze(-2) if gram.dim() > 2 else target - z @ gram
    curvatures = gram.diagonal(dim1=-2, dim2=-1)
    curvatures = torch.where(curvatures > 0, curvatures, torch.inf)  # of a part of 0, every value is optimal
    columns = gram[(None,) * (z.dim() + 1 - gram.dim())].movedim(-2, 0)
    residual, before = residual.movedim(-1, 0).contiguous(), z.movedim(-1, 0).contiguous()  # entries first: fast sums
    entries: list[Tensor] = []
    for index, (old, curvature) in enumerate(zip(before.unbind(0), curvatures.unbind(-1), strict=True)):
        new = torch.addcdiv(old, residual[0], curvature).clamp_min(0)
        residual = torch.addcmul(residual[1:], new - old, columns[index + 1 :, ..., index], value=-1)
        entries.append(new)
    return torch.stack(entries, -1)


def nndsvd(x: Float[Tensor, "N D"], latent: int) -> Float[Tensor, "Z D"]:
    """Parts by NNDSVD: the dominant non-negative half of each singular pair of x."""
    values, vectors = torch.linalg.eigh(x.mT @ x)
    size = values[-latent:].flip(0).clamp_min(0).sqrt()
    right = vectors[:, -latent:].flip(1).mT
    left = (x @ right.mT / size.clamp_min(torch.finfo(x.dtype).tiny)).mT
    halves = [(sign * left).clamp_min(0).norm(dim=1) * (sign * right).clamp_min(0).norm(dim=1) for sign in (1, -1)]
    sign = torch.where(halves[0] > halves[1], 1.0, -1.0).to(x.dtype).unsqueeze(1)
    weight = torch.maximum(*halves).sqrt().unsqueeze(1)
    half = (sign * right).clamp_min(0)
    parts = size.sqrt().unsqueeze(1) * weight * half / half.norm(dim=1, keepdim=True).clamp_min(1e-300)
    parts[0] = size[0].sqrt() * right[0].abs()  # the leading pair has one sign
    return parts


def _ratio(x: Tensor, rate: Tensor) -> Tensor:
    """x / rate, or 0 if the rate is 0."""
    return torch.where(rate > 0, x / torch.where(rate > 0, rate, 1.0), 0.0)


def _overrelaxed(factor: Float[Tensor, "Z D"]) -> Float[Tensor, "Z D"]:
    """The factors f of an EM update, to a power p (Salakhutdinov & Roweis 2003) where the EM bound still rises.

    In units of Σ_n z_n W, an entry's term of minus the bound is 1 at first, f - f log f after the update, and
    f^p - p f log f after one to the power p.
    """
    bold = factor**OVERRELAXATION
    return torch.where(bold - OVERRELAXATION * torch.xlogy(factor, factor) <= 1, bold, factor)


def _blocks(size: int, at_once: int) -> list[slice]:
    return [slice(start, start + at_once) for start in range(0, size, at_once)]


def _newton(x: Float[Tensor, "B D"], parts: Float[Tensor, "Z D"], z: Float[Tensor, "S B Z"]) -> Float[Tensor, "S B Z"]:
    """Codes after a Newton step of the Poisson log density in each block of parts, projected to z >= 0.

    A block is unchanged where its step would lower the density.
    """
    rate, done = z @ parts, []
    for block in _blocks(len(parts), NEWTON_PARTS):
        old, own = z[..., block], parts[block]
        moved = _newton_target(x, rate, own, old)
        new = rate + (moved - old) @ own
        rises = (torch.xlogy(x, new) - torch.xlogy(x, rate) - new + rate).sum(-1, keepdim=True) > 0
        rate = torch.where(rises, new, rate)
        done.append(torch.where(rises, moved, old))
    return torch.cat(done, -1)


def _newton_target(
    x: Float[Tensor, "B D"], rate: Float[Tensor, "S B D"], parts: Float[Tensor, "P D"], z: Float[Tensor, "S B P"]
) -> Float[Tensor, "S B P"]:
    """The codes z >= 0 of some parts at about the maximum of the log density's second-order expansion."""
    ratio = _ratio(x, rate)
    products = (parts.unsqueeze(1) * parts).flatten(0, 1)
    hessian = (_ratio(ratio, rate) @ products.mT).unflatten(-1, (len(parts), len(parts)))
    target = (hessian @ z.unsqueeze(-1)).squeeze(-1) + ratio @ parts.mT - parts.sum(1)
    for _ in range(NEWTON_SWEEPS):
        z = least_squares_sweep(hessian, target, z)
    return z


def _share(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The factor of a multiplicative update; 1 if the denominator is 0."""
    return torch.where(denominator > 0, numerator / torch.where(denominator > 0, denominator, 1.0), 1.0)
