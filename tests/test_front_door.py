"""The front door: what ``import gae`` offers, lazily, and what constructors read from data."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from cases import seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gae
from gae.data import Dataset
from gae.systems.__main__ import written
from gae.systems.table import TABLE

TEXT = ["ada", "alan", "grace", "emmy"] * 5


class Constant(nn.Module):
    """A decoder of one parameter, whatever the code."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.value.expand(len(z), 1)


@pytest.fixture(scope="module")
def small(digits: Dataset) -> Dataset:
    """A few digits."""
    rows = {"train_rows": None, "test_rows": None}
    labels: Any = {"train_labels": digits.train_labels[:60], "test_labels": digits.test_labels[:20]}  # type: ignore[index]
    return replace(digits, train=digits.train[:60], test=digits.test[:20], **labels, **rows)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("text") / "names.txt"
    path.write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    return gae.data.load(path)


PLACES = {
    "Autoencoder": "gae.autoencoder",
    "fit": "gae.training.fitting",
    "compare": "gae.studies.compare",
    "survey": "gae.studies.survey",
    "sweep": "gae.studies.sweep",
    "anomaly_scores": "gae.analysis.anomaly",
    "inference_gap": "gae.analysis.inference_gap",
    "check_gradient": "gae.analysis.gradcheck",
}
PLACES |= {name.replace("-", "_"): f"gae.systems.{module}" for module, rows in TABLE.items() for name in rows}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_offered_is_that_of_its_module(name: str) -> None:
    assert name in dir(gae) and getattr(gae, name) is getattr(importlib.import_module(PLACES[name]), name)


def test_every_package_but_the_command_is_offered() -> None:
    packages = {path.parent.name for path in Path(gae.__file__).parent.glob("*/__init__.py")} - {"cli"}
    assert {name for name in packages if getattr(gae, name).__name__ == f"gae.{name}"} == packages <= set(gae.__all__)


def test_readme_and_stubs_follow_the_table() -> None:
    stale = [path.name for path, text in written().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run `make table`"


def same(one: gae.Autoencoder, other: gae.Autoencoder) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("name", ["pca", "gmm", "vae", "conv_vae", "sparse_coding", "inpainting", "deep_image_prior"])
def test_a_data_set_stands_for_its_shape(name: str, small: Dataset) -> None:
    models = []
    for data in (small, (1, 8, 8), [1, 8, 8], torch.Size((1, 8, 8))):
        seed(0)
        models.append(getattr(gae, name)(data))
    assert all(same(models[0], model) for model in models[1:])


def test_the_data_decide_what_is_left_to_them(small: Dataset, text: Dataset) -> None:
    assert gae.knn(small).likelihood.components == 60  # a neighbour for each of the training images
    assert gae.lle(small).likelihood.event_shape == (60, 1, 8, 8)
    assert gae.kmeans(small).likelihood.components == 10
    letters = len(set("".join(TEXT)))
    for model in (
        gae.sequence_vae(text, hidden=8),
        gae.attention_vae(text, width=8, heads=2),
        gae.music_vae(text, hidden=8),
    ):
        assert model.likelihood.event_shape == (len("grace") + 1,)
        assert model.sample(200).max() < letters + 2  # padding and the end


def test_what_is_given_goes_before_the_data(small: Dataset, text: Dataset) -> None:
    assert gae.knn(small, 7).likelihood.components == gae.knn(small, components=7).likelihood.components == 7
    assert gae.sequence_vae(text, classes=300, hidden=8).likelihood.classes == 300


def test_text_is_told_by_its_vocabulary_alone(text: Dataset) -> None:
    assert gae.sequence_vae(replace(text, vocabulary=None), hidden=8).likelihood.classes == 258


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (64, r"vae takes data, as `gae\.data\.load` does, or the shape of .* such as \(1, 28, 28\), got 64"),
        (None, "got None"),
        ((8.0, 8.0), r"got \(8\.0, 8\.0\)"),
        ("digts", r"Unknown data set 'digts'"),
        (torch.zeros(5), r"x must have shape \(N, \*X\), got \(5,\)"),
        (np.zeros(5), r"x must have shape \(N, \*X\), got \(5,\)"),
        (torch.tensor([1, 8, 8]), r"x must have shape \(N, \*X\), got \(3,\)"),
        (torch.zeros(5, 0), r"x is empty: it has shape \(5, 0\)"),
        (np.full((5, 3), np.nan), r"x must be finite"),
    ],
)
def test_anything_else_is_refused(data: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        gae.vae(data)


IMAGES = np.random.default_rng(0).integers(0, 256, (30, 5, 6, 3)).astype(np.uint8)
REALS = np.random.default_rng(0).normal(size=(30, 6))


@pytest.mark.parametrize(
    ("data", "event_shape"),
    [
        (REALS, (6,)),
        (torch.from_numpy(REALS).float(), (6,)),
        (torch.from_numpy(REALS).float().reshape(30, 1, 2, 3), (1, 2, 3)),
        ((REALS, np.arange(30) % 3), (6,)),
        (pandas.DataFrame({"height": REALS[:, 0], "colour": ["red", "blue"] * 15}), (3,)),
        (DataLoader(TensorDataset(torch.from_numpy(REALS)), batch_size=7), (6,)),
        pytest.param(IMAGES, (3, 5, 6), marks=pytest.mark.filterwarnings("ignore:x of shape")),
        ("digits", (1, 8, 8)),
    ],
    ids=["array", "tensor", "images", "pair", "frame", "loader", "channels last", "name"],
)
def test_data_stand_for_their_shape(data: Any, event_shape: tuple[int, ...]) -> None:
    """And for their number; the model is fitted to the same."""
    model = gae.knn(data)
    assert model.likelihood.event_shape == event_shape
    assert model.likelihood.components == (1797 if isinstance(data, str) else 30)
    gae.fit(model, data, progress=False)


def test_data_with_holes_need_the_option() -> None:
    x = np.where(REALS > 1, np.nan, REALS)
    for data in (x, torch.from_numpy(x).float()):
        model = gae.ppca(data, latent=2, missing=True)
        assert gae.fit(model, data, progress=False).rows


def test_options_are_checked_at_the_door(small: Dataset) -> None:
    with pytest.raises(ValueError, match=r"event_shape must be whole numbers of at least 1, got \[1, 0\]"):
        gae.vae((1, 0))
    with pytest.raises(
        TypeError, match=r"kmeans: got an unexpected keyword argument 'latent'\. .*options: components, missing\."
    ):
        gae.kmeans(small, latent=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="latent must be a whole number of at least 1, got 0"):
        gae.vae(small, 0)


def test_a_test_split_outside_the_support_is_refused(small: Dataset) -> None:
    with pytest.raises(ValueError, match=r"In the test data: .*\[0, 1\]"):
        gae.vae(replace(small, test=2 * small.test), head="bernoulli")


@pytest.mark.parametrize(("size", "epochs"), [(60, 20), (300, 7), (2000, 3)])
def test_a_run_is_as_many_steps_unless_told(size: int, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here 20 steps in batches of 128, and three epochs at least."""
    monkeypatch.setattr("gae.training.fitting.STEPS", 20)
    monkeypatch.setattr("gae.training.fitting.EPOCHS", 3)
    model = gae.Autoencoder(gae.likelihood.Gaussian(Constant(), 1, 1.0), gae.inference.Zeros())
    history = gae.fit(model, torch.zeros(size, 1), progress=False)
    assert len(history.rows) == epochs


def test_closed_forms_run_until_they_have_converged() -> None:
    history = gae.fit(gae.kmeans((2,), components=5), torch.randn(500, 2), progress=False)
    assert history.stopped_early and 2 < len(history.rows) < 100
    losses = [row.train_loss for row in history.rows]
    assert losses[-2] - losses[-1] < 1e-3 < losses[0] - losses[-1]


def test_the_tour(small: Dataset, tmp_path: Path) -> None:
    """A model from its data, its training, its codes, its gap, and a comparison: each one line."""
    model = gae.vae(small, latent=2, hidden=(8,))
    history = gae.fit(model, small, epochs=2, progress=False)
    assert len(history.rows) == 2
    assert model.encode(small.test).point.shape == (20, 2)
    gap = gae.inference_gap(model.double(), small.test[:3].double(), samples=400, draws=8, steps=20)
    assert gap.encoder is not None
    assert gap.table()["inference gap"]["mean"] == pytest.approx((gap.evidence.log_p - gap.encoder.value).mean().item())
    options: Any = {"epochs": 1, "latent": 2, "hidden": (8,), "quick": True, "progress": False}
    results = gae.compare(small, out=tmp_path / "compare", engines=["amortised"], **options)
    assert results == json.loads((tmp_path / "compare" / "results.json").read_text())
