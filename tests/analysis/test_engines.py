"""Engines by name: what they are made of, and the models for which they are refused."""

import pytest
import torch
from problems import plateau
from torch import nn

from gae import Autoencoder
from gae.analysis.engines import ENGINES, engine_of
from gae.inference import Amortized, Argmax, Ascent, AutoDecoder, ClosedForm, Inference
from gae.likelihood import Gaussian, Likelihood, LinearMixture, NonNegativeGaussian


@pytest.mark.parametrize("name", ENGINES)
def test_modes_are_those_of_the_posterior(name: str) -> None:
    """A linear decoder's posterior has its mode at its mean, and an encoder stays where it is."""
    layer, linear = nn.Linear(2, 3), LinearMixture(1, 2, (3,))
    with torch.no_grad():
        linear.means.copy_(layer.bias), linear.loadings.copy_(layer.weight.mT)
    model, x = Autoencoder(Gaussian(layer, 2), Amortized(nn.Linear(3, 2))), torch.randn(4, 3)
    wanted = model.encode(x).z if name == "encoder" else ClosedForm()(linear, x).z
    code = model.encode(x, engine_of(name, model))
    assert torch.allclose(code.z, wanted, atol=2e-2)  # 1e-5 nats of a precision of at least 1


def test_every_component_of_a_mixture_is_climbed() -> None:
    mixture, x = LinearMixture(3, 2, (5,), flat_prior=True).double(), torch.randn(6, 5).double()
    with torch.no_grad():
        mixture.means.normal_()
    model = Autoencoder(mixture, Argmax(ClosedForm()))
    wanted, code = model.encode(x), model.encode(x, engine_of("lbfgs", model))
    assert wanted.k is not None and code.k is not None
    assert torch.equal(code.k, wanted.k) and torch.allclose(code.z, wanted.z, atol=2e-2)


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
def test_restarts_leave_a_low_mode(name: str) -> None:
    """Which an ascent from 0 does not: the code of x = 4 is 2.05 or its negative, but for the prior's pull."""
    likelihood, x, _ = plateau()
    model = Autoencoder(likelihood, Ascent())
    assert bool((model.encode(x, engine_of(name, model)).z.abs() < 0.05).all())
    code = model.encode(x, engine_of(name, model, restarts=8))
    assert bool(((code.z.abs() - 2.05).abs() < 0.01).all())
    assert code.solve is not None and code.solve.spread is not None


def test_every_component_of_a_mixture_is_climbed_from_every_start() -> None:
    mixture, x = LinearMixture(3, 2, (5,)).double(), torch.randn(6, 5).double()
    model = Autoencoder(mixture, Argmax(ClosedForm()))
    wanted, code = model.encode(x), model.encode(x, engine_of("lbfgs", model, restarts=3))
    assert wanted.k is not None and code.k is not None
    assert torch.equal(code.k, wanted.k) and torch.allclose(code.z, wanted.z, atol=2e-2)


@pytest.mark.parametrize("name", ["encoder", "refine"])
def test_an_encoder_has_no_restarts(name: str) -> None:
    model = Autoencoder(Gaussian(nn.Linear(2, 3), 2), Amortized(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="starts from the encoder alone, so it has no restarts"):
        engine_of(name, model, restarts=2)


@pytest.mark.parametrize(
    ("name", "likelihood", "own", "message"),
    [
        ("sgd", Gaussian(nn.Linear(2, 3), 2), ClosedForm(), "Unknown engine 'sgd'. Valid engines: lbfgs, adam, "),
        (
            "encoder",
            LinearMixture(1, 2, (3,)),
            ClosedForm(),
            "needs an encoder, but this model is encoded by Closed",
        ),
        ("refine", Gaussian(nn.Linear(2, 3), 2), AutoDecoder(2, Ascent()), "by AutoDecoder. Choose one of lbfgs, adam"),
        ("lbfgs", LinearMixture(3, 0, (3,)), Argmax(), "LinearMixture has discrete codes alone, so 'lbfgs'"),
        ("adam", NonNegativeGaussian(2, (3,)), ClosedForm(), "are non-negative, which 'adam' does not respect"),
    ],
)
def test_models_that_a_name_does_not_suit(name: str, likelihood: Likelihood, own: Inference, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine_of(name, Autoencoder(likelihood, own))
