"""``gae notes``: recomputation of the derivations of the notes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gae.cli.common import AsJson
from gae.cli.terminal import console, echo_json, reported, table
from gae.data.files import check_folder, write_text

if TYPE_CHECKING:
    from gae.ledger.claims import Relation
    from gae.ledger.notes import Finding, Note


@reported
def notes(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="D01, D02, …; all by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random instances.")] = 0,
    as_json: AsJson = False,
    out: Annotated[Path, typer.Option(help="Folder for ledger.html and ledger.json.")] = Path("runs/notes"),
) -> None:
    """Recompute the derivations of the notes; exit code 1 if a check contradicts the verdict recorded in its note."""
    import json

    from gae.ledger import notes as ledger
    from gae.reports import ledger as ledger_page

    check_folder(out)
    chosen = ledger.select(ledger.read_notes(), ids or ())
    findings = _run(chosen, seed)
    account = ledger.record(findings, seed)
    ledger_page.write(chosen, findings, seed, out / "ledger.html")
    write_text(out / "ledger.json", json.dumps(account, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    if as_json:
        echo_json(account)
    else:
        _print(chosen, findings, out / "ledger.html")
    if not all(finding.agrees for finding in findings):
        raise typer.Exit(1)


def _run(chosen: "Sequence[Note]", seed: int) -> "list[Finding]":
    from rich.progress import track

    from gae.ledger import notes as ledger

    total = sum(len(note.claims) for note in chosen)
    runs = ledger.run(chosen, seed)
    return list(track(runs, "checking", total, console=console(stderr=True), transient=True))


def _print(chosen: "Sequence[Note]", findings: "Sequence[Finding]", page: Path) -> None:
    from rich.text import Text

    shown = table("id", "claim", "left side", "right side", "error", "verdict")
    for column in shown.columns[2:5]:
        column.justify, column.no_wrap = "right", True
    by_id = {finding.claim.id: finding for finding in findings}
    for note in chosen:
        shown.add_section()
        shown.add_row("", Text(note.title, style="bold"))
        for claim in note.claims:
            finding = by_id[claim.id]
            check, style = finding.check, "" if finding.agrees else "bold red"
            verdict = check.verdict.value + ("" if finding.agrees else f", but its note says: {claim.verdict.value}")
            shown.add_row(claim.id, Text(claim.statement), *_cells(check.claim[0]), Text(verdict, style=style))
            for name, relations in finding.groups[1:]:
                shown.add_row("", Text(f"{name}: {relations[0].what}"), *_cells(relations[0]), "", style="dim")
    wrong = sum(not finding.agrees for finding in findings)
    summary = f"{wrong} contradict the verdict of their note" if wrong else "each reaches the verdict of its note"
    shown.caption = f"{len(findings)} checks in {sum(f.seconds for f in findings):.1f} s: {summary}. Proofs in {page}"
    console().print(shown)


def _cells(relation: "Relation") -> tuple[str, str, str]:
    from gae.reports.ledger import number

    return number(relation.lhs), number(relation.rhs), f"{relation.error:.1e}"
