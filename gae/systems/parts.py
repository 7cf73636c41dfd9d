"""What the systems share: heads by name, and the usual encoder."""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
from jaxtyping import Float, Num
from torch import Size, Tensor, nn

from gae.likelihood import Bernoulli, ContinuousBernoulli, Gaussian, Head, Laplace, Poisson

Shape = Size | tuple[int, ...]

HEADS: dict[str, Callable[..., Head]] = {
    "gaussian": partial(Gaussian, learn="scalar"),
    "laplace": partial(Laplace, learn="scalar"),
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "poisson": Poisson,
}


def head_of(name: str) -> Callable[..., Head]:
    """The named head; ValueError lists the valid names."""
    if name not in HEADS:
        raise ValueError(f"Unknown head {name!r}. Valid heads: {', '.join(HEADS)}.")
    return HEADS[name]


class NormalEncoder(nn.Module):
    """q(z|x) = N(mean(x), scale(x)²), independent over the code: a network with 2 Z outputs, as a Pyro guide.

    >>> import torch
    >>> encoder = NormalEncoder(nn.Linear(3, 4))
    >>> encoder.density(torch.zeros(5, 3)).batch_shape
    torch.Size([5])
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def density(self, x: Num[Tensor, "B *X"]) -> dist.Independent:
        """q(z|x): batch (B,), event (Z,)."""
        loc, log_scale = self.network(x).chunk(2, -1)
        return dist.Independent(dist.Normal(loc, log_scale.exp(), validate_args=False), 1, validate_args=False)

    def forward(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "..."]:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.density(x))
