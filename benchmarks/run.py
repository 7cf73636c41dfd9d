"""Runs benchmarks in separate processes, and writes results.json and RESULTS.md.

python -m benchmarks.run               # every p*.py
python -m benchmarks.run p09_import    # some; the other results stay as they are in results.json
GAE_BENCHMARK_DEVICE=cuda python -m benchmarks.run p01_map_codes p02_backprop_memory p04_vae_step p06_gon_step ...

With a GPU the files are results-gpu.json and RESULTS-gpu.md, with absolute times and memory.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import DEVICE, ROOT, goal_of
from experiments.common import commit
from gae.data.environment import processor, versions

FOLDER = Path(__file__).resolve().parent
LIBRARIES = ("torch", "pyro-ppl", "numpy", "scikit-learn", "lightning-fabric")
GPU = DEVICE.type == "cuda"
COMMAND = "GAE_BENCHMARK_DEVICE=cuda python -m benchmarks.run" if GPU else "python -m benchmarks.run"
SUFFIX = "-gpu" if GPU else ""

Result = dict[str, Any]


def run(module: str) -> Result | None:
    """Result of a benchmark, or None if it failed; its output is printed as it comes."""
    print(f"\n=== {module}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", f"benchmarks.{module}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    last, start = "", time.monotonic()
    for line in process.stdout:
        if not line.startswith("{"):
            print(line, end="", flush=True)
        last = line
    return None if process.wait() else {**json.loads(last), "minutes": round((time.monotonic() - start) / 60, 2)}


def machine(device: torch.device = DEVICE) -> dict[str, Any]:
    """Machine of the measurements."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu = {"cpu": processor(), "cores": len(os.sched_getaffinity(0)), "memory_gib": round(pages / 2**30, 1)}
    return {"gpu": torch.cuda.get_device_name()} | cpu if device.type == "cuda" else cpu


def earlier(chosen: list[str]) -> dict[str, Result]:
    """Results of the other benchmarks, from results.json."""
    path = FOLDER / f"results{SUFFIX}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    return {result["module"]: result for result in before if result.get("module") not in (None, *chosen)}


def page(report: dict[str, Any]) -> Iterator[str]:
    """RESULTS.md, line by line."""
    where, results = report["machine"], report["results"]
    commits = sorted({result["commit"] for result in results if result.get("commit")})
    yield "# Benchmarks, measured side by side"
    yield ""
    at = f", commit {', '.join(commits)}" if commits else ""
    took = sum(result.get("minutes", math.nan) for result in results)
    within = f" in {took:.0f} minutes" if math.isfinite(took) else ""
    yield f"Written by `{COMMAND}` on {report['date']}{within}{at}:"
    yield f"{where.get('gpu', '')}, " * GPU + f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB,"
    yield ", ".join(f"{name} {number}" for name, number in report["versions"].items()) + "."
    yield "Each figure is a ratio of medians within one run, in which the sides take turns, with its range over the"
    yield "rounds; see [README.md](README.md)."
    yield ""
    yield missed(results)
    for module in report.get("failed", ()):
        yield f"\n**{module} failed**: it crashed, or the two sides computed different things."
    for result in results:
        yield from _section(result)


def missed(results: list[Result]) -> str:
    """A sentence on the goals that do not hold."""
    rows = [(r["benchmark"], d) for r in results for d in r["details"] if d["holds"] is False]
    if not rows:
        return "Every goal holds."
    texts = [f"{name} {d['what']} ({d['ratio']:.3f}, goal {goal_of(d)})" for name, d in rows]
    return f"Goals missed: {'; '.join(texts)}."


def _section(result: Result) -> Iterator[str]:
    yield ""
    yield f"## {result['benchmark']}"
    yield ""
    yield f"{result['compared']} Ratio: {result['unit']}. Data: {result['data']}. Threads: {result['threads']}."
    yield ""
    timed = any("seconds" in d for d in result["details"])
    yield "| | ratio | range | goal | holds |" + timed * " of (ms) | to (ms) | of (MiB) | to (MiB) |"
    yield "|---|---:|---:|---:|---|" + timed * "---:|---:|---:|---:|"
    for d in result["details"]:
        holds = {True: "yes", False: "**no**", None: "for reference"}[d["holds"]]
        ratio = f"| {d['what']} | {d['ratio']:.3f} | {d['low']:.3f} … {d['high']:.3f} | {goal_of(d)} | {holds} |"
        yield ratio + timed * _absolute(d)


def _absolute(row: Result) -> str:
    """The cells of a row of a GPU: both sides' time and memory."""
    times = [f"{1e3 * each:.2f}" for each in row.get("seconds", ())] or ["–"] * 2
    peaks = [f"{each / 2**20:.1f}" for each in row.get("peak", ())] or ["–"] * 2
    return f" {' | '.join(times + peaks)} |"


def main() -> None:
    modules = sorted(path.stem for path in FOLDER.glob("p[0-9]*.py"))
    chosen, at = sys.argv[1:] or modules, commit()
    if unknown := set(chosen) - set(modules):
        sys.exit(f"No benchmark {', '.join(sorted(unknown))}. Benchmarks: {', '.join(modules)}.")
    results = earlier(chosen) | {module: run(module) for module in chosen}
    failed = [module for module, result in results.items() if result is None]
    for module in set(chosen) - set(failed):
        results[module] |= {"module": module, "commit": at}
    report: dict[str, Any] = {
        "command": COMMAND,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(LIBRARIES),
        "results": [results[module] for module in modules if results.get(module)],
        "failed": failed,
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (FOLDER / f"results{SUFFIX}.json").write_text(text + "\n", encoding="utf-8")
    (FOLDER / f"RESULTS{SUFFIX}.md").write_text("\n".join(page(report)) + "\n", encoding="utf-8")
    print(f"\n{missed(report['results'])}")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
