"""Checks of ``17_each_term_alone.md``: codes of the reconstruction error alone, and codes of the KL alone."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.func import grad, vmap

from gae import nets
from gae.analysis.baseline import without_code
from gae.analysis.rate_distortion import rate_distortion
from gae.autoencoder import Autoencoder
from gae.inference import Amortized, Encoding
from gae.ledger.claims import Check, at_most, check, equal, estimate
from gae.likelihood import Gaussian
from gae.objective import elbo
from gae.systems import NormalEncoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NODES, WEIGHTS = (torch.as_tensor(side) for side in np.polynomial.hermite_e.hermegauss(40))
WEIGHTS = WEIGHTS / WEIGHTS.sum()  # of the expectation under N(0, 1)


@check
def check_D38() -> Check:
    """Gauss–Hermite quadrature through gae's ``Gaussian``, and draws of gae's ``Amortized``, against closed forms."""
    model, angle, sigma = Gaussian(_Circle(), 2), 6 * torch.rand(()), torch.linspace(0.0, 3.0, 16)
    errors, ignored = (_error_at(model, angle, sigma, axis) for axis in (0, 1))
    slopes = vmap(grad(lambda s: _error_at(model, angle, s[None], 0)[0]))(sigma)
    far = torch.tensor([1.0, 3.0, 10.0, 30.0])
    spread = [_error_at(Gaussian(_Circle(stretch), 2), stretch * angle, torch.ones(1), 0) for stretch in far.tolist()]
    alone = _minimum(lambda free: _error_at(model, angle, free[:1], 0).sum(), torch.ones(1))
    with_kl = _minimum(lambda free: 0.5 * _error_at(model, angle, free[:1], 0).sum() + _kl(free).sum(), torch.rand(2))
    drawn = _amortized(model, torch.tensor([angle, 0.0, math.log(0.7), 0.0]), _on_circle(angle), 4000)
    surprise = -2 * (drawn.log_joint - drawn.log_prior) - 2 * math.log(2 * math.pi)
    return Check(
        claim=[
            equal("E‖x − f(z)‖² = 2 − 2e^(−σ²/2), f the circle", errors, 2 - 2 * (-sigma.square() / 2).exp()),
            estimate("the same by gae's draws, σ = 0.7", surprise, 2 - 2 * math.exp(-0.245)),
            at_most("it rises with σ", errors[:-1], errors[1:], 0.0),
            equal("its slope is 2σe^(−σ²/2)", slopes, 2 * sigma * (-sigma.square() / 2).exp()),
            at_most("σ = 1 costs 0.5 or more", 0.5, _error_at(model, angle, torch.ones(1), 0)),
            equal("the σ found by a search from 1 is 0", alone, 0.0, 1e-6),
        ],
        without=[
            at_most("a coordinate that f ignores: σ = 1 costs 0.5 or more", 0.5, _error_at(model, angle, far[:1], 1)),
        ],
        correction=[
            equal("that coordinate: the error is 0 at any σ", ignored, 0.0),
            equal("means t times as far apart, σ = 1: σ/t in the place of σ", torch.cat(spread), _bent(1 / far)),
            equal(
                "with the KL: σ²(1 + e^(−σ²/2)) = 1", with_kl[0] ** 2 * (1 + (-(with_kl[0] ** 2) / 2).exp()), 1.0, 1e-7
            ),
            equal("with the KL, a coordinate that f ignores: σ = 1", with_kl[1].abs(), 1.0, 1e-7),
        ],
    )


@check
def check_D39() -> Check:
    """An encoder trained by the KL of gae's ``elbo`` alone, its rate and information, and decoders of its codes."""
    x, network, model = torch.randn(20, 3), nn.Linear(3, 2), Gaussian(nets.mlp(1, [6], 3, nn.Tanh), 1)
    for part in network.parameters():
        part.data *= 0.2  # so that the grid of z holds every code
    engine = Amortized(NormalEncoder(network))
    information_before, aggregate = _information(*_moments(network, x))
    rate_before = rate_distortion(Autoencoder(model, engine), x, draws=4).rate.mean()

    def cost() -> Tensor:
        code = engine(model, x)
        return (elbo(code, beta=0.0, analytic=True) - elbo(code, analytic=True)).sum()

    _descend(cost, list(network.parameters()))
    mean, sigma = _moments(network, x)
    information, _ = _information(mean, sigma)
    centre, variance = x.mean(0), x.var(0, unbiased=False).sum()
    z = NODES
    decoded = model.outputs(z[:, None]).detach()
    error = torch.stack([WEIGHTS @ (row - decoded).square().sum(1) for row in x]).mean()
    log_x = torch.stack([WEIGHTS @ model(z[:, None]).log_prob(row) for row in x]).detach().mean()
    codeless = without_code(model, x, x).mean()
    draws = _amortized(model, torch.stack([mean[0], sigma[0].log()]), x[0], 2000).z[:, 0, 0]
    return Check(
        claim=[
            equal("trained by the KL alone: μ(x) = 0 for every x", mean, 0.0, 1e-6),
            equal("and σ(x) = 1", sigma, 1.0, 1e-6),
            equal("gae's rate = 0", rate_distortion(Autoencoder(model, engine), x, draws=4).rate, 0.0),
            equal("I(x; z) = 0, by quadrature", information, 0.0, 1e-8),
            equal("KL(q(z|x) ‖ q(z|x′)) = 0 for every pair", _pairs(mean, sigma), 0.0, 1e-8),
        ],
        correction=[
            at_most("before training I(x; z) > 0", 1e-4, information_before),
            equal(
                "then I(x; z) + KL(aggregate ‖ prior) = gae's rate", information_before + aggregate, rate_before, 1e-8
            ),
            equal("any decoder: E‖x − f(z)‖² = E‖x − x̄‖² + E‖f(z) − x̄‖²", error, variance + _about(decoded, centre)),
            at_most("any decoder: E log q(x|z) ≤ that of gae's model without a code", log_x, codeless),
            equal("any decoder: E log q(x|z) = −½ E‖x − f(z)‖² + constant", log_x, _gauss(error, 3)),
            equal("gae's model without a code: the error is E‖x − x̄‖²", codeless, _gauss(variance, 3)),
            estimate("the draws are not packed: E z² = 1", draws.square(), 1.0),
        ],
    )


def figure_D38() -> "Figure":
    """The error of a decoder on the circle, alone and with the KL, over the noise of the code."""
    from matplotlib.figure import Figure

    sigma = torch.linspace(0.02, 2.0, 300)
    error = _error_at(Gaussian(_Circle(), 2), torch.tensor(0.5), sigma, 0).detach() / 2
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(sigma, error, color="#D55E00", label="½ E‖x − f(z)‖²")
    axes.plot(sigma, error + _kl(sigma), color="#0072B2", label="with the KL")
    axes.set(xlabel="σ", ylabel="nats", ylim=(0.0, 2.5))
    axes.legend()
    return figure


class _Circle(nn.Module):
    """f(z) = (cos z₁/t, sin z₁/t), which ignores z₂."""

    def __init__(self, stretch: float = 1.0):
        super().__init__()
        self.stretch = stretch

    def forward(self, z: Tensor) -> Tensor:
        return _on_circle(z[:, 0] / self.stretch)


def _on_circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], -1)


def _error_at(model: Gaussian, mean: Tensor, sigma: Tensor, axis: int) -> Tensor:
    """E‖x − f(z)‖² at the x of the angle ``mean``, with noise σ on one coordinate of the code alone."""
    z = torch.stack([mean + (1 - axis) * sigma[:, None] * NODES, axis * sigma[:, None] * NODES], -1)
    seen = model(torch.stack([mean, 0 * mean])[None]).mean.detach()
    return -2 * (model(z).log_prob(seen) + math.log(2 * math.pi)) @ WEIGHTS


def _bent(sigma: Tensor) -> Tensor:
    return 2 - 2 * (-sigma.square() / 2).exp()


def _kl(sigma: Tensor) -> Tensor:
    return 0.5 * (sigma.square() - 1) - sigma.abs().log()


def _minimum(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    free = start.clone().requires_grad_()
    _descend(lambda: loss(free), [free])
    return free.detach()


def _descend(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
    """L-BFGS until the gradient vanishes."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=200, tolerance_grad=1e-9, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    optimizer.step(closure)


def _amortized(model: Gaussian, output: Tensor, x: Tensor, samples: int) -> Encoding:
    """gae's encoding of one x by an encoder whose network always gives ``output``."""
    network = nn.Linear(len(x), len(output))
    network.weight.data.zero_()
    network.bias.data = output.detach()
    with torch.no_grad():
        return Amortized(NormalEncoder(network), samples=samples)(model, x[None])


def _moments(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of one-dimensional codes."""
    mean, log_sigma = network(x).detach().unbind(1)
    return mean, log_sigma.exp()


def _information(mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """I(x; z) and KL(aggregate ‖ prior) of codes N(mean, σ²) of equally likely x, by sums over a grid."""
    z = torch.linspace(-16.0, 16.0, 4001)
    log_q = Normal(mean[:, None], sigma[:, None]).log_prob(z)
    log_aggregate = log_q.logsumexp(0) - math.log(len(mean))
    step = z[1] - z[0]
    information = (log_q.exp() * (log_q - log_aggregate)).sum(1).mean() * step
    return information, (log_aggregate.exp() * (log_aggregate - Normal(0.0, 1.0).log_prob(z))).sum() * step


def _pairs(mean: Tensor, sigma: Tensor) -> Tensor:
    return kl_divergence(Normal(mean[:, None], sigma[:, None]), Normal(mean, sigma))


def _about(decoded: Tensor, centre: Tensor) -> Tensor:
    """E‖f(z) − centre‖² under the prior, for outputs at the nodes."""
    return WEIGHTS @ (decoded - centre).square().sum(1)


def _gauss(error: Tensor, width: int) -> Tensor:
    """Mean log density of unit variance whose mean squared error is ``error``."""
    return -error / 2 - width / 2 * math.log(2 * math.pi)
