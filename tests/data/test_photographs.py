"""Photographs: 16 bits per colour channel exactly, alpha, WebP; against Pillow and a PNG written by hand."""

import struct
import sys
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
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


def by_hand(path: Path, pixels: np.ndarray, kind: int, interlaced: bool, missing: int = 0) -> Path:
    """Writes a PNG of 16 bits without its last bytes of pixels."""
    height, width = pixels.shape[:2]
    parts = [pixels[y::down, x::across] for x, y, across, down in PASSES] if interlaced else [pixels]
    raw = b"".join(filtered(part) for part in parts if part.size)
    data = zlib.compress(raw[: len(raw) - missing])
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


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("packing", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}])
def test_a_tiff_of_16_bits_is_read_exactly(
    tmp_path: Path, order: str, planes: str, tile: tuple[int, int] | None, packing: dict
) -> None:
    pixels = noise(40, 50, 3)
    layout = {"tile": tile} if tile else {"rowsperstrip": 7}
    content = pixels if planes == "contig" else np.moveaxis(pixels, -1, 0)
    options = {"byteorder": order, "planarconfig": planes, "photometric": "rgb", **layout, **packing}
    tifffile.imwrite(tmp_path / "a.tif", content, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.moveaxis(pixels, -1, 0))


def test_an_alpha_channel_of_16_bits_must_be_straight(tmp_path: Path) -> None:
    pixels = noise(8, 9, 4)
    for extra in ("unassalpha", "assocalpha", "unspecified"):
        tifffile.imwrite(tmp_path / f"{extra}.tif", pixels, photometric="rgb", extrasamples=[extra])
    np.testing.assert_array_equal(read_pixels(tmp_path / "unassalpha.tif"), np.moveaxis(pixels, -1, 0))
    for extra in ("assocalpha", "unspecified"):
        refusal = "has 4 channels of 16 bits that are not RGB, or RGB with straight alpha|has the colour mode RGBX"
        with pytest.raises(ValueError, match=refusal):
            read_pixels(tmp_path / f"{extra}.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bits_are_turned_upright_like_8(tmp_path: Path, orientation: int) -> None:
    """The orientation of the camera, in the EXIF chunk of a PNG and the tag of a TIFF: as Pillow turns 8 bits."""
    bytes_only = smooth(5, 7, 3) // 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(bytes_only.astype(np.uint8)).save(tmp_path / "shallow.png", exif=exif)
    expected = read_pixels(tmp_path / "shallow.png").astype(np.uint16) * 257
    sixteen_bits.write_png(bytes_only * 257, tmp_path / "deep.png")
    content, data = (tmp_path / "deep.png").read_bytes(), exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    (tmp_path / "deep.png").write_bytes(content[:33] + chunk + content[33:])
    np.testing.assert_array_equal(read_pixels(tmp_path / "deep.png"), expected)
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
    with tifffile.TiffFile(tmp_path / "a.tiff") as file:
        np.testing.assert_array_equal(file.asarray().reshape(pixels.shape), pixels)
        assert file.pages[0].extrasamples == (() if channels % 2 else (tifffile.EXTRASAMPLE.UNASSALPHA,))


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


def with_pixels(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes the filtered bytes of a PNG that has one chunk of them."""
    content = path.read_bytes()
    size = struct.unpack_from(">I", content, 33)[0]
    data = zlib.compress(change(zlib.decompress(content[41 : 41 + size])))
    chunk = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    path.write_bytes(content[:33] + chunk + content[-12:])


def with_wrong_checksum(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])


ROW = 1 + 14 * 3 * 2  # bytes of a row with its filter


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_wrong_checksum, "Checksum error in IDAT chunk"),
        (lambda path: with_pixels(path, lambda raw: raw[:-3]), "Wrong size for decompressed IDAT"),
        (lambda path: with_pixels(path, lambda raw: raw[:-ROW]), "8 rows of pixels instead of 9"),
        (lambda path: with_pixels(path, lambda raw: raw + raw[:ROW]), "10 rows of pixels instead of 9"),
        (lambda path: with_pixels(path, lambda raw: b"\x07" + raw[1:]), "Invalid PNG Filter Type"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "IDAT.* too short"),
    ],
)
def test_damaged_pngs_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "a.png"
    sixteen_bits.write_png(noise(9, 14, 3), path)
    damage(path)
    with pytest.raises(ValueError, match=message):
        sixteen_bits.read_png(path)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        read_pixels(path)


def test_an_interlaced_png_without_its_end_is_refused(tmp_path: Path) -> None:
    for missing in (6, ROW):
        path = by_hand(tmp_path / "a.png", noise(9, 14, 3), 2, interlaced=True, missing=missing)
        with pytest.raises((ValueError, IndexError, struct.error)):
            sixteen_bits.read_png(path)
        with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
            read_pixels(path)


def test_damaged_tiffs_are_refused(tmp_path: Path) -> None:
    """Strips that are cut, or that the directory does not have."""
    path = tmp_path / "a.tif"

    def write(**packing: str) -> int:
        tifffile.imwrite(path, noise(9, 14, 3), photometric="rgb", rowsperstrip=4, **packing)
        with tifffile.TiffFile(path) as file:
            return file.pages[0].dataoffsets[-1]

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=r"a\.tif cannot be read as an image \(.*" + message):
            read_pixels(path)

    start = write()
    path.write_bytes(path.read_bytes()[: start + 20])
    refused("")
    start = write(compression="zlib")
    path.write_bytes(path.read_bytes()[: start + 20])
    refused("")
    for tag, value in (("StripByteCounts", [50, 50, 0]), ("StripOffsets", [0, 99, 99]), ("StripOffsets", [99, 99])):
        write(compression="zlib")
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[tag].overwrite(value)
        refused("some of its strips or tiles are missing")


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="tifffile decodes LZW with imagecodecs")
def test_a_compression_that_needs_imagecodecs_is_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(9, 14, 3), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(5)
    with pytest.raises(ValueError, match=r"a\.tif .*its compression LZW needs imagecodecs: pip install imagecodecs"):
        read_pixels(tmp_path / "a.tif")


@pytest.mark.parametrize(("suffix", "module", "name"), [("png", "png", "pypng"), ("tiff", "tifffile", "tifffile")])
def test_several_channels_of_16_bits_need_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, module: str, name: str
) -> None:
    """And nothing else does."""
    deep = Photograph(np.full((3, 9, 14), 0.3, np.float32), None, 16)
    deep.write(tmp_path / f"deep.{suffix}")
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"A {suffix} of several channels with 16 bits each needs {name}: pip install 'gae\[photos\]'"
    for attempt in (
        lambda: Photograph.read(tmp_path / f"deep.{suffix}"),
        lambda: check_writable(suffix, 16, 2, 9, 14),
        lambda: deep.write(tmp_path / f"again.{suffix}"),
    ):
        with pytest.raises(ImportError, match=message):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == [f"deep.{suffix}"]
    for bits, channels in ((16, 1), (8, 3)):
        photo = Photograph(deep.colours[:channels], None, bits)
        photo.write(tmp_path / f"a.{suffix}")
        assert Photograph.read(tmp_path / f"a.{suffix}").colours.shape == (channels, 9, 14)


def test_formats_that_cannot_hold_a_result_are_refused() -> None:
    for arguments, message in (
        (("webp", 16, 3, 9, 9), "webp cannot hold 16 bits per channel. Write png or tiff, or 8 bits"),
        (("png", 12, 3, 9, 9), "png cannot hold 12 bits per channel. Choose 8 or 16"),
        (("jpg", 8, 3, 9, 9), "Cannot write the format 'jpg'. Choose one of png, tiff, webp"),
        (("webp", 8, 3, 9, 20_000), "at most 16383 pixels a side, got 9 × 20000"),
    ):
        with pytest.raises(ValueError, match=message):
            check_writable(*arguments)
    transparent = Photograph(np.zeros((3, 2, 2), np.float32), np.ones((2, 2), np.float32))
    for colour, message in (("nowhere", "Unknown colour 'nowhere'"), ("#11223344", "must be opaque")):
        with pytest.raises(ValueError, match=message):
            transparent.flatten(colour)
    with pytest.raises(ValueError, match="no alpha channel, so it takes no background"):
        Photograph(np.zeros((1, 2, 2), np.float32)).flatten("white")
