"""Comparison of inference engines on fixed decoders, in nats, with closed-form baselines (one training per engine)."""

import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from gae.analysis.baseline import kernel_density, without_code
from gae.analysis.costs import worst
from gae.analysis.inference_gap import FLOW, lower_bound, one_row
from gae.analysis.matrix import DIAGONAL, ENCODER, FULL, WIDE, Cell, bound_matrix, code_use
from gae.analysis.metrics import Entry, evaluate, held_out, nearest_neighbours, point_metrics
from gae.autoencoder import Autoencoder
from gae.data import Dataset, load
from gae.data.files import whole, write_text
from gae.data.mapped import take
from gae.inference import Amortized, Inference
from gae.likelihood import FlatDistribution, Likelihood, StandardUnits
from gae.nets import first_tensor
from gae.reports.comparison import leading, write
from gae.studies.curves import held_out_bound, marks
from gae.studies.engines import (
    BASELINES,
    ENGINES,
    Configuration,
    assemble,
    calibrate_noise,
    configure,
    describe_engine,
    initial,
    need_encoders,
)
from gae.studies.given import GIVEN, GivenModel, configure_given
from gae.studies.jobs import ResumableJob, facts, one_thread, placement
from gae.studies.pictures import pictures
from gae.systems.parts import Encoder
from gae.training import fit
from gae.training.devices import dtype_of, placed, precision_of, single
from gae.training.group import agreed, claimed, share_out

if TYPE_CHECKING:
    import lightning_fabric

Module = TypeVar("Module", bound=torch.nn.Module)

INTERVAL = 10.0  # seconds of training that an interruption may cost; a checkpoint takes as long as several steps
POSTERIORS = {DIAGONAL: "diagonal", FULL: "full"}
NEIGHBOURS = "nearest training samples"


def compare(
    data: Any,
    out: str | os.PathLike[str],
    *,
    engines: Sequence[str] | None = None,
    model: Autoencoder | None = None,
    reference: str = "",
    epochs: int | None = None,
    latent: int | None = None,
    hidden: Sequence[int] = (128, 128),
    head: str | None = None,
    flow: str | None = None,
    wide: bool = False,
    seed: int = 0,
    seeds: int | None = None,
    quick: bool = False,
    resume: bool = False,
    progress: bool = True,
    fabric: "lightning_fabric.Fabric | None" = None,
) -> dict[str, Any]:
    """Trains one decoder per engine, freezes it, and compares families of densities and engines on each.

    On every frozen decoder an encoder of each family is fitted anew, so that its gap is not that of a decoder which has
    adapted to it. Then the bounds of the encoders, of a few steps from them, of local optima and of the Laplace
    approximation stand beside log p(x) of the same test samples.

    With a ``model``, no decoder is trained: its decoder is the frozen one, and its encoder stands for its family of
    densities, so that its own cost is measured. There are no training curves then.

    Writes into ``out``: ``results.json`` (the returned dictionary), ``report.html``, ``figures``, ``checkpoints`` and
    the state for resuming. All numbers except times are functions of the configuration. torch's global generator is
    restored. Everything runs on one thread of the processor.

    Args:
        data: a data set, or a source of ``gae.data.load``, which see for labels and a predefined test split.
        out: a new folder, or with ``resume`` the folder of an interrupted comparison of the same configuration.
        engines: names from ``gae.studies.engines.ENGINES``, each of which trains a decoder; all by default.
        model: a model of a given decoder (``gae.adapters.from_decoder``), instead of ``engines``, ``latent``, ``head``
            and ``seeds``.
        reference: the options of ``gae compare`` that give the same model, for the report.
        epochs: epochs of every training; by default chosen by the size of the data and the cost of the engine.
        latent: width of the code; by default 8, or the number of elements of an observation if that is smaller.
        hidden: widths of the hidden layers of the encoder; the decoder mirrors them.
        head: the decoder's distribution, a name from ``gae.systems.HEADS``; ``"gaussian"`` by default.
        flow: a third family, of normalizing flows: ``"iaf"``, ``"maf"`` or ``"nsf"``, which need zuko. Its encoder and
            its best densities take minutes for each decoder.
        wide: also fit a diagonal encoder of twice the width to each decoder, as a baseline of the encoder.
        seed: seed of the weights, the order of the data and the noise.
        seeds: number of trainings of each engine, with seeds from ``seed`` on; errors are then over trainings. 1 by
            default.
        quick: fewer epochs and samples, for a first look.
        resume: continue the comparison in ``out``.
        progress: announce each phase on standard error.
        fabric: the device and the precision of the trainings (``gae.training.launch``); with several processes, each
            trains and measures some of the decoders, in a folder that all can write; a given decoder is measured by
            one of them. The results are the same.

    Raises:
        ValueError, TypeError: unknown names, sizes or data that do not fit, options beside a ``model`` that it
            determines, or on resume another configuration.
        FileExistsError: ``out`` exists and ``resume`` is False.
    """
    data = data if isinstance(data, Dataset) else load(data)
    fabric, given = fabric or single("cpu"), None
    if data.missing:
        raise ValueError(
            "A comparison of engines needs complete observations, got data with missing='mask': it fits encoders "
            "of whole observations to each decoder. Remove or impute missing values, or compare systems that take them "
            "(`gae.survey`, `gae compare --missing mask --systems ppca,vae`)."
        )
    if model is None:
        names = tuple(ENGINES) if engines is None else engines
        configuration = configure(
            data, names, epochs, latent, hidden, head or "gaussian", seed, quick, 1 if seeds is None else seeds
        )
        decoder, _ = initial(configuration, data.event_shape)
    else:
        for option, value in {"engines": engines, "latent": latent, "head": head, "seeds": seeds}.items():
            if value is not None:
                raise ValueError(f"{option}={value!r} is for decoders that are trained. Leave it out with a given one.")
        given = GivenModel.of(model, data, dtype_of(precision_of(fabric)))
        configuration, decoder = configure_given(data, given, reference, epochs, hidden, seed, quick), given.likelihood
    configuration = replace(configuration, flow=flow, wide=wide or None, **placement(fabric))
    need_encoders(configuration, data.event_shape)
    for x in (data.epoch(0, seed), data.test):
        decoder.check(x.to(first_tensor(decoder).dtype))

    def job(again: bool) -> Comparison:
        return Comparison(Path(out), configuration, data, again, progress, fabric.device, given)

    with one_thread(), torch.random.fork_rng(devices=[]):
        run = claimed(fabric, job, resume)
        share_out(fabric, [partial(each.decoder, name) for each in run.trainings() for name in configuration.engines])
        return agreed(fabric, partial(_results, run))


def _results(run: "Comparison") -> dict[str, Any]:
    configuration = run.configuration
    baselines = {name: run.baseline(name) for name in BASELINES}
    trainings = run.trainings()
    stages = [stage for training in trainings for stage in training.stages()]
    run.each("decoders trained and measured", lambda stage: stage(), stages)
    results: dict[str, Any] = {
        **facts(asdict(configuration), run.data),
        "validation": len(run.validation),
        "engines": {
            name: {"training": ENGINES[name].training, "encoding": ENGINES[name].encoding}
            for name in configuration.engines
            if name != GIVEN
        },
        "trainings": [{"seed": each.seed, "decoders": each.entries} for each in trainings],
        "baselines": [
            run.phase(f"encode {name}", partial(run.measured, name, model)) for name, model in baselines.items()
        ],
        "without code": run.phase("without code", run.without_code),
        "neighbours": run.phase("neighbours", run.neighbours),
    }
    run.draw(trainings[0], baselines, results)
    results["seconds"] = {**run.seconds, "total": sum(run.seconds.values())}
    write_text(run.out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    run.say("report")
    write(run.out)
    return results


def _of_rows(data: Dataset, rows: Tensor) -> Dataset:
    """The data with some of the training observations."""
    labels, numbers = (None if each is None else each[rows] for each in (data.train_labels, data.train_rows))
    return replace(data, train=take(data.train, rows), train_labels=labels, train_rows=numbers)


class Comparison(ResumableJob):
    """A comparison and its folder."""

    def __init__(
        self,
        out: Path,
        configuration: Configuration,
        data: Dataset,
        resume: bool,
        progress: bool,
        device: torch.device,
        given: GivenModel | None = None,
    ):
        super().__init__(out, asdict(configuration), resume, progress)
        self.configuration, self.device, self.given = configuration, device, given
        self.measuring = placed(device, lambda: True, "Measuring bounds on log p(x)")
        # training redraws dynamic binarisations, evaluation uses one fixed draw
        dtype = dtype_of(configuration.precision)
        train, test = data.epoch(0, configuration.seed).to(dtype), data.test.to(dtype)
        number = max(1, min(configuration.matrix.tuning_samples, len(train) // 5))
        rest = torch.arange(number, len(train))
        self.validation, self.source = train[:number], _of_rows(data, rest)
        self.data = replace(self.source, train=take(train, rest), test=test)

    def trainings(self) -> "list[Training]":
        """The trainings, none of them done."""
        first = self.configuration.seed
        kind = Training if self.given is None else GivenTraining
        return [kind(self, first + i, i) for i in range(self.configuration.seeds)]

    def wide(self, module: Module) -> Module:
        """A copy in double precision, without gradients, on the device that measures bounds."""
        return copy.deepcopy(module).to(self.measuring, torch.float64).requires_grad_(False)

    def baseline(self, name: str) -> Autoencoder:
        """A fitted baseline; a noise scale that it does not learn is set to the RMS of the training residual."""
        self.say(f"fit {name}")
        start = time.perf_counter()
        torch.manual_seed(self.configuration.seed)
        model = BASELINES[name](self.source, self.configuration).to(self.data.train.dtype)
        c = self.configuration
        fit(model, self.data, epochs=c.baseline_epochs, seed=c.seed, progress=False, fabric=single("cpu"))
        calibrate_noise(model, self.data.train, self.configuration.effort)
        self.seconds[f"fit {name}"] = time.perf_counter() - start
        return model

    def measured(self, name: str, model: Autoencoder) -> Entry:
        """Metrics of a baseline, and log p(x) of the samples of the matrix if it exists."""
        c = self.configuration
        entry = {
            "decoder": name,
            **evaluate(model, self.data, c.effort, c.seed, held_out(model, self.data, c.effort, c.seed)),
        }
        proper = not isinstance(model.likelihood.prior, FlatDistribution)
        return {**entry, "values": model.log_evidence(self.matrix_samples).log_p.tolist() if proper else None}

    def without_code(self) -> Entry:
        """log p(x) of the head alone: the decoder's outputs are the same for every code, and fitted to the data."""
        return {"values": without_code(self.head(), self.data.train, self.matrix_samples).tolist()}

    def neighbours(self) -> Entry:
        """log p(x) of a kernel density estimate, and the reconstructions and labels of the nearest training samples."""
        values = kernel_density(self.head(), self.data.train, self.matrix_samples)
        entry = nearest_neighbours(self.data, self.configuration.effort)
        return {"decoder": NEIGHBOURS, **entry, "values": None if values is None else values.tolist()}

    def head(self) -> Likelihood:
        """The decoder before training, in the units of the data, or the given one."""
        if self.given is not None:
            return self.given.likelihood
        likelihood = initial(self.configuration, self.data.event_shape)[0].to(self.data.train.dtype)
        if isinstance(likelihood, StandardUnits):
            likelihood.set_units(self.data.train)
        return likelihood

    @property
    def matrix_samples(self) -> torch.Tensor:
        return self.data.test[: self.configuration.matrix.samples]

    def draw(self, first: "Training", baselines: dict[str, Autoencoder], results: dict[str, Any]) -> None:
        """Writes the arrays of the figures, from the first training."""
        import numpy as np

        start, stored = time.perf_counter(), self.out / "pictures.npz"
        if not stored.exists():
            self.say("pictures")
            models = {name: side.model for name, side in first.sides.items()}
            arrays = pictures(models, baselines, self.data, self.configuration, {})
            name = leading(results)
            rows = [index for index, _ in worst(results["trainings"][0]["decoders"][name]["matrix"], DIAGONAL)]
            with torch.no_grad():
                shown = Autoencoder(models[name].likelihood, Amortized(first.sides[name].encoders[DIAGONAL]))
                x = self.matrix_samples[rows]
                arrays |= {"worst": x.numpy(), "worst reconstruction": shown.reconstruct(x).numpy()}
            with whole(stored) as path:
                np.savez(path, **arrays)  # type: ignore[arg-type]
        self.seconds["pictures"] = time.perf_counter() - start


@dataclass(frozen=True)
class Side:
    """A decoder trained by an engine, with the encoder of that training, and those fitted to it once it was frozen."""

    model: Autoencoder
    encoder: Encoder
    encoders: dict[str, Encoder]
    loss: list[float]
    curve: Entry | None


class Training:
    """One training of every decoder, from the same initial weights, and its measurements."""

    def __init__(self, job: Comparison, seed: int, index: int):
        self.job, self.seed, self.data = job, seed, job.data
        self.configuration = replace(job.configuration, seed=seed)
        self.suffix = f" seed {seed}" if index else ""
        self.sides: dict[str, Side] = {}
        self.entries: Entry = {}

    def stages(self) -> Sequence[Callable[[], None]]:
        """The work in order: the training of every decoder, then the measurement of each."""
        names = self.configuration.engines
        return [partial(self.add_side, name) for name in names] + [partial(self.add_entry, name) for name in names]

    def add_side(self, name: str) -> None:
        self.sides[name] = self.train(name)

    def add_entry(self, name: str) -> None:
        self.entries[name] = self.measured(name, self.sides[name])

    def decoder(self, name: str) -> Entry:
        """Trains and measures one decoder."""
        return self.measured(name, self.train(name))

    def fit(self, name: str, model: Autoencoder, epochs: int, describe: dict[str, Any]) -> list[float]:
        """Trains by Adam up to an epoch, from the last checkpoint if there is one; returns the loss of each epoch."""
        c = self.configuration
        history = fit(
            model,
            self.job.source,
            epochs=epochs,
            batch_size=c.batch_size,
            clip=c.clip,
            optimizer=partial(torch.optim.Adam, lr=c.learning_rate, fused=True),
            seed=c.seed,
            out=self.job.out / "checkpoints" / f"{name}{self.suffix}".replace(" ", "-"),
            resume=True,
            checkpoint_interval=INTERVAL,
            progress=self.job.progress,
            fabric=single(self.job.device, c.precision or 32),
            describe=describe,
        )
        model.cpu()
        self.job.seconds[f"train {name}{self.suffix}"] = sum(row.seconds for row in history.rows)
        return [row.train_loss for row in history.rows]

    def train(self, name: str) -> Side:
        """Trains a decoder by a named engine, and fits an encoder of each family to it once it is frozen."""
        c = self.configuration
        decoder, encoder = initial(c, self.data.event_shape)
        model, loss = assemble(c, name, decoder, encoder), []
        curve: dict[str, list[Any]] = {"steps": [], "evaluations": [], "values": []}
        per_epoch = -(-len(self.data.train) // c.batch_size)
        self.job.say(f"train {name}{self.suffix}")
        for epoch in marks(c.training_epochs, name):
            loss = self.fit(name, model, epoch, describe_engine(c, name, self.data))
            point = self.phase(f"curve {name} {epoch}", partial(self.point, decoder))
            curve["steps"].append(epoch * per_epoch)
            curve["evaluations"].append(epoch * per_epoch * ENGINES[name].evaluations(c))
            curve["values"].append(point["values"])
        frozen = copy.deepcopy(decoder).requires_grad_(False)
        encoders = {family: self.encoder(name, frozen, family) for family in self.posteriors}
        return Side(model, encoder, encoders, loss, curve)

    @property
    def posteriors(self) -> dict[str, str]:
        """The names of the encoders that are fitted, by family; the wide one is of the diagonal family."""
        wide, flow = self.configuration.wide, self.configuration.flow
        return {**POSTERIORS, **({WIDE: "wide"} if wide else {}), **({FLOW: flow} if flow else {})}

    def encoder(self, name: str, frozen: Likelihood, family: str) -> Encoder:
        """An encoder of a family, fitted to a frozen decoder."""
        c, posterior = self.configuration, self.posteriors[family]
        _, encoder = initial(c, self.data.event_shape, posterior)
        label = f"{name} encoder" if family == DIAGONAL else f"{name} {posterior} encoder"
        self.job.say(f"fit {label}{self.suffix}")
        model = assemble(c, "amortised", frozen, encoder)
        self.fit(label, model, c.encoder_epochs, describe_engine(c, "amortised", self.data, posterior))
        return encoder

    def phase(self, name: str, compute: Any) -> Any:
        """A stored phase of this training, computed from its seed."""

        def seeded() -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return compute()

        return self.job.phase(f"{name}{self.suffix}", seeded)

    def point(self, decoder: Likelihood) -> Entry:
        """A point of a training curve."""
        x = self.data.test[: self.configuration.curve_samples].to(self.job.measuring, torch.float64)
        return held_out_bound(self.job.wide(decoder), x, self.configuration.curve_draws)

    def measured(self, name: str, side: Side) -> Entry:
        """All measurements on one frozen decoder."""
        return {
            "loss": side.loss,
            "curve": side.curve,
            "use": self.phase(f"code {name}", partial(self.use, side)),
            "matrix": self.phase(f"matrix {name}", partial(self.matrix, side)),
            "co-trained": self.phase(f"co-trained {name}", partial(self.cotrained, name, side)),
            "points": [
                self.phase(f"points {name} by {label}", partial(self.points, label, side, engine))
                for label, engine in self.point_engines(side).items()
            ],
        }

    def use(self, side: Side) -> Entry:
        """Use of the code by the encoder that was fitted to the frozen decoder, over the test set."""
        with torch.no_grad():
            x = side.model.likelihood.in_standard_units(self.data.test)[1]
            return code_use(side.encoders[DIAGONAL].density(x), side.model.likelihood.prior)

    def matrix(self, side: Side) -> Entry:
        """Bounds of families × engines, in double precision."""
        budget, wide = self.configuration.matrix, self.job.wide
        decoder, encoders = wide(side.model.likelihood), {name: wide(each) for name, each in side.encoders.items()}
        rows = self.job.matrix_samples, self.job.validation
        x, held = (part.to(self.job.measuring, torch.float64) for part in rows)
        with torch.no_grad():
            seen = [decoder.in_standard_units(rows)[1] for rows in (x, held)]
            densities, tuning = ({f: one.density(rows) for f, one in encoders.items()} for rows in seen)
        entry = bound_matrix(decoder, x, densities, (held, tuning), budget)
        if WIDE in densities:
            cell = Cell(lower_bound(decoder, x, densities[WIDE], budget.draws), x.new_zeros(len(x)))
            row = entry["cells"][DIAGONAL]
            entry["cells"][DIAGONAL] = {ENCODER: row[ENCODER], WIDE: cell.entry(), **row}
        return entry

    def cotrained(self, name: str, side: Side) -> Entry | None:
        """Bounds of the encoder that was trained with its decoder, alone and by its engine; None without one."""
        if not ENGINES[name].trains_encoder:
            return None
        decoder = self.job.wide(side.model.likelihood)
        engines: dict[str, Inference] = {"its encoder": Amortized(side.encoder)}
        if name != "amortised":
            engines["its engine"] = side.model.inference
        x, draws = self.job.matrix_samples.to(self.job.measuring, torch.float64), self.configuration.matrix.draws
        return {
            label: lower_bound(decoder, x, self.density(self.job.wide(engine), decoder, x), draws).value.tolist()
            for label, engine in engines.items()
        }

    @torch.no_grad()
    def density(self, engine: Inference, decoder: Likelihood, x: torch.Tensor) -> Distribution:
        q = engine.infer(decoder, x).q
        assert q is not None
        return one_row(q)

    def point_engines(self, side: Side) -> dict[str, Inference]:
        """Engines whose codes are compared as points: the encoder's mean, and ascents to the mode."""
        c, encoder = self.configuration, Amortized(side.encoders[DIAGONAL])
        return {
            "encoder's mean": encoder,
            f"{c.steps} Adam steps from 0": c.ascent(),
            f"{c.steps} Adam steps from the encoder's mean": c.ascent(init=encoder),
        }

    def points(self, label: str, side: Side, engine: Inference) -> Entry:
        """Metrics of codes as points."""
        model, effort = Autoencoder(side.model.likelihood, engine), self.configuration.effort
        return {
            "engine": label,
            **point_metrics(model, self.data, effort, held_out(model, self.data, effort, self.seed)),
        }


class GivenTraining(Training):
    """The measurements on a given decoder, with an encoder fitted to it for each family that has none."""

    def train(self, name: str) -> Side:
        given = self.job.given
        assert given is not None
        frozen = given.likelihood
        encoders = {
            family: given.encoder if family == given.family and given.encoder else self.encoder(name, frozen, family)
            for family in self.posteriors
        }
        model = Autoencoder(frozen, Amortized(encoders[DIAGONAL]), accepts_rescaling=True)
        return Side(model, encoders[DIAGONAL], encoders, [], None)

    def cotrained(self, name: str, side: Side) -> Entry | None:
        return None
