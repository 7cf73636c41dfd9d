"""The ledger as one HTML page: a table, the notes with their formulas and sources, every check, and figures."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gae.data.extras import optional
from gae.ledger.notes import Claim, Finding, Note
from gae.ledger.sources import places, read_sources
from gae.reports.answers import ledger_answer
from gae.reports.formulas import mathml, typeset
from gae.reports.pages import made_here, write_page


def write(notes: Sequence[Note], findings: Sequence[Finding], path: Path, command: str) -> None:
    """Writes the self-contained page: the findings of the first seed, and contradictions of any."""
    seed = findings[0].seed
    write_page(
        path,
        "ledger.html",
        notes=notes,
        findings={finding.claim.id: finding for finding in findings if finding.seed == seed},
        seed=seed,
        answer=ledger_answer(findings),
        made=made_here(command, sum(finding.seconds for finding in findings)),
        sources=read_sources(),
        places=places,
        markdown=renderer(),
        stated=_stated,
        number=number,
        picture=_picture,
    )


def number(value: float) -> str:
    """Six significant digits, with a true minus sign."""
    return f"{value:.6g}".replace("-", "−")


def _stated(text: str) -> str:
    """A statement as HTML: formulas in plain characters, or Markdown with LaTeX."""
    return renderer()(text) if "$" in text else typeset(text)


def _picture(claim: Claim) -> str | None:
    """The claim's figure as SVG."""
    if claim.figure is None:
        return None
    from gae.reports.figures import Figure, style, vector
    from gae.reports.seen import describe

    with style(), torch.random.fork_rng(devices=[]):
        canvas = claim.figure()
        return vector(Figure(claim.id, claim.title, "", canvas, describe(canvas)))


@cache
def renderer() -> Callable[[str], str]:
    """Markdown-to-HTML renderer that turns LaTeX into MathML, so that the page needs no script.

    Raises:
        ImportError: without the extra ``notes``.
    """
    page = "The page of the ledger"
    dollarmath_plugin = optional("mdit_py_plugins.dollarmath", "notes", page).dollarmath_plugin
    parser = optional("markdown_it", "notes", page).MarkdownIt("commonmark")

    def formula(source: str, options: dict[str, Any]) -> str:
        return mathml(source, block=options["display_mode"])

    render: Callable[[str], str] = parser.enable("table").use(dollarmath_plugin, renderer=formula).render
    return render
