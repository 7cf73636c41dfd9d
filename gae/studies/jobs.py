"""A long job in a folder: phases whose results are kept, so that it can be resumed; and what ran, on what."""

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gae.data import Dataset
from gae.data.files import write_text
from gae.storage.packing import dump, verified

PACKAGES = ("gae", "torch", "pyro-ppl", "numpy", "scikit-learn")


class ResumableJob:
    """The folder of one job. Finished phases are reread when it is resumed.

    Args:
        out: a new folder, or with ``resume`` that of an interrupted job of the same configuration.
        configuration: JSON-able; it decides all results.
        resume: continue what is in ``out``.
        progress: say on standard error what happens.

    Raises:
        FileExistsError: ``out`` exists, without ``resume``, or is no folder of such a job.
        ValueError: on resume, another configuration.
    """

    def __init__(self, out: Path, configuration: dict[str, Any], resume: bool, progress: bool):
        self.out, self.progress = out, progress
        self.seconds: dict[str, float] = {}
        _claim(out, json.loads(json.dumps(configuration)), resume)

    def say(self, what: str) -> None:
        """Announces a phase on standard error."""
        if self.progress:
            print(f"[gae] {what}", file=sys.stderr, flush=True)

    def phase(self, name: str, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns (JSON-able), computed once and timed."""
        stored = self.out / "phases" / f"{name.replace(' ', '-')}.json"
        found = self._stored(stored)
        if found is None:
            self.say(name)
            start = time.perf_counter()
            found = {"result": compute(), "seconds": time.perf_counter() - start}
            write_text(stored, dump(found) + "\n")
            found = _read(stored)
        self.seconds[name] = found["seconds"]
        return found["result"]

    def _stored(self, path: Path) -> dict[str, Any] | None:
        """A finished phase; one that is damaged is computed again."""
        if not path.exists():
            return None
        try:
            return _read(path)
        except ValueError as error:
            self.say(f"{path} is damaged ({error}) and made again")
            return None


def facts(configuration: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """What was run, by what, on what."""
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
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {"cpu": _cpu(), "threads": torch.get_num_threads(), "system": platform.system()},
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """The operations are small and many: threads gain little, and on a busy machine they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read(path: Path) -> dict[str, Any]:
    """A document of ``dump``; ValueError if it is damaged."""
    try:
        return verified(json.loads(path.read_text(encoding="utf-8")))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _claim(out: Path, configuration: dict[str, Any], resume: bool) -> None:
    """Makes the folder, or checks that it holds the same comparison."""
    stored = out / "configuration.json"
    if out.exists() and not resume:
        raise FileExistsError(f"{out} exists. Resume its comparison (--resume), or choose another folder (--out).")
    if out.exists() and not stored.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not the folder of a comparison. Choose another (--out).")
    if stored.exists():
        try:
            found = _read(stored)
        except ValueError as error:
            raise ValueError(
                f"{stored} is damaged, or of an earlier gae ({error}): whose results these are is not known. Choose "
                "another folder (--out)."
            ) from None
        keys = [*configuration, *(key for key in found if key not in configuration)]
        different = [key for key in keys if found.get(key) != configuration.get(key)]
        if different:
            changes = "; ".join(f"{key} was {found.get(key)!r}, now {configuration.get(key)!r}" for key in different)
            raise ValueError(f"{out} holds another comparison: {changes}. Use the same options, or another folder.")
    (out / "phases").mkdir(parents=True, exist_ok=True)
    write_text(stored, dump(configuration) + "\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed (run from source)"


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
