"""Network builders, with smooth activations by default: unrolled ascents need second derivatives."""

import math
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Size, Tensor, nn
from torch.nn.functional import batch_norm, group_norm, interpolate, silu

from gae.data.mapped import row_mean
from gae.storage import Part, recorded

ActivationType = type[nn.Module]

COMMENSURATE = 10.0  # columns whose standard deviations differ by at most this factor share one unit
LARGEST = 1e12  # largest deviation from the mean, and inverse of the smallest: their squares fit into float32


@recorded
def mlp(
    inputs: int | Sequence[int],
    hidden: Sequence[int],
    outputs: int | Sequence[int],
    activation: ActivationType = nn.SiLU,
) -> nn.Sequential:
    """A fully connected network between two shapes (an int is a vector).

    >>> import torch
    >>> mlp(2, [16], (1, 8, 8))(torch.zeros(3, 2)).shape
    torch.Size([3, 1, 8, 8])
    """
    start, end = as_size(inputs), as_size(outputs)
    need_sizes(inputs=start, hidden=hidden, outputs=end)
    widths = [math.prod(start), *hidden, math.prod(end)]
    layers: list[nn.Module] = [] if len(start) == 1 else [nn.Flatten() if start else nn.Unflatten(0, (-1, 1))]
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), activation()]
    layers.append(nn.Linear(widths[-2], widths[-1]))
    if len(end) != 1:
        layers.append(nn.Unflatten(1, end))
    return nn.Sequential(*layers)


class InDataUnits(Part, nn.Sequential):
    """A network from observations to observations that standardises its input and restores the units of its output.

    ``initialize`` stores the mean and the unit of the training data; until then they are 0 and 1. Elements of an image,
    or of any array, share one unit: the root mean square deviation from their means. Columns of a table have separate
    units if their standard deviations differ by more than a factor of ten; a column without variance takes the median
    of the others.

    Args:
        network: the network, whose layers keep their names.
        shape: X, the shape of one observation.

    >>> clipped = InDataUnits(nn.Hardtanh(-2, 2), (2,))
    >>> clipped.initialize(None, torch.tensor([[1.0, 2000.0], [3.0, 6000.0]]), seed=0)
    >>> clipped(torch.tensor([[9.0, 5000.0]])).tolist()  # nine is seven deviations from the mean; two are left
    [[4.0, 5000.0]]
    """

    loc: Tensor
    scale: Tensor
    initialized: Tensor

    def __init__(self, network: nn.Module, shape: int | Sequence[int]):
        super().__init__(*(network if type(network) is nn.Sequential else [network]))
        shape = as_size(shape)
        self.register_buffer("loc", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape if len(shape) == 1 else ()))
        self.register_buffer("initialized", torch.tensor(False))

    @torch.no_grad()
    def initialize(self, likelihood: object, x: Float[Tensor, "N *X"], seed: int) -> None:
        """Stores mean and unit of the training data x (N, *X); called by ``fit``. Does nothing once initialised.

        Raises:
            ValueError: for deviations from the mean that are too large or too small to square in float32.
        """
        if self.initialized:
            return
        loc = row_mean(x)
        self.loc.copy_(loc)
        self.scale.copy_(_unit(row_mean(x, lambda rows: (rows - loc).square()).sqrt(), loc))
        self.initialized.fill_(True)

    def __getitem__(self, index: Any) -> Any:
        """A layer, or a slice as a plain ``nn.Sequential`` without the change of units."""
        layers = list(self)[index]
        return nn.Sequential(*layers) if isinstance(index, slice) else layers

    def forward(self, x: Float[Tensor, "N *X"]) -> Float[Tensor, "N *X"]:
        return self.loc + self.scale * super().forward((x - self.loc) / self.scale)


class Standardized(InDataUnits):
    """An encoder of standardised observations (x - mean) / unit (N, *X), with statistics of the training data.

    Args:
        network: the network, of inputs (N, *X); with ``missing``, of the shape ``with_mask(X)``.
        shape: X.
        missing: whether NaN marks elements that were not observed. The network then gets 0, the mean, in their place,
            and the mask of the observed elements, 1 or 0, as further channels.

    >>> encoder = Standardized(nn.Identity(), (2,), missing=True)
    >>> encoder(torch.tensor([[3.0, torch.nan]]))
    tensor([[3., 0., 1., 0.]])
    """

    def __init__(self, network: nn.Module, shape: int | Sequence[int], missing: bool = False):
        super().__init__(network, shape)
        self.missing = missing

    def forward(self, x: Float[Tensor, "N *X"]) -> Float[Tensor, "N ..."]:
        x = (x - self.loc) / self.scale
        if self.missing:
            seen = ~x.isnan()
            x = torch.cat([torch.where(seen, x, 0), seen.to(x.dtype)], 1)
        return nn.Sequential.forward(self, x)


def with_mask(shape: int | Sequence[int]) -> Size:
    """The shape of an observation followed by its mask: twice the channels of an image, or elements of a vector.

    >>> with_mask(5), with_mask((3, 8, 8))
    (torch.Size([10]), torch.Size([6, 8, 8]))
    """
    shape = as_size(shape)
    if not shape:
        raise ValueError("A mask needs observations of at least one dimension, got shape (). Use (1,) for scalars.")
    return Size((2 * shape[0], *shape[1:]))


class Rescaled(InDataUnits):
    """A decoder whose output y is rescaled to mean + unit · y (N, *X), with statistics of the training data."""

    def forward(self, z: Float[Tensor, "N ..."]) -> Float[Tensor, "N *X"]:
        return torch.addcmul(self.loc, self.scale, nn.Sequential.forward(self, z))


def _unit(deviation: Tensor, loc: Tensor) -> Tensor:
    """The unit of each column of a table, X, or of an entire array, ()."""
    varying = deviation > 1e-6 * loc.abs()  # smaller deviations are float32 rounding of a constant
    if not varying.any():
        return deviation.new_ones(deviation.shape if deviation.dim() == 1 else ())
    nonzero = deviation[varying]
    low, high = float(nonzero.min()), float(nonzero.max())
    common = nonzero.square().sum().div(deviation.numel()).sqrt()
    if not 1 / LARGEST <= float(common) <= LARGEST or (deviation.dim() == 1 and low < 1 / LARGEST):
        raise ValueError(
            f"The standard deviations of the data lie between {low:.3g} and {high:.3g}, beyond {1 / LARGEST:g} or "
            f"{LARGEST:g}, where squares leave the range of float32. Give the data in another unit."
        )
    if deviation.dim() != 1:
        return common
    if high <= COMMENSURATE * low:
        return common.expand_as(deviation)
    return torch.where(varying, deviation, nonzero.median())


class Dictionary(Part, nn.Module):
    """A linear decoder with unit-norm atoms, one per element of a code: z (N, Z) -> (N, *X).

    With a penalty on the code, an unconstrained dictionary would grow without limit while the code shrinks (ledger
    D31).

    >>> Dictionary(3, (1, 8, 8))(torch.zeros(2, 3)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, latent: int, outputs: int | Sequence[int]):
        super().__init__()
        self.shape = as_size(outputs)
        need_sizes(latent=latent, outputs=self.shape)
        self.atoms = nn.Parameter(torch.randn(latent, math.prod(self.shape)))

    def forward(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N *X"]:
        return (z @ nn.functional.normalize(self.atoms, dim=1)).unflatten(1, self.shape)


class Leading(Part, nn.Module):
    """A network of the first elements of a vector, such as the bottom layer of a hierarchical code.

    >>> import torch
    >>> Leading(nn.Linear(2, 5), 2)(torch.zeros(3, 7)).shape
    torch.Size([3, 5])
    """

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        self.network, self.size = network, size

    def forward(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        output: Tensor = self.network(z[..., : self.size])
        return output


class BottomUp(Part, nn.Module):
    """Outputs of two layers of features, x → d1 → d2, in one vector: those of d1 first (Sønderby et al. 2016).

    Args:
        first: the network from x to d1, (B, H), before its activation (SiLU).
        second: the network from d1 to d2, (B, H), before its activation.
        width: H.
        outputs: the number of outputs of either layer, which are linear.

    >>> import torch
    >>> BottomUp(nn.Linear(6, 4), nn.Linear(4, 4), 4, (2, 1))(torch.zeros(3, 6)).shape
    torch.Size([3, 3])
    """

    def __init__(self, first: nn.Module, second: nn.Module, width: int, outputs: tuple[int, int]):
        super().__init__()
        self.first, self.second = first, second
        self.heads = nn.ModuleList([nn.Linear(width, size) for size in outputs])

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "B _"]:
        lower = silu(self.first(x))
        return torch.cat([self.heads[0](lower), self.heads[1](silu(self.second(lower)))], 1)


@recorded
def conv_encoder(
    image: Sequence[int], outputs: int, channels: Sequence[int] = (32, 64), activation: ActivationType = nn.SiLU
) -> nn.Sequential:
    """Images (C, H, W) to vectors: stride-2 convolutions, one per entry of ``channels``, then a linear layer.

    >>> import torch
    >>> conv_encoder((1, 28, 28), 10)(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 10])
    """
    sizes = _pyramid(image, channels)
    need_sizes(outputs=outputs)
    layers: list[nn.Module] = []
    for before, after in zip([image[0], *channels[:-1]], channels, strict=True):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * math.prod(sizes[-1]), outputs))


@recorded
def conv_decoder(
    latent: int, image: Sequence[int], channels: Sequence[int] = (64, 32), activation: ActivationType = nn.SiLU
) -> nn.Sequential:
    """Vectors to images (C, H, W): a linear layer, then stride-2 transposed convolutions, mirroring ``conv_encoder``.

    It has no normalisation layers, which would couple samples or hide a scale from the inner loop.

    >>> import torch
    >>> conv_decoder(10, (1, 28, 28))(torch.zeros(3, 10)).shape
    torch.Size([3, 1, 28, 28])
    """
    sizes = _pyramid(image, channels)[::-1]
    need_sizes(latent=latent)
    first = (channels[0], *sizes[0])
    layers: list[nn.Module] = [nn.Linear(latent, math.prod(first)), activation(), nn.Unflatten(1, first)]
    for before, after, small, large in zip(channels, [*channels[1:], image[0]], sizes, sizes[1:], strict=False):
        odd = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
        layers += [nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=odd), activation()]
    return nn.Sequential(*layers[:-1])


def _pyramid(image: Sequence[int], channels: Sequence[int]) -> list[tuple[int, ...]]:
    if len(image) != 3:
        raise ValueError(
            f"A convolutional network needs images (C, H, W), got shape {tuple(image)}. Use `mlp`, or vae for conv-vae."
        )
    if not channels:
        raise ValueError("channels needs one entry per convolution, got none. Give at least one.")
    need_sizes(image=image, channels=channels)
    sizes = [tuple(image[1:])]
    for _ in channels:
        sizes.append(tuple(math.ceil(side / 2) for side in sizes[-1]))
    return sizes


def need_sizes(at_least: int = 1, **sizes: int | Sequence[int]) -> None:
    """Raises ValueError for a size, or an entry of a sequence of sizes, that is not a whole number or is too small.

    >>> need_sizes(latent=2, hidden=[16, 0])
    Traceback (most recent call last):
    ValueError: hidden must be whole numbers of at least 1, got [16, 0].
    """
    for name, size in sizes.items():
        parts = list(size) if isinstance(size, Sequence) else [size]
        if not all(isinstance(part, int) and part >= at_least for part in parts):
            number = "whole numbers" if isinstance(size, Sequence) else "a whole number"
            got = parts if isinstance(size, Sequence) else size
            raise ValueError(f"{name} must be {number} of at least {at_least}, got {got}.")


def as_size(shape: int | Sequence[int]) -> Size:
    """Converts an int (the length of a vector) or a sequence to a shape.

    >>> as_size(3)
    torch.Size([3])
    """
    return Size((shape,) if isinstance(shape, int) else shape)


def first_tensor(module: nn.Module, default: Tensor | None = None) -> Tensor:
    """The first floating-point parameter or buffer of a module, which has the module's dtype and device.

    Args:
        module: any module.
        default: returned if there is none; defaults to a float32 scalar on the CPU.
    """
    tensors = chain(module.parameters(), module.buffers())
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), default)
    return torch.empty(()) if first is None else first


class ChannelNorm(nn.Module):
    """Normalises each channel of each image over its pixels, followed by a learned scale and shift.

    For one image this is the batch normalisation of the deep-image-prior paper; several images are not coupled.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.eps = eps
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the scale to 1 and the shift to 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        if len(x) == 1:  # the same for one image, and faster where channels come last
            return batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return group_norm(x, len(self.weight), self.weight, self.bias, self.eps)


class Skip(nn.Module):
    """One scale of ``skip``: a narrow branch at full resolution, joined with all coarser scales."""

    def __init__(self, inputs: int, channels: int, narrow: int, outputs: int, inner: "Skip | None"):
        super().__init__()
        self.outputs = outputs
        self.narrow = _block(inputs, narrow, 1) if narrow else None
        self.down = nn.Sequential(_block(inputs, channels, 3, stride=2), _block(channels, channels, 3))
        self.inner = inner
        below = channels if inner is None else inner.outputs
        self.join = nn.Sequential(ChannelNorm(narrow + below), _block(narrow + below, outputs, 3))
        self.mix = _block(outputs, outputs, 1)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D H W"]:
        low = self.down(x)
        low = low if self.inner is None else self.inner(low)
        up = interpolate(low, scale_factor=2, mode="bilinear")
        return self.mix(self.join(up if self.narrow is None else torch.cat([self.narrow(x), up], 1)))


@recorded
def skip(
    inputs: int = 32,
    outputs: int = 3,
    down: Sequence[int] = (128,) * 5,
    up: Sequence[int] = (128,) * 5,
    narrow: Sequence[int] = (4,) * 5,
) -> nn.Sequential:
    """The encoder-decoder with skip connections of the deep image prior (Ulyanov et al. 2018, arXiv 1711.10925).

    Maps images (N, inputs, H, W) to images (N, outputs, H, W) in [0, 1]; H and W must be multiples of 2^scales, and at
    least 2^(scales + 1). The defaults are the paper's, with 2,217,831 parameters for 32 input channels.

    Args:
        inputs: input channels.
        outputs: output channels.
        down: channels of each scale of the downsampling path, from the finest to the coarsest.
        up: channels of each scale of the upsampling path, in the same order.
        narrow: channels of each skip connection; 0 omits it.

    >>> sum(p.numel() for p in skip().parameters())
    2217831
    """
    if not len(down) == len(up) == len(narrow) > 0:
        raise ValueError(f"down, up and narrow need one entry per scale, got {len(down)}, {len(up)} and {len(narrow)}.")
    need_sizes(inputs=inputs, outputs=outputs, down=down, up=up)
    need_sizes(at_least=0, narrow=narrow)
    inner: Skip | None = None
    for scale in reversed(range(len(down))):
        inner = Skip(inputs if scale == 0 else down[scale - 1], down[scale], narrow[scale], up[scale], inner)
    assert inner is not None
    return nn.Sequential(inner, nn.Conv2d(up[0], outputs, 1), nn.Sigmoid())


def _block(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution, norm and activation; in place, the activation saves an allocation: a sixth of a step on a CPU."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, padding_mode="reflect")
    return nn.Sequential(conv, ChannelNorm(outputs), nn.LeakyReLU(0.2, inplace=True))
