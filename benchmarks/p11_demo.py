"""Seconds of ``gae compare digits`` and of its ``--quick`` form, each in a fresh folder, with the imports.

They are wall-clock times of one run each, told as such. On a GPU: ``gae compare mnist`` there.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import DEVICE, ROOT, Row, first_line, mnist_folder, report

COMMANDS: dict[tuple[str, ...], float | None] = {
    ("digits", "--devices", "2"): 60,
    ("digits", "--devices", "2", "--quick"): 20,
}
ON_GPU: dict[tuple[str, ...], float | None] = {("mnist", "--device", "cuda"): None}


def seconds(*options: str) -> float:
    """Wall-clock time of a comparison."""
    program = shutil.which("gae", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [program, "compare", *options, "--out", str(Path(folder) / "run")]
        data = mnist_folder()
        environment = os.environ if data is None else os.environ | {"GAE_DATA": str(data)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def main() -> None:
    rows = []
    for options, goal in (COMMANDS if DEVICE.type == "cpu" else ON_GPU).items():
        took = seconds(*options)
        rows.append(Row(f"gae compare {' '.join(options)}", took, took, took, goal))
    report("P11", "seconds", first_line(__doc__), "bundled digits" if DEVICE.type == "cpu" else "MNIST", rows)


if __name__ == "__main__":
    main()
