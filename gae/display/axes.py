"""The axes that ``plot`` methods draw on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008): seen apart by people who are colour-blind.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#222222"


def axes_for(ax: "Axes | None", width: float = 6.4, height: float = 4.0) -> "Axes":
    """The given axes, or those of a new figure of pyplot, which a notebook shows; the size is in inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def legend(ax: "Axes") -> None:
    """A legend if anything has a name."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)


def whole_ticks(ax: "Axes") -> None:
    """Ticks at integers only, along the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def blank(ax: "Axes") -> None:
    """Removes ticks and frame, for a picture."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
