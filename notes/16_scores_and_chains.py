"""Checks of ``16_scores_and_chains.md``: generation by denoising and sparse codes, and score matching."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn.functional import one_hot

from gae.analysis.chains import denoising_walk
from gae.autoencoder import Autoencoder
from gae.inference import Amortized
from gae.ledger.claims import Check, at_most, check, equal, estimate
from gae.likelihood import Categorical, Flat, Gaussian, LinearMixture

if TYPE_CHECKING:
    pass

SYMBOLS, SEEN = 5, 4  # values of x and of its corrupted copy
NOISE = 0.6  # σ of the corruption


@check
def check_D44() -> Check:
    """Exact laws and draws of gae's chain and decoder, with exact conditionals, against the data's law."""
    data = 0.25 * torch.randn(SYMBOLS).softmax(0) + 0.05  # no value is rare
    data[0] += 0.5
    corruption = 0.3 * torch.randn(SYMBOLS, SEEN).softmax(1)
    corruption += 0.7 * torch.eye(SEEN)[torch.arange(SYMBOLS) % SEEN]
    denoiser = _conditional(data, corruption)
    chain = corruption @ _decoded(denoiser)
    walked = denoising_walk(denoiser, torch.ones(3000), steps=30, corruption=lambda x: _drawn(corruption, x))[-1]

    active = one_hot(torch.tensor([0, 1, 2, 1, 2])).double()  # one unit of three is active
    sparse = _conditional(data, active)
    codes = torch.eye(3)[(data @ active).multinomial(3000, replacement=True)]
    by_code = sparse.decode(codes).sample()
    by_aggregate, blind = data @ active @ _decoded(sparse), _decoded(sparse).mean(0)
    missed = _distance(blind, data)
    return Check(
        claim=[
            at_most("denoising: its chain misses 0.1 or more of p", 0.1, _distance(_long_run(chain), data)),
            at_most("sparse: its decoder misses 0.1 or more of p", 0.1, _distance(by_aggregate, data)),
        ],
        correction=[
            equal("long-run law of the denoising chain = p, from every start", _long_run(chain), data),
            estimate("gae's denoising walk from x = 1", _counted(walked), data),
            equal("sparse: codes of data, decoded by P(x|z): the law is p", by_aggregate, data),
            estimate("gae's decoder at codes of data", _counted(by_code), data),
            at_most("sparse: all codes equally often: 0.1 or more of p is missed", 0.1, missed),
            equal(
                "which is Σ max(0, P(x) − p(x)), with P(x) = p(x)/(3 P(z))",
                missed,
                (data / (3 * active @ (data @ active)) - data).relu().sum(),
            ),
        ],
    )


@check
def check_D45() -> Check:
    """Gauss–Hermite quadrature around the data against sums over a grid of noisy points, for gae's autoencoders."""
    data, noisy = 1.2 * torch.randn(4, 2), LinearMixture(4, 0, (2,), scale=NOISE)
    noisy.means.data = data
    grid, density, score = _grid(noisy)
    models = [_sigmoid_autoencoder(tied=number < 2) for number in range(3)]
    denoising = torch.stack([_denoising(model, data) for model in models])
    explicit = torch.stack([_explicit(model, grid, density, score) for model in models])
    implicit = torch.stack([_implicit(model, grid, density) for model in models])
    constants, fisher = denoising - explicit, density @ score.square().sum(1)
    weights = list(models[2].parameters())
    denoising_slope, explicit_slope = (_flat(torch.autograd.grad(loss[2], weights)) for loss in (denoising, explicit))

    x = torch.randn(6, 2)
    free, fields = _free_energy_score(models[0], x), vmap(jacrev(lambda v: _field(models[2], v)))(x)
    turn, product = fields - fields.mT, _product(models[2], x)
    least, best = 2 * NOISE**2 - NOISE**4 * fisher, noisy.log_responsibilities(grid).exp().detach()
    centre = best @ data
    spread = (best * (data - centre[:, None]).square().sum(2)).sum(1)
    return Check(
        [
            equal("denoising − explicit: one constant for three models", constants[1:], constants[0], 1e-7),
            equal("the constant is D/2σ² − ½ E‖∇log p_σ‖²", constants, 1 / NOISE**2 - fisher / 2, 1e-7),
            equal("explicit − implicit = ½ E‖∇log p_σ‖²", explicit - implicit, fisher / 2, 1e-7),
            equal("the same gradient in every weight", denoising_slope, explicit_slope, 1e-7),
            equal("tied weights: (r(x) − x)/σ² = ∇log p of a Gaussian RBM", _field(models[0], x), free),
            equal("the error of the best denoiser = Dσ² − σ⁴ E‖∇log p_σ‖²", density @ spread, least, 1e-7),
            at_most("untied weights: ∂r/∂x is not symmetric", 1e-3, turn.abs().amax()),
            equal(
                "its antisymmetric part is that of (decoder · diag h′ · encoder)/σ²",
                turn,
                (product - product.mT) / NOISE**2,
            ),
        ]
    )


class _OneHot(nn.Module):
    def __init__(self, table: Tensor):
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x.long()]


def _conditional(data: Tensor, table: Tensor) -> Autoencoder:
    """A model of x given a one-hot code of law table[x] that is exact: P(x|z) = p(x) table(z|x) / Σ."""
    joint = data[:, None] * table
    width, decoder = table.shape[1], nn.Linear(table.shape[1], len(data), bias=False)
    decoder.weight.data = (joint / joint.sum(0)).clamp_min(1e-30).log()
    return Autoencoder(Categorical(decoder, width, prior=Flat(width)), Amortized(_OneHot(torch.eye(width))))


def _decoded(model: Autoencoder) -> Tensor:
    """P(x|z) of every one-hot code, (Z, X)."""
    codes, x = torch.eye(*model.likelihood.latent_shape), torch.arange(float(SYMBOLS))
    return model.decode(codes).log_prob(x[:, None]).exp().T.detach()


def _drawn(table: Tensor, x: Tensor) -> Tensor:
    return table[x.long()].multinomial(1)[:, 0].double()


def _long_run(chain: Tensor) -> Tensor:
    return torch.linalg.matrix_power(chain, 4096)


def _counted(x: Tensor) -> Tensor:
    return one_hot(x.long(), SYMBOLS).double()


def _distance(law: Tensor, data: Tensor) -> Tensor:
    """Total variation."""
    return (law - data).abs().sum(-1) / 2


def _sigmoid_autoencoder(tied: bool) -> Autoencoder:
    first, second = nn.Linear(2, 6), nn.Linear(6, 2)
    first.weight.data = 0.5 * torch.randn(6, 2)
    second.weight.data = first.weight.data.T.clone() if tied else 0.5 * torch.randn(2, 6)
    return Autoencoder(Gaussian(second, 6, prior=Flat(6)), Amortized(nn.Sequential(first, nn.Sigmoid())))


def _encoder(model: Autoencoder) -> nn.Module:
    assert isinstance(model.inference, Amortized) and isinstance(model.inference.guide, nn.Module)
    return model.inference.guide


def _decoder(model: Autoencoder) -> nn.Module:
    assert isinstance(model.likelihood, Gaussian)
    return model.likelihood.decoder


def _field(model: Autoencoder, x: Tensor) -> Tensor:
    """(r(x) − x)/σ², the score that a denoiser stands for."""
    return (_decoder(model)(_encoder(model)(x)) - x) / NOISE**2


def _product(model: Autoencoder, x: Tensor) -> Tensor:
    """The weights of decoder and encoder with the slope h(1 − h) of each hidden unit between them, (B, D, D)."""
    first, second = next(iter(_encoder(model).children())), _decoder(model)
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    h = _encoder(model)(x)
    return (second.weight * (h - h.square())[:, None]) @ first.weight


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def _grid(noisy: LinearMixture) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy points, their probabilities under p_σ, and ∇log p_σ by automatic differentiation of gae's evidence."""
    low, high = (float(end) for end in noisy.means.detach().aminmax())
    side = torch.arange(low - 7 * NOISE, high + 7 * NOISE, 0.15)
    grid = torch.cartesian_prod(side, side).requires_grad_()
    log_p = noisy.log_evidence(grid).log_p
    (score,) = torch.autograd.grad(log_p.sum(), grid)
    return grid.detach(), log_p.detach().exp() * 0.15**2, score


def _denoising(model: Autoencoder, data: Tensor) -> Tensor:
    """E ½‖ψ(x̃) − (x − x̃)/σ²‖², which is gae's loss of the clean x at the code of x̃ over σ⁴, up to a constant."""
    nodes, weights = (torch.as_tensor(side) for side in np.polynomial.hermite_e.hermegauss(32))
    noise, weights = torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten() / weights.sum() ** 2
    codes = _encoder(model)(data + NOISE * noise[:, None])
    surprise = -model.likelihood.log_joint(data, codes) - math.log(2 * math.pi)
    return (weights @ surprise).mean() / NOISE**4


def _explicit(model: Autoencoder, grid: Tensor, density: Tensor, score: Tensor) -> Tensor:
    """E ½‖ψ − ∇log p_σ‖² under p_σ."""
    return density @ (_field(model, grid) - score).square().sum(1) / 2


def _implicit(model: Autoencoder, grid: Tensor, density: Tensor) -> Tensor:
    """E (div ψ + ½‖ψ‖²) under p_σ (Hyvärinen 2005)."""
    slopes = vmap(jacrev(lambda v: _field(model, v)))(grid)
    return density @ (slopes.diagonal(dim1=1, dim2=2).sum(1) + _field(model, grid).square().sum(1) / 2)


def _free_energy_score(model: Autoencoder, x: Tensor) -> Tensor:
    """∇log p of the Gaussian RBM with hidden units summed out: (⟨c, x⟩ − ½‖x‖² + Σ softplus(Wx + b))/σ²."""
    first, second, x = next(iter(_encoder(model).children())), _decoder(model), x.clone().requires_grad_()
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    log_p = x @ second.bias - x.square().sum(1) / 2 + nn.functional.softplus(first(x)).sum(1)
    return torch.autograd.grad(log_p.sum(), x)[0] / NOISE**2
