"""Alternative text of figures: their curves, bars and points in numbers."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gae.reports.rounding import decimals_of, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MARKUP = re.compile(r"[${}]|\\(?:mathdefault|mathrm)?")
NOTICED = 0.05  # share of a curve's range by which its highest or lowest point must exceed the ends to be named
FEW = 12  # curves that are named one by one
WHOLE, TINY = 10_000, 1e-4  # whole numbers below the first are written out; below the second, with an exponent


def short(value: float) -> str:
    """Three significant digits, or a small whole number, with a typographic minus.

    >>> short(-0.012345), short(1234.5), short(23.0), short(2.38e-12)
    ('−0.0123', '1,230', '23', '2.38e−12')
    """
    if value == round(value) and abs(value) < WHOLE:
        return plain(value, 0)
    if abs(value) < TINY or not math.isfinite(value):
        return f"{value:.2e}".replace("-", "−")
    known = decimals_of(0.0, abs(value))
    return plain(value, 0 if known is None else known + 1)


def course(name: str, x: Sequence[float], y: Sequence[float]) -> str:
    """A curve in words: its ends, and its highest or lowest point between them.

    >>> course("loss", [1.0, 2.0, 3.0], [4.0, 1.0, 2.0])
    'loss falls from 4 at 1 to 2 at 3 (lowest: 1 at 2)'
    >>> course("log p(x)", [0.0, 1.0], [3.0, 3.0])
    'log p(x) stays at 3'
    """
    heights, places = np.asarray(y, float), np.asarray(x, float)
    known = np.isfinite(heights) & np.isfinite(places)
    heights, places = heights[known], places[known]
    if not len(heights):
        return f"{name} has no values"
    first, last, extent = heights[0], heights[-1], np.ptp(heights)
    if len(heights) == 1:
        return f"{name} is {short(first)} at {short(places[0])}"
    if extent <= 1e-9 * max(abs(first), 1e-300):
        return f"{name} stays at {short(first)}"
    ends = f"from {short(first)} at {short(places[0])} to {short(last)} at {short(places[-1])}"
    verb = "goes" if first == last else "rises" if last > first else "falls"
    between = []
    for word, best, beyond in (("highest", np.argmax, 1), ("lowest", np.argmin, -1)):
        at = int(best(heights))
        if min(beyond * (heights[at] - first), beyond * (heights[at] - last)) > NOTICED * extent:
            between.append(f"{word}: {short(heights[at])} at {short(places[at])}")
    return f"{name} {verb} {ends}" + (f" ({', '.join(between)})" if between else "")


def compared(values: Mapping[str, float], what: str) -> str:
    """Numbers by name in a sentence, from the lowest to the highest.

    >>> compared({"pca": 0.25, "vae": 0.125}, "Mean squared error")
    'Mean squared error: vae 0.125, pca 0.250.'
    """
    ordered = sorted(values.items(), key=lambda item: item[1])
    return f"{what}: {', '.join(f'{name} {short(value)}' for name, value in ordered)}."


def describe(canvas: "Canvas") -> str:
    """The panels of a figure in words, from their curves, bars and points."""
    return " ".join(_panel(axes) for axes in canvas.axes if _panel(axes))


def _panel(axes: "Axes") -> str:
    title, x, y = (_plain(text) for text in (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()))
    if axes.images:
        parts = [f"a picture of {' × '.join(map(str, np.asarray(axes.images[0].get_array()).shape[:2]))} pixels"]
    else:
        parts = [*_curves(axes), *_bars(axes), *_points(axes)]
    if not parts:
        return ""
    labels = f"{y} against {x}".strip() if x else y
    head = ", ".join(part for part in (title, labels) if part)
    return f"{head}: {'; '.join(parts)}." if head else f"{'; '.join(parts)}."


def _curves(axes: "Axes") -> list[str]:
    """The curves of the legend; without one, those of more than two points."""
    named = list(zip(*axes.get_legend_handles_labels(), strict=True))
    lines: list[tuple[Any, str]] = [(getattr(handle, "lines", (handle,))[0], label) for handle, label in named]
    seen = [(line, label) for line, label in lines if hasattr(line, "get_xdata")]
    if not named:
        seen = [(line, "the curve") for line in axes.lines if np.size(line.get_xdata()) > 2]
    places = [[np.asarray(each, float).tolist() for each in line.get_data()] for line, _ in seen[:FEW]]
    return [course(_plain(label), x, y) for (_, label), (x, y) in zip(seen, places, strict=False)]


def _bars(axes: "Axes") -> list[str]:
    ticks = dict(
        zip(axes.get_xticks(), (_plain(str(tick.get_text())) for tick in axes.get_xticklabels()), strict=False)
    )
    texts = []
    for container in axes.containers:
        if not hasattr(container, "patches") or not container.patches:
            continue
        heights = {float(bar.get_x() + bar.get_width() / 2): float(bar.get_height()) for bar in container.patches}
        label = _plain(str(container.get_label()))
        prefix = "" if label.startswith("_") else f"{label}: "
        highest = max(heights, key=lambda at: heights[at])
        name = ticks.get(highest) or short(highest)
        texts.append(f"{prefix}{len(heights)} bars, the highest {short(heights[highest])} at {name}")
    return texts


def _points(axes: "Axes") -> list[str]:
    from matplotlib.collections import PathCollection

    clouds = [each for each in axes.collections if isinstance(each, PathCollection)]
    count = sum(len(np.asarray(cloud.get_offsets())) for cloud in clouds)
    return [f"{count} points"] if count > 1 else []


def _plain(text: str) -> str:
    return " ".join(MARKUP.sub("", text).split())
