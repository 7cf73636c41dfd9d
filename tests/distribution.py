"""Builds the sdist and the wheel, checks their contents, and uses the wheel in a fresh environment: ``make dist``.

    python tests/distribution.py --constraint constraints.txt

Needs Python 3.11 or newer alone, and an index of packages.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".pyi", ".typed", ".html"}
ALONE = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}  # beside the packages
BUILD = "from setuptools import build_meta as b; b.build_sdist({0!r})"
COMMANDS = [
    ["--version"],
    [],
    ["systems"],
    ["doctor"],
    ["fit", "kmeans", "circles", "--epochs", "2", "--quiet"],
    ["encode", "runs/kmeans-circles", "circles", "-o", "codes.csv"],
    ["fit", "vae", "digits", "--epochs", "1", "--quiet"],
    ["explore", "runs/vae-digits", "digits"],
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraint", action="append", default=[], help="versions for pip")
    constraints = [
        word for path in parser.parse_args().constraint for word in ("--constraint", str(Path(path).resolve()))
    ]
    out = ROOT / "dist"
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        tools, fresh, place = (Path(folder) / name for name in ("tools", "fresh", "place"))
        sdist, wheel = built(tools, out, constraints)
        check_contents(members(sdist), members(wheel))
        place.mkdir()
        use(fresh, place, wheel, constraints)
    print(f"{sdist.name} and {wheel.name} are in {out}.")


def built(tools: Path, out: Path, constraints: list[str]) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    python = environment(tools)
    run(python, "-m", "pip", "install", "-q", *constraints, "setuptools", "wheel")
    run(python, "-c", BUILD.format(str(out)), cwd=ROOT)
    (sdist,) = out.glob("*.tar.gz")
    run(python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", out, sdist)
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


def check_contents(sdist: set[str], wheel: set[str]) -> None:
    """Exits with the difference from the files of the checkout: modules, stubs, templates and notes, no tests."""
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gae").rglob("*") if path.suffix in SUFFIXES}
    notes = {f"notes/{path.name}" for suffix in ("py", "md") for path in (ROOT / "notes").glob(f"*.{suffix}")}
    compare("sdist", {name for name in sdist if ".egg-info/" not in name}, package | notes | ALONE)
    installed = package | {f"gae/{name}" for name in notes}
    compare("wheel", {name for name in wheel if ".dist-info/" not in name}, installed)


def compare(kind: str, names: set[str], expected: set[str]) -> None:
    if names != expected:
        sys.exit(f"The {kind} lacks {sorted(expected - names)} and has {sorted(names - expected)} too many.")


def members(path: Path) -> set[str]:
    """The files in an archive, without the folder that a sdist puts around them."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {name for name in wheel.namelist() if not name.endswith("/")}
    with tarfile.open(path) as sdist:
        return {member.name.partition("/")[2] for member in sdist if member.isfile()}


def use(fresh: Path, place: Path, wheel: Path, constraints: Iterable[str]) -> None:
    """Installs the wheel without any extra, and runs commands with it outside the checkout."""
    python = environment(fresh)
    run(python, "-m", "pip", "install", "-q", *constraints, wheel)
    run(python, "-m", "pip", "check")
    gae = python.with_name("gae" + python.suffix)
    for words in COMMANDS:
        print("$ gae", *words, flush=True)
        run(gae, *words, cwd=place)
    done = subprocess.run([gae, "notes", "D01"], cwd=place, capture_output=True, text=True, encoding="utf-8")
    if done.returncode != 2 or "pip install 'gae[notes]'" not in done.stderr:
        sys.exit(f"Without its extra, gae notes must say so: {done.stdout}{done.stderr}")


def environment(folder: Path) -> Path:
    """Makes a virtual environment; returns its interpreter."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(*command: str | Path, cwd: Path | None = None) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env={**variables, "PYTHONUTF8": "1"}, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with exit code {done.returncode}.")


if __name__ == "__main__":
    main()
