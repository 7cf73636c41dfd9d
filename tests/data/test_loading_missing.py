"""Data sets in which NaN marks elements that were not observed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Size

from gae.data import load
from gae.data.precision import need_float32
from gae.data.preparation import Preparation


def saved(path: Path, x: np.ndarray) -> Path:
    np.save(path, x)
    return path


def holes(x: np.ndarray) -> np.ndarray:
    return np.where(np.random.default_rng(0).random(x.shape) < 0.3, np.nan, x)


def test_nan_is_kept_and_leaves_the_range_alone(tmp_path: Path) -> None:
    x = holes(np.random.default_rng(1).normal(size=(20, 3)))
    data = load(saved(tmp_path / "x.npy", x), missing="mask")
    rows = data.rows()
    np.testing.assert_array_equal(rows.x, x.astype(np.float32))
    assert data.missing and data.value_range == pytest.approx((np.nanmin(x), np.nanmax(x)))
    assert data.preparation.missing and Preparation.of(data.preparation.note()) == data.preparation
    again = load(tmp_path / "x.npy", like=data.preparation)  # without asking again
    np.testing.assert_array_equal(again.rows().x, x.astype(np.float32))


@pytest.mark.parametrize("how", ["threshold", "dynamic"])
def test_binarisation_leaves_unobserved_elements_unobserved(tmp_path: Path, how: str) -> None:
    x = holes(np.random.default_rng(1).random((20, 3)))
    data = load(saved(tmp_path / "x.npy", x), missing="mask", binarize=how)
    rows = data.rows()
    hidden = torch.from_numpy(np.isnan(x))
    assert torch.equal(rows.x.isnan(), hidden)
    assert set(rows.x[~hidden].unique().tolist()) == {0.0, 1.0}


def test_inf_and_unknown_words_are_refused(tmp_path: Path) -> None:
    x = np.array([[1.0, np.nan], [np.inf, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match=r"got inf at index \(1, 0\) \(1 such values\)"):
        load(saved(tmp_path / "x.npy", x), missing="mask")
    with pytest.raises(ValueError, match=r"Unknown missing 'drop'\. Choose one of refuse, mask"):
        load(tmp_path / "x.npy", missing="drop")
    with pytest.raises(ValueError, match="hold no value: every element is NaN"):
        load(saved(tmp_path / "x.npy", np.full((4, 2), np.nan)), missing="mask")


def test_a_column_that_float32_spoils_is_seen_beside_nan(tmp_path: Path) -> None:
    x = 1e9 + np.arange(40.0).reshape(20, 2)
    x[:, 0], x[3] = 1.0, np.nan
    with pytest.raises(ValueError, match=r"cannot hold feature x\[:, 1\]: its mean is 1.0000000"):
        load(saved(tmp_path / "x.npy", x), missing="mask")


@pytest.mark.parametrize("hidden", [0, 2])
def test_a_column_that_float32_spoils_is_seen_beside_outliers(hidden: int) -> None:
    """Seconds since 1970, of which every ninth is 0, in more rows than are looked at; each other one is missing."""
    x = np.stack([np.linspace(0, 1, 4000), 1.7e9 + np.linspace(-20, 20, 4000)], 1)
    x[::9] = 0
    x[: 2000 * hidden : 2, 1] = np.nan
    with pytest.raises(ValueError, match=r"cannot hold feature x\[:, 1\]: its mean is 1\.5"):
        need_float32("x", x[:1501], x[1501:])
    x[:, 1] = np.where(np.isnan(x[:, 1]), np.nan, x[:, 0])
    need_float32("x", x[:1501], x[1501:])


def test_an_old_record_takes_no_missing_values() -> None:
    record = {"event_shape": (2,), "value_range": (0.0, 1.0), "binarization": "none"}
    assert not Preparation.of(record).missing
    assert Preparation(Size((2,)), None, None, None, missing=True).accepts_missing("refuse") is False
