"""Figure of inference for one observation: the joint density over codes, an ascent, the posterior and its rivals."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gae.analysis.landscape import MASSES, Landscape
from gae.data.files import check_file, whole
from gae.reports.figures import INK, canvas, png, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SUFFIXES = (".png", ".svg")
DEPTHS = (1, 2, 3, 5)  # nats below the highest value at which contours are drawn, times powers of 10
POSTERIOR, ENCODER, ASCENT = "#009E73", "#0072B2", "#D55E00"
RADII = [math.sqrt(-2 * math.log(1 - mass)) for mass in MASSES]  # of a normal's regions, in standard deviations


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
        handles = [*_ascent(left, seen), *_posterior(right, seen)]
        for axes in (left, right):
            axes.set_xlabel("widest direction of the Laplace approximation" if seen.is_slice else "$z_1$")
            axes.set_ylabel("second direction" if seen.is_slice else "$z_2$")
            axes.grid(False)
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


def _ascent(axes: "Axes", seen: Landscape) -> list[Any]:
    """Contours of the joint density and the path; returns the handles of their legend."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    field = seen.view
    below = np.maximum((field.value - max(seen.height, float(field.value.max()))).cpu().numpy(), -1e300)
    levels = _levels(below)
    colours = colormaps["Blues"](np.linspace(0.02, 0.6, len(levels)))
    filled = axes.contourf(field.across.cpu(), field.up.cpu(), below, levels, colors=colours, extend="min")
    axes.contour(field.across.cpu(), field.up.cpu(), below, levels, colors="#7d8fa3", linewidths=0.5, linestyles="-")
    bar = axes.figure.colorbar(filled, ax=axes, location="bottom", aspect=40, pad=0.02)
    shown = [0.0, *(10.0**power for power in range(9))] if len(levels) > 9 else [-level for level in levels]
    bar.set_label("log q(x, z): nats below the highest value")
    bar.set_ticks(levels, labels=[f"{abs(level):g}" if -level in shown else "" for level in levels])
    low, size = seen.window[0].tolist(), seen.window.diff(dim=0)[0].tolist()
    frame = Rectangle((low[0], low[1]), *size, fill=False, ec=INK, ls=":", lw=1)
    axes.add_patch(frame)
    frame.set_label("the part enlarged on the right")
    z, accepted = seen.path.z.cpu(), seen.path.accepted.cpu()
    (line,) = axes.plot(*z[accepted].T, "-o", color=ASCENT, lw=1.6, ms=3.5, label=f"ascent: {seen.ascent}")
    (start,) = axes.plot(*z[:1].T, "o", color="#ffffff", mec=ASCENT, mew=1.8, ms=8, label="its start", zorder=4)
    handles = [line, start]
    if not bool(accepted.all()):
        handles += axes.plot(*z[~accepted].T, "x", color=ASCENT, ms=5, mew=1, label="points that it tried and left")
    axes.set_title("the ascent")
    return [*handles, _mode(axes, seen), frame]


def _posterior(axes: "Axes", seen: Landscape) -> list[Any]:
    """Highest-density regions of the posterior and its approximations; returns the handles of their legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Ellipse, Patch

    field, masses = seen.posterior, " and ".join(f"{mass:.0%}".replace("%", " %") for mass in MASSES)
    levels = [*reversed(field.levels(MASSES)), float(field.value.max()) + 1]
    axes.contourf(field.across.cpu(), field.up.cpu(), field.value.cpu(), levels, colors=["#bfe7da", "#73cdb3"])
    name = "posterior on this slice" if seen.is_slice else "posterior, by quadrature"
    handles: list[Any] = [Patch(color="#73cdb3", label=f"{name}: {masses}")]
    values, vectors = np.linalg.eigh(seen.covariance.double().cpu().numpy())
    angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    for radius in RADII:
        width, height = 2 * radius * np.sqrt(values[::-1])
        axes.add_patch(
            Ellipse(seen.mode.tolist(), width, height, angle=angle, fill=False, ec=INK, ls="--", lw=1.4)  # type: ignore[arg-type]
        )
    raised = "" if seen.peaked else ", its curvature raised"
    handles.append(Line2D([], [], color=INK, ls="--", lw=1.4, label=f"Laplace approximation{raised}: {masses}"))
    if seen.encoder is not None:
        q = seen.encoder
        axes.contour(q.across.cpu(), q.up.cpu(), q.value.cpu(), q.levels(MASSES)[::-1], colors=ENCODER, linestyles="-")
        handles.append(Line2D([], [], color=ENCODER, label=f"q(z|x) of {seen.engine}: {masses}"))
    _mode(axes, seen)
    (left, bottom), (right, top) = seen.window.tolist()
    axes.set(xlim=(left, right), ylim=(bottom, top), title="the posterior and its approximations")
    return handles


def _mode(axes: "Axes", seen: Landscape) -> Any:
    return axes.plot(*seen.mode.cpu(), "*", color="#F0E442", mec=INK, mew=0.8, ms=13, label="mode", zorder=5)[0]


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
