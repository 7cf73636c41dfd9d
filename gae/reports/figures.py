"""Figures of the pages: colour-blind-safe, with captions and alternative text; as PNG files, and as SVG in a page."""

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gae.data.files import whole
from gae.data.images import as_image, channels_last, mosaic
from gae.display import INK, LINES
from gae.reports.seen import compared
from gae.reports.vector import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Pictures = dict[str, np.ndarray]

# Okabe & Ito (2008) for lines (``LINES``), Tol's "muted" for labels (which are also drawn as digits).
DASHES = ("-", "--", "-.", ":", "-", "--", "-.")
LABELS = ("#332288", "#CC6677", "#117733", "#999933", "#88CCEE", "#882255", "#44AA99", "#AA4499", "#DDAA33", "#555555")
TILE, GAP = 112, 6  # pixels of a mosaic: a multiple of 8 and of 28, the sides of the usual digits
DENSE = 5000  # points of a figure above which they are drawn as pixels
STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "savefig.dpi": 150,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Figure:
    """A figure with its title, its caption, and an alternative text, which gives its content in words."""

    name: str
    title: str
    caption: str
    canvas: "Canvas"
    alt: str


def style() -> AbstractContextManager[None]:
    """Context manager with the style of all figures."""
    from matplotlib import rc_context

    return rc_context(STYLE)


def png(canvas: "Canvas") -> bytes:
    """PNG of a figure; equal figures give equal bytes."""
    stream = io.BytesIO()
    with style():
        canvas.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def save(canvas: "Canvas", path: Path) -> None:
    """Writes a figure as PNG."""
    with whole(path) as temporary:
        temporary.write_bytes(png(canvas))


def save_all(figures: Sequence[Figure], folder: Path) -> dict[str, str]:
    """Writes figures as ``folder/name.png``; returns {name: SVG} for a page."""
    images = {}
    for figure in figures:
        save(figure.canvas, folder / f"{figure.name}.png")
        figure.canvas.set_layout_engine("none")  # the layout stays as in the file
        images[figure.name] = vector(figure)
    return images


def vector(figure: Figure) -> str:
    """SVG of a figure, for the text of a page."""
    with style():
        return svg(figure.canvas, figure.alt, f"figure-{figure.name}")


def scatter(
    axes: "Axes", cloud: np.ndarray, labels: np.ndarray | None, size: float = 30.0, dense: bool = False
) -> None:
    """Scatter plot of points (M, 2), each drawn as its label, in the colour of the label; as pixels if it is dense."""
    if labels is None:
        axes.scatter(cloud[:, 0], cloud[:, 1], s=8, color=LINES[0], rasterized=dense)
        return
    for label in np.unique(labels):
        points, color = cloud[labels == label], LABELS[int(label) % len(LABELS)]
        axes.scatter(
            points[:, 0], points[:, 1], s=size, color=color, marker=f"${int(label)}$", linewidths=0.2, rasterized=dense
        )


def clouds_seen(clouds: Mapping[str, np.ndarray], labels: np.ndarray | None) -> str:
    """Scatter plots of points (M, 2) in words: how far the labels lie apart, or the shape of the cloud.

    >>> clouds_seen({"vae": np.array([[0.0, 0], [0, 1], [9, 0], [9, 1]])}, np.array([0, 0, 1, 1]))
    'Share of points whose nearest neighbour in the picture has their label: vae 1.'
    """
    if labels is None:
        ratios = {name: float(cloud.std(0).max() / max(cloud.std(0).min(), 1e-12)) for name, cloud in clouds.items()}
        return compared(ratios, "Ratio of the cloud's longer to its shorter axis")
    shares = {name: _alike(cloud, labels[: len(cloud)]) for name, cloud in clouds.items()}
    return compared(shares, "Share of points whose nearest neighbour in the picture has their label")


def _alike(cloud: np.ndarray, labels: np.ndarray) -> float:
    """The share of points (M, 2) whose nearest neighbour has their label."""
    square = ((cloud[:, None] - cloud) ** 2).sum(-1)
    np.fill_diagonal(square, np.inf)
    return float((labels[square.argmin(1)] == labels).mean())


def log_axis(axes: "Axes") -> None:
    """Makes the horizontal axis logarithmic, with plain numbers that do not collide."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1.0, 3.0) if high < 300 * low else (1.0,)
    axes.xaxis.set_major_locator(MaxNLocator(4) if high < 10 * low else LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def canvas(width: float, height: float, layout: str = "constrained") -> "Canvas":
    """Empty figure, size in inches, outside of pyplot's global state."""
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout=layout)  # type: ignore[arg-type]


def under(pictures: Pictures, kind: str) -> Pictures:
    """Arrays named ``kind/…``, with the prefix removed from their names."""
    return {key.split("/", 1)[1]: value for key, value in pictures.items() if key.startswith(f"{kind}/")}


def grid(rows: Pictures, value_range: Sequence[float], titles: Sequence[str] = ()) -> "Canvas":
    """Grid of images, titles above and names of the rows at the left; one that ends in a space is not shown."""
    tiles = [[_tile(image, *value_range) for image in images] for images in rows.values()]
    side, across = tiles[0][0].shape[0], max(map(len, tiles))
    named = {i * (side + GAP) + side / 2: name for i, name in enumerate(rows) if not name.endswith(" ")}
    margin, top = 1.4 if named else 0.0, 0.36 if titles else 0.0
    width, height = margin + 0.64 * across, top + 0.64 * len(rows)
    figure = canvas(width, height, layout="none")
    axes = figure.add_axes((margin / width, 0.0, 1 - margin / width, 1 - top / height))
    axes.imshow(_on_paper(mosaic(tiles, GAP, np.float32(np.nan))), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for i, title in enumerate(titles):
        axes.text(i * (side + GAP) + side / 2, -GAP, title, ha="center", va="bottom", fontsize=7)
    axes.set(xticks=[], yticks=list(named), yticklabels=list(named.values()))
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def _on_paper(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W) or (H, W, 3) where NaN is transparent, as a colour map draws it in the first."""
    if picture.ndim == 2:
        return picture
    return np.concatenate([np.nan_to_num(picture), ~np.isnan(picture).any(-1, keepdims=True)], -1)


def _tile(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Image as a square of pixels in [0, 1], grey or RGB."""
    image = as_image(x, low, high)
    index = [(np.arange(TILE) * side) // TILE for side in image.shape[1:]]
    return channels_last(image[:, index[0]][:, :, index[1]])
