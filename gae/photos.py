"""Photographs as arrays (C, H, W) in [0, 1], their masks, and pictures of them side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gae.figures import LINES, STYLE
from gae.files import whole

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
GREY, COLOUR, GREY_16 = ("1", "L"), ("RGB", "P"), ("I;16", "I;16B", "I;16L", "I")


def read_photo(path: Path) -> np.ndarray:
    """One photograph (C, H, W), float32 in [0, 1]: grey (C = 1) or RGB, 8 bits, grey also 16 bits or float TIFF.

    JPEG's orientation tag is followed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no image, or of a kind that would lose something: alpha, CMYK, colour of 16 bits per channel,
            several pages, floats that are not finite or outside [0, 1].
    """
    from PIL import Image, ImageOps

    if not path.is_file():
        raise FileNotFoundError(f"No image {path}. Check the path.")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}. Convert it.")
    try:
        with Image.open(path) as image:
            _refuse_lossy(path, image)
            upright = ImageOps.exif_transpose(image)
            pixels = np.asarray(upright.convert("RGB") if upright.mode == "P" else upright)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}). Save it again as PNG.") from error
    return _in_unit_range(path, pixels if pixels.ndim == 3 else pixels[..., None]).transpose(2, 0, 1)


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
    found = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    with whole(path) as temporary:
        found.save(temporary)


def side_by_side(panels: dict[str, np.ndarray], path: Path) -> None:
    """A figure of images (C, H, W) of one size, each with its title."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    height, width = next(iter(panels.values())).shape[1:]
    with rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(panels), 3.2 * height / width + 0.35), layout="constrained")
        for axes, (title, image) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
            shown = np.clip(image, 0, 1)
            axes.imshow(shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
            axes.set_title(title)
            axes.set_axis_off()
        with whole(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def loss_curve(loss: list[list[float]], path: Path) -> None:
    """A figure of squared error per measured value against step, one line per run."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for i, values in enumerate(np.array(loss).T):
            axes.plot(range(1, len(values) + 1), values, color=LINES[i % len(LINES)], lw=1, label=f"run {i + 1}")
        axes.set(xlabel="step", ylabel="squared error per measured value", yscale="log")
        if len(loss[0]) > 1:
            axes.legend()
        with whole(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _refuse_lossy(path: Path, image: "Image.Image") -> None:
    mode, wide = image.mode, _colour_of_16_bits(path, image)
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise ValueError(f"{path} holds {frames} images. Save the one you mean as a file of its own.")
    if mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        raise ValueError(f"{path} has an alpha channel, which has no place in a photograph. Flatten it first.")
    if wide:
        raise ValueError(f"{path} has colour with 16 bits per channel, which would be cut to 8. Save it with 8 bits.")
    if mode not in (*GREY, *COLOUR, *GREY_16, "F"):
        raise ValueError(f"{path} has the colour mode {mode}. Convert it to grey or RGB.")


def _colour_of_16_bits(path: Path, image: "Image.Image") -> bool:
    """Pillow reads these as 8 bits without a word; the header of a PNG or TIFF tells."""
    if image.format == "PNG":
        with path.open("rb") as file:
            header = file.read(26)
        return header[24] == 16 and header[25] in (2, 6)
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(258, (8,))
    return len(bits) > 1 and max(bits) > 8 if isinstance(bits, tuple) else False


def _in_unit_range(path: Path, pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float32)
    if pixels.dtype.kind in "ui":
        highest = 255 if pixels.dtype == np.uint8 else 65535
        if pixels.min() < 0 or pixels.max() > highest:
            raise ValueError(f"{path} has values from {pixels.min()} to {pixels.max()}. Save it with 8 or 16 bits.")
        return (pixels / highest).astype(np.float32)
    bad = ~np.isfinite(pixels) | (pixels < 0) | (pixels > 1)
    if bad.any():
        row, column, _ = (int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{path} has floating-point pixels that are not in [0, 1], first {pixels[bad][0]:g} at row {row}, column "
            f"{column}. Repair or rescale it."
        )
    return pixels.astype(np.float32)
