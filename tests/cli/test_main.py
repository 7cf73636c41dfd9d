"""The ``gae`` command: output, files and error messages."""

import csv
import html
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
import torch
from command import gae
from conftest import figures_left_blank
from problems import tiny_matrix
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from typer.testing import CliRunner

from gae import __version__
from gae.cli import common, terminal
from gae.cli import main as cli
from gae.cli import systems as listing
from gae.cli.main import COMMANDS
from gae.data import Dataset, load
from gae.storage.packing import dump, verified
from gae.studies import engines
from gae.studies.engines import ENGINES
from gae.systems import SYSTEMS
from gae.training import fit as train

BESIDE = ("labels", "engine", "index", "split")
QUICK = ("--quiet", "--epochs", "2")


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """A smaller budget for the bounds of quick comparisons."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "QUICK_MATRIX", tiny_matrix())
        yield


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of small systems, by name."""
    folder = tmp_path_factory.mktemp("fitted")
    small = ("--option", "latent=2", "--option", "hidden=8,8")
    gae("fit", "vae", "digits", *QUICK, *small, "--out", folder / "vae")
    gae("fit", "gon", "digits", *QUICK, *small, "--out", folder / "gon")
    gae("fit", "llgae", "digits", *QUICK, "--option", "latent=2", "--option", "components=3", "--out", folder / "llgae")
    gae("fit", "pca", "digits", *QUICK, "--option", "latent=4", "--out", folder / "pca")
    gae("fit", "ppca", "digits", *QUICK, "--out", folder / "ppca")
    return folder


@pytest.fixture(scope="module")
def compared(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of a user's own file."""
    folder = tmp_path_factory.mktemp("compared")
    arrays = {"x_train": digits.train[:60], "x_test": digits.test[:20]}
    np.savez(folder / "mine.npz", **{name: array.numpy() for name, array in arrays.items()})
    options = ("--engines", "unrolled, amortised", "--epochs", "1", "--latent", "2", "--quick")
    with figures_left_blank():
        printed = gae("compare", folder / "mine.npz", *options, "--out", folder / "run")
    assert "Decoder trained by unrolled" in printed and "ppca" in printed and "report.html" in printed
    assert "On this decoder" in printed and "of one training" in printed
    return folder


def test_what_computes_nothing_needs_no_torch() -> None:
    commands = [[], ["--help"], ["--version"], ["fit", "--help"], ["systems"]]
    completion = {"_GAE_COMPLETE": "complete_bash", "COMP_WORDS": "gae fit va", "COMP_CWORD": "2"}
    code = f"""
import os, sys
from gae.cli.main import app, main
for words in {commands}:
    app(words, "gae", standalone_mode=False)
os.environ.update({completion})
sys.argv = ["gae"]
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert __version__ in done.stdout and "--epochs" in done.stdout and "sparse-coding" in done.stdout
    assert done.stdout.split()[-1].startswith("vae")  # the last completion
    loaded = set(done.stderr.split())
    assert {"typer", "gae.cli.main", "gae.systems.table"} <= loaded
    assert not {"torch", "pyro", "numpy", "sklearn", "matplotlib", "safetensors", "jinja2", "PIL"} & loaded


def test_the_console_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; from gae.cli.main import main; sys.argv[0] = 'gae'; main()"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and __version__ in done.stdout and not done.stderr
    monkeypatch.setattr(sys, "argv", ["gae", "fit", "magic", "digits"])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # to be put back
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert warnings.formatwarning("few data", UserWarning, "a.py", 3) == "Warning: few data\n"
    assert ended.value.code == 2 and "Valid systems: pca" in said.err and "Traceback" not in said.err and not said.out


def test_help_names_every_command() -> None:
    printed = gae("--help")
    assert all(command in printed for command in ("systems", "fit", "encode", "sample", "compare", "activate"))


def test_systems_are_those_of_the_table() -> None:
    rows = json.loads(gae("systems", "--json"))
    assert [row["system"] for row in rows] == list(SYSTEMS)
    assert {row["system"]: row["source"] for row in rows} == {name: row.source for name, row in SYSTEMS.items()}
    assert next(row for row in rows if row["system"] == "vae")["options"]["beta"] == 1.0
    printed = gae("systems")
    assert all(name in printed for name in SYSTEMS)


def test_fit_prints_the_error_of_sklearn(digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = gae("fit", "pca", "digits", "--option", "latent=3", *QUICK, "--out", out, "--json")
    found = json.loads(printed)
    train, test = digits.train.flatten(1).numpy(), digits.test.flatten(1).numpy()
    pca = PCA(3).fit(train)
    expected = ((pca.inverse_transform(pca.transform(test)) - test) ** 2).mean()
    assert found["test squared error per element"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert found["options"] == {"latent": 3} and found["data hash"] == digits.hash and found["checkpoint"] == str(out)


def test_text_is_fitted_and_sampled(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ada\nalan\ngrace\nemmy\n" * 20, encoding="utf-8")
    small = ("--option", "classes=12", "--option", "latent=2", "--option", "hidden=8")
    found = json.loads(
        gae("fit", "sequence-vae", tmp_path / "names.txt", *QUICK, *small, "--out", tmp_path / "run", "--json")
    )
    assert 0 <= found["test tokens restored"] <= 1 and "test squared error per element" not in found
    gae("sample", tmp_path / "run", "-n", 7, "-o", tmp_path / "drawn.txt")
    lines = (tmp_path / "drawn.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(lines) == 7 and set("".join(lines)) <= set("adlngrcemy\N{REPLACEMENT CHARACTER}")
    assert ".txt or .npz" in gae("sample", tmp_path / "run", "-o", tmp_path / "drawn.png", code=2)


@pytest.fixture(scope="module")
def on_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of lines over the letters a to e: a system, and an engine of a comparison."""
    folder = tmp_path_factory.mktemp("on_text")
    lines = ["abcde", "bdec", "edcba", "dab", "bd", "e"] * 4
    (folder / "known.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    small = ("--option", "latent=2", "--option", "hidden=8")
    gae("fit", "sequence-vae", folder / "known.txt", "--quiet", "--epochs", 1, *small, "--out", folder / "system")
    data = load(folder / "known.txt")
    configuration = engines.configure(data, ["amortised"], epochs=1, latent=2, hidden=(8,))
    model = engines.assemble(configuration, "amortised", *engines.initial(configuration, data.event_shape))
    described = engines.describe_engine(configuration, "amortised", data)
    train(model, data, epochs=1, out=folder / "engine", progress=False, describe=described)
    return folder


def test_classes_and_length_come_from_the_text(on_text: Path) -> None:
    model, name = common.read(on_text / "system")
    assert name == "sequence-vae" and model.preparation.vocabulary.classes == 7 and model.likelihood.event_shape == (6,)
    assert model.sample(50).max() <= 6


@pytest.mark.parametrize("kind", ["system", "engine"])
def test_codes_of_other_text_are_in_the_vocabulary_of_the_model(on_text: Path, tmp_path: Path, kind: str) -> None:
    """The code of a line does not depend on its file."""
    (tmp_path / "new.txt").write_text("bdec\n\nbd\n", encoding="utf-8")
    gae("encode", on_text / kind, on_text / "known.txt", "-o", tmp_path / "known.npz")
    gae("encode", on_text / kind, tmp_path / "new.txt", "-o", tmp_path / "new.npz")
    with np.load(tmp_path / "known.npz") as known, np.load(tmp_path / "new.npz") as new:
        np.testing.assert_allclose(new["z"], known["z"][[1, 4]], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(new["log_joint"], known["log_joint"][[1, 4]], rtol=1e-4, atol=1e-4)
        assert new["index"].tolist() == [0, 2] and known["index"].tolist() == list(range(24))
        assert np.abs(known["z"][1] - known["z"][4]).max() > 1e-3


@pytest.mark.slow
def test_text_is_reconstructed_as_text(tmp_path: Path) -> None:
    """A decoder that has learnt the one line that there is writes it, in each row of the file."""
    (tmp_path / "line.txt").write_text("bdec\n" * 40, encoding="utf-8")
    small = ("--option", "latent=2", "--option", "hidden=16", "--lr", 0.03, "--steps", 60, "--quiet")
    gae("fit", "sequence-vae", tmp_path / "line.txt", *small, "--out", tmp_path / "run")
    for name in ("again.csv", "again.npz"):
        gae("reconstruct", tmp_path / "run", tmp_path / "line.txt", "-o", tmp_path / name)
    with (tmp_path / "again.csv").open(encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file)] == ["bdec"] * 40
    with np.load(tmp_path / "again.npz") as again:
        assert again["text"].tolist() == ["bdec"] * 40 and again["x"].tolist() == [[2, 4, 5, 3, 1]] * 40


@pytest.mark.parametrize("kind", ["system", "engine"])
@pytest.mark.parametrize("command", ["encode", "explore", "gap"])
def test_every_command_reads_text_as_the_model_does(
    on_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for line, said in (("bxd", "line 2 ('bxd') has 'x' (U+0078) at column 2"), ("abcdea", "a line of 6 characters")):
        (tmp_path / "new.txt").write_text(f"bd\n{line}\nbd\n", encoding="utf-8")
        assert said in gae(command, on_text / kind, "new.txt", code=2)
    assert "was trained on text, but digits is not text" in gae(command, on_text / kind, "digits", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["new.txt"]


def test_text_checkpoints_without_a_vocabulary_are_refused(on_text: Path, tmp_path: Path) -> None:
    """Checkpoints in the formats of earlier versions."""
    newest = max((on_text / "system").glob("checkpoint-*"))
    old = shutil.copytree(newest, tmp_path / newest.name)
    document = verified(json.loads((old / "state.json").read_text(encoding="utf-8")))
    document["version"] = 2
    for fact in ("recipe", "unrecorded", "preparation"):
        del document["state"][fact]
    for fact in ("vocabulary", "binarization"):
        del document["state"]["describe"][fact]
    (old / "state.json").write_text(dump(document), encoding="utf-8")
    assert "has no vocabulary" in gae("encode", old, on_text / "known.txt", "-o", tmp_path / "x.npz", code=2)


def test_binarisation_and_range_are_those_of_the_model(digits: Dataset, tmp_path: Path) -> None:
    options = ("--option", "latent=2", "--option", "hidden=8", "--option", "head=bernoulli", "--binarize", "threshold")
    gae("fit", "vae", "digits", *QUICK, *options, "--out", tmp_path / "run")
    gae("encode", tmp_path / "run", "digits", "-o", tmp_path / "codes.npz")
    model, _ = common.read(tmp_path / "run")
    bits = torch.from_numpy((load_digits().images / 16 > 0.5).astype(np.float32))[:, None]
    with np.load(tmp_path / "codes.npz") as codes, torch.no_grad():
        np.testing.assert_allclose(codes["z"], model.encode(bits).point.numpy(), rtol=1e-4, atol=1e-5)
    np.save(tmp_path / "bytes.npy", digits.train[:50].numpy() * 255)
    for command, output in (("encode", "x.npz"), ("explore", "x.html"), ("gap", "x")):
        out = ("--out" if command == "gap" else "-o", tmp_path / output)
        said = gae(command, tmp_path / "run", "digits", "--binarize", "none", *out, code=2)
        assert "trained with binarization 'threshold', got 'none'" in said
        said = gae(command, tmp_path / "run", tmp_path / "bytes.npy", *out, code=2)
        assert "trained on values in [0, 1]" in said and "are in [0, 255]" in said
    assert not list(tmp_path.glob("x*"))


def test_codes_name_the_files_of_images(fitted: Path, tmp_path: Path) -> None:
    from PIL import Image

    images = (load_digits().images[:6] * 15).astype(np.uint8)
    (tmp_path / "pictures").mkdir()
    for n, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{5 - n}.png")
    gae("encode", fitted / "pca", tmp_path / "pictures", "-o", tmp_path / "codes.npz")
    model, _ = common.read(fitted / "pca")
    with np.load(tmp_path / "codes.npz") as codes, torch.no_grad():
        assert codes["files"].tolist() == [f"{n}.png" for n in range(6)]
        expected = model.encode(torch.from_numpy(images[::-1, None] / 255).float()).point
        np.testing.assert_allclose(codes["z"], expected.numpy(), atol=1e-4)


def test_fit_takes_options_of_every_type(tmp_path: Path) -> None:
    options = ("latent=2", "hidden=8,4", "beta=2", "analytic=false", "head=laplace", "samples=2")
    pairs = [part for option in options for part in ("--option", option)]
    more = ("--lr", "0.01", "--batch-size", "500", "--validation", "0.1", "--patience", "1", "--json")
    found = json.loads(gae("fit", "vae", "digits", *pairs, *QUICK, *more, "--out", tmp_path / "run"))
    assert found["options"] == {
        "latent": 2, "hidden": [8, 4], "beta": 2.0, "analytic": False, "head": "laplace", "samples": 2,
    }  # fmt: skip
    assert found["validation loss (nats)"] is not None and np.isfinite(found["test loss (nats)"])


def test_a_learning_rate_turns_closed_forms_off(tmp_path: Path) -> None:
    closed, gradient = (
        json.loads(gae("fit", "ppca", "digits", *QUICK, *more, "--out", tmp_path / str(len(more)), "--json"))
        for more in ((), ("--lr", "0.01"))
    )
    assert closed["training loss (nats)"] < gradient["training loss (nats)"] - 10


def test_fit_resumes(tmp_path: Path) -> None:
    options = ("--option", "latent=2", "--option", "hidden=8", "--quiet", "--json")
    whole = json.loads(gae("fit", "vae", "digits", *options, "--epochs", 2, "--out", tmp_path / "whole"))
    gae("fit", "vae", "digits", *options, "--epochs", 1, "--out", tmp_path / "parts")
    parts = json.loads(gae("fit", "vae", "digits", *options, "--epochs", 2, "--out", tmp_path / "parts", "--resume"))
    assert parts == {**whole, "checkpoint": str(tmp_path / "parts")}


def test_codes_are_in_the_order_of_the_data(fitted: Path, digits: Dataset, tmp_path: Path) -> None:
    gae("encode", fitted / "pca", "digits", "-o", tmp_path / "codes.npz")
    source = load_digits()
    expected = PCA(4).fit(digits.train.flatten(1).numpy()).transform(source.data / 16)
    with np.load(tmp_path / "codes.npz") as codes:
        assert np.abs(np.abs(codes["z"]) - np.abs(expected)).max() < 1e-3  # axes have no sign
        assert (codes["labels"] == source.target).all() and (codes["index"] == np.arange(1797)).all()
        test = codes["index"][codes["split"] == "test"]
        assert {tuple(row) for row in source.data[test] / 16} == {tuple(row) for row in digits.test.flatten(1).tolist()}
        every = codes["z"]
    for split in ("train", "test"):
        gae("encode", fitted / "pca", "digits", "-o", tmp_path / "part.npz", "--split", split)
        with np.load(tmp_path / "part.npz") as part:
            assert len(part["z"]) == {"train": 1437, "test": 360}[split] and set(part["split"]) == {split}
            assert (np.diff(part["index"]) > 0).all()
            np.testing.assert_allclose(part["z"], every[part["index"]], atol=1e-5)


def test_log_p_is_log_joint_minus_log_q_of_ppca(fitted: Path, digits: Dataset, tmp_path: Path) -> None:
    gae("encode", fitted / "ppca", "digits", "-o", tmp_path / "codes.npz", "--split", "test")
    model, _ = common.read(fitted / "ppca")
    with np.load(tmp_path / "codes.npz") as codes, torch.no_grad():
        evidence = model.likelihood.log_evidence(digits.rows("test").x).log_p
        assert np.allclose(codes["log_joint"] - codes["log_q"], evidence.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("system", "keys"),
    [
        ("vae", {"z", "log_joint", "log_q", *BESIDE}),
        ("gon", {"z", "log_joint", "status", *BESIDE}),
        ("llgae", {"z", "k", "log_joint", *BESIDE}),
    ],
)
def test_codes_hold_what_the_engine_has(fitted: Path, tmp_path: Path, system: str, keys: set[str]) -> None:
    shown = json.loads(gae("encode", fitted / system, "digits", "-o", tmp_path / "codes.npz", "--json"))
    with np.load(tmp_path / "codes.npz") as codes:
        assert set(codes) == keys
        assert shown["mean log_joint (nats)"] == pytest.approx(float(codes["log_joint"].mean()))
        assert all(len(codes[key]) == 1797 for key in keys - {"engine"})
        if system == "gon":
            assert set(codes["status"]) == {"max_steps"}
        if system == "llgae":
            assert set(codes["k"]) <= {0, 1, 2}
        first = codes["z"]
    gae("encode", fitted / system, "digits", "-o", tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as codes:
        assert (codes["z"] == first).all()


def test_samples(fitted: Path, tmp_path: Path) -> None:
    from PIL import Image

    gae("sample", fitted / "vae", "-n", 5, "-o", tmp_path / "one.npz")
    gae("sample", fitted / "vae", "-n", 5, "-o", tmp_path / "two.npz", "--seed", 1)
    gae("sample", fitted / "vae", "-n", 5, "-o", tmp_path / "mean.npz", "--mean")
    one, two, mean = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("one", "two", "mean"))
    assert one["x"].shape == (5, 1, 8, 8) and one["z"].shape == (5, 2)
    assert (one["z"] != two["z"]).all() and (one["z"] == mean["z"]).all()
    scale = (one["x"] - mean["x"]).std()  # the observation noise
    assert scale == pytest.approx(common.read(fitted / "vae")[0].likelihood.scale.item(), rel=0.2)
    gae("sample", fitted / "vae", "-o", tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert min(sheet.size) > 300


def test_a_flat_prior_has_no_samples(fitted: Path, tmp_path: Path) -> None:
    assert "flat prior is improper" in gae("sample", fitted / "pca", "-o", tmp_path / "x.png", code=2)


def test_compare_writes_all_of_it(compared: Path) -> None:
    results = json.loads((compared / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["configuration"]["engines"] == ["unrolled", "amortised"]
    assert results["data"]["name"] == "mine.npz" and str(compared) not in json.dumps(results)
    assert {path.name for path in (compared / "run").iterdir()} >= {"report.html", "figures", "checkpoints"}


@pytest.mark.usefixtures("blank_figures")
def test_compare_prints_the_stored_results(compared: Path) -> None:
    options = ("--engines", "unrolled,amortised", "--epochs", "1", "--latent", "2", "--quick", "--resume", "--json")
    printed = json.loads(gae("compare", compared / "mine.npz", *options, "--out", compared / "run"))
    stored = json.loads((compared / "run" / "results.json").read_text(encoding="utf-8"))
    assert printed["trainings"] == stored["trainings"]


def test_checkpoints_of_a_comparison_encode_and_sample(compared: Path, tmp_path: Path) -> None:
    for name in ("unrolled", "unrolled-full-encoder", "amortised"):
        checkpoint = compared / "run" / "checkpoints" / name
        gae("encode", checkpoint, compared / "mine.npz", "-o", tmp_path / "codes.npz")
        gae("sample", checkpoint, "-n", 2, "-o", tmp_path / "samples.npz")
        with np.load(tmp_path / "codes.npz") as codes:
            assert codes["z"].shape == (80, 2) and "labels" not in codes
            assert (codes["split"] == ["train"] * 60 + ["test"] * 20).all() and (codes["index"] == np.arange(80)).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "magic", "digits"], "Unknown system 'magic'. Valid systems: pca, ppca"),
        (["fit", "vae", "magic"], "Unknown data set 'magic'. Choose one of digits, mnist"),
        (["fit", "vae", "no/such/file.npy"], "No file no/such/file.npy"),
        (["fit", "vae", "digits", "--option", "width=3"], "vae has no option 'width'. Valid options: latent, hidden"),
        (["fit", "vae", "digits", "--option", "latent"], "An option is KEY=VALUE, got 'latent'"),
        (["fit", "vae", "digits", "--option", "latent=2.5"], "Option latent of vae must be a whole number, got '2.5'"),
        (["fit", "vae", "digits", "--option", "beta=x"], "Option beta of vae must be a number, got 'x'"),
        (["fit", "vae", "digits", "--option", "analytic=1"], "Option analytic of vae must be true or false, got '1'"),
        (["fit", "vae", "digits", "--option", "hidden=8,"], "Option hidden of vae must be whole numbers separated"),
        (["fit", "llgae", "digits", "--option", "steps=few"], "Option steps of llgae must be a whole number or none"),
        (["fit", "vae", "digits", "--option", "head=cauchy"], "Unknown head 'cauchy'. Valid heads: gaussian"),
        (["fit", "vae", "digits", "--option", "head=bernoulli"], "Bernoulli needs x in {0, 1}"),
        (["fit", "vae", "digits", "--binarize", "often"], "Unknown binarize 'often'. Choose one of none, threshold"),
        (["fit", "vae", "digits", "--epochs", "0"], "epochs must be"),
        (["fit", "vae", "digits", "--option", "latent=2", "--option", "latent=3"], "An option is given twice"),
        (["fit", "vae", "digits", "--option", "latent=1000000000000"], "Out of memory"),
        (["fit", "vae", "digits", "--lr", "0"], "--lr must be positive and finite, got 0.0"),
        (["fit", "vae", "digits", "--lr", "inf"], "--lr must be positive and finite, got inf"),
        (["fit", "vae", "digits", "--validation", "0.9999"], "would hold out 1437 of 1437 training samples"),
        (["encode", "nowhere", "digits"], "nowhere does not exist"),
        (["compare", "digits", "--engines", "magic"], "'magic'. Choose some of unrolled, detached, amortised"),
        (["compare", "digits", "--head", "cauchy"], "Unknown head 'cauchy'"),
        (["compare", "digits", "--latent", "99"], "latent must be between 1 and the 64 elements"),
    ],
)
def test_mistakes_are_named(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in gae(*arguments, code=2)
    assert not list(tmp_path.iterdir()), "something was written"


def test_wrong_outputs_and_splits(fitted: Path, tmp_path: Path) -> None:
    said = gae("encode", fitted / "vae", "digits", "-o", tmp_path / "codes.txt", code=2)
    assert "must end in .npz or .npy or .csv or .parquet" in said
    assert "must end in .png or .npz" in gae("sample", fitted / "vae", "-o", tmp_path / "samples.gif", code=2)
    said = gae("encode", fitted / "vae", "digits", "-o", tmp_path / "codes.npz", "--split", "dev", code=2)
    assert "Choose train, test or all" in said
    assert not list(tmp_path.iterdir())


def test_data_of_another_shape_are_refused(fitted: Path, tmp_path: Path) -> None:
    said = gae("encode", fitted / "vae", "circles", "-o", tmp_path / "codes.npz", code=2)
    assert "takes observations of shape (1, 8, 8), but those of circles have shape (2,)" in said


def test_foreign_and_damaged_checkpoints_are_refused(fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04 pickled")
    assert "never opens these" in gae("encode", tmp_path / "weights.pt", "digits", code=2)
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in gae("sample", tmp_path / "empty", code=2)
    newest = max((fitted / "vae").glob("checkpoint-*"))
    damaged = shutil.copytree(newest, tmp_path / newest.name)
    (damaged / "tensors.safetensors").write_bytes(b"short")
    assert "truncated or altered" in gae("sample", damaged, code=2)
    document = verified(json.loads((newest / "state.json").read_text(encoding="utf-8")))
    document["state"]["recipe"] = None
    (damaged / "state.json").write_text(dump(document), encoding="utf-8")
    shutil.copy(newest / "tensors.safetensors", damaged)
    assert "does not say which model it holds" in gae("sample", damaged, code=2)


def test_existing_folders_are_refused(fitted: Path, compared: Path) -> None:
    before = {path: path.stat().st_mtime_ns for folder in (fitted, compared) for path in folder.rglob("*")}
    assert "is not empty" in gae("fit", "vae", "digits", "--out", fitted / "vae", code=2)
    assert "exists" in gae("compare", "digits", "--out", compared / "run", code=2)
    assert "holds another comparison" in gae("compare", "digits", "--out", compared / "run", "--resume", code=2)
    assert before == {path: path.stat().st_mtime_ns for folder in (fitted, compared) for path in folder.rglob("*")}


def test_interruption_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gae.studies.compare.compare", interrupted)
    assert "Add --resume to continue" in gae("compare", "digits", "--out", tmp_path / "run", code=130)


def test_the_default_folder_is_named_after_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gae("fit", "kmeans", "circles", *QUICK)
    assert (tmp_path / "runs" / "kmeans-circles" / "metrics.csv").is_file()


def test_engines_of_the_help_exist() -> None:
    assert set(ENGINES) == {"unrolled", "detached", "amortised", "semi-amortised"}


ONE = ("--option", "latent=2", "--option", "hidden=4", *QUICK)
AWKWARD = "o[1] [red] :smile: 'q' \"p\" ü <b>&amp;"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and files with special characters of rich, HTML and the shell in their names; one test sample."""
    folder = tmp_path_factory.mktemp("single") / AWKWARD
    folder.mkdir()
    x = np.random.default_rng(0).random((30, 5)).astype("float32")
    np.savez(folder / f"{AWKWARD}.npz", x_train=x, x_test=x[:1])
    return folder


@pytest.mark.usefixtures("blank_figures")
def test_one_test_sample_in_a_folder_with_brackets(single: Path) -> None:
    """No result has a standard error, and names are printed verbatim."""
    data, run = single / f"{AWKWARD}.npz", single / "r[/bold]"
    printed = gae("fit", "vae", data, *ONE, "--out", run)
    error = next(line for line in printed.splitlines() if "test squared error" in line)
    assert "±" not in error and float(error.split()[-1]) > 0
    words = " ".join(printed.split())
    assert "r[/bold]" in words and f"{AWKWARD}.npz" in words
    assert "c[a].npz" in gae("encode", run, data, "-o", single / "c[a].npz") and (single / "c[a].npz").exists()
    assert "s[a].png" in gae("sample", run, "-n", 2, "-o", single / "s[a].png") and (single / "s[a].png").exists()
    out = single / "g[a]"
    assert "g[a]" in gae("gap", run, data, "--samples", 200, "--draws", 20, "--steps", 2, "--out", out)
    page, account = (out / "gap.html").read_text(encoding="utf-8"), json.loads((out / "gap.json").read_text("utf-8"))
    assert "nothing that can be told from zero" in account["answer"]  # one observation shows no spread
    assert account["worst"] == [{"sample": 0, "row": 30, "gap": account["results"]["inference gap"]["mean"]}]
    assert "<b>" not in page.split("<dl")[1].split("</dl>")[0] and "r[/bold]" in page
    assert "r[/bold]x does not exist" in gae("encode", f"{run}x", data, code=2)


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("kind", ["engines", "systems"])
def test_comparisons_with_one_test_sample(kind: str, single: Path) -> None:
    chosen = ("--engines", "amortised", "--latent", "2") if kind == "engines" else ("--systems", "vae,kmeans")
    out = single / f"{kind}[a]"
    printed = gae("compare", single / f"{AWKWARD}.npz", *chosen, "--epochs", 1, "--quick", "--out", out)
    assert (
        f"{kind}[a]" in printed and "kmeans" in printed and "±" not in printed.split("; ± s.e.")[0].split("mean ±")[0]
    )
    assert "collapsed" not in printed  # one observation has no variance
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<b>&amp;" not in page.split("<h2>")[0] and "&lt;b&gt;&amp;amp;" in page
    if kind == "engines":
        command = html.unescape(page.split("gae compare ")[-1]).split(" --engines")[0]
        assert shlex.split(command) == [f"{AWKWARD}.npz"]


def test_help_shows_every_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no default is broken by the end of a line
    shown = {name: " ".join(gae(name, "--help").split()) for name in ("fit", "compare", "sample", "activate", "dip")}
    assert (
        "runs/SYSTEM-DATA" in shown["fit"] and "runs/compare-DATA" in shown["compare"] and "(all)" in shown["compare"]
    )
    assert "samples.…" in shown["sample"] and "the encoder's output" in shown["activate"] and "runs/dip" in shown["dip"]


def test_help_has_every_word_of_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets too, which are no markup, and paragraphs that fill their lines."""
    monkeypatch.setenv("COLUMNS", "60")
    for command in COMMANDS:
        shown = gae(command.__name__, "--help")
        assert " ".join((command.__doc__ or "").split()) in " ".join(shown.split()), command.__name__
        text = shown.partition("╭")[0].partition("\n\n")[2]
        for line, after in pairwise(text.splitlines()):
            if line.strip() and after.strip():
                assert len(line.rstrip()) + len(after.split()[0]) >= 58, (line, after)


NOWHERE = [
    ("encode", "{vae}", "digits", "-o", "{file}/codes.npz"),
    ("encode", "{vae}", "digits", "-o", "{folder}.npz"),
    ("sample", "{vae}", "-o", "{file}/drawn.png"),
    ("explore", "{vae}", "digits", "-o", "{file}/page.html"),
    ("activate", "{vae}", "0", "-o", "{file}/unit.png"),
    ("gap", "{vae}", "digits", "--out", "{file}/gap"),
    ("notes", "D01", "--out", "{file}"),
    ("dip", "{image}", "--out", "{file}/dip"),
    ("fit", "vae", "digits", "--out", "{file}/run"),
    ("compare", "digits", "--out", "{file}/run"),
    ("compare", "digits", "--systems", "pca", "--out", "{file}/run"),
]


@pytest.mark.parametrize("arguments", NOWHERE, ids=lambda arguments: " ".join(arguments))
def test_outputs_are_checked_before_any_work(
    arguments: tuple[str, ...], fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("work began")

    places = {"vae": fitted / "vae", "file": tmp_path / "file", "image": tmp_path / "image.png"}
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "image.png")
    for work in ("analysis.rows.codes", "reports.explorer.explore", "analysis.activation.maximise",
                 "analysis.inference_gap.inference_gap", "ledger.notes.run", "analysis.restoration.restore_image",
                 "training.run.Run.train", "autoencoder.Autoencoder.decode"):  # fmt: skip
        monkeypatch.setattr(f"gae.{work}", never)
    said = gae(*(part.format(**places, folder=tmp_path / "folder") for part in arguments), code=2)
    assert "is a file" in said or "is a folder" in said or "Not a directory" in said


def test_test_data_are_checked_before_training(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((20, 5)).astype("float32")
    np.savez(tmp_path / "odd.npz", x_train=(x > 0.5).astype("float32"), x_test=x)
    options = ("--option", "head=bernoulli", "--out", tmp_path / "run")
    assert "In the test data: Bernoulli needs" in gae("fit", "vae", tmp_path / "odd.npz", *options, code=2)
    assert not (tmp_path / "run").exists()


def test_numbers_that_do_not_exist_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        "none": {"mean": None, "se": None, "reason": "2 of 3 values are not finite"},
        "one": {"mean": 2.5, "se": None},
        "two": {"mean": 2.5, "se": 0.5},
        "nan": float("nan"),
        "[red]": "[/red]",
    }
    terminal.print_results(rows, as_json=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed == "none – (2 of 3 values are not finite) one 2.5 two 2.5 ± 0.5 nan nan [red] [/red]"
    terminal.print_results({"loss": float("inf"), "each": [1.0, float("nan")]}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"loss": None, "each": [1.0, None]}


def test_processes_of_a_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By commands that cannot share their work; see test_processes.py for those that can."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    said = gae("systems", code=2)
    assert "one of 2 processes that were launched together (WORLD_SIZE=2, as torchrun sets it)" in said


def without_reader() -> TextIO:
    """A pipe whose other end is closed, as in `gae fit … | head -1` after the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def test_a_reader_that_leaves_is_no_error() -> None:
    """No traceback, at the end of the interpreter too, and the exit code of Python's documentation and of click."""
    code = "import sys; sys.argv[0] = 'gae'; from gae.cli.main import main; main()"
    with without_reader() as gone:
        command = [sys.executable, "-c", code, "--version"]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr and "Errno" not in done.stderr


def test_a_reader_that_leaves_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = without_reader()
    monkeypatch.setattr(sys, "stdout", gone)
    arguments = ["fit", "kmeans", "circles", "--epochs", "2", "--out", str(tmp_path / "run"), "--json"]
    monkeypatch.setattr(sys, "argv", ["gae", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    with suppress(BrokenPipeError):
        gone.close()
    assert ended.value.code == 1
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("stream", ["closed", "ascii"])
def test_standard_output_that_takes_no_text(stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams closed as by `>&-`, or with an encoding that lacks most printed characters."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", None if stream == "closed" else io.TextIOWrapper(written, encoding="ascii"))
    arguments = ["fit", "kmeans", "circles", *QUICK, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["gae", *arguments])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert stream == "closed" or rb" \xb1 " in written.getvalue()  # of mean ± standard error
    assert (tmp_path / "run" / "metrics.csv").exists()
    sys.stdout.close()


LONG = {
    "encode {ppca} digits -o {out}/codes.npz": "rows",
    "score {ppca} digits -o {out}/scores.csv": "log p(x)",
    "explore {gon} digits -n 3 --size 2 -o {out}/page.html": "steps of the ascent",
    "notes D01 --out {out}": "checks",
    "dip {out}/image.png --steps 2 --channels 4 --scales 1 --preview 0 --out {out}/dip": "ascent, at most",
    "sweep {out}/grid.yaml --out {out}/sweep": "trainings",
}


@pytest.mark.parametrize(("line", "shown"), LONG.items(), ids=[line.split()[0] for line in LONG])
def test_long_jobs_show_their_progress(
    line: str, shown: str, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lines of plain text where standard error is no terminal; here from the first second on."""
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    (tmp_path / "grid.yaml").write_text("data: circles\nsystems: [kmeans]\n", encoding="utf-8")
    monkeypatch.setattr("gae.data.progress.FIRST", 0.0)
    words = line.format(ppca=fitted / "ppca", gon=fitted / "gon", out=tmp_path).split()
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert f"[gae] {shown} " in result.stderr and not set(result.stderr) & set("\x1b\r")


def test_a_study_without_a_result_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("data: circles\nsystems: {kmeans: {components: 9999}}\n", encoding="utf-8")
    said = gae("sweep", tmp_path / "grid.yaml", "--out", tmp_path / "run", code=2)
    assert "Every training failed" in said and str(tmp_path / "run" / "report.html") in said


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (KeyError("x"), AttributeError("y"), ZeroDivisionError()):
        monkeypatch.setattr(listing, "table", lambda *args, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            gae("systems")
    for error, told in ((ValueError(), "ValueError"), (MemoryError(), "MemoryError"), (OSError(28, "full"), "full")):
        monkeypatch.setattr(listing, "table", lambda *args, error=error: (_ for _ in ()).throw(error))
        assert told in gae("systems", code=2)


@pytest.mark.parametrize("command", [["fit", "vae", "digits"], ["encode", "run", "digits"], ["gap", "run", "digits"]])
def test_seeds_out_of_range_are_refused_at_the_door(command: list[str]) -> None:
    for seed in (-1, 2**64):
        assert "Invalid value for '--seed'" in gae(*command, "--seed", seed, code=2)
