"""The command on a user's own data: from files to numbers, and what a checkpoint owns."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command import gae
from PIL import Image
from problems import tiny_matrix
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from gae.autoencoder import load
from gae.cli import main as cli
from gae.data import Dataset
from gae.data import load as load_data
from gae.likelihood import StandardUnits
from gae.studies import compare, engines

N = 60


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(N, 1)) * [1.0, 20.0, 3000.0] + draw.normal(size=(N, 3)) * [0.5, 10.0, 2000.0]
    frame = pd.DataFrame(x + np.array([1.7, 70.0, 30000.0]), columns=["height", "weight", "income"])
    return frame.assign(row=np.arange(N), town=draw.choice(["Bonn", "Köln"], N), kind=draw.choice(["b", "a"], N))


@pytest.fixture(scope="module")
def fitted(people: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("table")
    people.drop(columns="town").to_csv(folder / "people.csv", index=False)
    options = ["--labels", "kind", "--drop", "row", "--standardize", "--out", folder / "run"]
    printed = gae("fit", "ppca", folder / "people.csv", *options, "--option", "latent=1", "--quiet", "--json")
    return folder / "people.csv", folder / "run", json.loads(printed)


def test_nats_are_of_the_data_as_given(fitted: tuple[Path, Path, dict[str, float]]) -> None:
    """The loss of `gae fit --standardize` is that of scikit-learn's PCA on standardised columns, and the Jacobian."""
    path, run, results = fitted
    data, log_p = closed_form(path, latent=1)
    assert results["test loss (nats)"] == pytest.approx(-log_p.mean(), rel=1e-4)
    model = load(run)
    np.testing.assert_allclose(model.log_evidence(data.test).log_p.detach().numpy(), log_p, rtol=1e-4)


def closed_form(path: Path, latent: int, held_out: int = 0) -> tuple[Dataset, np.ndarray]:
    """The data as given, and log p of the test set by probabilistic PCA of standardised columns.

    Of the training rows, the first ``held_out`` are left out.
    """
    data = load_data(path, labels="kind", drop=["row"])
    train, test = data.train[held_out:].double().numpy(), data.test.double().numpy()
    scaler = StandardScaler().fit(train)
    reference = PCA(latent).fit(scaler.transform(train))
    law = torch.distributions.MultivariateNormal(
        torch.zeros(3).double(), torch.from_numpy(reference.get_covariance() * (len(train) - 1) / len(train))
    )
    log_p = law.log_prob(torch.from_numpy(scaler.transform(test))) - np.log(scaler.scale_).sum()
    return data, log_p.numpy()


def test_a_checkpoint_owns_its_columns(
    fitted: tuple[Path, Path, dict[str, float]], people: pd.DataFrame, tmp_path: Path
) -> None:
    path, run, _ = fitted
    people[["income", "height", "weight"]].to_parquet(tmp_path / "new.parquet")  # another order, and no labels
    gae("encode", run, path, "-o", tmp_path / "a.npz")
    gae("encode", run, tmp_path / "new.parquet", "-o", tmp_path / "b.npz")
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert np.array_equal(a["z"], b["z"]) and np.array_equal(a["log_joint"], b["log_joint"])
        assert a["labels"].tolist() == people["kind"].tolist() and "labels" not in b
    for change, said in (
        (people.drop(columns=["income", "town"]), "lacks 'income'; the model takes the columns 'height', 'weight'"),
        (people, "also has 'town'; the model takes the columns"),
        (people.drop(columns="town").assign(kind="c"), "'kind' has the classes 'c', which the model's data do not"),
    ):
        change.to_csv(tmp_path / "bad.csv", index=False)
        assert said in gae("encode", run, tmp_path / "bad.csv", "-o", tmp_path / "c.npz", code=2)
    assert not (tmp_path / "c.npz").exists()


def test_an_index_is_refused_by_name(people: pd.DataFrame, tmp_path: Path) -> None:
    people.to_csv(tmp_path / "a.csv")
    said = gae("fit", "pca", tmp_path / "a.csv", "--labels", "kind", "--out", tmp_path / "run", code=2)
    assert "Column 'Unnamed: 0' of" in said and "--drop 'Unnamed: 0'" in said and not (tmp_path / "run").exists()


def test_conversions_are_printed_once(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    np.save(tmp_path / "x.npy", draw.integers(0, 256, (20, 1, 4, 4)))
    arguments = ["fit", "pca", tmp_path / "x.npy", "--out", tmp_path / "run", "--quiet", "--json"]
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0 and json.loads(result.stdout)["system"] == "pca"
    assert result.stderr.count("x.npy: x is int64, images with values 0–255: divided by 255, as uint8 is") == 1


def test_pages_and_reconstructions_name_the_columns(
    fitted: tuple[Path, Path, dict[str, float]], tmp_path: Path
) -> None:
    path, _, _ = fitted
    run = tmp_path / "run"
    gae("fit", "pca", path, "--labels", "kind", "--drop", "row", "--option", "latent=2", "--out", run, "--quiet")
    gae("reconstruct", run, path, "-o", tmp_path / "again.csv")
    again = pd.read_csv(tmp_path / "again.csv")
    assert list(again) == ["index", "split", "label", "height", "weight", "income"]
    gae("reconstruct", run, path, "-o", tmp_path / "again.npy")
    np.testing.assert_array_equal(again[["height", "weight", "income"]].to_numpy("f4"), np.load(tmp_path / "again.npy"))
    gae("explore", run, path, "-n", "9", "-o", tmp_path / "page.html")
    assert '"columns": ["height", "weight", "income"]' in (tmp_path / "page.html").read_text()


def test_a_comparison_in_standard_units(
    fitted: tuple[Path, Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "QUICK_MATRIX", tiny_matrix())
    monkeypatch.setattr(compare, "write", lambda out: None)
    path, _, _ = fitted
    options = ["--engines", "amortised", "--latent", "2", "--quick", "--epochs", "1", "--out", tmp_path / "compare"]
    printed = gae("compare", path, "--labels", "kind", "--drop", "row", "--standardize", *options, "--json")
    results = json.loads(printed)
    ppca = next(row for row in results["baselines"] if row["decoder"] == "ppca")
    assert ppca["log_p"]["mean"] == pytest.approx(closed_form(path, 2, results["validation"])[1].mean(), rel=1e-4)
    matrix = results["trainings"][0]["decoders"]["amortised"]["matrix"]
    for family in matrix["cells"].values():  # an encoder of data as given would be thousands of nats below
        assert np.mean(family["encoder"]["values"]) > np.mean(matrix["log_p"]["values"]) - 20
    model = load(next(path for path in (tmp_path / "compare" / "checkpoints").iterdir() if "encoder" not in path.name))
    assert isinstance(model.likelihood, StandardUnits) and model.likelihood.initialized
    assert results["data"]["columns"] == ["height", "weight", "income"] and results["configuration"]["standardize"]


def pictures(folder: Path) -> None:
    """Images of mixed sizes and modes: a left half of one shade and a right half of another."""
    folder.mkdir()
    for n, (height, width, mode) in enumerate([(8, 8, "L"), (16, 16, "RGB"), (8, 24, "L"), (20, 10, "RGB")] * 2):
        image = Image.new(mode, (width, height), 60 if mode == "L" else (60, 60, 60))
        image.paste(180 if mode == "L" else (180, 180, 180), (width // 2, 0, width, height))
        image.save(folder / f"{n}.png")


def test_a_folder_of_mixed_sizes(tmp_path: Path) -> None:
    folder, run = tmp_path / "photos", tmp_path / "run"
    pictures(folder)
    said = gae("fit", "pca", folder, "--out", run, code=2)
    assert "1.png is uint8 (3, 16, 16), but the first image, 0.png, is uint8 (1, 8, 8)" in said
    assert "size= (--size)" in said and "crop= (--crop)" in said
    gae("fit", "pca", folder, "--size", "8", "--crop", "--out", run, "--quiet")
    gae("encode", run, folder, "-o", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as codes:
        assert codes["z"].shape == (8, 8) and codes["files"][0] == "0.png"
    assert "--size must be a number of pixels" in gae("fit", "pca", folder, "--size", "big", code=2)
    assert "crop=True needs a size" in gae("fit", "pca", folder, "--crop", code=2)


@pytest.mark.parametrize("width", [5, 3])
def test_ambiguous_channels_are_asked_about(tmp_path: Path, width: int) -> None:
    """Said once, for the fit; the checkpoint then reads them likewise. The means are those of scikit-learn's PCA."""
    x = np.random.default_rng(2).random((20, 3, width, 3)).astype("f4")
    path, run = tmp_path / "x.npy", tmp_path / "run"
    np.save(path, x)
    options = ["--option", "latent=4", "--split-by", "fraction:0.2", "--out", run, "--quiet"]
    assert "(--channels first or last)" in gae("fit", "pca", path, *options, code=2)
    assert "must be 'first' or 'last', got 'middle'" in gae("fit", "pca", path, "--channels", "middle", code=2)
    gae("fit", "pca", path, "--channels", "last", *options)
    gae("reconstruct", run, path, "-o", tmp_path / "means.npy")
    rows = np.moveaxis(x, 3, 1).reshape(20, -1)
    pca = PCA(4).fit(rows[load_data(path, channels="last").train_rows])
    means = pca.inverse_transform(pca.transform(rows)).reshape(20, 3, 3, width)
    np.testing.assert_allclose(np.load(tmp_path / "means.npy"), means, atol=1e-5)


def test_a_data_set_of_hugging_face_on_disk(tmp_path: Path) -> None:
    """From a folder to the exact log p of scikit-learn's PCA on its columns, by the command."""
    datasets = pytest.importorskip("datasets")
    x = np.random.default_rng(3).normal(size=(40, 3)) @ np.diag([3.0, 2, 1])
    table = datasets.Dataset.from_dict({**dict(zip("abc", x.T, strict=True)), "kind": ["u", "v"] * 20})
    table.save_to_disk(tmp_path / "table")
    options = ("--labels", "kind", "--option", "latent=1", "--out", tmp_path / "run", "--quiet")
    gae("fit", "ppca", tmp_path / "table", *options)
    gae("score", tmp_path / "run", tmp_path / "table", "-o", tmp_path / "scores.csv")
    rows = pd.read_csv(tmp_path / "scores.csv")
    train = x[rows["split"] == "train"]
    pca = PCA(1).fit(train)
    law = multivariate_normal(pca.mean_, pca.get_covariance() * (len(train) - 1) / len(train))
    np.testing.assert_allclose(rows["log_p"], law.logpdf(x), rtol=1e-4)
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "parts")
    assert "Give one split" in gae("fit", "ppca", tmp_path / "parts", code=2)
    (tmp_path / "table" / "state.json").write_text("{}")
    assert "Cannot read a data set of Hugging Face from" in gae("fit", "ppca", tmp_path / "table", code=2)


def test_a_column_splits_a_table(people: pd.DataFrame, tmp_path: Path) -> None:
    """Fitted, encoded and scored by a column that is not learnt, beside labels and standard units."""
    fold = np.arange(N) % 4
    people.drop(columns="town").assign(fold=fold).to_csv(tmp_path / "people.csv", index=False)
    table = ["--labels", "kind", "--drop", "row", "--standardize", "--split-by", "column:fold=3"]
    options = [*table, "--out", tmp_path / "run", "--option", "latent=1", "--quiet", "--json"]
    printed = json.loads(gae("fit", "ppca", tmp_path / "people.csv", *options))
    assert printed["split"] == "column:fold=3"
    gae("score", tmp_path / "run", tmp_path / "people.csv", "-o", tmp_path / "scores.csv")
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert ((scores["split"] == "test") == (fold == 3)).all() and set(scores["method"]) == {"exact"}
    assert -scores["log_p"][fold == 3].mean() == pytest.approx(printed["test loss (nats)"], rel=1e-4)
    gae("reconstruct", tmp_path / "run", tmp_path / "people.csv", "-o", tmp_path / "again.npy")
    assert np.load(tmp_path / "again.npy").shape == (N, 3)
