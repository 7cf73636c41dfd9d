"""Images of mixed sizes and modes at one size: centre crop, resizing, and a common number of channels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MODES = ("1", "L", "LA", "RGB", "RGBA", "P", "PA", "I;16", "F")  # of Pillow's images that are read without loss
ALPHA = (2, 4)  # numbers of channels of images with alpha
FULL = {"uint8": 255, "uint16": 65535}


@dataclass(frozen=True)
class Resize:
    """Resizing of images to a common size, by Pillow's bilinear filter, which averages where it shrinks.

    Attributes:
        size: (height, width) in pixels.
        crop: whether images are first cropped, about their centre, to the ratio of ``size``; otherwise they are
            stretched.
    """

    size: tuple[int, int]
    crop: bool = False

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(isinstance(side, int) and side >= 1 for side in self.size):
            raise ValueError(f"size must be (height, width) in whole pixels, got {self.size}.")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """An opaque image (C, H, W) at this size; uint8 stays, and any other type becomes float32 in [0, 1].

        >>> Resize((2, 2))(np.arange(16, dtype=np.uint8).reshape(1, 4, 4)).shape
        (1, 2, 2)
        """
        from PIL import Image

        image = _cropped(image, self.size) if self.crop else image
        height, width = self.size
        channels = image if image.dtype == np.uint8 else _unit(image)
        resized = [
            np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR))
            for channel in np.ascontiguousarray(channels)
        ]
        return np.stack(resized)


def resize_of(size: int | Sequence[int] | None, crop: bool) -> Resize | None:
    """The resizing of the options ``size``, a side of a square or (height, width), and ``crop``.

    Raises:
        ValueError: for ``crop`` without a size, or a size that is not positive.
    """
    if size is None:
        if crop:
            raise ValueError("crop=True needs a size: images are cropped to its ratio, then resized. Give size=.")
        return None
    return Resize((size, size) if isinstance(size, int) else tuple(size), crop)  # type: ignore[arg-type]


def plain_mode(image: "Image.Image") -> str:
    """The mode without palette and with an alpha channel for transparent colours."""
    if image.mode in ("P", "PA"):
        return "RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB"
    return {"L": "LA", "RGB": "RGBA"}[image.mode] if "transparency" in image.info else image.mode


def pixels_of(image: "Image.Image", name: str) -> np.ndarray:
    """An image of Pillow as (C, H, W); with an alpha channel or a transparent colour, C is 2 or 4.

    Raises:
        ValueError: for a mode that would lose information.
    """
    if image.mode not in MODES or ("transparency" in image.info and image.mode not in ("L", "RGB", "P", "PA")):
        raise ValueError(f"{name} has the colour mode {image.mode}. Convert it to grey or RGB.")
    pixels = np.asarray(image.convert(plain_mode(image)))
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def stack_images(
    images: Iterable[tuple[str, np.ndarray]],
    source: str,
    resize: Resize | None = None,
    event_shape: Sequence[int] | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Named images (C, H, W) as one array (N, C, H, W), and notes on their changes.

    Without ``resize`` all must have one size, number of channels and type, and no alpha channel. With it, images with
    an alpha channel (2 or 4 channels) are laid on white, grey images become RGB if any image is in colour, and integers
    of different depth become float32 in [0, 1].

    Args:
        images: pairs of a name, for messages, and an image.
        source: name of the data in messages.
        resize: common size.
        event_shape: (C, H, W) of a model, which decides the channels.

    Raises:
        ValueError: for images that differ, without ``resize``; for colour where a model takes grey.
    """
    first, read, shapes, transparent = "", [], set(), 0
    for name, image in images:
        first = first or name
        shapes.add(image.shape[1:])
        if resize is None and len(image) in ALPHA:
            raise ValueError(
                f"{name} has an alpha channel, which would be lost. Flatten it first, or give size= (--size), which "
                "lays images on white."
            )
        transparent += len(image) in ALPHA
        read.append(image if resize is None else resize(_on_white(image)))
        like = read[0]
        if resize is None and (image.shape, image.dtype) != (like.shape, like.dtype):
            raise ValueError(
                f"{name} is {image.dtype} {image.shape}, but the first image, {first}, is {like.dtype} {like.shape} "
                "(channels, height, width). Bring all to one size and mode: size= (--size) resizes them, and crop= "
                "(--crop) crops them to its ratio before."
            )
    if not read:
        raise ValueError(f"{source} has no images.")
    if resize is None:
        return np.stack(read), ()
    channels = max(len(image) for image in read) if event_shape is None else event_shape[0]
    grey = sum(len(image) == 1 for image in read)
    if any(len(image) not in (1, channels) for image in read):
        raise ValueError(
            f"{source} has images in colour, but the model takes {channels} channel. Convert them to grey."
        )
    if len({image.dtype for image in read}) > 1:
        read = [_unit(image) for image in read]
    stack = np.stack([np.broadcast_to(image, (channels, *resize.size)) for image in read])
    how = "cropped about the centre and resized" if resize.crop else "resized"
    notes = [f"images {how} to {resize.size[0]} × {resize.size[1]} pixels"] if shapes != {resize.size} else []
    notes += [f"images with an alpha channel laid on white: {transparent}"] if transparent else []
    return stack, (*notes, *([f"{grey} grey images as RGB"] if grey and channels > 1 else []))


def _on_white(image: np.ndarray) -> np.ndarray:
    """An image without its alpha channel, if it has one: the last of 2 or 4."""
    if len(image) not in ALPHA:
        return image
    full = FULL.get(image.dtype.name, 1)
    over = full - image[-1:] / full * (full - image[:-1].astype(np.float64))
    return (over.round() if full > 1 else over).astype(image.dtype)


def _unit(image: np.ndarray) -> np.ndarray:
    """An image as float32 in [0, 1]."""
    return (image / FULL.get(image.dtype.name, 1)).astype(np.float32)


def _cropped(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest part (C, h, w) about the centre with the ratio of a size (height, width)."""
    height, width = image.shape[1:]
    tall, wide = (
        min(height, max(1, round(width * size[0] / size[1]))),
        min(width, max(1, round(height * size[1] / size[0]))),
    )
    top, left = (height - tall) // 2, (width - wide) // 2
    return image[:, top : top + tall, left : left + wide]
