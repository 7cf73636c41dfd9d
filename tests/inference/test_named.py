"""Engines by name: what they are made of, and the models for which they are refused."""

import pytest
import torch
from torch import nn

from gae.inference import Amortized, Argmax, Ascent, AutoDecoder, ClosedForm, Inference, MeanField
from gae.inference.named import NAMES, named_engine
from gae.likelihood import Gaussian, Likelihood, LinearMixture, NonNegativeGaussian


@pytest.mark.parametrize("name", NAMES)
def test_modes_are_those_of_the_posterior(name: str) -> None:
    """A linear decoder's posterior has its mode at its mean, and the encoder stays where it is."""
    layer = nn.Linear(2, 3)
    linear = LinearMixture(1, 2, (3,))
    with torch.no_grad():
        linear.means.copy_(layer.bias), linear.loadings.copy_(layer.weight.mT)
    own, x = Amortized(nn.Linear(3, 2)), torch.randn(4, 3)
    wanted = own(linear, x).z if name == "encoder" else ClosedForm()(linear, x).z
    code = named_engine(name, Gaussian(layer, 2), own)(Gaussian(layer, 2), x)
    assert torch.allclose(code.z, wanted, atol=1e-2 if name == "adam" else 1e-3)


def test_an_encoder_is_taken_from_any_engine_that_starts_from_it() -> None:
    encoder = Amortized(nn.Linear(3, 2))
    own = Ascent(encoder, family=MeanField())
    likelihood = Gaussian(nn.Linear(2, 3), 2)
    refine = named_engine("refine", likelihood, own)
    assert named_engine("encoder", likelihood, own) is encoder and isinstance(refine, Ascent) and refine.init is encoder


def test_every_component_of_a_mixture_is_climbed() -> None:
    mixture, x = LinearMixture(3, 2, (5,), flat_prior=True).double(), torch.randn(6, 5).double()
    with torch.no_grad():
        mixture.means.normal_()
    wanted, code = (
        engine(mixture, x) for engine in (Argmax(ClosedForm()), named_engine("lbfgs", mixture, ClosedForm()))
    )
    assert wanted.k is not None and code.k is not None
    assert torch.equal(code.k, wanted.k) and torch.allclose(code.z, wanted.z, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "likelihood", "own", "message"),
    [
        ("sgd", Gaussian(nn.Linear(2, 3), 2), ClosedForm(), "Unknown engine 'sgd'. Valid engines: lbfgs, adam, "),
        ("encoder", LinearMixture(1, 2, (3,)), ClosedForm(), "'encoder' needs an encoder, and `ClosedForm`"),
        ("refine", Gaussian(nn.Linear(2, 3), 2), AutoDecoder(2, Ascent()), "`AutoDecoder`.* Use one of lbfgs, adam"),
        ("lbfgs", LinearMixture(3, 0, (3,)), Argmax(), "LinearMixture has discrete codes alone, so 'lbfgs'"),
        ("adam", NonNegativeGaussian(2, (3,)), ClosedForm(), "are non-negative, which 'adam' does not respect"),
    ],
)
def test_models_that_a_name_does_not_suit(name: str, likelihood: Likelihood, own: Inference, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named_engine(name, likelihood, own)
