"""The house stands as designed: data flows one way, imports stay light, nothing executes a file."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import jaxtyping
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# A package imports only from those above it.
PACKAGES = [
    "gae.data",
    "gae.storage",
    "gae.nets",
    "gae.likelihood",
    "gae.inference",
    "gae.objective",
    "gae.evidence",
    "gae.autoencoder",
    "gae.training",
    "gae.ledger",
    "gae.systems",
    "gae.analysis",
    "gae.adapters",
    "gae.reports",
    "gae.studies",
    "gae.sklearn",
    "gae",
    "gae.cli",
]

# Heads that are named as the distribution which they return, a more accurate version of Pyro's of that name.
DISTRIBUTIONS = {"Bernoulli", "ContinuousBernoulli", "Poisson"}
LAPLACE = {"Laplace"}  # his distribution, a head, and his approximation, an engine

HEAVY = {"lightning", "lightning_fabric", "jinja2", "matplotlib", "pandas", "PIL", "rich", "safetensors", "skimage"}
HEAVY |= {"latex2mathml", "markdown_it", "mdit_py_plugins", "scipy", "sklearn", "tensorboard", "typer", "yaml"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / "gae").rglob("*.py"))}


@cache
def parse(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported_names(module: str) -> Iterator[str]:
    """Absolute dotted names that a module imports anywhere, inside functions too."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> set[str]:
    """Modules of gae that a module imports."""
    found = set()
    for name in imported_names(module):
        if name.split(".")[0] == "gae":
            while name not in FILES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_the_house_is_as_listed() -> None:
    assert {package_of(module) for module in FILES} == set(PACKAGES)


def test_imports_go_down_the_packages() -> None:
    for module in FILES:
        above = PACKAGES[: PACKAGES.index(package_of(module)) + 1]
        assert {package_of(name) for name in own_imports(module)} <= set(above), module


def test_no_two_classes_share_a_name() -> None:
    homes = Counter(
        node.name
        for module in FILES
        for node in parse(module).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    shared = {name for name, count in homes.items() if count > 1}
    assert shared <= DISTRIBUTIONS | LAPLACE


def test_no_module_imports_itself_by_way_of_others() -> None:
    imports = {module: own_imports(module) - {module} for module in FILES}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


# Phrases that a native speaker would not write, and clauses where a noun belongs.
ODD = re.compile(r"\b(but for|lest|hangs? on|tells? of|for want of)\b")
CLAUSE = re.compile(r"^(What|Where)\b|\bwhat (is|was|are|the|of|came|comes|stands|it|one|they|each|users?)\b")


def test_docstrings_are_plain_english() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for module in FILES:
        texts = [ast.get_docstring(node) or "" for node in ast.walk(parse(module)) if isinstance(node, documented)]
        assert not [text for text in texts if ODD.search(text) or CLAUSE.search(text.partition("\n")[0])], module


def test_no_variable_is_named_found() -> None:
    """Say what it is: code, index, entry."""
    for module in FILES:
        names = {node.id for node in ast.walk(parse(module)) if isinstance(node, ast.Name)}
        assert "found" not in names | {node.arg for node in ast.walk(parse(module)) if isinstance(node, ast.arg)}, (
            module
        )


def hazards(tree: ast.Module) -> Iterator[str]:  # noqa: C901, PLR0912 (one case for each hazard)
    """Ways to execute code from a file, the backward pass that leaks its graph, and random least squares."""
    harmless = {id(call.func) for call in ast.walk(tree) if isinstance(call, ast.Call) and loads_tensors_only(call)}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                modules = [*(alias.name for alias in names), getattr(node, "module", None) or ""]
                if any("pickle" in name or name in ("joblib", "dill", "shelve", "marshal") for name in modules):
                    yield f"line {node.lineno}: imports a pickler"
                if isinstance(node, ast.ImportFrom) and node.module == "torch":
                    yield from (f"line {node.lineno}: torch.{a.name}" for a in names if a.name in ("load", "save"))
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save") if id(node) not in harmless:
                yield f"line {node.lineno}: torch.{node.attr} pickles"
            case ast.Attribute(attr=attr) if "pickle" in attr:
                yield f"line {node.lineno}: {attr}"
            case ast.keyword(arg="allow_pickle", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    yield f"line {node.value.lineno}: allow_pickle"
            case ast.Call(func=ast.Attribute(attr="backward"), keywords=keywords):
                if any(keyword.arg == "create_graph" for keyword in keywords):
                    yield f"line {node.lineno}: backward(create_graph=...): use torch.autograd.grad"
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(ast.Name("torch"), "linalg"), attr="lstsq"), keywords=keywords
            ):
                if all(keyword.arg != "driver" for keyword in keywords):
                    yield f"line {node.lineno}: the default driver of lstsq reads memory that is not initialised"


def loads_tensors_only(call: ast.Call) -> bool:
    """Whether a call of ``torch.load`` asks for tensors alone."""
    values = [keyword.value for keyword in call.keywords if keyword.arg == "weights_only"]
    is_load = isinstance(call.func, ast.Attribute) and call.func.attr == "load"
    return is_load and any(isinstance(value, ast.Constant) and value.value is True for value in values)


def test_tensors_may_be_loaded() -> None:
    assert not list(hazards(ast.parse("torch.load(path, weights_only=True)")))


def test_no_hazards() -> None:
    for module in FILES:
        assert not list(hazards(parse(module))), module


def test_no_hazards_in_notes() -> None:
    notes = sorted((ROOT / "notes").glob("*.py"))
    assert notes
    for note in notes:
        assert not list(hazards(ast.parse(note.read_text(encoding="utf-8")))), note


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as c",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "loss.backward(create_graph=True)",
        "torch.linalg.lstsq(a, b).solution",
    ],
)
def test_hazards_are_seen(line: str) -> None:
    assert list(hazards(ast.parse(line)))


def loaded_by(*statements: str) -> list[set[str]]:
    """The top-level modules that a fresh interpreter has after each of the statements."""
    listed = "print(*{name.partition('.')[0] for name in sys.modules})"
    code = "\n".join(["import sys", *(f"{statement}; {listed}" for statement in statements)])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_import_is_light() -> None:
    names = "gae.Autoencoder, gae.fit, gae.compare, gae.survey, gae.vae, gae.data.load"
    before, loaded = loaded_by("import gae", names)
    assert not before & {*HEAVY, "torch", "pyro", "numpy"}
    assert "torch" in loaded
    assert not loaded & HEAVY, "import these inside the functions that use them"


def test_shapes_are_checked_in_tests() -> None:
    from gae.objective import mean

    with pytest.raises(jaxtyping.TypeCheckError):
        mean(torch.zeros(2, 2))


@pytest.mark.parametrize("package", ["likelihood", "inference", "objective"])
def test_every_public_name_has_a_case(package: str) -> None:
    from cases import covered_names

    public = set(importlib.import_module(f"gae.{package}").__all__)
    assert public, f"gae.{package} exports nothing"
    missing = sorted(public - covered_names())
    assert not missing, f"add a case for {missing} to tests/cases.py"
