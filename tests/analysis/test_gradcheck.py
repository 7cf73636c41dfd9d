"""Gradient checks, and warnings and errors for invalid second-order computations."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from problems import neural
from pyro.distributions import Normal
from torch import Tensor, nn

from gae import Autoencoder, check_gradient
from gae.inference import (
    LBFGS,
    Adam,
    Adjoint,
    Amortized,
    Ascent,
    CheckpointedUnroll,
    ClosedForm,
    Constant,
    Detach,
    Encoding,
    GaussNewton,
    GradientAscent,
    Implicit,
    Inference,
    Langevin,
    MeanField,
    OneStep,
    Truncate,
    Unroll,
    Zeros,
)
from gae.likelihood import Gaussian, LinearMixture
from gae.objective import elbo, joint
from gae.systems import NormalEncoder, gmm, gon, llgae, ppca, savae, vae

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def spread_out(encoding: Encoding) -> Tensor:
    """A function of codes and joint, to which the envelope theorem does not apply."""
    return encoding.log_joint.mean(0) + 3 * encoding.z.square().sum((0, 2)) + encoding.z.sin().sum((0, 2))


def model(engine: Inference, objective: Callable[[Encoding], Tensor] = spread_out) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(neural().float(), engine, objective)


def density() -> Amortized:
    torch.manual_seed(1)
    return Amortized(NormalEncoder(nn.Linear(5, 4)))


EXACT: dict[str, Callable[[], Autoencoder]] = {
    "unroll": lambda: model(Ascent(step=GradientAscent(0.05, learn=True), max_steps=6)),
    "checkpoint": lambda: model(Ascent(step=Adam(0.05), max_steps=6, adjoint=CheckpointedUnroll())),
    "all steps kept": lambda: model(Ascent(step=Adam(0.05), max_steps=6, adjoint=Truncate(6))),
    "noise": lambda: model(Ascent(step=Langevin(0.01), max_steps=6, adjoint=CheckpointedUnroll())),
    "semi-amortised": lambda: model(Ascent(density(), GradientAscent(0.02), 3, family=MeanField(samples=2)), elbo),
    "unrolled search": lambda: model(Ascent(step=LBFGS(), max_steps=8)),
    "guide": lambda: model(density(), elbo),
    "gon": lambda: gon((5,), 2, (8,), rate=0.1),
    "savae": lambda: savae((5,), 2, (8,), steps=2),
    "vae": lambda: vae((5,), 2, (8,)),
    "ppca": lambda: ppca((5,), 2),
    "gmm": lambda: gmm((5,), 3),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_gradients_are_certified(name: str) -> None:
    torch.manual_seed(0)
    assert check_gradient(EXACT[name](), X) < 1e-6


def converged(mode: Adjoint, objective: Callable[[Encoding], Tensor] = spread_out) -> Autoencoder:
    return model(Ascent(step=LBFGS(), max_steps=200, grad_tol=1e-11, adjoint=mode), objective)


def test_implicit_is_certified_at_a_solution() -> None:
    assert check_gradient(converged(Implicit(tol=1e-12)), X, epsilon=1e-4) < 1e-5  # a solve leaves about 1e-10


def test_detach_is_certified_for_joint_at_a_solution_only() -> None:
    """The envelope theorem: exact for the objective that the code maximises, not for another one."""
    assert check_gradient(converged(Detach(), joint), X, epsilon=1e-4) < 1e-6
    assert check_gradient(converged(Detach()), X, epsilon=1e-4) > 0.1


@pytest.mark.parametrize("mode", [Detach(), Truncate(1), OneStep()], ids=["detach", "truncate", "one step"])
def test_what_a_mode_leaves_out_shows(mode: Adjoint) -> None:
    assert check_gradient(model(Ascent(step=GradientAscent(0.05), max_steps=8, adjoint=mode)), X) > 0.05


def test_a_wrong_gradient_shows_its_size() -> None:
    """A loss whose gradient is scaled by 1.25 behind autograd's back has a relative error of 0.25."""

    class Louder(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:  # type: ignore[override]
            return 1.25 * cotangent

    wrong = model(Zeros(), lambda encoding: Louder.apply(joint(encoding)))
    assert check_gradient(wrong, X) == pytest.approx(0.25, abs=1e-6)


def test_the_model_and_the_random_streams_stay_as_they_are() -> None:
    autoencoder = savae((5,), 2, (8,), steps=2)
    before = copy.deepcopy(autoencoder.state_dict())
    flags = [(p.dtype, p.requires_grad, p.grad) for p in autoencoder.parameters()]
    x, state = X.clone(), torch.get_rng_state()
    first = check_gradient(autoencoder, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in autoencoder.state_dict().items())
    assert [(p.dtype, p.requires_grad, p.grad) for p in autoencoder.parameters()] == flags
    assert torch.equal(x, X) and torch.get_default_dtype() == torch.float32
    torch.randn(7)
    assert check_gradient(autoencoder, x) == first  # its own seed decides
    assert check_gradient(autoencoder, x, seed=1) != first


def test_a_guide_that_is_a_plain_function_is_refused() -> None:
    """The guide's networks are outside the model, so a copy does not include them and the check would ignore them."""
    network = nn.Linear(5, 2)

    def guide(x: Tensor) -> None:
        pyro.module("network", network)
        scale = pyro.param("scale", torch.ones(2), constraint=torch.distributions.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(network(x), scale.to(x)).to_event(1))

    before = copy.deepcopy(network.state_dict())
    called = model(Amortized(guide), elbo)
    called(X)
    for autoencoder in (called, model(Amortized(guide), elbo)):
        with pytest.raises(TypeError, match=r"This guide is a plain function.*`nn.Module` or a `PyroModule`"):
            check_gradient(autoencoder, X)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_guide_module_may_make_its_parameters_at_its_first_call() -> None:
    class Guide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scale = pyro.param("scale", torch.ones(2), constraint=torch.distributions.constraints.positive)
            with pyro.plate("data", len(x)):
                return pyro.sample("z", Normal(x[:, :2], scale.to(x)).to_event(1))

    autoencoder = model(Amortized(Guide()), elbo)
    assert check_gradient(autoencoder, X) < 1e-6
    assert "scale" not in dict(autoencoder.inference.declared)  # type: ignore[arg-type]


def test_nothing_to_check_is_refused() -> None:
    frozen = model(Ascent(max_steps=2))
    for p in frozen.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="No parameter of the autoencoder requires a gradient"):
        check_gradient(frozen, X)
    constant = model(ClosedForm(), lambda encoding: 0 * encoding.log_joint[0])
    constant.likelihood = LinearMixture(1, 2, (5,))
    with pytest.raises(ValueError, match="does not change along any direction"):
        check_gradient(constant, X)


def test_one_trainable_part_is_enough() -> None:
    rate = model(Ascent(step=GradientAscent(0.05, learn=True), max_steps=3))
    for p in rate.likelihood.parameters():
        p.requires_grad_(False)
    assert check_gradient(rate, X) < 1e-6
    decoder = model(Ascent(step=GradientAscent(0.05), max_steps=3))
    first = next(decoder.likelihood.parameters())
    first.requires_grad_(False)
    assert check_gradient(decoder, X) < 1e-6


def test_branches_of_an_argmax_are_certified() -> None:
    """The argmax is constant within the finite differences, so the loss is smooth there."""
    assert check_gradient(llgae((5,), 2, 3, steps=4, rate=0.2), X) < 1e-6


# Piecewise-linear activations.


def bent(activation: type[nn.Module] = nn.ReLU) -> Gaussian:
    return neural(activation=activation).float()


def caught(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.PReLU, nn.Hardtanh, nn.Hardsigmoid])
@pytest.mark.parametrize("mode", [Unroll, CheckpointedUnroll])
def test_piecewise_linear_decoders_are_named_once(mode: Callable[[], Adjoint], activation: type[nn.Module]) -> None:
    likelihood, engine = bent(activation), Ascent(max_steps=2, adjoint=mode())
    messages = caught(lambda: [engine(likelihood, X) for _ in range(3)])
    assert len(messages) == 1
    assert messages[0].startswith(f"{activation.__name__} ('decoder.1') is piecewise linear")
    assert "Use a smooth activation" in messages[0] and "`Detach()`" in messages[0]
    assert len(caught(lambda: Ascent(max_steps=2, adjoint=mode())(likelihood, X))) == 1  # each engine its own


@pytest.mark.parametrize("mode", [Detach(), OneStep(), Truncate(1)])
def test_modes_without_unrolled_second_order_terms_do_not_warn(mode: Adjoint) -> None:
    assert caught(lambda: Ascent(max_steps=2, adjoint=mode)(bent(), X)) == []


def test_smooth_decoders_and_evaluation_do_not_warn() -> None:
    assert caught(lambda: Ascent(max_steps=2)(bent(nn.SiLU), X)) == []
    engine = Ascent(max_steps=2)
    with torch.no_grad():
        assert caught(lambda: engine(bent(), X)) == []
    assert len(caught(lambda: engine(bent(), X))) == 1  # the first time that it matters


def test_the_warning_is_right_about_what_is_lost() -> None:
    """Two layers with a ReLU between: the Hessian of the decoder's output is zero almost everywhere."""
    decoder = bent().decoder
    z = torch.randn(2)
    assert float(torch.autograd.functional.hessian(lambda z: decoder(z.unsqueeze(0)).sum(), z).abs().max()) == 0


# Layers without a fixed objective per sample.


class Recurrent(nn.Module):
    """An LSTM over the code's elements, with Dropout between its layers."""

    def __init__(self, dropout: float):
        super().__init__()
        self.lstm = nn.LSTM(1, 4, num_layers=2, dropout=dropout, batch_first=True)

    def forward(self, z: Tensor) -> Tensor:
        return self.lstm(z.unsqueeze(2))[0][:, -1]


class Attentive(nn.Module):
    """Self-attention over the code's elements."""

    def __init__(self, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(1, 1, dropout=dropout, batch_first=True)

    def forward(self, z: Tensor) -> Tensor:
        words = z.unsqueeze(2)
        return self.attention(words, words, words, need_weights=False)[0].squeeze(2)


def layered(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), layer, nn.Tanh(), nn.Linear(8, 5))


@pytest.mark.parametrize(
    "decoder, name",
    [
        (layered(nn.BatchNorm1d(8)), "BatchNorm1d"),
        (layered(nn.SyncBatchNorm(8)), "SyncBatchNorm"),
        (layered(nn.Dropout(0.5)), "Dropout"),
        (layered(nn.AlphaDropout(0.1)), "AlphaDropout"),
        (layered(nn.RReLU()), "RReLU"),
        (Recurrent(0.5), "LSTM"),
        (Attentive(0.5), "MultiheadAttention"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_move_the_objective_are_refused_until_frozen(decoder: nn.Module, name: str) -> None:
    likelihood = Gaussian(decoder, 2)
    x = X[:, : likelihood.event_shape[0]]
    likelihood.train()
    for mode in (Unroll(), Detach()):
        with pytest.raises(ValueError, match=rf"{name} \('decoder.*Use GroupNorm or InstanceNorm, or.*`\.eval\(\)`"):
            Ascent(max_steps=2, adjoint=mode)(likelihood, x)
    likelihood.eval()
    assert Ascent(max_steps=2, adjoint=Detach())(likelihood, x).z.shape == (1, 4, 2)


@pytest.mark.parametrize(
    "decoder",
    [layered(nn.Dropout(0.0)), layered(nn.GroupNorm(2, 8)), layered(nn.LayerNorm(8)), Recurrent(0.0), Attentive(0.0)],
)
def test_layers_that_do_not_are_used(decoder: nn.Module) -> None:
    likelihood = Gaussian(decoder, 2).train()
    x = X[:, : likelihood.event_shape[0]]
    first, second = (Ascent(max_steps=2)(likelihood, x).z for _ in range(2))
    assert torch.equal(first, second)


def test_a_normalisation_without_running_statistics_cannot_be_frozen() -> None:
    layer = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten())
    likelihood = Gaussian(layered(layer), 2).eval()
    with pytest.raises(ValueError, match=r"BatchNorm2d.*Use GroupNorm"):
        Ascent(max_steps=2)(likelihood, X)


def test_a_frozen_normalisation_is_not_touched() -> None:
    layer = nn.BatchNorm1d(8)
    likelihood = Gaussian(layered(layer), 2)
    likelihood.decoder.eval()
    before = copy.deepcopy(layer.state_dict())
    code = Ascent(max_steps=4)(likelihood, X)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert torch.allclose(Ascent(max_steps=4)(likelihood, X[:1]).z[0, 0], code.z[0, 0], atol=1e-6)


def test_the_certificate_sees_the_same_refusals() -> None:
    coupled = Autoencoder(Gaussian(layered(nn.BatchNorm1d(8)), 2), Ascent(Constant(torch.ones(2)), GaussNewton(), 2))
    with pytest.raises(ValueError, match="BatchNorm1d"):
        check_gradient(coupled, X)
