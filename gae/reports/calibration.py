"""Picture of a simulation-based calibration."""

import math
from statistics import NormalDist

from gae.analysis.calibration import Calibration
from gae.reports.figures import DASHES, INK, LINES, Figure, canvas, style
from gae.reports.seen import compared

SHOWN = 6  # most elements of a code in the picture: those of the smallest p values


def calibration_figure(calibration: Calibration, bins: int = 10) -> Figure:
    """Rank histograms of the elements that fit worst and of the log joint density, and all differences of the ECDF.

    Raises:
        ValueError: unless bins divides the number of possible ranks; for fewer than 5 observations per bin.
    """
    counts, p_values = calibration.histogram(bins), calibration.p_values(bins)
    last = counts.shape[1] - 1
    order = sorted(range(last), key=lambda i: float(p_values[i]))[:SHOWN]
    size = len(calibration.ranks)
    low, high = _band(size, bins)
    with style():
        figure = canvas(2.4 * (len(order) + 2), 2.8)
        *panels, curves = figure.subplots(1, len(order) + 2)
        for axes, i in zip(panels, [*order, last], strict=True):
            axes.axhspan(low, high, color="#dddddd")
            axes.bar(range(bins), counts[:, i].tolist(), width=1.0, color=LINES[0], edgecolor="white")
            name = "log joint" if i == last else f"z[{i}]"
            axes.set(title=f"{name}, p = {float(p_values[i]):.2g}", xlabel="rank, in bins")
        differences = calibration.ecdf_difference()
        ranks = [rank / calibration.draws for rank in range(len(differences))]
        for place, i in enumerate([*order, last]):
            label = "log joint" if i == last else f"z[{i}]"
            k = place % len(LINES)
            curves.plot(ranks, differences[:, i].tolist(), color=LINES[k], ls=DASHES[k], lw=1.2, label=label)
        curves.axhline(0, color=INK, lw=0.8)
        curves.set(title="ECDF minus uniform", xlabel="rank / draws")
        curves.legend(fontsize=7)
    caption = (
        f"Ranks of the true code among {calibration.draws} draws from q(z|x), on {size} observations simulated from "
        f"the model (Talts et al. 2018), for the {len(order)} elements of the code with the smallest p value of a χ² "
        "test, and for the log joint density. Uniform for the exact posterior; grey: 99 % of the counts of one bin. "
        "A U shape: q(z|x) is too narrow; a hump: too wide; a slope: shifted."
    )
    p = {("log joint" if i == last else f"z[{i}]"): float(p_values[i]) for i in [*order, last]}
    alt = compared(p, "p values of a χ² test for uniform ranks")
    return Figure("calibration", "Simulation-based calibration", caption, figure, alt)


def _band(size: int, bins: int) -> tuple[float, float]:
    """99 % interval of the count of one bin, by the normal approximation."""
    half = NormalDist().inv_cdf(0.995) * math.sqrt(size * (1 - 1 / bins) / bins)
    return max(size / bins - half, 0.0), size / bins + half
