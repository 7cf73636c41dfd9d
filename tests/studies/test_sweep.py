"""A sweep from a YAML file to its tables: numbers of `gae fit`, resuming, failures, means against pandas."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import yaml
from command import gae
from sklearn.decomposition import PCA

from gae.data import Dataset, load
from gae.reports import sweep as report
from gae.reports.rounding import rounded
from gae.studies import sweep as study
from gae.studies.single import TrainingOptions
from gae.studies.sweep import GridCell, Sweep, sweep
from gae.systems import SYSTEMS
from gae.systems.options import defaults

# The sweep that all tests share, by a fixture of the module, has them drawn.
pytestmark = pytest.mark.usefixtures("blank_figures")

FIT = {"epochs": 2, "batch-size": 16, "lr": "3e-3", "validation": 0.2}
GRID = {"systems": {"vae": {"hidden": [[8], [6, 6]]}, "ae": {"hidden": "8"}}, "options": {"latent": 2}, "fit": FIT}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a user."""
    path = tmp_path_factory.mktemp("table") / "mine.npy"
    np.save(path, np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32) @ np.diag([3, 2, 1, 0.5]))
    return path


@pytest.fixture(scope="module")
def grid(table: Path) -> Path:
    path = table.with_name("grid.yaml")
    path.write_text(yaml.safe_dump({"data": str(table), **GRID, "seeds": 3}, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def out(grid: Path) -> Path:
    folder = grid.with_name("run")
    printed = gae("sweep", grid, "--out", folder)
    assert "vae" in printed and "report.html" in printed
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_cell(out: Path) -> None:
    rows = rows_of(out / "results.csv")
    given = ["data", "system", "latent", "hidden", "fit.epochs", "fit.batch_size", "fit.lr", "fit.validation", "seed"]
    assert list(rows[0])[:9] == given
    cells = [(row["system"], row["latent"], row["hidden"], row["seed"]) for row in rows]
    systems = [("vae", "2", "8"), ("vae", "2", "6,6"), ("ae", "2", "8")]
    assert sorted(cells) == sorted((*chosen, seed) for chosen in systems for seed in "012")
    assert len(list((out / "cells").iterdir())) == len(rows) and {row["error"] for row in rows} == {""}
    assert {row["fit.lr"] for row in rows} == {"3e-3"} and {row["epochs"] for row in rows} == {"2"}


def test_a_cell_is_a_run_of_fit(table: Path, out: Path, tmp_path: Path) -> None:
    options = ["--option", "latent=2", "--option", "hidden=6,6", "--epochs", 2, "--batch-size", 16, "--lr", "3e-3"]
    command = ["fit", "vae", table, *options, "--validation", 0.2, "--seed", 1, "--quiet", "--json"]
    results = json.loads(gae(*command, "--out", tmp_path / "fit"))
    wanted = {"system": "vae", "latent": "2", "hidden": "6,6", "seed": "1"}
    (row,) = [row for row in rows_of(out / "results.csv") if wanted.items() <= row.items()]
    assert float(row["train_loss"]) == results["training loss (nats)"]
    assert float(row["validation_loss"]) == results["validation loss (nats)"]
    assert float(row["test_loss"]) == results["test loss (nats)"]
    assert float(row["squared_error"]) == results["test squared error per element"]["mean"]
    assert row["log_evidence"] == "" and float(row["seconds"]) > 0


def test_data_are_prepared_as_by_fit(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pandas.DataFrame(random.standard_normal((40, 3)) * [1, 10, 100], columns=["a", "b", "c"])
    frame.assign(name=range(40), kind=["x", "y"] * 20).to_csv(tmp_path / "t.csv", index=False)
    prepared = {"labels": "kind", "drop": "name", "split-by": "fraction:0.3"}
    grid = {"data": str(tmp_path / "t.csv"), "systems": "ppca", "options": {"latent": 1}, "fit": {"epochs": 2}}
    for name, content in (("units", {**prepared, "standardize": True}), ("mask", {**prepared, "missing": "mask"})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(grid | content))
        gae("sweep", tmp_path / f"{name}.yaml", "--out", tmp_path / "sweep", "--resume")
        (row,) = rows_of(tmp_path / "sweep" / "results.csv")
        options = [f"--{key}" if value is True else f"--{key}={value}" for key, value in content.items() if value]
        command = ["fit", "ppca", grid["data"], *options, "--option", "latent=1", "--epochs", 2, "--quiet", "--json"]
        results = json.loads(gae(*command, "--out", tmp_path / name))
        assert float(row["test_loss"]) == results["test loss (nats)"], "of the other sweep in the folder"


def test_means_and_errors_are_those_of_pandas(out: Path) -> None:
    keys = ["system", "latent", "hidden"]
    cells = pandas.read_csv(out / "results.csv", dtype={"hidden": str})
    summary = pandas.read_csv(out / "summary.csv", dtype={"hidden": str}).set_index(keys).sort_index()
    assert list(summary["trainings"]) == [3] * 3 and not summary["failed"].any()
    for name in ("train_loss", "validation_loss", "test_loss", "squared_error", "seconds"):
        groups = cells.groupby(keys)[name]
        np.testing.assert_allclose(summary[f"{name}_mean"], groups.mean(), rtol=1e-12)
        np.testing.assert_allclose(summary[f"{name}_se"], groups.sem(), rtol=1e-9)


def test_the_page_and_the_table_in_latex(out: Path) -> None:
    page, latex = ((out / name).read_text(encoding="utf-8") for name in ("report.html", "summary.tex"))
    summary = rows_of(out / "summary.csv")
    for row in summary:
        mean, error = float(row["test_loss_mean"]), float(row["test_loss_se"])
        text = rounded(mean, error)
        assert text in page and text.replace("±", "$\\pm$").replace("−", "$-$") in latex
    assert "<svg" in page and "validation" in page
    assert latex.count("\\\\") == len(summary) + 1 and "\\toprule" in latex and "hidden" in latex


def test_finished_cells_are_not_run_again(grid: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (out / "results.csv").read_bytes()
    monkeypatch.setattr(Sweep, "_trained", lambda *_: pytest.fail("trained again"))
    gae("sweep", grid, "--out", out, "--resume")
    assert (out / "results.csv").read_bytes() == before
    assert "Resume its sweep (--resume)" in gae("sweep", grid, "--out", out, code=2)


def points() -> Dataset:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2.0, 1.0, 0.5])
    return Dataset("points", x[:40], x[40:], None, None, (-9.0, 9.0))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the cells that were trained; a sweep is interrupted in the third."""
    names: list[str] = []
    real = Sweep._trained

    def trained(self: Sweep, cell: GridCell) -> dict[str, Any]:
        names.append(cell.name)
        if len(names) == 3:
            raise KeyboardInterrupt
        return real(self, cell)

    monkeypatch.setattr(Sweep, "_trained", trained)
    yield names


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_an_interrupted_sweep_continues_and_may_grow(tmp_path: Path, trainings: list[str]) -> None:
    options: dict[str, Any] = {"systems": ["ae"], "options": {"latent": [1, 2], "hidden": "6"}, "progress": False}
    options["training"] = {"epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        sweep(points(), tmp_path / "run", seeds=2, **options)
    results = sweep(points(), tmp_path / "run", seeds=2, resume=True, **options)
    assert len(trainings) == 5 and len(set(trainings)) == 4
    whole = sweep(points(), tmp_path / "whole", seeds=[1, 0], **options)
    assert numbers(results["rows"]) == numbers(sorted(whole["rows"], key=lambda row: (row["latent"], row["seed"])))
    more = sweep(points(), tmp_path / "run", seeds=3, resume=True, **options)
    assert len(trainings) == 11 and numbers(more["rows"])[:2] == numbers(results["rows"])[:2]
    assert [row["trainings"] for row in more["summary"]] == [3, 3]


def test_exact_evidence_is_that_of_scikit_learn(tmp_path: Path) -> None:
    """Probabilistic PCA in closed form, whose log p(x) scikit-learn knows; an axis of options of fit."""
    data = points()
    chosen: dict[str, Any] = {"training": {"tol": [1e-7, 1e-8], "epochs": 500}, "progress": False}
    results = sweep(data, tmp_path / "run", systems="ppca", options={"latent": 2}, **chosen)
    train, test = data.train.double().numpy(), data.test.double().numpy()
    model = PCA(2).fit(train)
    n = len(train)
    centred = np.cov(train.T, bias=True)
    value, vectors = np.linalg.eigh(centred)
    noise = value[:2].mean()
    covariance = (vectors[:, 2:] * (value[2:] - noise)) @ vectors[:, 2:].T + noise * np.eye(4)
    assert np.allclose(model.get_covariance() * (n - 1) / n, covariance)
    residual = test - train.mean(0)
    square = np.einsum("ni,ij,nj->n", residual, np.linalg.inv(covariance), residual)
    expected = float((-0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])).mean())
    for row in results["rows"]:
        assert row["log_evidence"] == pytest.approx(expected, abs=2e-3)
    assert results["axes"] == ["fit.tol"]


def test_a_cell_that_fails_is_a_row_that_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More clusters than samples; without pandas there is no LaTeX."""
    options: dict[str, Any] = {"systems": ["kmeans"], "options": {"components": [3, 99]}, "seeds": 1}
    with pytest.MonkeyPatch.context() as patch:
        for module in (study, report):
            patch.setattr(module, "find_spec", lambda name: None)
        results = sweep(points(), tmp_path / "run", **options)
    assert "pip install 'gae[tables]'" in capsys.readouterr().err and not (tmp_path / "run" / "summary.tex").exists()
    good, bad = rows_of(tmp_path / "run" / "results.csv")
    assert good["error"] == "" and "K=99" in bad["error"] and bad["test_loss"] == ""
    assert [row["failed"] for row in results["summary"]] == [0, 1]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "components=99, seed 0 failed: ValueError" in page
    options["options"] = {"components": 99}
    with pytest.raises(RuntimeError, match=r"Every training failed\. The first: ValueError: K=99"):
        sweep(points(), tmp_path / "run", resume=True, **options)


def test_a_result_that_is_no_number_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of the test loss alone overflows; the training does not."""
    real = study.held_out_results
    worse = {"test loss (nats)": float("inf")}
    monkeypatch.setattr(study, "held_out_results", lambda *given: real(*given) | worse)
    with pytest.raises(RuntimeError, match=r"Every training failed\. The first: FloatingPointError: test_loss is inf"):
        sweep(points(), tmp_path / "run", systems="pca", options={"latent": 2}, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"systems": ["magic"]}, "Unknown system 'magic'"),
        ({"systems": ["vae", "vae"]}, "Name each system once"),
        ({"systems": "vae", "options": {"width": 3}}, "vae has no option 'width'"),
        ({"systems": "vae", "options": {"latent": ["two"]}}, "latent of vae must be a whole number, got 'two'"),
        ({"systems": "vae", "options": {"latent": []}}, "The sweep is empty"),
        ({"systems": "vae", "options": {"latent": [2, 2]}}, "latent=2, seed=0 twice"),
        ({"systems": "vae", "options": {"hidden": [8, 8]}}, "write a list as a list of lists"),
        ({"systems": "vae", "training": {"rate": 3}}, "fit has no option 'rate' in a sweep. Valid options: epochs"),
        (
            {"systems": "vae", "training": {"epochs": [1, 2.5]}},
            "must be a whole number or none, got '2.5'",
        ),
        ({"systems": "vae", "training": {"lr": [0.0]}}, "lr must be positive"),
        ({"systems": "vae", "training": {"schedule": "step"}}, "Valid schedules: cosine, linear"),
        ({"systems": "vae", "training": {"keep": "new"}}, "keep must be best or last"),
        ({"systems": "vae", "seeds": [-1]}, "seeds must be a number, or whole numbers"),
        ({"systems": "vae", "seeds": 0}, "The sweep is empty"),
    ],
)
def test_grids_that_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(points(), tmp_path / "run", progress=False, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("systems: vae", "has no data"),
        ("data: digits", "has no systems"),
        ("data: digits\nsystems: ae\nstandardize: sure", "standardize in {file} must be as on the command line of"),
        ("data: digits\nsystem: vae", "Unknown key 'system' in {file}. Did you mean 'systems'?"),
        ("data: digits\nsystems: vae\nfit: [3]", "fit in {file} must be lines NAME: VALUE"),
        ("data: digits\nsystems: [{vae: {latent: 2}}]", "must be names, or lines NAME: {{OPTION: VALUE}}"),
    ],
)
def test_files_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text, encoding="utf-8")
    assert message.format(file=file) in gae("sweep", file, "--out", tmp_path / "run", code=2)
    assert not (tmp_path / "run").exists()


def test_options_of_systems_have_columns_of_their_own() -> None:
    measured = {"data", "system", "seed", "trainings", "failed", "epochs", "error", *study.METRICS}
    assert not measured & {option for system in SYSTEMS for option in defaults(system)}


def test_options_of_fit_are_those_of_the_command() -> None:
    shown = gae("fit", "--help")
    missing = [name for name in vars(TrainingOptions()) if f"--{name.replace('_', '-')}" not in shown]
    assert missing == ["tol"]  # closed-form learning alone; in Python and in sweeps


def test_seeds_on_the_command_line_win(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweep, "_trained", lambda self, cell: {"epochs": 1, "test_loss": float(cell.seed)})
    results = json.loads(gae("sweep", grid, "--seeds", 2, "--out", tmp_path / "run", "--json"))
    assert {row["seed"] for row in results["rows"]} == {0, 1} and len(results["rows"]) == 6
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))["seeds"] == 2
    assert load(yaml.safe_load(grid.read_text(encoding="utf-8"))["data"]).hash in results["data"].values()
