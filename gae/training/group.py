"""Work that is shared among processes: a launched group, blocks of observations, and decisions of its first process."""

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from gae.training.devices import known_device, known_precision, make_fabric, single
from gae.training.processes import group_shape, watch_launcher
from gae.training.sampling import reseed

if TYPE_CHECKING:
    import lightning_fabric

Result = TypeVar("Result")

TIMEOUT = timedelta(minutes=30)  # for which a process waits for the others before it gives up


def launch(
    device: str | torch.device = "cpu",
    precision: str | int = 32,
    devices: int | None = None,
    nodes: int | None = None,
    timeout: timedelta = TIMEOUT,
) -> "lightning_fabric.Fabric":
    """A launched Fabric of one or many processes, for ``fit``, ``codes`` and ``inference_gap``.

    In a process that torchrun or srun started it joins their group. Otherwise, for several devices, it starts the
    current script once more for each of the other devices of this node; on several nodes, start the script on each,
    with the environment variables ``MASTER_ADDR``, ``MASTER_PORT`` and ``NODE_RANK``.

    Args:
        device: kind of device; see ``fit``.
        precision: see ``fit``.
        devices: processes on each node, each on its own device (on the CPU they share its cores); by default those of
            the launcher, or one.
        nodes: number of nodes; by default those of the launcher, or one.
        timeout: time for which a process waits for the others before all end with an error. A process that dies ends
            the others at once.

    Raises:
        ValueError: for a device or precision that is not available, fewer devices than requested, numbers that differ
            from those of the launcher, or a first node whose name has no address here.

    >>> launch().world_size
    1
    """
    each, many = group_shape(devices, nodes)
    if each * many == 1:
        return single(device, precision)
    chosen = known_device(device)
    if chosen.index is not None and chosen.type == "cuda":
        raise ValueError(f"{device} is a single device, and {each * many} processes are requested. Give cuda.")
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(chosen.type, each)
    if each > there:
        raise ValueError(f"{each} {chosen.type} devices are requested on each node, and this one has {there}.")
    from lightning_fabric.strategies import DDPStrategy

    strategy = DDPStrategy(timeout=timeout, find_unused_parameters=True)  # an engine may leave some out
    precision = known_precision(precision, chosen)
    fabric = make_fabric(chosen, precision, devices=each, num_nodes=many, strategy=strategy)
    _need_address(fabric.strategy.cluster_environment.main_address)  # type: ignore[attr-defined]
    watch_launcher()
    fabric.launch()
    return fabric


def _need_address(node: str) -> None:
    """Raises ValueError for a node that would be sought until the time for the others is over."""
    try:
        socket.getaddrinfo(node, None)
    except OSError as error:
        raise ValueError(
            f"The first node, {node!r}, has no address here ({error}). Set MASTER_ADDR to a name or an address by "
            "which all nodes reach it."
        ) from None


def agreed(fabric: "lightning_fabric.Fabric", work: Callable[[], Result]) -> Result:
    """The result of ``work``, done by the first process alone; all processes return it, or raise its error."""
    if fabric.world_size == 1:
        return work()
    outcome: tuple[Result | None, Exception | None] = None, None
    if fabric.is_global_zero:
        try:
            outcome = work(), None
        except Exception as error:
            outcome = None, error
    result, raised = fabric.broadcast(outcome)
    if raised is not None:
        raise raised
    return result  # type: ignore[return-value]


def claimed(fabric: "lightning_fabric.Fabric", job: Callable[[bool], Result], resume: bool) -> Result:
    """A resumable job, ``job(resume)``: the first process claims its folder, and the others then continue it."""
    if fabric.world_size == 1:
        return job(resume)

    def claim() -> None:
        job(resume)

    agreed(fabric, claim)
    return job(True)


def share_out(fabric: "lightning_fabric.Fabric", parts: Sequence[Callable[[], object]]) -> None:
    """Every process of a group does its share of the parts of a job, which store their results, and waits for all."""
    if fabric.world_size > 1:
        for part in parts[fabric.global_rank :: fabric.world_size]:
            part()
        fabric.barrier()


def over_blocks(
    fabric: "lightning_fabric.Fabric", blocks: Sequence[Tensor], work: Callable[[Tensor], Result], seed: int
) -> Iterator[Result]:
    """Yields ``work(block)`` for every block of observations, in order; the processes take turns, and each gets all.

    A block is moved to the device of its process. The random draws of a block are a function of its index and the seed
    alone (the first block's are those after ``torch.manual_seed(seed)``), so that the number of processes does not
    change a result. Memory holds as many results as there are processes. All processes must exhaust the iterator.

    Args:
        work: its results are pickled to reach the other processes.
    """
    size = fabric.world_size
    for first in range(0, len(blocks), size):
        i = first + fabric.global_rank
        result = _seeded(fabric, blocks[i], work, seed, i) if i < len(blocks) else None
        yield from _gathered(fabric, result)[: len(blocks) - first]


def _seeded(
    fabric: "lightning_fabric.Fabric", block: Tensor, work: Callable[[Tensor], Result], seed: int, index: int
) -> Result:
    if index:
        reseed(fabric.device, seed, "block", index)
    else:
        torch.manual_seed(seed)
    with fabric.autocast():
        return work(block.to(fabric.device))


def _gathered(fabric: "lightning_fabric.Fabric", result: Result | None) -> list[Result]:
    """The results of all processes, by rank, on the device of this one."""
    if fabric.world_size == 1:
        return [result]  # type: ignore[list-item]
    results: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(results, moved(result, torch.device("cpu")))
    return [moved(part, fabric.device) for part in results]


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or all those of a collection or a dataclass, on a device.

    >>> moved({"x": [torch.ones(2)]}, torch.device("meta"))["x"][0].device
    device(type='meta')
    """
    match value:
        case Tensor():
            return value.to(device)
        case dict():
            return {name: moved(part, device) for name, part in value.items()}
        case list() | tuple():
            return type(value)(moved(part, device) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
    return value
