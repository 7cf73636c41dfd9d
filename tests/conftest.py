"""Shapes checked, every test seeded, the same data for all. Loaded before any module of gae is imported."""

import functools
import gc
import io
import os

# Set before the libraries that read them load, and inherited by the commands that tests start.
os.environ["MPLBACKEND"] = "Agg"  # figures without a screen
os.environ["OMP_NUM_THREADS"] = os.environ.get("GAE_THREADS", "1")  # small computations only wait for each other

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import hypothesis
import jaxtyping
import numpy as np
import pyro
import pytest
import torch
from offset import OFFSET, seed

FULL = os.environ.get("GAE_FULL") == "1"  # every engine with every likelihood that suits it, and more examples


@dataclass
class Checked:
    """The test in which a function's types were last checked."""

    code: CodeType  # kept, so that its id stays its own
    test: int = -1


every_code: dict[int, Checked] = {}  # by the id of the code: its hash would read all of it
number = 0  # of this test


def first_calls(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """jaxtyping's decorator, for a function's first call in each test: loops repeat the same shapes.

    In full, for every call. What it makes of a function, it makes at the first call, because a function inside another
    one is decorated again and again.
    """

    def decorate(function: Any = None, *, typechecker: Any) -> Any:
        if function is None:
            return functools.partial(decorate, typechecker=typechecker)
        if not isinstance(function, FunctionType):
            return jaxtyped(function, typechecker=typechecker)
        code, strict = function.__code__, None
        last = every_code.setdefault(id(code), Checked(code))

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal strict
            if last.test == number or jaxtyping.config.jaxtyping_disable:
                return function(*args, **kwargs)
            if not FULL:
                last.test = number
            strict = strict or jaxtyped(function, typechecker=typechecker)
            return strict(*args, **kwargs)

        return call

    return decorate


jaxtyping.jaxtyped = first_calls(jaxtyping.jaxtyped)  # type: ignore[assignment]
jaxtyping.install_import_hook("gae", "beartype.beartype")


class TorchRandom:
    """torch's generator, as hypothesis wants it: each example starts from the same state."""

    seed = staticmethod(seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()  # hypothesis keeps a weak reference only
hypothesis.register_random(TORCH_RANDOM)
hypothesis.settings.register_profile(
    "gae", derandomize=True, deadline=None, max_examples=50 if FULL else 6, database=None
)
hypothesis.settings.load_profile("gae")


class Deterministic:
    """A plugin of its own, because a fixture of this file would not reach the doctests in gae/."""

    @pytest.fixture(autouse=True)
    def deterministic(self) -> Iterator[None]:
        global number
        random.seed(OFFSET)
        np.random.seed(0)
        seed(0)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        number += 1
        pyro.clear_param_store()  # of parameters that other tests left
        yield
        torch.set_default_dtype(torch.float32)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Deterministic())


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported and collected stays: no collection need look through it again
    gc.set_threshold(20_000, 20, 20)  # most of what tests make is freed without a collection


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


@contextmanager
def figures_left_blank() -> Iterator[None]:
    """Every figure is built, but drawn as one grey pixel, or as an empty SVG: for tests of what stands beside it."""
    from PIL import Image

    pixel = io.BytesIO()
    Image.new("L", (1, 1), 128).save(pixel, format="png")

    def blank(self: Any, to: Any, **options: Any) -> None:
        to.write("<svg></svg>\n" if options["format"] == "svg" else pixel.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", blank)
        yield


@pytest.fixture
def blank_figures() -> Iterator[None]:
    with figures_left_blank():
        yield


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
