"""Annealing of a number in a model over the first steps of training, such as the warm-up of β."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from gae.training.callbacks import Callback, TrainingRun

SHAPES = ("linear", "geometric")


@dataclass
class Anneal(Callback):
    """Annealing of a number in the model, from ``start`` to the model's own value over the first ``steps`` steps.

    ``Anneal("objective.beta", steps=1000)`` is the warm-up of β (Bowman et al. 2016; Sønderby et al. 2016). The number
    has its annealed value during the steps of the optimiser only: validation, checkpoints and the trained model have
    the model's own value, so that validation losses are comparable between epochs. Since it is a function of the step,
    a resumed run equals an uninterrupted one.

    Args:
        attribute: path from the autoencoder: "objective.beta" and "aggregate.beta", which are arguments of functions,
            "penalties.0.weight", "corruption.scale", or any number or scalar buffer.
        steps: number of optimiser steps until the model's own value is reached.
        start: value at the first step.
        shape: "linear", or "geometric" for numbers that span orders of magnitude, such as temperatures.

    Raises:
        ValueError, TypeError: in ``fit``, for a path that leads to no number, or a model that learns in closed form,
            which has no optimiser steps.

    >>> from gae.systems import vae
    >>> from gae.training import fit
    >>> model, seen = vae((4,), 2, beta=2.0), []
    >>> class Watch(Callback):
    ...     def on_train_batch_start(self, run):
    ...         seen.append(run.autoencoder.objective.keywords["beta"])
    >>> warm_up = Anneal("objective.beta", steps=4)
    >>> _ = fit(model, torch.randn(10, 4), epochs=6, callbacks=[warm_up, Watch()], progress=False)
    >>> seen, model.objective.keywords["beta"]
    ([0.0, 0.5, 1.0, 1.5, 2.0, 2.0], 2.0)
    """

    attribute: str
    steps: int
    start: float = 0.0
    shape: str = "linear"
    number: Number | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be a whole number of at least 1, got {self.steps!r}.")
        if self.shape not in SHAPES:
            raise ValueError(f"Unknown shape {self.shape!r}. Valid shapes: {', '.join(SHAPES)}.")

    def value(self, step: int, end: float) -> float:
        """The value at an optimiser step, counted from 0, on the way to ``end``.

        >>> [Anneal("x", steps=2, start=8.0, shape="geometric").value(step, 2.0) for step in range(3)]
        [8.0, 4.0, 2.0]
        """
        done = min(step / self.steps, 1.0)
        if self.shape == "geometric":
            return float(self.start ** (1 - done) * end**done)
        return (1 - done) * self.start + done * end

    def on_train_start(self, run: TrainingRun) -> None:
        if not run.learner.counts_steps:
            raise ValueError(
                f"Anneal({self.attribute!r}) counts steps of an optimizer, and this model learns in closed form. Omit "
                "it, or give an optimizer."
            )
        number = Number.at(run.autoencoder, self.attribute)
        if self.shape == "geometric" and not (self.start > 0 and number.own > 0):
            raise ValueError(
                f"Geometric annealing of {self.attribute} needs positive ends, got {self.start} and the model's "
                f'{number.own}. Use shape="linear".'
            )
        self.number = number

    def on_train_batch_start(self, run: TrainingRun) -> None:
        if self.number is not None and run.total < self.steps:
            self.number.set(self.value(run.total, self.number.own))

    def on_train_batch_end(self, run: TrainingRun, loss: float) -> None:
        self._restore()

    def on_exception(self, run: TrainingRun, error: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        if self.number is not None:
            self.number.restore()


@dataclass(frozen=True)
class Number:
    """A number in a model that can be replaced and restored: an attribute, a scalar buffer or a function's argument."""

    own: float
    set: Callable[[float], None]
    restore: Callable[[], None]

    @staticmethod
    def at(model: nn.Module, path: str) -> Number:
        """The number at a dotted path; raises ValueError or TypeError if there is none."""
        *parents, name = path.split(".")
        owners: list[Any] = [model]
        for parent in parents:
            owners.append(_part(owners[-1], parent, path))
        if isinstance(owners[-1], nn.Module) or not callable(owners[-1]):
            return _of_attribute(owners[-1], name, path)
        if len(owners) == 1:
            raise ValueError(f"{path!r} is no path from the autoencoder, such as 'objective.beta'.")
        return _of_argument(owners[-2], parents[-1], name, path)


def _part(owner: Any, name: str, path: str) -> Any:
    if isinstance(owner, (nn.ModuleList, nn.Sequential, list, tuple)) and name.isdecimal() and int(name) < len(owner):
        return owner[int(name)]
    if not hasattr(owner, name):
        raise ValueError(f"Cannot anneal {path!r}: {type(owner).__name__} has no attribute {name!r}.")
    return getattr(owner, name)


def _of_attribute(owner: Any, name: str, path: str) -> Number:
    own = _part(owner, name, path)
    if isinstance(own, nn.Parameter):
        raise TypeError(f"Cannot anneal {path!r}: it is a parameter, which training changes. Name a number.")
    if isinstance(own, Tensor) and own.numel() == 1:
        before = own.detach().clone()
        return Number(float(before), partial(_fill, own), partial(_fill, own, before))
    return Number(_number(own, path), partial(setattr, owner, name), partial(setattr, owner, name, own))


def _of_argument(owner: Any, attribute: str, name: str, path: str) -> Number:
    """An argument of the function ``owner.attribute``."""
    function = getattr(owner, attribute)
    arguments = signature(function).parameters
    if name not in arguments or arguments[name].default is Parameter.empty:
        numbers = [each for each, argument in arguments.items() if isinstance(argument.default, float)]
        raise ValueError(
            f"Cannot anneal {path!r}: {attribute} has no argument {name!r} with a value. Its numbers: "
            f"{', '.join(numbers) or 'none'}."
        )

    def replace(value: float) -> None:
        setattr(owner, attribute, partial(function, **{name: value}))

    return Number(_number(arguments[name].default, path), replace, partial(setattr, owner, attribute, function))


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Cannot anneal {path!r}: it is {value!r}, not a number.")
    return value


@torch.no_grad()
def _fill(buffer: Tensor, value: float | Tensor) -> None:
    buffer.fill_(value)
