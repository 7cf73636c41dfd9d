"""GGAE: mixture weights from Gaussian kernels in code space, with an absorbing component."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from pyro.distributions import Categorical, Independent, MixtureSameFamily
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from gae.likelihood.base import Likelihood, LogJoint, NoiseScale, parameter_or_buffer, positive_scale
from gae.likelihood.distributions import Normal
from gae.likelihood.linear.moments import starting_means
from gae.likelihood.linear.search import Points, best_points
from gae.likelihood.priors import Flat

SPREAD = 2.0  # standard deviation of the initial centres; that of a kernel is √½


class GaussianKernel(NoiseScale, Likelihood):
    """GGAE: a Gaussian mixture whose weights are Gaussian kernels of the code, with an absorbing component.

    q_r(x|z) = Σ_k q(k|z) N(x; mean_k, scale² I), q(k|z) = e^(-‖B_k - z‖²) / (b e^(growth ‖z‖²) + Σ_j e^(-‖B_j - z‖²)).
    The code z is a point among the centres B_k (GAE note; ledger D17 and D18). The absorbing component has weight
    1 - Σ_k q(k|z) and **emits no x**. So q_r(x|z) is a sub-density, with integral Σ_k q(k|z) over X, and ``log_joint``
    is its log in nats: ``-log_mass(z)`` ≥ 0 nats below the log density of the mixture conditioned on emission. ``mean``
    and ``sample`` are conditioned on emission. (Absorption into a background density over X would yield a density, but
    an x that the background explains best would have its best code at infinity.)

    With b > 0 every x has a best code: under a flat prior, an ascent from z_0 that increases the density ends at most
    √log(K max_k p_k / (b q_r(x|z_0))) from its nearest centre, p_k = N(x; mean_k, scale² I). With b = 0 it is a mixture
    density; a code whose best component is at the rim of the centres has no finite optimum and diverges (D17).

    Args:
        components: K.
        latent: the width of z.
        event_shape: X.
        absorbing: b.
        growth: 0 for the constant b of ledger D18; 1 for the e^(zᵀz) of D17.
        scale: noise standard deviation in data units, or its initial value if it is learned.
        learn_scale: whether the scale, common to all components, is learned.
        prior: prior of z; defaults to flat.

    >>> model = GaussianKernel(2, 1, (1,), absorbing=1.0, growth=1.0)
    >>> model.centres.data = torch.tensor([[0.0], [-1.0]])
    >>> model.log_gate(torch.tensor([0.1352900712]))[0].exp().detach()  # the maximum (ledger D17)
    tensor(0.4314)
    """

    initialized: Tensor

    def __init__(
        self,
        components: int,
        latent: int,
        event_shape: Size | tuple[int, ...],
        *,
        absorbing: float = 0.1,
        growth: float = 0.0,
        scale: float = 1.0,
        learn_scale: bool = False,
        prior: nn.Module | None = None,
    ):
        if not event_shape or components < 1 or latent < 1:
            raise ValueError(
                f"Need an event shape of at least one dimension, components >= 1 and latent >= 1, got "
                f"{tuple(event_shape)}, K={components} and {latent}."
            )
        if not (0 <= absorbing < math.inf and 0 <= growth < math.inf):
            raise ValueError(f"Need finite absorbing >= 0 and growth >= 0, got {absorbing} and {growth}.")
        if growth and not absorbing:
            raise ValueError(f"growth={growth} needs an absorbing component, got absorbing=0.")
        super().__init__((latent,), event_shape, Flat(latent) if prior is None else prior)
        self.absorbing, self.growth = float(absorbing), float(growth)
        self.centres = nn.Parameter(SPREAD * torch.randn(components, latent))
        self.means = nn.Parameter(torch.zeros(components, math.prod(event_shape)))
        parameter_or_buffer(self, "log_scale", torch.tensor(math.log(positive_scale(scale))), learn_scale)
        self.register_buffer("initialized", torch.tensor(False))

    def log_gate(self, z: Float[Tensor, "*L Z"]) -> Float[Tensor, "*L K"]:
        """log q(k|z), in nats; without absorption, its exponentials sum to 1."""
        kernel = -(self.centres - z.unsqueeze(-2)).square().sum(-1)
        return kernel - self._log_total(z, kernel).unsqueeze(-1)

    def log_mass(self, z: Float[Tensor, "*L Z"]) -> Float[Tensor, "*L"]:
        """log Σ_k q(k|z) = log ∫ q_r(x|z) dx <= 0, in nats: the log probability that an x is emitted."""
        return self.log_gate(z).logsumexp(-1)

    def forward(self, z: Float[Tensor, "*L Z"], k: Int[Tensor, "..."] | None = None) -> Distribution:
        _refuse(k)
        gate = self.log_gate(z)
        means = self.means.unflatten(-1, self.event_shape).expand(*gate.shape, *self.event_shape)
        parts = Normal(means, self.log_scale.exp().expand_as(means), validate_args=False)
        return _Emitted(gate, Independent(parts, len(self.event_shape), validate_args=False))

    def log_joint(
        self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B Z"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        """log q_w(z) Σ_k q(k|z) N(x; mean_k, scale² I): the log of a sub-density of x, in nats."""
        return self.bind(x)(z, k)

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        log_p, prior = self.log_components(x), self.prior

        def log_joint(z: Tensor, k: Tensor | None = None) -> Tensor:
            _refuse(k)
            return prior.log_prob(z) + (self.log_gate(z) + log_p).logsumexp(-1)

        return log_joint

    def log_components(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "B K"]:
        """log N(x; mean_k, scale² I), in nats, which is independent of the code."""
        scale = self.log_scale.exp()  # whose square may underflow or overflow
        square = torch.stack([((x.flatten(1) - mean) / scale).square().sum(1) for mean in self.means], 1)
        size = self.means.shape[1]
        return -0.5 * square - size * (self.log_scale + 0.5 * math.log(2 * math.pi))

    @torch.no_grad()
    def initialize(self, x: Num[Tensor, "N *X"], seed: int) -> None:
        """Initialises means by k-means++, and a learned scale from distances to them; does nothing once initialised."""
        if self.initialized:
            return
        flat, components = x.flatten(1), len(self.means)
        if len(flat) < components:
            raise ValueError(f"K={components} components need at least as many samples, got N={len(flat)}.")
        self.means.copy_(starting_means(flat, components, seed))
        if self.learns_scale:
            _, square = best_points(flat, Points(self.means, *torch.ones(2, components).to(flat)))
            floor = 1e-12 * float(flat.double().square().mean()) or 1e-12
            self.log_scale.copy_(0.5 * (square.mean() / flat.shape[1]).clamp_min(floor).log())
        self.initialized.fill_(True)

    def _log_total(self, z: Tensor, kernel: Tensor) -> Tensor:
        total = kernel.logsumexp(-1)
        if not self.absorbing:
            return total
        absorbed = math.log(self.absorbing) + self.growth * z.square().sum(-1)
        return torch.logaddexp(total, absorbed)


class _Emitted(MixtureSameFamily):
    """Mixture whose weights may sum to less than 1, as ``log_prob`` reflects; ``sample`` and ``mean`` renormalise."""

    def __init__(self, log_weights: Tensor, parts: Distribution):
        super().__init__(Categorical(logits=log_weights, validate_args=False), parts, validate_args=False)
        self.log_mass = log_weights.logsumexp(-1)

    def log_prob(self, value: Num[Tensor, "..."]) -> Num[Tensor, "..."]:
        return super().log_prob(value) + self.log_mass

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Emitted":
        shape = (*batch_shape, self.mixture_distribution.logits.shape[-1])
        log_weights = self.mixture_distribution.logits.log_softmax(-1) + self.log_mass.unsqueeze(-1)
        return _Emitted(log_weights.expand(shape), self.component_distribution.expand(shape))


def _refuse(k: Tensor | None) -> None:
    if k is not None:
        raise ValueError(
            "GaussianKernel marginalises its components, whose weights depend on z, got k. "
            "Omit k, or use LinearMixture."
        )
