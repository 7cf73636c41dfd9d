"""``gae dip``: from a photograph on disk to the restored one and its numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import gae
from PIL import Image

from gae.analysis.restoration import restore_image
from gae.data.images import read_pixels
from gae.data.photographs import Photograph
from gae.systems.image_prior import Network

TINY = ("--steps", 2, "--channels", 2, "--scales", 1, "--preview", 0, "--json")
SIDE = 24


def shades(channels: int = 3) -> np.ndarray:
    """Smooth shades of 16 bits: (H, W, C)."""
    rows, columns, channel = np.indices((SIDE, SIDE, channels))
    return (2000 + rows * 1543 + columns * 977 + channel * 5011).astype(np.uint16)


def write(path: Path, pixels: np.ndarray, bits: int = 8) -> Path:
    values = np.moveaxis(pixels / (2**bits - 1), -1, 0).astype(np.float32)
    photo = Photograph(values, None, bits) if len(values) % 2 else Photograph(values[:-1], values[-1], bits)
    photo.write(path)
    return path


def dip(image: Path, *options: Any, out: Path) -> dict[str, Any]:
    return json.loads(gae("dip", image, *TINY, *options, "--out", out))


def plain(values: np.ndarray, **options: Any) -> Any:
    """The restoration in Python, with the settings of the tests."""
    return restore_image(torch.from_numpy(values), steps=2, network=Network(2, 1), **options)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_kept_on_the_way(tmp_path: Path, suffix: str) -> None:
    """File to file: as the fit of the values themselves, and not of those with 8 bits."""
    pixels = shades()
    summary = dip(write(tmp_path / f"a.{suffix}", pixels, 16), "--format", suffix, out=tmp_path / "out")
    values = np.moveaxis(pixels / 65535, -1, 0).astype(np.float32)
    exact, rounded = plain(values), plain((values * 255).round() / 255)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["loss"] == exact.loss != rounded.loss
    expected = (exact.image.numpy() * 65535).round()
    assert summary["bits"] == 16 and summary["result"] == str(tmp_path / "out" / f"result.{suffix}")
    np.testing.assert_array_equal(read_pixels(tmp_path / "out" / f"result.{suffix}"), expected)
    assert (expected % 257 != 0).any()


def test_the_result_has_the_bits_of_the_photograph_or_those_named(tmp_path: Path) -> None:
    shallow = write(tmp_path / "a.png", shades() // 257)
    for options, dtype in (((), np.uint8), (("--bits", 16), np.uint16)):
        summary = dip(shallow, *options, out=tmp_path / f"{dtype.__name__}")
        assert read_pixels(Path(summary["result"])).dtype == dtype


def test_webp_goes_in_and_out(tmp_path: Path) -> None:
    pixels = shades() // 257
    write(tmp_path / "a.webp", pixels)
    dip(tmp_path / "a.webp", "--format", "webp", out=tmp_path / "out")
    with Image.open(tmp_path / "out" / "result.webp") as image:
        written = np.asarray(image)
    exact = plain(np.moveaxis(pixels / 255, -1, 0).astype(np.float32)).image.numpy()
    np.testing.assert_array_equal(np.moveaxis(written, -1, 0), (exact * 255).round())


@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_is_carried_over_unchanged(tmp_path: Path, bits: int) -> None:
    pixels = shades(4) // (257 if bits == 8 else 1)
    dip(write(tmp_path / "a.png", pixels, bits), "--alpha", "keep", out=tmp_path / "out")
    result = read_pixels(tmp_path / "out" / "result.png")
    np.testing.assert_array_equal(result[3], pixels[..., 3])
    exact = plain(np.moveaxis(pixels[..., :3] / (2**bits - 1), -1, 0).astype(np.float32)).image.numpy()
    np.testing.assert_array_equal(result[:3], (exact * (2**bits - 1)).round())


def test_alpha_is_flattened_over_a_background(tmp_path: Path) -> None:
    pixels = shades(4)
    dip(write(tmp_path / "a.png", pixels, 16), "--background", "#00ff00", out=tmp_path / "out")
    colours, alpha = pixels[..., :3] / 65535, pixels[..., 3:] / 65535
    flat = np.moveaxis(colours * alpha + (1 - alpha) * np.array([0, 1, 0]), -1, 0).astype(np.float32)
    result = read_pixels(tmp_path / "out" / "result.png")
    assert result.shape == (3, SIDE, SIDE)
    loss = json.loads((tmp_path / "out" / "result.json").read_text())["loss"]
    np.testing.assert_allclose(loss[0], plain(flat).loss[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        (4, (), "has an alpha channel. Flatten it over a colour, as by `--background white`, or carry it over to"),
        (4, ("--alpha", "drop"), "--alpha must be keep, got 'drop'. To flatten it, name a --background"),
        (4, ("--alpha", "keep", "--background", "red"), "--background flattens the alpha channel, which --alpha keeps"),
        (4, ("--alpha", "keep", "--task", "superresolve"), "needs a result of the photograph's size"),
        (4, ("--background", "nowhere"), "Unknown colour 'nowhere'"),
        (3, ("--alpha", "keep"), "a.png has no alpha channel. Leave out --background and --alpha"),
        (3, ("--background", "red"), "a.png has no alpha channel. Leave out --background and --alpha"),
        (3, ("--format", "jpg"), "Cannot write the format 'jpg'"),
        (3, ("--format", "webp", "--bits", 16), "webp cannot hold 16 bits per channel"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, channels: int, options: Any, message: str) -> None:
    image = write(tmp_path / "a.png", shades(channels) // 257)
    assert message in gae("dip", image, *TINY, *options, "--out", tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()
