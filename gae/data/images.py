"""Lossless readers of images and image folders as arrays (C, H, W)."""

import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gae.data import sixteen_bits
from gae.data.arrays import FLOAT32, Arrays
from gae.data.memory import need_room
from gae.data.resizing import Resize, plain_mode, stack_images

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")  # for some others, Pillow starts external programs
GREY, COLOUR, GREY_16 = ("1", "L"), ("RGB", "P"), ("I;16", "I;16B", "I;16L", "I")
ALPHA = ("LA", "RGBA", "PA")
ORIENTATION = 0x0112  # the EXIF tag
STRAIGHT_ALPHA = 2  # in the tag ExtraSamples of TIFF 6.0
SAMPLES_OF_PNG = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # samples per pixel, by the colour type
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError)
SPLITS = ("train", "test")
HELD_OUT = ("val", "valid", "validation", "dev")  # other folder names that denote splits, not classes
NAMED = 3  # files listed in a message


def read_image(path: Path) -> np.ndarray:
    """Reads one opaque image (C, H, W) as stored: grey (C = 1) or RGB; bool, uint8, uint16 or float32 in [0, 1].

    Applies the EXIF orientation, and resolves palettes.

    Raises:
        FileNotFoundError, ValueError, ImportError: as ``read_pixels``; a ValueError also if it has an alpha channel.
    """
    pixels = read_pixels(path)
    if len(pixels) in (2, 4):
        raise ValueError(f"{path} has an alpha channel, which would be lost. Flatten it first.")
    return pixels


def read_pixels(path: Path) -> np.ndarray:
    """Reads one image (C, H, W) as stored, like ``read_image``; with alpha, which is the last channel, C is 2 or 4.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not an image, needs more than ``gae.data.memory.limit()`` bytes, or cannot be read
            without loss: CMYK, YCbCr, LAB, integers outside 0 … 65535, several pages, floats that are not finite or
            outside [0, 1], colours of 16 bits multiplied by alpha, a transparent colour at another depth than 8 bits.
        ImportError: for several channels of 16 bits without pypng (PNG) or tifffile (TIFF).
    """
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(f"No image {path}. Check the path.")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}. Convert it.")
    with _any_size():
        try:
            with Image.open(path, formats=FORMATS) as image:
                problem = _problem(path, image)
                if problem is None:
                    pixels = _upright(path, image)
        except (*UNREADABLE, struct.error, zlib.error) as error:
            raise ValueError(f"{path} cannot be read as an image ({error}). Repair it or take it out.") from error
    if problem is not None:
        raise ValueError(f"{path} {problem}")
    pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    return _of_known_range(path, pixels)


def _upright(path: Path, image: "Image.Image") -> np.ndarray:
    """Pixels (H, W) or (H, W, C), turned as the EXIF orientation says."""
    from PIL import Image, ImageOps

    if not _colour_of_16_bits(path, image):
        upright = ImageOps.exif_transpose(image)
        return np.asarray(upright.convert(plain_mode(upright)))
    orientation = image.getexif().get(ORIENTATION, 1)
    pixels = sixteen_bits.read_png(path) if image.format == "PNG" else sixteen_bits.read_tiff(path)
    planes = [Image.fromarray(pixels[..., channel]) for channel in range(pixels.shape[-1])]
    for plane in planes:
        plane.getexif()[ORIENTATION] = orientation
    return np.stack([np.asarray(ImageOps.exif_transpose(plane)) for plane in planes], -1)


def channels_last(image: np.ndarray) -> np.ndarray:
    """Converts an image (C, H, W) to (H, W, C), the layout of Pillow and matplotlib; a grey one to (H, W)."""
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)


def as_image(x: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """Observation as an image (C, H, W) in [0, 1]; one that is not an image becomes a row of pixels."""
    scaled = np.clip((x - low) / np.maximum(np.subtract(high, low), 1e-12), 0, 1)
    return scaled if is_image(x.shape) else scaled.reshape(1, 1, -1)


def is_image(shape: Sequence[int]) -> bool:
    """Whether a shape is that of a grey image or of one in colours, (1, H, W) or (3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def mosaic(rows: Sequence[Sequence[np.ndarray]], gap: int = 0, background: float | np.generic = 0.0) -> np.ndarray:
    """Joins tiles (H, W) or (H, W, 3) of one size into one picture, with the dtype of the background."""
    height, width = (side + gap for side in rows[0][0].shape[:2])
    shape = (height * len(rows) - gap, width * max(map(len, rows)) - gap, *rows[0][0].shape[2:])
    picture = np.full(shape, background)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            picture[i * height : (i + 1) * height - gap, j * width : (j + 1) * width - gap] = tile
    return picture


@contextmanager
def _any_size() -> Iterator[None]:
    """Disables Pillow's pixel limit, which ``need_room`` replaces."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _problem(path: Path, image: "Image.Image") -> str | None:
    """The reason to reject an image, from its header; None to accept it."""
    (width, height), mode = image.size, image.mode
    channels = 3 if mode == "P" else len(image.getbands())
    try:
        need_room(width * height * channels * FLOAT32, path, f"an image of {width} × {height} pixels")
    except ValueError as error:
        return str(error).removeprefix(f"{path} ")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        return f"holds {frames} images. Save the one you need as a separate file."
    if mode not in (*GREY, *COLOUR, *GREY_16, *ALPHA, "F"):
        return f"has the colour mode {mode}. Convert it to grey or RGB."
    if "transparency" in image.info and mode != "P" and _depth(path, image)[0] != 8:
        return f"has a transparent colour at {_depth(path, image)[0]} bits. Save it with an alpha channel."
    if _colour_of_16_bits(path, image) and image.format != "PNG":
        return _tiff_problem(image)
    return None


def _tiff_problem(image: "Image.Image") -> str | None:
    """The reason to reject a TIFF with several samples of 16 bits per pixel."""
    from PIL.TiffImagePlugin import BITSPERSAMPLE, EXTRASAMPLES, SAMPLEFORMAT

    tags: Any = getattr(image, "tag_v2", {})
    if set(tags.get(SAMPLEFORMAT, (1,))) != {1}:
        return "has samples of 16 bits that are not unsigned integers. Save it as unsigned integers."
    samples, extra = len(tags[BITSPERSAMPLE]), tags.get(EXTRASAMPLES, ())
    if (samples, extra) not in ((3, ()), (4, (STRAIGHT_ALPHA,))):
        return (
            f"has {samples} channels of 16 bits that are not RGB, or RGB with straight alpha. Save it as one of these."
        )
    return None


def _colour_of_16_bits(path: Path, image: "Image.Image") -> bool:
    """Whether an image has several samples of 16 bits per pixel, which Pillow silently reads as 8 bits."""
    bits, samples = _depth(path, image)
    return bits > 8 and samples > 1


def _depth(path: Path, image: "Image.Image") -> tuple[int, int]:
    """Bits per sample and samples per pixel, from the header; those of other formats than PNG and TIFF are 8 bits."""
    from PIL.TiffImagePlugin import BITSPERSAMPLE

    if image.format == "PNG":
        with path.open("rb") as file:
            header = file.read(26)
        return header[24], SAMPLES_OF_PNG[header[25]]
    tags: Any = getattr(image, "tag_v2", {})
    bits = np.atleast_1d(tags.get(BITSPERSAMPLE, 8))
    return int(bits.max()), len(bits)


def _of_known_range(path: Path, pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind in "ui" and pixels.dtype != np.uint8:
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"{path} has values from {pixels.min()} to {pixels.max()}. Save it with 8 or 16 bits.")
        return pixels.astype(np.uint16)
    if pixels.dtype.kind == "f":
        bad = ~np.isfinite(pixels) | (pixels < 0) | (pixels > 1)
        if bad.any():
            _, row, column = (int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"{path} has floating-point pixels that are not in [0, 1], first {pixels[bad][0]:g} at row {row}, "
                f"column {column}. Repair or rescale it."
            )
    return pixels


# A folder of images.


class _Listing(NamedTuple):
    """Sorted image paths relative to their folder, and the skipped entries by reason."""

    images: list[PurePath]
    passed: dict[str, list[str]]


def read_image_folder(folder: Path, resize: Resize | None = None, event_shape: Sequence[int] | None = None) -> Arrays:
    """Reads all images of a folder recursively, channels first (N, C, H, W), in path order.

    If every image lies in a sub-folder, the sorted sub-folder names become labels 0, 1, …. Folders ``train`` and
    ``test`` are a split rather than classes; their sub-folders are labels with a common numbering. Other files, hidden
    files and linked folders are skipped with a warning that counts them.

    Args:
        folder: the folder.
        resize: brings images of mixed sizes and modes to one size.
        event_shape: (C, H, W) of an existing model, which decides the channels of mixed modes.

    Raises:
        ValueError: if there are no images, ``read_pixels`` rejects one, without ``resize`` one has an alpha channel or
            differs from the first in size, channels or dtype, half of a split is missing, or the images need more than
            ``gae.data.memory.limit()`` bytes.
    """
    images, passed = _walk(folder)
    if not images:
        raise ValueError(
            f"{folder} has no images ({', '.join(SUFFIXES)}){_listed(passed)}. For a folder of idx files use "
            "`load('mnist', folder=...)`."
        )
    top = {path.parts[0].lower() for path in images if len(path.parts) > 1}
    split = set(SPLITS) <= top
    if not split and top & set(SPLITS) and top <= {*SPLITS, *HELD_OUT}:
        raise ValueError(
            f"{folder} has the folders {', '.join(sorted(top))}: a split needs both train and test. Name one of the "
            f"folders as the data, such as {folder / next(p.parts[0] for p in images if len(p.parts) > 1)}."
        )
    groups = {name: [path for path in images if path.parts[0].lower() == name] for name in SPLITS} if split else {}
    if split:
        chosen = {path for group in groups.values() for path in group}
        passed["outside of train and test"] = [str(path) for path in images if path not in chosen]
    if any(passed.values()):
        warnings.warn(f"{folder}: passed over{_listed(passed)}.", stacklevel=2)
    parts = list(groups.values()) if split else [images]
    labels, classes = _labels(folder, parts, depth=1 if split else 0)
    paths = [path for part in parts for path in part]
    pixels, notes = _stack(folder, paths, resize, event_shape)
    files = np.array([path.as_posix() for path in paths])
    shared: Any = {"value_range": (0.0, 1.0), "files": files, "classes": classes, "notes": notes}
    if split:
        count = len(parts[0])
        return Arrays(pixels[:count], labels[0], pixels[count:], labels[1], **shared)
    return Arrays(pixels, labels[0], **shared)


def _walk(folder: Path) -> _Listing:
    images: list[PurePath] = []
    passed: dict[str, list[str]] = {"hidden": [], "linked folders": [], "other suffixes": []}
    for place, folders, files in os.walk(folder, onerror=_raise):
        at = Path(place).relative_to(folder)
        folders.sort()
        for name in folders:
            if name.startswith(".") or Path(place, name).is_symlink():
                passed["hidden" if name.startswith(".") else "linked folders"].append(str(at / name))
        folders[:] = [name for name in folders if not name.startswith(".")]  # os.walk follows no links
        for name in sorted(files):
            if name.startswith("."):
                passed["hidden"].append(str(at / name))
            elif Path(name).suffix.lower() in SUFFIXES:
                images.append(at / name)
            else:
                passed["other suffixes"].append(str(at / name))
    return _Listing(sorted(images), passed)


def _raise(error: OSError) -> None:
    """Raises the error for a folder that cannot be listed, which ``os.walk`` ignores by default."""
    raise error


def _labels(
    folder: Path, parts: Sequence[list[PurePath]], depth: int
) -> tuple[list[np.ndarray | None], tuple[str, ...] | None]:
    """Label numbers from the sub-folders at a depth, common to all parts, and their names.

    None if any image lies outside of them.
    """
    stray = [path for part in parts for path in part if len(path.parts) == depth + 1]
    every = [path for part in parts for path in part]
    if stray:
        if len(stray) < len(every):
            names = _names([path.as_posix() for path in stray])
            warnings.warn(
                f"{folder}: no labels, because {len(stray)} of {len(every)} images lie outside of the sub-folders that "
                f"would be the classes ({names}). Move them into one for labels.",
                stacklevel=3,
            )
        return [None for _ in parts], None
    numbers = {name: i for i, name in enumerate(sorted({path.parts[depth] for path in every}))}
    return [np.array([numbers[path.parts[depth]] for path in part]) for part in parts], tuple(numbers)


def _stack(
    folder: Path, paths: Sequence[PurePath], resize: Resize | None, event_shape: Sequence[int] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads images (N, C, H, W), and notes on their changes; see ``stack_images``."""
    like = read_pixels(folder / paths[0])
    shape = like.shape if resize is None else (len(like), *resize.size)
    need_room(len(paths) * math.prod(shape) * FLOAT32, folder, f"{len(paths):,} images of {shape}")
    images = ((str(path), read_pixels(folder / path)) for path in paths)
    return stack_images(images, str(folder), resize, event_shape)


def _listed(passed: dict[str, list[str]]) -> str:
    """``: hidden 1 (.a), other suffixes 4 (a.txt, b.txt, c.txt, …)``, or nothing."""
    items = [f"{reason} {len(names)} ({_names(names)})" for reason, names in passed.items() if names]
    return f": {', '.join(items)}" if items else ""


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
