"""How many small faults put into the package the tests notice: the mutation score.

    python -m tests.mutate --count 60 --seed 0                   # results in runs/mutations.json
    python -m tests.mutate --count 60 --out runs/before.json     # of another state of the tests

Each mutant changes one expression of one function: operator, comparison, constant, condition or reduction. At
most one is made in a function, and the packages of ``gae/`` take turns; commands, reports, messages and annotations are
left alone. First all tests run once in a copy of the checkout, with a mark at each of these expressions, which records
the test files that evaluate it. Then these files run for each mutant, those nearest to its module first. (All files, if
it is evaluated while modules are imported. A fixture that files share counts for one of them.) A mutant whose tests
fail or take too long is killed; one that survives shows a fault that no test would see, unless the change makes no
difference. The script may be stopped: mutants that are in the results are not run again.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tests.mutants import ROOT, Mutant, differs, mutants
from tests.reached import FOLDER, reached

PACKAGE, TESTS = ROOT / "gae", ROOT / "tests"
TEXT = ("cli", "report", "figures", "page", "pictures", "terminal")  # in the names of modules that make text and pages
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "runs", "build", "dist", "__pycache__", "*.egg-info"
)


def modules() -> list[Path]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return [path for path in paths if not any(word in str(path.relative_to(PACKAGE)) for word in TEXT)]


def selection(seed: int) -> Iterator[Mutant]:
    """Packages in turn; of each a function at random, and in it a kind of change and a place; a seed fixes all."""
    generator = random.Random(seed)
    packages: dict[str, list[Mutant]] = defaultdict(list)
    for path in modules():
        for choices in mutants(path).values():
            kind = generator.choice(sorted({mutant.kind for mutant in choices}))
            packages[choices[0].package].append(generator.choice([mutant for mutant in choices if mutant.kind == kind]))
    for queue in packages.values():
        generator.shuffle(queue)
    for turn in zip_longest(*packages.values()):
        yield from (mutant for mutant in turn if mutant is not None and differs(mutant))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def nearest(module: Path) -> list[str]:
    """The module's examples, the test files named after it, then those that import it or a name defined in it."""
    parts = module.relative_to(ROOT).with_suffix("").parts
    tree = ast.parse(module.read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    names = {".".join([*parts[:depth], name]) for name in defined for depth in range(1, len(parts) + 1)}
    stem = parts[-2] if parts[-1] == "__init__" else parts[-1]
    named, others = [], []
    for path in sorted(TESTS.rglob("test_*.py")):
        uses = set(imported(ast.parse(path.read_text(encoding="utf-8"))))
        if stem in path.stem:
            named.append(path)
        elif ".".join(parts) in uses or uses & names:
            others.append(path)
    return [str(path.relative_to(ROOT)) for path in (module, *named, *others)]


def run(folder: Path, files: list[str], limit: float, **variables: str) -> tuple[str, str]:
    """What became of the tests (passed, failed or timeout), and what they printed."""
    options = ["-x", "-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider", "--tb=line", "-m", "not slow"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    if (ROOT.parent / "shared" / "data").exists():
        environment.setdefault("GAE_DATA", str(ROOT.parent / "shared" / "data"))
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        return "timeout", printed
    return "passed" if process.returncode in (0, 5) else "failed", printed  # 5: no tests in these files


def evaluators(folder: Path, todo: list[Mutant], limit: float) -> dict[str, list[str]]:
    """The test files that evaluate the expression of each mutant, by its key.

    Raises:
        RuntimeError: for tests that fail before anything is changed.
    """
    path = f'__import__("sys").path.append({str(folder)!r})'  # for a package that is installed elsewhere
    marks = f'({path} or __import__("tests.reached", fromlist=["mark"]))'
    texts = {mutant.path: (folder / mutant.path).read_bytes() for mutant in todo}
    marked = dict(texts)
    for number, mutant in sorted(enumerate(todo), key=lambda entry: -entry[1].start):  # from the end: places stay
        old = texts[mutant.path][mutant.start : mutant.end].decode()
        call = f'(__import__("sys").modules.get("tests.reached") or {marks}).mark({number})'
        marked[mutant.path] = replace(mutant, new=f"({call} and ({old}))").apply(marked[mutant.path])
    with tempfile.TemporaryDirectory() as records:
        write(folder, marked)
        try:
            outcome, printed = run(folder, [], limit, **{FOLDER: records})
        finally:
            write(folder, texts)
        if outcome != "passed":
            raise RuntimeError(f"{outcome} before anything was changed (see --limit):\n{printed[-3000:]}")
        files = reached(Path(records))
    return {mutant.key: sorted(files.get(number, ())) for number, mutant in enumerate(todo)}


def write(folder: Path, texts: dict[str, bytes]) -> None:
    for path, text in texts.items():
        (folder / path).write_bytes(text)


def judge(folder: Path, mutant: Mutant, evaluating: list[str], limit: float) -> dict[str, Any]:
    start, text = time.monotonic(), (folder / mutant.path).read_bytes()
    near = nearest(ROOT / mutant.path)
    files = sorted(evaluating, key=lambda file: near.index(file) if file in near else len(near))
    if "" in files:
        files = [*near, "gae", "tests"]
    outcome = "passed"
    if files:
        write(folder, {mutant.path: mutant.apply(text)})
        try:
            outcome, _ = run(folder, files, limit)
        finally:
            write(folder, {mutant.path: text})
    end = {"passed": "survived", "failed": "killed", "timeout": "killed by time"}[outcome]
    return asdict(mutant) | {"end": end, "files": len(files), "seconds": round(time.monotonic() - start)}


def sources() -> str:
    """A digest of the package and the tests: results of other sources are no results."""
    digest = hashlib.sha256()
    for path in sorted([*PACKAGE.rglob("*.py"), *TESTS.rglob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def report(results: list[dict[str, Any]]) -> str:
    packages: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        packages[Mutant(**{name: result[name] for name in Mutant.__annotations__}).package].append(
            result["end"] != "survived"
        )
    rows = ["| package | mutants | killed |", "|---|---|---|"]
    rows += [f"| `gae/{name}` | {len(ends)} | {sum(ends)} |" for name, ends in sorted(packages.items())]
    killed = sum(map(sum, packages.values()))
    rows += ["", f"{killed} of {len(results)} mutants killed: {killed / len(results):.0%}", ""]
    for result in results:
        if result["end"] == "survived":
            rows.append(f"- survived: `{result['path']}:{result['line']}` `{result['old']}` -> `{result['new']}`")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=900, help="seconds for one run of tests")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutations.json")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    chosen = parser.parse_args()
    todo = [mutant for mutant, _ in zip(selection(chosen.seed), range(chosen.count), strict=False)]
    if chosen.list:
        print("\n".join(f"{mutant.path}:{mutant.line}: {mutant.old} -> {mutant.new}" for mutant in todo))
        return
    state: dict[str, Any] = {"sources": sources(), "evaluators": {}, "results": {}}
    if chosen.out.exists():
        state = json.loads(chosen.out.read_text())
    if state["sources"] != sources():
        parser.error(f"{chosen.out} holds results of other sources: remove it, or give another file with --out")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "checkout")
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        missing = [mutant for mutant in todo if mutant.key not in state["evaluators"]]
        if missing:
            state["evaluators"] |= evaluators(folder, missing, chosen.limit)
            chosen.out.write_text(json.dumps(state, indent=1) + "\n")
        for mutant in todo:
            if mutant.key not in state["results"]:
                state["results"][mutant.key] = result = judge(
                    folder, mutant, state["evaluators"][mutant.key], chosen.limit
                )
                chosen.out.write_text(json.dumps(state, indent=1) + "\n")
                print(f"{result['end']}: {mutant.key} ({result['seconds']} s)", flush=True)
    print(report([state["results"][mutant.key] for mutant in todo]))


if __name__ == "__main__":
    main()
