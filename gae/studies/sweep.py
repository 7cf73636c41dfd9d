"""A sweep: every combination of data, systems, options and seeds trained and evaluated, one row of a table each."""

import csv
import hashlib
import json
import math
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import groupby, product, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch

from gae.autoencoder import Autoencoder, log_evidence
from gae.data import Dataset
from gae.data.environment import commit, processor, versions
from gae.data.files import whole, write_text
from gae.likelihood import CodebookDistribution, ExactPosterior, FlatDistribution
from gae.reports.sweep import write
from gae.studies.failures import EveryTrainingFailed
from gae.studies.jobs import NOT_INSTALLED, PACKAGES, ResumableJob
from gae.studies.single import TrainingOptions, fit_system, held_out_results
from gae.systems.options import PARSERS, parse
from gae.systems.table import named
from gae.training.devices import single
from gae.training.group import agreed, claimed, share_out

if TYPE_CHECKING:
    import lightning_fabric

METRICS = (
    "train_loss",
    "validation_loss",
    "test_loss",
    "log_evidence",
    "squared_error",
    "tokens_restored",
    "seconds",
)  # columns with means and standard errors in the summary
TYPES = get_type_hints(TrainingOptions)
NO_PANDAS = "pandas is not installed, so summary.tex is not written: pip install 'gae[tables]'"

Row = dict[str, Any]


@dataclass(frozen=True)
class GridCell:
    """One training of a sweep: data, system, its options and those of ``fit`` as text, and the seed."""

    data: Dataset
    system: str
    options: dict[str, str]
    training: dict[str, str]
    seed: int

    @property
    def columns(self) -> Row:
        """Its columns in the table; options of ``fit`` are prefixed, since systems have options of the same names."""
        training = {f"fit.{name}": value for name, value in self.training.items()}
        return {"data": self.data.name, "system": self.system, **self.options, **training, "seed": self.seed}

    @property
    def name(self) -> str:
        """Name of its folder: readable, and different for every other cell and other content of the data."""
        chosen = {**self.options, **self.training, "seed": self.seed}
        shown = "-".join([self.data.name, self.system, *(f"{name}={value}" for name, value in chosen.items())])
        prepared = self.data.preparation.options()
        identity = json.dumps([self.data.hash, *prepared, self.system, self.options, self.training, self.seed])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        return f"{re.sub(r'[^a-zA-Z0-9=.,+_-]+', '_', shown)[:120]}-{digest}"


def sweep(
    data: Dataset | Sequence[Dataset],
    out: str | os.PathLike[str],
    *,
    systems: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None],
    options: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] = 1,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
    fabric: "lightning_fabric.Fabric | None" = None,
) -> dict[str, Any]:
    """Trains systems with every combination of options and seeds, and tabulates their results.

    A value that is a list is an axis of the grid; so that a list is one value, write a list of lists, as in
    ``{"hidden": [[64, 64], [128]]}``. Each training equals that of ``gae fit`` with the same options and seed. If one
    fails, its row says why and the others continue.

    Writes into ``out``: ``results.csv``, one row for each training; ``summary.csv``, means and standard errors over
    seeds; ``summary.tex``, the same in LaTeX, if pandas is installed; ``report.html``; ``results.json``; and a folder
    with checkpoints for each training in ``cells``. Losses and log p(x) are in nats.

    Args:
        data: a data set, or several with different names.
        out: a new folder, or with ``resume`` that of an earlier sweep, whose finished trainings are not repeated; the
            grid may have grown since, for instance by further seeds.
        systems: names from ``gae.systems.SYSTEMS``, or a mapping from names to options of that system alone, which
            replace those of ``options``.
        options: options of all systems.
        training: options of ``fit``, the fields of ``gae.studies.single.TrainingOptions``.
        seeds: seeds of weights, data order and noise, or their number, from 0 on.
        resume: continue the sweep in ``out``; trainings that failed are tried again.
        progress: announce each training on standard error.
        command: the command that repeats the sweep, for the report.
        fabric: several processes (``gae.training.launch``), each of which trains some of the combinations, in a folder
            that all can write; on the CPU. The results are the same.

    Returns:
        "rows" and "summary", the rows of the two tables; "axes", the columns that vary; and facts about the run.

    Raises:
        ValueError: for unknown names or options, values of a wrong type, or a combination that occurs twice, before
            anything is written.
        FileExistsError: ``out`` exists and ``resume`` is False.
        EveryTrainingFailed: every training failed; the tables give the reasons.

    >>> from tempfile import TemporaryDirectory
    >>> x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    >>> points = Dataset("points", x[:40], x[40:], None, None, (-9.0, 9.0))
    >>> with TemporaryDirectory() as folder:
    ...     results = sweep(points, f"{folder}/sweep", systems="ppca", options={"latent": [1, 2]}, progress=False)
    >>> [(row["latent"], row["trainings"]) for row in results["summary"]]
    [('1', 1), ('2', 1)]
    """
    cells = _cells([data] if isinstance(data, Dataset) else data, systems, options or {}, training or {}, seeds)
    fabric = fabric or single("cpu")
    with torch.random.fork_rng(devices=[]):
        run = claimed(fabric, lambda again: Sweep(Path(out), {"study": "sweep"}, again, progress), resume)
        share_out(fabric, [partial(run.row, cell) for cell in cells])
        return agreed(fabric, partial(_results, run, cells, command))


def _results(run: "Sweep", cells: Sequence[GridCell], command: str | None) -> dict[str, Any]:
    rows = run.each("trainings", run.row, cells)
    results: dict[str, Any] = {
        "rows": rows,
        "summary": summary(rows),
        "axes": axes(rows),
        "data": {cell.data.name: cell.data.hash for cell in cells},
        "seconds": sum(run.seconds.values()),
        "command": command,
        "commit": commit(),
        "versions": {name: version or NOT_INSTALLED for name, version in versions(PACKAGES).items()},
        "machine": {"cpu": processor(), "threads": torch.get_num_threads()},
    }
    write_text(run.out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    _write_csv(run.out / "results.csv", rows)
    _write_csv(run.out / "summary.csv", results["summary"])
    if find_spec("pandas") is None:
        run.say(NO_PANDAS)
    run.say("report")
    write(run.out)
    errors = [row["error"] for row in rows if row["error"] is not None]
    if len(errors) == len(rows):
        raise EveryTrainingFailed(
            f"Every training failed. The first: {errors[0]}. {run.out / 'report.html'} lists all."
        )
    return results


class Sweep(ResumableJob):
    """A sweep and its folder."""

    kind = "sweep"

    def row(self, cell: GridCell) -> Row:
        """The row of a training; a failed one is not stored, so that a resumed sweep tries again."""
        empty = dict.fromkeys(("epochs", *METRICS, "error"))
        try:
            return {**cell.columns, **empty, **self.phase(cell.name, partial(self._trained, cell))}
        except OSError:  # a full disk, for instance, is not a failure of the training
            raise
        except Exception as error:
            self.say(f"{cell.name} failed: {error}")
            return {**cell.columns, **empty, "error": f"{type(error).__name__}: {error}"}

    def _trained(self, cell: GridCell) -> Row:
        model, history = fit_system(
            cell.system,
            cell.data,
            parse(cell.system, [f"{name}={value}" for name, value in cell.options.items()]),
            _training(cell.training),
            cell.seed,
            out=self.out / "cells" / cell.name,
            resume=True,
            progress=self.progress,
            fabric=single("cpu"),
        )
        results, last = held_out_results(model, cell.data, cell.seed), history.rows[-1]
        error = results.get("test squared error per element")
        row: Row = {
            "epochs": len(history.rows),
            "train_loss": last.train_loss,
            "validation_loss": last.validation_loss,
            "test_loss": results["test loss (nats)"],
            "log_evidence": exact_evidence(model, cell.data),
            "squared_error": None if error is None else error["mean"],
            "tokens_restored": results.get("test tokens restored"),
            "seconds": sum(epoch.seconds for epoch in history.rows),
        }
        for name in (name for name, value in row.items() if value is not None and not math.isfinite(value)):
            raise FloatingPointError(f"{name} is {row[name]}.")
        return row


def exact_evidence(model: Autoencoder, data: Dataset) -> float | None:
    """The mean log p(x) of the test set in nats, if it is known in closed form or by enumeration."""
    likelihood, prior = model.likelihood, model.likelihood.prior
    enumerable = isinstance(prior, CodebookDistribution) and prior.is_enumerable
    if isinstance(prior, FlatDistribution) or not (isinstance(likelihood, ExactPosterior) or enumerable):
        return None
    return float(log_evidence(model, data.test, method="exact", batch_size=1000).log_p.double().mean())


def summary(rows: Sequence[Row]) -> list[Row]:
    """Mean and standard error over the seeds of each combination, of the trainings that did not fail.

    >>> rows = [{"system": "vae", "seed": i, "test_loss": float(i), "error": None} for i in (1, 3)]
    >>> [summary(rows)[0][name] for name in ("system", "trainings", "test_loss_mean", "test_loss_se")]
    ['vae', 2, 2.0, 1.0]
    """
    groups = groupby(rows, lambda row: {name: row[name] for name in _given(row)})
    return [{**chosen, **_statistics(list(group))} for chosen, group in groups]


def _statistics(rows: Sequence[Row]) -> Row:
    finished = [row for row in rows if row["error"] is None]
    entries: Row = {"trainings": len(finished), "failed": len(rows) - len(finished)}
    for name in METRICS:
        values = [row[name] for row in finished if row.get(name) is not None]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        entries |= {f"{name}_mean": statistics.fmean(values) if values else None, f"{name}_se": error}
    return entries


def axes(rows: Sequence[Row]) -> list[str]:
    """The columns of data, systems and options that vary, or the system if none does."""
    names = dict.fromkeys(name for row in rows for name in _given(row))
    return [name for name in names if len({row.get(name) for row in rows}) > 1] or ["system"]


def _cells(
    data: Sequence[Dataset],
    systems: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None],
    options: Mapping[str, Any],
    training: Mapping[str, Any],
    seeds: int | Sequence[int],
) -> list[GridCell]:
    unknown = [name for name in training if name not in TYPES]
    if unknown:
        raise ValueError(f"fit has no option {unknown[0]!r} in a sweep. Valid options: {', '.join(TYPES)}.")
    own = _own_options(systems)
    numbers = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in numbers):
        raise ValueError(f"seeds must be a number, or whole numbers in [0, 2**32), got {seeds!r}.")
    combinations = list(_grid(training))
    for chosen in combinations:
        _training(chosen)
    cells = []
    for dataset, (system, more) in product(data, own.items()):
        for chosen in _grid({**options, **more}):
            parse(system, [f"{name}={value}" for name, value in chosen.items()])
            cells += [GridCell(dataset, system, chosen, fitted, seed) for fitted in combinations for seed in numbers]
    _refuse_repeated(data, cells)
    return cells


def _own_options(systems: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None]) -> dict[str, Mapping[str, Any]]:
    if isinstance(systems, Mapping):
        own = {name: options or {} for name, options in systems.items()}
    else:
        names = [systems] if isinstance(systems, str) else list(systems)
        if len(set(names)) < len(names):
            raise ValueError(f"Name each system once, got {names}.")
        own = {name: {} for name in names}
    for name in own:
        named(name)
    return own


def _refuse_repeated(data: Sequence[Dataset], cells: Sequence[GridCell]) -> None:
    if not cells:
        raise ValueError("The sweep is empty. Give at least one data set, system, value of each option, and seed.")
    if len({each.name for each in data}) < len(data):
        raise ValueError(f"Data sets need different names, got {', '.join(each.name for each in data)}.")
    seen: set[str] = set()
    for cell in cells:
        if cell.name in seen:
            shown = ", ".join(f"{name}={value}" for name, value in cell.columns.items())
            raise ValueError(f"The sweep has {shown} twice. Give each value once; write a list as a list of lists.")
        seen.add(cell.name)


def _grid(options: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Every combination of values, as text."""
    axes = [value if isinstance(value, list) else [value] for value in options.values()]
    values = [[_text(each) for each in axis] for axis in axes]
    yield from (dict(zip(options, chosen, strict=True)) for chosen in product(*values))


def _text(value: Any) -> str:
    """A value as the command line has it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return ",".join(map(_text, value))
    return str(value)


def _training(chosen: Mapping[str, str]) -> TrainingOptions:
    return TrainingOptions(**{name: _parsed(name, text) for name, text in chosen.items()})


def _parsed(name: str, text: str) -> Any:
    expected, parser = PARSERS[TYPES[name]]
    try:
        return parser(text)
    except ValueError:
        raise ValueError(f"Option {name} of fit must be {expected}, got {text!r}.") from None


def _given(row: Row) -> Iterator[str]:
    """The columns of data, system and options, which come first."""
    return takewhile(lambda name: name not in ("seed", "trainings"), row)


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        given = (name for row in rows for name in _given(row))
        table = csv.DictWriter(file, dict.fromkeys([*given, *(name for row in rows for name in row)]))
        table.writeheader()
        table.writerows(rows)
