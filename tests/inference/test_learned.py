"""Learned iterative inference: the update, its gradient, its noise, and its gain over an encoder of equal size."""

from functools import partial

import pytest
import torch
from problems import difference, neural
from torch import Tensor, nn

from gae import Autoencoder, nets
from gae.inference import (
    Adjoint,
    Amortized,
    Ascent,
    CheckpointedUnroll,
    Constant,
    Delta,
    Detach,
    Family,
    FullCovariance,
    Inference,
    IterativeAmortized,
    MeanField,
    Truncate,
    Unroll,
    Zeros,
)
from gae.likelihood import Gaussian
from gae.objective import Objective, elbo, joint, stepwise_elbo
from gae.systems import NormalEncoder


def frozen(likelihood: Gaussian) -> Gaussian:
    return likelihood.requires_grad_(False)


def learned(shape: tuple[int, ...], family: Family, steps: int = 5, adjoint: Adjoint | None = None) -> Ascent:
    step = IterativeAmortized(shape, (6,), (5,))
    return Ascent(Zeros(), step, steps, family=family, adjoint=adjoint, trace=True).double()


def data(n: int = 4) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64)


def test_a_step_by_its_formula() -> None:
    """u ← g ⊙ u + (1 - g) ⊙ f, from the code, the scaled gradient and x, with numbers that a network by hand gives."""
    model, x = neural(), data()
    engine = Ascent(Constant(torch.tensor([0.3, -0.2])), IterativeAmortized((2,), (), (5,)), 1).double()
    step = engine.step
    assert isinstance(step, IterativeAmortized)
    z = torch.tensor([0.3, -0.2], dtype=torch.float64).repeat(4, 1).requires_grad_()
    (grad,) = torch.autograd.grad(model.log_joint(x, z.unsqueeze(0)).sum(), z)
    magnitude = grad.sign() * (grad.abs() + (grad.square() + 1).sqrt()).log()
    weight, bias = step.network[0].weight, step.network[0].bias
    output = torch.cat([z, 0.2 * magnitude, x], 1) @ weight.T + bias
    gate = 1 / (1 + (-output[:, :2]).exp())
    torch.testing.assert_close(engine(model, x).z[0], gate * z + (1 - gate) * output[:, 2:])


@pytest.mark.parametrize(
    "shape, family, objective",
    [
        ((2,), Delta(), joint),
        ((2, 2), MeanField(), elbo),
        ((2, 2), MeanField(2), stepwise_elbo),
        ((3, 2), FullCovariance(2), stepwise_elbo),
    ],
    ids=["delta", "mean-field", "steps", "full-covariance"],
)
def test_gradients_of_the_network_are_finite_differences(
    shape: tuple[int, ...], family: Family, objective: Objective
) -> None:
    model, x = Autoencoder(frozen(neural()), learned(shape, family, 3), objective), data()

    def loss() -> Tensor:
        torch.manual_seed(1)
        return model(x)

    weights = list(model.parameters())[-4:]
    found = torch.autograd.grad(loss(), weights)
    for weight, grad in zip(weights, found, strict=True):
        move = torch.randn_like(weight)
        wanted = difference(loss, [weight], [move], 1e-5)
        assert (grad * move).sum().item() == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_replayed_steps_see_the_same_draws() -> None:
    likelihood, x = neural(), data()
    engines = [learned((2, 2), MeanField(2), adjoint=adjoint) for adjoint in (Unroll(), CheckpointedUnroll())]
    engines[1].load_state_dict(engines[0].state_dict())
    grads = []
    for engine in engines:
        torch.manual_seed(1)
        loss = Autoencoder(likelihood, engine, elbo)(x)
        grads.append(torch.autograd.grad(loss, [*engine.parameters(), *likelihood.parameters()]))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def still(step: nn.Module) -> None:
    """A step that keeps its point: the gate is 1 up to rounding."""
    for weight in step.parameters():
        nn.init.zeros_(weight)
    bias = list(step.parameters())[-1]
    bias.data[: len(bias) // 2] = 60.0


def test_each_step_sees_new_draws_whose_mean_is_the_elbo() -> None:
    """At a point that does not move: the bounds of steps and rows are independent estimates of one number."""
    decoder = nn.Linear(2, 5).double()
    model = Gaussian(decoder, 2, 0.7).double()
    engine = learned((2, 2), MeanField(scale=0.6), 20)
    still(engine.step)
    x = data(1).expand(100, 5)
    trace = engine(model, x).solve.trace.squeeze(1)  # type: ignore[union-attr]
    variance = 0.6**2
    residual = (x[0] - decoder.bias).square().sum() + variance * decoder.weight.square().sum()
    log_normal = -residual / (2 * 0.49) - 5 * torch.tensor(2 * torch.pi * 0.49).log() / 2
    kl = 2 * (0.5 * (variance - 1) - torch.tensor(0.6).log())
    error = trace.std() / trace.numel() ** 0.5
    assert (trace.mean() - (log_normal - kl)).abs() < 4 * error
    assert (trace.mean(1).std() / (trace.std() / 10) - 1).abs() < 4 / (2 * 19) ** 0.5  # of independent steps


def test_stepwise_elbo_is_the_mean_after_each_step() -> None:
    model, x, engine = neural(), data(), learned((2, 2), MeanField(), 3)
    encoding = engine(model, x)
    assert encoding.solve is not None and encoding.solve.trace is not None and encoding.log_q is not None
    bounds = [encoding.solve.trace[1, 0], encoding.solve.trace[2, 0], (encoding.log_joint - encoding.log_q)[0]]
    wanted = sum(bounds) / 3
    torch.testing.assert_close(stepwise_elbo(encoding), wanted)
    assert stepwise_elbo(encoding).requires_grad and not encoding.solve.trace.requires_grad
    with torch.no_grad():
        assert torch.isfinite(stepwise_elbo(engine(model, x))).all()


def steep() -> Gaussian:
    """A frozen decoder whose posteriors an encoder of a few units cannot follow."""
    network = nets.mlp(3, (12,), 8, nn.Tanh)
    for weight in network.parameters():
        weight.data *= 3
    return frozen(Gaussian(network, 3, 0.3).double())


def trained(model: Autoencoder, batches: int) -> Autoencoder:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(batches):
        optimizer.zero_grad()
        model(model.sample(64)).backward()
        optimizer.step()
    return model


@torch.no_grad()
def bounds(likelihood: Gaussian, engine: Inference, x: Tensor) -> Tensor:
    return torch.stack([elbo(engine(likelihood, x)) for _ in range(8)]).mean(0)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_types")
def test_five_steps_beat_an_encoder_of_equal_size_and_more_do_not_diverge() -> None:
    """On one frozen decoder, by networks of one hidden layer of 12 units, on observations that neither has seen."""
    likelihood = steep()
    encoder = NormalEncoder(nets.mlp(8, (12,), 6)).double()
    amortised = trained(Autoencoder(likelihood, Amortized(encoder), partial(elbo, analytic=True)), 100)
    step, family = IterativeAmortized((2, 3), (12,), (8,)).double(), MeanField(2, scale=1.0)
    trained(Autoencoder(likelihood, Ascent(Zeros(), step, 5, family=family, trace=True), stepwise_elbo), 100)
    x, _ = likelihood.sample_joint(300)
    start = bounds(likelihood, amortised.inference, x)
    five, fifty = (bounds(likelihood, Ascent(Zeros(), step, steps, family=family), x) for steps in (5, 50))
    gain, later = five - start, fifty - five
    assert gain.mean() > 4 * gain.std() / len(x) ** 0.5
    assert later.mean() > -0.2 * gain.mean() - 4 * later.std() / len(x) ** 0.5


# Errors.


@pytest.mark.parametrize(
    "options",
    [{"tol": 1e-3}, {"grad_tol": 1e-3}, {"restarts": 2}],
    ids=["tol", "grad_tol", "restarts"],
)
def test_bounds_under_different_draws_are_not_compared(options: dict[str, float]) -> None:
    step = IterativeAmortized((2, 2))
    with pytest.raises(TypeError, match=r"new noise at each step.*`MeanField` under different draws.*`Delta\(\)`"):
        Ascent(Zeros(), step, 3, family=MeanField(), **options)  # type: ignore[arg-type]
    Ascent(Zeros(), IterativeAmortized((2,)), 3, **options)  # type: ignore[arg-type]


def test_points_of_another_shape_are_refused() -> None:
    engine = Ascent(Zeros(), IterativeAmortized((2,)), 3, family=MeanField()).double()
    with pytest.raises(ValueError, match=r"points of shape \(2,\), but `MeanField` has points of shape \(2, 2\) here"):
        engine(neural(), data())


def test_an_objective_over_steps_needs_them() -> None:
    model, x = neural(), data()
    without = learned((2, 2), MeanField())
    without.trace = False
    with pytest.raises(ValueError, match=r"reports no bound for each step. Use `Ascent\(.*trace=True\)`"):
        stepwise_elbo(without(model, x))
    for adjoint in (Detach(), Truncate(2), CheckpointedUnroll()):
        with pytest.raises(ValueError, match=r"every step of the ascent in the graph. Use `adjoint=Unroll\(\)`"):
            stepwise_elbo(learned((2, 2), MeanField(), adjoint=adjoint)(model, x))
    with pytest.raises(ValueError, match=r"Cannot use `stepwise_elbo` with `Ascent`: it returns no density"):
        stepwise_elbo(learned((2,), Delta())(model, x))
