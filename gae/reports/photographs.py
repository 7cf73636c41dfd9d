"""Figures and page of an image restoration: images side by side, the loss of each run, and a slider."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gae.data.images import channels_last
from gae.reports.answers import restoration_answer
from gae.reports.figures import LINES, Figure, canvas, save, style, vector
from gae.reports.pages import embed, write_page
from gae.reports.seen import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

SHOWN = 1600  # pixels of the longer side of a picture on the page
SMALL = 480  # width on the page of narrower pictures, whose pixels are enlarged


def side_by_side(panels: dict[str, np.ndarray], path: Path) -> None:
    """Writes a figure of images (C, H, W) of one size, each with its title."""
    height, width = next(iter(panels.values())).shape[1:]
    with style():
        figure = canvas(3.2 * len(panels), 3.2 * height / width + 0.35)
        for axes, (title, image) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
            axes.imshow(channels_last(np.clip(image, 0, 1)), cmap="gray", vmin=0, vmax=1)
            axes.set_title(title)
            axes.set_axis_off()
        save(figure, path)


def loss_curve(loss: list[list[float]], path: Path) -> None:
    """Writes a figure of the squared error per measured value against step, one line per run."""
    save(_curve(loss), path)


def _curve(loss: list[list[float]]) -> "Canvas":
    with style():
        figure = canvas(6.4, 3.4)
        axes = figure.subplots()
        for i, values in enumerate(np.array(loss).T):
            axes.plot(range(1, len(values) + 1), values, color=LINES[i % len(LINES)], lw=1, label=f"run {i + 1}")
        axes.set(xlabel="step", ylabel="squared error per measured value", yscale="log")
        if len(loss[0]) > 1:
            axes.legend()
    return figure


def write_restoration(
    path: Path,
    name: str,
    pictures: dict[str, np.ndarray],
    loss: list[list[float]],
    quality: dict[str, dict[str, float]],
    facts: dict[str, str],
    made: list[tuple[str, str]],
) -> None:
    """Writes the self-contained page of a restoration.

    Args:
        path: the page.
        name: of the photograph.
        pictures: images (C, H, W) of one size in [0, 1]: the degraded, the restored and, if known, the clean one.
        loss: squared error per measured value, T lists of R runs.
        quality: PSNR in dB and SSIM by the names of the pictures; empty without a clean photograph.
        facts: settings and numbers in words.
        made: the facts at the foot of the page (``gae.reports.pages.made_by``).
    """
    height, width = next(iter(pictures.values())).shape[1:]
    shrunk = min(1.0, SHOWN / max(height, width))
    size = max(1, round(shrunk * width)), max(1, round(shrunk * height))
    curve = _curve(loss)
    write_page(
        path,
        "restoration.html",
        name=name,
        pictures=[
            {
                "name": title,
                "png": embed(_png(image, size)),
                "width": size[0],
                "height": size[1],
                "alt": _seen(title, image),
            }
            for title, image in pictures.items()
        ],
        width=max(size[0], SMALL),
        small=size[0] < SMALL,
        note=f"Shown at {size[0]} × {size[1]} of {width} × {height} pixels." if shrunk < 1 else "",
        quality=_quality_rows(quality),
        networks="an untrained network" if len(loss[0]) == 1 else f"{len(loss[0])} untrained networks",
        answer=restoration_answer(quality, loss[-1]),
        curve=vector(Figure("loss", "Course of the fit", "", curve, describe(curve))),
        made=made,
        facts=list(facts.items()),
    )


def _quality_rows(quality: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    """Formatted rows of the table of PSNR and SSIM."""
    if not quality:
        return []
    psnr, ssim = quality.values()
    return [
        {"name": name, "psnr": f"{psnr[name]:.2f}" if math.isfinite(psnr[name]) else "∞", "ssim": f"{ssim[name]:.4f}"}
        for name in psnr
    ]


def _seen(title: str, image: np.ndarray) -> str:
    """A photograph in words: its size, brightness and contrast."""
    values = np.clip(image, 0, 1)
    size = f"{values.shape[2]} × {values.shape[1]} pixels"
    return f"The {title} photograph: {size}, values from 0 to 1 with mean {values.mean():.2f} ± {values.std():.2f}."


def _png(image: np.ndarray, size: tuple[int, int]) -> bytes:
    """PNG of an image (C, H, W) at 8 bits, resampled if its size (width, height) differs."""
    from PIL import Image

    pixels = np.ascontiguousarray(channels_last((np.clip(image, 0, 1) * 255).round().astype(np.uint8)))
    picture: Any = Image.fromarray(pixels)
    stream = io.BytesIO()
    (picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)).save(stream, "png")
    return stream.getvalue()
