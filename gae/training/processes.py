"""Processes that a launcher started together, such as those of torchrun."""

import os
import sys

SIZES = {  # variables in which launchers tell each process how many there are
    "WORLD_SIZE": "torchrun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
}


def refuse_many_processes(what: str, remedy: str = "Start it once; from Python, give `fit` a Fabric.") -> None:
    """Raises ValueError in one of several processes that were launched together, which would all do the same work.

    >>> refuse_many_processes("the command")
    """
    size, told = _group()
    if size > 1:
        raise ValueError(
            f"This is one of {size} processes that were launched together ({told}), and {what} does not share work "
            f"among processes. {remedy}"
        )


def _group() -> tuple[int, str]:
    """How many processes there are, and how that is known."""
    for name, launcher in SIZES.items():
        size = os.environ.get(name, "")
        if size.isdecimal() and int(size) > 1:
            return int(size), f"{name}={size}, as {launcher} sets it"
    distributed = sys.modules.get("torch.distributed")  # whoever made a group has imported it
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), "by torch.distributed"
    return 1, ""
