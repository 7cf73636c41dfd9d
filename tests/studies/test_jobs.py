"""A resumed job reads its files as they were written, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import file_limit

from gae.studies.jobs import ResumableJob

CONFIGURATION = {"seed": 0, "sizes": (8, 4), "rate": 1e-3}


def job(out: Path, resume: bool = False, **changes: Any) -> ResumableJob:
    return ResumableJob(out, {**CONFIGURATION, **changes}, resume, progress=True)


def test_a_damaged_phase_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, calls = tmp_path / "run", []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"mean": 1.25, "se": None}

    first = job(out)
    assert first.phase("encode a", compute) == job(out, True).phase("encode a", compute) == {"mean": 1.25, "se": None}
    file = out / "phases" / "encode-a.json"
    good = file.read_text()
    for bad in (good.replace("1.25", "1.75"), good.replace("mean", "meen"), good[:-5], "", "[" * 100_000, "{}"):
        file.write_text(bad)
        again = job(out, True)
        assert again.phase("encode a", compute) == {"mean": 1.25, "se": None}
        assert json.loads(file.read_text())["result"] == {"mean": 1.25, "se": None}
    assert len(calls) == 7 and capsys.readouterr().err.count("is damaged") == 6


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    job(tmp_path / "run")
    job(tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="holds another comparison: seed was 0, now 1"):
        job(tmp_path / "run", resume=True, seed=1)
    file = tmp_path / "run" / "configuration.json"
    good = file.read_text()
    for bad in (good.replace('"seed": 0', '"seed": 1'), good[:-5], json.dumps(CONFIGURATION)):
        file.write_text(bad)
        for seed in (0, 1):
            with pytest.raises(ValueError, match=r"configuration.json is damaged, or of an earlier gae"):
                job(tmp_path / "run", resume=True, seed=seed)


def test_a_full_disk_loses_no_phase(tmp_path: Path) -> None:
    first = job(tmp_path / "run")
    first.phase("small", lambda: 1)
    with file_limit(1000), pytest.raises(OSError, match=r"Cannot write .*large.json \(File too large\)"):
        first.phase("large", lambda: "x" * 5000)
    again = job(tmp_path / "run", resume=True)
    assert again.phase("small", lambda: 2) == 1 and again.phase("large", lambda: 3) == 3
