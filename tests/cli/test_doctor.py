"""``gae doctor``, ``gae`` alone, and completion in the shell."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from command import gae
from typer.testing import CliRunner

from gae.adapters.decoders import LEARNS
from gae.analysis import engines
from gae.analysis.rows import CRITERIA
from gae.cli import completion, doctor
from gae.cli.main import FIRST, app
from gae.data import BINARIZATIONS, NAMES
from gae.data.dataset import SPLITS
from gae.data.loading import MISSING
from gae.data.photographs import DEPTHS
from gae.likelihood import HEADS
from gae.studies.engines import ENGINES, FLOWS
from gae.systems import SYSTEMS, ppca
from gae.systems.image_prior import TASKS
from gae.training import fit
from gae.training.schedules import SCHEDULES


def idx_labels(folder: Path, first: list[int], missing: int = 0) -> None:
    """Label files of a data set whose images are empty files."""
    folder.mkdir()
    for stem in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")[missing:]:
        (folder / stem).touch()
    labels = bytes(first) + bytes(60000 - len(first))
    (folder / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + (60000).to_bytes(4, "big") + labels)


def examined(code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == code, result.output
    return dict(json.loads(result.stdout))


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data set on this machine, and few packages to import."""
    monkeypatch.setattr("gae.data.readers.DEBIAN", tmp_path / "none")
    monkeypatch.delenv("GAE_DATA", raising=False)
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=2.4", 'faiss-cpu>=1.8; extra == "faiss"', "gae[x]"])
    return tmp_path


def test_doctor_finds_this_installation_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAE_DATA", raising=False)
    report = examined()
    assert report["broken"] == []
    found, built = report["packages"]["torch"], torch.__version__  # the name of a build stands in one of them, or both
    assert found.partition("+")[0] == built.partition("+")[0]
    assert {"numpy", "pyro-ppl", "scikit-learn", "typer"} <= report["packages"].keys()
    assert {"flows", "tables"} <= report["extras"].keys() and not {"dev", "test"} & report["extras"].keys()
    assert f"{torch.get_num_threads()} threads" in report["devices"]["cpu"]
    assert {"digits", "circles"} <= set(report["data"]["bundled"].split(", "))


def test_doctor_is_printed_for_people(nowhere: Path) -> None:
    printed = " ".join(gae("doctor").split())
    assert "pip install 'gae[faiss]'" in printed and "Everything that gae needs works." in printed


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("no-such-package>=1.0", "it is not installed. Run pip install 'no-such-package>=1.0'"),
        ("numpy>=99.1", "gae needs version 99.1 or newer"),
    ],
)
def test_doctor_names_the_package_that_is_broken(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, line: str, problem: str
) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=2.4", line])
    (broken,) = examined(code=1)["broken"]
    assert problem in broken


def test_doctor_works_without_torch(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is there and cannot be imported, as with a missing library of the system."""
    monkeypatch.setitem(sys.modules, "torch", None)
    report = examined(code=1)
    assert any("torch: it cannot be imported (ModuleNotFoundError" in line for line in report["broken"])
    assert "cannot be told" in report["devices"]["devices"] and report["folders"]["results"]


def test_doctor_names_the_folders_of_data(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idx_labels(nowhere / "fashion-mnist", [9, 0, 0, 3, 0])
    idx_labels(nowhere / "mnist", [5, 0, 4, 1, 9], missing=1)
    monkeypatch.setenv("GAE_DATA", str(nowhere))
    report = examined(code=1)
    assert report["data"]["fashion-mnist"] == str(nowhere / "fashion-mnist")
    assert report["broken"] == ["mnist: it has no train-images-idx3-ubyte. Add them, or leave the folder out"]
    (nowhere / "mnist").rename(nowhere / "mnist-old")
    monkeypatch.setenv("GAE_DATA", str(nowhere / "fashion-mnist"))
    report = examined()
    assert "are those of fashion-mnist" in report["problems"]["mnist"]
    monkeypatch.setenv("GAE_DATA", str(nowhere / "typo"))
    assert all("which is not a folder" in line for line in examined(code=1)["broken"])


def test_doctor_names_a_folder_that_cannot_be_written(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere / "file").touch()
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(nowhere / "file"))
    report = examined()
    assert "is a file" in report["problems"]["downloads"] and report["broken"] == []


def test_gae_alone_shows_five_commands_that_work() -> None:
    assert gae() == FIRST + "\n" and max(map(len, FIRST.splitlines())) <= 84
    lines = [line.strip().partition("  ")[0].split() for line in FIRST.splitlines() if line.startswith("  gae ")]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for _, name, *words in lines:
        commands[name].make_context(name, words)  # raises an error for words that the command does not take
    assert len(lines) == 5


CHOICES = {
    completion.BINARIZATIONS: BINARIZATIONS,
    completion.MISSING: MISSING,
    completion.SPLITS: (*SPLITS, "all"),
    completion.SCHEDULES: SCHEDULES,
    completion.HEADS: HEADS,
    completion.ENGINES: engines.ENGINES,
    completion.LEARNS: LEARNS,
    completion.COMPARED: ENGINES,
    completion.FLOWS: FLOWS,
    completion.SCORES: CRITERIA,
    completion.TASKS: TASKS,
    completion.FORMATS: DEPTHS,
}


def test_choices_are_those_of_the_library() -> None:
    assert [set(choices) for choices in CHOICES] == [set(valid) for valid in CHOICES.values()]
    for keep in completion.KEEP:
        fit(ppca((3,), latent=1), torch.randn(8, 3), epochs=1, validation=0.5, keep=keep, progress=False)


def completed(line: str) -> list[str]:
    """The words with which bash would complete a line."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    variables = {"_GAE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(app, [], prog_name="gae", env=variables)
    assert result.exit_code == 0, result.output
    return result.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gae do", ["doctor"]),
        ("gae fit v", [name for name in SYSTEMS if name.startswith("v")]),
        ("gae fit vae ", list(NAMES)),
        ("gae fit vae photos/", []),  # the shell then completes paths
        ("gae fit vae digits --binarize t", ["threshold"]),
        ("gae fit vae digits --bin", ["--binarize"]),
        ("gae encode run fa", ["fashion-mnist"]),
        ("gae encode run digits --engine g", ["gauss-newton"]),
        ("gae compare digits --systems pca,k", ["pca,kmeans", "pca,knn"]),
        ("gae score run digits --by evidence,", ["evidence,reconstruction", "evidence,gap"]),
        ("gae dip photo.png --task s", ["superresolve"]),
        ("gae systems pp", ["ppca"]),
    ],
)
def test_the_shell_completes_names(line: str, words: list[str]) -> None:
    assert completed(line) == words


def test_completion_can_be_set_up() -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert "--install-completion" in result.stdout and "--show-completion" in result.stdout
