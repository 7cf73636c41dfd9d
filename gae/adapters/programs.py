"""Pyro models and guides as they are: a program with one latent code for each observation becomes an autoencoder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from types import MethodType
from typing import Any

import pyro
import torch
from jaxtyping import Float, Num
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor, nn
from torch.distributions import constraints

from gae.inference.amortized import Declarations

PROBES = (3, 2)  # numbers of rows on which a program is tried


@dataclass(frozen=True)
class Site:
    """A sample site of a program, as it was met on a number of rows.

    Attributes:
        law: its distribution.
        value: its value, of the law's batch and event shape.
        scale: the factor of its log density.
        subsampling: the factor that its plates account for.
        plates: (axis, size) of its plates by name; axes count from the end of the batch shape.
    """

    name: str
    law: Any
    value: Tensor
    is_observed: bool
    is_masked: bool
    scale: float
    subsampling: float
    plates: Mapping[str, tuple[int, int]]


class _WholePlates(Messenger):
    """Lets a plate take its first indices in order, and records how many rows each takes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def _pyro_sample(self, message: Any) -> None:
        if not site_is_subsample(message):
            return
        plate = message["fn"]
        if message["value"] is None:
            size = plate.size if plate.subsample_size is None else min(plate.size, plate.subsample_size)
            message["value"] = torch.arange(size, device=plate.device)
        message["done"] = True
        self.sizes.append(plate.subsample_size or len(message["value"]))


def unvalidated() -> Any:
    """Switches Pyro's validation of arguments off while it is entered."""
    return pyro.validation_enabled(False)


@contextmanager
def _own_dims() -> Iterator[None]:
    """Hides the plates in which a program runs, so that its own take the dims that they would take alone."""
    stack = _DIM_ALLOCATOR._stack
    _DIM_ALLOCATOR._stack = []
    try:
        yield
    finally:
        _DIM_ALLOCATOR._stack = stack


@contextmanager
def _own_store() -> Iterator[None]:
    """Replaces Pyro's global store by an empty one, and renews the references that ``scope`` drops and SVI needs."""
    store = pyro.get_param_store()
    with store.scope():
        yield
    for name in list(store.keys()):
        store[name]


class Program(nn.Module):
    """A Pyro model or guide of a batch x, with its parameters as its own, run on any number of rows.

    Parameters that Pyro's global store holds already, as after ``SVI``, start from the values there; the store is not
    changed. A program whose plate takes a fixed number of rows is run on that many at a time.

    Args:
        function: a callable of x, a ``PyroModule``, or a method of a module.
        name: the program in messages.
    """

    def __init__(self, function: Callable[..., Any], name: str):
        super().__init__()
        self.name = name
        owner = function.__self__ if isinstance(function, MethodType) else function
        self.method = function.__name__ if isinstance(function, MethodType) else None
        self.module = owner if isinstance(owner, nn.Module) else None
        self.function = function if self.module is None else None
        self.declared = nn.ParameterDict()
        self.stored: Mapping[str, Tensor] = dict(pyro.get_param_store().named_parameters())
        self.rows: int | None = None  # that it takes at a time; None for any number

    def __getstate__(self) -> Any:
        if len(self.declared) and self.module is None:
            raise TypeError(
                f"The {self.name} is a plain function whose networks are not part of the model: a copy would share "
                "them, and training one would change both. Make it an `nn.Module` or a `PyroModule`."
            )
        return super().__getstate__()

    def _call(self, x: Tensor) -> Any:
        if self.module is None:
            assert self.function is not None
            return self.function(x)
        return self.module(x) if self.method is None else getattr(self.module, self.method)(x)

    @contextmanager
    def _handled(self) -> Iterator[_WholePlates]:
        plates = _WholePlates()
        declarations = Declarations(self.declared, self.module is not None, self.stored)
        with poutine.block(), _own_dims(), _own_store(), declarations, plates:
            yield plates

    def run(self, x: Tensor, values: Mapping[str, Tensor] | None = None) -> dict[str, Site]:
        """The sample sites of one run on exactly these rows, with some of their values given."""
        with self._handled():
            return self._sites(x, values)

    def _sites(self, x: Tensor, values: Mapping[str, Tensor] | None) -> dict[str, Site]:
        conditioned = self._call if values is None else poutine.condition(self._call, data=dict(values))
        trace = poutine.trace(conditioned).get_trace(x)
        sites = {}
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or site_is_subsample(node) or (node["infer"] or {}).get("_deterministic"):
                continue
            plates = [frame for frame in node["cond_indep_stack"] if frame.full_size]
            subsampling = prod((frame.full_size / frame.size for frame in plates if frame.full_size), start=1.0)
            observed = node["is_observed"] and name not in (values or {})
            masked, scale = node["mask"] is not None, float(node["scale"])
            assert node["value"] is not None
            axes = {frame.name: (frame.dim, frame.size) for frame in plates if frame.dim is not None}
            sites[name] = Site(name, node["fn"], node["value"], observed, masked, scale, subsampling, axes)
        return sites

    def attempt(self, x: Num[Tensor, "N *X"]) -> dict[str, Site]:
        """Runs the program for the first time, and finds the number of rows that it takes.

        Raises:
            ValueError: if it cannot be run on x alone.
        """
        reason, tried, other = None, set(), None
        pending = [len(x), PROBES[0]]
        while pending:
            rows = pending.pop()
            if rows in tried:
                continue
            tried.add(rows)
            with self._handled() as plates:
                try:
                    sites = self._sites(repeated(x, rows), None)
                except Exception as error:  # whatever a program may raise
                    reason = reason or error
                    pending += plates.sizes
                    continue
            if any(rows not in each.law.batch_shape for each in sites.values()):
                other, pending = other or sites, pending + plates.sizes
                continue
            self.rows = None if rows == PROBES[0] and rows not in self._fixed(x) else rows
            return sites
        if other is not None:
            return other
        kind = type(reason).__name__
        raise ValueError(
            f"The {self.name} cannot be run on a batch x of shape {tuple(repeated(x, PROBES[0]).shape)}: {kind}: "
            f"{str(reason).partition(chr(10))[0]}. It must be a function of x alone; bind others by functools.partial."
        ) from reason

    def _fixed(self, x: Tensor) -> list[int]:
        """Sizes of plates that do not follow the number of rows."""
        with self._handled() as plates:
            try:
                self._sites(repeated(x, PROBES[1]), None)
            except Exception:  # whatever a program may raise
                return plates.sizes
        return []

    def parts(self, x: Tensor) -> Iterator[tuple[slice, int]]:
        """The rows of each run, and their number, which may be filled up."""
        size = self.rows or max(len(x), 1)
        for start in range(0, len(x), size):
            yield slice(start, start + size), min(size, len(x) - start)

    def filled(self, rows: Tensor) -> Tensor:
        """Rows of one run, repeated where the program takes more of them."""
        return rows if self.rows in (None, len(rows)) else repeated(rows, self.rows or 0)


def repeated(x: Tensor, rows: int) -> Tensor:
    """As many rows, by repeating those of x in order."""
    return x[torch.arange(rows, device=x.device) % len(x)]


def row_axis(shape: Size, rows: int, name: str) -> int:
    """The axis, counted from the end, that runs over the observations of a batch shape.

    Raises:
        ValueError: if there is none or several.
    """
    axes = [i - len(shape) for i, size in enumerate(shape) if size == rows]
    if len(axes) != 1:
        raise ValueError(
            f"The site {name!r} needs one axis for the {rows} observations of a batch, got batch shape {tuple(shape)}. "
            'Sample it inside `with pyro.plate("data", len(x)):`, with the dimensions of a code as its event, '
            "`.to_event(1)`."
        )
    return axes[0]


def shared_axes(one: Site, other: Site, rows: int) -> list[int]:
    """The axes of two sites that run over the observations: that of the plate of both, if there is one."""
    shared = [axis for name, (axis, size) in one.plates.items() if name in other.plates and size == rows]
    return (
        shared * 2 if len(shared) == 1 else [row_axis(each.law.batch_shape, rows, each.name) for each in (one, other)]
    )


def as_rows(values: Tensor, axis: int, event_dims: int) -> Float[Tensor, "N W"]:
    """Values of a site (*batch, *event) as one vector for each observation."""
    return values.movedim(axis - event_dims, 0).flatten(1) if values.dim() > 1 else values.unsqueeze(1)


def from_rows(rows: Float[Tensor, "N W"], shape: Size, axis: int, event_dims: int) -> Tensor:
    """The inverse of ``as_rows``, for a site whose values have the given shape, of any number of observations."""
    at = len(shape) + axis - event_dims
    rest = [size for i, size in enumerate(shape) if i != at]
    return rows.reshape(len(rows), *rest).movedim(0, at)


def need_plain(site: Site, program: str) -> None:
    """Raises ValueError for a site whose log density is scaled or masked by other than plates."""
    if isinstance(site.law, Unit):
        raise ValueError(
            f"The {program} has a factor {site.name!r}, so that it is no density of x and a code. Leave it out."
        )
    if site.is_masked:
        raise ValueError(f"The site {site.name!r} of the {program} is masked. Leave poutine.mask out.")
    if abs(site.scale - site.subsampling) > 1e-6 * site.subsampling:
        raise ValueError(
            f"The log density of the site {site.name!r} is scaled by {site.scale / site.subsampling:g} beyond the "
            f"subsampling of its plates, so that the {program} is no density. Leave poutine.scale out: a factor of the "
            "KL term is one of the objective, not of the model."
        )


def is_real(support: Any) -> bool:
    """Whether a support is that of all real numbers, or vectors of them."""
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    return support is constraints.real
