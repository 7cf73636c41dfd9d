"""Training and encoding on two processes of one thread each, against one process of one thread.

MAP codes of 2,000 test images by 64 steps of Adam, with the decoder of P1 before its training; then 40 steps of that
training, of 1,024 images each, whose gradients are averaged (the processes draw their own noise). Every round starts
the processes anew, and times them once all have started.
"""

import json
import os
import subprocess
import sys
import time

import torch

from benchmarks.common import ROOT, UnequalResults, agree, first_line, report, row
from benchmarks.mnist_vae import images, untrained
from gae import Autoencoder
from gae.analysis.rows import codes
from gae.inference import Adam, Ascent, Detach, Zeros
from gae.training import fit, launch

ROUNDS, STEPS, BATCH, ENCODED, ASCENT = 5, 40, 1024, 2000, 64


def work(processes: int) -> None:
    """Times both jobs in a group of processes; the first one prints a line of JSON."""
    torch.set_num_threads(1)
    fabric = launch(devices=processes)
    _, train, test = images()
    model = untrained()
    engine = Ascent(Zeros(), Adam(0.1), ASCENT, adjoint=Detach())
    encoder = Autoencoder(model.likelihood, engine)
    fabric.barrier()
    start = time.perf_counter()
    blocks = list(codes(encoder, test[:ENCODED], 250, scored=False, fabric=fabric))
    fabric.barrier()
    encoded = time.perf_counter()
    fit(model, train[:BATCH], epochs=1, batch_size=BATCH, progress=False, fabric=fabric)
    fabric.barrier()
    warm = time.perf_counter()
    history = fit(model, train[: STEPS * BATCH], epochs=1, batch_size=BATCH, progress=False, fabric=fabric)
    fabric.barrier()
    trained = time.perf_counter()
    if fabric.is_global_zero:
        total = sum(float(abs(block["z"].astype(float)).sum()) for block in blocks)
        result = {"fit": trained - warm, "encode": encoded - start}
        print(json.dumps(result | {"loss": history.rows[-1].train_loss, "codes": total}))


def timed(processes: int) -> dict[str, float]:
    """The result of ``work`` in new processes."""
    command = [sys.executable, "-m", "benchmarks.p14_processes", str(processes)]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr)
    result: dict[str, float] = json.loads(run.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    if len(sys.argv) > 1:
        work(int(sys.argv[1]))
        return
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        raise UnequalResults(f"two processes need two cores, and this machine has {cores}")
    name, _, _ = images()
    rounds = [(timed(1), timed(2)) for _ in range(ROUNDS)]
    for what, tolerance in (("codes", 1e-4), ("loss", 0.02)):
        agree(what, *(torch.tensor(side[what], dtype=torch.float64) for side in rounds[0]), tolerance)
    rows = [
        row(what, [one[what] for one, _ in rounds], [two[what] for _, two in rounds], 1.7, at_least=True)
        for what in ("fit", "encode")
    ]
    report("P14", "time of one process / time of two", first_line(__doc__), name, rows)


if __name__ == "__main__":
    main()
