"""Checks of ``07_losses.md``: reconstruction losses as likelihoods, penalties of the code as priors."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as Coin
from torch.distributions import Categorical as Die
from torch.distributions import Distribution, Independent, Laplace, kl_divergence

from gae.autoencoder import Autoencoder
from gae.inference import Amortized, Constant
from gae.ledger.claims import Check, Relation, at_most, check, equal
from gae.likelihood import Bernoulli, Categorical, Flat, Gaussian, Multinomial, VonMisesFisher
from gae.nets import mlp
from gae.objective import joint

WIDTH = 5  # n, the width of an observation


@check
def check_D21() -> Check:
    """The losses are written out; the likelihoods are gae's heads."""
    x, outputs = torch.randn(20, WIDTH), torch.randn(8, 20, WIDTH)  # eight reconstructions of each observation
    square = (x - outputs).square().mean(-1)
    gaussian = Gaussian(nn.Identity(), WIDTH, scale=math.sqrt(WIDTH / 2), prior=Flat(WIDTH))

    p = torch.rand(20, WIDTH).softmax(-1)
    p_hat = outputs.exp() / outputs.exp().sum(-1, keepdim=True)
    one_hot, log_mass = torch.eye(WIDTH)[:, None], _log_mass(outputs)
    divergence = (p * (p / p_hat).log()).sum(-1)

    pixels = outputs.sigmoid()  # in (0, 1), but with another sum for each reconstruction
    unlike, bright = _cross_entropy(p, pixels), _cross_entropy(p, torch.full_like(p, 0.99))
    excess, unlike_divergence = unlike + _expected(p, _log_mass(pixels.log())), (p * (p / pixels).log()).sum(-1)
    total = pixels.sum(-1).log()
    return Check(
        claim=[
            equal(
                "MSE = −log N(x; x̂, σ² = n/2) − (n/2) log πn",
                square,
                -gaussian.log_joint(x, outputs) - WIDTH / 2 * math.log(math.pi * WIDTH),
            ),
            equal("cross-entropy = −log Categorical, one-hot x", _cross_entropy(one_hot, p_hat[0]), -log_mass[:, 0]),
            equal("cross-entropy = −E_x log Categorical", _cross_entropy(p, p_hat), -_expected(p, log_mass)),
            equal("KL(x‖x̂) = −E_x log Categorical − H(x)", divergence, -_expected(p, log_mass) - Die(p).entropy()),
            _frequency_relation(outputs),
            *_cosine_relations(),
        ],
        without=[
            equal("x̂ of sigmoids: cross-entropy + E_x log Categorical does not change with x̂", excess[1:], excess[0]),
            at_most("x̂ of sigmoids: cross-entropy at x̂ = x ≤ at x̂ = 0.99", Die(p).entropy(), bright),
            at_most("x̂ of sigmoids: 0 ≤ Σ x log(x/x̂)", 0.0, unlike_divergence),
        ],
        correction=[
            equal("x̂ of sigmoids: cross-entropy = −E_x log Categorical − log Σ x̂", excess, -total),
            equal("x̂ = 0.99: cross-entropy is −log 0.99, for every x", bright, -math.log(0.99)),
            equal(
                "x̂ of sigmoids: Σ x log(x/x̂) = KL(x‖x̂/Σ x̂) − log Σ x̂",
                unlike_divergence,
                kl_divergence(Die(p), Die(pixels)) - total,
            ),
        ],
    )


@check
def check_D22() -> Check:
    """The loss as written and corrected, against gae's ``Bernoulli``, closed forms, autodiff and torch's KL."""
    x, logits = torch.rand(20, WIDTH), torch.randn(8, 20, WIDTH)
    bits, x_hat = torch.rand(20, WIDTH).round(), 1 / (1 + (-logits).exp())
    bernoulli = -Bernoulli(nn.Identity(), WIDTH, Flat(WIDTH)).log_joint(bits, logits)
    power = torch.arange(1.0, 51.0)[:, None, None]
    near_one = 1 - (-power).exp2()
    fall = (-x * torch.log1p(-(-power).exp2()) - (1 - x) * power * math.log(2)).sum(-1)
    half, edge = torch.full((1, 1), 0.5), torch.tensor(1 - 2.0**-40)
    slope, corrected_slope = _slope(partial(_as_written, x)), _slope(partial(_corrected, x))
    curvature = _slope(corrected_slope)(x_hat)
    kl = kl_divergence(Coin(x.expand_as(x_hat)), Coin(x_hat)).sum(-1)
    return Check(
        claim=[
            at_most("0 ≤ the loss at x = ½, x̂ = 1 − 2⁻⁴⁰", 0.0, _as_written(half, edge)),
            equal("binary x: as written = −log Bernoulli", _as_written(bits, x_hat), bernoulli),
            equal("as written: slope 0 at x̂ = x", slope(x), 0.0),
        ],
        correction=[
            equal("binary x: corrected = −log Bernoulli", _corrected(bits, x_hat), bernoulli),
            equal("as written at x̂ = 1 − 2⁻ᵏ, k = 1 … 50: closed form", _as_written(x, near_one), fall, 1e-9),
            equal("as written: slope −2 at x̂ = x, for every x", slope(x), -2.0),
            equal("any x: corrected(x̂) − corrected(x) = KL(x‖x̂)", _corrected(x, x_hat) - _corrected(x, x), kl),
            equal("corrected: slope 0 at x̂ = x", corrected_slope(x), 0.0),
            equal("corrected: curvature", curvature, x / x_hat.square() + (1 - x) / (1 - x_hat).square()),
            at_most("1 ≤ corrected: curvature", 1.0, curvature),
        ],
    )


@check
def check_D23() -> Check:
    """gae's ``reconstruct`` and training loss against numpy from the weights; both orders on examples with E = D."""
    encode, decode, x = mlp(WIDTH, (7,), 2), mlp(2, (7,), WIDTH), torch.randn(20, WIDTH)
    model, variance = _autoencoder(encode, decode, 2, scale=0.6), 0.36
    by_hand = _forward(decode, _forward(encode, x.numpy()))
    loss = ((x.numpy() - by_hand) ** 2).sum(1).mean() / (2 * variance) + WIDTH / 2 * math.log(2 * math.pi * variance)

    into, back, line = _nilpotent(3)
    example = _autoencoder(into, back, 3)
    swapped_error = (line - into(back(line))).square().sum(1).mean()
    error = (line - example.reconstruct(line)).square().sum(1).mean()
    first, second, y = mlp(3, (7,), 3), mlp(3, (7,), 3), torch.randn(20, 3)
    in_order = _autoencoder(first, second, 3).reconstruct(y)
    return Check(
        claim=[
            equal("width of (φ∘ψ)(z) = width of x", encode(decode(torch.randn(1, 2))).shape[1], x.shape[1]),
            equal("ψ accepts x as it does a code (1: yes)", _accepts(decode, x), _accepts(decode, torch.randn(1, 2))),
            equal("E = D, linear: E‖x − (φ∘ψ)(x)‖² = E‖x − (ψ∘φ)(x)‖²", swapped_error, error),
            equal("E = D, networks: (φ∘ψ)(x) = (ψ∘φ)(x)", first(second(y)), in_order),
        ],
        correction=[
            equal("reconstruct(x) = (ψ∘φ)(x) from the weights", model.reconstruct(x), torch.from_numpy(by_hand)),
            equal("loss = E‖x − (ψ∘φ)(x)‖²/2σ² + (n/2) log 2πσ²", model(x), loss),
            equal("E = D, linear: (ψ∘φ)(x) = x", example.reconstruct(line), line),
            equal("so that E‖x − (ψ∘φ)(x)‖² = 0", error, 0.0),
            equal(
                "whereas E‖x − (φ∘ψ)(x)‖² = E‖x‖²", swapped_error, torch.linalg.matrix_norm(line).square() / len(line)
            ),
        ],
    )


@check
def check_D31() -> Check:
    """gae's ``joint`` under a Laplace prior, scikit-learn's lasso and soft thresholding; torch's KL and autodiff."""
    rate, width, dim = 0.3, 4, 9
    decoder, x, z = nn.Linear(width, dim, bias=False), 3 * torch.randn(30, dim), torch.randn(30, width)
    model, loadings = Gaussian(decoder, width, math.sqrt(dim / 2), prior=_Laplace(rate, width)), decoder.weight.detach()
    log_joint = joint(Constant(z)(model, x))
    penalised = (x - z @ loadings.T).square().mean(1) + rate * z.abs().sum(1)
    constant = width * math.log(rate / 2) - dim / 2 * math.log(math.pi * dim)
    orthonormal = torch.linalg.qr(torch.randn(dim, width))[0]
    projected = x @ orthonormal
    soft = projected.sign() * (projected.abs() - rate * dim / 2).clamp_min(0)
    code = _lasso(loadings, x, rate)
    free = Gaussian(decoder, width, math.sqrt(dim / 2), prior=Flat(width))  # without the penalty
    force = _slope(partial(free.log_joint, x))(code[None])[0]
    balance = torch.where(code == 0, force.clamp(-rate, rate), rate * code.sign())

    rho, activations = 0.1, torch.rand(50, width)
    slope, usual_slope = (_slope(partial(penalty, rho))(activations) for penalty in (_penalty, _usual_penalty))
    each, mean = kl_divergence(Coin(activations), Coin(torch.tensor(rho))), activations.mean(0)
    pull = (mean - rho) / (mean * (1 - mean))
    return Check(
        claim=[
            equal("MSE + λ Σ|z| = −log q(x, z) + E log(λ/2) − (n/2) log πn", penalised, constant - log_joint),
            equal("MAP code, AᵀA = I: soft thresholding = lasso", soft, _lasso(orthonormal, x, rate)),
            equal(
                "the slope of log q(x|z) at the lasso's code: λ sign z, and within ±λ where z = 0", force, balance, 1e-8
            ),
            equal("Σ z log(z/ρ) + … = Σ KL(Bern(z)‖Bern(ρ))", _penalty(rho, activations), each.sum()),
        ],
        correction=[
            equal("slope of the usual KL(ρ‖z̄): (z̄ − ρ)/(z̄(1 − z̄))/N", usual_slope, pull / len(activations)),
            equal("slope of the penalty: logit z − logit ρ", slope, activations.logit() - math.log(rho / (1 - rho))),
            *_at_the_target(rho, width),
        ],
    )


def _cross_entropy(x: Tensor, x_hat: Tensor) -> Tensor:
    return -(x * x_hat.log()).sum(-1)


def _log_mass(logits: Tensor) -> Tensor:
    """The log masses (classes, S, B) of every class, by gae's ``Categorical`` with the identity as its decoder."""
    head = Categorical(nn.Identity(), WIDTH, Flat(WIDTH))
    return torch.stack([head.log_joint(torch.full(logits.shape[1:2], float(c)), logits) for c in range(WIDTH)])


def _expected(x: Tensor, log_mass: Tensor) -> Tensor:
    """E log mass (S, B) over a class drawn from x (B, classes)."""
    return torch.einsum("bc,csb->sb", x, log_mass)


def _frequency_relation(logits: Tensor) -> Relation:
    """The cross-entropy of frequencies of six draws against the log mass of their counts."""
    total, head = 6, Multinomial(nn.Identity(), WIDTH, 6, Flat(WIDTH))
    counts = torch.stack([torch.bincount(row, minlength=WIDTH) for row in torch.randint(WIDTH, (20, total))])
    x, x_hat = counts / total, logits.exp() / logits.exp().sum(-1, keepdim=True)
    ways = (math.lgamma(total + 1) - (counts + 1.0).lgamma().sum(-1)) / total
    return equal(
        "x = counts/n: cross-entropy = −(1/n) log Multinomial + (1/n) log n!/Π(n xᵢ)!",
        _cross_entropy(x, x_hat),
        ways - head.log_joint(x, logits) / total,
    )


def _cosine_relations() -> list[Relation]:
    """1 − cos against two laws of the direction x/‖x‖ around x̂/‖x̂‖, for several concentrations κ."""
    x, x_hat = torch.randn(40, 3), torch.randn(40, 3)
    loss = 1 - (x * x_hat).sum(-1) / (x.square().sum(-1).sqrt() * x_hat.square().sum(-1).sqrt())
    direction, centre = (side / side.norm(dim=-1, keepdim=True) for side in (x, x_hat))
    kappa = torch.tensor([0.5, 2.0, 7.0])[:, None]
    heads = [VonMisesFisher(nn.Identity(), 3, float(k), "fixed", Flat(3)) for k in kappa]
    law = torch.cat([head.log_joint(direction, x_hat[None]) for head in heads])
    integral = torch.stack([_sphere_integral(float(k), centre[0]) for k in kappa])[:, None]
    scaled = [
        Gaussian(nn.Identity(), 3, scale=float(k) ** -0.5, prior=Flat(3)).log_joint(direction, centre[None]) / float(k)
        for k in kappa
    ]
    return [
        equal("1 − cos = −(1/κ) log vMF + 1 − (1/κ) log ∫e^{κ cos}", loss, -law / kappa + 1 - integral.log() / kappa),
        equal("∫e^{κ cos} over S² = 4π sinh κ/κ", integral, 4 * math.pi * kappa.sinh() / kappa, 1e-9),
        equal(
            "1 − cos = −(1/κ) log N(x/‖x‖; x̂/‖x̂‖, I/κ) − (n/2κ) log(2π/κ)",
            loss,
            -torch.cat(scaled) - 1.5 / kappa * (2 * math.pi / kappa).log(),
        ),
    ]


def _sphere_integral(kappa: float, centre: Tensor) -> Tensor:
    """∫ exp(κ u·centre) over the unit sphere: Gauss-Legendre points in height, equal steps around the axis."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(60))
    angle = torch.arange(100) * (2 * math.pi / 100)
    radius = (1 - nodes.square()).sqrt()[:, None]
    points = torch.stack([radius * angle.cos(), radius * angle.sin(), nodes[:, None].expand(-1, 100)], -1)
    return (weights @ (kappa * points @ centre).exp()).sum() * (2 * math.pi / 100)


def _as_written(x: Tensor, x_hat: Tensor) -> Tensor:
    return -(x * x_hat.log() - (1 - x) * (1 - x_hat).log()).sum(-1)


def _corrected(x: Tensor, x_hat: Tensor) -> Tensor:
    return -(x * x_hat.log() + (1 - x) * (1 - x_hat).log()).sum(-1)


def _slope(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The derivative of a sum of values in each element, by autodiff."""

    def derivative(at: Tensor) -> Tensor:
        point = at if at.requires_grad else at.clone().requires_grad_()
        return torch.autograd.grad(function(point).sum(), point, create_graph=True)[0]

    return derivative


def _forward(network: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """Linear, SiLU, linear, by numpy from the weights."""
    first, second = ([part.detach().numpy() for part in network[i].parameters()] for i in (0, 2))
    hidden = x @ first[0].T + first[1]
    return hidden / (1 + np.exp(-hidden)) @ second[0].T + second[1]


def _accepts(network: nn.Module, x: Tensor) -> bool:
    try:
        network(x)
    except RuntimeError:
        return False
    return True


def _autoencoder(encode: nn.Module, decode: nn.Module, latent: int, scale: float = 1.0) -> Autoencoder:
    return Autoencoder(Gaussian(decode, latent, scale, prior=Flat(latent)), Amortized(encode), joint)


def _nilpotent(dim: int) -> tuple[nn.Module, nn.Module, Tensor]:
    """φ = v uᵀ and ψ = u vᵀ with orthonormal u and v, and data on the line of u."""
    u, v = torch.linalg.qr(torch.randn(dim, 2))[0].T
    encode, decode = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
    encode.weight.data, decode.weight.data = torch.outer(v, u), torch.outer(u, v)
    return encode, decode, torch.randn(20, 1) * u


class _Laplace(nn.Module):
    """The prior of a penalty: density (rate/2) exp(−rate |z|) in each dimension."""

    def __init__(self, rate: float, width: int):
        super().__init__()
        self.rate, self.width = rate, width

    def forward(self) -> Distribution:
        return Independent(Laplace(torch.zeros(self.width), 1 / self.rate), 1)


def _lasso(loadings: Tensor, x: Tensor, rate: float) -> Tensor:
    """The minimiser of ‖x − Az‖²/n + rate Σ|z|, (B, E); scikit-learn halves the loss."""
    from sklearn.linear_model import Lasso

    solver = Lasso(alpha=rate / 2, fit_intercept=False, tol=1e-14)
    return torch.stack([torch.from_numpy(solver.fit(loadings.numpy(), row).coef_.copy()) for row in x.numpy()])


def _penalty(rho: float, z: Tensor) -> Tensor:
    return (z * (z / rho).log() + (1 - z) * ((1 - z) / (1 - rho)).log()).sum()


def _usual_penalty(rho: float, z: Tensor) -> Tensor:
    """KL(Bern(ρ)‖Bern(mean over the data)), summed over the units."""
    return kl_divergence(Coin(torch.tensor(rho)), Coin(z.mean(0))).sum()


def _at_the_target(rho: float, width: int) -> list[Relation]:
    """Where all activations are ρ both penalties rest; where only their mean is, one of them."""
    constant = torch.full((50, width), rho)
    spread = torch.linspace(0.1, 0.9, 25)[:, None] * rho * torch.ones(width)
    balanced = constant + torch.cat([spread, -spread])
    values = torch.stack([_penalty(rho, constant), _usual_penalty(rho, constant), _usual_penalty(rho, balanced)])
    bound, penalty, flattest, steepness = _pinsker(rho, balanced - rho)
    small_bound, small_penalty, small_flattest, small_steepness = _pinsker(0.5, torch.tensor([1e-3, -1e-3]))
    slope, usual_slope = _slope(partial(_penalty, rho)), _slope(partial(_usual_penalty, rho))
    slopes = torch.stack([slope(constant), usual_slope(constant), usual_slope(balanced)])
    return [
        equal("both are 0 at z = ρ, the usual one also where only z̄ = ρ", values, 0.0),
        equal("and so are their slopes", slopes, 0.0),
        at_most("z̄ = ρ: 2 Σ (z − ρ)² ≤ the penalty", bound, penalty),
        at_most("z̄ = ρ: 4 |z − ρ| ≤ |its slope|", flattest, steepness),
        equal("which are sharp: the first at z = ½ ± 10⁻³, ρ = ½", small_penalty / small_bound, 1.0, 1e-5),
        equal("... and the second", small_steepness / small_flattest, 1.0, 1e-5),
    ]


def _pinsker(rho: float, offset: Tensor) -> tuple[Tensor, ...]:
    """At z = ρ + offset: the penalty and the size of its slope, each after a lower bound of it."""
    z = rho + offset
    slope = _slope(partial(_penalty, rho))(z)
    return 2 * offset.square().sum(), _penalty(rho, z), 4 * offset.abs(), slope.abs()
