"""Loading of data sets: contents, splits, hashes, binarisation, and errors for unusable input."""

import gzip
import inspect
import os
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import fetch_openml, load_digits

from gae.data import NAMES, Dataset, linear_gaussian, load
from gae.data.preparation import Preparation
from gae.data.readers import FIRST_LABELS, IDX_FILES

SHADES = np.random.default_rng(0).integers(0, 256, (12, 1, 3, 4)).astype(np.uint8)
REALS = np.random.default_rng(1).normal(size=(12, 3))
TEN = np.arange(10)


def rows(x: torch.Tensor) -> list[list[float]]:
    return sorted(x.flatten(1).tolist())


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, train: int = 7, test: int = 3, zipped: bool = False) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(2)
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, np.ndarray] = {}
    for stem in IDX_FILES:
        n = train if stem.startswith("train") else test
        content[stem] = draw.integers(0, 256, (n, 28, 28)) if "images" in stem else draw.integers(0, 10, n)
        raw = idx(content[stem])
        (folder / (stem + ".gz" if zipped else stem)).write_bytes(gzip.compress(raw) if zipped else raw)
    return content


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.delenv("GAE_DATA", raising=False)
    monkeypatch.setattr("gae.data.readers.DEBIAN", Path("nowhere"))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)


# ---- named data sets


def test_digits_are_those_of_scikit_learn(digits: Dataset) -> None:
    source = load_digits()
    assert digits.train.shape == (1437, 1, 8, 8) and digits.test.shape == (360, 1, 8, 8)
    assert digits.train.dtype == torch.float32 and digits.value_range == (0.0, 1.0)
    assert digits.event_shape == (1, 8, 8) and digits.name == "digits" and digits.binarization == "none"
    images = torch.from_numpy(source.images).float()[:, None] / 16
    assert rows(torch.cat([digits.train, digits.test])) == rows(images)
    label = {tuple(image.flatten().tolist()): int(y) for image, y in zip(images, source.target, strict=True)}
    for x, y in ((digits.train, digits.train_labels), (digits.test, digits.test_labels)):
        assert [label[tuple(image.flatten().tolist())] for image in x] == y.tolist()


def test_split_keeps_the_shares_of_the_labels(digits: Dataset) -> None:
    everything = torch.from_numpy(load_digits().target).bincount()
    assert (digits.test_labels.bincount() - everything * 360 / 1797).abs().max() <= 1


def test_split_follows_the_seed() -> None:
    first, again, other = (load("digits", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train, again.train) and first.hash == again.hash
    assert not torch.equal(first.train, other.train) and first.hash != other.hash


@pytest.mark.parametrize(("fraction", "n_test"), [(0.5, 6), (0.01, 1), (0.99, 11), (0.3, 4)])
def test_split_has_the_asked_size_and_loses_nothing(tmp_path: Path, fraction: float, n_test: int) -> None:
    dataset = load(save(tmp_path / "a.npz", x=REALS, y=np.arange(12)), test_fraction=fraction)
    assert len(dataset.test) == n_test
    assert rows(torch.cat([dataset.train, dataset.test])) == rows(torch.from_numpy(REALS).float())
    for x, y in ((dataset.train, dataset.train_labels), (dataset.test, dataset.test_labels)):
        assert torch.equal(x, torch.from_numpy(REALS).float()[y])


def test_swiss_roll_lies_on_a_roll_and_labels_follow_its_angle() -> None:
    dataset = load("swiss-roll")
    assert dataset.train.shape == (1600, 3) and dataset.test.shape == (400, 3)
    radius = dataset.train[:, [0, 2]].norm(dim=1)  # of the spiral (t cos t, t sin t), so the radius is the angle
    segment = (radius / (0.3 * torch.pi) - 5).floor()
    assert sorted(set(dataset.train_labels.tolist())) == list(range(10))
    assert (segment == dataset.train_labels).float().mean() > 0.9
    assert (segment - dataset.train_labels).abs().max() <= 1


def test_circles_have_their_radii() -> None:
    dataset = load("circles")
    radius = dataset.train.norm(dim=1)
    assert abs(radius[dataset.train_labels == 0].mean() - 1) < 0.01
    assert abs(radius[dataset.train_labels == 1].mean() - 0.5) < 0.01
    assert dataset.value_range == (
        min(dataset.train.min().item(), dataset.test.min().item()),
        max(dataset.train.max().item(), dataset.test.max().item()),
    )


def test_linear_gaussian_has_its_own_moments() -> None:
    dataset, mean, loadings, scale = linear_gaussian(200_000, latent=2, dim=4, scale=0.5, seed=3)
    x = torch.cat([dataset.train, dataset.test]).double()
    covariance = loadings.double().mT @ loadings.double() + scale**2 * torch.eye(4)
    deviation = torch.sqrt(covariance.diag() / len(x))
    assert ((x.mean(0) - mean).abs() < 5 * deviation).all()
    spread = torch.sqrt((covariance**2 + torch.outer(covariance.diag(), covariance.diag())) / len(x))  # Isserlis
    assert ((x.mT.cov() - covariance).abs() < 5 * spread).all()
    assert dataset.train_labels is None and dataset.test_labels is None


def test_named_linear_gaussian_is_the_function() -> None:
    assert load("linear-gaussian", seed=5).hash == linear_gaussian(2000, 2, 10, 0.5, seed=5).dataset.hash


@pytest.mark.parametrize("change", [{"latent": 6}, {"latent": -1}, {"dim": 0, "latent": 0}, {"scale": 0.0}])
def test_linear_gaussian_refuses_bad_sizes(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Need 0 <= latent <= dim"):
        linear_gaussian(**{"n": 10, "latent": 2, "dim": 5, "scale": 1.0, **change})


# ---- MNIST and Fashion-MNIST


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["", "mnist"])
@pytest.mark.parametrize("by", ["folder", "environment"])
def test_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, place: str, by: str) -> None:
    content = write_idx(tmp_path / place, zipped=zipped)
    if by == "environment":
        monkeypatch.setenv("GAE_DATA", str(tmp_path))
    dataset = load("mnist", folder=tmp_path if by == "folder" else None)
    found = (dataset.train, dataset.train_labels, dataset.test, dataset.test_labels)
    for tensor, stem in zip(found, IDX_FILES, strict=True):
        expected = torch.from_numpy(content[stem])
        assert torch.equal(tensor, (expected[:, None] / 255).float() if "images" in stem else expected)
    assert dataset.value_range == (0.0, 1.0) and dataset.name == "mnist"


def test_real_mnist(mnist_folder: Path) -> None:
    dataset = load("mnist", folder=mnist_folder)
    assert dataset.train.shape == (60000, 1, 28, 28) and dataset.test.shape == (10000, 1, 28, 28)
    assert dataset.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    # mean and standard deviation of the training pixels, as every MNIST tutorial normalises with
    assert abs(dataset.train.mean().item() - 0.1307) < 1e-4 and abs(dataset.train.std().item() - 0.3081) < 1e-4
    with pytest.raises(ValueError, match="are those of mnist, not of fashion-mnist"):
        load("fashion-mnist", folder=mnist_folder)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize(("pixel", "label"), [(np.float64, np.str_), (np.int64, np.object_)])
def test_openml(monkeypatch: pytest.MonkeyPatch, name: str, pixel: type, label: type) -> None:
    """The two types in which scikit-learn's two parsers return OpenML's numbers."""
    shade, digit = np.arange(70000) % 251, np.arange(70000) % 7
    asked: dict[str, Any] = {}

    def fetch(*args: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        asked.update(inspect.signature(fetch_openml).bind(*args, **options).arguments)
        return np.broadcast_to(shade.astype(pixel)[:, None], (70000, 784)), digit.astype(str).astype(label)

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    dataset = load(name)
    assert asked["name"] == {"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST"}[name]
    assert asked["version"] == 1 and asked["as_frame"] is False and asked["return_X_y"] is True
    assert dataset.train.shape == (60000, 1, 28, 28) and dataset.test.shape == (10000, 1, 28, 28)
    assert torch.equal(dataset.train[:, 0, 9, 9], torch.from_numpy(shade[:60000]).float() / 255)
    assert torch.equal(dataset.test[:, 0, 9, 9], torch.from_numpy(shade[60000:]).float() / 255)
    assert torch.equal(dataset.test_labels, torch.from_numpy(digit[60000:]))


def first_labels(folder: Path, first: list[int]) -> None:
    """60000 tiny images, whose first labels say whose files these are."""
    folder.mkdir(parents=True)
    for stem, n in zip(IDX_FILES, (60000, 60000, 5, 5), strict=True):
        labels = np.resize(first, n)
        (folder / stem).write_bytes(idx(labels[:, None, None] if "images" in stem else labels))


def test_several_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first folder that holds a data set is read, and one that holds the other data set is passed over."""
    fashion, mnist, later = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    first_labels(fashion, FIRST_LABELS["fashion-mnist"])
    first_labels(mnist / "mnist", FIRST_LABELS["mnist"])
    content = write_idx(later)
    monkeypatch.setenv("GAE_DATA", os.pathsep.join(map(str, (fashion, mnist, later))))
    assert load("mnist").train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert load("fashion-mnist").train_labels[:5].tolist() == [9, 0, 0, 3, 0]
    monkeypatch.setenv("GAE_DATA", os.pathsep.join(map(str, (later, mnist))))
    assert load("mnist").train_labels.tolist() == content[IDX_FILES[1]].tolist()
    monkeypatch.setenv("GAE_DATA", str(fashion))
    with pytest.raises(ValueError, match=r"files in .*a are those of fashion-mnist, not of mnist"):
        load("mnist")
    monkeypatch.setenv("GAE_DATA", os.pathsep.join(map(str, (mnist, tmp_path / "nowhere"))))
    with pytest.raises(FileNotFoundError, match=r"A folder of GAE_DATA is .*nowhere, which is not a folder"):
        load("mnist")


def test_packages_of_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dataset-fashion-mnist installs /usr/share/datasets/fashion-mnist; a folder that the user names goes before."""
    monkeypatch.setattr("gae.data.readers.DEBIAN", tmp_path / "datasets")
    content = write_idx(tmp_path / "datasets" / "fashion-mnist", zipped=True)
    assert load("fashion-mnist").train_labels.tolist() == content[IDX_FILES[1]].tolist()
    with pytest.raises(FileNotFoundError, match="mnist could not be downloaded"):
        load("mnist")
    with pytest.raises(FileNotFoundError, match="No idx files of fashion-mnist in"):
        load("fashion-mnist", folder=tmp_path)
    own = write_idx(tmp_path / "own", train=8)
    monkeypatch.setenv("GAE_DATA", str(tmp_path / "own"))
    assert load("fashion-mnist").train_labels.tolist() == own[IDX_FILES[1]].tolist()


def test_offline_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"(?s)mnist could not be downloaded.*no route to host.*GAE_DATA"):
        load("mnist")
    monkeypatch.setenv("GAE_DATA", str(tmp_path))  # a folder with other data only
    with pytest.raises(FileNotFoundError, match=r"fashion-mnist could not be downloaded.*GAE_DATA"):
        load("fashion-mnist")


def test_missing_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="No idx files of mnist in"):
        load("mnist", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"folder is .*nowhere, which is not a folder"):
        load("mnist", folder=tmp_path / "nowhere")
    monkeypatch.setenv("GAE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"GAE_DATA is .*nowhere, which is not a folder"):
        load("mnist")
    write_idx(tmp_path)
    (tmp_path / IDX_FILES[2]).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {IDX_FILES[2]}"):
        load("mnist", folder=tmp_path)


@pytest.mark.parametrize("stem", IDX_FILES)
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("keep", [0, 3, 6, -1])
def test_truncated_idx(tmp_path: Path, stem: str, zipped: bool, keep: int) -> None:
    write_idx(tmp_path, zipped=zipped)
    path = tmp_path / (stem + ".gz" if zipped else stem)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{stem}.* truncated or damaged.*Download it again"):
        load("mnist", folder=tmp_path)


def test_idx_with_bytes_to_spare(tmp_path: Path) -> None:
    write_idx(tmp_path)
    path = tmp_path / IDX_FILES[1]
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(ValueError, match="holds 16 bytes or more, but an idx file with its header has 15"):
        load("mnist", folder=tmp_path)


def test_wrong_magic(tmp_path: Path) -> None:
    write_idx(tmp_path)
    images, labels = tmp_path / IDX_FILES[0], tmp_path / IDX_FILES[1]
    images.write_bytes(labels.read_bytes())
    with pytest.raises(ValueError, match=r"starts with the magic number 0x00000801.*starts with 0x00000803.*swapped"):
        load("mnist", folder=tmp_path)
    images.write_bytes(b"<html><body>Not found</body></html>")
    with pytest.raises(ValueError, match="magic number 0x3c68746d"):
        load("mnist", folder=tmp_path)


def test_counts_that_differ(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / IDX_FILES[3]).write_bytes(idx(np.zeros(4)))
    with pytest.raises(ValueError, match=r"t10k-images.* has 3 images but t10k-labels.* has 4 labels"):
        load("mnist", folder=tmp_path)


# ---- a user's own files


@pytest.mark.parametrize(
    ("stored", "expected", "value_range"),
    [
        (SHADES, SHADES / 255, (0.0, 1.0)),
        (SHADES.astype(np.uint16) * 100, SHADES / 655.35, (0.0, 1.0)),
        (SHADES > 99, SHADES > 99, (0.0, 1.0)),
        (SHADES.astype(np.int32) - 50, SHADES - 50.0, None),
        (SHADES.astype(">i8"), SHADES / 255, (0.0, 1.0)),
        (SHADES.astype(">i8") // 16, SHADES // 16, None),
        (SHADES.astype(">i8")[..., 0].reshape(12, 3), SHADES[..., 0].reshape(12, 3), None),
        (SHADES.astype(">f4") * 7, SHADES * 7.0, None),
        (SHADES.astype(np.float16), SHADES, None),
    ],
)
def test_types_of_npy(tmp_path: Path, stored: np.ndarray, expected: np.ndarray, value_range: Any) -> None:
    np.save(tmp_path / "mine.npy", stored)
    dataset = load(tmp_path / "mine.npy")
    together = torch.cat([dataset.train, dataset.test])
    assert together.dtype == torch.float32 and dataset.event_shape == stored.shape[1:] and dataset.name == "mine.npy"
    torch.testing.assert_close(together.sort(0).values.double(), torch.from_numpy(np.sort(expected, 0)).double())
    assert dataset.value_range == (value_range or (together.min().item(), together.max().item()))


def test_npz_with_its_own_split(tmp_path: Path) -> None:
    stored = {"x_train": REALS[:9], "x_test": REALS[9:], "y_train": np.arange(9), "y_test": np.arange(3)}
    dataset = load(str(save(tmp_path / "mine.npz", **stored)))
    assert np.array_equal(dataset.train.numpy(), REALS[:9].astype(np.float32))
    assert np.array_equal(dataset.test.numpy(), REALS[9:].astype(np.float32))
    assert dataset.train_labels.tolist() == list(range(9)) and dataset.test_labels.tolist() == [0, 1, 2]
    assert load(save(tmp_path / "bare.npz", x_train=REALS, x_test=REALS)).test_labels is None


@pytest.mark.parametrize(
    "keys", [("a", "b"), ("x_train",), ("x", "x_train", "x_test"), ("x_train", "x_test", "y_train")]
)
def test_other_keys_are_listed(tmp_path: Path, keys: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"has the keys {', '.join(sorted(keys))}, but it needs x"):
        load(save(tmp_path / "mine.npz", **dict.fromkeys(keys, REALS)))


def spoiled(value: float) -> np.ndarray:
    x = REALS.copy()
    x[7, 2] = x[9, 0] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"x": spoiled(np.nan)}, ValueError, r"x must be finite.*got nan at index \(7, 2\) \(2 such values\)"),
        ({"x": spoiled(-np.inf)}, ValueError, r"x must be finite.*got -inf at index \(7, 2\)"),
        ({"x": spoiled(1e300)}, ValueError, r"x must be finite in float32, got inf at index \(7, 2\)"),
        ({"x_train": REALS, "x_test": spoiled(np.nan)}, ValueError, r"x_test must be finite.*index \(7, 2\)"),
        ({"x": REALS[:0]}, ValueError, r"x is empty: it has shape \(0, 3\)"),
        ({"x": REALS[:, :0]}, ValueError, r"x is empty: it has shape \(12, 0\)"),
        ({"x_train": REALS, "x_test": REALS[:0]}, ValueError, r"x_test is empty"),
        ({"x": REALS[:1]}, ValueError, "data have one observation, but training and test need"),
        ({"x": REALS[:, 0]}, ValueError, r"must have shape \(N, \*X\), got \(12,\)"),
        ({"x": REALS.astype(object)}, ValueError, "mine.npz: Object arrays cannot be loaded.*never loaded"),
        ({"x": REALS.astype(complex)}, TypeError, "x must hold real numbers, got complex128"),
        ({"x": REALS.astype(str)}, TypeError, "x must hold real numbers, got <U"),
        ({"x": SHADES // 200}, ValueError, "x is uint8, read as 0–255, but its highest value is 1"),
        ({"x": REALS, "y": TEN}, ValueError, r"y must have shape \(12,\).*got \(10,\)"),
        ({"x": REALS[:10], "y": TEN / 3}, TypeError, "y must hold integers, got float64"),
        ({"x": REALS[:10], "y": TEN.astype(str)}, TypeError, r"np.unique\(y, return_inverse=True\)"),
        ({"x": REALS, "y": np.arange(12, dtype=np.uint64) + 2**63}, ValueError, "y has labels above"),
        ({"x_train": REALS, "x_test": REALS[:, :2]}, ValueError, r"\(12, 3\) but x_test is float64 \(12, 2\)"),
        ({"x_train": SHADES, "x_test": SHADES.astype(float)}, ValueError, "x_train is uint8 .* x_test is float64"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], error: type[Exception], message: str) -> None:
    path = save(tmp_path / "mine.npz", **arrays)
    before = path.read_bytes()
    with pytest.raises(error, match=message):
        load(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("keep", [0, 5, 60, -40])
def test_truncated_arrays(tmp_path: Path, name: str, keep: int) -> None:
    path = tmp_path / name
    save(path, x=REALS) if name == "a.npz" else np.save(path, REALS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"Cannot read an array from .*{name}.*Write plain numbers"):
        load(path)


def test_object_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, "two"]], dtype=object))
    with pytest.raises(ValueError, match=r"arrays of objects .* are pickles, which are never loaded"):
        load(tmp_path / "a.npy")


# ---- folders of images


def paint(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "TIF"])
def test_grey_images(tmp_path: Path, suffix: str) -> None:
    for n, image in enumerate(SHADES):
        paint(tmp_path / f"{n:02}.{suffix}", image[0])
    dataset = load(tmp_path)
    assert dataset.event_shape == (1, 3, 4) and dataset.value_range == (0.0, 1.0)
    assert dataset.name == tmp_path.name and dataset.train_labels is None
    assert rows(torch.cat([dataset.train, dataset.test])) == rows(torch.from_numpy(SHADES).float() / 255)


def test_colour_images_are_channel_first(tmp_path: Path) -> None:
    red, blue = np.zeros((2, 5, 7, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    for name in ("red", "blue"):
        for n in range(4):
            paint(tmp_path / name / f"{n}.png", {"red": red, "blue": blue}[name])
    (tmp_path / "red" / ".hidden.png").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("not an image")
    with pytest.warns(
        UserWarning, match=r"passed over: hidden 1 \(red/\.hidden\.png\), other suffixes 1 \(readme\.txt\)\.$"
    ):
        dataset = load(tmp_path, test_fraction=0.25)
    assert dataset.train.shape == (6, 3, 5, 7)
    assert sorted(dataset.test_labels.tolist()) == [0, 1]  # blue, red: stratified
    for x, y in ((dataset.train, dataset.train_labels), (dataset.test, dataset.test_labels)):
        assert torch.equal(x.mean((2, 3)), torch.eye(3)[[2, 0]][y])


def test_jpeg_palette_bilevel_and_16_bits(tmp_path: Path) -> None:
    for n in range(2):
        paint(tmp_path / "jpeg" / f"{n}.jpg", np.full((8, 8), 100, np.uint8))
        Image.new("RGB", (4, 4), (255, 0, 51)).quantize(4).save(_made(tmp_path / "palette") / f"{n}.png")
        Image.fromarray(np.eye(4) > 0).save(_made(tmp_path / "bilevel") / f"{n}.png")
        paint(tmp_path / "deep" / f"{n}.png", np.full((2, 2), 13107, np.uint16))
    assert (load(tmp_path / "jpeg").train - 100 / 255).abs().max() < 0.02
    assert torch.equal(load(tmp_path / "palette").train[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    assert torch.equal(load(tmp_path / "bilevel").train[0, 0], torch.eye(4))
    deep = load(tmp_path / "deep")
    assert torch.equal(deep.train, torch.full((1, 1, 2, 2), 0.2)) and deep.value_range == (0.0, 1.0)


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_images_at_two_depths_have_no_labels(tmp_path: Path) -> None:
    for n, folder in enumerate(["", "a", "a", "b"]):
        paint(tmp_path / folder / f"{n}.png", SHADES[n, 0])
    with pytest.warns(UserWarning, match=r"no labels, because 1 of 4 images lie outside .*\(0\.png\)"):
        assert load(tmp_path).train_labels is None


def test_bad_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no images \(.png, .jpg"):
        load(tmp_path)
    for n in range(4):
        paint(tmp_path / f"{n}.png", SHADES[n, 0])
    paint(tmp_path / "2.png", SHADES[2, 0].T)
    paint(tmp_path / "3.png", SHADES[3, 0].T)
    with pytest.raises(
        ValueError, match=r"2.png is uint8 \(1, 4, 3\), but the first image, 0.png, is uint8 \(1, 3, 4\)"
    ):
        load(tmp_path)
    paint(tmp_path / "2.png", SHADES[2, 0].astype(np.uint16))
    with pytest.raises(ValueError, match=r"2.png is uint16 .* 0.png, is uint8"):
        load(tmp_path)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"1.png cannot be read as an image"):
        load(tmp_path)
    (tmp_path / "0.png").write_text("hello")
    with pytest.raises(ValueError, match=r"0.png cannot be read as an image"):
        load(tmp_path)


def test_several_frames(tmp_path: Path) -> None:
    frames = [Image.fromarray(image[0]) for image in SHADES[:3]]
    frames[0].save(tmp_path / "stack.tiff", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"stack\.tiff holds 3 images"):
        load(tmp_path)


# ---- names and options


def test_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="Unknown data set 'digit'") as caught:
        load("digit")
    assert all(name in str(caught.value) for name in NAMES) and "or a path to" in str(caught.value)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for name in ("a.npy", "a.npz", "images"):
        with pytest.raises(FileNotFoundError, match=f"No file .*{name}"):
            load(tmp_path / name)
    (tmp_path / "a.xls").write_text("1,2")
    with pytest.raises(ValueError, match=r"Cannot read .*a.xls: expected a path to an .npy"):
        load(tmp_path / "a.xls")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"binarize": "bernoulli"}, "Unknown binarize 'bernoulli'. Choose one of none, threshold, dynamic"),
        ({"test_fraction": 0.0}, "test_fraction must lie strictly between 0 and 1, got 0.0"),
        ({"test_fraction": 1.0}, "test_fraction must lie strictly between 0 and 1, got 1.0"),
        ({"seed": -1}, r"seed must lie in \[0, 2\*\*32\), got -1"),
        ({"folder": "somewhere"}, "folder is for mnist and fashion-mnist only, got 'digits'"),
        ({"value_range": (1.0, 0.0)}, r"value_range must be \(lowest, highest\), finite"),
        ({"value_range": (0.0, float("inf"))}, r"value_range must be \(lowest, highest\), finite"),
        ({"value_range": (0.0, 0.5)}, r"leave value_range \(0.0, 0.5\), got .* at index \(0, 0, 0, "),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("digits", **options)


def test_declared_range(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((5, 2), 0.1))
    assert load(tmp_path / "a.npy", value_range=(-1.0, 0.1)).value_range == (-1.0, 0.1)


# ---- binarisation


def test_threshold(digits: Dataset) -> None:
    binary = load("digits", binarize="threshold")
    assert torch.equal(binary.train, (digits.train > 0.5).float())
    assert torch.equal(binary.test, (digits.test > 0.5).float())
    assert binary.value_range == (0.0, 1.0) and binary.epoch(1) is binary.train


def test_dynamic_draws_have_the_pixels_as_means(digits: Dataset) -> None:
    binary = load("digits", binarize="dynamic")
    draws = torch.stack([binary.epoch(n, seed=1) for n in range(100)]).double()
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    p = digits.train.double()
    z = (draws.mean(0) - p)[(p > 0) & (p < 1)] / (p * (1 - p) / 100).sqrt()[(p > 0) & (p < 1)]
    assert abs(z.mean()) < 5 / len(z) ** 0.5 and abs(z.square().mean() - 1) < 0.05  # no bias, and independent epochs
    assert torch.equal(draws[0][(p == 0) | (p == 1)], p[(p == 0) | (p == 1)])


def test_dynamic_is_a_pure_function_of_seed_and_epoch() -> None:
    binary, again = load("digits", binarize="dynamic"), load("digits", binarize="dynamic")
    keys = [(0, 0), (1, 0), (0, 1), (1, 1), (11, 1), (1, 11)]
    draws = [binary.epoch(*key) for key in keys]
    torch.manual_seed(99)
    assert all(torch.equal(again.epoch(*key), draw) for key, draw in reversed(list(zip(keys, draws, strict=True))))
    assert not any(torch.equal(a, b) for n, a in enumerate(draws) for b in draws[:n])


def test_dynamic_test_set_is_drawn_once(digits: Dataset) -> None:
    binary, again = load("digits", binarize="dynamic"), load("digits", binarize="dynamic")
    assert set(binary.test.unique().tolist()) == {0.0, 1.0} and torch.equal(binary.test, again.test)
    assert abs((binary.test - digits.test).mean()) < 0.01 and not torch.equal(binary.test, (digits.test > 0.5).float())
    assert torch.equal(binary.train, digits.train)


@pytest.mark.parametrize("how", ["threshold", "dynamic"])
def test_binarisation_refuses_other_ranges(tmp_path: Path, how: str) -> None:
    x = np.full((4, 2), 0.5)
    x[3, 1] = 1.5
    path = save(tmp_path / "a.npz", x_train=x, x_test=x[:2])
    with pytest.raises(ValueError, match=rf"'{how}' needs training values in \[0, 1\], got 1.5 at index \(3, 1\)"):
        load(path, binarize=how)
    with pytest.raises(ValueError, match=r"needs test values in \[0, 1\], got 1.5 at index \(3, 1\)"):
        load(save(tmp_path / "b.npz", x_train=x[:2], x_test=x), binarize=how)


# ---- identity and side effects


def test_hash_sees_every_part(tmp_path: Path) -> None:
    part = {"x_train": REALS, "x_test": REALS[:5], "y_train": np.arange(12), "y_test": np.arange(5)}
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda d: d["x_train"].__setitem__((11, 2), 0.25),
        lambda d: d["x_test"].__setitem__((0, 0), 0.25),
        lambda d: d["y_train"].__setitem__(3, 4),
        lambda d: d["y_test"].__setitem__(4, 3),
        lambda d: d.update(x_train=d["x_train"][:, :, None], x_test=d["x_test"][:, :, None]),
        lambda d: [d.pop("y_train"), d.pop("y_test")],
        lambda d: d.update(x_train=d["x_test"], x_test=d["x_train"], y_train=d["y_test"], y_test=d["y_train"]),
    ]
    original = load(save(tmp_path / "a.npz", **part)).hash
    assert load(save(tmp_path / "elsewhere.npz", **part)).hash == original and len(original) == 64
    hashes = {original}
    for change in changes:
        changed = {key: array.copy() for key, array in part.items()}
        change(changed)
        hashes.add(load(save(tmp_path / "a.npz", **changed)).hash)
    assert len(hashes) == 1 + len(changes)


def test_hash_sees_binarisation(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=SHADES > 99)  # binary already: binarisation changes no number
    assert len({load(path, binarize=how).hash for how in ("none", "threshold", "dynamic")}) == 3


@pytest.mark.usefixtures("unchecked_types")  # a check of a sequence picks one of its items at random
@pytest.mark.parametrize("name", ["digits", "swiss-roll", "circles", "linear-gaussian"])
def test_global_random_states_stay(name: str) -> None:
    def states() -> tuple[Any, ...]:
        _, keys, *position = np.random.get_state()
        return torch.get_rng_state().tolist(), keys.tolist(), position, random.getstate()

    before = states()
    load(name, binarize="dynamic" if name == "digits" else "none").epoch(1, seed=1)
    assert states() == before


# ---- numbers that float32 cannot hold


def timestamps() -> np.ndarray:
    """Seconds since 1970 within ± 20 of each other, beside an ordinary feature."""
    return np.stack([REALS[:, 0], 1.7e9 + np.linspace(-20, 20, 12)], 1)


def missing() -> np.ndarray:
    x = np.tile(timestamps(), (4, 1))
    x[::9, 1] = 0  # as some tables mark a missing value
    return x


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (timestamps(), r"x\[:, 1\]: its mean is 1.7e\+09 and its standard deviation 12.6"),
        (timestamps().astype(np.int64), r"x\[:, 1\]"),
        (timestamps()[:, None], r"x\[:, 0, 1\]"),
        (missing(), r"x\[:, 1\]"),
        (REALS * 1e-3 + 1e4, r"x\[:, 0\]"),
        (REALS * 1e-50, r"x\[:, 0\]: .*standard deviation .*e-5"),
        (REALS * 1e-44, r"x\[:, 0\]"),
        (REALS * 1e-200, r"x\[:, 0\]"),
        (2**24 + np.arange(12)[:, None], r"x\[:, 0\]"),
        (2**62 + np.arange(24).reshape(12, 2), r"x\[:, 0\]: its 12 different integers would become 1"),
        (
            np.append(np.arange(0, 10**9, 10**8), [2**24, 2**24 + 1])[:, None],
            r"its 12 different integers would become 11",
        ),
        (np.arange(2**32 - 12, 2**32, dtype=np.uint32)[:, None], r"x\[:, 0\]"),
        (np.arange(2**64 - 12, 2**64, dtype=np.uint64)[:, None], r"x\[:, 0\]"),
    ],
)
def test_what_float32_cannot_hold_is_refused(tmp_path: Path, x: np.ndarray, said: str) -> None:
    path = save(tmp_path / "a.npz", x=x)
    with pytest.raises(ValueError, match=rf"float32, in which models compute, cannot hold feature .*{said}.*Subtract"):
        load(path)
    with pytest.raises(ValueError, match="cannot hold feature"):
        load(save(tmp_path / "c.npz", x_train=x[:6], x_test=x[6:]))
    if len(x) > 12:  # centring does not mend a missing value
        return
    centred = (x - x.mean(0, dtype=np.longdouble)).astype(np.float64)
    centred = centred / np.abs(centred).max(0)
    rows = load(save(tmp_path / "b.npz", x=centred)).rows()  # the remedy
    np.testing.assert_allclose(rows.x.numpy(), centred, rtol=1e-6, atol=1e-12)


def ordinary() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5)
    return {
        "normal": draw.normal(size=(100, 4)),
        "offset": 1e4 + draw.normal(size=(100, 4)),
        "scales": draw.normal(size=(100, 4)) * np.array([1e5, 1.0, 1e-3, 1e-30]),
        "constant": np.full((100, 2), 0.1),
        "a long constant": np.full((300_000, 2), 0.1),
        "noise on a constant": 0.1 + 1e-17 * draw.normal(size=(100, 2)) + draw.choice([0, 2**-56], (100, 2)),
        "heavy tails": np.exp(4 * draw.normal(size=(1000, 2))),
        "mostly zero": np.where(draw.random((100, 2)) < 0.9, 0.0, draw.normal(size=(100, 2))),
        "a week in seconds": 1.7e9 + draw.uniform(0, 604_800, (100, 1)),
        "populations": draw.integers(1, 10**9, (100, 1)),
        "large but apart": np.append(np.arange(11), 2**40 + 1)[:, None] * np.array([1, 3]),
        "bytes as int64": draw.integers(0, 256, (100, 5)),
        "a long double": draw.normal(size=(100, 2)).astype(np.longdouble),
        "two rows": draw.normal(size=(2, 3)),
    }


@pytest.mark.parametrize("kind", ordinary())
def test_ordinary_numbers_are_not_refused(tmp_path: Path, kind: str) -> None:
    x = ordinary()[kind]
    np.save(tmp_path / "a.npy", x)
    assert np.array_equal(load(tmp_path / "a.npy").rows().x.numpy(), x.astype(np.float32))


# ---- channels


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("own_split", [False, True])
def test_channels_last_are_recognised(tmp_path: Path, channels: int, own_split: bool) -> None:
    x = np.random.default_rng(3).integers(2, 256, (12, 6, 5, channels)).astype(np.uint8)
    expected = np.stack([x[..., c] for c in range(channels)], 1) / 255
    path = save(tmp_path / "a.npz", **({"x_train": x[:8], "x_test": x[8:]} if own_split else {"x": x}))
    with pytest.warns(UserWarning, match=rf"read as images \(N, H, W, C\), with observations \({channels}, 6, 5\)"):
        data = load(path)
    np.testing.assert_allclose(data.rows().x.numpy(), expected, rtol=1e-6)
    stated = load(path, channels="last")
    assert stated.hash == data.hash and stated.event_shape == (channels, 6, 5)
    assert load(path, channels="first").event_shape == (6, 5, channels)


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (1, 3, 4), (1, 8, 1), (1, 1, 1), (5, 7, 2), (8, 8, 8), (3, 4, 4), (2, 2, 3)]
)
def test_what_is_no_image_with_channels_last_stays(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(3).normal(size=(12, *shape)))
    assert load(tmp_path / "a.npy").event_shape == shape


@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 4, 4), (3, 5, 3)])
def test_ambiguous_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).normal(size=(12, *shape))
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(ValueError, match=r"may be \(N, C, H, W\) or \(N, H, W, C\).*channels='first'.*channels='last'"):
        load(tmp_path / "a.npy")
    first, last = (load(tmp_path / "a.npy", channels=which).rows().x.numpy() for which in ("first", "last"))
    assert np.array_equal(first, x.astype(np.float32)) and np.array_equal(last, np.moveaxis(x, 3, 1).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "channels", "said"),
    [
        ("digits", "first", "for .npy and .npz files only"),
        ("a.npy", "middle", "channels must be 'first' or 'last'"),
        ("a.npy", "last", r"channels='last' is for arrays \(N, H, W, C\), got \(12, 3\)"),
    ],
)
def test_bad_channels(tmp_path: Path, name: str, channels: str, said: str) -> None:
    np.save(tmp_path / "a.npy", REALS)
    with pytest.raises(ValueError, match=said):
        load(name if name == "digits" else tmp_path / name, channels=channels)


# ---- rows of the source


def test_rows_are_those_of_the_source(tmp_path: Path) -> None:
    x, y = np.random.default_rng(4).normal(size=(31, 3)).astype(np.float32), np.arange(31) % 3
    data = load(save(tmp_path / "a.npz", x=x, y=y), test_fraction=0.3, seed=7)
    rows = data.rows()
    assert np.array_equal(rows.x.numpy(), x) and rows.labels.tolist() == y.tolist() and rows.files is None
    for split, part in (("train", data.train), ("test", data.test)):
        some = data.rows(split)
        assert np.array_equal(some.x.numpy(), x[some.row.numpy()]) and len(some.x) == len(part)
        assert (some.labels.numpy() == y[some.row.numpy()]).all() and set(some.split) == {split}
        assert (rows.split[some.row.numpy()] == split).all() and (np.diff(some.row.numpy()) > 0).all()
    own = load(save(tmp_path / "b.npz", x_train=x[:20], x_test=x[20:])).rows()
    assert own.row.tolist() == list(range(31)) and own.labels is None and np.array_equal(own.x.numpy(), x)
    with pytest.raises(ValueError, match=r"Unknown split 'dev'\. Choose train, test or all"):
        data.rows("dev")
    with pytest.raises(ValueError, match="rows of this data set in its source are unknown"):
        Dataset("mine", data.train, data.test, None, None, (0.0, 1.0)).rows()
    with pytest.raises(ValueError, match="rows of this data set in its source are unknown"):
        replace(data, train=data.train[:5], train_labels=data.train_labels[:5]).rows()


def test_rows_of_dynamic_binarisation_are_draws(digits: Dataset) -> None:
    binary = load("digits", binarize="dynamic")
    rows = binary.rows()
    assert set(rows.x.unique().tolist()) == {0.0, 1.0}
    pixels = torch.from_numpy(load_digits().images).float()[:, None] / 16
    assert (rows.x[pixels == 1] == 1).all() and (rows.x[pixels == 0] == 0).all()
    assert torch.equal(binary.rows("train").x, binary.epoch(0)[binary.train_rows.argsort()])


@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_an_empty_name_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the folder that one happens to be in."""
    for n in range(3):
        paint(tmp_path / f"{n}.png", SHADES[n, 0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"The name of the data set is empty\. Choose one of digits, mnist"):
        load(name)
    assert load(".").event_shape == (1, 3, 4)


# ---- data for an existing model


def test_the_model_decides_binarisation(digits: Dataset) -> None:
    for how in ("none", "threshold", "dynamic"):
        trained = load("digits", binarize=how)
        assert load("digits", like=trained.preparation).hash == trained.hash
        assert load("digits", binarize=how, like=trained.preparation).hash == trained.hash
    with pytest.raises(ValueError, match="trained with binarization 'none', got 'threshold'"):
        load("digits", binarize="threshold", like=digits.preparation)
    with pytest.raises(ValueError, match="trained with binarization 'threshold', got 'none'"):
        load("digits", binarize="none", like=load("digits", binarize="threshold").preparation)
    old = Preparation.of({"event_shape": [1, 8, 8], "value_range": [0.0, 1.0]})
    with pytest.warns(UserWarning, match="binarization of the model's data is unknown; assuming 'none'"):
        assert load("digits", like=old).hash == digits.hash
    compared = Preparation.of({"event_shape": [1, 8, 8], "comparison": {"binarize": "threshold"}})
    assert load("digits", like=compared).binarization == "threshold"


def test_the_model_decides_shape_and_range(digits: Dataset, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", digits.train.numpy() * 255)
    with pytest.raises(
        ValueError, match=r"trained on values in \[0, 1\], but those of .*a\.npy are in \[0, 255\]. Rescale"
    ):
        load(tmp_path / "a.npy", like=digits.preparation)
    bytes_ = load(tmp_path / "a.npy").preparation
    with pytest.warns(UserWarning, match=r"trained on values in \[0, 255\], but those of digits are in \[0, 1\]"):
        load("digits", like=bytes_)
    with pytest.raises(ValueError, match=r"observations of shape \(1, 8, 8\), but those of circles have shape \(2,\)"):
        load("circles", like=digits.preparation)
    circles = load("circles").preparation
    np.save(tmp_path / "b.npy", load("circles").train.numpy() * 3)
    with pytest.warns(UserWarning, match=r"Are they in the same units\?"):
        load(tmp_path / "b.npy", like=circles)
    np.save(tmp_path / "c.npy", digits.train.numpy()[:1])
    lone = load(tmp_path / "c.npy", like=digits.preparation)
    assert torch.equal(lone.rows().x, digits.train[:1]) and lone.rows().split.tolist() == ["test"]


def test_the_model_decides_channels(tmp_path: Path) -> None:
    """Arrays whose shape is ambiguous."""
    x = np.random.default_rng(3).random((12, 3, 5, 3))
    np.save(tmp_path / "a.npy", x)
    for channels in ("first", "last"):
        trained = load(tmp_path / "a.npy", channels=channels)
        assert load(tmp_path / "a.npy", like=trained.preparation).hash == trained.hash
