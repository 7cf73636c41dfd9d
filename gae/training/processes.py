"""Detection of processes started together by a launcher, such as torchrun."""

import os
import sys

SIZES = {  # environment variables in which launchers set the number of processes
    "WORLD_SIZE": "torchrun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
}


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


def _group() -> tuple[int, str]:
    """The number of processes, and the source of this number."""
    for name, launcher in SIZES.items():
        size = os.environ.get(name, "")
        if size.isdecimal() and int(size) > 1:
            return int(size), f"{name}={size}, as {launcher} sets it"
    distributed = sys.modules.get("torch.distributed")  # imported if a process group exists
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), "by torch.distributed"
    return 1, ""
