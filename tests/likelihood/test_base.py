"""Capabilities of likelihoods by type, and discreteness by support."""

import math

import pytest
import torch
from cases import LIKELIHOODS, LikelihoodCase
from torch import nn

from gae import nets
from gae.likelihood import (
    HEADS,
    DecoderLikelihood,
    Gaussian,
    GaussianKernel,
    Laplace,
    Likelihood,
    LinearMixture,
    Mask,
    Measured,
    MixtureStandardUnits,
    NoiseScale,
    WeightLikelihood,
)

each_likelihood = pytest.mark.parametrize("case", LIKELIHOODS, ids=[case.name for case in LIKELIHOODS])


@each_likelihood
def test_the_support_tells_a_mass_from_a_density(case: LikelihoodCase) -> None:
    likelihood = case.build()
    law = likelihood(torch.rand(1, *likelihood.latent_shape))
    assert likelihood.support.is_discrete == law.support.is_discrete


@pytest.mark.parametrize("name", HEADS)
def test_the_class_of_a_head_tells_a_mass_from_a_density(name: str) -> None:
    head = HEADS[name]
    assert head.support.is_discrete == head(nn.Linear(2, 3), 2)(torch.zeros(1, 2)).support.is_discrete


def test_a_network_of_weights_has_the_support_of_its_head() -> None:
    likelihood = WeightLikelihood(nn.Linear(2, 3), torch.ones(2), HEADS["poisson"])
    assert likelihood.support.is_discrete and not WeightLikelihood(nn.Linear(2, 3), torch.ones(2)).support.is_discrete


@each_likelihood
def test_a_decoder_splits_at_its_output(case: LikelihoodCase) -> None:
    likelihood, x = case.build().double(), case.data((5, *case.build().event_shape)).double()
    if not isinstance(likelihood, DecoderLikelihood):
        assert not hasattr(likelihood, "outputs") and not hasattr(likelihood, "distribution")
        return
    z = torch.rand(3, 5, *likelihood.latent_shape, dtype=torch.float64)
    k = torch.tensor([[0], [1], [2]]) % likelihood.components if likelihood.components else None
    output, law = likelihood.outputs(z, k), likelihood(z, k)
    torch.testing.assert_close(likelihood.log_likelihood(x, output, k), law.log_prob(x), rtol=1e-10, atol=1e-10)
    if isinstance(likelihood, (LinearMixture, MixtureStandardUnits)):
        elementwise = likelihood.distribution(output, k).log_prob(x)
    else:
        elementwise = likelihood.distribution(output).log_prob(x)
    torch.testing.assert_close(elementwise.reshape(3, 5, -1).sum(2), law.log_prob(x), rtol=1e-10, atol=1e-10)


def test_an_output_of_one_of_several_components_needs_to_be_told_which() -> None:
    mixture = LinearMixture(2, 1, (3,))
    with pytest.raises(ValueError, match="needs k, got None"):
        mixture.distribution(torch.zeros(4, 3))


def test_a_mask_needs_measurement_noise_where_outputs_are_flat() -> None:
    with pytest.raises(TypeError, match="Give the `scale` of the measurement noise"):
        Measured(LinearMixture(1, 2, (3,)), Mask(torch.tensor([True, False, True]), (3,)))


def test_the_base_has_no_member_that_only_raises() -> None:
    assert not any(
        hasattr(Likelihood, name) for name in ("outputs", "distribution", "log_likelihood", "reconstruction")
    )


@pytest.mark.parametrize(
    "likelihood",
    [
        Gaussian(nn.Linear(2, 3), 2, learn="scalar"),
        Laplace(nn.Linear(2, 3), 2, learn="pixel"),
        LinearMixture(2, 1, (3,), learn_scale=True),
        GaussianKernel(2, 1, (3,), learn_scale=True),
    ],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_a_learned_scale_starts_at_the_deviation_of_the_data(likelihood: Likelihood) -> None:
    x = torch.randn(50, 3) * 7 + 100
    assert isinstance(likelihood, NoiseScale) and likelihood.learns_scale
    likelihood.start_scale(x)
    wanted = x.var(0, unbiased=False).mean().sqrt().log().item()
    assert likelihood.log_scale.tolist() == pytest.approx(
        wanted if likelihood.log_scale.dim() == 0 else [wanted] * len(likelihood.log_scale), rel=1e-5
    )


@pytest.mark.parametrize(
    "likelihood",
    [
        Gaussian(nn.Linear(2, 3), 2, 0.5),
        Gaussian(nets.Rescaled(nn.Linear(2, 3), (3,)), 2, 0.5, learn="scalar", relative=True),
        LinearMixture(1, 1, (3,), scale=0.5),
    ],
    ids=["fixed", "relative", "mixture"],
)
def test_other_scales_stay(likelihood: Likelihood) -> None:
    assert isinstance(likelihood, NoiseScale)
    likelihood.start_scale(torch.randn(50, 3) * 7 + 100)
    assert likelihood.log_scale.flatten().tolist() == pytest.approx([math.log(0.5)])
