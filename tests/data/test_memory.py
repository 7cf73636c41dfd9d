"""Decompression bombs: small files that state or unpack to huge arrays are rejected before unpacking."""

import gzip
import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gae.data import load, memory
from gae.data.memory import DEFAULT, free_memory, limit
from gae.data.photographs import read_photo
from gae.data.readers import IDX_FILES

HUGE = 10**6


@pytest.fixture(autouse=True)
def default_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAE_MAX_BYTES", raising=False)


def npy(shape: tuple[int, ...], values: bytes = b"", dtype: str = "<f8") -> bytes:
    """An .npy file whose header states a shape, followed by any bytes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return file.getvalue() + values


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(f"{name}.npy", raw)
    return path


def png(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG with a header and a few bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def idx_folder(folder: Path, images: bytes) -> Path:
    folder.mkdir()
    for stem in IDX_FILES:
        axes = 3 if "images" in stem else 1
        (folder / stem).write_bytes(bytes([0, 0, 8, axes]) + struct.pack(f">{axes}I", *[2] * axes) + bytes(2**axes))
    (folder / IDX_FILES[0]).unlink()
    (folder / f"{IDX_FILES[0]}.gz").write_bytes(gzip.compress(images))
    return folder


def bombs(at: Path) -> dict[str, Callable[[], object]]:
    """Files of a few hundred bytes that state far more than the default limit."""
    (at / "a.npy").write_bytes(npy((HUGE, HUGE)))
    zipped(at / "a.npz", x=npy((HUGE, HUGE)))
    (at / "photo.png").write_bytes(png(HUGE, HUGE))
    (at / "bits.png").write_bytes(png(200_000, 200_000, depth=1))
    (at / "pictures").mkdir()
    (at / "pictures" / "a.png").write_bytes(png(HUGE, HUGE))
    idx = bytes([0, 0, 8, 3]) + struct.pack(">3I", 60_000, 40_000, 40_000)
    return {
        "npy": lambda: load(at / "a.npy"),
        "npz": lambda: load(at / "a.npz"),
        "photograph": lambda: read_photo(at / "photo.png"),
        "bilevel": lambda: read_photo(at / "bits.png"),
        "folder": lambda: load(at / "pictures"),
        "idx": lambda: load("mnist", folder=idx_folder(at / "idx", idx)),
    }


@pytest.mark.parametrize("kind", ["npy", "npz", "photograph", "bilevel", "folder", "idx"])
def test_announced_sizes_are_refused(tmp_path: Path, kind: str) -> None:
    read = bombs(tmp_path)[kind]
    with pytest.raises(ValueError, match=rf"bytes of memory; the limit is {DEFAULT:,}\..*GAE_MAX_BYTES"):
        read()


@pytest.mark.parametrize("kind", ["npz", "two arrays", "long header", "idx", "npy"])
def test_nothing_is_unpacked_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Honest and dishonest files that would unpack to 8 MB or more, under a limit of 1 MB."""
    monkeypatch.setenv("GAE_MAX_BYTES", "1000000")
    zeros = bytes(2**23)
    match kind:
        case "npz":
            source, options = zipped(tmp_path / "a.npz", x=npy((2**10, 2**10), zeros)), {}
        case "two arrays":
            half = npy((2**8, 300), bytes(8 * 300 * 2**8))
            source, options = zipped(tmp_path / "a.npz", x_train=half, x_test=half), {}
        case "long header":
            raw = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**23) + zeros
            source, options = zipped(tmp_path / "a.npz", x=raw), {}
        case "idx":  # says that it is small
            head = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 2, 2)
            source, options = "mnist", {"folder": idx_folder(tmp_path / "idx", head + bytes(8) + zeros)}
        case _:
            source, options = tmp_path / "a.npy", {}
            source.write_bytes(npy((2**20,), zeros))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"GAE_MAX_BYTES|holds 25 bytes or more"):
            load(source, **options)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_headers_that_disagree_with_their_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for shape, values in (((5, 2), 9), ((5, 2), 11), ((-5, 2), 10)):
        path.write_bytes(npy(shape, bytes(8 * values)))
        with pytest.raises(ValueError, match=r"Cannot read an array from .*a\.npy: its header states .* follow"):
            load(path)
    zipped(tmp_path / "a.npz", x=npy((5, 2), bytes(72)))
    with pytest.raises(ValueError, match=r"x, its header states float64 of shape \(5, 2\), 80 bytes, and 72 follow"):
        load(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x", b"no array")
    with pytest.raises(ValueError, match=r"Cannot read an array from .*b\.npz"):
        load(tmp_path / "b.npz")


@pytest.mark.parametrize("what", ["images", "text", "lines"])
def test_the_sum_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Arrays that fit individually but not together; the limit can be raised."""
    source = tmp_path / "data.txt"
    match what:
        case "images":
            source = tmp_path / "pictures"
            source.mkdir()
            for n in range(10):
                Image.fromarray(np.full((10, 10), 20 * n, np.uint8)).save(source / f"{n}.png")
            small, enough = 3999, 4000
        case "text":
            source.write_text("ab\n" * 100)
            small, enough = 24 * 300 - 1, 24 * 300
        case _:  # one long line makes all of them long
            source.write_text("a" * 400 + "\n" + "b\n" * 400)
            small, enough = 8 * 401 * 401 - 1, 8 * 401 * 401
    monkeypatch.setenv("GAE_MAX_BYTES", str(small))
    with pytest.raises(ValueError, match=rf"the limit is {small:,}"):
        load(source)
    monkeypatch.setenv("GAE_MAX_BYTES", str(enough))
    load(source)


def test_an_image_larger_than_pillow_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's pixel limit neither warns nor raises, and is restored."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").shape == (1, 8, 8)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("stated", ["0", "-5", "4GB", "1.5"])
def test_the_limit_is_a_number(monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    monkeypatch.setenv("GAE_MAX_BYTES", stated)
    with pytest.raises(ValueError, match=f"GAE_MAX_BYTES must be a positive number of bytes, got '{stated}'"):
        limit()


# Free memory.


def test_limits_of_control_groups_bound_the_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control groups of version 2, nested as in containers, and version 1, below the machine's memory."""
    machine = free_memory(torch.device("cpu"))
    assert machine is None or 0 < machine < 2**50
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_available", lambda: 10**6)
    monkeypatch.setattr(memory, "_own_groups", lambda: {"": "/jobs/mine", "memory": "/old"})
    assert free_memory(torch.device("cpu")) == 10**6
    (tmp_path / "jobs" / "mine").mkdir(parents=True)
    for name, text in {"max": "max\n", "current": "5000\n"}.items():
        (tmp_path / "jobs" / "mine" / f"memory.{name}").write_text(text)
    assert free_memory(torch.device("cpu")) == 10**6
    for name, text in {"max": "90000\n", "current": "20000\n", "stat": "anon 19000\ninactive_file 1000\n"}.items():
        (tmp_path / "jobs" / f"memory.{name}").write_text(text)
    assert free_memory(torch.device("cpu")) == 71000
    (tmp_path / "memory" / "old").mkdir(parents=True)
    for name, text in {"limit_in_bytes": "8000", "usage_in_bytes": "9000"}.items():
        (tmp_path / "memory" / "old" / f"memory.{name}").write_text(text)
    assert free_memory(torch.device("cpu")) == 0
