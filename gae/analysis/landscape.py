"""The joint density of one observation over its codes, with an ascent, the posterior and its approximations."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.distributions import Distribution

from gae.analysis.engines import ASCENTS, mode_ascent
from gae.analysis.fields import DEPTH, Field, grid, grown, quadrature
from gae.analysis.inference_gap import encoder_density
from gae.autoencoder import Autoencoder
from gae.inference import LBFGS, Amortized, Ascent, Code, Delta, Detach, Inference, Prior, Progress, Zeros
from gae.inference.curvature import expansion, normal_at, unit
from gae.inference.laws import point_of, spread_of
from gae.inference.starts import Given
from gae.likelihood import BlendedCharts, CodebookDistribution, FlatDistribution, Likelihood
from gae.likelihood.door import door
from gae.likelihood.geometry import principal_directions

MASSES = (0.5, 0.95)  # of the regions that are drawn
STARTS = 5  # along each axis of a code of one or two elements, for modes that the path does not lead to
REACH = 4.0  # standard deviations around a mode or a mean, at which a window begins
FLOOR = 1e-2  # least eigenvalue of the precision, in units of the prior's
VIEW = {1: 1001, 2: 121}  # points along each axis of the widest view, by the number of axes
TOLERANCE = 1e-10  # nats, for the mode


@dataclass(frozen=True)
class Path:
    """The points at which an ascent evaluated one observation, in order, with the code that it returned last.

    Attributes:
        z: the points.
        log_joint: their log joint density, in nats.
        accepted: whether a point is a step of the ascent rather than a trial that it rejected.
    """

    z: Float[Tensor, "T Z"]
    log_joint: Float[Tensor, " T"]
    accepted: Tensor


@dataclass(frozen=True)
class Landscape:
    """The log joint density of one observation over a line or a plane of codes, and how its code is found there.

    For codes of one or two elements it is the space of codes. For wider codes it is the plane through the mode in the
    two directions in which the Laplace approximation is widest; densities are then those on the plane, and points are
    projected on it. Coordinates are along ``axes``, from ``origin``.

    Attributes:
        origin: the code at (0, 0).
        axes: orthonormal directions.
        view: log joint density over the ascent, the window and, unless a slice, the prior.
        window: the lowest and the highest coordinates of the regions of the posterior and its approximations.
        posterior: log joint density where the posterior has its mass; its integral is the evidence unless a slice.
        encoder: log density of q(z|x) of the model's engine where it has its mass; None without one.
        path: the ascent, in coordinates.
        ascent: the step rule and the start of the ascent, in words.
        engine: the class of the model's engine.
        mode: the maximum that the path leads to.
        height: log joint density there, in nats.
        covariance: of the Laplace approximation at the mode, along the axes.
        peaked: whether the curvature at the mode is positive definite; otherwise ``covariance`` is that of the
            curvature raised to a hundredth of the prior's.
        is_slice: whether codes have more than two elements.
        flat: whether the prior is flat.
        evidence: log p(x) in nats by quadrature; None for a slice, a flat prior, or a posterior that reaches beyond any
            window.
        evidence_error: its change on a grid with half of the points along each axis.
        elbo: E_q[log_joint - log q] by quadrature; None without q(z|x), or where there is no evidence.
    """

    origin: Float[Tensor, " Z"]
    axes: Float[Tensor, "A Z"]
    view: Field
    window: Float[Tensor, "2 A"]
    posterior: Field
    encoder: Field | None
    path: Path
    ascent: str
    engine: str
    mode: Float[Tensor, " A"]
    height: float
    covariance: Float[Tensor, "A A"]
    peaked: bool
    is_slice: bool
    flat: bool
    evidence: float | None
    evidence_error: float | None
    elbo: float | None

    @property
    def laplace(self) -> float:
        """Laplace's approximation to the integral of the joint density over the line or plane, in nats."""
        log_determinant = float((2 * math.pi * self.covariance.double()).logdet())
        return self.height + 0.5 * log_determinant

    @property
    def radii(self) -> list[float]:
        """The radii of a normal's regions of 50 % and 95 %, in standard deviations."""
        return [_radius(mass, len(self.mode)) for mass in MASSES]


@torch.no_grad()
def landscape(model: Autoencoder, x: Num[Tensor, "B *X"], engine: str | None = None) -> Landscape:
    """The log joint density of one observation over codes, an ascent to its mode, and the posterior around it.

    The ascent is the model's own if it climbs the joint density, or else L-BFGS from the encoder's mean or, without an
    encoder, from 0.

    Args:
        model: a model with vector codes.
        x: one observation, (1, *X).
        engine: ``"lbfgs"``, ``"adam"`` or ``"gauss-newton"``: the ascent from 0 of that name, as in ``engine_of``.

    Raises:
        ValueError: for discrete codes, codes that are not vectors, or non-negative; for several observations; for an
            unknown engine.

    >>> from gae.inference import ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> model, x = Autoencoder(LinearMixture(1, 2, (5,)).double(), ClosedForm()), torch.randn(1, 5).double()
    >>> seen = landscape(model, x)
    >>> bool(abs(seen.evidence - model.log_evidence(x).log_p) < 1e-6), bool(abs(seen.evidence - seen.elbo) < 1e-6)
    (True, True)
    """
    likelihood = model.likelihood
    _need_density(likelihood, x)
    with door(likelihood, x):
        ascent, name = ascent_of(model.inference, engine)
        path = follow(ascent, likelihood, x)
        mode = _climbed(likelihood, x, path.z[path.log_joint.argmax()].unsqueeze(0))
        precision = -expansion(likelihood, x, mode)[2]
        section = Section(
            likelihood, x, mode[0], normal_at(mode, precision, likelihood.prior, FLOOR).covariance_matrix[0]
        )
        starts = _over_prior(likelihood, mode)
        posterior, ends = section.posterior(torch.cat([mode, _climbed(likelihood, x, starts)]) if len(starts) else mode)
        q = encoder_density(model.inference, likelihood, x)
        encoder = None if q is None else section.encoder(q)
        steps = replace(path, z=section.coordinates(path.z))
        window = section.window(posterior, encoder)
        flat = isinstance(likelihood.prior, FlatDistribution)
        exists = ends and not section.is_slice and not flat
        return Landscape(
            section.origin,
            section.axes,
            section.view(torch.cat([steps.z, section.coordinates(starts), window])),
            window,
            posterior,
            encoder,
            steps,
            name,
            type(model.inference).__name__,
            section.coordinates(mode)[0],
            float(likelihood.log_joint(x, mode.unsqueeze(0))),
            section.covariance,
            bool(torch.linalg.eigvalsh(precision).min() > 0),
            section.is_slice,
            flat,
            posterior.log_integral if exists else None,
            posterior.error if exists else None,
            section.elbo(encoder) if exists and encoder is not None else None,
        )


@torch.no_grad()
def follow(ascent: Ascent, likelihood: Likelihood, x: Num[Tensor, "1 *X"]) -> Path:
    """The path of an ascent for one observation: every point that it evaluates, and the code that it returns.

    Of several starts, the path that reaches the highest density. For a density over codes, the path of its mean.

    >>> from gae.likelihood import LinearMixture
    >>> from gae.inference import GradientAscent
    >>> model, x = LinearMixture(1, 2, (5,), scale=1.0), torch.randn(1, 5)
    >>> path = follow(Ascent(step=GradientAscent(0.1), max_steps=7), model, x)
    >>> path.z.shape, bool((path.log_joint.diff() > 0).all())
    (torch.Size([8, 2]), True)
    """
    points: list[Tensor] = []

    def record(progress: Progress) -> None:
        points.append(progress.point if isinstance(ascent.family, Delta) else progress.point[:, :, 0])

    watched = Ascent(
        *(ascent.init, ascent.step, ascent.max_steps, ascent.tol, ascent.grad_tol, ascent.restarts, ascent.family),
        adjoint=Detach(),
        stop=ascent.stop,
        watch=record,
    )
    end = watched(likelihood, x).point
    z = torch.stack(points) if points else end.expand(1, 1, *end.shape)
    log_joint = likelihood.log_joint(x, z.flatten(0, 1)).view(z.shape[:2])
    row = int(log_joint.amax(0).argmax())
    z, log_joint = z[:, row, 0], log_joint[:, row]
    searches = ascent.step.is_trial or ascent.step.returns_best
    accepted = log_joint >= log_joint.cummax(0).values if searches else torch.ones_like(log_joint, dtype=torch.bool)
    if not bool((z == end).flatten(1).all(1).any()):
        last = likelihood.log_joint(x, end.unsqueeze(0))[0]
        z, log_joint = torch.cat([z, end]), torch.cat([log_joint, last])
        accepted = torch.cat([accepted, torch.ones_like(accepted[:1])])
    return Path(z, log_joint, accepted)


def _need_density(likelihood: Likelihood, x: Tensor) -> None:
    """Raises ValueError for a model whose codes have no line or plane with a smooth density on it."""
    name, shape, prior = type(likelihood).__name__, tuple(likelihood.latent_shape), likelihood.prior
    discrete = likelihood.components > 1 or isinstance(prior, CodebookDistribution) or not math.prod(shape)
    if discrete or isinstance(likelihood, BlendedCharts):
        raise ValueError(
            f"A landscape needs continuous codes, but those of this {name} are discrete, or have a discrete part. Use "
            "a system with a continuous code, such as ppca instead of gmm, or vae instead of vq-vae."
        )
    if isinstance(prior, FlatDistribution) and prior.nonnegative:
        raise ValueError(
            f"Codes of {name} are non-negative, and their mode lies on the boundary, where Laplace's approximation "
            "does not hold. Use a system whose codes are not bounded, such as ppca."
        )
    if len(shape) != 1:
        raise ValueError(
            f"A landscape needs codes that are vectors, got codes of shape {shape}. Fit a model with such codes "
            "(gae fit --option latent=2)."
        )
    if len(x) != 1:
        raise ValueError(f"A landscape is that of one observation, got {len(x)}. Pass `x[i : i + 1]`.")


def ascent_of(inference: Inference, engine: str | None = None) -> tuple[Ascent, str]:
    """The ascent that a landscape follows, as described there, and its step rule and start in words."""
    if engine is not None:
        if engine not in ASCENTS:
            raise ValueError(f"Unknown ascent {engine!r}. Choose one of {', '.join(ASCENTS)}.")
        chosen = mode_ascent(engine)
        return chosen, f"{type(chosen.step).__name__} from 0"
    parts = list(inference.modules())
    own = next((part for part in parts if isinstance(part, Ascent) and isinstance(part.family, Delta)), None)
    encoder = next((part for part in parts if isinstance(part, Amortized)), None)
    chosen = own or mode_ascent(start=encoder)
    words = {Amortized: "the encoder's mean", Zeros: "0", Prior: "a draw of the prior"}
    start = words.get(type(chosen.init), f"{type(chosen.init).__name__}()")
    return chosen, f"{type(chosen.step).__name__} from {start}"


def _over_prior(likelihood: Likelihood, like: Float[Tensor, "1 Z"]) -> Float[Tensor, "M Z"]:
    """Starts for other modes, over two standard deviations of a prior of at most two elements; none for others."""
    if like.shape[1] > 2 or isinstance(likelihood.prior, FlatDistribution):
        return like[:0]
    over = grid([torch.linspace(-2, 2, STARTS).to(like)] * like.shape[1]).flatten(0, -2)
    return point_of(likelihood.prior) + over * unit(likelihood.prior).to(like)


def _climbed(likelihood: Likelihood, x: Tensor, starts: Float[Tensor, "M Z"]) -> Float[Tensor, "M Z"]:
    """The modes above some codes of one observation."""
    rows = x.expand(len(starts), *x.shape[1:])
    return Ascent(Given(Code(starts.unsqueeze(0))), LBFGS(), 200, tol=TOLERANCE, adjoint=Detach())(
        likelihood, rows
    ).point


class Section:
    """The line or plane of a landscape, and the densities on it.

    Args:
        likelihood: a model with vector codes.
        x: one observation, (1, *X).
        mode: its mode.
        covariance: of the Laplace approximation there.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        x: Num[Tensor, "1 *X"],
        mode: Float[Tensor, " Z"],
        covariance: Float[Tensor, "Z Z"],
    ):
        self.likelihood, self.x, self.mode = likelihood, x, mode
        self.is_slice = len(mode) > 2
        self.origin, self.axes = torch.zeros_like(mode), torch.eye(len(mode)).to(mode)
        if self.is_slice:
            self.origin, self.axes = mode, principal_directions(covariance.double().unsqueeze(0), 2)[2][0].to(mode)
        self.covariance = self.axes @ covariance @ self.axes.mT
        spread = (self.axes.square() @ unit(likelihood.prior).to(mode).expand_as(mode).square()).sqrt()
        self.reach = REACH * torch.minimum(self.covariance.diagonal().sqrt(), spread)

    def coordinates(self, z: Float[Tensor, "P Z"]) -> Float[Tensor, "P A"]:
        """The coordinates of codes, projected on the line or plane."""
        return (z - self.origin) @ self.axes.mT

    def codes(self, points: Float[Tensor, "P A"]) -> Float[Tensor, "P Z"]:
        """The codes at coordinates."""
        return self.origin + points @ self.axes

    def log_joint(self, points: Float[Tensor, "P A"]) -> Float[Tensor, " P"]:
        """log q(x, z) at coordinates, in nats."""
        return self.likelihood.log_joint(self.x, self.codes(points).unsqueeze(1)).squeeze(1)

    def posterior(self, modes: Float[Tensor, "M Z"]) -> tuple[Field, bool]:
        """The joint density in a window around the modes that are not far below the highest.

        Also returns whether the density ends in the window.
        """
        points = self.coordinates(modes)
        value = self.log_joint(points)
        high = points[value >= value.max() - DEPTH]
        low, high, ends = grown(self.log_joint, high.amin(0) - self.reach, high.amax(0) + self.reach)
        return quadrature(self.log_joint, low, high), ends

    def encoder(self, q: Distribution) -> Field:
        """log q along the axes, in a window around its mean."""

        def log_q(points: Tensor) -> Tensor:
            return q.log_prob(self.codes(points).unsqueeze(1)).squeeze(1)

        centre, reach = self.coordinates(point_of(q))[0], REACH * (self.axes.abs() @ spread_of(q)[0])
        low, high, _ = grown(log_q, centre - reach, centre + reach)
        return quadrature(log_q, low, high)

    def elbo(self, encoder: Field) -> float:
        """E_q[log q(x, z) - log q(z|x)] by quadrature, in nats."""
        log_joint = Field.of(self.log_joint, *encoder.corners, len(encoder.along[0]))
        return encoder.mean(log_joint.value - encoder.value)

    def window(self, posterior: Field, encoder: Field | None) -> Float[Tensor, "2 A"]:
        """The corners of the box around the regions of the posterior, the Laplace approximation and q(z|x)."""
        fields = [field for field in (posterior, encoder) if field is not None]
        reach = _radius(MASSES[1], len(self.axes)) * self.covariance.diagonal().sqrt()
        centre = self.coordinates(self.mode.unsqueeze(0))
        corners = torch.cat(
            [centre - reach, centre + reach, *(torch.stack(field.region(MASSES[1])) for field in fields)]
        )
        return _with_margin(corners)

    def view(self, points: Float[Tensor, "P A"]) -> Field:
        """The joint density over some points."""
        low, high = _with_margin(points)
        return Field.of(self.log_joint, low, high, VIEW[len(low)])


def _radius(mass: float, axes: int) -> float:
    """The radius of the region of a standard normal that has the given mass.

    >>> round(_radius(0.95, 1), 2), round(_radius(0.95, 2), 2)
    (1.96, 2.45)
    """
    from scipy.special import gammaincinv

    return math.sqrt(2 * float(gammaincinv(axes / 2, mass)))


def _with_margin(points: Float[Tensor, "P A"]) -> Float[Tensor, "2 A"]:
    """The corners of the box around points, with a margin of 8 % on each side."""
    low, high = points.amin(0), points.amax(0)
    return torch.stack([low - 0.08 * (high - low), high + 0.08 * (high - low)])
