"""Common functions of the experiments: reading MNIST and writing results."""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gae.data import Dataset, load
from gae.data.environment import processor, versions

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"


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


def mnist(binarize: str = "none") -> Dataset:
    """MNIST from ``GAE_DATA``, from a folder ``shared/data`` beside the checkout, or from OpenML."""
    beside = ROOT.parent.parent / "shared" / "data"
    folder = None if "GAE_DATA" in os.environ or not beside.exists() else str(beside)
    return load("mnist", folder=folder, binarize=binarize)


def write(claim: str, configuration: Any, results: dict[str, Any], figure: Any) -> None:
    """results/claim.json, with command, configuration, machine and versions, and results/claim.png."""
    RESULTS.mkdir(exist_ok=True)
    record = {
        "claim": claim,
        "command": f"python -m experiments.{claim} {' '.join(sys.argv[1:])}".strip(),
        "configuration": asdict(configuration),
        "machine": {"processor": device(), "threads": torch.get_num_threads()},
        "versions": versions(["torch", "gae"]),
        "results": results,
    }
    (RESULTS / f"{claim}.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    figure.savefig(RESULTS / f"{claim}.png", dpi=120, bbox_inches="tight")


def device() -> str:
    """The model name of the accelerator, or else of the processor."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
