"""Figures of observations: reconstructions, paths between codes, and samples, of each model of a comparison."""

from typing import Any

import numpy as np

from gae.reports.figures import Figure, Pictures, under
from gae.reports.observations import Drawing, spread
from gae.reports.seen import compared


def reconstructions(results: dict[str, Any], pictures: Pictures, how: Drawing) -> Figure:
    """Reconstructions of the same test samples by each decoder and baseline."""
    rebuilt = under(pictures, "reconstruction")
    engine = "its diagonal encoder" if results["configuration"].get("given") else "the engine that trained it"
    caption = (
        "The same test samples and the decoder's mean at their codes: each decoder encoded by "
        f"{engine}, and the baselines at equal code size. {how.note}"
    )
    alt = compared(squared_errors(pictures["originals"], rebuilt), f"Squared error per element of {_counted(pictures)}")
    return Figure("reconstructions", "Reconstructions", caption, how.compared(pictures["originals"], rebuilt), alt)


def interpolations(pictures: Pictures, how: Drawing) -> Figure:
    """Decoder means at equal steps between the codes of two test samples, for the same pairs."""
    paths = {name: strip.swapaxes(0, 1) for name, strip in under(pictures, "interpolation").items()}
    caption = (
        "Decoder means at equal steps on the straight line between the codes of two test samples (left and right "
        f"end), the same pairs for every decoder. {how.note}"
    )
    alt = compared(
        {name: _jump(path) for name, path in paths.items()},
        "Largest change between neighbouring steps, relative to the mean change (1 is even)",
    )
    steps = np.linspace(0, 1, next(iter(paths.values())).shape[1])
    drawn = how.moved(paths, steps, "share of the way between the two codes")
    return Figure("interpolations", "Interpolation between codes", caption, drawn, alt)


def traversals(pictures: Pictures, how: Drawing) -> Figure:
    """Decoder means of one test sample along single axes of its code."""
    paths = under(pictures, "traversal")
    caption = (
        "Decoder means where one element of the first test sample's code moves over two standard deviations of the "
        f"test codes to either side, for each of the three elements that vary most. {how.note}"
    )
    alt = compared({name: _change(path) for name, path in paths.items()}, "Mean change of an element from end to end")
    amounts = np.linspace(-2, 2, next(iter(paths.values())).shape[1])
    drawn = how.moved(paths, amounts, "standard deviations of the element of the code")
    return Figure("traversals", "Traversals", caption, drawn, alt)


def attributes(pictures: Pictures, how: Drawing) -> Figure:
    """Decoder means of test samples of one label, moved towards another label."""
    first, second = [int(label) for label in np.unique(pictures["labels"])[:2]]
    paths = under(pictures, "attribute")
    caption = (
        f"Decoder means of test samples with label {first} as the difference of mean codes between labels {second} "
        f"and {first} is added, 0 to 1.5 times. The labels define the direction; training did not use "
        f"them. {how.note}"
    )
    alt = compared(
        {name: _change(path) for name, path in paths.items()},
        f"Mean change of an element from label {first} towards label {second}",
    )
    amounts = np.linspace(0, 1.5, next(iter(paths.values())).shape[1])
    drawn = how.moved(paths, amounts, f"times the difference of the mean codes of labels {second} and {first}")
    return Figure("attributes", "Attribute vectors", caption, drawn, alt)


def samples(pictures: Pictures, how: Drawing) -> Figure:
    """Decoder means at draws from the prior."""
    draws = under(pictures, "sample")
    caption = (
        "Decoder means (without observation noise) at codes drawn from the prior, by the same random numbers for "
        "every decoder. A decoder trained at point codes was not trained to match the prior, which may show here. "
        f"{how.note}"
    )
    alt = variety(draws, pictures["originals"])
    return Figure("samples", "Samples from the prior", caption, how.drawn(draws, pictures["originals"]), alt)


def squared_errors(originals: np.ndarray, rebuilt: Pictures) -> dict[str, float]:
    """Mean squared error per element of each model's reconstructions (N, *X)."""
    return {name: float(np.nanmean((each - originals) ** 2)) for name, each in rebuilt.items()}


def variety(draws: Pictures, originals: np.ndarray) -> str:
    """The spread of draws from each model beside that of observations, in words."""
    spreads = {name: float(each.std(0).mean()) for name, each in draws.items()}
    spreads["the test samples shown"] = float(spread(originals).mean())
    return compared(spreads, "Standard deviation of an element over the draws")


def _counted(pictures: Pictures) -> str:
    size = len(pictures["originals"])
    return f"{size} test sample{'s' if size > 1 else ''}"


def _jump(path: np.ndarray) -> float:
    """The largest change between neighbouring steps of paths (R, T, *X), relative to the mean one."""
    lengths = np.sqrt((np.diff(path.reshape(*path.shape[:2], -1), axis=1) ** 2).sum(-1))
    return float((lengths.max(1) / np.maximum(lengths.mean(1), 1e-12)).max())


def _change(path: np.ndarray) -> float:
    """The mean absolute difference between the ends of paths (R, T, *X)."""
    return float(np.abs(path[:, -1] - path[:, 0]).mean())
