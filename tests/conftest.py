"""Shapes checked, every test seeded, the same data for all. Loaded before any module of gae is imported."""

import functools
import os

# Set before the libraries that read them load, and inherited by the commands that tests start.
os.environ["MPLBACKEND"] = "Agg"  # figures without a screen
os.environ["OMP_NUM_THREADS"] = os.environ.get("GAE_THREADS", "1")  # small computations only wait for each other

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import numpy as np
import pyro
import pytest
import torch

jaxtyping.install_import_hook("gae", "beartype.beartype")

OFFSET = int(os.environ.get("GAE_SEED_OFFSET", 0))  # added to every seed: see tests/seeds.py
FULL = os.environ.get("GAE_FULL") == "1"  # every engine with every likelihood that suits it, and more examples


class TorchRandom:
    """torch's generator, as hypothesis wants it: each example starts from the same state."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()  # hypothesis keeps a weak reference only
hypothesis.register_random(TORCH_RANDOM)
hypothesis.settings.register_profile(
    "gae", derandomize=True, deadline=None, max_examples=50 if FULL else 10, database=None
)
hypothesis.settings.load_profile("gae")


def shifted(seeded: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of another seed: its first argument, an integer, plus the offset."""

    @functools.wraps(seeded)
    def call(seed: Any = None, *rest: Any, **options: Any) -> Any:
        return seeded(seed + OFFSET if isinstance(seed, int) else seed, *rest, **options)

    return call


if OFFSET:  # wherever tests and library seed a generator, so that two that share a seed still do
    torch.manual_seed, np.random.default_rng = shifted(torch.manual_seed), shifted(np.random.default_rng)
    np.random.seed = shifted(np.random.seed)


class Deterministic:
    """A plugin of its own, because a fixture of this file would not reach the doctests in gae/."""

    @pytest.fixture(autouse=True)
    def deterministic(self) -> Iterator[None]:
        random.seed(OFFSET)
        np.random.seed(0)
        torch.manual_seed(0)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        pyro.clear_param_store()  # of parameters that other tests left
        yield
        torch.set_default_dtype(torch.float32)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Deterministic())


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes, as on a full disk: writing fails."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def digits() -> Any:
    from gae import data

    return data.load("digits")


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder with MNIST's four idx files."""
    from benchmarks import common

    folder = common.mnist_folder()
    if folder is None:
        pytest.skip("no MNIST idx files: set GAE_DATA to a folder that has them")
    return folder


@contextmanager
def without_type_checks() -> Iterator[None]:
    """Without the test suite's own type checks: what a user gets, in half the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    with without_type_checks():
        yield


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Twice as fast, for a test that calls the same thing many times."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
