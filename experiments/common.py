"""What every experiment shares: where the data are, and how a result is written down."""

import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import gae
from gae.data import Dataset, load

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"


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
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "gae": gae.__version__},
        "results": results,
    }
    (RESULTS / f"{claim}.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    figure.savefig(RESULTS / f"{claim}.png", dpi=120, bbox_inches="tight")


def processor() -> str:
    """The processor's model name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
