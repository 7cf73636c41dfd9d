"""Corruptions C(x̃|x) of the encoder's input in training; the clean x is scored (Vincent et al. 2010)."""

from collections.abc import Callable

import torch
from jaxtyping import Num
from torch import Tensor, nn

from gae.autoencoder import ChainCorruption
from gae.data.checks import fraction, positive
from gae.storage import Part

__all__ = ["GaussianNoise", "MaskingNoise", "SaltAndPepper", "Walkback"]


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


class Walkback(ChainCorruption):
    """Walk-back training (Bengio et al. 2013, algorithm 1): the corrupted inputs are those of the model's own chain.

    From each training x a chain alternates x̃ ~ C(x̃|x) and x ~ q_r(x | code of x̃). After each x̃ it goes on with
    probability ``rate``; every x̃ on its way is an input whose clean observation is the x that the chain started from.
    The model so learns to return from where ``gae.analysis.chains.denoising_walk`` leads. The loss is the mean over all
    pairs, on average 1 / (1 - rate) for each observation; the draws are constants.

    Args:
        corruption: C.
        rate: the probability p of the paper, in [0, 1).

    >>> clean, corrupted = Walkback(GaussianNoise(0.1), 0.5).pairs(lambda x: x, torch.zeros(1000, 2))
    >>> clean.shape == corrupted.shape, 1700 < len(clean) < 2300
    (True, True)
    """

    def __init__(self, corruption: nn.Module, rate: float = 0.5):
        super().__init__()
        self.corruption, self.rate = corruption, fraction("rate", rate)

    def forward(self, x: Num[Tensor, "B *X"]) -> Num[Tensor, "B *X"]:
        """The first corruption of a chain."""
        return self.corruption(x)

    @torch.no_grad()
    def pairs(
        self, redraw: Callable[[Tensor], Tensor], x: Num[Tensor, "B *X"]
    ) -> tuple[Num[Tensor, "M *X"], Num[Tensor, "M *X"]]:
        """The clean observations and corrupted inputs of one chain from each x."""
        clean, corrupted = [x], [self.corruption(x)]
        while True:
            walking = torch.rand(len(clean[-1]), device=x.device) < self.rate
            if not bool(walking.any()):
                return torch.cat(clean), torch.cat(corrupted)
            clean.append(clean[-1][walking])
            corrupted.append(self.corruption(redraw(corrupted[-1][walking])))


def _probability(rate: float) -> float:
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], got {rate}.")
    return rate
