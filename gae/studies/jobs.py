"""Resumable jobs: a folder that keeps the results of finished phases, and the facts of a run."""

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from gae.data import Dataset
from gae.data.environment import commit, processor, versions
from gae.data.files import write_text
from gae.data.progress import progress
from gae.storage.packing import dump, verified
from gae.studies.repeat import keep_options
from gae.training.devices import PRECISIONS, precision_of

if TYPE_CHECKING:
    import lightning_fabric

T = TypeVar("T")
R = TypeVar("R")

PACKAGES = ("gae", "torch", "pyro-ppl", "numpy", "scikit-learn")
NOT_INSTALLED = "not installed (run from source)"


class ResumableJob:
    """A job in a folder; a resumed job reads the results of finished phases.

    Args:
        out: a new folder, or with ``resume`` the folder of an interrupted job of the same configuration.
        configuration: JSON-able; it determines all results.
        resume: continue the job in ``out``.
        progress: announce each phase, and show progress, on standard error.

    Raises:
        FileExistsError: ``out`` exists and ``resume`` is False, or it is not the folder of a job.
        ValueError: the configuration differs on resume.
    """

    kind = "comparison"  # the job's name in messages

    def __init__(self, out: Path, configuration: dict[str, Any], resume: bool, progress: bool):
        self.out, self.progress = out, progress
        self.seconds: dict[str, float] = {}
        self.computed = 0  # phases that were not stored before
        _claim(out, json.loads(json.dumps(configuration)), resume, self.kind)
        keep_options(out)  # before any work, so that an interrupted command can be repeated

    def say(self, what: str) -> None:
        """Prints a message on standard error."""
        if self.progress:
            print(f"[gae] {what}", file=sys.stderr, flush=True)

    def each(self, what: str, compute: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Applies a function to each item, and shows how many are left."""
        results = []
        with progress(what, len(items), shown=self.progress) as advance:
            for item in items:
                before = self.computed
                results.append(compute(item))
                advance(stored=self.computed == before)
        return results

    def phase(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns the result of ``compute`` (JSON-able), computed once and timed."""
        path = self.out / "phases" / f"{name.replace(' ', '-')}.json"
        entry = self._stored(path)
        if entry is None:
            self.say(name)
            self.computed += 1
            start = time.perf_counter()
            entry = {"result": compute(), "seconds": time.perf_counter() - start}
            write_text(path, dump(entry) + "\n")
            entry = _read(path)
        self.seconds[name] = entry["seconds"]
        return entry["result"]

    def _stored(self, path: Path) -> dict[str, Any] | None:
        """A finished phase, or None if it is missing or damaged."""
        if not path.exists():
            return None
        try:
            return _read(path)
        except ValueError as error:
            self.say(f"{path} is damaged ({error}) and computed again")
            return None


def facts(configuration: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """Configuration, data, versions and machine of a run."""
    return {
        "configuration": json.loads(json.dumps(configuration)),
        "data": {
            "name": data.name,
            "hash": configuration["data_hash"],
            "train": len(data.train),
            "test": len(data.test),
            "event_shape": list(data.event_shape),
            "value_range": list(data.value_range),
            "binarization": data.binarization,
            **({} if data.columns is None else {"columns": list(data.columns)}),
            "split": data.split,
            "options": data.preparation.options(),
        },
        "commit": commit(),
        "versions": {name: version or NOT_INSTALLED for name, version in versions(PACKAGES).items()},
        "machine": {"cpu": processor(), "threads": torch.get_num_threads(), "system": platform.system()},
    }


def placement(fabric: "lightning_fabric.Fabric") -> dict[str, Any]:
    """Device and precision in a job's configuration: None for the defaults, as in folders written without them."""
    device, precision = fabric.device.type, precision_of(fabric)
    return {
        "device": None if device == "cpu" else device,
        "precision": None if precision == PRECISIONS["32"] else precision,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread: the operations are small, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read(path: Path) -> dict[str, Any]:
    """Reads a document of ``dump``; raises ValueError if it is damaged."""
    try:
        return verified(json.loads(path.read_text(encoding="utf-8")))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _claim(out: Path, configuration: dict[str, Any], resume: bool, kind: str) -> None:
    """Makes the folder, or checks that it belongs to the same configuration."""
    stored = out / "configuration.json"
    if out.exists() and not resume:
        raise FileExistsError(f"{out} exists. Resume its {kind} (--resume), or choose another folder (--out).")
    if out.exists() and not stored.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not the folder of a {kind}. Choose another (--out).")
    if stored.exists():
        try:
            previous = _read(stored)
        except ValueError as error:
            raise ValueError(
                f"{stored} is damaged, or of an earlier gae ({error}), so its configuration is unknown. "
                "Choose another folder (--out)."
            ) from None
        keys = [*configuration, *(key for key in previous if key not in configuration)]
        different = [key for key in keys if previous.get(key) != configuration.get(key)]
        if different:
            changes = "; ".join(f"{key} was {previous.get(key)!r}, now {configuration.get(key)!r}" for key in different)
            raise ValueError(f"{out} holds another {kind}: {changes}. Use the same options, or another folder.")
    (out / "phases").mkdir(parents=True, exist_ok=True)
    if not stored.exists():  # several processes claim a folder at once after the first
        write_text(stored, dump(configuration) + "\n")
