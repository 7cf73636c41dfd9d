"""A run that was stopped, killed or distributed over processes gives the result of an uninterrupted one."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pandas as pd
import pytest
import torch
from command import gae
from conftest import file_limit
from courses import CASES, CLOSED, LEARNERS, ROWS, UNEVEN, X, adam, course, measured, momentum, noisy, rows, sweep
from own import images, written
from torch import Tensor

from gae import Autoencoder
from gae.storage import checkpoint
from gae.storage.packing import pack
from gae.systems import vae
from gae.training import History, restore
from gae.training.devices import single
from gae.training.learners import GradientLearner


def fingerprint(out: Path) -> tuple[str, dict[str, bytes]]:
    """The newest checkpoint without the durations."""
    state = checkpoint.load(out).state
    state["progress"]["seconds"] = 0.0
    for row in state["history"]["rows"]:
        row["seconds"] = 0.0
    tree, tensors = pack(state)
    return json.dumps(tree), {name: value.numpy().tobytes() for name, value in tensors.items()}


Courses = Callable[[str], tuple[Autoencoder, History, Path]]
Ends = Callable[[str, Path, Autoencoder], None]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Courses:
    """A course without any interruption, of as many threads as the test has, and its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @cache
    def trained(name: str, threads: int) -> tuple[Autoencoder, History, Path]:
        out = folder / f"{name}-{threads}"
        return *course(name, out), out

    return lambda name: trained(name, torch.get_num_threads())


@pytest.fixture
def one_thread() -> None:
    """As in the processes of worker.py: threads round their sums otherwise."""
    torch.set_num_threads(1)


@pytest.fixture
def assert_same_end(undisturbed: Courses) -> Ends:
    def check(name: str, out: Path, model: Autoencoder) -> None:
        wanted, history, folder = undisturbed(name)
        assert fingerprint(out) == fingerprint(folder)
        for key, value in wanted.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key
        metrics, others = ((path / "metrics.csv").read_text().splitlines() for path in (out, folder))
        assert [line.rpartition(",")[0] for line in metrics] == [line.rpartition(",")[0] for line in others]
        assert len(metrics) == len(history.rows) + 1

    return check


@pytest.mark.parametrize("name", CASES)
def test_stopped_after_an_epoch(name: str, tmp_path: Path, assert_same_end: Ends) -> None:
    course(name, tmp_path / "run", epochs=2)
    model, _ = course(name, tmp_path / "run", resume=True)
    assert_same_end(name, tmp_path / "run", model)


BY_GRADIENT = [name for name in CASES if name not in CLOSED]


# In the second epoch, one step after a checkpoint, and at a checkpoint in the first.
@pytest.mark.parametrize(
    ("name", "steps"), [*((name, 7) for name in BY_GRADIENT), *((name, 3) for name in ("vae", "planned"))]
)
def test_stopped_in_mid_epoch(
    name: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_end: Ends
) -> None:
    calls = [0]
    real = GradientLearner.step

    def step(*args: Any) -> float:
        calls[0] += 1
        if calls[0] > steps:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(GradientLearner, "step", step)
        with pytest.raises(KeyboardInterrupt):
            course(name, tmp_path / "run", checkpoint_every=3)
    model, _ = course(name, tmp_path / "run", resume=True, checkpoint_every=2)
    assert_same_end(name, tmp_path / "run", model)


def test_epochs_within_the_interval_have_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_end: Ends
) -> None:
    """A run that ends again and again saves its last epochs; one that is stopped between resumes from there."""
    days = {"checkpoint_interval": 1e6}
    course("vae", tmp_path / "run", epochs=2, **days)
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["checkpoint-00000008"]
    real, calls = GradientLearner.step, [0]

    def step(*args: Any) -> float:
        calls[0] += 1
        if calls[0] > 6:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(GradientLearner, "step", step)
        with pytest.raises(KeyboardInterrupt):
            course("vae", tmp_path / "run", resume=True, **days)
    assert len(checkpoint.checkpoints(tmp_path / "run")) == 1
    model, _ = course("vae", tmp_path / "run", resume=True, **days)
    assert_same_end("vae", tmp_path / "run", model)
    course("vae", tmp_path / "short", checkpoint_interval=1e-9)
    assert len(checkpoint.checkpoints(tmp_path / "short")) == 2


def test_damaged_newest_checkpoint(tmp_path: Path, assert_same_end: Ends) -> None:
    course("vae", tmp_path / "run", epochs=3)
    newest = checkpoint.checkpoints(tmp_path / "run")[-1] / checkpoint.TENSORS
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"Using checkpoint-00000008, since .*00000012 is damaged"):
        model, _ = course("vae", tmp_path / "run", resume=True)
    assert_same_end("vae", tmp_path / "run", model)


def test_damaged_values_of_the_newest_checkpoint(tmp_path: Path, undisturbed: Courses) -> None:
    """One altered digit of the learning rate, the epoch or a loss: the run resumes from the previous checkpoint."""
    course("vae", tmp_path / "run", epochs=3)
    newest = checkpoint.checkpoints(tmp_path / "run")[-1] / checkpoint.STATE
    text = newest.read_text()
    rates, epochs, losses = (re.findall(rf'"{name}": ([\d.]+)', text) for name in ("lr", "epoch", "train_loss"))
    assert rates and epochs and losses
    for name, value in (("lr", rates[-1]), ("epoch", epochs[-1]), ("train_loss", losses[0])):
        shutil.copytree(tmp_path / "run", tmp_path / name)
        file = tmp_path / name / newest.parent.name / checkpoint.STATE
        at = min(len(value) - 1, 4)  # later digits may be rounded to the same float
        digit = str((int(value[at]) + 1) % 10)
        file.write_text(text.replace(f'"{name}": {value}', f'"{name}": {value[:at]}{digit}{value[at + 1 :]}'))
        with pytest.warns(UserWarning, match=r"Using checkpoint-00000008, since .*00000012 is damaged"):
            course("vae", tmp_path / name, resume=True)
        assert fingerprint(tmp_path / name) == fingerprint(undisturbed("vae")[2])


def test_a_full_disk_costs_one_epoch(tmp_path: Path, assert_same_end: Ends) -> None:
    course("adam", tmp_path / "run", epochs=2)
    with (
        file_limit(1000),
        pytest.raises(OSError, match=r"The last good checkpoint is .*checkpoint-00000008\. Free disk space"),
    ):
        course("adam", tmp_path / "run", resume=True)
    model, _ = course("adam", tmp_path / "run", resume=True)
    assert_same_end("adam", tmp_path / "run", model)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    model, history = course("noisy", tmp_path, epochs=60)
    assert history.stopped_early
    before = fingerprint(tmp_path)
    again, same = course("noisy", tmp_path, epochs=80, resume=True)
    assert fingerprint(tmp_path) == before and same == history
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    loaded = noisy()
    assert restore(loaded, tmp_path).step == checkpoint.load(tmp_path).step
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_resume_without_a_checkpoint_begins(tmp_path: Path, assert_same_end: Ends) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    model, history = course("adam", tmp_path / "run", resume=True)
    assert len(history.rows) == 4
    assert_same_end("adam", tmp_path / "run", model)


DIFFERENT: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "config.seed was 0, now 1"),
    ({"batch_size": 8}, "config.batch_size was 16, now 8"),
    ({"clip": 1.0}, "config.learner.clip was None, now 1.0"),
    ({"optimizer": momentum}, "config.learner.optimizer was 'Adam', now 'SGD'"),
    ({"optimizer": partial(torch.optim.Adam, lr=0.1)}, "config.learner.groups.0.lr was 0.01, now 0.1"),
    ({"data": X + 1}, r"config.data was '\w+', now '\w+'"),
    ({"validation": 0.5}, "config.validation was None, now 0.5"),
    ({"validation": X[:9], "patience": 2}, r"config.validation was None, now '\w+'"),
    ({"describe": {"system": "vae"}}, r"describe.system was 'ae', now 'vae'"),
]


@pytest.mark.parametrize("changes,message", DIFFERENT, ids=[message for _, message in DIFFERENT])
def test_resuming_with_another_configuration(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    course("adam", tmp_path, epochs=1, describe={"system": "ae"})
    before = fingerprint(tmp_path)
    with pytest.raises(
        ValueError, match=rf"another configuration: {message}. Use the same configuration, or another `out` folder"
    ):
        course("adam", tmp_path, resume=True, **{"describe": {"system": "ae"}, **changes})
    assert fingerprint(tmp_path) == before


def test_resuming_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    course("vae", tmp_path, epochs=1)
    monkeypatch.setitem(CASES, "vae", (lambda: vae((5,), 2, (9,), samples=2, analytic=False), {"optimizer": adam}))
    with pytest.raises(ValueError, match=r"(?s)does not fit Autoencoder.*decoder.0.weight: \(8, 2\).*\(9, 2\)"):
        course("vae", tmp_path, resume=True)
    monkeypatch.setitem(CASES, "vae", (lambda: vae((5,), 2, (8,), samples=2, beta=2.0), {"optimizer": adam}))
    with pytest.raises(ValueError, match=r"config.objective options.beta was '1.0', now '2.0'"):
        course("vae", tmp_path, resume=True)


def test_restore_refuses_what_fit_did_not_write(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"weight": torch.ones(1)})
    with pytest.raises(ValueError, match="was not written by `fit`"):
        restore(noisy(), tmp_path)


class Worker:
    """The process of worker.py."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, *task: Any) -> list[int]:
        """Exit codes of the processes that it forked for the task."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return list(json.loads(self.read()))

    def attempt(self, name: str, out: Path, operations: int = 0, calls: int = 0) -> bool:
        """Whether it finished before it was killed."""
        (code,) = self.ask("attempt", name, str(out), operations, calls)
        assert code in (0, -signal.SIGKILL)
        return code == 0


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked, which this system cannot do")
    here, tests, root = Path(__file__).resolve().parents[:3]
    pipe, paths = subprocess.PIPE, {"PYTHONPATH": os.pathsep.join(map(str, (root, tests)))}
    command = [sys.executable, here / "worker.py", tmp_path_factory.mktemp("worker")]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | paths) as process:
        started = Worker(process)
        assert started.read() == "ready"
        yield started
        assert process.stdin is not None
        process.stdin.close()


def reached(out: Path) -> int:
    """The step of the newest checkpoint, which must be good; a warning would fail the test."""
    return checkpoint.load(out).step if checkpoint.checkpoints(out) else 0


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_killed_before_any_file_operation(worker: Worker, tmp_path: Path, assert_same_end: Ends) -> None:
    """Each attempt is killed one operation later than the previous one, so that every point of a write is covered."""
    out, steps, operations = tmp_path / "run", [0], 1
    while not worker.attempt("vae", out, operations=operations):
        steps.append(reached(out))
        operations += 1
    assert steps == sorted(steps) and steps.count(0) > 3 and operations > 15
    model, _ = course("vae", out, resume=True)
    assert_same_end("vae", out, model)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_killed_at_random_moments(worker: Worker, tmp_path: Path, assert_same_end: Ends) -> None:
    out, moments, killed = tmp_path / "run", random.Random(0), 0
    for _ in range(8):
        killed += not worker.attempt("noisy", out, calls=moments.randrange(1000, 60_000))
        reached(out)
    assert killed > 1, "no run was long enough to be killed"
    model, _ = course("noisy", out, resume=True)
    assert_same_end("noisy", out, model)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo, its CPU processes' link")
def test_two_processes_equal_one(worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training by gradients, in second order and in closed form, encoding, gaps, and commands on runs and decoders."""
    from safetensors.torch import load_file

    written(tmp_path, monkeypatch)
    np.save("images.npy", images(1200))
    Path("grid.yaml").write_text("data: circles\nsystems: {ppca: {latent: [1, 2, 3]}}\n", encoding="utf-8")

    with pytest.warns(UserWarning, match="goes on with a number of processes of 1, after 2") as warned:
        course("adam", tmp_path / "one-then-two", 2, precision=64, **UNEVEN)
        assert worker.ask("share", str(tmp_path)) == [0, 0]
        assert not warned.list
        models = {"two-then-one": course("adam", tmp_path / "two-then-one", resume=True, precision=64, **UNEVEN)[0]}
    alone = {name: course(name, tmp_path / "alone" / name, precision=64, **UNEVEN) for name in LEARNERS}
    for name, (model, history) in alone.items():
        found: dict[str, Tensor] = load_file(tmp_path / f"{name}.safetensors")
        losses = torch.tensor([row.train_loss for row in history.rows])
        torch.testing.assert_close(found.pop("losses"), losses, rtol=1e-6, atol=0)
        assert_parameters(found, model)
    models["one-then-two"] = restored("adam", tmp_path / "one-then-two")
    for model in models.values():
        assert_parameters(dict(model.state_dict()), alone["adam"][0])
    assert_same_measurements(tmp_path)
    gae("fit", "ppca", "circles", "--epochs", 3, "--out", tmp_path / "alone" / "run")
    for arguments in rows("alone/run", "one"):
        gae(*arguments)
    for name in ROWS:
        one, two = (columns(tmp_path / folder / name) for folder in ("one", "two"))
        assert set(one) == set(two)
        for title, column in one.items():
            assert column.ndim == 0 or len(column) > 1000, "one block, for one of the processes"
            if column.dtype.kind == "f":
                np.testing.assert_allclose(two[title], column, rtol=1e-6, atol=1e-6)
            else:
                assert np.array_equal(two[title], column)
    assert_same_sweep()


def assert_same_measurements(folder: Path) -> None:
    from safetensors.torch import load_file

    wanted = measured(single("cpu"))
    for rank in range(2):
        shared = load_file(folder / f"measured-{rank}.safetensors")
        assert shared.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(shared[key], value, rtol=1e-6, atol=1e-6, msg=key)


def assert_same_sweep() -> None:
    """The sweep of two processes in the working directory has the rows of one by a single process."""
    gae(*sweep("one"))
    one, two = (pd.read_csv(f"{folder}/sweep/results.csv").drop(columns="seconds") for folder in ("one", "two"))
    assert one["error"].isna().tolist() == [True, True, False]
    pd.testing.assert_frame_equal(two, one, rtol=1e-6)


def columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a file of rows."""
    if path.suffix == ".csv":
        return {str(name): column.to_numpy() for name, column in pandas.read_csv(path).items()}
    arrays = np.load(path)
    return {"x": arrays} if path.suffix == ".npy" else dict(arrays)


def assert_parameters(found: dict[str, Tensor], model: Autoencoder) -> None:
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6, msg=key)


def restored(name: str, folder: Path) -> Autoencoder:
    model = CASES[name][0]().double()
    restore(model, folder)
    return model
