"""Likelihoods with weights or inputs as the latent: gradients, independence of images, activations."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from gae import nets
from gae.inference import (
    LBFGS,
    Adam,
    Ascent,
    Box,
    CheckpointedUnroll,
    Constant,
    DecoderInit,
    Detach,
    GradientAscent,
    Projected,
    Unroll,
)
from gae.likelihood import (
    Activation,
    Bernoulli,
    DecoderLikelihood,
    Gaussian,
    Measured,
    PartiallyObserved,
    StandardNormal,
    WeightDecoder,
    WeightLikelihood,
)
from gae.likelihood.operators import Crop
from gae.likelihood.standard import DecoderStandardUnits


def skip() -> nn.Sequential:
    return nets.skip(3, 2, (4, 4), (4, 4), (2, 2)).double()


def image_model(jitter: float = 0.0, together: bool | None = None) -> tuple[nn.Sequential, WeightLikelihood]:
    net, seen = skip(), torch.rand(3, 8, 12, dtype=torch.float64)
    return net, WeightLikelihood(net, seen, partial(Gaussian, scale=0.3), jitter=jitter, together=together).double()


def start(net: nn.Module) -> Tensor:
    return parameters_to_vector(net.parameters()).detach()


def test_the_gradient_is_that_of_plain_torch() -> None:
    """D19: log q_r(x|θ) = −‖f_θ(z) − x‖² / 2σ² up to a constant, so their gradients agree."""
    net, model = image_model()
    x = torch.rand(1, 2, 8, 12, dtype=torch.float64)
    loss = (net(model.decoder.input.unsqueeze(0)) - x).square().sum() / (2 * 0.3**2)
    wanted = -torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
    theta = start(net)[None, None].requires_grad_()
    (found,) = torch.autograd.grad(model.log_joint(x, theta).sum(), theta)
    torch.testing.assert_close(found[0, 0], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("together", [True, False])
def test_networks_at_once_are_networks_one_by_one(together: bool) -> None:
    net, model = image_model(together=together)
    weights = start(net) + 0.1 * torch.randn(3, model.latent_shape[0], dtype=torch.float64)
    names = dict(net.named_parameters())
    for row, output in zip(weights, model(weights).mean, strict=True):
        parts = row.split([p.numel() for p in names.values()])
        named = {name: part.view_as(p) for part, (name, p) in zip(parts, names.items(), strict=True)}
        wanted = functional_call(net, named, (model.decoder.input.unsqueeze(0),))[0]
        torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_a_batch_of_images_has_the_codes_of_each_alone(jitter: float) -> None:
    net, model = image_model(jitter)
    x = torch.rand(3, 2, 8, 12, dtype=torch.float64)
    engine = Ascent(Constant(start(net)), Adam(0.01), 5, adjoint=Detach())

    def codes(batch: Tensor) -> Tensor:
        torch.manual_seed(3)
        return engine(model, batch).z[0]

    torch.testing.assert_close(codes(x), torch.cat([codes(row) for row in x.split(1)]), rtol=1e-9, atol=1e-9)


def test_the_ascent_follows_a_plain_loop_of_adam() -> None:
    net, model = image_model()
    x = torch.rand(1, 2, 8, 12, dtype=torch.float64)
    found = Ascent(Constant(start(net)), Adam(0.01), 8, adjoint=Detach(), trace=True)(model, x)
    optimizer, seen = torch.optim.Adam(net.parameters(), 0.01), model.decoder.input.unsqueeze(0)
    losses = []
    for _ in range(8):  # more would amplify rounding
        optimizer.zero_grad()
        losses.append((net(seen) - x).square().sum() / (2 * 0.3**2))
        losses[-1].backward()
        optimizer.step()
    constant = x.numel() * 0.5 * math.log(2 * math.pi * 0.3**2)
    wanted = -torch.stack(losses).detach() - constant
    torch.testing.assert_close(found.solve.trace[:, 0, 0], wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model(found.z[0, 0]).mean, net(seen)[0].detach(), rtol=1e-5, atol=1e-5)


def test_fresh_weights_are_the_networks_own_initialisation() -> None:
    """For a linear layer, U(−1/√n, 1/√n): each within its bounds, spread as it should be, and no two alike."""
    net = nn.Linear(16, 100)
    model = WeightLikelihood(net, torch.ones(16))
    before = start(net)
    found = DecoderInit(samples=3)(model, torch.zeros(2, 100)).z
    assert found.shape == (3, 2, 1700)
    assert found.abs().max() <= 0.25
    assert abs(float(found.std()) - 0.25 / 3**0.5) < 0.002
    assert len(found.flatten(0, 1).unique(dim=0)) == 6
    assert torch.equal(start(net), before)


def test_modules_that_cannot_start_anew_are_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    model = WeightLikelihood(nn.Sequential(nn.Linear(2, 2), Scale()), torch.ones(2))
    with pytest.raises(TypeError, match=r"Scale \('1'\) has parameters but no `reset_parameters`"):
        model.initial(1)
    with pytest.raises(ValueError, match="Tanh has no parameters"):
        WeightDecoder(nn.Tanh(), torch.ones(2))
    with pytest.raises(ValueError, match="jitter must not be negative"):
        WeightLikelihood(nn.Linear(2, 2), torch.ones(2), jitter=-1.0)


def test_tied_weights_stay_tied() -> None:
    first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    last.weight = first.weight
    model = WeightLikelihood(nn.Sequential(first, last), torch.tensor([1.0, 2.0]))
    weights = torch.randn(1, 4)
    matrix = weights.view(2, 2)
    torch.testing.assert_close(model(weights).mean[0], matrix @ matrix @ torch.tensor([1.0, 2.0]))


def test_jitter_is_no_part_of_the_density() -> None:
    net, model = image_model(jitter=0.5)
    x, theta = torch.rand(1, 2, 8, 12, dtype=torch.float64), start(net)[None, None]
    exact = model.log_joint(x, theta).detach()
    assert torch.equal(model.log_joint(x, theta), exact)
    drawn = torch.stack([model.bind(x)(theta) for _ in range(3)])
    assert len(drawn.unique()) == 3 and not bool((drawn == exact).any())
    assert torch.equal(Ascent(Constant(theta[0, 0]), max_steps=0, adjoint=Detach())(model, x).log_joint.detach(), exact)


@pytest.mark.parametrize(
    "wrap", [lambda model: Measured(model, Crop((2, 8, 12), 5, 7)), PartiallyObserved, DecoderStandardUnits]
)
def test_jitter_reaches_inner_loops_through_wrappers(wrap: Callable[[WeightLikelihood], DecoderLikelihood]) -> None:
    net, inner = image_model(jitter=0.5)
    model = wrap(inner).double()
    x, theta = torch.rand(1, *model.event_shape, dtype=torch.float64), start(net)[None, None]
    bound = model.bind(x)
    assert model.stochastic and len(torch.stack([bound(theta) for _ in range(3)]).unique()) == 3


@pytest.mark.filterwarnings("ignore:LeakyReLU")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": LBFGS()}, "`LBFGS`, which compares objectives"),
        ({"adjoint": Unroll()}, "`Unroll`: use `adjoint=Detach"),
        ({"adjoint": CheckpointedUnroll()}, "`CheckpointedUnroll`: use `adjoint=Detach"),
        ({"tol": 1e-3}, "which depend on the objective: leave them out"),
        ({"restarts": 2, "init": DecoderInit()}, "which depend on the objective: leave them out"),
    ],
)
def test_what_cannot_climb_a_noisy_objective_is_refused(options: dict, message: str) -> None:
    _, model = image_model(jitter=0.1)
    engine = Ascent(**{"step": Adam(0.01), "adjoint": Detach(), "max_steps": 1} | options)
    with pytest.raises(TypeError, match=message):
        engine(model, torch.rand(1, 2, 8, 12, dtype=torch.float64))
    with pytest.raises(TypeError, match=message):
        engine(Measured(model, Crop((2, 8, 12), 5, 5)), torch.rand(1, 2, 5, 5, dtype=torch.float64))


def test_any_head_and_any_prior() -> None:
    model = WeightLikelihood(nn.Linear(1, 4), torch.ones(1), Bernoulli, StandardNormal(8))
    x, z = torch.ones(1, 4), torch.zeros(1, 1, 8)
    wanted = 4 * torch.tensor(0.5).log() + model.prior.log_prob(z)
    torch.testing.assert_close(model.log_joint(x, z), wanted)
    with pytest.raises(ValueError, match=r"needs x in \{0, 1\}"):
        model.check(0.5 * x)


# Maximal activation.


def linear(rows: list[list[float]]) -> nn.Linear:
    net = nn.Linear(len(rows[0]), len(rows), bias=False).double()
    net.weight.data = torch.tensor(rows, dtype=torch.float64)
    return net


ROWS = [[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]


@pytest.mark.parametrize("kind", ["logit", "channel"])
def test_the_maximiser_of_a_linear_unit_is_a_corner_of_the_box(kind: str) -> None:
    net: nn.Module = linear(ROWS)
    if kind == "channel":  # positions on which every unit is the same
        net = nn.Sequential(net, nn.Unflatten(1, (2, 1, 1)), nn.Upsample(scale_factor=3))
    model = Activation(net, 3, kind, threshold=50.0)
    step = Projected(GradientAscent(0.5), Box(-1.0, 2.0))
    found = Ascent(step=step, max_steps=60, adjoint=Detach())(model, torch.tensor([0.0, 1.0], dtype=torch.float64))
    wanted = torch.where(torch.tensor(ROWS) > 0, 2.0, torch.where(torch.tensor(ROWS) < 0, -1.0, 0.0))
    torch.testing.assert_close(found.z[0], wanted.double())


def test_a_logit_and_its_log_probability_have_different_maximisers() -> None:
    """D20, by enumeration on a grid: unit 0 alone wants x₀ high; to be the more probable class it wants x₁ low, too."""
    net = linear([[1.0, 0.5], [0.0, 2.0]])
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 21, dtype=torch.float64)] * 2)
    x = torch.zeros(len(grid), dtype=torch.float64)
    best = {
        kind: grid[Activation(net, 2, kind).log_joint(x, grid.unsqueeze(0))[0].argmax()].tolist()
        for kind in ("logit", "log_prob")
    }
    assert best == {"logit": [1.0, 1.0], "log_prob": [1.0, -1.0]}


def test_activations_are_densities() -> None:
    """Over all values of x the probabilities add up to 1, and a logit's do not depend on the other units."""
    net = nets.mlp((2, 2), (5,), 4).double()
    z = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    for kind, classes in (("log_prob", 4), ("logit", 5)):
        model = Activation(net, (2, 2), kind)
        total = sum(model(z).log_prob(torch.tensor(float(k))).exp() for k in range(classes))
        assert model.classes == classes
        torch.testing.assert_close(total, torch.ones_like(total))
    unit = torch.full((3,), 2.0, dtype=torch.float64)
    wanted = nn.functional.logsigmoid(net(z[0])[:, 2]) - torch.tensor(4.0).log()
    torch.testing.assert_close(Activation(net, (2, 2), "logit").log_joint(unit, z)[0], wanted)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Activation(nn.Linear(2, 3), 2, "softmax"), "kind must be 'log_prob', 'logit' or 'channel'"),
        (lambda: Activation(nets.mlp(2, (), (3, 2)), 2), r"must have shape \(N, U\).* Use kind='channel'"),
        (lambda: Activation(nn.Linear(2, 3), 2, threshold=1.0), "threshold is for kind='logit' or 'channel'"),
        (lambda: Activation(nn.Linear(2, 3), 2).check(torch.tensor([3.0])), r"needs x in the classes 0 ... 2"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_unit_is_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
