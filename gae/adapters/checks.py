"""Checks of networks that a user gives: their parameters, their outputs, and whether they are functions."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Num
from torch import Tensor, nn

from gae.autoencoder import Autoencoder
from gae.inference import Amortized
from gae.inference.curvature import curvature_matrix, derivatives
from gae.inference.decoder import check_fixed, is_nondeterministic, need_gradient
from gae.likelihood import Likelihood
from gae.nets import first_tensor

T = TypeVar("T")

PROBES = 3  # codes, or observations, on which a network is tried
DTYPES = (torch.float32, torch.float64)


def need_parameters(network: nn.Module, part: str) -> Tensor:
    """A parameter of the network, which has its dtype and device."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"The {part} must be a torch.nn.Module, got {type(network).__name__}.")
    tensors = [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]
    if not tensors:
        raise ValueError(
            f"The {part} {type(network).__name__} has no parameters: weights that it keeps elsewhere would follow "
            "neither the precision nor the device of the model. Make them nn.Parameter, or register_buffer."
        )
    kinds = sorted({str(t.dtype) for t in tensors} | {str(t.device) for t in tensors})
    if len(kinds) > 2 or tensors[0].dtype not in DTYPES:
        raise ValueError(
            f"The parameters of the {part} must all be float32 or all float64, on one device; got {', '.join(kinds)}. "
            "Convert it with `.float()`."
        )
    return first_tensor(network)


def need_mode(network: nn.Module, part: str) -> None:
    for name, module in network.named_modules():
        if is_nondeterministic(module):
            raise ValueError(
                f"The {part} holds {type(module).__name__} ({name!r}), which in its present mode depends on the batch "
                "or changes from call to call. Call `.eval()`; without running statistics, use GroupNorm."
            )


def need_rows(output: Any, given: Tensor, part: str, what: str) -> None:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The {part} must return a tensor, got {type(output).__name__}. Wrap it in a module that returns the "
            f"{what}; `gae.adapters` has one for pythae and diffusers."
        )
    if output.dtype != given.dtype:
        raise TypeError(f"The {part} returned {output.dtype} for {given.dtype}, the dtype of its parameters.")
    if not output.dim() or len(output) != len(given):
        raise ValueError(
            f"The {part} returned {what} of shape {tuple(output.shape)} for a batch of {len(given)}: the first axis "
            "must be that of the batch."
        )


def check_decoder(likelihood: Likelihood) -> None:
    """Checks that the decoder is a deterministic, differentiable function of each code.

    Raises:
        ValueError: for a decoder that is random, mixes its batch or stops the gradient.
    """
    codes = first_tensor(likelihood).new_zeros(1, 1, *likelihood.latent_shape)
    x = likelihood.in_data_units(codes.new_zeros(1, *likelihood.event_shape))
    check_fixed(likelihood, x, codes, "Inference")
    attempt(lambda: need_gradient(likelihood, codes), "The decoder cannot be differentiated")


def check_curvature(model: Autoencoder, x: Num[Tensor, "N *X"], products: bool = False) -> None:
    """Checks that the log joint density has second derivatives at a code, and an encoder works, in the precision of x.

    Args:
        model: a model in the precision of x.
        x: observations.
        products: whether the Jacobian of the decoder is needed too, as by Gauss–Newton.

    Raises:
        ValueError: for a decoder whose derivatives cannot be differentiated, or networks that have another precision.
    """
    x = _probes(model, x)
    z = x.new_zeros(1, 1, *model.likelihood.latent_shape)
    message = f"The decoder has no second derivatives in {x.dtype}"
    with torch.no_grad():
        attempt(lambda: derivatives(model.likelihood, x[:1], z), message)
        if products:
            attempt(lambda: curvature_matrix(model.likelihood, x[:1], z), message)
        _try_encoder(model, x)


def check_networks(model: Autoencoder, x: Num[Tensor, "N *X"]) -> None:
    """Checks that the decoder and an encoder work in the precision of x, on the device of the model.

    Raises:
        ValueError: for networks that have another precision, or tensors on another device.
    """
    x = _probes(model, x)
    z = x.new_zeros(1, 1, *model.likelihood.latent_shape)
    with torch.no_grad():
        attempt(lambda: model.likelihood.log_joint(x[:1], z), f"The decoder does not work in {x.dtype} on {x.device}")
        _try_encoder(model, x)


def _probes(model: Autoencoder, x: Tensor) -> Tensor:
    return x[:PROBES].to(first_tensor(model.likelihood, x).device)


def _try_encoder(model: Autoencoder, x: Tensor) -> None:
    for part in (part for part in model.inference.modules() if isinstance(part, Amortized)):
        attempt(partial(part, model.likelihood, x), f"The encoder does not work in {x.dtype} on {x.device}")


def attempt(function: Callable[[], T], message: str) -> T:
    """The result of a user's function; raises ValueError for any error in it."""
    try:
        return function()
    except ValueError:
        raise
    except Exception as error:  # whatever a network may raise
        text = str(error).partition("\n")[0]
        raise ValueError(f"{message}: {type(error).__name__}: {text}") from error
