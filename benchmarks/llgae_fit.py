"""Seconds of closed-form LLGAE fits (K = 11, E = 20, 40 iterations) in two checkouts, which must end at the same error.

    python benchmarks/llgae_fit.py ../before . train-images-idx3-ubyte.gz

with the images of MNIST or Fashion-MNIST. The checkouts take turns.
"""

import gzip
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

ITERATIONS, COMPONENTS, LATENT = 40, 11, 20
TURNS, SLACK = 2, 1e-4


def measure(path: str) -> dict[str, float]:
    """Seconds, processor seconds and the squared error per image of a fit by the checkout in the working directory."""
    sys.path.insert(0, os.getcwd())
    import numpy as np
    import torch

    from gae.systems import llgae

    try:
        from gae.training import fit
    except ImportError:  # its place before 2026-11-22
        from gae.fit import fit  # type: ignore[import-not-found, no-redef]

    warnings.simplefilter("ignore")
    values = np.frombuffer(gzip.decompress(Path(path).read_bytes()), np.uint8, offset=16)
    x = torch.from_numpy(values.reshape(-1, 784).astype(np.float32) / 255)
    fit(llgae((784,), 2, 2), x[:100], epochs=1, progress=False)  # imports
    model = llgae((784,), LATENT, COMPONENTS)
    wall, processor = time.perf_counter(), time.process_time()
    fit(model, x, epochs=ITERATIONS, tol=1e-12, seed=0, progress=False)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    with torch.no_grad():
        errors = [(rows - model.reconstruct(rows)).square().sum(1).double() for rows in x.split(1000)]
    return {"seconds": wall, "processor": processor, "error": torch.cat(errors).mean().item()}


def main() -> None:
    before, after, images = sys.argv[1:]
    runs: dict[str, list[dict[str, float]]] = {before: [], after: []}
    for _ in range(TURNS):
        for checkout, done in runs.items():
            command = [sys.executable, str(Path(__file__).resolve()), "--measure", str(Path(images).resolve())]
            environment = os.environ | {"PYTHONPATH": str(Path(checkout).resolve())}
            said = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            done.append(json.loads(said.stdout.splitlines()[-1]))
            print(checkout, ", ".join(f"{name} {value:.4f}" for name, value in done[-1].items()), flush=True)
    errors = [run["error"] for done in runs.values() for run in done]
    if max(errors) > (1 + SLACK) * min(errors):
        sys.exit(f"the errors differ: {errors}")
    slow, fast = (statistics.median(run["seconds"] for run in done) for done in runs.values())
    print(f"seconds before / after: {slow / fast:.2f}")


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
