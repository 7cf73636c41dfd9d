"""Claim: the cost of an encoder on one fixed decoder, by its width, depth, training images and family of densities.

For each seed a VAE is trained on dynamically binarised images, and its decoder is frozen. Encoders of every size are
then fitted to that decoder by its ELBO, on one fixed draw of binary images. They differ from a middle size
in one respect at a time, width, depth or number of training images; the narrowest and the widest also learn from the
fewest images. Families of densities: normal with a diagonal or a full covariance, and a flow (IAF). All take the same
number of optimiser steps and stop by the same rule on validation images, held out of the training images; the rate is
for each encoder the best of one grid, on validation images after a fifth of the epochs with the first seed, and rows
whose rate is an edge of it say so.

On the first test and the first training images (which all encoders learn from):

- L[q] of the encoder, and L[q*] of its family. q* of a normal family is searched by L-BFGS from the Laplace
  approximation, once for each decoder, so that all encoders are held against the same one. q* of the flows
  starts from the flow encoder of middle size; Adam has no test of convergence, so the gain from its last doubling of
  steps is shown instead.
- amortisation gap L[q*] - L[q]; generalisation gap, the amortisation gap on test less that on training images, so that
  neither the images' difficulty nor the decoder's fit counts;
- log p(x) with the share of images for which it is tight; active units of each encoder.

Beside it, in a table of its own: the same for *co-trained* VAEs, each with its own decoder, which has adapted to the
encoder. This is another quantity.

    python -m experiments.encoder_capacity [PART ...] [--seeds 0] [--data fashion-mnist]

computes some parts of the grid; the results are written once all on frozen decoders are there, and again once the
co-trained ones are. Parts are ``decoder``, a family with what differs from the middle size (``full-width``), and
``cotrained`` with a family. ``--smoke`` takes a tiny grid of the bundled digits.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.common import write
from experiments.study import (
    CONVERGED,
    TIGHT,
    Images,
    Study,
    best_rate,
    double,
    evidence_entry,
    images,
    markdown,
    optimum_entry,
    options,
    over_images,
    reference,
    shown,
)
from gae import Autoencoder
from gae.analysis.baseline import without_code
from gae.analysis.best_flow import best_flow
from gae.analysis.estimates import Estimate, difference, estimate
from gae.analysis.inference_gap import inference_gap, lower_bound
from gae.evidence.usage import code_usage
from gae.inference import Amortized
from gae.inference.flows import NormalizingFlow
from gae.likelihood import Likelihood
from gae.systems import vae
from gae.systems.parts import Encoder
from gae.training import fit
from gae.training.history import History

CLAIM = "encoder_capacity"
FAMILIES = {"diagonal": "mean-field", "full": "full covariance", "iaf": "flow"}
AXES = ("middle", "width", "depth", "images", "corners")
COTRAINED = "cotrained"
PARTS = (
    "decoder",
    *(f"{family}-{axis}" for family in FAMILIES for axis in AXES),
    *(f"{COTRAINED}-{family}" for family in FAMILIES),
)
SPLITS = ("test", "train")


@dataclass(frozen=True)
class Configuration:
    """Everything that determines the numbers, with the data.

    Attributes:
        middle: width, depth and training images of the encoder from which the others differ.
        rates: of Adam; the best on validation images is taken, for each encoder, with the first seed.
        tuning_share: of the epochs, after which the rates are compared.
        stages: share of the epochs at each multiple of the rate.
        patience: epochs without a lower validation loss after which a stage ends.
        epochs: of as many images as the largest training set, of which smaller ones are repeated.
        measured: first test and training images on which gaps are measured.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    latent: int = 10
    decoder_hidden: tuple[int, ...] = (200, 200)
    widths: tuple[int, ...] = (16, 64, 256, 1024)
    depths: tuple[int, ...] = (1, 2, 3)
    sizes: tuple[int, ...] = (1000, 5000, 20_000, 55_000)
    middle: tuple[int, int, int] = (256, 2, 55_000)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    tuning_share: float = 0.2
    stages: tuple[tuple[float, float], ...] = ((1.0, 0.7), (0.1, 0.3))
    decoder_epochs: int = 20
    encoder_epochs: int = 10
    patience: int = 4
    batch_size: int = 128
    held_out: int = 5000
    measured: int = 100
    usage_images: int = 2000
    draws: int = 500
    optimum_steps: int = 300
    flow_steps: int = 200
    samples: int = 5000


SMOKE = Configuration(
    seeds=(0, 1),
    latent=4,
    decoder_hidden=(32,),
    widths=(4, 32),
    depths=(1, 2),
    sizes=(100, 1200),
    middle=(32, 1, 1200),
    rates=(3e-3, 1e-2),
    decoder_epochs=8,
    encoder_epochs=2,
    patience=3,
    held_out=200,
    measured=12,
    usage_images=200,
    draws=50,
    optimum_steps=60,
    flow_steps=20,
    samples=500,
)


@dataclass(frozen=True)
class Size:
    """The size of an encoder, and the number of images that it learns from."""

    width: int
    depth: int
    images: int

    def __str__(self) -> str:
        return f"width {self.width} depth {self.depth} images {self.images}"


def axes_of(c: Configuration) -> dict[str, list[Size]]:
    """The middle size, those that differ from it in one respect, and the extreme widths on the fewest images."""
    width, depth, number = c.middle
    return {
        "middle": [Size(*c.middle)],
        "width": [Size(each, depth, number) for each in c.widths],
        "depth": [Size(width, each, number) for each in c.depths],
        "images": [Size(width, depth, each) for each in c.sizes],
        "corners": [Size(each, depth, c.sizes[0]) for each in (c.widths[0], c.widths[-1])],
    }


def sizes(c: Configuration) -> list[Size]:
    """All sizes of the study."""
    return list(dict.fromkeys(size for axis in axes_of(c).values() for size in axis))


def frozen_names(c: Configuration) -> Iterator[str]:
    """The names of the cells on frozen decoders."""
    for seed in c.seeds:
        yield decoder_name(seed)
        for family in FAMILIES:
            yield from (encoder_name(family, size, seed) for size in sizes(c))


def cotrained_names(c: Configuration) -> Iterator[str]:
    for seed in c.seeds:
        yield from (cotrained_name(family, width, seed) for family, width in cotrained(c))


def decoder_name(seed: int) -> str:
    return f"decoder seed {seed}"


def encoder_name(family: str, size: Size, seed: int) -> str:
    return f"{family} {size} seed {seed}"


def cotrained_name(family: str, width: int, seed: int) -> str:
    return f"cotrained {family} width {width} seed {seed}"


def cotrained(c: Configuration) -> list[tuple[str, int]]:
    """Family and encoder width of the co-trained VAEs."""
    others = [(family, c.middle[0]) for family in FAMILIES if family != "diagonal"]
    return [("diagonal", width) for width in c.widths] + others


def network(c: Configuration, shape: torch.Size, family: str, size: Size, seed: int) -> Autoencoder:
    """A VAE with the decoder of the study and an encoder of a family and size, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = vae(shape, c.latent, c.decoder_hidden, "bernoulli").likelihood
        model = vae(shape, c.latent, size.depth * (size.width,), "bernoulli", posterior=family)
    return Autoencoder(decoder, model.inference, model.objective)


def encoder_in(model: Autoencoder) -> Encoder:
    """The encoder of a VAE."""
    encoder = model.inference.guide
    assert isinstance(encoder, Encoder)
    return encoder


def learn(
    c: Configuration, model: Autoencoder, train: Any, validation: Tensor, rate: float, epochs: int, seed: int
) -> list[int]:
    """Trains a model at a rate and, at its end, at a tenth of it; returns the epochs of each stage."""
    lengths = [
        len(stage(c, model, train, validation, factor * rate, share * epochs, 1000 * seed + i).rows)
        for i, (factor, share) in enumerate(c.stages)
    ]
    model.eval()
    return lengths


def tuned(
    c: Configuration, build: Callable[[int], Autoencoder], train: Any, validation: Tensor, epochs: int
) -> dict[str, Any]:
    """The rate that is best on validation images after a short training with the first seed."""
    scores: dict[float, float | None] = {}
    for rate in c.rates:
        model = build(c.seeds[0])
        try:
            history = stage(c, model, train, validation, rate, c.tuning_share * epochs, 1000 * c.seeds[0])
            scores[rate] = -min(row.validation_loss for row in history.rows if row.validation_loss is not None)
        except FloatingPointError:
            scores[rate] = None
    return best_rate(scores)


def stage(
    c: Configuration, model: Autoencoder, train: Any, validation: Tensor, rate: float, epochs: float, seed: int
) -> History:
    """Training at one rate, which ends at the parameters with the least validation loss."""
    return fit(
        model,
        train,
        epochs=max(1, round(epochs)),
        batch_size=c.batch_size,
        optimizer=partial(torch.optim.Adam, lr=rate),
        clip=200.0,
        validation=validation,
        patience=c.patience,
        seed=seed,
        progress=False,
    )


class Capacity:
    """The cells of the study."""

    def __init__(self, study: Study, c: Configuration):
        self.study, self.c = study, c
        self.data: Images = images(study.data, c.held_out)
        if len(self.data.train) < c.sizes[-1]:
            raise ValueError(f"The study needs {c.sizes[-1]} training images, got {len(self.data.train)}.")
        self.shape = self.data.train.shape[1:]
        self.splits = {"test": self.data.test[: c.measured], "train": self.data.train[: c.measured]}

    def run(self, part: str, seed: int) -> None:
        """Computes the cells of a part."""
        self.decoder(seed)
        first, _, second = part.partition("-")
        if first in FAMILIES:
            for size in axes_of(self.c)[second]:
                cell = partial(self.encoder, first, size, seed)
                self.study.cell(encoder_name(first, size, seed), seed, cell)
        if first == COTRAINED:
            for family, width in cotrained(self.c):
                if family == second:
                    cell = partial(self.cotrained, family, width, seed)
                    self.study.cell(cotrained_name(family, width, seed), seed, cell)

    def vae(self, family: str, width: int, seed: int) -> tuple[Autoencoder, dict[str, Any]]:
        """A VAE trained as a whole, on dynamically binarised images; kept in a file."""
        c = self.c
        size = Size(width, c.middle[1], len(self.data.train))
        build = partial(network, c, self.shape, family, size)
        return self.trained(f"vae {family} width {width}", build, self.data.dynamic, c.decoder_epochs, seed)

    def fitted(self, family: str, size: Size, seed: int) -> tuple[Autoencoder, dict[str, Any]]:
        """An encoder fitted to the frozen decoder of a seed; kept in a file."""
        c = self.c

        def build(seed: int) -> Autoencoder:
            model = network(c, self.shape, family, size, seed)
            return Autoencoder(self.decoder(seed), model.inference, model.objective)

        rounds = math.ceil(c.sizes[-1] / size.images)  # as many steps for few images as for many
        train = self.data.train[: size.images].repeat(rounds, *[1] * len(self.shape))[: c.sizes[-1]]
        return self.trained(f"encoder {family} {size}", build, train, c.encoder_epochs, seed)

    def trained(
        self, name: str, build: Callable[[int], Autoencoder], train: Any, epochs: int, seed: int
    ) -> tuple[Autoencoder, dict[str, Any]]:
        """A model, trained unless it is in its file, and the record of the choice of its rate."""
        path = self.study.weights(f"{name} seed {seed}")
        record, model = path.with_suffix(".json"), build(seed)
        if record.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval(), dict(json.loads(record.read_text()))
        validation = self.data.validation
        rates = self.study.phase(f"rates {name}", lambda: tuned(self.c, build, train, validation, epochs))
        lengths = learn(self.c, model, train, validation, rates["rate"], epochs, seed)
        choice = rates | {"epochs": lengths}
        record.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
        record.write_text(json.dumps(choice))
        return model, choice

    def decoder(self, seed: int) -> Likelihood:
        """The frozen decoder of a seed; its cell holds log p(x) and q* of both normal families."""
        model, choice = self.vae("diagonal", self.c.middle[0], seed)
        self.study.cell(decoder_name(seed), seed, lambda: self.decoder_cell(model, choice))
        return model.likelihood.requires_grad_(False)

    def decoder_cell(self, model: Autoencoder, choice: dict[str, Any]) -> dict[str, Any]:
        c, decoder = self.c, double(model.likelihood)
        budget = (c.optimum_steps, c.draws, c.samples)
        baseline = without_code(model.likelihood, self.data.train, self.splits["test"])
        return {
            "choice": choice,
            "without code": baseline.tolist(),
            **{split: reference(decoder, x.double(), *budget) for split, x in self.splits.items()},
        }

    def encoder(self, family: str, size: Size, seed: int) -> dict[str, Any]:
        """A cell: an encoder fitted to the frozen decoder, and its bounds."""
        c = self.c
        model, choice = self.fitted(family, size, seed)
        decoder = model.likelihood
        encoder = encoder_in(model)
        cell: dict[str, Any] = {
            "choice": choice,
            "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
            "active": self.active(encoder, decoder),
        }
        exact, precise = double(decoder), double(encoder)
        for split, x in self.splits.items():
            q = precise.density(x.double())
            cell[split] = lower_bound(exact, x.double(), q, c.draws).value.tolist()
            if family == "iaf" and size == Size(*c.middle):
                cell[f"optimum {split}"] = self.flow_optimum(exact, x.double(), q)
        return cell

    def flow_optimum(self, decoder: Likelihood, x: Tensor, q: NormalizingFlow) -> dict[str, Any]:
        """L[q*] of the flow family, and what its last doubling of steps gained."""
        bounds = [
            lower_bound(decoder, x, best_flow(decoder, x, q, steps=steps), self.c.draws)
            for steps in (self.c.flow_steps, 2 * self.c.flow_steps)
        ]
        return optimum_entry(bounds[1]) | {"last doubling": float((bounds[1].value - bounds[0].value).mean())}

    @torch.no_grad()
    def active(self, encoder: Encoder, decoder: Likelihood) -> int:
        laws = [encoder.density(batch) for batch in self.data.test[: self.c.usage_images].split(500)]
        return int(code_usage(laws, decoder.prior).active.sum())

    def cotrained(self, family: str, width: int, seed: int) -> dict[str, Any]:
        """A cell: the gaps of a VAE whose decoder was trained with its encoder."""
        c = self.c
        model, choice = self.vae(family, width, seed)
        cell: dict[str, Any] = {"choice": choice, "active": self.active(encoder_in(model), model.likelihood)}
        precise = Autoencoder(double(model.likelihood), Amortized(double(encoder_in(model))))
        for split, x in self.splits.items():
            gap = inference_gap(
                precise,
                x.double(),
                samples=c.samples,
                draws=c.draws,
                steps=c.optimum_steps,
                batch_size=c.measured,
            )
            assert gap.encoder is not None and gap.family is not None
            cell[split] = {
                "encoder": gap.encoder.value.tolist(),
                "optimum": optimum_entry(gap.best[gap.family]),
                "log_p": evidence_entry(gap.evidence),
            }
        return cell


@dataclass(frozen=True)
class Row:
    """Figures of one encoder over trainings, in nats."""

    family: str
    size: Size
    test: Estimate
    train: Estimate
    gap: Estimate
    train_gap: Estimate
    generalisation: Estimate
    total: Estimate | None
    active: list[int]
    parameters: int
    rates: list[float]
    edges: int
    converged: float | None


def row(cells: dict[str, Any], c: Configuration, family: str, size: Size) -> Row:
    """The figures of one encoder; errors are over trainings of decoder and encoder."""
    mine = [cells[encoder_name(family, size, seed)] for seed in c.seeds]
    bounds = {split: [cell[split] for cell in mine] for split in SPLITS}
    best = {split: [optimum(cells, c, family, split, seed)["values"] for seed in c.seeds] for split in SPLITS}
    decoders = [cells[decoder_name(seed)]["test"] for seed in c.seeds]
    tight = min(decoder["log_p"]["tight"] for decoder in decoders) >= TIGHT
    shares = [optimum(cells, c, family, split, seed)["converged"] for split in SPLITS for seed in c.seeds]
    gaps = {split: difference(best[split], bounds[split]) for split in SPLITS}
    # the samples of the two splits are not pairs: their means are, by training
    apart = [[mean(best[s][i]) - mean(bounds[s][i]) for s in SPLITS] for i in range(len(c.seeds))]
    return Row(
        family,
        size,
        estimate(bounds["test"]),
        estimate(bounds["train"]),
        gaps["test"],
        gaps["train"],
        estimate_of_means([test - train for test, train in apart]),
        difference([decoder["log_p"]["values"] for decoder in decoders], bounds["test"]) if tight else None,
        [cell["active"] for cell in mine],
        mine[0]["parameters"],
        [cell["choice"]["rate"] for cell in mine],
        sum(cell["choice"]["edge"] for cell in mine),
        None if None in shares else min(shares),
    )


def optimum(cells: dict[str, Any], c: Configuration, family: str, split: str, seed: int) -> dict[str, Any]:
    """L[q*] of a family on the frozen decoder of a seed."""
    if family == "iaf":
        return dict(cells[encoder_name(family, Size(*c.middle), seed)][f"optimum {split}"])
    return dict(cells[decoder_name(seed)][split]["optimum"][FAMILIES[family]])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def estimate_of_means(values: list[float]) -> Estimate:
    """The mean over trainings of one number for each, with its error over trainings."""
    table = torch.tensor(values, dtype=torch.float64)
    error = float(table.std() / math.sqrt(len(values))) if len(values) > 1 else None
    return Estimate(float(table.mean()), error, len(values), "trainings")


def decoder_table(cells: dict[str, Any], c: Configuration) -> str:
    header = ["seed", "test log p(x)", "tight", "methods", "least ESS", "largest k̂"]
    header += ["gain over no code", "active units", "KL", "L[q*] diagonal", "L[q*] full", "converged"]
    rows = []
    for seed in c.seeds:
        cell = cells[decoder_name(seed)]
        test = cell["test"]
        evidence, best, use = test["log_p"], test["optimum"], test["use"]
        gain = difference([evidence["values"]], [cell["without code"]])
        converged = min(entry["converged"] for entry in best.values())
        k = evidence["largest_pareto_k"]
        rows.append(
            [
                str(seed),
                ("" if evidence["tight"] >= TIGHT else "≥ ") + f"{mean(evidence['values']):.2f}",
                f"{100 * evidence['tight']:.0f} %",
                ", ".join(f"{name} {count}" for name, count in evidence["methods"].items()),
                f"{evidence['least_ess']:.0f}",
                "infinite" if k is None else f"{k:.2f}",
                f"{gain.mean:.1f}",
                f"{use['active']} of {use['width']}",
                f"{use['kl']:.1f}",
                *(f"{mean(best[FAMILIES[family]]['values']):.2f}" for family in ("diagonal", "full")),
                f"{100 * converged:.0f} %",
            ]
        )
    return markdown(header, rows)


def encoder_table(rows: list[Row], c: Configuration) -> str:
    header = ["family", "width", "depth", "images", "parameters", "L[q] test", "L[q] train", "amortisation gap test"]
    header += ["s.e. over images", "amortisation gap train", "generalisation gap", "log p(x) − L[q] test"]
    header += ["active units", "rates"]
    lines = []
    for each in rows:
        bound = "≥ " if each.converged is None or each.converged < CONVERGED else ""
        edge = f" ({each.edges} of {len(c.seeds)} at an edge)" if each.edges else ""
        lines.append(
            [
                each.family,
                *(f"{value}" for value in (each.size.width, each.size.depth, each.size.images, each.parameters)),
                shown(each.test),
                shown(each.train),
                bound + shown(each.gap, 3),
                over_images(each.gap),
                bound + shown(each.train_gap, 3),
                shown(each.generalisation, 3),
                shown(each.total, 3),
                ", ".join(map(str, each.active)),
                ", ".join(f"{rate:g}" for rate in each.rates) + edge,
            ]
        )
    return markdown(header, lines)


def cotrained_rows(cells: dict[str, Any], c: Configuration) -> list[dict[str, Any]]:
    """Figures of the co-trained VAEs over trainings."""
    rows = []
    for family, width in cotrained(c):
        mine = [cells[cotrained_name(family, width, seed)] for seed in c.seeds]
        part = {
            split: {
                "encoder": [cell[split]["encoder"] for cell in mine],
                "optimum": [cell[split]["optimum"]["values"] for cell in mine],
                "log_p": [cell[split]["log_p"]["values"] for cell in mine],
            }
            for split in SPLITS
        }
        shares = [cell[split]["optimum"]["converged"] for cell in mine for split in SPLITS]
        tight = min(cell["test"]["log_p"]["tight"] for cell in mine)
        rows.append(
            {
                "family": family,
                "width": width,
                "log_p": estimate(part["test"]["log_p"]),
                "tight": tight,
                "encoder": estimate(part["test"]["encoder"]),
                "gap": difference(part["test"]["optimum"], part["test"]["encoder"]),
                "train gap": difference(part["train"]["optimum"], part["train"]["encoder"]),
                "total": difference(part["test"]["log_p"], part["test"]["encoder"]) if tight >= TIGHT else None,
                "converged": None if None in shares else min(shares),
                "active": [cell["active"] for cell in mine],
                "edges": sum(cell["choice"]["edge"] for cell in mine),
            }
        )
    return rows


def cotrained_table(rows: list[dict[str, Any]], c: Configuration) -> str:
    header = ["family", "encoder width", "test log p(x)", "tight", "L[q] test", "amortisation gap test"]
    header += ["s.e. over images", "amortisation gap train", "log p(x) − L[q] test", "active units", "rates at an edge"]
    lines = []
    for each in rows:
        bound = "≥ " if each["converged"] is None or each["converged"] < CONVERGED else ""
        lines.append(
            [
                each["family"],
                str(each["width"]),
                ("" if each["tight"] >= TIGHT else "≥ ") + shown(each["log_p"]),
                f"{100 * each['tight']:.0f} %",
                shown(each["encoder"]),
                bound + shown(each["gap"], 3),
                over_images(each["gap"]),
                bound + shown(each["train gap"], 3),
                shown(each["total"], 3),
                ", ".join(map(str, each["active"])),
                f"{each['edges']} of {len(c.seeds)}",
            ]
        )
    return markdown(header, lines)


def report(cells: dict[str, Any], c: Configuration, data: Images, rows: list[Row], others: list[dict[str, Any]]) -> str:
    """All tables as Markdown."""
    doublings = [
        cells[encoder_name("iaf", Size(*c.middle), seed)][f"optimum {split}"]["last doubling"]
        for seed in c.seeds
        for split in SPLITS
    ]
    flows, full = (
        [optimum(cells, c, family, "test", seed)["values"] for seed in c.seeds] for family in ("iaf", "full")
    )
    below = sum(each.gap.mean < 0 or each.train_gap.mean < 0 for each in rows)
    shares = [each.converged for each in rows if each.converged is not None]
    return "\n\n".join(
        [
            f"# Encoders of every size on one frozen decoder ({data.name})",
            f"{len(c.seeds)} trainings of decoder and encoders; errors after “±” are standard errors over trainings. "
            f"Gaps on the first {c.measured} test and training images, in nats per image.",
            f"“≥” before a gap: fewer than {100 * CONVERGED:.0f} % of the solves of q* converged (least share "
            f"{100 * min(shares):.0f} %), or there is no test of convergence (flows: the last doubling of steps gained "
            f"at most {max(doublings):.3f} nats, and L[q*] less that of the full normal is "
            f"{shown(difference(flows, full), 3)}). “≥” before a log p(x): it is tight for fewer than "
            f"{100 * TIGHT:.0f} % of the images, so that no gap is quoted from it (“–”). A negative amortisation gap "
            "says that the encoder is ahead of the reference q*, which is then not the optimum; "
            f"{below} of {len(rows)} rows have one.",
            "## The frozen decoders\n\n" + decoder_table(cells, c),
            "## Encoders fitted to them\n\nThe amortisation gap is L[q*] − L[q] on the same decoder, within the "
            "family; the generalisation gap is that on test less that on training images.\n\n" + encoder_table(rows, c),
            "## Co-trained: another quantity\n\n" + (cotrained_section(others, c) if others else "Not run."),
        ]
    )


def cotrained_section(rows: list[dict[str, Any]], c: Configuration) -> str:
    return (
        "Each row has its own decoder, which has adapted to its encoder, so that these gaps are not the cost of an "
        "encoder's size on a given decoder.\n\n" + cotrained_table(rows, c)
    )


def draw(rows: list[Row], others: list[dict[str, Any]], c: Configuration) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    number = 4 if others else 3
    figure, panels = pyplot.subplots(1, number, figsize=(1 + 4 * number, 4.5), constrained_layout=True)
    middle = Size(*c.middle)
    for axes, name in zip(panels, ("width", "depth", "images"), strict=False):
        rest = [each for each in ("width", "depth", "images") if each != name]
        for family, colour in zip(FAMILIES, ("tab:blue", "tab:orange", "tab:green"), strict=True):
            line = [
                each
                for each in rows
                if each.family == family and all(getattr(each.size, key) == getattr(middle, key) for key in rest)
            ]
            line.sort(key=lambda each: int(getattr(each.size, name)))
            places = [getattr(each.size, name) for each in line]
            for style, label, gaps in (
                ("-", f"{FAMILIES[family]}, test", [each.gap for each in line]),
                (":", f"{FAMILIES[family]}, train", [each.train_gap for each in line]),
            ):
                errors = [gap.error or 0.0 for gap in gaps]
                axes.errorbar(
                    places, [gap.mean for gap in gaps], errors, color=colour, ls=style, marker="o", label=label
                )
        axes.set(xlabel=name if name != "images" else "training images")
        if name == "depth":
            axes.set_xticks(c.depths)
        else:
            axes.set_xscale("log")
    panels[0].set_ylabel("amortisation gap on the frozen decoder (nats)")
    if others:
        draw_cotrained(panels[3], others)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def draw_cotrained(axes: Any, others: list[dict[str, Any]]) -> None:
    diagonal = [each for each in others if each["family"] == "diagonal"]
    for style, key in (("-", "gap"), (":", "train gap")):
        axes.errorbar(
            [each["width"] for each in diagonal],
            [each[key].mean for each in diagonal],
            [each[key].error or 0.0 for each in diagonal],
            color="0.3",
            ls=style,
            marker="s",
            label="test" if key == "gap" else "train",
        )
    axes.set(xscale="log", xlabel="encoder width", title="co-trained: each width has another decoder")
    axes.legend()


def main() -> None:
    given = options(__doc__, PARTS)
    torch.set_num_threads(1)  # two parts in two processes take two cores
    c = SMOKE if given.smoke else Configuration()
    study = Study(CLAIM, c, given)
    capacity = Capacity(study, c)
    for seed in study.seeds:
        for part in given.parts:
            capacity.run(part, seed)
    cells = study.all_known(list(frozen_names(c)))
    if cells is None:
        return
    rows = [row(cells, c, family, size) for family in FAMILIES for size in sizes(c)]
    trained_along = study.all_known(list(cotrained_names(c))) or {}
    others = cotrained_rows(trained_along, c) if trained_along else []
    study.write_table(report(cells, c, capacity.data, rows, others))
    facts = {"data": capacity.data.name, "data_hash": capacity.data.hash}
    write(study.claim, c, facts | {"cells": cells | trained_along}, draw(rows, others, c), study.results)


if __name__ == "__main__":
    main()
