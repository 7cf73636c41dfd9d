"""Checks of ``08_elbo.md``: the evidence lower bound, its KL term, its noise and its gradients."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from gae.inference import Amortized, ClosedForm, Encoding, Enumerate
from gae.ledger.claims import Check, at_most, check, equal, estimate
from gae.likelihood import Gaussian, LinearMixture
from gae.objective import elbo
from gae.systems import NormalEncoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM = 5  # D, the width of an observation
WIDTH = 2  # E, the width of a code


@check
def check_D24() -> Check:
    """The formulas from the encoder's weights, against torch's divergence, gae's ``elbo`` and a search by autodiff."""
    encoder, x = nn.Linear(DIM, 2 * WIDTH), torch.randn(6, DIM)
    mean, log_stddev = (x @ encoder.weight.T + encoder.bias).chunk(2, 1)
    exact = kl_divergence(Normal(mean, log_stddev.exp()), Normal(0.0, 1.0)).sum(1)
    with torch.no_grad():
        found = Amortized(NormalEncoder(encoder))(Gaussian(nn.Linear(WIDTH, DIM), WIDTH), x)
    through_elbo = elbo(found, beta=0.0, analytic=True) - elbo(found, analytic=True)
    assert found.log_q is not None

    lowest, at = _minimum(lambda log_stddev: _as_written(torch.zeros(1), log_stddev), torch.randn(1))
    stddev, closed = at.exp(), -(1 - math.log(2)) / 4
    corrected_lowest, corrected_at = _minimum(lambda free: _corrected(free[:1], free[1:]), torch.randn(2))

    model, seen = LinearMixture(1, WIDTH, (DIM,), scale=0.5), torch.randn(1, DIM)  # orthonormal: a diagonal posterior
    posterior = _posterior(model, seen)
    center, spread = posterior.mean, posterior.stddev
    likelihood = elbo(_cubature(model, seen, center, spread.diag()), beta=0.0)
    inflated, proper = (likelihood - kl(center, spread.log()) for kl in (_as_written, _corrected))
    evidence = _dense_evidence(model, seen)
    encoded = [_cubature(model, seen, *each) for each in zip(mean, log_stddev.exp().diag_embed(), strict=True)]
    return Check(
        claim=[
            at_most("μ = 0: 0 ≤ the written kl at its minimum over σ", 0.0, lowest),
            equal("written = KL(N(μ, σ²)‖N(0, 1))", _as_written(mean, log_stddev), exact),
            equal("μ = 0: the minimum is at σ = 1", stddev, 1.0),
            at_most("exact q: E log q(x|z) − kl ≤ log p(x)", inflated, evidence),
        ],
        correction=[
            equal("corrected = KL(N(μ, σ²)‖N(0, 1))", _corrected(mean, log_stddev), exact),
            equal("the minimum as written is −(1 − log 2)/4", lowest, closed),
            equal("and is at σ² = ½", stddev.square(), 0.5),
            equal("exact q of variance 1/5: above log p(x) by ½ log 5", inflated - evidence, math.log(5) / 2),
            equal("corrected = the KL in gae's elbo(analytic=True)", _corrected(mean, log_stddev), through_elbo),
            equal("corrected = E_q(log q − log p)", _corrected(mean, log_stddev), torch.cat([_kl(q) for q in encoded])),
            equal("corrected: minimum 0", corrected_lowest, 0.0),
            equal("corrected: at μ = 0, σ = 1", corrected_at, 0.0),
            equal("exact q: E log q(x|z) − corrected = log p(x)", proper, evidence),
        ],
    )


@check
def check_D25() -> Check:
    """gae's ``elbo`` and exact posterior, against the dense covariance of x and a posterior in closed form."""
    model, x = LinearMixture(1, 3, (DIM,), scale=0.7), torch.randn(1, DIM)
    model.loadings.data, model.means.data = torch.randn(1, 3, DIM), torch.randn(1, DIM)
    evidence, posterior = _dense_evidence(model, x), _posterior(model, x)
    bounds, gaps = [], []
    for _ in range(8):
        center, factor = torch.randn(3), _factor(torch.randn(6))
        bounds.append(elbo(_cubature(model, x, center, factor)))
        gaps.append(kl_divergence(MultivariateNormal(center, scale_tril=factor), posterior))
    bound, gap = torch.cat(bounds), torch.stack(gaps)

    line = LinearMixture(1, 1, (DIM,), scale=0.7)
    line.loadings.data, line.means.data = torch.randn(1, 1, DIM), torch.randn(1, DIM)
    mixture_bound, mixture_gap = _two_humps(line, x)

    discrete = LinearMixture(4, 0, (DIM,), means=torch.randn(4, DIM))
    weights = torch.randn(8, 4).softmax(1)
    log_joint = Enumerate()(discrete, x).log_joint[:, 0]
    discrete_bound = (weights * (log_joint - weights.log())).sum(1)
    discrete_gap = kl_divergence(Categorical(weights), Categorical(logits=discrete.log_responsibilities(x)))
    discrete_evidence = torch.stack([Normal(m, 1.0).log_prob(x).sum() for m in discrete.means]).logsumexp(0)
    return Check(
        [
            equal("log p(x) = ELBO + KL(q‖p(z|x)), any Gaussian q", evidence, bound + gap),
            equal("log p(x): dense covariance = gae's log_evidence", evidence, model.log_evidence(x).log_p),
            at_most("ELBO ≤ log p(x)", bound, evidence, 0.0),
            equal("q = p(z|x): ELBO = log p(x)", elbo(ClosedForm(samples=5)(model, x)), evidence),
            equal("q of two humps", _dense_evidence(line, x), mixture_bound + mixture_gap),
            equal("discrete z, any q", discrete_evidence - math.log(4), discrete_bound + discrete_gap),
        ]
    )


@check
def check_D26() -> Check:
    """A search over Gaussian q of gae's β-``elbo`` at unit variance, against gae's exact posterior at variance c."""
    loadings, x = torch.randn(WIDTH, DIM), torch.randn(1, DIM)
    unit, prior = _linear(loadings, 1.0), MultivariateNormal(torch.zeros(WIDTH), torch.eye(WIDTH))
    written, noisy, weighted, searched, exact = [], [], [], [], []
    for c in (0.25, 4.0):
        model, center, factor = _linear(loadings, c), torch.randn(WIDTH), _factor(torch.randn(3))
        kl = kl_divergence(MultivariateNormal(center, scale_tril=factor), prior)
        written.append(-_error(loadings, x, center, factor) / (2 * c) - kl)
        noisy.append(elbo(_cubature(model, x, center, factor))[0] + DIM / 2 * math.log(2 * math.pi * c))
        weighted.append((elbo(_cubature(unit, x, center, factor), beta=c)[0] + DIM / 2 * math.log(2 * math.pi)) / c)
        searched.append(_best(unit, x, beta=c))
        posterior = _posterior(model, x)
        exact.append(torch.cat([posterior.mean, posterior.covariance_matrix.flatten()]))

    variances = torch.logspace(-2, 2, 9)
    models = [_linear(loadings, float(c)) for c in variances]
    ladder, evidences = [_posterior(model, x) for model in models], [_dense_evidence(model, x) for model in models]
    kls = torch.stack([kl_divergence(q, prior) for q in ladder])
    errors = torch.stack([_error(loadings, x, q.mean, q.scale_tril) for q in ladder])
    likelihoods = -errors / (2 * variances) - DIM / 2 * (2 * math.pi * variances).log()

    center, factor = torch.randn(WIDTH), _factor(torch.randn(3))
    learned = _linear(loadings, float(_error(loadings, x, center, factor)) / DIM)
    (slope,) = torch.autograd.grad(elbo(_cubature(learned, x, center, factor)).squeeze(), learned.log_scale)
    return Check(
        claim=[
            at_most("larger c: KL(q‖p) at the optimum falls", kls[1:], kls[:-1], 0.0),
            at_most("larger c: E‖x − f(z)‖² at the optimum rises", errors[:-1], errors[1:], 0.0),
            equal("KL at the optimum = E log q(x|z) − log p(x)", kls, likelihoods - torch.cat(evidences)),
            equal("any q: objective = ELBO at variance c + (D/2) log 2πc", torch.stack(written), torch.stack(noisy)),
            equal("∂ELBO/∂log σ = 0 at c = E‖x − f(z)‖²/D", slope, 0.0),
        ],
        correction=[
            equal("β = c: optimal q = p(z|x) at variance c", torch.stack(searched), torch.stack(exact)),
            equal(
                "any q: objective = (ELBO at β = c, variance 1, + (D/2) log 2π)/c",
                torch.stack(written),
                torch.stack(weighted),
            ),
        ],
    )


@check
def check_D27() -> Check:
    """Draws of gae's ``Amortized``, density by a change of variables, gradients against E cos z in closed form."""
    mean, scale, draws = torch.randn(3), 0.4 + 0.5 * torch.arange(3.0) + 0.1 * torch.rand(3), 20_000
    x = torch.stack([mean, scale.log()], 1).repeat(draws, 1).requires_grad_()  # the encoder is the identity
    found = Amortized(NormalEncoder(nn.Identity()))(Gaussian(nn.Linear(1, 2), 1), x)
    z, q = found.z[0], found.q
    assert q is not None and found.log_q is not None
    weighted = z.detach().cos()[:, 0] * q.log_prob(z.detach())
    moves, pathwise, score = (_per_draw(value, x) for value in (z, z.cos(), weighted))

    drawn = z.detach().reshape(draws, 3)
    noise, plain = (drawn - mean) / scale, mean + scale * torch.randn(draws, 3)
    density = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi) - scale.log()
    steps = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.5])
    points, below = mean + scale * steps[:, None], (0.5 * (1 + torch.erf(steps / math.sqrt(2))))[:, None].expand(-1, 3)
    variance = scale.square()
    decay, ripple = (-variance / 2).exp(), (-2 * variance).exp() * (2 * mean).cos()
    slope = decay[:, None] * torch.stack([-mean.sin(), -variance * mean.cos()], 1)
    squares, score_squares = (1 - ripple) / 2, (1 + (1 - 4 * variance) * ripple) / (2 * variance)
    return Check(
        [
            estimate("P(μ + σε ≤ t) = Φ((t − μ)/σ)", (plain[:, None] <= points).double(), below),
            estimate("gae's draws: P(z ≤ t) = Φ((t − μ)/σ)", (drawn[:, None] <= points).double(), below),
            estimate("gae's draws: E z = μ", drawn, mean),
            estimate("gae's draws: E(z − μ)² = σ²", (drawn - mean).square(), variance),
            equal("log q(z) = log N(ε; 0, 1) − log σ", found.log_q.reshape(draws, 3), density),
            equal("∂z/∂(μ, log σ) = (1, σε)", moves, torch.stack([torch.ones_like(noise), scale * noise], 2)),
            estimate("reparameterised ∇E cos z", pathwise, slope),
            estimate("score-function ∇E cos z", score, slope),
            estimate("reparameterised: E(∂_μ)²", pathwise[..., 0].square(), squares),
            estimate("score-function: E(∂_μ)²", score[..., 0].square(), score_squares),
        ]
    )


def figure_D24() -> "Figure":
    """The formula as written falls below zero; the divergence does not."""
    from matplotlib.figure import Figure

    sigma = torch.linspace(0.02, 2.0, 400)
    arguments = torch.zeros(400, 1), sigma.log()[:, None]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(sigma, _corrected(*arguments), color="#0072B2", label="corrected: KL(N(0, σ²) ‖ N(0, 1))")
    axes.plot(sigma, _as_written(*arguments), color="#D55E00", ls="--", label="as written")
    axes.plot([math.sqrt(0.5)], [-(1 - math.log(2)) / 4], "o", color="#D55E00")
    axes.axhline(0.0, color="0.7", lw=0.8, zorder=0)
    axes.set(xlabel="σ", ylabel="nats", ylim=(-0.2, 1.2))
    axes.legend()
    return figure


def _as_written(mean: Tensor, log_stddev: Tensor) -> Tensor:
    return -0.5 * (1 + log_stddev - mean.square() - log_stddev.exp().square()).sum(-1)


def _corrected(mean: Tensor, log_stddev: Tensor) -> Tensor:
    return -0.5 * (1 + 2 * log_stddev - mean.square() - log_stddev.exp().square()).sum(-1)


def _per_draw(value: Tensor, x: Tensor) -> Tensor:
    """The gradient of each draw's value in its own row of x, (draws, 3, 2)."""
    return torch.autograd.grad(value.sum(), x, retain_graph=True)[0].reshape(-1, 3, 2)


def _minimum(function: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest value of a smooth function and where it is, by Newton's method with automatic derivatives."""
    point = start
    for _ in range(100):
        slope = torch.autograd.functional.jacobian(function, point)
        if slope.norm() < 1e-11:
            break
        values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(function, point))
        step = vectors @ (vectors.T @ slope / values.abs())
        while function(point - step) > function(point) and step.norm() > 1e-12:
            step = step / 2
        point = point - step
    return function(point), point


def _factor(free: Tensor) -> Tensor:
    """A lower triangular matrix with a positive diagonal, from as many free numbers as it has entries."""
    width = int(math.sqrt(2 * len(free)))
    rows, columns = torch.tril_indices(width, width)
    lower = torch.zeros(width, width).index_put((rows, columns), free)
    return lower.tril(-1) + lower.diagonal().exp().diag()


def _cubature(model: LinearMixture, x: Tensor, center: Tensor, factor: Tensor) -> Encoding:
    """2E codes whose mean is the expectation under N(center, factor factorᵀ), exactly for a quadratic function."""
    directions = math.sqrt(len(center)) * factor.T
    z = torch.cat([center + directions, center - directions]).unsqueeze(1)
    q = MultivariateNormal(center, scale_tril=factor)
    return Encoding(z, None, model.log_joint(x, z), q.log_prob(z), q, model.prior, "cubature")


def _kl(q: Encoding) -> Tensor:
    """E_q(log q − log p), which is exact for the codes of a cubature."""
    assert q.log_q is not None
    return (q.log_q - q.log_prior).mean(0)


def _posterior(model: LinearMixture, x: Tensor) -> MultivariateNormal:
    """gae's exact posterior of one observation."""
    found = model.posterior(x)
    assert isinstance(found, MultivariateNormal)
    return MultivariateNormal(found.mean[0, 0].detach(), scale_tril=found.scale_tril[0, 0].detach())


def _dense_evidence(model: LinearMixture, x: Tensor) -> Tensor:
    """log N(x; mean, WWᵀ + σ² I) by the D × D covariance."""
    rows = model.loadings[0].detach()
    covariance = rows.T @ rows + (2 * model.log_scale[0]).exp() * torch.eye(DIM)
    return MultivariateNormal(model.means[0].detach(), covariance).log_prob(x)


def _two_humps(model: LinearMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """ELBO and KL(q‖p(z|x)) of a mixture q of two normals, by quadrature; the posterior by its closed form."""
    q = MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])), Normal(torch.randn(2), 0.3 + torch.rand(2)))
    z = torch.linspace(-14, 14, 8001)
    log_q, row, variance = q.log_prob(z), model.loadings[0, 0], (2 * model.log_scale[0]).exp()
    precision = 1 + row @ row / variance
    posterior = Normal((x[0] - model.means[0]) @ row / variance / precision, precision.rsqrt())
    weight = log_q.exp() * (z[1] - z[0])
    log_joint = model.log_joint(x, z.reshape(-1, 1, 1))[:, 0]
    return weight @ (log_joint - log_q), weight @ (log_q - posterior.log_prob(z))


def _best(model: LinearMixture, x: Tensor, beta: float) -> Tensor:
    """Mean and covariance, as one vector, of the Gaussian q with the highest β-ELBO."""

    def loss(free: Tensor) -> Tensor:
        return -elbo(_cubature(model, x, free[:WIDTH], _factor(free[WIDTH:])), beta=beta).squeeze()

    _, free = _minimum(loss, torch.zeros(WIDTH + WIDTH * (WIDTH + 1) // 2))
    factor = _factor(free[WIDTH:])
    return torch.cat([free[:WIDTH], (factor @ factor.T).flatten()])


def _linear(loadings: Tensor, variance: float) -> LinearMixture:
    """x ~ N(z loadings, variance I), z ~ N(0, I)."""
    model = LinearMixture(1, WIDTH, (DIM,), scale=math.sqrt(variance), learn_scale=True)
    model.loadings.data = loadings[None]
    return model


def _error(loadings: Tensor, x: Tensor, center: Tensor, factor: Tensor) -> Tensor:
    """E‖x − z loadings‖² under N(center, factor factorᵀ)."""
    return (x[0] - center @ loadings).square().sum() + (factor.T @ loadings).square().sum()
