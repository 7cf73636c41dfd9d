"""``gae dip``: from a photograph on disk to the restored one and its numbers."""

import base64
import html
import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import after_script
from command import gae
from PIL import Image

from gae.analysis.restoration import restore_image
from gae.data.images import read_pixels
from gae.data.photographs import Photograph
from gae.likelihood.physics import PhysicsOperator
from gae.reports.photographs import write_restoration
from gae.systems.image_prior import Network

pytestmark = pytest.mark.usefixtures("blank_figures")  # test_restoration.py has them drawn

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


def test_a_missing_library_is_named_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = write(tmp_path / "a.png", shades() // 257)
    monkeypatch.setitem(sys.modules, "png", None)
    text = gae("dip", image, *TINY, "--bits", 16, "--out", tmp_path / "out", code=2)
    assert "needs pypng: pip install 'gae[photos]'" in text and not (tmp_path / "out").exists()


# A clean photograph.


def noisy(pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.1 * 65535, pixels.shape)
    return (pixels + noise).clip(0, 65535).round().astype(np.uint16)


def stored(path: Path) -> np.ndarray:
    """The values of a file of 8 bits, by Pillow: (H, W, C)."""
    with Image.open(path) as image:
        return np.asarray(image) / 255


@pytest.mark.parametrize("task", ["denoise", "inpaint", "superresolve"])
def test_psnr_and_ssim_are_those_of_the_files(tmp_path: Path, task: str) -> None:
    """scikit-image on the files: the result as written, and the degraded photograph in the size of the result."""
    metrics = pytest.importorskip("skimage.metrics")
    clean, degraded = shades() // 257, noisy(shades()) // 257
    write(tmp_path / "clean.png", clean)
    known = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 3 > 0
    options: list[Any] = ["--task", task, "--clean", tmp_path / "clean.png"]
    before = degraded / 255
    if task == "inpaint":
        Image.fromarray(known).save(tmp_path / "mask.png")
        options += ["--mask", tmp_path / "mask.png"]
        before = np.where(known[..., None], before, 0.5)
    if task == "superresolve":
        degraded = degraded[::2, ::2]
        options += ["--factor", 2]
        small = torch.from_numpy(np.moveaxis(degraded / 255, -1, 0)).float()[None]
        large = torch.nn.functional.interpolate(small, scale_factor=2, mode="bicubic", antialias=True)
        before = np.moveaxis(large[0].clamp(0, 1).numpy().astype(float), 0, -1)
    summary = dip(write(tmp_path / "a.png", degraded), *options, out=tmp_path / "out")
    truth, restored = stored(tmp_path / "clean.png"), stored(tmp_path / "out" / "result.png")
    for name, image in (("degraded", before), ("restored", restored)):
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        expected = metrics.structural_similarity(truth, image, channel_axis=-1, data_range=1.0, **options)
        assert summary["SSIM"][name] == pytest.approx(expected, abs=1e-6)
        expected = metrics.peak_signal_noise_ratio(truth, image, data_range=1.0)
        assert summary["PSNR (dB)"][name] == pytest.approx(expected, abs=1e-4)


def test_an_infinite_psnr_is_printed_and_null_in_json(tmp_path: Path) -> None:
    image = write(tmp_path / "a.png", shades() // 257)
    assert dip(image, "--clean", image, out=tmp_path / "1")["PSNR (dB)"]["degraded"] is None
    assert json.loads((tmp_path / "1" / "result.json").read_text())["PSNR (dB)"]["degraded"] is None
    assert "degraded=inf" in gae("dip", image, *TINY[:-1], "--clean", image, "--out", tmp_path / "2")


def test_the_alpha_of_the_clean_photograph_is_treated_alike(tmp_path: Path) -> None:
    pixels = shades(4) // 257
    image = write(tmp_path / "a.png", pixels)
    flat = dip(image, "--background", "red", "--clean", image, out=tmp_path / "flat")
    kept = dip(image, "--alpha", "keep", "--clean", image, out=tmp_path / "kept")
    opaque = dip(image, "--alpha", "keep", "--clean", write(tmp_path / "b.png", pixels[..., :3]), out=tmp_path / "b")
    assert all(summary["PSNR (dB)"]["degraded"] is None for summary in (flat, kept, opaque))
    assert kept["SSIM"] == opaque["SSIM"]


def test_alpha_of_the_clean_photograph_alone_is_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 4), dtype=np.uint8)
    clean, photo = write(tmp_path / "a.png", pixels), write(tmp_path / "b.png", pixels[..., :3])
    said = gae("dip", photo, *TINY, "--clean", clean, "--out", tmp_path / "out", code=2)
    assert "a.png has an alpha channel, and the photograph to restore has none. Flatten it first" in said
    assert not (tmp_path / "out").exists()


def test_a_clean_photograph_of_another_size_is_refused(tmp_path: Path) -> None:
    image = write(tmp_path / "a.png", shades() // 257)
    small, grey = write(tmp_path / "s.png", shades()[1:] // 257), write(tmp_path / "g.png", shades(1) // 257)
    tiny = write(tmp_path / "t.png", shades()[:9, :9] // 257)
    for photo, clean, options, message in (
        (image, small, (), "The clean image is 23 × 24 with 3 channels, but the image to measure is 24 × 24 with 3"),
        (image, grey, (), "The clean image is 24 × 24 with 1 channel, but the image to measure is 24 × 24 with 3"),
        (image, image, ("--task", "superresolve", "--factor", 2), "but the image to measure is 48 × 48"),
        (tiny, tiny, (), "SSIM needs at least 11 × 11 pixels, got 9 × 9"),
        (image, tmp_path / "none.png", (), "No image"),
    ):
        said = gae("dip", photo, *TINY, *options, "--clean", clean, "--out", tmp_path / "out", code=2)
        assert message in said and not (tmp_path / "out").exists()


# The page.


def pictures_of(page: str) -> list[np.ndarray]:
    """The embedded pictures that the slider compares, by Pillow: (H, W, C) from 0 to 255."""
    embedded = re.findall(r'<img id="picture-\d" src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in embedded]


def test_the_page_shows_the_files_and_repeats_the_run(tmp_path: Path) -> None:
    """Its pictures are those of the files, its numbers those of the record, and its command gives the result again."""
    clean, degraded = shades() // 257, noisy(shades()) // 257
    folder = tmp_path / "with space"
    folder.mkdir()
    options = ("--clean", write(folder / "clean.png", clean), "--runs", 2, "--seed", 5)
    summary = dip(write(folder / "a <b>.png", degraded), *options, out=folder / "out")
    page = (folder / "out" / "result.html").read_text(encoding="utf-8")
    restored = (stored(folder / "out" / "result.png") * 255).round()
    for shown, expected in zip(pictures_of(page), (degraded, restored, clean), strict=True):
        np.testing.assert_array_equal(shown, expected)
    assert not re.search(r"https?://|src=\"(?!data:)", page) and "a &lt;b&gt;.png" in page
    for name in ("degraded", "restored"):
        psnr, ssim = summary["PSNR (dB)"][name], summary["SSIM"][name]
        assert f"<td>{name}</td><td>{psnr:.2f}</td><td>{ssim:.4f}</td>" in page
    (command,) = re.findall(r"<dt>Command</dt><dd><code>(.*?)</code>", page, flags=re.DOTALL)
    words = shlex.split(html.unescape(command))
    assert words[1:3] == ["dip", str(folder / "a <b>.png")] and words[-1] == "--json"
    words[words.index("--out") + 1] = str(folder / "again")
    gae(*words[1:])
    assert (folder / "again" / "result.png").read_bytes() == (folder / "out" / "result.png").read_bytes()


def test_a_large_photograph_is_shown_smaller(tmp_path: Path) -> None:
    image = np.zeros((1, 20, 3200), np.float32)
    write_restoration(tmp_path / "a.html", "a.png", {"degraded": image, "restored": image}, [[1.0]], {}, {}, [])
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Shown at 1600 × 10 of 3200 × 20 pixels." in page and "PSNR" not in page
    assert [picture.shape for picture in pictures_of(page)] == [(10, 1600), (10, 1600)]


# Measurements.


def test_a_blur_on_the_command_line_is_that_in_python(tmp_path: Path) -> None:
    pixels = shades() // 257
    summary = dip(write(tmp_path / "a.png", pixels), "--blur", 2, out=tmp_path / "out")
    values = np.moveaxis(pixels / 255, -1, 0).astype(np.float32)
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert summary["blur"] == 2 and record["loss"] == plain(values, blur=2.0).loss != plain(values).loss


PHYSICS = """
import torch


class Halves:
    def A(self, x, **parameters):
        return x[..., ::2, :]

    def A_adjoint(self, y, **parameters):
        x = y.new_zeros(*y.shape[:-2], 2 * y.shape[-2], y.shape[-1])
        x[..., ::2, :] = y
        return x


def every_other_row(shape):
    assert shape == (3, 12, 24)
    return Halves()


def nothing(shape):
    return torch.zeros(shape)


def alone():
    return Halves()


number = 3
"""


@pytest.fixture
def physics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photograph of every other row, with the module that says so in the working directory."""
    (tmp_path / "rows_of_a_photograph.py").write_text(PHYSICS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "rows_of_a_photograph", raising=False)
    return write(tmp_path / "a.png", shades()[::2] // 257)


def test_an_operator_decides_the_size(physics: Path, tmp_path: Path) -> None:
    """As in Python with the same object; the clean photograph has the size of the result."""
    clean = write(tmp_path / "clean.png", shades() // 257)
    options = ("--operator", "rows_of_a_photograph:every_other_row", "--clean", clean)
    summary = dip(physics, *options, out=tmp_path / "out")
    assert summary["size"] == "24 × 24, 3 channels" and summary["PSNR (dB)"]["restored"] > 0
    import rows_of_a_photograph

    operator = PhysicsOperator(rows_of_a_photograph.Halves())
    exact = plain(np.moveaxis(shades()[::2] // 257 / 255, -1, 0).astype(np.float32), operator=operator)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["loss"] == exact.loss
    np.testing.assert_array_equal(read_pixels(tmp_path / "out" / "result.png"), (exact.image.numpy() * 255).round())


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        ("rows_of_a_photograph", (), "Need module:function, got 'rows_of_a_photograph'"),
        ("nowhere_at_all:f", (), "There is no module 'nowhere_at_all' in the working directory"),
        ("rows_of_a_photograph:missing", (), "rows_of_a_photograph has no 'missing'"),
        ("rows_of_a_photograph:number", (), "rows_of_a_photograph:number is of type int. Name a function"),
        ("rows_of_a_photograph:alone", (), "rows_of_a_photograph:alone takes the arguments (). Name a function"),
        ("rows_of_a_photograph:nothing", (), "Tensor has no A and no A_adjoint"),
        ("rows_of_a_photograph:every_other_row", ("--blur", 1), "An operator is the whole measurement"),
        ("rows_of_a_photograph:every_other_row", ("--task", "superresolve"), "An operator is the whole measurement"),
    ],
)
def test_operators_that_do_not_fit_are_refused(physics: Path, tmp_path: Path, reference: str, options, message) -> None:
    arguments = (physics, *TINY, "--operator", reference, *options, "--out", tmp_path / "out")
    assert message in gae("dip", *arguments, code=2)
    assert not (tmp_path / "out").exists()


def test_the_slider_moves_and_the_table_sorts(tmp_path: Path) -> None:
    """In a browser: the pictures are divided at a quarter, and the scripts of the page do not disturb each other."""
    image, scores = np.zeros((1, 20, 30), np.float32), {"degraded": 20.0, "restored": 25.5}
    quality, path = {"PSNR (dB)": scores, "SSIM": scores}, tmp_path / "a.html"
    write_restoration(path, "a.png", {"degraded": image, "restored": image}, [[1.0]], quality, {}, [])
    move = "at.value = 25; at.dispatchEvent(new Event('input')); document.querySelectorAll('th button')[0].click()"
    driven = after_script(path.read_text(encoding="utf-8"), move, tmp_path)
    assert 'id="compare" style="--at: 25%;"' in driven and 'aria-sort="ascending"' in driven
