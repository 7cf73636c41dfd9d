"""Claim: L-BFGS finds MAP codes to 0.01 nats in a quarter to a half of the evaluations of tuned Adam or momentum.

The mean log joint log q_w(z) q_r(x|z) of MNIST test images under the decoder of benchmark P1 (20-200-200-784, tanh,
Bernoulli), for every step rule, from zeros, from a draw of the prior and from the encoder's mean, against decoder
evaluations per image and against seconds. Each point is the code that a solve with this budget returns: the last
point, or for the rules with a search (``LBFGS``, ``GaussNewton``) the best one. Rates are chosen from a grid for every
start and budget, on training images that are not shown.

An evaluation is the log joint and its gradient. A Gauss-Newton step counts as 1 + 20 of them, as its matrix takes one
tangent pass through the decoder per latent dimension. The gap is to the highest log joint that any run from any start
reached, many long ones included; it may be a local maximum. Once nearly all images have converged, a few images
determine the mean gap, and a rate chosen on others need not suit them: hence Adam's rise at 256 steps. Seconds are
medians over rounds in which all take turns in random order; they hold for one batch on one machine.

    python -m experiments.bound_vs_compute
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import agree
from benchmarks.mnist_vae import LATENT, images, trained
from benchmarks.p01_map_codes import long_run
from experiments.common import arguments, mnist, write
from gae import Autoencoder
from gae.inference import (
    LBFGS,
    Adam,
    Ascent,
    Detach,
    GaussNewton,
    GradientAscent,
    Inference,
    Momentum,
    Prior,
    Step,
    Zeros,
)
from gae.likelihood import Likelihood


@dataclass(frozen=True)
class Rule:
    """A step rule, its grid of rates, its budgets in steps, and its evaluations per step."""

    make: Callable[..., Step]
    rates: tuple[float, ...] = ()
    budgets: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    evaluations: int = 1

    def steps(self) -> list[Step]:
        return [self.make(rate) for rate in self.rates] or [self.make()]


RULES = {
    "GradientAscent": Rule(GradientAscent, (0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016)),
    "Momentum": Rule(Momentum, (0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.016)),
    "Adam": Rule(Adam, (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)),
    "LBFGS": Rule(LBFGS),
    "GaussNewton": Rule(GaussNewton, budgets=(2, 4, 8, 16), evaluations=1 + LATENT),
}
COLOURS = dict(zip(RULES, ("tab:gray", "tab:cyan", "tab:orange", "tab:blue", "tab:red"), strict=True))


TITLES = {"zeros": "from zeros", "prior": "from a draw of the prior", "encoder": "from the encoder's mean"}
FLOOR = 1e-5  # nats: smaller gaps are rounding in float32, and are drawn here


@dataclass(frozen=True)
class Configuration:
    images: int = 200
    tuning_images: int = 100
    close: float = 0.01  # nats
    other_starts: int = 8  # prior draws whose long runs count for the best known
    rounds: int = 5
    seed: int = 0


def starts(model: Autoencoder) -> dict[str, Inference]:
    return {"zeros": Zeros(), "prior": Prior(), "encoder": model.inference}


def engine(init: Inference, step: Step, steps: int, trace: bool = False) -> Ascent:
    return Ascent(init, step, steps, adjoint=Detach(), trace=trace)


@torch.no_grad()
def values(likelihood: Likelihood, x: Tensor, init: Inference, rule: Rule, step: Step, seed: int) -> Tensor:
    """Log joint of the code returned for each budget, (budgets, B) in nats."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trace = engine(init, step, max(rule.budgets) + 1, True)(likelihood, x).solve.trace[:, 0]
    if step.returns_best:  # after T evaluations the best of z_0 ... z_{T-1} is returned, else z_T
        return trace.cummax(0).values[[budget - 1 for budget in rule.budgets]]
    return trace[list(rule.budgets)]


def choose(runs: list[Tensor]) -> list[int]:
    """For every budget the index of the run with the highest mean."""
    means = torch.stack([run.double().mean(1).nan_to_num(-math.inf) for run in runs])
    return means.argmax(0).tolist()


@torch.no_grad()
def timed(
    likelihood: Likelihood, x: Tensor, sides: dict[Any, tuple[Ascent, Tensor]], configuration: Configuration
) -> dict[Any, float]:
    """Median seconds of every side, after a warm-up that checks the returned code against its trace."""
    taken: dict[Any, list[float]] = {key: [] for key in sides}
    with torch.random.fork_rng(devices=[]):
        for key, (one, promised) in sides.items():
            torch.manual_seed(configuration.seed)
            agree(str(key), one(likelihood, x).log_joint[0], promised, 1e-4)
        for turn in range(configuration.rounds):
            for key in Random(turn).sample(list(sides), len(sides)):  # a side also feels the one before it
                start = perf_counter()
                sides[key][0](likelihood, x)
                taken[key].append(perf_counter() - start)
    return {key: median(seconds) for key, seconds in taken.items()}


def best_known(model: Autoencoder, x: Tensor, configuration: Configuration) -> Tensor:
    """Highest log joint of long runs from every start and from more draws of the prior, (B,) in nats."""
    likelihood, inits = model.likelihood, list(starts(model).values())
    others = [Prior() for _ in range(configuration.other_starts)]
    adam = [Ascent(init, Adam(0.05), 300, adjoint=Detach()) for init in inits]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(configuration.seed)
        return long_run(likelihood, x, *inits, *others, *adam)


def describe(values: Tensor, best: Tensor, close: float) -> dict[str, float]:
    gap = (best - values).double()
    return {
        "bound": float(values.double().mean()),
        "gap": float(gap.mean()),
        "gap_se": float(gap.std() / len(gap) ** 0.5),
        "median_gap": float(gap.median()),
        "share_close": float((gap < close).double().mean()),
    }


def draw(rows: list[dict[str, Any]], configuration: Configuration) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        ("evaluations", "gap", "mean gap to best known (nats)"),
        ("evaluations", "share_close", f"share of images within {configuration.close} nats"),
        ("seconds", "gap", "mean gap to best known (nats)"),
    ]
    labels = {"evaluations": "decoder evaluations per image", "seconds": f"seconds, batch of {configuration.images}"}
    figure, grid = pyplot.subplots(3, 3, figsize=(12, 10.5), sharey="row", constrained_layout=True)
    for (i, (across, up, label)), (j, start) in product(enumerate(panels), enumerate(TITLES)):
        axes = grid[i, j]
        for name, colour in COLOURS.items():
            line = [row for row in rows if row["rule"] == name and row["start"] == start]
            height = [max(row[up], FLOOR) if up == "gap" else row[up] for row in line]
            axes.plot([row[across] for row in line], height, ".-", color=colour, label=name)
        axes.set_xscale("log")
        if up == "gap":
            axes.set_yscale("log")
        axes.set_xlabel(labels[across])
        if j == 0:
            axes.set_ylabel(label)
        if i == 0:
            axes.set_title(TITLES[start])
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS))
    figure.suptitle(
        f"MAP codes of {configuration.images} MNIST test images: log joint below the best known of any start.\n"
        "Every point has the rate that was best for its start and budget on other images.\n"
        "A mean gap that levels off is that of a few images in lower local maxima."
    )
    return figure


def main(configuration: Configuration) -> None:
    name, train, test = images()
    model = trained(train)
    likelihood, x, tuning = model.likelihood, test[: configuration.images], train[: configuration.tuning_images]
    rows, reached, sides = [], [], {}
    for (start, init), (rule_name, rule) in product(starts(model).items(), RULES.items()):
        steps = rule.steps()
        chosen = choose([values(likelihood, tuning, init, rule, step, configuration.seed) for step in steps])
        shown = {i: values(likelihood, x, init, rule, steps[i], configuration.seed) for i in set(chosen)}
        for i, (budget, at) in enumerate(zip(rule.budgets, chosen, strict=True)):
            reached.append(shown[at][i])
            rate = rule.rates[at] if rule.rates else None
            key = (rule_name, start, budget)
            sides[key] = (engine(init, steps[at], budget), reached[-1])
            row = {"rule": rule_name, "start": start, "steps": budget, "evaluations": budget * rule.evaluations}
            rows.append({**row, "rate": rate})
    best = torch.stack([best_known(model, x, configuration), *reached]).amax(0)
    seconds = timed(likelihood, x, sides, configuration)
    for row, value in zip(rows, reached, strict=True):
        row |= describe(value, best, configuration.close)
        row["seconds"] = seconds[row["rule"], row["start"], row["steps"]]
    results = {
        "data": name,
        "data_hash": mnist("threshold").hash,
        "best_known": float(best.double().mean()),
        "grids": {rule_name: rule.rates for rule_name, rule in RULES.items()},
        "rows": rows,
    }
    write("bound_vs_compute", configuration, results, draw(rows, configuration))


if __name__ == "__main__":
    arguments(__doc__)
    main(Configuration())
