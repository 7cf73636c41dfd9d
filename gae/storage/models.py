"""Saving a model, and loading it again: its parts by their recorded calls, then its parameters and buffers."""

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
    """Writes a model's folder; see ``gae.Autoencoder.save``."""
    state = {
        **structure(model),
        "module": dict(model.state_dict()),
        "best": None,
        "evaluating": [name for name, part in model.named_modules() if not part.training],
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
    }
    if state["unrecorded"] is not None:
        warnings.warn(
            f"{state['unrecorded']}. Its values are saved, but `gae.load` will need build=, a function that makes the "
            "model.",
            stacklevel=3,
        )
    return checkpoint.write(path, state)


def structure(model: nn.Module) -> dict[str, Any]:
    """How a model is built again, or why that is not known; and how the data that it was fitted to were prepared."""
    preparation = getattr(model, "preparation", None)
    noted = {"preparation": None if preparation is None else preparation.note()}
    try:
        return {"recipe": recipe_of(model), "unrecorded": None, **noted}
    except Unrecorded as error:
        return {"recipe": None, "unrecorded": str(error), **noted}


def load(
    path: PathLike, trusted: Collection[str] = (), make: Callable[[], nn.Module] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a folder that ``save`` or ``fit`` wrote, and the facts noted with it; see ``gae.load``."""
    found = checkpoint.load(path)
    values = fitted(found)
    state = found.state
    model = make() if make is not None else build(_recipe(found), trusted)
    restored(model, values, str(found.path))
    preparation, described = state.get("preparation"), state.get("describe") or {}
    if preparation is not None:
        model.preparation = Preparation.of(preparation)
    _set_modes(model, state)
    return model, described


def fitted(found: Checkpoint) -> Mapping[str, Any]:
    """The parameters and buffers of a saved model, or those that ``fit`` would return at that point of its run.

    Raises:
        ValueError: for a checkpoint of anything else.
    """
    state = found.state
    if not isinstance(state, dict) or not {"module", "best"} <= state.keys():
        raise ValueError(f"{found.path} was not written by `fit` or `save`: it holds no parameters of an autoencoder.")
    return state["module"] if state["best"] is None else state["best"]


def _recipe(found: Checkpoint) -> dict[str, Any]:
    recipe = found.state.get("recipe")
    if recipe is not None:
        return recipe
    reason = found.state.get("unrecorded") or "it does not say which model it holds"
    raise ValueError(
        f"{found.path} cannot be built again: {reason}. Load it with build=, a function that makes such a model."
    )


def _set_modes(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Evaluation mode, or where ``save`` noted them, the modes of all parts and which parameters are frozen."""
    evaluating, frozen = state.get("evaluating"), set(state.get("frozen", ()))
    for name, part in model.named_modules():
        part.training = evaluating is not None and name not in evaluating
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
