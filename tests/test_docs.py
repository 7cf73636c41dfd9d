"""The sources of the documentation are whole; ``make docs`` builds them and checks the same, and more, with Sphinx."""

import ast
import importlib.util
import inspect
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import gae
from gae.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(\S+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https://)([^)#]*)(?:#([^)]+))?\)")


def extension(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "extensions" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = {DOCS / "reference" / name for name in extension("pages").pages()}
SCRIPTS = sorted((DOCS / "examples").glob("*.py"))
GALLERY = {DOCS / "gallery" / f"{name}.rst" for name in ["index", *(path.stem for path in SCRIPTS)]}
PAGES = [*DOCS.glob("*.md"), *(DOCS / "guide").glob("*.md")]


def entries(page: Path) -> set[Path]:
    """The pages that the tables of contents of a page list."""
    listed: set[Path] = set()
    for kind, body in FENCE.findall(page.read_text(encoding="utf-8")):
        lines = [line.strip() for line in body.splitlines() if line and not line.startswith(":")]
        for line in lines if kind == "{toctree}" else []:
            name = re.sub(r".*<(.+)>", r"\1", line)
            listed |= {path.resolve() for path in page.parent.glob(f"{name}.md")}
            listed |= {path for path in GENERATED | GALLERY if path.with_suffix("") == page.parent / name}
    return listed


def test_every_page_is_in_a_table_of_contents() -> None:
    reached, pending = set(), [DOCS / "index.md"]
    while pending:
        page = pending.pop()
        reached.add(page)
        pending += entries(page) - reached if page in PAGES else []
    notes = set((ROOT / "notes").rglob("*.md"))
    assert {*PAGES, *notes, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"} - reached == set()
    assert {DOCS / "reference" / name for name in ("ledger.md", "commands.md", "api/index.md")} <= reached


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_links_of_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name, anchor in LINK.findall(text):
        target = (page.parent / name).resolve() if name else page
        assert target.exists() or target in GENERATED | GALLERY, name
        if anchor and target.exists():
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(extension("pages").slug, headings), f"{name}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_a_page_answers_before_it_divides(page: Path) -> None:
    title, _, rest = page.read_text(encoding="utf-8").partition("\n")
    assert title.startswith("# ")
    assert not re.match(r"#|\||```|:::", rest.strip()), "begin with a paragraph that answers"
    for kind, body in FENCE.findall(rest):
        if kind == "python":
            ast.parse(body)


KNOWN = {"model": gae.Autoencoder, "digits": gae.data.Dataset, "data": gae.data.Dataset}  # what pages name so
CODE = [*PAGES, ROOT / "README.md", *(ROOT / "notes").glob("[co][lw]*.md")]


class Names(ast.NodeVisitor):
    """Follows the names of a block of code to what they stand for, and binds the arguments of each call."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {"gae": gae}

    def of(self, node: ast.AST) -> Any:
        """The object of gae that an expression names; None for others."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        owner = self.of(node.value) if isinstance(node, ast.Attribute) else None
        return None if owner is None else resolved(owner, node.attr)  # type: ignore[attr-defined]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").startswith("gae"):
            module = importlib.import_module(str(node.module))
            self.known |= {each.asname or each.name: resolved(module, each.name) for each in node.names}

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.of(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function, receiver = self.of(node.func), list[None]()
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            owner = KNOWN.get(node.func.value.id)
            function, receiver = (getattr(owner, node.func.attr), [None]) if owner else (function, [])
        keywords = {each.arg: None for each in node.keywords if each.arg}
        if function is not None and not any(isinstance(each, ast.Starred) for each in node.args):
            inspect.signature(function).bind(*receiver, *node.args, **keywords)
        self.generic_visit(node)


def resolved(owner: Any, name: str) -> Any:
    """An attribute, or a module of a package that nothing has imported yet."""
    if inspect.ismodule(owner) and not hasattr(owner, name):
        return importlib.import_module(f"{owner.__name__}.{name}")
    return getattr(owner, name)


@pytest.mark.parametrize("page", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_arguments_of_pages_exist(page: Path) -> None:
    """Of the blocks together, in order; ``test_references.py`` looks up the names in the text."""
    text = page.read_text(encoding="utf-8")
    names = Names()
    for kind, body in FENCE.findall(text):
        if kind == "python":
            names.visit(ast.parse(body))


@pytest.mark.parametrize("page", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_pages_are_understood(page: Path) -> None:
    """Names, numbers of arguments, options and the types of their values."""
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="gae")
    blocks = [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == "sh"]
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line.rstrip(" &"), comments=True) or [""]
        if program == "gae" and words:
            command = group.get_command(context, words[0])
            assert command is not None, line
            command.make_context(words[0], words[1:], parent=context)


def test_the_gallery_has_scripts_in_an_order() -> None:
    assert [path.stem for path in SCRIPTS] == sorted(extension("gallery").ORDER)
    assert len(SCRIPTS) >= 12


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_has_a_title_and_shows_a_figure(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    title, rule, blank, *_ = (ast.get_docstring(tree) or "").splitlines()
    assert len(rule) == len(title) and set(rule) == {"="} and not blank
    assert "plt.show()" in script.read_text(encoding="utf-8")


def test_written_pages_have_the_facts() -> None:
    pages = extension("pages").pages()
    assert "`--seeds" in pages["commands.md"]() and "## gae notes" in pages["commands.md"]()
    assert "gae.inference.Ascent" in pages["api/gae.inference.md"]()
    assert pages["systems.md"]().count("| `vae` |") == 1
    gap = pages["experiments/inference_gap.md"]()
    assert (
        gap.startswith("# Inference gap\n\n**A VAE's co-trained encoder")
        and "experiments/results/inference_gap.png" in gap
    )


def test_characters_of_docstrings_are_no_markup() -> None:
    escape = extension("docstrings").escape
    assert escape("log q(z|x), x_, *args, ``a|b``") == r"log q(z\|x), x\_, \*args, ``a|b``"
    assert escape("latent: Z.\nrows: N. Then more") == "latent: \\Z.\nrows: \\N. Then more"
    example = ">>> a | b  # x_\n1_\n\nc|d"
    assert escape(example) == ">>> a | b  # x_\n1_\n\nc\\|d"


def test_the_first_line_of_a_property_is_no_type() -> None:
    untyped = extension("docstrings").untyped
    assert untyped(["by a test.", "", "More.", ":type: Whether so"]) == ["Whether so: by a test.", "", "More."]
    assert untyped(["A plain line.", "", "More."]) == ["A plain line.", "", "More."]


def test_options_in_help_texts_are_in_code_font() -> None:
    pages = extension("pages")
    assert pages._marked("With --split-by, `gae x --seeds 3` -- so") == "With `--split-by`, `gae x --seeds 3` -- so"
    prose = re.sub(r"^```.*?^```|`[^`]*`", "", pages.commands(), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<![|-])--[a-z]", prose)
