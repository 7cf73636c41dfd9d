"""Photographs as arrays (C, H, W) in [0, 1], and their masks."""

from pathlib import Path

import numpy as np

from gae.data.files import whole
from gae.data.images import read_image


def read_photo(path: Path) -> np.ndarray:
    """One photograph (C, H, W), float32 in [0, 1]: ``read_image``, with integers divided by their highest value.

    Raises:
        FileNotFoundError, ValueError: as ``read_image``.
    """
    pixels = read_image(path)
    return (pixels / {"uint8": 255, "uint16": 65535}.get(pixels.dtype.name, 1)).astype(np.float32)


def read_mask(path: Path) -> np.ndarray:
    """A mask (H, W) of booleans from an image as large as the photograph: True, a pixel is seen, where it is bright.

    Raises:
        FileNotFoundError, ValueError: as ``read_photo``.
    """
    return read_photo(path).mean(0) > 0.5


def write_photo(image: np.ndarray, path: Path) -> None:
    """Writes (C, H, W) with values in [0, 1] as 8 bits per channel."""
    from PIL import Image

    pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    photo = Image.fromarray(np.ascontiguousarray(channels_last(pixels)))
    with whole(path) as temporary:
        photo.save(temporary)


def channels_last(image: np.ndarray) -> np.ndarray:
    """An image (C, H, W) as (H, W, C), the layout of Pillow and matplotlib; a grey one as (H, W)."""
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
