"""The comparison against scikit-learn and closed forms; resuming and errors."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import figures_left_blank
from problems import part_of, tiny_matrix, written_without
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from gae.analysis import metrics as measure
from gae.analysis.baseline import kernel_density
from gae.analysis.inference_gap import FLOW, lower_bound, one_row
from gae.analysis.matrix import DIAGONAL, ENCODER, FULL, LAPLACE, OPTIMUM, WIDE, after
from gae.autoencoder import Autoencoder
from gae.data import Dataset, load
from gae.inference import Amortized, Ascent, ClosedForm, GaussNewton
from gae.likelihood import Gaussian, LinearMixture
from gae.storage import checkpoint
from gae.studies import compare, engines
from gae.training import fit, restore

pytestmark = pytest.mark.usefixtures("blank_figures")  # reports/test_comparison.py has them drawn

TINY: dict[str, Any] = {"epochs": 2, "latent": 3, "hidden": (16,), "quick": True, "progress": False}
NAMES = tuple(engines.ENGINES)
ONE: dict[str, Any] = {**TINY, "engines": ("amortised",), "seed": 1}


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """A smaller budget for the bounds of quick comparisons."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "QUICK_MATRIX", tiny_matrix())
        yield


@pytest.fixture(scope="module")
def small(digits: Dataset) -> Dataset:
    return part_of(digits, train=200, test=60)


@pytest.fixture(scope="module")
def out(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "whole"
    before = torch.get_rng_state()
    with figures_left_blank():
        compare.compare(small, folder, **TINY)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was moved"
    return folder


def read(folder: Path) -> dict[str, Any]:
    """Reads results.json as strict JSON, without NaN and infinities."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} in results.json")

    return json.loads((folder / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return read(out)


@pytest.fixture(scope="module")
def trained(small: Dataset, results: dict[str, Any]) -> Dataset:
    """The data without the validation observations."""
    number = results["validation"]
    assert number == tiny_matrix().tuning_samples and small.train_labels is not None
    return replace(small, train=small.train[number:], train_labels=small.train_labels[number:])


@pytest.fixture(scope="module")
def one(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of one engine, of another seed."""
    with figures_left_blank():
        return compare.compare(small, tmp_path_factory.mktemp("compare") / "one", **ONE)


def timeless(entry: Any) -> Any:
    """Results without times."""
    if isinstance(entry, dict):
        return {key: timeless(value) for key, value in entry.items() if key not in ("milliseconds", "seconds")}
    return [timeless(value) for value in entry] if isinstance(entry, list) else entry


def baseline(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in results["baselines"] if row["decoder"] == name)


def decoder(results: dict[str, Any], name: str) -> dict[str, Any]:
    return results["trainings"][0]["decoders"][name]


def test_every_family_and_engine_on_every_decoder(results: dict[str, Any]) -> None:
    assert [list(training["decoders"]) for training in results["trainings"]] == [list(NAMES)]
    for name in NAMES:
        cells = decoder(results, name)["matrix"]["cells"]
        assert list(cells) == [DIAGONAL, FULL]
        for row in cells.values():
            assert next(iter(row)) == ENCODER and {OPTIMUM, LAPLACE} < set(row)
            assert {len(cell["values"]) for cell in row.values()} == {8}
            assert [name for name, cell in row.items() if cell["converged"] is not None] == [OPTIMUM, LAPLACE]
    assert [c["decoder"] for c in results["baselines"]] == list(engines.BASELINES)


def test_pca_is_that_of_sklearn(small: Dataset, trained: Dataset, results: dict[str, Any]) -> None:
    train, test = trained.train.flatten(1).numpy().astype(float), small.test.flatten(1).numpy().astype(float)
    pca = PCA(3).fit(train)
    squares = (pca.inverse_transform(pca.transform(test)) - test) ** 2
    variance = ((pca.inverse_transform(pca.transform(train)) - train) ** 2).mean()
    row = baseline(results, "pca")
    assert row["squared_error"]["mean"] == pytest.approx(squares.mean(), rel=1e-5)
    assert row["squared_error"]["se"] == pytest.approx(squares.mean(1).std(ddof=1) / math.sqrt(60), rel=1e-4)
    joint = -0.5 * squares.sum(1) / variance - 32 * math.log(2 * math.pi * variance)
    assert row["joint"]["mean"] == pytest.approx(joint.mean(), rel=1e-4)
    neighbours = KNeighborsClassifier(5).fit(pca.transform(train), trained.train_labels)
    assert row["accuracy"]["mean"] == pytest.approx(neighbours.score(pca.transform(test), small.test_labels))
    assert row["elbo"]["mean"] is None and row["log_p"]["mean"] is None


def test_ppca_evidence_is_that_of_sklearn(small: Dataset, trained: Dataset, results: dict[str, Any]) -> None:
    pca, number = PCA(3).fit(trained.train.flatten(1).double().numpy()), len(trained.train)
    pca.explained_variance_ *= 1 - 1 / number  # maximum likelihood divides by N, scikit-learn by N - 1
    pca.noise_variance_ *= 1 - 1 / number
    expected = pca.score(small.test.flatten(1).double().numpy())
    row = baseline(results, "ppca")
    assert row["log_p"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert row["elbo"]["mean"] == pytest.approx(expected, rel=1e-4)  # the exact posterior has no gap
    assert row["log_p"]["method"] == "exact" and row["log_p"]["sampling_se"] == 0


def test_kmeans_evidence_is_bounded_by_its_best_point(results: dict[str, Any]) -> None:
    row = baseline(results, "kmeans")
    assert row["joint"]["mean"] <= row["log_p"]["mean"] <= row["joint"]["mean"] + math.log(3)


def test_bounds_lie_below_the_evidence_and_optima_above_encoders(results: dict[str, Any]) -> None:
    for name in NAMES:
        matrix = decoder(results, name)["matrix"]
        log_p = torch.tensor(matrix["log_p"]["values"])
        for row in matrix["cells"].values():
            for cell in row.values():
                slack = 4 * (cell["sampling_se"] + matrix["log_p"]["sampling_se"]) + 0.05
                assert (torch.tensor(cell["values"]) - log_p).mean() < slack
            gain = torch.tensor(row[OPTIMUM]["values"]) - torch.tensor(row[ENCODER]["values"])
            assert gain.mean() > -4 * (row[OPTIMUM]["sampling_se"] + row[ENCODER]["sampling_se"])


def test_evaluations_are_steps_times_draws(results: dict[str, Any]) -> None:
    for row in decoder(results, "amortised")["matrix"]["cells"].values():
        assert row[ENCODER]["evaluations"] == 0
        assert row[after(4, "gradient")]["evaluations"] == 4 * 4 * 3  # four times the size of a code
    curves = {name: decoder(results, name)["curve"] for name in NAMES}
    for name, per_step in {"unrolled": 26, "detached": 26, "amortised": 1, "semi-amortised": 2 * 5 + 1}.items():
        assert curves[name]["steps"] == [4, 8]
        assert curves[name]["evaluations"] == [4 * per_step, 8 * per_step]


def test_only_trainings_with_an_encoder_have_a_co_trained_one(results: dict[str, Any]) -> None:
    entries = {name: decoder(results, name)["co-trained"] for name in NAMES}
    assert entries["unrolled"] is entries["detached"] is None
    assert list(entries["amortised"]) == ["its encoder"] and list(entries["semi-amortised"]) == [
        "its encoder",
        "its engine",
    ]


def test_the_model_without_a_code_is_that_of_the_means(
    small: Dataset, trained: Dataset, results: dict[str, Any]
) -> None:
    mean = trained.train.mean(0)
    variance = (trained.train - mean).square().mean()
    square = (small.test[:8] - mean).square().flatten(1).sum(1)
    wanted = -0.5 * square / variance - 32 * torch.log(2 * math.pi * variance)
    assert torch.allclose(torch.tensor(results["without code"]["values"]), wanted, atol=0.05)


def test_the_nearest_training_samples_are_those_of_sklearn(
    small: Dataset, trained: Dataset, results: dict[str, Any]
) -> None:
    train, test = trained.train.flatten(1).numpy(), small.test.flatten(1).numpy()
    classifier = KNeighborsClassifier(5).fit(train, trained.train_labels)
    nearest = classifier.kneighbors(test, 1, return_distance=False)[:, 0]
    row = results["neighbours"]
    assert row["squared_error"]["mean"] == pytest.approx(((train[nearest] - test) ** 2).mean(), rel=1e-5)
    assert row["accuracy"]["mean"] == pytest.approx(classifier.score(test, small.test_labels))
    values = kernel_density(
        Gaussian(nn.Linear(1, 64).to(small.train), 1), trained.train.flatten(1), small.test[:8].flatten(1)
    )
    assert values is not None and row["values"] == pytest.approx(values.tolist(), abs=1e-3)


def test_absent_numbers_have_reasons(results: dict[str, Any]) -> None:
    points = [point for name in NAMES for point in decoder(results, name)["points"]]
    for row in [*points, *results["baselines"], results["neighbours"]]:
        for key in ("joint", "squared_error", "accuracy", "milliseconds", "evaluations"):
            assert (row[key]["mean"] is None) == ("reason" in row[key])


def test_results_say_what_was_run(small: Dataset, results: dict[str, Any]) -> None:
    assert results["data"]["hash"] == small.hash
    assert results["configuration"]["engines"] == list(NAMES) and results["configuration"]["seed"] == 0
    assert {"python", "torch", "pyro-ppl", "numpy", "scikit-learn", "gae"} == results["versions"].keys()
    assert results["machine"].keys() == {"cpu", "threads", "system"}
    assert all(len(decoder(results, name)["loss"]) == 2 for name in NAMES)
    assert results["seconds"]["total"] > 0


still = partial(torch.optim.SGD, lr=0.0)


def test_all_start_from_the_same_weights(small: Dataset) -> None:
    one, other = (engines.initial(engines.configure(small, NAMES), small.event_shape) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    fit(Autoencoder(one[0], Amortized(one[1])), small.train, epochs=1, optimizer=still, progress=False)
    deviation = np.sqrt(((small.train.numpy() - small.train.numpy().mean(0)) ** 2).mean())
    assert one[0].scale.item() == pytest.approx(deviation, rel=1e-5)  # without a step, where it starts


@pytest.mark.filterwarnings("error:Training by `joint`")
@pytest.mark.parametrize("name", engines.ENGINES)
def test_the_comparison_trains_by_the_joint_density_without_a_word(name: str, small: Dataset) -> None:
    """A user of ``joint`` is told that it has no maximiser; here, the report says so."""
    configuration = engines.configure(small, (name,))
    model = engines.assemble(configuration, name, *engines.initial(configuration, small.event_shape))
    fit(model, small.train[:4], epochs=1, optimizer=still, progress=False)


def test_the_encoder_fitted_afterwards_leaves_the_decoder(out: Path) -> None:
    for training in NAMES:
        names = (training, f"{training}-encoder", f"{training}-full-encoder")
        own, *fitted = (checkpoint.load(out / "checkpoints" / name).state["module"] for name in names)
        parts = [name for name in own if name.startswith("likelihood.")]
        assert parts and all(torch.equal(own[name], other[name]) for name in parts for other in fitted)


def test_encoders_fitted_afterwards_start_anew(out: Path) -> None:
    """Also where an encoder was trained with the decoder, which has adapted to it."""
    names = ("amortised", "amortised-encoder")
    own, fitted = (checkpoint.load(out / "checkpoints" / name).state["module"] for name in names)
    weights = [name for name in own if name.startswith("inference.") and name.endswith("weight")]
    assert weights and not any(torch.equal(own[name], fitted[name]) for name in weights)


def test_checkpoints_can_be_rebuilt(out: Path, small: Dataset, results: dict[str, Any]) -> None:
    for name, family in (("unrolled-encoder", DIAGONAL), ("unrolled-full-encoder", FULL)):
        folder = out / "checkpoints" / name
        model = engines.rebuild(checkpoint.load(folder).state["describe"])
        restore(model, folder)
        torch.manual_seed(0)
        bound = lower_bound(model.double().likelihood, small.test[:8].double(), model.encode(small.test[:8].double()).q)
        stored = decoder(results, "unrolled")["matrix"]["cells"][family][ENCODER]
        error = float(bound.standard_error.mean()) + stored["sampling_se"]
        assert float(bound.value.mean()) == pytest.approx(float(np.mean(stored["values"])), abs=5 * error + 1e-3)


@pytest.mark.slow
def test_several_seeds_are_several_trainings(small: Dataset, one: dict[str, Any], tmp_path: Path) -> None:
    both = compare.compare(small, tmp_path / "both", **{**ONE, "seed": 0, "seeds": 2})
    assert [training["seed"] for training in both["trainings"]] == [0, 1]
    assert timeless(both["trainings"][1]["decoders"]) == timeless(one["trainings"][0]["decoders"])
    assert both["trainings"][0]["decoders"] != both["trainings"][1]["decoders"]
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert "over 2 trainings, fewer than the 3" in page and "--seeds 2" in page


class Interrupted(KeyboardInterrupt):
    pass


def test_an_interrupted_run_resumes(
    small: Dataset, one: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, allowed = Autoencoder.forward, 0
    monkeypatch.setattr(compare, "write", lambda out: None)

    def interrupted(self: Autoencoder, x: torch.Tensor) -> torch.Tensor:
        nonlocal allowed
        allowed -= 1
        if allowed < 0:
            raise Interrupted
        return forward(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(Autoencoder, "forward", interrupted)
        for batches in (6, 12):  # in the second epoch of the first training, in a later training
            allowed = batches
            with pytest.raises(Interrupted):
                compare.compare(small, tmp_path / "run", resume=True, **ONE)
    assert not (tmp_path / "run" / "results.json").exists()
    compare.compare(small, tmp_path / "run", resume=True, **ONE)
    assert timeless(read(tmp_path / "run")) == timeless(json.loads(json.dumps(one)))


def test_finished_phases_are_reread(
    small: Dataset, out: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(compare, "write", lambda out: None)

    for name in ("evaluate", "point_metrics", "bound_matrix", "held_out_bound", "pictures"):
        monkeypatch.setattr(compare, name, never)
    written_without(out / "configuration.json", "device", "precision")  # by a version before these options
    assert timeless(compare.compare(small, out, resume=True, **TINY)) == timeless(results)


def test_numbers_that_are_not_finite_are_not_written(small: Dataset, tmp_path: Path) -> None:
    """``results.json`` is JSON for every reader, which knows no NaN: an error instead of a file."""

    class Untrained(compare.Training):
        def stages(self) -> list[Any]:
            return []

    class Unmeasured(compare.Comparison):
        value = math.nan

        def trainings(self) -> list[Any]:
            return [Untrained(self, 0, 0)]

        def baseline(self, name: str) -> Any:
            return None

        def phase(self, name: str, compute: Any) -> Any:
            return self.value

        def draw(self, *parts: Any) -> None:
            pass

    configuration = engines.configure(small, ("amortised",), quick=True)
    run = Unmeasured(tmp_path / "run", configuration, small, False, False, torch.device("cpu"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        compare._results(run)
    assert not (tmp_path / "run" / "results.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "write", lambda out: None)
        Unmeasured.value = 0.5
        assert compare._results(run)["without code"] == read(tmp_path / "run")["without code"] == 0.5


def test_another_seed_gives_other_numbers(one: dict[str, Any], results: dict[str, Any]) -> None:
    assert decoder(one, "amortised")["points"][0]["joint"] != decoder(results, "amortised")["points"][0]["joint"]
    assert baseline(one, "pca")["squared_error"]["mean"] == pytest.approx(
        baseline(results, "pca")["squared_error"]["mean"], rel=1e-5
    )


def test_an_existing_folder_is_refused(small: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for resume, message in ((False, "exists. Resume its comparison"), (True, "is not the folder of a comparison")):
        with pytest.raises(FileExistsError, match=message):
            compare.compare(small, tmp_path, resume=resume, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_configuration_is_not_resumed(small: Dataset, out: Path) -> None:
    with pytest.raises(ValueError, match=r"epochs was 2, now 3; latent was 3, now 4"):
        compare.compare(small, out, resume=True, **{**TINY, "epochs": 3, "latent": 4})
    with pytest.raises(ValueError, match="data_hash was"):
        compare.compare(replace(small, test=small.test + 0.5), out, resume=True, **TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engines": ("unrolled", "magic")}, "'magic'. Choose some of unrolled, detached, amortised, semi-amortised"),
        ({"engines": ("unrolled", "unrolled")}, "repeated"),
        ({"engines": ()}, "Choose some of"),
        ({"head": "cauchy"}, "'cauchy'. Valid heads: gaussian"),
        ({"head": "bernoulli"}, "Bernoulli needs x in"),
        ({"latent": 0}, "latent must be between 1 and the 64 elements"),
        ({"latent": 65}, "latent must be between 1 and the 64 elements"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"flow": "full"}, "Unknown flow 'full'. Valid flows: maf, iaf, nsf"),
        ({"wide": True, "hidden": ()}, "wide=True doubles the width .* hidden is empty"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    small: Dataset, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare.compare(small, tmp_path / "run", **{**TINY, **options})
    assert not (tmp_path / "run").exists()


def test_too_few_samples_are_refused(small: Dataset, tmp_path: Path) -> None:
    few = replace(small, train=small.train[:9], train_labels=None)
    with pytest.raises(ValueError, match="needs at least 10 training samples, got 9"):
        compare.compare(few, tmp_path / "run", **TINY)


@pytest.mark.slow
def test_dynamic_binarisation_is_redrawn_in_training_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all encoders that can be fitted."""
    whole = load("digits", binarize="dynamic")
    data = replace(whole, train=whole.train[:100], test=whole.test[:30], train_labels=None, test_labels=None)
    seen: list[Dataset] = []
    train = compare.fit

    def watched(model: Autoencoder, data: Dataset, **options: Any) -> Any:
        seen.append(data)
        return train(model, data, **options)

    monkeypatch.setattr(compare, "fit", watched)
    monkeypatch.setattr(compare, "write", lambda out: None)
    options = {**TINY, "head": "bernoulli", "engines": ("amortised",), "epochs": 1, "flow": "maf", "wide": True}
    monkeypatch.setattr(engines, "QUICK_MATRIX", replace(tiny_matrix(), optimum_steps=3))
    results = compare.compare(data, tmp_path / "run", **options)
    assert torch.equal(seen[-1].train, data.train[results["validation"] :])
    assert not torch.equal(seen[-1].epoch(0), seen[-1].epoch(1))
    assert set(seen[0].train.unique().tolist()) == {0.0, 1.0}  # the baselines' data
    found = decoder(results, "amortised")
    assert max(found["matrix"]["cells"][FULL][OPTIMUM]["values"] + results["without code"]["values"]) < 0  # log masses
    assert found["points"][0]["accuracy"]["reason"] == "the data have no labels"
    assert list(found["matrix"]["cells"]) == [DIAGONAL, FULL, FLOW]
    cells = found["matrix"]["cells"][DIAGONAL]
    assert list(cells)[:3] == [ENCODER, WIDE, after(4, "L-BFGS")]
    x = data.test[:8].double()
    for name, cell, width in (("maf", found["matrix"]["cells"][FLOW][ENCODER], 16), ("wide", cells[WIDE], 32)):
        folder = tmp_path / "run" / "checkpoints" / f"amortised-{name}-encoder"
        model = engines.rebuild(checkpoint.load(folder).state["describe"])
        restore(model, folder)
        assert width in {len(each) for each in model.inference.parameters()} and len(model.inference.guide.network)
        bound = lower_bound(model.double().likelihood, x, one_row(model.inference.infer(model.likelihood, x).q), 200)
        error = float(bound.standard_error.mean()) + cell["sampling_se"]
        assert float(bound.value.mean()) == pytest.approx(float(np.mean(cell["values"])), abs=5 * error)


def linear_model() -> tuple[LinearMixture, Gaussian]:
    """The same linear-Gaussian model twice: with closed forms, and as a neural head."""
    exact = LinearMixture(1, 2, (5,), scale=0.5)
    exact.loadings.data = torch.randn(1, 2, 5)
    decoder = nn.Linear(2, 5)
    decoder.weight.data, decoder.bias.data = exact.loadings.data[0].T.clone(), exact.means.data[0].clone()
    return exact, Gaussian(decoder, 2, scale=0.5)


def test_a_cell_against_closed_forms() -> None:
    exact, head = linear_model()
    x = torch.randn(20, 5)
    data = Dataset("normal", x, x, None, None, (-5.0, 5.0))
    effort = measure.EvaluationBudget(batch_size=12, evidence_samples=20, elbo_samples=4)
    ascent = Ascent(step=GaussNewton(), max_steps=5)
    found = measure.evaluate(Autoencoder(head, ascent), data, effort, seed=0)
    known = measure.evaluate(Autoencoder(exact, ClosedForm()), data, effort, seed=0)
    for key in ("joint", "log_p", "squared_error"):
        assert found[key]["mean"] == pytest.approx(known[key]["mean"], abs=1e-3), key
        assert found[key]["se"] == pytest.approx(known[key]["se"], abs=1e-3), key
    assert known["elbo"]["mean"] == pytest.approx(exact.log_evidence(x).log_p.mean().item(), abs=1e-4)
    assert found["log_p"]["method"] == "importance sampling" and found["status"] == {"max_steps": 20}
    torch.manual_seed(5)
    assert measure.evaluate(Autoencoder(head, ascent), data, effort, seed=0)["log_p"] == found["log_p"]
    low, high = found["milliseconds"]["range"]
    assert 0 < low <= found["milliseconds"]["mean"] <= high


def test_a_dimension_that_the_decoder_ignores_is_not_active() -> None:
    exact, _ = linear_model()
    x = torch.randn(20, 5)
    data = Dataset("normal", x, x, None, None, (-5.0, 5.0))
    for loadings, active in ((torch.ones(2), 2), (torch.tensor([1.0, 0.0]), 1)):
        exact.loadings.data *= loadings[:, None]
        assert (
            measure.evaluate(Autoencoder(exact, ClosedForm()), data, measure.EvaluationBudget(), seed=0)["active"]
            == active
        )


def test_a_mean_that_is_not_finite_is_absent() -> None:
    entry = measure.mean_and_error(torch.tensor([1.0, math.inf, math.nan]))
    assert entry == {"mean": None, "se": None, "reason": "2 of 3 values are not finite"}


def test_a_comparison_of_narrow_data_has_codes_as_wide_as_they_are() -> None:
    assert engines.configure(load("circles"), NAMES).latent == 2
    assert engines.configure(load("digits"), NAMES).latent == 8
