"""LinearMixture against normal and mixture densities written separately, in float64 with numpy and scipy."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from scipy.special import logsumexp as log_sum_exp
from scipy.stats import multivariate_normal, norm
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gae import Autoencoder
from gae.inference import Argmax, Ascent, ClosedForm, Code, Enumerate, Inference
from gae.likelihood import LinearMixture
from gae.objective import Objective, elbo, joint, logsumexp
from gae.training import fit

Shape = tuple[int, ...]


def mixture(components: int, latent: int, event: Shape = (5,), seed: int = 0, **options: Any) -> LinearMixture:
    """A generic float64 mixture: oblique loadings, unequal scales and weights."""
    torch.manual_seed(seed)
    model = LinearMixture(components, latent, event, **options).double()
    for value in (model.means, model.loadings, model.log_scale, model.logits):
        value.data.copy_(torch.randn(value.shape, dtype=torch.float64))
    model.log_scale.data.mul_(0.3)
    model.initialized.fill_(True)
    return model


def observations(model: LinearMixture, batch: int = 6) -> Tensor:
    return 2 * torch.randn(batch, *model.event_shape, dtype=torch.float64)


# The oracle: the same model as arrays, its densities by scipy.


@dataclass(frozen=True)
class Chart:
    log_weight: float
    mean: np.ndarray  # (D,)
    loadings: np.ndarray  # (D, E)
    scale: float

    @property
    def covariance(self) -> np.ndarray:
        return self.loadings @ self.loadings.T + self.scale**2 * np.eye(len(self.mean))

    def log_marginal(self, x: np.ndarray) -> np.ndarray:
        return self.log_weight + np.atleast_1d(multivariate_normal.logpdf(x, self.mean, self.covariance))

    def log_joint(self, x: np.ndarray, z: np.ndarray, flat_prior: bool) -> float:
        log_prior = 0.0 if flat_prior else norm.logpdf(z).sum()
        return self.log_weight + log_prior + norm.logpdf(x, self.mean + self.loadings @ z, self.scale).sum()

    def posterior(self, x: np.ndarray, flat_prior: bool) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of z given x: by least squares, or by conditioning the joint normal of (z, x)."""
        residual = x - self.mean
        if flat_prior:
            mean = np.linalg.lstsq(self.loadings, residual, rcond=None)[0]
            return mean, self.scale**2 * np.linalg.inv(self.loadings.T @ self.loadings)
        gain = self.loadings.T @ np.linalg.inv(self.covariance)
        return gain @ residual, np.eye(self.loadings.shape[1]) - gain @ self.loadings


def charts(model: LinearMixture) -> list[Chart]:
    weights = np.exp(array(model.logits))
    parts = (array(model.means), array(model.loadings), np.exp(array(model.log_scale)), np.log(weights / weights.sum()))
    return [Chart(float(w), mean, loadings.T, float(s)) for mean, loadings, s, w in zip(*parts, strict=True)]


def array(value: Tensor) -> np.ndarray:
    return value.detach().double().numpy()


def flat(x: Tensor) -> np.ndarray:
    return array(x).reshape(len(x), -1)


def log_evidence(model: LinearMixture, x: Tensor) -> np.ndarray:
    return log_sum_exp([chart.log_marginal(flat(x)) for chart in charts(model)], axis=0)


def assert_close(found: Tensor, wanted: np.ndarray, tolerance: float = 1e-10) -> None:
    found = array(found)
    assert found.shape == np.shape(wanted)
    assert np.allclose(found, wanted, rtol=tolerance, atol=tolerance), f"off by {np.abs(found - wanted).max():.3g}"


SIZES = [(k, e) for k in (1, 2, 3, 4) for e in (0, 1, 2, 3)]
sizes = pytest.mark.parametrize(("components", "latent"), SIZES)


@dataclass(frozen=True)
class Problem:
    """A model and a batch, by numbers that hypothesis can shrink."""

    components: int
    latent: int
    event: Shape
    batch: int
    seed: int
    options: dict[str, bool]

    def build(self) -> tuple[LinearMixture, Tensor]:
        model = mixture(self.components, min(self.latent, math.prod(self.event)), self.event, self.seed, **self.options)
        return model, observations(model, self.batch)


def problems(*flags: str) -> st.SearchStrategy[Problem]:
    """Any K, E <= D, event shape and batch size; ``flags`` are the options of the mixture to vary."""
    return st.builds(
        Problem,
        components=st.integers(1, 4),
        latent=st.integers(0, 3),
        event=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
        batch=st.integers(1, 4),
        seed=st.integers(0, 1000),
        options=st.fixed_dictionaries({flag: st.booleans() for flag in flags}),
    )


# Densities.


@given(problems("flat_prior", "learn_weights"))
def test_log_joint_of_a_component(problem: Problem) -> None:
    model, x = problem.build()
    z = torch.randn(3, len(x), *model.latent_shape, dtype=torch.float64)
    k = torch.randint(model.components, (3, len(x)))
    wanted = [
        [charts(model)[k[s, b]].log_joint(flat(x)[b], array(z)[s, b], model.flat_prior) for b in range(len(x))]
        for s in range(3)
    ]
    assert_close(model.log_joint(x, z, k), np.array(wanted))
    assert_close(model.bind(x)(z, k), np.array(wanted))


@given(problems("flat_prior", "learn_weights"))
def test_log_joint_of_a_branch(problem: Problem) -> None:
    """k (S, 1): one component for the whole batch, where ``bind`` uses Gram matrices."""
    model, x = problem.build()
    z = torch.randn(model.components, len(x), *model.latent_shape, dtype=torch.float64)
    k = torch.arange(model.components).unsqueeze(1)
    wanted = [
        [chart.log_joint(flat(x)[b], array(z)[s, b], model.flat_prior) for b in range(len(x))]
        for s, chart in enumerate(charts(model))
    ]
    assert_close(model.log_joint(x, z, k), np.array(wanted))
    assert_close(model.bind(x)(z, k), np.array(wanted))


@given(problems("flat_prior", "learn_weights"))
def test_log_joint_sums_components_out(problem: Problem) -> None:
    model, x = problem.build()
    z = torch.randn(2, len(x), *model.latent_shape, dtype=torch.float64)
    wanted = [
        [
            log_sum_exp([chart.log_joint(flat(x)[b], array(z)[s, b], model.flat_prior) for chart in charts(model)])
            for b in range(len(x))
        ]
        for s in range(2)
    ]
    assert_close(model.log_joint(x, z), np.array(wanted))
    assert_close(model.bind(x)(z), np.array(wanted))


@given(problems("flat_prior", "learn_weights"))
def test_posterior_over_codes(problem: Problem) -> None:
    model, x = problem.build()
    k = torch.randint(model.components, (2, len(x)))
    posterior = model.posterior(x, k)
    z = torch.randn(2, len(x), *model.latent_shape, dtype=torch.float64)
    assert posterior.batch_shape == (2, len(x)) and posterior.event_shape == model.latent_shape
    log_q = posterior.log_prob(z)
    for s in range(2):
        for b in range(len(x)):
            mean, covariance = charts(model)[k[s, b]].posterior(flat(x)[b], model.flat_prior)
            assert_close(posterior.mean[s, b], mean)
            density = multivariate_normal.logpdf(array(z)[s, b], mean, covariance) if len(mean) else 0.0
            assert_close(log_q[s, b], density, 1e-8)


@given(problems("learn_scale", "learn_weights"))
def test_evidence_and_responsibilities(problem: Problem) -> None:
    model, x = problem.build()
    marginals = np.stack([chart.log_marginal(flat(x)) for chart in charts(model)], 1)
    assert_close(model.log_evidence(x).log_p, log_evidence(model, x))
    assert_close(model.log_responsibilities(x), marginals - log_evidence(model, x)[:, None])


@sizes
def test_sizes_one_by_one(components: int, latent: int) -> None:
    """The grid K = 1..4, E = 0..3 that the random problems above only sample."""
    model = mixture(components, latent, (2, 3), learn_scale=True, learn_weights=True)
    x = observations(model)
    marginals = np.stack([chart.log_marginal(flat(x)) for chart in charts(model)], 1)
    assert_close(model.log_evidence(x).log_p, log_evidence(model, x))
    assert_close(model.log_responsibilities(x).exp(), np.exp(marginals - log_evidence(model, x)[:, None]))
    assert_close(
        model.posterior(x, torch.zeros(1, 1, dtype=torch.long)).mean[0],
        np.stack([charts(model)[0].posterior(row, False)[0] for row in flat(x)]),
    )


def test_responsibilities_under_a_flat_prior() -> None:
    """An improper prior has no evidence, but ∫ q(x|z, k) dz compares components: N(x; mean_k, ·) off the chart."""
    model = mixture(3, 2, flat_prior=True)
    x = observations(model)

    def log_integral(chart: Chart, row: np.ndarray) -> float:
        mean, covariance = chart.posterior(row, True)
        peak = chart.log_joint(row, mean, True)
        return peak + 0.5 * (2 * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1])

    values = np.array([[log_integral(chart, row) for chart in charts(model)] for row in flat(x)])
    assert_close(model.log_responsibilities(x), values - log_sum_exp(values, axis=1)[:, None])


@pytest.mark.parametrize("components", [1, 2, 3])
def test_evidence_is_the_integral_of_the_joint(components: int) -> None:
    model = mixture(components, 1, (3,))
    x = observations(model, 3)

    def density(z: float, row: int) -> float:
        code = torch.full((1, 1, 1), z, dtype=torch.float64)
        return model.log_joint(x[row : row + 1], code).exp().item()

    wanted = [math.log(integrate.quad(density, -12, 12, args=(row,), epsabs=0, limit=200)[0]) for row in range(len(x))]
    assert_close(model.log_evidence(x).log_p, np.array(wanted), 1e-7)


@pytest.mark.parametrize("latent", [1, 2, 3])
@pytest.mark.parametrize("samples", [None, 1, 7])
def test_ppca_log_joint_minus_log_q_is_the_evidence(latent: int, samples: int | None) -> None:
    model = mixture(1, latent, (2, 3), learn_scale=True)
    x = observations(model)
    encoding = ClosedForm(samples)(model, x)
    assert encoding.log_q is not None
    log_p = encoding.log_joint - encoding.log_q
    chart = charts(model)[0]
    normal = multivariate_normal.logpdf(flat(x), chart.mean, chart.covariance)
    assert_close(log_p, np.tile(normal, (samples or 1, 1)))
    assert log_p.std(0, correction=0).max() <= 1e-10


@pytest.mark.parametrize("samples", [None, 9])
def test_mixture_log_joint_minus_log_q_is_the_evidence(samples: int | None) -> None:
    model = mixture(3, 2)
    x = observations(model)
    encoding = ClosedForm(samples)(model, x)
    assert encoding.log_q is not None and encoding.k is not None
    assert samples is None or len(encoding.k.unique()) > 1
    assert_close(encoding.log_joint - encoding.log_q, np.tile(log_evidence(model, x), (samples or 1, 1)))


def test_samples_of_the_posterior_have_its_moments() -> None:
    model = mixture(2, 2)
    x = observations(model, 3)
    draws = 40_000
    code = ClosedForm(draws).infer(model, x)
    assert code.k is not None
    marginals = np.stack([chart.log_marginal(flat(x)) for chart in charts(model)], 1)
    weights = np.exp(marginals - log_sum_exp(marginals, axis=1)[:, None])
    moments = [[chart.posterior(row, False) for chart in charts(model)] for row in flat(x)]
    mean = np.array(
        [sum(w * m for w, (m, _) in zip(*pair, strict=True)) for pair in zip(weights, moments, strict=True)]
    )
    second = np.array(
        [
            sum(w * (np.diag(c) + m**2) for w, (m, c) in zip(*pair, strict=True))
            for pair in zip(weights, moments, strict=True)
        ]
    )
    share = (code.k == 0).double()
    for found, wanted in ((share, weights[:, 0]), (code.z, mean), (code.z.square(), second)):
        error = found.std(0) / math.sqrt(draws) + 1 / draws  # a component may be too rare for any draw
        assert ((found.mean(0) - torch.as_tensor(wanted)).abs() / error).max() < 4


def test_ledger_d02_a_density_exceeds_the_evidence() -> None:
    model = mixture(1, 1, (2,))
    model.means.data.zero_()
    model.loadings.data.copy_(torch.tensor([[[1.0, 2.0]]]))
    model.log_scale.data.fill_(math.log(0.1))
    x = torch.tensor([[0.5, 0.7]], dtype=torch.float64)
    best = joint(ClosedForm()(model, x)).item()
    evidence = model.log_evidence(x).log_p.item()
    precision = 1 + (1 + 4) / 0.1**2
    assert evidence == pytest.approx(-1.31307, abs=5e-6)
    assert best == pytest.approx(0.87630, abs=5e-6)
    assert evidence == pytest.approx(best + 0.5 * math.log(2 * math.pi) - 0.5 * math.log(precision), abs=1e-12)


def test_flat_prior_code_is_least_squares() -> None:
    model = mixture(1, 3, (4, 2), flat_prior=True)
    x = observations(model)
    chart = charts(model)[0]
    wanted = np.linalg.lstsq(chart.loadings, (flat(x) - chart.mean).T, rcond=None)[0].T
    assert_close(ClosedForm().infer(model, x).z[0], wanted)


def test_distribution_of_observations() -> None:
    """``forward``: a component's normal, and without k the mixture, whose mean is the weighted mean."""
    model = mixture(3, 2, (2, 2))
    z = torch.randn(4, 2, dtype=torch.float64)
    parts = charts(model)
    means = np.stack([chart.mean + array(z) @ chart.loadings.T for chart in parts])
    weights = np.exp([chart.log_weight for chart in parts])
    chosen = model(z, torch.tensor([2, 0, 1, 2]))
    assert chosen.batch_shape == (4,) and chosen.event_shape == (2, 2)
    assert_close(chosen.mean, means[[2, 0, 1, 2], range(4)].reshape(4, 2, 2))
    assert_close(chosen.stddev[:, 0, 0], np.array([parts[k].scale for k in (2, 0, 1, 2)]))
    assert_close(model(z).mean, np.tensordot(weights, means, 1).reshape(4, 2, 2))


# Closed-form learning.


@dataclass(frozen=True)
class Alternation:
    """A model with its engine, the objective that no round may lower, and whether the M-step maximises it."""

    name: str
    build: Callable[[int], LinearMixture]
    inference: Callable[[], Inference]
    objective: Objective | None  # None: the exact evidence


def linear(components: int, latent: int, **options: Any) -> Callable[[int], LinearMixture]:
    return lambda dim: LinearMixture(components, latent, (dim,), **options).double()


EVERYTHING: dict[str, Any] = {"learn_scale": True, "learn_weights": True}
ALTERNATIONS = [
    Alternation("kmeans", linear(4, 0), Argmax, joint),
    Alternation("pca", linear(1, 2, flat_prior=True), ClosedForm, joint),
    Alternation("ppca", linear(1, 2, learn_scale=True), ClosedForm, elbo),
    Alternation("llgae", linear(3, 2, flat_prior=True), lambda: Argmax(ClosedForm()), joint),
    Alternation("llgae-all", linear(3, 2, flat_prior=True, **EVERYTHING), lambda: Argmax(ClosedForm()), joint),
    Alternation("gmm", linear(3, 0, **EVERYTHING), Enumerate, logsumexp),
    Alternation("gmm-weights", linear(3, 0, learn_weights=True), Enumerate, logsumexp),
    Alternation("gmm-evidence", linear(3, 0, **EVERYTHING), Enumerate, None),
    Alternation("mixture-of-ppca", linear(3, 2, **EVERYTHING), lambda: Enumerate(ClosedForm()), None),
]
alternations = pytest.mark.parametrize("case", ALTERNATIONS, ids=lambda case: case.name)


def clustered(samples: int = 200, dim: int = 6, seed: int = 0) -> Tensor:
    """Overlapping flat clusters, each in its own direction, so that no alternation is done after one round."""
    generator = torch.Generator().manual_seed(seed)
    centres, directions = torch.randn(3, dim, generator=generator), torch.randn(3, dim, generator=generator)
    k = torch.randint(3, (samples,), generator=generator)
    along = torch.randn(samples, 1, generator=generator) * directions[k]
    return (1.5 * centres[k] + along + 0.5 * torch.randn(samples, dim, generator=generator)).double()


def alternate(case: Alternation, model: LinearMixture, x: Tensor) -> float:
    return model.maximize(model.statistics(x, case.inference().infer(model, x)))


def value(case: Alternation, model: LinearMixture, x: Tensor) -> Tensor:
    """The objective (B,) in nats."""
    return model.log_evidence(x).log_p if case.objective is None else case.objective(case.inference()(model, x))


@alternations
def test_alternation_never_lowers_the_objective(case: Alternation) -> None:
    x = clustered()
    model = case.build(x.shape[1])
    model.initialize(x, seed=0)
    values = [value(case, model, x).mean().item()]
    for _ in range(15):
        alternate(case, model, x)
        values.append(value(case, model, x).mean().item())
    steps = np.diff(values)
    assert steps.min() > -1e-10
    assert values[-1] > values[0] + 1e-3


@alternations
def test_alternation_ends_at_a_stationary_point(case: Alternation) -> None:
    """The gradient at the M-step's parameters is 0 by autograd, independent of its formulas."""
    x = clustered()
    model = case.build(x.shape[1])
    model.initialize(x, seed=0)
    for _ in range(2000):
        if alternate(case, model, x) < 1e-10:
            break
    else:
        pytest.fail("did not settle")
    value(case, model, x).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or not parameter.numel() or parameter.grad.abs().max() < 1e-6, name


@alternations
def test_statistics_add_over_batches(case: Alternation) -> None:
    x = clustered()
    whole = case.build(x.shape[1])
    whole.initialize(x, seed=0)
    parts = copy.deepcopy(whole)
    first, *rest = x.split([1, 70, 2, 127])
    moments = parts.statistics(first, case.inference().infer(parts, first))
    for batch in rest:
        moments = moments + parts.statistics(batch, case.inference().infer(parts, batch))
    changed = alternate(case, whole, x)
    assert changed > 1e-3
    assert parts.maximize(moments) == pytest.approx(changed)
    for found, wanted in zip(parts.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-10)


def test_maximize_returns_the_largest_change() -> None:
    """In standard deviations of the data for means and loadings, and of scales and weights as they are."""
    model, x = mixture(3, 2, (6,), learn_scale=True, learn_weights=True), clustered()
    before = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    changed = model.maximize(model.statistics(x, Enumerate(ClosedForm()).infer(model, x)))
    unit = {"means": x.var(0, correction=0).mean().sqrt(), "loadings": x.var(0, correction=0).mean().sqrt()}
    wanted = max(
        float((model.state_dict()[name] - value).abs().max() / unit.get(name, 1.0)) for name, value in before.items()
    )
    assert changed == pytest.approx(wanted, rel=1e-10)


def test_sampled_codes_count_by_how_often_they_were_drawn() -> None:
    """A stochastic M-step: S exact posterior draws of (k, z) weigh 1/S each."""
    model, x = mixture(3, 2, (6,), learn_scale=True), clustered()
    code = ClosedForm(samples=5).infer(model, x)
    assert code.k is not None
    counts = model.statistics(x, code).count
    assert_close(counts, np.bincount(code.k.flatten().numpy(), minlength=3) / 5)


def test_statistics_need_a_component() -> None:
    model, x = mixture(3, 2, (6,)), clustered()
    with pytest.raises(ValueError, match=r"K=3 components need codes with a component k.*`Argmax"):
        model.statistics(x, Ascent(max_steps=1).infer(model, x))


def test_statistics_keep_no_graph() -> None:
    model, x = mixture(3, 2, (6,)), clustered()
    moments = model.statistics(x, Enumerate(ClosedForm()).infer(model, x))
    assert not any(value.requires_grad for value in (moments.count, moments.first, moments.second))


def test_hard_m_step_is_per_cluster_mean_principal_directions_scale_and_share() -> None:
    x = clustered()
    model = linear(3, 2, flat_prior=True, **EVERYTHING)(x.shape[1])
    model.initialize(x, seed=0)
    code = Argmax(ClosedForm()).infer(model, x)
    assert code.k is not None
    model.maximize(model.statistics(x, code))
    for j, chart in enumerate(charts(model)):
        rows = array(x[code.k[0] == j])
        _, singular, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
        assert np.allclose(chart.mean, rows.mean(0), atol=1e-12)
        assert np.allclose(abs(directions[:2] @ chart.loadings), np.eye(2), atol=1e-9)
        assert chart.scale**2 == pytest.approx((singular[2:] ** 2).sum() / rows.size)
        assert chart.log_weight == pytest.approx(math.log(len(rows) / len(x)))


def test_ppca_m_step_is_tipping_and_bishop() -> None:
    x = clustered()
    model = linear(1, 2, learn_scale=True)(x.shape[1])
    model.initialize(x, seed=0)
    model.maximize(model.statistics(x, ClosedForm().infer(model, x)))
    values, vectors = np.linalg.eigh(np.cov(array(x).T, bias=True))
    noise = values[:-2].mean()
    top = vectors[:, -2:]
    wanted = top @ np.diag(values[-2:] - noise) @ top.T + noise * np.eye(len(values))
    assert np.allclose(charts(model)[0].covariance, wanted, atol=1e-12)


def test_a_fixed_scale_stays_and_weights_stay_uniform() -> None:
    x = clustered()
    model = linear(3, 0, scale=0.7)(x.shape[1])
    model.initialize(x, seed=0)
    model.maximize(model.statistics(x, Argmax().infer(model, x)))
    assert_close(model.log_scale.exp(), np.full(3, 0.7), 1e-7)
    assert_close(model.log_weights, np.full(3, -math.log(3)))


@pytest.mark.parametrize("latent", [0, 2])
def test_an_empty_component_stays(latent: int) -> None:
    x = clustered()
    means = torch.stack([x[0], x[1], x[2] + 1e4])
    model = LinearMixture(3, latent, (6,), means=means, flat_prior=True, **EVERYTHING).double()
    model.means.data.copy_(means)
    before = [value.detach()[2].clone() for value in (model.means, model.loadings, model.log_scale)]
    engine = Argmax(ClosedForm())
    for _ in range(3):
        model.maximize(model.statistics(x, engine.infer(model, x)))
    after = [value.detach()[2] for value in (model.means, model.loadings, model.log_scale)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert model.log_weights[2].exp() < 1e-12


@pytest.mark.filterwarnings("ignore:The data have . distinct points", "ignore:The noise scale .* rounding")
@pytest.mark.parametrize("case", ALTERNATIONS, ids=lambda case: case.name)
@pytest.mark.parametrize("distinct", [1, 2, 4])
def test_duplicate_points(case: Alternation, distinct: int) -> None:
    """Fewer distinct points than components, or clusters without any spread: finite, and exact reconstruction."""
    x = clustered()[:distinct].repeat(6, 1)
    model = case.build(x.shape[1])
    model.initialize(x, seed=0)
    for _ in range(4):
        alternate(case, model, x)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert value(case, model, x).isfinite().all()
    if model.components >= distinct and not model.learn_scale:
        code = case.inference()(model, x)
        assert torch.allclose(model(code.point, code.component).mean, x, atol=1e-9)


@alternations
def test_constant_pixels_in_float32(case: Alternation) -> None:
    """Border pixels that are 0 in every image, as in MNIST: covariances are singular, nothing becomes NaN."""
    image = torch.as_tensor(load_digits().images, dtype=torch.float32)[:300] / 16
    x = torch.nn.functional.pad(image, (2, 2, 2, 2)).flatten(1)
    assert (x.std(0) == 0).sum() >= 80
    model = case.build(x.shape[1]).float()
    model.initialize(x, seed=0)
    start = value(case, model, x).mean().item()
    for _ in range(5):
        alternate(case, model, x)
    assert all(entry.isfinite().all() for entry in model.state_dict().values())
    assert value(case, model, x).mean().item() >= start


# Numbers far from zero.


@pytest.mark.parametrize(("components", "latent"), [(4, 0), (4, 2), (1, 2)])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_large_offsets_assign_as_float64_does(components: int, latent: int, scale: float) -> None:
    torch.manual_seed(1)
    x = (1000 + torch.randn(500, 20)).float()
    single = LinearMixture(components, latent, (20,), flat_prior=True, scale=scale)
    single.initialize(x, seed=0)
    double = copy.deepcopy(single).double()
    found, wanted = (m.log_responsibilities(x.to(m.means.dtype)) for m in (single, double))
    sure = wanted.exp().amax(1) > 0.6
    assert sure.float().mean() > 0.5
    assert torch.equal(found.argmax(1)[sure], wanted.argmax(1)[sure])
    codes = [Argmax(ClosedForm()).infer(m, x.to(m.means.dtype)) for m in (single, double)]
    assert codes[0].k is not None and codes[1].k is not None and torch.equal(codes[0].k, codes[1].k)
    assert torch.allclose(codes[0].z.double(), codes[1].z, atol=1e-4)


def features(*scales: float, rows: int = 40, seed: int = 0) -> Tensor:
    """Independent features of these scales, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, len(scales), generator=generator) * torch.tensor(scales)


def written(x: Tensor, loadings: list[list[float]], scale: float, **options: Any) -> tuple[LinearMixture, Tensor]:
    """One chart through the mean of the data, with loadings written down."""
    model = LinearMixture(1, len(loadings), (x.shape[1],), scale=scale, means=x.mean(0, keepdim=True), **options)
    model.loadings.data.copy_(torch.tensor(loadings))
    return model, x


def fitted(x: Tensor, components: int, latent: int, **options: Any) -> tuple[LinearMixture, Tensor]:
    """A mixture after a few closed-form rounds in float32."""
    torch.manual_seed(0)
    model = LinearMixture(components, latent, tuple(x.shape[1:]), **options).to(x.dtype)
    model.initialize(x, seed=0)
    for _ in range(3):
        engine = ClosedForm() if components == 1 else Enumerate(ClosedForm() if latent else None)
        model.maximize(model.statistics(x, engine.infer(model, x)))
    return model, x


def clusters(offset: float = 0.0, spread: float = 0.01) -> Tensor:
    """Four narrow clusters far from each other, as compared with their spread."""
    centres = offset + 100 * torch.eye(4, 5)
    return centres.repeat(10, 1) + spread * torch.randn(40, 5, generator=torch.Generator().manual_seed(1))


FAR_SCALES = [[1e5, 0, 0, 0, 0], [0, 1e3, 30.0, 0, 0], [0, 0, 1.0, 0.1, 0.0]]
HARD: dict[str, Callable[[], tuple[LinearMixture, Tensor]]] = {
    "breast cancer": lambda: fitted(torch.tensor(load_breast_cancer().data[::15]).float(), 1, 8, learn_scale=True),
    "latent = D": lambda: fitted(features(100.0, 30.0, 10.0, 3.0), 1, 4, learn_scale=True),
    "latent > N": lambda: fitted(features(3.0, 2.0, 1.0, 0.5, 0.2, rows=4), 1, 5, scale=0.01),
    "of rank 2": lambda: fitted(features(100.0, 10.0) @ torch.randn(2, 5), 1, 3, scale=0.05),
    "unlike features": lambda: written(features(1e5, 1e3, 30.0, 0.1, 1e-3), FAR_SCALES, 1e-3),
    "offset": lambda: fitted(1e4 + features(30.0, 10.0, 3.0, 1.0, 1.0), 1, 2, learn_scale=True),
    "offset, flat": lambda: fitted(1e4 + features(30.0, 10.0, 3.0, 1.0, 1.0), 1, 2, flat_prior=True, scale=0.1),
    "narrow points": lambda: fitted(clusters(), 4, 0, learn_scale=True, learn_weights=True),
    "narrow charts": lambda: fitted(clusters(), 3, 2, learn_scale=True, learn_weights=True),
    "charts with offset": lambda: fitted(clusters(1e4, 1.0), 3, 2, learn_weights=True),
    "flat charts": lambda: fitted(clusters(0.0, 1.0), 3, 2, flat_prior=True, scale=1e-3),
}
hard = pytest.mark.parametrize("case", HARD)


def exactly(model: LinearMixture, x: Tensor) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Log marginals (B, K) at the float32 parameters, posterior means (B, E) and covariances, in 60 digits."""
    weights = array(model.log_weights)
    marginals, means, covariances = [], [], []
    with mpmath.workdps(60):
        for mean, rows, log_scale, log_weight in zip(
            array(model.means), array(model.loadings), array(model.log_scale), weights, strict=True
        ):
            dim, latent = len(mean), len(rows)
            variance, w = mpmath.exp(2 * mpmath.mpf(float(log_scale))), mpmath.matrix(rows.tolist()) if latent else None
            square = variance * mpmath.log(2 * mpmath.pi * variance) * dim
            values, codes, inverse, log_det = [], [], None, mpmath.mpf(0)
            if latent:
                precision = w * w.T / variance + (0 if model.flat_prior else 1) * mpmath.eye(latent)
                inverse, log_det = precision**-1, mpmath.log(mpmath.det(precision))
                covariances.append(np.array(inverse.tolist(), dtype=float))
            for row in flat(x):
                residual = mpmath.matrix(
                    [mpmath.mpf(float(a)) - mpmath.mpf(float(b)) for a, b in zip(row, mean, strict=True)]
                )
                total = (residual.T * residual)[0] + square
                value = -total / variance / 2 - log_det / 2 + mpmath.mpf(float(log_weight))
                if latent:
                    pull = w * residual / variance
                    codes.append([float(c) for c in inverse * pull])
                    value += (pull.T * inverse * pull)[0] / 2
                    value += latent * mpmath.log(2 * mpmath.pi) / 2 if model.flat_prior else 0
                values.append(float(value))
            marginals.append(values)
            means.append(np.array(codes).reshape(len(x), latent))
    return np.array(marginals).T, means, covariances


def assert_near(found: Tensor, wanted: np.ndarray, size: float = 1e-3) -> None:
    """To 1e-4 of each value, or of a size where it is smaller."""
    error = np.abs(array(found) - wanted) / np.maximum(np.abs(wanted), size)
    assert error.max() <= 1e-4, f"off by {error.max():.3g}"


@hard
def test_float32_is_as_exact_as_60_digits(case: str) -> None:
    """Evidence, responsibilities and posterior of data for which ‖x‖² and its projections cancel."""
    model, x = HARD[case]()
    marginals, means, covariances = exactly(model, x)
    evidence = log_sum_exp(marginals, axis=1)
    if not (model.flat_prior and model.latent_shape[0]):
        assert_near(model.log_evidence(x).log_p, evidence, 1.0)
    assert_near(model.log_responsibilities(x).exp(), np.exp(marginals - evidence[:, None]), 1e-3)
    if not model.latent_shape[0]:
        return
    posterior = model.posterior(x, torch.arange(model.components).unsqueeze(1))
    for k, covariance in enumerate(covariances):
        deviation = np.sqrt(covariance.diagonal())
        assert np.abs((array(posterior.mean[k]) - means[k]) / np.maximum(np.abs(means[k]), deviation)).max() <= 1e-4
        found = array(posterior.covariance_matrix[k, 0])
        assert np.abs((found - covariance) / np.outer(deviation, deviation)).max() <= 1e-4


@hard
@pytest.mark.parametrize("near", [True, False])
def test_what_an_ascent_climbs_is_the_log_joint(case: str, near: bool) -> None:
    """Values and slopes of ``bind`` against float64 residuals, at prior draws and near the best codes."""
    model, x = HARD[case]()
    branches = torch.arange(model.components).unsqueeze(1)
    z = torch.randn(model.components, len(x), model.latent_shape[0], generator=torch.Generator().manual_seed(2))
    if near:
        z = model.posterior(x, branches).mean.detach()
    z.requires_grad_()
    mean, loadings, scale = (v.detach().double() for v in (model.means, model.loadings, model.log_scale))
    scale = scale.exp()
    residual = x.double() - mean.unsqueeze(1) - z.detach().double() @ loadings
    square = residual.square().sum(2) / scale.square().unsqueeze(1)
    dim = x.shape[1]
    wanted = -0.5 * square - dim * (scale.log().unsqueeze(1) + 0.5 * math.log(2 * math.pi))
    slope = residual @ loadings.mT / scale.square()[:, None, None]
    if not model.flat_prior:
        wanted = wanted - 0.5 * (z.detach().double().square() + math.log(2 * math.pi)).sum(2)
        slope = slope - z.detach().double()
    found = model.bind(x)(z, branches)
    assert_near(found, array(wanted + model.log_weights.double().unsqueeze(1)), 1.0)
    if model.latent_shape[0]:
        (grad,) = torch.autograd.grad(found.sum(), z)
        size = slope.norm(dim=2, keepdim=True) + 1e-5 * loadings.norm(dim=2).unsqueeze(1) / scale[:, None, None]
        assert float(((grad.double() - slope).abs() / size).max()) <= 1e-4  # each element in its own unit


@hard
def test_given_of_summed_components(case: str) -> None:
    model, x = HARD[case]()
    z = torch.randn(2, len(x), model.latent_shape[0])
    branches = torch.arange(model.components).repeat_interleave(2).unsqueeze(1)
    double = copy.deepcopy(model).double()
    wanted = double.log_joint(x.double(), z.double().repeat(model.components, 1, 1), branches)
    assert_near(model.bind(x)(z), array(wanted.unflatten(0, (-1, 2)).logsumexp(0)), 1.0)


def test_ppca_of_the_breast_cancer_table_is_scikit_learns() -> None:
    """Which divides variances by N - 1: for single rows they are put back to N."""
    table = torch.from_numpy(load_breast_cancer().data).float()
    wide = array(table)
    torch.manual_seed(0)
    model = Autoencoder(LinearMixture(1, 8, (30,), learn_scale=True), ClosedForm(), elbo)
    history = fit(model, table, progress=False)
    oracle = PCA(8).fit(wide)
    evidence = model.likelihood.log_evidence(table).log_p.detach().double()
    assert float(evidence.mean()) == pytest.approx(oracle.score(wide), abs=1e-4) == pytest.approx(-13.2406, abs=1e-4)
    assert history.rows[-1].train_loss == pytest.approx(-float(evidence.mean()), abs=1e-3)
    oracle.explained_variance_ *= 568 / 569
    oracle.noise_variance_ *= 568 / 569
    assert_near(evidence, oracle.score_samples(wide), 10.0)


def test_noise_that_float32_cannot_hold_is_said() -> None:
    """29 directions leave noise of 8e-4 in data of 237: means and loadings are rounded by 1e-5 of the latter."""
    table = torch.from_numpy(load_breast_cancer().data).float()
    with pytest.warns(UserWarning, match=r"noise scale 0\.000\d+ is close to the rounding error.*use float64"):
        fitted(table, 1, 29, learn_scale=True)
    double = fitted(table.double(), 1, 29, learn_scale=True)[0]
    assert float(double.log_evidence(table.double()).log_p.detach().mean()) == pytest.approx(
        PCA(29, svd_solver="full").fit(array(table)).score(array(table)), abs=1e-3
    )


def shifted(x: Tensor, offset: float, scale: float) -> Tensor:
    """Exactly, if x are multiples of 1/64 and the scale is a power of 2."""
    return ((x.double() + offset) * scale).float()


def quantised(rows: int, spread: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = 12 * torch.randn(8, 5, generator=generator)
    x = centres[torch.randint(8, (rows,), generator=generator)] + spread * torch.randn(rows, 5, generator=generator)
    return (64 * x).round() / 64


@pytest.mark.filterwarnings("ignore:x reaches 1.*log densities are wrong")
@pytest.mark.parametrize(("offset", "scale"), [(1e4, 1.0), (0.0, 2.0**-10), (0.0, 2.0**10), (1e4, 2.0**10)])
def test_kmeans_sees_neither_offset_nor_scale(offset: float, scale: float) -> None:
    """The same start, labels and number of epochs, and the inertia of scikit-learn's fit to the unshifted data."""
    found = []
    for x in (quantised(600, 9.0), shifted(quantised(600, 9.0), offset, scale)):
        model = Autoencoder(LinearMixture(8, 0, (5,)), Argmax(), joint)
        history = fit(model, x, epochs=60, progress=False)
        labels = model.encode(x).component
        assert labels is not None and history.stopped_early
        means = model.likelihood.means.detach().double()
        found.append((labels, len(history.rows), float((x.double() - means[labels]).square().sum())))
    (labels, epochs, inertia), (others, count, scaled) = found
    assert torch.equal(labels, others) and epochs == count > 4
    assert scaled / scale**2 == pytest.approx(inertia, rel=1e-5)
    torch.manual_seed(0)
    start = LinearMixture(8, 0, (5,))
    start.initialize(quantised(600, 9.0), seed=0)
    oracle = KMeans(8, init=array(start.means), n_init=1, tol=0).fit(array(quantised(600, 9.0)))
    assert inertia == pytest.approx(oracle.inertia_, rel=1e-3)


@pytest.mark.parametrize("case", ["ppca", "gmm", "llgae", "pca"])
def test_other_systems_see_neither_offset_nor_scale(case: str) -> None:
    alternation = next(found for found in ALTERNATIONS if found.name == case)
    epochs, reconstructions = [], []
    for offset, scale in ((0.0, 1.0), (2048.0, 1.0), (0.0, 2.0**-10), (0.0, 2.0**10)):
        x = shifted(quantised(200, 1.0), offset, scale)
        torch.manual_seed(0)
        model = Autoencoder(alternation.build(5).float(), alternation.inference(), alternation.objective or elbo)
        epochs.append(len(fit(model, x, epochs=60, tol=1e-3, progress=False).rows))
        reconstructions.append((model.reconstruct(x).detach().double() / scale - offset).numpy())
    assert max(epochs) - min(epochs) <= 1 and epochs[0] < 60
    for found in reconstructions[1:]:
        assert np.allclose(found, reconstructions[0], atol=0.02)


def test_means_are_summed_in_float64() -> None:
    x = (200 + torch.randn(2_000_000, 1, generator=torch.Generator().manual_seed(0))).float()
    wanted = float(x.double().mean())
    for model in (LinearMixture(1, 0, (1,)), LinearMixture(1, 1, (1,), flat_prior=True), LinearMixture(2, 0, (1,))):
        model.initialize(x, seed=0)
        if model.components == 2:  # all samples for the first
            model.means.data[:] = torch.tensor([[100.0], [-1e6]])
        k = torch.zeros(1, len(x), dtype=torch.long)
        model.maximize(model.statistics(x, Code(x.new_zeros(1, len(x), *model.latent_shape), k)))
        assert float(model.means.detach()[0]) == pytest.approx(wanted, rel=1e-7)


@pytest.mark.filterwarnings("ignore:The data have 1 distinct points", "ignore:The noise scale .* rounding")
@pytest.mark.parametrize("level", [1e4, 0.0, -3e-5])
@pytest.mark.parametrize("case", ALTERNATIONS, ids=lambda case: case.name)
def test_equal_rows(case: Alternation, level: float) -> None:
    """30 equal rows: the noise scale is rounding, never the root of a negative variance."""
    x = torch.full((30, 4), level)
    model = Autoencoder(case.build(4).float(), case.inference(), case.objective or joint)
    fit(model, x, epochs=3, progress=False)
    assert all(entry.isfinite().all() for entry in model.state_dict().values())
    assert torch.allclose(model.reconstruct(x), x, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The noise scale .* rounding")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-8), (torch.float32, 2e-3)])
def test_scales_that_an_offset_hides_from_the_mean_square(dtype: torch.dtype, tolerance: float) -> None:
    """Noise of 0.3 at an offset of 1e6 is not mistaken for rounding."""
    x = (torch.from_numpy(load_iris().data) + 1e6).to(dtype)
    wide = array(x) - 1e6
    mixture = GaussianMixture(2, covariance_type="spherical", tol=1e-12, max_iter=500, reg_covar=0, random_state=0)
    mixture.fit(wide)
    start = LinearMixture(2, 0, (4,), means=x[[0, 100]], **EVERYTHING).to(dtype)
    model = Autoencoder(start, Enumerate(), logsumexp)
    fit(model, x, epochs=200, tol=1e-9, progress=False)
    assert float(model.log_evidence(x).log_p.mean()) == pytest.approx(mixture.score(wide), rel=tolerance)
    charts = fitted(x, 1, 2, learn_scale=True)[0]
    oracle = PCA(2).fit(wide)
    oracle.explained_variance_ *= 149 / 150
    oracle.noise_variance_ *= 149 / 150
    assert float(charts.log_evidence(x).log_p.detach().mean()) == pytest.approx(oracle.score(wide), rel=tolerance)


def test_a_component_much_narrower_than_the_others_is_said() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat(
        [torch.randn(50, 3, generator=generator), 9 + 1e-5 * torch.randn(50, 3, generator=generator)]
    ).double()
    with pytest.warns(UserWarning, match=r"1 of 2 components have noise scales down to .*e-0.*raised to 0.000"):
        fitted(x, 2, 0, learn_scale=True)


@pytest.mark.filterwarnings("ignore:x reaches 2.*log densities are wrong")
def test_closed_form_runs_give_no_advice_on_learning_rates() -> None:
    model = Autoencoder(LinearMixture(1, 2, (3,), flat_prior=True), ClosedForm(), joint).double()
    with pytest.raises(FloatingPointError, match=r"is not finite|loss is") as caught:
        fit(model, 1e200 * torch.randn(20, 3).double(), progress=False)
    assert "learning rate" not in str(caught.value) and "unit scale" in str(caught.value)


# Empty clusters.


def far_start(x: Tensor, away: int) -> Tensor:
    """The first rows as means, and some means that attract no sample."""
    means = x[:6].clone()
    means[-away:] += 1e3
    return means


@pytest.mark.parametrize("away", [1, 3])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_empty_clusters_are_relocated_as_scikit_learn_does(away: int, batch_size: int | None) -> None:
    x = quantised(200, 1.0)
    start = far_start(x, away)
    model = Autoencoder(LinearMixture(6, 0, (5,), means=start), Argmax(), joint)
    fit(model, x, epochs=100, tol=1e-9, batch_size=batch_size, progress=False)
    oracle = KMeans(6, init=array(start), n_init=1, tol=0).fit(array(x))
    labels = model.encode(x).component
    assert labels is not None and np.array_equal(labels.numpy(), oracle.labels_)
    assert np.allclose(array(model.likelihood.means), oracle.cluster_centers_, atol=1e-4)


def test_one_step_of_relocation_is_scikit_learns() -> None:
    x = quantised(200, 1.0)
    for away in (1, 2, 5):
        start = far_start(x, away)
        model = LinearMixture(6, 0, (5,), means=start)
        model.maximize(model.statistics(x, Argmax().infer(model, x)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fit that is stopped early
            oracle = KMeans(6, init=array(start), n_init=1, tol=0, max_iter=1).fit(array(x))
        found, wanted = (sorted(rows.tolist()) for rows in (array(model.means), oracle.cluster_centers_))
        assert np.allclose(found, wanted, atol=1e-5)


def test_fewer_distinct_points_than_components_are_counted() -> None:
    x = quantised(200, 1.0)[:3].repeat(20, 1)
    model = Autoencoder(LinearMixture(5, 0, (5,)), Argmax(), joint)
    with pytest.warns(UserWarning, match=r"have 3 distinct points, fewer than the K=5 components: 2 of these"):
        fit(model, x, epochs=5, progress=False)
    assert torch.allclose(model.reconstruct(x), x)


# Cost.


class LargestTensor(TorchDispatchMode):
    """The largest number of elements among the results of all operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@contextmanager
def at_most(elements: int) -> Iterator[None]:
    with LargestTensor() as largest:
        yield
    assert 0 < largest.elements <= elements


def test_no_tensor_of_all_four_axes() -> None:
    """Work is that of matrix products: nothing of B·K·D·E elements exists, and no (B, K, D) where a code suffices."""
    batch, components, dim, latent = 40, 6, 50, 5
    model = LinearMixture(components, latent, (dim,), means=torch.randn(components, dim), learn_scale=True)
    x, k = torch.randn(batch, dim), torch.arange(components).unsqueeze(1)
    z = torch.randn(components, batch, latent)
    codes = components * max(batch * latent * latent, dim * latent)
    assert codes < batch * components * dim < batch * components * dim * latent
    with at_most(codes):
        model.bind(x)(z, k).sum().backward()
        model.log_evidence(x).log_p.sum().backward()
        model.posterior(x, k).log_prob(z).sum().backward()
        Argmax(ClosedForm()).infer(model, x)
    with at_most(batch * components * dim):
        model.bind(x)(z).sum().backward()
        model.log_joint(x, z, k).sum().backward()
        model.log_joint(x, z[:1]).sum().backward()
        model(z, k).log_prob(x).sum().backward()
    with at_most(max(batch * components * dim, components * dim * dim)):
        model.statistics(x, Enumerate(ClosedForm()).infer(model, x))


# Errors.


def test_no_evidence_under_a_flat_prior() -> None:
    model = mixture(2, 1, flat_prior=True)
    with pytest.raises(ValueError, match=r"does not exist under a flat prior.*flat_prior=False"):
        model.log_evidence(observations(model))
    points = mixture(2, 0, flat_prior=True)
    x = observations(points)
    assert_close(points.log_evidence(x).log_p, log_evidence(points, x))


def test_posterior_of_a_mixture_needs_k() -> None:
    model = mixture(2, 1)
    with pytest.raises(ValueError, match=r"needs a component k when K > 1"):
        model.posterior(observations(model))


def test_more_components_than_samples() -> None:
    model = LinearMixture(5, 1, (3,))
    with pytest.raises(ValueError, match=r"K=5 .* N=4"):
        model.initialize(torch.randn(4, 3), seed=0)
    assert not model.initialized
    model.initialize(torch.randn(5, 3), seed=0)
    assert model.initialized


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((2, 4, (3,)), {}, r"0 <= latent <= 3, got K=2, E=4"),
        ((2, -1, (3,)), {}, r"got K=2, E=-1"),
        ((0, 1, (3,)), {}, r"components >= 1.*got K=0"),
        ((2, 1, ()), {}, r"at least one dimension, got \(\)\. Use \(1,\)"),
        ((2, 1, (3,)), {"scale": 0.0}, r"scale must be positive, got 0.0"),
        ((2, 1, (3,)), {"scale": math.nan}, r"scale must be positive, got nan"),
        ((2, 1, (3, 1)), {"means": torch.zeros(2, 3)}, r"means must have shape \(2, 3, 1\), got \(2, 3\)"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearMixture(*arguments, **options)


def test_initialize_happens_once_and_is_seeded() -> None:
    x = clustered()
    models = [linear(4, 0)(x.shape[1]) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        model.initialize(x, seed)
    assert torch.equal(models[0].means, models[1].means)
    assert not torch.equal(models[0].means, models[2].means)
    kept = models[0].means.clone()
    models[0].initialize(x + 1, seed=5)
    assert torch.equal(models[0].means, kept)


def test_given_means_are_the_start() -> None:
    means = torch.randn(3, 2, 2)
    model = LinearMixture(3, 0, (2, 2), means=means)
    model.initialize(torch.randn(10, 2, 2), seed=0)
    assert torch.equal(model.means, means.flatten(1))


def test_autoencoder_trains_by_alternation_alone() -> None:
    """The public workflow: encode, add statistics, maximise; encode held-out data without labels."""
    x = clustered(300)
    model = Autoencoder(linear(3, 2, flat_prior=True)(x.shape[1]), Argmax(ClosedForm()))
    assert isinstance(model.likelihood, LinearMixture)
    model.likelihood.initialize(x[:200], seed=0)
    for _ in range(20):
        model.likelihood.maximize(
            model.likelihood.statistics(x[:200], model.inference.infer(model.likelihood, x[:200]))
        )
    error = (model.reconstruct(x[200:]) - x[200:]).square().sum(1)
    nearest = np.min(
        [
            ((flat(x[200:]) - c.mean) ** 2).sum(1) - (((flat(x[200:]) - c.mean) @ c.loadings) ** 2).sum(1)
            for c in charts(model.likelihood)
        ],
        axis=0,
    )
    assert_close(error, nearest)
