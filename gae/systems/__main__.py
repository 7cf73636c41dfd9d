"""``python -m gae.systems``, in the repository: updates README and stubs from the table of systems."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gae.systems.table import SYSTEMS, TABLE, System, function_name

ROOT = Path(__file__).resolve().parents[2]
MARKERS = ("<!-- systems -->\n", "<!-- end of systems -->")
IMPORT = re.compile(r"from \.([\w.]*) import (\w+) as \w+\n")


def written() -> dict[Path, str]:
    """The files generated from the table, with their text."""
    readme, front, package = (ROOT / name for name in ("README.md", "gae/__init__.pyi", "gae/systems/__init__.pyi"))
    functions = {function_name(name): module for module, rows in TABLE.items() for name in rows}
    return {
        readme: _between_markers(readme.read_text(encoding="utf-8"), markdown()),
        front: stub(front.read_text(encoding="utf-8"), dict.fromkeys(functions, "systems"), {"systems"}),
        package: stub(package.read_text(encoding="utf-8"), functions, TABLE),
    }


def stub(text: str, functions: Mapping[str, str], modules: Iterable[str]) -> str:
    """A stub with its imports of functions from ``modules`` replaced by ``functions``, sorted as by ruff."""
    unchanged = [match for match in IMPORT.findall(text) if not (match[0] in modules and match[1].islower())]
    imports = sorted([*unchanged, *((module, name) for name, module in functions.items())], key=_order)
    lines = "".join(f"from .{module} import {name} as {name}\n" for module, name in imports)
    first = IMPORT.search(text)
    start = len(text) if first is None else first.start()
    return text[:start] + lines + IMPORT.sub("", text[start:])


def _order(line: tuple[str, str]) -> tuple[str, int, str]:
    module, name = line
    return module, 0 if name.isupper() else 1 if name[0].isupper() else 2, name


def markdown() -> str:
    """The table as Markdown: systems that observe samples, then systems with other observations."""
    samples = {name: row for name, row in SYSTEMS.items() if row.observation == "sample"}
    others = {name: row for name, row in SYSTEMS.items() if row.observation != "sample"}
    return (
        "\n".join(_table(samples, "likelihood", "prior", "inference", "objective"))
        + "\n\nSystems whose observation is not a single sample:\n\n"
        + "\n".join(_table(others, "observation", "likelihood", "prior", "inference", "objective"))
        + "\n"
    )


def _table(rows: Mapping[str, System], *columns: str) -> Iterator[str]:
    yield f"| system | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, row in rows.items():
        yield f"| `{name}` | {' | '.join(getattr(row, column) for column in columns)} |"


def _between_markers(text: str, table: str) -> str:
    start, end = (text.index(marker) for marker in MARKERS)
    return text[: start + len(MARKERS[0])] + table + text[end:]


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text, encoding="utf-8", newline="\n")
