"""Saving and loading of models: parts by their recorded calls, then parameters and buffers."""

import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gae.data.preparation import Preparation
from gae.storage import checkpoint
from gae.storage.checkpoint import Checkpoint, PathLike
from gae.storage.recipe import Unrecorded, build, recipe_of, restored


def save(model: nn.Module, path: PathLike) -> Path:
    """Saves a model to a folder; see ``gae.Autoencoder.save``."""
    state = {
        **structure(model),
        "module": dict(model.state_dict()),
        "best": None,
        "evaluating": [name for name, part in model.named_modules() if not part.training],
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
    }
    if state["unrecorded"] is not None:
        warnings.warn(
            f"{state['unrecorded']}. Its values are saved, but `gae.load` will need build=, a function that builds "
            "the model.",
            stacklevel=3,
        )
    return checkpoint.write(path, state)


def structure(model: nn.Module) -> dict[str, Any]:
    """The recipe of a model, or the reason why it has none, and the preparation of its training data."""
    preparation = getattr(model, "preparation", None)
    shared = {"preparation": None if preparation is None else preparation.note()}
    try:
        return {"recipe": recipe_of(model), "unrecorded": None, **shared}
    except Unrecorded as error:
        return {"recipe": None, "unrecorded": str(error), **shared}


def load(
    path: PathLike, trusted: Collection[str] = (), make: Callable[[], nn.Module] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads the model and metadata of a folder written by ``save`` or ``fit``; see ``gae.load``."""
    entry = checkpoint.load(path)
    values = fitted(entry)
    state = entry.state
    model = make() if make is not None else build(_recipe(entry), trusted)
    restored(model, values, str(entry.path))
    preparation, metadata = state.get("preparation"), state.get("describe") or {}
    if preparation is not None:
        model.preparation = Preparation.of(preparation)
    _set_modes(model, state)
    return model, metadata


def fitted(entry: Checkpoint) -> Mapping[str, Any]:
    """The parameters and buffers of a saved model, or those that ``fit`` would return at that point of its run.

    Raises:
        ValueError: for any other checkpoint.
    """
    state = entry.state
    if not isinstance(state, dict) or not {"module", "best"} <= state.keys():
        raise ValueError(f"{entry.path} was not written by `fit` or `save`: it has no parameters of an autoencoder.")
    return state["module"] if state["best"] is None else state["best"]


def _recipe(entry: Checkpoint) -> dict[str, Any]:
    recipe = entry.state.get("recipe")
    if recipe is not None:
        return recipe
    reason = entry.state.get("unrecorded") or "it does not say which model it holds"
    raise ValueError(
        f"{entry.path} cannot be built again: {reason}. Load it with build=, a function that builds such a model."
    )


def _set_modes(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Restores the modes and frozen parameters recorded by ``save``; evaluation mode if none are recorded."""
    evaluating, frozen = state.get("evaluating"), set(state.get("frozen", ()))
    for name, part in model.named_modules():
        part.training = evaluating is not None and name not in evaluating
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
