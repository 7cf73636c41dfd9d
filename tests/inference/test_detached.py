"""Reweighted wake-sleep on a code of one element, where quadrature knows the gradients of both networks."""

import math
from collections.abc import Sequence

import pytest
import torch
from problems import neural
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from gae import Autoencoder, systems
from gae.inference import Amortized, Argmax, ClosedForm, DetachedDraws, Inference, Zeros
from gae.likelihood import LinearMixture
from gae.objective import iwae, wake_sleep, wake_wake

GRID = torch.linspace(-9.0, 9.0, 2001, dtype=torch.float64)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Distribution:
        loc, log_scale = self.network(x).chunk(2, 1)
        return Independent(Normal(loc, log_scale.exp()), 1)


def model(samples: int) -> tuple[Autoencoder, Guide, Tensor]:
    """A guide that is wider than the posterior and beside its mean, so that weights are bounded and unequal."""
    guide, likelihood, x = Guide().double(), neural(latent=1, scale=1.0), torch.randn(1, 5, dtype=torch.float64)
    with torch.no_grad():
        posterior = likelihood.log_joint(x, GRID[:, None, None]).flatten().softmax(0)
        mean = (posterior * GRID).sum()
        scale = (posterior * (GRID - mean).square()).sum().sqrt()
        guide.network.bias += torch.stack([mean + 0.4 * scale, (1.5 * scale).log()]) - guide.network(x)[0]
    return Autoencoder(likelihood, DetachedDraws(Amortized(guide, samples)), wake_wake), guide, x


def by_quadrature(model: Autoencoder, guide: Guide, x: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """∇ log p(x) of the decoder, and ∇ E_{p(z|x)} log q(z|x) = -∇ KL(p(z|x) ‖ q(z|x)) of the encoder."""
    log_joint = model.likelihood.log_joint(x, GRID[:, None, None]).squeeze(1)
    log_p = log_joint.logsumexp(0) + (GRID[1] - GRID[0]).log()
    posterior = log_joint.detach().softmax(0)
    score = (posterior * guide(x).log_prob(GRID[:, None])).sum()
    return torch.autograd.grad(log_p, list(model.likelihood.parameters())), torch.autograd.grad(
        score, list(guide.parameters())
    )


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.usefixtures("unchecked_types")
def test_both_gradients_are_those_of_quadrature() -> None:
    """With 3000 draws the bias of the weights, of order 1/S, is far below the standard error of 60 estimates."""
    autoencoder, guide, x = model(3000)
    wanted = by_quadrature(autoencoder, guide, x)
    networks = autoencoder.likelihood, guide
    draws = []
    for _ in range(60):
        loss = autoencoder(x)
        draws.append([flat(torch.autograd.grad(-loss, list(n.parameters()), retain_graph=True)) for n in networks])
    for found, expected in zip(zip(*draws, strict=True), wanted, strict=True):
        values = torch.stack(found)
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - flat(expected)).abs() < 4.5 * error + 1e-9).all()
        assert (flat(expected).abs() > 20 * error).any()  # so that a wrong sign, or nothing at all, would be seen


def test_the_value_and_the_decoder_s_gradient_are_those_of_iwae() -> None:
    autoencoder, _, x = model(4)
    encoding = autoencoder.encode(x)
    torch.testing.assert_close(wake_wake(encoding), iwae(encoding))
    weights = list(autoencoder.likelihood.parameters())
    one, other = (torch.autograd.grad(bound(encoding).sum(), weights, retain_graph=True) for bound in (wake_wake, iwae))
    for found, wanted in zip(one, other, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.usefixtures("unchecked_types")
def test_the_sleep_phase_is_that_of_the_joint_normal_in_closed_form() -> None:
    """z ~ N(0, I), x = W z + b + σ ε, q = N(A x + c, s²): E log q(z|x) and its gradient by the moments of (z, x)."""
    likelihood, guide = LinearMixture(1, 1, (5,), scale=0.6).double(), Guide().double()
    engine, x = DetachedDraws(Amortized(guide, 2), sleep=True), torch.randn(2000, 5, dtype=torch.float64)
    weight, shift = likelihood.loadings[0, 0].detach(), likelihood.means[0].detach()
    with torch.no_grad():
        guide.network.weight[1] = 0  # a constant scale, so that the moments are enough
    loc, log_scale = guide.network(shift)  # loc: the mean of A x + c - z, since z has the mean 0
    of_mean = guide.network.weight[0]
    spread = (of_mean @ weight - 1).square() + 0.36 * of_mean.square().sum()
    wanted = -log_scale - 0.5 * math.log(2 * math.pi) - 0.5 * (spread + loc.square()) * (-2 * log_scale).exp()
    keep = torch.tensor([1.0] * 5 + [0.0] * 5 + [1.0] * 2).bool()  # all but the weights that are 0
    gradient = flat(torch.autograd.grad(wanted, list(guide.parameters())))[keep]
    draws, values = [], []
    for _ in range(30):
        encoding = engine(likelihood, x)
        assert encoding.asleep is not None and encoding.asleep.shape == (1, 2000)
        values.append(encoding.asleep.mean().item())
        draws.append(flat(torch.autograd.grad(wake_sleep(encoding).mean(), list(guide.parameters())))[keep])
    found = torch.stack(draws)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - gradient).abs() < 5 * error).all() and (gradient.abs() > 20 * error).any()
    heights = torch.tensor(values)
    assert abs(float(heights.mean() - wanted.detach())) < 5 * float(heights.std()) / len(heights) ** 0.5


def test_a_sleep_phase_leaves_the_decoder_to_the_wake_phase() -> None:
    """Value and decoder's gradient are those of ``iwae``; nothing is simulated without gradients."""
    autoencoder, guide, x = model(4)
    engine = DetachedDraws(Amortized(guide, 4), sleep=True)
    encoding = engine(autoencoder.likelihood, x)
    torch.testing.assert_close(wake_sleep(encoding), iwae(encoding))
    weights = list(autoencoder.likelihood.parameters())
    one, other = (
        torch.autograd.grad(bound(encoding).sum(), weights, retain_graph=True) for bound in (wake_sleep, iwae)
    )
    for found, wanted in zip(one, other, strict=True):
        torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        assert engine(autoencoder.likelihood, x).asleep is None
        torch.testing.assert_close(wake_sleep(encoding), iwae(encoding))
    for awake in (DetachedDraws(Amortized(guide, 4)), Amortized(guide, 4)):
        with pytest.raises(ValueError, match=r"Use `DetachedDraws\(engine, sleep=True\)`"):
            wake_sleep(awake(autoencoder.likelihood, x))


def test_the_system_simulates_the_same_missing_elements() -> None:
    model = systems.build("rws-vae", (3,), latent=2, hidden=(4,), sleep=True, missing=True).double()
    seen: list[Tensor] = []
    x = torch.randn(6, 3, dtype=torch.float64)
    x[::2, 1] = torch.nan
    infer = model.inference.inner.infer
    model.inference.inner.infer = lambda likelihood, x, k=None: seen.append(x) or infer(likelihood, x, k)
    assert torch.isfinite(model(x))
    data, simulated = seen
    assert torch.equal(data.isnan(), simulated.isnan()) and not (data == simulated).any()
    assert systems.build("rws-vae", (3,), latent=2, hidden=(4,)).objective is wake_wake


def test_draws_of_the_exact_posterior_weigh_the_same() -> None:
    likelihood, x = LinearMixture(1, 2, (5,), scale=0.6).double(), torch.randn(3, 5, dtype=torch.float64)
    encoding = DetachedDraws(ClosedForm(samples=7))(likelihood, x)
    torch.testing.assert_close(wake_wake(encoding), likelihood.log_evidence(x).log_p)


@pytest.mark.parametrize("inner", [Zeros(), Argmax(ClosedForm())], ids=["no density", "discrete"])
def test_engines_without_a_density_over_codes_are_refused(inner: Inference) -> None:
    with pytest.raises(TypeError, match=r"needs draws of a density q\(z\|x\) over continuous codes"):
        DetachedDraws(inner)(LinearMixture(2, 2, (5,)), torch.randn(3, 5))


def test_moving_or_single_draws_are_refused() -> None:
    autoencoder, guide, x = model(1)
    with pytest.raises(ValueError, match="got S=1, which has the weight 1 everywhere"):
        autoencoder(x)
    moving = Autoencoder(autoencoder.likelihood, Amortized(guide, 3), wake_wake)
    with pytest.raises(ValueError, match=r"those of `Amortized` depend on parameters.*Use `DetachedDraws\(engine\)`"):
        moving(x)
