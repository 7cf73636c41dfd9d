"""Estimates of log p(x) against models whose evidence is known, and against quadrature where it is not."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.special import logsumexp as log_sum_exp
from scipy.stats import genpareto, multivariate_normal, norm
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, StudentT

from gae import Autoencoder
from gae.analysis.inference_gap import lower_bound
from gae.evidence import Evidence, UnreliableWarning, ais, importance, laplace_approximation
from gae.evidence.base import from_log_weights, pareto_shape
from gae.inference import Amortized, Argmax, Ascent, ClosedForm, GradientAscent, Inference, Zeros
from gae.likelihood import Bernoulli, Flat, Gaussian, LinearMixture, LinearRegression

D, Z, SCALE = 5, 2, 0.6


def linear() -> tuple[Gaussian, Tensor, np.ndarray]:
    """A neural head that happens to be linear, data, and log p(x) by a normal density written separately."""
    layer = nn.Linear(Z, D).double()
    model = Gaussian(layer, Z, SCALE)
    x = torch.randn(6, D, dtype=torch.float64)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    covariance = weight @ weight.T + SCALE**2 * np.eye(D)
    return model, x, multivariate_normal.logpdf(x.numpy(), bias, covariance)


def posterior(model: Gaussian, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean (B, Z) and covariance (Z, Z) of z given x, by conditioning the joint normal of (z, x)."""
    layer = model.decoder
    assert isinstance(layer, nn.Linear)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    gain = weight.T @ np.linalg.inv(weight @ weight.T + SCALE**2 * np.eye(D))
    return (x.numpy() - bias) @ gain.T, np.eye(Z) - gain @ weight


def broad(model: Gaussian, x: Tensor, scale: float = 1.5) -> Distribution:
    """Wider than the posterior in every direction, and off-centre."""
    mean, _ = posterior(model, x)
    return Independent(Normal(torch.as_tensor(mean) + 0.3, torch.full((len(x), Z), scale, dtype=torch.float64)), 1)


def narrow(model: Gaussian, x: Tensor) -> Distribution:
    """Half of the posterior's width: weights of infinite variance, and still no NaN."""
    mean, covariance = posterior(model, x)
    return MultivariateNormal(torch.as_tensor(mean), torch.as_tensor(covariance / 4))


def z_scores(found: Evidence, wanted: np.ndarray) -> np.ndarray:
    return (found.log_p.numpy() - wanted) / found.standard_error.numpy()


# Importance sampling.


def test_laplace_proposal_is_exact_for_a_linear_decoder() -> None:
    model, x, wanted = linear()
    proposal = laplace_approximation(model, x, torch.as_tensor(posterior(model, x)[0]))
    found = importance(model, x, proposal, samples=8)
    assert np.allclose(found.log_p.numpy(), wanted, atol=1e-10)
    assert found.standard_error.max() < 1e-10


def test_a_broad_proposal_converges() -> None:
    model, x, wanted = linear()
    errors = []
    for samples in (100, 10_000):
        found = importance(model, x, broad(model, x), samples)
        assert np.abs(z_scores(found, wanted)).max() < 4
        errors.append(found.standard_error)
    ratio = errors[0] / errors[1]
    assert ((ratio > 7) & (ratio < 14)).all()  # √100


def test_standard_error_is_calibrated() -> None:
    """Over repetitions, (estimate - truth) / standard error is a standard normal; rows here are repetitions."""
    model, x, wanted = linear()
    rows = torch.repeat_interleave(x, 500, 0)
    found = importance(model, rows, broad(model, rows), samples=600)
    scores = z_scores(found, np.repeat(wanted, 500))
    assert scores.std() == pytest.approx(1, abs=0.05)
    assert np.abs(scores.mean()) < 0.1  # the log of a mean has a bias of order 1/√S standard errors
    assert (np.abs(scores) < 1.96).mean() == pytest.approx(0.95, abs=0.01)


def test_it_is_a_lower_bound_in_expectation() -> None:
    model, x, wanted = linear()
    rows = torch.repeat_interleave(x, 2000, 0)
    found = importance(model, rows, broad(model, rows), samples=2)
    gap = np.repeat(wanted, 2000) - found.log_p.numpy()
    assert gap.mean() > 10 * gap.std() / math.sqrt(len(gap))


@pytest.mark.parametrize("samples", [2, 99, 100, 101, 250])
@pytest.mark.parametrize("chunk", [1, 7, 100, 1000])
def test_every_draw_counts_once(samples: int, chunk: int) -> None:
    """The estimate and its error, from the proposal's own draws: the same generator, whatever the chunk."""
    model, x, _ = linear()
    q = broad(model, x)
    torch.manual_seed(3)
    found = importance(model, x, q, samples, chunk)
    torch.manual_seed(3)
    steps = [min(chunk, samples - start) for start in range(0, samples, chunk)]
    z = torch.cat([q.sample(torch.Size((step,))) for step in steps]).numpy()
    log_prior = norm.logpdf(z).sum(-1)
    log_likelihood = norm.logpdf(x.numpy(), model.decoder(torch.as_tensor(z)).detach().numpy(), SCALE).sum(-1)
    weight = np.exp(log_prior + log_likelihood - q.log_prob(torch.as_tensor(z)).numpy())
    assert np.allclose(found.log_p.numpy(), np.log(weight.mean(0)), atol=1e-10)
    relative = weight.std(0, ddof=1) / weight.mean(0)
    assert np.allclose(found.standard_error.numpy(), relative / math.sqrt(samples), atol=1e-10)


@pytest.mark.parametrize("level", [0.0, -1e5, -1e7, 1e30])
def test_weights_of_any_size(level: float) -> None:
    """The ratios of weights, and so error and ess, stay accurate for large log weights."""
    logs = np.array([[level, level], [level, -np.inf], [level, -np.inf], [-np.inf, -np.inf]], np.float32)
    found = from_log_weights(torch.from_numpy(logs), 4)
    assert np.allclose(found.log_p.numpy(), log_sum_exp(logs.astype(float), 0) - math.log(4), rtol=1e-6)
    assert np.allclose(found.ess, [3, 1], rtol=1e-6)
    weight = np.array([[1, 1], [1, 0], [1, 0], [0, 0]])
    assert np.allclose(found.standard_error, weight.std(0, ddof=1) / weight.mean(0) / 2, rtol=1e-6)


@pytest.mark.parametrize("shape", [-0.3, 0.3, 0.7, 1.2])
def test_the_shape_of_large_weights(shape: float) -> None:
    """Draws from a generalised Pareto, whose tail has the same shape; the estimate is close to SciPy's fit."""
    weight = genpareto.rvs(shape, size=(4000, 20), random_state=np.random.default_rng(0))
    found = pareto_shape(torch.from_numpy(weight)).numpy()
    tail = np.sort(weight, 0)[-190:] - np.sort(weight, 0)[-191]
    likeliest = np.array([genpareto.fit(column, floc=0)[0] for column in tail.T[:3]])
    assert np.abs(found[:3] - likeliest).max() < 0.15
    shrunk = (190 * shape + 5) / 200  # a prior of weight 10 around 0.5
    assert abs(found.mean() - shrunk) < 4 * (1 + shape) / math.sqrt(190 * 20) + 0.02


@pytest.mark.parametrize("variance, trusted", [(0.02, False), (0.6, True), (1.5, True)])
def test_few_weights_that_outweigh_all_others_are_told(variance: float, trusted: bool) -> None:
    """Normal draws of variance v under a standard normal posterior have weights of shape 1 - v, v < 1."""
    model = LinearMixture(1, 1, (1,)).double()
    model.loadings.data.zero_()
    law = Independent(Normal(torch.zeros(1, 1, dtype=torch.float64), variance**0.5), 1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = importance(model, torch.zeros(1, 1, dtype=torch.float64), law, 20000)
    assert found.unreliable.tolist() == [not trusted]
    assert [warning.category for warning in told] == [UnreliableWarning] * (not trusted)
    if variance < 1:
        assert found.pareto_k is not None and abs(found.pareto_k.item() - (1 - variance)) < 0.3


def test_one_weight_that_outweighs_all_others_is_told() -> None:
    """One weight 100 nats above the rest has a standard error of 1 nat, however large the true error."""
    log_weight = torch.zeros(16, 2)
    log_weight[3, 1] = 100.0
    with pytest.warns(UnreliableWarning, match="may be off by far more than its standard error"):
        found = from_log_weights(log_weight, 16)
    assert found.unreliable.tolist() == [False, True] and abs(found.standard_error[1].item() - 1) < 1e-6


@pytest.mark.parametrize("prior_scale, scale", [(1e3, 1e3), (1e4, 1.0), (1e-3, 1.0)])
def test_laplace_proposals_under_priors_of_any_scale(prior_scale: float, scale: float) -> None:
    """A normal posterior equals its Laplace approximation; the floor is relative to the prior's precision."""
    design = torch.randn(20, 3).double() * scale / prior_scale
    model = LinearRegression(design, prior_scale, intercept=False, scale=scale).double()
    y = prior_scale * torch.randn(5, 3).double() @ design.T + scale * torch.randn(5, 20).double()
    wanted = np.linalg.inv((design.T @ design).numpy() / scale**2 + np.eye(3) / prior_scale**2)
    q = laplace_approximation(model, y, model.posterior(y).mean[0])
    assert np.allclose(q.covariance_matrix / prior_scale**2, wanted / prior_scale**2, rtol=1e-6, atol=1e-9)
    covariance = prior_scale**2 * design.numpy() @ design.numpy().T + scale**2 * np.eye(20)
    found = importance(model, y, q, 10)
    assert np.allclose(found.log_p, multivariate_normal(np.zeros(20), covariance).logpdf(y.numpy()), atol=1e-6)


def test_proposals_of_several_rows() -> None:
    """Batch (R, B): draws are divided among R densities, one of which may be bad."""
    model, x, wanted = linear()
    mean = torch.as_tensor(posterior(model, x)[0])
    loc = torch.stack([mean, mean + 0.5, mean - 0.5])
    q = Independent(Normal(loc, torch.full_like(loc, 1.2)), 1)
    found = importance(model, x, q, samples=3000)
    assert np.abs(z_scores(found, wanted)).max() < 4
    assert found.standard_error.max() < 0.1


def test_rounding_up_leaves_the_estimate_right() -> None:
    """The exact posterior in 3 rows: 10 samples become 12, all with the same weight p(x)."""
    model, x, wanted = linear()
    mean, covariance = (torch.as_tensor(value) for value in posterior(model, x))
    q = MultivariateNormal(mean.expand(3, *mean.shape), covariance)
    assert np.allclose(importance(model, x, q, samples=10).log_p.numpy(), wanted, atol=1e-10)


class CountingDraws(Normal):
    """A normal that remembers how many codes were drawn."""

    drawn = 0

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        type(self).drawn += self._extended_shape(sample_shape)[:-2].numel()
        return super().rsample(sample_shape)


@pytest.mark.parametrize(
    ("rows", "samples", "wanted"), [(1, 10, 10), (3, 10, 12), (3, 9, 9), (4, 2, 4), (120, 50, 120)]
)
def test_samples_are_rounded_up_to_whole_rows(rows: int, samples: int, wanted: int) -> None:
    model, x, _ = linear()
    CountingDraws.drawn = 0
    shape = (rows, len(x), Z)
    q = Independent(CountingDraws(torch.zeros(shape).double(), torch.ones(shape).double()), 1)
    found = importance(model, x, q, samples)
    assert CountingDraws.drawn == wanted
    assert found.log_p.shape == (len(x),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_never_nan(dtype: torch.dtype) -> None:
    """Observations far from the model, and proposals that are too narrow, too wide or misplaced."""
    model, x, wanted = linear()
    far = torch.cat([x, 1e3 * x])
    proposals = [
        narrow(model, far),
        broad(model, far, 1e-3),
        broad(model, far, 1e3),
        Independent(Normal(torch.full((len(far), Z), 50.0), 0.1), 1),
        Independent(StudentT(2.0 * torch.ones(len(far), Z)), 1),
    ]
    model = model.to(dtype)
    for q in proposals:
        q = cast(q, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UnreliableWarning)
            found = importance(model, far.to(dtype), q, samples=50)
        assert found.log_p.isfinite().all() and found.standard_error.isfinite().all()
        assert (found.standard_error >= 0).all()
        assert (found.log_p[: len(x)].double().numpy() < wanted + 1).all()


def cast(q: Distribution, dtype: torch.dtype) -> Distribution:
    if isinstance(q, MultivariateNormal):
        return MultivariateNormal(q.loc.to(dtype), scale_tril=q.scale_tril.to(dtype))
    base = q.base_dist  # type: ignore[attr-defined]
    if isinstance(base, StudentT):
        return Independent(StudentT(base.df.to(dtype)), 1)
    return Independent(Normal(base.loc.to(dtype), base.scale.to(dtype)), 1)


@pytest.mark.parametrize("samples", [-1, 0, 1])
def test_one_sample_has_no_standard_error(samples: int) -> None:
    model, x, _ = linear()
    with pytest.raises(ValueError, match=f"samples must be at least 2, .*got {samples}"):
        importance(model, x, broad(model, x), samples)


def test_no_evidence_under_a_flat_prior() -> None:
    """∫ q(x|z) dz is not a density over x: it need not integrate to one, or exist."""
    model = Gaussian(nn.Linear(Z, D).double(), Z, SCALE, prior=Flat(Z))
    x = torch.randn(4, D, dtype=torch.float64)
    q = Independent(Normal(torch.zeros(4, Z).double(), torch.ones(4, Z).double()), 1)
    with pytest.raises(ValueError, match="flat prior"):
        importance(model, x, q)
    with pytest.raises(ValueError, match="flat prior"):
        Autoencoder(model, Ascent(max_steps=3)).log_evidence(x)


# Laplace.


def test_laplace_is_the_posterior_of_a_linear_decoder() -> None:
    model, x, _ = linear()
    mean, covariance = posterior(model, x)
    found = laplace_approximation(model, x, torch.as_tensor(mean))
    assert found.batch_shape == (len(x),) and found.event_shape == (Z,)
    assert np.allclose(found.mean.numpy(), mean)
    assert np.allclose(found.covariance_matrix.numpy(), covariance, atol=1e-12)


def test_laplace_curvature_is_that_of_the_joint() -> None:
    """A decoder with curvature: second differences of log_joint at any point, floored at 1e-2."""
    model = Bernoulli(nn.Sequential(nn.Linear(Z, 6), nn.Tanh(), nn.Linear(6, D)).double(), Z)
    x, z, step = torch.ones(3, D).double(), 0.5 * torch.randn(3, Z).double(), 1e-4
    eye = step * torch.eye(Z).double()

    def value(shift: Tensor) -> Tensor:
        return model.log_joint(x, (z + shift).unsqueeze(0))[0].detach()

    differences = torch.stack(
        [torch.stack([value(a + b) - value(a - b) - value(b - a) + value(-a - b) for b in eye], 1) for a in eye],
        1,
    ) / (4 * step**2)
    precision = torch.linalg.inv(laplace_approximation(model, x, z).covariance_matrix)
    assert torch.linalg.eigvalsh(-differences).min() > 1e-2
    assert torch.allclose(precision, -differences, atol=1e-5)


class Ring(nn.Module):
    """‖z‖² for every pixel: far inside the ring, log_joint curves upwards in every direction."""

    def forward(self, z: Tensor) -> Tensor:
        return z.square().sum(1, keepdim=True).expand(-1, D)


@pytest.mark.parametrize("floor", [1e-2, 0.5])
def test_laplace_floors_indefinite_curvature(floor: float) -> None:
    model, x = Gaussian(Ring(), Z), torch.full((3, D), 4.0)
    z = torch.tensor([[0.0, 0.0], [0.1, 0.0], [2.0, 0.0]])
    found = laplace_approximation(model, x, z, floor)
    precision = torch.linalg.inv(found.covariance_matrix)
    assert torch.allclose(precision[:2], floor * torch.eye(Z).expand(2, Z, Z), atol=1e-4 * floor)
    # at (2, 0) by hand, with D (x - z₁²)²/2 + z₁²/2 along the radius, and the prior alone along the ring
    assert torch.allclose(precision[2], torch.tensor([[D * 4 * 4.0 + 1, 0], [0, 1]]), atol=1e-2)
    assert found.sample().isfinite().all()


def test_laplace_needs_vector_codes() -> None:
    model = Gaussian(nn.Sequential(nn.Flatten(), nn.Linear(4, D)), (2, 2))
    with pytest.raises(ValueError, match=r"vector codes \(B, Z\), got shape \(3, 2, 2\)"):
        laplace_approximation(model, torch.randn(3, D), torch.zeros(3, 2, 2))


def test_laplace_works_without_gradients_and_leaves_none() -> None:
    model, x, _ = linear()
    with torch.no_grad():
        found = laplace_approximation(model, x, torch.zeros(len(x), Z).double())
    assert not found.loc.requires_grad and not found.covariance_matrix.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


# Through the autoencoder.


@pytest.mark.parametrize("engine", [ClosedForm(), Ascent(max_steps=2), Argmax(ClosedForm())])
@pytest.mark.parametrize("components", [1, 3])
def test_log_evidence_of_a_linear_mixture_is_exact(components: int, engine: Inference) -> None:
    torch.manual_seed(1)
    model = LinearMixture(components, Z, (D,), means=torch.randn(components, D), learn_scale=True).double()
    x = torch.randn(6, D, dtype=torch.float64)
    if components > 1 and isinstance(engine, Ascent):
        engine = Argmax(engine)
    found = Autoencoder(model, engine).log_evidence(x)
    densities = [
        multivariate_normal.logpdf(x.numpy(), mean, loadings.T @ loadings + scale**2 * np.eye(D))
        for mean, loadings, scale in zip(
            *(v.detach().numpy() for v in (model.means, model.loadings, model.log_scale.exp())), strict=True
        )
    ]
    assert np.allclose(found.log_p.detach().numpy(), np.logaddexp.reduce(densities) - math.log(components), atol=1e-10)
    assert (found.standard_error == 0).all()


class Normals(nn.Module):
    """An amortised density that is too wide by a fixed amount."""

    def __init__(self, model: Gaussian):
        super().__init__()
        self.model = [model]

    def forward(self, x: Tensor) -> Distribution:
        return broad(self.model[0], x)


@pytest.mark.parametrize("samples", [1, 3])
def test_log_evidence_proposes_from_the_encoder(samples: int) -> None:
    model, x, wanted = linear()
    found = Autoencoder(model, Amortized(Normals(model), samples)).log_evidence(x, samples=4000)
    assert np.abs(z_scores(found, wanted)).max() < 4
    directly = importance(model, x, broad(model, x), samples=4000).standard_error
    around = importance(model, x, laplace_approximation(model, x, broad(model, x).mean), samples=4000).standard_error
    assert (around < 0.85 * directly).all()  # a proposal around the encoder's mean would be another one
    assert torch.allclose(found.standard_error, directly, rtol=0.1)


def test_log_evidence_proposes_around_a_point() -> None:
    """A converged ascent has no density: the Laplace approximation at its code is then exact."""
    model, x, wanted = linear()
    engine = Ascent(Zeros(), GradientAscent(0.1), max_steps=400)
    found = Autoencoder(model, engine).log_evidence(x, samples=10)
    assert np.allclose(found.log_p.numpy(), wanted, atol=1e-6)
    assert not found.log_p.requires_grad


def test_log_evidence_of_a_curved_decoder() -> None:
    """Without any closed form: a one-dimensional code, so that quadrature is the oracle."""
    model = Bernoulli(nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, D)).double(), 1)
    x = torch.randint(2, (4, D)).double()

    def density(z: float, row: int) -> float:
        return model.log_joint(x[row : row + 1], torch.tensor([[[z]]]).double()).exp().item()

    wanted = np.log([integrate.quad(density, -10, 10, args=(row,), limit=200)[0] for row in range(len(x))])
    found = Autoencoder(model, Ascent(Zeros(), GradientAscent(0.1), max_steps=200)).log_evidence(x, samples=5000)
    assert np.abs(z_scores(found, wanted)).max() < 4
    assert found.standard_error.max() < 0.05


def test_log_evidence_leaves_no_gradients() -> None:
    model, x, _ = linear()
    Autoencoder(model, Ascent(max_steps=3)).log_evidence(x)
    assert all(parameter.grad is None for parameter in model.parameters())


def _normal(*shape: int, reinterpreted: int = 1) -> Distribution:
    return Independent(Normal(torch.zeros(shape), 1.0), reinterpreted)


@pytest.mark.parametrize(
    "q", [_normal(1, 2), _normal(6, 2), _normal(2), _normal(2, 4, 3, 2), _normal(3, 2, reinterpreted=0), _normal(3, 3)]
)
def test_densities_of_other_rows_are_refused(q: Distribution) -> None:
    """One row, or twice as many as observations, would pair draws with the wrong rows without an error."""
    model, x = LinearMixture(1, 2, (5,)), torch.randn(3, 5)
    with pytest.raises(ValueError, match=r"q must have batch shape .* with B = 3 and event shape \(2,\)"):
        importance(model, x, q, 96)
    with pytest.raises(ValueError, match="q must have batch shape"):
        lower_bound(model, x, q, 20)
    if q.batch_shape:  # a start may be one distribution for all
        with pytest.raises(ValueError, match="q must have batch shape"):
            ais(model, x, 2, 2, start=q)
