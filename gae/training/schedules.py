"""Learning-rate schedules, stepped after each step of the optimiser."""

import math
from collections.abc import Callable
from copy import deepcopy
from inspect import Parameter, signature
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

MakeScheduler = Callable[..., LRScheduler]


def cosine(optimizer: Optimizer, total_steps: int, warm_up: int = 0) -> LRScheduler:
    """Half a cosine from the optimiser's learning rate to 0 at the end of training (Loshchilov & Hutter 2017).

    Args:
        optimizer: the optimiser.
        total_steps: number of optimiser steps of the run, which ``fit`` passes.
        warm_up: number of first steps in which the learning rate rises linearly to that of the optimiser.
    """
    return _scaled(optimizer, total_steps, warm_up, lambda done: 0.5 * (1 + math.cos(math.pi * done)))


def linear(optimizer: Optimizer, total_steps: int, warm_up: int = 0) -> LRScheduler:
    """A line from the optimiser's learning rate to 0 at the end of training; the arguments are those of ``cosine``."""
    return _scaled(optimizer, total_steps, warm_up, lambda done: 1 - done)


SCHEDULES: dict[str, MakeScheduler] = {"cosine": cosine, "linear": linear}


def make_scheduler(make: MakeScheduler, optimizer: Optimizer, total_steps: int) -> tuple[LRScheduler, dict[str, Any]]:
    """The schedule of an optimiser, and the settings that identify it.

    Raises:
        TypeError: if ``make`` returns no scheduler, or one that needs a metric.
    """
    needs_total = _needs_total(make)
    scheduler = make(optimizer, total_steps=total_steps) if needs_total else make(optimizer)
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            "scheduler must be a callable optimizer -> torch.optim.lr_scheduler.LRScheduler that is stepped without a "
            "metric, such as functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1000) or "
            f"gae.training.cosine; got {make!r}, which returned {type(scheduler).__name__}."
        )
    if scheduler.optimizer is not optimizer:
        raise TypeError("scheduler must be a callable that schedules the optimizer that it is given.")
    settings = {"scheduler": _name(make), "arguments": _arguments(make), "start": deepcopy(scheduler.state_dict())}
    return scheduler, settings | ({"total_steps": total_steps} if needs_total else {})


def _name(make: MakeScheduler) -> str:
    return getattr(getattr(make, "func", make), "__name__", type(make).__name__)


def _arguments(make: MakeScheduler) -> dict[str, Any]:
    """The numbers and names given to a ``functools.partial``."""
    given = getattr(make, "keywords", {})
    return {name: value for name, value in given.items() if isinstance(value, (int, float, str))}


def _needs_total(make: MakeScheduler) -> bool:
    if isinstance(make, LRScheduler) or not callable(make):
        raise TypeError(f"scheduler must be a callable optimizer -> LRScheduler, got {make!r}.")
    argument = signature(make).parameters.get("total_steps")
    return argument is not None and argument.default is Parameter.empty


def _scaled(optimizer: Optimizer, total_steps: int, warm_up: int, decay: Callable[[float], float]) -> LRScheduler:
    if not 0 <= warm_up < total_steps:
        raise ValueError(
            f"warm_up must be a number of steps from 0 to below the {total_steps} steps of the run, got {warm_up}."
        )

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return decay(min((step - warm_up) / (total_steps - warm_up), 1.0))

    return LambdaLR(optimizer, factor)
