"""Claim: whether better inference in training gives a better decoder, at equal steps and at equal decoder evaluations.

One decoder architecture and one start per seed, trained on dynamically binarised images in fifteen ways. A decoder is
judged by log p(x) of test images, which asks no encoder: importance samples come from a wider copy of the Laplace
approximation at the mode, and where their weights are unreliable, from more draws of it or by annealing. The share of
images for which it is tight stands beside it; below 99 % the figure is a lower bound, and no order is read from it.

- Equal steps: the best state, by the validation rule, within so many optimiser steps of one batch size.
- Equal evaluations: the same within so many forward passes of the decoder per training image of a batch. They are
  counted from the engine's report on a batch, with one pass for each code that is scored, and one per element of a code
  for each curvature matrix. Backward passes are not counted; the seconds include them: CPU time of one training step,
  the fastest of three runs of a first part, measured when all trainings are there, times the steps.
- Validation rule: at marks that grow by a half, importance sampling around the mode of validation images (held out of
  the training images), the same for all; a training ends when so many marks have brought no improvement.
- Rates: of Adam, and then of the inner steps where there are any (until then the middle of their grid), the best on
  validation images after a short training of another seed, of one grid for all; rates at an edge of it are marked.

    python -m experiments.training_by_inference [METHOD ...] [--seeds 0] [--data fashion-mnist]

trains some of the methods; the results are written once all cells are there. An interrupted training resumes from its
checkpoints in ``runs``. ``--smoke`` takes short trainings on the bundled digits.

Published (MNIST, other lengths of training): NLL of IWAE-50 < IWAE-5 < VAE (Burda et al. 2016); log p(x) of VLAE >
SA-VAE > VAE (Park et al. 2019).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.common import write
from experiments.study import (
    TIGHT,
    Images,
    Study,
    around_modes,
    best_rate,
    double,
    images,
    markdown,
    options,
    over_images,
    shown,
)
from gae import Autoencoder
from gae.analysis.baseline import without_code
from gae.analysis.estimates import Estimate, difference, estimate
from gae.data import Dataset
from gae.inference import MCMC, Adam, Ascent, Detach, GaussNewton, Langevin, Prior, Unroll, Zeros
from gae.objective import joint
from gae.studies.curves import held_out_bound
from gae.systems import iterative_vae, iwae, laplace_gae, mcmc_em, rws_vae, savae, vae, vlae
from gae.training import fit

CLAIM = "training_by_inference"


@dataclass(frozen=True)
class Configuration:
    """Everything that determines the numbers, with the data.

    Attributes:
        rates: of Adam.
        part: optimiser steps of one part of a training, the unit of the marks.
        step_parts: parts of the comparison at equal steps.
        evaluation_parts: parts of a training with one decoder evaluation per image, for equal evaluations.
        tuning_parts: parts of the training that chooses the rates.
        patience: marks without improvement after which a training ends.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seed: int = 100
    latent: int = 20
    hidden: tuple[int, ...] = (200, 200)
    batch_size: int = 100
    part: int = 50
    step_parts: int = 24
    evaluation_parts: int = 200
    tuning_parts: int = 6
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    patience: int = 3
    held_out: int = 5000
    validated: int = 100
    validation_draws: int = 200
    measured: int = 100
    draws: int = 500
    samples: int = 5000


SMOKE = Configuration(
    seeds=(0, 1),
    latent=3,
    hidden=(24,),
    part=10,
    step_parts=6,
    evaluation_parts=12,
    tuning_parts=2,
    rates=(1e-3, 1e-2),
    patience=2,
    held_out=200,
    validated=24,
    validation_draws=100,
    measured=12,
    draws=50,
    samples=300,
)

Build = Callable[[Configuration, torch.Size, float], Autoencoder]


@dataclass(frozen=True)
class Method:
    """A way to train the decoder.

    Attributes:
        label: in words.
        build: makes the model for a rate of the inner steps.
        inner: the grid of that rate; empty if there is none.
    """

    label: str
    build: Build
    inner: tuple[float, ...] = ()


def system(constructor: Callable[..., Autoencoder], **given: Any) -> Build:
    """A system with the decoder of the study."""

    def build(c: Configuration, shape: torch.Size, inner: float) -> Autoencoder:
        return constructor(shape, c.latent, c.hidden, "bernoulli", **given)

    return build


def stepping(constructor: Callable[..., Autoencoder]) -> Build:
    """A system with the decoder of the study whose inner steps have a rate."""

    def build(c: Configuration, shape: torch.Size, inner: float) -> Autoencoder:
        return constructor(shape, c.latent, c.hidden, "bernoulli", rate=inner)

    return build


def short_run(c: Configuration, shape: torch.Size, inner: float) -> Autoencoder:
    """Alternating back-propagation: codes by 30 Langevin steps from the prior."""
    decoder = vae(shape, c.latent, c.hidden, "bernoulli").likelihood
    return Autoencoder(decoder, Ascent(Prior(), Langevin(inner), 30, adjoint=Detach()), joint)


def unrolled_map(c: Configuration, shape: torch.Size, inner: float) -> Autoencoder:
    """MAP codes by 10 unrolled steps of Adam from zero; the objective has no maximiser, which the table shows."""
    decoder = vae(shape, c.latent, c.hidden, "bernoulli").likelihood
    climb = Ascent(Zeros(), Adam(inner, (0.8, 0.9)), 10, adjoint=Unroll())
    return Autoencoder(decoder, climb, joint, accepts_rescaling=True)


METHODS = {
    "vae": Method("VAE", system(vae)),
    "vae-stl": Method("VAE, STL gradient", system(vae, analytic=False, gradient="stl")),
    "iwae5": Method("IWAE, 5", system(iwae, samples=5)),
    "iwae50": Method("IWAE, 50", system(iwae, samples=50)),
    "iwae5-dreg": Method("IWAE, 5, DReG gradient", system(iwae, samples=5, gradient="dreg")),
    "iwae50-dreg": Method("IWAE, 50, DReG gradient", system(iwae, samples=50, gradient="dreg")),
    "savae": Method("SA-VAE, 5 steps", stepping(savae), (0.003, 0.01, 0.03)),
    "iterative": Method("iterative amortised, 5 steps", system(iterative_vae)),
    "vlae": Method("VLAE, 4 steps", system(vlae)),
    "flow": Method("VAE, flow (IAF)", system(vae, posterior="iaf")),
    "rws": Method("reweighted wake-sleep, 10", system(rws_vae)),
    "mcmc-em": Method("MCMC-EM, 5 trajectories", stepping(mcmc_em), (0.03, 0.1, 0.3)),
    "short-run": Method("short-run Langevin, 30 steps", short_run, (0.003, 0.01, 0.03)),
    "unrolled-map": Method("unrolled MAP, 10 steps", unrolled_map, (0.03, 0.1, 0.3)),
    "laplace": Method("Laplace evidence, 8 steps", system(laplace_gae)),
}
ORDERS = (  # (better, worse, source) as published
    ("iwae5", "vae", "Burda et al. 2016"),
    ("iwae50", "iwae5", "Burda et al. 2016"),
    ("savae", "vae", "Park et al. 2019"),
    ("vlae", "savae", "Park et al. 2019"),
)
BUDGETS = {"steps": "equal optimiser steps", "evaluations": "equal decoder evaluations"}


class Parts(Dataset):
    """A data set whose epoch is one part of a pass, so that a training can be measured and stopped between parts."""

    size: int
    drawn: dict[tuple[int, int], Tensor]

    @staticmethod
    def of(data: Dataset, size: int) -> "Parts":
        fields = {name: getattr(data, name) for name in data.__dataclass_fields__}
        parts = Parts(**fields)
        object.__setattr__(parts, "size", size)
        object.__setattr__(parts, "drawn", {})
        return parts

    def epoch(self, epoch: int, seed: int = 0) -> Tensor:
        """The rows of the part, of a new draw of the pixels in each pass."""
        in_pass = len(self.train) // self.size
        number, start = epoch // in_pass, epoch % in_pass * self.size
        if (number, seed) not in self.drawn:
            self.drawn.clear()
            self.drawn[number, seed] = super().epoch(number, seed)
        return self.drawn[number, seed][start : start + self.size]


def build(c: Configuration, name: str, shape: torch.Size, inner: float, seed: int) -> Autoencoder:
    """The model of a method, with the decoder's initial weights of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = vae(shape, c.latent, c.hidden, "bernoulli").likelihood
        model = METHODS[name].build(c, shape, inner)
    model.likelihood.load_state_dict(start.state_dict())
    return model


def evaluations(model: Autoencoder, x: Tensor) -> float:
    """Forward passes of the decoder per image in a training step, as the module's documentation counts them."""
    encoding = model.encode(x)
    total = float(len(encoding.log_joint))
    if encoding.solve is not None:
        total += float(encoding.solve.evaluations.double().sum(0).mean())
        steps = float(encoding.solve.steps.double().sum(0).mean())
        if any(isinstance(part, GaussNewton) for part in model.inference.modules()):
            total += steps * model.likelihood.latent_shape.numel()
    if isinstance(model.inference, MCMC):
        total += len(encoding.log_joint)  # the ELBO that trains its encoder
    return total


def marks(last: int, budgets: tuple[int, ...]) -> list[int]:
    """Parts at which a training is measured: they grow by a half, and include the budgets.

    >>> marks(10, (7, 12))
    [1, 2, 3, 4, 6, 7, 9, 10]
    """
    grid, mark = {last}, 1
    while mark <= last:
        grid.add(mark)
        mark = max(mark + 1, round(1.49 * mark))
    return sorted(grid | {each for each in budgets if 1 <= each <= last})


class Trainings:
    """The cells of the study."""

    def __init__(self, study: Study, c: Configuration):
        self.study, self.c = study, c
        self.data: Images = images(study.data, c.held_out)
        self.shape = self.data.train.shape[1:]
        self.parts = Parts.of(self.data.dynamic, c.part * c.batch_size)
        self.validation = self.data.validation[: c.validated].double()

    def fit(self, model: Autoencoder, rate: float, parts: int, seed: int, out: Path | None) -> None:
        """Trains up to a part, from the last checkpoint in a folder if there is one."""
        fit(
            model,
            self.parts,
            epochs=parts,
            batch_size=self.c.batch_size,
            optimizer=partial(torch.optim.Adam, lr=rate),
            clip=200.0,
            seed=seed,
            out=out,
            resume=out is not None,
            progress=False,
        )

    def folder(self, name: str) -> Path:
        """The folder of a training's checkpoints."""
        return self.study.out / "checkpoints" / name.replace(" ", "-")

    def seconds(self, name: str, rates: dict[str, Any]) -> dict[str, float]:
        """A cell: the CPU time of an optimiser step."""
        model, runs = build(self.c, name, self.shape, rates["inner"] or 0.0, self.c.tuning_seed), []
        for _ in range(3):
            start = time.process_time()
            self.fit(model, rates["rate"], 1, self.c.tuning_seed, None)
            runs.append(time.process_time() - start)
        return {"seconds per step": min(runs) / self.c.part}

    def score(self, model: Autoencoder) -> dict[str, float]:
        """The validation bound of a decoder."""
        point = held_out_bound(double(model.likelihood), self.validation, self.c.validation_draws)
        return {"bound": float(torch.tensor(point["values"]).mean()), "ess": point["ess"]}

    def tuned(self, name: str) -> dict[str, Any]:
        """The rates of a method, chosen on validation images after a short training: Adam's, then the inner one."""
        c, inner = self.c, METHODS[name].inner or (0.0,)
        middle = inner[len(inner) // 2]
        outer = best_rate({rate: self.trial(name, rate, middle) for rate in c.rates})
        best = best_rate({step: self.trial(name, outer["rate"], step) for step in inner})
        return {
            "rate": outer["rate"],
            "edge": outer["edge"],
            "inner": best["rate"] if METHODS[name].inner else None,
            "inner edge": best["edge"] if METHODS[name].inner else None,
            "scores": {"rate": outer["scores"], "inner": best["scores"] if METHODS[name].inner else None},
        }

    def trial(self, name: str, rate: float, inner: float) -> float | None:
        """The validation bound after a short training, or None if it failed."""
        label, seed = f"rates {name} {rate:g} {inner:g}", self.c.tuning_seed

        def train() -> dict[str, Any]:
            model = build(self.c, name, self.shape, inner, seed)
            try:
                self.fit(model, rate, self.c.tuning_parts, seed, self.folder(label))
            except FloatingPointError as error:
                return {"bound": None, "reason": str(error)}
            return self.score(model)

        bound: float | None = self.study.cell(label, seed, train)["bound"]
        self.study.keep(label)
        return bound

    def train(self, name: str, seed: int) -> None:
        """Trains a decoder under both budgets, and measures the best state of each."""
        if self.study.known(f"training {name} seed {seed}") is not None:
            return
        c, chosen = self.c, self.tuned(name)
        model = build(c, name, self.shape, chosen["inner"] or 0.0, seed)
        spent = self.study.cell(
            f"cost {name}", 0, lambda: {"evaluations": evaluations(model, self.data.train[: c.batch_size])}
        )["evaluations"]
        budgets = {"steps": c.step_parts, "evaluations": int(c.evaluation_parts / spent)}
        last = max(budgets.values())
        curve: list[dict[str, Any]] = []
        for mark in marks(last, tuple(budgets.values())):
            label = f"{name} seed {seed} part {mark}"
            point = self.study.cell(label, seed, partial(self.point, model, chosen["rate"], mark, name, seed, label))
            if point["bound"] is None:
                break
            curve.append(point | {"parts": mark})
            best = max(range(len(curve)), key=lambda i: curve[i]["bound"])
            if len(curve) - 1 - best >= c.patience:
                break
        measured = {}
        for budget, parts in budgets.items():
            within = [point for point in curve if point["parts"] <= parts]
            if not within:
                continue  # the first mark already exceeds the budget, or the training failed before it
            best_mark = max(within, key=lambda point: point["bound"])["parts"]
            label = f"measured {name} seed {seed} part {best_mark}"
            self.study.cell(label, seed, partial(self.measured, name, seed, best_mark))
            measured[budget] = {"parts": best_mark, "cell": label}
        finished = f"training {name} seed {seed}"
        self.study.cell(
            finished,
            seed,
            lambda: {
                "rates": chosen,
                "evaluations": spent,
                "budgets": budgets,
                "curve": curve,
                "stopped": curve[-1]["parts"] < last if curve else True,
                "measured": measured,
            },
        )
        self.study.keep(f"cost {name}", *(each["cell"] for each in measured.values()), finished)

    def point(self, model: Autoencoder, rate: float, mark: int, name: str, seed: int, label: str) -> dict[str, Any]:
        """A mark of a training: the validation bound, with the decoder kept in a file."""
        try:
            self.fit(model, rate, mark, seed, self.folder(f"{name} seed {seed}"))
        except FloatingPointError as error:
            return {"bound": None, "reason": str(error)}
        path = self.study.weights(label)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.likelihood.state_dict(), path)
        return self.score(model)

    def measured(self, name: str, seed: int, mark: int) -> dict[str, Any]:
        """log p(x), the bound of the Laplace approximation, and the use of the code, on test images."""
        c = self.c
        decoder = build(c, name, self.shape, 0.1, seed).likelihood
        decoder.load_state_dict(torch.load(self.study.weights(f"{name} seed {seed} part {mark}"), weights_only=True))
        x = self.data.test[: c.measured].double()
        return around_modes(double(decoder), x, c.draws, c.samples)


@dataclass(frozen=True)
class Row:
    """A method under one budget, over trainings."""

    name: str
    trainings: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    budget: str
    seconds: float  # of a step

    @property
    def log_p(self) -> list[list[float]]:
        return [cell["log_p"]["values"] for cell in self.cells]

    @property
    def tight(self) -> float:
        return float(min(cell["log_p"]["tight"] for cell in self.cells))


def without(c: Configuration, data: Images, shape: torch.Size) -> dict[str, Any]:
    """A cell: log p(x) of the model without a code, which no training of the decoder changes."""
    decoder = vae(shape, c.latent, c.hidden, "bernoulli").likelihood
    return {"values": without_code(decoder, data.train, data.test[: c.measured]).tolist()}


def rows_of(
    cells: dict[str, dict[str, Any]], seconds: dict[str, float], c: Configuration, budget: str, study: Study
) -> dict[str, Row]:
    """The methods that have a state within the budget for every seed."""
    rows = {}
    for name in METHODS:
        trainings = [cells[f"training {name} seed {seed}"] for seed in c.seeds]
        if all(budget in training["measured"] for training in trainings):
            mine = [study.known(training["measured"][budget]["cell"]) for training in trainings]
            rows[name] = Row(name, trainings, [cell for cell in mine if cell is not None], budget, seconds[name])
    return rows


def table(rows: dict[str, Row], c: Configuration, without_a_code: list[float]) -> str:
    header = [
        "training",
        "log p(x)",
        "s.e. over images",
        "minus VAE",
        "minus no code",
        "tight",
        "least ESS",
        "largest k̂",
    ]
    header += ["log p(x) − L[Laplace]", "active units", "KL", "E‖z‖² (prior)", "steps", "evaluations/step"]
    header += ["seconds", "rate", "inner rate"]
    lines = []
    for row in sorted(rows.values(), key=lambda row: -estimate(row.log_p).mean):
        mean = estimate(row.log_p)
        tight = row.tight >= TIGHT
        gap = difference(row.log_p, [cell["laplace"]["values"] for cell in row.cells]) if tight else None
        baseline = rows.get("vae")
        comparable = tight and baseline is not None and baseline.tight >= TIGHT and row.name != "vae"
        uses = [cell["use"] for cell in row.cells]
        shapes = [cell["log_p"]["largest_pareto_k"] for cell in row.cells]
        chosen = [training["measured"][row.budget]["parts"] for training in row.trainings]
        rates = row.trainings[0]["rates"]
        ended = ["" if is_last(row, i) else " (stopped)" for i in range(len(chosen))]
        lines.append(
            [
                METHODS[row.name].label,
                ("" if tight else "≥ ") + shown(mean),
                over_images(mean),
                shown(difference(row.log_p, baseline.log_p)) if comparable and baseline is not None else "–",
                shown(difference(row.log_p, [without_a_code] * len(row.cells)), 1),
                f"{100 * row.tight:.0f} %",
                f"{min(cell['log_p']['least_ess'] for cell in row.cells):.0f}",
                "infinite" if None in shapes else f"{max(shapes):.2f}",
                shown(gap),
                ", ".join(str(use["active"]) for use in uses) + f" of {c.latent}",
                f"{sum(use['kl'] for use in uses) / len(uses):.1f}",
                f"{sum(use['square'] for use in uses) / len(uses):.1f} ({uses[0]['prior_square']:.0f})",
                ", ".join(f"{parts * c.part}{end}" for parts, end in zip(chosen, ended, strict=True)),
                f"{row.trainings[0]['evaluations']:.0f}",
                f"{row.seconds * c.part * sum(chosen) / len(chosen):.0f}",
                f"{rates['rate']:g}" + (" (edge)" if rates["edge"] else ""),
                "–" if rates["inner"] is None else f"{rates['inner']:g}" + (" (edge)" if rates["inner edge"] else ""),
            ]
        )
    return markdown(header, lines)


def is_last(row: Row, i: int) -> bool:
    """Whether the best state of a training is the last that the budget allows, so that more would have helped."""
    training = row.trainings[i]
    return bool(training["measured"][row.budget]["parts"] == training["budgets"][row.budget])


def orders(rows: dict[str, Row]) -> list[dict[str, Any]]:
    """The published orders, with the difference measured here and whether it agrees."""
    verdicts = []
    for better, worse, source in ORDERS:
        entry: dict[str, Any] = {"better": better, "worse": worse, "source": source, "difference": None}
        if better not in rows or worse not in rows:
            entry["verdict"] = "no state within the budget"
        elif min(rows[better].tight, rows[worse].tight) < TIGHT:
            entry["verdict"] = "unknown: log p(x) is a lower bound only"
        else:
            gain: Estimate = difference(rows[better].log_p, rows[worse].log_p)
            entry["difference"] = gain
            direction = "met" if gain.mean > 0 else "reversed"
            entry["verdict"] = direction if gain.significant else "not resolved by these trainings"
        verdicts.append(entry)
    return verdicts


def report(tables: dict[str, dict[str, Row]], c: Configuration, data: Images, baseline: list[float]) -> str:
    """All tables as Markdown."""
    parts = [
        f"# Decoders by the inference in their training ({data.name})",
        f"One decoder architecture; {len(c.seeds)} trainings each, the error of log p(x) and of all differences is "
        f"over trainings, on the first {c.measured} test images, in nats per image. “≥”: tight for fewer than "
        f"{100 * TIGHT:.0f} % of the images of a training, so a lower bound, from which no difference is taken. "
        "L[Laplace] is the ELBO of the Laplace approximation at the mode, full covariance, and E‖z‖² is under it, "
        "beside the prior's: smaller codes are a sign of training without a maximiser. “stopped”: the best state on "
        "validation images came before the end of the budget; otherwise a longer training might be better. "
        f"“edge”: the rate is the first or last of the grid; rates were chosen after {c.tuning_parts * c.part} "
        "steps of another seed. “minus no code”: log p(x) less that of the best constant output. An order "
        "is met or reversed if a t test over trainings resolves it at 5 %.",
    ]
    for budget, label in BUDGETS.items():
        rows = tables[budget]
        absent = [METHODS[name].label for name in METHODS if name not in rows]
        parts.append(f"## At {label}\n\n{budget_sentence(budget, c)}\n\n{table(rows, c, baseline)}")
        if absent:
            parts.append(f"Without a state within this budget for every seed: {', '.join(absent)}.")
        lines = [
            [
                f"{METHODS[entry['better']].label} > {METHODS[entry['worse']].label} ({entry['source']})",
                shown(entry["difference"]),
                entry["verdict"],
            ]
            for entry in orders(rows)
        ]
        parts.append(markdown(["published order in log p(x)", "difference", "here"], lines))
    return "\n\n".join(parts)


def budget_sentence(budget: str, c: Configuration) -> str:
    if budget == "steps":
        return f"At most {c.step_parts * c.part} steps of {c.batch_size} images."
    return f"At most {c.evaluation_parts * c.part} decoder evaluations per image of a batch of {c.batch_size}."


def draw(cells: dict[str, dict[str, Any]], seconds: dict[str, float], c: Configuration) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(16, 5), constrained_layout=True, sharey=True)
    colours = pyplot.get_cmap("tab20")
    for i, name in enumerate(METHODS):
        for j, seed in enumerate(c.seeds):
            training = cells[f"training {name} seed {seed}"]
            steps = [point["parts"] * c.part for point in training["curve"]]
            bounds = [point["bound"] for point in training["curve"]]
            places = [[each * unit for each in steps] for unit in (1, training["evaluations"], seconds[name])]
            label = METHODS[name].label if j == 0 else None
            for axes, place in zip(panels, places, strict=True):
                axes.plot(place, bounds, color=colours(i), lw=1, label=label)
    limits = (c.step_parts * c.part, c.evaluation_parts * c.part)
    for axes, limit in zip(panels, limits, strict=False):
        axes.axvline(limit, color="0.5", ls="--", lw=1)
    names = ("optimiser steps", "decoder evaluations per image of a batch", "seconds of training (CPU)")
    for axes, xlabel in zip(panels, names, strict=True):
        axes.set(xscale="log", xlabel=xlabel)
    panels[0].set_ylabel("lower bound of log p(x), validation images (nats)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def timed(study: Study, trainings: Trainings, cells: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The CPU seconds of a step of each method, all measured by one process."""
    seconds = {}
    for name in METHODS:
        rates = cells[f"training {name} seed {trainings.c.seeds[0]}"]["rates"]
        entry = study.cell(f"seconds {name}", 0, partial(trainings.seconds, name, rates))
        seconds[name] = float(entry["seconds per step"])
    study.keep(*(f"seconds {name}" for name in METHODS))
    return seconds


def main() -> None:
    given = options(__doc__, tuple(METHODS))
    torch.set_num_threads(1)  # two methods in two processes take two cores
    c = SMOKE if given.smoke else Configuration()
    study = Study(CLAIM, c, given)
    trainings = Trainings(study, c)
    for name in given.parts:
        for seed in study.seeds:
            trainings.train(name, seed)
    without_a_code = study.cell("without code", 0, partial(without, c, trainings.data, trainings.shape))["values"]
    cells = study.all_known([f"training {name} seed {seed}" for name in METHODS for seed in c.seeds])
    if cells is None:
        return
    seconds = timed(study, trainings, cells)
    tables = {budget: rows_of(cells, seconds, c, budget, study) for budget in BUDGETS}
    study.write_table(report(tables, c, trainings.data, without_a_code))
    results = {
        "data": trainings.data.name,
        "data_hash": trainings.data.hash,
        "without code": without_a_code,
        "trainings": cells,
        "measured": {budget: {name: row.cells for name, row in rows.items()} for budget, rows in tables.items()},
        "seconds per step": seconds,
    }
    write(study.claim, c, results, draw(cells, seconds, c), study.results)


if __name__ == "__main__":
    main()
