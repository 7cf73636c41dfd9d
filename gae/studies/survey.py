"""Survey of systems on one data set: each is fitted and encodes by its own engine."""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int, Num
from torch import Tensor

from gae.analysis.metrics import (
    Entry,
    EvaluationBudget,
    PointEncodings,
    encode,
    evaluate,
    held_out,
    mean_and_error,
    mean_elbo,
    mean_log_evidence,
    missing,
    proportion,
)
from gae.autoencoder import Autoencoder
from gae.data import Dataset, load
from gae.data.files import whole, write_text
from gae.data.text import PADDING
from gae.likelihood import FlatDistribution, NoiseScale
from gae.reports.survey import write
from gae.studies.engines import calibrate_noise
from gae.studies.failures import EveryTrainingFailed
from gae.studies.jobs import ResumableJob, facts, one_thread, placement
from gae.studies.pictures import plane
from gae.systems import SYSTEMS, build, describe, named
from gae.training import fit
from gae.training.devices import dtype_of, single
from gae.training.group import agreed, claimed, share_out
from gae.training.learners import has_closed_form

if TYPE_CHECKING:
    import lightning_fabric

IMAGES, DRAWS, CODES = 12, 12, 500
POINTS = 1000  # of a data set taken as one observation
MIN_ESS = 5
PARTS = ("likelihood", "prior", "inference", "objective", "source")


@dataclass(frozen=True)
class Plan:
    """Everything that determines the numbers of a survey.

    Attributes:
        epochs: epochs of systems trained by Adam.
        closed_epochs: most epochs of systems trained in closed form.
        device, precision: of the trainings; None for the CPU and 32 bits.
    """

    data: str
    data_hash: str
    systems: tuple[str, ...]
    epochs: int
    seed: int
    quick: bool
    device: str | None = None
    precision: str | None = None
    closed_epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 3e-3
    clip: float = 50.0
    standardize: bool | None = None
    effort: EvaluationBudget = field(default_factory=EvaluationBudget)


def survey(
    data: Any,
    out: str | os.PathLike[str],
    *,
    systems: Sequence[str] | None = None,
    epochs: int | None = None,
    seed: int = 0,
    quick: bool = False,
    resume: bool = False,
    progress: bool = True,
    fabric: "lightning_fabric.Fabric | None" = None,
) -> dict[str, Any]:
    """Fits named systems with their default options, and evaluates each on the test set by its own engine.

    If a system fails (its loss becomes NaN, for instance), the results name the reason and the others continue.

    Writes into ``out``: ``results.json`` (the returned dictionary), ``report.html``, ``figures``, ``checkpoints`` and
    the state for resuming. Everything runs on one thread of the processor; torch's global generator is restored.

    Args:
        data: a data set, or a source of ``gae.data.load``, which see for labels and a predefined test split.
        out: a new folder, or with ``resume`` the folder of an interrupted survey of the same plan.
        systems: names from ``gae.systems.SYSTEMS`` whose observation is a sample, or a whole data set (they embed the
            test set); for text, a sequence. All of them by default.
        epochs: epochs of systems trained by Adam; by default those of about 70,000 samples (``quick``: 10,000).
        seed: seed of the weights, the order of the data and the noise.
        quick: fewer epochs, and log p(x) of fewer samples.
        resume: continue the survey in ``out``; systems that failed are tried again.
        progress: announce each phase on standard error.
        fabric: the device and the precision of the trainings (``gae.training.launch``); with several processes, each
            fits and evaluates some of the systems, in a folder that all can write. The results are the same.

    Raises:
        ValueError: unknown names, or systems for other kinds of observations.
        FileExistsError: ``out`` exists and ``resume`` is False.
        EveryTrainingFailed: every system failed; ``results.json`` and the page give the reasons.
    """
    data = data if isinstance(data, Dataset) else load(data)
    fabric = fabric or single("cpu")
    plan = _plan(data, systems, epochs, seed, quick)
    plan = replace(plan, **placement(fabric))
    with one_thread(), torch.random.fork_rng(devices=[]):
        run = claimed(fabric, lambda again: Survey(Path(out), plan, data, again, progress, fabric.device), resume)
        share_out(fabric, [partial(run.row, name) for name in plan.systems])
        return agreed(fabric, partial(_results, run))


def _results(run: "Survey") -> dict[str, Any]:
    rows = dict(zip(run.plan.systems, run.each("systems", run.row, run.plan.systems), strict=True))
    results = {
        **facts(asdict(run.plan), run.data),
        "rows": [row for row in rows.values() if "squared_error" in row],
        "embeddings": [row for row in rows.values() if "trustworthiness" in row],
        "texts": [row for row in rows.values() if "tokens" in row],
        "missing": {name: row["missing"] for name, row in rows.items() if "missing" in row},
        "failed": {name: row["failed"] for name, row in rows.items() if "failed" in row},
    }
    results["seconds"] = {**run.seconds, "total": sum(run.seconds.values())}
    write_text(run.out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    run.say("report")
    write(run.out)
    if len(results["failed"]) == len(rows):
        reasons = "; ".join(f"{name} failed: {reason}" for name, reason in results["failed"].items())
        raise EveryTrainingFailed(f"{reasons}. {run.out / 'report.html'} lists them.")
    return results


def survey_systems(text: bool = False) -> list[str]:
    """Names of the systems that encode samples or a whole data set, or of those that encode text."""
    observed = ("sequence of classes",) if text else ("sample", "data set")
    return [name for name, row in SYSTEMS.items() if row.observation in observed]


class Survey(ResumableJob):
    """A survey and its folder."""

    def __init__(self, out: Path, plan: Plan, data: Dataset, resume: bool, progress: bool, device: torch.device):
        super().__init__(out, asdict(plan), resume, progress)
        self.plan, self.device, self.dtype = plan, device, dtype_of(plan.precision)
        self.source, self.data = data, replace(data, train=data.train.to(self.dtype), test=data.test.to(self.dtype))

    def row(self, name: str) -> Entry:
        """Results of one system, or the reason why it does not apply to these data or failed.

        Failures are not stored: a resumed survey tries again.
        """
        try:
            return dict(self.phase(name, partial(self._row, name)))
        except OSError:  # a full disk, for instance, is not a failure of the system
            raise
        except Exception as error:
            self.say(f"{name} failed: {error}")
            return {"failed": f"{type(error).__name__}: {error}"}

    def _row(self, name: str) -> Entry:
        torch.manual_seed(self.plan.seed)
        is_data_set = SYSTEMS[name].observation == "data set"
        try:
            model = build(name, self.source, **self._options(name)).to(self.dtype)
            x = self._points if is_data_set else self.data.epoch(0, self.plan.seed)[:CODES]
            model.likelihood.check(x.unsqueeze(0) if is_data_set else x)
        except (ValueError, TypeError) as error:
            return {"missing": str(error)}
        if is_data_set:
            return self._embedded(name, model)
        return self._encoded(name, model) if self.data.vocabulary is None else self._read(name, model)

    def _encoded(self, name: str, model: Autoencoder) -> Entry:
        began = time.perf_counter()
        epochs = self._fit(name, model)
        seconds = time.perf_counter() - began
        points = held_out(model, self.data, self.plan.effort, self.plan.seed)
        numbers = evaluate(model, self.data, self.plan.effort, self.plan.seed, points)
        numbers["log_p"] = _reliable(numbers["log_p"])
        self._draw(name, model, points)
        return {**_parts(name, model), **numbers, "epochs": epochs, "training_seconds": seconds}

    @torch.no_grad()
    def _embedded(self, name: str, model: Autoencoder) -> Entry:
        """Results of an embedding of the test set: trustworthiness, and accuracy of nearest neighbours."""
        from sklearn.manifold import trustworthiness

        x, began = self._points, time.perf_counter()
        z = model.encode(x.unsqueeze(0)).point[0]
        seconds = time.perf_counter() - began
        trust = float(trustworthiness(x.flatten(1).numpy(), z.numpy(), n_neighbors=5))
        accuracy = missing("the data have no labels")
        if self.data.test_labels is not None:
            accuracy = left_out(z, self.data.test_labels[: len(z)])
        self._keep(name, {"codes": z})
        numbers = {"trustworthiness": {"mean": trust, "se": None}, "accuracy": accuracy, "points": len(x)}
        return {**_parts(name, model), **numbers, "width": z.shape[1], "seconds": seconds}

    def _read(self, name: str, model: Autoencoder) -> Entry:
        """Results on text: the share of tokens that greedy decoding restores, ends included, and some lines."""
        began, plan, x, vocabulary = time.perf_counter(), self.plan, self.data.test, self.data.vocabulary
        assert vocabulary is not None
        epochs = self._fit(name, model)
        seconds = time.perf_counter() - began
        torch.manual_seed(plan.seed)
        with torch.no_grad():
            points = encode(model, x, plan.effort)
            restored = points.mean
            lengths = (x != PADDING).sum(1)
            numbers = {
                "tokens": mean_and_error(((restored == x) & (x != PADDING)).sum(1) / lengths),
                "log_p": _reliable(mean_log_evidence(model, x, points, plan.effort)),
                "elbo": mean_elbo(model, x, points, plan.effort),
                "milliseconds": points.milliseconds,
            }
            lines = [vocabulary.decode(part) for part in (x[:IMAGES], restored[:IMAGES], model.sample(DRAWS))]
        shown = dict(zip(("lines", "restored", "samples"), lines, strict=True))
        sizes = {"length": float(lengths.double().mean()), "epochs": epochs, "training_seconds": seconds}
        return {**_parts(name, model), **numbers, **shown, **sizes}

    @property
    def _points(self) -> Tensor:
        return self.data.test[:POINTS]

    def _options(self, name: str) -> dict[str, Any]:
        """Default options, with the number of points for systems that embed the test set."""
        return {"points": len(self._points)} if SYSTEMS[name].observation == "data set" else {}

    def _fit(self, name: str, model: Autoencoder) -> int:
        plan = self.plan
        if isinstance(model.likelihood, NoiseScale):
            model.likelihood.start_scale(self.data.train)
        options: dict[str, Any] = {"epochs": plan.closed_epochs, "fabric": single("cpu")}
        if not has_closed_form(model):
            optimizer = model.optimizer or partial(torch.optim.Adam, lr=plan.learning_rate)
            options = {"epochs": plan.epochs, "batch_size": plan.batch_size, "clip": plan.clip, "optimizer": optimizer}
            options["fabric"] = single(self.device, plan.precision or 32)
        out = self.out / "checkpoints" / name
        described = describe(name, self._options(name), self.data)
        options |= {"seed": plan.seed, "out": out, "resume": True, "progress": self.progress, "describe": described}
        rows = fit(model, self.data, **options).rows
        model.eval().cpu()
        calibrate_noise(model, self.data.train, plan.effort)
        return len(rows)

    @torch.no_grad()
    def _draw(self, name: str, model: Autoencoder, points: PointEncodings) -> None:
        """Writes the arrays of the figures: reconstructions, samples if the prior is proper, codes."""
        x, plan = self.data.test[:CODES], self.plan
        torch.manual_seed(plan.seed)
        arrays: dict[str, Tensor] = {"original": x[:IMAGES], "reconstruction": points.mean[:IMAGES]}
        arrays["codes"], arrays["explained"] = plane(points.z[:CODES].flatten(1))
        if not isinstance(model.likelihood.prior, FlatDistribution) and model.likelihood.latent_shape.numel():
            arrays["sample"] = model.sample(DRAWS, mean=True)
        self._keep(name, arrays)

    def _keep(self, name: str, arrays: dict[str, Tensor]) -> None:
        import numpy as np

        if self.data.test_labels is not None:
            arrays["labels"] = self.data.test_labels[: len(arrays["codes"])]
        with whole(self.out / "pictures" / f"{name}.npz") as path:
            np.savez(path, **{kind: array.numpy() for kind, array in arrays.items()})  # type: ignore[arg-type]


def left_out(z: Num[Tensor, "N *Z"], labels: Int[Tensor, " N"]) -> Entry:
    """Leave-one-out accuracy of 5 nearest neighbours, with its binomial standard error."""
    from sklearn.neighbors import NearestNeighbors

    others = NearestNeighbors(n_neighbors=5).fit(z.flatten(1).numpy()).kneighbors(return_distance=False)
    voted = labels[torch.as_tensor(others)].mode(1).values
    return proportion(float((voted == labels).double().mean()), len(z))


def _parts(name: str, model: Autoencoder) -> Entry:
    """Row of the table of systems, and the size of a code."""
    likelihood = model.likelihood
    size = {"width": likelihood.latent_shape.numel(), "components": likelihood.components}
    return {"system": name, **{part: getattr(SYSTEMS[name], part) for part in PARTS}, **size}


def _reliable(log_p: Entry) -> Entry:
    """The estimate of log p(x), or a missing entry if its effective sample size is below ``MIN_ESS``."""
    ess = log_p.get("ess")
    if ess is None or ess >= MIN_ESS:
        return log_p
    return missing(f"its importance weights have an effective sample size below {MIN_ESS} on average")


def _plan(data: Dataset, systems: Sequence[str] | None, epochs: int | None, seed: int, quick: bool) -> Plan:
    valid = survey_systems(text=data.vocabulary is not None)
    chosen = valid if systems is None else list(systems)
    for name in chosen:
        observation = named(name).observation
        if name not in valid:
            raise ValueError(
                f"{name} does not apply to these data: its observation is {observation!r}. "
                f"Choose some of {', '.join(valid)}."
            )
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"Name at least one system, and each once; got {chosen}.")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}.")
    if epochs is None:
        epochs = max(1, math.ceil((10_000 if quick else 70_000) / len(data.train)))
    effort = EvaluationBudget(evidence_samples=100) if quick else EvaluationBudget()
    standardize = data.standardize or None
    return Plan(data.name, data.hash, tuple(chosen), epochs, seed, quick, standardize=standardize, effort=effort)
