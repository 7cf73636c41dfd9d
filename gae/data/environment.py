"""Environment of a run: package versions and processor."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of Python and of the given packages; None for a package that is not installed.

    >>> list(versions(["torch", "no-such-package"]))
    ['python', 'torch', 'no-such-package']
    """
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def processor() -> str:
    """The processor's model name."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
