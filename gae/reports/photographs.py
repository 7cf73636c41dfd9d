"""Figures of an image restoration: images side by side, and the loss of each run."""

from pathlib import Path

import numpy as np

from gae.data.images import channels_last
from gae.reports.figures import LINES, canvas, save, style


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
    with style():
        figure = canvas(6.4, 3.4)
        axes = figure.subplots()
        for i, values in enumerate(np.array(loss).T):
            axes.plot(range(1, len(values) + 1), values, color=LINES[i % len(LINES)], lw=1, label=f"run {i + 1}")
        axes.set(xlabel="step", ylabel="squared error per measured value", yscale="log")
        if len(loss[0]) > 1:
            axes.legend()
        save(figure, path)
