"""The table of named systems, parsed from the decorators in this package's sources, without importing torch."""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from gae.autoencoder import Autoencoder
    from gae.systems.parts import Shape

P = ParamSpec("P")
M = TypeVar("M", bound="Autoencoder")

MODULES = (  # modules with systems, in the order of the table
    "linear",
    "autoencoders",
    "variational",
    "quantized",
    "sequences",
    "decoders",
    "adversarial",
    "factors",
    "mixtures",
    "relational",
    "image_prior",
    "latents",
)


@dataclass(frozen=True)
class System:
    """A row of the table, used as the decorator of a function that builds the system for an event shape.

    The decorated function also takes data (``gae.systems.constructor``). The row has the name of the function,
    with hyphens. Its values must be literals, since the table is parsed from the source.

    Attributes:
        observation: the kind of one observation x, by default a sample of the event shape.
        reads: maps each option whose default is read from a data set to a key of
            ``gae.systems.constructor.FACTS``.
    """

    likelihood: str
    prior: str
    inference: str
    objective: str
    source: str
    observation: str = "sample"
    reads: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, function: "Callable[Concatenate[Shape, P], M]") -> "Callable[Concatenate[Any, P], M]":
        from gae.systems.constructor import constructor

        return constructor(function, self.reads)


def function_name(system: str) -> str:
    """The name of the function that builds a system.

    >>> function_name("sparse-coding")
    'sparse_coding'
    """
    return system.replace("-", "_")


def _rows(module: str) -> Iterator[tuple[str, System]]:
    """Names and rows of one module."""
    source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(decorator_list=[ast.Call(func=ast.Name(id="System"), keywords=cells)]):
                literals = {str(cell.arg): ast.literal_eval(cell.value) for cell in cells}
                yield node.name.replace("_", "-"), System(**literals)


TABLE: dict[str, dict[str, System]] = {module: dict(_rows(module)) for module in MODULES}
SYSTEMS: dict[str, System] = {name: row for rows in TABLE.values() for name, row in rows.items()}


def named(name: str) -> System:
    """The row of a system; raises ValueError for an unknown name and lists the valid ones."""
    if name not in SYSTEMS:
        nearest = get_close_matches(name, SYSTEMS, 1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"Unknown system {name!r}.{hint} Valid systems: {', '.join(SYSTEMS)}.")
    return SYSTEMS[name]
