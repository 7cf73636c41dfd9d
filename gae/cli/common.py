"""Arguments, readers and writers shared by the commands."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.data.files import whole

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gae.autoencoder import Autoencoder
    from gae.data import Dataset, Rows
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
Split = Annotated[str, typer.Option(help="train, test or all.")]
SplitBy = Annotated[
    str | None,
    typer.Option(
        "--split-by",
        help="Rule for the test set: fraction:0.2, column:NAME, column:NAME=VALUE, or file:PATH (train or test in each "
        "line, or the rows of the test set). By default that of the model, or fraction:0.2.",
        show_default=False,
    ),
]
RowsFile = Annotated[
    Path, typer.Option("--output", "-o", help="An .npz, .npy (one array, without index), .csv or .parquet file.")
]
CheckpointPath = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a run, or a checkpoint in it.")]


def load(name: str, binarize: str, split: str | None = None) -> "Dataset":
    """Loads a data set by name or path."""
    from gae import data

    return data.load(name, binarize=binarize, split=split)


def load_like(model: "Autoencoder", name: str, binarize: str | None = None, split: str | None = None) -> "Dataset":
    """Loads a data set, prepared like the training data of the model."""
    from gae import data

    return data.load(name, binarize=binarize, split=split, like=prepared(model))


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


def in_its_dtype(model: "Autoencoder", x: "Tensor") -> "Tensor":
    """Converts x to the dtype of the model; data sets are float32."""
    return x.to(model.likelihood._like(x).dtype)


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file and creates its folder if missing."""
    import numpy as np

    with whole(path) as temporary:
        np.savez(temporary, **arrays)


def write_rows(
    path: Path,
    rows: "Rows",
    blocks: "Iterable[Mapping[str, np.ndarray]]",
    main: str,
    facts: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Writes results for each observation beside its index, split, label and file name, in the order of the rows.

    Args:
        path: the file, whose suffix selects the format.
        rows: the observations.
        blocks: columns of results for consecutive observations.
        main: the column of an ``.npy`` file.
        facts: texts that hold for all rows.

    Returns:
        The dtype of each column, by its name and shape.
    """
    from gae.data.output import row_file

    about = {"index": rows.row.numpy(), "split": rows.split}
    if rows.labels is not None:
        about["labels"] = rows.labels.numpy()
    if rows.files is not None:
        about["files"] = rows.files
    with row_file(path, len(rows.row), main, facts) as file:
        for block in blocks:
            part = slice(file.added, file.added + len(next(iter(block.values()))))
            file.add({**{name: column[part] for name, column in about.items()}, **block})
    return {f"{name} {(len(rows.row), *shape)}": str(dtype) for name, (dtype, shape) in file.kinds.items()}


class Mean:
    """The mean of a column over all rows of the blocks that pass."""

    def __init__(self, name: str):
        self.name, self.total, self.rows = name, 0.0, 0

    def over(self, blocks: "Iterable[Mapping[str, np.ndarray]]") -> "Iterable[Mapping[str, np.ndarray]]":
        """Yields the blocks unchanged."""
        for block in blocks:
            self.total += float(block[self.name].sum(dtype="float64"))
            self.rows += len(block[self.name])
            yield block

    @property
    def value(self) -> float:
        return self.total / self.rows
