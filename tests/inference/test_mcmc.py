"""Hamiltonian Monte Carlo on posteriors in closed form, and the gradients of Monte Carlo EM."""

import math

import numpy as np
import pytest
import torch
from margins import within
from problems import Landscape, neural, posterior, ppca
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from gae import Autoencoder, systems
from gae.inference import HMC, MCMC, Amortized, Argmax, Ascent, ClosedForm, Constant, Detach, Inference, Zeros
from gae.likelihood import LinearMixture
from gae.objective import elbo, joint, monte_carlo_em

pytestmark = pytest.mark.usefixtures("unchecked_types")


class Guide(nn.Module):
    def __init__(self, latent: int, dim: int):
        super().__init__()
        self.network = nn.Linear(dim, 2 * latent)

    def forward(self, x: Tensor) -> Distribution:
        loc, log_scale = self.network(x).chunk(2, 1)
        return Independent(Normal(loc, log_scale.exp()), 1)


def assert_moments(z: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Independent draws (S, Z) have the moments of a normal, within 4.5 standard errors."""
    residual = z - mean
    products = residual.unsqueeze(2) * residual.unsqueeze(1)
    for values, wanted in ((z, mean), (products, covariance)):
        assert ((values.mean(0) - wanted).abs() < 4.5 * values.std(0) / len(z) ** 0.5).all()


@pytest.mark.parametrize("rate, leapfrog", [(0.45, 1), (0.45, 4), (0.1, 10)])
def test_chains_from_exact_draws_stay_posterior_draws(rate: float, leapfrog: int) -> None:
    """At large rates too, where trajectories alone would not."""
    model = ppca(2, 5)
    x = torch.randn(1, 5, dtype=torch.float64)
    mean, covariance = posterior(model, x)
    with torch.no_grad():
        z = MCMC(ClosedForm(samples=20000), HMC(rate, leapfrog), 4)(model, x).z[:, 0]
        assert_moments(z, mean[0], covariance)


def test_acceptance_is_that_of_theory() -> None:
    """E min(1, exp(-ΔH)) of one leapfrog move from N(0, 1), by quadrature over code, momentum and size."""
    model = Landscape(lambda x, z: -0.5 * z.square().sum(2)).double()
    start = torch.randn(40000, 1, dtype=torch.float64)
    engine = Ascent(Constant(start), HMC(1.3, 1), 2, adjoint=Detach()).double()
    encoding = engine(model, torch.zeros(40000, 1, dtype=torch.float64))
    moved = (encoding.z[0] != start).double()
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    sizes, shares = np.polynomial.legendre.leggauss(30)
    z, p, size = nodes[:, None, None], nodes[None, :, None], 1.3 * (1 + 0.5 * sizes)
    end = z + size * (p - 0.5 * size * z)
    last = p - 0.5 * size * z - 0.5 * size * end
    chance = np.minimum(1, np.exp(0.5 * (z**2 + p**2 - end**2 - last**2)))
    wanted = np.einsum("i,j,k,ijk", weights, weights, shares, chance) / (2 * weights.sum() ** 2)
    assert 0.5 < wanted < 0.9
    assert encoding.solve is not None and encoding.solve.acceptance is not None
    for share in (moved, encoding.solve.acceptance[0]):
        assert abs(share.mean().item() - wanted) < 4.5 * share.std().item() / 200 + 1e-3


def test_sizes_adapt_by_dual_averaging() -> None:
    """The sizes of two chains after given acceptance probabilities are those of Pyro's dual averaging."""
    step, chances = HMC(0.2, adapt=6, target=0.7), torch.rand(9, 1, 2, dtype=torch.float64)
    code = torch.zeros(1, 2, 3, dtype=torch.float64)
    state = step.start(None, code)  # type: ignore[arg-type]
    pyro = [DualAveraging(math.log(10 * 0.2)) for _ in range(2)]
    rate, _ = step._tested(state, chances[0], 0)
    assert torch.allclose(torch.as_tensor(rate), torch.tensor(0.2).double())
    for t in range(1, 9):
        rate, record = step._tested(state, chances[t], t)
        state = state | record
        for chain, each in enumerate(pyro):
            if t <= 6:
                each.step(0.7 - float(chances[t, 0, chain]))
            last, average = each.get_state()
            assert math.log(rate[0, chain]) == pytest.approx(last if t < 6 else average)  # type: ignore[index]
    torch.testing.assert_close(step.acceptance(state), chances[7:].mean(0))


@pytest.mark.parametrize("rate", [0.004, 4.0])
def test_adapted_chains_accept_as_often_as_asked_and_stay_posterior_draws(rate: float) -> None:
    model = ppca(2, 5)
    x = torch.randn(1, 5, dtype=torch.float64)
    mean, covariance = posterior(model, x)
    with torch.no_grad():
        encoding = MCMC(ClosedForm(samples=1000), HMC(rate, 4, adapt=40), 50)(model, x)
        assert encoding.solve is not None and encoding.solve.acceptance is not None
        acceptance = encoding.solve.acceptance.mean().item()
        within("acceptance", acceptance, above=0.75, below=0.98)  # the average of the sizes is on the safe side
        assert_moments(encoding.z[:, 0], mean[0], covariance)
        plain = MCMC(ClosedForm(samples=50), HMC(rate, 4), 12)(model, x).solve
    assert plain is not None and plain.acceptance is not None
    assert not 0.3 < plain.acceptance.mean().item() < 0.995


@pytest.mark.parametrize("rate", [0.002, 5.0])
def test_the_system_adapts_its_rate(rate: float) -> None:
    """From rates at which no chain of the system moves far; a linear decoder, whose posterior has a closed form."""
    options = {"latent": 2, "hidden": (), "rate": rate, "leapfrog": 3, "samples": 300}
    model = systems.build("mcmc-em", (5,), steps=15, adapt_steps=30, **options).double()
    x, origin = torch.randn(1, 5, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    decoder, scale = model.likelihood.decoder, model.likelihood.scale.detach()
    weight = torch.autograd.functional.jacobian(lambda z: decoder(z)[0], origin)[:, 0]
    with torch.no_grad():
        covariance = torch.linalg.inv(torch.eye(2).double() + (weight.mT / scale.square()) @ weight)
        mean = covariance @ (weight.mT / scale.square()) @ (x - decoder(origin))[0]
        encoding = model.encode(x)
        assert_moments(encoding.z[:, 0], mean, covariance)
        assert encoding.solve is not None and encoding.solve.acceptance is not None
        within("acceptance", encoding.solve.acceptance.mean(), above=0.6, below=0.99)
        assert (encoding.solve.steps == 46).all()
        plain = systems.build("mcmc-em", (5,), steps=5, **options).double()
        assert (plain.encode(x).solve.steps == 6).all()  # type: ignore[union-attr]


def test_chains_from_an_encoder_converge() -> None:
    model = ppca(2, 5)
    guide = Guide(2, 5).double()
    with torch.no_grad():
        guide.network.bias.copy_(torch.tensor([2.0, -2.0, -2.0, -2.0]))
        x = torch.randn(1, 5, dtype=torch.float64)
        mean, covariance = posterior(model, x)
        z = MCMC(Amortized(guide, 5000), HMC(0.25, 5), 60)(model, x).z[:, 0]
        assert_moments(z, mean[0], covariance)


def flat(loss: Tensor, module: nn.Module) -> Tensor:
    grads = torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], retain_graph=True)
    return torch.cat([grad.flatten() for grad in grads])


def test_the_decoder_s_gradient_is_that_of_the_evidence() -> None:
    """Fisher's identity: ∇ log p(x) = E ∇ log p(x, z) over posterior draws, here the ends of 40 batches of chains."""
    likelihood, x = ppca(2, 5), torch.randn(3, 5, dtype=torch.float64)
    model = Autoencoder(likelihood, MCMC(ClosedForm(samples=100), HMC(0.3, 3), 4), monte_carlo_em)
    wanted = flat(likelihood.log_evidence(x).log_p.mean(), likelihood)
    found = torch.stack([flat(joint(model.encode(x)).mean(), likelihood) for _ in range(40)])
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - wanted).abs() < 5 * error + 1e-9).all()
    assert (wanted.abs() > 20 * error).any()


def test_each_network_has_its_own_objective() -> None:
    likelihood, guide, x = neural(), Guide(2, 5).double(), torch.randn(4, 5, dtype=torch.float64)
    encoder = Amortized(guide, 3)
    torch.manual_seed(1)
    encoding = MCMC(encoder, HMC(0.1, 3), 4)(likelihood, x)
    torch.manual_seed(1)
    start = encoder(likelihood, x)
    assert not torch.equal(start.z, encoding.z)
    loss = monte_carlo_em(encoding).sum()
    torch.testing.assert_close(loss, joint(encoding).sum())
    torch.testing.assert_close(flat(loss, guide), flat(elbo(start).sum(), guide))
    at_the_end = likelihood.log_joint(x, encoding.z.detach()).mean(0).sum()
    torch.testing.assert_close(flat(loss, likelihood), flat(at_the_end, likelihood))


@pytest.mark.parametrize("inner", [Zeros(), Argmax(ClosedForm())], ids=["no density", "discrete"])
def test_chains_start_at_draws_of_a_density(inner: Inference) -> None:
    model = LinearMixture(2, 2, (5,)) if isinstance(inner, Argmax) else LinearMixture(1, 2, (5,))
    with pytest.raises(TypeError, match=r"`MCMC` starts at draws of a density q\(z\|x\) over continuous codes"):
        MCMC(inner, HMC(0.1))(model, torch.randn(3, 5))


def test_senseless_chains_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 steps for one transition, got max_steps=1"):
        MCMC(ClosedForm(), HMC(0.1), 1)
    with pytest.raises(ValueError, match="leapfrog must be"):
        HMC(0.1, leapfrog=0)
    with pytest.raises(ValueError, match=r"Need adapt >= 0 and 0 < target < 1, got 5 and 1\.0"):
        HMC(0.1, adapt=5, target=1.0)
    model, x = LinearMixture(1, 2, (5,)), torch.randn(3, 5)
    for engine in (ClosedForm(), Ascent(max_steps=2, trace=True)):
        with pytest.raises(ValueError, match=r"`monte_carlo_em` needs the last states of chains.*Use `MCMC\("):
            monte_carlo_em(engine(model, x))
