"""Figures of a comparison from its results and pictures: colour-blind-safe, labelled, with captions."""

import io
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gae.analysis.costs import worst
from gae.analysis.estimates import estimate
from gae.analysis.matrix import DIAGONAL, ENCODER, OPTIMUM
from gae.data.files import whole
from gae.data.images import as_image, channels_last, mosaic
from gae.display import INK, LINES
from gae.reports.pages import embed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Pictures = dict[str, np.ndarray]

# Okabe & Ito (2008) for lines (``LINES``), Tol's "muted" for labels (which are also drawn as digits).
DASHES = ("-", "--", "-.", ":", "-", "--", "-.")
LABELS = ("#332288", "#CC6677", "#117733", "#999933", "#88CCEE", "#882255", "#44AA99", "#AA4499", "#DDAA33", "#555555")
TILE, GAP = 112, 6  # pixels of a mosaic: a multiple of 8 and of 28, the sides of the usual digits
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
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Figure:
    """A figure with its title and caption."""

    name: str
    title: str
    caption: str
    canvas: "Canvas"


def draw(results: dict[str, Any], pictures: Pictures) -> list[Figure]:
    """All figures of a comparison, in reading order; the global state of matplotlib is unchanged."""
    with style():
        figures = [
            *([] if results["configuration"].get("given") else [training_curves(results)]),
            bounds(results),
            worst_gaps(results, pictures),
            reconstructions(results, pictures),
            *([interpolations(results, pictures)] if under(pictures, "interpolation") else []),
            traversals(results, pictures),
            samples(results, pictures),
        ]
        figures += [attributes(results, pictures)] if under(pictures, "attribute") else []
        return [*figures, code_scatter(results, pictures)]


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


def save(canvas: "Canvas", path: Path) -> bytes:
    """Writes a figure as PNG and returns the content of the file."""
    content = png(canvas)
    with whole(path) as temporary:
        temporary.write_bytes(content)
    return content


def save_all(figures: Sequence[Figure], folder: Path) -> dict[str, str]:
    """Writes figures as ``folder/name.png``; returns {name: PNG in base64} for a page."""
    return {figure.name: embed(save(figure.canvas, folder / f"{figure.name}.png")) for figure in figures}


def training_curves(results: dict[str, Any]) -> Figure:
    """The same held-out bound for every training, against steps and against decoder evaluations."""
    figure = canvas(9.4, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    names, trainings = results["configuration"]["engines"], results["trainings"]
    for axes, axis in zip(panels, ("steps", "evaluations"), strict=True):
        for i, name in enumerate(names):
            curves = [training["decoders"][name]["curve"] for training in trainings]
            points = [estimate([curve["values"][k] for curve in curves]) for k in range(len(curves[0][axis]))]
            line = {"color": LINES[i], "ls": DASHES[i], "marker": "o", "ms": 4, "capsize": 2, "label": name}
            axes.errorbar(curves[0][axis], [p.mean for p in points], _numbers([p.error for p in points]), **line)
        axes.set(
            xscale="log", xlabel={"steps": "optimiser steps", "evaluations": "decoder evaluations per sample"}[axis]
        )
    panels[0].set_ylabel("held-out bound on log p(x)   (nats)")
    panels[0].legend(title="decoder trained by")
    held = len(trainings[0]["decoders"][names[0]]["curve"]["values"][0])
    caption = (
        f"A lower bound on log p(x) of the first {held} test samples, in nats, by importance sampling around the mode "
        "from 0: the same quantity for every training, whatever it maximises. Left against optimiser steps, right "
        "against "
        f"the decoder evaluations that they took. {_over(results)} Learning rates are the same for all and were not "
        "tuned, and no training was stopped early."
    )
    return Figure("training", "Training at equal steps and at equal decoder evaluations", caption, figure)


def bounds(results: dict[str, Any]) -> Figure:
    """Bounds on log p(x) against decoder evaluations, a panel per frozen decoder."""
    names, trainings = results["configuration"]["engines"], results["trainings"]
    figure = canvas(4.7 * min(len(names), 2), 4.0 * math.ceil(len(names) / 2))
    panels = figure.subplots(math.ceil(len(names) / 2), min(len(names), 2), squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.remove()
    for axes, name in zip(panels, names, strict=False):
        matrices = [training["decoders"][name]["matrix"] for training in trainings]
        for i, family in enumerate(matrices[0]["cells"]):
            for j, rule in enumerate(("L-BFGS", "gradient")):
                row = {k: v for k, v in matrices[0]["cells"][family].items() if k in (ENCODER, OPTIMUM) or rule in k}
                row = row if rule == "L-BFGS" else {k: v for k, v in row.items() if k != OPTIMUM}
                means = [estimate([m["cells"][family][k]["values"] for m in matrices]).mean for k in row]
                spent = [cell["evaluations"] for cell in row.values()]
                axes.plot(spent, means, DASHES[j], color=LINES[i], marker="o", ms=4, label=f"{family}, {rule}")
        if all(matrix["log_p"]["tight"] for matrix in matrices):
            axes.axhline(estimate([m["log_p"]["values"] for m in matrices]).mean, color=INK, lw=1, label="log p(x)")
        axes.set(title=name, xlabel="decoder evaluations per sample", ylabel="bound on log p(x)   (nats)")
        _evaluation_axis(
            axes, max(cell["evaluations"] for row in matrices[0]["cells"].values() for cell in row.values())
        )
        axes.legend(fontsize=8)
    caption = (
        "Bounds on log p(x) of the same test samples on each frozen decoder, in nats, from the encoder of each "
        "family (0 "
        "evaluations) over a few steps to the local optimum q* (last point of the solid lines). The black line is "
        "log p(x), "
        "drawn only where its estimate is tight. All bounds are estimated from fresh draws."
    )
    return Figure("bounds", "Bound against decoder evaluations", caption, figure)


def worst_gaps(results: dict[str, Any], pictures: Pictures) -> Figure:
    """The test samples on which the encoder gives up most, with their reconstructions."""
    name = "amortised" if "amortised" in results["configuration"]["engines"] else results["configuration"]["engines"][0]
    matrix = results["trainings"][0]["decoders"][name]["matrix"]
    gaps = worst(matrix, DIAGONAL)
    upper = "log p(x)" if matrix["log_p"]["tight"] else "the bound of q* (log p(x) is not known tightly)"
    caption = (
        f"The test samples whose bound by the diagonal encoder lies furthest below {upper}, on the "
        f"{'given decoder' if name == 'given' else f'decoder trained by {name} (first training)'}, and the decoder's "
        "mean at the encoder's mean. Gaps in nats: "
        + ", ".join(f"{gap:.1f} (test sample {i})" for i, gap in gaps)
        + f". Grey values in data units, clipped to {_range(results)}."
    )
    rows = {"test sample": pictures["worst"], "reconstruction": pictures["worst reconstruction"]}
    return Figure("worst", "Where the encoder gives up most", caption, grid(rows, results["data"]["value_range"]))


def _over(results: dict[str, Any]) -> str:
    several = len(results["trainings"]) > 1
    return (
        f"Error bars: standard error over {len(results['trainings'])} trainings."
        if several
        else ("Error bars: standard error over test samples, which all curves share; one training.")
    )


def _numbers(values: Sequence[float | None]) -> list[float]:
    """Replaces missing numbers by NaN, which is not drawn; one sample has no standard error."""
    return [math.nan if value is None else value for value in values]


def reconstructions(results: dict[str, Any], pictures: Pictures) -> Figure:
    """Reconstructions of the same test samples, a row per decoder and baseline."""
    rows = {"test sample": pictures["originals"], **under(pictures, "reconstruction")}
    engine = "its diagonal encoder" if results["configuration"].get("given") else "the engine that trained it"
    caption = (
        "The same test samples (first row) and the decoder's mean at their codes: each decoder encoded by "
        f"{engine}, and the baselines at equal code size. Grey values are in data units, clipped to "
        f"{_range(results)}."
    )
    return Figure("reconstructions", "Reconstructions", caption, grid(rows, results["data"]["value_range"]))


def interpolations(results: dict[str, Any], pictures: Pictures) -> Figure:
    """Decoder means along the line between two codes, a row per decoder and pair."""
    strips = under(pictures, "interpolation")
    pairs = next(iter(strips.values())).shape[1]
    rows = {f"{name}" + " " * pair: strip[:, pair] for name, strip in strips.items() for pair in range(pairs)}
    caption = (
        "Decoder means at equal steps on the straight line between the codes of two test samples (left and right "
        f"end), the same pairs for every decoder. Grey values in data units, clipped to {_range(results)}."
    )
    return Figure("interpolations", "Interpolation between codes", caption, grid(rows, results["data"]["value_range"]))


def traversals(results: dict[str, Any], pictures: Pictures) -> Figure:
    """Decoder means of one test sample along single axes of its code, a row per axis."""
    caption = (
        "Decoder means where one element of the first test sample's code moves over two standard deviations of the "
        "test codes to either side, a row for each of the three elements that vary most. Grey values in data units, "
        f"clipped to {_range(results)}."
    )
    return Figure("traversals", "Traversals", caption, _strips(results, under(pictures, "traversal")))


def attributes(results: dict[str, Any], pictures: Pictures) -> Figure:
    """Decoder means of test samples of one label, moved towards another label."""
    first, second = [int(label) for label in np.unique(pictures["labels"])[:2]]
    caption = (
        f"Decoder means of test samples with label {first} as the difference of mean codes between labels {second} "
        f"and {first} is added, 0 (left) to 1.5 times. The labels define the direction; training did not use "
        f"them. Grey values in data units, clipped to {_range(results)}."
    )
    return Figure("attributes", "Attribute vectors", caption, _strips(results, under(pictures, "attribute")))


def _strips(results: dict[str, Any], strips: Pictures) -> "Canvas":
    """Grid with several rows (R, T, *X) for each name; only the first one shows the name."""
    rows = {f"{name}" + " " * i: row for name, strip in strips.items() for i, row in enumerate(strip)}
    return grid(rows, results["data"]["value_range"])


def samples(results: dict[str, Any], pictures: Pictures) -> Figure:
    """Decoder means at draws from the prior, two rows per decoder."""
    drawn = under(pictures, "sample")
    rows: Pictures = {}
    for name, images in drawn.items():
        half = len(images) // 2
        rows |= {name: images[:half], name + " ": images[half : 2 * half]}
    caption = (
        "Decoder means (without observation noise) at codes drawn from the prior, by the same random numbers for "
        "every decoder. A decoder trained at point codes was not trained to match the prior, which may show here. Grey "
        f"values in data units, clipped to {_range(results)}."
    )
    return Figure("samples", "Samples from the prior", caption, grid(rows, results["data"]["value_range"]))


def code_scatter(results: dict[str, Any], pictures: Pictures) -> Figure:
    """Test codes in their first two principal components, a panel per decoder."""
    clouds = under(pictures, "codes")
    across = min(len(clouds), 2)
    down = math.ceil(len(clouds) / across)
    figure = canvas(4.6 * across, 4.2 * down)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(clouds) :]:
        axes.remove()
    labels = pictures.get("labels")
    for axes, (name, cloud) in zip(panels, clouds.items(), strict=False):
        scatter(axes, cloud, labels)
        explained = float(pictures[f"explained/{name}"])
        active = results["trainings"][0]["decoders"][name]["use"]["active"]
        title = f"{name}\n{active} active dimensions, {100 * explained:.0f} % of variance shown"
        axes.set(title=title, xlabel="PC 1", ylabel="PC 2")
    engine = "the diagonal encoder" if results["configuration"].get("given") else "the engine that trained the decoder"
    coloured = "each drawn as its label, in its colour" if labels is not None else "which have no labels"
    caption = (
        f"Codes of the first {len(next(iter(clouds.values())))} test samples ({coloured}) by {engine}, "
        "projected on their first two principal components, in units of the code; the title "
        "gives the share of the codes' variance that the two show, and the number of active dimensions (variance over "
        "the test set of the encoder's mean above 0.01). Axes differ from panel to panel."
    )
    return Figure("codes", "Codes", caption, figure)


def scatter(axes: "Axes", cloud: np.ndarray, labels: np.ndarray | None, size: float = 30.0) -> None:
    """Scatter plot of points (M, 2), each drawn as its label, in the colour of the label."""
    if labels is None:
        axes.scatter(cloud[:, 0], cloud[:, 1], s=8, color=LINES[0])
        return
    for label in np.unique(labels):
        points, color = cloud[labels == label], LABELS[int(label) % len(LABELS)]
        axes.scatter(points[:, 0], points[:, 1], s=size, color=color, marker=f"${int(label)}$", linewidths=0.2)


def canvas(width: float, height: float, layout: str = "constrained") -> "Canvas":
    """Empty figure, size in inches, outside of pyplot's global state."""
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout=layout)  # type: ignore[arg-type]


def under(pictures: Pictures, kind: str) -> Pictures:
    """Arrays named ``kind/…``, with the prefix removed from their names."""
    return {key.split("/", 1)[1]: value for key, value in pictures.items() if key.startswith(f"{kind}/")}


def _range(results: dict[str, Any]) -> str:
    """The range of values and, for a table, the columns that its bars stand for."""
    low, high = results["data"]["value_range"]
    columns = results["data"].get("columns")
    return f"[{low:g}, {high:g}]" + (f"; the bars are, from the left, {', '.join(columns)}" if columns else "")


def sheet(images: np.ndarray, value_range: Sequence[float], path: Path, across: int = 8) -> None:
    """Writes a PNG of images (N, *X), ``across`` to a row, clipped to the value range."""
    rows = {" " * (i + 1): images[i : i + across] for i in range(0, len(images), across)}
    with style():
        save(grid(rows, value_range), path)


def grid(rows: Pictures, value_range: Sequence[float]) -> "Canvas":
    """Grid of images, with the names of the rows at the left; a name that ends in a space is not shown."""
    tiles = [[_tile(image, *value_range) for image in images] for images in rows.values()]
    side, across = tiles[0][0].shape[0], max(map(len, tiles))
    named = {i * (side + GAP) + side / 2: name for i, name in enumerate(rows) if not name.endswith(" ")}
    margin, width, height = 1.4 if named else 0.0, 0.64 * across, 0.64 * len(rows)
    figure = canvas(margin + width, height, layout="none")
    axes = figure.add_axes((margin / (margin + width), 0.0, width / (margin + width), 1.0))
    axes.imshow(mosaic(tiles, GAP, 1.0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=list(named), yticklabels=list(named.values()))
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def _tile(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Observation as a square of pixels in [0, 1], grey or RGB; a vector becomes vertical bars."""
    image = as_image(x, low, high)
    index = [(np.arange(TILE) * side) // TILE for side in image.shape[1:]]
    return channels_last(image[:, index[0]][:, :, index[1]])


def _evaluation_axis(axes: "Axes", highest: float) -> None:
    ticks = [0.0, *(float(4**i) for i in range(8) if 4**i <= highest)]
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(left=-0.2)
