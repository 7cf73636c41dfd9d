"""Image restoration: any size and kind of image, reproducibility, error messages, and interruption."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from gae.analysis.restoration import restore_image
from gae.cli.main import app
from gae.data.photographs import read_mask, read_photo, write_photo
from gae.inference import Progress
from gae.likelihood import Blur, Crop, Downsample, LinearOperator, Measured
from gae.systems import image_prior
from gae.systems.image_prior import Network, build_likelihood, memory

SMALL = Network(channels=4, scales=2)
RUNNER = CliRunner()


def photo(*shape: int) -> Tensor:
    """Smooth shades: (C, H, W)."""
    axes = [torch.linspace(0, 3, side) for side in shape[1:]]
    return (0.5 + 0.4 * torch.stack([torch.outer(axes[0].sin(), (axes[1] + c).cos()) for c in range(shape[0])])).clamp(
        0, 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (3, 40), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_task(size: tuple[int, int], channels: int) -> None:
    image = photo(channels, *size)
    mask = torch.arange(size[0] * size[1]).reshape(size) % 2 == 0
    for task, options, grown in (
        ("denoise", {}, 1),
        ("inpaint", {"mask": mask}, 1),
        ("superresolve", {"factor": 2}, 2),
    ):
        found = restore_image(image, task, steps=2, network=SMALL, **options)
        assert found.image.shape == (channels, grown * size[0], grown * size[1])
        assert ((found.image >= 0) & (found.image <= 1)).all()
        assert (found.steps, found.settled, len(found.loss), found.interrupted) == ([2], [False], 2, False)


def test_the_loss_is_the_squared_error_of_what_is_seen() -> None:
    image, mask = photo(1, 9, 10), torch.rand(9, 10) > 0.5
    seen: list[Tensor] = []

    def watch(progress: Progress) -> None:
        seen.append(progress.average[0, 0])

    found = restore_image(image, "inpaint", mask=mask, steps=1, network=SMALL, watch=watch)
    error = (seen[0] - image)[:, mask].square().mean()
    torch.testing.assert_close(torch.tensor(found.loss[0][0]), error, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["denoise", "inpaint", "superresolve"])
def test_a_blur_is_that_of_scipy(task: str) -> None:
    """The error before the first step: the network's output, blurred by scipy, and then masked or downsampled."""
    from scipy.ndimage import gaussian_filter

    image, mask = photo(3, 10, 14), torch.rand(10, 14) > 0.5
    options = {"inpaint": {"mask": mask}, "superresolve": {"factor": 2}}.get(task, {})
    outputs: list[Tensor] = []

    def watch(progress: Progress) -> None:
        outputs.append(progress.average[0, 0])

    restored = restore_image(image, task, blur=1.5, steps=1, network=SMALL, watch=watch, **options)
    blurred = torch.from_numpy(gaussian_filter(outputs[0].numpy(), (0, 1.5, 1.5), mode="reflect", truncate=8.0))
    if task == "superresolve":
        blurred = Downsample(blurred.shape, 2)(blurred)
    error = (blurred - image).square()
    expected = error[:, mask].mean() if task == "inpaint" else error.mean()
    torch.testing.assert_close(torch.tensor(restored.loss[0][0]), expected, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_picture() -> None:
    image = photo(1, 12, 12)
    before = torch.get_rng_state()
    first, again, other = (restore_image(image, steps=5, runs=2, network=SMALL, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, other.image)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first.image, first.runs.mean(0))
    assert not torch.equal(first.runs[0], first.runs[1])


@pytest.mark.slow
def test_it_learns_the_image_and_stops() -> None:
    """A smooth noisy image: the result is closer to the clean image than the input, and early stopping ends the run."""
    clean = photo(1, 32, 32)
    noisy = (clean + 0.15 * torch.randn(clean.shape)).clamp(0, 1)
    found = restore_image(noisy, network=Network(8, 3), steps=1500)
    assert found.settled == [True] and found.steps[0] < 1500
    assert (found.image - clean).square().mean() < 0.2 * (noisy - clean).square().mean()


@pytest.mark.slow
def test_hidden_pixels_are_filled_in() -> None:
    clean, mask = photo(1, 24, 24), torch.rand(24, 24) > 0.5
    found = restore_image(clean, "inpaint", mask=mask, network=Network(8, 2), steps=300)
    hidden = ~mask
    mean = clean[:, mask].mean()
    assert (found.image - clean)[:, hidden].square().mean() < 0.1 * (mean - clean[:, hidden]).square().mean()


def test_an_interruption_keeps_what_was_reached() -> None:
    def watch(progress: Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    found = restore_image(photo(1, 8, 8), steps=50, network=SMALL, watch=watch)
    whole = restore_image(photo(1, 8, 8), steps=5, network=SMALL)
    assert (found.interrupted, found.steps, len(found.loss)) == (True, [5], 5)
    assert torch.equal(found.image, whole.image)


def test_the_memory_told_is_about_what_a_step_keeps() -> None:
    """Twice the side needs four times the activations, which equal those saved by autograd."""
    needed = []
    for side in (64, 128):
        likelihood, _ = build_likelihood(torch.zeros(1, side, side), "denoise", network=SMALL)
        assert not isinstance(likelihood, Measured)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            likelihood.outputs(likelihood.initial(1).unsqueeze(0).requires_grad_())
        recent, working = 4 * 50 * side * side, 4 * (2 * 32 + 4 * SMALL.channels) * side * side
        needed.append(memory(SMALL, 1, side, side))
        assert 0.7 < (needed[-1] - recent - working) / sum(kept.values()) < 1.4
    assert 3.5 < needed[1] / needed[0] < 4.5
    assert 1.7 < memory(SMALL, 1, 128, 128, runs=2) / needed[1] < 2


@pytest.mark.parametrize(
    ("free", "told"),
    [
        (
            70 * 2**20,
            r"needs about \d+\.\d MiB of memory, and 70.0 MiB are free. Use factor 3, or 4 channels instead of 16, or",
        ),
        (1000, "Use a smaller network"),
    ],
)
def test_too_little_memory_is_refused_before_any_is_taken(
    free: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a photograph of 12 megapixels, but smaller: nothing is built, and the suggested settings work."""
    monkeypatch.setattr(image_prior, "free_memory", lambda device: free)
    monkeypatch.setattr(torch, "rand", lambda *sizes, **options: pytest.fail("allocated"))
    network = Network(16, 2)
    for attempt in (restore_image, build_likelihood):
        with pytest.raises(ValueError, match=told) as caught:
            attempt(torch.zeros(1, 64, 64), "superresolve", factor=4, network=network)
    if crop := re.search(r"crop of about (\d+) × (\d+)", str(caught.value)):
        high, wide = (4 * int(side) for side in crop.groups())
        assert 0.9 * free < memory(network, 1, high, wide) <= free < memory(network, 1, 256, 256)
        assert memory(Network(4, 2), 1, 256, 256) <= free < memory(Network(8, 2), 1, 256, 256)
        assert memory(network, 1, 192, 192) <= free


def test_sizes_of_networks_are_refused() -> None:
    for sizes in ((0, 2), (-1, 2), (4, 0), (4, -1)):
        with pytest.raises(ValueError, match="Need channels >= 1 and scales >= 1"):
            Network(*sizes)


class Squared(LinearOperator):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()

    def adjoint(self, y: Tensor) -> Tensor:
        return y


@pytest.mark.parametrize(
    ("image", "task", "options", "message"),
    [
        (photo(1, 8, 8), "deblur", {}, "Unknown task 'deblur'. Choose one of denoise, inpaint, superresolve"),
        (photo(1, 8, 8), "inpaint", {}, "Inpainting needs a mask, and other tasks take none, got the task 'inpaint'"),
        (photo(1, 8, 8), "denoise", {"mask": torch.ones(8, 8, dtype=torch.bool)}, "Inpainting needs a mask, and other"),
        (photo(1, 8, 8), "inpaint", {"mask": torch.ones(8, 9, dtype=torch.bool)}, "mask has 8 × 9 pixels.* 8 × 8"),
        (photo(1, 8, 8), "inpaint", {"mask": torch.zeros(8, 8, dtype=torch.bool)}, "The mask hides every entry"),
        (photo(1, 8, 8), "superresolve", {"factor": 1}, "factor must be at least 2"),
        (
            photo(1, 8, 8).index_fill(1, torch.tensor([2]), torch.nan),
            "denoise",
            {},
            r"finite, got nan at .* \(0, 2, 0\)",
        ),
        (255 * photo(1, 8, 8), "denoise", {}, r"Pixels must be in \[0, 1\], got 127.5"),
        (photo(1, 8, 8), "denoise", {"blur": 0.0}, "blur must be positive"),
        (photo(1, 8, 8), "denoise", {"blur": 1.0, "operator": Blur((1, 8, 8), 1.0)}, "An operator is the whole meas"),
        (photo(1, 8, 8), "superresolve", {"operator": Blur((1, 8, 8), 1.0)}, "An operator is the whole measurement"),
        (photo(1, 8, 8), "denoise", {"operator": Squared()}, "Squared is not linear, is random, or its adjoint is"),
        (photo(1, 8, 8), "denoise", {"operator": Crop((1, 9, 9), 7, 8)}, r"Crop does not map images of the size of"),
        (photo(1, 8, 8), "denoise", {"steps": 0}, "Need steps >= 1 and runs >= 1, got 0 and 1"),
        (photo(1, 8, 8), "denoise", {"runs": 0}, "Need steps >= 1 and runs >= 1"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_be_restored_is_refused(image: Tensor, task: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restore_image(image, task, network=SMALL, **{"steps": 1} | options)


# Files.


def saved(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)
    return path


GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)


def test_images_are_read_as_they_are(tmp_path: Path) -> None:
    grey = read_photo(saved(tmp_path / "grey.png", GREY))
    colour = read_photo(saved(tmp_path / "colour.tif", COLOUR))
    deep = read_photo(saved(tmp_path / "deep.png", GREY.astype(np.uint16) * 257))
    float_tiff = read_photo(saved(tmp_path / "float.tiff", GREY.astype(np.float32) / 255))
    np.testing.assert_allclose(grey, GREY[None] / 255, rtol=1e-6)
    np.testing.assert_allclose(colour, COLOUR.transpose(2, 0, 1) / 255, rtol=1e-6)
    np.testing.assert_allclose(deep, grey, rtol=1e-6)
    np.testing.assert_allclose(float_tiff, grey, rtol=1e-6)
    assert read_photo(saved(tmp_path / "palette.png", COLOUR, "P")).shape == (3, 5, 7)
    assert read_photo(saved(tmp_path / "photo.jpg", COLOUR)).shape == (3, 5, 7)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "mask.png", GREY)), GREY > 127)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "bits.png", GREY > 127)), GREY > 127)
    for image in (grey, colour):
        write_photo(image, tmp_path / "again.png")
        np.testing.assert_allclose(read_photo(tmp_path / "again.png"), image, atol=1e-6)


def test_the_orientation_of_a_camera_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR).save(tmp_path / "turned.jpg", exif=exif)
    assert read_photo(tmp_path / "turned.jpg").shape == (3, 7, 5)


def wide_colour(path: Path) -> Path:
    """A PNG whose header says 16 bits per channel, in colour, but which has 8."""
    raw = bytearray(saved(path, COLOUR).read_bytes())
    raw[24] = 16
    import zlib

    raw[29:33] = zlib.crc32(bytes(raw[12:29])).to_bytes(4, "big")
    path.write_bytes(bytes(raw))
    return path


def broken(path: Path) -> Path:
    path.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return path


def pages(path: Path) -> Path:
    Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.fromarray(GREY)])
    return path


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda at: at / "none.png", FileNotFoundError, "No image"),
        (lambda at: saved(at / "a.gif", GREY), ValueError, "is none of .png, .jpg"),
        (lambda at: broken(at / "a.png"), ValueError, "cannot be read as an image"),
        (lambda at: saved(at / "a.png", COLOUR, "RGBA"), ValueError, "has an alpha channel"),
        (lambda at: saved(at / "a.png", GREY, "LA"), ValueError, "has an alpha channel"),
        (lambda at: saved(at / "a.jpg", COLOUR, "CMYK"), ValueError, "has the colour mode CMYK"),
        (lambda at: wide_colour(at / "a.png"), ValueError, "cannot be read as an image"),
        (lambda at: pages(at / "a.tif"), ValueError, "holds 2 images"),
        (
            lambda at: saved(at / "a.tif", np.full((2, 3), np.nan, np.float32)),
            ValueError,
            "first nan at row 0",
        ),
        (lambda at: saved(at / "a.tif", np.full((2, 3), 7.0, np.float32)), ValueError, "not in .0, 1., first 7"),
    ],
)
def test_images_that_would_lose_something_are_refused(tmp_path: Path, make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        read_photo(make(tmp_path))


# The command.


def test_the_command_writes_what_it_found(tmp_path: Path) -> None:
    image, mask = saved(tmp_path / "a.png", COLOUR), saved(tmp_path / "m.png", (GREY % 2 * 255).astype(np.uint8))
    out = tmp_path / "out"
    options = ["--task", "inpaint", "--mask", str(mask), "--steps", "6", "--channels", "4", "--scales", "1"]
    options += ["--preview", "3", "--runs", "2", "--out", str(out), "--json"]
    found = RUNNER.invoke(app, ["dip", str(image), *options])
    assert found.exit_code == 0, found.output
    account = json.loads(found.stdout)
    assert account["steps"] == [6, 6] and account["interrupted"] is False
    assert {path.name for path in out.iterdir()} == {
        *("result.png", "side_by_side.png", "curve.png", "result.json", "preview.png", "result.html", "config.yaml"),
    }
    assert read_photo(out / "result.png").shape == (3, 5, 7)
    assert len(json.loads((out / "result.json").read_text())["loss"]) == 6
    again = RUNNER.invoke(app, ["dip", str(image), *options])
    assert again.exit_code == 2 and "is not empty. Name another folder" in again.stderr


def test_ctrl_c_keeps_the_best_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gae.data.photographs

    def interrupted(image: np.ndarray, path: Path) -> None:
        if path.name == "preview.png":
            raise KeyboardInterrupt
        write_photo(image, path)

    monkeypatch.setattr(gae.data.photographs, "write_photo", interrupted)
    options = ["--steps", "50", "--channels", "4", "--scales", "1", "--preview", "5", "--out", str(tmp_path / "out")]
    found = RUNNER.invoke(app, ["dip", str(saved(tmp_path / "a.png", GREY)), *options, "--json"])
    assert found.exit_code == 0, found.output
    account = json.loads(found.stdout)
    assert account["interrupted"] is True and account["steps"] == [5]
    assert (tmp_path / "out" / "result.png").exists()


def test_errors_of_the_command_are_one_line(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", GREY)
    for options, message in (([], "Inpainting needs a mask"), (["--mask", str(tmp_path / "none.png")], "No image")):
        found = RUNNER.invoke(app, ["dip", str(image), "--task", "inpaint", "--out", str(tmp_path / "o"), *options])
        assert found.exit_code == 2 and message in found.stderr
