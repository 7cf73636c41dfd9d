"""Image folders: orientation, lossless reading, labels, and warnings for skipped files."""

import os
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from gae.data import load
from gae.data.photographs import read_photo

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
DEEP = GREY.astype(np.uint16) * 257


def put(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def everything(folder: Path) -> torch.Tensor:
    return load(folder).rows().x


# Transformations to upright pixels, by the value of the EXIF orientation tag (EXIF 2.32, table 4.6.4 A).
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.swapaxes(x[::-1, ::-1], 0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    paths = [put(tmp_path / f"{n}.{suffix}", COLOUR, exif=exif) for n in range(2)]
    expected = torch.from_numpy(np.ascontiguousarray(np.moveaxis(UPRIGHT[orientation](COLOUR), -1, 0))) / 255
    assert all(torch.equal(x, expected) for x in everything(tmp_path))
    assert np.array_equal(read_photo(paths[0]), expected.numpy())


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("a.png", GREY, GREY / 255),
        ("a.png", GREY > 99, GREY > 99),
        ("a.png", DEEP, GREY / 255),
        ("a.tif", DEEP.astype(">u2"), GREY / 255),
        ("a.tif", DEEP.astype(np.int32), GREY / 255),
        ("a.tif", (GREY / 255).astype(np.float32), GREY / 255),
        ("a.bmp", COLOUR, COLOUR.transpose(2, 0, 1) / 255),
        (
            "a.png",
            Image.fromarray(np.stack([GREY // 100] * 3, -1) * 100).quantize(8),
            np.stack([GREY // 100] * 3) / 2.55,
        ),
    ],
)
def test_kinds_of_images(tmp_path: Path, name: str, image: Image.Image | np.ndarray, expected: np.ndarray) -> None:
    for part in ("1", "2"):
        put(tmp_path / f"{part}{name}", image)
    data = load(tmp_path)
    assert data.value_range == (0.0, 1.0)
    wanted = np.broadcast_to(expected, (3, 5, 7) if np.ndim(expected) == 3 else (1, 5, 7))
    for x in data.rows().x:
        np.testing.assert_allclose(x, wanted, atol=1e-7)
    np.testing.assert_allclose(read_photo(tmp_path / f"1{name}"), wanted, atol=1e-7)


def transparent() -> Image.Image:
    image = Image.fromarray(COLOUR).quantize(8)
    image.info["transparency"] = 3
    return image


reads_its_own_ycbcr = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13, reason="older Pillow writes a YCbCr TIFF that it cannot read"
)


@pytest.mark.parametrize(
    ("name", "image", "said"),
    [
        ("a.png", Image.fromarray(COLOUR).convert("RGBA"), "an alpha channel"),
        ("a.png", Image.fromarray(GREY).convert("LA"), "an alpha channel"),
        ("a.png", transparent(), "an alpha channel"),
        ("a.tif", Image.fromarray(COLOUR).convert("CMYK"), "colour mode CMYK"),
        ("a.jpg", Image.fromarray(COLOUR).convert("CMYK"), "colour mode CMYK"),
        pytest.param("a.tif", Image.fromarray(COLOUR).convert("YCbCr"), "colour mode YCbCr", marks=reads_its_own_ycbcr),
        ("a.tif", Image.fromarray(np.full((5, 7), -1, np.int32)), "values from -1 to -1"),
        ("a.tif", Image.fromarray(np.full((5, 7), 70_000, np.int32)), "values from 70000"),
        ("a.tif", Image.fromarray(np.full((5, 7), 7.0, np.float32)), r"not in \[0, 1\], first 7 at row 0, column 0"),
        ("a.tif", Image.fromarray(np.full((5, 7), np.nan, np.float32)), "first nan"),
    ],
)
def test_images_that_would_lose_something(tmp_path: Path, name: str, image: Image.Image, said: str) -> None:
    for part in ("1", "2"):
        put(tmp_path / f"{part}{name}", image)
    with pytest.raises(ValueError, match=rf"1{name} has .*{said}"):
        load(tmp_path)
    with pytest.raises(ValueError, match=said):
        read_photo(tmp_path / f"1{name}")


def test_lab_is_refused(tmp_path: Path) -> None:
    """Pillow writes a TIFF whose photometric interpretation is 8, CIE L*a*b*."""
    lab = Image.merge("LAB", [Image.fromarray(GREY)] * 3)
    for n in range(2):
        put(tmp_path / f"{n}.tif", lab)
    with pytest.raises(ValueError, match="colour mode LAB"):
        load(tmp_path)


def test_no_other_program_is_started(tmp_path: Path) -> None:
    """A PostScript file named as PNG, for which Pillow would run Ghostscript."""
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\nshowpage\n"
        )
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image \(cannot identify"):
        load(tmp_path)


def test_passed_over_files_are_counted_and_named(tmp_path: Path) -> None:
    for n in range(4):
        put(tmp_path / "pictures" / "ab"[n % 2] / f"{n}.png", GREY)
    put(tmp_path / "elsewhere" / "5.png", GREY)
    os.symlink(tmp_path / "elsewhere", tmp_path / "pictures" / "c")
    os.symlink(tmp_path / "elsewhere" / "5.png", tmp_path / "pictures" / "a" / "linked.png")  # a file: read
    for name in ("a/1.jp2", "a/2.jp2", "b/3.heic", "notes.md"):
        (tmp_path / "pictures" / name).write_text("")
    put(tmp_path / "pictures" / ".cache" / "6.png", GREY)
    with pytest.warns(UserWarning) as caught:
        data = load(tmp_path / "pictures")
    (said,) = (str(each.message) for each in caught)
    assert said.endswith(
        "passed over: hidden 1 (.cache), linked folders 1 (c), other suffixes 4 (notes.md, a/1.jp2, a/2.jp2, …)."
    )
    rows = data.rows()
    assert rows.files is not None and rows.labels is not None
    assert rows.files.tolist() == ["a/0.png", "a/2.png", "a/linked.png", "b/1.png", "b/3.png"]
    assert rows.labels.tolist() == [0, 0, 0, 1, 1]


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.jp2", "b.heic"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"has no images .*: other suffixes 2 \(a\.jp2, b\.heic\)"):
        load(tmp_path)


def shade(value: int) -> np.ndarray:
    return np.full((3, 4), value, np.uint8)


def test_train_and_test_are_a_split(tmp_path: Path) -> None:
    """Training and test labels share one numbering, although neither has all classes."""
    for value, name in enumerate(("train/cat/a", "train/cat/b", "train/dog/a", "Test/ant/a", "Test/dog/b"), 2):
        put(tmp_path / f"{name}.png", shade(value))
    data = load(tmp_path)
    assert [round(255 * float(x.mean())) for x in data.train] == [2, 3, 4]
    assert [round(255 * float(x.mean())) for x in data.test] == [5, 6]
    assert data.train_labels.tolist() == [1, 1, 2] and data.test_labels.tolist() == [0, 2]  # ant, cat, dog
    rows = data.rows()
    assert rows.row.tolist() == [0, 1, 2, 3, 4] and rows.split.tolist() == ["train"] * 3 + ["test"] * 2
    assert rows.files.tolist()[2:4] == ["train/dog/a.png", "Test/ant/a.png"]


def test_a_split_without_classes(tmp_path: Path) -> None:
    for value, name in enumerate(("train/a", "train/b", "test/a"), 2):
        put(tmp_path / f"{name}.png", shade(value))
    data = load(tmp_path)
    assert (len(data.train), len(data.test)) == (2, 1) and data.train_labels is None and data.test_labels is None


def test_what_lies_beside_a_split_is_named(tmp_path: Path) -> None:
    for value, name in enumerate(("train/x/a", "train/y/b", "test/x/a", "test/y/b", "val/x/c", "stray"), 2):
        put(tmp_path / f"{name}.png", shade(value))
    with pytest.warns(UserWarning, match=r"passed over: outside of train and test 2 \(stray\.png, val/x/c\.png\)\.$"):
        data = load(tmp_path)
    assert (len(data.train), len(data.test)) == (2, 2) and data.test_labels.tolist() == [0, 1]
    put(tmp_path / "test" / "lost.png", shade(9))
    with pytest.warns(UserWarning) as caught:
        assert load(tmp_path).train_labels is None
    assert "no labels, because 1 of 5 images lie outside" in str(caught[-1].message) + str(caught[0].message)


@pytest.mark.parametrize("folders", [("train",), ("test",), ("train", "val"), ("dev", "test", "valid")])
def test_half_a_split_is_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        for n in range(2):
            put(tmp_path / folder / "cat" / f"{n}.png", GREY)
    with pytest.raises(ValueError, match=f"has the folders {', '.join(sorted(folders))}: a split needs both"):
        load(tmp_path)


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    for folder in ("car", "plane", "train"):
        for n in range(2):
            put(tmp_path / folder / f"{n}.png", GREY)
    assert load(tmp_path).rows().labels.tolist() == [0, 0, 1, 1, 2, 2]
