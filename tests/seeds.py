"""The suite under other seeds: no test's verdict may depend on its seed.

    python -m tests.seeds --seeds 10                        # all test files, but the contracts
    python -m tests.seeds --seeds 3 tests/inference/test_steps.py  # some of them
    python -m tests.seeds --capability default tests/...    # on the processor's plainest instructions

``GAE_SEED_OFFSET`` (see conftest.py) is added to every seed, another one in each run. A run that is in the results
file is not run again, so the script may be stopped. It prints a table of failures and, next to the results, writes the
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
CONTRACTS = "--ignore=tests/test_contract.py"  # many cases that compare exact numbers
STEP = 1000  # between offsets, so that no test's seeds meet those of another run


def outcome(files: list[str], offset: int, capability: str | None) -> dict[str, Any]:
    """The tests that failed under one offset, and the margins that were recorded."""
    with tempfile.TemporaryDirectory() as folder:
        margins = Path(folder, "margins.jsonl")
        margins.touch()
        settings = {"GAE_SEED_OFFSET": str(offset), "GAE_MARGINS": str(margins)}
        if capability:
            settings["ATEN_CPU_CAPABILITY"] = capability
        options = ["-q", "-n", "2", "-p", "no:cacheprovider", "-rfE", "--tb=line"]
        command = [sys.executable, "-m", "pytest", *options, *(files or ["tests", CONTRACTS])]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True)
        failed = [line.split(" ")[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        if done.returncode not in (0, 1) or (done.returncode == 1 and not failed):
            raise RuntimeError(f"pytest did not run:\n{done.stdout}{done.stderr}")
        lines = [json.loads(line) for line in margins.read_text().splitlines()]
    return {"files": files, "offset": offset, "capability": capability, "failed": failed, "margins": lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", help="test files; all but the contracts unless given")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--capability", choices=["default", "avx2", "avx512"], help="ATEN_CPU_CAPABILITY")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "seeds.json")
    chosen = parser.parse_args()
    done = json.loads(chosen.out.read_text()) if chosen.out.exists() else []
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    known = {(tuple(run["files"]), run["offset"], run["capability"]) for run in done}
    for offset in range(STEP, STEP * (chosen.seeds + 1), STEP):
        if (tuple(chosen.files), offset, chosen.capability) in known:
            continue
        done.append(outcome(chosen.files, offset, chosen.capability))
        chosen.out.write_text(json.dumps(done, indent=1) + "\n")
        print(f"{offset:6d}: {', '.join(done[-1]['failed']) or 'passed'}", flush=True)
    failures = {(test, run["offset"]) for run in done for test in run["failed"]}
    for test in sorted({test for test, _ in failures}):
        print(f"{test}: fails under {sorted(offset for name, offset in failures if name == test)}")
    print(f"{len(done)} runs, {len(failures)} failures")
    lines = [line for run in done for line in run["margins"]]
    chosen.out.with_suffix(".md").write_text(f"# Margins of tests with bounds\n\n{table(lines)}")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
