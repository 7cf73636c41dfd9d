"""Network builders. Smooth activations by default: a ReLU has no second derivative for an unrolled ascent to use."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Size, Tensor, nn
from torch.nn.functional import batch_norm, group_norm, interpolate

Activation = type[nn.Module]


def mlp(
    inputs: int | Sequence[int], hidden: Sequence[int], outputs: int | Sequence[int], activation: Activation = nn.SiLU
) -> nn.Sequential:
    """A fully connected network between two shapes (an int is a vector).

    >>> import torch
    >>> mlp(2, [16], (1, 8, 8))(torch.zeros(3, 2)).shape
    torch.Size([3, 1, 8, 8])
    """
    start, end = _shape(inputs), _shape(outputs)
    widths = [math.prod(start), *hidden, math.prod(end)]
    layers: list[nn.Module] = [] if len(start) == 1 else [nn.Flatten() if start else nn.Unflatten(0, (-1, 1))]
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), activation()]
    layers.append(nn.Linear(widths[-2], widths[-1]))
    if len(end) != 1:
        layers.append(nn.Unflatten(1, end))
    return nn.Sequential(*layers)


class Dictionary(nn.Module):
    """A linear map whose columns (one for each element of a code) have unit length: z (N, Z) -> (N, *X).

    Under a penalty of the code, a free dictionary would grow without limit while the code shrinks (ledger D31).

    >>> Dictionary(3, (1, 8, 8))(torch.zeros(2, 3)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, latent: int, outputs: int | Sequence[int]):
        super().__init__()
        self.shape = _shape(outputs)
        self.atoms = nn.Parameter(torch.randn(latent, math.prod(self.shape)))

    def forward(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N *X"]:
        return (z @ nn.functional.normalize(self.atoms, dim=1)).unflatten(1, self.shape)


def conv_encoder(
    image: Sequence[int], outputs: int, channels: Sequence[int] = (32, 64), activation: Activation = nn.SiLU
) -> nn.Sequential:
    """Images (C, H, W) to vectors: stride-2 convolutions, one per entry of ``channels``, then a linear layer.

    >>> import torch
    >>> conv_encoder((1, 28, 28), 10)(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 10])
    """
    sizes = _pyramid(image, len(channels))
    layers: list[nn.Module] = []
    for before, after in zip([image[0], *channels[:-1]], channels, strict=True):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * math.prod(sizes[-1]), outputs))


def conv_decoder(
    latent: int, image: Sequence[int], channels: Sequence[int] = (64, 32), activation: Activation = nn.SiLU
) -> nn.Sequential:
    """Vectors to images (C, H, W): a linear layer, then stride-2 transposed convolutions; it mirrors ``conv_encoder``.

    No normalisation layer, which would couple samples or hide a scale from the inner loop.

    >>> import torch
    >>> conv_decoder(10, (1, 28, 28))(torch.zeros(3, 10)).shape
    torch.Size([3, 1, 28, 28])
    """
    sizes = _pyramid(image, len(channels))[::-1]
    first = (channels[0], *sizes[0])
    layers: list[nn.Module] = [nn.Linear(latent, math.prod(first)), activation(), nn.Unflatten(1, first)]
    for before, after, small, large in zip(channels, [*channels[1:], image[0]], sizes, sizes[1:], strict=False):
        odd = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
        layers += [nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=odd), activation()]
    return nn.Sequential(*layers[:-1])


def _pyramid(image: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    if len(image) != 3:
        raise ValueError(f"A convolutional network needs images (C, H, W), got shape {tuple(image)}. Use `mlp`.")
    sizes = [tuple(image[1:])]
    for _ in range(levels):
        sizes.append(tuple(math.ceil(side / 2) for side in sizes[-1]))
    return sizes


def _shape(shape: int | Sequence[int]) -> Size:
    return Size((shape,) if isinstance(shape, int) else shape)


class ChannelNorm(nn.Module):
    """Each channel of each image with mean 0 and variance 1 over its pixels, then scaled and shifted by learned values.

    For one image this is the batch normalisation of the deep-image-prior paper; several images are not coupled.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.eps = eps
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale 1 and shift 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        if len(x) == 1:  # the same for one image, and faster where channels come last
            return batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return group_norm(x, len(self.weight), self.weight, self.bias, self.eps)


class Skip(nn.Module):
    """One scale of ``skip``: a narrow branch at full size beside everything at half the size, joined."""

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


def skip(
    inputs: int = 32,
    outputs: int = 3,
    down: Sequence[int] = (128,) * 5,
    up: Sequence[int] = (128,) * 5,
    narrow: Sequence[int] = (4,) * 5,
) -> nn.Sequential:
    """The encoder-decoder with skip connections of the deep image prior (Ulyanov et al. 2018, arXiv 1711.10925).

    Images (N, inputs, H, W) give images (N, outputs, H, W) in [0, 1]; both sides must be multiples of 2^scales, and at
    least 2^(scales + 1). Its defaults are the paper's, with 2,217,831 parameters for 32 input channels.

    Args:
        inputs: channels of the input.
        outputs: channels of the image.
        down: channels of each scale on the way down, from the largest to the smallest.
        up: channels of each scale on the way up, in the same order.
        narrow: channels of each skip connection; 0 leaves it out.

    >>> sum(p.numel() for p in skip().parameters())
    2217831
    """
    if not len(down) == len(up) == len(narrow) > 0:
        raise ValueError(f"down, up and narrow need one entry per scale, got {len(down)}, {len(up)} and {len(narrow)}.")
    inner: Skip | None = None
    for scale in reversed(range(len(down))):
        inner = Skip(inputs if scale == 0 else down[scale - 1], down[scale], narrow[scale], up[scale], inner)
    assert inner is not None
    return nn.Sequential(inner, nn.Conv2d(up[0], outputs, 1), nn.Sigmoid())


def _block(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """In place, an activation here costs neither a tensor nor the time to allocate one: a sixth of a step on a CPU."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, padding_mode="reflect")
    return nn.Sequential(conv, ChannelNorm(outputs), nn.LeakyReLU(0.2, inplace=True))
