"""The survey of systems against scikit-learn; resuming, errors and report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import gae
from problems import part_of, written_without
from scipy.stats import norm
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from gae.analysis.metrics import EvaluationBudget, accuracy, encode
from gae.cli import terminal
from gae.data import Dataset, load
from gae.reports import survey as survey_report
from gae.studies.survey import Survey, left_out, survey, survey_systems
from gae.systems import SYSTEMS, build
from gae.training import fit, restore

# The survey that all tests share, by a fixture of the module, has them drawn.
pytestmark = pytest.mark.usefixtures("blank_figures")

CHOSEN = ("pca", "kmeans", "vae", "sparse-coding")


@pytest.fixture(scope="module")
def small(digits: Dataset) -> Dataset:
    return part_of(digits, train=150, test=40)


@pytest.fixture(scope="module")
def out(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survey") / "run"
    before = torch.get_rng_state()
    survey(small, folder, systems=CHOSEN, epochs=1, quick=True, progress=False)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was moved"
    return folder


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "results.json").read_text(encoding="utf-8")))


def row(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in results["rows"] if found["system"] == name)


def test_a_row_for_each_system(results: dict[str, Any]) -> None:
    assert [found["system"] for found in results["rows"]] == list(CHOSEN)
    assert not results["missing"]
    assert [survey_report.code(found) for found in results["rows"]] == ["8", "1 of 10", "8", "128"]


def test_numbers_of_pca_are_scikit_learns(small: Dataset, results: dict[str, Any]) -> None:
    train, test = small.train.flatten(1).numpy(), small.test.flatten(1).numpy()
    pca = PCA(8).fit(train)
    codes = pca.transform(test)
    found = row(results, "pca")
    expected = ((pca.inverse_transform(codes) - test) ** 2).mean()
    assert found["squared_error"]["mean"] == pytest.approx(expected, rel=1e-4)
    neighbours = KNeighborsClassifier(5).fit(pca.transform(train), small.train_labels)
    assert found["accuracy"]["mean"] == pytest.approx(neighbours.score(codes, small.test_labels))
    assert found["log_p"]["mean"] is None and "flat" in found["log_p"]["reason"]


def test_a_fixed_scale_becomes_that_of_the_residual(small: Dataset, results: dict[str, Any]) -> None:
    """log p of k-means, by hand from its centres and the root mean square of its training residual."""
    found = row(results, "kmeans")
    train, test = small.train.flatten(1).double(), small.test.flatten(1).double()
    best = KMeans(10, n_init=10, random_state=0).fit(train.numpy())
    square = best.inertia_ / train.numel()
    centres = torch.as_tensor(best.cluster_centers_)
    residual = (test[:, None] - centres).square().sum(2)
    dim = test.shape[1]
    log_p = (-residual / (2 * square)).logsumexp(1) - torch.tensor(10.0).log() - 0.5 * dim * _log(square)
    assert found["log_p"]["mean"] == pytest.approx(float(log_p.mean()), abs=5)  # another local optimum


def _log(square: float) -> float:
    return float(torch.log(torch.tensor(2 * torch.pi * square)))


def test_an_estimate_from_collapsed_weights_is_not_shown(results: dict[str, Any]) -> None:
    found = row(results, "sparse-coding")["log_p"]
    assert found["mean"] is None and "effective sample size" in found["reason"]


def test_checkpoints_hold_what_was_measured(small: Dataset, out: Path, results: dict[str, Any]) -> None:
    model = build("vae", small.event_shape)
    restore(model, out / "checkpoints" / "vae")
    with torch.no_grad():
        error = (encode(model, small.test, EvaluationBudget()).mean - small.test).square().mean()
    assert float(error) == pytest.approx(row(results, "vae")["squared_error"]["mean"], rel=1e-5)


def test_finished_rows_are_reread(
    small: Dataset, out: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Survey, "_row", lambda *_: pytest.fail("computed again"))
    written_without(out / "configuration.json", "device", "precision")  # by a version before these options
    again = survey(small, out, systems=CHOSEN, epochs=1, quick=True, resume=True, progress=False)
    assert again["rows"] == results["rows"]


def test_another_plan_is_not_resumed(small: Dataset, out: Path) -> None:
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        survey(small, out, systems=CHOSEN, epochs=1, seed=1, quick=True, resume=True, progress=False)
    with pytest.raises(FileExistsError, match="--resume"):
        survey(small, out, systems=CHOSEN, progress=False)


def test_the_page_shows_every_system_and_why_numbers_are_missing(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in CHOSEN)
    assert "under a flat prior" in page and "effective sample size" in page
    assert {path.stem for path in (out / "figures").iterdir()} == {"overview", "reconstructions", "samples", "codes"}
    assert page.count("<svg") == page.count('role="img" aria-label="') == 4


def test_one_cluster_tells_no_classes_apart(small: Dataset) -> None:
    """All codes are the same, so that the same five neighbours vote for one class, whichever they are."""
    model = build("kmeans", small, components=1)
    fit(model, small, progress=False)
    with torch.no_grad():
        found = accuracy(model, small, encode(model, small.test, EvaluationBudget()), EvaluationBudget())
    assert small.test_labels is not None
    assert found["mean"] in (small.test_labels.bincount() / len(small.test)).double().numpy().round(6)


def test_a_system_that_does_not_fit_the_data_says_why(tmp_path: Path) -> None:
    """Vectors have no channels to convolve."""
    points = torch.randn(60, 5)
    data = Dataset("points", points[:50], points[50:], None, None, (-3.0, 3.0))
    found = survey(data, tmp_path / "run", systems=["ppca", "conv-vae"], epochs=1, quick=True, progress=False)
    assert "images" in found["missing"]["conv-vae"]
    assert [entry["system"] for entry in found["rows"]] == ["ppca"] and found["rows"][0]["width"] == 5


def test_a_system_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten clusters of nine samples, and a loss that becomes NaN; on --resume those two are tried again."""
    points = torch.randn(29, 3)
    data = Dataset("points", points[:9], points[9:], None, None, (-3.0, 3.0))
    chosen = {"systems": ["pca", "kmeans", "ae"], "epochs": 1, "quick": True, "progress": False}
    with monkeypatch.context() as patched:
        patched.setattr(nn.SiLU, "forward", lambda self, x: x * torch.nan)
        found = survey(data, tmp_path / "run", **chosen)
    assert [entry["system"] for entry in found["rows"]] == ["pca"] and set(found["failed"]) == {"kmeans", "ae"}
    assert "need at least as many samples" in found["failed"]["kmeans"]
    assert found["failed"]["ae"].startswith("FloatingPointError: The loss is nan")
    assert json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["failed"] == found["failed"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "kmeans failed: ValueError" in page and "ae failed: FloatingPointError" in page
    terminal.console().print(terminal.surveyed(found))
    assert "kmeans failed" in capsys.readouterr().out
    again = survey(data, tmp_path / "run", resume=True, **chosen)
    assert [entry["system"] for entry in again["rows"]] == ["pca", "ae"] and set(again["failed"]) == {"kmeans"}


def test_a_survey_of_failures_alone_is_one(tmp_path: Path) -> None:
    data = Dataset("points", torch.randn(9, 3), torch.randn(20, 3), None, None, (-3.0, 3.0))
    with pytest.raises(RuntimeError, match="kmeans failed: ValueError: K=10"):
        survey(data, tmp_path / "run", systems=["kmeans"], quick=True, progress=False)
    assert "kmeans failed" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_raw_table_is_surveyed(tmp_path: Path) -> None:
    """Columns of scales 1e-3 to 1e3, with offsets: every neural system beats one Gaussian for each column, in nats."""
    raw = torch.from_numpy(load_breast_cancer().data).float()
    data = Dataset("table", raw[:456], raw[456:], None, None, (0.0, 5000.0))
    found = survey(data, tmp_path / "run", systems=["ae", "vae", "iwae"], epochs=16, quick=True, progress=False)
    assert not found["failed"]
    each = norm(raw[:456].double().mean(0), raw[:456].double().std(0))
    alone = float(each.logpdf(data.test.double()).sum(1).mean())
    for entry in found["rows"]:
        nats = entry["joint" if entry["system"] == "ae" else "elbo"]
        assert nats["mean"] > alone + 4 * nats["se"], entry["system"]


def test_a_data_set_is_laid_out(small: Dataset, tmp_path: Path) -> None:
    """LLE alone: no sample has a number, and the codes are those of the row on the whole test set."""
    found = survey(small, tmp_path / "run", systems=["lle"], quick=True, progress=False)
    (entry,) = found["embeddings"]
    assert found["rows"] == [] and entry["points"] == 40 and entry["width"] == 2
    z = build("lle", small.event_shape, points=40).encode(small.test.unsqueeze(0)).point[0]
    expected = trustworthiness(small.test.flatten(1).numpy(), z.numpy(), n_neighbors=5)
    assert entry["trustworthiness"]["mean"] == pytest.approx(expected)
    assert small.test_labels is not None
    assert entry["accuracy"]["mean"] == left_out(z, small.test_labels)["mean"]
    assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} == {"embeddings"}
    assert f"{entry['trustworthiness']['mean']:.4f}" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_text_is_surveyed_by_systems_of_sequences(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ada\nalan\ngrace\nemmy\n" * 20, encoding="utf-8")
    data = load(str(tmp_path / "names.txt"))
    found = survey(data, tmp_path / "run", epochs=2, quick=True, progress=False)
    of_text = ["sequence-vae", "attention-vae", "music-vae"]
    assert [entry["system"] for entry in found["texts"]] == survey_systems(text=True) == of_text
    assert found["rows"] == [] and data.vocabulary is not None
    entry = found["texts"][0]
    assert entry["lines"] == data.vocabulary.decode(data.test[:12]) and len(entry["samples"]) == 12
    model = build("sequence-vae", data.event_shape, classes=data.vocabulary.classes)
    restore(model, tmp_path / "run" / "checkpoints" / "sequence-vae")
    back = model.eval().reconstruct(data.test)
    shares = [float((a[b > 0] == b[b > 0]).double().mean()) for a, b in zip(back, data.test, strict=True)]
    assert entry["tokens"]["mean"] == pytest.approx(sum(shares) / len(shares))
    assert entry["elbo"]["mean"] < 0 and entry["length"] == pytest.approx(float((data.test > 0).sum(1).double().mean()))
    assert all(line in (tmp_path / "run" / "report.html").read_text(encoding="utf-8") for line in entry["lines"])
    gae("sample", tmp_path / "run" / "checkpoints" / "sequence-vae", "-n", 3, "-o", tmp_path / "drawn.txt")
    assert len((tmp_path / "drawn.txt").read_text(encoding="utf-8").split("\n")) == 4
    with pytest.raises(ValueError, match="its observation is 'sample'"):
        survey(data, tmp_path / "other", systems=["pca"], progress=False)


def test_left_out_asks_the_others() -> None:
    """Oracle by all distances: a point is not its own neighbour."""
    z, labels = torch.randn(60, 2, dtype=torch.float64), torch.randint(2, (60,))
    distance = torch.cdist(z, z).fill_diagonal_(torch.inf)
    votes = labels[distance.topk(5, largest=False).indices].double().mean(1).round().long()
    assert left_out(z, labels)["mean"] == pytest.approx(float((votes == labels).double().mean()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"systems": ["pca", "magic"]}, "Unknown system 'magic'"),
        ({"systems": ["deep-image-prior"]}, "its observation is 'one image'"),
        ({"systems": ["pca", "pca"]}, "each once"),
        ({"systems": []}, "at least one"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_bad_options(small: Dataset, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        survey(small, tmp_path / "run", progress=False, **options)
    assert not (tmp_path / "run").exists()


def test_all_are_the_rows_whose_observations_are_samples() -> None:
    assert set(SYSTEMS) - set(survey_systems()) >= {"deep-image-prior", "compressed-sensing"}
    assert {"pca", "vae", "gon", "sparse-coding"} <= set(survey_systems())


def test_the_command(tmp_path: Path) -> None:
    printed = gae("compare", "digits", "--systems", "pca, kmeans", "--quick", "--out", tmp_path / "run")
    assert "pca" in printed and "1 of 10" in printed and "report.html" in printed
    assert "between 1 and the 64" in gae("compare", "digits", "--latent", "0", "--out", tmp_path / "x", code=2)
    refused = gae("compare", "digits", "--systems", "all", "--latent", "3", "--out", tmp_path / "x", code=2)
    assert "--latent is for the comparison of engines" in refused
