"""What is added to every seed (see seeds.py): importing this moves those of the generators."""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

OFFSET = int(os.environ.get("GAE_SEED_OFFSET", 0))


def shifted(seeded: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of another seed: its first argument, an integer, plus the offset."""

    @functools.wraps(seeded)
    def call(seed: Any = None, *rest: Any, **options: Any) -> Any:
        return seeded(seed + OFFSET if isinstance(seed, int) else seed, *rest, **options)

    return call


if OFFSET:  # wherever tests and library seed a generator, so that two that share a seed still do
    torch.manual_seed, np.random.default_rng = shifted(torch.manual_seed), shifted(np.random.default_rng)
    np.random.seed = shifted(np.random.seed)


def seed(value: int) -> None:
    """``torch.manual_seed`` for the CPU alone: it takes microseconds, not the milliseconds of asking each device."""
    torch.default_generator.manual_seed(value + OFFSET)
