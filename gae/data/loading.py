"""Loading of data sets by name or path: tensors (N, *X) with labels, a split, a value range and a content hash."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gae.data.arrays import Arrays
from gae.data.dataset import Dataset, Rows, draw
from gae.data.mapped import each, refuse_rows, take
from gae.data.preparation import BINARIZATIONS, Preparation
from gae.data.readers import NAMES, OPENML, read_mnist, read_path
from gae.data.splits import PREDEFINED, SplitRule
from gae.data.values import ceiling, labels, measured, need_float32, observations

FRACTION = 0.2  # of test observations by default

__all__ = ["BINARIZATIONS", "NAMES", "Dataset", "LinearGaussian", "Rows", "linear_gaussian", "load"]


class LinearGaussian(NamedTuple):
    """Samples of x = mean + z loadings + scale ε, with standard normal z and ε, and their true parameters."""

    dataset: Dataset
    mean: Float[Tensor, " D"]
    loadings: Float[Tensor, "E D"]
    scale: float


def load(
    name: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    binarize: str | None = None,
    value_range: tuple[float, float] | None = None,
    test_fraction: float = FRACTION,
    seed: int = 0,
    words: bool = False,
    channels: str | None = None,
    split: str | None = None,
    like: Preparation | None = None,
) -> Dataset:
    """Loads a data set by name or from a path.

    ===================  ==========================================================================================
    name                 data
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
    path of a ``.txt``   one sequence (T,) per line: 2, 3, … for characters, 1 for the end, 0 for padding
    path of a folder     images of one size; sub-folders' names become labels if all images lie in sub-folders;
                         ``train`` and ``test`` are a split, in which sub-folders are the labels
    ===================  ==========================================================================================

    uint8 and uint16 are divided by 255 and 65535; all other numbers keep their values. Data whose headers state more
    than 4 GiB of memory are rejected, unless the environment variable ``GAE_MAX_BYTES`` allows more. The rows of an
    ``.npy`` file of 64 MiB or more stay in the file, and may need more (``gae.data.mapped``); float64 and integers of
    32 or 64 bits, which may lose precision in float32, are read.

    Args:
        name: see above.
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
        split: rule for the test set of data that are not split (``gae.data.splits.SplitRule``): ``"fraction:0.2"``;
            ``"column:NAME"``, a column of words train and test (for ``.npz`` files another array of the file), or
            ``"column:NAME=VALUE"``; ``"file:PATH"``, a text file of these words or of the rows of the test set.
            Defaults to that of ``like``, else to ``test_fraction``.
        like: the preparation of a model's data (``Dataset.preparation``, stored in its checkpoint), to read new data
            for that model: text in its vocabulary, padded to its length, with its binarisation. A single observation
            becomes the test set.

    Raises:
        ValueError: for an unknown name or option, or unusable data; the message names the first bad index. With
            ``like``, also for tokens, lengths, shapes or values that the model does not accept.
        FileNotFoundError: if a file or folder is missing, or OpenML cannot be reached.

    >>> load("digits", binarize="threshold").train.unique()
    tensor([0., 1.])
    """
    text = os.fspath(name)
    if binarize not in (None, *BINARIZATIONS):
        raise ValueError(f"Unknown binarize {binarize!r}. Choose one of {', '.join(BINARIZATIONS)}.")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie strictly between 0 and 1, got {test_fraction}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}.")
    if folder is not None and text not in OPENML:
        raise ValueError(f"folder is for {' and '.join(OPENML)} only, got {text!r}. Give the path itself as the name.")
    if words and not text.lower().endswith(".txt"):
        raise ValueError(f"words=True is for .txt files only, got {text!r}.")
    if channels is not None and (channels not in ("first", "last") or not text.lower().endswith((".npy", ".npz"))):
        raise ValueError(f"channels must be 'first' or 'last', for .npy and .npz files only, got {channels!r}.")
    label = text if text in NAMES else Path(text).expanduser().resolve().name
    if like is not None:
        like.check_source(text, text.lower().endswith(".txt"))
        binarize = like.binarize(binarize)
    rule = _rule(split, test_fraction, like)
    arrays = _source(text, folder, seed, words, channels, like, rule.column)
    if split is not None and arrays.x_test is not None:
        raise ValueError(f"{text} has a training and a test part of its own, so split={split!r} would be ignored.")
    dataset = _assemble(label, arrays, value_range, rule, seed, lone=like is not None)
    if like is not None:
        like.check(text, dataset.event_shape, dataset.value_range)
    return dataset if binarize in (None, "none") else _binarized(dataset, binarize, seed)


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
    x, mean, loadings = _linear_gaussian(n, latent, dim, scale, seed)
    dataset = _assemble("linear-gaussian", Arrays(x), None, SplitRule.of(f"fraction:{test_fraction}"), seed)
    return LinearGaussian(dataset, torch.from_numpy(mean).float(), torch.from_numpy(loadings).float(), scale)


def _linear_gaussian(
    n: int, latent: int, dim: int, scale: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not (0 <= latent <= dim and dim >= 1 and scale > 0):
        raise ValueError(f"Need 0 <= latent <= dim, dim >= 1 and scale > 0, got {latent=}, {dim=}, {scale=}.")
    random = np.random.default_rng(seed)
    mean, loadings = random.normal(size=dim), random.normal(size=(latent, dim))
    return mean + random.normal(size=(n, latent)) @ loadings + scale * random.normal(size=(n, dim)), mean, loadings


def _source(
    name: str,
    folder: str | os.PathLike[str] | None,
    seed: int,
    words: bool,
    channels: str | None,
    like: Preparation | None,
    column: str | None,
) -> Arrays:
    if name in OPENML:
        return read_mnist(name, folder)
    if name in NAMES:
        return _bundled(name, seed)
    if like is None:
        return read_path(name, words, channels, column=column)
    return read_path(name, words, channels, like.vocabulary, like.event_shape, column)


def _bundled(name: str, seed: int) -> Arrays:
    """A data set that is bundled or synthetic, and needs no file."""
    match name:
        case "digits":
            from sklearn.datasets import load_digits

            digits = load_digits()
            return Arrays(digits.images[:, None] / 16, digits.target)
        case "swiss-roll":
            from sklearn.datasets import make_swiss_roll

            points, angle = make_swiss_roll(2000, noise=0.05, random_state=seed)
            return Arrays(points, np.floor((angle / (1.5 * np.pi) - 1) * 5).astype(int))  # angle in 1.5 π … 4.5 π
        case "circles":
            from sklearn.datasets import make_circles

            return Arrays(*make_circles(2000, noise=0.05, factor=0.5, random_state=seed))
    return Arrays(_linear_gaussian(2000, 2, 10, 0.5, seed)[0])


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
        train, test = (each(x, lambda rows: (rows > 0.5).float()) for x in (dataset.train, dataset.test))
    else:
        train, test = dataset.train, draw(dataset.test, f"test {seed:d}")
    return replace(dataset, train=train, test=test, value_range=(0.0, 1.0), binarization=how, unit=1.0)


def _assemble(
    name: str,
    arrays: Arrays,
    value_range: tuple[float, float] | None,
    rule: SplitRule,
    seed: int,
    lone: bool = False,
) -> Dataset:
    x, y, x_test, y_test, vocabulary, stated, rows, files, column = arrays
    if x_test is None:
        everything, every_label = observations(x, "x"), labels(y, len(x), "y")
        need_float32("x", x)
        source_rows = np.arange(len(x)) if rows is None else rows
        train_rows, test_rows = (
            _split(every_label, len(x), rule.fraction, seed, lone)
            if rule.kind == "fraction"
            else rule.rows(source_rows, column)
        )
        train, test = (take(everything, torch.from_numpy(chosen)) for chosen in (train_rows, test_rows))
        train_labels, test_labels = (
            (None, None) if every_label is None else (every_label[train_rows], every_label[test_rows])
        )
    else:
        train, test = observations(x, "x_train"), observations(x_test, "x_test")
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
        low, high = stated or ((0.0, 1.0) if ceiling(x) else measured(train, test))
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
        unit=float(ceiling(x) or 1),
        split=str(rule) if x_test is None else PREDEFINED,
    )


def _split(labels: Tensor | None, n: int, test_fraction: float, seed: int, lone: bool) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    if n == 1 and lone:
        return np.arange(0), np.arange(1)
    if n < 2:
        raise ValueError("The data have one observation, but training and test need at least one each. Add more data.")
    n_test = min(n - 1, math.ceil(test_fraction * n))
    if labels is not None:
        counts = labels.unique(return_counts=True)[1]
        if counts.min() < 2 or len(counts) > min(n_test, n - n_test):
            labels = None
    return tuple(train_test_split(np.arange(n), test_size=n_test, stratify=labels, random_state=seed))
