"""Checks of ``10_weights_and_inputs.md``: a network's weights, or its input, as the latent variable."""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from gae import nets
from gae.inference import LBFGS, Ascent, Box, Constant, Detach, GradientAscent, Langevin, Prior, Projected, Zeros
from gae.ledger.claims import Check, Relation, check, equal, estimate
from gae.likelihood import Activation, Gaussian, StandardNormal, WeightLikelihood

Kind = Literal["log_prob", "logit"]
FAR = 60.0  # a threshold so high that log σ(f − FAR) is the logit f but for a constant
CORNERS = [[1.0, 1.0], [-1.0, 1.0]]
HALF = partial(Gaussian, scale=math.sqrt(0.5))  # σ² = ½


@check
def check_D19() -> Check:
    """gae's ``WeightLikelihood`` and ``Ascent`` against plain networks, their ``.grad`` and plain loops of SGD."""
    net, seen, x = nets.mlp(3, [6], 5), torch.randn(3), torch.randn(4, 5)
    model = WeightLikelihood(net, seen, HALF)
    theta = torch.randn(1, 4, model.latent_shape[0], requires_grad=True)
    log_density = model.log_joint(x, theta) + 2.5 * math.log(math.pi)
    (slope,) = torch.autograd.grad(model.bind(x)(theta).sum(), theta)  # what an ascent climbs
    errors = torch.stack([_squared_error(net, seen, *pair) for pair in zip(theta[0].detach(), x, strict=True)])

    small, side = WeightLikelihood(nets.mlp(3, [4], 2), seen, HALF), torch.arange(-8.0, 8.0, 0.25)
    weights = 0.5 * torch.randn(1, 1, small.latent_shape[0])
    plane = torch.cartesian_prod(side, side) + small(weights).mean.reshape(2)  # eight units about the image
    volume = small.bind(plane)(weights).exp().sum() * 0.25**2

    prior, noise = nets.skip(2, 1, (3, 3), (3, 3), (2, 2)), torch.rand(2, 8, 8)
    return Check(
        [
            equal("log q_r(x|θ) + (D/2) log π = −‖f_θ(z) − x‖², σ² = ½", log_density, -errors),
            equal("∇_θ log q_r(x|θ) = −∇_θ ‖f_θ(z) − x‖²", slope[0], -_slopes(net, seen, theta[0], x)),
            equal("∫ q_r(x|θ) dx = 1", volume, 1.0),
            equal("20 steps of ascent = 20 of SGD, two x", *_climbs(net, seen, x[:2], 0.02, 20)),
            equal(
                "5 steps of ascent = 5 of SGD, skip network", *_climbs(prior, noise, torch.rand(1, 1, 8, 8), 1e-3, 5)
            ),
        ]
    )


@check
def check_D20() -> Check:
    """Maximisers by gae's ascent on ``Activation`` against Newton's method, closed forms and grids of inputs."""
    units = nn.Linear(3, 4)
    units.weight.data, units.bias.data = torch.randn(4, 3), torch.randn(4)
    weights, bias = units.weight.detach(), units.bias.detach()
    as_class, as_unit = (_highest(_normal(units, kind)) for kind in ("log_prob", "logit"))
    as_logit = _highest(_normal(units, "logit", FAR))

    net, side = nets.mlp(2, [8], 3, nn.Tanh), torch.linspace(-2, 2, 41)
    plane = torch.cartesian_prod(side, side)
    outputs = net(plane)
    largest = outputs.log_softmax(1)[:, 0].max()
    of_class, of_unit = (_over(plane, Activation(net, 2, kind)) for kind in ("log_prob", "logit"))

    pair = nn.Linear(2, 2)
    pair.weight.data, pair.bias.data = torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.zeros(2)
    corners = torch.stack([_highest_in_box(Activation(pair, 2, kind)) for kind in ("logit", "log_prob")])
    chances = _over(corners, Activation(pair, 2)).exp()
    return Check(
        claim=[
            equal("max f_i = max log q(z_i=1|x), f_i a log softmax, on a grid", largest, of_class.max()),
            equal("argmax by ascent = by Newton, x ~ N(0, I)", as_class, _newton(weights, bias), 1e-8),
            equal("binary unit: the same argmax, on a grid", plane[outputs[:, 0].argmax()], plane[of_unit.argmax()]),
        ],
        without=[
            equal("f_i a softmax's logit, x in a box: the same argmax", corners[0], corners[1]),
            equal("f_i a softmax's logit, x ~ N(0, I): the same argmax", as_logit, as_class, 1e-8),
            equal("f_i a binary unit's logit, x ~ N(0, I): the same argmax", as_logit, as_unit, 1e-8),
        ],
        correction=[
            equal("box: (1, 1) is best for the logit, (−1, 1) for the probability", corners, torch.tensor(CORNERS)),
            equal("where the probability is 1/2 and 1/(1 + e⁻²)", chances, torch.tensor([0.5, 1 / (1 + math.exp(-2))])),
            equal("N(0, I): w_i is best for the logit", as_logit, weights[0], 1e-8),
            equal("N(0, I): c w_i for a binary unit, c = σ(−f_i(c w_i))", as_unit, _scaled(weights[0], bias[0]), 1e-8),
            *_ascent_draws_no_sample(),
        ],
    )


def _squared_error(net: nn.Module, seen: Tensor, theta: Tensor, x: Tensor) -> Tensor:
    """‖f_θ(seen) − x‖², the parameters cut from θ one after another."""
    cut, named = 0, {}
    for name, parameter in net.named_parameters():
        named[name] = theta[cut : cut + parameter.numel()].reshape(parameter.shape)
        cut += parameter.numel()
    return (functional_call(net, named, (seen[None],))[0] - x).square().sum()


def _slopes(net: nn.Module, seen: Tensor, theta: Tensor, x: Tensor) -> Tensor:
    """∇_θ ‖f_θ(seen) − x‖² of each row, left in the ``.grad`` of a plain network."""
    found = []
    for row, target in zip(theta.detach(), x, strict=True):
        net.zero_grad()
        vector_to_parameters(row, net.parameters())
        (net(seen[None])[0] - target).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    return torch.stack(found)


def _climbs(net: nn.Module, seen: Tensor, x: Tensor, rate: float, steps: int) -> tuple[Tensor, Tensor]:
    """Weights after gae's ascent on all x at once, and after plain gradient descent on one network for each x."""
    start = parameters_to_vector(net.parameters()).detach().clone()
    engine = Ascent(Constant(start), GradientAscent(rate), steps, adjoint=Detach())
    found, wanted = engine(WeightLikelihood(net, seen, HALF), x).z[0], []
    for target in x:
        vector_to_parameters(start.clone(), net.parameters())
        optimizer = torch.optim.SGD(net.parameters(), rate)
        for _ in range(steps):
            optimizer.zero_grad()
            (net(seen[None])[0] - target).square().sum().backward()
            optimizer.step()
        wanted.append(parameters_to_vector(net.parameters()).detach())
    return found, torch.stack(wanted)


def _normal(net: nn.Module, kind: Kind, threshold: float = 0.0) -> Activation:
    """An activation whose inputs have the prior N(0, I); x = 0 stands for the observation that unit 0 is on."""
    return Activation(net, 3, kind, StandardNormal(3), threshold)


def _highest(model: Activation) -> Tensor:
    with torch.no_grad():
        return Ascent(Zeros(), LBFGS(), max_steps=40, grad_tol=1e-11)(model, torch.zeros(1)).z[0, 0]


def _highest_in_box(model: Activation) -> Tensor:
    with torch.no_grad():
        return Ascent(Zeros(), Projected(GradientAscent(2.0), Box(-1.0, 1.0)), max_steps=10)(model, torch.zeros(1)).z[
            0, 0
        ]


def _over(inputs: Tensor, model: Activation) -> Tensor:
    """log q(z_i=1|x) for many inputs, under a flat prior."""
    return model.log_joint(torch.zeros(1), inputs[:, None])[:, 0]


def _newton(weights: Tensor, bias: Tensor) -> Tensor:
    """argmax_x of log softmax_0(W x + b) − ‖x‖²/2, where x = w_0 − Σ_j p_j w_j."""
    x = torch.zeros(weights.shape[1])
    for _ in range(12):
        p = (weights @ x + bias).softmax(0)
        mean = p @ weights
        spread = weights.T @ (p[:, None] * weights) - torch.outer(mean, mean)
        x = x + torch.linalg.solve(torch.eye(len(x)) + spread, weights[0] - mean - x)
    return x


def _scaled(direction: Tensor, bias: Tensor) -> Tensor:
    """c w with c = σ(−(w·c w + b)), by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        below = middle < torch.sigmoid(-(middle * direction @ direction + bias))
        low, high = (middle, high) if below else (low, middle)
    return low * direction


def _ascent_draws_no_sample() -> list[Relation]:
    """The law q(x|z_i=1) by quadrature, its mode by ascent from 1000 starts, draws by gae's Langevin dynamics."""
    units, side = nn.Linear(2, 3), torch.arange(-8.0, 8.0, 0.1)
    units.weight.data = torch.randn(3, 2)
    model, plane = Activation(units, 2, prior=StandardNormal(2)), torch.cartesian_prod(side, side)
    law = (units(plane).log_softmax(1)[:, 0] - 0.5 * plane.square().sum(1)).softmax(0).detach()
    with torch.no_grad():
        ends = Ascent(Prior(), LBFGS(), max_steps=40, grad_tol=1e-8)(model, torch.zeros(1000)).z[0]
        draws = Ascent(Prior(), Langevin(0.4, adjusted=True), max_steps=25)(model, torch.zeros(1000)).z[0]
    return [
        equal("ascent from 1000 starts: variance 0", ends.var(0), 0.0),
        estimate("Langevin: E x", draws, law @ plane),
        estimate("Langevin: E ‖x‖²", draws.square().sum(1), law @ plane.square().sum(1)),
    ]
