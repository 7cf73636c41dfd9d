"""Data sets as tensors (N, *X) with labels, a train/test split, a value range and a content hash."""

import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Size, Tensor

from gae.readers import NAMES, OPENML, Arrays, read_mnist, read_path
from gae.text import Vocabulary

BINARIZATIONS = ("none", "threshold", "dynamic")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test observations, on the CPU, in memory.

    Attributes:
        train: (N, *X) float32. With dynamic binarisation these are probabilities: take ``epoch`` instead.
        test: (M, *X) float32.
        train_labels: (N,) integers, or None.
        test_labels: (M,) integers, or None.
        value_range: (lowest, highest) value that the data can take; both splits lie inside.
        binarization: ``"none"``, ``"threshold"`` or ``"dynamic"``.
        vocabulary: of text: which class stands for which character or word, and ``decode`` back to text.

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

    @property
    def event_shape(self) -> Size:
        """X, the shape of one observation."""
        return self.train.shape[1:]

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over binarisation and the shapes, types and bytes of observations and labels."""
        digest = sha256(self.binarization.encode())
        if self.vocabulary is not None:
            digest.update(repr(self.vocabulary).encode())
        for part in (self.train, self.test, self.train_labels, self.test_labels):
            if part is None:
                digest.update(b"none")
            else:
                digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
                digest.update(part.contiguous().numpy().reshape(-1).data)
        return digest.hexdigest()

    def epoch(self, epoch: int, seed: int = 0) -> Float[Tensor, "N *X"]:
        """The training observations of one epoch, a pure function of (seed, epoch).

        With dynamic binarisation x ~ Bernoulli(pixel) is redrawn for each epoch (Burda et al., 2016, section 5.1);
        otherwise it is ``train`` itself.

        >>> digits = load("digits", binarize="dynamic")
        >>> torch.equal(digits.epoch(3), digits.epoch(3)), torch.equal(digits.epoch(3), digits.epoch(4))
        (True, False)
        """
        return _draw(self.train, f"{epoch:d} {seed:d}") if self.binarization == "dynamic" else self.train

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, train {tuple(self.train.shape)}, test {tuple(self.test.shape)}, "
            f"{'no ' if self.train_labels is None else ''}labels, range {self.value_range}, "
            f"binarization {self.binarization!r})"
        )


class LinearGaussian(NamedTuple):
    """Draws of x = mean + z loadings + scale ε and the parameters they came from; z and ε are standard normal."""

    dataset: Dataset
    mean: Float[Tensor, " D"]
    loadings: Float[Tensor, "E D"]
    scale: float


def load(
    name: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    binarize: str = "none",
    value_range: tuple[float, float] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    words: bool = False,
) -> Dataset:
    """A data set by name, or from a path.

    ===================  ==========================================================================================
    name                 data
    ===================  ==========================================================================================
    digits               1797 images (1, 8, 8) in [0, 1], bundled with scikit-learn
    mnist,               60000 + 10000 images (1, 28, 28) in [0, 1], from idx files in ``folder``, else in the folder
    fashion-mnist        named by the environment variable GAE_DATA (either may also hold them in a sub-folder called
                         ``mnist`` or ``fashion-mnist``), else from OpenML through scikit-learn
    swiss-roll           2000 points (3,), noise 0.05; labels: ten equal segments of the angle
    circles              2000 points (2,), radii 1 and 0.5, noise 0.05; labels: the circle
    linear-gaussian      2000 points (10,): ``linear_gaussian(2000, 2, 10, 0.5, seed).dataset``
    path of an ``.npy``  (N, *X)
    path of an ``.npz``  x (and y); or x_train and x_test (and y_train and y_test)
    path of a ``.txt``   one sequence (T,) per line: 2, 3, … for its characters, 1 for its end, 0 for padding
    path of a folder     images of one size; sub-folders' names become labels if all images lie in sub-folders
    ===================  ==========================================================================================

    uint8 and uint16 are divided by 255 and 65535; all other numbers keep their values.

    Args:
        name: see above.
        folder: where the idx files of mnist or fashion-mnist are.
        binarize: ``"threshold"``: 1 where x > 0.5, else 0. ``"dynamic"``: x ~ Bernoulli(pixel), the test set drawn
            once, the training set anew in each ``Dataset.epoch``.
        value_range: declares the range of the data, which must lie inside; otherwise it is [0, 1] for uint8, uint16
            and bool, and measured for other types.
        test_fraction: share of test observations, where the data have no split of their own. The split keeps the
            shares of the labels where every label is frequent enough.
        seed: of synthetic data, of the split, and of the binarised test set.
        words: the tokens of a text are words, not characters.

    Raises:
        ValueError: an unknown name or option, or data that cannot be used; the message names the first bad index.
        FileNotFoundError: a file or folder is missing, or OpenML cannot be reached.

    >>> load("digits", binarize="threshold").train.unique()
    tensor([0., 1.])
    """
    text = os.fspath(name)
    if binarize not in BINARIZATIONS:
        raise ValueError(f"Unknown binarize {binarize!r}. Choose one of {', '.join(BINARIZATIONS)}.")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie strictly between 0 and 1, got {test_fraction}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}.")
    if folder is not None and text not in OPENML:
        raise ValueError(f"folder is for {' and '.join(OPENML)} only, got {text!r}. Give the path itself as the name.")
    if words and not text.lower().endswith(".txt"):
        raise ValueError(f"words=True is for .txt files only, got {text!r}.")
    label = text if text in NAMES else Path(text).expanduser().resolve().name
    dataset = _assemble(label, _source(text, folder, seed, words), value_range, test_fraction, seed)
    return dataset if binarize == "none" else _binarized(dataset, binarize, seed)


def linear_gaussian(
    n: int, latent: int, dim: int, scale: float, seed: int = 0, test_fraction: float = 0.2
) -> LinearGaussian:
    """n draws (D,) of the probabilistic PCA model with known parameters (Tipping and Bishop, 1999, eq. 2).

    Args:
        n: observations, training and test together.
        latent: E, the width of z.
        dim: D, the width of x.
        scale: noise standard deviation in data units.
        seed: of the parameters, the draws and the split.
        test_fraction: share of test observations.

    Raises:
        ValueError: sizes or scale out of range.

    >>> truth = linear_gaussian(100, latent=2, dim=5, scale=0.1)
    >>> truth.dataset.train.shape, truth.mean.shape, truth.loadings.shape
    (torch.Size([80, 5]), torch.Size([5]), torch.Size([2, 5]))
    """
    x, mean, loadings = _linear_gaussian(n, latent, dim, scale, seed)
    dataset = _assemble("linear-gaussian", Arrays(x), None, test_fraction, seed)
    return LinearGaussian(dataset, torch.from_numpy(mean).float(), torch.from_numpy(loadings).float(), scale)


def _linear_gaussian(
    n: int, latent: int, dim: int, scale: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not (0 <= latent <= dim and dim >= 1 and scale > 0):
        raise ValueError(f"Need 0 <= latent <= dim, dim >= 1 and scale > 0, got {latent=}, {dim=}, {scale=}.")
    random = np.random.default_rng(seed)
    mean, loadings = random.normal(size=dim), random.normal(size=(latent, dim))
    return mean + random.normal(size=(n, latent)) @ loadings + scale * random.normal(size=(n, dim)), mean, loadings


def _source(name: str, folder: str | os.PathLike[str] | None, seed: int, words: bool) -> Arrays:
    if name in OPENML:
        return read_mnist(name, folder)
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
        case "linear-gaussian":
            return Arrays(_linear_gaussian(2000, 2, 10, 0.5, seed)[0])
    return read_path(name, words)


def _draw(probability: Tensor, key: str) -> Tensor:
    generator = torch.Generator().manual_seed(int.from_bytes(sha256(key.encode()).digest()[:8]))
    return torch.bernoulli(probability, generator=generator)


def _binarized(dataset: Dataset, how: str, seed: int) -> Dataset:
    for split, x in (("training", dataset.train), ("test", dataset.test)):
        _refuse(x, (x < 0) | (x > 1), f"binarize={how!r} needs {split} values in [0, 1]", "Rescale the data.")
    if how == "threshold":
        train, test = (dataset.train > 0.5).float(), (dataset.test > 0.5).float()
    else:
        train, test = dataset.train, _draw(dataset.test, f"test {seed:d}")
    return replace(dataset, train=train, test=test, value_range=(0.0, 1.0), binarization=how)


def _assemble(
    name: str, arrays: Arrays, value_range: tuple[float, float] | None, test_fraction: float, seed: int
) -> Dataset:
    x, y, x_test, y_test, vocabulary = arrays
    if x_test is None:
        everything, labels = _observations(x, "x"), _labels(y, len(x), "y")
        rows, test_rows = _split(labels, len(x), test_fraction, seed)
        train, test = everything[rows], everything[test_rows]
        train_labels, test_labels = (None, None) if labels is None else (labels[rows], labels[test_rows])
    else:
        train, test = _observations(x, "x_train"), _observations(x_test, "x_test")
        train_labels, test_labels = _labels(y, len(x), "y_train"), _labels(y_test, len(x_test), "y_test")
        if train.shape[1:] != test.shape[1:] or _ceiling(x) != _ceiling(x_test):
            raise ValueError(
                f"x_train is {x.dtype} {x.shape} but x_test is {x_test.dtype} {x_test.shape}. Give both one type and "
                "one shape of observation."
            )
    if value_range is None:
        low, high = (0.0, 1.0) if _ceiling(x) else _measured(train, test)
    else:
        low, high = value_range
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"value_range must be (lowest, highest), finite and in this order, got {value_range}.")
        for split in (train, test):
            _refuse(split, (split < low) | (split > high), f"the data leave value_range {value_range}", "Widen it.")
    return Dataset(name, train, test, train_labels, test_labels, (float(low), float(high)), vocabulary=vocabulary)


def _ceiling(array: np.ndarray) -> int | None:
    """The stored value that means 1, where the type says so."""
    return {"bool": 1, "uint8": 255, "uint16": 65535}.get(array.dtype.name)


def _observations(array: np.ndarray, what: str) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{what} must hold real numbers, got {array.dtype}. Convert it with `astype`.")
    if array.ndim < 2:
        raise ValueError(f"{what} must have shape (N, *X), got {array.shape}. For scalars use `x[:, None]`.")
    if array.size == 0:
        raise ValueError(f"{what} is empty: it has shape {array.shape}. A data set needs observations.")
    ceiling = _ceiling(array) or 1
    if ceiling > 1 and array.max() == 1:
        raise ValueError(f"{what} is {array.dtype}, read as 0–{ceiling}, but its highest value is 1. Save 0/1 as bool.")
    with np.errstate(over="ignore"):
        x = torch.from_numpy(array.astype(np.float32, order="C"))
    _refuse(x, ~torch.isfinite(x), f"{what} must be finite in float32", "Remove or impute such values first.")
    return x.div_(ceiling)


def _labels(array: np.ndarray | None, n: int, what: str) -> Tensor | None:
    if array is None:
        return None
    if array.dtype.kind not in "biu":
        raise TypeError(
            f"{what} must hold integers, got {array.dtype}. Number the labels: "
            f"`np.unique({what}, return_inverse=True)[1]`."
        )
    if array.shape != (n,):
        raise ValueError(f"{what} must have shape ({n},), one label per observation, got {array.shape}.")
    return torch.from_numpy(array.astype(np.int64))


def _split(labels: Tensor | None, n: int, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    if n < 2:
        raise ValueError("There is one observation only, but training and test need at least one each.")
    n_test = min(n - 1, math.ceil(test_fraction * n))
    if labels is not None:
        counts = labels.unique(return_counts=True)[1]
        if counts.min() < 2 or len(counts) > min(n_test, n - n_test):
            labels = None
    return tuple(train_test_split(np.arange(n), test_size=n_test, stratify=labels, random_state=seed))


def _measured(train: Tensor, test: Tensor) -> tuple[float, float]:
    return min(train.min().item(), test.min().item()), max(train.max().item(), test.max().item())


def _refuse(x: Tensor, bad: Tensor, what: str, remedy: str) -> None:
    if bad.any():
        index = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(f"{what}, got {x[index].item():g} at index {index} ({int(bad.sum())} such values). {remedy}")
