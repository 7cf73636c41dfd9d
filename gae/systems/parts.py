"""Building blocks of the systems: heads by name, decoders, and the encoder of a normal density."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
from jaxtyping import Float, Num
from torch import Size, Tensor, nn

from gae import nets
from gae.likelihood import HEADS, DecoderLikelihood, Head, LocationScaleHead, PartiallyObserved
from gae.likelihood.distributions import bounded_exp
from gae.storage import Part

Shape = Size | tuple[int, ...]


def head_of(name: str, scale: float | None = None, learn: str = "scalar", default: float = 1.0) -> Callable[..., Head]:
    """Constructor of the named head.

    Args:
        name: a key of ``gae.likelihood.HEADS``.
        scale: for heads with a scale, the initial value of a learned scale or the value of a fixed one, in data units.
            The decoder variance c of a VAE is its square (ledger D26). None: ``default``, in units of the data.
        learn: for heads with a scale, "fixed", "scalar" (one learned value) or "pixel" (one for each pixel).
        default: the scale if none is given, in units of the data, which a ``nets.Rescaled`` decoder determines.

    Raises:
        ValueError: for an unknown name (the message lists the valid ones), or a scale for a head without one.

    >>> head_of("gaussian", scale=0.1, learn="fixed")(nn.Linear(2, 3), 2).scale
    tensor(0.1000)
    """
    if name not in HEADS:
        raise ValueError(f"Unknown head {name!r}. Valid heads: {', '.join(HEADS)}.")
    head: Callable[..., Head] = HEADS[name]
    if has_scale(name):
        relative = scale is None
        return partial(head, scale=default if scale is None else scale, learn=learn, relative=relative)
    for option, given, ignored in (("scale", scale, None), ("learn", learn, "scalar")):
        if given != ignored:
            scaled = ", ".join(other for other in HEADS if has_scale(other))
            raise ValueError(
                f"The head {name!r} has no scale: `{option}={given!r}` would have no effect. Omit it, or choose a head "
                f"with a scale: {scaled}."
            )
    return head


def has_scale(head: str) -> bool:
    """Whether a head has a noise scale, for real-valued observations."""
    return issubclass(HEADS[head], LocationScaleHead)


def decoder_of(
    network: nn.Module,
    latent: int | Shape,
    event_shape: Shape,
    head: str = "gaussian",
    scale: float | None = None,
    learn: str = "scalar",
    prior: nn.Module | None = None,
    default: float = 1.0,
    missing: bool = False,
) -> DecoderLikelihood:
    """A network with the named head; for real-valued heads, its output is rescaled to the training data.

    With ``missing``, it is the likelihood of the observed elements of x alone (``PartiallyObserved``).

    >>> from gae import nets
    >>> decoder_of(nets.mlp(2, (), 3), 2, (3,)).decoder
    Rescaled(
      (0): Linear(in_features=2, out_features=3, bias=True)
    )
    """
    build = head_of(head, scale, learn, default)
    likelihood = build(nets.Rescaled(network, event_shape) if has_scale(head) else network, latent, prior=prior)
    return PartiallyObserved(likelihood) if missing else likelihood


def encoder_network(
    event_shape: Shape, network: Callable[[Shape], nn.Module], missing: bool = False
) -> nets.Standardized:
    """A network of standardised observations; with ``missing``, of them and their mask (``nets.Standardized``).

    Args:
        event_shape: X.
        network: builds the network for the shape of its inputs.
        missing: whether NaN marks elements that were not observed.

    >>> encoder_network((3,), lambda shape: nets.mlp(shape, (), 2), missing=True)[0].in_features
    6
    """
    shape = nets.with_mask(event_shape) if missing else event_shape
    return nets.Standardized(network(shape), event_shape, missing)


def directions(event_shape: Shape, latent: int | None) -> int:
    """The width of a linear chart; by default 8, or the number of elements if that is smaller.

    >>> directions((2,), None), directions((1, 8, 8), None), directions((2,), 3)
    (2, 8, 3)
    """
    return min(8, Size(event_shape).numel()) if latent is None else latent


class Encoder(Part, nn.Module, ABC):
    """Base class of encoders with a density q(z|x), which are Pyro guides.

    Args:
        network: maps observations (B, *X) to the parameters of the density, (B, width).
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @abstractmethod
    def density(self, x: Num[Tensor, "B *X"]) -> dist.TorchDistribution:
        """The density q(z|x), with batch shape (B,) and event shape (Z,)."""

    def forward(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "..."]:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.density(x))


class NormalEncoder(Encoder):
    """Mean-field normal encoder q(z|x) = N(mean(x), scale(x)²): a network with 2 Z outputs, as a Pyro guide.

    >>> import torch
    >>> encoder = NormalEncoder(nn.Linear(3, 4))
    >>> encoder.density(torch.zeros(5, 3)).batch_shape
    torch.Size([5])
    """

    def density(self, x: Num[Tensor, "B *X"]) -> dist.Independent:
        loc, log_scale = self.network(x).chunk(2, -1)
        return dist.Independent(dist.Normal(loc, bounded_exp(log_scale), validate_args=False), 1, validate_args=False)


def need_image(system: str, event_shape: Shape) -> None:
    """Raises ValueError if the event shape is not that of an image."""
    if len(event_shape) != 3:
        raise ValueError(f"{system} needs images (C, H, W), got the event shape {tuple(event_shape)}.")
