"""Objectives against their formulas, on encodings made by hand and on models whose evidence is known."""

import math
from functools import partial
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from scipy.stats import norm
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, StudentT, Uniform

from gae import Autoencoder
from gae.inference import Amortized, Argmax, Ascent, ClosedForm, Constant, Encoding, Enumerate, Inference, Prior, Zeros
from gae.likelihood import Bernoulli, Flat, Gaussian, Likelihood, LinearMixture
from gae.objective import Objective, elbo, iwae, joint, logsumexp, mean, minimum, soft_minimum, wake_wake

S, B, Z = 5, 4, 3


class Density(nn.Module):
    """q(z|x): the same given density for every x."""

    def __init__(self, density: Distribution):
        super().__init__()
        self.density = density

    def forward(self, x: Tensor) -> Distribution:
        return self.density.expand([len(x)])


def normal(loc: float, scale: float, width: int = Z) -> Distribution:
    shape = torch.zeros(width, dtype=torch.float64)
    return Independent(Normal(loc + shape, scale + shape), 1)


def encoding(log_joint: Tensor, log_q: Tensor | None = None, z: Tensor | None = None) -> Encoding:
    """Any log densities, under N(0, I): what an objective sees of an engine."""
    z = torch.randn(*log_joint.shape, Z, dtype=torch.float64) if z is None else z
    return Encoding(z, None, log_joint, log_q, None, normal(0.0, 1.0), "Handmade")


def branches(log_joint: Tensor) -> Encoding:
    """Any log densities of distinct discrete codes, one for each branch."""
    k = torch.arange(len(log_joint)).unsqueeze(1).expand(log_joint.shape)
    empty = log_joint.new_zeros(*log_joint.shape, 0)
    return Encoding(empty, k, log_joint, None, None, normal(0.0, 1.0, 0), "Handmade")


def array(value: Tensor) -> np.ndarray:
    return value.detach().numpy()


def random(*shape: int) -> Tensor:
    return 3 * torch.randn(shape, dtype=torch.float64)


def decoder(head: type[Bernoulli] | type[Gaussian] = Gaussian) -> Likelihood:
    return head(nn.Sequential(nn.Linear(Z, 8), nn.Tanh(), nn.Linear(8, 6)).double(), Z)


# Formulas.


def test_joint_is_the_mean_over_codes() -> None:
    values = random(S, B)
    assert np.allclose(array(joint(encoding(values))), array(values).sum(0) / S)


def test_elbo_is_the_mean_log_weight() -> None:
    log_joint, log_q = random(S, B), random(S, B)
    assert np.allclose(array(elbo(encoding(log_joint, log_q))), (array(log_joint) - array(log_q)).mean(0))


def test_iwae_is_the_log_of_the_mean_weight() -> None:
    log_joint, log_q = random(S, B), random(S, B)
    weights = np.exp(array(log_joint) - array(log_q))
    assert np.allclose(array(iwae(encoding(log_joint, log_q))), np.log(weights.mean(0)))


def test_iwae_of_one_sample_is_the_elbo() -> None:
    given = encoding(random(1, B), random(1, B))
    assert torch.equal(iwae(given), elbo(given))


def test_iwae_gradient_favours_the_best_samples() -> None:
    """d iwae / d log w_s is the normalised weight of s: positive, and largest for the largest weight."""
    log_joint = random(S, B).requires_grad_()
    (grad,) = torch.autograd.grad(iwae(encoding(log_joint, random(S, B) * 0)).sum(), log_joint)
    weights = np.exp(array(log_joint))
    assert np.allclose(array(grad), weights / weights.sum(0))


def test_logsumexp_is_the_log_of_the_sum() -> None:
    values = random(S, B)
    assert np.allclose(array(logsumexp(branches(values))), np.log(np.exp(array(values)).sum(0)))


def test_extreme_values_do_not_overflow() -> None:
    far = encoding(torch.tensor([[-1e5], [-1e5]]).double(), torch.tensor([[1e5], [1e5]]).double())
    assert logsumexp(branches(far.log_joint)).item() == pytest.approx(-1e5 + math.log(2))
    assert iwae(far).item() == pytest.approx(-2e5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("analytic", [False, True])
def test_elbo_weighs_the_kl_by_beta(beta: float, analytic: bool) -> None:
    """Both terms by formula: E_q[log q_r(x|z)] from the draws, the KL from them or from its integral."""
    model, x = decoder(), random(B, 6)
    loc, scale = 0.7, 0.4
    found = Amortized(Density(normal(loc, scale)), samples=S)(model, x)
    z = array(found.z)
    log_likelihood = array(model(found.z).log_prob(x)).mean(0)
    log_ratio = (norm.logpdf(z, loc, scale) - norm.logpdf(z)).sum(-1).mean(0)
    one_dimension = (
        Z * integrate.quad(lambda t: norm.pdf(t, loc, scale) * (norm.logpdf(t, loc, scale) - norm.logpdf(t)), -6, 6)[0]
    )
    kl = one_dimension if analytic else log_ratio
    assert np.allclose(array(elbo(found, beta, analytic)), log_likelihood - beta * kl)


def test_sampled_and_analytic_kl_agree_in_expectation() -> None:
    model, x = decoder(), random(B, 6)
    draws = 20_000
    found = Amortized(Density(normal(0.7, 0.4)), samples=draws)(model, x)
    assert found.log_q is not None
    error = (found.log_q - found.log_prior).std(0) / math.sqrt(draws)
    difference = elbo(found) - elbo(found, analytic=True)
    assert (difference.abs() / error).max() < 4
    assert difference.abs().min() > 0


def test_kl_of_several_densities_is_their_mean() -> None:
    """An engine with one q per row of S: every row's KL counts, by its mean."""
    model, x = decoder(), random(B, 6)
    loc, scale = random(2, B, Z), random(2, B, Z).exp()
    q = Independent(Normal(loc, scale), 1)
    z = q.rsample()
    found = Encoding(z, None, model.log_joint(x, z), q.log_prob(z), q, model.prior, "Handmade")
    kl = 0.5 * (array(scale) ** 2 + array(loc) ** 2 - 1) - np.log(array(scale))
    log_likelihood = array(model(z).log_prob(x)).mean(0)
    assert np.allclose(array(elbo(found, analytic=True)), log_likelihood - kl.sum(-1).mean(0))


def test_elbo_with_the_exact_posterior_is_the_evidence() -> None:
    model = LinearMixture(1, Z, (6,), means=torch.randn(1, 6), learn_scale=True).double()
    x = random(B, 6)
    for engine in (ClosedForm(), ClosedForm(samples=S)):
        for bound in (elbo, iwae):
            assert torch.allclose(bound(engine(model, x)), model.log_evidence(x).log_p, atol=1e-10)


def test_logsumexp_over_all_components_is_the_evidence() -> None:
    model = LinearMixture(4, 0, (6,), means=torch.randn(4, 6), learn_scale=True, learn_weights=True).double()
    model.logits.data.normal_()
    x = random(B, 6)
    everything = Enumerate()(model, x)
    assert torch.allclose(logsumexp(everything), model.log_evidence(x).log_p, atol=1e-10)
    assert (joint(Argmax()(model, x)) < model.log_evidence(x).log_p).all()  # ledger D02: a maximum over a discrete code


@pytest.mark.parametrize("head", [Gaussian, Bernoulli])
def test_elbo_below_iwae_below_more_iwae(head: type[Bernoulli] | type[Gaussian]) -> None:
    """In expectation, and tighter with S (Burda et al. 2016, theorem 1): means of many draws, 4 standard errors."""
    model, x = decoder(head), torch.ones(12000, 6, dtype=torch.float64)
    bounds = []
    for samples in (1, 2, 8, 32):
        values = iwae(Amortized(Density(normal(0.3, 1.2)), samples)(model, x))
        bounds.append((values.mean().item(), values.std().item() / math.sqrt(len(x))))
    for (low, low_error), (high, high_error) in pairwise(bounds):
        assert high - low > 4 * math.hypot(low_error, high_error)


# Over the data.


losses = st.lists(st.floats(-50, 50), min_size=1, max_size=20).map(lambda values: torch.tensor(values).double())


@given(losses, st.floats(1e-3, 1e3))
def test_soft_minimum_lies_between_minimum_and_mean(values: Tensor, beta: float) -> None:
    """The corrected chain of ledger D07: -(1/β) log Σ e^{-βv} <= min <= -(1/β) log E e^{-βv} <= E v."""
    below, above = (soft_minimum(beta, reduction)(values).item() for reduction in ("sum", "mean"))
    room, least = math.log(len(values)) / beta, minimum(values).item()
    slack = 1e-9 * (1 + values.abs().max().item()) + 1e-12 / beta
    assert least - room <= below + slack
    assert below <= least + slack
    assert least <= above + slack
    assert above <= min(least + room, mean(values).item()) + slack


@given(losses)
def test_limits_of_the_soft_minimum(values: Tensor) -> None:
    spread = values.max().item() - values.min().item()
    assert soft_minimum(1e6)(values).item() == pytest.approx(values.min().item(), abs=1e-5)
    assert soft_minimum(1e-7)(values).item() == pytest.approx(values.mean().item(), abs=1e-7 * (1 + spread**2))


@pytest.mark.parametrize("beta", [1e-12, 1e-6, 1e-2, 1.0, 1e3])
def test_soft_minimum_in_float32(beta: float) -> None:
    """A small beta divides the rounding of a logarithm by nearly nothing, if the logarithm is not itself small."""
    values = torch.cat([torch.tensor([1.0, 2.0, 700.0]), torch.randn(50, generator=torch.Generator().manual_seed(0))])
    wide = [mpmath.mpf(value) for value in values.tolist()]
    with mpmath.workdps(40):
        wanted = -mpmath.log(sum(mpmath.exp(-beta * value) for value in wide) / len(wide)) / beta
    leaf = values.requires_grad_()
    found = soft_minimum(beta)(leaf)
    assert found.item() == pytest.approx(float(wanted), rel=1e-6, abs=1e-5)
    (grad,) = torch.autograd.grad(found, leaf)
    assert torch.allclose(grad, torch.softmax(-beta * values.detach().double(), 0).float(), rtol=1e-4, atol=1e-7)


def test_soft_minimum_by_its_formula() -> None:
    values, beta = random(7), 0.4
    powers = np.exp(-beta * array(values))
    assert np.isclose(soft_minimum(beta)(values).item(), -np.log(powers.mean()) / beta)
    assert np.isclose(soft_minimum(beta, "sum")(values).item(), -np.log(powers.sum()) / beta)


@pytest.mark.parametrize("beta", [0.01, 1.0, 30.0])
def test_gradients_of_the_aggregates(beta: float) -> None:
    """Weights of the samples that sum to 1, larger for worse ones."""
    values = random(6).requires_grad_()
    v = array(values)
    soft = np.exp(-beta * (v - v.min()))
    wanted = {
        mean: np.full(6, 1 / 6),
        minimum: v == v.min(),
        soft_minimum(beta): soft / soft.sum(),
        soft_minimum(beta, "sum"): soft / soft.sum(),
    }
    for aggregate, weights in wanted.items():
        (grad,) = torch.autograd.grad(aggregate(values), values)
        np.testing.assert_allclose(array(grad), weights, rtol=1e-12, atol=1e-15)
        assert torch.autograd.gradcheck(aggregate, values)


def test_mean_and_minimum() -> None:
    values = torch.tensor([3.0, -1.0, 4.0])
    assert mean(values).item() == pytest.approx(2.0)
    assert minimum(values).item() == -1.0


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_soft_minimum_needs_a_positive_beta(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta must be positive, got {beta}"):
        soft_minimum(beta)


def test_soft_minimum_needs_a_known_reduction() -> None:
    with pytest.raises(ValueError, match=r"Unknown reduction 'none'\. Valid reductions: mean, sum"):
        soft_minimum(1.0, "none")


@pytest.mark.parametrize("aggregate", [mean, minimum, soft_minimum(0.7)])
def test_the_loss_is_minus_the_aggregated_objective(aggregate: object) -> None:
    model = decoder()
    x = random(B, 6)
    found = Autoencoder(model, Zeros(), joint, aggregate)(x)  # type: ignore[arg-type]
    values = array(model.log_joint(x, torch.zeros(1, B, Z).double())[0])
    wanted = {mean: values.mean(), minimum: values.min()}.get(
        aggregate,  # type: ignore[call-overload]
        -np.log(np.exp(-0.7 * values).mean()) / 0.7,
    )
    assert found.item() == pytest.approx(-wanted)


# Refusals: they name the engine and what would work.


@pytest.mark.parametrize("bound", [elbo, partial(elbo, analytic=True), partial(elbo, beta=0.5), iwae])
@pytest.mark.parametrize(
    "engine",
    [Argmax(ClosedForm()), Zeros(), Prior(), Constant(torch.zeros(2)), Ascent(max_steps=2), Amortized(nn.Linear(3, 2))],
    ids=lambda engine: type(engine).__name__,
)
def test_a_bound_needs_a_density(bound: Objective, engine: Inference) -> None:
    model = LinearMixture(2 if isinstance(engine, Argmax) else 1, 2, (3,))
    name = getattr(bound, "func", bound).__name__
    message = rf"Cannot use `{name}` with `{type(engine).__name__}`: .*no density.*Use `joint`, .*`Amortized`"
    with pytest.raises(ValueError, match=message):
        Autoencoder(model, engine, bound)(torch.randn(4, 3))


def test_no_closed_form_kl() -> None:
    heavy = Independent(StudentT(3 * torch.ones(Z).double()), 1)
    cases: list[tuple[Likelihood, Inference]] = [
        (decoder(), Amortized(Density(heavy))),
        (Gaussian(nn.Linear(Z, 6).double(), Z, prior=Flat(Z)), Amortized(Density(normal(0.0, 1.0)))),
        (LinearMixture(3, Z, (6,)).double(), ClosedForm()),
    ]
    for model, engine in cases:
        found = engine(model, random(B, 6))
        with pytest.raises(ValueError, match=r"closed.form.*Use `analytic=False`"):
            elbo(found, analytic=True)
        assert elbo(found).isfinite().all()


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_kl_of_a_mixture_has_no_weight(beta: float) -> None:
    """Its log q(k) belongs to the KL, and an encoding does not tell it apart from the likelihood."""
    found = ClosedForm()(LinearMixture(3, Z, (6,)).double(), random(B, 6))
    with pytest.raises(ValueError, match=r"of a mixture .* Use `analytic=False` and `beta=1`"):
        elbo(found, beta)


def test_a_density_must_be_reparameterised() -> None:
    class Stuck(Uniform):
        has_rsample = False

    q = Independent(Stuck(torch.zeros(Z), torch.ones(Z)), 1)
    engine = Amortized(lambda x: q.expand([len(x)]))
    with pytest.raises(ValueError, match=r"reparameterised"):
        engine(decoder(), random(B, 6))


@pytest.mark.parametrize("beta", [-1.0, math.nan, math.inf])
def test_weights_of_the_kl_that_no_objective_has_are_refused(beta: float) -> None:
    encoding = ClosedForm()(LinearMixture(1, 2, (3,)), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="beta must be finite and not negative"):
        elbo(encoding, beta)


# Weights that rounding loses: subnormal ones slow a gradient several times on some processors.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", [iwae, logsumexp, wake_wake])
def test_no_weight_is_subnormal(bound: Objective, dtype: torch.dtype) -> None:
    """Log weights pass through the ends of both ranges of normal numbers, -87 and -708."""
    free = -torch.arange(800.0).to(dtype).unsqueeze(1).requires_grad_()
    log_joint, log_q = (0.0 * free.detach(), free) if bound is wake_wake else (free, 0.0 * free.detach())
    value = bound(branches(free) if bound is logsumexp else encoding(log_joint, log_q))
    (found,) = torch.autograd.grad(value.sum(), free)
    if bound is wake_wake:  # its weights are proportional to 1 / q
        wanted = (-free.detach().double()).softmax(0)
    else:
        wanted = free.detach().double().softmax(0)
        total = free.detach().double().logsumexp(0) - (0.0 if bound is logsumexp else math.log(800))
        torch.testing.assert_close(value.detach(), total.to(dtype))
    torch.testing.assert_close(found, wanted.to(dtype), rtol=1e-4, atol=1e-12 if dtype is torch.float32 else 1e-30)
    assert not ((found != 0) & (found.abs() < torch.finfo(dtype).tiny)).any()
