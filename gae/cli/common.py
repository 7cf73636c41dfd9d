"""Arguments, readers and writers shared by the commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.data.files import whole

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from gae.autoencoder import Autoencoder
    from gae.data import Dataset
    from gae.data.preparation import Preparation

DataName = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="digits, mnist, fashion-mnist, swiss-roll, …, or a path (.npy, .npz, .txt, images)."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Binarize = Annotated[str, typer.Option(help="none, threshold or dynamic.")]
SameBinarize = Annotated[
    str | None, typer.Option("--binarize", help="By default as the model's training data; other values are refused.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, data order and noise.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto for the fastest that is there.")]
Precision = Annotated[
    str, typer.Option(help="32, 64, bf16-mixed or 16-mixed (matrix products in 16 bits, all else in 32).")
]
Devices = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processes on each node, one for each device.", show_default="1, or those of torchrun or srun"
    ),
]
Nodes = Annotated[
    int | None, typer.Option(min=1, help="Number of nodes.", show_default="1, or those of torchrun or srun")
]
CheckpointPath = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a run, or a checkpoint in it.")]


def load(name: str, binarize: str) -> "Dataset":
    """Loads a data set by name or path."""
    from gae import data

    return data.load(name, binarize=binarize)


def load_like(model: "Autoencoder", name: str, binarize: str | None = None) -> "Dataset":
    """Loads a data set, prepared like the training data of the model."""
    from gae import data

    return data.load(name, binarize=binarize, like=prepared(model))


def prepared(model: "Autoencoder") -> "Preparation":
    """Preparation of the model's training data; only their shape if ``fit`` was given a tensor."""
    from gae.data.preparation import Preparation

    return model.preparation or Preparation(model.likelihood.event_shape, None, None, None)


def read(path: Path) -> "tuple[Autoencoder, str]":
    """Loads a model in evaluation mode, and its name."""
    from gae.autoencoder import load_with_facts

    model, facts = load_with_facts(path)
    name = facts.get("system") or facts.get("engine") or type(model.likelihood).__name__
    return model.eval(), name


def placed(model: "Autoencoder", x: "Tensor", fabric: "Fabric") -> "Fabric":
    """Moves a model to the Fabric's device, in its precision; to the CPU if the device lacks a float64 that it uses.

    Args:
        x: some observations, to find out.

    Returns:
        The Fabric on whose device the model is.
    """
    from gae.analysis.metrics import codes
    from gae.training import devices

    precision = devices.precision_of(fabric)
    double = precision == "64-true"
    if double:
        model.double()

    def uses_float64() -> bool:
        return double or devices.computes_in_float64(lambda: codes(model, in_its_dtype(model, x[:2])))

    device = devices.placed(fabric.device, uses_float64, "This model's engine")
    model.to(device)
    return fabric if device == fabric.device else devices.single(device, precision)


def in_its_dtype(model: "Autoencoder", x: "Tensor") -> "Tensor":
    """Converts x to the dtype of the model; data sets are float32."""
    return x.to(model.likelihood._like(x).dtype)


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file and creates its folder if missing."""
    import numpy as np

    with whole(path) as temporary:
        np.savez(temporary, **arrays)
