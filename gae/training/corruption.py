"""Corruptions C(x̃|x) of the encoder's input in training; the clean x is scored (Vincent et al. 2010)."""

import torch
from jaxtyping import Num
from torch import Tensor, nn

from gae.data.checks import positive
from gae.storage import Part

__all__ = ["GaussianNoise", "MaskingNoise", "SaltAndPepper"]


class GaussianNoise(Part, nn.Module):
    """Additive Gaussian noise: x + scale · ε, ε ~ N(0, I).

    >>> GaussianNoise(0.5)(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, scale: float):
        super().__init__()
        positive("scale", scale)
        self.scale = scale

    def forward(self, x: Num[Tensor, "B *X"]) -> Num[Tensor, "B *X"]:
        return x + self.scale * torch.randn_like(x)


class MaskingNoise(Part, nn.Module):
    """Masking noise: sets each element to ``value`` with probability ``rate``, independently.

    >>> float(MaskingNoise(0.3)(torch.ones(1000, 10)).mean().round(decimals=1))
    0.7
    """

    def __init__(self, rate: float, value: float = 0.0):
        super().__init__()
        self.rate, self.value = _probability(rate), value

    def forward(self, x: Num[Tensor, "B *X"]) -> Num[Tensor, "B *X"]:
        return x.masked_fill(torch.rand_like(x) < self.rate, self.value)


class SaltAndPepper(Part, nn.Module):
    """Salt-and-pepper noise: replaces each element with probability ``rate`` by ``low`` or ``high``, equally likely.

    >>> SaltAndPepper(1.0, low=-1.0)(torch.full((1000, 10), 0.2)).unique()
    tensor([-1.,  1.])
    """

    def __init__(self, rate: float, low: float = 0.0, high: float = 1.0):
        super().__init__()
        if not low < high:
            raise ValueError(f"Need low < high, got {low} and {high}.")
        self.rate, self.low, self.high = _probability(rate), low, high

    def forward(self, x: Num[Tensor, "B *X"]) -> Num[Tensor, "B *X"]:
        uniform = torch.rand_like(x)
        salted = torch.where(uniform < 0.5 * self.rate, self.low, self.high)
        return torch.where(uniform < self.rate, salted.to(x), x)


def _probability(rate: float) -> float:
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], got {rate}.")
    return rate
