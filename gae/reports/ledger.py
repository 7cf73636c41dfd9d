"""The ledger as one HTML page: a table, the notes with their formulas and sources, every check, and figures."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gae.data.environment import versions
from gae.data.frames import optional
from gae.ledger.notes import Claim, Finding, Note, contradictions
from gae.ledger.sources import places, read_sources
from gae.reports.formulas import typeset
from gae.reports.pages import embed, write_page

FUNCTION = re.compile("(<mi>(?:log|exp|det|tr)</mi>)")  # space between a named function and its argument


def write(notes: Sequence[Note], findings: Sequence[Finding], path: Path) -> None:
    """Writes the self-contained page: the findings of the first seed, and contradictions of any."""
    seed = findings[0].seed
    write_page(
        path,
        "ledger.html",
        notes=notes,
        findings={finding.claim.id: finding for finding in findings if finding.seed == seed},
        seed=seed,
        seeds=len({finding.seed for finding in findings}),
        seconds=sum(finding.seconds for finding in findings),
        contradictions=contradictions(findings),
        versions=versions(["torch"]),
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
    """The claim's figure as a PNG in base64."""
    if claim.figure is None:
        return None
    from gae.reports.figures import png, style

    with style(), torch.random.fork_rng(devices=[]):
        return embed(png(claim.figure()))


@cache
def renderer() -> Callable[[str], str]:
    """Markdown-to-HTML renderer that turns LaTeX into MathML, so that the page needs no script.

    Raises:
        ImportError: without the extra ``notes``.
    """
    convert = optional("latex2mathml.converter", "notes").convert
    dollarmath_plugin = optional("mdit_py_plugins.dollarmath", "notes").dollarmath_plugin
    parser = optional("markdown_it", "notes").MarkdownIt("commonmark")

    def formula(source: str, options: dict[str, Any]) -> str:
        mathml = convert(source, display="block" if options["display_mode"] else "inline")
        return FUNCTION.sub(r'<mrow>\1<mspace width="0.17em"/></mrow>', mathml)

    render: Callable[[str], str] = parser.enable("table").use(dollarmath_plugin, renderer=formula).render
    return render
