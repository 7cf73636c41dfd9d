"""Models applied to data, row by row: opening both, and writing the file."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.cli.common import Own, in_its_dtype, load_like, need_engine, open_model, placed, preparation
from gae.data.progress import progress

if TYPE_CHECKING:
    import numpy as np
    from lightning_fabric import Fabric
    from torch import Tensor

    from gae.autoencoder import Autoencoder
    from gae.data import Dataset, Rows

RowsFile = Annotated[
    Path, typer.Option("--output", "-o", help="An .npz, .npy (one array, without index), .csv or .parquet file.")
]


@dataclass(frozen=True)
class Applied:
    """A model on its device, and the observations x, in its dtype, to which it is applied."""

    model: "Autoencoder"
    data: "Dataset"
    rows: "Rows"
    x: "Tensor"
    fabric: "Fabric"


def applied(options: Mapping[str, Any], *, curvature: bool = False) -> Applied:
    """Opens a model, or makes one of your own decoder, with its engine, and loads the observations of a split.

    Args:
        options: the values of the command's parameters by name, such as ``locals()`` at its beginning.
        curvature: whether the work needs second derivatives of a decoder of your own, with any engine.
    """
    from gae.analysis.engines import engine_of
    from gae.training import launch

    checkpoint, data, binarize, split_by, seed, trust = (
        options[name] for name in ("checkpoint", "data", "binarize", "split_by", "seed", "trust")
    )
    engine, steps, restarts = (options[name] for name in ("engine", "steps", "restarts"))
    need_engine(engine, steps, restarts)
    own = Own(*(options[name] for name in ("decoder", "weights", "latent", "head", "scale", "activated", "encoder")))
    prepared = preparation(*(options[name] for name in ("labels", "drop", "missing", "size", "crop", "channels")))
    fabric = launch(*(options[name] for name in ("device", "precision", "devices", "nodes")))
    model, source, _ = open_model(checkpoint, data, own, binarize, split_by, seed, trust, prepared)
    if engine is not None:
        model.inference = engine_of(engine, model, steps, restarts=restarts)
    dataset = load_like(model, source, binarize, split_by)
    rows = dataset.rows(options["split"])
    fabric = placed(model, rows.x, fabric)
    x = in_its_dtype(model, rows.x)
    if own.decoder is not None:
        from gae.adapters import check_curvature, check_networks

        products = engine == "gauss-newton"
        check = partial(check_curvature, products=products) if curvature or products else check_networks
        check(model, x)
    return Applied(model, dataset, rows, x, fabric)


def write_rows(
    path: Path,
    rows: "Rows",
    blocks: "Iterable[Mapping[str, np.ndarray]]",
    main: str,
    fabric: "Fabric",
    facts: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, str]:
    """Writes results for each observation beside its index, split, label and file name, in the order of the rows.

    Of several processes the first writes, and the others compute their share of the blocks.

    Args:
        path: the file, whose suffix selects the format.
        rows: the observations.
        blocks: columns of results for consecutive observations.
        main: the column of an ``.npy`` file.
        fabric: the processes that compute the blocks.
        facts: texts that hold for all rows.
        names: of the elements of the main column in a table.

    Returns:
        The dtype of each column, by its name and shape; nothing if this is not the first process.
    """
    from gae.data.output import row_file

    if not fabric.is_global_zero:
        deque(blocks, maxlen=0)
        return {}
    about = {"index": rows.row.numpy(), "split": rows.split}
    beside = {"labels": rows.label_names, "files": rows.files}
    about |= {name: column for name, column in beside.items() if column is not None}
    with row_file(path, len(rows.row), main, facts, names) as file, progress("rows", len(rows.row)) as advance:
        for block in blocks:
            part = slice(file.added, file.added + len(next(iter(block.values()))))
            file.add({**{name: column[part] for name, column in about.items()}, **block})
            advance(by=part.stop - part.start)
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
