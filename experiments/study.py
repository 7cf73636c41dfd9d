"""Common parts of the studies ``encoder_capacity``, ``training_by_inference`` and ``inference_by_compute``.

A study is a grid of cells. Each is computed once and kept as a file with its commit, so that an interrupted study goes
on where it stopped, and its parts can run in several processes. Finished trainings are kept in ``experiments/cells``,
which is committed, so that the study can go on elsewhere. When all cells of the grid are there, the results are
written.
"""

import argparse
import copy
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.common import CELLS, RESULTS, ROOT, commit, device, mnist
from gae.analysis.estimates import Estimate
from gae.analysis.gap import Bound
from gae.analysis.inference_gap import FAMILIES, inference_gap, lower_bound, widened
from gae.analysis.matrix import code_use
from gae.data import Dataset, load
from gae.data.environment import versions
from gae.data.files import write_text
from gae.evidence import Evidence, estimate
from gae.evidence.laplace import mode_approximation
from gae.inference import Status
from gae.likelihood import Likelihood
from gae.studies.jobs import ResumableJob

RUNS = ROOT.parent / "runs"
DATA = ("mnist", "fashion-mnist", "digits")
TIGHT = 0.99  # share of test images with a tight log p(x), below which no gap to log p(x) is quoted
CONVERGED = 0.99  # share of converged solves, below which a gap to q* is "at least"


@dataclass(frozen=True)
class Options:
    """The command line of a study."""

    parts: tuple[str, ...]
    seeds: tuple[int, ...] | None
    data: str
    smoke: bool


def options(description: str | None, parts: Sequence[str]) -> Options:
    """Parses the command line; all parts and seeds are computed unless some are named."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; all unless given")
    parser.add_argument("--data", choices=DATA[:2], default=DATA[0])
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="only these seeds of the study")
    parser.add_argument("--smoke", action="store_true", help="a tiny grid on the bundled digits, written to runs/smoke")
    given = parser.parse_args()
    for name in given.parts:
        if name not in parts:
            parser.error(f"unknown part {name!r}, choose from {', '.join(parts)}")
    if given.smoke and given.data != DATA[0]:
        parser.error(f"--smoke takes the bundled digits, and not --data {given.data}: omit one of them")
    chosen = tuple(given.parts or parts)
    return Options(chosen, tuple(given.seeds) if given.seeds else None, given.data, given.smoke)


@dataclass(frozen=True)
class Images:
    """Binary images to train on, redrawn in every epoch or of one fixed draw, and validation and test images.

    Validation images are the last training images of the source, and no training uses them.
    """

    name: str
    hash: str
    dynamic: Dataset
    train: Tensor
    validation: Tensor
    test: Tensor


def images(name: str, held_out: int) -> Images:
    """The named data, with the last ``held_out`` training images for validation."""
    data = load(name, binarize="dynamic") if name == "digits" else mnist("dynamic", name)
    fixed = data.epoch(0)
    rest = replace(data, train=data.train[:-held_out], train_labels=None, train_rows=None)
    return Images(data.name, data.hash, rest, fixed[:-held_out], fixed[-held_out:], data.test)


class Study(ResumableJob):
    """A study and its folder of cells.

    Args:
        claim: name of the study.
        configuration: a dataclass with a tuple of ``seeds``; it determines all numbers, with the data.
        given: the command line.

    Raises:
        SystemExit: for a seed that is not one of the study's.
        ValueError: for a folder of another configuration.
    """

    def __init__(self, claim: str, configuration: Any, given: Options):
        unknown = sorted(set(given.seeds or ()) - set(configuration.seeds))
        if unknown:
            raise SystemExit(f"The seeds of this study are {configuration.seeds}, got {unknown[0]}.")
        self.data = "digits" if given.smoke else given.data
        self.claim = claim if self.data in ("mnist", "digits") else f"{claim}-{self.data}"
        self.results = RUNS / "smoke" / "results" if given.smoke else RESULTS
        folder = RUNS / "smoke" / claim if given.smoke else RUNS / self.claim
        determining = asdict(configuration) | {"data": self.data}
        super().__init__(folder, determining, resume=True, progress=True)
        self.kept = folder / "cells" if given.smoke else CELLS / self.claim
        self.determining = json.dumps(determining, indent=1) + "\n"
        facts = self.kept / "configuration.json"
        if facts.exists() and facts.read_text() != self.determining:
            raise ValueError(f"{self.kept} has cells of another configuration. Delete it to start anew.")
        self.seeds = given.seeds or tuple(configuration.seeds)

    def cell(self, name: str, seed: int, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A cell, computed from its seed unless it is there, with its commit, machine and versions."""

        def seeded() -> dict[str, Any]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                result = compute()
            origin = {"commit": commit(), "processor": device(), "versions": versions(["torch", "gae"])}
            return result | {"seed": seed, "origin": origin}

        entry = self.phase(name, seeded)
        return dict(entry) | {"seconds": self.seconds[name]}

    def keep(self, *names: str) -> None:
        """Copies finished cells to ``experiments/cells``, for the study to go on elsewhere."""
        if not (facts := self.kept / "configuration.json").exists():  # two processes would write it at once
            write_text(facts, self.determining)
        for file in map(self._file, names):
            if (self.out / "phases" / file).exists():
                shutil.copy(self.out / "phases" / file, self.kept / file)

    def _stored(self, path: Path) -> dict[str, Any] | None:
        """A finished cell of this run, else a kept one."""
        return super()._stored(path if path.exists() else self.kept / path.name)

    @staticmethod
    def _file(name: str) -> str:
        return f"{name.replace(' ', '-')}.json"

    def known(self, name: str) -> dict[str, Any] | None:
        """A finished cell, or None."""
        entry = self._stored(self.out / "phases" / self._file(name))
        return None if entry is None else dict(entry["result"]) | {"seconds": entry["seconds"]}

    def all_known(self, names: Sequence[str]) -> dict[str, dict[str, Any]] | None:
        """All cells of a grid by name, or None, with a message, if some are missing."""
        cells = {name: self.known(name) for name in names}
        missing = [name for name, cell in cells.items() if cell is None]
        if missing:
            self.say(f"{len(missing)} of {len(names)} cells are missing ({missing[0]}, …): no results of these")
            return None
        return {name: cell for name, cell in cells.items() if cell is not None}

    def weights(self, name: str) -> Path:
        """The file of a trained model's parameters."""
        return self.out / "models" / f"{name.replace(' ', '-')}.pt"

    def write_table(self, text: str) -> None:
        """Writes the tables as Markdown beside the results, and prints them."""
        write_text(self.results / f"{self.claim}.md", text + "\n")
        print(text)


def best_rate(scores: dict[float, float | None]) -> dict[str, Any]:
    """The rate with the highest validation score of a grid, and whether it is an edge; None is a failed training."""
    rates = sorted(scores)
    finite = [rate for rate in rates if scores[rate] is not None]
    if not finite:
        raise FloatingPointError(f"No rate of {rates} gave a finite loss.")
    best = max(finite, key=lambda rate: scores[rate] or 0.0)
    return {"rate": best, "edge": best in (rates[0], rates[-1]), "scores": {f"{r:g}": scores[r] for r in rates}}


def double(module: Any) -> Any:
    """A frozen copy in double precision, in which a solve does not stall."""
    return copy.deepcopy(module).double().requires_grad_(False).eval()


@torch.no_grad()
def reference(decoder: Likelihood, x: Tensor, steps: int, draws: int, samples: int) -> dict[str, Any]:
    """log p(x) of a decoder without regard to any encoder, q* of both normal families, and the use of its code.

    q* starts from the Laplace approximation. log p(x) is by importance sampling from a wider copy of the full q*; where
    its weights are unreliable, from ten times as many draws around the mode; where those are too, by annealing. The
    use of the code is that of the full q*.

    Args:
        decoder: in double precision.
        x: (B, *X), in double precision.
        steps: most L-BFGS steps to q*.
        draws: for each bound.
        samples: of importance sampling.
    """
    gap = inference_gap(decoder, x, tuple(FAMILIES), samples=2, draws=draws, steps=steps, batch_size=len(x))
    full = gap.best["full covariance"].q
    assert full is not None
    evidence = estimate(decoder, x, lambda batch: widened(full), samples, batch_size=len(x))
    return {
        "log_p": evidence_entry(evidence),
        "optimum": {family: optimum_entry(bound) for family, bound in gap.best.items()},
        "use": code_use(full, decoder.prior),
    }


@torch.no_grad()
def around_modes(decoder: Likelihood, x: Tensor, draws: int, samples: int) -> dict[str, Any]:
    """log p(x) of a decoder without regard to any encoder, and the ELBO and code use of its Laplace approximations.

    log p(x) is by importance sampling from a wider copy of the Laplace approximation; where its weights are unreliable,
    from ten times as many draws; where those are too, by annealing. It searches no q*, the costly part of
    ``reference``.

    Args:
        decoder: in double precision.
        x: (B, *X), in double precision.
        draws: for the ELBO.
        samples: of importance sampling.
    """
    q = mode_approximation(decoder, x)
    evidence = estimate(decoder, x, lambda _: widened(q), samples, batch_size=len(x))
    bound = lower_bound(decoder, x, q, draws)
    return {
        "log_p": evidence_entry(evidence),
        "laplace": {"values": bound.value.tolist(), "sampling_se": float(bound.standard_error.mean())},
        "use": code_use(q, decoder.prior),
    }


def evidence_entry(evidence: Evidence) -> dict[str, Any]:
    """An estimate of log p(x) as JSON, with the evidence that it is tight."""
    assert evidence.tight is not None and evidence.ess is not None and evidence.pareto_k is not None
    k = evidence.pareto_k[~evidence.pareto_k.isnan()]
    return {
        "values": evidence.log_p.tolist(),
        "sampling_se": float(evidence.standard_error.mean()),
        "tight": float(evidence.tight.double().mean()),
        "least_ess": float(evidence.ess.min()),
        "median_ess": float(evidence.ess.median()),
        "largest_pareto_k": float(k.max()) if len(k) and bool(k.isfinite().all()) else None,
        "methods": {name: evidence.method.count(name) for name in sorted(set(evidence.method))},
    }


def optimum_entry(bound: Bound) -> dict[str, Any]:
    """A bound at a local optimum as JSON, with the share of converged solves."""
    status = bound.status
    return {
        "values": bound.value.tolist(),
        "sampling_se": float(bound.standard_error.mean()),
        "converged": None if status is None else float(torch.eq(status, Status.converged).double().mean()),
    }


def over_trainings(values: Sequence[float]) -> dict[str, float]:
    """The mean over trainings of one number for each, with its standard error, as JSON."""
    table = torch.tensor(values, dtype=torch.float64)
    return {"mean": float(table.mean()), "se": float(table.std() / math.sqrt(len(table)))}


def shown(entry: Estimate | None, digits: int = 2) -> str:
    """An estimate with its error over trainings, as text; "–" if it is unknown."""
    if entry is None:
        return "–"
    if entry.error is None or not math.isfinite(entry.error):
        return f"{entry.mean:.{digits}f}"
    return f"{entry.mean:.{digits}f} ± {entry.error:.{digits}f}"


def over_images(entry: Estimate) -> str:
    """The standard error of an estimate over test images, as text."""
    return "–" if entry.sample_error is None else f"{entry.sample_error:.3f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
