"""Common functions of the experiments: reading MNIST and writing results."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gae.data import Dataset, load
from gae.data.environment import processor, versions

ROOT = Path(__file__).resolve().parent
RESULTS, CELLS = ROOT / "results", ROOT / "cells"


def arguments(description: str | None, names: Iterable[str] = ()) -> list[str]:
    """The names on the command line, all optional; ``--help`` prints the description and what they may be."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = list(names)
    if choices:
        parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(choices)}; all unless given")
    chosen = getattr(parser.parse_args(), "names", [])
    for name in chosen:
        if name not in choices:
            parser.error(f"unknown name {name!r}, choose from {', '.join(choices)}")
    return chosen


def mnist(binarize: str = "none", name: str = "mnist") -> Dataset:
    """MNIST (or Fashion-MNIST) from ``GAE_DATA``, from ``shared/data`` beside the checkout, or from OpenML."""
    beside = ROOT.parent.parent / "shared" / "data"
    folder = None if "GAE_DATA" in os.environ or not (beside / name).exists() else str(beside)
    return load(name, folder=folder, binarize=binarize)


def commit() -> str | None:
    """The checkout's commit, with ``-dirty`` for changes that are not committed, but for results; None without one."""
    written = [f":(exclude){path.relative_to(ROOT)}" for path in (RESULTS, CELLS)]
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *written)
        return _git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def write(claim: str, configuration: Any, results: dict[str, Any], figure: Any, folder: Path = RESULTS) -> None:
    """folder/claim.json, with command, commit, configuration, machine and versions, and folder/claim.png."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "claim": claim,
        "command": " ".join(["python", "-m", f"experiments.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "commit": commit(),
        "configuration": asdict(configuration),
        "machine": {"processor": device(), "threads": torch.get_num_threads()},
        "versions": versions(["torch", "gae"]),
        "results": results,
    }
    (folder / f"{claim}.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    figure.savefig(folder / f"{claim}.png", dpi=120, bbox_inches="tight")


def device() -> str:
    """The model name of the accelerator, or else of the processor."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
