"""What the commands share: kinds of arguments, and how they read and write."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.data.files import whole

if TYPE_CHECKING:
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
    str | None, typer.Option("--binarize", help="As the model's training data unless given; any other is refused.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of weights, data order and noise.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
CheckpointPath = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A run's folder, or one checkpoint in it.")]


def load(name: str, binarize: str) -> "Dataset":
    """The named data set, or the one at a path."""
    from gae import data

    return data.load(name, binarize=binarize)


def load_like(model: "Autoencoder", name: str, binarize: str | None = None) -> "Dataset":
    """The named data set, prepared as the data that the model was fitted to."""
    from gae import data

    return data.load(name, binarize=binarize, like=prepared(model))


def prepared(model: "Autoencoder") -> "Preparation":
    """How the model's data were prepared; of one that ``fit`` was not given a data set for, their shape alone."""
    from gae.data.preparation import Preparation

    return model.preparation or Preparation(model.likelihood.event_shape, None, None, None)


def read(path: Path) -> "tuple[Autoencoder, str]":
    """A saved model, in evaluation mode, and its name; for all commands, where it must know how its data look."""
    from gae.autoencoder import load_with_facts

    model, facts = load_with_facts(path)
    name = facts.get("system") or facts.get("engine") or type(model.likelihood).__name__
    return model.eval(), name


def in_its_dtype(model: "Autoencoder", x: "Tensor") -> "Tensor":
    """Data sets are float32; x as the model has its numbers."""
    return x.to(model.likelihood._like(x).dtype)


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file, and its folder where that is missing."""
    import numpy as np

    with whole(path) as temporary:
        np.savez(temporary, **arrays)
