"""Options --device, --precision, --devices and --nodes; test_resume.py runs commands in two processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import gae
from PIL import Image

from gae import load
from gae.analysis.rows import codes
from gae.cli import terminal
from gae.data import load as load_data
from gae.data.progress import counted
from gae.training import devices

pytestmark = pytest.mark.usefixtures("unchecked_types", "blank_figures")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices") / "run"
    gae("fit", "vae", "circles", "--epochs", 1, "--out", folder)
    return folder


def encoded(run: Path, out: Path, *options: Any) -> dict[str, np.ndarray]:
    gae("encode", run, "circles", "-o", out / "codes.npz", *options)
    with np.load(out / "codes.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    "command",
    [("fit", "vae", "circles"), ("encode", "{run}", "circles"), ("gap", "{run}", "circles"), ("compare", "circles")],
    ids=lambda command: command[0],
)
def test_a_device_that_is_absent(
    command: tuple[str, ...], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "available", lambda: ["cpu"])
    monkeypatch.chdir(tmp_path)
    said = gae(*(part.format(run=run) for part in command), "--device", "cuda", code=2)
    assert "There is no cuda device here" in said and "can use cpu. Give one of these, or auto." in said
    assert not any(tmp_path.iterdir())


def test_encoding_in_64_bits(run: Path, tmp_path: Path) -> None:
    arrays = encoded(run, tmp_path, "--precision", 64, "--device", "cpu", "--seed", 3)
    x = load_data("circles").rows("all").x
    torch.manual_seed(3)
    wanted = next(codes(load(run).double(), x.double()))
    assert arrays["z"].dtype == np.float64
    for name in ("z", "log_joint", "log_q"):
        np.testing.assert_array_equal(arrays[name][: len(wanted["z"])], wanted[name])


def test_encoding_in_16_bits(run: Path, tmp_path: Path) -> None:
    mixed, single = (encoded(run, tmp_path, "--precision", precision) for precision in ("bf16-mixed", 32))
    assert mixed["z"].dtype == mixed["log_joint"].dtype == np.float32
    error = np.linalg.norm(mixed["z"] - single["z"]) / np.linalg.norm(single["z"])
    assert 1e-5 < error < 0.03


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_gap_needs_digits(precision: str, run: Path, tmp_path: Path) -> None:
    said = gae("gap", run, "circles", "--out", tmp_path / "gap", "--precision", precision, code=2)
    assert f"--precision {precision} rounds their products to 16 bits. Use 64 or 32." in said
    assert not (tmp_path / "gap").exists()


def test_a_gap_in_32_bits(run: Path, tmp_path: Path) -> None:
    budget = ("-n", 4, "--samples", 50, "--draws", 8, "--steps", 20)
    values = []
    for precision in (64, 32):
        gae("gap", run, "circles", "--out", tmp_path / "gap", *budget, "--precision", precision)
        with np.load(tmp_path / "gap" / "gap.npz") as arrays:
            values.append(arrays["L[q]"])
    assert values[0].dtype == np.float64 and values[1].dtype == np.float32


def test_fit_in_64_bits(tmp_path: Path) -> None:
    said = gae("fit", "vae", "circles", "--epochs", 1, "--precision", 64, "--out", tmp_path / "run", "--json")
    assert next(load(tmp_path / "run").parameters()).dtype == torch.float64
    assert np.isfinite(json.loads(said)["test loss (nats)"])


@pytest.mark.slow
def test_compare_in_another_precision(tmp_path: Path) -> None:
    common = ("--quick", "--epochs", 1, "--json")
    engines = ("--engines", "amortised", "--precision", "bf16-mixed", "--out", tmp_path / "engines")
    results = json.loads(gae("compare", "circles", *engines, *common))
    assert results["configuration"]["precision"] == "bf16-mixed"
    systems = ("--systems", "pca,ae", "--precision", 64, "--out", tmp_path / "systems")
    results = json.loads(gae("compare", "circles", *systems, *common))
    assert [row["system"] for row in results["rows"]] == ["pca", "ae"] and not results["failed"]
    assert next(load(tmp_path / "systems" / "checkpoints" / "ae").parameters()).dtype == torch.float64


def test_a_photograph_in_another_precision(tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3).save(tmp_path / "photo.png")
    small = ("--steps", 3, "--channels", 2, "--scales", 1, "--preview", 0, "--device", "cpu", "--json")
    losses = {}
    for precision in ("32", "64", "bf16-mixed"):
        out = tmp_path / precision
        gae("dip", tmp_path / "photo.png", "--out", out, "--precision", precision, *small)
        summary = json.loads((out / "result.json").read_text())
        assert (summary["device"], summary["precision"]) == ("cpu", precision)
        losses[precision] = np.array(summary["loss"]).squeeze()
    assert np.allclose(losses["bf16-mixed"], losses["32"], rtol=0.1)
    assert not np.array_equal(losses["64"], losses["32"]) and not np.array_equal(losses["bf16-mixed"], losses["32"])


LAUNCHED: list[tuple[dict[str, str], tuple[Any, ...], str]] = [
    (
        {"WORLD_SIZE": "2"},
        (),
        "one of 2 processes that were launched together (WORLD_SIZE=2, as torchrun sets it), but neither LOCAL_RANK",
    ),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, (), "as mpirun sets it), but neither LOCAL_RANK"),
    (
        {"WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        ("--devices", 3),
        "3 devices on each of 1 nodes are 3 processes, but 4 were launched together",
    ),
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}, (), "srun does not say how many processes each node has"),
    ({"SLURM_NTASKS": "2"}, ("--devices", 2), "In a SLURM job, srun starts the processes"),
    (
        {"MASTER_ADDR": "node.invalid", "MASTER_PORT": "29500", "NODE_RANK": "1"},
        ("--nodes", 2),
        "The first node, 'node.invalid', has no address here",
    ),
    ({}, ("--devices", 2, "--device", "cuda:1"), "cuda:1 is a single device, and 2 processes are requested"),
    ({}, ("--devices", 2, "--device", "mps"), "2 mps devices are requested on each node, and this one has 1"),
]


@pytest.mark.parametrize("environment,options,said", LAUNCHED, ids=[said for _, _, said in LAUNCHED])
def test_groups_that_cannot_be_joined(
    environment: dict[str, str], options: tuple[Any, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "available", lambda: ["cuda", "mps", "cpu"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert said in gae("fit", "vae", "circles", "--out", tmp_path / "run", *options, code=2)
    assert not (tmp_path / "run").exists()


def test_only_the_first_process_of_a_group_shows_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a process is the first is known once the command has joined the group."""
    first = True
    monkeypatch.setattr(terminal, "is_first", lambda: first)

    @terminal.reported
    def command(*, devices: int | None) -> bool:
        nonlocal first
        first = False
        items = range(2)
        return counted(items, "rows") is items

    assert command(devices=None)
