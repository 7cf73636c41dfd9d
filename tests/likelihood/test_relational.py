"""Likelihoods of entire data sets: linear regression, t-SNE and LLE, against scikit-learn and formulas."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.spatial.distance import squareform
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression as SkLinear
from sklearn.linear_model import Ridge
from sklearn.manifold import TSNE as SkTSNE
from sklearn.manifold import LocallyLinearEmbedding, _t_sne
from sklearn.metrics import pairwise_distances
from torch import Tensor
from torch.distributions import Categorical, Multinomial, MultivariateNormal, Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from gae import Autoencoder, systems
from gae.data import Dataset
from gae.inference import (
    LBFGS,
    Adam,
    Ascent,
    ClosedForm,
    Constant,
    DecoderInit,
    DeltaBarDelta,
    Detach,
    EarlyExaggeration,
    GradientAscent,
    Mode,
    PrincipalComponents,
    Projected,
    Whiten,
    Zeros,
)
from gae.likelihood import LLE, TSNE, Gaussian, LinearMixture, LinearRegression, Relational
from gae.likelihood.relational import neighbours, spectrum, student_t
from gae.likelihood.relational.student_t import pair_log_likelihood
from gae.systems.options import parse


@pytest.fixture
def apart(digits: Dataset) -> Tensor:
    """400 digits whose distances do not tie: which of two equally near points is a neighbour is anyone's choice."""
    return digits.train[:400].double() + 1e-3 * torch.randn(400, *digits.event_shape).double()


def sine(found: Tensor | np.ndarray, wanted: Tensor | np.ndarray) -> float:
    """Of the largest principal angle between the spans of columns."""
    a, b = (np.linalg.qr(np.asarray(columns))[0] for columns in (found, wanted))
    return float(np.linalg.norm(a - b @ (b.T @ a), 2))


# Linear regression.


def regression_data(targets: int = 40, inputs: int = 6, batch: int = 3) -> tuple[Tensor, Tensor]:
    design = torch.randn(targets, inputs).double() + 3
    return design, torch.randn(batch, inputs).double() @ design.mT + torch.randn(batch, targets).double() + 5


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("prior_scale", [None, 0.3])
@pytest.mark.parametrize("engine", [ClosedForm(), Ascent(step=LBFGS(), max_steps=500, grad_tol=1e-9)])
def test_coefficients_are_scikit_learns(engine: Any, prior_scale: float | None, intercept: bool) -> None:
    design, y = regression_data()
    model = LinearRegression(design, prior_scale, intercept, scale=0.7).double()
    with torch.no_grad():
        z = engine(model, y).point
    oracle: Any = SkLinear(fit_intercept=intercept)
    if prior_scale is not None:
        oracle = Ridge(alpha=0.7**2 / prior_scale**2, fit_intercept=intercept, solver="cholesky")
    oracle.fit(design.numpy(), y.T.numpy())
    assert np.allclose(z[:, int(intercept) :].numpy(), oracle.coef_, atol=1e-6, rtol=0)
    if intercept:
        assert np.allclose(z[:, 0].numpy(), oracle.intercept_, atol=1e-6, rtol=0)
    new = torch.randn(5, 6).double()
    assert np.allclose(model.predict(new, z).numpy(), oracle.predict(new.numpy()).T, atol=1e-6, rtol=0)


def test_the_condition_number_is_not_squared() -> None:
    columns = torch.linalg.qr(torch.randn(30, 4).double())[0]
    design = columns @ torch.diag(torch.tensor([1.0, 1e-3, 1e-6, 1e-9]).double()) @ torch.randn(4, 4).double()
    w = torch.randn(4).double()
    found = ClosedForm()(LinearRegression(design, intercept=False).double(), (design @ w)[None]).z.flatten()
    assert torch.allclose(found, w, atol=1e-5)  # normal equations, of condition 1e18, find nothing


@pytest.mark.parametrize(("prior_scale", "intercept"), [(None, True), (0.4, True), (0.4, False)])
def test_regression_posterior_is_that_of_the_log_joint(prior_scale: float | None, intercept: bool) -> None:
    """The log joint is quadratic: its maximum is the posterior's mean, minus its Hessian the precision."""
    design, y = regression_data(batch=1)
    model = LinearRegression(design, prior_scale, intercept, scale=1.3).double()
    posterior = model.posterior(y)
    assert (posterior.batch_shape, posterior.event_shape) == ((1, 1), model.latent_shape)
    mean = posterior.mean.flatten()
    hessian = torch.autograd.functional.hessian(lambda z: model.log_joint(y, z[None, None]).sum(), mean)
    assert torch.allclose(torch.linalg.inv(-hessian), posterior.covariance_matrix[0, 0], atol=1e-10)
    gradient = torch.autograd.functional.jacobian(lambda z: model.log_joint(y, z[None, None]).sum(), mean)
    assert gradient.abs().max() < 1e-8


def test_regression_evidence_is_that_of_the_marginal_gaussian() -> None:
    design, y = regression_data()
    model = LinearRegression(design, 0.4, intercept=False, scale=1.3).double()
    covariance = 0.4**2 * design @ design.mT + 1.3**2 * torch.eye(40).double()
    wanted = MultivariateNormal(torch.zeros(40).double(), covariance).log_prob(y)
    assert torch.allclose(model.log_evidence(y).log_p, wanted, rtol=1e-10)
    drawn = ClosedForm(samples=5)(model, y)
    assert drawn.log_q is not None
    assert torch.allclose(drawn.log_joint - drawn.log_q, wanted.expand(5, 3), rtol=1e-10)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.3), (1e4, 0.1), (0.0, 1e-3)])
def test_regression_evidence_in_float32_is_that_in_float64(offset: float, scale: float) -> None:
    """Features with an offset, and little noise: residuals and coefficients' rounding cost float32 many nats."""
    design, y = (part.float() for part in regression_data())
    design = design + offset
    model = LinearRegression(design, 2.0, intercept=False, scale=scale)
    noise = model.scale.double() ** 2 * torch.eye(40).double()
    law = MultivariateNormal(torch.zeros(40).double(), 4 * design.double() @ design.double().mT + noise)
    torch.testing.assert_close(model.log_evidence(y).log_p, law.log_prob(y.double()).float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("prior_scale", [None, 0.4])
def test_no_evidence_under_a_flat_prior(prior_scale: float | None) -> None:
    design, y = regression_data()
    model = LinearRegression(design, prior_scale).double()
    with pytest.raises(ValueError, match=r"log p\(y\) does not exist under a flat prior"):
        model.log_evidence(y)
    with pytest.raises(NotImplementedError, match="flat prior is improper"):
        model.prior.sample()


def test_the_learned_noise_is_the_residuals() -> None:
    """At the least-squares code the loss is stationary where scale² is the mean squared residual."""
    design, y = regression_data()
    fitted = SkLinear().fit(design.numpy(), y.T.numpy()).predict(design.numpy())
    scale = float(np.sqrt(((y.T.numpy() - fitted) ** 2).mean()))
    model = systems.build("linear-regression", (40,), design=design, scale=scale, learn_scale=True).double()
    model(y).backward()
    assert abs(float(model.likelihood.log_scale.grad)) < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("design", "intercept"),
    [
        (torch.ones(5, 1), True),
        (torch.randn(5, 1).expand(5, 2), False),
        (torch.randn(3, 4), False),
    ],
)
def test_dependent_columns_need_a_prior(design: Tensor, intercept: bool) -> None:
    with pytest.raises(ValueError, match=r"under a flat prior but rank .* give a prior_scale"):
        LinearRegression(design, intercept=intercept)
    model = LinearRegression(design.double(), 2.0, intercept=intercept, scale=0.5).double()
    y = torch.randn(1, len(design)).double()
    ridge = Ridge(alpha=1 / 16, fit_intercept=intercept).fit(design.double().numpy(), y[0].numpy())
    assert np.allclose(ClosedForm()(model, y).point[0, int(intercept) :].numpy(), ridge.coef_, atol=1e-8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearRegression(torch.zeros(5)), r"shape \(\*X, F\), got shape \(5,\)"),
        (lambda: LinearRegression(torch.full((5, 2), torch.nan)), "design must be finite"),
        (lambda: LinearRegression(torch.randn(5, 2), prior_scale=0.0), "prior_scale must be positive"),
        (lambda: LinearRegression(torch.randn(5, 0), intercept=False), "a design without columns"),
        (lambda: LinearRegression(torch.randn(5, 2), scale=0.0), "scale must be positive"),
        (
            lambda: LinearRegression(torch.randn(5, 2)).predict(torch.zeros(4, 3), torch.zeros(3)),
            r"inputs must have shape \(\*M, 2\), got \(4, 3\)",
        ),
        (lambda: systems.build("linear-regression", (5,), design=torch.randn(4, 2)), r"got \(4, 2\)"),
    ],
)
def test_bad_regressions(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_trend_over_an_image(digits: Dataset) -> None:
    """Without a design: each image is a plane over its 8 x 8 places."""
    model = systems.build("linear-regression", digits.event_shape).double()
    x = digits.test[:7].double()
    places = np.stack(np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 8), indexing="ij"), -1).reshape(64, 2)
    oracle = SkLinear().fit(places, x.flatten(1).T.numpy())
    assert np.allclose(model.encode(x).point[:, 1:].detach().numpy(), oracle.coef_, atol=1e-6)
    fitted = oracle.predict(places).T.reshape(x.shape)
    assert np.allclose(model.reconstruct(x).detach().numpy(), fitted, atol=1e-6)


def test_options_as_text() -> None:
    assert parse("linear-regression", ["prior_scale=0.5", "design=none"]) == {"prior_scale": 0.5, "design": None}
    assert parse("tsne", ["rate=none"]) == {"rate": None}
    with pytest.raises(ValueError, match="must be none on the command line"):
        parse("linear-regression", ["design=x.npy"])


# Affinities and the pair likelihood.


def conditional(square: np.ndarray, perplexity: float) -> np.ndarray:
    """p_.|i by bisection, from squared distances to the others."""

    def weights(log_precision: float) -> np.ndarray:
        w = np.exp(-np.exp(log_precision) * (square - square.min()))
        return w / w.sum()

    def gap(log_precision: float) -> float:
        w = weights(log_precision)
        return float(-(w * np.log(np.maximum(w, 1e-300))).sum()) - math.log(perplexity)

    return weights(brentq(gap, -15, 15, xtol=1e-14))


@pytest.mark.parametrize("block", [2**18, 100])
def test_affinities_have_the_perplexity(block: int, apart: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    x = torch.stack([apart[:60].flatten(1), 30 * apart[60:120].flatten(1)])
    found = neighbours.affinities(x, 7.0)
    for data, p in zip(x.numpy(), found.numpy(), strict=True):
        square = ((data[:, None] - data) ** 2).sum(-1)
        rows = np.stack([np.insert(conditional(np.delete(row, i), 7.0), i, 0.0) for i, row in enumerate(square)])
        assert np.allclose(p, (rows + rows.T) / 120, atol=1e-12)
        assert p.sum() == pytest.approx(1)


def test_affinities_of_outliers(digits: Dataset) -> None:
    """A Newton step may try precisions so high that only differences of distances survive rounding."""
    x = digits.train[:500].flatten(1).double()
    outlier = int(torch.cdist(x, x).sort(1).values[:, 1].argmax())
    p = neighbours.affinities(x.unsqueeze(0), 30.0)[0]
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    square = (x - x[outlier]).square().sum(1).numpy()
    row = np.insert(conditional(np.delete(square, outlier), 30.0), outlier, 0.0)
    assert (p[outlier].numpy() >= row / 1000 * (1 - 1e-9)).all()


@pytest.mark.parametrize("distance", [1e6, 1e8, 1e10])
@pytest.mark.parametrize("many", [1, 10])
def test_affinities_of_points_that_are_close_for_the_size_of_the_data(distance: float, many: int) -> None:
    """Beside a point, or a group, at a great distance, the others have the affinities of their own distances."""
    x = torch.randn(20, 3).double()
    x[:many, 0] += distance
    p = neighbours.affinities(x.unsqueeze(0), 4.0)[0]
    group = x[many:].numpy()
    square = ((group[:, None] - group) ** 2).sum(-1)
    rows = np.stack([np.insert(conditional(np.delete(row, i), 4.0), i, 0.0) for i, row in enumerate(square)])
    assert np.allclose(p[many:, many:], (rows + rows.T) / 40, atol=1e-9)


def test_affinities_of_copies() -> None:
    """Ten copies cannot have a perplexity of 5: each is as near to all of its copies, and the others are too far."""
    x = torch.cat([torch.zeros(10, 2), 5 + torch.randn(10, 2)]).double().unsqueeze(0)
    p = neighbours.affinities(x, 5.0)[0]
    assert p.isfinite().all() and float(p.sum()) == pytest.approx(1)
    off = p[:10, :10][~torch.eye(10, dtype=torch.bool)]
    assert torch.allclose(off, torch.full_like(off, 1 / 9 / 20))
    same = neighbours.affinities(torch.ones(1, 8, 2), 3.0)[0]
    assert torch.allclose(same, (1 - torch.eye(8)) / 56)


def test_affinities_derivative() -> None:
    x = torch.randn(2, 7, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: neighbours.affinities(x, 3.0), x)


def dense(p: Tensor, z: Tensor, degrees: Tensor, attraction: float) -> Tensor:
    """The pair log likelihood by its formula."""
    square = (z.unsqueeze(-2) - z.unsqueeze(-3)).square().sum(-1)
    log_w = -0.5 * (degrees + 1) * torch.log(1 + square / degrees)
    others = ~torch.eye(z.shape[-2], dtype=torch.bool)
    pull = torch.where(others, p * log_w, 0.0).sum((-2, -1))
    return attraction * pull - log_w.masked_fill(~others, -torch.inf).flatten(-2).logsumexp(-1)


def pair_arguments(points: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    p = neighbours.affinities(torch.randn(2, points, 3).double(), 3.0).requires_grad_()
    z = (2 * torch.randn(2, points, 2).double()).requires_grad_()
    return p, z, torch.tensor(1.7).double().requires_grad_()


@pytest.mark.parametrize("block", [2**18, 30])
@pytest.mark.parametrize("attraction", [1.0, 12.0])
def test_pair_log_likelihood(attraction: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_t, "BLOCK", block)
    arguments = pair_arguments()
    values = [function(*arguments, attraction) for function in (pair_log_likelihood, dense)]
    assert torch.allclose(*values)
    weights = torch.tensor([1.0, -2.0]).double()
    found, wanted = (torch.autograd.grad((value * weights).sum(), arguments) for value in values)
    wanted_p = torch.where(torch.eye(9, dtype=torch.bool), found[0], wanted[0])  # there p is 0, whatever its slope
    for a, b in zip(found, (wanted_p, *wanted[1:]), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_pair_gradient_is_that_of_finite_differences() -> None:
    p, z, degrees = pair_arguments(6)
    p = p.detach()
    assert torch.autograd.gradcheck(lambda z, nu: pair_log_likelihood(p, z, nu, 3.0), (z, degrees))
    assert torch.autograd.gradgradcheck(lambda z, nu: pair_log_likelihood(p, z, nu, 3.0), (z, degrees))


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor returned by an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        aliases = any(result.alias_info is not None for result in func._schema.returns)
        if isinstance(value, Tensor) and not aliases:
            self.size = max(self.size, value.numel())
        return value


def test_no_tensor_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradient of an ascent step, beyond p itself."""
    monkeypatch.setattr(student_t, "BLOCK", 2**12)
    model, x = TSNE(300, (4,)), torch.randn(1, 300, 4)
    log_joint, z = model.bind(x), torch.randn(1, 1, 300, 2).requires_grad_()
    with Largest() as largest:
        torch.autograd.grad(log_joint(z).sum(), z)
    assert 300 <= largest.size <= 2**12 + 300
    with Largest() as largest:
        dense(model.relation(x), z[0], torch.tensor(1.0), 1.0)
    assert largest.size >= 300**2


# t-SNE.


def test_log_joint_is_the_likelihood_of_pair_counts() -> None:
    """Whole counts: a multinomial over ordered pairs without its coefficient, per pair."""
    z, total = torch.randn(1, 5, 2).double(), 40
    half = torch.randint(0, 4, (5, 5)).double().triu(1)
    counts = half + half.mT
    total = int(counts.sum())
    off = ~torch.eye(5, dtype=torch.bool)
    square = (z[0, :, None] - z[0]).square().sum(-1)
    law = Multinomial(total, logits=-torch.log(1 + square)[off])
    coefficient = math.lgamma(total + 1) - torch.lgamma(counts[off] + 1).sum()
    model = TSNE(5, (3,), perplexity=2.0).double()
    found = total * model.score((counts / total)[None], z)
    assert torch.allclose(found, law.log_prob(counts[off]) - coefficient)


def test_divergence() -> None:
    model, x, z = (
        TSNE(8, (3,), perplexity=3.0).double(),
        torch.randn(2, 8, 3).double(),
        torch.randn(1, 2, 8, 2).double(),
    )
    off = ~torch.eye(8, dtype=torch.bool)
    p = model.relation(x)[:, off]
    square = (z[0].unsqueeze(2) - z[0].unsqueeze(1)).square().sum(-1)[:, off]
    wanted = kl_divergence(Categorical(probs=p), Categorical(logits=-torch.log(1 + square)))
    assert torch.allclose(model.divergence(x, z), wanted[None])
    with pytest.raises(ValueError, match="An exaggerated model has no divergence"):
        model.exaggerated(2.0).divergence(x, z)


def test_exaggeration_multiplies_attractions() -> None:
    model = TSNE(8, (3,), perplexity=3.0, degrees=2.0, learn_degrees=True).double()
    x, z = torch.randn(1, 8, 3).double(), torch.randn(1, 1, 8, 2).double()
    found = model.exaggerated(3.0).exaggerated(4.0).log_joint(x, z)
    assert torch.allclose(found[0], dense(model.relation(x), z[0], torch.tensor(2.0).double(), 12.0), rtol=1e-6)
    assert model.exaggeration == 1 and model.exaggerated(3.0).log_degrees is model.log_degrees


@pytest.mark.parametrize(
    ("event_shape", "points", "latent", "allowed"),
    [((3,), 3, 2, True), ((), 3, 2, False), ((3,), 3, 0, False), ((3,), 2, 2, False), ((3,), 1, 2, False)],
)
def test_a_relation_needs_features_and_more_points_than_dimensions(
    event_shape: tuple[int, ...], points: int, latent: int, allowed: bool
) -> None:
    class Flat(Relational):
        def relation(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), x.shape[1], x.shape[1])

        def score(self, relation: Tensor, z: Tensor) -> Tensor:
            return z.sum((-1, -2))

    if allowed:
        assert Flat(points, event_shape, latent).latent_shape == (points, latent)
    else:
        with pytest.raises(ValueError, match="features of at least one dimension and points > latent >= 1"):
            Flat(points, event_shape, latent)


def test_delta_bar_delta_is_scikit_learns_rule() -> None:
    """The loop of sklearn.manifold._t_sne._gradient_descent, on a quadratic with one direction that is slow, whose gain
    grows, and one that overshoots in every step, whose gain shrinks."""
    decoder = torch.nn.Linear(3, 3, bias=False).double()
    decoder.weight.data = torch.diag(torch.tensor([0.1, 1.0, 3.0])).double()
    model, x = Gaussian(decoder, 3, 0.7).double(), torch.tensor([[1.0, -2.0, 0.5], [-3.0, 0.3, 2.0]]).double()
    start, rate, momentum, steps = torch.tensor([0.7, -1.1, 0.4]).double(), 0.1, 0.5, 15
    with torch.no_grad():
        found = Ascent(Constant(start), DeltaBarDelta(rate, momentum), steps, adjoint=Detach())(model, x).z[0].numpy()
    at = start.expand(2, 3).clone()
    update, gains = np.zeros((2, 3)), np.ones((2, 3))
    for _ in range(steps):
        point = at.clone().requires_grad_()
        grad = torch.autograd.grad(-model.log_joint(x, point[None]).sum(), point)[0].numpy()
        assert not update.any() or np.abs(update * grad).min() > 1e-9, "a sign that is rounding decides"
        grows = update * grad < 0.0
        gains[grows] += 0.2
        gains[~grows] *= 0.8
        np.clip(gains, 0.01, np.inf, out=gains)
        update = momentum * update - rate * gains * grad
        at = at + torch.as_tensor(update)
    assert np.allclose(found, at.numpy(), atol=1e-10)
    assert gains[:, 0].min() > 1.5 and gains[:, 2].max() < 0.9


def test_principal_components_are_scikit_learns(apart: Tensor) -> None:
    x = torch.stack([apart[:100], 2 * apart[100:200]])
    z = PrincipalComponents(spread=1e-4)(TSNE(100, tuple(apart.shape[1:]), latent=3).double(), x).z[0]
    for data, codes in zip(x.flatten(2).numpy(), z.numpy(), strict=True):
        wanted = PCA(3, svd_solver="full").fit_transform(data)
        wanted *= 1e-4 / wanted[:, 0].std()
        assert np.allclose(np.abs(codes), np.abs(wanted), atol=1e-10)
        assert np.allclose(np.abs(codes.T @ wanted), np.diag(np.diag(np.abs(codes.T @ wanted))), atol=1e-12)


def scikit_learns(x: Tensor, perplexity: float) -> np.ndarray:
    """scikit-learn's p_ij for i < j: from distances in float32, to five digits of perplexity."""
    return _t_sne._joint_probabilities(pairwise_distances(x.flatten(1).numpy(), squared=True), perplexity, 0)


def test_affinities_are_scikit_learns(apart: Tensor) -> None:
    found = neighbours.affinities(apart[None, :100].flatten(2), 10.0)[0].numpy()
    wanted = scikit_learns(apart[:100], 10.0)
    assert np.allclose(found[np.triu_indices(100, 1)], wanted, rtol=1e-3, atol=1e-7)


def test_divergence_and_gradient_are_scikit_learns(apart: Tensor) -> None:
    """At points drawn close together and far apart, with the same p."""
    x, model = apart[None, :60], TSNE(60, tuple(apart.shape[1:]), perplexity=8.0).double()
    p = squareform(model.relation(x)[0].numpy(), checks=False)
    for spread in (1e-4, 1.0, 30.0):
        z = (spread * torch.randn(1, 1, 60, 2).double()).requires_grad_()
        found = model.divergence(x, z)
        (slope,) = torch.autograd.grad(found.sum(), z)
        wanted, gradient = _t_sne._kl_divergence(z.detach().numpy().ravel(), p, 1, 60, 2)
        assert found.item() == pytest.approx(wanted, rel=1e-9)
        assert np.allclose(slope.numpy().ravel(), gradient, rtol=1e-9, atol=1e-9 * np.abs(gradient).max())


@pytest.mark.parametrize("init", ["pca", "random"])
def test_the_first_steps_are_scikit_learns(init: str, apart: Tensor) -> None:
    """Both phases of its schedule, in float64, with the same p; rounding grows tenfold in 3 steps of the first."""
    x, options = apart[None, :60], {"perplexity": 8.0, "early_steps": 12, "steps": 30, "init": init}
    model = systems.build("tsne", tuple(apart.shape[1:]), points=60, **options).double()
    likelihood = model.likelihood
    assert isinstance(likelihood, TSNE)
    engine = PrincipalComponents() if init == "pca" else DecoderInit()
    p = squareform(likelihood.relation(x)[0].numpy(), checks=False)
    with torch.no_grad():
        torch.manual_seed(3)
        at = engine(likelihood, x).z.double().flatten().numpy()
        torch.manual_seed(3)
        found = model.encode(x).z.flatten().numpy()
    assert not np.allclose(found, at, rtol=0.5)
    shared = {"n_iter_check": 50, "learning_rate": 50.0}
    for factor, momentum, begin, end in ((12.0, 0.5, 0, 12), (1.0, 0.8, 12, 30)):
        phase = {"it": begin, "max_iter": end, "momentum": momentum, "args": [factor * p, 1, 60, 2]}
        at, _, last = _t_sne._gradient_descent(_t_sne._kl_divergence, at, **shared, **phase)
        assert last == end - 1
    assert np.allclose(found, at, rtol=0, atol=1e-7 * np.abs(at).max())


@pytest.mark.usefixtures("unchecked_types")
def test_tsne_is_as_good_as_scikit_learns(digits: Dataset) -> None:
    """The best of many starts: with ten points, a third of them reach the global optimum."""
    x = digits.train[torch.randperm(len(digits.train))[:10]].double()
    model = systems.build("tsne", digits.event_shape, points=10, perplexity=3.0, steps=600).double()
    likelihood, starts = model.likelihood, 1e-4 * torch.randn(48, 10, 2).double()
    assert isinstance(likelihood, TSNE)
    model.inference.init.engine.init = Constant(starts)  # type: ignore[union-attr]
    copies = x.expand(48, *x.shape)
    with torch.no_grad():
        encoding = model.encode(copies)
        ours = likelihood.divergence(copies, encoding.z)
    theirs = [SkTSNE(perplexity=3.0, method="exact", init=start.numpy()) for start in starts[:8]]
    layouts = np.stack([oracle.fit_transform(x.flatten(1).numpy()) for oracle in theirs])
    divergence = likelihood.divergence(copies[:8], torch.as_tensor(layouts)[None])
    assert ours.min() <= 1.01 * divergence.min()
    assert encoding.solve is not None and (encoding.solve.evaluations == 600).all()


def test_early_exaggeration_is_an_ascent_of_its_own(digits: Dataset) -> None:
    """The system's schedule, written out as two solves."""
    x = digits.train[:40].double().unsqueeze(0)
    options = {"points": 40, "perplexity": 5.0, "early_steps": 8, "steps": 20}
    model = systems.build("tsne", digits.event_shape, **options).double()
    likelihood = model.likelihood
    assert isinstance(likelihood, TSNE)
    with torch.no_grad():
        found = model.encode(x).z
        start = PrincipalComponents()(likelihood, x).z[0]
        early = Ascent(Constant(start), DeltaBarDelta(50.0, 0.5), 8, adjoint=Detach())(likelihood.exaggerated(12.0), x)
        late = Ascent(Constant(early.z[0]), DeltaBarDelta(50.0, 0.8), 12, adjoint=Detach())(likelihood, x)
    assert torch.equal(found, late.z)


def test_random_layouts_and_restarts(digits: Dataset) -> None:
    """Restarts keep the best of ascents from layouts that are drawn one after another."""
    x = digits.train[:30].double().unsqueeze(0)
    model = systems.build("tsne", digits.event_shape, points=30, perplexity=5.0, init="random").double()
    likelihood = model.likelihood
    assert isinstance(likelihood, TSNE)
    drawn = likelihood.initial(50)
    assert drawn.shape == (50, 30, 2) and float(drawn.std()) == pytest.approx(1e-4, rel=0.1)
    copies, options = x.expand(3, *x.shape[1:]), {"grad_tol": 1e-30, "adjoint": Detach()}  # returns the best point too
    with torch.no_grad():
        torch.manual_seed(5)
        found = Ascent(DecoderInit(), DeltaBarDelta(50.0), 20, restarts=3, **options)(likelihood, x)
        torch.manual_seed(5)
        starts = torch.cat([likelihood.initial(1) for _ in range(3)])
        each = Ascent(Constant(starts), DeltaBarDelta(50.0), 20, **options)(likelihood, copies)
        alone = [likelihood.divergence(copies[i : i + 1], each.z[:, i : i + 1]).item() for i in range(3)]
    assert likelihood.divergence(x, found.z).item() == pytest.approx(min(alone), rel=1e-9)
    assert max(alone) > 1.0001 * min(alone)


@pytest.mark.parametrize(("system", "way"), [("tsne", "t-SNE has no map for a new .*`LLE`"), ("lle", "transform")])
def test_a_new_point_has_no_code(system: str, way: str, digits: Dataset) -> None:
    model = systems.build(system, digits.event_shape, points=100)
    shape = r"must have shape \(B, 100, 1, 8, 8\)"
    for x in (digits.train[:100], digits.train[:1].unsqueeze(0), digits.train[0]):
        with pytest.raises(ValueError, match=rf"is a whole data set of N = 100 points: x {shape}.*{way}"):
            model.encode(x)


@pytest.mark.parametrize("system", ["tsne", "lle"])
def test_codes_do_not_give_data_back(system: str) -> None:
    model = systems.build(system, (3,), points=40)
    z = torch.randn(1, 40, 2)
    for way in (model.likelihood.point, lambda law: law.sample(), lambda law: law.mean):
        with pytest.raises(TypeError, match=r"has no map from codes to data.*Look at the codes"):
            way(model.decode(z))
    with pytest.raises(ValueError, match="has no discrete code"):
        model.decode(z, torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TSNE(20, (3,)), r"perplexity must lie between 1 and N - 1 = 19, got 30"),
        (lambda: TSNE(20, (3,), perplexity=1.0), "perplexity must lie between 1"),
        (lambda: TSNE(2, (3,), latent=2), r"points > latent >= 1, got event_shape=\(3,\), points=2"),
        (lambda: TSNE(20, (), perplexity=3.0), "features of at least one dimension"),
        (lambda: TSNE(20, (3,), perplexity=3.0, degrees=0.0), "degrees must be positive"),
        (lambda: TSNE(20, (3,), perplexity=3.0).exaggerated(0.0), "factor must be positive"),
        (lambda: LLE(20, (3,), neighbours=20), "1 <= neighbours < points = 20, got 20"),
        (lambda: LLE(20, (3,), reg=0.0), "reg and scale must be positive"),
        (lambda: EarlyExaggeration(Zeros(), 0.0), "factor must be positive"),
        (lambda: PrincipalComponents(0.0), "spread must be positive"),
        (lambda: DeltaBarDelta(0.0), "rate must be positive"),
        (lambda: DeltaBarDelta(1.0, momentum=1.0), r"momentum must lie in \[0, 1\)"),
        (lambda: PrincipalComponents()(TSNE(9, (1,), perplexity=3.0), torch.randn(1, 9, 1)), "1 features have no 2"),
        (lambda: PrincipalComponents()(TSNE(9, (3,), perplexity=3.0), torch.ones(1, 9, 3)), "are all the same"),
        (lambda: systems.build("tsne", (3,), init="spectral"), "Unknown init 'spectral'. Valid inits: pca, random"),
        (lambda: systems.build("tsne", (3,), steps=100), "0 <= early_steps <= steps, got 250 and 100"),
    ],
)
def test_numbers_out_of_range(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (EarlyExaggeration(Zeros()), "Only t-SNE has attractions to exaggerate, got LinearMixture"),
        (PrincipalComponents(), "gives a code to each point of a data set; LinearMixture has codes"),
        (Mode(), "its best code has no closed form. Use `Ascent`, or `ClosedForm`"),
    ],
)
def test_engines_refuse_other_likelihoods(engine: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        engine(LinearMixture(1, 2, (4,)), torch.randn(3, 4))


def test_closed_form_refuses_a_layout() -> None:
    with pytest.raises(TypeError, match="Cannot use `ClosedForm` with TSNE: its posterior has no closed form"):
        ClosedForm()(TSNE(9, (3,), perplexity=3.0), torch.randn(1, 9, 3))


# LLE.


@pytest.mark.parametrize(("latent", "count"), [(2, 15), (3, 20)])
def test_lle_is_scikit_learns(latent: int, count: int, apart: Tensor, digits: Dataset) -> None:
    flat = apart.flatten(1).numpy()
    oracle = LocallyLinearEmbedding(n_neighbors=count, n_components=latent, eigen_solver="dense").fit(flat)
    model = systems.build("lle", digits.event_shape, points=400, latent=latent, neighbours=count).double()
    x = apart.unsqueeze(0)
    codes = model.encode(x).point[0].detach()
    assert sine(codes, oracle.embedding_) < 1e-4
    assert torch.allclose(codes.mT @ codes / 400, torch.eye(latent).double(), atol=1e-10)
    assert torch.allclose(codes.mean(0), torch.zeros(latent).double(), atol=1e-9)
    energy = (codes - model.likelihood.relation(x)[0] @ codes).square().sum(0)  # type: ignore[operator]
    assert (energy.diff() > 0).all()
    assert float(energy.sum()) / 400 == pytest.approx(oracle.reconstruction_error_, rel=1e-6)


def test_as_many_codes_as_points_allow(apart: Tensor) -> None:
    codes = LLE(300, apart.shape[1:], 299, neighbours=15).double().mode(apart[None, :300])[0]
    assert torch.allclose(codes.mT @ codes / 300, torch.eye(299).double(), atol=1e-8)


def test_the_slope_in_p_of_a_tiny_map_is_not_rounded_away() -> None:
    p, z = torch.rand(3, 3).requires_grad_(), 1e-5 * torch.randn(3, 2)
    (slope,) = torch.autograd.grad(pair_log_likelihood(p, z, torch.tensor(1.0)), p)
    torch.testing.assert_close(slope.double(), -torch.cdist(z.double(), z.double()).square().log1p(), rtol=1e-4, atol=0)


def test_many_points_have_the_codes_of_the_dense_matrix(apart: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    x, likelihood = torch.stack([apart, 2 * apart.flip(0)]), LLE(400, apart.shape[1:], 3, neighbours=15).double()
    found = likelihood.mode(x)
    monkeypatch.setattr(spectrum, "SPARSE", 1000)
    wanted = likelihood.mode(x)
    assert torch.allclose(found * (found * wanted).sum(1, keepdim=True).sign(), wanted, atol=1e-6)


@pytest.mark.parametrize("count", [5, 80])
def test_new_points_are_placed_as_scikit_learn_does(count: int, apart: Tensor, digits: Dataset) -> None:
    """Also with more neighbours than dimensions."""
    new = digits.test[:50].double()
    oracle = LocallyLinearEmbedding(n_neighbors=count, eigen_solver="dense").fit(apart.flatten(1).numpy())
    likelihood = LLE(400, digits.event_shape, neighbours=count).double()
    z = torch.as_tensor(oracle.embedding_)[None, None]
    found = likelihood.transform(apart[None], z, new[None])[0, 0]
    assert np.allclose(found.numpy(), oracle.transform(new.flatten(1).numpy()), atol=1e-8)


@pytest.mark.usefixtures("unchecked_types")
def test_new_points_of_another_shape() -> None:
    likelihood, x, z = LLE(9, (3,)), torch.randn(1, 9, 3), torch.randn(1, 9, 2)
    for new in (torch.randn(5, 3), torch.randn(1, 5, 4), torch.randn(2, 5, 3)):
        with pytest.raises(ValueError, match=r"new must have shape \(B, M, \*F\) = \(1, M, 3\), got"):
            likelihood.transform(x, z, new)


def test_a_neighbour_takes_its_own_code() -> None:
    """A new point equal to a data point has its code, up to regularisation."""
    x, likelihood = torch.randn(1, 30, 3).double(), LLE(30, (3,), neighbours=3, reg=1e-9).double()
    z = torch.randn(1, 30, 2).double()
    assert torch.allclose(likelihood.transform(x, z, x[:, :4]), z[:, :4], atol=1e-6)


def test_residuals_have_the_density_of_the_docstring() -> None:
    model, x, z = LLE(9, (3,), scale=0.3, neighbours=4).double(), torch.randn(2, 9, 3).double(), torch.randn(5, 2, 9, 2)
    mean = model.relation(x) @ z.double()
    wanted = Normal(mean, 0.3).log_prob(z.double()).sum((-2, -1))
    assert torch.allclose(model.log_joint(x, z.double()), wanted, rtol=1e-6)


def circle() -> tuple[LLE, Tensor]:
    angle = torch.arange(12).double() * (2 * math.pi / 12)
    x = torch.stack([angle.cos(), 0.7 * angle.sin(), 0.2 * (2 * angle).cos()], -1).unsqueeze(0)
    return LLE(12, (3,), neighbours=4, reg=1e-2, scale=0.5).double(), x


@pytest.mark.usefixtures("unchecked_types")
def test_ascent_with_whitening_finds_the_closed_form() -> None:
    model, x = circle()
    codes = Mode()(model, x).point[0].detach()
    climb = Ascent(PrincipalComponents(1.0), Projected(GradientAscent(0.05), Whiten()), 2000, adjoint=Detach())
    short = Ascent(PrincipalComponents(1.0), Projected(GradientAscent(0.05), Whiten()), 1, adjoint=Detach())
    with torch.no_grad():
        found, before = (engine(model, x).point[0] for engine in (climb, short))
    assert sine(found, codes) < 1e-4 < sine(before, codes)
    assert torch.allclose(found.mT @ found / 12, torch.eye(2).double(), atol=1e-8)


def test_no_whitened_code_is_better_than_the_mode() -> None:
    model, x = circle()
    encoding = Mode()(model, x)
    best = encoding.log_joint
    torch.testing.assert_close(best, model.log_joint(x, encoding.z), rtol=1e-12, atol=0)
    others = Whiten()(torch.randn(200, 1, 12, 2).double())
    near = Whiten()(encoding.z + 0.01 * others)
    for z in (others, near):
        assert (model.log_joint(x, z) < best).all()


@pytest.mark.parametrize("least", [10, 300])
def test_a_graph_in_pieces_is_reported(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "SPARSE", least)
    x = torch.cat([torch.randn(10, 3), 100 + torch.randn(10, 3)]).unsqueeze(0)
    with pytest.warns(UserWarning, match="With 3 neighbours the graph of a data set is disconnected"):
        Mode()(LLE(20, (3,), neighbours=3), x)


def test_adam_lays_out_too(digits: Dataset) -> None:
    """Any step rule serves: the engine is a part to swap on the same likelihood."""
    x = digits.train[:50].unsqueeze(0)
    model = Autoencoder(
        TSNE(50, digits.event_shape, perplexity=8.0), Ascent(DecoderInit(), Adam(0.3), 150, adjoint=Detach())
    )
    with torch.no_grad():
        z = model.encode(x).z
    likelihood = model.likelihood
    assert isinstance(likelihood, TSNE)
    assert float(likelihood.divergence(x, z)) < 0.6
