"""The multinomial head against scipy, enumeration of all counts, and cross-entropy."""

import itertools
import re

import numpy as np
import pytest
import scipy.stats
import torch
from cases import frequencies, net
from torch import Tensor, nn

from gae import Autoencoder
from gae.inference import Zeros
from gae.likelihood import Flat, Mask, Measured, Multinomial, MultinomialDistribution


def every(total: int, classes: int) -> Tensor:
    counts = [c for c in itertools.product(range(total + 1), repeat=classes) if sum(c) == total]
    return torch.tensor(counts, dtype=torch.float64) / total


def test_masses_are_those_of_scipy() -> None:
    logits, x = torch.randn(4, dtype=torch.float64), every(5, 4)
    found = MultinomialDistribution(5, logits).log_prob(x)
    wanted = scipy.stats.multinomial(5, logits.softmax(0).numpy()).logpmf((5 * x).round().numpy())
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("logits", [[0.0, 0.0, 0.0], [-3.0, 8.0, 1.0], [0.0, 200.0, 0.0]])
def test_masses_of_all_frequencies_add_up_to_one(logits: list[float]) -> None:
    x = every(7, 3)
    q = MultinomialDistribution(7, torch.tensor(logits, dtype=torch.float64))
    assert float(q.log_prob(x).exp().sum()) == pytest.approx(1, abs=1e-12)
    mean = (q.log_prob(x).exp()[:, None] * x).sum(0)
    variance = (q.log_prob(x).exp()[:, None] * (x - mean).square()).sum(0)
    torch.testing.assert_close(q.mean, mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(q.variance, variance, rtol=1e-10, atol=1e-12)


def test_many_draws_keep_their_digits_in_float32() -> None:
    """The mass of the most probable counts is small next to its factorials."""
    x = torch.tensor([0.5, 0.25, 0.25])
    wanted = scipy.stats.multinomial(60000, x.double().numpy()).logpmf([30000, 15000, 15000])
    assert float(MultinomialDistribution(60000, x.log()).log_prob(x)) == pytest.approx(wanted, rel=1e-5)


def test_it_is_cross_entropy_and_kl_up_to_constants() -> None:
    """Ledger D21: per draw, log masses of several p differ as their cross-entropies with x, and as divergences."""
    model = Multinomial(nn.Identity(), (2, 4), 6, prior=Flat(2, 4)).double()
    x, outputs = frequencies((5, 2, 4)).double(), torch.randn(3, 5, 2, 4, dtype=torch.float64)
    log_p = outputs.log_softmax(-1)
    found = model.log_joint(x, outputs) / 6
    cross_entropy = -(x * log_p).sum((-1, -2))
    divergence = torch.nn.functional.kl_div(log_p, x.expand_as(log_p), reduction="none").sum((-1, -2))
    for loss in (cross_entropy, divergence):
        torch.testing.assert_close(found - found[:1], loss[:1] - loss, rtol=1e-10, atol=1e-10)


def test_draws_have_the_mean_and_can_be_scored() -> None:
    model = Multinomial(net(2, (2, 3)), 2, 50).double()
    q = model(torch.randn(2, dtype=torch.float64))
    x = q.sample((2000,))
    model.check(x)
    error = 5 * (q.variance / 2000).sqrt()
    assert ((x.mean(0) - q.mean).abs() < error).all()


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        ([0.5, 0.5, 0.5], "(0.5, 0.5, 0.5)"),
        ([0.1, 0.2, 0.7], "(0.1, 0.2, 0.7)"),
        ([1.5, -0.5, 0.0], "(1.5, -0.5, 0)"),
    ],
)
def test_other_vectors_are_refused(x: list[float], shown: str) -> None:
    model = Autoencoder(Multinomial(net(2, 3), 2, 6), Zeros())
    good = torch.tensor([0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match=rf"counts / 6 .* got {re.escape(shown)} at index \(1,\) \(1 such vectors\)"):
        model.encode(torch.stack([good, torch.tensor(x)]))


@pytest.mark.parametrize("n", [7, 1000, 65536])
def test_fractions_of_float32_are_counts(n: int) -> None:
    model = Multinomial(nn.Linear(2, 3), 2, n)
    counts = torch.randint(n // 3, (200, 2))
    x = torch.cat([counts, n - counts.sum(1, keepdim=True)], 1).float() / n
    model.check(x)


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"total_count must lie in 1 \.\.\. 65536, got 0"):
        Multinomial(net(2, 3), 2, 0)
    with pytest.raises(ValueError, match=r"logits \(\.\.\., C\) of C ≥ 2 classes, got \(1,\)"):
        Multinomial(net(2, 1), 2, 3)


def test_a_part_of_the_frequencies_needs_noise_of_its_own() -> None:
    model, mask = Multinomial(net(2, 3), 2, 6), Mask(torch.tensor([True, True, False]), (3,))
    with pytest.raises(TypeError, match="The distribution of Multinomial does not fit measurements"):
        Measured(model, mask)
