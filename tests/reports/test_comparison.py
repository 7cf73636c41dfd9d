"""The report of a comparison: self-contained, consistent with the results, readable for any data."""

import csv
import html
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from browser import after_script
from problems import tiny_matrix

from gae.autoencoder import Autoencoder
from gae.data import Dataset, load
from gae.inference import ClosedForm
from gae.likelihood import LinearMixture
from gae.reports import comparison as report
from gae.reports import comparison_figures
from gae.reports.observations import sheet
from gae.reports.rounding import rounded
from gae.studies import engines, pictures
from gae.studies.compare import compare

ENGINES = ("detached", "amortised", "semi-amortised")
FIGURES = {
    "training",
    "bounds",
    "worst",
    "reconstructions",
    "interpolations",
    "traversals",
    "samples",
    "attributes",
    "codes",
}


@pytest.fixture(scope="module")
def monkeypatch_budget() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def out(digits: Dataset, tmp_path_factory: pytest.TempPathFactory, monkeypatch_budget: pytest.MonkeyPatch) -> Path:
    assert digits.train_labels is not None and digits.test_labels is not None
    small = replace(
        digits,
        name="<b>small & odd</b>",
        train=digits.train[:100],
        test=digits.test[:30],
        train_labels=digits.train_labels[:100],
        test_labels=digits.test_labels[:30],
    )
    folder = tmp_path_factory.mktemp("report") / "run"
    monkeypatch_budget.setattr(engines, "QUICK_MATRIX", tiny_matrix())
    compare(small, folder, engines=ENGINES, epochs=1, latent=2, hidden=(8,), quick=True, progress=False)
    return folder


@pytest.fixture
def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order; collects attributes that load something, and the text."""

    VOID = ("meta", "img", "br")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A part of an SVG."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.labels: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "data")]
        self.labels += [value or "" for name, value in attrs if tag == "svg" and name == "aria-label"]
        assert tag not in ("link", "iframe")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    return parser


def test_nothing_outside_is_needed(page: str, parsed: Balanced) -> None:
    assert not re.search(r"https?:|url\((?!#)|@import|<script src", page) and not parsed.sources
    assert re.findall(r'href="([^#][^"]{0,13})', page) == re.findall(r'href="(data:image/png)', page)


def test_every_figure_is_in_the_page_and_says_what_is_seen(out: Path, parsed: Balanced) -> None:
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES
    assert len(parsed.labels) == len(FIGURES) and all(re.search(r"\d", label) for label in parsed.labels)


def test_alternative_texts_are_computed_from_the_pictures(out: Path, results: dict[str, Any], parsed: Balanced) -> None:
    with np.load(out / "pictures.npz") as stored:
        error = float(((stored["reconstruction/amortised"] - stored["originals"]) ** 2).mean())
    (label,) = [label for label in parsed.labels if label.startswith("Squared error per element of 12 test samples")]
    shown = dict(item.rsplit(" ", 1) for item in label.split(": ")[1].rstrip(".").split(", "))
    assert float(shown["amortised"]) == pytest.approx(error, rel=0.01)
    numbers = [float(value) for value in shown.values()]
    assert numbers == sorted(numbers)


def test_tables_are_sorted_as_numbers_and_downloaded(page: str, results: dict[str, Any], tmp_path: Path) -> None:
    """In a browser: the head of a column is clicked twice; the CSV file has each number in full, beside its error."""
    driven = after_script(
        page, "for (const _ of 'ab') document.querySelectorAll('[data-name=bounds] th button')[1].click()", tmp_path
    )
    table = driven[driven.index('data-name="bounds"') :].partition("</table>")[0]
    assert 'aria-sort="descending"' in table
    bodies = [re.findall(r"<tr><td>[^<]*</td><td data-value=\"([^\"]+)", body) for body in table.split("<tbody>")[1:]]
    cells = [side["matrix"]["cells"]["mean-field"] for side in results["trainings"][0]["decoders"].values()]
    means = [sorted((float(np.mean(cell["values"])) for cell in each.values()), reverse=True) for each in cells]
    assert [[float(value) for value in body] for body in bodies] == [pytest.approx(each) for each in means]
    link = re.search(r'download="bounds.csv" href="data:text/csv;charset=utf-8,([^"]+)"', driven)
    assert link is not None
    rows = list(csv.DictReader(io.StringIO(unquote(link[1]))))
    assert len(rows) == sum(map(len, means)) and rows[0]["group"].startswith("Decoder trained by detached")
    first = cells[0][rows[0]["engine"]]["values"]
    assert float(rows[0]["mean-field (bound, nats)"]) == pytest.approx(np.mean(first))
    assert float(rows[0]["mean-field (bound, nats): s.e."]) == pytest.approx(np.std(first, ddof=1) / len(first) ** 0.5)


def test_names_are_escaped(page: str) -> None:
    assert "<b>small" not in page and "&lt;b&gt;small &amp; odd" in page


def test_the_header_says_what_was_run(parsed: Balanced, results: dict[str, Any]) -> None:
    used = f"{100 - results['validation']} training, {results['validation']} validation and 30"
    for text in (results["data"]["hash"], results["versions"]["torch"], "--epochs 1 --latent 2", used):
        assert text in parsed.text


def test_every_number_is_in_a_table(parsed: Balanced, results: dict[str, Any]) -> None:
    points = [point for side in results["trainings"][0]["decoders"].values() for point in side["points"]]
    for row in [*points, *results["baselines"], results["neighbours"]]:
        for column in report.columns(results):
            assert column.text(row[column.key]) in parsed.text
    for side in results["trainings"][0]["decoders"].values():
        for row in side["matrix"]["cells"].values():
            for cell in row.values():
                values = np.array(cell["values"])
                assert rounded(values.mean(), values.std(ddof=1) / len(values) ** 0.5) in parsed.text


def test_a_gain_is_paired_with_the_encoder(results: dict[str, Any]) -> None:
    """Its error is that of the differences, far below that of the bounds."""
    (rows, *_) = [rows for _, rows in report.matrix_table(results)]
    cells = results["trainings"][0]["decoders"][ENGINES[0]]["matrix"]["cells"]["mean-field"]
    gain = np.array(cells["local optimum q*"]["values"]) - np.array(cells["encoder"]["values"])
    (row,) = [row for row in rows if row.label == "local optimum q*"]
    error = gain.std(ddof=1) / len(gain) ** 0.5
    assert row.cells[1].text == rounded(gain.mean(), error)
    assert row.cells[1].value == pytest.approx(gain.mean()) and row.cells[1].error == pytest.approx(error)


def test_collapse_and_the_evidence_stand_in_the_heading(results: dict[str, Any]) -> None:
    side = results["trainings"][0]["decoders"]["amortised"]
    side["use"]["active"], side["matrix"]["log_p"]["tight"] = 0, False
    heading = report.decoder_facts(results, "amortised")
    assert "0 of 2 units active" in heading and "lower bound, by importance sampling" in heading
    assert "above a model without a code" in heading
    assert "On this decoder the code has collapsed" in report.highlights(results)[0]


@pytest.mark.slow
def test_a_report_is_made_from_files_alone(out: Path, page: str) -> None:
    assert report.write(out).read_text(encoding="utf-8") == page


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    """After a flipped byte or a truncation the arrays are unchanged, or an error names a remedy."""
    file, arrays = tmp_path / "pictures.npz", {"originals": np.arange(6.0), "labels": np.arange(3)}
    np.savez(file, **arrays)  # type: ignore[arg-type]
    content = file.read_bytes()
    for i in range(0, len(content), 7):
        for damaged in (content[:i], content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :]):
            file.write_bytes(damaged)
            try:
                found = report.load_arrays(file, "Delete it")
            except ValueError as error:
                assert re.search(r"pictures.npz is damaged \(.*\). Delete it, and resume", str(error), re.DOTALL)
            else:
                assert all((arrays[name] == array).all() for name, array in found.items())


def test_points_are_marked_on_one_decoder_only(results: dict[str, Any]) -> None:
    groups = report.points_table(results).groups
    for (heading, rows), side in zip(groups, results["trainings"][0]["decoders"].values(), strict=False):
        joint = [point["joint"]["mean"] for point in side["points"]]
        assert [row.cells[0].best for row in rows] == [value == max(joint) for value in joint], heading
    assert not any(cell.best for _, rows in groups for row in rows for cell in row.cells[1:])
    assert not any(cell.best for row in groups[-1][1] for cell in row.cells)  # baselines are other models


def test_masses_are_not_compared_with_densities(results: dict[str, Any]) -> None:
    assert any("ppca" in text for text in report.highlights(results))
    results["configuration"]["head"] = "bernoulli"
    assert not any("ppca" in text or "kmeans" in text for text in report.highlights(results))


def test_numbers_have_their_unit_and_error() -> None:
    nats, percent = report.COLUMNS[:2]
    assert nats.text({"mean": -1234.56, "se": 0.25}) == "−1,234.56 ± 0.25"
    assert percent.text({"mean": 0.954, "se": 0.011}) == "95.4 ± 1.1"
    assert nats.text({"mean": None, "se": None, "reason": "?"}) == "–"


def test_a_simpler_model_that_wins_comes_first(results: dict[str, Any]) -> None:
    results["without code"]["values"] = results["neighbours"]["values"] = [-1e4] * 8
    results["baselines"] = [row for row in results["baselines"] if row["decoder"] == "ppca"]
    (ppca,) = [row for row in results["baselines"] if row["decoder"] == "ppca"]
    for shift, first in ((-1e4, False), (1e4, True)):
        ppca["values"] = [1.0 * i + shift for i in range(len(ppca["values"]))]
        for side in results["trainings"][0]["decoders"].values():
            side["matrix"]["log_p"]["tight"] = True
        texts = report.highlights(results)
        answer = report.answer(report._costs(results, "amortised"))
        assert texts[0].endswith(answer) and (texts[0] == answer) != first, texts
        assert texts[0].startswith("ppca wins") == first


def test_the_strongest_of_the_simpler_models_leads(results: dict[str, Any]) -> None:
    """All win; the page leads with the one that wins by most, and the others follow by their margin."""
    results["baselines"] = [row for row in results["baselines"] if row["decoder"] in ("ppca", "kmeans")]
    rows = {row["decoder"]: row for row in results["baselines"]}
    models = (rows["kmeans"], results["neighbours"], results["without code"], rows["ppca"])
    for height, model in enumerate(models, 1):
        model["values"] = [1e4 * height + i for i in range(8)]
    for side in results["trainings"][0]["decoders"].values():
        side["matrix"]["log_p"]["tight"] = True
    openings = ("ppca wins", "A model without a code wins", "A kernel density estimate wins", "kmeans wins")
    assert all(map(str.startswith, report.highlights(results), openings))


def test_training_samples_that_win_come_first_for_masses_too(results: dict[str, Any]) -> None:
    results["configuration"]["head"] = "bernoulli"
    for side in results["trainings"][0]["decoders"].values():
        side["matrix"]["log_p"]["tight"] = True
    results["without code"]["values"] = [-1e4] * 8
    results["neighbours"]["values"] = [1e4 + i for i in range(8)]
    assert report.highlights(results)[0].startswith("A kernel density estimate wins")
    results["neighbours"]["values"] = None  # of counts
    assert not any("kernel" in text for text in report.highlights(results))


def test_a_flow_and_a_wide_encoder_have_their_cells(results: dict[str, Any], page: str) -> None:
    assert "Not fitted, to save time: a normalizing flow and an encoder of twice the width." in page
    assert "--flow maf --wide --quick" in page
    for side in results["trainings"][0]["decoders"].values():
        cells, rates = side["matrix"]["cells"], side["matrix"]["rates"]
        for family, label in (("mean-field", "encoder of twice the width"), ("flow", "encoder")):
            row = cells.setdefault(family, {})
            row[label] = {
                "values": [9.0 + i for i in range(8)],
                "sampling_se": 0.1,
                "converged": None,
                "evaluations": 0,
            }
        cells["flow"]["local optimum q*"] = {**cells["flow"]["encoder"], "evaluations": 6400.0}
        rates["flow"] = {"rate": 0.03, "edge": False, "steps": 4, "samples": 4}
    results["configuration"] |= {"flow": "maf", "wide": True}
    assert report.absent(results) is None
    rows = {row.label: row.cells for row in report.matrix_table(results)[0][1]}
    assert [len(cells) for cells in rows.values()] == [9] * len(rows)
    assert rows["encoder of twice the width"][3].text == rows["Laplace at the mode"][6].text == "–"
    assert rows["local optimum q*"][6].value == pytest.approx(12.5) and rows["local optimum q*"][7].value == 0
    texts = " ".join(report.highlights(results))
    assert "A flow (maf) is worth at least" in texts and "An encoder of twice the width is" in texts
    axes = comparison_figures.bounds(results).canvas.axes[0]
    lines = {line.get_label(): line.get_xdata()[-1] for line in axes.get_lines()}
    assert lines["flow, gradient"] == 6400 and "flow, L-BFGS" not in lines
    results["configuration"] |= {"flow": None, "given": {"encoder": "Net", "family": "mean-field", "decoder": "Net"}}
    results["configuration"]["given"]["reference"] = ""
    assert str(report.absent(results)).startswith("('a normalizing flow', ")


def test_the_answer_leads_page_and_names_its_error(page: str, results: dict[str, Any]) -> None:
    lead = page.partition('<p class="lead">')[2].partition("</p>")[0]
    assert lead == html.escape(report.highlights(results)[0], quote=False).replace("'", "&#39;")
    assert any("over 8 test samples of one training" in text for text in report.highlights(results))


def test_trainings_are_compared_at_equal_budgets(results: dict[str, Any]) -> None:
    """Curves of constant values: one training is ahead at equal steps, the other at equal evaluations."""
    amortised, other = (results["trainings"][0]["decoders"][name] for name in ("amortised", "detached"))
    noise = [0.0, 0.1, -0.1, 0.05]
    curve = {"steps": [10, 100], "evaluations": [10, 100]}
    amortised["curve"] = {**curve, "values": [[n + 1 for n in noise], [n + 3 for n in noise]]}
    other["curve"] = {"steps": [10], "evaluations": [100], "values": [[n + 2 for n in noise]]}
    steps, evaluations = report._training(results, "amortised", "detached")
    assert "After 10 optimiser steps" in steps and "detached is above amortised by 1.0" in steps
    assert "After 100 decoder evaluations" in evaluations and "amortised is above detached by 1.0" in evaluations
    amortised["curve"]["evaluations"], other["curve"]["evaluations"] = [95, 300], [100, 500]
    other["curve"] |= {"values": [*other["curve"]["values"], [n + 9 for n in noise]], "steps": [10, 90]}
    *_, evaluations = report._training(results, "amortised", "detached")
    assert "After 95 (amortised) and 100 (detached) decoder evaluations" in evaluations  # not 300 against 100
    assert "detached is above amortised by 1.0" in evaluations
    other["curve"]["evaluations"] = [200]
    assert len(list(report._training(results, "amortised", "detached"))) == 1  # no point of it fits into 100


def test_figures_leave_no_state(out: Path, results: dict[str, Any]) -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    with np.load(out / "pictures.npz") as stored:
        plates = comparison_figures.draw(results, dict(stored))
    assert [plate.name for plate in plates] and {plate.name for plate in plates} == FIGURES
    assert dict(matplotlib.rcParams) == before and not plt.get_fignums()
    assert all("nats" in plate.caption or "units" in plate.caption for plate in plates)


def test_pictures_show_what_they_say(out: Path, results: dict[str, Any]) -> None:
    with np.load(out / "pictures.npz") as stored:
        shown = dict(stored)
    for name in ENGINES:
        strip, images = shown[f"interpolation/{name}"], shown[f"reconstruction/{name}"]
        assert np.allclose(strip[0], images[:2], atol=1e-5) and np.allclose(strip[-1], images[2:4], atol=1e-5)
        assert shown[f"codes/{name}"].shape == (30, 2) and np.allclose(shown[f"codes/{name}"].mean(0), 0, atol=1e-4)
        assert float(shown[f"explained/{name}"]) == pytest.approx(1.0)  # two of two dimensions
        assert shown[f"traversal/{name}"].shape[:2] == (2, 12)  # of a code of width 2
        assert shown[f"attribute/{name}"].shape[1] == 12


def test_strips_of_a_linear_decoder_are_straight_lines() -> None:
    """Two standard deviations of a code to either side; from a label's mean code to 1.5 times the way to another's."""
    torch.manual_seed(0)
    model = Autoencoder(LinearMixture(1, 4, (6,), scale=0.1), ClosedForm())
    x, labels = torch.randn(40, 6), torch.arange(40) % 3 + 5
    with torch.no_grad():
        codes = model.encode(x).point
        spread, loadings = codes.std(0, correction=0), model.likelihood.loadings[0]
        widest = spread.argsort(descending=True)[:3]
        strips = pictures._traversals(model, codes)
        moved = pictures._attribute(model, codes, labels)
        shift = codes[labels == 6].mean(0) - codes[labels == 5].mean(0)
        torch.testing.assert_close(strips[:, -1] - strips[:, 0], 4 * spread[widest, None] * loadings[widest])
        torch.testing.assert_close(strips.mean(1), model.reconstruct(x[:1]).expand(3, -1))
        torch.testing.assert_close(moved[:, 0], model.reconstruct(x[labels == 5][:2]))
        torch.testing.assert_close(moved[:, -1] - moved[:, 0], (1.5 * shift @ loadings).expand(2, -1))


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("kind", ["vectors without labels", "colour images, code of width 1"])
def test_other_data_can_be_reported(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "QUICK_MATRIX", tiny_matrix())
    if kind == "vectors without labels":
        whole = load("linear-gaussian")
        data = replace(whole, train=whole.train[:40], test=whole.test[:10])
    else:
        x = torch.rand(30, 3, 4, 5)
        data = Dataset("colours", x, x[:6], None, None, (0.0, 1.0))
    latent = 1 if "1" in kind else 2
    options: dict[str, Any] = {"epochs": 1, "latent": latent, "hidden": (4,), "quick": True, "progress": False}
    found = compare(data, tmp_path / "run", engines=("detached",), **options)
    assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} == FIGURES - {"attributes"}
    points = found["trainings"][0]["decoders"]["detached"]["points"]
    assert all(row["accuracy"]["mean"] is None for row in points + found["baselines"])


def test_a_sheet_of_samples_holds_them_all(tmp_path: Path) -> None:
    from PIL import Image

    images = np.zeros((5, 1, 4, 4))
    images[4] = 1
    sheet({"samples": images}, (0.0, 1.0), tmp_path / "sheet.png", across=3)
    with Image.open(tmp_path / "sheet.png") as drawn:
        grey = np.asarray(drawn.convert("L")).astype(float)
    rows, columns = grey.shape[0] // 2, grey.shape[1] // 3
    centres = [[grey[r * rows + rows // 2, c * columns + columns // 2] for c in range(3)] for r in range(2)]
    assert centres == [[0, 0, 0], [0, 255, 255]]  # five images, then paper


def test_trainings_are_compared_at_the_nearest_budgets() -> None:
    """Not at the end of the longer curve: there it has spent 943 evaluations, and the other 598."""
    assert report._budgets([23, 230, 460, 621, 943], [598, 1794]) == (621, 598)
    assert report._budgets([23, 230, 460, 621, 943], [253, 759, 2277]) == (943, 759)
    assert report._budgets([10, 100], [10, 90]) == (100, 90)
    assert report._budgets([23, 230, 460], [23, 230]) == (230, 230)
    assert report._budgets([23, 230], [598]) is None and report._budgets([598], [23, 230]) is None
