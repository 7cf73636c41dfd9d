"""Photographs as arrays (C, H, W) in [0, 1], their masks, and pictures of them side by side."""

from pathlib import Path

import numpy as np

from gae.figures import LINES, STYLE
from gae.files import whole
from gae.images import read_image


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
