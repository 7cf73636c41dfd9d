"""Network builders. Smooth activations by default: a ReLU has no second derivative for an unrolled ascent to use."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Size, nn

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
    layers: list[nn.Module] = [nn.Flatten()] if len(start) != 1 else []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), activation()]
    layers.append(nn.Linear(widths[-2], widths[-1]))
    if len(end) != 1:
        layers.append(nn.Unflatten(1, end))
    return nn.Sequential(*layers)


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
