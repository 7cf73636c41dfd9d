"""Drawings of observations: images in grids, and the features of a table in plots with their names."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from gae.reports.figures import DASHES, INK, LINES, canvas, grid, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MOST, FEWER = 9, 6  # features in a figure, and in one with a row of panels for each model
ACROSS = 12  # images in a row of draws
NARROW, WIDE = 26, 38  # characters in a line of the name of a feature
MARKS = "o^sDvP*X<>"

Arrays = Mapping[str, np.ndarray]


def drawing(event_shape: Sequence[int], value_range: Sequence[float], columns: Sequence[str] | None) -> "Drawing":
    """The way to draw observations of a shape: as images (C, H, W) of one or three channels, else by their features.

    >>> drawing([4], [0.0, 1.0], ["a", "b", "c", "d"]).note
    'Features are in the units of the data.'
    """
    if len(event_shape) == 3 and event_shape[0] in (1, 3):
        return Images(value_range)
    indices = [", ".join(map(str, at)) for at in np.ndindex(*event_shape)]
    return Features(tuple(columns or [f"x[{index}]" for index in indices]))


def sheet(
    named: Arrays,
    value_range: Sequence[float],
    path: Path,
    columns: Sequence[str] | None = None,
    across: int = 8,
) -> None:
    """Writes a PNG of observations (N, *X) by name: images, ``across`` to a row, or the features of a table."""
    every = np.concatenate(list(named.values()))
    how = drawing(every.shape[1:], value_range, columns)
    with style():
        if isinstance(how, Images):
            rows = {" " * (i + 1): every[i : i + across] for i in range(0, len(every), across)}
            save(grid(rows, value_range), path)
        else:
            save(how.drawn(named), path)


class Drawing(ABC):
    """A way to draw observations."""

    @property
    @abstractmethod
    def note(self) -> str:
        """A sentence of the caption, on units."""

    @abstractmethod
    def compared(self, values: np.ndarray, reconstructions: Arrays) -> "Canvas":
        """Observations (N, *X), and reconstructions of them by each model."""

    @abstractmethod
    def listed(self, values: np.ndarray, reconstruction: np.ndarray, titles: Sequence[str]) -> "Canvas":
        """Observations (N, *X) one by one, each with its title and reconstruction."""

    @abstractmethod
    def moved(self, paths: Arrays, amounts: np.ndarray, label: str) -> "Canvas":
        """Observations (R, T, *X) along R paths of each model, where T amounts of something are added."""

    @abstractmethod
    def drawn(self, samples: Arrays, reference: np.ndarray | None = None) -> "Canvas":
        """Draws (N, *X) from each model, beside observations if they are given."""


@dataclass(frozen=True)
class Images(Drawing):
    """Observations as images, a row for each model."""

    value_range: Sequence[float]

    @property
    def note(self) -> str:
        low, high = self.value_range
        return f"Grey values are in data units, clipped to [{low:g}, {high:g}]."

    def compared(self, values: np.ndarray, reconstructions: Arrays) -> "Canvas":
        return grid({"test sample": values, **reconstructions}, self.value_range)

    def listed(self, values: np.ndarray, reconstruction: np.ndarray, titles: Sequence[str]) -> "Canvas":
        return grid({"test sample": values, "reconstruction": reconstruction}, self.value_range, titles)

    def moved(self, paths: Arrays, amounts: np.ndarray, label: str) -> "Canvas":
        rows = {f"{name}" + " " * i: row for name, path in paths.items() for i, row in enumerate(path)}
        return grid(rows, self.value_range)

    def drawn(self, samples: Arrays, reference: np.ndarray | None = None) -> "Canvas":
        rows = {
            name + " " * i: images[start : start + ACROSS]
            for name, images in samples.items()
            for i, start in enumerate(range(0, len(images), ACROSS))
        }
        return grid(rows, self.value_range)


@dataclass(frozen=True)
class Features(Drawing):
    """Observations by the features of a table, a panel for each; at most 9, with the largest errors or changes."""

    names: Sequence[str]

    @property
    def note(self) -> str:
        count = len(self.names)
        some = f"; of {count}, those with the largest errors or changes are shown" if count > FEWER else ""
        return f"Features are in the units of the data{some}."

    def compared(self, values: np.ndarray, reconstructions: Arrays) -> "Canvas":
        """Reconstruction against value, a panel for each feature; those with the largest errors."""
        errors = [np.abs(_flat(each) - _flat(values)).mean(0) for each in reconstructions.values()]
        shown = self.most(_relative(np.mean(errors, 0), values))
        figure, panels = self._panels(shown)
        for axes, i in zip(panels, shown, strict=False):
            for k, (name, each) in enumerate(reconstructions.items()):
                mark: Any = {"marker": MARKS[k % len(MARKS)], "color": LINES[k % len(LINES)]}
                axes.scatter(_flat(values)[:, i], _flat(each)[:, i], s=18, alpha=0.8, label=name, **mark)
            axes.axline((float(np.nan_to_num(_flat(each)[0, i])),) * 2, slope=1, color=INK, lw=0.8)
            axes.set(xlabel=fill(self.names[i], WIDE), ylabel="reconstruction")
        _legend(figure, panels[0])
        return figure

    def listed(self, values: np.ndarray, reconstruction: np.ndarray, titles: Sequence[str]) -> "Canvas":
        """Value and reconstruction of each observation, a panel for each feature; those with the largest errors."""
        flat, rebuilt = _flat(values), _flat(reconstruction)
        shown = self.most(_relative(np.abs(rebuilt - flat).mean(0), values))
        figure, panels = self._panels(shown)
        places = np.arange(len(flat))
        for axes, i in zip(panels, shown, strict=False):
            axes.vlines(places, flat[:, i], rebuilt[:, i], color="#888888", lw=1)
            axes.plot(places, flat[:, i], "o", color=LINES[0], ms=5, label="value")
            axes.plot(places, rebuilt[:, i], "D", color=LINES[1], ms=5, mfc="none", label="reconstruction")
            axes.set_xticks(places, [""] * len(places))
            axes.set(title=fill(self.names[i], WIDE))
        for axes in panels[-3:]:
            axes.set_xticks(places, titles, rotation=90, fontsize=7)
        _legend(figure, panels[0])
        return figure

    def moved(self, paths: Arrays, amounts: np.ndarray, label: str) -> "Canvas":
        """Features along paths, a row of panels for each model; those that move most."""
        ranges = [np.ptp(path.reshape(*path.shape[:2], -1), axis=1).max(0) for path in paths.values()]
        every = np.concatenate([path.reshape(-1, path[0, 0].size) for path in paths.values()])
        shown = self.most(_relative(np.max(ranges, 0), every), FEWER)
        figure = canvas(2.3 * max(len(shown), 2), 1.9 * len(paths) + 0.4)
        panels = figure.subplots(len(paths), len(shown), squeeze=False, sharex=True, sharey="col")
        for row, (name, path) in zip(panels, paths.items(), strict=True):
            for axes, i in zip(row, shown, strict=True):
                for k, course in enumerate(path.reshape(*path.shape[:2], -1)[:, :, i]):
                    line: Any = {"color": LINES[k % len(LINES)], "ls": DASHES[k % len(DASHES)]}
                    axes.plot(amounts, course, lw=1.4, label=f"path {k + 1}", **line)
            row[0].set_ylabel(name)
        for axes, i in zip(panels[0], shown, strict=True):
            axes.set_title(fill(self.names[i], NARROW), fontsize=9)
        figure.supxlabel(label, fontsize=9)
        _legend(figure, panels[0, 0])
        return figure

    def drawn(self, samples: Arrays, reference: np.ndarray | None = None) -> "Canvas":
        """Values of each feature, a panel for each and a line for each model; those that vary most."""
        rows = {**({} if reference is None else {"test samples": reference}), **samples}
        first, every = next(iter(rows.values())), np.concatenate([_flat(each) for each in samples.values()])
        shown = self.most(_relative(np.std(every, 0), first))
        figure, panels = self._panels(shown, 0.22 * len(rows) + 1.0)
        for axes, i in zip(panels, shown, strict=False):
            for k, each in enumerate(rows.values()):
                colour = INK if each is reference else LINES[(k - 1) % len(LINES)]
                axes.plot(_flat(each)[:, i], np.full(len(each), k), "|", ms=9, color=colour)
            axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
            axes.set(xlabel=fill(self.names[i], WIDE), ylim=(len(rows) - 0.5, -0.5))
        return figure

    def most(self, sizes: np.ndarray, count: int = MOST) -> list[int]:
        """The indices of the largest sizes, in the order of the features."""
        order = np.argsort(-np.nan_to_num(sizes), kind="stable")[:count]
        return sorted(order.tolist())

    def _panels(self, shown: Sequence[int], height: float = 2.5) -> "tuple[Canvas, list[Axes]]":
        across = min(3, len(shown))
        down = -(-len(shown) // across)
        figure = canvas(3.3 * max(across, 2), height * down + 0.4)
        panels = list(figure.subplots(down, across, squeeze=False).flatten())
        for axes in panels[len(shown) :]:
            axes.remove()
        return figure, panels[: len(shown)]


def spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation (D,) of each element of observations (N, *X), over those that are not NaN; 0 without any.

    >>> spread(np.array([[1.0, np.nan], [3.0, np.nan]])).tolist()
    [1.0, 0.0]
    """
    flat = _flat(values)
    count = np.maximum((~np.isnan(flat)).sum(0), 1)
    return np.sqrt(np.nansum((flat - np.nansum(flat, 0) / count) ** 2, 0) / count)


def _relative(sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sizes (D,) in units of the spread of the elements of observations (N, *X), where they vary."""
    unit = spread(values)
    return sizes / np.where(unit > 0, unit, 1.0)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _legend(figure: "Canvas", axes: "Axes") -> None:
    handles: tuple[Any, Any] = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=min(5, len(handles[1])), fontsize=8)
