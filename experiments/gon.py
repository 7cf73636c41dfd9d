"""Claim: what a gradient origin network gains from back-propagation through its one step.

A gradient origin network (Bond-Taylor & Willcocks 2021) encodes by one gradient step from the zero code, and learns by
the gradient of the squared error through that step. Its detached variant takes the same step and treats the code as a
constant. Both have the same initial weights and the same batches. Each has its own rates, of the code's step and of
Adam, the best pair of one grid on training images held out for that, after a short training of another seed; rates at
an edge of the grid are marked. The unrolled network is also shown at the rates of the detached one, so that nothing
else differs. Beside them an autoencoder of equal width, hidden layers and epochs, the stronger baseline, whose rate is
chosen in the same way, and PCA.

The error is ‖x - f(z)‖² per image of 784 pixels in [0, 1], on all test images. The same decoders with codes by L-BFGS
from the same origin separate the error of the decoder from that of the single step; the share of converged searches is
given.

    python -m experiments.gon [PART ...] [--seeds 0] [--data fashion-mnist]

computes some parts; the results are written once all are there. An interrupted training resumes from its checkpoints
in ``runs``. ``--smoke`` takes short trainings on the bundled digits.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from experiments.common import mnist, write
from experiments.study import CONVERGED, Study, best_rate, double, markdown, options, over_trainings
from gae import Autoencoder
from gae.data import load
from gae.inference import LBFGS, Adjoint, Ascent, Detach, Status, Unroll, Zeros
from gae.systems import ae, gon, pca
from gae.training import fit

CLAIM = "gon"
VARIANTS: dict[str, type[Adjoint]] = {"unrolled": Unroll, "detached": Detach}
CROSSED = "unrolled, rates of detached"
AUTOENCODER = "autoencoder"
PARTS = ("unrolled", "detached", CROSSED, AUTOENCODER)
SCALE = math.sqrt(0.5)  # with which log q(x|z) = -‖x - f(z)‖² up to a constant
COLOURS = dict(zip(PARTS, ("tab:blue", "tab:orange", "tab:cyan", "tab:red"), strict=True))

Rates = tuple[float, float]


@dataclass(frozen=True)
class Configuration:
    """Everything that determines the numbers, with the data.

    Attributes:
        code_rates: of the code's step.
        adam_rates: of Adam.
        tuning_epochs: of the trainings that choose the rates.
        searched: first test images that are also encoded by L-BFGS.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seed: int = 100
    latent: int = 32
    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 128
    epochs: int = 20
    code_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    adam_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    tuning_epochs: int = 4
    held_out: int = 10_000
    searched: int = 1000
    search_steps: int = 300


SMOKE = Configuration(
    seeds=(0, 1),
    latent=4,
    hidden=(24,),
    epochs=20,
    code_rates=(0.03, 0.3),
    adam_rates=(3e-3, 1e-2),
    tuning_epochs=5,
    held_out=200,
    searched=20,
    search_steps=60,
)


class Networks:
    """The cells of the study."""

    def __init__(self, study: Study, c: Configuration):
        self.study, self.c = study, c
        self.data = load("digits") if study.data == "digits" else mnist("none", study.data)
        self.tuning = self.data.train[: -c.held_out], self.data.train[-c.held_out :]

    def network(self, variant: str, code_rate: float, seed: int) -> Autoencoder:
        """A network with the same initial weights for every variant and rate of one seed."""
        c = self.c
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if variant == AUTOENCODER:
                return ae(self.data.event_shape, c.latent, c.hidden, scale=SCALE, learn="fixed")
            model = gon(self.data.event_shape, c.latent, c.hidden, scale=SCALE, rate=code_rate)
        model.inference.adjoint = VARIANTS[variant]()
        return model

    def learn(
        self, variant: str, rates: Rates, seed: int, data: tuple[Tensor, Tensor], epochs: int
    ) -> tuple[Autoencoder, list[float]]:
        """A trained network, and its error on the second part of the data after each epoch."""
        model = self.network(variant, rates[0], seed)
        history = fit(
            model,
            data[0],
            epochs=epochs,
            batch_size=self.c.batch_size,
            optimizer=partial(torch.optim.Adam, lr=rates[1]),
            validation=data[1],
            seed=seed,
            keep="last",
            out=self.study.out / "checkpoints" / f"{variant}-code{rates[0]:g}-adam{rates[1]:g}-seed{seed}",
            resume=True,
            progress=False,
        )
        return model, [error_of_loss(row.validation_loss, data[1][0].numel()) for row in history.rows]

    def tuned(self, variant: str) -> dict[str, Any]:
        """The rates with the least error on held-out training images."""
        c = self.c
        grid = list(product((0.0,) if variant == AUTOENCODER else c.code_rates, c.adam_rates))
        scores = {rates: self.trial(variant, rates) for rates in grid}
        scored = {rates: score for rates, score in scores.items() if score is not None}
        if not scored:
            raise FloatingPointError(f"No rates of {grid} gave a finite error.")
        code, adam = max(scored, key=lambda rates: scored[rates])
        edges = {
            "code edge": variant != AUTOENCODER
            and best_rate({code: scores[code, adam] for code in c.code_rates})["edge"],
            "adam edge": best_rate({rate: scores[code, rate] for rate in c.adam_rates})["edge"],
        }
        errors = {f"{code:g}, {adam:g}": scores[code, adam] for code, adam in grid}
        return {"code": code, "adam": adam, "minus held-out errors": errors} | edges

    def trial(self, variant: str, rates: Rates) -> float | None:
        """Minus the held-out error after a short training; None if it failed."""
        c = self.c

        def train() -> dict[str, Any]:
            try:
                return {"error": self.learn(variant, rates, c.tuning_seed, self.tuning, c.tuning_epochs)[1][-1]}
            except FloatingPointError as error:
                return {"error": None, "reason": str(error)}

        label = f"rates {variant} {rates[0]:g} {rates[1]:g}"
        found = self.study.cell(label, c.tuning_seed, train)["error"]
        self.study.keep(label)
        return None if found is None or not math.isfinite(found) else -found

    def run(self, part: str, seed: int) -> None:
        """Computes the cell of a part and seed: errors on test images."""
        variant = "unrolled" if part == CROSSED else part
        choice = self.tuned("detached" if part == CROSSED else part)

        def measure() -> dict[str, Any]:
            rates = choice["code"], choice["adam"]
            model, curve = self.learn(variant, rates, seed, (self.data.train, self.data.test), self.c.epochs)
            return {"choice": choice, "curve": curve, "test error": curve[-1]} | self.searched(model)

        self.study.cell(cell_name(part, seed), seed, measure)
        self.study.keep(cell_name(part, seed))

    @torch.no_grad()
    def searched(self, model: Autoencoder) -> dict[str, Any]:
        """Mean error of the best code so far, before each step of L-BFGS from the origin, and what has converged."""
        model, x = double(model), self.data.test[: self.c.searched].double()
        engine = Ascent(Zeros(), LBFGS(), self.c.search_steps, grad_tol=1e-4, adjoint=Detach(), trace=True)
        solve = model.encode(x, engine).solve
        assert solve is not None and solve.trace is not None
        values = solve.trace[:, 0].cummax(0).values.double().mean(1)
        errors = [error_of_loss(-float(value), x[0].numel()) for value in values]
        converged = float(torch.eq(solve.status, Status.converged).double().mean())
        return {"search": errors, "search error": errors[-1], "converged": converged}


def cell_name(part: str, seed: int) -> str:
    return f"{part} seed {seed}"


def error_of_loss(loss: float | None, pixels: int) -> float:
    """‖x - f(z)‖² from a loss in nats with scale √½: loss = ‖·‖² + ½ D log π."""
    return math.nan if loss is None else loss - 0.5 * pixels * math.log(math.pi)


@torch.no_grad()
def linear_error(networks: Networks) -> float:
    """The test error of PCA of equal width."""
    data = networks.data
    model = pca(data.event_shape, networks.c.latent)
    fit(model, data, progress=False)
    return float((model.reconstruct(data.test) - data.test).square().sum() / len(data.test))


def summary(cells: dict[str, dict[str, Any]], c: Configuration) -> dict[str, Any]:
    """Means over trainings, with the paired difference from the unrolled network."""
    rows: dict[str, Any] = {}
    for part in PARTS:
        mine = [cells[cell_name(part, seed)] for seed in c.seeds]
        others = [cells[cell_name("unrolled", seed)] for seed in c.seeds]
        rows[part] = {key: over_trainings([cell[key] for cell in mine]) for key in ("test error", "search error")} | {
            "minus unrolled": over_trainings(
                [a["test error"] - b["test error"] for a, b in zip(mine, others, strict=True)]
            ),
            "converged": min(cell["converged"] for cell in mine),
            "choice": mine[0]["choice"],
            "seconds": sum(cell["seconds"] for cell in mine) / len(mine),
        }
    return rows


def report(rows: dict[str, Any], linear: float, c: Configuration, data: str) -> str:
    """The table as Markdown."""
    lines = []
    for part, row in rows.items():
        choice = row["choice"]
        found = "≤ " if row["converged"] < CONVERGED else ""
        code = "–" if part == AUTOENCODER else f"{choice['code']:g}" + (" (edge)" if choice["code edge"] else "")
        lines.append(
            [
                part,
                *(f"{row[key]['mean']:.2f} ± {row[key]['se']:.2f}" for key in ("test error", "minus unrolled")),
                f"{found}{row['search error']['mean']:.2f} ± {row['search error']['se']:.2f}",
                f"{100 * row['converged']:.0f} %",
                code,
                f"{choice['adam']:g}" + (" (edge)" if choice["adam edge"] else ""),
                f"{row['seconds']:.0f}",
            ]
        )
    header = [
        "",
        "test error",
        "minus unrolled",
        "codes by search",
        "converged",
        "code's rate",
        "Adam's rate",
        "seconds",
    ]
    text = (
        f"‖x - f(z)‖² per image; codes of {c.latent}; {c.epochs} epochs, {len(c.seeds)} trainings, errors over them. "
        f"PCA of equal width: {linear:.2f}. The search is on {c.searched} test images, from zeros; “≤”: fewer than "
        f"{100 * CONVERGED:.0f} % of the searches converged. “edge”: of the grid. Seconds of a training and its search."
    )
    return f"# Gradient origin networks ({data})\n\n{text}\n\n{markdown(header, lines)}"


def draw(cells: dict[str, dict[str, Any]], linear: float, c: Configuration, data: str) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.8), constrained_layout=True)
    for part, seed in product(PARTS, c.seeds):
        cell = cells[cell_name(part, seed)]
        choice, label = cell["choice"], None
        if seed == c.seeds[0]:
            code = "" if part == AUTOENCODER else f"code {choice['code']:g}, "
            label = f"{part} ({code}Adam {choice['adam']:g})"
        left.plot(range(1, len(cell["curve"]) + 1), cell["curve"], color=COLOURS[part], alpha=0.6, label=label)
        right.plot(range(len(cell["search"])), cell["search"], color=COLOURS[part], alpha=0.6, label=label)
    left.axhline(linear, color="0.4", linestyle="--", label=f"PCA, {c.latent} dimensions")
    left.set(xlabel="epoch", ylabel="test error ‖x − f(z)‖² per image", yscale="log")
    left.set_title("Codes by one gradient step from zero, or by the encoder", fontsize=10)
    right.set_xscale("symlog", linthresh=1)
    right.set(xlabel="L-BFGS steps from zero", ylabel="test error ‖x − f(z)‖² per image", yscale="log")
    right.set_title(f"The same decoders, codes by search ({c.searched} test images)", fontsize=10)
    left.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"Gradient origin networks ({data}), {len(c.seeds)} seeds each (one line per seed)")
    return figure


def main() -> None:
    given = options(__doc__, PARTS)
    torch.set_num_threads(1)  # two parts in two processes take two cores
    c = SMOKE if given.smoke else Configuration()
    study = Study(CLAIM, c, given)
    networks = Networks(study, c)
    for part in given.parts:
        for seed in study.seeds:
            networks.run(part, seed)
    cells = study.all_known([cell_name(part, seed) for part in PARTS for seed in c.seeds])
    if cells is None:
        return
    linear = study.cell("pca", 0, lambda: {"error": linear_error(networks)})["error"]
    rows, data = summary(cells, c), networks.data
    study.write_table(report(rows, linear, c, data.name))
    results = {"data": data.name, "data_hash": data.hash, "pca error": linear, "summary": rows, "cells": cells}
    write(study.claim, c, results, draw(cells, linear, c, data.name), study.results)


if __name__ == "__main__":
    main()
