"""Checks of ``12_training_objectives.md``: maximisers of training objectives, and which variables are random."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from gae import systems
from gae.inference import Amortized, Ascent, ClosedForm, Detach, Encoding, GaussNewton, Laplace, OneStep, Zeros
from gae.ledger.claims import Check, at_most, check, equal
from gae.likelihood import Flat, Gaussian, LinearMixture, StandardNormal, WeightLikelihood
from gae.nets import mlp
from gae.objective import elbo, joint, laplace_evidence
from gae.systems import NormalEncoder
from gae.training import fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM = 4  # D, the width of an observation
WIDTH = 2  # E, the width of a code
BATCH = 64  # B
STRETCHES = (1.0, 4.0, 256.0)  # t
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@check
def check_D35() -> Check:
    """gae's ``joint``, ``Laplace`` and ``laplace_evidence`` at stretched decoders, against dense D × D covariances."""
    x = _ellipsoid(30)
    best = systems.ppca((DIM,), latent=WIDTH)
    fit(best, x, progress=False)
    ppca = best.likelihood
    assert isinstance(ppca, LinearMixture)
    models = [_stretched(ppca, t) for t in STRETCHES]
    evidence, distance = (torch.stack(side) for side in zip(*(_dense(model, x) for model in models), strict=True))
    constant = -DIM / 2 * (2 * math.pi * _variance(ppca)).log() - WIDTH / 2 * math.log(2 * math.pi)
    heights, slopes, lengths = (
        torch.stack(side) for side in zip(*(_at_modes(model, x) for model in models), strict=True)
    )
    variances = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))[-WIDTH:]
    excess = variances - _variance(ppca)
    widened = variances + (STRETCHES[-1] ** 2 - 1) * excess
    gain, fall, at_one = heights[-1] - heights[0], evidence[0] - evidence[-1], slopes[0]

    codes, stretch = torch.randn(3, len(x), WIDTH), 7.0
    proper, flat = (_network(prior) for prior in (StandardNormal(WIDTH), Flat(WIDTH)))
    gains = [
        _stretched_network(m, stretch).log_joint(x, codes / stretch) - m.log_joint(x, codes) for m in (proper, flat)
    ]

    moved, trained = _moved(ppca, 0.3), _trained_by_evidence(x)
    laplace, dense = laplace_evidence(_laplace()(moved, x)).mean(), _dense(moved, x)[0]
    at_ppca, at_trained = torch.stack([_gradient(_exact(model, x), model) for model in (ppca, trained)])
    near = torch.stack([_exact(_moved(ppca, size), x) for size in 2 * [0.01, 0.3, 2.0]])
    return Check(
        claim=[
            at_most("PPCA's W, t = 256: L_GAE(tW) − L_GAE(W) ≤ 0", gain, 0.0),
            at_most("L_GAE rises from t = 1 to 256, and so does E log p(x): its fall ≤ 0", fall, 0.0),
            equal("PPCA's W: ∂L_GAE/∂log t = 0", at_one, 0.0),
        ],
        correction=[
            equal("L_GAE(tW) = −½ E (x − μ)ᵀC_t⁻¹(x − μ) + constant", heights, constant - 0.5 * distance, 1e-8),
            equal("PPCA's W: gain from t = 1 to 256 = E/2", gain, WIDTH / 2, 1e-3),
            equal(
                "E log p(x) falls by ½ Σ (log r + 1/r − 1), r = 1 + (t² − 1)(1 − σ²/λ_i)",
                fall,
                _kl_of_scales(widened / variances),
                1e-8,
            ),
            equal("∂L_GAE/∂log t = E‖z*‖²", slopes, lengths),
            equal("PPCA's W: ∂L_GAE/∂log t = Σ (1 − σ²/λ_i)", at_one, (excess / variances).sum()),
            equal("any f(Wz): gain of (tW, z/t) = ½(1 − t⁻²)‖z‖²", gains[0], _saved(codes, stretch)),
            equal("any f(Wz), flat prior: gain of (tW, z/t) = 0", gains[1], 0.0),
            equal("E Laplace evidence = E log p(x)", torch.stack([laplace, _exact(moved, x)]), dense),
            equal(
                "its gradient in W, μ, log σ = ∇ E log p(x)", _gradient(laplace, moved), _gradient(dense, moved), 1e-9
            ),
            equal("its gradient at PPCA's W, μ, σ = 0", at_ppca, 0.0, 1e-9),
            equal("its gradient where a search from random weights ends = 0", at_trained, 0.0, 1e-5),
            at_most("its value elsewhere ≤ at PPCA's", near, _exact(ppca, x)),
            equal("found by that search: WWᵀ + σ²I = PPCA's", _covariance(trained), _covariance(ppca), 1e-4),
        ],
    )


@check
def check_D36() -> Check:
    """The loss written out, at a batch of 64, against gae's ``elbo``; linear decoders against their exact posterior."""
    x = torch.randn(BATCH, DIM)
    network, encoder = mlp(WIDTH, [6], DIM, nn.Tanh), mlp(DIM, [6], 2 * WIDTH, nn.Tanh)
    model = Gaussian(network, WIDTH, scale=math.sqrt(0.5))
    encoding = Amortized(NormalEncoder(encoder))(model, x)
    output, (mean, log_stddev) = network(encoding.z[0]), encoder(x).chunk(2, 1)
    written, summed = (loss(x, output, mean, log_stddev) for loss in (_as_written, _per_sample))
    constant = DIM / 2 * math.log(math.pi)
    full, weak = (-elbo(encoding, beta=beta, analytic=True).mean() - constant for beta in (1.0, 1 / BATCH))
    gradients = [_gradient(value, network, encoder) for value in (written, weak)]
    doubled = [torch.cat([side, side]) for side in (x, output, mean, log_stddev)]

    linear, seen = LinearMixture(1, WIDTH, (DIM,), scale=math.sqrt(0.5)), torch.randn(BATCH, DIM)
    sharp = LinearMixture(1, WIDTH, (DIM,), scale=math.sqrt(0.5 / BATCH))
    sharp.load_state_dict(linear.state_dict() | {"log_scale": sharp.log_scale})
    exact, sharper = (ClosedForm()(part, seen).q for part in (linear, sharp))
    assert exact is not None and sharper is not None
    slope, divergence_slope = _slope_in_q(_as_written, linear, seen, exact), torch.cat([exact.mean, exact.variance - 1])
    return Check(
        claim=[
            equal("vae_loss at B = 64 = −E ELBO + constant", written, full),
            equal("each sample twice in the batch: the same loss", _as_written(*doubled), written),
            equal("∂vae_loss/∂q = 0 at the exact posterior, σ² = ½", slope, 0),
        ],
        correction=[
            equal("vae_loss at B = 64 = 64 (−E ELBO at β = 1/64 + constant)", written, BATCH * weak),
            equal("the same of the gradient in all weights", gradients[0], BATCH * gradients[1]),
            equal("it is −(63/64) ∂KL/∂q", slope, (1 / BATCH - 1) * divergence_slope.reshape(-1, WIDTH)),
            equal(
                "∂vae_loss/∂q = 0 at the exact posterior, σ² = 1/128",
                _slope_in_q(_as_written, linear, seen, sharper),
                0.0,
            ),
            equal("whose variance is 1/129, instead of 1/3", sharper.variance, 1 / (1 + 2 * BATCH)),
            equal("sum over the last axis: loss = −E ELBO + constant", summed, full),
            equal("sum over the last axis: each sample twice", _per_sample(*doubled), summed),
            equal("sum over the last axis: ∂/∂q at σ² = ½", _slope_in_q(_per_sample, linear, seen, exact), 0.0),
        ],
    )


@check
def check_D42() -> Check:
    """gae's ``elbo`` over the mean θ of a linear model, against estimates in closed form with and without a prior."""
    model, noise, variance = LinearMixture(1, WIDTH, (DIM,), scale=0.7), torch.randn(20, DIM), 0.1
    x = noise - noise.mean(0) + 1 + torch.rand(DIM)
    covariance = _covariance(model)
    precision = len(x) * torch.linalg.inv(covariance)
    most_likely = x.mean(0)
    posterior_mode = torch.linalg.solve(precision + torch.eye(DIM) / variance, precision @ most_likely)
    prior = Independent(Normal(torch.zeros(DIM), math.sqrt(variance)), 1)

    thetas = torch.stack([most_likely, posterior_mode, torch.randn(DIM)])
    bounds = torch.stack([_total_elbo(model, theta, x) for theta in thetas])
    likelihoods = torch.stack([MultivariateNormal(theta, covariance).log_prob(x).sum() for theta in thetas])
    any_q = MultivariateNormal(torch.randn(WIDTH), scale_tril=torch.randn(WIDTH, WIDTH).tril(-1) + torch.eye(WIDTH))
    gaps, divergences = zip(*(_gap(model, theta, x, any_q) for theta in thetas), strict=True)
    total = bounds + prior.log_prob(thetas)
    posterior = MultivariateNormal(posterior_mode, precision_matrix=precision + torch.eye(DIM) / variance)
    log_posterior = _from_first(posterior.log_prob(thetas))

    at_mode, exact = _slope_in_theta(model, posterior_mode, x), _posterior(model, torch.zeros(DIM), x)
    once, twice = (_total_kl(model, data) for data in (x, torch.cat([x, x])))
    engine = Ascent(Zeros(), GaussNewton(), max_steps=2, adjoint=Detach())
    return Check(
        claim=[
            equal("∂ Σ ELBO/∂θ = 0 at the MAP estimate of θ", at_mode, 0.0),
            equal("max_q Σ ELBO = log p(θ|X) + constant", _from_first(bounds), log_posterior),
            equal("X twice: the same Σ KL, as log p(θ)", twice, once),
        ],
        correction=[
            equal("∂ Σ ELBO/∂θ = 0 at the ML estimate", _slope_in_theta(model, most_likely, x), 0.0, 1e-9),
            equal("max_q Σ ELBO = log p(X|θ)", bounds, likelihoods),
            equal("any q: log p(X|θ) − Σ ELBO = Σ KL(q(z)‖p(z|x, θ))", torch.stack(gaps), torch.stack(divergences)),
            equal("Σ ELBO + log p(θ): slope 0 at the MAP estimate", at_mode, posterior_mode / variance, 1e-9),
            equal("Σ ELBO + log p(θ) = log p(θ|X) + constant", _from_first(total), log_posterior),
            equal("Σ KL(q(z)‖p(z)) of the exact q", once, kl_divergence(exact, model.prior).sum()),
            equal("X twice: twice Σ KL", twice, 2 * once),
            equal("argmax_z joint = argmax_z p(z|x): MAP of the code", engine(model, x).z[0], exact.mean),
        ],
    )


@check
def check_D43() -> Check:
    """Two equal observations under fixed weights and random codes, and under gae's ``WeightLikelihood``."""
    noise, code, x = 0.6, 1 + float(torch.rand(())), torch.randn(1).expand(2)
    fixed = LinearMixture(1, 1, (1,), scale=noise, means=torch.zeros(1, 1))
    fixed.loadings.data.fill_(code)  # x_n = w z_n + noise, w a parameter; below it is the one random element
    side = torch.linspace(-9, 9, 201)
    plane = torch.cartesian_prod(side, side).reshape(-1, 2, 1)
    together = _log_integral(fixed.log_joint(x[:, None], plane).sum(1), float(side[1] - side[0]) ** 2)
    carried = together - fixed.log_evidence(x[:, None]).log_p.sum()

    shared = nn.Conv1d(1, 1, 1, bias=False)
    bayes = WeightLikelihood(shared, torch.full((1, 2), code), partial(Gaussian, scale=noise), StandardNormal(1))
    line = torch.linspace(-12, 12, 1001)
    pair = _log_integral(bayes.log_joint(x[None, None], line.reshape(-1, 1, 1)), float(line[1] - line[0]))
    alone = Normal(0.0, math.hypot(code, noise)).log_prob(x)
    correlation, squared = code**2 / (code**2 + noise**2), x[0] ** 2 / (code**2 + noise**2)
    learned = -0.5 * math.log(1 - correlation**2) + squared * correlation / (1 + correlation)

    vae, network = systems.vae((DIM,), latent=WIDTH, hidden=(5,)), mlp(WIDTH, [5], DIM)
    q = vae.encode(torch.randn(3, DIM)).q
    assert q is not None and isinstance(vae.likelihood, Gaussian)
    other, parameters = q.event_shape.numel() - WIDTH, sum(part.numel() for part in vae.parameters())
    weights = WeightLikelihood(network, torch.ones(WIDTH), prior=StandardNormal(39))
    drawn = weights.outputs(weights.prior.sample((200, 1)))
    repeated = vae.likelihood.outputs(torch.ones(200, 1, WIDTH))
    return Check(
        claim=[
            equal("VAE: dimension of the random variables, without the code = parameters", other, parameters),
            at_most("random weights: spread of f(z) at one z ≤ the VAE's", drawn.std(0), repeated.std(0)),
            equal("VAE: log p(x₂|x₁) − log p(x₂) = with one random weight", carried, learned),
        ],
        correction=[
            equal("VAE: dimension of the random variables, without the code = 0", other, 0),
            equal("VAE: spread of f(z) at one z = 0", repeated.std(0), 0.0),
            equal("VAE: log p(x₁, x₂) − log p(x₁) − log p(x₂) = 0", carried, 0.0),
            equal("WeightLikelihood: dimension = parameters", weights.latent_shape.numel(), _size(network)),
            equal("WeightLikelihood: log p(x₂|x₁) − log p(x₂)", pair - alone.sum(), learned),
        ],
    )


def figure_D35() -> "Figure":
    """The objective of MAP codes rises with the stretch of the decoder; log p(x) does not."""
    from matplotlib.figure import Figure

    torch.manual_seed(0)
    x = _ellipsoid(30)
    best = systems.ppca((DIM,), latent=WIDTH)
    fit(best, x, progress=False)
    assert isinstance(best.likelihood, LinearMixture)
    stretch = torch.logspace(-1, 2, 60)
    curves: list[list[float]] = [[], [], []]
    with torch.no_grad():
        for t in stretch:
            model = _stretched(best.likelihood, float(t))
            curves[0].append(float(joint(_climb()(model, x)).mean()))
            curves[1].append(float(_dense(model, x)[0]))
            curves[2].append(float(laplace_evidence(_laplace()(model, x)).mean()))
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(stretch, curves[0], color="#D55E00", label="max log q(z) q(x|z)")
    axes.plot(stretch, curves[1], color="#0072B2", label="log p(x)")
    axes.plot(stretch, curves[2], color="0.1", ls=":", label="Laplace evidence")
    axes.axvline(1.0, color="0.7", lw=0.8, zorder=0)
    axes.set(xlabel="t, decoder tW (t = 1: PPCA)", ylabel="nats per observation", xscale="log")
    axes.legend()
    return figure


def _ellipsoid(size: int) -> Tensor:
    """Points with two long axes and two short ones, in a random orientation."""
    axes = torch.tensor([3.0, 2.0, 0.5, 0.4])
    return (torch.randn(size, DIM) * axes) @ torch.linalg.qr(torch.randn(DIM, DIM))[0] + torch.randn(DIM)


def _climb() -> Ascent:
    """One Gauss-Newton step, which is exact for a linear decoder, and its evaluation."""
    return Ascent(Zeros(), GaussNewton(), max_steps=2, adjoint=OneStep())


def _laplace() -> Laplace:
    return Laplace(_climb(), samples=None)


def _stretched(model: LinearMixture, t: float) -> LinearMixture:
    longer = copy.deepcopy(model)
    longer.loadings.data *= t
    return longer


def _moved(model: LinearMixture, size: float) -> LinearMixture:
    """The model with all of its parameters changed at random."""
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data += size * torch.randn_like(parameter)
    return other


def _variance(model: LinearMixture) -> Tensor:
    return (2 * model.log_scale[0]).exp()


def _covariance(model: LinearMixture) -> Tensor:
    """WWᵀ + σ² I, (D, D)."""
    rows = model.loadings[0]
    return rows.T @ rows + _variance(model) * torch.eye(DIM)


def _dense(model: LinearMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """E log N(x; μ, C) and E (x − μ)ᵀ C⁻¹ (x − μ), by the D × D covariance C."""
    law = MultivariateNormal(model.means[0], _covariance(model))
    centred = x - law.mean
    return law.log_prob(x).mean(), (centred @ torch.linalg.inv(law.covariance_matrix) * centred).sum(1).mean()


def _at_modes(model: LinearMixture, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L_GAE, ∂L_GAE/∂log t by automatic differentiation, and E‖z*‖² by normal equations."""
    height = joint(ClosedForm()(model, x)).mean()
    (slope,) = torch.autograd.grad(height, model.loadings)
    rows = model.loadings[0].detach()
    precision = rows @ rows.T + _variance(model) * torch.eye(WIDTH)
    codes = torch.linalg.solve(precision, rows @ (x - model.means.detach()).T)
    return height, (slope[0] * rows).sum(), codes.square().sum(0).mean()


def _kl_of_scales(ratio: Tensor) -> Tensor:
    """KL(N(0, 1) ‖ N(0, r)), summed."""
    return (ratio.log() + 1 / ratio - 1).sum() / 2


def _network(prior: nn.Module) -> Gaussian:
    return Gaussian(mlp(WIDTH, [6], DIM, nn.Tanh), WIDTH, prior=prior)


def _stretched_network(model: Gaussian, t: float) -> Gaussian:
    """The decoder with its first layer's weight times t, for z/t in the place of z."""
    longer = copy.deepcopy(model)
    first = next(part for part in longer.modules() if isinstance(part, nn.Linear))
    first.weight.data *= t
    return longer


def _saved(codes: Tensor, t: float) -> Tensor:
    return 0.5 * (1 - t**-2) * codes.square().sum(-1)


def _gradient(value: Tensor, *modules: nn.Module) -> Tensor:
    """The gradient in all parameters of the modules, as one vector."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters, retain_graph=True)])


def _exact(model: LinearMixture, x: Tensor) -> Tensor:
    """E Laplace evidence, by the mode and curvature in closed form."""
    return laplace_evidence(ClosedForm()(model, x)).mean()


def _trained_by_evidence(x: Tensor) -> LinearMixture:
    """A linear decoder at a maximum of E log N(x; μ, WᵀW + σ²I), by BFGS from random weights."""
    seen, parts = x.numpy(), [WIDTH * DIM, WIDTH * DIM + DIM]

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        rows, centre, log_scale = np.split(free, parts)
        rows, variance, centred = rows.reshape(WIDTH, DIM), np.exp(2 * log_scale), seen - centre
        precision = np.linalg.inv(rows.T @ rows + variance * np.eye(DIM))
        explained = precision @ (centred.T @ centred) / len(seen)
        slope = precision - explained @ precision  # in the covariance, twice
        slopes = [(rows @ slope).ravel(), -precision @ centred.mean(0), variance * slope.trace()]
        return (explained.trace() - np.linalg.slogdet(precision)[1]) / 2, np.concatenate(slopes)

    start = torch.randn(WIDTH * DIM + DIM + 1).numpy()
    best = torch.as_tensor(minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-7}).x)
    model = LinearMixture(1, WIDTH, (DIM,), learn_scale=True)
    rows, centre, model.log_scale.data = best.tensor_split(parts)
    model.loadings.data, model.means.data = rows.reshape(1, WIDTH, DIM), centre[None]
    return model


def _as_written(x: Tensor, output: Tensor, mean: Tensor, log_stddev: Tensor) -> Tensor:
    """The published ``vae_loss``, with the factor 2 of D24 in its KL."""
    reconstruction_loss = (output - x).square().sum()
    return (reconstruction_loss + _kl(mean, log_stddev)).mean()


def _per_sample(x: Tensor, output: Tensor, mean: Tensor, log_stddev: Tensor) -> Tensor:
    """The same with ``axis=-1`` in the reconstruction loss."""
    return ((output - x).square().sum(-1) + _kl(mean, log_stddev)).mean()


def _kl(mean: Tensor, log_stddev: Tensor) -> Tensor:
    return -0.5 * (1 + 2 * log_stddev - mean.square() - log_stddev.exp().square()).sum(-1)


def _slope_in_q(loss: Loss, model: LinearMixture, x: Tensor, q: Distribution) -> Tensor:
    """The gradient in mean and log σ of q of the expected loss; draws at ±√E σ are exact for a linear decoder."""
    mean, log_stddev = (part.detach().reshape(len(x), WIDTH).requires_grad_() for part in (q.mean, q.stddev.log()))
    value = torch.zeros(())
    for noise in math.sqrt(WIDTH) * torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)]):
        output = model.means.detach() + (mean + log_stddev.exp() * noise) @ model.loadings[0].detach()
        value = value + loss(x, output, mean, log_stddev) / (2 * WIDTH)
    return torch.cat(torch.autograd.grad(value, [mean, log_stddev]))


def _at(model: LinearMixture, theta: Tensor) -> LinearMixture:
    moved = copy.deepcopy(model)
    moved.means.data = theta[None].clone()
    return moved


def _total_elbo(model: LinearMixture, theta: Tensor, x: Tensor) -> Tensor:
    """Σ ELBO at the best q."""
    return elbo(ClosedForm(samples=1)(_at(model, theta), x)).sum()


def _slope_in_theta(model: LinearMixture, theta: Tensor, x: Tensor) -> Tensor:
    moved = _at(model, theta)
    (slope,) = torch.autograd.grad(elbo(ClosedForm(samples=1)(moved, x)).sum(), moved.means)
    return slope[0]


def _total_kl(model: LinearMixture, x: Tensor) -> Tensor:
    encoding = ClosedForm()(model, x)
    return (elbo(encoding, beta=0.0, analytic=True) - elbo(encoding, analytic=True)).sum()


def _from_first(values: Tensor) -> Tensor:
    """Differences from the first value: a constant that is the same for all does not matter."""
    return values - values[0]


def _gap(model: LinearMixture, theta: Tensor, x: Tensor, q: MultivariateNormal) -> tuple[Tensor, Tensor]:
    """log p(X|θ) − Σ ELBO of one q for all x, exact by 2E draws, and Σ KL(q‖p(z|x, θ))."""
    moved, directions = _at(model, theta), math.sqrt(WIDTH) * q.scale_tril.T
    z = torch.cat([q.mean + directions, q.mean - directions]).unsqueeze(1).expand(-1, len(x), -1)
    bound = elbo(Encoding(z, None, moved.log_joint(x, z), q.log_prob(z), q, moved.prior, "cubature")).sum()
    likelihood = MultivariateNormal(theta, _covariance(model)).log_prob(x).sum()
    return likelihood - bound, kl_divergence(q.expand((len(x),)), _posterior(model, theta, x)).sum()


def _posterior(model: LinearMixture, theta: Tensor, x: Tensor) -> MultivariateNormal:
    """p(z|x, θ), by the D × D covariance of x."""
    inverse, rows = torch.linalg.inv(_covariance(model)), model.loadings[0]
    return MultivariateNormal((x - theta) @ inverse @ rows.T, torch.eye(WIDTH) - rows @ inverse @ rows.T)


def _log_integral(log_values: Tensor, volume: float) -> Tensor:
    return log_values.flatten().logsumexp(0) + math.log(volume)


def _size(network: nn.Module) -> int:
    return sum(part.numel() for part in network.parameters())
