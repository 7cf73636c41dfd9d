"""PNG and TIFF with 16 bits per channel, (H, W, C) uint16: Pillow cuts colour of 16 bits to 8."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES_OF_PNG = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # samples per pixel, by the colour type
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of 16 bits, by the samples per pixel
WHOLE = ((0, 0, 1, 1),)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

# Tags of TIFF 6.0.
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS = 256, 257, 258, 259, 262, 273
SAMPLES, ROWS, COUNTS, PLANAR, PREDICTOR = 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, EXTRA, FORMAT = 322, 323, 324, 325, 338, 339
LONG = {WIDTH, HEIGHT, OFFSETS, ROWS, COUNTS, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS}
DEFLATE, DIFFERENCES, STRAIGHT_ALPHA = 8, 2, 2


def read_png(path: Path) -> np.ndarray:
    """Reads a PNG of 16 bits, interlaced or not, with its samples per pixel (H, W, C): grey or RGB, then alpha.

    Raises:
        ValueError: for a checksum that does not match, missing pixels or an unknown filter.
    """
    chunks = list(_chunks(path.read_bytes()))
    width, height, _, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    samples = SAMPLES_OF_PNG[colour]
    passes = [
        (slice(y, None, down), slice(x, None, across), len(range(y, height, down)), len(range(x, width, across)))
        for x, y, across, down in (ADAM7 if interlaced else WHOLE)
    ]
    passes = [entry for entry in passes if entry[2] and entry[3]]
    sizes = [high * (1 + 2 * samples * wide) for _, _, high, wide in passes]
    packed = b"".join(data for name, data in chunks if name == b"IDAT")
    raw = np.frombuffer(zlib.decompressobj().decompress(packed, sum(sizes)), np.uint8)
    if len(raw) < sum(sizes):
        raise ValueError(f"it has {len(raw)} of {sum(sizes)} bytes of pixels")
    pixels = np.empty((height, width, samples), np.uint16)
    for (rows, columns, high, wide), part in zip(passes, np.split(raw, np.cumsum(sizes)[:-1]), strict=True):
        lines = part.reshape(high, -1)
        pixels[rows, columns] = _unfiltered(lines[:, 0], lines[:, 1:].reshape(high, wide, -1)).view(">u2")
    return pixels


def png(pixels: np.ndarray) -> bytes:
    """The content of a PNG of pixels (H, W, C) uint16."""
    height, width, samples = pixels.shape
    lines = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    above = np.concatenate([np.zeros_like(lines[:1]), lines[:-1]])
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), lines - above], 1)  # each byte less the one above
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[samples], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and data of each chunk of a PNG."""
    at = len(SIGNATURE)
    while at < len(content):
        (size,) = struct.unpack_from(">I", content, at)
        body, (checksum,) = content[at + 4 : at + 8 + size], struct.unpack_from(">I", content, at + 8 + size)
        if zlib.crc32(body) != checksum:
            raise ValueError(f"the checksum of its part {body[:4].decode('latin1')} does not match")
        yield body[:4], body[4:]
        at += 12 + size


def _unfiltered(kinds: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Bytes (H, W, bytes of a pixel) from the filter type of each row and the residuals of its prediction.

    A prediction needs the pixels at the left, above, and above at the left, so each anti-diagonal is computed at once.
    """
    height, width, size = residuals.shape
    pixels = np.zeros((height + 1, width + 1, size), np.int16)
    for diagonal in range(height + width - 1):
        row = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        column = diagonal - row
        left, up, corner = pixels[row + 1, column], pixels[row, column + 1], pixels[row, column]
        nearest = abs(np.stack([left, up, corner]) - (left + up - corner)).argmin(0)
        paeth = np.choose(nearest, [left, up, corner])
        predicted = np.choose(kinds[row, None], [np.int16(0), left, up, (left + up) // 2, paeth])
        pixels[row + 1, column + 1] = (residuals[row, column] + predicted) & 255
    return np.ascontiguousarray(pixels[1:, 1:].astype(np.uint8))


def read_tiff(path: Path, tags: Any) -> np.ndarray:
    """Reads a TIFF of 16 bits with several samples per pixel (H, W, C); ``tags`` are those of Pillow.

    Interleaved samples are those of a grey image of C times the width, and planes are grey images, in the same
    (compressed) strips or tiles: a directory that says so is appended to the content, for Pillow to read.
    """
    content = path.read_bytes()
    width, height, samples = tags[WIDTH], tags[HEIGHT], tags[SAMPLES]
    planes, interleaved = (samples, 1) if tags.get(PLANAR, 1) == 2 else (1, samples)
    is_tiled = TILE_OFFSETS in tags
    stride = tags[TILE_WIDTH] if is_tiled else width
    entries: dict[int, tuple[int, ...]] = {}
    entries |= {WIDTH: (interleaved * width,), HEIGHT: (height,), BITS: (16,), PHOTOMETRIC: (1,), SAMPLES: (1,)}
    entries[COMPRESSION] = (tags.get(COMPRESSION, 1),)
    if is_tiled:
        entries |= {TILE_WIDTH: (interleaved * stride,), TILE_HEIGHT: (tags[TILE_HEIGHT],)}
    else:
        entries[ROWS] = (min(tags.get(ROWS, height), height),)
    parts = []
    for plane in range(planes):
        for tag in (TILE_OFFSETS, TILE_COUNTS) if is_tiled else (OFFSETS, COUNTS):
            entries[tag] = _plane(tags[tag], plane, planes)
        parts.append(_grey(_with_directory(content, entries)).reshape(height, width, interleaved))
    pixels = np.concatenate(parts, -1)
    if tags.get(PREDICTOR, 1) == DIFFERENCES:
        for start in range(0, width, stride):  # rows of a tile, or of a strip, start afresh
            part = pixels[:, start : start + stride]
            part[:] = np.cumsum(part, axis=1, dtype=np.uint16)
    return pixels


def tiff(pixels: np.ndarray) -> bytes:
    """The content of a TIFF of pixels (H, W, C) uint16: one strip, compressed by zlib."""
    height, width, samples = pixels.shape
    strip = zlib.compress(pixels.astype("<u2").tobytes())
    entries: dict[int, tuple[int, ...]] = {
        **{WIDTH: (width,), HEIGHT: (height,), BITS: (16,) * samples, COMPRESSION: (DEFLATE,)},
        **{PHOTOMETRIC: (2 if samples > 2 else 1,), OFFSETS: (8,), SAMPLES: (samples,), ROWS: (height,)},
        **{COUNTS: (len(strip),), PLANAR: (1,)},
    }
    if samples in (2, 4):
        entries[EXTRA] = (STRAIGHT_ALPHA,)
    return _with_directory(b"II\x2a\x00" + bytes(4) + strip, entries)


def _plane(values: tuple[int, ...], plane: int, planes: int) -> tuple[int, ...]:
    each = len(values) // planes
    return values[plane * each : (plane + 1) * each]


def _grey(content: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("TIFF",)) as image:
        return np.asarray(image).astype(np.uint16)


def _with_directory(content: bytes, entries: dict[int, tuple[int, ...]]) -> bytes:
    """The content of a TIFF with another first directory, appended at its end."""
    order = "<" if content[:2] == b"II" else ">"
    content += bytes(len(content) % 2)
    start = len(content)
    directory, rest = struct.pack(f"{order}H", len(entries)), b""
    for tag, numbers in sorted(entries.items()):
        code, kind = ("I", 4) if tag in LONG else ("H", 3)
        value = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(value) > 4:
            place = start + 6 + 12 * len(entries) + len(rest)
            rest += value
            value = struct.pack(f"{order}I", place)
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    return content[:4] + struct.pack(f"{order}I", start) + content[8:] + directory + bytes(4) + rest
