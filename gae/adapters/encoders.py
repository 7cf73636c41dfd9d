"""Encoders that a user gives, as engines."""

from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from gae.adapters.checks import attempt, need_mode, need_parameters, need_rows
from gae.adapters.laws import flat_law
from gae.inference import Amortized
from gae.inference.base import need_mask
from gae.likelihood import Likelihood
from gae.storage import Part
from gae.systems.parts import Encoder


class GivenEncoder(Encoder):
    """An encoder that returns a distribution, as a Pyro guide for codes that are vectors.

    Args:
        network: maps observations (N, *X) to a distribution over codes, of batch (N,) and event *Z or, where its
            elements are independent, of batch (N, *Z).
        latent: the number of elements of a code.
    """

    def __init__(self, network: nn.Module, latent: int):
        super().__init__(network)
        self.latent = latent

    def density(self, x: Num[Tensor, "B *X"]) -> Any:
        return flat_law(self.network(x), len(x), self.latent)


class _Flattened(Part, nn.Module):
    """An encoder of codes (N, *Z), as vectors."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).flatten(1)


def encoding_engine(encoder: nn.Module, likelihood: Likelihood, x: Num[Tensor, "N *X"]) -> Amortized:
    """The engine of a given encoder: of a density q(z|x) if it returns a distribution, of one code if a tensor.

    Args:
        encoder: see ``from_decoder``.
        likelihood: its codes must be vectors.
        x: a few observations, on which the encoder is tried.

    Raises:
        ValueError, TypeError: for an encoder that does not fit.
    """
    like, width = need_parameters(encoder, "encoder"), likelihood.latent_shape.numel()
    need_mode(encoder, "encoder")
    x = x.to(like)
    with torch.no_grad(), torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        try:
            output = attempt(lambda: encoder(x), f"The encoder does not accept observations of shape {tuple(x.shape)}")
        except ValueError:  # of a distribution with NaN among its parameters
            need_mask(likelihood, x, None)
            raise
        for parameter in _parameters(output) if isinstance(output, Tensor | Distribution) else []:
            need_mask(likelihood, x, parameter)
        if not isinstance(output, Distribution):
            _need_codes(output, x, width)
            engine = Amortized(_Flattened(encoder))
        else:
            attempt(lambda: flat_law(output, len(x), width), "The encoder's distribution does not fit")
            engine = Amortized(GivenEncoder(encoder, width))
        _need_a_function(encoder, x)
    return engine


def _need_codes(output: Any, x: Tensor, width: int) -> None:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The encoder must return a distribution over codes, or codes, got {type(output).__name__}. For a mean and "
            "a standard deviation, return `torch.distributions.Normal(mean, deviation)`."
        )
    need_rows(output, x, "encoder", "codes")
    if output[0].numel() != width:
        raise ValueError(
            f"The encoder returned codes of shape {tuple(output.shape[1:])}, but those of the decoder have {width} "
            "elements. For a density, return a distribution."
        )


def _need_a_function(encoder: nn.Module, x: Tensor) -> None:
    """Raises ValueError unless the encoder's output for an observation is the same each time, and alone."""
    whole, again, alone = (_parameters(encoder(rows)) for rows in (x, x, x[:1]))
    if any(not torch.equal(a, b) for a, b in zip(whole, again, strict=True)):
        raise ValueError("The encoder gives another output each time. Call `.eval()`, or remove dropout and noise.")
    slack = 1e3 * torch.finfo(x.dtype).eps
    if any(not torch.allclose(a[:1], b, rtol=slack, atol=slack) for a, b in zip(whole, alone, strict=True)):
        raise ValueError(
            "The encoder's output for an observation depends on the rest of its batch. Call `.eval()` for fixed "
            "statistics, or use GroupNorm."
        )


def _parameters(output: Tensor | Distribution) -> list[Tensor]:
    """The tensors that make an encoder's output."""
    if isinstance(output, Tensor):
        return [output]
    base: Any = output
    while isinstance(base, Independent):
        base = base.base_dist
    names = [name for name in base.arg_constraints if isinstance(vars(base).get(name), Tensor)]
    return [vars(base)[name] for name in names]
