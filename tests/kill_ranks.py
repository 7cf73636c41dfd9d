"""Kills one of two processes that train together, at random moments: the other must end soon, with an error.

    python tests/kill_ranks.py [--kills 20] [--limit 60] [--launcher fabric|torchrun] [--seed 0]

Not part of the test suite, since every attempt starts two interpreters. Half of the moments lie in the start (imports,
the meeting of the processes), half after the first checkpoint. Needs Linux.
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
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ["gae.cli", "fit", "vae", "digits", "--epochs", "1000000", "--batch-size", "500", "--quiet"]
START = 300.0  # seconds within which the processes start and write a checkpoint


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


def attempt(launcher: str, moments: random.Random, limit: float, early: bool) -> str:
    """Starts two processes, kills one, and says how the other ended; raises AssertionError if it goes on."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m"]
        if launcher == "torchrun":
            command += ["torch.distributed.run", "--nproc-per-node", "2", "-m"]
        command += [*COMMAND, "--out", f"{folder}/run"]
        if launcher == "fabric":
            command += ["--devices", "2"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        main = subprocess.Popen(command, stdout=said, stderr=said, env=environment, cwd=folder, start_new_session=True)
        try:
            outcome = kill_one(main, launcher, moments, limit, None if early else Path(folder, "run"))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(main.pid, signal.SIGKILL)
            main.wait()
        said.seek(0)
        words = [line.strip() for line in said if "process" in line.lower()]
        return f"{outcome}; {words[-1][:160] if words else ''}"


def kill_one(
    main: "subprocess.Popen[bytes]", launcher: str, moments: random.Random, limit: float, run: Path | None
) -> str:
    """Kills one of two processes, after a checkpoint of the run if it is given, and waits for the end of all."""
    workers = 2 if launcher == "torchrun" else 1
    assert wait_for(lambda: len(children(main.pid)) >= workers, START), "the second process did not start"
    started = time.monotonic()
    assert run is None or wait_for(lambda: any(run.glob("checkpoint-*")), START), "no checkpoint was written"
    time.sleep(moments.uniform(0, 6 if run is None else 2))
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
    parser.add_argument("--launcher", choices=("fabric", "torchrun"), default="fabric")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    for i in range(options.kills):
        print(i + 1, attempt(options.launcher, moments, options.limit, early=i % 2 == 0), flush=True)


if __name__ == "__main__":
    main()
