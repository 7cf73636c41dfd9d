"""The suite under other seeds, instruction sets and thread counts: no test's verdict may depend on them.

    python -m tests.seeds --seeds 10                               # all tests, each seed under another of SETTINGS
    python -m tests.seeds --seeds 3 tests/inference/test_steps.py  # some of them

``GAE_SEED_OFFSET`` (see offset.py) is added to every seed, another one in each run. A run that is in the results
file is not repeated, so the script may be stopped. It prints a table of failures and, next to the results, writes the
margins that tests recorded (tests/margins.py).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.margins import table

ROOT = Path(__file__).resolve().parent.parent
STEP = 1000  # between offsets, so that no test's seeds meet those of another run
SETTINGS = (  # of the runs, in turn: ATEN_CPU_CAPABILITY and threads
    ("native", 1),
    ("default", 1),
    ("avx2", 1),
    ("native", 2),
    ("native", 4),
)


def outcome(files: list[str], offset: int, capability: str, threads: int) -> dict[str, Any]:
    """The tests that failed under one offset, and the margins that were recorded."""
    with tempfile.TemporaryDirectory() as folder:
        margins = Path(folder, "margins.jsonl")
        margins.touch()
        settings = {"GAE_SEED_OFFSET": str(offset), "GAE_MARGINS": str(margins), "GAE_THREADS": str(threads)}
        settings["OMP_WAIT_POLICY"] = "passive"  # there may be more threads than processors
        if capability != "native":
            settings["ATEN_CPU_CAPABILITY"] = capability
        options = ["-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider", "-rfE", "--tb=line"]
        command = [sys.executable, "-m", "pytest", *options, *files]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True)
        failed = [line.split(" ")[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        if done.returncode not in (0, 1) or (done.returncode == 1 and not failed):
            raise RuntimeError(f"pytest did not run:\n{done.stdout}{done.stderr}")
        lines = [json.loads(line) for line in margins.read_text().splitlines()]
    run = {"files": files, "offset": offset, "capability": capability, "threads": threads}
    return {**run, "failed": failed, "margins": lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", default=["tests"], help="test files; all unless given")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "seeds.json")
    chosen = parser.parse_args()
    runs = json.loads(chosen.out.read_text()) if chosen.out.exists() else []
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    known = {(tuple(run["files"]), run["offset"]) for run in runs}
    for i in range(chosen.seeds):
        offset, (capability, threads) = STEP * (i + 1), SETTINGS[i % len(SETTINGS)]
        if (tuple(chosen.files), offset) in known:
            continue
        runs.append(outcome(chosen.files, offset, capability, threads))
        chosen.out.write_text(json.dumps(runs, indent=1) + "\n")
        print(f"{offset:6d}, {capability}, {threads}: {', '.join(runs[-1]['failed']) or 'passed'}", flush=True)
    failures = {(test, run["offset"]) for run in runs for test in run["failed"]}
    for test in sorted({test for test, _ in failures}):
        print(f"{test}: fails under {sorted(offset for name, offset in failures if name == test)}")
    print(f"{len(runs)} runs, {len(failures)} failures")
    lines = [line for run in runs for line in run["margins"]]
    chosen.out.with_suffix(".md").write_text(f"# Margins of tests with bounds\n\n{table(lines)}")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
