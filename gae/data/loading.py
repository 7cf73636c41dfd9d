"""Loading of data sets by name or path: tensors (N, *X) with labels, a split, a value range and a content hash."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gae.data.arrays import Arrays
from gae.data.bundled import draw_linear_gaussian
from gae.data.columns import listed
from gae.data.dataset import Dataset, Rows, draw
from gae.data.mapped import column_bounds, each, refuse_rows, take
from gae.data.names import NAMES
from gae.data.precision import need_float32
from gae.data.preparation import BINARIZATIONS, Preparation
from gae.data.resizing import resize_of
from gae.data.sources import Reading, is_path, kind_of, name_of, read_source
from gae.data.splits import PREDEFINED, SplitRule
from gae.data.values import ceiling, labels, measured, observations

FRACTION = 0.2  # of test observations by default

__all__ = ["BINARIZATIONS", "NAMES", "Dataset", "LinearGaussian", "Rows", "linear_gaussian", "load"]


MISSING = ("refuse", "mask")


class LinearGaussian(NamedTuple):
    """Samples of x = mean + z loadings + scale ε, with standard normal z and ε, and their true parameters."""

    dataset: Dataset
    mean: Float[Tensor, " D"]
    loadings: Float[Tensor, "E D"]
    scale: float


def load(
    source: Any,
    *,
    folder: str | os.PathLike[str] | None = None,
    binarize: str | None = None,
    value_range: tuple[float, float] | None = None,
    test_fraction: float = FRACTION,
    seed: int = 0,
    words: bool = False,
    channels: str | None = None,
    missing: str | None = None,
    labels: str | None = None,
    drop: str | Sequence[str] = (),
    standardize: bool = False,
    size: int | Sequence[int] | None = None,
    crop: bool = False,
    split: str | None = None,
    like: Preparation | None = None,
) -> Dataset:
    """Loads a data set by name, from a path, or from data in memory.

    ===================  ==========================================================================================
    source               data
    ===================  ==========================================================================================
    digits               1797 images (1, 8, 8) in [0, 1], bundled with scikit-learn
    mnist,               60000 + 10000 images (1, 28, 28) in [0, 1], from idx files in ``folder``, else in one of the
    fashion-mnist        folders named by the environment variable GAE_DATA (several are separated as in PATH; each may
                         hold them in a sub-folder called ``mnist`` or ``fashion-mnist``), else where Debian's package
                         ``dataset-fashion-mnist`` installs them, else from OpenML through scikit-learn
    swiss-roll           2000 points (3,), noise 0.05; labels: ten equal segments of the angle
    circles              2000 points (2,), radii 1 and 0.5, noise 0.05; labels: the circle
    linear-gaussian      2000 points (10,): ``linear_gaussian(2000, 2, 10, 0.5, seed).dataset``
    path of an ``.npy``  (N, *X); images (N, C, H, W), or (N, H, W, C), which is recognised
    path of an ``.npz``  x (and y); or x_train and x_test (and y_train and y_test)
    path of a ``.csv``,  a table: columns of numbers as they are; columns of text, categories or truth values one-hot,
    ``.tsv`` or          as features ``column=value``. Columns that number or name the rows are refused, unless they
    ``.parquet``         are left out by ``drop``
    path of a ``.txt``   one sequence (T,) per line: 2, 3, … for characters, 1 for the end, 0 for padding
    path of a folder     images of one size, or of any size with ``size``; sub-folders' names become labels if all
                         images lie in sub-folders; ``train`` and ``test`` are a split, in which sub-folders are the
                         labels
    path of ``.h5ad``    the matrix of AnnData, whose columns are ``var_names``
    array, tensor        as ``.npy``, of any integer or float type
    pair (x, y)          x of any kind here, and its labels: integers or names
    frame                of pandas or polars: a table
    torch Dataset or     items x or (x, y), in the order of the data set; ``fit`` makes its own batches
    DataLoader
    AnnData              as ``.h5ad``
    Hugging Face         a ``datasets.Dataset``, or the folder that its ``save_to_disk`` wrote: its column of images or
                         arrays, or else a table
    ===================  ==========================================================================================

    uint8 and uint16 are divided by 255 and 65535, and so are images (C, H, W) of any other integer type whose values
    lie in 0…255 and reach 128, by 255; all other numbers keep their values. ``Dataset.notes`` says so. Data whose
    headers state more than 4 GiB of memory are rejected, unless the environment variable ``GAE_MAX_BYTES`` allows more.
    The rows of an array of 64 MiB or more in a file of ``np.save`` or ``np.savez``, or of such a memory map, stay in
    the file, and may need more (``gae.data.mapped``). An array in column order is copied row by row to a temporary file
    of its size. Compressed files, such as those of ``np.savez_compressed``, cannot be read by rows, and are read whole.

    Args:
        source: see above.
        folder: folder of the idx files of mnist or fashion-mnist.
        binarize: ``"threshold"``: 1 where x > 0.5, else 0. ``"dynamic"``: x ~ Bernoulli(pixel), the test set drawn
            once, the training set anew in each ``Dataset.epoch``. Defaults to that of ``like``, else ``"none"``.
        value_range: (lowest, highest) possible value, which must cover the data; by default [0, 1] for uint8, uint16
            and bool, and the observed range for other dtypes.
        test_fraction: fraction of test observations, if the data are not split. The split is stratified by label if
            every label is frequent enough.
        seed: seed of synthetic data, of the split, and of the binarised test set.
        words: whether the tokens of a text are words rather than characters; overridden by the vocabulary of ``like``.
        channels: ``"first"`` or ``"last"``: the channel axis of an array with four axes, if its shape is ambiguous.
        missing: ``"refuse"`` raises an error for NaN; ``"mask"``: NaN marks elements that were not observed, and models
            condition on the others. Defaults to that of ``like``, else ``"refuse"``.
        labels: column of a table that holds the labels, integers or categories, and is not learnt.
        drop: column or columns of a table to leave out.
        standardize: whether a system built for these data models each column of a table in standard units, with the
            mean and standard deviation of the training data; its log densities remain those of the data as given. The
            tensors of the data set are as given.
        size: side of a square, or (height, width), to which images of a folder are resized. Grey images become RGB if
            some are in colour, and images with an alpha channel are laid on white.
        crop: whether images are cropped about their centre to the ratio of ``size`` before.
        split: rule for the test set of data that are not split (``gae.data.splits.SplitRule``): ``"fraction:0.2"``;
            ``"column:NAME"``, a column of words train and test, or ``"column:NAME=VALUE"``; ``"file:PATH"``, a text
            file of these words or of the rows of the test set. The column is one of a table, which is not learnt, or of
            the ``obs`` of AnnData, or another array of an ``.npz`` file. Defaults to that of ``like``, else to
            ``test_fraction``.
        like: the preparation of a model's data (``Dataset.preparation``, stored in its checkpoint), to read new data
            for that model: text in its vocabulary, padded to its length, tables with its columns and categories,
            labels in its classes, images in its size, with its binarisation. A single observation becomes the test set.

    Raises:
        ValueError: for an unknown name or option, or unusable data; the message names the first bad index or column.
            With ``like``, also for tokens, lengths, columns, categories, classes, shapes or values that the model does
            not accept.
        TypeError: for an object of another kind, or a column that holds neither numbers nor categories.
        ImportError: if an optional package is missing.
        FileNotFoundError: if a file or folder is missing, or OpenML cannot be reached.

    >>> load("digits", binarize="threshold").train.unique()
    tensor([0., 1.])
    >>> load((np.zeros((5, 3)), ["a", "b", "a", "b", "a"])).classes
    ('a', 'b')
    """
    if missing not in (None, *MISSING):
        raise ValueError(f"Unknown missing {missing!r}. Choose one of {', '.join(MISSING)}.")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie strictly between 0 and 1, got {test_fraction}.")
    rule = _rule(split, test_fraction, like)
    left_out = (drop,) if isinstance(drop, str) else tuple(drop)
    reading = Reading(folder, words, channels, labels, left_out, resize_of(size, crop), rule.column, like)
    dataset = _loaded(source, reading, binarize, value_range, rule, seed, standardize, missing)
    if split is not None and dataset.split == PREDEFINED:
        raise ValueError(
            f"{name_of(source)} has a training and a test part of its own, so split={split!r} would be ignored."
        )
    return dataset


def training_data(data: Any, like: Preparation | None = None, missing: bool = False) -> Dataset | Tensor:
    """Data as ``fit`` takes them: a data set or a tensor of floats itself, or else all rows of any source of ``load``.

    Args:
        data: a data set, or a source of ``load``. Its own split, if it has one, is kept.
        like: preparation of the model's earlier data, whose columns a table must have.
        missing: whether NaN marks elements that were not observed.

    >>> training_data(np.zeros((5, 3))).train.shape
    torch.Size([5, 3])
    """
    if isinstance(data, Dataset) or (isinstance(data, Tensor) and data.is_floating_point()):
        return data
    known = like if like is not None and like.table is not None else None
    return _loaded(data, Reading(like=known), None, None, None, 0, False, "mask" if missing else None)


def _loaded(
    source: Any,
    reading: Reading,
    binarize: str | None,
    value_range: tuple[float, float] | None,
    rule: SplitRule | None,
    seed: int,
    standardize: bool,
    missing: str | None,
) -> Dataset:
    """The data set of a source; without a rule all rows are training data."""
    if binarize not in (None, *BINARIZATIONS):
        raise ValueError(f"Unknown binarize {binarize!r}. Choose one of {', '.join(BINARIZATIONS)}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}.")
    reading.check(source)
    name, like, kind = name_of(source), reading.like, kind_of(source)
    label = Path(name).expanduser().resolve().name if is_path(source) and kind != "name" else name
    if like is not None:
        like.check_source(name, kind == "text")
        binarize = like.binarize(binarize)
    unobserved = missing == "mask" if like is None else like.accepts_missing(missing)
    if like is not None and standardize and not like.standardize:
        raise ValueError("The model was trained on data as they are, not standardised. Omit standardize.")
    arrays = read_source(source, reading, seed)
    dataset = _assemble(label, arrays, value_range, rule, seed, lone=like is not None, missing=unobserved)
    if like is not None:
        like.check(name, dataset.event_shape, dataset.value_range)
        own: Any = {
            "classes": like.classes,
            "resize": like.resize,
            "standardize": like.standardize,
            "channels": like.channels,
        }
        dataset = replace(dataset, table=like.table, **own)
    else:
        dataset = replace(dataset, resize=reading.resize, channels=reading.channels)
    if binarize not in (None, "none"):
        dataset = _binarized(dataset, binarize, seed)
    return _standardized(dataset) if standardize and like is None else dataset


def _standardized(dataset: Dataset) -> Dataset:
    """The data set, marked for models in standard units.

    Raises:
        ValueError: for data that are no table of real numbers, or a column that is constant in the training data.
    """
    shape = tuple(dataset.event_shape)
    if len(shape) != 1 or dataset.vocabulary is not None or dataset.binarization != "none":
        kind = "text" if dataset.vocabulary is not None else f"observations of shape {shape}"
        raise ValueError(
            f"standardize=True is for tables (N, D) of numbers, got {kind} with binarization {dataset.binarization!r}. "
            "Omit it."
        )
    constant = [i for i, (low, high) in enumerate(zip(*_bounds(dataset.train), strict=True)) if low >= high]
    if constant and len(dataset.train):
        names = dataset.columns or range(shape[0])
        raise ValueError(
            f"standardize=True needs columns that vary, but these are constant or empty in the training data: "
            f"{listed([names[i] for i in constant])}. Leave them out by drop=[...] (--drop)."
        )
    note = "each column is modelled in standard units; log densities are of the data as given"
    return replace(dataset, standardize=True, notes=(*dataset.notes, note))


def _bounds(x: Tensor) -> tuple[list[float], list[float]]:
    """The lowest and the highest value of each column, NaN left out; empty without rows."""
    if not len(x):
        return [], []
    low, high = column_bounds(x)
    return low.tolist(), high.tolist()


def linear_gaussian(
    n: int, latent: int, dim: int, scale: float, seed: int = 0, test_fraction: float = 0.2
) -> LinearGaussian:
    """Draws n observations (D,) from a probabilistic PCA model with known parameters (Tipping and Bishop, 1999, eq. 2).

    Args:
        n: number of observations, training and test together.
        latent: E, the width of z.
        dim: D, the width of x.
        scale: noise standard deviation in data units.
        seed: seed of the parameters, the draws and the split.
        test_fraction: fraction of test observations.

    Raises:
        ValueError: for sizes or a scale out of range.

    >>> truth = linear_gaussian(100, latent=2, dim=5, scale=0.1)
    >>> truth.dataset.train.shape, truth.mean.shape, truth.loadings.shape
    (torch.Size([80, 5]), torch.Size([5]), torch.Size([2, 5]))
    """
    x, mean, loadings = draw_linear_gaussian(n, latent, dim, scale, seed)
    dataset = _assemble("linear-gaussian", Arrays(x), None, SplitRule.of(f"fraction:{test_fraction}"), seed)
    return LinearGaussian(dataset, torch.from_numpy(mean).float(), torch.from_numpy(loadings).float(), scale)


def _rule(split: str | None, test_fraction: float, like: Preparation | None) -> SplitRule:
    if split is not None and test_fraction != FRACTION:
        raise ValueError(f"Give split={split!r} or test_fraction={test_fraction}, not both.")
    inherited = like.split if like is not None and test_fraction == FRACTION else None
    stated = split or (None if inherited == PREDEFINED else inherited)
    return SplitRule.of(stated or f"fraction:{test_fraction}")


def _binarized(dataset: Dataset, how: str, seed: int) -> Dataset:
    for split, x in (("training", dataset.train), ("test", dataset.test)):
        what = f"binarize={how!r} needs {split} values in [0, 1]"
        refuse_rows(x, lambda rows: (rows < 0) | (rows > 1), what, "Rescale the data.")
    if how == "threshold":
        train, test = (
            each(x, lambda rows: (rows > 0.5).float().masked_fill_(rows.isnan(), torch.nan))
            for x in (dataset.train, dataset.test)
        )
    else:
        train, test = dataset.train, draw(dataset.test, f"test {seed:d}")
    return replace(dataset, train=train, test=test, value_range=(0.0, 1.0), binarization=how, unit=1.0)


def _assemble(
    name: str,
    arrays: Arrays,
    value_range: tuple[float, float] | None,
    rule: SplitRule | None,
    seed: int,
    lone: bool = False,
    missing: bool = False,
) -> Dataset:
    x, y, x_test, y_test, vocabulary, stated, rows, files, table, classes, notes, column, unit = arrays
    names = None if table is None else table.features
    if x_test is None:
        everything, every_label = observations(x, "x", names, missing, unit), labels(y, len(x), "y")
        need_float32("x", x, names=names)
        source_rows = np.arange(len(x)) if rows is None else rows
        train_rows, test_rows = _split(rule, every_label, source_rows, column, seed, lone)
        train, test = (take(everything, torch.from_numpy(chosen)) for chosen in (train_rows, test_rows))
        train_labels, test_labels = (
            (None, None) if every_label is None else (every_label[train_rows], every_label[test_rows])
        )
    else:
        train = observations(x, "x_train", missing=missing, unit=unit)
        test = observations(x_test, "x_test", missing=missing, unit=unit)
        train_labels, test_labels = labels(y, len(x), "y_train"), labels(y_test, len(x_test), "y_test")
        if train.shape[1:] != test.shape[1:] or ceiling(x) != ceiling(x_test):
            raise ValueError(
                f"x_train is {x.dtype} {x.shape} but x_test is {x_test.dtype} {x_test.shape}. Give both the same dtype "
                "and the same shape of one observation."
            )
        need_float32("x", x, x_test)
        train_rows, test_rows = np.arange(len(x)), np.arange(len(x), len(x) + len(x_test))
    if rows is not None:
        train_rows, test_rows = rows[train_rows], rows[test_rows]
    if value_range is not None:
        low, high = value_range
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"value_range must be (lowest, highest), finite and in this order, got {value_range}.")
        for split in (train, test):
            what = f"the data leave value_range {value_range}"
            refuse_rows(split, lambda rows: (rows < low) | (rows > high), what, "Widen it.")
    elif vocabulary is not None:
        low, high = 0.0, vocabulary.classes - 1.0
    else:
        low, high = stated or ((0.0, 1.0) if unit or ceiling(x) else measured(train, test))
    return Dataset(
        name,
        train,
        test,
        train_labels,
        test_labels,
        (float(low), float(high)),
        vocabulary=vocabulary,
        train_rows=torch.from_numpy(train_rows).long(),
        test_rows=torch.from_numpy(test_rows).long(),
        files=files,
        missing=missing,
        table=table,
        classes=classes,
        notes=notes,
        unit=float(unit or ceiling(x) or 1),
        split=PREDEFINED if x_test is not None else None if rule is None else str(rule),
    )


def _split(
    rule: SplitRule | None,
    labels: Tensor | None,
    rows: np.ndarray,
    column: np.ndarray | None,
    seed: int,
    lone: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and of the test observations, of which ``rows`` are the rows in the source."""
    from sklearn.model_selection import train_test_split

    n = len(rows)
    if rule is None:
        return np.arange(n), np.arange(0)
    if n == 1 and lone:
        return np.arange(0), np.arange(1)
    if n < 2:
        raise ValueError("The data have one observation, but training and test need at least one each. Add more data.")
    if rule.kind != "fraction":
        return rule.rows(rows, column)
    n_test = min(n - 1, math.ceil(rule.fraction * n))
    if labels is not None:
        counts = labels.unique(return_counts=True)[1]
        if counts.min() < 2 or len(counts) > min(n_test, n - n_test):
            labels = None
    return tuple(train_test_split(np.arange(n), test_size=n_test, stratify=labels, random_state=seed))
