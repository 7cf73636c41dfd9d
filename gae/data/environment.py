"""Environment of a run: package versions, commit and processor."""

import platform
import subprocess
from collections.abc import Iterable
from functools import cache
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


@cache
def commit() -> str | None:
    """The commit of the checkout that gae runs from, and whether files differ from it; None if it is installed."""
    checkout = Path(__file__).resolve().parents[2]
    top = _git(checkout, "rev-parse", "--show-toplevel")
    if top is None or not Path(top).is_dir() or not checkout.samefile(top):
        return None  # not a checkout, or a folder inside that of another project
    name = _git(checkout, "rev-parse", "HEAD")
    return f"{name}, with changes" if name and _git(checkout, "status", "--porcelain", "--untracked-files=no") else name


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git in a folder; None if there is no git, or if it fails."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
