"""Conversion of gae 0.1.0 checkpoints, which record how to build a model by the name of its system."""

from collections.abc import Mapping
from typing import Any

REBUILD = "gae.studies.engines:rebuild"


def upgraded(state: Any) -> Any:
    """Converts the state of a checkpoint of format version 1 or 2 (gae 0.1.0) to format version 3.

    ``gae fit`` recorded a system with its options, and ``gae compare`` its configuration; the calls that build the
    model are derived from them. Any other state is returned unchanged; ``gae.load`` then needs ``build``.

    >>> metadata = {"system": "ppca", "options": {"latent": 2}, "event_shape": (5,)}
    >>> upgraded({"module": {}, "best": None, "describe": metadata})["recipe"]["calls"][0]["kwargs"]
    {'latent': 2}
    """
    if not isinstance(state, dict) or "module" not in state:
        return state
    metadata = state.get("describe") or {}
    kwargs = _arguments(metadata)
    build = REBUILD if "comparison" in metadata else f"gae.systems:{str(metadata.get('system')).replace('-', '_')}"
    args = [] if "comparison" in metadata else [tuple(metadata.get("event_shape", ()))]
    call: dict[str, Any] = {"function": build, "args": args, "kwargs": kwargs}
    return {
        **state,
        "module": _without_keys(state["module"]),
        "best": None if state.get("best") is None else _without_keys(state["best"]),
        "recipe": None if kwargs is None else {"calls": [call]},
        "unrecorded": None if kwargs is not None else "it was written by gae 0.1.0, which recorded only named systems",
        "preparation": metadata if "event_shape" in metadata else None,
    }


def _without_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the row hashes by which an auto-decoder identified its training data before it used indices."""
    return {name: value for name, value in values.items() if name != "inference.keys"}


def _arguments(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    if "comparison" in metadata:
        effort = {name: value for name, value in metadata["comparison"]["effort"].items() if name != "repeats"}
        comparison = {**metadata["comparison"], "effort": effort}
        return {"description": _tagged({**metadata, "comparison": comparison})}
    if {"system", "options", "event_shape"} <= metadata.keys():
        return _tagged_values(metadata["options"])
    return None


def _tagged_values(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tagged(value) for name, value in options.items()}


def _tagged(value: Any) -> Any:
    """A value as encoded in a recipe, in which every dict is a tag (``gae.storage.recipe``)."""
    if isinstance(value, dict):
        return {"items": [[key, _tagged(item)] for key, item in value.items()]}
    return type(value)(_tagged(item) for item in value) if isinstance(value, (list, tuple)) else value
