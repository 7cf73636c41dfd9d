"""Arguments, readers and writers shared by the commands."""

from collections.abc import Sequence
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
        metavar="DATA",
        help="digits, mnist, swiss-roll, …, or a path: .npy, .npz, .csv, .parquet, .h5ad, .txt, a folder of images.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Binarize = Annotated[str, typer.Option(help="none, threshold or dynamic.")]
SameBinarize = Annotated[
    str | None, typer.Option("--binarize", help="By default as the model's training data; other values are refused.")
]
Missing = Annotated[
    str,
    typer.Option(help="refuse NaN, or mask: NaN marks values that were not observed, and the model uses the others."),
]
Labels = Annotated[
    str | None, typer.Option("--labels", metavar="COLUMN", help="Column of a table with the labels; it is not learnt.")
]
Drop = Annotated[
    list[str] | None, typer.Option("--drop", metavar="COLUMN", help="Column of a table to leave out; repeatable.")
]
Standardize = Annotated[
    bool,
    typer.Option("--standardize", help="Model columns of a table in standard units; nats are of the data as given."),
]
Size = Annotated[
    str | None,
    typer.Option("--size", metavar="SIDE|HxW", help="Resize the images of a folder, of any size and mode, to this."),
]
Crop = Annotated[bool, typer.Option("--crop", help="Crop images about their centre to the ratio of --size first.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, data order and noise.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
CheckpointPath = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a run, or a checkpoint in it.")]


def load(
    name: str,
    binarize: str,
    *,
    labels: str | None = None,
    drop: Sequence[str] | None = None,
    standardize: bool = False,
    size: str | None = None,
    crop: bool = False,
    missing: str = "refuse",
) -> "Dataset":
    """Loads a data set by name or path, and prints how it was converted on standard error."""
    from gae import data

    options: Any = {"labels": labels, "drop": drop or (), "standardize": standardize, "size": pixels(size)}
    return _announced(data.load(name, binarize=binarize, crop=crop, missing=missing, **options))


def load_like(model: "Autoencoder", name: str, binarize: str | None = None) -> "Dataset":
    """Loads a data set, prepared like the training data of the model."""
    from gae import data

    return _announced(data.load(name, binarize=binarize, like=prepared(model)))


def _announced(dataset: "Dataset") -> "Dataset":
    for note in dataset.notes:
        typer.echo(f"{dataset.name}: {note}", err=True)
    return dataset


def pixels(size: str | None) -> tuple[int, ...] | None:
    """A size in pixels, ``64`` or ``48x64`` (height x width).

    >>> pixels("64"), pixels("48x64")
    ((64, 64), (48, 64))
    """
    if size is None:
        return None
    sides = size.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"--size must be a number of pixels or HEIGHTxWIDTH, such as 64 or 48x64, got {size!r}.")
    return tuple(map(int, sides * (3 - len(sides))))


def prepared(model: "Autoencoder") -> "Preparation":
    """Preparation of the model's training data; only shape and missing values if ``fit`` was given a tensor."""
    from gae.data.preparation import Preparation
    from gae.likelihood import AcceptsMissing

    missing = isinstance(model.likelihood, AcceptsMissing)
    return model.preparation or Preparation(model.likelihood.event_shape, None, None, None, missing=missing)


def read(path: Path) -> "tuple[Autoencoder, str]":
    """Loads a model in evaluation mode, and its name."""
    from gae.autoencoder import load_with_facts

    model, facts = load_with_facts(path)
    name = facts.get("system") or facts.get("engine") or type(model.likelihood).__name__
    return model.eval(), name


def in_its_dtype(model: "Autoencoder", x: "Tensor") -> "Tensor":
    """Converts x to the dtype of the model; data sets are float32."""
    return x.to(model.likelihood._like(x).dtype)


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file and creates its folder if missing."""
    import numpy as np

    with whole(path) as temporary:
        np.savez(temporary, **arrays)
