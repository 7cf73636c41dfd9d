"""Optional packages, which the extras of gae install."""

from importlib import import_module
from typing import Any

PACKAGES = {"faiss": "faiss-cpu", "png": "pypng"}  # by module, where the names differ


def optional(module: str, extra: str, user: str, remedy: str = "") -> Any:
    """Imports an optional package.

    Args:
        module: the module to import, such as ``"pyarrow.parquet"``.
        extra: the extra of gae that installs the package.
        user: the part that needs it, as the subject of the message.
        remedy: a sentence on how to do without it.

    Raises:
        ImportError: if it is not installed.

    >>> optional("no_such_package.reader", "tables", "A table")
    Traceback (most recent call last):
    ImportError: A table needs no_such_package: pip install 'gae[tables]'.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{user} needs {PACKAGES.get(package, package)}: pip install 'gae[{extra}]'.{remedy and f' {remedy}'}"
        ) from error
