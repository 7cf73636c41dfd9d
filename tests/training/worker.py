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
from courses import UNEVEN, course
from lightning_fabric import Fabric
from safetensors.torch import save_file


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


def share(folder: str, rank: int, port: int) -> None:
    """One of two processes that train together; the first one writes what they found."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    for name in ("adam", "gmm"):
        for epochs in (2, 4):  # the second continues the first
            model, history = course(name, f"{folder}/{name}", epochs, resume=True, fabric=fabric, **UNEVEN)
        found = {**model.state_dict(), "losses": torch.tensor([row.train_loss for row in history.rows])}
        if fabric.is_global_zero:
            save_file(found, f"{folder}/{name}.safetensors")
    torch.distributed.destroy_process_group()


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
    for name in ("adam", "gmm"):
        course(name, Path(sys.argv[1], name), epochs=1)
    print("ready", flush=True)
    for line in sys.stdin:
        task, *arguments = json.loads(line)
        if task == "attempt":
            works = [partial(attempt, *arguments)]
        else:
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            works = [partial(share, *arguments, rank, port) for rank in range(2)]
        children = [forked(work) for work in works]
        print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)


if __name__ == "__main__":
    main()
