"""Comparison of inference engines on the same decoder, in nats, with closed-form baselines."""

import copy
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gae.analysis.metrics import Entry, PointEncodings, evaluate, held_out
from gae.autoencoder import Autoencoder
from gae.data import Dataset
from gae.data.files import whole, write_text
from gae.likelihood import Likelihood
from gae.reports.comparison import write
from gae.studies.curves import bound_curves
from gae.studies.engines import (
    BASELINES,
    ENGINES,
    Configuration,
    assemble,
    calibrate_noise,
    configure,
    describe_engine,
    initial,
)
from gae.studies.jobs import ResumableJob, facts, one_thread
from gae.studies.pictures import pictures
from gae.systems import NormalEncoder
from gae.training import fit


def compare(
    data: Dataset,
    out: str | os.PathLike[str],
    *,
    engines: Sequence[str] = tuple(ENGINES),
    epochs: int | None = None,
    latent: int | None = None,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    seed: int = 0,
    quick: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains one decoder per engine from the same initial weights, then encodes the test set with every engine on each.

    Writes into ``out``: ``results.json`` (the returned dictionary), ``report.html``, ``figures``, ``checkpoints`` and
    the state for resuming. All numbers except times are functions of the configuration. torch's global generator is
    restored. Everything runs on one thread of the processor.

    Args:
        data: a data set; see ``gae.data.load`` for labels and a predefined test split.
        out: a new folder, or with ``resume`` the folder of an interrupted comparison of the same configuration.
        engines: names from ``gae.studies.engines.ENGINES``.
        epochs: epochs of every training; by default chosen by the size of the data.
        latent: width of the code; by default 8, or the number of elements of an observation if that is smaller.
        hidden: widths of the hidden layers of the encoder; the decoder mirrors them.
        head: the decoder's distribution, a name from ``gae.systems.HEADS``.
        seed: seed of the weights, the order of the data and the noise.
        quick: fewer epochs and samples, for a first look.
        resume: continue the comparison in ``out``.
        progress: announce each phase on standard error.

    Raises:
        ValueError, TypeError: unknown names, sizes or data that do not fit, or on resume another configuration.
        FileExistsError: ``out`` exists and ``resume`` is False.
    """
    configuration = configure(data, engines, epochs, latent, hidden, head, seed, quick)
    decoder, encoder = initial(configuration, data.event_shape)
    decoder.check(data.epoch(0, seed))
    decoder.check(data.test)
    with one_thread(), torch.random.fork_rng(devices=[]):
        run = Comparison(Path(out), configuration, data, resume, progress)
        results = _results(run, decoder, encoder)
    run.say("report")
    write(run.out)
    return results


def _results(run: "Comparison", decoder: Likelihood, encoder: NormalEncoder) -> dict[str, Any]:
    engines = run.configuration.engines
    baselines = {name: run.baseline(name) for name in BASELINES}
    trained = {name: run.train(name, decoder, encoder) for name in engines}
    results = {
        **facts(asdict(run.configuration), run.data),
        "engines": {name: {"training": ENGINES[name].training, "encoding": ENGINES[name].encoding} for name in engines},
        "decoders": {
            name: {"encoder": side.origin, "curve": side.curve, "encoder_curve": side.encoder_curve}
            for name, side in trained.items()
        },
        "cells": [run.evaluate(trained, name, engine) for name in engines for engine in engines],
        "baselines": [
            run.phase(f"encode {name}", partial(run.measured, name, model)) for name, model in baselines.items()
        ],
        "bounds": run.phase("bounds", partial(run.bounds, trained)),
    }
    run.draw({name: side.model for name, side in trained.items()}, baselines)
    results["seconds"] = {**run.seconds, "total": sum(run.seconds.values())}
    write_text(run.out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


@dataclass(frozen=True)
class Trained:
    """A trained decoder with its engine, its encoder, and the loss of each epoch (nats per sample)."""

    model: Autoencoder
    encoder: NormalEncoder
    origin: str
    curve: list[float]
    encoder_curve: list[float] | None


class Comparison(ResumableJob):
    """A comparison and its folder."""

    def __init__(self, out: Path, configuration: Configuration, data: Dataset, resume: bool, progress: bool):
        super().__init__(out, asdict(configuration), resume, progress)
        self.configuration = configuration
        # of the test set, by the engine of each trained model and by the baselines
        self.points: dict[str, PointEncodings] = {}
        # training redraws dynamic binarisations, evaluation uses one fixed draw
        self.source, self.data = data, replace(data, train=data.epoch(0, configuration.seed))

    def fit(self, name: str, engine: str, model: Autoencoder) -> list[float]:
        """Trains by Adam, from the last checkpoint if there is one, and returns the loss of each epoch."""
        c = self.configuration
        self.say(f"train {name}")
        history = fit(
            model,
            self.source,
            epochs=c.epochs,
            batch_size=c.batch_size,
            clip=c.clip,
            optimizer=partial(torch.optim.Adam, lr=c.learning_rate),
            seed=c.seed,
            out=self.out / "checkpoints" / name.replace(" ", "-"),
            resume=True,
            progress=self.progress,
            describe=describe_engine(c, engine, self.data),
        )
        self.seconds[f"train {name}"] = sum(row.seconds for row in history.rows)
        return [row.train_loss for row in history.rows]

    def train(self, name: str, decoder: Likelihood, encoder: NormalEncoder) -> Trained:
        """Trains a copy of the decoder by a named engine, and afterwards an encoder if the engine has none."""
        decoder, encoder = copy.deepcopy(decoder), copy.deepcopy(encoder)
        model = assemble(self.configuration, name, decoder, encoder)
        curve = self.fit(name, name, model)
        if ENGINES[name].trains_encoder:
            return Trained(model, encoder, "its encoder was trained with it", curve, None)
        frozen = copy.deepcopy(decoder).requires_grad_(False)
        after = self.fit(f"{name} encoder", "amortised", assemble(self.configuration, "amortised", frozen, encoder))
        return Trained(model, encoder, "its encoder was fitted afterwards, the decoder frozen", curve, after)

    def baseline(self, name: str) -> Autoencoder:
        """A fitted baseline; a noise scale that it does not learn is set to the RMS of the training residual."""
        self.say(f"fit {name}")
        start = time.perf_counter()
        torch.manual_seed(self.configuration.seed)
        model = BASELINES[name](self.data.event_shape, self.configuration)
        fit(model, self.data, epochs=self.configuration.baseline_epochs, seed=self.configuration.seed, progress=False)
        calibrate_noise(model, self.data.train, self.configuration.effort)
        self.seconds[f"fit {name}"] = time.perf_counter() - start
        return model

    def measured(self, decoder: str, model: Autoencoder, own: bool = True) -> Entry:
        """Metrics of a model; if the engine is the decoder's own, its codes are kept for the pictures."""
        c = self.configuration
        points = held_out(model, self.data, c.effort, c.seed)
        if own:
            self.points[decoder] = replace(points, encodings=[], seconds=[])
        return {"decoder": decoder, **evaluate(model, self.data, c.effort, c.seed, points)}

    def evaluate(self, trained: dict[str, Trained], decoder: str, engine: str) -> Entry:
        """Metrics of a named engine on the decoder that another (or the same) engine trained."""
        side = trained[decoder]
        model = assemble(self.configuration, engine, side.model.likelihood, side.encoder)
        entry = self.phase(f"encode {decoder} by {engine}", lambda: self.measured(decoder, model, engine == decoder))
        return {"engine": engine, **entry}

    def bounds(self, trained: dict[str, Trained]) -> Entry:
        """Bounds against decoder evaluations on one decoder: that of a VAE if there is one."""
        name = "amortised" if "amortised" in trained else next(iter(trained))
        side = trained[name]
        x = self.data.test[: self.configuration.bound_samples]
        curves = bound_curves(side.model.likelihood, side.encoder, x, self.configuration)
        return {"decoder": name, "encoder": side.origin, "samples": len(x), **curves}

    def draw(self, models: dict[str, Autoencoder], baselines: dict[str, Autoencoder]) -> None:
        """Writes the arrays of the figures."""
        import numpy as np

        start, stored = time.perf_counter(), self.out / "pictures.npz"
        if not stored.exists():
            self.say("pictures")
            arrays = pictures(models, baselines, self.data, self.configuration, self.points)
            with whole(stored) as path:
                np.savez(path, **arrays)  # type: ignore[arg-type]
        self.seconds["pictures"] = time.perf_counter() - start
