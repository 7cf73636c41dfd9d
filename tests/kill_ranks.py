"""Kills one of two processes that work together, at random moments: the other must end soon, with an error.

    python tests/kill_ranks.py [--kills 20] [--limit 60] [--seed 0]

The kills take turns over `gae fit`, `gae score` and `gae sweep`, and over Fabric's launcher and torchrun; half of the
moments lie in the start (imports, the meeting of the processes), half at work. Then the command is given once more,
with `--resume` where it has it, a sweep to one process or two, and must write what it writes undisturbed. Not part of
the test suite, since every attempt starts several interpreters. Needs Linux.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice, product
from pathlib import Path

import pandas as pd
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
START = 300.0  # seconds within which the processes start and are at work
SLACK = 1e-6  # between sums of one process and of two
MODEL = ["fit", "vae", "digits", "--epochs", "1", "--out", "model"]
LONG = ("--epochs", "300", "--batch-size", "500")
GRID = "data: digits\nsystems: [vae, ppca]\noptions: {latent: [2, 4]}\nfit: {epochs: 40}\nseeds: 2\n"


@dataclass(frozen=True)
class Task:
    """A command that processes share, in a folder that has a model and grid.yaml.

    Attributes:
        command: of gae.
        is_at_work: whether it has begun to compute, from the folder and what it has said.
        results: what it writes into the folder.
        again: options with which it continues.
    """

    command: tuple[str, ...]
    is_at_work: Callable[[Path, str], bool]
    results: Callable[[Path], pd.DataFrame]
    again: tuple[str, ...] = ()


def parameters(folder: Path) -> pd.DataFrame:
    tensors = load_file(max(folder.glob("run/checkpoint-*")) / "tensors.safetensors")
    return pd.concat([pd.DataFrame({"value": tensors[name].astype(float).ravel()}) for name in sorted(tensors)])


def trainings(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "sweep" / "results.csv").drop(columns="seconds")


TASKS = {
    "fit": Task(
        ("fit", "vae", "digits", *LONG, "--precision", "64", "--quiet", "--out", "run"),  # in digits to spare
        lambda folder, _: any(folder.glob("run/checkpoint-*")),
        parameters,
        ("--resume",),
    ),
    "score": Task(
        ("score", "model", "digits", "--samples", "20000", "-o", "scores.csv"),
        lambda _, said: "[gae]" in said,
        lambda folder: pd.read_csv(folder / "scores.csv"),
    ),
    "sweep": Task(
        ("sweep", "grid.yaml", "--out", "sweep"),
        lambda folder, _: any(folder.glob("sweep/cells/*/checkpoint-*")),
        trainings,
        ("--resume",),
    ),
}


def gae(*command: str, launcher: str = "fabric", processes: int = 2) -> list[str]:
    """The command line that runs gae in several processes."""
    if launcher == "torchrun":
        together = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        return [sys.executable, *together, "-m", "gae.cli", *command]
    return [sys.executable, "-m", "gae.cli", *command, *(["--devices", str(processes)] if processes > 1 else [])]


def run(folder: Path, command: list[str]) -> None:
    done = subprocess.run(command, env=ENVIRONMENT, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed: {done.stderr[-2000:]}"


@contextlib.contextmanager
def prepared() -> Iterator[Path]:
    """A folder with what the commands need."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "grid.yaml").write_text(GRID, encoding="utf-8")
        run(folder, gae(*MODEL, processes=1))
        yield folder


@cache
def undisturbed(task: Task) -> pd.DataFrame:
    """The results of two processes that nothing kills."""
    with prepared() as folder:
        run(folder, gae(*task.command))
        return task.results(folder)


def children(process: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_for(condition: Callable[[], bool], limit: float) -> bool:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def attempt(task: Task, launcher: str, moments: random.Random, limit: float, early: bool) -> str:
    """Starts two processes, kills one, lets the command end undisturbed, and says how the group ended.

    Raises:
        AssertionError: if the other process goes on or says nothing, or the results differ in the end.
    """
    with prepared() as folder, (folder / "said").open("w") as said:
        command = gae(*task.command, launcher=launcher)
        main = subprocess.Popen(command, stdout=said, stderr=said, env=ENVIRONMENT, cwd=folder, start_new_session=True)
        try:
            outcome = kill_one(main, launcher, moments, limit, None if early else lambda: at_work(task, folder))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(main.pid, signal.SIGKILL)
            main.wait()
        words = [line.strip() for line in (folder / "said").read_text().splitlines() if "process" in line.lower()]
        assert words, "the group ended without a word"
        run(folder, gae(*task.command, *task.again, launcher=launcher, processes=moments.choice((1, 2))))
        pd.testing.assert_frame_equal(task.results(folder), undisturbed(task), rtol=SLACK, atol=SLACK)
        return f"{outcome}; {words[-1][:160]}"


def at_work(task: Task, folder: Path) -> bool:
    return task.is_at_work(folder, (folder / "said").read_text())


def kill_one(
    main: "subprocess.Popen[bytes]",
    launcher: str,
    moments: random.Random,
    limit: float,
    is_due: Callable[[], bool] | None,
) -> str:
    """Kills one of two processes, at work if a test for that is given, and waits for the end of all."""
    workers = 2 if launcher == "torchrun" else 1
    assert wait_for(lambda: len(children(main.pid)) >= workers, START), "the second process did not start"
    started = time.monotonic()
    assert is_due is None or wait_for(lambda: main.poll() is not None or is_due(), START), "nothing was done"
    assert main.poll() is None, "the group ended before a process was killed"
    time.sleep(moments.uniform(0, 6 if is_due is None else 2))
    waited = time.monotonic() - started
    own = children(main.pid)[:workers]
    ranks = own if launcher == "torchrun" else [main.pid, *own]
    rank = moments.randrange(2)
    os.kill(ranks[rank], signal.SIGKILL)
    killed = time.monotonic()
    gone = wait_for(lambda: main.poll() is not None and not any(map(is_alive, ranks)), limit)
    assert gone, f"rank {rank} was killed after {waited:.1f} s, and the group still ran {limit:.0f} s later"
    assert main.returncode != 0, "the group ended without an error"
    took = time.monotonic() - killed
    return f"rank {rank} after {waited:5.1f} s: all ended {took:4.1f} s later, code {main.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds within which the group must end")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    kinds = product(("fabric", "torchrun"), (True, False), TASKS)
    for i, (launcher, early, name) in enumerate(islice(cycle(kinds), options.kills), 1):
        print(i, name, launcher, attempt(TASKS[name], launcher, moments, options.limit, early), flush=True)


if __name__ == "__main__":
    main()
