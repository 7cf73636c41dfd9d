"""Detection of processes started together by a launcher, such as torchrun, and their common end."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIZES = {  # environment variables in which launchers set the number of processes
    "WORLD_SIZE": "torchrun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
}
FAILURE = "gae/failure"  # key of the group's store under which the first process to fail says why
HEARD = "gae/heard"  # ... and that counts the processes that have read it
LAUNCHER = "GAE_LAUNCHER_PID"  # environment variable: the process that started the others of its node
PATIENCE = 5.0  # seconds that the process which keeps the store waits for them


def refuse_many_processes(what: str, remedy: str = "Start it once; from Python, give `fit` a Fabric.") -> None:
    """Raises ValueError in one of several processes launched together, which would all do the same work.

    >>> refuse_many_processes("the command")
    """
    size, source = _group()
    if size > 1:
        raise ValueError(
            f"This is one of {size} processes that were launched together ({source}), and {what} does not share work "
            f"among processes. {remedy}"
        )


def group_shape(devices: int | None, nodes: int | None) -> tuple[int, int]:
    """Processes on each node, and nodes: as requested, or those of the launcher that started this process.

    Raises:
        ValueError: if the request differs from the launched processes, or these cannot be joined.

    >>> group_shape(2, None)
    (2, 1)
    """
    for name, count in (("devices", devices), ("nodes", nodes)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    size, source = _group()
    if size == 1:
        _need_srun((devices or 1) * (nodes or 1))
        return devices or 1, nodes or 1
    if not any(name in os.environ for name in ("LOCAL_RANK", "SLURM_LOCALID")):
        raise ValueError(
            f"This is one of {size} processes that were launched together ({source}), but neither LOCAL_RANK nor "
            "SLURM_LOCALID says which. Start them by torchrun or srun, or start one process with --devices."
        )
    if "LOCAL_RANK" not in os.environ and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError("srun does not say how many processes each node has: give it --ntasks-per-node.")
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or ""
    each = devices or (int(local) if local.isdecimal() else size // (nodes or 1))
    many = nodes or max(1, size // each)
    if each * many != size:
        raise ValueError(
            f"{each} devices on each of {many} nodes are {each * many} processes, but {size} were launched together "
            f"({source}). Leave --devices and --nodes out, or launch as many."
        )
    return each, many


def _need_srun(processes: int) -> None:
    """Raises ValueError for several processes in a SLURM job without srun, where Fabric would wait for srun's."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if processes > 1 and "SLURM_NTASKS" in os.environ and not interactive and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"In a SLURM job, srun starts the processes: `srun --ntasks-per-node=… gae …` in place of {processes} "
            "devices of one command."
        )


def watch_launcher() -> None:
    """Ends this process soon after the process that started it, if ``launch`` did and that process has died.

    The first process of a node calls it before it starts the others.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[LAUNCHER] = str(os.getpid())
    elif LAUNCHER in os.environ:
        threading.Thread(target=_watch, args=(int(os.environ[LAUNCHER]),), name="launcher-watch", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1.0)
    print("The process that started this one has died; this one ends too.", file=sys.stderr, flush=True)
    os._exit(1)  # no exception reaches a thread that waits for the others in C++


@contextmanager
def ending_together() -> Iterator[None]:
    """Context manager of the work of a group: a process that raises tells the others why, and all leave the group.

    Errors in a group have a note that says in which process they were raised.

    Raises:
        ConnectionError: in place of the error of a lost connection; with the error of the process that failed, if it
            could tell.
    """
    try:
        yield
    except BaseException as error:
        group = _distributed()
        if group is None:
            raise
        note = f"[process {group.get_rank()} of {group.get_world_size()}, from 0]"
        if _is_lost(group, error):
            lost = ConnectionError(_reason(group))
            lost.add_note(note)
            raise lost from error
        error.add_note(note)
        _announce(group, error)
        raise
    finally:
        if (group := _distributed()) is not None:
            group.destroy_process_group()


def _announce(group: Any, error: BaseException) -> None:
    """Writes the error into the store; the process that keeps it waits until all have read it."""
    try:
        store, rank, size = group.distributed_c10d._get_default_store(), group.get_rank(), group.get_world_size()
        store.set(FAILURE, f"Process {rank} of {size}, from 0, ended: {error or type(error).__name__}")
        group.destroy_process_group()  # the others' next exchange fails at once
        end = time.monotonic() + (PATIENCE if rank == 0 else 0.0)
        while time.monotonic() < end and store.add(HEARD, 0) < size - 1:
            time.sleep(0.02)
    except RuntimeError:  # the process that keeps the store is gone
        return


def _reason(group: Any) -> str:
    """The error of the process that failed first."""
    try:
        store = group.distributed_c10d._get_default_store()
        if store.check([FAILURE]):
            reason = store.get(FAILURE).decode()
            store.add(HEARD, 1)
            return f"{reason} This process ends with it."
    except RuntimeError:
        pass
    return (
        f"Another of the {group.get_world_size()} processes ended without an error message (it was killed, or ran out "
        "of memory), or cannot be reached. This process ends with it."
    )


def _is_lost(group: Any, error: BaseException) -> bool:
    """Whether an error is that of a connection to another process."""
    return isinstance(error, group.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def is_first() -> bool:
    """Whether this process is alone, or the first of its group.

    >>> is_first()
    True
    """
    group = _distributed()
    return group is None or group.get_rank() == 0


def _distributed() -> Any:
    """``torch.distributed`` if this process is in a group; never imports it."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None


def _group() -> tuple[int, str]:
    """The number of processes, and the source of this number."""
    for name, launcher in SIZES.items():
        size = os.environ.get(name, "")
        if size.isdecimal() and int(size) > 1:
            return int(size), f"{name}={size}, as {launcher} sets it"
    group = _distributed()
    return (1, "") if group is None else (group.get_world_size(), "by torch.distributed")
