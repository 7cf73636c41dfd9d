"""The house stands as designed: data flows one way, imports stay light, files stay short, nothing executes a file."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# A module imports only from modules above it.
ORDER = [
    "gae.files",
    "gae.processes",
    "gae.sizes",
    "gae.text",
    "gae.arrays",
    "gae.images",
    "gae.readers",
    "gae.values",
    "gae.preparation",
    "gae.dataset",
    "gae.data",
    "gae.nets",
    "gae.sequence_nets",
    "gae.likelihood.priors",
    "gae.likelihood.door",
    "gae.likelihood.base",
    "gae.likelihood.distributions",
    "gae.likelihood.counts",
    "gae.likelihood.heads",
    "gae.likelihood.moments",
    "gae.likelihood.search",
    "gae.likelihood.quadratic",
    "gae.likelihood.alternation",
    "gae.likelihood.linear",
    "gae.likelihood.smooth",
    "gae.likelihood.kernel",
    "gae.likelihood.nonnegative",
    "gae.likelihood.operators",
    "gae.likelihood.observed",
    "gae.likelihood.weights",
    "gae.likelihood.regression",
    "gae.likelihood.neighbours",
    "gae.likelihood.pairs",
    "gae.likelihood.relational",
    "gae.likelihood.lle",
    "gae.likelihood.sequence",
    "gae.likelihood",
    "gae.inference.laws",
    "gae.inference.base",
    "gae.inference.decoder",
    "gae.inference.starts",
    "gae.inference.family",
    "gae.inference.problem",
    "gae.inference.conjugate",
    "gae.inference.steps",
    "gae.inference.proximal",
    "gae.inference.monotone",
    "gae.inference.lbfgs",
    "gae.inference.gauss_newton",
    "gae.inference.langevin",
    "gae.inference.wrappers",
    "gae.inference.gates",
    "gae.inference.stopping",
    "gae.inference.solver",
    "gae.inference.backprop",
    "gae.inference.implicit",
    "gae.inference.free",
    "gae.inference.exact",
    "gae.inference.nearest",
    "gae.inference.ascent",
    "gae.inference.amortized",
    "gae.inference",
    "gae.objective",
    "gae.corruption",
    "gae.penalty",
    "gae.evidence.base",
    "gae.evidence.importance",
    "gae.evidence.laplace",
    "gae.evidence.annealed",
    "gae.evidence.posterior",
    "gae.evidence",
    "gae.autoencoder",
    "gae.adversarial",
    "gae.certificate",
    "gae.claims",
    "gae.ledger",
    "gae.packing",
    "gae.checkpoint",
    "gae.fit.history",
    "gae.fit.samples",
    "gae.fit.learners",
    "gae.fit.run",
    "gae.fit.train",
    "gae.fit",
    "gae.stacked",
    "gae.walks",
    "gae.memory",
    "gae.restore",
    "gae.systems.parts",
    "gae.systems.linear",
    "gae.systems.autoencoders",
    "gae.systems.variational",
    "gae.systems.decoders",
    "gae.systems.latents",
    "gae.systems.adversarial",
    "gae.systems.relational",
    "gae.systems.mixtures",
    "gae.systems.sequences",
    "gae.systems.factors",
    "gae.systems.table",
    "gae.systems",
    "gae.options",
    "gae.measure",
    "gae.gap",
    "gae.activate",
    "gae.engines",
    "gae.curves",
    "gae.pictures",
    "gae.figures",
    "gae.photos",
    "gae.report",
    "gae.gap_report",
    "gae.explore",
    "gae.ledger_page",
    "gae.survey_report",
    "gae.phases",
    "gae.compare",
    "gae.survey",
    "gae",
    "gae.terminal",
    "gae.cli_dip",
    "gae.cli_common",
    "gae.cli_activate",
    "gae.cli_explore",
    "gae.cli_gap",
    "gae.cli_notes",
    "gae.cli_sample",
    "gae.cli",
]

HEAVY = {"lightning", "lightning_fabric", "jinja2", "matplotlib", "pandas", "PIL", "rich", "safetensors", "skimage"}
HEAVY |= {"latex2mathml", "markdown_it", "mdit_py_plugins", "scipy", "sklearn", "tensorboard", "typer"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / "gae").rglob("*.py"))}

every_module = pytest.mark.parametrize("module", FILES)


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


def test_every_module_has_a_place() -> None:
    unplaced = sorted(FILES.keys() - set(ORDER))
    gone = [module for module in ORDER if module not in FILES]
    assert not unplaced, f"place {unplaced} in ORDER: below all that they import, above all that imports them"
    assert not gone, f"take {gone} out of ORDER: no such file"


@every_module
def test_imports_point_upwards(module: str) -> None:
    above = ORDER[: ORDER.index(module)] if module in ORDER else ORDER
    assert own_imports(module) <= set(above), f"{module} may import only from modules above it in ORDER"


@every_module
def test_files_are_short(module: str) -> None:
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= 320, "split it, or make it simpler"


def hazards(tree: ast.Module) -> Iterator[str]:  # noqa: C901 (one case for each hazard)
    """Ways to execute code from a file, and the backward pass that leaks its graph."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                modules = [*(alias.name for alias in names), getattr(node, "module", None) or ""]
                if any("pickle" in name or name in ("joblib", "dill", "shelve", "marshal") for name in modules):
                    yield f"line {node.lineno}: imports a pickler"
                if isinstance(node, ast.ImportFrom) and node.module == "torch":
                    yield from (f"line {node.lineno}: torch.{a.name}" for a in names if a.name in ("load", "save"))
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save"):
                yield f"line {node.lineno}: torch.{node.attr} pickles"
            case ast.Attribute(attr=attr) if "pickle" in attr:
                yield f"line {node.lineno}: {attr}"
            case ast.keyword(arg="allow_pickle", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    yield f"line {node.value.lineno}: allow_pickle"
            case ast.Call(func=ast.Attribute(attr="backward"), keywords=keywords):
                if any(keyword.arg == "create_graph" for keyword in keywords):
                    yield f"line {node.lineno}: backward(create_graph=...): use torch.autograd.grad"


@every_module
def test_no_hazards(module: str) -> None:
    assert not list(hazards(parse(module)))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as c",
        "torch.load(path)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "loss.backward(create_graph=True)",
    ],
)
def test_hazards_are_seen(line: str) -> None:
    assert list(hazards(ast.parse(line)))


def test_import_is_light() -> None:
    code = "import gae, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
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
