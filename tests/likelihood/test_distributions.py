"""Distributions of heads over the whole range of floats, against 60-digit closed forms, quadrature and samples."""

import math
from typing import Any

import mpmath as mp
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import jacfwd, jacrev

from gae import Autoencoder
from gae.inference import Zeros, to_pyro
from gae.likelihood import (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    GaussianKernel,
    Head,
    LaplacePrior,
    LinearMixture,
    Measured,
    NonNegativePoisson,
    Poisson,
)

mp.mp.dps = 100
PRECISION = {torch.float32: 2e-7, torch.float64: 1e-11}
both = pytest.mark.parametrize("dtype", PRECISION)
SIZES = (1e-30, 1e-4, 4e-3, 0.029, 0.031, 0.3, 1, 5, 17, 30, 88, 100, 1e3, 1e6, 1e15, 1e30)
LOGITS = [0.0, *SIZES, *(-size for size in SIZES)]
DRAWN = [0.0, 1e-4, -1e-4, -0.004, 0.3, -3.0, 17.0, 30.0, 100.0, -100.0, 1e3, -1e6]


def law(build: type[Head], output: Tensor) -> Any:
    return build(nn.Linear(1, 1), 1).to(output.dtype).distribution(output)


def close(found: Tensor, wanted: Any, tolerance: float, least: float = 1e-37) -> bool:
    """Relative to the wanted value rounded to the dtype; ``least`` is the absolute tolerance."""
    kind = np.float32 if found.dtype == torch.float32 else np.float64
    with np.errstate(over="ignore"):
        number = float(kind(float(wanted)))
    if math.isinf(number):
        return found.item() == number
    return abs(found.item() - number) <= tolerance * abs(number) + least


def derivatives(value: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    (first,) = torch.autograd.grad(value, at, create_graph=True)
    (second,) = torch.autograd.grad(first, at)
    return first, second


# Scales whose squares underflow or overflow.


EXTREME = [1e-37, 1e-30, 1e-20, 1e20, 1e30]


def charts(latent: int, scale: float) -> LinearMixture:
    model = LinearMixture(2, latent, (4,), scale=scale)
    model.means.data[1] = 8 * max(scale, 1)
    return model


@pytest.mark.parametrize("scale", EXTREME)
def test_normal_densities_of_tiny_and_huge_scales(scale: float) -> None:
    """At the means and one scale away, through each density method, against scipy in float64."""
    x = scale * torch.randn(5, 4)
    x[0] = 0
    wanted = scipy.stats.norm.logpdf(x.double().numpy(), scale=scale).sum(1)
    z, k = torch.zeros(1, 5, 2), torch.zeros(1, 5, dtype=torch.long)
    decoder = nn.Linear(2, 4, bias=False)
    plain, mixed, points = LinearMixture(1, 2, (4,), scale=scale), charts(2, scale), charts(0, scale)
    head, kernel = Gaussian(decoder, 2, scale), GaussianKernel(1, 2, (4,), absorbing=0.0, scale=scale)
    measured = Measured(Gaussian(decoder, 2), nn.Identity(), scale=scale)
    prior, two = 2 * 0.5 * math.log(2 * math.pi), math.log(2)
    found = {
        "head": head.log_joint(x, z) + prior,
        "measured": measured.log_joint(x, z) + prior,
        "kernel": kernel.log_joint(x, z),
        "kernel's law": kernel(z).log_prob(x),
        "chart": plain.log_joint(x, z) + prior,
        "bound chart": plain.bind(x)(z) + prior,
        "chart's law": plain(z).log_prob(x),
        "charts": mixed.log_joint(x, z, k) + prior + two,
        "bound charts": mixed.bind(x)(z, k[:, :1]) + prior + two,
        "charts' output": mixed.log_likelihood(x, mixed.outputs(z, k), k),
        "charts' law": mixed(z, k).log_prob(x),
        "points": points.nearest(x)[1] + two,
    }
    for name, value in found.items():
        assert np.allclose(value.detach().double().numpy(), wanted, rtol=1e-5, atol=1e-3), name
    assert points.nearest(x)[0].tolist() == [0] * 5


@pytest.mark.parametrize("scale", [1e-39, 1e39, math.inf])
def test_scales_that_float32_cannot_invert_are_refused(scale: float) -> None:
    for build in (lambda: LinearMixture(1, 2, (4,), scale=scale), lambda: Gaussian(nn.Linear(2, 4), 2, scale)):
        with pytest.raises(ValueError, match="scale must lie within"):
            build()


# The continuous Bernoulli distribution: exp(logit x) / M, M = (exp(logit) - 1) / logit.


def log_mass(logit: Any) -> Any:
    return mp.log(mp.expm1(logit) / logit) if logit else mp.mpf(0)


def mean(logit: Any) -> Any:
    return 1 / (1 - mp.exp(-logit)) - 1 / logit if logit else mp.mpf(0.5)


def variance(logit: Any) -> Any:
    return 1 / logit**2 - 1 / (4 * mp.sinh(logit / 2) ** 2) if logit else mp.mpf(1) / 12


def number(logit: Tensor) -> Any:
    with mp.workdps(250):  # (1e-30)² beside 1e-60
        return mp.mpf(logit.item())


@both
@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_over_the_whole_range(logit: float, dtype: torch.dtype) -> None:
    output, tolerance = torch.tensor(logit, dtype=dtype, requires_grad=True), PRECISION[dtype]
    q, exact = law(ContinuousBernoulli, output), number(output.detach())
    assert close(q.mean, mean(exact), tolerance)
    assert close(q.variance, variance(exact), tolerance)
    entropy = log_mass(exact) - exact * mean(exact)
    assert close(q.entropy(), entropy, tolerance, least=tolerance)
    for value in (0.0, 1e-3, 0.25, 0.5, 0.999, 1.0):
        x = torch.tensor(value, dtype=dtype)
        point, density = mp.mpf(x.item()), q.log_prob(x)
        assert close(density, exact * point - log_mass(exact), tolerance, least=tolerance)
        first, second = derivatives(density, output)
        assert close(first, point - mean(exact), tolerance, least=1e-15 if dtype == torch.float64 else 1e-37)
        assert close(second, -variance(exact), tolerance)
        wanted = mp.expm1(exact * point) / mp.expm1(exact) if exact else point
        assert close(q.cdf(x), wanted, tolerance)
    for value in (0.0, 1e-8, 1e-3, 0.5, 0.7, 0.999, 1.0):
        u = torch.tensor(value, dtype=dtype)
        exact_u = mp.mpf(u.item())
        odds = 1 - exact_u + exact_u * mp.exp(exact)
        log_odds = mp.log1p(exact_u * mp.expm1(exact)) if abs(exact) < 1 else mp.log(odds)
        wanted = log_odds / exact if exact else exact_u
        assert close(q.icdf(u), wanted, tolerance, least=tolerance)
        (found,) = torch.autograd.grad(q.icdf(u), output)
        wanted = (exact_u * mp.exp(exact) / odds - wanted) / exact if exact else exact_u * (1 - exact_u) / 2
        assert close(found, wanted, 10 * tolerance, least=tolerance / (1 + logit * logit))


@pytest.mark.parametrize("logit", [0.0, 1e-4, -1e-4, 0.02, -0.04, 1.0, -30.0, 100.0, 1e3, -1e3])
def test_continuous_bernoulli_by_quadrature(logit: float) -> None:
    q = law(ContinuousBernoulli, torch.tensor(logit))
    exact, end = number(q.logits), mp.mpf(0.5 + 0.5 * math.copysign(1, logit))
    parts = sorted({mp.mpf(0), mp.mpf(1), *(end + s * mp.mpf(10) ** -n for n in range(4) for s in (-1, 1))})
    parts = [part for part in parts if 0 <= part <= 1]
    with mp.workdps(30):
        moments = [mp.quad(lambda x, n=n: x**n * mp.exp(exact * (x - end)), parts) for n in range(3)]
    first, second = moments[1] / moments[0], moments[2] / moments[0]
    assert close(q.mean, first, 2e-7) and close(q.variance, second - first**2, 2e-7)
    assert close(q.log_prob(torch.tensor(float(end))), -mp.log(moments[0]), 2e-7, least=2e-7)


@pytest.mark.parametrize("logit", DRAWN)
def test_continuous_bernoulli_draws_are_its_own(logit: float) -> None:
    """Mean log density of samples is minus the entropy, and their moments agree, within five standard errors."""
    q = law(ContinuousBernoulli, torch.tensor(logit))
    x = q.sample((4000,))
    assert ((x >= 0) & (x <= 1)).all()
    moments = {q.log_prob(x): -q.entropy(), x: q.mean, (x.double() - q.mean.double()) ** 2: q.variance}
    for found, wanted in moments.items():
        error = found.double().std().item() / math.sqrt(len(x))
        assert abs(found.double().mean().item() - wanted.item()) <= 5 * error + 1e-7
    assert scipy.stats.kstest(x.double().numpy(), lambda v: q.cdf(torch.from_numpy(v)).numpy()).pvalue > 1e-6


def test_what_a_saturated_decoder_draws_and_reconstructs() -> None:
    """Ink of logit 100 on paper of logit -100: draws, means and densities agree with each other."""
    decoder = nn.Linear(1, 100)
    decoder.weight.data.zero_()
    decoder.bias.data = torch.cat([torch.full((50,), 100.0), torch.full((50,), -100.0)])
    model = Autoencoder(ContinuousBernoulli(decoder, 1), Zeros())
    x = model.likelihood(torch.zeros(200, 1)).sample()
    wanted = 100 * (math.log(100) - 1)  # minus the entropy of exponential laws of rate 100
    found = model.likelihood(torch.zeros(1)).log_prob(x)
    assert abs(found.mean() - wanted) < 5 * math.sqrt(100 / 200)
    torch.testing.assert_close(model.reconstruct(x)[0, [0, -1]], torch.tensor([0.99, 0.01]))


def test_continuous_bernoulli_divergence() -> None:
    """KL = E_p (log p - log q), by 2,000 of p's quantiles."""
    logits = torch.tensor([-100.0, -2.0, 0.0, 0.02, 5.0, 30.0])
    p, q = law(ContinuousBernoulli, logits[:, None]), law(ContinuousBernoulli, logits)
    x = law(ContinuousBernoulli, logits.double()[:, None]).icdf((torch.arange(2000).double() + 0.5) / 2000)
    gap = [p.log_prob(v[:, None]) - q.log_prob(v[:, None]) for v in x.float().unbind(1)]
    torch.testing.assert_close(kl_divergence(p, q), torch.stack(gap).mean(0), rtol=2e-3, atol=1e-5)


def test_forward_mode_twice() -> None:
    logits, rates = torch.tensor([-3.0, 0.0, 0.02, 50.0]), torch.tensor([-3.0, 1.0, 13.8, 30.0])
    x, counts = torch.tensor([0.2, 0.3, 1.0, 0.9]), torch.tensor([0.0, 3.0, 1e6, 7.0])
    for build, output, value in ((ContinuousBernoulli, logits, x), (Poisson, rates, counts)):
        model = build(nn.Linear(1, 4), 1)

        def density(at: Tensor, model: Head = model, value: Tensor = value) -> Tensor:
            return model.log_likelihood(value[None], at[None, None]).sum()

        wanted = -law(build, output).variance.diag()
        for outer in (jacfwd, jacrev):
            torch.testing.assert_close(outer(jacfwd(density))(output), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("build", [ContinuousBernoulli, Poisson, Bernoulli, Gaussian])
def test_laws_are_pyros(build: type[Head]) -> None:
    q = law(build, torch.tensor([[0.3], [-1.0]]))
    assert isinstance(q, getattr(dist, {"Gaussian": "Normal"}.get(build.__name__, build.__name__)))
    wide = q.expand(torch.Size([3, 2, 4]))
    assert wide.sample().shape == wide.variance.shape == wide.log_prob(torch.ones(4)).shape == (3, 2, 4)
    torch.testing.assert_close(wide.log_prob(torch.ones(4)), q.log_prob(torch.ones(4)).expand(3, 2, 4))


# The Poisson distribution.

COUNTS = (0.0, 1.0, 2.0, 5.0, 15.0, 16.0, 17.0, 1e3, 1e6, 2.0**24, 1e9)
LOG_RATES = (-1e30, -1e6, -1e3, -120, -90, -30, -1, -1e-4, -1e-30, 0, 1e-4, 1, 30, 60, 88, 89, 1e3, 1e30)


@both
@pytest.mark.parametrize("count", COUNTS)
def test_poisson_over_the_whole_range(count: float, dtype: torch.dtype) -> None:
    """Density, x - rate and -rate at given log rates; density and x / rate - 1 at given rates."""
    x, tolerance, wanted = torch.tensor([[count]], dtype=dtype), PRECISION[dtype], mp.mpf(count)
    factorial = mp.loggamma(wanted + 1)
    own = math.log(count) if count else 0.0
    by_log, by_rate = Poisson(nn.Linear(1, 1), 1).to(dtype), NonNegativePoisson(1, (1,)).to(dtype)
    for log_rate in (*LOG_RATES, own, *(own + s * d for s in (-1, 1) for d in (1e-5, 1e-3, 0.1, 0.4, 0.5, 1))):
        output = torch.tensor([[[log_rate]]], dtype=dtype, requires_grad=True)
        exact = number(output.detach())
        rate = mp.exp(min(exact, mp.mpf(1000)))  # beyond any float
        density = by_log.log_likelihood(x, output)
        assert close(density, wanted * exact - rate - factorial, tolerance, least=tolerance)
        first, second = derivatives(density, output)
        assert close(first, wanted - rate, tolerance, least=1e-14 * count + 1e-99)  # log(count) as a double
        assert close(second, -rate, tolerance, least=1e-10 * count)
        q = by_log.distribution(output)
        assert close(q.mean, rate, 10 * tolerance) and close(q.variance, rate, 10 * tolerance)
        if abs(exact) > 80:
            continue
        output = q.rate.detach().requires_grad_()
        exact = number(output.detach())
        density = by_rate.log_likelihood(x, output)
        assert close(density, wanted * mp.log(exact) - exact - factorial, tolerance, least=tolerance)
        first, second = derivatives(density, output)
        assert close(first, wanted / exact - 1, tolerance, least=1e-9)
        assert close(second, -wanted / exact**2, tolerance)


@pytest.mark.parametrize("count", [0.0, 3.0])
@pytest.mark.parametrize("log_rate", [89.0, 1e3, math.inf])
def test_a_rate_that_overflows(count: float, log_rate: float) -> None:
    """exp(89) = 4.5e38 overflows float32, as do the density and its slope: they are -inf, never nan."""
    model, output = Poisson(nn.Linear(1, 1), 1), torch.tensor([[[log_rate]]], requires_grad=True)
    density = model.log_likelihood(torch.tensor([[count]]), output)
    (slope,) = torch.autograd.grad(density, output)
    assert density.item() == slope.item() == -math.inf
    assert model.distribution(output).mean == math.inf
    with pytest.raises(
        ValueError, match=r"Cannot draw counts at a Poisson rate of inf: in torch.float32 it must be at"
    ):
        model.distribution(output).sample()


def test_a_rate_of_zero_has_a_limit() -> None:
    model, output = NonNegativePoisson(1, (1,)), torch.zeros(1, 3, 1, requires_grad=True)
    density = model.log_likelihood(torch.tensor([[0.0], [1.0], [7.0]]), output)
    assert density.tolist() == [[0.0, -math.inf, -math.inf]]
    (slope,) = torch.autograd.grad(density.sum(), output)
    assert slope.flatten().tolist() == [-1.0, math.inf, math.inf]


def test_no_mass_below_zero() -> None:
    q = law(Poisson, torch.tensor(0.5))
    assert q.log_prob(torch.tensor(-1.0)) == -math.inf and q.log_prob(torch.tensor(math.nan)).isnan()


@pytest.mark.parametrize("rate", [0.5, 50.0, 1e6, 2.0**31, 1e19, 1e30])
def test_poisson_draws_have_its_moments(rate: float) -> None:
    """torch's samples are -9.2e18 at a rate of 1e19."""
    q = law(Poisson, torch.tensor(rate).double().log())
    x = q.sample((4000,))
    standard, kurtosis = (x - q.mean) / q.stddev, 3 + 1 / rate
    assert abs(standard.mean()) < 5 / math.sqrt(4000)
    assert abs(standard.square().mean() - 1) < 5 * math.sqrt((kurtosis - 1) / 4000)
    assert (x == x.round()).all()


# Precision of other distributions at extreme parameters.


@pytest.mark.parametrize("logit", [0.0, 1e-4, 10.0, 20.0, 60.0, -20.0, -90.0])
def test_a_certain_bernoulli_still_varies(logit: float) -> None:
    q, p = law(Bernoulli, torch.tensor(logit)), 1 / (1 + mp.exp(-number(torch.tensor(logit))))
    assert close(q.variance, p * (1 - p), 1e-6)
    assert close(q.entropy(), -p * mp.log(p) - (1 - p) * mp.log1p(-p), 1e-6)


@pytest.mark.parametrize("power", [-30, -20, 0, 20, 30])
@pytest.mark.parametrize("learn", ["fixed", "scalar", "pixel"])
def test_a_normal_density_at_any_scale(power: int, learn: Any) -> None:
    """torch squares the scale, which is not a float32 for 1e±20 and beyond."""
    scale = 10.0**power
    model = Gaussian(nn.Linear(1, 3), 1, scale, learn)
    output, x = torch.tensor([[[0.0, 1.0, -2.0]]]) * scale, torch.tensor([[0.0, 1.5, 1.0]]) * scale
    found = (model.log_likelihood(x, output), model._independent(output).log_prob(x))
    wanted = scipy.stats.norm.logpdf([0, 0.5, 3]).sum() - 3 * math.log(scale)
    for value in found:
        assert value.item() == pytest.approx(wanted, rel=1e-5)
    if learn == "fixed":
        return
    (slope,) = torch.autograd.grad(found[0].sum(), model.log_scale)
    torch.testing.assert_close(slope.sum(), torch.tensor(0.25 + 9 - 3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rate", [1e-46, 1e46])
def test_a_laplace_prior_needs_a_scale_that_is_a_number(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be positive and within 1.2e-38 ... 8.5e\+37, got 1e"):
        LaplacePrior(2, rate=rate)


@pytest.mark.parametrize("build", [ContinuousBernoulli, Poisson])
def test_pyro_scores_what_log_joint_scores(build: type[Head]) -> None:
    model = build(nn.Linear(2, 3), 2)
    model.decoder.weight.data *= 30
    with torch.no_grad():
        x = model(torch.randn(5, 2)).sample().round()
        trace = pyro.poutine.trace(to_pyro(model)).get_trace(x)
        wanted = model.log_joint(x, trace.nodes["z"]["value"].unsqueeze(0)).sum()
    torch.testing.assert_close(trace.log_prob_sum(), wanted, rtol=1e-5, atol=1e-4)
