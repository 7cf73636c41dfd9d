"""Your own decoder in the commands: from files to the numbers of its networks."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command import gae
from own import images, written
from problems import tiny_matrix

from gae import compare, fit, inference_gap, load
from gae.adapters import from_decoder, trainable
from gae.analysis.engines import ENGINES, engine_of
from gae.analysis.inference_gap import lower_bound
from gae.analysis.matrix import DIAGONAL, ENCODER, FULL, OPTIMUM
from gae.analysis.rows import codes
from gae.data import load as load_data
from gae.studies import engines
from gae.systems import ppca, vae, vq_vae
from gae.training.devices import single

pytestmark = pytest.mark.usefixtures("blank_figures")

OWN = ("--decoder", "own_models:decoder", "--latent", "2", "--scale", "0.3", "--weights", "both.pt")
WITH_ENCODER = (*OWN, "--encoder", "own_models:Encoder")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return written(tmp_path, monkeypatch)


@pytest.mark.parametrize("engine", ENGINES)
def test_codes_are_those_of_the_same_networks_in_python(engine: str, own: dict[str, Any]) -> None:
    gae("encode", "images.npy", *WITH_ENCODER, "--engine", engine, "-o", "codes.npz")
    model = from_decoder(own["decoder"], (1, 4, 4), 2, scale=0.3, encoder=own["encoder"])
    model.inference = engine_of(engine, model)
    x = torch.from_numpy(images(20))
    torch.manual_seed(0)
    with torch.no_grad():
        z = model.encode(x).point
    with np.load("codes.npz") as codes:
        assert np.array_equal(codes["index"], np.arange(20))
        np.testing.assert_allclose(codes["z"], z.numpy(), rtol=1e-5, atol=1e-6)
        joint = model.likelihood.log_joint(x, z[None])[0].detach()
        np.testing.assert_allclose(codes["log_joint"], joint.numpy(), rtol=1e-5)
        assert ("log_q" in codes) == (engine in ("encoder", "refine"))


def test_an_exported_decoder_knows_its_latent(own: dict[str, Any]) -> None:
    program = torch.export.export(own["decoder"], (torch.zeros(3, 2),), dynamic_shapes=({0: torch.export.Dim("N")},))
    torch.export.save(program, "decoder.pt2")
    gae("encode", "images.npy", "--decoder", "decoder.pt2", "--scale", "0.3", "-o", "exported.npz")
    gae("encode", "images.npy", *OWN, "-o", "codes.npz")
    with np.load("exported.npz") as one, np.load("codes.npz") as other:
        np.testing.assert_allclose(one["z"], other["z"], rtol=1e-5, atol=1e-6)
    wrong = gae("encode", "images.npy", "--decoder", "decoder.pt2", "--scale", "0.3", "--latent", "3", code=2)
    assert "latent is (3,), but the decoder was exported for codes of shape (2,)" in wrong
    torch.export.save(torch.export.export(own["decoder"], (torch.zeros(3, 2),)), "fixed.pt2")
    fixed = gae("encode", "images.npy", "--decoder", "fixed.pt2", "--scale", "0.3", code=2)
    assert "does not accept a batch of 1 codes of shape (2,) (export it with dynamic_shapes): AssertionError" in fixed


def test_the_gap_is_that_of_the_same_networks_in_python(own: dict[str, Any]) -> None:
    """Of an encoder whose means differ between images: otherwise the answer is that the code has collapsed."""
    own["encoder"].layers[3].weight.data[:2] *= 8
    weights = {f"encoder.{name}": value for name, value in own["encoder"].state_dict().items()}
    torch.save(torch.load("both.pt", weights_only=True) | weights, "both.pt")
    few = ("-n", 3, "--samples", 1000, "--draws", 40, "--out", "gap", "--seed", 5)
    gae("gap", "images.npy", *WITH_ENCODER, *few)
    account = json.loads(Path("gap/gap.json").read_text())
    model = from_decoder(own["decoder"], (1, 4, 4), 2, scale=0.3, encoder=own["encoder"]).double()
    x = load_data("images.npy").test[:3].double()
    torch.manual_seed(5)
    expected = inference_gap(model, x, samples=1000, draws=40).columns()
    with np.load("gap/gap.npz") as columns:
        for name, values in expected.items():
            np.testing.assert_allclose(columns[name], values.detach().numpy(), rtol=1e-6, atol=1e-9)
    assert account["checkpoint"] == "own_models:decoder" and "the encoder gives up" in account["answer"]
    assert "Amortized" in Path("gap/gap.html").read_text()


@pytest.mark.parametrize("engine, subject", [("refine", "the density refined"), ("lbfgs", "the Laplace approximation")])
def test_the_gap_of_a_named_engine(engine: str, subject: str) -> None:
    few = ("-n", 3, "--samples", 1000, "--draws", 40, "--out", "gap")
    account = json.loads(gae("gap", "images.npy", *WITH_ENCODER, *few, "--engine", engine, "--json"))
    assert subject in account["answer"] and account["engine"] == engine
    results = account["results"]
    parts = results["amortisation gap"]["mean"] + results["approximation gap, full covariance"]["mean"]
    if engine == "lbfgs":  # a density of a full covariance
        assert parts == pytest.approx(results["inference gap"]["mean"])
    assert {"L[q]", "L[q*], mean-field"} <= results.keys()


def test_engines_of_a_checkpoint() -> None:
    torch.manual_seed(0)
    model = vae((1, 4, 4), latent=2, hidden=(5,)).eval()
    model.preparation = load_data("images.npy").preparation
    model.save("model")
    gae("encode", "model", "images.npy", "--engine", "lbfgs", "--steps", 5, "-o", "codes.npz")
    x = torch.from_numpy(images(20))
    again = load("model")
    with torch.no_grad():
        z = again.encode(x, engine_of("lbfgs", again, 5)).point
    with np.load("codes.npz") as codes:
        np.testing.assert_allclose(codes["z"], z.numpy(), rtol=1e-5, atol=1e-6)
        assert codes["engine"] == "Ascent"


def test_restarts_of_an_engine(own: dict[str, Any]) -> None:
    gae("encode", "images.npy", *OWN, "--engine", "lbfgs", "--restarts", 4, "--seed", 3, "-o", "codes.npz")
    model = from_decoder(own["decoder"], (1, 4, 4), 2, scale=0.3)
    ends = {}
    for restarts in (1, 4):
        model.inference = engine_of("lbfgs", model, restarts=restarts)
        (block,) = codes(model, torch.from_numpy(images(20)), seed=3, fabric=single("cpu"))
        ends[restarts] = block["z"]
    with np.load("codes.npz") as written:
        assert np.array_equal(written["z"], ends[4])
    assert not np.array_equal(ends[1], ends[4])


def test_the_gap_of_a_codebook() -> None:
    torch.manual_seed(0)
    model = vq_vae((1, 4, 4), positions=2, vectors=3, width=2, hidden=(5,)).eval()
    model.preparation = load_data("images.npy").preparation
    model.save("model")
    account = json.loads(gae("gap", "model", "images.npy", "-n", 4, "--out", "gap", "--json"))
    gap = inference_gap(model.double(), load_data("images.npy").test[:4].double())
    assert gap.amortisation is not None
    assert account["results"]["amortisation gap"]["mean"] == pytest.approx(float(gap.amortisation.mean()))
    assert "the encoder's code gives up" in account["answer"] and "the best of all 9 codes" in account["answer"]
    page = Path("gap/gap.html").read_text()
    assert "exact by enumeration" in page and "L-BFGS" not in page


ERRORS = [
    (("images.npy",), "Give a checkpoint and data, or --decoder and data"),
    (("run", "images.npy", *OWN), "leave run out"),
    (("run", "images.npy", "--latent", "2"), "or leave it out (a system's own option is --option latent=2)."),
    (("run", "images.npy", "--encoder", "own_models:Encoder"), "--encoder is for a model of your own"),
    (("images.npy", "--decoder", "own_models:decoder", "--scale", "1"), "The shape of a code is not known"),
    (("images.npy", "--decoder", "own_models:decoder", "--latent", "2"), "needs the scale of the noise"),
    (("images.npy", *OWN, "--latent", "two"), "whole numbers separated by commas"),
    (("images.npy", *OWN, "--latent", "3"), "does not accept a batch of 1 codes of shape (3,)"),
    (("images.npy", *OWN, "--steps", "3"), "--steps is for an engine by name"),
    (("images.npy", *OWN, "--restarts", "3"), "--restarts is for an engine by name"),
    (("images.npy", *OWN, "--engine", "encoder"), "needs an encoder"),
    (("images.npy", *OWN, "--engine", "newton"), "Unknown engine"),
    (("images.npy", *OWN, "--head", "bernoulli"), "has no scale"),
    (("images.npy", *OWN, "--decoder", "own_models:Dropped"), "The parameters of"),
    (("images.npy", "--decoder", "own_models:Logistic", "--head", "bernoulli", "--latent", "2"), "takes logits"),
]


@pytest.mark.parametrize("arguments, said", ERRORS, ids=[said for _, said in ERRORS])
def test_errors_say_what_to_do(arguments: tuple[str, ...], said: str) -> None:
    assert said in gae("encode", *arguments, "-o", "codes.npz", code=2)
    assert not Path("codes.npz").exists()


def test_a_gap_needs_second_derivatives_and_double_precision() -> None:
    for name in ("Once", "Baked"):
        own = ("--decoder", f"own_models:{name}", "--latent", "2", "--scale", "0.3", "--out", "gap")
        assert "has no second derivatives in torch.float64" in gae("gap", "images.npy", *own, code=2)


COMPARED = ("--quick", "--epochs", "1", "--out", "run")


def test_a_comparison_on_a_given_decoder(own: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "QUICK_MATRIX", tiny_matrix())
    printed = gae("compare", "images.npy", *WITH_ENCODER, *COMPARED)
    assert "Given decoder" in printed and "no training curves" in printed
    results = json.loads(Path("run/results.json").read_text())
    measured = results["trainings"][0]["decoders"]["given"]
    assert measured["curve"] is None and measured["co-trained"] is None and not results["engines"]
    cells = measured["matrix"]["cells"]
    assert list(cells) == [DIAGONAL, FULL] and OPTIMUM in cells[FULL]
    model = from_decoder(own["decoder"], (1, 4, 4), 2, scale=0.3, encoder=own["encoder"]).double()
    x = load_data("images.npy").test.double()
    own_q = model.inference.infer(model.likelihood, x).q
    assert own_q is not None
    expected = lower_bound(model.likelihood, x, own_q, draws=2000)
    entry = cells[DIAGONAL][ENCODER]
    slack = 5 * (entry["sampling_se"] + expected.standard_error)
    assert bool((torch.tensor(entry["values"]) - expected.value).abs().lt(slack.mean() + slack).all())
    page = Path("run/report.html").read_text()
    assert "own_models:decoder" in page and "No decoder was trained: there are no training curves" in page
    assert "to save time: a normalizing flow." in page and "own_models:Encoder" in page and "--flow maf --quick" in page
    assert not Path("run/figures/training.png").exists() and Path("run/figures/bounds.png").exists()
    before = Path("run/results.json").read_text()
    gae("compare", "images.npy", *WITH_ENCODER, *COMPARED, "--resume")
    assert json.loads(before)["trainings"] == json.loads(Path("run/results.json").read_text())["trainings"]
    other = gae("compare", "images.npy", *OWN, *COMPARED, "--resume", code=2)
    assert "holds another comparison: given was" in other


def test_a_comparison_of_a_given_decoder_refuses_what_it_cannot_use(own: dict[str, Any]) -> None:
    for options, said in (
        (("--engines", "amortised"), "is for decoders that are trained"),
        (("--seeds", "2"), "seeds=2 is for decoders that are trained"),
        (("--systems", "pca"), "is for the comparison of engines"),
        (("--flow", "realnvp"), "Unknown flow 'realnvp'. Valid flows: maf, iaf, nsf"),
        (("--encoder", "own_models:Encoder", "--wide"), "that of the given Encoder is not known"),
        (("--encoder", "own_models:Point"), "needs an encoder with a density q(z|x), got one that returns codes"),
    ):
        command = ("--decoder", "own_models:decoder", "--latent", "2", "--scale", "0.3", *COMPARED)
        assert said in gae("compare", "images.npy", *command, *options, code=2)
    assert "--scale is for a model of your own" in gae("compare", "images.npy", "--scale", "1", *COMPARED, code=2)
    np.save("table.npy", images(20).reshape(20, -1))
    standard = ("--decoder", "own_models:decoder", "--latent", "2", "--scale", "0.3", "--standardize", *COMPARED)
    assert "needs one of the data as given, got one in standard units" in gae("compare", "table.npy", *standard, code=2)
    data = load_data("images.npy")
    with pytest.raises(TypeError, match="needs a decoder under one of the heads"):
        compare(data, "run", model=ppca((1, 4, 4), latent=2))
    assert not Path("run").exists()


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_codes_of_your_own_decoder_in_every_format(suffix: str) -> None:
    """With an engine by name and a stated split, in the order of the file."""
    Path("rule").write_text("3\n1\n")
    options = (*WITH_ENCODER, "--engine", "encoder", "--split-by", "file:rule")
    gae("encode", "images.npy", *options, "-o", "codes.npz")
    gae("encode", "images.npy", *options, "-o", f"codes{suffix}")
    with np.load("codes.npz") as arrays:
        assert np.flatnonzero(arrays["split"] == "test").tolist() == [1, 3]
        if suffix == ".npy":
            assert np.array_equal(np.load("codes.npy"), arrays["z"])
            return
        rows = (
            pd.read_csv("codes.csv", float_precision="round_trip")
            if suffix == ".csv"
            else pd.read_parquet("codes.parquet")
        )
        assert list(rows) == ["index", "split", "z0", "z1", "log_joint", "log_q"]
        assert np.array_equal(rows[["z0", "z1"]].to_numpy(np.float32), arrays["z"])
        assert np.array_equal(rows["split"], arrays["split"])


@pytest.mark.slow
def test_rows_of_your_own_decoder(own: dict[str, Any]) -> None:
    """Features, reconstructions, and log p(x) against the integral over a grid of codes."""
    refined = ("images.npy", *WITH_ENCODER, "--engine", "refine")
    for name, file in (("encode", "codes.npz"), ("transform", "features.npy"), ("reconstruct", "again.npy")):
        gae(name, *refined, "-o", file)
    z = np.load("features.npy")
    with np.load("codes.npz") as codes, torch.no_grad():
        assert np.array_equal(z, codes["z"])
        wanted = own["decoder"](torch.from_numpy(z)).reshape(-1, 1, 4, 4)
    np.testing.assert_allclose(np.load("again.npy"), wanted.numpy(), rtol=1e-5, atol=1e-6)
    gae("score", "images.npy", *OWN, "-o", "scores.npz")
    with np.load("scores.npz") as scores:
        error, sampling = scores["log_p"] - log_evidence(own["decoder"]), scores["standard_error"]
    assert (abs(error) < 5 * sampling + 0.05).all()


def log_evidence(decoder: torch.nn.Module, step: float = 0.05) -> np.ndarray:
    """log p(x) of the images under the scale 0.3, by quadrature over two-dimensional codes."""
    axis = torch.arange(-7, 7, step)
    z, x = torch.cartesian_prod(axis, axis), torch.from_numpy(images(20)).flatten(1).double()
    with torch.no_grad():
        squares = torch.cdist(x, decoder(z).double()).square()
    joint = -squares / (2 * 0.3**2) - z.double().square().sum(-1) / 2 + 2 * np.log(step)
    constant = 8 * np.log(2 * np.pi * 0.3**2) + np.log(2 * np.pi)
    return (joint.logsumexp(-1) - constant).numpy()


LINEAR = ("--decoder", "own_models:linear", "--latent", "2", "--scale", "0.3", "--weights", "linear.pt")
STEP = ("--steps", 1, "--lr", 0.05, "--split-by", "file:rule", "--out", "run", "--quiet", "--json")


def evidence(decoder: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """log p(x) of a linear decoder with the scale 0.3."""
    covariance = decoder.weight @ decoder.weight.T + 0.09 * torch.eye(len(decoder.weight))
    return torch.distributions.MultivariateNormal(decoder.bias, covariance).log_prob(x.flatten(1))


@pytest.mark.usefixtures("unchecked_types")
def test_training_of_your_own_decoder() -> None:
    """The Laplace evidence of a linear decoder is log p(x), and Adam's first step has the signs of its gradient."""
    Path("rule").write_text("test\n" * 4 + "train\n" * 16)
    decoder, x = torch.nn.Linear(2, 16), torch.from_numpy(images(20))
    torch.save(decoder.state_dict(), "linear.pt")
    loss = -evidence(decoder, x[4:]).mean()
    loss.backward()
    results = json.loads(gae("fit", "images.npy", *LINEAR, "--engine", "gauss-newton", *STEP))
    assert results["training loss (nats)"] == pytest.approx(loss.item(), rel=1e-4)
    assert results["decoder"] == "own_models:linear" and "--engine gauss-newton" in results["options"]
    with torch.no_grad():
        for parameter in decoder.parameters():
            assert parameter.grad is not None
            parameter -= 0.05 * parameter.grad.sign()
    said = gae("encode", "run", "images.npy", "-o", "codes.npz", code=2)
    assert "built by own_models:linear" in said and "--trust own_models:linear" in said
    trusted = ("run", "images.npy", "--trust", "own_models:linear")
    for name, file in (("encode", "codes.npz"), ("reconstruct", "again.npy"), ("score", "scores.npz")):
        gae(name, *trusted, "-o", file)
    weight, noise = decoder.weight.detach(), 0.09 * torch.eye(2)
    z = (x.flatten(1) - decoder.bias.detach()) @ weight @ torch.linalg.inv(weight.T @ weight + noise)
    with np.load("codes.npz") as codes, np.load("scores.npz") as scores, torch.no_grad():
        np.testing.assert_allclose(codes["z"], z, atol=1e-4)
        np.testing.assert_allclose(np.load("again.npy"), decoder(z).reshape(x.shape), atol=1e-4)
        np.testing.assert_allclose(scores["log_p"], evidence(decoder, x), atol=2e-3)
        np.testing.assert_allclose(load("run", trusted=["own_models:linear"]).encode(x).point, z, atol=1e-4)
    account = json.loads(gae("gap", *trusted, "-n", 3, "--samples", 200, "--draws", 8, "--out", "gap", "--json"))
    assert account["results"]["inference gap"]["mean"] == pytest.approx(0, abs=0.05)


def observed_evidence(decoder: torch.nn.Linear, log_scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """log p of the observed elements of each row under a linear decoder."""
    covariance = decoder.weight @ decoder.weight.T + torch.diag((2 * log_scale).exp().expand(x.shape[1]))
    rows = []
    for row in x:
        seen = ~row.isnan()
        law = torch.distributions.MultivariateNormal(decoder.bias[seen], covariance[seen][:, seen])
        rows.append(law.log_prob(row[seen]))
    return torch.stack(rows)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("learn", ["scalar", "pixel"])
@pytest.mark.parametrize(
    "prepared",
    [("--standardize",), ("--missing", "mask"), ("--standardize", "--missing", "mask"), ()],
    ids=lambda given: " ".join(given),
)
def test_training_on_prepared_data_with_a_learned_scale(prepared: tuple[str, ...], learn: str) -> None:
    """log p of a linear decoder, of the data as given and of what was observed, and Adam's first step from it."""
    Path("rule").write_text("test\n" * 4 + "train\n" * 16)
    decoder, x = torch.nn.Linear(2, 16), torch.from_numpy(images(20)).flatten(1)
    torch.save(decoder.state_dict(), "linear.pt")
    loc, unit = torch.zeros(16), torch.ones(16)
    if "--standardize" in prepared:
        x = 5 + x * torch.arange(1.0, 17.0) ** 2
    if "mask" in prepared:
        x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = torch.nan
    if "--standardize" in prepared:
        loc, unit = (torch.from_numpy(f(x[4:].numpy(), axis=0)) for f in (np.nanmean, np.nanstd))
    np.save("table.npy", x.numpy())
    u, volume = (x - loc) / unit, torch.where(x.isnan(), 0, unit.log()).sum(1)
    log_scale = torch.full((16,) if learn == "pixel" else (), np.log(0.3)).requires_grad_()
    loss = (volume[4:] - observed_evidence(decoder, log_scale, u[4:])).mean()
    loss.backward()
    options = ("--engine", "gauss-newton", "--learn", learn, *prepared)
    results = json.loads(gae("fit", "table.npy", *LINEAR, *options, *STEP))
    assert results["training loss (nats)"] == pytest.approx(loss.item(), rel=1e-4)
    with torch.no_grad():
        for parameter in (*decoder.parameters(), log_scale):
            assert parameter.grad is not None
            parameter -= 0.05 * parameter.grad.sign()
        wanted = observed_evidence(decoder, log_scale, u) - volume
    trusted = ("run", "table.npy", "--trust", "own_models:linear")
    gae("score", *trusted, "-o", "scores.npz")
    gae("reconstruct", *trusted, "-o", "again.npy")
    assert np.isfinite(np.load("again.npy")).all()
    with np.load("scores.npz") as scores:
        np.testing.assert_allclose(scores["log_p"], wanted, rtol=1e-4, atol=5e-3)


def test_a_table_with_holes_under_your_own_decoder() -> None:
    """Codes, log p and imputed values of what was observed, with names and labels left out of x."""
    decoder, x = torch.nn.Linear(2, 16), torch.from_numpy(images(20)).flatten(1)
    torch.save(decoder.state_dict(), "linear.pt")
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = torch.nan
    rows = pd.DataFrame(x.double().numpy(), columns=[f"c{i}" for i in range(16)])
    rows.assign(name=[f"row {i}" for i in range(20)], kind=["a", "b"] * 10).to_csv("table.csv", index=False)
    given = ("table.csv", *LINEAR, "--engine", "gauss-newton")
    assert "Leave it out by drop=['name'] (--drop 'name')" in gae("encode", *given, "-o", "codes.npz", code=2)
    prepared = ("--drop", "name", "--labels", "kind", "--missing", "mask")
    for name, file in (("encode", "codes.npz"), ("score", "scores.npz"), ("reconstruct", "again.npy")):
        gae(name, *given, *prepared, "-o", file)
    wanted = []
    for row in x:
        seen = ~row.isnan()
        weight = decoder.weight[seen]
        wanted.append(
            torch.linalg.solve(weight.T @ weight + 0.09 * torch.eye(2), weight.T @ (row - decoder.bias)[seen])
        )
    z = torch.stack(wanted).detach()
    with np.load("codes.npz") as codes, np.load("scores.npz") as scores, torch.no_grad():
        np.testing.assert_allclose(codes["z"], z, atol=1e-4)
        assert codes["labels"].tolist() == ["a", "b"] * 10
        np.testing.assert_allclose(np.load("again.npy"), decoder(z), atol=1e-4)
        log_p = observed_evidence(decoder, torch.tensor(np.log(0.3)), x)
        assert (np.abs(scores["log_p"] - log_p.numpy()) < 5 * scores["standard_error"] + 1e-3).all()
    few = ("-n", 3, "--samples", 200, "--draws", 8, "--out", "gap")
    gae("gap", *given, *prepared, *few)
    assert "--labels kind --drop name --missing mask" in Path("gap/gap.html").read_text()
    said = gae("encode", "run", "table.csv", "--missing", "mask", "-o", "codes.npz", code=2)
    assert "--missing is for data of a model of your own (--decoder)" in said


@pytest.mark.parametrize("engine", ["encoder", "refine"])
def test_training_with_your_own_encoder(engine: str, own: dict[str, Any]) -> None:
    """An exported decoder, whose graph the checkpoint keeps: parameters and codes are those of ``fit`` in Python."""
    program = torch.export.export(own["decoder"], (torch.zeros(3, 2),), dynamic_shapes=({0: torch.export.Dim("N")},))
    torch.export.save(program, "decoder.pt2")
    Path("rule").write_text("test\n" * 4 + "train\n" * 16)
    exported = ("--decoder", "decoder.pt2", "--scale", "0.3", "--encoder", "own_models:Encoder", *OWN[-2:])
    gae("fit", "images.npy", *exported, "--engine", engine, *STEP)
    Path("decoder.pt2").unlink()
    trained = load("run", trusted=["own_models:Encoder"])
    model = trainable(from_decoder(own["decoder"], (1, 4, 4), 2, scale=0.3, encoder=own["encoder"]), engine)
    x = torch.from_numpy(images(20))
    fit(model, x[4:], steps=1, optimizer=partial(torch.optim.Adam, lr=0.05), progress=False)
    for one, other in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    gae("encode", "run", "images.npy", "--trust", "own_models:Encoder", "-o", "codes.npz")
    torch.manual_seed(0)
    with np.load("codes.npz") as codes, torch.no_grad():
        np.testing.assert_allclose(codes["z"], model.eval().encode(x).point, rtol=1e-5, atol=1e-6)


UNTRAINED = [
    (OWN, "has no maximiser under N(0, I)"),
    ((*OWN[:6], "--encoder", "own_models:Point"), "returns codes"),
    ((*OWN, "--engine", "lbfgs"), "Cannot train by the engine 'lbfgs'. Choose one of encoder, refine, gauss-newton"),
    ((*WITH_ENCODER, "--engine", "gauss-newton"), "Leave the encoder (--encoder) out"),
    ((*OWN, "--option", "latent=2"), "--option is for a system, got latent=2 with --decoder"),
    (("vae", *OWN), "leave vae out"),
    ((*WITH_ENCODER, "--missing", "mask"), "and the encoder returns NaN for them: it takes no mask"),
    ((*OWN[:4], "--head", "bernoulli", "--learn", "scalar"), "has no scale, so there is none to learn"),
    ((*WITH_ENCODER, "--learn", "both"), "must be one of fixed, scalar, pixel, got 'both'"),
    (("--learn", "scalar"), "--learn is for a model of your own"),
    ((*LINEAR[:1], "own_models:instance", *OWN[2:], "--engine", "gauss-newton"), "could not be loaded"),
    ((*LINEAR[:1], "own_models:training", *OWN[2:6], "--engine", "gauss-newton"), "holds Dropout ('1')"),
    (("--engine", "encoder"), "--engine is for a decoder of your own (--decoder)"),
    (("--latent", "2"), "--latent is for a model of your own"),
    ((), "Give a system and data, or --decoder and data. Got images.npy alone"),
]


@pytest.mark.parametrize("arguments, said", UNTRAINED, ids=[said for _, said in UNTRAINED])
def test_trainings_that_are_refused(arguments: tuple[str, ...], said: str) -> None:
    given = (*arguments, "images.npy") if arguments[:1] == ("vae",) else ("images.npy", *arguments)
    assert said in gae("fit", *given, "--out", "run", code=2)
    assert not Path("run").exists()
