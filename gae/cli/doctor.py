"""``gae doctor``: the installation, devices and data sets that the other commands find."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gae.cli.common import AsJson
from gae.cli.terminal import console, echo_json, reported, table
from gae.data.environment import processor, versions
from gae.data.files import check_folder
from gae.data.names import NAMES, OPENML

if TYPE_CHECKING:
    import torch

MODULES = {  # with other names than their packages
    "markdown-it-py": "markdown_it",
    "pillow": "PIL",
    "pyro-ppl": "pyro",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
REPOSITORY = ("dev", "docs", "experiments", "test")  # extras that serve the repository
FROM_SOURCE = "gae runs from its source and is not installed, so its requirements are unknown. Run pip install -e ."


@dataclass(frozen=True)
class Fact:
    """An entry of the report; a problem with something that commands need makes them fail."""

    name: str
    value: str
    problem: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Need:
    """A requirement of gae: a package, its lowest version, and the extra that it belongs to."""

    name: str
    least: str
    extra: str | None

    @staticmethod
    def of(line: str) -> "Need":
        """Reads a line of the metadata of an installed package.

        >>> Need.of('zuko>=1.4; extra == "flows"')
        Need(name='zuko', least='1.4', extra='flows')
        """
        name, least = re.match(r"[\w.-]+", line), re.search(r">=\s*([\d.]+)", line)
        extra = re.search(r"extra == ['\"]([\w-]+)", line)
        return Need(name[0] if name else line, least[1] if least else "0", extra[1] if extra else None)


@reported
def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices and the data sets that are there; exit code 1 if something that gae needs is broken."""
    sections = {"packages": _packages, "extras": _extras, "devices": _devices, "data": _data, "folders": _folders}
    report = {title: list(_section(facts)) for title, facts in sections.items()}
    ill = [fact for facts in report.values() for fact in facts if fact.problem]
    broken = [f"{fact.name}: {fact.problem}" for fact in ill if fact.needed]
    if as_json:
        values = {title: {fact.name: fact.value for fact in facts} for title, facts in report.items()}
        echo_json({**values, "problems": {fact.name: fact.problem for fact in ill}, "broken": broken})
    else:
        _print(report, broken)
    if broken:
        raise typer.Exit(1)


def _section(facts: Callable[[], Iterator[Fact]]) -> Iterator[Fact]:
    """The facts up to an error, which is one more fact: a doctor must not fall ill."""
    try:
        yield from facts()
    except Exception as error:
        name = facts.__name__.strip("_")
        yield Fact(name, "cannot be told", f"{type(error).__name__}: {error}", needed=True)


def _print(report: dict[str, list[Fact]], broken: Sequence[str]) -> None:
    from rich.text import Text

    shown = table("", "", "")
    shown.show_header = False
    for title, facts in report.items():
        shown.add_section()
        shown.add_row(Text(title, style="bold"))
        for fact in facts:
            style = "red" if fact.needed else "yellow"
            shown.add_row(f"  {fact.name}", fact.value, Text(fact.problem, style=style))
    console().print(shown)
    typer.echo(f"Broken: {'; '.join(broken)}" if broken else "Everything that gae needs works.")


def _needs() -> list[Need]:
    return [Need.of(line) for line in requires("gae") or [] if not line.startswith("gae[")]


def _packages() -> Iterator[Fact]:
    """Python, gae, and every package that it needs, each imported."""
    version = versions(["gae"])
    yield Fact("python", str(version["python"]))
    try:
        core = [need for need in _needs() if need.extra is None]
    except PackageNotFoundError:
        yield Fact("gae", "not installed", FROM_SOURCE)
        return
    yield Fact("gae", str(version["gae"]))
    for need in core:
        installed = versions([need.name])[need.name]
        yield Fact(need.name, installed or "missing", _illness(need, installed), needed=True)


def _illness(need: Need, installed: str | None) -> str:
    """The problem with a package that gae needs; empty if there is none."""
    install = f"pip install '{need.name}>={need.least}'"
    if installed is None:
        return f"it is not installed. Run {install}"
    if release(installed) < release(need.least):
        return f"gae needs version {need.least} or newer. Run {install}"
    try:
        import_module(MODULES.get(need.name, need.name.replace("-", "_")))
    except Exception as error:
        return f"it cannot be imported ({type(error).__name__}: {error}). Run pip install --force-reinstall {need.name}"
    return ""


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, to compare: without zeros at the end, and without suffixes.

    >>> release("2.13.0+cpu") < release("2.4"), release("2.4.0rc1")
    (False, (2, 4))
    """
    leading = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in leading[0].split(".")] if leading else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _extras() -> Iterator[Fact]:
    """Every extra for users: its packages that are installed, and the command that adds the others."""
    needs: dict[str, list[Need]] = {}
    try:
        for need in _needs():
            if need.extra is not None and need.extra not in REPOSITORY:
                needs.setdefault(need.extra, []).append(need)
    except PackageNotFoundError:
        return
    for extra, wanted in sorted(needs.items()):
        installed = versions([need.name for need in wanted])
        missing = [need.name for need in wanted if installed[need.name] is None]
        value = ", ".join(f"{need.name} {installed[need.name]}" for need in wanted if need.name not in missing)
        remedy = f"no {', '.join(missing)}. If you want it: pip install 'gae[{extra}]'" if missing else ""
        yield Fact(extra, value or "not installed", remedy)


def _devices() -> Iterator[Fact]:
    """The processor and each accelerator, which computes a product."""
    import torch

    from gae.data.memory import free_memory

    cpu = torch.device("cpu")
    free, count, threads = free_memory(cpu), os.cpu_count(), torch.get_num_threads()
    room = "" if free is None else f", {free / 2**30:.1f} GiB of memory free"
    instructions = torch.backends.cpu.get_cpu_capability()
    value = f"{processor()}: {count} processors, {threads} threads, {instructions} instructions{room}"
    yield Fact("cpu", value, _computes(cpu), needed=True)
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(i)
            driver = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
            value = f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB, {driver}"
            yield Fact(f"cuda:{i}", value, _computes(torch.device("cuda", i)), needed=True)
    else:
        built = torch.version.cuda
        yield Fact("cuda", f"no device (torch is built for CUDA {built})" if built else "torch is built without CUDA")
    if torch.backends.mps.is_available():
        yield Fact("mps", "Apple GPU", _computes(torch.device("mps")), needed=True)
    else:
        yield Fact("mps", "no Apple GPU")


def _computes(device: "torch.device") -> str:
    """The problem with a device; empty if it multiplies matrices correctly."""
    import torch

    try:
        ones = torch.ones(8, 8, device=device)
        total = float((ones @ ones).sum())
    except RuntimeError as error:
        return f"it does not compute: {error}"
    return "" if total == 512 else f"8 × 8 ones squared sum to {total}, not 512"


def _data() -> Iterator[Fact]:
    """The data sets that can be named, with the places where their files are."""
    from gae.data.memory import VARIABLE, limit

    yield Fact("bundled", ", ".join(name for name in NAMES if name not in OPENML))
    for name in OPENML:
        yield _idx(name)
    try:
        yield Fact("largest file", f"{limit() / 2**30:g} GiB once in memory ({VARIABLE})")
    except ValueError as error:
        yield Fact("largest file", os.environ.get(VARIABLE, ""), str(error), needed=True)


def _idx(name: str) -> Fact:
    """The folder from which MNIST or Fashion-MNIST would be read."""
    from gae.data.readers import DEBIAN, IDX_FILES, find_idx, idx_owner, idx_places

    foreign = ""
    try:
        for place in idx_places(name):
            owner, missing = idx_owner(place), [stem for stem in IDX_FILES if stem not in find_idx(place)]
            if owner in (None, name):
                problem = f"it has no {', '.join(missing)}. Add them, or leave the folder out" if missing else ""
                return Fact(name, str(place), problem, needed=True)
            foreign = foreign or f"The idx files in {place} are those of {owner}. "
    except (OSError, ValueError) as error:
        return Fact(name, "unreadable", str(error), needed=True)
    looked = [*filter(None, os.environ.get("GAE_DATA", "").split(os.pathsep)), str(DEBIAN)]
    remedy = f"{foreign}Name a folder with its idx files in GAE_DATA"
    return Fact(name, f"not in {', '.join(looked)}", remedy if foreign else f"{remedy}, or let OpenML be asked for it")


def _folders() -> Iterator[Fact]:
    """Folders into which gae or its packages write."""
    yield _writable("results", Path("runs").absolute(), "Change to a folder of your own, or give --out or -o")
    home = os.environ.get("SCIKIT_LEARN_DATA") or Path.home() / "scikit_learn_data"
    yield _writable("downloads", Path(home).expanduser(), "Name a folder of your own in SCIKIT_LEARN_DATA")


def _writable(name: str, folder: Path, remedy: str) -> Fact:
    try:
        check_folder(folder)
    except OSError as error:
        return Fact(name, str(folder), f"{error} {remedy}")
    return Fact(name, str(folder))
