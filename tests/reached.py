"""Which test files evaluate marked expressions of the package: the marks that ``tests.mutate`` sets call ``mark``."""

import os
from pathlib import Path

FOLDER = "GAE_REACHED"  # environment variable: the folder for the records, one file per process

seen: set[tuple[int, str]] = set()


def mark(number: int) -> bool:
    """Records the test file that runs, or nothing while modules are imported.

    Commands that tests start count too, unless they get an environment of their own.
    """
    folder, file = os.environ.get(FOLDER), os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[0]
    if folder and (number, file) not in seen:
        seen.add((number, file))
        with Path(folder, str(os.getpid())).open("a", encoding="utf-8") as records:
            records.write(f"{number} {file}\n")
    return True


def reached(folder: Path) -> dict[int, set[str]]:
    """The files by number of the mark; an empty name stands for code that runs while modules are imported."""
    files: dict[int, set[str]] = {}
    for path in folder.iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            number, _, file = line.partition(" ")
            files.setdefault(int(number), set()).add(file)
    return files
