"""What the systems share: heads by name, and the usual encoder."""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

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


def head_of(name: str, scale: float = 1.0, learn: str = "scalar") -> Callable[..., Head]:
    """The named head.

    Args:
        name: a key of ``HEADS``.
        scale: of heads that have one: where a learned scale starts, or what a fixed one is, in data units. The decoder
            variance c of a VAE is its square (ledger D26).
        learn: of heads that have a scale: "fixed", "scalar" (one learned value) or "pixel" (one for each pixel).

    Raises:
        ValueError: for an unknown name, with the valid ones; for a scale given to a head that has none.

    >>> head_of("gaussian", scale=0.1, learn="fixed")(nn.Linear(2, 3), 2).scale
    tensor(0.1000)
    """
    if name not in HEADS:
        raise ValueError(f"Unknown head {name!r}. Valid heads: {', '.join(HEADS)}.")
    own = signature(HEADS[name]).parameters
    given: dict[str, Any] = {"scale": scale, "learn": learn}
    if given.keys() <= own.keys():
        return partial(HEADS[name], **given)
    for option, default in (("scale", 1.0), ("learn", "scalar")):
        if given[option] != default:
            scaled = ", ".join(head for head, build in HEADS.items() if "scale" in signature(build).parameters)
            raise ValueError(
                f"The head {name!r} has no scale: `{option}={given[option]!r}` would do nothing. Leave it out, or "
                f"choose a head with one: {scaled}."
            )
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
