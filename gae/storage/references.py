"""Objects of a user's own modules, by a reference such as ``my_model:build``."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any


@contextmanager
def working_directory() -> Iterator[None]:
    """Looks modules up in the working directory first."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


def imported(reference: str) -> Any:
    """The object of a ``module:name`` reference; modules are looked up in the working directory first.

    Raises:
        ValueError: for a reference of another form, or a module or name that does not exist.

    >>> imported("math:pi")
    3.14159...
    """
    module, _, name = reference.partition(":")
    if not (module and name):
        raise ValueError(f"Need module:function, got {reference!r}. For build() in my_model.py, give my_model:build.")
    with working_directory():
        try:
            return reduce(getattr, name.split("."), importlib.import_module(module))
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # a package that the module needs
            raise ValueError(
                f"There is no module {error.name!r} in the working directory {os.getcwd()} or on the path."
            ) from None
        except AttributeError as error:
            raise ValueError(f"{module} has no {name!r}: {error}.") from error
