"""Where data come from: idx, npy, npz, text, folders of images, OpenML. Nothing that a file holds is executed."""

import gzip
import os
import struct
import zipfile
import zlib
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gae.text import Vocabulary, read_text

OPENML = {"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST"}
FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9], "fashion-mnist": [9, 0, 0, 3, 0]}
NAMES = ("digits", *OPENML, "swiss-roll", "circles", "linear-gaussian")
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
NPZ_KEYS = ("x", "y", "x_train", "y_train", "x_test", "y_test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tiff", ".tif", ".bmp")


class Arrays(NamedTuple):
    """Observations (N, *X) and labels (N,) as stored; ``x_test`` is None where the source has no split of its own."""

    x: np.ndarray
    y: np.ndarray | None = None
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    vocabulary: Vocabulary | None = None  # where the observations are text


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of an idx file, plain or gzipped (LeCun et al., the MNIST page).

    Args:
        path: the file.
        axes: how many axes it must have: 3 for images (N, H, W), 1 for labels (N,).

    Raises:
        ValueError: truncated, not an idx file, or one with another type or number of axes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
    ...     read_idx(path, axes=1)
    array([7, 9], dtype=uint8)
    """
    raw = path.read_bytes()
    if raw.startswith(b"\x1f\x8b"):
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is a truncated or damaged gzip file ({error}). Download it again.") from error
    start = 4 + 4 * axes
    magic = raw[:4].hex()
    wanted = bytes([0, 0, 8, axes]).hex()
    if len(raw) >= 4 and magic != wanted:
        raise ValueError(
            f"{path} starts with the magic number 0x{magic}, but an idx file of unsigned bytes with {axes} axes "
            f"starts with 0x{wanted}. Are image and label files swapped, or is it another format?"
        )
    shape = struct.unpack(f">{axes}I", raw[4:start]) if len(raw) >= start else (0,)
    announced = start + int(np.prod(shape, dtype=np.int64))
    if len(raw) < start or len(raw) != announced:
        raise ValueError(
            f"{path} holds {len(raw)} bytes, but an idx file with its header has {announced}: it is truncated or "
            "damaged. Download it again."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def find_idx(folder: Path) -> dict[str, Path]:
    """Which of MNIST's four files a folder has, plain or with ``.gz``."""
    candidates = [(stem, folder / f"{stem}{end}") for stem in IDX_FILES for end in (".gz", "")]
    return {stem: path for stem, path in candidates if path.is_file()}


def read_idx_folder(folder: Path) -> Arrays:
    """MNIST's four idx files: images (N, 1, H, W), labels and the standard split.

    Raises:
        FileNotFoundError: one of the four is missing.
        ValueError: a damaged file, or as many labels as images are not there.
    """
    found = find_idx(folder)
    missing = [stem for stem in IDX_FILES if stem not in found]
    if missing:
        raise FileNotFoundError(f"{folder} has no {missing[0]} (plain or .gz). It needs all of {', '.join(IDX_FILES)}.")
    x, y, x_test, y_test = (read_idx(found[stem], axes) for stem, axes in zip(IDX_FILES, (3, 1, 3, 1), strict=True))
    for images, labels, stems in ((x, y, IDX_FILES[:2]), (x_test, y_test, IDX_FILES[2:])):
        if len(images) != len(labels):
            raise ValueError(
                f"{folder}: {stems[0]} has {len(images)} images but {stems[1]} has {len(labels)} labels. "
                "Take both files from one data set."
            )
    return Arrays(x[:, None], y, x_test[:, None], y_test)


def read_arrays(path: Path) -> Arrays:
    """An ``.npy`` array (N, *X), or an ``.npz`` with x (and y), or with x_train and x_test (and y_train, y_test).

    Raises:
        ValueError: a damaged file, pickled objects, or other keys.
    """
    try:
        with path.open("rb") as file:  # numpy itself leaves a damaged npz open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return Arrays(loaded)
            found = sorted(loaded)
            stored = {key: loaded[key] for key in found if key in NPZ_KEYS}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"Cannot read an array from {path}: {str(error).rstrip('.')}. Write plain numbers with `np.save` or "
            "`np.savez`; arrays of objects (ragged lists) are pickles, which are never loaded."
        ) from error
    return _pick(path, stored, found)


def _pick(path: Path, stored: dict[str, np.ndarray], found: list[str]) -> Arrays:
    keys = stored.keys()
    if keys == {"x"} or keys == {"x", "y"}:
        return Arrays(stored["x"], stored.get("y"))
    if keys in ({"x_train", "x_test"}, {"x_train", "x_test", "y_train", "y_test"}):
        return Arrays(stored["x_train"], stored.get("y_train"), stored["x_test"], stored.get("y_test"))
    raise ValueError(
        f"{path} has the keys {', '.join(found) or '(none)'}, but it needs x (with or without y), or x_train and "
        "x_test (with or without both y_train and y_test)."
    )


def read_image_folder(folder: Path) -> Arrays:
    """All images in a folder and below it, channel-first (N, C, H, W), in the order of their paths.

    If every image lies in a sub-folder, the names of the sub-folders, sorted, become labels 0, 1, ….
    Hidden files are skipped. Pillow reads colour images with 16 bits per channel as 8 bits.

    Raises:
        ValueError: no image, an unreadable one, or one whose size, channels or type differ from the first.
    """
    inside = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    paths = sorted(path for path in inside if not any(part.startswith(".") for part in path.parts))
    if not paths:
        raise ValueError(
            f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}). For a folder of idx files use "
            "`load('mnist', folder=...)`."
        )
    images: list[np.ndarray] = []
    for path in paths:
        image = _read_image(folder / path)
        if images and (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            raise ValueError(
                f"{folder / path} is {image.dtype} {image.shape}, but the first image, {paths[0]}, is "
                f"{images[0].dtype} {images[0].shape} (channels, height, width). Bring all to one size and mode."
            )
        images.append(image)
    if any(len(path.parts) == 1 for path in paths):
        return Arrays(np.stack(images))
    return Arrays(np.stack(images), np.unique([path.parts[0] for path in paths], return_inverse=True)[1])


def _read_image(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            palette = image.mode in ("P", "PA")
            pixels = np.asarray(image.convert("RGB") if palette else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}). Repair it or take it out.") from error
    if frames > 1:
        raise ValueError(f"{path} holds {frames} images. Save each as a file of its own.")
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def read_path(name: str, words: bool = False) -> Arrays:
    """Whatever lies at a path; see ``read_arrays``, ``read_text`` and ``read_image_folder``.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: nothing readable there, or neither a path nor a known name.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return read_image_folder(path)
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz", ".txt"):
        if not path.is_file():
            raise FileNotFoundError(f"No file {path}. Check the path.")
        if suffix != ".txt":
            return read_arrays(path)
        lines, vocabulary = read_text(path, words)
        return Arrays(lines, vocabulary=vocabulary)
    paths = "a path to an .npy file, an .npz file, a .txt file or a folder of images"
    if path.exists():
        raise ValueError(f"Cannot read {path}: expected {paths}. Convert it with `np.save`.")
    if len(path.parts) > 1:
        raise FileNotFoundError(f"No file or folder {path}. Check the path.")
    raise ValueError(f"Unknown data set {name!r}. Choose one of {', '.join(NAMES)}, or {paths}.")


def read_mnist(name: str, folder: str | os.PathLike[str] | None = None) -> Arrays:
    """MNIST or Fashion-MNIST from idx files in a folder, in that named by GAE_DATA, or from OpenML.

    Raises:
        FileNotFoundError: no such folder, no idx files in it, or OpenML cannot be reached.
        ValueError: damaged files, or those of the other data set.
    """
    given = folder if folder is not None else os.environ.get("GAE_DATA")
    if given:
        root = Path(given).expanduser()
        origin = "GAE_DATA" if folder is None else "folder"
        if not root.is_dir():
            raise FileNotFoundError(f"{origin} names {root}, which is no folder. Name one with {name}'s idx files.")
        for place in (root / name, root):
            if find_idx(place):
                return _verified(name, place)
        if folder is not None:
            raise FileNotFoundError(f"No idx files of {name} in {root} or in {root / name}.")
    return _openml(name)


def _verified(name: str, place: Path) -> Arrays:
    """The idx files of a folder, unless they are another data set's: MNIST and Fashion-MNIST share file names."""
    arrays = read_idx_folder(place)
    first = arrays.y[:5].tolist() if arrays.y is not None and len(arrays.y) == 60000 else []
    for other in FIRST_LABELS.keys() - {name}:
        if first == FIRST_LABELS[other]:
            raise ValueError(f"The idx files in {place} are those of {other}, not of {name}. Name another folder.")
    return arrays


def _openml(name: str) -> Arrays:
    from sklearn.datasets import fetch_openml

    # pandas parses MNIST many times faster than scikit-learn's own parser, but is no dependency of ours
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
