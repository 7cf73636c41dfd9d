"""Photographs: 16 bits per colour channel exactly, alpha, WebP; against Pillow, tifffile and a PNG written by hand."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gae.data import sixteen_bits
from gae.data.images import read_image, read_pixels
from gae.data.photographs import Photograph, check_writable

CHANNELS_OF_TYPE = {0: 1, 2: 3, 4: 2, 6: 4}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)


def smooth(*shape: int) -> np.ndarray:
    """Shades whose high and low bytes vary: (H, W, C)."""
    rows, columns, channels = np.indices(shape)
    return (rows * 1543 + columns * 977 + channels * 20_011).astype(np.uint16)


def paeth(left: int, up: int, corner: int) -> int:
    """PaethPredictor of the PNG specification, section 9.4."""
    p = left + up - corner
    a, b, c = abs(p - left), abs(p - up), abs(p - corner)
    if a <= b and a <= c:
        return left
    return up if b <= c else corner


def filtered(pixels: np.ndarray) -> bytes:
    """Rows with the filters None, Sub, Up, Average and Paeth in turn, byte by byte as section 9.2 defines them."""
    step = 2 * pixels.shape[2]
    lines = pixels.astype(">u2").reshape(len(pixels), -1).view(np.uint8).astype(int)
    out = bytearray()
    for y, line in enumerate(lines):
        out.append(y % 5)
        for x, byte in enumerate(line):
            left = line[x - step] if x >= step else 0
            up = lines[y - 1, x] if y else 0
            corner = lines[y - 1, x - step] if y and x >= step else 0
            out.append(int(byte - (0, left, up, (left + up) // 2, paeth(left, up, corner))[y % 5]) % 256)
    return bytes(out)


def by_hand(path: Path, pixels: np.ndarray, kind: int, interlaced: bool) -> Path:
    height, width = pixels.shape[:2]
    parts = [pixels[y::down, x::across] for x, y, across, down in PASSES] if interlaced else [pixels]
    data = zlib.compress(b"".join(filtered(part) for part in parts if part.size))
    half = len(data) // 2
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, interlaced)
    chunks = [(b"IHDR", header), (b"IDAT", data[:half]), (b"IDAT", data[half:]), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    )
    return path


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("kind", CHANNELS_OF_TYPE)
@pytest.mark.parametrize("size", [(12, 13), (1, 1), (3, 9)])
def test_a_png_of_16_bits_is_read_exactly(tmp_path: Path, size: tuple[int, int], kind: int, interlaced: bool) -> None:
    """Every filter type, colour type and interlacing."""
    for pixels in (noise(*size, CHANNELS_OF_TYPE[kind]), smooth(*size, CHANNELS_OF_TYPE[kind])):
        path = by_hand(tmp_path / "a.png", pixels, kind, interlaced)
        np.testing.assert_array_equal(read_pixels(path), np.moveaxis(pixels, -1, 0))
        np.testing.assert_array_equal(sixteen_bits.read_png(path), pixels)  # also of the grey that Pillow reads


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("packing", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}])
def test_a_tiff_of_16_bits_is_read_exactly(
    tmp_path: Path, order: str, planes: str, tile: tuple[int, int] | None, packing: dict
) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = noise(40, 50, 3)
    layout = {"tile": tile} if tile else {"rowsperstrip": 7}
    content = pixels if planes == "contig" else np.moveaxis(pixels, -1, 0)
    options = {"byteorder": order, "planarconfig": planes, "photometric": "rgb", **layout, **packing}
    tifffile.imwrite(tmp_path / "a.tif", content, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.moveaxis(pixels, -1, 0))


def test_an_alpha_channel_of_16_bits_must_be_straight(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = noise(8, 9, 4)
    for extra in ("unassalpha", "assocalpha", "unspecified"):
        tifffile.imwrite(tmp_path / f"{extra}.tif", pixels, photometric="rgb", extrasamples=[extra])
    np.testing.assert_array_equal(read_pixels(tmp_path / "unassalpha.tif"), np.moveaxis(pixels, -1, 0))
    for extra in ("assocalpha", "unspecified"):
        with pytest.raises(ValueError, match="has 4 channels of 16 bits that are not RGB, or RGB with straight alpha"):
            read_pixels(tmp_path / f"{extra}.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bits_are_turned_upright_like_8(tmp_path: Path, orientation: int) -> None:
    """The orientation of the camera, in the EXIF chunk of a PNG and the tag of a TIFF: as Pillow turns 8 bits."""
    bytes_only = smooth(5, 7, 3) // 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(bytes_only.astype(np.uint8)).save(tmp_path / "shallow.png", exif=exif)
    expected = read_pixels(tmp_path / "shallow.png").astype(np.uint16) * 257
    content, data = sixteen_bits.png(bytes_only * 257), exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    (tmp_path / "deep.png").write_bytes(content[:33] + chunk + content[33:])
    np.testing.assert_array_equal(read_pixels(tmp_path / "deep.png"), expected)
    tifffile = pytest.importorskip("tifffile")
    tag = [(0x0112, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "deep.tif", bytes_only * 257, photometric="rgb", extratags=tag)
    np.testing.assert_array_equal(read_pixels(tmp_path / "deep.tif"), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_written_exactly(tmp_path: Path, channels: int) -> None:
    pixels = noise(9, 14, channels)
    values = np.moveaxis(pixels / 65535, -1, 0).astype(np.float32)
    photo = Photograph(values, None, 16) if channels % 2 else Photograph(values[:-1], values[-1], 16)
    photo.write(tmp_path / "a.png")
    again = Photograph.read(tmp_path / "a.png")
    np.testing.assert_array_equal(again.colours, photo.colours)
    assert again.bits == 16 and (again.alpha is None) == (photo.alpha is None)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), np.moveaxis(pixels, -1, 0))
    with Image.open(tmp_path / "a.png") as image:  # Pillow keeps the high byte of colours
        high = np.asarray(image).reshape(9, 14, -1)
    np.testing.assert_array_equal(high[..., 0] if channels > 1 else high[..., 0] >> 8, pixels[..., 0] >> 8)
    photo.write(tmp_path / "a.tiff")
    tifffile = pytest.importorskip("tifffile")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tiff").reshape(pixels.shape), pixels)


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_8_bits_are_written_exactly(tmp_path: Path, suffix: str, channels: int) -> None:
    """Also the colours of transparent pixels; a grey WebP is stored as RGB."""
    pixels = (noise(9, 14, channels) % 256).astype(np.uint8)
    values = np.moveaxis(pixels / 255, -1, 0).astype(np.float32)
    photo = Photograph(values) if channels % 2 else Photograph(values[:-1], values[-1])
    photo.write(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        stored = np.asarray(image).reshape(9, 14, -1)
    wide = np.concatenate([pixels[..., :1]] * 2 + [pixels], -1) if suffix == "webp" and channels < 3 else pixels
    np.testing.assert_array_equal(stored, wide)
    again = Photograph.read(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(again.colours, np.broadcast_to(photo.colours, again.colours.shape))
    np.testing.assert_array_equal(again.alpha, photo.alpha)


def test_flattening_is_that_of_pillow(tmp_path: Path) -> None:
    pixels = (noise(9, 14, 4) % 256).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exact=True)
    Image.fromarray(pixels[..., 2:]).save(tmp_path / "grey.png")
    photo, grey = (Photograph.read(tmp_path / name) for name in ("a.webp", "grey.png"))
    for name, colour in (("white", (255, 255, 255)), ("#ff8000", (255, 128, 0))):
        under = Image.new("RGBA", (14, 9), (*colour, 255))
        expected = np.asarray(Image.alpha_composite(under, Image.fromarray(pixels)))[..., :3]
        np.testing.assert_allclose(255 * photo.flatten(name).colours, np.moveaxis(expected, -1, 0), atol=1)
    assert grey.flatten("black").colours.shape == (1, 9, 14) and grey.flatten("red").colours.shape == (3, 9, 14)
    np.testing.assert_allclose(
        grey.flatten("black").colours[0], pixels[..., 2] / 255 * (pixels[..., 3] / 255), rtol=1e-5
    )


def test_transparent_colours_become_alpha(tmp_path: Path) -> None:
    """Palette, grey and RGB with one transparent entry: opaque everywhere else."""
    pixels = (noise(9, 14, 3) % 256).astype(np.uint8)
    palette = Image.fromarray(pixels).quantize(8)
    palette.save(tmp_path / "palette.png", transparency=3)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png", transparency=int(pixels[0, 0, 0]))
    Image.fromarray(pixels).save(tmp_path / "rgb.png", transparency=tuple(map(int, pixels[2, 1])))
    opaque = {
        "palette": np.asarray(palette) != 3,
        "grey": pixels[..., 0] != pixels[0, 0, 0],
        "rgb": (pixels != pixels[2, 1]).any(-1),
    }
    for name, expected in opaque.items():
        photo = Photograph.read(tmp_path / f"{name}.png")
        assert not expected.all() and len(photo.colours) == (1 if name == "grey" else 3)
        np.testing.assert_array_equal(photo.alpha, expected)
    Image.fromarray(pixels[..., 0] > 99).save(tmp_path / "bits.png", transparency=1)
    with pytest.raises(ValueError, match="has a transparent colour at 1 bits"):
        Photograph.read(tmp_path / "bits.png")


def damaged(content: bytes) -> dict[str, tuple[bytes, str]]:
    """Contents of PNGs with an error, each with the message."""
    chunks, header = content[33:-12], content[:33]
    size = struct.unpack(">I", chunks[:4])[0]

    def with_data(raw: bytes) -> bytes:
        data = zlib.compress(raw)
        chunk = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
        return header + chunk + content[-12:]

    raw = zlib.decompress(chunks[8 : 8 + size])
    return {
        "checksum": (
            content[:60] + bytes([content[60] ^ 1]) + content[61:],
            "checksum of its part IDAT does not match",
        ),
        "short": (with_data(raw[:-3]), f"has {len(raw) - 3} of {len(raw)} bytes of pixels"),
        "filter": (with_data(b"\x07" + raw[1:]), "invalid entry in choice array"),
    }


@pytest.mark.parametrize("name", ["checksum", "short", "filter"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    content, message = damaged(sixteen_bits.png(noise(9, 14, 3)))[name]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sixteen_bits.read_png(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        read_pixels(tmp_path / "a.png")


def test_formats_that_cannot_hold_a_result_are_refused() -> None:
    for arguments, message in (
        (("webp", 16, 9, 9), "webp cannot hold 16 bits per channel. Write png or tiff, or 8 bits"),
        (("png", 12, 9, 9), "png cannot hold 12 bits per channel. Choose 8 or 16"),
        (("jpg", 8, 9, 9), "Cannot write the format 'jpg'. Choose one of png, tiff, webp"),
        (("webp", 8, 9, 20_000), "at most 16383 pixels a side, got 9 × 20000"),
    ):
        with pytest.raises(ValueError, match=message):
            check_writable(*arguments)
    transparent = Photograph(np.zeros((3, 2, 2), np.float32), np.ones((2, 2), np.float32))
    for colour, message in (("nowhere", "Unknown colour 'nowhere'"), ("#11223344", "must be opaque")):
        with pytest.raises(ValueError, match=message):
            transparent.flatten(colour)
    with pytest.raises(ValueError, match="no alpha channel, so it takes no background"):
        Photograph(np.zeros((1, 2, 2), np.float32)).flatten("white")
