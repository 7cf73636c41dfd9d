"""Self-contained HTML pages: templates, their lists of contents, and the facts of the run that made them."""

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gae.data.environment import commit, processor, versions
from gae.data.files import write_text

HEADING = re.compile(r"<h2>(.*?)</h2>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
PACKAGES = ("gae", "torch", "pyro-ppl", "numpy")
CONTENTS = '<nav class="contents"></nav>'


def write_page(path: Path, template: str, **facts: Any) -> None:
    """Writes a page from a template of ``gae/reports/templates``; a missing fact raises ``jinja2.UndefinedError``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from gae.reports.vector import palette

    environment = Environment(
        loader=PackageLoader("gae.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["palette"] = palette
    write_text(path, with_contents(environment.get_template(template).render(**facts)))


def with_contents(page: str) -> str:
    """Gives the sections of a page an address, and lists them where it has an empty list of contents.

    >>> print(with_contents('<nav class="contents"></nav><h2>What <em>q</em> costs</h2>'))
    <nav class="contents" aria-label="Contents"><ol>
    <li><a href="#what-q-costs">What q costs</a></li>
    </ol></nav><h2 id="what-q-costs">What <em>q</em> costs</h2>
    """
    if CONTENTS not in page:
        return page
    sections: dict[str, str] = {}

    def addressed(heading: re.Match[str]) -> str:
        title = TAG.sub("", heading[1]).strip()
        slug = re.sub(r"\W+", "-", re.sub(r"&\w+;|&#\d+;", "", title).lower()).strip("-") or "section"
        name = slug if slug not in sections else f"{slug}-{len(sections) + 1}"
        sections[name] = title
        return f'<h2 id="{name}">{heading[1]}</h2>'

    page = HEADING.sub(addressed, page)
    items = "".join(f'<li><a href="#{name}">{title}</a></li>\n' for name, title in sections.items())
    return page.replace(CONTENTS, f'<nav class="contents" aria-label="Contents"><ol>\n{items}</ol></nav>', 1)


def made_by(
    command: str | None,
    commit: str | None,
    versions: Mapping[str, str | None],
    machine: Mapping[str, Any],
    seconds: float,
) -> list[tuple[str, str]]:
    """The facts at the foot of a page: what made it, where, and how long it took.

    >>> made_by("gae gap vae digits", None, {"gae": "0.2.0", "torch": "2.4"}, {"cpu": "M1", "threads": 1}, 4.2)[1:3]
    [('Commit', 'unknown: gae 0.2.0 was not run from a checkout'), ('Versions', 'gae 0.2.0, torch 2.4')]
    """
    threads = machine["threads"]
    return [
        ("Command", command or "none: called from Python"),
        ("Commit", commit or f"unknown: gae {versions['gae']} was not run from a checkout"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Machine", f"{machine['cpu']}, {threads} thread{'s' if threads > 1 else ''}; {seconds:.0f} s in all"),
    ]


def made_here(command: str, seconds: float) -> list[tuple[str, str]]:
    """The facts at the foot of a page that this process writes."""
    return made_by(command, **origin(), seconds=seconds)


def origin() -> dict[str, Any]:
    """Commit, versions and machine of this process, as JSON.

    >>> list(origin())
    ['commit', 'versions', 'machine']
    """
    import torch

    machine = {"cpu": processor(), "threads": torch.get_num_threads()}
    return {"commit": commit(), "versions": versions(PACKAGES), "machine": machine}


def embed(png: bytes) -> str:
    """PNG in base64, for ``data:image/png;base64,…`` in a template."""
    return base64.b64encode(png).decode()
