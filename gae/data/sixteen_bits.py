"""PNG and TIFF of several channels with 16 bits each, (H, W, C) uint16, which Pillow cuts to 8 bits."""

from pathlib import Path
from typing import Any

import numpy as np

from gae.data.extras import optional


def library(suffix: str) -> Any:
    """The library for png or tiff.

    Raises:
        ImportError: if it is not installed.
    """
    user = f"A {suffix} of several channels with 16 bits each"
    return optional("png", "photos", user) if suffix == "png" else optional("tifffile", "photos", user)


def read_png(path: Path) -> np.ndarray:
    """Reads the samples of a PNG of 16 bits: grey or RGB, then alpha.

    Raises:
        ImportError: without pypng.
        ValueError: for a damaged file.
    """
    png = library("png")
    try:
        with path.open("rb") as file:
            _, height, rows, header = png.Reader(file=file).read()
            lines = [np.frombuffer(row, np.uint16) for row in rows]
    except png.Error as error:
        raise ValueError(" ".join(map(str, error.args))) from error
    if len(lines) != height:  # pypng yields the complete rows
        raise ValueError(f"it has {len(lines)} rows of pixels instead of {height}")
    return np.stack(lines).reshape(height, -1, header["planes"])


def write_png(pixels: np.ndarray, path: Path) -> None:
    """Writes a PNG of 1 to 4 channels.

    Raises:
        ImportError: without pypng.
    """
    height, width, channels = pixels.shape
    kind = {"greyscale": channels < 3, "alpha": channels in (2, 4)}
    writer = library("png").Writer(width, height, bitdepth=16, **kind)
    with path.open("wb") as file:
        writer.write_packed(file, (row.tobytes() for row in pixels.astype(">u2")))


def read_tiff(path: Path) -> np.ndarray:
    """Reads the samples of a TIFF of 16 bits, interleaved or in planes.

    Raises:
        ImportError: without tifffile.
        ValueError: for a damaged file, or a compression that tifffile cannot decode.
    """
    tifffile = library("tiff")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if page.compression not in tifffile.TIFF.DECOMPRESSORS:
            raise ValueError(
                f"its compression {page.compression.name} needs imagecodecs: pip install imagecodecs, or save it with "
                "another, such as deflate"
            )
        if 0 in (*page.dataoffsets, *page.databytecounts) or len(page.dataoffsets) < np.prod(page.chunked):
            raise ValueError("some of its strips or tiles are missing")  # tifffile fills them with zeros
        pixels = page.asarray()
        return np.moveaxis(pixels, 0, -1) if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else pixels


def write_tiff(pixels: np.ndarray, path: Path) -> None:
    """Writes a TIFF of 1 to 4 channels, compressed by zlib.

    Raises:
        ImportError: without tifffile.
    """
    channels = pixels.shape[-1]
    library("tiff").imwrite(
        path,
        pixels,
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        metadata=None,
    )
