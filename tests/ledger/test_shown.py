"""What the command and the page show of a claim: what is said, what is true, the numbers, proof and source."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gae.cli.main import app
from gae.ledger import notes as ledger
from gae.ledger.claims import Check, Verdict, equal
from gae.ledger.notes import Finding
from gae.ledger.sources import read_sources

TRUE, FALSE = equal("true", 1.0, 1.0), equal("false", 1.0, 2.0)
NOTES = ledger.select(ledger.read_notes(), ["D01"])
CLAIM = NOTES[0].claims[0]


def shown(tmp_path: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["notes", *arguments, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    return done.output


def test_one_claim_is_shown_in_full(tmp_path: Path) -> None:
    output = shown(tmp_path, "D24")
    (claim,) = ledger.select(ledger.read_notes(), ["D24"])[0].claims
    found = claim.check(0)
    assert claim.statement in output and claim.verdict_text in output
    assert claim.instead is not None and claim.instead.replace("`", "") in output
    for relation in (*found.claim, *found.correction):
        assert relation.what in output
    assert read_sources()["002"].address in output
    assert f"{(tmp_path / 'ledger.html').as_uri()}#D24" in output and "notes/08_elbo.md" in output


def test_overview_shows_truth_and_source(tmp_path: Path) -> None:
    output = shown(tmp_path, "D01", "D24")
    assert "instead: kl = −½ Σ (1 + 2·log_stddev − μ² − exp(log_stddev)²)" in output
    assert "check: corrected = KL(N(μ, σ²)‖N(0, 1))" in output
    assert "source: 001, " in output and "source: 002, " in output


def test_page_renders_formulas_and_links_source_and_proof(tmp_path: Path) -> None:
    shown(tmp_path, "D01", "D24")
    page = (tmp_path / "ledger.html").read_text(encoding="utf-8")
    overview = page[page.index("All claims") : page.index("Left and right side")]
    said = re.findall(r'<tr class="said">.*?</tr>', overview, flags=re.DOTALL)
    assert len(said) == 2 and all("<math" in row for row in said)
    assert "_z" not in overview and "`" not in overview
    for row, name, key in zip(said, ("D01", "D24"), ("001", "002"), strict=True):
        assert f'href="#{name}"' in row and f'href="{read_sources()[key].address}"' in row
        assert f'<section class="claim" id="{name}">' in page


@pytest.mark.parametrize(
    ("claimed", "without", "correction", "instead", "labels"),
    [
        ([TRUE], [], [], None, []),
        ([TRUE], [], [TRUE], "so", ["besides", "check"]),
        ([TRUE], [FALSE], [], None, ["without"]),
        ([TRUE], [FALSE], [TRUE], "so", ["without", "instead", "check"]),
        ([TRUE], [FALSE], [], "so", ["without", "instead"]),
        ([FALSE], [], [TRUE], None, ["instead"]),
    ],
)
def test_lines_below_a_claim(
    claimed: list, without: list, correction: list, instead: str | None, labels: list[str]
) -> None:
    finding = Finding(replace(CLAIM, instead=instead), Check(claimed, without, correction), 0.0, 0)
    assert [label for label, _, _ in finding.truths] == labels
    assert {statement for label, statement, _ in finding.truths if label in ("besides", "instead")} <= {"so", "true"}


def test_several_seeds(tmp_path: Path) -> None:
    assert "2 checks with 3 seeds" in shown(tmp_path, "D01", "D08", "--seed", "4", "--seeds", "3")
    account = json.loads((tmp_path / "ledger.json").read_text(encoding="utf-8"))
    assert (account["seed"], account["seeds"], len(account["claims"])) == (4, 3, 2)


def test_a_contradiction_of_a_later_seed_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    false_later = replace(CLAIM, check=lambda seed: Check([FALSE if seed == 2 else TRUE]))
    assert CLAIM.verdict is Verdict.holds
    monkeypatch.setattr(ledger, "read_notes", lambda: [replace(NOTES[0], claims=[false_later])])
    assert CliRunner().invoke(app, ["notes", "--seeds", "2", "--out", str(tmp_path)]).exit_code == 0
    done = CliRunner().invoke(app, ["notes", "--seeds", "3", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "D01 (seed 2)" in done.output and "D01 (seed 2)" in (tmp_path / "ledger.html").read_text(encoding="utf-8")
