"""Readers of idx files, OpenML data sets and paths. They never execute the contents of a file."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from gae.data.arrays import FLOAT32, Arrays, channels_first, read_arrays
from gae.data.images import read_image_folder
from gae.data.memory import need_room
from gae.data.names import NAMES, OPENML
from gae.data.resizing import Resize
from gae.data.text import Vocabulary, read_text

FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9], "fashion-mnist": [9, 0, 0, 3, 0]}
DEBIAN = Path("/usr/share/datasets")  # of the packages dataset-*, each in a sub-folder
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_idx(path: Path, axes: int) -> np.ndarray:
    """Reads the unsigned bytes of an idx file, plain or gzipped (LeCun et al., the MNIST page).

    Args:
        path: the file.
        axes: required number of axes: 3 for images (N, H, W), 1 for labels (N,).

    Raises:
        ValueError: if the file is truncated, is not an idx file, has another dtype or number of axes, or its header
            states more than ``gae.data.memory.limit()`` bytes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
    ...     read_idx(path, axes=1)
    array([7, 9], dtype=uint8)
    """
    start = 4 + 4 * axes
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        try:
            with gzip.GzipFile(fileobj=plain) if zipped else plain as file:
                head = file.read(start)
                size = _announced(path, head, axes)
                need_room(FLOAT32 * size, path, f"{size:,} values")
                raw = file.read(size + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a truncated or damaged gzip file ({error}). Download it again.") from error
    if len(head) < start or len(raw) != size:
        held = f"{len(head) + len(raw)} bytes" + (" or more" if len(raw) > size else "")
        raise ValueError(
            f"{path} holds {held}, but an idx file with its header has {start + size}: it is truncated or damaged. "
            "Download it again."
        )
    return np.frombuffer(raw, np.uint8).reshape(struct.unpack(f">{axes}I", head[4:]))


def _announced(path: Path, head: bytes, axes: int) -> int:
    """The number of values stated in an idx header; 0 if the header is truncated."""
    magic, expected = head[:4].hex(), bytes([0, 0, 8, axes]).hex()
    if len(head) >= 4 and magic != expected:
        raise ValueError(
            f"{path} starts with the magic number 0x{magic}, but an idx file of unsigned bytes with {axes} axes "
            f"starts with 0x{expected}. Are image and label files swapped, or is it another format?"
        )
    return math.prod(struct.unpack(f">{axes}I", head[4:])) if len(head) == 4 + 4 * axes else 0


def find_idx(folder: Path) -> dict[str, Path]:
    """The MNIST files that a folder contains, plain or with ``.gz``, by name."""
    candidates = [(stem, folder / f"{stem}{end}") for stem in IDX_FILES for end in (".gz", "")]
    return {stem: path for stem, path in candidates if path.is_file()}


def read_idx_folder(folder: Path) -> Arrays:
    """Reads the four idx files of MNIST: images (N, 1, H, W), labels and the standard split.

    Raises:
        FileNotFoundError: if one of the four is missing.
        ValueError: for a damaged file, or if the numbers of images and labels differ.
    """
    files = find_idx(folder)
    missing = [stem for stem in IDX_FILES if stem not in files]
    if missing:
        raise FileNotFoundError(f"{folder} has no {missing[0]} (plain or .gz). It needs all of {', '.join(IDX_FILES)}.")
    x, y, x_test, y_test = (read_idx(files[stem], axes) for stem, axes in zip(IDX_FILES, (3, 1, 3, 1), strict=True))
    for images, labels, stems in ((x, y, IDX_FILES[:2]), (x_test, y_test, IDX_FILES[2:])):
        if len(images) != len(labels):
            raise ValueError(
                f"{folder}: {stems[0]} has {len(images)} images but {stems[1]} has {len(labels)} labels. "
                "Take both files from one data set."
            )
    return Arrays(x[:, None], y, x_test[:, None], y_test)


def read_path(
    name: str,
    words: bool = False,
    channels: str | None = None,
    vocabulary: Vocabulary | None = None,
    event_shape: Sequence[int] | None = None,
    resize: Resize | None = None,
    column: str | None = None,
    usual: str | None = None,
) -> Arrays:
    """Reads an array file, a text file or an image folder; see ``read_arrays``, ``read_text``, ``read_image_folder``.

    Args:
        name: the path.
        words: whether the tokens of text are words.
        channels: layout of arrays, as for ``channels_first``.
        vocabulary: vocabulary of an existing model, for text.
        event_shape: shape of one observation of an existing model.
        resize: brings images of a folder to one size.
        column: name of a column beside the observations, to split by it.
        usual: layout of the arrays of an existing model, likewise.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if the path cannot be read, or is neither a path nor a known name.
    """
    paths = "a path to an .npy file, an .npz file, a .csv, .tsv or .parquet table, a .txt file or a folder of images"
    if not name.strip():
        raise ValueError(f"The name of the data set is empty. Choose one of {', '.join(NAMES)}, or {paths}.")
    path = Path(name).expanduser()
    if path.is_dir():
        return read_image_folder(path, resize, event_shape)
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz", ".txt"):
        if not path.is_file():
            raise FileNotFoundError(f"No file {path}. Check the path.")
        if suffix != ".txt":
            return channels_first(read_arrays(path, column), channels, event_shape, usual)
        steps = None if event_shape is None else event_shape[0]
        text = read_text(path, words, vocabulary, steps)
        return Arrays(text.classes, vocabulary=text.vocabulary, rows=text.rows)
    if path.exists():
        raise ValueError(f"Cannot read {path}: expected {paths}. Convert it with `np.save`.")
    if len(path.parts) > 1:
        raise FileNotFoundError(f"No file or folder {path}. Check the path.")
    raise ValueError(f"Unknown data set {name!r}. Choose one of {', '.join(NAMES)}, or {paths}.")


def idx_places(name: str, folder: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Places with idx files that may be those of MNIST or Fashion-MNIST, in the order in which they are tried.

    A folder, or each of the folders named by GAE_DATA (separated by ``os.pathsep``) and then that of Debian's packages
    such as ``dataset-fashion-mnist``; of each its sub-folder called ``name`` before the folder itself.

    Raises:
        FileNotFoundError: if a folder that was named is missing.
    """
    given = os.environ.get("GAE_DATA", "").split(os.pathsep) if folder is None else [folder]
    roots = [Path(root).expanduser() for root in given if root]
    origin = "folder" if folder is not None else "GAE_DATA" if len(roots) == 1 else "A folder of GAE_DATA"
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"{origin} is {root}, which is not a folder. Name one with idx files of {name}.")
    roots += [DEBIAN] if folder is None else []
    return (place for root in roots for place in (root / name, root) if find_idx(place))


def read_mnist(name: str, folder: str | os.PathLike[str] | None = None) -> Arrays:
    """Reads MNIST or Fashion-MNIST from the first of ``idx_places`` that holds it, else from OpenML.

    Raises:
        FileNotFoundError: if a folder is missing or has no idx files, or OpenML cannot be reached.
        ValueError: for damaged files, or if there are only those of the other data set.
    """
    foreign = None
    for place in idx_places(name, folder):
        arrays = read_idx_folder(place)
        assert arrays.y is not None
        owner = _owner(arrays.y)
        if owner in (None, name):
            return arrays
        foreign = foreign or f"The idx files in {place} are those of {owner}, not of {name}. Name another folder."
    if foreign is not None:
        raise ValueError(foreign)
    if folder is not None:
        root = Path(folder).expanduser()
        raise FileNotFoundError(f"No idx files of {name} in {root} or {root / name}. Give the folder with them.")
    return _openml(name)


def idx_owner(place: Path) -> str | None:
    """The data set whose idx files are in a folder, by its training labels; None if unknown."""
    path = find_idx(place).get(IDX_FILES[1])
    return None if path is None else _owner(read_idx(path, axes=1))


def _owner(labels: np.ndarray) -> str | None:
    """The data set with these training labels: MNIST and Fashion-MNIST share file names. None if unknown."""
    first = labels[:5].tolist() if len(labels) == 60000 else []
    return next((name for name, labels in FIRST_LABELS.items() if labels == first), None)


def _openml(name: str) -> Arrays:
    from sklearn.datasets import fetch_openml

    # pandas parses MNIST many times faster than scikit-learn, but is an optional dependency
    parser = "pandas" if find_spec("pandas") else "liac-arff"
    try:
        x, y = fetch_openml(OPENML[name], version=1, as_frame=False, return_X_y=True, parser=parser)
    except (OSError, HTTPException, ValueError) as error:
        raise FileNotFoundError(
            f"{name} could not be downloaded from OpenML ({error}). Put its four idx files into a folder and set the "
            "environment variable GAE_DATA to that folder, or pass folder=..."
        ) from error
    images, labels = np.asarray(x).astype(np.uint8).reshape(-1, 1, 28, 28), np.asarray(y).astype(np.int64)
    return Arrays(images[:60000], labels[:60000], images[60000:], labels[60000:])
