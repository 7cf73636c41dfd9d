"""Rows in, rows out: codes, reconstructions and scores of every row of a file, in its order."""

import html
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from command import gae
from PIL import Image
from scipy.stats import multivariate_normal, norm
from sklearn.decomposition import PCA

from gae.cli import common
from gae.data import load
from gae.data.preparation import Preparation
from gae.reports.comparison import command
from gae.studies.jobs import facts

QUIET = ("--quiet", "--epochs", "20")
ROWS = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 80 rows, and models of them."""
    folder = tmp_path_factory.mktemp("rows")
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 2)) @ random.normal(size=(2, 6)) * 3 + 0.3 * random.normal(size=(ROWS, 6))
    np.save(folder / "x.npy", x.astype(np.float32))
    np.save(folder / "bytes.npy", random.integers(0, 256, size=(ROWS, 1, 2, 3)).astype(np.uint8))
    width = ("--option", "latent=2")
    gae("fit", "pca", folder / "x.npy", *QUIET, *width, "--out", folder / "pca")
    gae("fit", "ppca", folder / "x.npy", *QUIET, *width, "--out", folder / "ppca")
    gae("fit", "pca", folder / "bytes.npy", *QUIET, *width, "--out", folder / "bytes")
    gae("fit", "llgae", folder / "x.npy", *QUIET, "--option", "latent=1", "--option", "components=2", "--out",
        folder / "llgae")  # fmt: skip
    return folder


def train_rows(path: Path) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays["index"][arrays["split"] == "train"]


def table(path: Path) -> pandas.DataFrame:
    return pandas.read_csv(path, float_precision="round_trip") if path.suffix == ".csv" else pandas.read_parquet(path)


def test_codes_are_those_of_sklearn_in_every_format(folder: Path, tmp_path: Path) -> None:
    for suffix in (".npz", ".npy", ".csv", ".parquet"):
        gae("encode", folder / "pca", folder / "x.npy", "-o", tmp_path / f"codes{suffix}")
    x, train = np.load(folder / "x.npy"), train_rows(tmp_path / "codes.npz")
    expected = PCA(2).fit(x[train]).transform(x)
    codes = np.load(tmp_path / "codes.npy")
    assert np.abs(np.abs(codes) - np.abs(expected)).max() < 1e-3  # axes have no sign
    with np.load(tmp_path / "codes.npz") as arrays:
        assert (arrays["z"] == codes).all() and (arrays["index"] == np.arange(ROWS)).all()
        for suffix in (".csv", ".parquet"):
            rows = table(tmp_path / f"codes{suffix}")
            assert list(rows)[:4] == ["index", "split", "z0", "z1"] and "engine" not in rows
            assert (rows["index"] == np.arange(ROWS)).all() and (rows["split"] == arrays["split"]).all()
            np.testing.assert_array_equal(rows[["z0", "z1"]].to_numpy(np.float32), codes)
            np.testing.assert_array_equal(rows["log_joint"].to_numpy(np.float32), arrays["log_joint"])


def test_transform_has_the_codes_alone(folder: Path, tmp_path: Path) -> None:
    for name in ("encode", "transform"):
        gae(name, folder / "llgae", folder / "x.npy", "-o", tmp_path / f"{name}.csv", "--split", "test")
    encoded, transformed = (table(tmp_path / f"{name}.csv") for name in ("encode", "transform"))
    assert list(transformed) == ["index", "split", "k", "z0"] and len(transformed) == ROWS // 5
    assert (np.diff(transformed["index"]) > 0).all() and set(transformed["split"]) == {"test"}
    assert set(transformed["k"]) <= {0, 1}
    pandas.testing.assert_frame_equal(transformed, encoded[list(transformed)])


def test_reconstructions_are_those_of_sklearn_in_units_of_the_file(folder: Path, tmp_path: Path) -> None:
    """8-bit values are reconstructed between 0 and 255."""
    for suffix in (".npz", ".parquet"):
        gae("reconstruct", folder / "bytes", folder / "bytes.npy", "-o", tmp_path / f"again{suffix}")
    x, train = np.load(folder / "bytes.npy").reshape(ROWS, 6).astype(float), train_rows(tmp_path / "again.npz")
    pca = PCA(2).fit(x[train])
    with np.load(tmp_path / "again.npz") as arrays:
        assert arrays["x"].shape == (ROWS, 1, 2, 3)
        again = arrays["x"].reshape(ROWS, 6)
    np.testing.assert_allclose(again, pca.inverse_transform(pca.transform(x)), atol=0.05)
    rows = table(tmp_path / "again.parquet")
    assert list(rows) == ["index", "split", "x_0_0_0", "x_0_0_1", "x_0_0_2", "x_0_1_0", "x_0_1_1", "x_0_1_2"]
    assert (rows.iloc[:, 2:].to_numpy() == again).all()


def test_scores_are_the_densities_of_the_model(folder: Path, tmp_path: Path) -> None:
    options = ("--by", "evidence,reconstruction,gap")
    shown = json.loads(
        gae("score", folder / "ppca", folder / "x.npy", *options, "-o", tmp_path / "scores.csv", "--json")
    )
    model, _ = common.read(folder / "ppca")
    x, rows = np.load(folder / "x.npy").astype(float), table(tmp_path / "scores.csv")
    with torch.no_grad():
        mean, loadings = model.likelihood.means[0].double().numpy(), model.likelihood.loadings[0].double().numpy()
        scale = model.likelihood.log_scale.double().exp().item()
        again = model.reconstruct(torch.from_numpy(x).float()).double().numpy()
    expected = multivariate_normal(mean, loadings.T @ loadings + scale**2 * np.eye(6)).logpdf(x)
    np.testing.assert_allclose(rows["log_p"], expected, atol=2e-3)
    assert set(rows["method"]) == {"exact"} and (rows["standard_error"] == 0).all() and rows["tight"].all()
    np.testing.assert_allclose(rows["reconstruction"], -norm(again, scale).logpdf(x).sum(1), atol=2e-3)
    assert rows["gap"].abs().max() < 2e-3  # the posterior of PPCA is exact
    assert shown["mean log_p (nats)"] == pytest.approx(expected.mean(), abs=2e-3) and shown["lower bounds only"] == 0
    assert (rows["index"] == np.arange(ROWS)).all() and (rows["split"] == "train").sum() == len(x) * 4 // 5


def test_scores_that_do_not_exist_are_refused(folder: Path, tmp_path: Path) -> None:
    said = gae("score", folder / "pca", folder / "x.npy", "-o", tmp_path / "a.csv", code=2)
    assert "does not exist under a flat prior" in said
    said = gae("score", folder / "ppca", folder / "x.npy", "-o", tmp_path / "a.csv", "--by", "magic", code=2)
    assert "Unknown score 'magic'. Valid scores: evidence, reconstruction, gap." in said
    said = gae("score", folder / "ppca", folder / "x.npy", "-o", tmp_path / "a.txt", code=2)
    assert "must end in .npz or .npy or .csv or .parquet" in said
    assert not list(tmp_path.iterdir())
    gae("score", folder / "pca", folder / "x.npy", "-o", tmp_path / "a.npy", "--by", "reconstruction")
    assert np.load(tmp_path / "a.npy").shape == (ROWS,)


def test_labels_and_file_names_stand_beside_the_codes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = [f"{label}/{n}, {label}.png" for label in ("cat", "dog") for n in range(4)]
    for name in names:
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (3, 3)).astype(np.uint8)).save(tmp_path / "pets" / name)
    gae("fit", "pca", tmp_path / "pets", *QUIET, "--option", "latent=1", "--out", tmp_path / "run")
    gae("transform", tmp_path / "run", tmp_path / "pets", "-o", tmp_path / "codes.csv")
    rows = table(tmp_path / "codes.csv")
    assert list(rows) == ["index", "split", "label", "file", "z0"]
    assert rows["file"].tolist() == names and rows["label"].tolist() == ["cat"] * 4 + ["dog"] * 4


def test_the_rule_of_the_split_is_seen_and_kept(folder: Path, tmp_path: Path) -> None:
    test = [3, 50, 79]
    (tmp_path / "rule.txt").write_text("\n".join(map(str, test)))
    rule, more = f"file:{tmp_path / 'rule.txt'}", ("--option", "latent=2", "--out", tmp_path / "run", "--json")
    shown = json.loads(gae("fit", "pca", folder / "x.npy", *QUIET, "--split-by", rule, *more))
    assert shown["split"] == rule
    x = np.load(folder / "x.npy")
    pca = PCA(2).fit(np.delete(x, test, 0))
    error = ((pca.inverse_transform(pca.transform(x[test])) - x[test]) ** 2).mean()
    assert shown["test squared error per element"]["mean"] == pytest.approx(error, rel=1e-3)
    gae("transform", tmp_path / "run", folder / "x.npy", "-o", tmp_path / "codes.csv", "--split", "test")
    assert table(tmp_path / "codes.csv")["index"].tolist() == test
    other = ("--split-by", "fraction:0.5")
    gae("transform", tmp_path / "run", folder / "x.npy", "-o", tmp_path / "codes.csv", "--split", "test", *other)
    assert len(table(tmp_path / "codes.csv")) == ROWS // 2


def test_a_comparison_states_the_rule(folder: Path, tmp_path: Path) -> None:
    options = ("--systems", "kmeans", "--epochs", 1, "--quick", "--split-by", "fraction:0.4")
    gae("compare", folder / "x.npy", *options, "--out", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["data"]["split"] == "fraction:0.4" and results["data"]["test"] == ROWS * 2 // 5
    assert "split fraction:0.4" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    configuration = {
        "data": "x.npy", "engines": ["vae"], "binarize": "none", "quick": False,
        **dict.fromkeys(("epochs", "latent", "head", "seed", "seeds")),
    }  # fmt: skip
    assert command(configuration, results["data"]) == "gae compare x.npy --engines vae --split-by fraction:0.4"
    assert command(configuration, {"split": "predefined"}) == command(configuration, {})
    assert command(configuration, {"options": ["--labels", "a b"]}).endswith("--engines vae --labels 'a b'")


def test_a_comparison_repeats_the_options_of_its_data(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"name": range(30), "kind": ["a", "b", "b"] * 10, "x": np.arange(30) / 7, "y": 1.0})
    frame.loc[:4, "y"] = 0.0
    frame.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "images").mkdir()
    for name, width in (("one", 4), ("two", 6)):
        Image.new("L", (width, 6)).save(tmp_path / "images" / f"{name}.png")
    given = ["--labels", "kind", "--drop", "name", "--standardize"]
    data = facts({"data_hash": ""}, load(tmp_path / "t.csv", labels="kind", drop=["name"], standardize=True))["data"]
    assert data["options"] == given and load(tmp_path / "t.csv", drop=["name"]).preparation.options() == given[2:4]
    assert load(tmp_path / "images", size=(3, 4), crop=True).preparation.options() == ["--size", "3x4", "--crop"]
    np.save(tmp_path / "x.npy", np.zeros((9, 3, 5, 3), "f4"))
    stated = load(tmp_path / "x.npy", channels="last").preparation
    assert (
        stated.options() == ["--channels", "last"] and Preparation.of(json.loads(json.dumps(stated.note()))) == stated
    )
    configuration = {"data": "t.csv", "engines": ["vae"], "binarize": "none", "quick": True}
    configuration |= dict.fromkeys(("epochs", "latent", "head", "seed", "seeds"))
    assert command(configuration, data) == f"gae compare t.csv --engines vae {' '.join(given)} --quick"


def test_the_page_repeats_the_preparation_of_a_table(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b c,kind,e\n" + "".join(f"{i / 9},{i % 7},{i % 2},{i % 3}\n" for i in range(30)))
    chosen = ("--labels", "kind", "--drop", "b c", "--standardize", "--split-by", "fraction:0.3")
    gae("compare", tmp_path / "t.csv", "--systems", "kmeans", "--quick", *chosen, "--out", tmp_path / "run")
    page = html.unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "--seed 0 --split-by fraction:0.3 --labels kind --drop 'b c' --standardize --quick" in page
