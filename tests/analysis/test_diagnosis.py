"""Diagnosis of codes against closed forms of linear-Gaussian models, and quadrature in one dimension."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from scipy.special import logsumexp
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform

from gae import Autoencoder, nets, vae
from gae.analysis.baseline import kernel_density
from gae.analysis.diagnosis import (
    Information,
    active_units,
    diagnose,
    kl_per_dimension,
    mutual_information,
    without_code,
)
from gae.analysis.rate_distortion import rate_distortion, rate_distortion_curve
from gae.inference import Amortized, Ascent, ClosedForm
from gae.likelihood import Bernoulli, Flat, Gaussian, LinearMixture, Poisson, StandardUnits, VonMisesFisher
from gae.objective import elbo


def ppca(latent: int = 2, dim: int = 5) -> Autoencoder:
    model = LinearMixture(1, latent, (dim,), scale=0.6).double()
    model.loadings.data.normal_()
    return Autoencoder(model, ClosedForm(), elbo)


class Given(nn.Module):
    """Densities N(slope · x, scale²) of one-dimensional codes, as a normal or as a flow without closed forms."""

    def __init__(self, slope: float, scale: float, flow: bool):
        super().__init__()
        self.slope, self.scale, self.flow = slope, scale, flow

    def forward(self, x: Tensor) -> Distribution:
        loc = self.slope * x[:, :1]
        if not self.flow:
            return Independent(Normal(loc, self.scale), 1)
        base = Normal(torch.zeros_like(loc), self.scale)
        return Independent(TransformedDistribution(base, [AffineTransform(loc, 1.0)]), 1)


def given(flow: bool) -> Autoencoder:
    decoder = nn.Linear(1, 2).double()
    return Autoencoder(Gaussian(decoder, 1, 0.5), Amortized(Given(0.7, 0.4, flow)), elbo)


@pytest.mark.parametrize("flow", [False, True])
def test_information_by_quadrature(flow: bool) -> None:
    """A mixture of 25 normals as the aggregate: its KL from the prior by SciPy, and the KL of each in closed form."""
    x = torch.randn(25, 2).double() * 2
    loc, scale = 0.7 * x[:, 0].numpy(), 0.4

    def integrand(z: float) -> float:
        log_q = logsumexp(stats.norm(loc, scale).logpdf(z)) - math.log(25)
        return float(np.exp(log_q) * (log_q - stats.norm.logpdf(z)))

    aggregate = integrate.quad(integrand, -12, 12, limit=400)[0]
    kl = float(np.mean(0.5 * (loc**2 + scale**2 - 1) - np.log(scale)))
    information = mutual_information(given(flow), x, draws=400, batch_size=10)
    for values, wanted in (
        (information.kl, kl),
        (information.mutual_information, kl - aggregate),
        (information.aggregate_kl, aggregate),
    ):
        assert abs(values.mean().item() - wanted) < 0.06
    assert information.mutual_information.mean() < math.log(25)
    assert torch.allclose(information.kl, information.mutual_information + information.aggregate_kl)


def test_information_of_a_linear_gaussian_model() -> None:
    """For data of the model the aggregate is the prior, and I(x; z) = ½ log det(I + WᵀW / σ²), from below in N."""
    model = ppca()
    model.likelihood.loadings.data *= 0.5
    with torch.no_grad():
        x, _ = model.likelihood.sample_joint(1500)
    loadings = model.likelihood.loadings[0].detach()
    wanted = 0.5 * torch.logdet(torch.eye(2) + loadings @ loadings.T / 0.36).item()
    few, many = mutual_information(model, x[:40]), mutual_information(model, x, draws=4)
    values = many.mutual_information
    assert abs(values.mean().item() - wanted) < 5 * values.std().item() / math.sqrt(1500) + 0.1
    assert -0.02 < many.aggregate_kl.mean() < 0.1
    assert few.mutual_information.mean() < math.log(40)


@pytest.mark.parametrize("flow", [False, True])
def test_rate_and_distortion_are_those_of_a_linear_decoder(flow: bool) -> None:
    """Closed form: -E log q(x|z) under a normal q, for each observation."""
    model, x = given(flow), torch.randn(6, 2).double()
    layer = model.likelihood.decoder
    found = rate_distortion(model, x, draws=20000 if flow else 100)
    loc = 0.7 * x[:, :1]
    residual = (x - layer(loc)).square().sum(1) + 0.4**2 * layer.weight.square().sum()
    distortion = residual / (2 * 0.25) + 2 * math.log(0.5) + math.log(2 * math.pi)
    rate = 0.5 * (loc[:, 0].square() + 0.16 - 1) - math.log(0.4)
    tolerance = 0.25 if flow else 1e-9
    assert (found.rate - rate).abs().max() < (0.1 if flow else 1e-12)
    assert (found.distortion - distortion).abs().max() < tolerance
    assert torch.allclose(found.bound, -(found.rate + found.distortion))


def test_the_bound_of_the_exact_posterior_is_the_evidence() -> None:
    model = ppca()
    x = torch.randn(7, 5).double()
    assert torch.allclose(rate_distortion(model, x).bound, model.likelihood.log_evidence(x).log_p, atol=1e-9)


def test_units_of_a_linear_gaussian_model() -> None:
    """Means and variances of the posterior by conditioning; one loading is zero, so its unit is inactive."""
    model = ppca(3, 6)
    model.likelihood.loadings.data[0, 1] = 0
    with torch.no_grad():
        x, _ = model.likelihood.sample_joint(300)
    loadings = model.likelihood.loadings[0].detach().numpy()
    covariance = np.linalg.inv(np.eye(3) + loadings @ loadings.T / 0.36)
    means = (x.numpy() - model.likelihood.means[0].detach().numpy()) @ loadings.T @ covariance / 0.36
    usage = active_units(model, x, batch_size=70)
    assert np.allclose(usage.variance, means.var(0, ddof=1))
    assert usage.active.tolist() == [True, False, True]
    diagonal = covariance.diagonal()
    assert np.allclose(usage.kl, (0.5 * (means**2 + diagonal - 1 - np.log(diagonal))).mean(0))
    q = MultivariateNormal(torch.as_tensor(means), torch.as_tensor(covariance))
    assert np.allclose(kl_per_dimension(q, model.likelihood.prior).mean(0), usage.kl)


def test_codes_without_a_density_are_refused() -> None:
    x = torch.randn(4, 5)
    points = Autoencoder(Gaussian(nn.Linear(2, 5), 2), Ascent(max_steps=1))
    flat = Autoencoder(Gaussian(nn.Linear(2, 5), 2, prior=Flat(2)), Ascent(max_steps=1))
    charts = Autoencoder(LinearMixture(3, 2, (5,)), ClosedForm())
    for function in (active_units, mutual_information, rate_distortion, diagnose):
        with pytest.raises(ValueError, match="`Ascent` has no density"):
            function(points, x)
        with pytest.raises(ValueError, match="flat prior"):
            function(flat, x)
        with pytest.raises(ValueError, match="`ClosedForm` has no density"):
            function(charts, x)


# The model without a code.


@pytest.mark.parametrize("learn", ["fixed", "scalar", "pixel"])
def test_a_gaussian_without_a_code(learn: str) -> None:
    """Mean and variance of the training data, in data units far from one."""
    train = 50 + 20 * torch.randn(200, 3).double() * torch.tensor([1.0, 2.0, 3.0])
    x = 50 + 20 * torch.randn(10, 3).double()
    decoder = nets.Rescaled(nn.Linear(2, 3), (3,)).double()
    decoder.loc.fill_(40.0), decoder.scale.fill_(25.0)
    head = Gaussian(decoder, 2, 30.0, learn=learn)  # type: ignore[arg-type]
    deviation = (train - train.mean(0)).square()
    variance = {"fixed": torch.tensor(900.0), "scalar": deviation.mean(), "pixel": deviation.mean(0)}[learn]
    wanted = stats.norm(train.mean(0).numpy(), variance.sqrt().numpy()).logpdf(x.numpy()).sum(1)
    before = [parameter.clone() for parameter in head.parameters()]
    assert np.allclose(without_code(head, train, x, batch_size=64).numpy(), wanted, atol=1e-4)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, head.parameters(), strict=True))


def test_a_bernoulli_without_a_code() -> None:
    """The frequency of each pixel."""
    train = (torch.rand(300, 4) < torch.tensor([0.1, 0.4, 0.5, 0.9])).double()
    head = Bernoulli(nn.Sequential(nn.Linear(2, 4)).double(), 2)
    wanted = stats.bernoulli(train.mean(0).numpy()).logpmf(train[:20].numpy()).sum(1)
    assert np.allclose(without_code(head, train, train[:20]).numpy(), wanted, atol=1e-4)


def test_only_heads_have_a_model_without_a_code() -> None:
    with pytest.raises(TypeError, match="for heads only, and LinearMixture is none"):
        without_code(LinearMixture(1, 2, (5,)), torch.randn(9, 5), torch.randn(9, 5))


def left_out(log_kernel: Callable[[np.ndarray, float], np.ndarray], train: np.ndarray, widths: np.ndarray) -> float:
    """The width of a kernel with the highest mean log density of each sample by all others."""
    square = ((train[:, None] - train) ** 2).sum(-1) + np.diag(np.full(len(train), np.inf))

    def loss(width: float) -> float:
        return -logsumexp(log_kernel(square, width), 1).mean()

    best = int(np.argmin([loss(width) for width in widths]))
    return optimize.minimize_scalar(loss, bounds=widths[[best - 1, best + 1]], options={"xatol": 1e-9}).x


def test_a_kernel_density_is_that_of_the_best_width() -> None:
    """A normal at each training sample, whose width is that of leaving one out; also in the units of the data."""
    train, x = (torch.randn(n, 2).double() * torch.tensor([3.0, 0.1]) for n in (40, 7))
    head = Gaussian(nn.Linear(1, 2), 1).double()

    def wanted(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
        width = left_out(lambda square, w: -0.5 * square / w**2 - 2 * np.log(w), rows, np.geomspace(1e-3, 10, 200))
        laws = [stats.multivariate_normal(row, width**2 * np.eye(2)).logpdf(queries) for row in rows]
        return logsumexp(laws, 0) - np.log(len(rows))

    found = kernel_density(head, train, x)
    assert found is not None and np.allclose(found.numpy(), wanted(train.numpy(), x.numpy()), atol=2e-3)
    units = StandardUnits.of(Gaussian(nn.Linear(1, 2), 1)).double()
    units.set_units(train)
    (loc, scale) = train.mean(0), train.std(0, correction=0)
    inner = wanted(((train - loc) / scale).numpy(), ((x - loc) / scale).numpy()) - scale.log().sum().item()
    found = kernel_density(units, train, x)
    assert found is not None and np.allclose(found.numpy(), inner, atol=2e-3)


def test_the_kernel_of_binary_data_is_a_mass() -> None:
    train = (torch.rand(50, 4) < torch.tensor([0.1, 0.4, 0.5, 0.9])).double()
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 4)
    found = kernel_density(Bernoulli(nn.Linear(1, 4).double(), 1), train, every)
    assert found is not None and float(found.exp().sum()) == pytest.approx(1.0)

    def log_kernel(square: np.ndarray, chance: float) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(square), -np.inf, stats.bernoulli.logpmf(1, chance) * square) + (
                np.where(np.isinf(square), 0, 4 - square) * stats.bernoulli.logpmf(0, chance)
            )

    chance = left_out(log_kernel, train.numpy(), np.linspace(1e-3, 0.5, 200))
    square = ((every[:, None] - train) ** 2).sum(-1).numpy()
    assert np.allclose(found.numpy(), logsumexp(log_kernel(square, chance), 1) - np.log(50), atol=1e-3)


def test_counts_and_directions_have_no_kernel() -> None:
    for head in (Poisson(nn.Linear(1, 3), 1), VonMisesFisher(nn.Linear(1, 3), 1)):
        assert kernel_density(head, torch.ones(9, 3), torch.ones(2, 3)) is None


def test_a_diagnosis_gains_what_the_code_explains() -> None:
    """A linear decoder with its exact posterior: the gain is log p(x) minus that of one normal for all x."""
    layer = nn.Linear(1, 2).double()
    layer.weight.data = torch.tensor([[2.0], [-1.0]]).double()
    head = Gaussian(layer, 1, 0.5)
    precision = 1 + 5 / 0.25

    class Posterior(nn.Module):
        def forward(self, x: Tensor) -> Distribution:
            loc = (x - layer.bias) @ layer.weight / 0.25 / precision
            return Independent(Normal(loc, precision**-0.5), 1)

    with torch.no_grad():
        x, _ = head.sample_joint(200)
    found = diagnose(Autoencoder(head, Amortized(Posterior()), elbo), x, x)
    covariance = (layer.weight @ layer.weight.T).detach().numpy() + 0.25 * np.eye(2)
    log_p = stats.multivariate_normal(layer.bias.detach().numpy(), covariance).logpdf(x.numpy())
    alone = stats.norm(x.mean(0).numpy(), 0.5).logpdf(x.numpy()).sum(1)
    assert found.gain is not None and np.allclose(found.gain.numpy(), log_p - alone, atol=1e-4)
    table = found.table()
    assert table["active units"]["mean"] == 1
    assert table["rate"]["mean"] - table["mutual information"]["mean"] == pytest.approx(
        table["aggregate KL"]["mean"], abs=0.1
    )
    assert "gain over no code" not in diagnose(Autoencoder(head, Amortized(Posterior()), elbo), x).table()


@pytest.mark.slow
def test_the_rate_falls_with_beta() -> None:
    """From codes that are used to a collapsed one, without a warning."""
    torch.manual_seed(0)
    x = torch.randn(60, 1) @ torch.randn(1, 4) + 0.1 * torch.randn(60, 4)

    built = []

    def build(beta: float) -> Autoencoder:
        torch.manual_seed(0)
        built.append(vae((4,), latent=1, hidden=(8,), beta=beta, scale=0.5, learn="fixed"))
        return built[-1]

    def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, 0.02)

    curve = rate_distortion_curve(build, x, [0.1, 50.0], x, epochs=200, optimizer=adam, progress=False)
    assert not any(model.training for model in built)  # evaluated as they are used
    (low, high) = curve.values()
    assert low.rate.mean() > 1 and high.rate.mean() < 0.1
    assert low.distortion.mean() + 1 < high.distortion.mean()


@pytest.mark.parametrize(("draws", "wanted"), [(50, 5), (6, 1)])
def test_information_has_a_tenth_of_the_draws(draws: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def recorded(model: Autoencoder, x: Tensor, draws: int, batch_size: int) -> Information:
        asked.append(draws)
        return mutual_information(model, x, draws, batch_size)

    monkeypatch.setattr("gae.analysis.diagnosis.mutual_information", recorded)
    diagnose(ppca(), torch.randn(5, 5).double(), draws=draws)
    assert asked == [wanted]
