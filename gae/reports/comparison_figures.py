"""Figures of a comparison from its results and pictures."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gae.analysis.costs import worst
from gae.analysis.estimates import estimate
from gae.analysis.inference_gap import FLOW
from gae.analysis.matrix import DIAGONAL, ENCODER, GRADIENT_STEPS, LBFGS_STEPS, OPTIMUM
from gae.reports.figures import (
    DASHES,
    DENSE,
    INK,
    LINES,
    Figure,
    Pictures,
    canvas,
    clouds_seen,
    log_axis,
    scatter,
    style,
    under,
)
from gae.reports.observations import Drawing, drawing
from gae.reports.plates import attributes, interpolations, reconstructions, samples, traversals
from gae.reports.rounding import plain
from gae.reports.seen import describe, short
from gae.reports.sentences import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(results: dict[str, Any], pictures: Pictures) -> list[Figure]:
    """All figures of a comparison, in reading order; the global state of matplotlib is unchanged."""
    data = results["data"]
    how = drawing(data["event_shape"], data["value_range"], data.get("columns"))
    with style():
        figures = [
            *([] if results["configuration"].get("given") else [training_curves(results)]),
            bounds(results),
            worst_gaps(results, pictures, how),
            reconstructions(results, pictures, how),
            *([interpolations(pictures, how)] if under(pictures, "interpolation") else []),
            traversals(pictures, how),
            samples(pictures, how),
        ]
        figures += [attributes(pictures, how)] if under(pictures, "attribute") else []
        return [*figures, code_scatter(results, pictures)]


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
        axes.set(xlabel={"steps": "optimiser steps", "evaluations": "decoder evaluations per sample"}[axis])
        log_axis(axes)
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
    return Figure(
        "training", "Training at equal steps and at equal decoder evaluations", caption, figure, describe(figure)
    )


def bounds(results: dict[str, Any]) -> Figure:
    """Bounds on log p(x) against decoder evaluations, a panel per frozen decoder."""
    names, trainings = results["configuration"]["engines"], results["trainings"]
    figure = canvas(4.7 * min(len(names), 2), 3.8 * math.ceil(len(names) / 2) + 0.5)
    panels = figure.subplots(math.ceil(len(names) / 2), min(len(names), 2), squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.remove()
    for axes, name in zip(panels, names, strict=False):
        matrices = [training["decoders"][name]["matrix"] for training in trainings]
        for i, family in enumerate(matrices[0]["cells"]):
            for rule in (LBFGS_STEPS, GRADIENT_STEPS):
                row = {k: v for k, v in matrices[0]["cells"][family].items() if k in (ENCODER, OPTIMUM) or rule in k}
                if rule != (GRADIENT_STEPS if family == FLOW else LBFGS_STEPS):  # that of the optimum
                    row.pop(OPTIMUM)
                if len(row) == 1:
                    continue
                means = [estimate([m["cells"][family][k]["values"] for m in matrices]).mean for k in row]
                spent = [cell["evaluations"] for cell in row.values()]
                dashes = DASHES[OPTIMUM not in row]
                axes.plot(spent, means, dashes, color=LINES[i], marker="o", ms=4, label=f"{family}, {rule}")
        if all(matrix["log_p"]["tight"] for matrix in matrices):
            axes.axhline(estimate([m["log_p"]["values"] for m in matrices]).mean, color=INK, lw=1, label="log p(x)")
        axes.set(title=name, xlabel="decoder evaluations per sample", ylabel="bound on log p(x)   (nats)")
        _evaluation_axis(
            axes, max(cell["evaluations"] for row in matrices[0]["cells"].values() for cell in row.values())
        )
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(names), 2) + 1, fontsize=8
    )
    caption = (
        "Bounds on log p(x) of the same test samples on each frozen decoder, in nats, from the encoder of each "
        "family (0 evaluations) over a few steps to the local optimum q* (last point of the solid lines). The level "
        "line is log p(x), drawn only where its estimate is tight. All bounds are estimated from fresh draws."
    )
    return Figure("bounds", "Bound against decoder evaluations", caption, figure, describe(figure))


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


def worst_gaps(results: dict[str, Any], pictures: Pictures, how: Drawing) -> Figure:
    """The test samples on which the encoder gives up most, with their reconstructions."""
    name = "amortised" if "amortised" in results["configuration"]["engines"] else results["configuration"]["engines"][0]
    matrix = results["trainings"][0]["decoders"][name]["matrix"]
    gaps = worst(matrix, DIAGONAL)
    upper = "log p(x)" if matrix["log_p"]["tight"] else "the bound of q* (log p(x) is not known tightly)"
    decoder = "given decoder" if name == "given" else f"decoder trained by {name} (first training)"
    caption = (
        f"The test samples (numbered from 0) whose bound by the diagonal encoder lies furthest below {upper}, on the "
        f"{decoder}, and the decoder's mean at the encoder's mean. {how.note}"
    )
    titles = [f"sample {i}\n{plain(-gap, 1)} nats" for i, gap in gaps]
    alt = (
        f"The encoder gives up most on test sample {gaps[0][0]}, {short(gaps[0][1])} nats below {upper}; the "
        f"{number(len(gaps))} worst lose {short(gaps[-1][1])} nats or more."
    )
    drawn = how.listed(pictures["worst"], pictures["worst reconstruction"], titles)
    return Figure("worst", "Where the encoder gives up most", caption, drawn, alt)


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
        scatter(axes, cloud, labels, dense=sum(map(len, clouds.values())) > DENSE)
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
    return Figure("codes", "Codes", caption, figure, clouds_seen(clouds, labels))


def _evaluation_axis(axes: "Axes", highest: float) -> None:
    ticks = [0.0, *(float(4**i) for i in range(8) if 4**i <= highest)]
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(left=-0.2)
