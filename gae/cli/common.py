"""What the commands share: kinds of arguments, and how they read and write."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.data.files import whole

if TYPE_CHECKING:
    from gae.autoencoder import Autoencoder
    from gae.data import Dataset

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


def load_like(noted: "dict[str, Any]", name: str, binarize: str | None = None) -> "Dataset":
    """The named data set, prepared as the data of the model of which a checkpoint noted these facts."""
    from gae import data
    from gae.data.preparation import Preparation

    return data.load(name, binarize=binarize, like=Preparation.of(noted))


def read(path: Path) -> "tuple[Autoencoder, dict[str, Any]]":
    """The autoencoder of a checkpoint that `gae fit` or `gae compare` wrote, to be used, and what they noted down."""
    from gae import systems
    from gae import training as fit
    from gae.studies import engines
    from gae.training import checkpoint

    state = checkpoint.load(path).state
    noted = state.get("describe") if isinstance(state, dict) else None
    if not isinstance(noted, dict) or not {"system", "comparison"} & noted.keys():
        raise ValueError(f"{path} does not say which system it holds. Only `gae fit` and `gae compare` note that down.")
    if "comparison" in noted:
        model = engines.rebuild(noted)
    else:
        model = systems.build(noted["system"], noted["event_shape"], **noted["options"])
    fit.restore(model, path)
    return model.eval(), noted


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file, and its folder where that is missing."""
    import numpy as np

    with whole(path) as temporary:
        np.savez(temporary, **arrays)
