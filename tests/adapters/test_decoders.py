"""Autoencoders of given decoders: their numbers, and every error at the door."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from own import images, networks, written
from scipy.stats import multivariate_normal
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

from gae import log_evidence
from gae.adapters import check_curvature, from_decoder, read_network
from gae.analysis.engines import ENGINES, engine_of
from gae.analysis.inference_gap import inference_gap, lower_bound, one_row
from gae.data import Dataset
from gae.inference import Amortized, Ascent, Status
from gae.inference.laws import point_of
from gae.likelihood import LinearMixture
from gae.nets import Standardized
from gae.systems import vae

SHAPE = (1, 4, 4)
STATISTICS = np.nanmean, np.nanstd


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return written(tmp_path, monkeypatch)


def affine(z: int = 2, x: int = 5) -> nn.Linear:
    return nn.Linear(z, x).double()


def test_a_linear_decoder_has_the_posterior_of_bayes() -> None:
    """x ~ N(W z + b, s²), z ~ N(0, I): mean, log p(x), and no gap of the full covariance, in closed form."""
    decoder, x, s = affine(), torch.randn(4, 5, dtype=torch.float64), 0.5
    model = from_decoder(decoder, (5,), 2, scale=s)
    precision = torch.eye(2) + decoder.weight.mT @ decoder.weight / s**2
    mean = (x - decoder.bias) @ decoder.weight @ torch.linalg.inv(precision) / s**2
    marginal = MultivariateNormal(decoder.bias, decoder.weight @ decoder.weight.mT + s**2 * torch.eye(5))
    for name in ("lbfgs", "adam", "gauss-newton"):
        encoding = model.encode(x, engine_of(name, model))
        assert torch.allclose(encoding.point, mean, atol=5e-3)  # a gain of 1e-5 nats is a step of that order
        assert encoding.solve is not None and bool((encoding.solve.status == Status.converged).all())
    gap = inference_gap(model, x, samples=1000, draws=100)
    assert torch.allclose(gap.evidence.log_p, marginal.log_prob(x), atol=0.05)
    laplace = engine_of("lbfgs", model, density=True)(model.likelihood, x).q
    assert laplace is not None
    assert torch.allclose(laplace.variance[0], torch.linalg.inv(precision).diagonal().expand(4, 2))


@pytest.mark.parametrize("kind", ["path", "array", "tensor", "frame", "shape"])
def test_data_are_whatever_load_takes(kind: str, tmp_path: Path) -> None:
    """The same model: log p(x) by SciPy's density of its marginal."""
    x, decoder = np.random.default_rng(0).normal(size=(12, 5)).astype("f4"), nn.Linear(2, 5)
    np.save(tmp_path / "x.npy", x)
    sources = {
        "path": tmp_path / "x.npy",
        "array": x,
        "tensor": torch.from_numpy(x),
        "frame": pd.DataFrame(x, columns=list("abcde")),
        "shape": [5],
    }
    model = from_decoder(decoder, sources[kind], 2, scale=0.5, encoder=None if kind == "shape" else nn.Linear(5, 2))
    weight, bias = (value.detach().double().numpy() for value in (decoder.weight, decoder.bias))
    marginal = multivariate_normal(bias, weight @ weight.T + 0.25 * np.eye(5))
    evidence = log_evidence(model, torch.from_numpy(x))
    error = np.abs(evidence.log_p.numpy() - marginal.logpdf(x))
    assert (error < 5 * evidence.standard_error.numpy() + 1e-3).all()


def test_data_that_are_neither_data_nor_a_shape() -> None:
    with pytest.raises(TypeError, match=r"from_decoder takes data, .* or the shape of one observation, .* got 5"):
        from_decoder(nn.Linear(2, 5), 5, 2, scale=0.5)
    with pytest.raises(FileNotFoundError, match=r"No file nowhere\.npy"):
        from_decoder(nn.Linear(2, 5), "nowhere.npy", 2, scale=0.5)


def test_a_linear_decoder_of_prepared_data_has_the_posterior_of_bayes() -> None:
    """In standard units, and of the observed elements: x = loc + unit (W z + b + s ε), by SciPy's density."""
    decoder, s = affine(), 0.5
    x = torch.randn(30, 5, dtype=torch.float64) * torch.tensor([1.0, 10, 100, 0.1, 5]) + 3
    weight, bias = decoder.weight.detach().numpy(), decoder.bias.detach().numpy()
    for standardize, missing in ((True, False), (False, True), (True, True)):
        values = x.masked_fill(torch.rand_like(x) < 0.3, torch.nan) if missing else x
        data = Dataset("table", values, values, None, None, (-1e4, 1e4), missing=missing, standardize=standardize)
        model = from_decoder(decoder, data, 2, scale=s)
        loc, unit = (f(values.numpy(), axis=0) if standardize else np.full(5, i) for i, f in enumerate(STATISTICS))
        loadings, mean = unit[:, None] * weight, loc + unit * bias
        covariance = loadings @ loadings.T + np.diag(unit * s) ** 2
        log_p, codes = [], []
        for row in values.numpy():
            seen = ~np.isnan(row)
            part = covariance[np.ix_(seen, seen)]
            log_p.append(multivariate_normal(mean[seen], part).logpdf(row[seen]) if seen.any() else 0.0)
            codes.append(loadings[seen].T @ np.linalg.solve(part, (row - mean)[seen]))
        encoding = model.encode(values, engine_of("gauss-newton", model, density=True))
        np.testing.assert_allclose(encoding.point.detach(), np.stack(codes), atol=1e-6)
        evidence = model.likelihood.log_joint(values, encoding.point[None])[0] - encoding.q.log_prob(encoding.point)
        np.testing.assert_allclose(evidence.detach().squeeze(), log_p, rtol=1e-8)  # Laplace's approximation is exact


def test_an_encoder_is_given_the_units_and_the_mask_of_the_decoder(own: dict[str, Any]) -> None:
    x = torch.from_numpy(images(6)).flatten(1) * 100
    seen: list[torch.Tensor] = []

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = Standardized(nn.Linear(32, 2), 16, missing=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return self.layers(x)

    units = Dataset("table", x, x, None, None, (0.0, 100.0), standardize=True)
    model = from_decoder(own["decoder"], units, 2, scale=0.3, encoder=Encoder())
    model.encode(x)
    torch.testing.assert_close(seen[-1], (x - x.mean(0)) / x.std(0, correction=0))
    holes = Dataset("table", x.masked_fill(x > 50, torch.nan), x, None, None, (0.0, 100.0), missing=True)
    model = from_decoder(own["decoder"], holes, 2, scale=0.3, encoder=Encoder())
    assert bool(model.encode(holes.train).point.isfinite().all())
    with pytest.raises(ValueError, match="returns NaN for them: it takes no mask"):
        from_decoder(own["decoder"], holes, 2, scale=0.3, encoder=nn.Linear(16, 2))


def test_codes_of_any_shape_are_vectors() -> None:
    """A decoder of maps (2, 2, 2) is that of vectors of eight elements in row-major order."""
    torch.manual_seed(0)
    maps = nn.Sequential(nn.Conv2d(2, 1, 1), nn.Flatten()).double()
    flat = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), maps)
    x = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    one, other = (from_decoder(d, (1, 2, 2), z, scale=0.3) for d, z in ((maps, (2, 2, 2)), (flat, 8)))
    assert one.likelihood.latent_shape == (8,) and torch.equal(one.encode(x).point, other.encode(x).point)


def test_probabilities_become_logits() -> None:
    torch.manual_seed(0)
    logits = affine()
    x = (torch.rand(6, 5, dtype=torch.float64) > 0.5).double()
    z = torch.randn(1, 6, 2, dtype=torch.float64)
    plain = from_decoder(logits, (5,), 2, head="bernoulli").likelihood
    through = from_decoder(nn.Sequential(logits, nn.Sigmoid()), (5,), 2, head="bernoulli", activated=True).likelihood
    assert torch.allclose(plain.log_joint(x, z), through.log_joint(x, z), rtol=1e-10)
    with pytest.raises(ValueError, match="takes logits, but all outputs of the decoder lie in"):
        from_decoder(nn.Sequential(logits, nn.Sigmoid()), (5,), 2, head="bernoulli")
    counts, rates = torch.tensor([[0.0, 3, 1, 2, 0]]).double(), nn.Sequential(logits, nn.Softplus())
    expected = torch.distributions.Poisson(rates(z[0, :1])).log_prob(counts).sum(1) + Normal(0, 1).log_prob(
        z[0, :1]
    ).sum(1)
    poisson = from_decoder(rates, (5,), 2, head="poisson", activated=True).likelihood
    assert torch.allclose(poisson.log_joint(counts, z[:, :1])[0], expected)
    with pytest.raises(ValueError, match="has no activation to undo"):
        from_decoder(logits, (5,), 2, scale=1.0, activated=True)


DECODERS = [
    ("bare", ValueError, "Tanh has no parameters"),
    ("half", ValueError, "all be float32 or all float64, on one device; got cpu, torch.float16"),
    ("mixed", ValueError, "got cpu, torch.float32, torch.float64"),
    ("narrow", ValueError, r"shape \(1, 4, 4\), but an output of the decoder has \(15,\)"),
    ("channels_last", ValueError, r"an output of the decoder has \(2, 2, 4\)"),
    ("Wide", TypeError, "returned torch.float64 for torch.float32"),
    ("Single", ValueError, r"outputs of shape \(1, 16\) for a batch of 3"),
    ("Pair", TypeError, "must return a tensor, got tuple"),
    ("Broken", ValueError, "not finite at codes drawn"),
    ("Dropped", ValueError, "gives a different output each time"),
    ("Coupled", ValueError, "does not depend on the rest of its batch"),
    ("Normed", ValueError, r"holds BatchNorm1d \('layers.1'\)"),
    ("Detached", ValueError, "No gradient reaches a code"),
    ("Numpy", ValueError, "cannot be differentiated: RuntimeError"),
    ("Point", ValueError, r"does not accept a batch of 1 codes of shape \(2,\): RuntimeError"),
]


@pytest.mark.parametrize("name, error, said", DECODERS, ids=[name for name, *_ in DECODERS])
def test_a_decoder_that_does_not_fit_is_refused(name: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        from_decoder(read_network(f"own_models:{name}"), SHAPE, 2, scale=1.0)


@pytest.mark.parametrize("name", ["Baked", "Once"])
def test_a_decoder_of_one_precision_or_one_derivative_is_refused_where_both_are_needed(name: str) -> None:
    model = from_decoder(read_network(f"own_models:{name}"), SHAPE, 2, scale=1.0)
    x = torch.rand(2, *SHAPE)
    assert model.encode(x).point.shape == (2, 2)
    with pytest.raises(ValueError, match=r"has no second derivatives in torch\.float64: RuntimeError"):
        check_curvature(model.double(), x.double())


@pytest.mark.usefixtures("unchecked_types")
def test_options_that_do_not_fit_are_refused() -> None:
    decoder, _ = networks()
    for options, said in (
        ({}, "needs the scale of the noise"),
        ({"scale": -1.0}, "scale must be positive"),
        ({"head": "bernoulli", "scale": 1.0}, "has no scale"),
        ({"head": "normal"}, "Unknown head"),
    ):
        with pytest.raises(ValueError, match=said):
            from_decoder(decoder, SHAPE, 2, **options)
    for latent, said in ((None, "shape of a code is not known"), (0, "latent must be positive")):
        with pytest.raises(ValueError, match=said):
            from_decoder(decoder, SHAPE, latent, scale=1.0)
    dropping = nn.Sequential(nn.Linear(2, 16), nn.Dropout())
    with pytest.raises(ValueError, match=r"holds Dropout \('1'\)"):
        from_decoder(dropping, SHAPE, 2, scale=1.0)
    assert from_decoder(dropping.eval(), SHAPE, 2, scale=1.0).likelihood.event_shape == SHAPE
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got method"):
        from_decoder(decoder.forward, SHAPE, 2, scale=1.0)  # type: ignore[arg-type]


ENCODERS = [
    ("Tuple", TypeError, "must return a distribution over codes, or codes, got tuple"),
    ("narrow_encoder", ValueError, r"codes of shape \(3,\), but those of the decoder have 2"),
    ("Noisy", ValueError, "gives another output each time"),
    ("decoder", ValueError, r"does not accept observations of shape \(3, 1, 4, 4\)"),
    ("bare", ValueError, "has no parameters"),
]


@pytest.mark.parametrize("name, error, said", ENCODERS, ids=[name for name, *_ in ENCODERS])
def test_an_encoder_that_does_not_fit_is_refused(name: str, error: type[Exception], said: str) -> None:
    encoder = read_network(f"own_models:{name}", "encoder")
    with pytest.raises(error, match=said):
        from_decoder(networks()[0], SHAPE, 2, scale=1.0, encoder=encoder)


class Law(nn.Module):
    """An encoder with a given law of the mean that a linear map computes."""

    def __init__(self, law: Any) -> None:
        super().__init__()
        self.linear, self.law = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), law

    def forward(self, x: torch.Tensor) -> Any:
        return self.law(self.linear(x))


def test_encoders_of_laws_in_any_shape() -> None:
    decoder, x = nn.Linear(4, 16), torch.rand(3, *SHAPE)
    factor = torch.eye(4) + 0.1
    laws = {
        "elements in the batch": lambda mean: Normal(mean.view(-1, 2, 2), 0.5),
        "elements in the event": lambda mean: Independent(Normal(mean.view(-1, 2, 2), 0.5), 2),
        "full": lambda mean: MultivariateNormal(mean, scale_tril=factor.tril()),
    }
    for law in laws.values():
        encoder = Law(law)
        q = from_decoder(decoder, SHAPE, 4, scale=1.0, encoder=encoder).encode(x).q
        assert q is not None and (q.batch_shape, q.event_shape) == ((3,), (4,))
        assert torch.allclose(q.mean, encoder.linear(x))
    with pytest.raises(ValueError, match="One density over 4 elements is needed for each of 3 observations"):
        from_decoder(decoder, SHAPE, 4, scale=1.0, encoder=Law(lambda mean: Normal(mean[0], 1.0)))


def test_engines_of_a_model_with_an_encoder(own: dict[str, Any]) -> None:
    model = from_decoder(own["decoder"], SHAPE, 2, scale=0.3, encoder=own["encoder"])
    x = torch.from_numpy(images(6))
    joint = {name: model.encode(x, engine_of(name, model)) for name in ENGINES}
    q = own["encoder"](x)
    assert torch.equal(joint["encoder"].point, q.loc)
    best = joint["lbfgs"].log_joint
    assert bool((best >= model.likelihood.log_joint(x, q.loc[None]) - 1e-4).all())
    given, refined = joint["encoder"].q, joint["refine"].q
    assert given is not None and refined is not None and not torch.allclose(point_of(refined), q.loc)
    before, after = (lower_bound(model.likelihood, x, one_row(density), draws=400) for density in (given, refined))
    error = (before.standard_error.square() + after.standard_error.square()).sum().sqrt() / len(x)
    assert float((after.value - before.value).mean()) > -4 * float(error)


def test_engines_of_any_model() -> None:
    model, x = vae((5,), latent=2), torch.randn(3, 5)
    assert engine_of("encoder", model) is model.inference and isinstance(model.inference, Amortized)
    ascent = engine_of("adam", model, steps=3)
    assert isinstance(ascent, Ascent) and ascent.max_steps == 3
    point = from_decoder(nn.Linear(2, 5), (5,), 2, scale=1.0, encoder=nn.Linear(5, 2))
    start, end = (point.encode(x, engine_of(name, point)) for name in ("encoder", "refine"))
    assert start.q is None and end.q is None and bool((end.log_joint > start.log_joint).all())


@pytest.mark.parametrize(
    "name, steps, said",
    [
        ("newton", None, "Valid engines: lbfgs, adam, gauss-newton, encoder, refine"),
        ("encoder", 3, "takes no steps"),
    ],
)
def test_engines_that_do_not_exist_are_refused(name: str, steps: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        engine_of(name, vae((5,), latent=2), steps)


def test_an_encoder_is_needed_to_encode_by_it() -> None:
    model = from_decoder(nn.Linear(2, 5), (5,), 2, scale=1.0)
    with pytest.raises(ValueError, match="needs an encoder, but this model is encoded by Ascent"):
        engine_of("refine", model)


def test_data_give_shape_and_probes(own: dict[str, Any]) -> None:
    x = torch.from_numpy(images(8))
    data = Dataset("images", x[:6], x[6:], None, None, (0.0, 1.0))
    model = from_decoder(own["decoder"], data, 2, scale=math.e, encoder=own["encoder"])
    assert model.likelihood.event_shape == SHAPE
    assert float(model.likelihood.scale) == pytest.approx(math.e)  # type: ignore[arg-type]
    assert not isinstance(model.likelihood, LinearMixture)
