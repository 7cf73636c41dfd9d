"""Memory and time of one gradient through T steps of ascent, by the ways back through a solve, against ``Unroll``.

P1's decoder (20-200-200-784, tanh, Bernoulli) at its initial weights, batch 128, gradient ascent on the code; a pass
gives the gradients of all of the decoder's parameters. Memory is counted twice: as the bytes of all tensors alive at
once, which is exact, and as what a pass adds to the resident set at its peak, in a fresh process after a pass with
T = 1 (Linux), which also sees a fragmented heap. ``CheckpointedUnroll`` keeps T codes, and is constant otherwise.
"""

import gc
import math
import multiprocessing
import resource
import statistics
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.common import DEVICE, agree, first_line, peak_bytes, report, row, take_turns
from benchmarks.mnist_vae import images, untrained
from gae import Autoencoder
from gae.inference import Adjoint, Ascent, CheckpointedUnroll, Detach, GradientAscent, Implicit, OneStep, Unroll

BATCH, LONG, SHORT, RATE, ROUNDS = 128, 256, 16, 0.02, 5
FLAT = 1.1  # the most that 16 times the steps may cost
MODES: dict[str, Callable[[], Adjoint]] = {
    "Unroll": Unroll,
    "Checkpoint": CheckpointedUnroll,
    "Implicit": lambda: Implicit(stationary=math.inf),  # T = 16 is no solution, but only the memory matters here
    "OneStep": OneStep,
    "Detach": Detach,
}


def model(mode: str, steps: int) -> Autoencoder:
    """The decoder under gradient ascent with ``joint`` as its objective."""
    engine = Ascent(step=GradientAscent(RATE), max_steps=steps, adjoint=MODES[mode]())
    return Autoencoder(untrained().likelihood, engine)


def gradient(mode: str, steps: int, x: Float[Tensor, "B D"]) -> Float[Tensor, " P"]:
    """∇ loss in all parameters."""
    autoencoder = model(mode, steps)
    return torch.cat([part.flatten() for part in torch.autograd.grad(autoencoder(x), list(autoencoder.parameters()))])


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside it and alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        if storage._cdata not in self.storages:
            self.storages.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.now -= size


def alive(mode: str, steps: int, x: Float[Tensor, "B D"]) -> list[float]:
    """Bytes of the tensors alive at once in one pass; the same at every pass."""
    gc.collect()
    with Live() as live:
        gradient(mode, steps, x)
    print(f"  {mode}, T = {steps}: {live.most / 2**20:.1f} MiB of tensors")
    return [live.most]


def resident(mode: str, x: Float[Tensor, "B D"], threads: int) -> float:
    """Bytes that one long pass adds to this process's resident set at its peak."""
    torch.set_num_threads(threads)
    gradient(mode, 1, x)
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    gradient(mode, LONG, x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - pages * resource.getpagesize()


def peaks(x: Float[Tensor, "B D"], *modes: str) -> list[list[float]]:
    """``resident`` by mode and round, the modes in turns; on a GPU the bytes that its allocator counts."""
    if DEVICE.type == "cuda":
        return [[float(peak_bytes(partial(gradient, mode, LONG, x)) or 0)] for mode in modes]
    context = multiprocessing.get_context("forkserver")  # a child begins with the imports, and with little memory
    context.set_forkserver_preload(["benchmarks.mnist_vae"])
    resident_bytes: list[list[float]] = [[] for _ in modes]
    with context.Pool(1, maxtasksperchild=1) as pool:
        for _ in range(ROUNDS):
            for mode, sizes in zip(modes, resident_bytes, strict=True):
                sizes.append(pool.apply(resident, (mode, x, torch.get_num_threads())))
    for mode, sizes in zip(modes, resident_bytes, strict=True):
        print(f"  {mode}, T = {LONG}: {statistics.median(sizes) / 2**20:.1f} MiB resident")
    return resident_bytes


def main() -> None:
    name, train, _ = images()
    x = train[:BATCH].clone()
    agree("gradient, Checkpoint and Unroll", gradient("Checkpoint", LONG, x), gradient("Unroll", LONG, x), 1e-5)
    bytes_of = {(mode, steps): alive(mode, steps, x) for mode in MODES for steps in (SHORT, LONG)}
    memory = "allocated" if DEVICE.type == "cuda" else "resident"
    rows = [
        row("Checkpoint / Unroll, tensors, T = 256", bytes_of["Checkpoint", LONG], bytes_of["Unroll", LONG], 0.15),
        row(
            f"Checkpoint / Unroll, {memory} memory, T = 256",
            *peaks(x, "Checkpoint", "Unroll"),
            0.15,
        ),
    ]
    for mode, goal in (("Checkpoint", None), ("Implicit", FLAT), ("OneStep", FLAT), ("Detach", FLAT)):
        rows.append(row(f"{mode}, tensors, T = 256 / T = 16", bytes_of[mode, LONG], bytes_of[mode, SHORT], goal))
    replayed, unrolled = take_turns(
        lambda: gradient("Checkpoint", LONG, x), lambda: gradient("Unroll", LONG, x), rounds=ROUNDS
    )
    rows.append(row("Checkpoint / Unroll, time, T = 256", replayed, unrolled, 1.6))
    report("P2", "memory or time, as each row says", first_line(__doc__), name, rows)


if __name__ == "__main__":
    main()
