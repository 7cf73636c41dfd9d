"""Figure of inference for one observation: the joint density over codes, an ascent, the posterior and its rivals.

Over a plane of codes it has contours; over codes of one element, curves.
"""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gae.analysis.fields import Field
from gae.analysis.landscape import MASSES, Landscape
from gae.data.files import check_file, whole
from gae.reports.figures import INK, canvas, png, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SUFFIXES = (".png", ".svg")
DEPTHS = (1, 2, 3, 5)  # nats below the highest value at which contours are drawn, times powers of 10
POSTERIOR, ENCODER, ASCENT = "#009E73", "#0072B2", "#D55E00"
REGIONS = ("#bfe7da", "#73cdb3")  # of the posterior: the wider, and the one inside
ENLARGED = "the part enlarged in the other panel"
SHOWN = " and ".join(f"{mass:.0%}".replace("%", " %") for mass in MASSES)


def write(seen: Landscape, path: Path, title: str) -> None:
    """Writes the figure as a .png, or as an .svg with a description in words.

    Raises:
        ValueError: for another suffix.
    """
    check_file(path, *SUFFIXES)
    figure = draw(seen, title)
    content = png(figure) if path.suffix == ".png" else _svg(figure, title, sentence(seen))
    with whole(path) as temporary:
        temporary.write_bytes(content)


def sentence(seen: Landscape) -> str:
    """The figure in words, with its numbers in nats."""
    steps, left = int(seen.path.accepted.sum()) - 1, seen.height - float(seen.path.log_joint[seen.path.accepted][-1])
    text = (
        f"{seen.ascent}: {steps} {'step ends' if steps == 1 else 'steps end'} {_nats(max(left, 0.0))} below the mode."
    )
    return f"{text} {_numbers(seen)}."


def draw(seen: Landscape, title: str) -> "Canvas":
    """The figure: on the left the whole ascent over the joint density, on the right the posterior, enlarged."""
    with style():
        figure = canvas(10.0, 5.9)
        left, right = figure.subplots(1, 2)
        handles = [*draw_ascent(left, seen), *draw_posterior(right, seen)]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
        figure.suptitle(f"{title}\n{_numbers(seen)}", fontsize=10.5)
        return figure


def _numbers(seen: Landscape) -> str:
    """The evidence and the losses of its approximations; where there is none, why."""
    if seen.is_slice:
        return f"A slice through the mode of codes of {len(seen.origin)} elements, on which points are projected"
    if seen.evidence is None:
        return "Under a flat prior log p(x) does not exist" if seen.flat else "The posterior extends beyond any window"
    error = seen.evidence_error or 0.0
    text = f"log p(x) = {_nats(seen.evidence, error)} by quadrature"
    difference = seen.laplace - seen.evidence
    text += f"; Laplace's method gives {_nats(abs(difference), error)} {'more' if difference > 0 else 'less'}"
    if seen.elbo is None:
        return f"{text}; {seen.engine} has no q(z|x)"
    return f"{text}; the ELBO of q(z|x) lies {_nats(max(seen.evidence - seen.elbo, 0.0), error)} below"


def _nats(value: float, error: float = 0.0) -> str:
    """A number of nats to three decimals, or with its error if that is larger.

    >>> _nats(-3.14159), _nats(2.0, 0.034)
    ('−3.142 nats', '2.00 ± 0.03 nats')
    """
    if error < 5e-4:
        return f"{value:.3f} nats".replace("-", "−")
    decimals = max(0, -math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f} nats".replace("-", "−")


def draw_ascent(axes: "Axes", seen: Landscape) -> list[Any]:
    """Draws the whole ascent over the joint density; returns the handles of a legend."""
    if len(seen.mode) == 1:
        background = _joint(axes, seen)
        points = torch.cat([seen.path.z, seen.path.log_joint.unsqueeze(1)], 1).cpu()
    else:
        background = _contours(axes, seen)
        points = seen.path.z.cpu()
    accepted = seen.path.accepted.cpu()
    (line,) = axes.plot(*points[accepted].T, "-o", color=ASCENT, lw=1.6, ms=3.5, label=f"ascent: {seen.ascent}")
    (start,) = axes.plot(*points[:1].T, "o", color="#ffffff", mec=ASCENT, mew=1.8, ms=8, label="its start", zorder=4)
    trials = points[~accepted]
    tried = axes.plot(*trials.T, "x", color=ASCENT, ms=5, mew=1, label="points that it tried and left")
    _label(axes, seen, "the ascent")
    return [line, start, *(tried if len(trials) else []), _mode(axes, seen, seen.height), *background]


def draw_posterior(axes: "Axes", seen: Landscape) -> list[Any]:
    """Draws the posterior and its approximations, by their regions; returns the handles of a legend."""
    from matplotlib.patches import Patch

    name = "posterior on this slice" if seen.is_slice else "posterior, by quadrature"
    raised = "" if seen.peaked else ", its curvature raised"
    engine = "the encoder" if seen.engine == "Amortized" else seen.engine
    names = (f"Laplace approximation{raised}", f"q(z|x) of {engine}")
    line = len(seen.mode) == 1
    approximations = _curves(axes, seen) if line else _regions(axes, seen)
    for handle, label in zip(approximations, names, strict=False):
        handle.set_label(label if line else f"{label}: {SHOWN}")
    low, high = seen.window.tolist()
    axes.set_xlim(low[0], high[0])
    _label(axes, seen, "the posterior and its approximations")
    return [Patch(color=REGIONS[1], label=f"{name}: {SHOWN}"), *approximations]


def _joint(axes: "Axes", seen: Landscape) -> list[Any]:
    """The joint density over codes of one element, and the part that is enlarged; returns handles of a legend."""
    curve = axes.plot(*_curve(seen.view), color=INK, lw=1.2, label="log q(x, z)")
    low, high = seen.window[:, 0].tolist()
    axes.set_ylabel("log q(x, z) in nats")
    return [*curve, axes.axvspan(low, high, fc="#eef2f6", ec=INK, ls=":", lw=1, label=ENLARGED)]


def _contours(axes: "Axes", seen: Landscape) -> list[Any]:
    """The joint density over a plane, with a bar of its colours, and the part that is enlarged; returns its handle."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    across, up, value = _plane(seen.view)
    below = np.maximum(value - max(seen.height, float(value.max())), -1e300)
    levels = _levels(below)
    colours = colormaps["Blues"](np.linspace(0.02, 0.6, len(levels)))
    filled = axes.contourf(across, up, below, levels, colors=colours, extend="min")
    axes.contour(across, up, below, levels, colors="#7d8fa3", linewidths=0.5, linestyles="-")
    bar = axes.figure.colorbar(filled, ax=axes, location="bottom", aspect=40, pad=0.02)
    shown = [0.0, *(10.0**power for power in range(9))] if len(levels) > 9 else [-level for level in levels]
    bar.set_label("log q(x, z): nats below the highest value")
    bar.set_ticks(levels, labels=[f"{abs(level):g}" if -level in shown else "" for level in levels])
    (left, bottom), size = seen.window[0].tolist(), seen.window.diff(dim=0)[0].tolist()
    return [axes.add_patch(Rectangle((left, bottom), *size, fill=False, ec=INK, ls=":", lw=1, label=ENLARGED))]


def _regions(axes: "Axes", seen: Landscape) -> list[Any]:
    """Highest-density regions on a plane; returns the lines of the approximations."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Ellipse

    levels = [*reversed(seen.posterior.levels(MASSES)), float(seen.posterior.value.max()) + 1]
    axes.contourf(*_plane(seen.posterior), levels, colors=REGIONS)
    values, vectors = np.linalg.eigh(seen.covariance.double().cpu().numpy())
    angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    for radius in seen.radii:
        width, height = 2 * radius * np.sqrt(values[::-1])
        axes.add_patch(
            Ellipse(seen.mode.tolist(), width, height, angle=angle, fill=False, ec=INK, ls="--", lw=1.4)  # type: ignore[arg-type]
        )
    handles = [Line2D([], [], color=INK, ls="--", lw=1.4)]
    if seen.encoder is not None:
        axes.contour(*_plane(seen.encoder), seen.encoder.levels(MASSES)[::-1], colors=ENCODER, linestyles="-")
        handles.append(Line2D([], [], color=ENCODER))
    _mode(axes, seen)
    axes.set_ylim(*seen.window[:, 1].tolist())
    return handles


def _curves(axes: "Axes", seen: Landscape) -> list[Any]:
    """Densities over codes of one element; returns the lines of the approximations."""
    z, value = _curve(seen.posterior)
    density = np.exp(value - seen.posterior.log_integral)
    for level, colour in zip(reversed(seen.posterior.levels(MASSES)), REGIONS, strict=True):
        axes.fill_between(z, density, where=list(value >= level), color=colour, lw=0)
    axes.plot(z, density, color=POSTERIOR, lw=1.6)
    offset = z - float(seen.mode)
    normal = np.exp(seen.height - seen.laplace - 0.5 * offset**2 / float(seen.covariance))
    handles = axes.plot(z, normal, color=INK, ls="--", lw=1.4)
    if seen.encoder is not None:
        z, log_q = _curve(seen.encoder)
        handles += axes.plot(z, np.exp(log_q), color=ENCODER)
    _mode(axes, seen, math.exp(seen.height - seen.posterior.log_integral))
    axes.set_ylim(0, None)
    axes.set_ylabel("density per unit of z")
    return handles


def _plane(field: Field) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    across, up = (at.cpu().numpy() for at in field.along)
    return across, up, field.value.mT.cpu().numpy()


def _curve(field: Field) -> tuple[np.ndarray, np.ndarray]:
    return field.along[0].cpu().numpy(), field.value.cpu().numpy()


def _label(axes: "Axes", seen: Landscape, title: str) -> None:
    axes.set_title(title)
    axes.grid(False)
    if len(seen.mode) == 1:
        axes.set_xlabel("$z$")
        return
    axes.set_xlabel("widest direction of the Laplace approximation" if seen.is_slice else "$z_1$")
    axes.set_ylabel("second direction" if seen.is_slice else "$z_2$")


def _mode(axes: "Axes", seen: Landscape, height: float = 0.0) -> Any:
    """A star at the mode; over codes of one element, at the given height."""
    at = [*seen.mode.tolist(), height][:2]
    return axes.plot(*at, "*", color="#F0E442", mec=INK, mew=0.8, ms=13, label="mode", zorder=5)[0]


def _levels(below: np.ndarray) -> list[float]:
    """Negative contour levels at 1, 2, 3, 5, 10, … nats, down to the depth of all but 2 % of the values.

    >>> _levels(np.array([0.0, -7.0]))
    [-5.0, -3.0, -2.0, -1.0, 0.0]
    """
    deepest = max(-float(np.quantile(below, 0.02)), 1.0)
    steps = [float(step * 10**power) for power in range(9) for step in DEPTHS]
    return sorted({0.0, *(-step for step in steps if step <= deepest)})


def _svg(figure: "Canvas", title: str, description: str) -> bytes:
    """SVG of a figure, its text as text; equal figures give equal bytes."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with style(), rc_context({"svg.hashsalt": "gae", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Title": title, "Description": description, "Date": None})
    return stream.getvalue()
