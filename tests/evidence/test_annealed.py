"""Annealed importance sampling, its reverse, and NUTS, against models whose evidence and posterior are known."""

import math

import pytest
import torch
from conftest import FULL
from margins import within
from problems import Rows, plateau
from pyro.ops.stats import effective_sample_size
from scipy import integrate, stats
from torch import Tensor, nn

from gae.evidence import ais, annealed, exact, importance, inverse_temperatures, laplace, nuts, reverse_ais, sandwich
from gae.inference import Ascent, GradientAscent, Zeros
from gae.inference.curvature import expansion
from gae.likelihood import Bernoulli, Flat, Gaussian, Likelihood, LinearMixture, LinearRegression


def ppca(latent: int = 3, dim: int = 6) -> LinearMixture:
    """Directions that are neither orthogonal nor of unit length, and a learned mean."""
    model = LinearMixture(1, latent, (dim,), scale=0.7).double()
    model.loadings.data.normal_()
    model.means.data.normal_()
    return model


def mixture() -> LinearMixture:
    model = LinearMixture(3, 2, (4,), scale=0.6, means=2 * torch.randn(3, 4)).double()
    model.loadings.data.normal_()
    return model


def bernoulli() -> Bernoulli:
    """Two codes and a curved decoder: the posterior is not normal; the oracle is quadrature in the plane."""
    return Bernoulli(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5)).double(), 2)


def by_quadrature(model: Likelihood, x: Tensor) -> Tensor:
    """log ∫ q(z) q(x|z) dz over [-8, 8]² by a product of Gauss-Legendre rules."""
    nodes, weights = (torch.as_tensor(part) for part in integrate._quadrature._cached_roots_legendre(80))  # type: ignore[attr-defined]
    grid = torch.cartesian_prod(8 * nodes, 8 * nodes)
    log_weight = (64 * torch.cartesian_prod(weights, weights).prod(1)).log()
    log_joint = model.log_joint(x, grid.unsqueeze(1).expand(-1, len(x), -1))
    return (log_joint + log_weight.unsqueeze(1)).logsumexp(0).detach()


MODELS = {
    "ppca": (ppca, lambda model, x: exact(model, x).log_p),
    "mixture": (mixture, lambda model, x: exact(model, x).log_p),
    "bernoulli": (bernoulli, by_quadrature),
}


LINEAR = list(MODELS) if FULL else ["ppca"]  # the schedule knows nothing of the model


def drawn(model: Likelihood, n: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        z = model.prior.sample(torch.Size((n,)))
        return model(z).sample().to(z.dtype), z


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "schedule"), [*((name, "sigmoid") for name in MODELS), *((name, "linear") for name in LINEAR)]
)
def test_ais_agrees_with_the_evidence(name: str, schedule: str) -> None:
    build, truth = MODELS[name]
    model = build()
    x, _ = drawn(model, 12)
    found = ais(model, x, temperatures=150, chains=80, leapfrog=5, schedule=schedule)  # type: ignore[arg-type]
    scores = (found.log_p - truth(model, x)) / found.standard_error
    assert scores.abs().max() < 4
    assert found.standard_error.max() < 0.2
    assert found.ess is not None and (found.ess <= 100 + 1e-9).all() and (found.ess >= 1).all()


@pytest.mark.parametrize("name", MODELS)
def test_reverse_ais_agrees_with_the_evidence(name: str) -> None:
    """Over many observations, since the chains of one share their exact start."""
    build, truth = MODELS[name]
    model = build()
    x, z = drawn(model, 200)
    found = reverse_ais(model, x, z, temperatures=60, chains=4, leapfrog=5)
    weights = (truth(model, x) - found.log_p).exp()  # the mean of exp(log p - upper) is 1
    assert abs(float(weights.mean()) - 1) < 4 * float(weights.std()) / math.sqrt(len(x))


def test_the_error_of_reverse_ais_is_that_of_its_exact_draws() -> None:
    """400 repetitions at one x, 30 draws each: scores by the reported error have the mean square of a standard normal.

    Chains of one draw move together. Counted as independent ones, at T = 3, they would report a third of the error.
    """
    model = LinearMixture(1, 2, (3,), scale=2.0).double()  # weights without heavy tails
    x = drawn(model, 1)[0].expand(400, -1)
    truth = exact(model, x).log_p
    q = model.posterior(x)
    z = q.sample((30,)).squeeze(1)
    found = reverse_ais(model, x, z, temperatures=6, chains=2, leapfrog=3)
    scores = (found.log_p - truth) / found.standard_error
    assert 0.6 < float(scores.square().mean()) < 1.7
    assert found.ess is not None and bool((found.ess <= 30 + 1e-9).all())
    naive = reverse_ais(model, x, z.repeat_interleave(8, 0), temperatures=3, chains=2, leapfrog=2)
    honest = reverse_ais(model, x, z, temperatures=3, chains=16, leapfrog=2)
    assert float((naive.standard_error / honest.standard_error).median()) < 0.6


@pytest.mark.parametrize("components", [1, 2])
def test_the_error_of_reverse_ais_with_a_draw_for_each_chain(components: int) -> None:
    """400 repetitions at one x, at T = 3: the reported error is the deviation of the estimates, and they are right."""
    model = LinearMixture(components, 2, (3,), scale=2.0, means=torch.randn(components, 3)).double()
    x = drawn(model, 1)[0].expand(400, -1)
    found = reverse_ais(model, x, temperatures=3, chains=64, leapfrog=2)
    error = found.log_p - exact(model, x).log_p
    ratio = error.std() / found.standard_error.square().mean().sqrt()
    within("deviation of estimates, by their error", ratio, above=0.75, below=1.33)
    within("mean error, in standard errors", error.mean().abs() / error.std() * 20, below=5.0)
    assert found.ess is not None and bool((found.ess > 2).all())


def test_reverse_ais_without_draws_needs_an_exact_posterior() -> None:
    with pytest.raises(TypeError, match="Bernoulli cannot be sampled exactly"):
        reverse_ais(bernoulli(), torch.ones(2, 5).double())
    with pytest.raises(ValueError, match="flat prior"):
        reverse_ais(LinearMixture(1, 2, (4,), flat_prior=True), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="chains must be at least 1"):
        reverse_ais(ppca(), torch.zeros(2, 6).double(), chains=0)


def test_one_exact_draw_has_no_known_error() -> None:
    """Its chains share an error; over observations with independent draws, the mean gap has a standard error."""
    model = ppca()
    x, z = drawn(model, 5)
    for draws in (z, z.unsqueeze(0)):
        found = reverse_ais(model, x, draws, temperatures=3, chains=16)
        assert bool(found.standard_error.isnan().all()) and bool(found.log_p.isfinite().all())
        assert found.ess is not None and torch.allclose(found.ess, torch.ones(5).double())
    both = sandwich(model, 6, temperatures=3, chains=2)
    assert bool(both.upper.standard_error.isnan().all())
    assert torch.equal(both.gap, both.upper.log_p - both.lower.log_p)
    with pytest.raises(ValueError, match=r"z must have shape \(S, B, 3\) with B = 5"):
        reverse_ais(model, x, z[:4], temperatures=3)


@pytest.mark.parametrize("name", MODELS)
def test_the_truth_lies_between(name: str) -> None:
    """Lower bound ≤ log p(x) ≤ upper bound in expectation, and they close as temperatures are added."""
    build, truth = MODELS[name]
    model = build()
    ends = []
    for temperatures in (1, 8, 30):
        found = sandwich(model, 150, temperatures, chains=2, leapfrog=5)
        log_p = truth(model, found.x)
        below, above = log_p - found.lower.log_p, found.upper.log_p - log_p
        for gap in (below, above):
            assert float(gap.mean()) > -4 * float(gap.std()) / math.sqrt(150)
        ends.append((below + above).numpy())
    if name != "bernoulli":  # whose bounds are narrow from the start
        rank_test = stats.mannwhitneyu(ends[0], ends[-1], alternative="greater")
        within("narrowing: p of a rank test", rank_test.pvalue, below=1e-6)


def test_ais_is_a_lower_bound_with_few_temperatures() -> None:
    model = ppca()
    x, z = drawn(model, 400)
    truth = exact(model, x).log_p
    below = truth - ais(model, x, temperatures=2, chains=2, leapfrog=2).log_p
    above = reverse_ais(model, x, z, temperatures=2, chains=2, leapfrog=2).log_p - truth
    assert float(below.mean()) > 10 * float(below.std()) / 20
    assert float(above.mean()) > 10 * float(above.std()) / 20


def test_one_temperature_is_importance_sampling_from_the_prior() -> None:
    model = ppca()
    x, _ = drawn(model, 5)
    torch.manual_seed(1)
    found = ais(model, x, temperatures=1, chains=300, pilot=1)
    torch.manual_seed(1)
    model.prior.sample(torch.Size((1, 5)))  # the pilot chain's start
    z = model.prior.sample(torch.Size((300, 5)))
    wanted = (model.log_joint(x, z) - model.prior.log_prob(z)).logsumexp(0) - math.log(300)
    assert torch.allclose(found.log_p, wanted.detach())
    assert found.evaluations == 301


def counted(latent: int = 2) -> tuple[Gaussian, Rows]:
    rows = Rows(nn.Linear(latent, 5).double())
    model = Gaussian(rows, latent, 0.5)
    rows.rows = 0
    return model, rows


@pytest.mark.parametrize("temperatures", [1, 2, 7])
def test_evaluations_of_ais_are_those_of_the_decoder(temperatures: int) -> None:
    model, rows = counted()
    x = torch.randn(3, 5).double()
    options = {"temperatures": temperatures, "chains": 4, "leapfrog": 3, "pilot": 2}
    for run in (lambda: ais(model, x, **options), lambda: reverse_ais(model, x, torch.zeros(3, 2).double(), **options)):
        rows.rows = 0
        assert run().evaluations == rows.rows / 3


def test_evaluations_of_laplace_include_the_search() -> None:
    """Two steps of ascent, the value at their end, and the curvature's derivatives."""
    model, _ = counted()
    x = torch.randn(3, 5).double()
    mode = Ascent(Zeros(), GradientAscent(0.01), max_steps=2)
    bare = laplace(model, x, mode=Ascent(Zeros(), max_steps=0)).evaluations
    assert laplace(model, x, mode=mode).evaluations - bare == 2


def test_a_good_start_leaves_no_variance() -> None:
    """From the exact posterior every weight is p(x), whatever the temperatures."""
    model = ppca()
    x, _ = drawn(model, 4)
    q = torch.distributions.MultivariateNormal(model.posterior(x).mean[0], model.posterior(x).covariance_matrix[0])
    found = ais(model, x, temperatures=5, chains=3, start=q)
    assert torch.allclose(found.log_p, exact(model, x).log_p, atol=1e-9)


def test_rows_are_independent() -> None:
    """The distribution of an observation's weights does not depend on the rest of the batch."""
    model = ppca()
    x, _ = drawn(model, 3)
    far = torch.cat([x, 30 + x])
    found = ais(model, far, temperatures=100, chains=60, leapfrog=5)
    scores = ((found.log_p - exact(model, far).log_p) / found.standard_error)[:3]
    assert scores.abs().max() < 4


@pytest.mark.parametrize(("schedule", "number"), [("linear", 7), ("sigmoid", 7), ("sigmoid", 1)])
def test_temperatures(schedule: str, number: int) -> None:
    betas = inverse_temperatures(number, schedule)  # type: ignore[arg-type]
    assert len(betas) == number + 1 and betas[0] == 0 and betas[-1] == 1
    assert (betas.diff() > 0).all()
    assert torch.allclose(betas + betas.flip(0), torch.ones_like(betas))  # symmetric
    if schedule == "sigmoid" and number > 1:
        assert betas.diff()[0] < betas.diff()[number // 2]


@pytest.mark.slow
def test_step_sizes_follow_the_rate_of_acceptance() -> None:
    """A posterior that is far narrower than the prior: the pilot's steps shrink until about 65 % are accepted."""
    model = LinearMixture(1, 3, (6,), scale=0.02).double()
    x, z = drawn(model, 5)
    path = annealed._Path(model, x, None)
    sizes = annealed._pilot(path, inverse_temperatures(400).tolist(), 20, 5)
    assert (sizes[-1] < 0.3 * sizes[0]).all()
    state, rates = path.at(z.expand(200, -1, -1)), []
    for _ in range(10):
        state, taken = path.move(state, 1.0, sizes[-1], 5)
        rates.append(taken.double().mean(0))
    assert (torch.stack(rates).mean(0) - 0.65).abs().max() < 0.2


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_types")
def test_chains_move_in_units_of_their_start() -> None:
    """Coefficients near 1000 with a prior of that scale, which steps of size 1 would hardly move."""
    design = torch.randn(20, 3).double()
    model = LinearRegression(design, prior_scale=1e3, intercept=False, scale=1e3).double()
    y = 1e3 * (torch.randn(4, 3).double() @ design.T + torch.randn(4, 20).double())
    found = ais(model, y, temperatures=200, chains=32)
    assert (found.ess > 3).all()  # type: ignore[operator]
    assert ((found.log_p - model.log_evidence(y).log_p).abs() < 2).all()


def test_bad_arguments_of_ais() -> None:
    model, x = ppca(), torch.zeros(2, 6).double()
    for options, message in (
        ({"chains": 1}, "chains must be at least 2"),
        ({"leapfrog": 0}, "leapfrog >= 1"),
        ({"pilot": 0}, "pilot >= 1"),
        ({"temperatures": 0}, "number of temperatures"),
    ):
        with pytest.raises(ValueError, match=message):
            ais(model, x, **options)
    with pytest.raises(ValueError, match="flat prior"):
        ais(Gaussian(nn.Linear(2, 6).double(), 2, prior=Flat(2)), x)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        sandwich(model, 0)


def test_an_unknown_schedule(unchecked_types: None) -> None:
    with pytest.raises(ValueError, match="'sigmoid' or 'linear', got 'cosine'"):
        inverse_temperatures(3, "cosine")  # type: ignore[arg-type]


# Laplace's method.


@pytest.mark.parametrize("curvature", ["dense", "lanczos"])
def test_laplace_is_exact_for_a_linear_decoder(curvature: str) -> None:
    model = ppca()
    x, _ = drawn(model, 6)
    found = laplace(model, x, curvature=curvature, probes=400)  # type: ignore[arg-type]
    error = (found.log_p - exact(model, x).log_p).abs()
    assert (error < (1e-8 if curvature == "dense" else 4 * found.standard_error)).all()
    assert (found.standard_error > 0).all() == (curvature == "lanczos")


def test_laplace_takes_the_highest_mode() -> None:
    model, x, truth = plateau()
    assert (laplace(model, x).log_p - (truth - math.log(2))).abs().max() < 0.02


def test_lanczos_agrees_with_the_dense_determinant() -> None:
    model = bernoulli()
    x, _ = drawn(model, 8)
    dense = laplace(model, x)
    found = laplace(model, x, curvature="lanczos", probes=300)
    assert ((found.log_p - dense.log_p).abs() < 4 * found.standard_error + 1e-9).all()
    assert (dense.log_p - by_quadrature(model, x)).abs().max() < 0.3  # an approximation


def test_few_lanczos_steps_are_enough_for_a_wide_code() -> None:
    """60 dimensions, 12 distinct eigenvalues at most: the quadrature is exact in 12 steps."""
    model = LinearMixture(1, 60, (70,), scale=1.0).double()
    model.loadings.data *= torch.arange(60).remainder(12).add(1.0).sqrt().reshape(1, 60, 1)
    x, _ = drawn(model, 3)
    found = laplace(model, x, curvature="lanczos", probes=50, iterations=12)
    assert ((found.log_p - exact(model, x).log_p).abs() < 4 * found.standard_error + 1e-8).all()
    assert found.standard_error.max() < 0.5


def test_the_error_of_lanczos_is_calibrated() -> None:
    """The variance of estimates is the mean of their squared errors: the eigenvectors are not along the axes."""
    model = ppca()
    x = drawn(model, 1)[0].expand(400, -1)
    found = laplace(model, x, curvature="lanczos", probes=20)
    error = found.log_p - exact(model, x).log_p
    ratio = error.std() / found.standard_error.square().mean().sqrt()
    within("deviation of estimates, by their error", ratio, above=0.75, below=1.33)
    within("mean error, in standard errors", error.mean().abs() / error.std() * 20, below=4.0)


def test_expansion_is_that_of_the_joint() -> None:
    model = bernoulli()
    x, z = drawn(model, 5)
    value, grad, hessian = expansion(model, x, z)
    offset = 1e-3 * torch.randn(5, 2).double()
    guess = value + (grad * offset).sum(1) + 0.5 * torch.einsum("bi,bij,bj->b", offset, hessian, offset)
    assert torch.allclose(guess, model.log_joint(x, (z + offset).unsqueeze(0))[0], atol=1e-7)


def test_laplace_needs_a_maximum() -> None:
    class Saddle(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 3 * z.square().sum(1, keepdim=True).expand(-1, 5)

    model, x = Gaussian(Saddle(), 2).double(), torch.full((3, 5), 4.0).double()
    for curvature in ("dense", "lanczos"):
        with pytest.raises(ValueError, match=r"sample 0 is not a maximum.*3 such samples"):
            laplace(model, x, mode=Ascent(Zeros(), max_steps=0), curvature=curvature)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"probes": 1}, {"probes": 0}, {"iterations": 0}, {"iterations": -1}])
def test_laplace_needs_probes_and_iterations(options: dict[str, int]) -> None:
    """One probe has no standard error; without an iteration there is no curvature."""
    model = ppca()
    with pytest.raises(ValueError, match=r"Need probes >= 2 and iterations >= 1, got"):
        laplace(model, drawn(model, 2)[0], curvature="lanczos", **options)  # type: ignore[arg-type]
    assert laplace(model, drawn(model, 2)[0], curvature="lanczos", probes=2, iterations=1).log_p.isfinite().all()


# All estimators.


def test_importance_accepts_engines() -> None:
    from gae.inference import Argmax, ClosedForm

    model = ppca()
    x, _ = drawn(model, 4)
    found = importance(model, x, ClosedForm(), samples=10)
    assert torch.allclose(found.log_p, exact(model, x).log_p)
    assert found.ess is not None and torch.allclose(found.ess, torch.full((4,), 10.0).double())
    assert found.evaluations == 10
    with pytest.raises(ValueError, match="`Ascent` returns no density"):
        importance(model, x, Ascent(max_steps=1))
    several = mixture()
    with pytest.raises(ValueError, match="component"):
        importance(several, torch.zeros(2, 4).double(), ClosedForm())
    with pytest.raises(ValueError, match="no density"):
        importance(several, torch.zeros(2, 4).double(), Argmax(ClosedForm()))


def test_importance_rises_with_samples() -> None:
    """E[L_S] is non-decreasing in S: the log of a mean, not a sum, and with the prior in the weights."""
    model = ppca()
    x, _ = drawn(model, 1)
    rows = x.expand(3000, -1)
    q = torch.distributions.Independent(torch.distributions.Normal(model.posterior(rows).mean[0], 0.9), 1)
    means, errors = [], []
    for samples in (2, 8, 32):
        values = importance(model, rows, q, samples).log_p
        means.append(float(values.mean()))
        errors.append(float(values.std()) / math.sqrt(3000))
    truth = float(exact(model, x).log_p)
    assert means[0] + 4 * errors[0] < means[1] and means[1] + 4 * errors[1] < means[2]
    assert means[2] < truth + 4 * errors[2]
    assert truth - means[2] < 0.5 * (truth - means[0])


def test_exact_refuses_other_models() -> None:
    with pytest.raises(TypeError, match="Bernoulli has no closed form"):
        exact(bernoulli(), torch.zeros(2, 5).double())
    with pytest.raises(ValueError, match="flat prior"):
        exact(LinearMixture(1, 2, (4,), flat_prior=True), torch.zeros(2, 4))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", ["mixture", "bernoulli"])
def test_nuts_finds_the_posterior(name: str) -> None:
    """The parts of the mixture overlap, since one chain rarely crosses between modes that lie apart."""
    model = MODELS[name][0]()
    if isinstance(model, LinearMixture) and model.components > 1:
        model.log_scale.data.fill_(math.log(1.5))  # each part's posterior has scales from 0.7 to 1
        model.loadings.data /= model.loadings.data.norm(dim=2, keepdim=True)
        model.means.data /= model.means.data.norm(dim=1, keepdim=True)
    x, _ = drawn(model, 2)
    found = nuts(model, x, samples=200, warmup=100)
    assert found.divergences == 0
    mean, variance = moments(model, x)
    latent = mean.shape[1]
    error = (variance.diagonal(dim1=1, dim2=2) / found.ess).sqrt()
    assert ((found.z.mean(0) - mean).abs() < 5 * error).all()  # the errors are estimates too
    centred = found.z - mean
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    spread = products.std(0) / effective_sample_size(products.unsqueeze(0), 0, 1).sqrt()
    assert ((products.mean(0) - variance).abs() < 5 * spread).all()
    assert found.z.shape == (200, 2, latent)


def moments(model: Likelihood, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the posterior, in closed form or by quadrature in the plane."""
    if isinstance(model, LinearMixture) and model.components == 1:
        q = model.posterior(x)
        return q.mean[0].detach(), q.covariance_matrix[0].detach()
    grid = torch.cartesian_prod(*[torch.linspace(-7, 7, 141).double()] * 2)
    weight = model.log_joint(x, grid.unsqueeze(1).expand(-1, len(x), -1)).softmax(0).detach()
    mean = torch.einsum("nb,ni->bi", weight, grid)
    offset = grid.unsqueeze(1) - mean
    return mean, torch.einsum("nb,nbi,nbj->bij", weight, offset, offset)


def test_nuts_leaves_pyro_alone() -> None:
    import pyro

    pyro.clear_param_store()
    model = ppca()
    nuts(model, torch.zeros(1, 6).double(), samples=4, warmup=4)
    assert not list(pyro.get_param_store().keys())
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="samples >= 4"):
        nuts(model, torch.zeros(1, 6).double(), samples=3)
