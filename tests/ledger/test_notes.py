"""The ledger of derivations: complete, true over many seeds, and shown as recorded."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import FULL
from typer.testing import CliRunner

from gae.cli.main import app
from gae.ledger import notes as ledger
from gae.ledger.claims import Check, Relation, Verdict, at_most, check, equal, estimate
from gae.reports import ledger as ledger_page

ROOT = Path(__file__).resolve().parents[2]
NOTES = ledger.read_notes()
CLAIMS = {claim.id: claim for note in NOTES for claim in note.claims}
FAIL = {"D06", "D18", "D22", "D23", "D24", "D30", "D35", "D36", "D37", "D42", "D43", "D44", "D49", "D51"}
CONDITIONAL = {"D02", "D04", "D07", "D08", "D11", "D15", "D20", "D21", "D29", "D34", "D38", "D40", "D41", "D46", "D48"}
SEEDS = range(5 if FULL else 3)


@cache
def checked(row: str, seed: int) -> Check:
    """A check, run once for all tests that look at its relations."""
    return CLAIMS[row].check(seed)


def test_every_row_of_the_ledger_is_here() -> None:
    rows = [claim.id for note in NOTES for claim in note.claims]
    assert sorted(rows) == [f"D{row:02}" for row in range(1, 52)]
    assert {row for row in rows if CLAIMS[row].verdict is Verdict.fails} == FAIL
    assert {row for row in rows if CLAIMS[row].verdict is Verdict.holds_if} == CONDITIONAL


def test_every_check_has_its_note() -> None:
    scripts = {path.stem for path in ledger.folder().glob("[0-9][0-9]_*.py")}
    assert scripts == {note.name for note in NOTES}
    found = {
        name for path in ledger.folder().glob("*.py") for name in re.findall(r"def check_(D\d+)", path.read_text())
    }
    assert found == CLAIMS.keys()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("row", CLAIMS)
def test_checks_reach_the_recorded_verdict(row: str, seed: int) -> None:
    found = checked(row, seed)
    told = "\n".join(map(str, [*found.claim, *found.without, *found.correction]))
    assert found.verdict is CLAIMS[row].verdict, told


@pytest.mark.parametrize("row", sorted(FAIL | CONDITIONAL))
def test_errata_say_what_is_wrong(row: str) -> None:
    claim = CLAIMS[row]
    assert claim.instead or claim.verdict is Verdict.holds_if
    assert claim.verdict is Verdict.fails or len(claim.verdict_text) > len("holds if ")


@pytest.mark.parametrize(
    ("row", "part", "side", "value", "digits"),
    [
        ("D02", "without", "lhs", 0.87630, 5e-6),
        ("D02", "without", "rhs", -1.31307, 5e-6),
        ("D17", "claim", "lhs", 0.1352900712, 1e-9),
        ("D24", "claim", "rhs", -0.0767, 5e-5),
        ("D40", "correction", "lhs", 0.2036, 5e-5),
    ],
)
def test_known_numbers(row: str, part: str, side: str, value: float, digits: float) -> None:
    assert getattr(getattr(checked(row, 0), part)[0], side) == pytest.approx(value, abs=digits)


def test_evaluations_of_d16_are_exactly_samples_times_charts_times_steps() -> None:
    counted = checked("D16", 0).claim[2]
    assert counted.lhs == counted.rhs == 20 * 4 * 5


def test_checks_leave_torch_as_it_was() -> None:
    before = torch.get_rng_state(), torch.get_default_dtype()
    CLAIMS["D01"].check(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] is torch.get_default_dtype()


def test_a_failing_check_leaves_torch_as_it_was() -> None:
    @check
    def broken() -> Check:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        broken(0)
    assert torch.get_default_dtype() is torch.float32


def test_seeds_give_other_instances() -> None:
    assert CLAIMS["D01"].check(0).lhs == CLAIMS["D01"].check(0).lhs != CLAIMS["D01"].check(1).lhs


TRUE, FALSE = equal("true", 1.0, 1.0), equal("false", 1.0, 2.0)
NEARLY = equal("neither", 1.0, 1.0 + 5e-10)


@pytest.mark.parametrize(
    ("claim", "without", "correction", "verdict"),
    [
        ([TRUE], [], [], Verdict.holds),
        ([TRUE], [FALSE], [], Verdict.holds_if),
        ([TRUE], [FALSE], [TRUE], Verdict.holds_if),
        ([FALSE], [], [TRUE], Verdict.fails),
        ([FALSE], [], [], Verdict.undecided),  # nothing is put in its place
        ([FALSE], [], [FALSE], Verdict.undecided),
        ([FALSE, TRUE], [], [TRUE], Verdict.undecided),
        ([TRUE], [TRUE], [], Verdict.undecided),  # the condition is not needed
        ([TRUE], [FALSE, TRUE], [], Verdict.undecided),
        ([TRUE], [], [FALSE], Verdict.undecided),
        ([NEARLY], [], [TRUE], Verdict.undecided),
        ([equal("no number", float("nan"), 1.0)], [], [TRUE], Verdict.undecided),
    ],
)
def test_verdicts(claim: list[Relation], without: list[Relation], correction: list[Relation], verdict: Verdict) -> None:
    assert Check(claim, without, correction).verdict is verdict


def test_relations_keep_the_worst_instance() -> None:
    worst = equal("", torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.5, 3.1]))
    assert (worst.lhs, worst.rhs, worst.error) == (2.0, 2.5, 0.5)
    tight = at_most("", torch.tensor([1.0, 2.0]), torch.tensor([9.0, 2.5]))
    assert (tight.lhs, tight.rhs, tight.error, tight.holds) == (2.0, 2.5, 0.0, True)
    assert at_most("", torch.tensor([1.0, 3.0]), 2.0).broken
    assert not at_most("", torch.tensor([1.0, float("nan")]), 2.0).holds


def test_estimates_allow_four_standard_errors() -> None:
    samples = torch.tensor([0.0, 2.0] * 50, dtype=torch.float64)  # mean 1, standard error 1.005 / 10
    assert estimate("", samples, 1.4).holds
    assert not estimate("", samples, 1.41).holds
    assert estimate("", samples.unsqueeze(1).expand(-1, 2), torch.tensor([1.0, 1.5])).lhs == 1.0


def test_formulas_are_rendered() -> None:
    render = ledger_page._renderer()
    for note in NOTES:
        for text in (note.introduction, *(claim.body for claim in note.claims)):
            page = render(text)
            assert "<math" in page or "$" not in text
            formulas = re.findall(r"<math.*?</math>", page, flags=re.DOTALL)
            assert not any("\\" in formula for formula in formulas), note.name
            assert "$" not in re.sub(r"<math.*?</math>", "", page, flags=re.DOTALL), note.name


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("row", [row for row, claim in CLAIMS.items() if claim.figure])
def test_figures_are_drawn(row: str) -> None:
    before = torch.get_rng_state()
    picture = ledger_page._picture(CLAIMS[row])
    assert picture is not None and len(picture) > 5000
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(before, torch.get_rng_state())


def test_command(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["notes", "d11", "D24", "--seed", "3", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "2 checks" in done.output and "without: " in done.output and "instead: " in done.output
    page = (tmp_path / "ledger.html").read_text(encoding="utf-8")
    assert 'id="D11"' in page and 'id="D24"' in page and 'id="D01"' not in page and "data:image/png" in page
    account = json.loads((tmp_path / "ledger.json").read_text(encoding="utf-8"))
    assert account["seed"] == 3
    assert [entry["verdict"] for entry in account["claims"]] == ["holds if", "fails"]


def test_command_in_json(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["notes", "D01", "--json", "--out", str(tmp_path)])
    assert [entry["id"] for entry in json.loads(done.stdout)["claims"]] == ["D01"]


def test_unknown_claims_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["notes", "D99", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "D99" in done.output and sorted(CLAIMS)[-1] in done.output


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Replaces the notes by a changed copy of the first note."""

    def change(old: str, new: str) -> Path:
        page = tmp_path / "01_bounds.md"
        text = (ledger.folder() / page.name).read_text(encoding="utf-8")
        assert old in text
        page.write_text(text.replace(old, new, 1), encoding="utf-8")
        shutil.copy(ledger.folder() / "01_bounds.py", tmp_path)
        monkeypatch.setattr(ledger, "folder", lambda: tmp_path)
        return tmp_path

    return change


def test_a_contradicted_verdict_ends_with_1(copied: Callable[[str, str], Path]) -> None:
    place = copied("- **Verdict:** holds\n", "- **Verdict:** fails\n")
    done = CliRunner().invoke(app, ["notes", "D01", "D06", "--out", str(place)])
    assert done.exit_code == 1
    assert "its note says: fails" in done.output
    assert "contradict" in (place / "ledger.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("- **Verdict:** holds\n", "- **Verdict:** maybe\n", "verdict must start with"),
        (f"- **Source:** {CLAIMS['D01'].source}\n", "", "needs a heading"),
        ("## D01. ", "## D99. ", "no check_D99"),
    ],
)
def test_incomplete_notes_are_refused(copied: Callable[[str, str], Path], old: str, new: str, message: str) -> None:
    place = copied(old, new)
    with pytest.raises(ValueError, match=message):
        ledger.read_notes(place)


def test_notes_missing_from_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "PACKAGE", tmp_path / "gae")
    with pytest.raises(FileNotFoundError, match="Install gae again"):
        ledger.folder()


def test_all_packages_are_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "gae").rglob("__init__.py")}
    assert set(settings["packages"]) == found | {"gae.notes"}


def test_the_wheel_carries_the_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built in a process of its own, as pip does; from what it installs, the command reads the notes and runs them."""
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("gae", "notes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("gae-*.whl")
    shutil.unpack_archive(wheel, installed, "zip")
    shutil.rmtree(source)
    for path in [*(ROOT / "gae").rglob("*.py"), *(ROOT / "gae").rglob("*.pyi"), *(ROOT / "gae").rglob("*.html")]:
        assert (installed / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    monkeypatch.setattr(ledger, "PACKAGE", installed / "gae")
    assert ledger.folder().is_relative_to(installed)
    done = CliRunner().invoke(app, ["notes", "D01", "D08", "--out", str(tmp_path / "runs")])
    assert done.exit_code == 0 and "2 checks" in done.stdout
    assert (tmp_path / "runs" / "ledger.html").exists()
