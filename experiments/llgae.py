"""Claim: how well locally linear charts reconstruct images, by how they start, at equal width and at equal bits.

LLGAE with K = 11 charts of E = 20 dimensions, all images of MNIST and of Fashion-MNIST, learned by closed-form
alternation from four starts, with as many iterations in all:

- ``k-means++``: its default, one hard step from seeds of k-means++;
- ``k-means``: the clusters of k-means, run until nothing changes;
- ``EM``: soft assignment, as a mixture of probabilistic PCA (Tipping & Bishop 1999), for the first half;
- ``annealing``: soft assignment for the first half, at noise scales that are lowered by a schedule (Rose 1998).

The errors are squared errors per pixel on the 0-255 scale (times 255² = 65025), the unit of the notes, whose training
by the gradient of the plain update rule reached 768 on Fashion-MNIST after 540 epochs. The start with the least
training error is named; nothing is chosen by test images. Beside it PCA of equal width, and an autoencoder of equal
width, whose rate is tuned on training images held out for that.

A code of LLGAE also names a chart, and its coordinates differ in use from PCA's, so that widths are not comparable.
*Bits* are: coordinates are rounded to multiples of a step, and coded at the cross-entropy of their histograms on the
training images (one per chart and dimension), the chart at that of its frequency. For each budget of bits, step and
number of leading dimensions are those with the least training error; PCA may take up to 300 dimensions. The decoders'
parameters are not counted; LLGAE has 11 times as many as PCA of the same width.

    python -m experiments.llgae [PART ...] [--seeds 0] [--data fashion-mnist]

computes some parts, each start, ``pca`` and ``autoencoder``; the results are written once all are there. ``--smoke``
takes a tiny grid of the bundled digits.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.common import mnist, write
from experiments.study import Study, best_rate, markdown, options, over_trainings
from gae import Autoencoder
from gae.data import Dataset, load
from gae.inference import ClosedForm, Enumerate
from gae.likelihood import LinearMixture
from gae.objective import elbo, joint
from gae.systems import ae, kmeans, llgae, pca
from gae.training import fit

CLAIM = "llgae"
SCALE = 255.0**2
NOTE = {"fashion-mnist": 768.0}  # by the gradient of the plain update rule, 540 epochs


@dataclass(frozen=True)
class Configuration:
    """Everything that determines the numbers, with the data.

    Attributes:
        iterations: of the alternation, soft ones included.
        soft: iterations with soft assignment, of the starts that have any.
        variances: of the noise while annealing, in turn.
        pca_width: most dimensions of PCA at equal bits.
        quanta: steps to whose multiples coordinates are rounded.
        budgets: bits per image.
        rates: of Adam, for the autoencoder.
        stages: share of the epochs at each multiple of the rate.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    components: int = 11
    latent: int = 20
    iterations: int = 40
    soft: int = 20
    variances: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5)
    kmeans_iterations: int = 100
    pca_width: int = 300
    quanta: tuple[float, ...] = (0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5, 2.2, 3.3)
    budgets: tuple[int, ...] = (10, 20, 30, 40, 60, 80, 100)
    hidden: tuple[int, ...] = (512, 256)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    stages: tuple[tuple[float, float], ...] = ((1.0, 0.7), (0.1, 0.3))
    epochs: int = 30
    patience: int = 4
    batch_size: int = 128
    held_out: int = 5000


SMOKE = Configuration(
    seeds=(0, 1),
    components=3,
    latent=4,
    iterations=8,
    soft=4,
    variances=(1.0, 0.5),
    pca_width=30,
    hidden=(32,),
    rates=(1e-3, 1e-2),
    epochs=5,
    held_out=200,
)


def error_of_loss(loss: float, components: int, pixels: int) -> float:
    """The squared error per pixel from a loss in nats with unit noise: loss = ½‖·‖² + ½ D log 2π + log K."""
    return SCALE * 2 * (loss - 0.5 * pixels * math.log(2 * math.pi) - math.log(components)) / pixels


@torch.no_grad()
def error(model: Autoencoder, x: Tensor) -> dict[str, float]:
    """Squared error per pixel on the 0-255 scale, and its standard error over images."""
    parts = [(model.reconstruct(batch) - batch).flatten(1).double().square().mean(1) for batch in x.split(2000)]
    each = SCALE * torch.cat(parts)
    return {"mean": float(each.mean()), "se": float(each.std() / math.sqrt(len(each)))}


Start = Callable[[Configuration, Dataset, int], tuple[Autoencoder, int]]


def from_seeds(c: Configuration, data: Dataset, seed: int) -> tuple[Autoencoder, int]:
    """An LLGAE that ``fit`` starts from k-means++."""
    return llgae(data.event_shape, c.latent, c.components), 0


def from_kmeans(c: Configuration, data: Dataset, seed: int) -> tuple[Autoencoder, int]:
    """The principal directions of the clusters of k-means."""
    clusters = kmeans(data.event_shape, c.components)
    fit(clusters, data, epochs=c.kmeans_iterations, seed=seed, progress=False)
    model = llgae(data.event_shape, c.latent, c.components)
    charts = model.likelihood
    assert isinstance(charts, LinearMixture)
    with torch.no_grad():
        charts.maximize(charts.statistics(data.train, clusters.encode(data.train)))
        charts.initialized.fill_(True)
    return model, 0


def from_em(c: Configuration, data: Dataset, seed: int) -> tuple[Autoencoder, int]:
    """The charts of a mixture of probabilistic PCA."""
    mixture = LinearMixture(c.components, c.latent, data.event_shape, learn_scale=True, learn_weights=True)
    fit(Autoencoder(mixture, Enumerate(ClosedForm()), elbo), data, epochs=c.soft, seed=seed, progress=False)
    return with_charts(c, mixture), c.soft


def from_annealing(c: Configuration, data: Dataset, seed: int) -> tuple[Autoencoder, int]:
    """Charts that share images by their errors, at falling noise scales."""
    mixture = LinearMixture(c.components, c.latent, data.event_shape, flat_prior=True)
    model = Autoencoder(mixture, Enumerate(ClosedForm()), joint)
    for variance in c.variances:
        mixture.log_scale.fill_(0.5 * math.log(variance))
        fit(model, data, epochs=c.soft // len(c.variances), seed=seed, progress=False)
    return with_charts(c, mixture), c.soft


def with_charts(c: Configuration, mixture: LinearMixture) -> Autoencoder:
    """An LLGAE with the means of a mixture, and orthonormal loadings that span the same charts."""
    model = llgae(mixture.event_shape, c.latent, c.components)
    charts = model.likelihood
    assert isinstance(charts, LinearMixture)
    with torch.no_grad():
        charts.means.copy_(mixture.means)
        charts.loadings.copy_(torch.linalg.qr(mixture.loadings.double().mT)[0].mT)
        charts.initialized.fill_(True)
    return model


STARTS: dict[str, Start] = {
    "k-means++": from_seeds,
    "k-means": from_kmeans,
    "EM": from_em,
    "annealing": from_annealing,
}
PARTS = (*STARTS, "pca", "autoencoder")


class Codes:
    """The chart and the coordinates of each image, with what is left of its square.

    Attributes:
        k: (N,), the chart.
        z: (N, E), coordinates along orthonormal directions.
        rest: (N,), ‖x - mean_k‖².
    """

    @torch.no_grad()
    def __init__(self, model: Autoencoder, x: Tensor):
        charts = model.likelihood
        assert isinstance(charts, LinearMixture)
        gram = charts.loadings @ charts.loadings.mT
        torch.testing.assert_close(gram, torch.eye(gram.shape[-1]).to(gram).expand_as(gram), atol=1e-4, rtol=0)
        codes = [model.encode(batch) for batch in x.split(2000)]
        parts = [torch.zeros(code.z.shape[1], dtype=torch.long) if code.k is None else code.k[0] for code in codes]
        self.k = torch.cat(parts)
        self.z = torch.cat([code.z[0] for code in codes]).double()
        self.rest = (x.flatten(1) - charts.means[self.k]).double().square().sum(1)
        self.pixels, self.components = x[0].numel(), charts.components

    def rounded(self, known: "Codes", step: float) -> tuple[Tensor, Tensor]:
        """Bits per image, and error per pixel on the 0-255 scale, for each number of leading dimensions, 0 to E.

        Args:
            known: the codes whose histograms give the code lengths.
            step: the unit to whose multiples coordinates are rounded.
        """
        share = known.k.bincount(minlength=self.components).double() + 0.5
        bits = torch.zeros_like(self.z)
        gain = torch.zeros_like(self.z)
        for chart in range(self.components):
            mine = self.k == chart
            levels = (known.z[known.k == chart] / step).round().long()
            for dim, level in enumerate(levels.unbind(1)):
                lowest = level.min()
                counts = (level - lowest).bincount().double() + 0.5
                index = ((self.z[mine, dim] / step).round().long() - lowest).clamp(0, len(counts) - 1)
                bits[mine, dim] = -(counts / counts.sum()).log2()[index]
                exact = self.z[mine, dim]
                gain[mine, dim] = exact.square() - (exact - step * (index + lowest)).square()
        chart_bits = -(share / share.sum()).log2()[self.k].mean() if self.components > 1 else bits.new_zeros(())
        total = torch.cat([chart_bits[None], chart_bits + bits.mean(0).cumsum(0)])
        left = torch.cat([self.rest.mean()[None], self.rest.mean() - gain.mean(0).cumsum(0)])
        return total, SCALE * left / self.pixels


def at_bits(c: Configuration, model: Autoencoder, data: Dataset) -> list[dict[str, float]]:
    """For each budget of bits, the test error of the step and width that have the least training error within it."""
    train, test = Codes(model, data.train), Codes(model, data.test)
    choices = []
    for step in c.quanta:
        known, new = train.rounded(train, step), test.rounded(train, step)
        choices += [
            {"step": step, "width": width, "bits": bits, "error": left, "test bits": test_bits, "test error": test_left}
            for width, (bits, left, test_bits, test_left) in enumerate(
                zip(*(column.tolist() for column in (*known, *new)), strict=True)
            )
        ]
    rows = []
    for budget in c.budgets:
        within = [choice for choice in choices if choice["bits"] <= budget]
        rows.append({"budget": budget} | min(within, key=lambda choice: choice["error"]))
    return rows


class Charts:
    """The cells of the study."""

    def __init__(self, study: Study, c: Configuration):
        self.study, self.c = study, c
        self.data = load("digits") if study.data == "digits" else mnist("none", study.data)

    def run(self, part: str, seed: int) -> None:
        cells = {"pca": self.linear, "autoencoder": self.autoencoder}
        compute = cells.get(part, partial(self.alternated, part))
        self.study.cell(cell_name(part, seed), seed, partial(compute, seed))
        self.study.keep(cell_name(part, seed))

    def alternated(self, start: str, seed: int) -> dict[str, Any]:
        """A cell: an LLGAE from a start."""
        c, began = self.c, time.process_time()
        model, spent = STARTS[start](c, self.data, seed)
        history = fit(model, self.data, epochs=c.iterations - spent, seed=seed, progress=False)
        seconds = time.process_time() - began
        pixels = self.data.train[0].numel()
        return self.errors(model) | {
            "curve": [error_of_loss(row.loss, c.components, pixels) for row in history.rows],
            "first": spent,
            "processor seconds": seconds,
            "bits": at_bits(c, model, self.data),
        }

    def linear(self, seed: int) -> dict[str, Any]:
        """A cell: PCA of equal width, and of any width at equal bits."""
        c, began = self.c, time.process_time()
        model, wide = (pca(self.data.event_shape, width) for width in (c.latent, c.pca_width))
        fit(model, self.data, progress=False)
        seconds = time.process_time() - began
        fit(wide, self.data, progress=False)
        return self.errors(model) | {"processor seconds": seconds, "bits": at_bits(c, wide, self.data)}

    def autoencoder(self, seed: int) -> dict[str, Any]:
        """A cell: an autoencoder of equal width, at the rate that is best on held-out training images."""
        c, began = self.c, time.process_time()
        train, held = self.data.train[: -c.held_out], self.data.train[-c.held_out :]
        models: dict[float, Autoencoder] = {}
        scores: dict[float, float | None] = {}
        for rate in c.rates:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = ae(self.data.event_shape, c.latent, c.hidden)
            for stage, (factor, share) in enumerate(c.stages):
                history = fit(
                    model,
                    train,
                    epochs=max(1, round(share * c.epochs)),
                    batch_size=c.batch_size,
                    optimizer=partial(torch.optim.Adam, lr=factor * rate),
                    validation=held,
                    patience=c.patience,
                    seed=1000 * seed + stage,
                    progress=False,
                )
            scores[rate] = -min(row.validation_loss for row in history.rows if row.validation_loss is not None)
            models[rate] = copy.deepcopy(model).eval()
        choice = best_rate(scores)
        seconds = time.process_time() - began
        return self.errors(models[choice["rate"]]) | {"choice": choice, "processor seconds": seconds}

    def errors(self, model: Autoencoder) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in model.likelihood.parameters())
        train, test = error(model, self.data.train), error(model, self.data.test)
        return {"train": train["mean"], "test": test["mean"], "test error over images": test["se"], "size": parameters}


def cell_name(part: str, seed: int) -> str:
    return f"{part} seed {seed}"


def summary(cells: dict[str, dict[str, Any]], c: Configuration) -> dict[str, Any]:
    """Means over trainings of each part; PCA has one solution, so that all its trainings are the same."""
    rows: dict[str, Any] = {}
    for part in PARTS:
        mine = [cells[cell_name(part, seed)] for seed in c.seeds]
        rows[part] = {key: over_trainings([cell[key] for cell in mine]) for key in ("train", "test")}
        rows[part]["processor seconds"] = over_trainings([cell["processor seconds"] for cell in mine])["mean"]
        if "bits" in mine[0]:
            rows[part]["bits"] = [
                {"budget": budget}
                | {
                    key: over_trainings([cell["bits"][i][key] for cell in mine])
                    for key in ("test bits", "test error", "width")
                }
                for i, budget in enumerate(c.budgets)
            ]
    return rows


def shown(entry: dict[str, float], digits: int = 1) -> str:
    return f"{entry['mean']:.{digits}f} ± {entry['se']:.{digits}f}"


def report(rows: dict[str, Any], cells: dict[str, dict[str, Any]], c: Configuration, data: Dataset) -> str:
    """All tables as Markdown."""
    best = best_start(rows)
    lines = [
        [
            part if part in ("pca", "autoencoder") else f"LLGAE, {part}",
            f"{cells[cell_name(part, c.seeds[0])]['size']}",
            *(shown(rows[part][key]) for key in ("train", "test")),
            f"{cells[cell_name(part, c.seeds[0])]['test error over images']:.1f}",
            f"{rows[part]['processor seconds']:.0f}",
        ]
        for part in PARTS
    ]
    header = ["", "parameters", "training error", "test error", "s.e. over images", "processor seconds"]
    chosen = [cells[cell_name("autoencoder", seed)]["choice"] for seed in c.seeds]
    edges = sum(choice["edge"] for choice in chosen)
    bits = [
        [
            str(budget),
            *(
                text
                for part in ("pca", best)
                for row in [rows[part]["bits"][i]]
                for text in (
                    shown(row["test error"]),
                    f"{row['test bits']['mean']:.1f}",
                    f"{row['width']['mean']:.0f}",
                )
            ),
        ]
        for i, budget in enumerate(c.budgets)
    ]
    note = NOTE.get(data.name)
    return "\n\n".join(
        [
            f"# Locally linear charts ({data.name})",
            f"Squared error per pixel × 65025; K = {c.components}, E = {c.latent}, {c.iterations} iterations, "
            f"{len(c.seeds)} trainings, errors over them (PCA has one solution). Least training error: {best}. "
            f"The autoencoder's rate was chosen on held-out images ({edges} of {len(chosen)} at an edge of the grid), "
            "its seconds include all rates."
            + ("" if note is None else f" The notes' gradient training: {note:.0f} after 540 epochs."),
            markdown(header, lines),
            f"## At equal bits\n\nPCA of any width up to {c.pca_width}, and LLGAE from {best}; step and number of "
            "dimensions by training error.",
            markdown(
                ["bits", "PCA, test error", "bits used", "width", "LLGAE, test error", "bits used", "width"],
                bits,
            ),
        ]
    )


def best_start(rows: dict[str, Any]) -> str:
    """The start with the least training error."""
    return min(STARTS, key=lambda start: float(rows[start]["train"]["mean"]))


def draw(rows: dict[str, Any], cells: dict[str, dict[str, Any]], c: Configuration, data: Dataset) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    for i, start in enumerate(STARTS):
        for seed in c.seeds:
            cell = cells[cell_name(start, seed)]
            places = range(cell["first"] + 1, cell["first"] + 1 + len(cell["curve"]))
            label = start if seed == c.seeds[0] else None
            left.plot(places, cell["curve"], color=f"C{i}", lw=1, label=label)
    left.set(xlabel="iteration", ylabel="training error per pixel × 65025", title="Hard assignment, by start")
    left.legend()
    for part, colour in (("pca", "0.3"), (best_start(rows), "tab:blue")):
        line = rows[part]["bits"]
        right.errorbar(
            [row["test bits"]["mean"] for row in line],
            [row["test error"]["mean"] for row in line],
            [row["test error"]["se"] for row in line],
            color=colour,
            marker="o",
            label="PCA of any width" if part == "pca" else f"LLGAE, {part}",
        )
    right.axhline(rows["pca"]["test"]["mean"], color="0.3", ls=":", label=f"PCA, {c.latent} exact coordinates")
    right.axhline(rows["autoencoder"]["test"]["mean"], color="tab:red", ls=":", label=f"autoencoder, {c.latent} exact")
    if data.name in NOTE:
        right.axhline(NOTE[data.name], color="tab:green", ls=":", label="LLGAE by the notes' gradient training, exact")
    right.set(xlabel="bits per image", ylabel="test error per pixel × 65025", title="At equal bits")
    right.legend()
    return figure


def main() -> None:
    given = options(__doc__, PARTS)
    torch.set_num_threads(1)  # two parts in two processes take two cores
    c = SMOKE if given.smoke else Configuration()
    study = Study(CLAIM, c, given)
    charts = Charts(study, c)
    for part in given.parts:
        for seed in study.seeds:
            charts.run(part, seed)
    cells = study.all_known([cell_name(part, seed) for part in PARTS for seed in c.seeds])
    if cells is None:
        return
    rows, data = summary(cells, c), charts.data
    study.write_table(report(rows, cells, c, data))
    facts = {"data": data.name, "data_hash": data.hash}
    results = facts | {"summary": rows, "cells": cells}
    write(study.claim, c, results, draw(rows, cells, c, data), study.results)


if __name__ == "__main__":
    main()
