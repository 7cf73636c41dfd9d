"""Options of commands from YAML files, and the files that repeat commands."""

import json
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
import torch
import yaml
from command import gae

from gae.cli.main import COMMANDS
from gae.storage import checkpoint
from gae.studies.jobs import ResumableJob
from gae.training.learners import GradientLearner

SMALL = ["latent=2", "hidden=8,8"]


def written(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_file_has_the_values_of_a_command(tmp_path: Path) -> None:
    """The same command by options and by a file, which the run repeats: equal parameters and equal numbers."""
    options = ["--epochs", "1", "--batch-size", "500", "--lr", "0.001", "--seed", "3", "--quiet", "--json"]
    small = [text for option in SMALL for text in ("--option", option)]
    printed = json.loads(gae("fit", "vae", "digits", *options, *small, "--out", tmp_path / "a"))
    file = written(tmp_path / "mine.yaml", system="vae", data="digits", option=SMALL, epochs=1, lr=1e-3, seed=3)
    by_file = json.loads(gae("fit", "--config", file, *options[:-2], "--json", "--out", tmp_path / "b"))
    again = json.loads(gae("fit", "--config", tmp_path / "a" / "config.yaml", "--out", tmp_path / "c"))
    for results, name in ((by_file, "b"), (again, "c")):
        assert {**results, "checkpoint": ""} == {**printed, "checkpoint": ""}
        states = [checkpoint.load(tmp_path / folder).state["module"] for folder in ("a", name)]
        assert all(map(torch.equal, states[0].values(), states[1].values()))
    stored = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text(encoding="utf-8"))
    assert stored["option"] == SMALL and stored["batch-size"] == 500 and stored["lr"] == 1e-3 and stored["json"] is True


def test_a_run_that_was_stopped_has_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: object) -> None:
        raise KeyboardInterrupt

    command = ["fit", "vae", "circles", "--option", "latent=2", "--epochs", 1, "--batch-size", 1600, "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(GradientLearner, "step", stopped)
        gae(*command, "--out", tmp_path / "run", code=130)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    gae("fit", "--config", tmp_path / "run" / "config.yaml", "--resume")
    assert checkpoint.load(tmp_path / "run").state["config"]["callbacks"] is None  # as of `fit` in Python


@pytest.mark.parametrize(
    ("command", "phase"),
    [
        (("compare", "circles", "--engines", "amortised"), "curve amortised 1"),
        (("compare", "circles", "--systems", "ppca"), "ppca"),
        (("sweep", "grid.yaml"), "circles-ppca-seed=0"),
    ],
    ids=["compare", "systems", "sweep"],
)
def test_a_job_that_was_stopped_has_its_options(
    command: tuple[str, ...], phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written before its first phase, which begins again when the command is repeated."""

    def stopped(job: ResumableJob, name: str, *given: object) -> None:
        assert name.startswith(phase)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    written(tmp_path / "grid.yaml", data="circles", systems="ppca")
    monkeypatch.setattr(ResumableJob, "phase", stopped)
    quick = ("--quick", "--epochs", 1) if command[0] == "compare" else ("--seeds", 1)
    gae(*command, *quick, "--out", "run", code=130)
    stored = yaml.safe_load(Path("run/config.yaml").read_text(encoding="utf-8"))
    assert stored["out"] == "run" and command[1] in stored.values()
    gae(command[0], "--config", "run/config.yaml", "--resume", code=130)
    assert "run exists" in gae(command[0], "--config", "run/config.yaml", code=2)
    ResumableJob(tmp_path / "python", {}, False, False)
    assert not (tmp_path / "python" / "config.yaml").exists()


def test_the_command_line_wins(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", system="vae", data="digits", epochs=7, option=SMALL, quiet=True)
    shown = yaml.safe_load(gae("fit", "ae", "--config", file, "--epochs", 2, "--print-config"))
    assert shown == {
        "system": "ae",
        "data": "digits",
        "option": SMALL,
        "epochs": 2,
        "seed": 0,
        "binarize": "none",
        "missing": "refuse",
        "device": "cpu",
        "precision": "32",
        "quiet": True,
    }
    replaced = yaml.safe_load(gae("fit", "--config", file, "--option", "latent=3", "--print-config"))
    assert replaced["option"] == ["latent=3"]
    again = tmp_path / "again.yaml"
    again.write_text(gae("fit", "ae", "--config", file, "--epochs", 2, "--print-config"), encoding="utf-8")
    assert yaml.safe_load(gae("fit", "--config", again, "--print-config")) == shown


def test_numbers_are_read_as_on_the_command_line(tmp_path: Path) -> None:
    """YAML reads 1e-3 as text, and a command would read 2.5 epochs as 2."""
    (tmp_path / "a.yaml").write_text("system: vae\ndata: digits\nlr: 1e-3\npatience: null\n", encoding="utf-8")
    assert yaml.safe_load(gae("fit", "--config", tmp_path / "a.yaml", "--print-config"))["lr"] == 1e-3
    file = written(tmp_path / "b.yaml", system="vae", data="digits", epochs=2.5)
    assert "--epochs" in gae("fit", "--config", file, "--print-config", code=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "Unknown key 'epoch' in {file}. Did you mean 'epochs'? Valid keys: system, data, option, epochs"),
        ("batch_size: 3", "Did you mean 'batch-size'?"),
        ("resume: true", "Unknown key 'resume'"),
        ("epochs: 3\nepochs: 4", "gives 'epochs' twice"),
        ("option: {latent: 2}", "option in {file} must be a value as on the command line, or a list of them"),
        ("- vae", "must hold lines KEY: VALUE, got ['vae']"),
        ("", "must hold lines KEY: VALUE, got None"),
        ("a: [", "is not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_files_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8")
    assert message.format(file=file) in gae("fit", "vae", "digits", "--config", file, code=2)


def test_a_file_that_does_not_exist() -> None:
    assert "No such file" in gae("fit", "--config", "nowhere.yaml", code=2)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_command_takes_a_file(command: object) -> None:
    shown = gae(command.__name__, "--help")  # type: ignore[attr-defined]
    assert "--config" in shown and "--print-config" in shown


def test_lists_are_arguments_too(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", id=["D01", "D02"], seeds=2)
    shown = yaml.safe_load(gae("notes", "--config", file, "--print-config"))
    assert shown == {"id": ["D01", "D02"], "seed": 0, "seeds": 2, "out": "runs/notes"}


def test_one_value_of_an_option_that_is_repeatable(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", system="ppca", data="a.csv", drop="id", option="latent=2")
    shown = yaml.safe_load(gae("fit", "--config", file, "--print-config"))
    assert shown["drop"] == ["id"] and shown["option"] == ["latent=2"]
    assert yaml.safe_load(gae("notes", "--config", written(file, id="D01"), "--print-config"))["id"] == ["D01"]


def test_a_file_is_read_without_torch(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", data="digits", seed=4)
    code = f"import sys; from gae.cli.main import app; app(['compare', '--config', {str(file)!r}, '--print-config'], "
    code += "standalone_mode=False); assert 'yaml' in sys.modules; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert yaml.safe_load(done.stdout)["seed"] == 4


def test_a_page_repeats_an_option_for_each_of_its_values() -> None:
    from gae.cli.gap import gap
    from gae.cli.terminal import command_line

    values = {name: parameter.default for name, parameter in signature(gap).parameters.items()}
    words = command_line(gap, {**values, "checkpoint": "run", "trust": ["a:b", "c:d"], "crop": True, "size": 3})
    assert words == "gae gap run -n 3 --crop --trust a:b --trust c:d"
