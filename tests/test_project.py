"""The project's files agree: dependencies with imports, constraints with installed packages, notes with their index."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from gae.data.extras import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DEVELOPMENT = {"dev", "docs", "experiments", "test"}  # extras that serve this repository, not the installed package
INSTALLED = ("dev", "tensorboard", *(["docs"] if find_spec("sphinx") else []))  # `make docs` adds its packages


def required(*extras: str) -> list[Requirement]:
    """The requirements of gae with the named extras; those on extras of gae itself are expanded."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]
    parsed = [Requirement(line) for line in lines]
    own = [requirement for requirement in parsed if requirement.name == "gae"]
    nested = [inner for requirement in own for inner in required(*requirement.extras)]
    return [requirement for requirement in parsed if requirement.name != "gae"] + nested


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def pins(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    split = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in split}


@cache
def imported_distributions() -> set[str]:
    """The distributions that the package imports: gae/, and notes/, which the wheel carries as gae.notes."""
    modules = {module for module, _ in optional_modules()}
    for path in [*(ROOT / "gae").rglob("*.py"), *(ROOT / "notes").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    third_party = modules - sys.stdlib_module_names - {"gae"}
    return {distribution(name) for name in third_party}


def distribution(module: str) -> str:
    return canonicalize_name(providers().get(module, [PACKAGES.get(module, module)])[0])


providers = cache(importlib.metadata.packages_distributions)  # reads the metadata of all that is installed


def optional_modules() -> Iterator[tuple[str, str]]:
    """Modules that the package imports by ``gae.data.extras.optional``, and the extra that it names."""
    for path in (ROOT / "gae").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name("optional"), args=[ast.Constant(module), ast.Constant(extra), *_]):
                    yield str(module).partition(".")[0], str(extra)


@pytest.mark.slow
def test_every_dependency_is_imported() -> None:
    unused = names(required()) - imported_distributions()
    assert not unused, f"neither gae/ nor notes/ imports {sorted(unused)}: make it an extra in pyproject.toml"


def test_every_import_is_a_dependency_or_an_extra() -> None:
    undeclared = imported_distributions() - names(required(*(EXTRAS.keys() - DEVELOPMENT)))
    assert not undeclared, f"add {sorted(undeclared)} to the dependencies or to an extra in pyproject.toml"


@pytest.mark.slow
def test_a_missing_package_is_in_the_extra_that_is_named() -> None:
    named = set(optional_modules())
    assert len(named) > 5
    assert not [pair for pair in named if distribution(pair[0]) not in names(required(pair[1]))]


def follows_torch(parent: str, requirement: Requirement) -> bool:
    """Whether torch requires this library for an accelerator, in a version of its own for each build and platform."""
    return parent == "torch" and "platform_" in str(requirement.marker or "")


def closure(requirements: list[Requirement]) -> Iterator[str]:
    """The distributions that these requirements bring on this platform, by the metadata of what is installed."""
    pending = [("gae", requirement) for requirement in requirements]
    seen: set[tuple[str, str]] = set()
    while pending:
        parent, requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if follows_torch(parent, requirement):
            continue
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            inner = map(Requirement, importlib.metadata.requires(name) or [])
            pending += [(name, r) for r in inner if r.marker is None or r.marker.evaluate({"extra": extra})]
    yield from {name for name, _ in seen}


def installed(name: str) -> Version:
    """The public version: an index of CPU builds adds a local suffix, 2.13.0+cpu."""
    return Version(Version(importlib.metadata.version(name)).public)


@pytest.fixture
def pinned() -> dict[str, Version]:
    """What constraints.txt pins, where that is what was installed."""
    versions = pins("constraints.txt")
    if installed("torch") != versions["torch"]:
        pytest.skip("make was told to install other versions (CONSTRAINTS)")
    return versions


def test_constraints_pin_every_package_that_make_installs(pinned: dict[str, Version]) -> None:
    brought = set(closure(required(*INSTALLED)))
    assert len(brought) > 50  # the walk went past the direct requirements
    missing = {name: str(installed(name)) for name in sorted(brought - pinned.keys())}
    assert not missing, f"constraints.txt does not pin {missing}"
    assert names(required("docs")) <= pinned.keys()


def test_constraints_are_what_is_installed(pinned: dict[str, Version]) -> None:
    brought = closure(required(*INSTALLED))
    differ = {name: str(installed(name)) for name in brought if pinned.get(name) not in (None, installed(name))}
    assert not differ, f"constraints.txt pins other versions than are installed: {differ}"


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    bounded = [
        r for r in required("dev", "docs", "tensorboard") if r.name not in ("mypy", "ruff")
    ]  # tools that no test runs
    bounds = {canonicalize_name(r.name): Version(spec.version) for r in bounded for spec in r.specifier}
    assert pins("constraints-oldest.txt") == bounds


def test_commit_hooks_use_the_pinned_ruff() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert {Version(version) for version in re.findall(r"ruff==([\w.]+)", text)} == {pins("constraints.txt")["ruff"]}


def test_the_citation_names_this_version() -> None:
    (version,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert version == PROJECT["version"]


DECISIONS = sorted((ROOT / "notes" / "decisions").glob("*.md"))


def test_decisions_are_numbered_and_listed() -> None:
    index = (ROOT / "notes" / "architecture.md").read_text(encoding="utf-8")
    assert [path.name[:5] for path in DECISIONS] == [f"{i:04}-" for i in range(1, len(DECISIONS) + 1)]
    unlisted = [path.name for path in DECISIONS if f"](decisions/{path.name})" not in index]
    assert not unlisted, f"notes/architecture.md does not list {unlisted}"


def test_a_decision_has_context_decision_and_consequence() -> None:
    for path in DECISIONS:
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert headings[1:] == ["Context", "Decision", "Consequence"], path


DOCUMENTS = ["CONTRIBUTING.md", "notes/architecture.md", *(f"notes/decisions/{path.name}" for path in DECISIONS)]


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)", (ROOT / document).read_text(encoding="utf-8")):
            assert link.startswith("https://") or (ROOT / document).parent.joinpath(link).exists(), (
                f"{document}: {link}"
            )
