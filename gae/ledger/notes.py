"""Parsing of the notes: claims, recorded verdicts, and the results of their checks."""

import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gae.ledger.claims import Check, Relation, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGE = Path(__file__).resolve().parents[1]
HEAD = re.compile(r"(?P<id>D\d+)\. (?P<title>.+)")
FACT = re.compile(r"^- \*\*(Source|Claim|Verdict|Instead|Besides):\*\* (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Claim:
    """A claim of the ledger as recorded in its note, with the functions that recompute it."""

    id: str
    title: str
    source: str
    statement: str
    verdict: Verdict
    verdict_text: str
    instead: str | None
    body: str
    check: Callable[[int], Check]
    figure: "Callable[[], Figure] | None"


@dataclass(frozen=True)
class Note:
    """A note: its introduction in Markdown, and its claims in order."""

    name: str
    title: str
    introduction: str
    claims: list[Claim]


@dataclass(frozen=True)
class Finding:
    """Result of running one check."""

    claim: Claim
    check: Check
    seconds: float
    seed: int

    @property
    def groups(self) -> list[tuple[str, Sequence[Relation]]]:
        """The non-empty groups of relations of the check, with the names of their tables."""
        named = ("as claimed", self.check.claim), ("without", self.check.without), (self.truth, self.check.correction)
        return [(name, relations) for name, relations in named if relations]

    @property
    def truths(self) -> list[tuple[str, str, Relation | None]]:
        """The lines below the claim in an overview: a label, a statement, and the relation that has its numbers."""
        instead = self.claim.instead
        lines = [(name, relations[0].what, relations[0]) for name, relations in self.groups[1:]]
        if instead is None:
            return [*lines]
        checked = [("check" if name == self.truth else name, what, relation) for name, what, relation in lines]
        conditions = [line for line in checked if line[0] == "without"]
        return [*conditions, (self.truth, instead, None), *checked[len(conditions) :]]

    @property
    def truth(self) -> str:
        """The name of the true statement: besides a claim that holds, instead of another."""
        return "besides" if self.check.verdict is Verdict.holds else "instead"

    @property
    def agrees(self) -> bool:
        """Whether the check reproduces the verdict recorded in the note."""
        return self.check.verdict is self.claim.verdict


def folder() -> Path:
    """The folder of the notes: inside the installed package, or beside it in a clone.

    Raises:
        FileNotFoundError: if there are no notes.
    """
    for place in (PACKAGE / "notes", PACKAGE.parent / "notes"):
        if any(place.glob("[0-9][0-9]_*.py")):
            return place
    raise FileNotFoundError(f"No notes in {PACKAGE / 'notes'} or {PACKAGE.parent / 'notes'}. Install gae again.")


def read_notes(place: Path | None = None) -> list[Note]:
    """All notes that have checks, in order.

    Raises:
        ValueError: for a claim without source, statement, verdict or check.

    >>> read_notes()[0].claims[0].id
    'D01'
    """
    pages = sorted((place or folder()).glob("[0-9][0-9]_*.md"))
    return [_read(page) for page in pages if page.with_suffix(".py").exists()]


def select(notes: Sequence[Note], ids: Sequence[str] = ()) -> list[Note]:
    """The notes restricted to the claims in ``ids``; all claims if ``ids`` is empty.

    Raises:
        ValueError: for an unknown claim; the message lists the valid ones.
    """
    known = [claim.id for note in notes for claim in note.claims]
    selected = {name.upper() for name in ids} or set(known)
    if unknown := sorted(selected - set(known)):
        raise ValueError(f"No claim {', '.join(unknown)}. The ledger has {', '.join(sorted(known))}.")
    restricted = [
        Note(note.name, note.title, note.introduction, [claim for claim in note.claims if claim.id in selected])
        for note in notes
    ]
    return [note for note in restricted if note.claims]


def run(notes: Sequence[Note], seed: int = 0) -> Iterator[Finding]:
    """Runs the checks in the order of the notes."""
    for note in notes:
        for claim in note.claims:
            start = perf_counter()
            yield Finding(claim, claim.check(seed), perf_counter() - start, seed)


def contradictions(findings: Sequence[Finding]) -> list[str]:
    """The claims whose checks do not reach the verdict of their note, with the seeds."""
    return [f"{finding.claim.id} (seed {finding.seed})" for finding in findings if not finding.agrees]


def record(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON-serialisable numbers and strings: those of the first seed, and contradictions of any."""
    seed = findings[0].seed
    return {
        "seed": seed,
        "seeds": len({finding.seed for finding in findings}),
        "claims": [_entry(finding) for finding in findings if finding.seed == seed],
        "contradictions": contradictions(findings),
    }


def _entry(finding: Finding) -> dict[str, Any]:
    claim, check = finding.claim, finding.check
    numbers = {"lhs": check.lhs, "rhs": check.rhs, "error": check.error}
    return {
        "id": claim.id,
        "title": claim.title,
        "source": claim.source,
        "claim": claim.statement,
        **_finite(numbers),
        "verdict": check.verdict.value,
        "recorded verdict": claim.verdict_text,
        "agrees": finding.agrees,
        "instead": claim.instead,
        "seconds": round(finding.seconds, 3),
        "relations": {name: _numbers(relations) for name, relations in finding.groups},
    }


def _numbers(relations: Sequence[Relation]) -> list[dict[str, Any]]:
    return [{**_finite(asdict(relation)), "holds": relation.holds} for relation in relations]


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    """Replaces NaN and infinities by None, for JSON."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in entry.items()
    }


def _read(path: Path) -> Note:
    text = path.read_text(encoding="utf-8")
    top, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    title, _, introduction = top.strip().removeprefix("# ").partition("\n")
    module = _load(path.with_suffix(".py"))
    return Note(path.stem, title, introduction.strip(), [_claim(path.stem, section, module) for section in sections])


def _claim(name: str, section: str, module: ModuleType) -> Claim:
    head, _, rest = section.partition("\n")
    heading = HEAD.fullmatch(head.strip())
    facts = dict(FACT.findall(rest))
    if heading is None or not {"Source", "Claim", "Verdict"} <= facts.keys():
        raise ValueError(f"{name}.md: '{head}' needs a heading 'Dxx. Title' and the facts Source, Claim and Verdict.")
    check = getattr(module, f"check_{heading['id']}", None)
    if check is None:
        raise ValueError(f"{name}.py has no check_{heading['id']}.")
    instead = facts.get("Instead") or facts.get("Besides")
    return Claim(
        id=heading["id"],
        title=heading["title"],
        source=facts["Source"],
        statement=facts["Claim"].strip("`"),
        verdict=_recorded(f"{name}.md, {heading['id']}", facts["Verdict"]),
        verdict_text=facts["Verdict"],
        instead=instead,
        body=FACT.sub("", rest).strip(),
        check=check,
        figure=getattr(module, f"figure_{heading['id']}", None),
    )


def _recorded(where: str, text: str) -> Verdict:
    for verdict in (Verdict.holds_if, Verdict.holds, Verdict.fails):
        if text.startswith(verdict.value):
            return verdict
    raise ValueError(f"{where}: a verdict must start with 'holds', 'holds if' or 'fails', got {text!r}.")


def _load(path: Path) -> ModuleType:
    """Loads a note's module by its path, since a name that starts with a digit cannot be imported."""
    name = f"gae_note_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
