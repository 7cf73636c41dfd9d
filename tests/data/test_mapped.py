"""Data larger than memory: rows that stay in their file give what rows in memory give, bit for bit."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command import gae
from torch import Tensor, nn

from gae import Autoencoder
from gae.data import Dataset, load, mapped, row_order
from gae.data.loading import training_data
from gae.data.mapped import Mapped, each, joined, take
from gae.likelihood import Bernoulli
from gae.systems import build
from gae.training import fit

ROWS = 90
RANDOM = np.random.default_rng(0)
REALS = (RANDOM.normal(size=(ROWS, 3)) @ RANDOM.normal(size=(3, 12))).astype(np.float32).reshape(ROWS, 1, 3, 4)
BYTES = RANDOM.integers(0, 256, size=(ROWS, 2, 3, 3)).astype(np.uint8)
TABLE = REALS.reshape(ROWS, 12)
HOLES = np.where(RANDOM.random(TABLE.shape) < 0.1, np.float32(np.nan), TABLE)
SOURCES = {
    **{"reals": REALS, "bytes": BYTES, "half": REALS.astype(np.float16), "bool": REALS > 0},
    **{"wide bytes": BYTES[:, :1].astype(np.int16), "table": TABLE, "holes": HOLES},
    **{"double": REALS.astype(np.float64) + 1e-9, "double holes": HOLES.astype(np.float64)},
    **{f"int{bits}": BYTES.astype(f"int{bits}") * 9 for bits in (32, 64)},
    **{f"uint{bits}": BYTES.astype(f"uint{bits}") * 2**20 for bits in (32, 64)},
    **{"columns": np.asfortranarray(REALS), "double columns": np.asfortranarray(TABLE.astype(np.float64))},
}
MASK = {"missing": "mask"}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, and several reads in each."""
    monkeypatch.setattr(mapped, "BLOCK", 2000)
    monkeypatch.setattr(mapped, "AROUND", 100)
    monkeypatch.setattr(row_order, "FOLIO", 100)
    monkeypatch.setattr(row_order, "AT_ONCE", 1000)


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Dataset, Dataset]]]:
    """Loads an array from a file in which its rows stay, and into memory."""

    def load_both(name: str, **options: Any) -> tuple[Dataset, Dataset]:
        np.save(tmp_path / "x.npy", SOURCES[name])
        in_memory = load(tmp_path / "x.npy", **options)
        with monkeypatch.context() as patch:
            patch.setattr(mapped, "LARGE", 0)
            if options.get("binarize") != "dynamic":  # whose draws are in memory
                patch.setattr(Mapped, "loaded", never)
            in_file = load(tmp_path / "x.npy", **options)
        assert isinstance(in_file.train, Mapped) and not isinstance(in_memory.train, Mapped)
        if "columns" in name:
            assert "column by column" in in_file.notes[0]
            in_file = replace(in_file, notes=in_file.notes[1:])
        return in_file, in_memory

    yield load_both


def never(self: Mapped) -> Tensor:
    raise AssertionError("all rows are read")


def test_rows_are_those_of_the_tensor(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", REALS)
    order = np.random.default_rng(1).permutation(ROWS)[:40]
    x = Mapped(np.load(tmp_path / "x.npy", mmap_mode="r"), order, lambda rows: rows * 2)
    y = torch.from_numpy(REALS)[order] * 2
    assert x.shape == y.shape and x.dtype == y.dtype and len(x) == 40 and isinstance(x, Tensor)
    chosen = torch.tensor([3, -1, 0, 3, 39])
    mask = torch.arange(40) % 3 == 0
    for index in (0, -1, slice(5, 9), slice(1, None, 7), chosen, mask, chosen.numpy(), [2, 5], (slice(3), 0)):
        assert torch.equal(x[index], y[index]) and not isinstance(x[index], Mapped)
    assert torch.equal(torch.stack(list(x)), y) and torch.equal(torch.cat(list(x.split(7))), y)
    assert [len(part) for part in x.split(7)] == [7] * 5 + [5] and len(x.split(7)) == 6
    assert torch.equal(x.split(7)[-1], y.split(7)[-1])
    assert torch.equal(x.sum(0), y.sum(0)) and torch.equal(x - y, y - y) and (x.numpy() == y.numpy()).all()
    for lazy, plain in ((x.flatten(1), y.flatten(1)), (x.to(torch.float64), y.double()), (take(x, chosen), y[chosen])):
        assert isinstance(lazy, Mapped) and lazy.dtype == plain.dtype and torch.equal(lazy[:], plain)
    assert x.to(torch.float32) is x and x.detach() is x
    for parts in ([take(x, chosen), x], [y[chosen], x], [each(take(x, chosen), lambda rows: rows / 2), y]):
        again, some = joined(parts, torch.tensor([5, 0, 44])), torch.cat([part[:] for part in parts])[[5, 0, 44]]
        assert isinstance(again, Mapped) and torch.equal(again[:], some) and torch.equal(again[[2, 0]], some[[2, 0]])
    for index in (40, -41, torch.tensor([40]), torch.tensor([-41]), torch.ones(39, dtype=torch.bool)):
        with pytest.raises(IndexError, match="does not fit 40 rows"):
            x[index]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, MASK if "holes" in name else {}) for name in SOURCES),
        *(("bytes", {"binarize": "threshold"}), ("table", {"standardize": True})),
    ],
)
def test_a_data_set_is_the_same(both: Callable[..., Any], name: str, options: dict[str, Any]) -> None:
    in_file, in_memory = both(name, **options)
    binarize = options.get("binarize", "none")
    assert in_file.value_range == in_memory.value_range and in_file.notes == in_memory.notes
    assert in_file.preparation == in_memory.preparation and in_file.unit == in_memory.unit
    digest = sha256(binarize.encode())
    for split in ("train", "test"):
        plain = getattr(in_memory, split)
        np.testing.assert_array_equal(getattr(in_file, split)[:], plain)
        digest.update(f"{tuple(plain.shape)} {plain.dtype}".encode() + plain.numpy().tobytes())
    digest.update(b"nonenone")
    assert in_file.hash == in_memory.hash == digest.hexdigest()
    for split in ("train", "test", "all"):
        rows, plain_rows = in_file.rows(split), in_memory.rows(split)
        assert isinstance(rows.x, Mapped)
        np.testing.assert_array_equal(rows.x[:], plain_rows.x)
        assert torch.equal(rows.row, plain_rows.row) and (rows.split == plain_rows.split).all()


def test_dynamic_draws_are_the_same(both: Callable[..., Any]) -> None:
    in_file, in_memory = both("bytes", binarize="dynamic")
    assert torch.equal(in_file.epoch(3, seed=1), in_memory.epoch(3, seed=1)) and torch.equal(
        in_file.test, in_memory.test
    )


@pytest.mark.parametrize(
    ("system", "name", "given"),
    [
        *(("vae", "bytes", {}), ("vae", "reals", {}), ("ppca", "reals", {}), ("gmm", "reals", {})),
        *(("vae", "holes", MASK), ("ppca", "holes", MASK), ("ppca", "double columns", {})),
        *(("vae", "table", {"standardize": True}), ("ppca", "table", {"standardize": True})),
    ],
)
def test_training_is_the_same_bit_for_bit(
    both: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, system: str, name: str, given: dict[str, Any]
) -> None:
    """The order of an epoch, held-out rows, initialisation, parameters and codes; with one block, sums too."""
    monkeypatch.setattr(mapped, "BLOCK", 10**6)
    results = []
    for data in both(name, **given):
        options = {"components": 3} if system == "gmm" else {"latent": 2}
        model, losses = trained(data, monkeypatch, system, **options)
        points = model.eval().encode(data.rows().x, batch_size=20).point
        results.append((losses, [*model.state_dict().values(), points]))
    (losses, tensors), (plain_losses, plain_tensors) = results
    assert losses == plain_losses
    assert all(torch.equal(a, b) for a, b in zip(tensors, plain_tensors, strict=True))


def trained(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, system: str, **options: int
) -> tuple[Autoencoder, list[tuple[float, float | None]]]:
    """A model after two epochs, in which no file was read as a whole, and its losses."""
    torch.manual_seed(0)
    model = build(system, data, **options)
    with monkeypatch.context() as patch:
        patch.setattr(Mapped, "loaded", never)
        history = fit(model, data, epochs=2, batch_size=16, validation=0.2, progress=False)
    return model, [(row.train_loss, row.validation_loss) for row in history.rows]


def test_points_learned_from_a_file_are_the_same(both: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding: distances are pruned in memory only, and the sums there are exact."""
    (model, losses), (plain, plain_losses) = (
        trained(data, monkeypatch, "kmeans", components=3) for data in both("reals")
    )
    assert losses == [pytest.approx(pair, rel=1e-6) for pair in plain_losses]
    assert torch.allclose(model.likelihood.means, plain.likelihood.means, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("system", ["vae", "pca", "gmm"])
def test_no_command_reads_all_rows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    np.save(tmp_path / "x.npy", REALS)
    width = ("--option", "components=2") if system == "gmm" else ("--option", "latent=2")
    by = ("--by", "evidence" if system == "gmm" else "reconstruction")
    written = {}
    for large in (0, mapped.LARGE):
        monkeypatch.setattr(mapped, "LARGE", large)
        with monkeypatch.context() as patch:
            patch.setattr(Mapped, "loaded", never)
            run, out = tmp_path / f"run-{large}", tmp_path / f"rows-{large}.npz"
            shown = json.loads(
                gae("fit", system, tmp_path / "x.npy", *width, "--quiet", "--epochs", 1, "--out", run, "--json")
            )
            for command, more in (("encode", ()), ("reconstruct", ()), ("score", by)):
                gae(command, run, tmp_path / "x.npy", "-o", out, *more)
                with np.load(out) as arrays:
                    written[command, large > 0] = dict(arrays)
        written["fit", large > 0] = {"error": shown["test squared error per element"]["mean"]}
    for command in ("fit", "encode", "reconstruct", "score"):
        for name, plain in written[command, True].items():
            values = np.asarray(written[command, False][name])
            is_same = np.array_equal(values, plain)
            assert is_same or (values.dtype.kind == "f" and np.allclose(values, plain, rtol=1e-3, atol=1e-3)), name


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (
            np.nan,
            {},
            r"x must be finite in float32, got nan at index \(80, 0, 1, 2\) \(2 such values\).* --missing mask",
        ),
        (np.nan, MASK, None),
        (np.inf, MASK, r"x must be finite in float32, got inf at index \(80, 0, 1, 2\) \(2 such values\)"),
        (7.0, {"value_range": (-9.0, 7.0)}, None),
        (7.0, {"value_range": (-6.5, 6.5)}, r"the data leave value_range .*, got 7 at index \(\d+, 0, 1, 2\)"),
        (7.0, {"binarize": "threshold"}, r"values in \[0, 1\], got .* at index"),
    ],
)
def test_bad_values_are_refused_with_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: float, options: dict[str, Any], said: str | None
) -> None:
    x = REALS.clip(-6, 6)
    x[[80, 85], 0, 1, 2] = change
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(mapped, "LARGE", 0)
    if said is None:
        load(tmp_path / "x.npy", **options)
        return
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "x.npy", **options)


def test_values_outside_the_support_are_refused_with_their_row(tmp_path: Path) -> None:
    x = (REALS > 0).astype(np.float32)
    x[80, 0, 2, 1] = 0.5
    np.save(tmp_path / "x.npy", x)
    data = Mapped(np.load(tmp_path / "x.npy", mmap_mode="r"), None, lambda rows: rows)
    likelihood = Bernoulli(nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (1, 3, 4))), 2)
    with pytest.raises(ValueError, match=r"Bernoulli needs x in .*, got 0\.5 at index") as raised:
        likelihood.check(data)
    place = re.search(r"index \((\d+),.*counted from (\d+)", str(raised.value))
    assert place is not None and int(place[1]) + int(place[2]) == 80 and int(place[2]) > 0
    x[80] = 1
    np.save(tmp_path / "y.npy", x)
    likelihood.check(Mapped(np.load(tmp_path / "y.npy", mmap_mode="r"), None, lambda rows: rows))


def test_a_byte_file_of_zeros_and_ones_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", (REALS > 0).astype(np.uint8))
    monkeypatch.setattr(mapped, "LARGE", 0)
    with pytest.raises(ValueError, match="read as 0–255, but its highest value is 1"):
        load(tmp_path / "x.npy")


def test_a_memory_map_in_hand_stays_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with channels last, and as the data of ``fit``; a foreign byte order is read."""
    monkeypatch.setattr(mapped, "LARGE", 0)
    np.save(tmp_path / "x.npy", np.moveaxis(BYTES[:, :1], 1, -1))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    with monkeypatch.context() as patch:
        patch.setattr(Mapped, "loaded", never)
        data, every = load(x, channels="last"), training_data(x.reshape(ROWS, 9))
    assert isinstance(data.train, Mapped) and isinstance(every, Dataset) and isinstance(every.train, Mapped)
    assert np.array_equal(data.rows().x[:], (BYTES[:, :1] / 255).astype(np.float32))
    np.save(tmp_path / "y.npy", REALS.astype(REALS.dtype.newbyteorder()))
    assert np.array_equal(load(tmp_path / "y.npy").rows().x, REALS)


@pytest.mark.parametrize("order", ["C", "F"])
def test_parts_of_an_archive_stay_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Any) -> None:
    """Uncompressed ones, beside labels and a column; a damaged archive is refused, and a compressed one is read."""
    path, x, fold = tmp_path / "x.npz", REALS.copy(order), np.arange(ROWS) % 3
    save = {"x": x, "y": fold, "fold": fold}, {"x_train": x[:50], "x_test": x[50:]}
    for arrays, options in zip(save, ({"split": "column:fold=1"}, {}), strict=True):
        monkeypatch.setattr(mapped, "LARGE", 2**40)
        np.savez(path, **arrays)
        plain = load(path, **options)
        monkeypatch.setattr(mapped, "LARGE", x[:50].nbytes)  # the test part is read
        with monkeypatch.context() as patch:
            patch.setattr(Mapped, "loaded", never)
            data = load(path, **options)
            assert isinstance(data.train, Mapped) and data.hash == plain.hash
            assert isinstance(data.rows().x, Mapped) and torch.equal(data.rows().x[:], torch.from_numpy(REALS))
        np.savez_compressed(path, **arrays)
        assert type(load(path, **options).train) is Tensor and load(path, **options).hash == plain.hash
    np.savez(path, x=REALS)
    raw = bytearray(path.read_bytes())
    raw[2000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"Cannot read an array from .*x\.npz: Bad CRC-32"):
        load(path)


def test_damaged_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one axis is read, as before."""
    monkeypatch.setattr(mapped, "LARGE", 0)
    np.save(tmp_path / "x.npy", REALS[:, 0, 0, 0])
    with pytest.raises(ValueError, match=r"x must have shape \(N, \*X\)"):
        load(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", REALS)
    raw = (tmp_path / "x.npy").read_bytes()
    for damaged in (raw[:-4], raw + b"more"):
        (tmp_path / "x.npy").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"Cannot read an array from .* its header states .* follow"):
            load(tmp_path / "x.npy")


def test_columns_need_room_for_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused without it. Any order of axes may be stored; a map in hand with images last is copied too."""
    monkeypatch.setattr(mapped, "LARGE", 0)
    np.save(tmp_path / "x.npy", np.moveaxis(BYTES, 0, -1))
    images = np.moveaxis(np.load(tmp_path / "x.npy", mmap_mode="r"), -1, 0)
    data = load(images)
    assert isinstance(data.train, Mapped) and "column by column" in data.notes[0]
    assert np.array_equal(data.rows().x[:], (BYTES / np.float32(255)))
    assert row_order.by_rows(images[:1]) is not images and row_order.by_rows(BYTES) is BYTES
    monkeypatch.setattr(row_order.shutil, "disk_usage", lambda folder: SimpleNamespace(free=BYTES.nbytes - 1))
    with pytest.raises(OSError, match=r"x\.npy is stored column by column, .* needs 1,620 bytes .* has 1,619.*TMPDIR"):
        load(images)


def test_reading_everything_is_limited(both: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    in_file, _ = both("reals")
    monkeypatch.setenv("GAE_MAX_BYTES", "1000")
    with pytest.raises(
        ValueError, match=r"x\.npy holds rows \(72, 1, 3, 4\), and this needs all of them, which would take"
    ):
        in_file.train.mean()
    assert in_file.train[:2].mean().isfinite()


def test_changes_of_a_private_map_are_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", REALS)
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[3] = 5
    assert (Mapped(private, None, lambda rows: rows)[2:4][1] == 5).all() and (private[3] == 5).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Loading and hashing 67 MB of each kind, in a process of its own."""
    size = 2**26
    for name, kind, width in (("rows", "<f4", 256), ("double", "<f8", 128), ("columns", "<f4", 256)):
        with (tmp_path / f"{name}.npy").open("wb") as file:
            header = {"descr": kind, "fortran_order": name == "columns", "shape": (2**16, width)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + size)
    with zipfile.ZipFile(tmp_path / "archive.npz", "w") as archive:
        archive.write(tmp_path / "rows.npy", "x.npy")
    np.save(tmp_path / "small.npy", np.zeros((100, 256), np.float32))
    code = (
        "import sys; from benchmarks.memory import peak; from gae.data import load\n"
        "small, *large = sys.argv[1:]\n"
        "load(small).hash; before = peak()\n"
        "for path in large: load(path).hash; print(path, peak() - before)"
    )
    large = [tmp_path / name for name in ("rows.npy", "double.npy", "archive.npz", "columns.npy")]
    command = [sys.executable, "-c", code, tmp_path / "small.npy", *large]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    growth = {line.split()[0]: int(line.split()[-1]) for line in done.stdout.splitlines()}
    assert len(growth) == 4 and max(growth.values()) < 2 * size / 3, growth
