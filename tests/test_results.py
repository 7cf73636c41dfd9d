"""The numbers that are quoted lead to the committed JSON, and agree with it."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from conftest import figures_left_blank, without_type_checks
from problems import tiny_matrix

from benchmarks import gpu
from benchmarks.run import page
from gae.studies import engines

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"
README = EXPERIMENTS / "README.md"
NOT_RECORDED = r"; commit not recorded, the file came with `[0-9a-f]{7,40}`\."
ERRORS = ("se", "standard_error", "half_width", "error", "sample_error")
UNITS = (1, 100, 1000)  # per cent, and thousandths

Pair = tuple[float, float]


def sections() -> dict[str, str]:
    """The text below each heading that is a module's name, with single spaces."""
    parts = re.split(r"^## (.+)$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    texts = {heading: " ".join(text.split()) for heading, text in zip(parts[1::2], parts[2::2], strict=True)}
    return {heading.strip("`"): text for heading, text in texts.items() if heading.startswith("`")}


def record(name: str) -> dict[str, Any]:
    return dict(json.loads((EXPERIMENTS / "results" / f"{name}.json").read_text(encoding="utf-8")))


SECTIONS = sections()
WITH_RESULTS = sorted(path.stem for path in (EXPERIMENTS / "results").glob("*.json"))


def test_every_result_has_a_section_and_every_section_a_module() -> None:
    assert set(WITH_RESULTS) <= set(SECTIONS)
    for name, text in SECTIONS.items():
        module = name.partition("-")[0]  # a study names its data after it
        assert (EXPERIMENTS / f"{module}.py").exists()
        assert f"[module]({module}.py)" in text and f"`python -m experiments.{module}" in text
        if name not in WITH_RESULTS:
            assert "no results yet" in text and text.endswith("not run.")
            assert "results/" not in text.rpartition("Source:")[2]


@pytest.mark.parametrize("name", WITH_RESULTS)
def test_a_section_leads_to_the_run_of_its_numbers(name: str) -> None:
    source, written = SECTIONS[name].rpartition("Source:")[2], record(name)
    assert f"[JSON](results/{name}.json)" in source and f"[figure](results/{name}.png)" in source
    assert (EXPERIMENTS / "results" / f"{name}.png").exists()
    assert f"`{written['command']}`" in source
    machine = written["machine"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    assert f"{machine['processor']}, {threads}" in source
    commit = written.get("commit") or written["results"].get("commit")
    if commit is not None:
        assert source.endswith(f"; commit `{commit}`.") and "7 (commit" not in SECTIONS[name]
    else:
        assert re.search(f"{NOT_RECORDED}$", source)
        assert "7 (commit" in SECTIONS[name]  # which its rules must say, too


def quoted(text: str) -> list[tuple[str, str]]:
    return [(value.replace(",", ""), error) for value, error in re.findall(r"(\d[\d,.]*\d|\d) ± (\d+\.?\d*)", text)]


def pairs(value: Any) -> Iterator[Pair]:
    """Every number in a JSON that stands beside its error."""
    if isinstance(value, dict):
        for key, item in value.items():
            error = value.get(f"{key}_se")
            if isinstance(item, float) and isinstance(error, float):
                yield item, error
            yield from pairs(item)
        for key in ERRORS:
            if isinstance(value.get("mean"), float) and isinstance(value.get(key), float):
                yield value["mean"], value[key]
    elif isinstance(value, list):
        if len(value) == 2 and all(isinstance(item, float) for item in value):
            yield value[0], value[1]
        for item in value:
            if isinstance(item, dict | list):
                yield from pairs(item)


def over(values: list[float]) -> Pair:
    return fmean(values), stdev(values) / len(values) ** 0.5


def less(left: list[float], right: list[float]) -> Pair:
    """Of a paired difference."""
    return over([a - b for a, b in zip(left, right, strict=True)])


def derived(name: str, results: dict[str, Any]) -> Iterator[Pair]:
    """Pairs that the JSON holds sample by sample, or seed by seed."""
    if name == "inference_gap":
        vae = results["models"]["vae"]
        yield less(vae["ais"]["images"], vae["test"]["images"]["log p(x)"])
    if name.startswith("encoder_capacity"):
        yield from capacity(results["cells"])
    if name.startswith("training_by_inference"):  # differences of the same seeds
        for methods in results["measured"].values():
            means = [[fmean(cell["log_p"]["values"]) for cell in cells] for cells in methods.values()]
            yield from map(over, means)
            yield from (less(left, right) for left, right in combinations(means, 2))


def capacity(cells: dict[str, Any]) -> Iterator[Pair]:
    """Bounds and gaps of each encoder on its split, their difference between splits, and log p(x) less the bound."""
    families = {"diagonal": "mean-field", "full": "full covariance"}
    rows: dict[str, list[dict[str, float]]] = {}
    for name, cell in cells.items():
        kind, _, seed = name.partition(" seed ")
        if kind == "decoder":
            continue
        decoder, family = cells[f"decoder seed {seed}"], kind.split()[0]
        middle = cells[f"iaf width 256 depth 2 images 55000 seed {seed}"]
        means = {}
        for split in ("test", "train"):
            if family == "cotrained":
                bound, best, log_p = (cell[split][key] for key in ("encoder", "optimum", "log_p"))
            else:
                bound, log_p = cell[split], decoder[split]["log_p"]
                best = middle[f"optimum {split}"] if family == "iaf" else decoder[split]["optimum"][families[family]]
            means |= {f"{split} L": fmean(bound), f"{split} best": fmean(best["values"])}
            means[f"{split} log p"] = fmean(log_p["values"])
        rows.setdefault(kind, []).append(means)
    for row in rows.values():
        series = {key: [means[key] for means in row] for key in row[0]}
        gaps = {
            split: [best - bound for best, bound in zip(series[f"{split} best"], series[f"{split} L"], strict=True)]
            for split in ("test", "train")
        }
        yield from map(over, [*series.values(), *gaps.values()])
        yield less(gaps["test"], gaps["train"])
        yield less(series["test log p"], series["test L"])


def rounds_to(number: float, text: str) -> bool:
    digits = len(text.partition(".")[2])
    return abs(abs(number) - float(text)) <= 0.5 * 10**-digits * (1 + 1e-6)


@pytest.mark.parametrize("name", WITH_RESULTS)
def test_numbers_with_errors_are_those_of_the_json(name: str) -> None:
    """Rounded to the same digit, of which the error has one or two."""
    results = record(name)["results"]
    known = [*pairs(results), *derived(name, results)]
    for value, error in quoted(SECTIONS[name]):
        assert len(value.partition(".")[2]) == len(error.partition(".")[2]), (value, error)
        assert 1 <= len(error.replace(".", "").lstrip("0")) <= 2, (value, error)
        agree = [
            unit
            for unit in UNITS
            for mean, width in known
            if rounds_to(unit * mean, value) and rounds_to(unit * width, error)
        ]
        assert agree, f"{name}.json has no {value} ± {error}"


def test_numbers_with_errors_are_recognised() -> None:
    text = "6.59 ± 0.02 against 12.04 ± 0.64; 38 ± 2° and −1,204.9 ± 21.7"
    assert quoted(text) == [("6.59", "0.02"), ("12.04", "0.64"), ("38", "2"), ("1204.9", "21.7")]
    assert rounds_to(-2.587, "2.59") and not rounds_to(2.584, "2.59")
    assert list(pairs({"a": {"mean": 1.0, "se": 0.1}, "b": 2.0, "b_se": 0.2})) == [(1.0, 0.1), (2.0, 0.2)]


def test_the_page_of_benchmarks_is_that_of_its_json() -> None:
    report = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    written = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert written == "\n".join(page(report)) + "\n"


def test_the_page_of_benchmarks_names_commit_and_failures() -> None:
    report = {
        "date": "2020-01-01",
        "machine": {"cpu": "a", "cores": 1, "memory_gib": 1.0},
        "versions": {},
        "results": [],
    }
    row: dict[str, Any] = {"benchmark": "P2", "details": [], "compared": "a", "unit": "b", "data": "c", "threads": 1}
    measured = [row | {"commit": "def456"}, row | {"commit": "abc123"}, row]
    text = "\n".join(page(report | {"results": measured, "failed": ["p01_map_codes"]}))
    assert "on 2020-01-01, commit abc123, def456:" in text and "**p01_map_codes failed**" in text
    assert "commit" not in "\n".join(page(report)) and "failed" not in "\n".join(page(report))


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``benchmarks.gpu --smoke`` with the CPU in place of a GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch, figures_left_blank(), without_type_checks():
        patch.setenv("GAE_BENCHMARK_DEVICE", "cpu")
        patch.setattr(engines, "QUICK_MATRIX", tiny_matrix())
        gpu.main(["--smoke", "--out", str(folder)])
    return folder


@pytest.mark.slow
def test_every_computation_beside_the_gpu_is_there_and_equal(beside: Path) -> None:
    report = json.loads((beside / "gpu.json").read_text(encoding="utf-8"))
    starts = ("`fit`", "gradient origin", "P1", "`inference_gap`", "deep image", "PCA", "`gae.compare", "LLGAE")
    assert len(report["results"]) == len(starts)
    for row, start in zip(report["results"], starts, strict=True):
        assert row["what"].startswith(start) and all(seconds > 0 for seconds in row["seconds"])
        assert row["compared"] and all(each["equal"] and each["difference"] == 0 for each in row["compared"])
    assert (beside / "GPU.md").read_text(encoding="utf-8") == "\n".join(gpu.page(report)) + "\n"


def test_a_difference_or_a_failure_beside_the_gpu_is_shown_and_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = iter([torch.ones(2), torch.tensor([1.0, 1.01]), torch.tensor(torch.nan), torch.ones(())])
    allowed = {"value": 1e-3}
    computation = gpu.Computation("one", lambda device: None, lambda device: {"value": next(values)}, allowed)

    def broken() -> gpu.Computation:
        raise RuntimeError("no kernel")

    monkeypatch.setenv("GAE_BENCHMARK_DEVICE", "cpu")
    monkeypatch.setattr(gpu, "computations", lambda size, device: [lambda: computation, lambda: computation, broken])
    with pytest.raises(SystemExit, match="different on the two devices: one; one; broken"):
        gpu.main(["--smoke", "--out", str(tmp_path)])
    text = (tmp_path / "GPU.md").read_text(encoding="utf-8")
    assert "| one | value | 9.9e-03 | 1e-03 | **no** |" in text and "| one | value | nan | 1e-03 | **no** |" in text
    assert "**failed**: RuntimeError: no kernel" in text


def test_noise_is_that_of_the_processors_generator() -> None:
    def draws() -> list[torch.Tensor]:
        torch.manual_seed(0)
        x = torch.zeros(20)
        x.normal_(1, 2)
        normal = torch.distributions.Normal(torch.zeros(20), torch.ones(20)).rsample()
        return [x, torch.randn(20, device="cpu"), torch.rand_like(x), torch.bernoulli(x.sigmoid()), normal]

    expected = draws()
    with gpu.CommonNoise():
        drawn = draws()
    assert all(map(torch.equal, drawn, expected))
    with gpu.CommonNoise():
        assert torch.randn(3, device="meta").device.type == "meta"
