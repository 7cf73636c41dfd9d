"""The pages that the build writes into ``docs/reference/``: API, commands, systems, ledger, experiments."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
PLACE = "docs/reference"
UP = "../../../"  # from a page of an experiment to the root
TITLES = {
    "gon": "Gradient origin networks",
    "dip": "Deep image prior",
    "llgae": "Locally linear charts",
    "tsne_starts": "Starts of t-SNE",
}
PACKAGES = {
    "gae": "the front door",
    "gae.data": "data sets and readers",
    "gae.systems": "every named system",
    "gae.likelihood": "models: heads, priors, operators, mixtures, sequences",
    "gae.inference": "engines: how a code is found",
    "gae.objective": "from an encoding to a loss per sample",
    "gae.evidence": "estimates of log p(x)",
    "gae.training": "fitting, schedules, corruptions",
    "gae.analysis": "what is asked of a model",
    "gae.nets": "networks, without probability",
    "gae.adapters": "models that you have",
    "gae.sklearn": "an estimator of scikit-learn",
    "gae.storage": "models on disk",
}


ANALYSIS = (  # modules whose functions users call; gae.inference_gap and others stand in gae
    *("engines", "calibration", "rate_distortion", "restoration", "image_quality", "traversal", "diagnosis"),
    *("baseline", "chains", "activation", "landscape"),
)


def pages() -> dict[str, Callable[[], str]]:
    """Every written page: its path below ``docs/reference/``, and the function that returns its text."""
    sections = experiments()
    return {
        "api/index.md": api_index,
        **{f"api/{name}.md": lambda name=name: api(name) for name in PACKAGES},
        "commands.md": commands,
        "systems.md": systems,
        "ledger.md": ledger,
        "experiments/index.md": lambda: experiment_index(sections),
        **{f"experiments/{name}.md": lambda name=name: experiment(name, sections[name]) for name in sections},
        **{f"experiments/{name}-tables.md": lambda name=name: tables(name) for name in tabulated(sections)},
    }


def api_index() -> str:
    lines = [f"- {{doc}}`{name} <{name}>`: {purpose}" for name, purpose in PACKAGES.items()]
    return (
        "# API reference\n\nOne page for each package, from its docstrings. The examples run in the tests of every "
        "change. `gae` alone gives what most scripts need; the other packages hold the parts to swap.\n\n"
        + "\n".join(lines)
        + "\n\n"
        + _toctree(PACKAGES)
    )


def api(name: str) -> str:
    """A list of the public names of a package, and the entry of each."""
    module = importlib.import_module(name)
    members = _analysis() if name == "gae.analysis" else {each: getattr(module, each) for each in _public(name, module)}
    kinds = {"classes": inspect.isclass, "functions": callable, "values": lambda _: True}
    listed: dict[str, list[str]] = {kind: [] for kind in kinds}
    for each, value in members.items():
        listed[next(kind for kind, matches in kinds.items() if matches(value))].append(each)
    overview = [
        f"{kind.capitalize()}: " + ", ".join(f"{{py:obj}}`{each} <{name}.{each}>`" for each in sorted(entries)) + "."
        for kind, entries in listed.items()
        if entries and kind != "values"
    ]
    entries = [_entry(name, each, value) for each, value in sorted(members.items()) if callable(value)]
    doc = inspect.getdoc(module) or ""
    return "\n\n".join([f"# {name}", doc, *overview, *entries]) + "\n"


def _public(name: str, module: Any) -> list[str]:
    names = [each for each in module.__all__ if not inspect.ismodule(getattr(module, each))]
    if name != "gae":
        return names
    from gae.systems.table import SYSTEMS, function_name

    return [each for each in names if each not in set(map(function_name, SYSTEMS))]  # those stand in gae.systems


def _analysis() -> dict[str, Any]:
    """The public functions and classes of the modules of ``gae.analysis``, with their module's name."""
    modules = {name: importlib.import_module(f"gae.analysis.{name}") for name in ANALYSIS}
    return {
        f"{name}.{each}": value
        for name, module in modules.items()
        for each, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not each.startswith("_")
    }


def _entry(package: str, name: str, value: Any) -> str:
    kind = "class" if inspect.isclass(value) else "function"
    members = "   :members:\n" if kind == "class" else ""
    return f"```{{eval-rst}}\n.. auto{kind}:: {package}.{name}\n{members}```"


def commands() -> str:
    """Usage, arguments and options of every command."""
    import typer

    from gae.cli.main import app

    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="gae")
    names = group.list_commands(context)
    listed = [
        f"| [`gae {name}`](#gae-{name}) | {_first_line(group.get_command(context, name).help)} |" for name in names
    ]
    return (
        "# Commands\n\nEvery command prints these texts with `--help`, takes `--config options.yaml` with values of "
        "its arguments and options, and writes the `config.yaml` that repeats it into its output folder.\n\n"
        "| command | |\n|---|---|\n"
        + "\n".join(listed)
        + "\n\n"
        + "\n".join(_command(group, context, name) for name in names)
    )


def _command(group: Any, parent: Any, name: str) -> str:
    command = group.get_command(parent, name)
    context = type(parent)(command, info_name=name, parent=parent)
    usage = " ".join(command.collect_usage_pieces(context))
    rows = [_parameter(each, context) for each in command.get_params(context)]
    return (
        f"## gae {name}\n\n```text\ngae {name} {usage}\n```\n\n{_marked(inspect.cleandoc(command.help or ''))}\n\n"
        "| argument or option | |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


def _parameter(parameter: Any, context: Any) -> str:
    form, help_ = parameter.get_help_record(context) or (parameter.make_metavar(context), parameter.help)
    cells = (f"`{form}`".replace("|", r"\|"), _escaped(help_ or ""))
    return f"| {cells[0]} | {cells[1]} |"


def _first_line(text: str | None) -> str:
    return _escaped(" ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split()))


def _escaped(text: str) -> str:
    return _marked(re.sub(r"([|*<\[\]])", r"\\\1", text))


def _marked(text: str) -> str:
    """The text with its options in code font, where two hyphens do not become a dash."""
    return re.sub(r"`[^`]*`|(?<![\w-])(--[a-z][a-z-]*)", lambda match: f"`{match[1]}`" if match[1] else match[0], text)


def systems() -> str:
    """Every system with its parts, its source and its options."""
    from gae.systems import SYSTEMS, defaults
    from gae.systems.__main__ import markdown
    from gae.systems.table import function_name

    blocks = []
    for name, row in SYSTEMS.items():
        options = ", ".join(f"`{key}={value!r}`" for key, value in defaults(name).items())
        call = f"{{py:obj}}`gae.{function_name(name)}() <gae.systems.{function_name(name)}>`"
        blocks.append(f"`{name}`\n: {call}. {row.source}. Options: {options or 'none'}.")
    return (
        "# Systems\n\nEach row is a function of a data set, or of the shape of one observation, that returns a model; "
        "`gae systems` prints this table, `gae systems NAME` one row. The columns are the parts that you can swap.\n\n"
        + markdown()
        + "\n## Sources and options\n\n"
        + "\n\n".join(blocks)
        + "\n"
    )


def ledger() -> str:
    """Every claim with its verdict, recomputed.

    Raises:
        ValueError: for a check that contradicts the verdict of its note.
    """
    from gae.ledger.notes import contradictions, read_notes, run

    notes = read_notes()
    findings = {finding.claim.id: finding for finding in run(notes)}
    if wrong := contradictions([*findings.values()]):
        raise ValueError(f"Checks contradict the verdicts of the notes: {', '.join(wrong)}.")
    verdicts = [finding.check.verdict.value for finding in findings.values()]
    counts = ", ".join(
        f"{verdicts.count(each)} {meaning}"
        for each, meaning in (("holds", "hold"), ("holds if", "hold under a condition"), ("fails", "fail"))
    )
    blocks = [_note(note, findings) for note in notes]
    return (
        f"# The ledger of derivations\n\nOf {len(findings)} claims that texts on autoencoders make, {counts}. Each "
        "claim leads to the note with its proof. Beside it stand the two sides of its first relation, computed "
        "independently when this page was built; `gae notes D24` prints a claim with its relations, `gae notes` "
        "writes them to a page.\n\n" + "\n".join(blocks)
    )


def _note(note: Any, findings: dict[str, Any]) -> str:
    rows = [_claim(note.name, findings[claim.id]) for claim in note.claims]
    return f"## {note.title}\n\n| claim | says | verdict | check |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _claim(note: str, finding: Any) -> str:
    from gae.reports.formulas import typeset
    from gae.reports.ledger import number

    claim, check = finding.claim, finding.check
    title = f"{claim.id}. {claim.title}"
    says = claim.statement if "$" in claim.statement else _literal(typeset(claim.statement))
    numbers = f"{number(check.lhs)} {check.claim[0].sign} {number(check.rhs)}"
    link = f"[{title}](../../notes/{note}.md#{slug(title)})"
    return f"| {link} | {says} | {_verdict(check)} | {numbers} |"


def _verdict(check: Any) -> str:
    verdict = check.verdict.value
    return f"**{verdict}**" if verdict == "fails" else verdict


def _literal(html: str) -> str:
    """HTML in which no character is markup of Markdown."""
    return re.sub(r"[|*_`$\\]", lambda match: f"&#{ord(match[0])};", html)


def slug(heading: str) -> str:
    """The anchor of a heading, as on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def experiments() -> dict[str, str]:
    """The text of ``experiments/README.md`` for each page: the rules, and the section of each experiment."""
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    parts = re.split(r"^## `(\w+)`$|^## Other modules$", text, flags=re.MULTILINE)
    named = {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True) if name}
    return {"rules": parts[0].partition("\n")[2].strip(), **named}


def experiment_index(sections: Mapping[str, str]) -> str:
    lines = [f"- [{_title(name)}]({name}.md): {_lead(body)[0]}" for name, body in sections.items() if name != "rules"]
    return (
        "# Experiments\n\nOne page for each claim that was measured, with its figure, its limits and what it was run "
        "on. Each names those of the [rules](rules.md) that its numbers do not meet.\n\n"
        + "\n".join(lines)
        + "\n\n"
        + _toctree(sections)
    )


def experiment(name: str, text: str) -> str:
    """A page: the claim, its figure, and the rest of its section."""
    if name == "rules":
        return f"# Rules of the experiments\n\n{text}\n".replace("\n## Rules\n", "\n")
    claim, rest = _lead(text)
    picture = Path("experiments", "results", f"{name}.png")
    shown = f"![Figure of this experiment. {_plain(claim)}]({UP}{picture})\n\n" if (ROOT / picture).exists() else ""
    body = re.sub(r"\]\(results/([\w-]+)\.md\)", r"](\1-tables.md)", rest)
    body = re.sub(r"\]\((?!https:|[\w-]+-tables\.md)([^)]+)\)", rf"]({UP}experiments/\1)", body)
    body = re.sub(r" ± |([≥≤]) (?=[−\d])", lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), body)
    return f"# {_title(name)}\n\n**{claim}**\n\n{shown}{body}\n"


def tabulated(sections: Mapping[str, str]) -> list[str]:
    """The results whose tables a section links to."""
    return [name for text in sections.values() for name in re.findall(r"\]\(results/([\w-]+)\.md\)", text)]


def tables(name: str) -> str:
    """A page of all tables of a run, which only its experiment links to."""
    return f"---\norphan: true\n---\n\n{(ROOT / 'experiments' / 'results' / f'{name}.md').read_text(encoding='utf-8')}"


def _title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " ").capitalize())


def _lead(text: str) -> tuple[str, str]:
    """The claim, which a section begins with in bold, and the rest."""
    match = re.match(r"\*\*(.+?)\*\*", text, flags=re.DOTALL)
    if match is None:
        raise ValueError(f"A section of experiments/README.md must begin with its claim in bold, got {text[:60]!r}.")
    return " ".join(match[1].split()), text[match.end() :].strip()


def _plain(text: str) -> str:
    return re.sub(r"[`\[\]]", "", text)


def _toctree(names: Iterable[str]) -> str:
    return "```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"


def _write(app: "Sphinx") -> None:
    """Writes the pages that changed, and removes those that are no more."""
    folder, written = ROOT / PLACE, pages()
    for path in [*folder.rglob("*.md")]:
        if path.relative_to(folder).as_posix() not in written:
            path.unlink()
    for name, text in written.items():
        path, content = folder / name, text()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")


def _unknown(app: "Sphinx", env: Any, node: Any, content: Any) -> None:
    if node.get("refdomain") == "py" and node.get("refexplicit"):  # written in a page, not in a signature
        from sphinx.util.logging import getLogger

        getLogger(__name__).warning("no entry for %r in the reference", node["reftarget"], location=node)


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("builder-inited", _write)
    app.connect("missing-reference", _unknown)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
