"""How many small faults put into the checks of the notes change a verdict: the mutation score of the ledger.

    python -m tests.mutate_checks              # all notes; results in runs/checks.json, survivors in notes/survivors.md
    python -m tests.mutate_checks 03 10        # some notes
    python -m tests.mutate_checks 03 --list    # their mutants

Each mutant changes one expression that a check reaches: an operator, comparison, constant, condition, reduction or
transpose, or a function that is left out. It is killed if, for one of the suite's seeds, a check that uses it raises,
ends with another verdict than without it, or takes too long. Left alone are sizes and shapes, tolerances and
numbers of steps, assertions, and figures. The script may be stopped: results of an unchanged note are
kept, so remove them if the package has changed in a way that matters.

A survivor may be equivalent: it poses another instance of the same claim, say, or makes a longer iteration. The file
``tests/survivors.toml`` gives the reason for each.
"""

import argparse
import ast
import hashlib
import json
import re
import sys
import time
import tomllib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import torch

from gae.ledger.claims import Check, Relation
from gae.ledger.notes import folder
from tests.mutants import ROOT, Mutant, changed, differs, functions, mutants

SEEDS = range(5)  # those of tests/ledger
REASONS, TABLE = ROOT / "tests" / "survivors.toml", ROOT / "notes" / "survivors.md"
SLOWER, PATIENCE = 5, 20.0  # a mutant may take SLOWER times as long as the note's checks, and PATIENCE seconds more

MAPS = re.compile("exp|expm1|log|log1p|r?sqrt|square|abs|sin|cos|tanh|sigmoid|(log_)?softmax|reciprocal")
SHAPES = re.compile(
    "Linear|arange|chunk|empty|expand|eye|flatten|full|linspace|logspace|mlp|ones|product|randn?|randint|range|repeat|reshape|r?sample"
    "|split|squeeze|unsqueeze|view|zeros"
)
SETTINGS = re.compile(".*tol.*|max_steps|max_iter|epochs|samples|n_init|progress|retain_graph|strict")
Results = dict[str, dict[str, Any]]


def check_changes(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """The changes made in any module, and in a formula a function or a transpose that is left out."""
    yield from changed(node)
    match node:
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if MAPS.fullmatch(name):
            yield "function", node.args[0] if ast.unparse(value) in ("math", "torch") else value
        case ast.Attribute(value=value, attr="T" | "mT"):
            yield "transpose", value


def is_apart(node: ast.AST) -> bool:
    return isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr)


def outside(tree: ast.AST) -> set[tuple[int, int]]:
    """Places of numbers that are no part of a formula: sizes, and how accurately something is computed."""
    places: set[tuple[int, int]] = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            name = ast.unparse(call.func).rpartition(".")[2]
            numbers: Sequence[ast.expr] = ()
            if name in ("equal", "at_most"):
                numbers = call.args[3:]
            elif SHAPES.fullmatch(name):
                numbers = [part for argument in call.args for part in ast.walk(argument) if is_integer(part)]
            settings = [word.value for word in call.keywords if word.arg and SETTINGS.fullmatch(word.arg)]
            places |= {(node.lineno, node.col_offset) for node in (*numbers, *settings)}
    return places


def is_integer(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and type(node.value) is int


def pieces(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The functions that a check reaches, and the constants of the module."""
    assert isinstance(tree, ast.Module)
    used = set().union(*reached(tree).values())
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and (name := ast.unparse(statement.targets[0])) in used:
            yield name, statement
    yield from ((name, function) for name, function in functions(tree) if name.partition(".")[0] in used)


def reached(tree: ast.Module) -> dict[str, set[str]]:
    """For each claim, the names of the module that its check uses, directly or not."""
    uses: dict[str, set[str]] = {}
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.Assign):
            name = ast.unparse(statement.targets[0]) if isinstance(statement, ast.Assign) else statement.name
            uses[name] = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    found = {}
    for name in uses:
        if name.startswith("check_"):
            names, todo = set(), {name}
            while todo:
                names |= todo
                todo = set().union(*(uses[one] for one in todo)) & uses.keys() - names
            found[name.removeprefix("check_")] = names
    return found


def mutants_of(path: Path) -> list[Mutant]:
    places = outside(ast.parse(path.read_bytes()))

    def changes(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
        if (node.lineno, node.col_offset) not in places or not isinstance(node, ast.Constant):
            yield from check_changes(node)

    found = mutants(path, pieces, changes, is_apart)
    return [mutant for choices in found.values() for mutant in choices if differs(mutant)]


def loaded(path: Path, text: bytes) -> ModuleType:
    module = ModuleType(f"gae_note_{path.stem}")
    sys.modules[module.__name__] = module
    exec(compile(text, path, "exec"), module.__dict__)
    return module


def judge(path: Path, todo: Sequence[Mutant], pipe: Connection) -> None:
    """Sends the seconds that the note's checks take, then what became of each mutant. Runs in a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    text, start = path.read_bytes(), time.monotonic()
    users = reached(ast.parse(text))
    module = loaded(path, text)
    expected = {(seed, claim): getattr(module, f"check_{claim}")(seed) for seed in SEEDS for claim in users}
    pipe.send(time.monotonic() - start)
    for mutant in todo:
        pipe.send(_end(path, mutant, text, expected, users))


def _end(
    path: Path, mutant: Mutant, text: bytes, expected: dict[tuple[int, str], Check], users: dict[str, set[str]]
) -> dict[str, Any]:
    affected = [claim for claim, names in users.items() if mutant.function.partition(".")[0] in names]
    moved: dict[str, str] = {}
    try:
        module = loaded(path, mutant.apply(text))
        for seed in SEEDS:
            for claim in affected:
                now, before = getattr(module, f"check_{claim}")(seed), expected[seed, claim]
                if now.verdict is not before.verdict:
                    return {"end": "verdict", "by": f"{claim}, seed {seed}"}
                moved |= _moved(claim, before, now)
    except Exception as error:
        return {"end": "error", "by": type(error).__name__}
    return {"end": "survived", "claims": affected, "moved": moved}


def _moved(claim: str, before: Check, now: Check) -> dict[str, str]:
    """The sides that changed of each relation."""
    pairs = zip(_relations(before), _relations(now), strict=False)
    return {f"{claim}: {a.what}": sides for a, b in pairs if (sides := _sides(a, b))}


def _relations(check: Check) -> list[Relation]:
    return [*check.claim, *check.without, *check.correction]


def _sides(before: Relation, now: Relation) -> str:
    return "".join(side[0] for side in ("lhs", "rhs") if getattr(before, side) != getattr(now, side))


def run(path: Path, todo: Sequence[Mutant]) -> Iterator[tuple[Mutant, dict[str, Any]]]:
    """What becomes of each mutant. A process that takes too long with one is ended, and another goes on after it."""
    while todo:
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(target=judge, args=(path, todo, theirs))
        process.start()
        theirs.close()
        limit = PATIENCE + SLOWER * ours.recv()
        while todo:
            ended = {"end": "time"}
            if intime := ours.poll(limit):
                ended = ours.recv()
            yield todo[0], ended
            todo = todo[1:]
            if not intime:
                break
        process.kill()
        process.join()


def sources(path: Path) -> str:
    """A digest of the note's checks: results of other checks are no results."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@cache
def reasons() -> list[dict[str, Any]]:
    return tomllib.loads(REASONS.read_text(encoding="utf-8")).get("survivor", []) if REASONS.exists() else []


def reason(result: dict[str, Any]) -> dict[str, Any] | None:
    """The first reason whose note, function, old and new text are those of the survivor; absent ones fit any."""
    of = {"note": Path(result["path"]).stem, **{name: result[name] for name in ("function", "old", "new")}}
    return next((entry for entry in reasons() if all(entry.get(name, of[name]) == of[name] for name in of)), None)


def table(results: Results) -> str:
    """Scores and survivors as Markdown."""
    rows = [
        "| note | mutants | other verdict | error | too long | equivalent | not noticed | score |",
        "|" + "---|" * 8,
    ]
    lists, sums = [], [0] * 6
    for note, ended in sorted(results.items()):
        survivors = [result for result in ended.values() if result["end"] == "survived"]
        told = [(result, reason(result)) for result in survivors]
        equivalent = sum(entry is not None and entry["equivalent"] for _, entry in told)
        ends = [sum(result["end"] == end for result in ended.values()) for end in ("verdict", "error", "time")]
        counts = [len(ended), *ends, equivalent, len(survivors) - equivalent]
        rows.append(_row(f"`{note}`", counts))
        sums = [a + b for a, b in zip(sums, counts, strict=True)]
        lists += _survivors(note, told)
    rows.append(_row("all", sums))
    return "\n".join([*rows, *lists]) + "\n"


def _row(name: str, counts: Sequence[int]) -> str:
    total, *_, equivalent, survived = counts
    return f"| {name} | {' | '.join(map(str, counts))} | {1 - survived / max(total - equivalent, 1):.1%} |"


def _survivors(note: str, told: Sequence[tuple[dict[str, Any], dict[str, Any] | None]]) -> list[str]:
    """The survivors of a note, one paragraph for each reason."""
    groups: dict[str, list[str]] = defaultdict(list)
    for result, entry in told:
        kind = "Equivalent" if entry and entry["equivalent"] else "Not noticed"
        why = f"*{kind}.* {entry['why']}" if entry else "*No reason given.*"
        groups[why].append(f"- `{result['function']}`: `{_line(result['old'])}` → `{_line(result['new'])}`")
    paragraphs = [["", why, "", *changes] for why, changes in groups.items()]
    return ["", f"## {note}", *(line for paragraph in paragraphs for line in paragraph)] if told else []


def _line(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]} … {text[-36:]}"


HEAD = """# Faults that the checks do not notice

Written by `python -m tests.mutate_checks`, with the reasons of `tests/survivors.toml`. Each mutant changes one
expression of a check; it is killed if the check ends with another verdict, raises an error or takes too long, for one
of 5 seeds. The score is the share of the killed among those that are not equivalent. A survivor is equivalent if it
computes the same, or the same claim of another instance.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("notes", nargs="*", help="01, 02, …; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "checks.json")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--moved", action="store_true", help="print which sides of the relations each survivor changed")
    chosen = parser.parse_args()
    paths = [path for path in sorted(folder().glob("[0-9][0-9]_*.py")) if path.stem[:2] in (chosen.notes or path.stem)]
    state: dict[str, Any] = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        todo = mutants_of(path)
        if chosen.list:
            print("\n".join(f"{mutant.path}:{mutant.line}: {mutant.old} -> {mutant.new}" for mutant in todo))
            continue
        if state.get(path.stem, {}).get("sources") != sources(path):
            state[path.stem] = {"sources": sources(path), "results": {}}
        results = state[path.stem]["results"]
        for mutant, ended in run(path, [mutant for mutant in todo if mutant.key not in results]):
            results[mutant.key] = asdict(mutant) | ended
            chosen.out.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"{ended['end']}: {mutant.key}", flush=True)
    if chosen.list:
        return
    results = {note: entry["results"] for note, entry in state.items()}
    survivors = [ended for each in results.values() for ended in each.values() if ended["end"] == "survived"]
    if chosen.moved:
        for ended in survivors:
            print(f"{ended['path']}:{ended['line']} {ended['old']} -> {ended['new']}: {ended['moved'] or 'nothing'}")
    TABLE.write_text(HEAD + table(results), encoding="utf-8")
    print(table({path.stem: results[path.stem] for path in paths}))
    used = [reason(ended) for ended in survivors]
    for entry in reasons():
        if entry.get("note") in results and entry not in used:
            print(f"no such survivor: {entry}")


if __name__ == "__main__":
    main()
