"""The script that puts faults into the checks: what it changes, and the reasons kept for survivors."""

import ast

from gae.ledger.notes import folder
from tests.mutate_checks import mutants_of, pieces, reached, reasons, table

NOTE = folder() / "06_kernel_codes.py"


def test_sizes_tolerances_and_figures_are_left_alone() -> None:
    changes = {(mutant.function, mutant.old, mutant.new) for mutant in mutants_of(NOTE)}
    assert ("_slope", "2", "3") in changes
    assert ("_slope", "(2 * v.detach() + 1).exp()", "(2 * v.detach() + 1)") in changes
    assert ("check_D18", "6", "7") not in changes  # torch.randn(6, 2)
    assert not any(old in ("1e-09", "5e-11", "1e-14") for _, old, _ in changes)  # tolerances
    assert not any(name.startswith("figure") for name, _, _ in changes)


def test_a_check_reaches_its_helpers() -> None:
    users = reached(ast.parse(NOTE.read_text(encoding="utf-8")))
    assert users.keys() == {"D17", "D18"}
    assert "_formulas" in users["D18"] and "_formulas" not in users["D17"]
    assert "Kernels" in users["D17"] & users["D18"]  # in the latter through _Mixed


def test_reasons_name_what_exists() -> None:
    notes = {entry["note"] for entry in reasons()}
    names = {note: dict(pieces(ast.parse((folder() / f"{note}.py").read_text(encoding="utf-8")))) for note in notes}
    for entry in reasons():
        assert entry.keys() <= {"note", "function", "old", "new", "equivalent", "why"}, entry
        assert entry["why"].endswith(".") and isinstance(entry["equivalent"], bool), entry
        assert entry["function"] in names[entry["note"]], entry


def test_score_is_the_share_of_the_killed_among_those_that_are_not_equivalent() -> None:
    of = {"path": "notes/06_kernel_codes.py", "function": "check_D17", "new": "2"}
    ended = {
        "a": of | {"old": "x", "end": "verdict"},
        "b": of | {"old": "y", "end": "error"},
        "c": of | {"old": "1", "end": "survived"},  # with a reason: the end of an interval
        "d": of | {"old": "z", "end": "survived"},
    }
    rows = table({"06_kernel_codes": ended})
    assert "| `06_kernel_codes` | 4 | 1 | 1 | 0 | 1 | 1 | 66.7% |" in rows
    assert "No reason given" in rows and "`z` → `2`" in rows
