"""Images of mixed sizes and modes at one size, by Pillow."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gae.data import load
from gae.data.preparation import Preparation
from gae.data.resizing import Resize

DRAW = np.random.default_rng(0)


def write(path: Path, *shape: int) -> Image.Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(DRAW.integers(0, 256, shape).astype(np.uint8))
    image.save(path)
    return image


BOXES = {(9, 12): (0, 0, 12, 9), (12, 12): (0, 1, 12, 10), (30, 20): (0, 7, 20, 22), (7, 50): (20, 0, 29, 7)}


@pytest.mark.parametrize("crop", [False, True])
def test_sizes_are_those_of_pillow(tmp_path: Path, crop: bool) -> None:
    """A crop to the ratio 3 : 4 is about the centre, in whole pixels."""
    images = [write(tmp_path / f"{n}.png", *shape) for n, shape in enumerate(BOXES)]
    data = load(tmp_path, size=(6, 8), crop=crop)
    for image, row in zip(images, data.rows().x, strict=True):
        part = image.crop(BOXES[image.height, image.width]) if crop else image
        wanted = np.asarray(part.resize((8, 6), Image.Resampling.BILINEAR)) / 255
        np.testing.assert_allclose(row[0].numpy(), wanted, atol=1e-6)
    assert data.notes[0] == f"images {'cropped about the centre and ' if crop else ''}resized to 6 × 8 pixels"


def test_a_crop_is_about_the_centre() -> None:
    image = np.zeros((1, 4, 10), np.uint8)
    image[:, :, 3:7] = 200
    assert (Resize((4, 4), crop=True)(image) == 200).all()
    assert (Resize((4, 4))(image) != 200).any()


def test_mixed_modes_are_in_colour(tmp_path: Path) -> None:
    grey, colour = write(tmp_path / "a.png", 4, 4), write(tmp_path / "b.png", 4, 4, 3)
    Image.fromarray(np.full((4, 4), 13107, np.uint16)).save(tmp_path / "c.png")  # 0.2 of 16 bits
    data = load(tmp_path, size=4)
    x = data.rows().x.numpy()
    np.testing.assert_allclose(x[0], np.broadcast_to(np.asarray(grey) / 255, (3, 4, 4)), atol=1e-6)
    np.testing.assert_allclose(x[1], np.moveaxis(np.asarray(colour), -1, 0) / 255, atol=1e-6)
    np.testing.assert_allclose(x[2], 0.2, atol=1e-6)
    assert data.notes == ("2 grey images as RGB",)
    with pytest.raises(ValueError, match=r"b\.png is uint8 \(3, 4, 4\), but .* size= \(--size\) resizes them"):
        load(tmp_path)


def test_transparent_images_lie_on_white(tmp_path: Path) -> None:
    """As Pillow composes them; a palette's and a grey image's transparent entries too."""
    colours = Image.fromarray(DRAW.integers(0, 256, (4, 4, 4)).astype(np.uint8))
    colours.save(tmp_path / "a.png")
    grey = Image.fromarray(DRAW.integers(0, 4, (4, 4)).astype(np.uint8))
    grey.save(tmp_path / "b.png", transparency=3)
    opaque = write(tmp_path / "c.png", 4, 4, 3)
    data = load(tmp_path, size=4)
    white = Image.new("RGBA", (4, 4), "white")
    pictures = colours, Image.fromarray(np.where(np.asarray(grey) == 3, np.uint8(255), np.asarray(grey))), opaque
    for row, picture in zip(data.rows().x, pictures, strict=True):
        wanted = np.asarray(Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")) / 255
        np.testing.assert_allclose(np.moveaxis(row.numpy(), 0, -1), wanted, atol=1.1 / 255)
    assert data.notes[:2] == ("images with an alpha channel laid on white: 2", "1 grey images as RGB")
    with pytest.raises(ValueError, match=r"a\.png has an alpha channel.*size= \(--size\), which lays images on white"):
        load(tmp_path)


def test_new_images_are_brought_to_the_size_of_the_model(tmp_path: Path) -> None:
    for n, shape in enumerate([(4, 6), (8, 8), (5, 5)]):
        write(tmp_path / "old" / ("x" if n else "y") / f"{n}.png", *shape)
    trained = load(tmp_path / "old", size=4, crop=True)
    like = Preparation.of(trained.preparation.note())
    assert like == trained.preparation and like.classes == ("x", "y")
    image = write(tmp_path / "new" / "y" / "0.png", 12, 16)
    rows = load(tmp_path / "new", like=like).rows()
    np.testing.assert_allclose(rows.x[0, 0].numpy(), Resize((4, 4), True)(np.asarray(image)[None])[0] / 255, atol=1e-6)
    assert rows.labels.tolist() == [1]  # in the numbering of the model
    write(tmp_path / "new" / "y" / "1.png", 4, 4, 3)
    with pytest.raises(ValueError, match="has images in colour, but the model takes 1 channel"):
        load(tmp_path / "new", like=like)
    with pytest.raises(ValueError, match="size of images is that of the model's data"):
        load(tmp_path / "old", size=5, like=like)
    write(tmp_path / "other" / "z" / "0.png", 4, 4)
    with pytest.raises(ValueError, match="labels 'z' are not classes of the model's data, which are 'x', 'y'"):
        load(tmp_path / "other", like=like)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, r"size must be \(height, width\) in whole pixels, got \(0, 0\)"),
        ({"size": (4, 4, 4)}, r"size must be \(height, width\)"),
        ({"crop": True}, "crop=True needs a size"),
    ],
)
def test_bad_sizes(tmp_path: Path, options: dict[str, object], said: str) -> None:
    write(tmp_path / "a.png", 4, 4)
    with pytest.raises(ValueError, match=said):
        load(tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"size=\(4, 4\) is for folders of images only, got 'digits'"):
        load("digits", size=4)
