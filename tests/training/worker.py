"""A process that imports once and then forks others, each of which trains: test_resume.py sends it lines of JSON.

    python worker.py FOLDER  # for what it trains itself, so that whatever training imports is there before it forks

Answers each line by a list of exit codes.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import offset  # noqa: F401 (moves every seed)
import torch
from courses import LEARNERS, ROWS, UNEVEN, course, measured, rows, sweep
from lightning_fabric import Fabric
from safetensors.torch import save_file
from typer.testing import CliRunner

from gae.cli.main import app
from gae.studies.jobs import ResumableJob
from gae.training import launch
from gae.training.devices import single
from gae.training.group import agreed, claimed, share_out
from gae.training.processes import ending_together


def countdown(left: int) -> Callable[[], None]:
    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def die_before(operations: int, folder: str) -> None:
    counted, count = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}, countdown(operations)

    def hook(event: str, args: Any) -> None:
        if event in counted and (folder in str(args[0]) or event in ("os.remove", "os.rmdir")):
            count()

    sys.addaudithook(hook)


def die_before_call(calls: int) -> None:
    count = countdown(calls)
    sys.setprofile(lambda frame, event, argument: count() if event in ("call", "c_call") else None)


def attempt(name: str, folder: str, operations: int, calls: int) -> None:
    """Kills itself before so many file operations or function calls (0: never).

    Not after some time, so that it dies at the same point on any machine.
    """
    if operations:
        die_before(operations, folder)
    if calls:
        die_before_call(calls)
    course(name, folder, resume=True, checkpoint_every=1)


def joined(rank: int, port: int) -> Fabric:
    """One of two processes as Fabric's launcher starts them, in their group."""
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return launch(precision=64, devices=2)  # digits to spare: sums are added in another order


def share(folder: str, rank: int, ports: list[int]) -> None:
    """One of two processes that work together; the first one writes what they found."""
    with ending_together():
        fabric = joined(rank, ports[0])
        for name in LEARNERS:
            for epochs in (2, 4):  # the second continues the first
                model, history = course(name, f"{folder}/{name}", epochs, resume=True, fabric=fabric, **UNEVEN)
            found = {**model.state_dict(), "losses": torch.tensor([row.train_loss for row in history.rows])}
            if fabric.is_global_zero:
                save_file(found, f"{folder}/{name}.safetensors")
        course("adam", f"{folder}/one-then-two", resume=True, fabric=fabric, **UNEVEN)
        course("adam", f"{folder}/two-then-one", 2, fabric=fabric, **UNEVEN)
        save_file(measured(fabric), f"{folder}/measured-{rank}.safetensors")
        try:
            agreed(fabric, lambda: Path(folder, "missing").read_text())
        except FileNotFoundError as error:
            assert "missing" in str(error)
        else:
            raise AssertionError("the first process's error was lost")
        shared_job(fabric, folder)
    for failing, port in enumerate(ports[1:3]):
        told(rank, failing, port)
    command("fit", "ppca", "circles", "--epochs", "3", "--out", f"{folder}/run", rank=rank, port=ports[3])
    os.chdir(folder)
    for arguments, port in zip([*rows("run", "two"), sweep("two")], ports[4:], strict=True):
        command(*arguments, rank=rank, port=port)


def shared_job(fabric: Fabric, folder: str) -> None:
    """Each process does every other part of a job, and both can read all results."""
    job = claimed(fabric, lambda again: ResumableJob(Path(folder, "job"), {"parts": 5}, again, False), False)
    phases = [partial(job.phase, f"part {i}", lambda: fabric.global_rank) for i in range(5)]
    share_out(fabric, phases)
    assert [phase() for phase in phases] == [0, 1, 0, 1, 0]
    try:
        claimed(fabric, lambda again: ResumableJob(Path(folder, "job"), {"parts": 6}, again, False), True)
    except ValueError as error:
        assert "parts was 5, now 6" in str(error)
    else:
        raise AssertionError("a job of another configuration was continued")


def told(rank: int, failing: int, port: int) -> None:
    """One process raises, and the other, which waits for it, raises its error."""
    try:
        with ending_together():
            fabric = joined(rank, port)
            if rank == failing:
                raise ValueError("the number 5 is missing")
            fabric.barrier()
    except (ValueError, ConnectionError) as error:
        assert isinstance(error, ValueError) == (rank == failing)
        assert "the number 5 is missing" in str(error)
        assert error.__notes__ == [f"[process {rank} of 2, from 0]"]
        assert rank == failing or f"Process {failing} of 2, from 0, ended" in str(error)
    else:
        raise AssertionError("no error")
    assert not torch.distributed.is_initialized()


def command(*arguments: str, rank: int, port: int) -> None:
    """Runs ``gae`` in both processes; only the first may print."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    result = CliRunner().invoke(app, [*arguments, "--devices", "2"])
    assert result.exit_code == 0, result.output
    assert bool(result.stdout) == (rank == 0)


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def main() -> None:
    torch.set_num_threads(1)
    for name in LEARNERS:
        course(name, Path(sys.argv[1], name), epochs=1)
    measured(single("cpu"))
    print("ready", flush=True)
    for line in sys.stdin:
        task, *arguments = json.loads(line)
        if task == "attempt":
            works = [partial(attempt, *arguments)]
        else:
            servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(5 + len(ROWS))]
            ports = [server.getsockname()[1] for server in servers]
            for server in servers:
                server.close()
            works = [partial(share, *arguments, rank, ports) for rank in range(2)]
        children = [forked(work) for work in works]
        print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)


if __name__ == "__main__":
    main()
