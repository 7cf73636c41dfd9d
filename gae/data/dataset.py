"""Data sets: training and test observations, labels, value range, and row numbers in the source."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Size, Tensor

from gae.data.columns import TableSchema
from gae.data.images import channels_last, is_image, mosaic
from gae.data.mapped import blocks, joined
from gae.data.preparation import Preparation
from gae.data.resizing import Resize
from gae.data.text import END, Vocabulary
from gae.display import LINES, axes_for, blank, html_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPLITS = ("train", "test")
SHOWN, ACROSS, FEATURES, READ = 40, 10, 30, 10_000  # images, in a row, features, and other rows that ``plot`` reads


class Rows(NamedTuple):
    """Observations of a data set in the order of their source.

    Attributes:
        x: (N, *X).
        labels: (N,) integers, or None.
        row: (N,) row of each observation in the source, from 0.
        split: (N,) ``"train"`` or ``"test"`` for each observation.
        files: (N,) file names; None unless the source is a folder.
        classes: names of the labels 0, 1, …, if they are names.
    """

    x: Float[Tensor, "N *X"]
    labels: Int[Tensor, " N"] | None
    row: Int[Tensor, " N"]
    split: np.ndarray
    files: np.ndarray | None
    classes: tuple[str, ...] | None = None

    @property
    def label_names(self) -> np.ndarray | None:
        """(N,) names of the labels, ``""`` for a missing one, or the labels themselves if they have no names."""
        if self.labels is None or self.classes is None:
            return None if self.labels is None else self.labels.numpy()
        return np.array([*self.classes, ""])[self.labels.numpy()]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test observations in CPU memory, or in a file (``gae.data.mapped``) if it is large.

    Attributes:
        train: (N, *X) float32. With dynamic binarisation these are probabilities: take ``epoch`` instead.
        test: (M, *X) float32.
        train_labels: (N,) integers, or None.
        test_labels: (M,) integers, or None.
        value_range: (lowest, highest) possible value of the data.
        binarization: ``"none"``, ``"threshold"`` or ``"dynamic"``.
        vocabulary: for text, the map between classes and characters or words, with ``decode`` back to text.
        train_rows: (N,) position of each training observation in the source, from 0: the row of an array, the line of
            a text file (blank lines counted), or the image in path order. If the source is split, rows are numbered
            through its training part, then its test part. None if unknown.
        test_rows: (M,) likewise.
        files: file names by row, if the source is a folder of images.
        missing: whether NaN marks elements that were not observed.
        table: columns and categories of a table.
        classes: names of the labels 0, 1, …, if they are names.
        resize: common size to which images were brought.
        standardize: whether a model of these data standardises each column; ``train`` and ``test`` are as given.
        notes: sentences on the conversion of the source.
        split: the rule by which the test set was chosen, as for ``load``, or ``"predefined"``; None if unknown.
        unit: the value in the source that is 1 here: 255 for uint8.
        channels: the channel axis of the source's images, ``"first"`` or ``"last"``, if it was stated.

    >>> from gae.data import load
    >>> load("digits")
    Dataset('digits', train (1437, 1, 8, 8), test (360, 1, 8, 8), labels, range (0.0, 1.0), binarization 'none')
    """

    name: str
    train: Float[Tensor, "N *X"]
    test: Float[Tensor, "M *X"]
    train_labels: Int[Tensor, " N"] | None
    test_labels: Int[Tensor, " M"] | None
    value_range: tuple[float, float]
    binarization: str = "none"
    vocabulary: Vocabulary | None = None
    train_rows: Tensor | None = None  # unknown if its length differs, as after ``dataclasses.replace(train=...)``
    test_rows: Tensor | None = None
    files: np.ndarray | None = None
    missing: bool = False
    table: TableSchema | None = None
    classes: tuple[str, ...] | None = None
    resize: Resize | None = None
    standardize: bool = False
    notes: tuple[str, ...] = ()
    unit: float = 1.0
    split: str | None = None
    channels: str | None = None

    @property
    def preparation(self) -> Preparation:
        """The facts about these data that a model fitted to them must record."""
        own = self.table, self.classes, self.resize, self.standardize, self.split, self.channels
        return Preparation(self.event_shape, self.value_range, self.binarization, self.vocabulary, self.missing, *own)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the features of a table, such as ``age`` or ``colour=red``; None for other data."""
        return None if self.table is None else self.table.features

    @property
    def event_shape(self) -> Size:
        """X, the shape of one observation."""
        return self.train.shape[1:]

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the binarisation and of the shapes, dtypes and bytes of observations and labels."""
        digest = sha256(self.binarization.encode())
        if self.vocabulary is not None:
            digest.update(repr(self.vocabulary).encode())
        for part in (self.train, self.test, self.train_labels, self.test_labels):
            if part is None:
                digest.update(b"none")
            else:
                digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
                for _, block in blocks(part):
                    digest.update(block.contiguous().numpy().reshape(-1).data)
        return digest.hexdigest()

    def as_given(self, x: np.ndarray) -> np.ndarray:
        """Observations (N, *X) of a model in the units of the source."""
        return x * x.dtype.type(self.unit) if self.unit != 1 else x

    def epoch(self, epoch: int, seed: int = 0) -> Float[Tensor, "N *X"]:
        """The training observations of one epoch, a pure function of (seed, epoch).

        With dynamic binarisation x ~ Bernoulli(pixel) is redrawn for each epoch (Burda et al., 2016, section 5.1);
        otherwise it is ``train`` itself.

        >>> from gae.data import load
        >>> digits = load("digits", binarize="dynamic")
        >>> torch.equal(digits.epoch(3), digits.epoch(3)), torch.equal(digits.epoch(3), digits.epoch(4))
        (True, False)
        """
        return draw(self.train, f"{epoch:d} {seed:d}") if self.binarization == "dynamic" else self.train

    def rows(self, split: str = "all") -> Rows:
        """Observations in source order; with dynamic binarisation, training observations are those of epoch 0.

        Args:
            split: ``"train"``, ``"test"`` or ``"all"``.

        Raises:
            ValueError: for an unknown split, or if the rows of the source are unknown.

        >>> from gae.data import load
        >>> rows = load("digits").rows()
        >>> rows.row[:4], rows.labels[:4], rows.split[:4]
        (tensor([0, 1, 2, 3]), tensor([0, 1, 2, 3]), array(['train', 'train', 'train', 'train'], dtype='<U5'))
        """
        if split not in (*SPLITS, "all"):
            raise ValueError(f"Unknown split {split!r}. Choose train, test or all.")
        train = (self.epoch(0), self.train_labels, self.train_rows)
        test = (self.test, self.test_labels, self.test_rows)
        chosen = {"train": [train], "test": [test], "all": [train, test]}[split]
        known = [rows for x, _, rows in chosen if rows is not None and len(rows) == len(x)]
        if len(known) < len(chosen):
            raise ValueError("The rows of this data set in its source are unknown. Create the data set with `load`.")
        row, order = torch.cat(known).sort()
        x = joined([x for x, _, _ in chosen], order)
        parts = [labels for _, labels, _ in chosen if labels is not None]
        labels = torch.cat(parts)[order] if len(parts) == len(chosen) else None
        names = np.repeat(SPLITS if split == "all" else split, [len(rows) for rows in known])[order.numpy()]
        files = None if self.files is None else self.files[row.numpy()]
        return Rows(x, labels, row, names, files, self.classes)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws the first training observations: images side by side, else the spread of each feature.

        Of text, the share of each token; of other data, the middle half and nine tenths of each feature's values, in
        standard deviations about its mean, beside its name, mean and standard deviation.
        """
        if is_image(self.event_shape):
            return _tiles(axes_for(ax, 6.4, 3.0), self.train[:SHOWN].numpy(), self.value_range, self.name)
        if self.vocabulary is not None:
            return _symbols(axes_for(ax), self.train[:READ], self.vocabulary, self.name)
        x = self.train[:READ].flatten(1).numpy()
        names = self.columns or tuple(f"element {i}" for i in range(x.shape[1]))
        return _features(axes_for(ax, 6.4, 1.2 + 0.22 * min(x.shape[1], FEATURES)), x, names, self.name)

    def _repr_html_(self) -> str:
        counts = None if self.train_labels is None else len(self.train_labels.unique())
        facts = {
            "training observations": tuple(self.train.shape),
            "test observations": tuple(self.test.shape),
            "labels": counts and f"{counts} values",
            "classes": self.classes and ", ".join(self.classes),
            "features": self.columns and ", ".join(self.columns),
            "range": "{:.5g} to {:.5g}".format(*self.value_range),
            "binarization": None if self.binarization == "none" else self.binarization,
            "missing values": "NaN: not observed" if self.missing else None,
            "units": "standardised by the model" if self.standardize else None,
            "split": self.split,
            "notes": " ".join(self.notes) or None,
        }
        return html_table(f"Data set {self.name}", [(name, fact) for name, fact in facts.items() if fact is not None])

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, train {tuple(self.train.shape)}, test {tuple(self.test.shape)}, "
            f"{'no ' if self.train_labels is None else ''}labels, range {self.value_range}, "
            f"binarization {self.binarization!r}{''.join(f', {note}' for note in self.notes)})"
        )


def draw(probability: Tensor, key: str) -> Tensor:
    """Draws x ~ Bernoulli(probability), a pure function of the key; NaN, an element not observed, remains NaN."""
    generator = torch.Generator().manual_seed(int.from_bytes(sha256(key.encode()).digest()[:8]))
    hidden = probability.isnan()
    if not bool(hidden.any()):
        return torch.bernoulli(probability, generator=generator)
    return torch.bernoulli(probability.masked_fill(hidden, 0), generator=generator).masked_fill_(hidden, torch.nan)


def _tiles(ax: "Axes", images: np.ndarray, value_range: tuple[float, float], name: str) -> "Axes":
    low, high = value_range
    scaled = [channels_last(image) for image in np.clip((images - low) / max(high - low, 1e-12), 0, 1)]
    rows = [scaled[start : start + ACROSS] for start in range(0, len(scaled), ACROSS)]
    ax.imshow(mosaic(rows, 1, 1.0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    blank(ax)
    ax.set_title(f"{name}: the first {len(images)} training observations")
    return ax


def _symbols(ax: "Axes", x: Tensor, vocabulary: Vocabulary, name: str) -> "Axes":
    counts = torch.bincount(x.flatten().long(), minlength=vocabulary.classes)[END + 1 :].double()
    order = counts.argsort(descending=True)[:FEATURES]
    ax.bar(range(len(order)), (counts[order] / counts.sum()).tolist(), color=LINES[0])
    ax.set_xticks(range(len(order)), [vocabulary.tokens[i] for i in order], rotation=90 if vocabulary.words else 0)
    ax.set(title=f"{name}: tokens of {len(x)} training texts", ylabel="share of all tokens")
    return ax


def _features(ax: "Axes", x: np.ndarray, names: Sequence[str], name: str) -> "Axes":
    shown, ticks = min(x.shape[1], FEATURES), []
    for i in range(shown):
        values = x[:, i][~np.isnan(x[:, i])].astype(np.float64)
        mean, spread = (values.mean(), values.std()) if len(values) else (0.0, 0.0)
        ticks.append(f"{names[i]}  {mean:.4g} ± {spread:.2g}")
        if spread > 0:
            low, first, median, third, high = np.quantile((values - mean) / spread, (0.05, 0.25, 0.5, 0.75, 0.95))
            ax.hlines(i, low, high, color=LINES[0], lw=1)
            ax.hlines(i, first, third, color=LINES[0], lw=5)
            ax.plot(median, i, "|", color="white", ms=7, mew=1.5)
    ax.set_yticks(range(shown), ticks)
    ax.invert_yaxis()
    more = f" (the first {shown} of {x.shape[1]})" if shown < x.shape[1] else ""
    ax.set(title=f"{name}: spread of each feature{more}", xlabel="standard deviations from the mean")
    return ax
