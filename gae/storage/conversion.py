"""From the checkpoints of gae 0.1.0 to those of today: how the model is built was noted by its system's name."""

from collections.abc import Mapping
from typing import Any

REBUILD = "gae.studies.engines:rebuild"


def upgraded(state: Any) -> Any:
    """The state of a checkpoint of format version 1 or 2 (gae 0.1.0) as format version 3 has it.

    ``gae fit`` noted a system with its options, and ``gae compare`` its configuration: the calls that build the model
    are made from them. Any other state is as it was; ``gae.load`` then needs ``build``.

    >>> noted = {"system": "ppca", "options": {"latent": 2}, "event_shape": (5,)}
    >>> upgraded({"module": {}, "best": None, "describe": noted})["recipe"]["calls"][0]["kwargs"]
    {'latent': 2}
    """
    if not isinstance(state, dict) or "module" not in state:
        return state
    described = state.get("describe") or {}
    kwargs = _arguments(described)
    build = REBUILD if "comparison" in described else f"gae.systems:{str(described.get('system')).replace('-', '_')}"
    args = [] if "comparison" in described else [tuple(described.get("event_shape", ()))]
    call: dict[str, Any] = {"function": build, "args": args, "kwargs": kwargs}
    return {
        **state,
        "module": _without_keys(state["module"]),
        "best": None if state.get("best") is None else _without_keys(state["best"]),
        "recipe": None if kwargs is None else {"calls": [call]},
        "unrecorded": None
        if kwargs is not None
        else "it was written by gae 0.1.0, which noted systems of its table only",
        "preparation": described if "event_shape" in described else None,
    }


def _without_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the hashes of rows, by which an auto-decoder knew its training data then; now it knows them by index."""
    return {name: value for name, value in values.items() if name != "inference.keys"}


def _arguments(described: Mapping[str, Any]) -> dict[str, Any] | None:
    if "comparison" in described:
        effort = {name: value for name, value in described["comparison"]["effort"].items() if name != "repeats"}
        comparison = {**described["comparison"], "effort": effort}
        return {"description": _tagged({**described, "comparison": comparison})}
    if {"system", "options", "event_shape"} <= described.keys():
        return _tagged_values(described["options"])
    return None


def _tagged_values(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tagged(value) for name, value in options.items()}


def _tagged(value: Any) -> Any:
    """A value in the form of a recipe, in which every dict is a tag (``gae.storage.recipe``)."""
    if isinstance(value, dict):
        return {"items": [[key, _tagged(item)] for key, item in value.items()]}
    return type(value)(_tagged(item) for item in value) if isinstance(value, (list, tuple)) else value
