"""Hierarchical priors over two layers of codes, joined into one vector."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from pyro.distributions import Independent, Normal, TransformedDistribution
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from gae.likelihood.distributions import bounded_exp
from gae.storage import Part

Moments = tuple[Tensor, Tensor]  # mean and standard deviation of each element


class TopDown(Transform):
    """The map from standard normal noise to codes (z1, z2): first z2, then z1 given z2, both normal.

    Args:
        bottom: number of elements of z1.
        top: mean and standard deviation of z2.
        conditional: the function from z2 to mean and standard deviation of z1.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, bottom: int, top: Moments, conditional: Callable[[Tensor], Moments]):
        super().__init__()
        self._bottom, self._top, self._conditional = bottom, top, conditional

    def _call(self, x: Tensor) -> Tensor:
        loc, scale = self._top
        z2 = loc + scale * x[..., self._bottom :]
        loc, scale = self._conditional(z2)
        return torch.cat([loc + scale * x[..., : self._bottom], z2], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        z1, z2 = y[..., : self._bottom], y[..., self._bottom :]
        parts = zip((z1, z2), (self._conditional(z2), self._top), strict=True)
        return torch.cat([(z - loc) / scale for z, (loc, scale) in parts], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        scale = self._conditional(y[..., self._bottom :])[1]
        return scale.log().sum(-1) + self._top[1].log().sum(-1)


class HierarchicalNormal(Part, nn.Module):
    """The prior p(z2) p(z1|z2) over codes (z1, z2): z2 ~ N(0, I), z1 ~ N(mean(z2), scale(z2)²).

    Codes are vectors of ``bottom + top`` elements, z1 first, so that every engine infers both layers at once.

    Args:
        network: maps z2 (N, top) to mean and log scale of z1, (N, 2 bottom).
        bottom: number of elements of z1.
        top: number of elements of z2.

    >>> prior = HierarchicalNormal(nn.Linear(1, 4), bottom=2, top=1)()
    >>> prior.sample().shape, prior.log_prob(torch.zeros(5, 3)).shape
    (torch.Size([3]), torch.Size([5]))
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, bottom: int, top: int):
        super().__init__()
        self.network, self.bottom, self.top = network, bottom, top
        self.register_buffer("loc", torch.zeros(bottom + top), persistent=False)
        self.register_buffer("scale", torch.ones(bottom + top), persistent=False)

    def forward(self) -> TransformedDistribution:
        noise = Independent(Normal(self.loc, self.scale, validate_args=False), 1, validate_args=False)
        top = self.loc[self.bottom :], self.scale[self.bottom :]
        return TransformedDistribution(noise, [TopDown(self.bottom, top, self.conditional)], validate_args=False)

    def conditional(self, z2: Float[Tensor, "..."]) -> Moments:
        """Mean and standard deviation of z1 given z2 (*L, top), each (*L, bottom)."""
        loc, log_scale = self.network(z2).chunk(2, -1)
        return loc, bounded_exp(log_scale)
