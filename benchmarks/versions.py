"""Processor time of the library's main computations in two checkouts, to detect slow-downs.

    python benchmarks/versions.py ../before .          # all cases, each in two processes of each checkout, in turns
    python benchmarks/versions.py ../before . p3 p5    # some of them

One thread; the least processor time of several calls, which depends less on other work on the machine than seconds do.
"""

import gc
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

Case = Callable[[], None]
TURNS, CALLS = 2, 5


def cases(names: list[str]) -> dict[str, Case]:  # noqa: PLR0915 (one definition for each computation)
    """Computations of the checkout in the working directory; all by default."""
    sys.path.insert(0, os.getcwd())
    import torch
    from torch import nn

    from benchmarks import p03_llgae_step, p04_vae_step, p06_gon_step
    from benchmarks.common import mnist, training
    from gae import Autoencoder, nets
    from gae.inference import (
        LBFGS,
        Adam,
        Argmax,
        Ascent,
        CheckpointedUnroll,
        Detach,
        GradientAscent,
        OneStep,
        Unroll,
        Zeros,
    )
    from gae.likelihood import Bernoulli, LinearMixture
    from gae.systems import pca, ppca
    from gae.training import fit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = mnist()[1]
    rows, bits = images.flatten(1)[:20_000], (images.flatten(1)[:1000] > 0.5).float()
    likelihood = Bernoulli(nets.mlp(20, [200, 200], 784, nn.Tanh), 20)
    computations: dict[str, Case] = {}

    def encode(engine: Ascent) -> Case:
        def run() -> None:
            with torch.no_grad():
                engine(likelihood, bits)

        return run

    computations["p1 LBFGS"] = encode(Ascent(Zeros(), LBFGS(6), 25, grad_tol=1e-3, adjoint=Detach()))
    computations["p1 Adam"] = encode(Ascent(Zeros(), Adam(0.1), 20, adjoint=Detach()))
    for way in (Unroll(), CheckpointedUnroll(), OneStep()):
        unrolled = Autoencoder(likelihood, Ascent(Zeros(), GradientAscent(0.01), 64, adjoint=way))
        computations[f"p2 {type(way).__name__}"] = lambda model=unrolled: model(bits[:128]).backward()  # type: ignore[misc]
    means = rows[-p03_llgae_step.COMPONENTS :]
    charts = p03_llgae_step.ours(LinearMixture(len(means), p03_llgae_step.LATENT, (784,), flat_prior=True, means=means))
    computations["p3"] = training(lambda: charts(rows[: p03_llgae_step.BATCH]), charts.parameters())
    for batch in (128, 20):
        parts = p04_vae_step.Nets(nets.mlp(784, [200, 200], 100, nn.Tanh), nets.mlp(50, [200, 200], 784, nn.Tanh))
        vae = p04_vae_step.ours(parts, p04_vae_step.function(parts.encoder), True)
        computations[f"p4 batch {batch}"] = training(lambda m=vae, n=batch: m(bits[:n]), parts.parameters())  # type: ignore[misc]
    network, padded = p06_gon_step.generator(), nn.functional.pad(images[:64], (2, 2, 2, 2))
    origin = p06_gon_step.ours(network)
    computations["p6"] = training(lambda: origin(padded), network.parameters())
    for k in (10, 100):
        start = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:k]]

        def cluster(start: torch.Tensor = start) -> None:
            points = LinearMixture(len(start), 0, (784,), means=start)
            fit(Autoencoder(points, Argmax()), rows, epochs=10, tol=1e-30, progress=False)

        computations[f"p5 K={k}"] = cluster
    computations["p8 PCA"] = lambda: fit(pca((784,), 20), rows, epochs=1, progress=False) and None
    computations["p8 PPCA"] = lambda: fit(ppca((784,), 20), rows, epochs=1, progress=False) and None
    return {name: case for name, case in computations.items() if not names or name.split()[0] in names}


def least(case: Case) -> float:
    """Milliseconds of processor time of the fastest call, after a warm-up call."""
    case()
    taken = []
    for _ in range(CALLS):
        gc.collect()
        start = time.process_time()
        case()
        taken.append(time.process_time() - start)
    return 1e3 * min(taken)


def main() -> None:
    before, after, *names = sys.argv[1:]
    times: dict[str, dict[str, float]] = {}
    for _ in range(TURNS):
        for checkout in (before, after):
            script = Path(checkout, "benchmarks", "versions.py").resolve()  # its own: names differ between versions
            command = [
                sys.executable,
                str(script if script.exists() else Path(__file__).resolve()),
                "--measure",
                *names,
            ]
            environment = os.environ | {"PYTHONPATH": str(Path(checkout).resolve()), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            for name, value in json.loads(done.stdout.splitlines()[-1]).items():
                sides = times.setdefault(name, {})
                sides[checkout] = min(value, sides.get(checkout, value))
    for name, sides in times.items():
        if len(sides) < 2:
            print(f"{name:14s} {next(iter(sides.values())):8.2f} ms in {next(iter(sides))} only")
            continue
        print(f"{name:14s} {sides[before]:8.2f} ms  {sides[after]:8.2f} ms  {sides[after] / sides[before]:.3f}")


if __name__ == "__main__":
    if "--measure" in sys.argv:
        warnings.simplefilter("ignore")
        print(json.dumps({name: least(case) for name, case in cases(sys.argv[2:]).items()}))
    else:
        main()
