"""Recipes of models: recorded calls by reference, from which a model is rebuilt without executing untrusted code."""

import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial, wraps
from types import FunctionType, MethodType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from gae.storage.checkpoint import restore
from gae.storage.references import working_directory

P = ParamSpec("P")
M = TypeVar("M", bound=nn.Module)

CALL = "built_by"
NO_SETTINGS = (CALL, "training", "preparation")  # public attributes that are stored separately
FUNCTIONS = "gae.objective"  # module whose functions may be parts of a model
NETWORKS = "torch.nn.modules."  # package whose classes may be arguments, such as activations

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call: a function or class, and its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy in another process, which imports the function by its name."""
        return {**vars(self), "function": _importable(self.function) or self.function}


class Unrecorded(TypeError):
    """Raised for a model or part that its recorded call does not rebuild."""


class Part:
    """Mixin for parts of a model: records the arguments of the constructor, for ``save``.

    >>> class Scale(Part, nn.Module):
    ...     def __init__(self, factor: float):
    ...         super().__init__()
    >>> Scale(2.0).calls()[0].args
    (2.0,)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    def calls(self) -> list[Call]:
        """Candidate calls that rebuild this part, tried in order."""
        return [vars(self).get(CALL, Call(type(self)))]

    def contents(self) -> Mapping[str, Any] | None:
        """The contents, by name, that equal parts share; None for all public attributes, submodules and tensors."""
        return None


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def recording(self: Part, *args: Any, **kwargs: Any) -> None:
        vars(self).setdefault(CALL, Call(type(self), args, kwargs))
        init(self, *args, **kwargs)

    return recording


def recorded(function: Callable[P, M]) -> Callable[P, M]:
    """Decorator that records the call of a function that builds a model or a part of one, for ``save``.

    >>> @recorded
    ... def decoder(width: int = 16) -> nn.Module:
    ...     return nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 3))
    >>> vars(decoder(width=8))["built_by"].kwargs
    {'width': 8}
    """

    @wraps(function)
    def recording(*args: P.args, **kwargs: P.kwargs) -> M:
        result = function(*args, **kwargs)
        vars(result)[CALL] = Call(recording, args, kwargs)
        return result

    recording.is_recorded = True  # type: ignore[attr-defined]
    return recording


def recipe_of(model: nn.Module) -> Recipe:
    """Recipe of a module: the calls that rebuild its structure and settings, JSON-serialisable except for tensors.

    The recipe is verified: a model built by it, with the same parameters, must agree in every public attribute.

    Raises:
        TypeError: names the part that no recorded call rebuilds, or the setting that was changed afterwards.
    """
    candidates = model.calls() if isinstance(model, Part) else [vars(model).get(CALL)]
    problems = []
    for call in candidates:
        try:
            return _verified_recipe(model, call)
        except Unrecorded as error:
            problems.append(str(error))
    raise Unrecorded("; ".join(dict.fromkeys(problems)))


def _verified_recipe(model: nn.Module, call: Call | None) -> Recipe:
    if call is None:
        raise Unrecorded(_unrecorded_message("the model", model))
    writer = _Writer()
    writer.call(call, "")
    recipe = {"calls": writer.calls}
    try:
        again = build(recipe, {entry["function"] for entry in writer.named})
        restored(again, dict(model.state_dict()), "the model")
    except (TypeError, ValueError) as error:
        raise Unrecorded(f"the recorded call of {_name_of(call.function)} no longer rebuilds it: {error}") from error
    different = _difference(model, again, "model", set())
    if different:
        raise Unrecorded(f"{different} built by the recorded call of {_name_of(call.function)}")
    return recipe


def build(recipe: Recipe, trusted: Collection[str] = ()) -> Any:
    """Executes a recipe and returns the result of its last call. torch's global random state is unchanged.

    Raises:
        ValueError: for a reference outside gae that is not in ``trusted``, or that is not a part of a model, before
            anything is executed or an untrusted module is imported; for a reference that cannot be imported.
    """
    functions = {entry["function"]: resolve(entry["function"], trusted) for entry in _entries(recipe["calls"])}
    result: list[Any] = []
    with torch.random.fork_rng(devices=[]):
        for call in recipe["calls"]:
            args = [_read(value, result, functions) for value in call["args"]]
            kwargs = {name: _read(value, result, functions) for name, value in call["kwargs"].items()}
            result.append(functions[call["function"]](*args, **kwargs))
    return result[-1]


def restored(model: nn.Module, state: Mapping[str, Any], source: str) -> nn.Module:
    """Loads a ``state_dict`` into a model, with its dtype; raises ValueError if they do not fit."""
    floating = [value for value in state.values() if isinstance(value, Tensor) and value.is_floating_point()]
    if floating:
        model.to(floating[0].dtype)
    restore(model, state, source)
    return model


def resolve(reference: str, trusted: Collection[str] = ()) -> Any:
    """The function or class of a ``module:name`` reference in gae or in ``trusted``.

    Modules of ``trusted`` are looked up in the working directory first.

    Raises:
        ValueError: for any other reference, and one that cannot be imported.

    >>> resolve("gae.objective:joint").__name__
    'joint'
    """
    module, _, name = reference.partition(":")
    ours = module.partition(".")[0] == "gae"
    if reference not in trusted and not ours and not module.startswith(NETWORKS):
        raise ValueError(
            f"The model is built by {reference}, which is not part of gae, and loading would execute it. If you trust "
            f"it, pass trusted=[{reference!r}] (--trust {reference})."
        )
    try:
        with working_directory() if reference in trusted else nullcontext():
            target = importlib.import_module(module)
        for attribute in name.split("."):
            target = getattr(target, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"The model is built by {reference}, which cannot be imported ({error}). Install its package, or load with "
            "build=, a function that builds the model."
        ) from None
    if reference not in trusted and not _is_part(target, module):
        raise ValueError(
            f"The recipe calls {reference}, which is not a part of a model, so it is not executed. Load with build=, a "
            "function that builds the model."
        )
    return target


def _is_part(value: Any, module: str) -> bool:
    if module.startswith(NETWORKS):
        return isinstance(value, type) and issubclass(value, nn.Module)
    if isinstance(value, type):
        return issubclass(value, Part)
    return getattr(value, "is_recorded", False) or (isinstance(value, FunctionType) and value.__module__ == FUNCTIONS)


@dataclass
class _Writer:
    """Encodes the values of recorded calls for ``_read``: every dict is a tag, and a shared part is one call."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    named: list[dict[str, Any]] = field(default_factory=list)  # entries with a reference
    places: dict[int, int] = field(default_factory=dict)  # index of the call of each part written so far, by id

    def call(self, call: Call, where: str) -> int:
        self.calls.append(self.reference(call.function, call.args, call.kwargs, where))
        return len(self.calls) - 1

    def reference(
        self, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], where: str
    ) -> dict[str, Any]:
        names = list(inspect.signature(function).parameters) + [str(i) for i in range(len(args))]
        entry = {
            "function": reference_to(function, where),
            "args": [self.value(value, f"{where}.{name}") for name, value in zip(names, args, strict=False)],
            "kwargs": {name: self.value(value, f"{where}.{name}") for name, value in kwargs.items()},
        }
        self.named.append(entry)
        return entry

    def value(self, value: Any, where: str) -> Any:
        match value:
            case None | bool() | int() | float() | str() | Tensor():
                return value
            case tuple():
                return tuple(self.value(item, f"{where}.{i}") for i, item in enumerate(value))
            case list() | nn.ModuleList():
                return [self.value(item, f"{where}.{i}") for i, item in enumerate(value)]
            case dict():
                return {
                    "items": [
                        [self.value(key, where), self.value(item, f"{where}.{key}")] for key, item in value.items()
                    ]
                }
            case partial():
                return {"partial": self.reference(value.func, value.args, value.keywords, where)}
            case type() | FunctionType():
                entry = {"function": reference_to(value, where)}
                self.named.append(entry)
                return entry
        return {"call": self.part(value, where)}

    def part(self, value: Any, where: str) -> int:
        if id(value) not in self.places:
            call = value.calls()[0] if isinstance(value, Part) else getattr(value, "__dict__", {}).get(CALL)
            if call is None:
                raise Unrecorded(_unrecorded_message(where.lstrip("."), value))
            self.places[id(value)] = self.call(call, where)
        return self.places[id(value)]


def _read(value: Any, result: list[Any], functions: Mapping[str, Any]) -> Any:
    read = partial(_read, result=result, functions=functions)
    match value:
        case list() | tuple():
            return type(value)(read(item) for item in value)
        case {"items": pairs}:
            return {read(key): read(item) for key, item in pairs}
        case {"partial": {"function": name, "args": args, "kwargs": kwargs}}:
            return partial(functions[name], *read(args), **{key: read(item) for key, item in kwargs.items()})
        case {"function": name}:
            return functions[name]
        case {"call": index}:
            return result[index]
    return value


def _entries(tree: Any) -> list[dict[str, Any]]:
    """All entries with a reference in the calls of a recipe."""
    if isinstance(tree, dict):
        own = [tree] if isinstance(tree.get("function"), str) else []
        return own + [entry for value in tree.values() for entry in _entries(value)]
    return [entry for value in tree for entry in _entries(value)] if isinstance(tree, (list, tuple)) else []


def reference_to(function: Callable[..., Any], where: str = "") -> str:
    """The ``module:name`` reference of an importable function or class.

    >>> reference_to(nn.Linear)
    'torch.nn.modules.linear:Linear'
    """
    if _importable(function) is None or function.__module__ == "__main__":
        raise Unrecorded(
            f"{where.lstrip('.') or 'the model'}: {_name_of(function)} cannot be imported from a module by its name"
        )
    return f"{function.__module__}:{function.__qualname__}"


def _importable(function: Callable[..., Any]) -> Any:
    """The function or class that a module has by the name of this one, with its decorators; None if there is none."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<unnamed>")
    target: Any = sys.modules.get(module or "")
    for attribute in name.split("."):
        target = getattr(target, attribute, None)
    return None if target is None or inspect.unwrap(target) is not inspect.unwrap(function) else target


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", repr(function))


def _unrecorded_message(where: str, value: Any) -> str:
    return (
        f"{where} is a {type(value).__name__} without a recorded call; decorate the function that builds it with "
        "`gae.storage.recorded`"
    )


def _difference(saved: Any, again: Any, where: str, visited: set[tuple[int, int]]) -> str | None:
    """A description of the first public attribute in which two objects of the same structure differ."""
    if saved is again or (id(saved), id(again)) in visited:
        return None
    visited.add((id(saved), id(again)))
    if isinstance(saved, Tensor) and isinstance(again, Tensor):
        one, other = saved.detach().cpu(), again.detach().cpu()
        same = one.dtype == other.dtype and one.shape == other.shape
        same = same and bool(((one == other) | (one.isnan() & other.isnan())).all())
        return None if same else f"{where} is not the tensor"
    if type(saved) is not type(again):
        return f"{where} is a {type(saved).__name__}, not the {type(again).__name__}"
    pairs = _contents(saved), _contents(again)
    if pairs[0] is None or pairs[1] is None:
        return None if saved == again else f"{where} is {saved!r}, not the {again!r}"
    if pairs[0].keys() != pairs[1].keys():
        return f"{where} has {', '.join(map(str, pairs[0].keys() ^ pairs[1].keys()))}, unlike the one"
    parts = (_difference(pairs[0][name], pairs[1][name], f"{where}.{name}", visited) for name in pairs[0])
    return next((part for part in parts if part), None)


def _contents(value: Any) -> Mapping[Any, Any] | None:
    """The contents of an object that determine its behaviour, by name; None for one that is compared as a whole."""
    match value:
        case nn.Module():
            own = value.contents() if isinstance(value, Part) else None
            return own or {**_settings(value), **value._parameters, **value._buffers, **value._modules}
        case list() | tuple():
            return dict(enumerate(value))
        case dict():
            return value
        case partial():
            return {"func": value.func, "args": value.args, "keywords": value.keywords}
        case FunctionType() | MethodType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            owner = getattr(value, "__self__", None)
            return {"name": value.__qualname__, "module": value.__module__, "closure": cells, "self": owner}
        case type():
            return None
    return _settings(value) if hasattr(value, "__dict__") else None


def _settings(value: Any) -> dict[str, Any]:
    """Public instance attributes that differ from those of the class."""
    return {
        name: part
        for name, part in vars(value).items()
        if not name.startswith("_") and name not in NO_SETTINGS and getattr(type(value), name, CALL) is not part
    }
