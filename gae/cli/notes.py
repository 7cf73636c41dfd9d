"""``gae notes``: recomputation of the derivations of the notes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gae.cli.common import AsJson
from gae.cli.terminal import command_line, console, echo_json, reported, table
from gae.data.files import check_folder, write_text
from gae.data.progress import progress

if TYPE_CHECKING:
    from rich.text import Text

    from gae.ledger.claims import Relation
    from gae.ledger.notes import Claim, Finding, Note
    from gae.ledger.sources import Source


@reported
def notes(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="D01, D02, …; all by default. One alone is shown in full.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random instances.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from --seed on; the first one is shown.")] = 1,
    as_json: AsJson = False,
    out: Annotated[Path, typer.Option(help="Folder for ledger.html and ledger.json.")] = Path("runs/notes"),
) -> Path:
    """Recompute the derivations of the notes; exit code 1 if a check contradicts the verdict recorded in its note."""
    command = command_line(notes, locals())
    import json

    from gae.ledger import notes as ledger
    from gae.reports import ledger as ledger_page

    check_folder(out)
    ledger_page.renderer()  # an ImportError before the work, if its packages are missing
    chosen = ledger.select(ledger.read_notes(), ids or ())
    findings = _run(chosen, range(seed, seed + seeds))
    account = ledger.record(findings)
    ledger_page.write(chosen, findings, out / "ledger.html", command)
    write_text(out / "ledger.json", json.dumps(account, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    if as_json:
        echo_json(account)
    elif len(account["claims"]) == 1:
        _print_one(chosen[0], findings, out / "ledger.html")
    else:
        _print(chosen, findings, out / "ledger.html")
    if account["contradictions"]:
        raise typer.Exit(1)
    return out


def _run(chosen: "Sequence[Note]", seeds: "Sequence[int]") -> "list[Finding]":
    from gae.ledger import notes as ledger

    total = len(seeds) * sum(len(note.claims) for note in chosen)
    findings = []
    with progress("checks", total) as advance:
        for finding in (each for seed in seeds for each in ledger.run(chosen, seed)):
            findings.append(finding)
            advance(finding.claim.id)
    return findings


def _print(chosen: "Sequence[Note]", findings: "Sequence[Finding]", page: Path) -> None:
    from rich.text import Text

    from gae.ledger.sources import places, read_sources

    sources = read_sources()
    shown = table("id", "claim", "left side", "right side", "error", "verdict")
    for column in shown.columns[2:5]:
        column.justify, column.no_wrap = "right", True
    by_id = {finding.claim.id: finding for finding in findings if finding.seed == findings[0].seed}
    for note in chosen:
        shown.add_section()
        shown.add_row("", Text(note.title, style="bold"))
        for claim in note.claims:
            finding = by_id[claim.id]
            linked = Text(claim.id, style=f"link {_proof(page, claim)}")
            shown.add_row(linked, Text(claim.statement), *_cells(finding.check.claim[0]), _verdict(finding))
            for label, statement, relation in finding.truths:
                cells = _cells(relation) if relation else ("", "", "")
                shown.add_row("", Text(f"{label}: {_plain(statement)}"), *cells, "", style="dim")
            cited = [_cited(key, place, sources) for key, place in places(claim.source)]
            shown.add_row("", Text("source: ") + Text("; ").join(cited), style="dim")
    shown.caption = f"{_summary(findings)}. Proofs in {page}"
    console().print(shown)


def _print_one(note: "Note", findings: "Sequence[Finding]", page: Path) -> None:
    """One claim in full: statement and verdict, the true statement, sources and proof, and every relation."""
    from rich.text import Text

    from gae.ledger.sources import places, read_sources

    finding, sources, facts = findings[0], read_sources(), table("", "")
    claim = finding.claim
    facts.show_header = False
    facts.add_row("claim", Text(claim.statement))
    facts.add_row("verdict", _verdict(finding, claim.verdict_text))
    if claim.instead:
        facts.add_row(finding.truth, Text(_plain(claim.instead)))
    for key, place in places(claim.source):
        facts.add_row("source", _cited(key, place, sources))
        if source := sources.get(key):
            facts.add_row("", Text(f"{source.author}: {source.title}, {source.date}"))
            facts.add_row("", Text(source.address or "address unknown"))
    facts.add_row("proof", Text(f"{_proof(page, claim)}, from notes/{note.name}.md"))
    shown = table("statement", "left side", "", "right side", "error", "tolerance", "")
    for column in (shown.columns[1], *shown.columns[3:6]):
        column.justify, column.no_wrap = "right", True
    for name, relations in finding.groups:
        shown.add_section()
        shown.add_row(Text(name, style="bold"))
        for relation in relations:
            left, right, error = _cells(relation)
            row = left, relation.sign, right, error, f"{relation.tolerance:.1e}", relation.outcome
            shown.add_row(Text(relation.what), *row)
    shown.caption = _summary(findings)
    for part in (Text(f"{claim.id}. {claim.title}", style="bold"), facts, shown):
        console().print(part)


def _summary(findings: "Sequence[Finding]") -> str:
    from gae.ledger.notes import contradictions

    wrong, seeds = contradictions(findings), {finding.seed for finding in findings}
    told = f"contradicting their note: {', '.join(wrong)}" if wrong else "each reaches the verdict of its note"
    many = f" with {len(seeds)} seeds" if len(seeds) > 1 else ""
    count, seconds = len(findings) // len(seeds), sum(finding.seconds for finding in findings)
    return f"{count} check{'s' if count > 1 else ''}{many} in {seconds:.1f} s: {told}"


def _verdict(finding: "Finding", text: str = "") -> "Text":
    """The check's verdict, in the words of the note if there are any and it agrees."""
    from rich.text import Text

    if finding.agrees:
        return Text(text or finding.check.verdict.value)
    return Text(f"{finding.check.verdict.value}, but its note says: {finding.claim.verdict.value}", style="bold red")


def _cited(key: str, place: str, sources: "Mapping[str, Source]") -> "Text":
    """A place in a source, linked to its address where the terminal can show links."""
    from rich.text import Text

    source = sources.get(key)
    style = f"link {source.address}" if source and source.address else ""
    return Text.assemble((key, style), f", {place}" if place else "")


def _proof(page: Path, claim: "Claim") -> str:
    return f"{page.absolute().as_uri()}#{claim.id}"


def _plain(text: str) -> str:
    """A statement without the marks of Markdown."""
    return text.replace("`", "")


def _cells(relation: "Relation") -> tuple[str, str, str]:
    from gae.reports.ledger import number

    return number(relation.lhs), number(relation.rhs), f"{relation.error:.1e}"
