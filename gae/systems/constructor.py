"""Constructors of systems from data or the shape of one observation."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import Size

from gae import nets
from gae.autoencoder import Autoencoder
from gae.data import Dataset, training_data
from gae.data.sources import kind_of
from gae.data.values import measured, need_rows
from gae.likelihood import StandardUnits
from gae.storage import recorded
from gae.systems.parts import Shape

P = ParamSpec("P")
M = TypeVar("M", bound=Autoencoder)

# Facts about a data set; None if unknown.
FACTS: dict[str, Callable[[Dataset], int | bool | None]] = {
    "classes": lambda data: None if data.vocabulary is None else data.vocabulary.classes,
    "observations": lambda data: len(data.train),
    "missing": lambda data: data.missing or None,
}


def constructor(
    function: Callable[Concatenate[Shape, P], M], reads: Mapping[str, str]
) -> Callable[Concatenate[Any, P], M]:
    """Wraps a function of an event shape so that it also takes data, from which it reads shape and options.

    The data are a data set, or any source of ``gae.data.load``, of which all rows are taken, as by ``fit``.

    Args:
        function: a function of an event shape and options.
        reads: maps each option whose default is read from the data to a key of ``FACTS``.
    """
    function = recorded(function)  # for ``save``, with the shape and options read from the data
    signature = inspect.signature(function)
    shape, *options = signature.parameters.values()

    @wraps(function)
    def construct(data: Any, /, *values: P.args, **named: P.kwargs) -> M:
        try:
            bound = signature.bind(data, *values, **named)
        except TypeError as error:
            valid = ", ".join(option.name for option in options)
            raise TypeError(f"{function.__name__}: {error}. Valid options: {valid}.") from None
        data = shape_or_data(function.__name__, data, bool(bound.arguments.get("missing")))
        bound.arguments[shape.name] = data.event_shape if isinstance(data, Dataset) else data
        if isinstance(data, Dataset):
            _need_option(function.__name__, reads, data)
            bound.arguments = {**facts(reads, data), **bound.arguments}
        _check_sizes(options, bound.arguments)
        if isinstance(data, Dataset) and data.standardize:
            given = {option.name: bound.arguments[option.name] for option in options if option.name in bound.arguments}
            model = _in_units_of(data, function.__name__, given)
        else:
            model = function(*bound.args, **bound.kwargs)
        if isinstance(data, Dataset) and model.likelihood.event_shape == data.event_shape:
            _check_test(model, data)
        return model

    first = shape.replace(name="data", kind=shape.POSITIONAL_ONLY, annotation=Any)
    construct.__signature__ = signature.replace(parameters=[first, *options])  # type: ignore[attr-defined]
    return construct


def facts(reads: Mapping[str, str], data: Dataset) -> dict[str, Any]:
    """The options read from a data set."""
    values = {option: FACTS[fact](data) for option, fact in reads.items()}
    return {option: value for option, value in values.items() if value is not None}


def shape_or_data(function: str, data: Any, missing: bool = False) -> Dataset | Size:
    """The shape of one observation as it is, or a data set of all rows of data.

    Raises:
        TypeError: for anything else; ``function`` is the name of the function that was called with it.

    >>> import numpy as np
    >>> shape_or_data("vae", (1, 28, 28)), shape_or_data("vae", np.zeros((4, 3))).train.shape
    (torch.Size([1, 28, 28]), torch.Size([4, 3]))
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, tuple | list) and all(isinstance(size, int) for size in data):
        nets.need_sizes(event_shape=data)
        return Size(data)
    try:
        kind_of(data)
    except TypeError:
        raise TypeError(
            f"{function} takes data, as `gae.data.load` does, or the shape of one observation, such as (1, 28, 28), "
            f"got {data!r}."
        ) from None
    read = training_data(data, missing=missing)
    if isinstance(read, Dataset):
        return read
    need_rows(read.shape, "x")
    return Dataset(type(data).__name__, read, read[:0], None, None, measured(read), missing=missing)


def _need_option(system: str, reads: Mapping[str, str], data: Dataset) -> None:
    """Raises ValueError for data with missing values, and a system that does not take them."""
    if data.missing and "missing" not in reads:
        raise ValueError(
            f"{system} needs complete observations, but {data.name} was loaded with missing='mask'. Use a system with "
            "an option `missing`, such as ppca, gmm, vae or laplace_gae, or remove or impute missing values."
        )


@recorded
def standardized(system: str, event_shape: Shape, options: dict[str, Any]) -> Autoencoder:
    """A named system with its likelihood in standard units.

    Raises:
        ValueError: for a system of other observations, or with a loss that compares x with samples.

    >>> type(standardized("ppca", (5,), {"latent": 2}).likelihood).__name__
    'MixtureStandardUnits'
    """
    import gae.systems

    model: Autoencoder = getattr(gae.systems, system)(event_shape, **options)
    if model.likelihood.event_shape != event_shape or type(model).forward is not Autoencoder.forward:
        raise ValueError(
            f"{system} cannot model data in standard units (standardize=True). Choose a system of single samples with "
            "a likelihood, such as ppca or vae, or standardise the data before loading them."
        )
    model.likelihood = StandardUnits.of(model.likelihood)
    return model


def _in_units_of(data: Dataset, system: str, options: dict[str, Any]) -> Any:
    """A named system in the standard units of the training data."""
    model = standardized(system, data.event_shape, options)
    assert isinstance(model.likelihood, StandardUnits)
    model.likelihood.set_units(data.train)
    return model


def _check_sizes(options: Sequence[inspect.Parameter], given: Mapping[str, Any]) -> None:
    """Raises ValueError for sizes and counts that are too small; the message names the option."""
    for option in options:
        value = given.get(option.name)
        is_size = option.annotation in (int, int | None, Sequence[int]) and option.name != "end"
        if is_size and value is not None:
            nets.need_sizes(0 if option.name.endswith("steps") else 1, **{option.name: value})


def _check_test(model: Autoencoder, data: Dataset) -> None:
    """Raises ValueError or TypeError for a test split outside the support; ``fit`` checks the training split."""
    if not len(data.test):
        return
    try:
        model.likelihood.check(data.test)
    except (TypeError, ValueError) as error:
        raise type(error)(f"In the test data: {error}") from None
