"""A generator trained against a discriminator, and its inversion."""

import math
from copy import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from margins import within
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import binary_cross_entropy_with_logits

from gae import nets, systems
from gae.data import Dataset
from gae.inference import Amortized, Ascent, ClosedForm, Inference, Prior
from gae.likelihood import Bernoulli, Flat, Gaussian, Likelihood, LinearMixture
from gae.objective import joint
from gae.training import fit, restore
from gae.training.adversarial import Adversarial
from gae.training.corruption import GaussianNoise
from gae.training.learners import has_closed_form

train = partial(fit, progress=False)
Game = partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.99))  # no momentum: see the system's docstring


class Never(Inference):
    """An engine that must not be run."""

    def infer(self, likelihood: Likelihood, x: Tensor, k: Tensor | None = None) -> None:  # type: ignore[override]
        raise AssertionError("training ran the inversion")


def model(gamma: float = 0.7, engine: Inference | None = None, **options: object) -> Adversarial:
    generator = Gaussian(nets.mlp(2, (5,), 3), 2, 0.3, learn="scalar")
    return Adversarial(generator, engine or Never(), nets.mlp(3, (6,), 1), gamma, **options).double()  # type: ignore[arg-type]


def draws(game: Adversarial, n: int) -> Tensor:
    """x̃ by hand, from the same two calls of torch's generator."""
    z = torch.normal(torch.zeros(n, 2).double(), torch.ones(n, 2).double())
    mean = game.likelihood.decoder(z)  # type: ignore[operator]
    return mean + game.likelihood.log_scale.exp() * torch.normal(torch.zeros_like(mean), torch.ones_like(mean))  # type: ignore[operator]


def by_hand(game: Adversarial, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two losses by cross-entropies, with R1 from each sample's own Jacobian."""
    ones, zeros = torch.ones(len(x), 1).double(), torch.zeros(len(x), 1).double()
    fake = draws(game, len(x))
    jacobian = torch.stack([torch.func.jacrev(game.discriminator)(row)[0] for row in x])  # (B, 3)
    entropy = binary_cross_entropy_with_logits(game.discriminator(x), ones)
    entropy = entropy + binary_cross_entropy_with_logits(game.discriminator(fake), zeros)
    critic = entropy + game.gamma / 2 * jacobian.square().sum(1).mean()
    return critic, binary_cross_entropy_with_logits(game.discriminator(fake), ones)


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_each_player_gets_the_gradient_of_its_own_loss(gamma: float) -> None:
    game, x = model(gamma), torch.randn(9, 3).double()
    torch.manual_seed(4)
    found = game(x)
    found.backward()
    torch.manual_seed(4)
    critic, generator = by_hand(game, x)
    assert torch.allclose(found, critic + generator)
    for part, loss in ((game.discriminator, critic), (game.likelihood, generator)):
        parameters = list(part.parameters())
        wanted = torch.autograd.grad(loss, parameters, retain_graph=True)
        assert len(parameters) >= 4
        for parameter, gradient in zip(parameters, wanted, strict=True):
            assert parameter.grad is not None and gradient.abs().max() > 0
            assert torch.allclose(parameter.grad, gradient, rtol=1e-10, atol=1e-14)


def test_the_discriminator_sees_corrupted_data() -> None:
    game, x = model(corruption=GaussianNoise(0.5)), torch.randn(9, 3).double()
    torch.manual_seed(4)
    found = game(x)
    torch.manual_seed(4)
    drawn = game.draw(9)
    seen = GaussianNoise(0.5)(x)
    assert torch.allclose(found, game.discriminator_loss(seen, drawn) + game.generator_loss(drawn))
    assert not torch.allclose(game.discriminator_loss(seen, drawn), game.discriminator_loss(x, drawn))


def test_without_gradients_the_value_is_the_same() -> None:
    game, x = model(), torch.randn(9, 3).double()
    torch.manual_seed(4)
    wanted = game(x)
    with torch.no_grad():
        torch.manual_seed(4)
        found = game(x)
    assert torch.equal(found, wanted.detach()) and not found.requires_grad
    with torch.no_grad():
        assert not game.discriminator_loss(x, x).requires_grad


def test_draws_have_the_law_of_samples() -> None:
    game = model()
    found, wanted = (torch.cat([f(50_000).detach()]) for f in (game.draw, game.sample))
    assert torch.allclose(found.mean(0), wanted.mean(0), atol=0.02)
    assert torch.allclose(found.T.cov(), wanted.T.cov(), atol=0.02)


def test_evaluation_is_that_of_any_autoencoder() -> None:
    engine = Amortized(nets.mlp(3, (4,), 2).double())
    game, x = model(engine=engine, corruption=GaussianNoise(0.5)).eval(), torch.randn(9, 3).double()
    assert torch.allclose(game(x), -joint(engine(game.likelihood, x)).mean())


# A game whose course is known: the Dirac-GAN of Mescheder et al. 2018 (data at 0, a generator at θ, D(x) = ψ x).


class Point(nn.Module):
    def __init__(self, place: float):
        super().__init__()
        self.place = nn.Parameter(torch.tensor(place).double())

    def forward(self, z: Tensor) -> Tensor:
        return self.place.expand(len(z), 1)


def dirac(gamma: float, steps: int = 60, rate: float = 0.3) -> tuple[list[float], list[float]]:
    """Distances from the equilibrium (0, 0) by ``fit``, and by the recursion that the paper writes down."""
    critic = nn.Linear(1, 1, bias=False).double()
    critic.weight.data.fill_(0.1)
    game = Adversarial(Gaussian(Point(0.2), 1, 1e-9), Prior(), critic, gamma)
    found, wanted, theta, psi = [], [], 0.2, 0.1
    for _ in range(steps):
        train(game, torch.zeros(2, 1).double(), epochs=1, optimizer=partial(torch.optim.SGD, lr=rate))
        found.append(math.hypot(game.likelihood.decoder.place.item(), critic.weight.item()))  # type: ignore[union-attr, operator]
        slopes = -psi / (1 + math.exp(theta * psi)), theta / (1 + math.exp(-theta * psi)) + gamma * psi
        theta, psi = theta - rate * slopes[0], psi - rate * slopes[1]
        wanted.append(math.hypot(theta, psi))
    return found, wanted


def test_r1_makes_a_simultaneous_game_converge() -> None:
    found, wanted = dirac(gamma=1.0)
    assert np.allclose(found, wanted, atol=1e-6)
    assert found[-1] < 0.01 * found[0]


def test_without_r1_it_circles_away() -> None:
    found, wanted = dirac(gamma=0.0)
    assert np.allclose(found, wanted, atol=1e-6)
    assert found[-1] > 1.5 * found[0]


# What is refused.


def test_bad_gamma() -> None:
    with pytest.raises(ValueError, match=r"gamma must not be negative, got -1\.0"):
        model(gamma=-1.0)
    with pytest.raises(ValueError, match="gamma must not be negative, got nan"):
        model(gamma=math.nan)


@pytest.mark.parametrize("outputs", [2, (1, 1)])
def test_one_logit_for_each_observation(outputs: int | tuple[int, ...]) -> None:
    game = Adversarial(Gaussian(nets.mlp(2, (5,), 3), 2), Prior(), nets.mlp(3, (6,), outputs))
    with pytest.raises(ValueError, match=r"one logit per observation, shape \(4,\) or \(4, 1\), got \(4, "):
        game(torch.zeros(4, 3))


def test_draws_must_be_differentiable() -> None:
    game = Adversarial(Bernoulli(nets.mlp(2, (5,), 3), 2), Prior(), nets.mlp(3, (6,), 1))
    with pytest.raises(ValueError, match="Samples of Bernoulli carry no gradient"):
        game(torch.zeros(4, 3))


def test_a_flat_prior_has_no_samples() -> None:
    game = Adversarial(Gaussian(nets.mlp(2, (5,), 3), 2, prior=Flat(2)), Prior(), nets.mlp(3, (6,), 1))
    with pytest.raises(NotImplementedError, match="flat prior is improper"):
        game(torch.zeros(4, 3))


def test_closed_forms_do_not_learn_a_game() -> None:
    assert not has_closed_form(Adversarial(LinearMixture(1, 2, (4,)), ClosedForm(), nets.mlp(4, (6,), 1)))


# The system.

SMALL = {"latent": 4, "hidden": (32,), "restarts": 2, "steps": 5}


def test_training_never_inverts(digits: Dataset) -> None:
    torch.manual_seed(0)
    game = systems.build("gan", digits.event_shape, **SMALL)
    before = [parameter.clone() for parameter in game.parameters()]
    game.inference = Never()
    game.train()
    game(digits.train[:5]).backward()
    assert all(parameter.grad is not None for parameter in game.parameters()) and len(before) == 8


def test_a_resumed_game_equals_one_that_was_not_stopped(digits: Dataset, tmp_path: Path) -> None:
    def begin() -> Adversarial:
        torch.manual_seed(0)
        return systems.gan(digits.event_shape, **SMALL)  # type: ignore[arg-type]

    whole, parts = begin(), begin()
    train(whole, digits.train[:200], epochs=4, optimizer=Game, validation=digits.test[:20])
    train(parts, digits.train[:200], epochs=2, optimizer=Game, validation=digits.test[:20], out=tmp_path)
    again = begin()
    train(again, digits.train[:200], epochs=4, optimizer=Game, validation=digits.test[:20], out=tmp_path, resume=True)
    restored = begin()
    restore(restored, tmp_path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) and torch.equal(value, restored.state_dict()[name])
    assert not torch.equal(whole.state_dict()["discriminator.1.weight"], parts.state_dict()["discriminator.1.weight"])


CENTRES = torch.stack([f(torch.arange(6) * (math.pi / 3)) for f in (torch.cos, torch.sin)], 1)


def ring(n: int) -> Tensor:
    """n points around each of six centres on a circle, in random order."""
    return (CENTRES.repeat(n, 1) + 0.1 * torch.randn(6 * n, 2))[torch.randperm(6 * n)]


@pytest.fixture(scope="module")
def trained() -> Adversarial:
    """A ring of six clusters; experiments/systems_variational.py has the runs on images."""
    torch.manual_seed(0)
    game = systems.gan((2,), latent=4, hidden=(64, 64), scale=0.1)
    history = train(game, ring(100), epochs=80, batch_size=120, optimizer=partial(Game, lr=5e-3))
    within("3 log 2 - value", abs(history.rows[-1].train_loss - 3 * math.log(2)), below=0.1)  # neither player wins
    return game.eval()


@pytest.mark.slow
def test_samples_are_of_all_classes(trained: Adversarial) -> None:
    """No mode is dropped; a sixth of 1000 would be 167 each."""
    counts = torch.cdist(painted(trained), CENTRES).argmin(1).bincount(minlength=6)
    within("smallest class of 1000 samples", counts.min(), above=40)


@pytest.mark.slow
def test_samples_are_nearer_to_the_modes_than_those_of_a_gaussian(trained: Adversarial) -> None:
    """A Gaussian of the data's covariance. How widely samples cover a mode depends on where the game ends."""
    train_set, samples = ring(100), painted(trained)
    gaussian = MultivariateNormal(train_set.mean(0), train_set.T.cov()).sample(torch.Size((1000,)))
    within("distance to a mode, by a Gaussian's", nearest(samples, CENTRES) / nearest(gaussian, CENTRES), below=1)


def painted(game: Adversarial) -> Tensor:
    """1000 means of the generator, (1000, 2)."""
    torch.manual_seed(1)
    with torch.no_grad():
        return game.sample(1000, mean=True)


def nearest(x: Tensor, among: Tensor) -> float:
    """The mean distance to the nearest neighbour."""
    return float(torch.cdist(x, among).amin(1).mean())


@pytest.mark.slow
def test_inversion_finds_its_own_samples(trained: Adversarial) -> None:
    torch.manual_seed(2)
    x, engine = trained.sample(50), trained.inference
    assert isinstance(engine, Ascent) and engine.restarts == 8
    one = copy(engine)
    one.restarts = 1
    codes = []
    for each in (engine, one):
        torch.manual_seed(3)  # the one start is the first of the eight
        with torch.no_grad():
            codes.append(trained.encode(x, each))
    encoding, alone = codes
    error = (trained.likelihood.point(trained.decode(encoding.point)) - x).square().mean()
    within("squared error of inversions", error, below=1e-2)
    within("nats by restarts", (encoding.log_joint - alone.log_joint).mean(), above=0)
