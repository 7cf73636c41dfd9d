"""Systems by name: construction, ``KEY=VALUE`` options, and metadata from which a system can be rebuilt."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

import gae.systems
from gae.autoencoder import Autoencoder
from gae.data import Dataset
from gae.systems.constructor import facts
from gae.systems.table import function_name, named


def build(name: str, data: Any, **options: Any) -> Autoencoder:
    """Builds the named system for data, as of ``gae.data.load``, or for observations of the given shape.

    Raises:
        ValueError: for an unknown name or option (the message lists the valid ones), or a size that is too small.

    >>> type(build("vae", (1, 8, 8), latent=2).inference).__name__
    'Amortized'
    """
    accepted = defaults(name)
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}. Valid options: {', '.join(accepted)}.")
    return _constructor(name)(data, **options)


def describe(name: str, options: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """JSON-serialisable metadata of a system fitted to data, sufficient to rebuild it and to display its samples."""
    return {
        "system": name,
        "options": {**facts(named(name).reads, data), **options},
        "data": data.name,
        "data_hash": data.hash,
        **data.preparation.note(),
    }


def defaults(system: str) -> dict[str, Any]:
    """The options of a system and their default values.

    >>> defaults("kmeans")
    {'components': 10, 'missing': False}
    """
    return {name: parameter.default for name, parameter in _parameters(system).items()}


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _int_or_none(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def _float_or_none(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def _str_or_none(text: str) -> str | None:
    return None if text.lower() == "none" else text


def _none(text: str) -> None:
    return {"none": None}[text.lower()]


PARSERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("a whole number", int),
    float: ("a number", float),
    bool: ("true or false", _bool),
    str: ("a name", str),
    Sequence[int]: ("whole numbers separated by commas", _ints),
    int | None: ("a whole number or none", _int_or_none),
    float | None: ("a number or none", _float_or_none),
    str | None: ("a name or none", _str_or_none),
    Tensor | None: ("none on the command line (a tensor in Python)", _none),
}


def parse(system: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Parses ``KEY=VALUE`` pairs by the types of the system's options.

    Raises:
        ValueError: for an unknown system or option (the message lists the valid ones), an option given twice, or a
            value of the wrong type.

    >>> parse("vae", ["latent=2", "hidden=64,32", "analytic=false"])
    {'latent': 2, 'hidden': [64, 32], 'analytic': False}
    >>> parse("vae", ["latent=two"])
    Traceback (most recent call last):
    ValueError: Option latent of vae must be a whole number, got 'two'.
    """
    parsed = [_parse(system, pair) for pair in pairs]
    values = dict(parsed)
    if len(values) < len(parsed):
        raise ValueError(f"An option is given twice, got {', '.join(pairs)}. Give each option once.")
    return values


def _parse(system: str, pair: str) -> tuple[str, Any]:
    name, equals, text = pair.partition("=")
    parameters = _parameters(system)
    if not equals:
        raise ValueError(f"An option is KEY=VALUE, got {pair!r}. Options of {system}: {', '.join(parameters)}.")
    if name not in parameters:
        raise ValueError(f"{system} has no option {name!r}. Valid options: {', '.join(parameters)}.")
    expected, parser = PARSERS[parameters[name].annotation]
    try:
        return name, parser(text)
    except (ValueError, KeyError):
        raise ValueError(f"Option {name} of {system} must be {expected}, got {text!r}.") from None


def _constructor(system: str) -> Callable[..., Autoencoder]:
    named(system)
    constructor: Callable[..., Autoencoder] = getattr(gae.systems, function_name(system))
    return constructor


def _parameters(system: str) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(_constructor(system)).parameters.items())[1:])
