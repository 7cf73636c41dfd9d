"""Files of rows: every format reads back as what was added, and half a file is never left."""

import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from gae.data.files import ROWS
from gae.data.output import row_file

AWKWARD = np.array(["a, b.png", 'quoted "c".png', "ü.png", "line\nbreak.png", "\udcff.png"])


def columns() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "index": np.arange(5),
        "files": AWKWARD,
        "k": np.array([2, 0, 1, 1, 2]),
        "z": random.normal(size=(5, 2)).astype(np.float32),
        "map": random.normal(size=(5, 2, 1)),
        "tight": np.array([True, False, True, True, False]),
        "log_p": np.array([1e-30, np.nan, -np.inf, 1 / 3, 1e20], dtype=np.float32),
    }


def write(path: Path) -> dict[str, np.ndarray]:
    added = columns()
    with row_file(path, 5, "z", {"engine": "Mode"}) as file:
        for part in (slice(0, 2), slice(2, 5)):
            file.add({name: column[part] for name, column in added.items()})
    return added


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_read_back(tmp_path: Path, suffix: str) -> None:
    added = write(tmp_path / f"rows{suffix}")
    path = tmp_path / f"rows{suffix}"
    exact = {"float_precision": "round_trip"}
    table = pandas.read_csv(path, **exact) if suffix == ".csv" else pandas.read_parquet(path)
    assert list(table) == ["index", "file", "k", "z0", "z1", "map_0_0", "map_1_0", "tight", "log_p"]
    assert table["file"].tolist() == [*AWKWARD[:4], "\\udcff.png"]
    for name in ("index", "k", "tight"):
        assert table[name].dtype == added[name].dtype and (table[name] == added[name]).all()
    np.testing.assert_array_equal(table[["z0", "z1"]].to_numpy(np.float32), added["z"])
    np.testing.assert_array_equal(table[["map_0_0", "map_1_0"]].to_numpy(), added["map"].reshape(5, 2))
    np.testing.assert_array_equal(table["log_p"].to_numpy(np.float32), added["log_p"])


def test_arrays_read_back(tmp_path: Path) -> None:
    added = write(tmp_path / "rows.npz")
    write(tmp_path / "rows.npy")
    with np.load(tmp_path / "rows.npz") as arrays:
        assert set(arrays) == {*added, "engine"} and arrays["engine"].item() == "Mode"
        for name, column in added.items():
            assert arrays[name].dtype == column.dtype
            np.testing.assert_array_equal(arrays[name], column)
    main = np.load(tmp_path / "rows.npy")
    assert main.dtype == np.float32 and (main == added["z"]).all()
    assert {path.name for path in tmp_path.iterdir()} == {"rows.npz", "rows.npy"}


@pytest.mark.parametrize("suffix", ROWS)
def test_a_file_that_is_not_complete_replaces_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_text("before")
    block = {"z": np.zeros((2, 3), np.float32), "k": np.arange(2)}
    others = (
        {**block, "z": np.zeros((2, 4), np.float32)},
        {**block, "k": np.zeros(2)},
        {"z": block["z"]},
    )
    for other in others:
        with pytest.raises(ValueError, match="the same columns"), row_file(path, 4, "z") as file:
            file.add(block)
            file.add(other)
    with pytest.raises(ValueError, match=r"one length, got \[2, 3\]"), row_file(path, 2, "z") as file:
        file.add({**block, "k": np.arange(3)})
    for rows in (1, 3):
        said = f"{rows} rows were announced, and 2 were added"
        with pytest.raises(ValueError, match=said), row_file(path, rows, "z") as file:
            file.add(block)
    with pytest.raises(KeyboardInterrupt), row_file(path, 4, "z") as file:
        file.add(block)
        raise KeyboardInterrupt
    assert path.read_text() == "before" and [one.name for one in tmp_path.iterdir()] == [path.name]


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'gae\[tables\]'"), row_file(tmp_path / "a.parquet", 2, "z"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_elements_of_the_main_column_have_names(tmp_path: Path, suffix: str) -> None:
    """Except those of another column, so that none is read for another."""
    path = tmp_path / f"rows{suffix}"
    with row_file(path, 2, "x", names=["height", "index", "colour=red"]) as file:
        file.add({"index": np.arange(2), "x": np.float32([[1, 2, 3], [4, 5, 6]])})
    rows = pandas.read_csv(path) if suffix == ".csv" else pandas.read_parquet(path)
    assert list(rows) == ["index", "height", "x.index", "colour=red"]
    assert rows.to_numpy().tolist() == [[0, 1, 2, 3], [1, 4, 5, 6]]
