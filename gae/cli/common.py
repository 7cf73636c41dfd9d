"""Arguments, readers and writers shared by the commands."""

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
    str | None, typer.Option("--binarize", help="By default as the model's training data; other values are refused.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, data order and noise.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
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


def in_its_dtype(model: "Autoencoder", x: "Tensor") -> "Tensor":
    """Converts x to the dtype of the model; data sets are float32."""
    return x.to(model.likelihood._like(x).dtype)


def imported(reference: str) -> Any:
    """The object of a ``module:name`` reference; modules are looked up in the working directory first.

    Raises:
        ValueError: for a reference of another form, or a module or name that does not exist.
    """
    import importlib
    import os
    import sys

    module, _, name = reference.partition(":")
    if not (module and name):
        raise ValueError(
            f"Need module:function, got {reference!r}. For build() in my_physics.py, give my_physics:build."
        )
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a package that the module needs
        raise ValueError(
            f"There is no module {error.name!r} in the working directory {folder} or on the path."
        ) from None
    except AttributeError as error:
        raise ValueError(f"{module} has no {name!r}: {error}.") from error
    finally:
        sys.path.remove(folder)


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file and creates its folder if missing."""
    import numpy as np

    with whole(path) as temporary:
        np.savez(temporary, **arrays)
