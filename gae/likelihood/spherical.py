"""The von Mises-Fisher distribution of directions, whose log density is the cosine similarity up to a constant."""

import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int, Num
from pyro.distributions import TorchDistribution
from pyro.distributions import constraints as pyro_constraints
from torch import Size, Tensor, nn
from torch.distributions import Beta, Distribution, constraints
from torch.nn.functional import normalize

from gae.data.checks import positive, refuse
from gae.likelihood.base import LogJoint, parameter_or_buffer
from gae.likelihood.bessel import log_bessel
from gae.likelihood.heads import Head
from gae.nets import first_tensor

TOLERANCE = 1e-5  # of the norm of x, which changes the log density by less than the relative amount


class VonMisesFisherDistribution(TorchDistribution):
    """Von Mises-Fisher distribution on the unit sphere, with density C_D(κ) exp(κ μ·x) (Mardia & Jupp 2000, 9.3.4).

    It is the Gaussian N(μ, I / κ) restricted to the sphere. The density is with respect to the area of the sphere; at
    κ = 0 it is uniform. The log density is computed from ‖x - μ‖², accurate for concentrated distributions too.

    Args:
        loc: the mean direction μ (*L, *X), of norm 1.
        concentration: κ ≥ 0, a scalar.
        event_dim: the number of dimensions of X, whose elements are the coordinates.

    >>> q = VonMisesFisherDistribution(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(2.0))
    >>> round(float(q.log_prob(q.mode).exp()), 4), q.mean  # 2 / (4π sinh 2) e², and coth 2 - ½
    (0.3242, tensor([0.0000, 0.0000, 0.5373]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = pyro_constraints.sphere

    def __init__(self, loc: Float[Tensor, "..."], concentration: Float[Tensor, ""], event_dim: int = 1):
        self.loc, self.concentration = loc, concentration
        split = loc.dim() - event_dim
        super().__init__(loc.shape[:split], loc.shape[split:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "VonMisesFisherDistribution":
        loc = self.loc.expand(*batch_shape, *self.event_shape)
        return VonMisesFisherDistribution(loc, self.concentration, len(self.event_shape))

    @property
    def mode(self) -> Tensor:
        """The mean direction μ."""
        return self.loc

    @property
    def mean(self) -> Tensor:
        """A_D(κ) μ, inside the ball, with A_D(κ) = I_{D/2}(κ) / I_{D/2-1}(κ)."""
        _, ratio = log_bessel(self.event_shape.numel() / 2 - 1, self.concentration)
        return (self.concentration * ratio).to(self.loc) * self.loc

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        square = (value - self.loc).square()
        over = tuple(range(-len(self.event_shape), 0))
        return -0.5 * self.concentration * square.sum(over) - log_area(self.concentration, self.event_shape.numel())

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Draws by rejection from a transformed beta distribution (Wood 1994, algorithm VM*)."""
        shape = self._extended_shape(sample_shape)
        loc = self.loc.expand(shape).flatten(-len(self.event_shape)).double()
        fall = _fall(self.concentration, loc.shape[-1], loc.shape[:-1]).unsqueeze(-1)
        tangent = torch.randn_like(loc)
        tangent = normalize(tangent - (tangent * loc).sum(-1, keepdim=True) * loc, dim=-1)
        x = (1 - fall) * loc + (fall * (2 - fall)).sqrt() * tangent
        return normalize(x, dim=-1).reshape(shape).to(self.loc)


def log_area(concentration: Float[Tensor, "..."], width: int) -> Float[Tensor, "..."]:
    """log ∫ exp(κ (μ·x - 1)) dx over the unit sphere of R^D: at κ = 0 the logarithm of its area.

    >>> round(float(log_area(torch.zeros(()), 3).exp() / math.pi), 5)
    4.0
    """
    value, _ = log_bessel(width / 2 - 1, concentration)
    return (value + width / 2 * math.log(2 * math.pi)).to(concentration)


def _fall(concentration: Tensor, width: int, shape: Size) -> Float[Tensor, "..."]:
    """Draws of 1 - μ·x in float64: an accepted proposal for each element."""
    kappa, free = concentration.double(), width - 1
    b = free / (2 * kappa + (4 * kappa.square() + free**2).sqrt())
    edge = (1 - b) / (1 + b)
    least = 2 * b / (1 + b)  # 1 - edge
    proposal = Beta(*(kappa.new_full((), free / 2),) * 2)
    fall, left = kappa.new_zeros(shape.numel()), torch.arange(shape.numel(), device=kappa.device)
    while len(left):
        z = proposal.sample((len(left),))
        new = 2 * b * z / (1 - (1 - b) * z)
        # 1 - edge (1 - new) over 1 - edge², both without cancellation
        ratio = (least + edge * new) / (least * (1 + edge))
        accepted = kappa * (least - new) + free * ratio.log() >= torch.rand_like(z).log()
        fall[left[accepted]] = new[accepted]
        left = left[~accepted]
    return fall.reshape(shape)


class VonMisesFisher(Head):
    """Von Mises-Fisher likelihood of directions x, ‖x‖ = 1: cosine similarity as a log density (ledger D21).

    The mean direction μ is the decoder's output divided by its norm, and log q(x|z) = κ cos(x, output) + log C_D(κ),
    with the exact normaliser. An event of any shape X is one vector of D = |X| elements. An output of 0 has no
    direction, and is read as one of equal elements. ``point`` is μ itself, since the mean lies inside the sphere.

    Args:
        decoder: see ``Head``.
        latent_shape: see ``Head``.
        concentration: κ, or its initial value if it is learned; None for D.
        learn: "scalar" or "fixed".
        prior: see ``Head``.

    Raises:
        ValueError: for a decoder with fewer than two outputs.

    >>> model = VonMisesFisher(nn.Linear(2, 3), latent_shape=2, concentration=5.0)
    >>> model.check(torch.tensor([[0.0, 0.6, 0.8], [1.0, 1.0, 1.0]]))
    Traceback (most recent call last):
        ...
    ValueError: VonMisesFisher needs x of norm 1, got 1.73205 at observation (1,) (1 such values). Divide each \
observation by its norm, or use Gaussian if the norm matters.
    """

    support = pyro_constraints.sphere
    log_concentration: Tensor

    def __init__(
        self,
        decoder: nn.Module,
        latent_shape: int | tuple[int, ...] | Size,
        concentration: float | None = None,
        learn: Literal["fixed", "scalar"] = "scalar",
        prior: nn.Module | None = None,
    ):
        super().__init__(decoder, latent_shape, prior)
        if learn not in ("fixed", "scalar"):
            raise ValueError(f"learn must be 'fixed' or 'scalar', got {learn!r}.")
        width = self.event_shape.numel()
        if width < 2:
            raise ValueError(f"A direction needs at least 2 elements, got the event shape {tuple(self.event_shape)}.")
        start = math.log(width if concentration is None else positive("concentration", concentration))
        parameter_or_buffer(self, "log_concentration", first_tensor(decoder).new_full((), start), learn == "scalar")

    @property
    def concentration(self) -> Float[Tensor, ""]:
        """κ, a scalar; near the mean direction each tangent coordinate has the variance 1 / κ."""
        return self.log_concentration.exp()

    def parameter_of(self, output: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        event = tuple(range(-len(self.event_shape), 0))
        top = output.detach().abs().amax(event, keepdim=True)
        scaled = torch.where(top > 0, output / top.clamp_min(torch.finfo(output.dtype).tiny), 1.0)
        return scaled / scaled.square().sum(event, keepdim=True).sqrt()

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        loc = self.parameter_of(output)
        return VonMisesFisherDistribution(loc, self.concentration, len(self.event_shape))

    def point(self, decoded: Distribution) -> Float[Tensor, "..."]:
        """The mean direction, (*L, *X), which is an observation."""
        return decoded.mode

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "S B"]:
        square, width = self._over_event((x - output).square()), self.event_shape.numel()
        return -0.5 * self.concentration * square - log_area(self.concentration, width)

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        prior, kappa = self.prior, self.concentration
        constant = log_area(kappa, self.event_shape.numel())  # once for an inner loop

        def log_joint(z: Tensor, k: Tensor | None = None) -> Tensor:
            square = self._over_event((x - self.sample_outputs(z, k)).square())
            return prior.log_prob(z) - 0.5 * kappa * square - constant

        return log_joint

    def check_support(self, x: Num[Tensor, "B *X"]) -> None:
        norm = x.detach().flatten(1).norm(dim=1)
        what, remedy = "VonMisesFisher needs x of norm 1", "Divide each observation by its norm"
        refuse(
            norm, (norm - 1).abs() > TOLERANCE, what, f"{remedy}, or use Gaussian if the norm matters.", "observation"
        )
