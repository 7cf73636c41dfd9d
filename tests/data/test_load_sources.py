"""Data in memory: arrays and tensors of every type, pairs, torch data sets, AnnData and Hugging Face."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

import gae
from gae.data import load, training_data

REALS = np.random.default_rng(0).normal(size=(12, 3))
SHADES = np.random.default_rng(1).integers(0, 256, (12, 6, 5, 3))
LABELS = np.arange(12) % 3


class Pictures(torch.utils.data.Dataset[Any]):
    """Items (image of Pillow, label), as torchvision's data sets without a transform."""

    classes = ("ant", "bee", "cat")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        return Image.fromarray(SHADES[i].astype(np.uint8)), int(LABELS[i])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(REALS)


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint32", "uint64", "float16", "float32", "float64", "longdouble"]
)
def test_numbers_of_every_type(dtype: str) -> None:
    x = np.abs(10 * REALS).astype(dtype)
    assert np.array_equal(load(x).rows().x.numpy(), x.astype(np.float32))
    if dtype != "longdouble":
        assert np.array_equal(load(torch.from_numpy(x)).rows().x.numpy(), x.astype(np.float32))


def test_tensors_on_their_way() -> None:
    x = torch.from_numpy(REALS).bfloat16().requires_grad_()
    assert torch.equal(load(x).rows().x, x.detach().float())
    with pytest.raises(TypeError, match=r"x must be dense"):
        load(torch.eye(3).to_sparse())


def test_bytes_of_any_type_stand_for_the_unit_interval() -> None:
    chw = np.moveaxis(SHADES, -1, 1)
    for dtype in ("uint8", "int16", "int64"):
        data = load(chw.astype(dtype))
        np.testing.assert_array_equal(data.rows().x.numpy(), (chw / 255).astype(np.float32))
        assert data.value_range == (0.0, 1.0) and any("divided by 255" in note for note in data.notes)
    for other in (chw.astype(float), chw // 4, chw - 1, chw + 1000):
        assert np.array_equal(load(other).rows().x.numpy(), other.astype(np.float32)) and not load(other).notes
    table = load(chw.reshape(12, -1))  # no images, so the values stay, and a note says what to do
    assert table.rows().x.max() == SHADES.max() and "kept as they are: give uint8" in table.notes[0]
    dark = load(chw // 4, like=load(chw).preparation)  # the model says that they are bytes
    np.testing.assert_array_equal(dark.rows().x.numpy(), (chw // 4 / 255).astype(np.float32))
    raw = load(chw // 4).preparation  # … or that they are not
    with pytest.warns(UserWarning, match="trained on values in"):
        assert load(chw, like=raw).value_range == (SHADES.min(), SHADES.max())


@pytest.mark.parametrize("kind", ["array", "tensor", "pair", "data set", "loader"])
def test_channels_last_in_memory(kind: str) -> None:
    x: Any = SHADES.astype(np.uint8)
    held = TensorDataset(torch.from_numpy(x))
    sources = {"array": x, "tensor": torch.from_numpy(x), "pair": (x, LABELS), "data set": held}
    with pytest.warns(UserWarning, match=r"read as images \(N, H, W, C\)"):
        data = load(sources.get(kind, DataLoader(held, 5)))
    np.testing.assert_array_equal(data.rows().x.numpy(), (np.moveaxis(x, -1, 1) / 255).astype(np.float32))
    assert load(x, channels="first").event_shape == (6, 5, 3)


def test_pairs() -> None:
    data = load((REALS, LABELS))
    assert data.rows().labels.tolist() == LABELS.tolist() and data.classes is None
    names = [("ant", "bee", "cat")[i] for i in LABELS]
    for y in (names, np.array(names), pd.Series(names), pd.Series(names, dtype="category")):
        named = load((pd.DataFrame(REALS, columns=list("abc")), y))
        assert named.rows().labels.tolist() == LABELS.tolist() and named.classes == ("ant", "bee", "cat")
        assert named.columns == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"y must have shape \(12,\)"):
        load((REALS, LABELS[:5]))
    with pytest.raises(ValueError, match="y has no label in row 0"):
        load((REALS, pd.Series([None, *names[1:]])))


def test_labels_are_in_the_classes_of_the_model() -> None:
    like = load((REALS, np.array(["ant", "bee", "cat"])[LABELS])).preparation
    assert load((REALS[1:5], ["bee", "cat", "bee", "cat"]), like=like).rows().labels.tolist() == [1, 2, 1, 2]
    with pytest.raises(ValueError, match=r"The labels 'dog' are not classes .* 'ant', 'bee', 'cat'"):
        load((REALS[:4], ["dog", "cat", "dog", "cat"]), like=like)


def test_torch_data_sets() -> None:
    x, y = torch.from_numpy(REALS), torch.from_numpy(LABELS)
    for source in (TensorDataset(x, y), DataLoader(TensorDataset(x, y), 5, shuffle=True, drop_last=True)):
        rows = load(source).rows()  # in the order of the data set, and complete
        assert torch.equal(rows.x, x.float()) and torch.equal(rows.labels, y)
    for source in (TensorDataset(x), Stream(), DataLoader(Stream(), 5)):
        assert torch.equal(load(source).rows().x, x.float()) and load(source).train_labels is None
    pictures = load(Pictures())
    np.testing.assert_array_equal(pictures.rows().x.numpy(), (np.moveaxis(SHADES, -1, 1) / 255).astype(np.float32))
    assert pictures.classes == ("ant", "bee", "cat") and pictures.rows().labels.tolist() == LABELS.tolist()
    chosen = DataLoader(TensorDataset(x, y), 5, sampler=WeightedRandomSampler([0.0, 1.0] * 6, 12))
    assert not {tuple(row) for row in load(chosen).rows().x.tolist()} & {tuple(row) for row in x.float()[::2].tolist()}


class Bad(torch.utils.data.Dataset[Any]):
    def __init__(self, *items: Any):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


@pytest.mark.parametrize(
    ("items", "error", "said"),
    [
        ((np.zeros(2), np.zeros(3)), ValueError, r"Item 1 of Bad has shape \(3,\), but item 0 has \(2,\)"),
        (((np.zeros(2), 0, 0),), TypeError, r"item 0 of Bad has 3 parts, but x or \(x, y\)"),
        (({"x": np.zeros(2)},), TypeError, r"item 0 of Bad is a dict with 'x'"),
        (((np.zeros(2), 0), np.zeros(2)), ValueError, "Bad has 2 observations but 1 labels"),
        ((), ValueError, "Bad is empty"),
        ((Image.new("RGBA", (2, 2)),), ValueError, "An image has an alpha channel, which would be lost"),
    ],
)
def test_bad_items(items: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load(Bad(*items))


def test_fit_takes_what_load_takes() -> None:
    """All rows are training data, and a tensor of floats is taken as it is."""
    tensor = torch.from_numpy(REALS).float()
    assert training_data(tensor) is tensor
    models = []
    for source in (tensor, REALS, (REALS, LABELS), TensorDataset(tensor), DataLoader(TensorDataset(tensor), 5)):
        models.append(gae.ppca((3,), latent=1))
        gae.fit(models[-1], source, validation=REALS[:4], progress=False)
    for model in models[1:]:
        assert torch.equal(model.log_evidence(tensor).log_p, models[0].log_evidence(tensor).log_p)


def test_anndata(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    counts = np.random.default_rng(2).poisson(2.0, (20, 4)).astype(np.float32)
    observed = pd.DataFrame({"cell": pd.Categorical(["B", "T"] * 10)}, index=[f"c{i}" for i in range(20)])
    variables = pd.DataFrame(index=["g1", "g2", "g3", "g4"])
    cells = anndata.AnnData(csr_matrix(counts), obs=observed, var=variables)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for source in (cells, tmp_path / "cells.h5ad"):
        data = load(source, labels="cell")
        assert np.array_equal(data.rows().x.numpy(), counts) and data.columns == ("g1", "g2", "g3", "g4")
        assert data.rows().labels.tolist() == [0, 1] * 10 and data.classes == ("B", "T")
    turned = load(cells[:, ["g4", "g3", "g2", "g1"]], like=data.preparation)
    assert turned.hash == data.hash
    with pytest.raises(ValueError, match="lacks 'g1'; the model takes"):
        load(cells[:, ["g4", "g3", "g2"]], like=data.preparation)
    with pytest.raises(ValueError, match=r"has no column 'kind' in obs\. Its columns: 'cell'"):
        load(cells, labels="kind")


def test_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.ClassLabel(names=["ant", "bee", "cat"])
    table = datasets.Dataset.from_dict({"a": REALS[:, 0], "kind": LABELS}).cast_column("kind", kinds)
    learnt = load(table)
    assert learnt.columns == ("a", "kind=ant", "kind=bee", "kind=cat")
    np.testing.assert_array_equal(learnt.rows().x[:, 1:].numpy(), np.eye(3)[LABELS])
    labelled = load(table, labels="kind")
    assert labelled.columns == ("a",) and labelled.classes == ("ant", "bee", "cat")
    assert labelled.rows().labels.tolist() == LABELS.tolist()
    pixels = SHADES.astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": kinds})
    pictures = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels], "label": LABELS}, features=features
    )
    data = load(pictures)
    np.testing.assert_array_equal(data.rows().x.numpy(), (np.moveaxis(pixels, -1, 1) / 255).astype(np.float32))
    assert data.rows().labels.tolist() == LABELS.tolist() and data.classes == ("ant", "bee", "cat")
    assert load(pictures, size=(4, 3)).event_shape == (3, 4, 3)
    grey = Image.fromarray(pixels[0, ..., 0])
    grey.info["transparency"] = 0  # the darkest shade is clear: white
    clear = datasets.Dataset.from_dict({"image": [grey] * 2}, features=datasets.Features({"image": datasets.Image()}))
    with pytest.raises(ValueError, match="image 0 has an alpha channel, which would be lost"):
        load(clear)
    white = np.where(pixels[0, ..., 0] == 0, 255, pixels[0, ..., 0]) / 255
    np.testing.assert_allclose(load(clear, size=white.shape).rows().x[0, 0], white, atol=1e-6)
    with pytest.raises(ValueError, match=r"Give one split .* It has 'train'"):
        load(datasets.DatasetDict(train=table))
    with pytest.raises(ValueError, match="no column 'sort'"):
        load(table, labels="sort")
