"""Claim: back-propagation through the one step of a gradient origin network nearly halves its test error.

A gradient origin network (Bond-Taylor & Willcocks 2021) encodes by one gradient step from the zero code, and learns by
the gradient of the squared error through that step. Its detached variant takes the same step and treats the code as a
constant. Both have the same initial weights and the same batches. Each has its own rates, of the code's step and of
Adam, chosen from one grid by the worse of two short runs on 10,000 training images that are held out for that. The
unrolled network is also shown at the rates of the detached one, so that nothing else differs, and the
detached one also at a smaller rate of Adam than the grid has, in case it only needs a slower decoder.

The error is ‖x - f(z)‖² per image of 784 pixels in [0, 1], on all 10,000 test images. The same decoders with codes by
L-BFGS from the same origin separate the error of the decoder from that of the single step.

    python -m experiments.gon

An interrupted run resumes from its checkpoints in ``runs/gon``.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from experiments.common import ROOT, arguments, mnist, write
from gae import Autoencoder
from gae.data import Dataset
from gae.inference import LBFGS, Adjoint, Ascent, Detach, Unroll, Zeros
from gae.systems import gon, pca
from gae.training import fit

RUNS = ROOT.parent / "runs" / "gon"
VARIANTS: dict[str, type[Adjoint]] = {"unrolled": Unroll, "detached": Detach}
COLOURS = {
    "unrolled": "tab:blue",
    "detached": "tab:orange",
    "unrolled, rates of detached": "tab:cyan",
    "detached, slower": "tab:red",
}


@dataclass(frozen=True)
class Configuration:
    latent: int = 32
    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 128
    epochs: int = 20
    seeds: tuple[int, ...] = (0, 1, 2)
    code_rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    adam_rates: tuple[float, ...] = (1e-3, 3e-3)
    slower_adam_rate: float = 3e-4
    selection_seeds: tuple[int, ...] = (100, 101)
    selection_epochs: int = 4
    held_out: int = 10_000
    searched: int = 1000  # test images that are also encoded by L-BFGS
    search_steps: int = 300


def network(configuration: Configuration, variant: str, code_rate: float, seed: int) -> Autoencoder:
    """The same initial weights for every variant and rate of one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = gon((1, 28, 28), configuration.latent, configuration.hidden, rate=code_rate)
    model.inference.adjoint = VARIANTS[variant]()
    return model


def error_of_loss(loss: float, pixels: int) -> float:
    """‖x - f(z)‖² from a loss in nats with scale √½: loss = ‖·‖² + ½ D log π."""
    return loss - 0.5 * pixels * math.log(math.pi)


def learn(
    configuration: Configuration,
    variant: str,
    rates: tuple[float, float],
    seed: int,
    data: tuple[Dataset | Tensor, Tensor],
    epochs: int,
) -> tuple[Autoencoder, list[float]]:
    """A trained network, and its error on the second part of the data after each epoch."""
    code_rate, adam_rate = rates
    model = network(configuration, variant, code_rate, seed)
    history = fit(
        model,
        data[0],
        epochs=epochs,
        batch_size=configuration.batch_size,
        optimizer=partial(torch.optim.Adam, lr=adam_rate),
        validation=data[1],
        seed=seed,
        out=RUNS / f"{variant}-code{code_rate:g}-adam{adam_rate:g}-seed{seed}",
        resume=True,
        progress=False,
    )
    pixels = data[1][0].numel()
    return model, [error_of_loss(row.validation_loss or math.nan, pixels) for row in history.rows]


def select(configuration: Configuration, variant: str, data: Dataset) -> list[dict[str, Any]]:
    """Errors on held-out training images for every pair of rates, by the worse seed; the best pair comes first."""
    held = data.train[-configuration.held_out :]
    kept = data.train[: -configuration.held_out]
    rows = []
    for rates in product(configuration.code_rates, configuration.adam_rates):
        errors = [
            learn(configuration, variant, rates, seed, (kept, held), configuration.selection_epochs)[1][-1]
            for seed in configuration.selection_seeds
        ]
        rows.append({"code_rate": rates[0], "adam_rate": rates[1], "held_out_errors": errors})
        print(f"{variant}, code rate {rates[0]:g}, Adam {rates[1]:g}: {errors}", flush=True)
    return sorted(rows, key=lambda row: max(row["held_out_errors"]))


@torch.no_grad()
def search(model: Autoencoder, x: Tensor, steps: int) -> list[float]:
    """Mean error of the best code so far, before each step of L-BFGS from the origin."""
    engine = Ascent(Zeros(), LBFGS(), steps, adjoint=Detach(), trace=True)
    values = model.encode(x, engine).solve.trace[:, 0].cummax(0).values.double()
    return [error_of_loss(-float(value), x[0].numel()) for value in values.mean(1)]


def summary(values: list[float]) -> dict[str, float]:
    return {"mean": mean(values), "standard_error": stdev(values) / math.sqrt(len(values))}


def paired(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[float]:
    """Differences of the test error, paired by seed."""
    return [a["test_error"] - b["test_error"] for a, b in zip(runs, others, strict=True)]


def draw(results: dict[str, Any], configuration: Configuration) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.8), constrained_layout=True)
    for name, series in results["series"].items():
        colour = COLOURS[name]
        for i, run in enumerate(series["runs"]):
            label = f"{name} (code {series['code_rate']:g}, Adam {series['adam_rate']:g})" if i == 0 else None
            left.plot(range(1, len(run["curve"]) + 1), run["curve"], color=colour, alpha=0.6, label=label)
            right.plot(range(len(run["search"])), run["search"], color=colour, alpha=0.6, label=label)
    left.axhline(results["pca_error"], color="0.4", linestyle="--", label=f"PCA, {configuration.latent} dimensions")
    left.set_xlabel("epoch")
    left.set_ylabel("test error ‖x − f(z)‖² per image")
    left.set_title("Codes by one gradient step from zero", fontsize=10)
    right.set_xscale("symlog", linthresh=1)
    right.set_yscale("log")
    right.set_xlabel("L-BFGS steps from zero")
    right.set_ylabel("test error ‖x − f(z)‖² per image")
    right.set_title(f"The same decoders, codes by search ({configuration.searched} test images)", fontsize=10)
    left.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"Gradient origin networks on MNIST, {len(configuration.seeds)} seeds each (one line per seed)")
    return figure


def main(configuration: Configuration) -> None:
    data = mnist()
    linear = pca(data.event_shape, configuration.latent)
    fit(linear, data, progress=False)
    with torch.no_grad():
        pca_error = float((linear.reconstruct(data.test) - data.test).square().sum() / len(data.test))
    results: dict[str, Any] = {"data": data.name, "data_hash": data.hash, "pca_error": pca_error}
    selection = {variant: select(configuration, variant, data) for variant in VARIANTS}
    rates = {variant: (rows[0]["code_rate"], rows[0]["adam_rate"]) for variant, rows in selection.items()}
    series = {"unrolled": ("unrolled", rates["unrolled"]), "detached": ("detached", rates["detached"])}
    if rates["unrolled"] != rates["detached"]:
        series["unrolled, rates of detached"] = ("unrolled", rates["detached"])
    series["detached, slower"] = ("detached", (rates["detached"][0], configuration.slower_adam_rate))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in series}
    for seed, (name, (variant, chosen)) in product(configuration.seeds, series.items()):
        model, curve = learn(configuration, variant, chosen, seed, (data, data.test), configuration.epochs)
        search_errors = search(model, data.test[: configuration.searched], configuration.search_steps)
        runs[name].append({"seed": seed, "test_error": curve[-1], "curve": curve, "search": search_errors})
        print(f"{name}, seed {seed}: {curve[-1]:.3f}; by search {search_errors[-1]:.3f}", flush=True)
    results |= {"selection": selection, "series": {}}
    for name, (_, (code_rate, adam_rate)) in series.items():
        results["series"][name] = {
            "code_rate": code_rate,
            "adam_rate": adam_rate,
            "test_error": summary([run["test_error"] for run in runs[name]]),
            "search_error": summary([run["search"][-1] for run in runs[name]]),
            "minus_unrolled": summary(paired(runs[name], runs["unrolled"])),
            "runs": runs[name],
        }
    write("gon", configuration, results, draw(results, configuration))


if __name__ == "__main__":
    arguments(__doc__)
    main(Configuration())
