"""Photographs with values in [0, 1], in 8 or 16 bits, with or without alpha; masks."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gae.data import sixteen_bits
from gae.data.files import whole
from gae.data.images import read_image, read_pixels

DEPTHS = {"png": (8, 16), "tiff": (8, 16), "webp": (8,)}  # bits per channel of the formats for writing
WEBP_SIDE = 16383  # pixels: the largest side of a WebP


@dataclass(frozen=True)
class Photograph:
    """A photograph: colours and alpha in [0, 1], and the bits per channel of its file.

    Attributes:
        colours: grey or RGB (C, H, W), float32, not multiplied by alpha.
        alpha: opacity (H, W), float32; None for a photograph without an alpha channel.
        bits: 8 or 16 (also for a file of floating-point numbers).
    """

    colours: np.ndarray
    alpha: np.ndarray | None = None
    bits: int = 8

    @classmethod
    def read(cls, path: Path) -> "Photograph":
        """Reads a photograph; integers are divided by their maximum.

        Raises:
            FileNotFoundError, ValueError, ImportError: as ``gae.data.images.read_pixels``.
        """
        pixels = read_pixels(path)
        bits = 8 if pixels.dtype in (bool, np.uint8) else 16
        colours = _unit(pixels)
        return cls(colours[:-1], colours[-1], bits) if len(colours) in (2, 4) else cls(colours, None, bits)

    def flatten(self, background: str) -> "Photograph":
        """Blends the photograph with an opaque colour by its alpha channel.

        Args:
            background: a name or ``#rrggbb``, as in CSS. A grey photograph stays grey over a grey.

        Raises:
            ValueError: for a colour that is not known or not opaque, or a photograph without alpha.

        >>> grey = np.full((1, 1, 2), 0.5, np.float32)
        >>> Photograph(grey, np.array([[0.0, 1.0]], np.float32)).flatten("white").colours
        array([[[1. , 0.5]]], dtype=float32)
        """
        if self.alpha is None:
            raise ValueError("The photograph has no alpha channel, so it takes no background.")
        colour = np.array(_colour(background), np.float32)[:, None, None]
        return replace(self, colours=colour + self.alpha * (self.colours - colour), alpha=None)

    def rounded(self) -> "Photograph":
        """The photograph with the values that ``write`` stores: clipped and rounded to its bits."""
        return replace(self, colours=(self._levels(self.colours) / (2**self.bits - 1)).astype(np.float32))

    def _levels(self, image: np.ndarray) -> np.ndarray:
        return (np.clip(image, 0, 1) * (2**self.bits - 1)).round()

    def write(self, path: Path) -> None:
        """Writes the photograph as PNG, TIFF or (lossless) WebP, by the suffix of the path.

        Raises:
            ValueError, ImportError: see ``check_writable``.
        """
        image = self.colours if self.alpha is None else np.concatenate([self.colours, self.alpha[None]])
        check_writable(path.suffix[1:], self.bits, *image.shape)
        pixels = np.moveaxis(self._levels(image), 0, -1)
        with whole(path) as temporary:
            _save(pixels.astype(np.uint8 if self.bits == 8 else np.uint16), temporary)


def check_writable(suffix: str, bits: int, channels: int, height: int, width: int) -> None:
    """Checks that a format can hold an image of this depth and size; ``channels`` includes alpha.

    Raises:
        ValueError: if it cannot.
        ImportError: for several channels of 16 bits without pypng (PNG) or tifffile (TIFF).

    >>> check_writable("png", 16, 3, 300, 400)
    """
    if suffix not in DEPTHS:
        raise ValueError(f"Cannot write the format {suffix!r}. Choose one of {', '.join(DEPTHS)}.")
    if bits not in DEPTHS[suffix]:
        able = [name for name, depths in DEPTHS.items() if bits in depths]
        remedy = f"Write {' or '.join(able)}, or 8 bits" if able else "Choose 8 or 16"
        raise ValueError(f"{suffix} cannot hold {bits} bits per channel. {remedy}.")
    if suffix == "webp" and max(height, width) > WEBP_SIDE:
        raise ValueError(f"webp holds at most {WEBP_SIDE} pixels a side, got {height} × {width}. Write png or tiff.")
    if bits == 16 and channels > 1:
        sixteen_bits.library(suffix)


def read_photo(path: Path) -> np.ndarray:
    """Reads an opaque photograph (C, H, W), float32 in [0, 1]: ``read_image``, with integers divided by their maximum.

    Raises:
        FileNotFoundError, ValueError, ImportError: as ``gae.data.images.read_image``.
    """
    return _unit(read_image(path))


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask (H, W) from an image of the photograph's size: bright pixels are True (observed).

    Raises:
        FileNotFoundError, ValueError, ImportError: as ``read_photo``.
    """
    return read_photo(path).mean(0) > 0.5


def write_photo(image: np.ndarray, path: Path) -> None:
    """Writes an image (C, H, W) with values in [0, 1] at 8 bits per channel."""
    Photograph(image).write(path)


def _unit(pixels: np.ndarray) -> np.ndarray:
    return (pixels / {"uint8": 255, "uint16": 65535}.get(pixels.dtype.name, 1)).astype(np.float32)


def _colour(name: str) -> list[float]:
    """A colour in [0, 1], as one number if it is a grey."""
    from PIL import ImageColor

    try:
        red, green, blue, *alpha = ImageColor.getrgb(name)
    except ValueError as error:
        raise ValueError(f"Unknown colour {name!r}. Use a name such as white, or #rrggbb.") from error
    if alpha not in ([], [255]):
        raise ValueError(f"The background must be opaque, got {name!r}. Use a name such as white, or #rrggbb.")
    return [red / 255] if red == green == blue else [red / 255, green / 255, blue / 255]


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    if pixels.dtype == np.uint16 and pixels.shape[-1] > 1:
        write = sixteen_bits.write_png if path.suffix == ".png" else sixteen_bits.write_tiff
        write(pixels, path)
        return
    lossless: dict[str, Any] = {"lossless": True, "exact": True} if path.suffix == ".webp" else {}
    image = np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    Image.fromarray(image).save(path, **lossless)
