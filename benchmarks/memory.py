"""Resident memory for data larger than memory: load, fit and encode an ``.npy`` file of a given size.

``python -m benchmarks.memory 1000`` writes a file of 1000 MB into a temporary folder, and prints by how much the peak
resident memory of each process grew beyond that of the same work on a small file. ``--kind`` is the dtype, the order or
the format of the file.
"""

import argparse
import contextlib
import io
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT

WIDTH = 784  # values in a row
KINDS = ("float32", "float64", "columns", "npz")
STAGES = ("load", "fit vae", "fit pca", "encode", "reconstruct")
MB = 10**6


def write(path: Path, megabytes: int, kind: str) -> int:
    """Writes rows of noise about a plane; returns their number."""
    random = np.random.default_rng(0)
    dtype = np.dtype("float64" if kind == "float64" else "float32")
    plane = random.normal(size=(8, WIDTH)).astype(dtype)
    rows = megabytes * MB // (dtype.itemsize * WIDTH)
    plain = path.with_name("x.npy")
    x = np.lib.format.open_memmap(plain, "w+", dtype, (rows, WIDTH), fortran_order=kind == "columns")
    for start in range(0, rows, 4096):
        size = min(4096, rows - start)
        code, noise = random.normal(size=(size, 8)), random.normal(size=(size, WIDTH))
        x[start : start + size] = code.astype(dtype) @ plane + noise.astype(dtype)
    x.flush()
    if kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(plain, "x.npy")
        plain.unlink()
    return rows


def work(stage: str, path: Path) -> None:
    """Runs a stage on a small file, for its imports, then on the file; prints the growth of the peak in bytes."""
    small = path.with_name("small.npy")
    np.save(small, np.random.default_rng(0).normal(size=(1000, WIDTH)).astype(np.float32))
    run(stage, small)
    before = peak()
    run(stage, path)
    print(peak() - before)


def run(stage: str, path: Path) -> None:
    """Runs a stage on a file; models are written beside it."""
    from gae.cli.main import app
    from gae.data import load

    if stage == "load":
        assert len(load(path).hash) == 64
        return
    command, _, system = stage.partition(" ")
    output = path.with_name(f"{command}.npy")
    arguments = {
        "fit": [system, path, "--epochs", 1, "--quiet", "--out", path.with_name(f"{path.stem}-{system}")],
        "encode": [path.with_name(f"{path.stem}-vae"), path, "-o", output],
        "reconstruct": [path.with_name(f"{path.stem}-vae"), path, "-o", output],
    }[command]
    with contextlib.redirect_stdout(io.StringIO()):
        app([command, *map(str, arguments)], standalone_mode=False)
    output.unlink(missing_ok=True)


def peak() -> int:
    """The highest resident memory of this process so far, in bytes.

    On Linux from its own status: ``ru_maxrss`` starts at the peak of the process that started it, which wrote the file.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("megabytes", type=int, help="size of the file")
    parser.add_argument("--kind", choices=KINDS, default="float32", help="of the file")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage is not None:
        work(given.stage, given.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("x.npz" if given.kind == "npz" else "x.npy")
        rows = write(path, given.megabytes, given.kind)
        print(f"{path.stat().st_size / MB:,.0f} MB, {rows:,} rows of {WIDTH} values, {given.kind}")
        for stage in STAGES:
            command = [sys.executable, "-m", "benchmarks.memory", str(given.megabytes), "--stage", stage]
            done = subprocess.run([*command, "--path", path], cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            growth = int(done.stdout.split()[-1])
            print(f"{stage:12} {growth / MB:8,.0f} MB, {growth / path.stat().st_size:.2f} of the file", flush=True)


if __name__ == "__main__":
    main()
