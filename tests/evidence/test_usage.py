"""Active units and KL per dimension, against closed forms and SciPy's quadrature; the warning of a collapsed code."""

import math
import warnings

import numpy as np
import pytest
import torch
from pyro.distributions.transforms import AffineTransform
from scipy import integrate, stats
from torch import Tensor, nn
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, TransformedDistribution

from gae import Autoencoder, fit
from gae.analysis.matrix import code_use, drawn_use
from gae.evidence.usage import code_usage, kl_per_dimension
from gae.inference import Amortized, Ascent, ClosedForm
from gae.likelihood import Flat, Gaussian, LaplacePrior, LinearMixture, StandardNormal
from gae.objective import elbo, joint
from gae.systems.parts import NormalEncoder
from gae.training.collapse import CollapseWarning


class Wide(nn.Module):
    """The prior N(0, 3² I) in two dimensions."""

    def forward(self) -> Independent:
        return Independent(Normal(torch.zeros(2).double(), 3.0), 1)


def normals(n: int = 40) -> tuple[Tensor, Tensor]:
    loc = torch.randn(n, 2).double() * torch.tensor([2.0, 0.05])
    return loc, torch.rand(n, 2).double() + 0.2


def test_active_units_in_units_of_the_prior() -> None:
    """Burda's variance of posterior means by NumPy, over batches, under a prior three times as wide."""
    loc, scale = normals()
    laws = [Independent(Normal(a, b), 1) for a, b in zip(loc.split(15), scale.split(15), strict=True)]
    usage = code_usage(laws, Wide()())
    assert np.allclose(usage.variance, np.var(loc.numpy(), axis=0, ddof=1) / 9, rtol=1e-12)
    assert usage.active.tolist() == [True, False] and not usage.collapsed
    assert usage.summary().startswith("1 of 2 units active, KL")
    with pytest.raises(ValueError, match="at least two"):
        code_usage([Independent(Normal(loc[:1], scale[:1]), 1)], Wide()())


def test_kl_of_each_dimension_by_quadrature() -> None:
    loc, scale = normals(3)
    found = kl_per_dimension(Independent(Normal(loc, scale), 1), Wide()())

    def integrand(z: float, mean: float, deviation: float) -> float:
        own = stats.norm(mean, deviation)
        return float(own.pdf(z) * (own.logpdf(z) - stats.norm(0, 3).logpdf(z)))

    for i in range(3):
        for d in range(2):
            arguments = (float(loc[i, d]), float(scale[i, d]))
            reach = arguments[0] - 12 * arguments[1], arguments[0] + 12 * arguments[1]
            assert found[i, d].item() == pytest.approx(integrate.quad(integrand, *reach, args=arguments)[0], abs=1e-8)


def test_kl_of_a_full_covariance_is_that_of_its_marginals() -> None:
    """They add up to less than the whole, by the total correlation: ½ log(1/(1 - r²)) in two dimensions."""
    r = 0.8
    q = MultivariateNormal(torch.zeros(1, 2).double(), torch.tensor([[1.0, r], [r, 1.0]]).double())
    prior = StandardNormal(2).double()()
    assert torch.allclose(kl_per_dimension(q, prior), torch.zeros(1, 2).double())
    whole = torch.distributions.kl_divergence(q, MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()))
    assert whole.item() == pytest.approx(-0.5 * math.log(1 - r**2))
    assert code_use(q, prior)["kl"] == pytest.approx(whole.item())


def test_the_kl_of_a_code_is_that_of_all_its_elements() -> None:
    tril = torch.randn(5, 3, 3).double().tril(-1) + (0.5 + 2 * torch.rand(5, 3).double()).diag_embed()
    q = MultivariateNormal(torch.randn(5, 3).double(), scale_tril=tril)
    normal = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    use = code_use(q, StandardNormal(3).double()())
    assert use["kl"] == pytest.approx(torch.distributions.kl_divergence(q, normal).mean().item())
    assert sum(use["kl_per_unit"]) < use["kl"] - 0.01
    assert drawn_use([q], StandardNormal(3).double()())["kl"] == pytest.approx(use["kl"], rel=0.3)


def test_kl_without_a_closed_form_is_refused() -> None:
    flow = TransformedDistribution(Normal(torch.zeros(3, 2), 1.0), [AffineTransform(0.0, 2.0)])
    with pytest.raises(TypeError, match="no closed form"):
        kl_per_dimension(Independent(flow, 1), StandardNormal(2)())
    laplace = kl_per_dimension(Independent(Laplace(torch.zeros(3, 2), 1.0), 1), LaplacePrior(2)())
    assert torch.equal(laplace, torch.zeros(3, 2))


def test_a_mean_without_a_closed_form_is_estimated_without_bias() -> None:
    """Draws with a spread far above that of their means: one half's variance would count the noise as activity."""
    n, spread = 4000, 1.0
    loc = torch.randn(n, 1).double() * 0.05
    flow = TransformedDistribution(Normal(loc, spread), [AffineTransform(0.0, 1.0)])
    usage = code_usage([Independent(flow, 1)], StandardNormal(1).double()())
    noise = spread**2 / 32
    assert usage.kl is None
    assert abs(usage.variance.item() - 0.05**2) < 5 * (0.05**2 + noise) / math.sqrt(n)
    assert not usage.active.item() and noise > 0.01


@pytest.mark.parametrize("n", [4, 12, 100])
def test_few_observations_do_not_hide_a_collapsed_code(n: int) -> None:
    """The prior itself as q(z|x), without a closed-form mean: by noise alone, no unit may seem active."""
    normal = Independent(Normal(torch.zeros(n, 8).double(), 1.0), 1)
    q = TransformedDistribution(normal, [AffineTransform(0.0, 1.0, event_dim=1)])
    assert all(code_usage([q], StandardNormal(8)()).collapsed for _ in range(20))


def encoder(data: Tensor, deaf: bool) -> Amortized:
    """A linear encoder, or one that cannot see x."""
    network = nn.Linear(data.shape[1], 4)
    if deaf:
        network.weight.data.zero_()
        network.weight.requires_grad_(False)

    return Amortized(NormalEncoder(network))


@pytest.mark.parametrize(("deaf", "epochs", "told"), [(True, 200, True), (False, 200, False), (True, 3, False)])
def test_fit_warns_of_a_collapsed_code(deaf: bool, epochs: int, told: bool) -> None:
    """An encoder that cannot see x; one that can; and one that was hardly trained."""
    x = torch.randn(40, 1) @ torch.ones(1, 5) * 3
    model = Autoencoder(Gaussian(nn.Linear(2, 5), 2), encoder(x, deaf), elbo)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        state = torch.get_rng_state()
        history = fit(model, x, epochs=epochs, batch_size=40, optimizer=adam, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert [warning.category for warning in record] == [CollapseWarning] * told
    assert history.usage is not None and history.usage.collapsed == deaf
    assert ("0 of 2 units active" in history.summary()) == deaf
    if told:
        assert "model without a code" in str(record[0].message) and history.usage.kl is not None


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 0.02)


def test_models_whose_codes_have_no_use_to_measure() -> None:
    """Points without a density, a flat prior, a choice of component, and data without differences."""
    x = torch.randn(30, 5)
    likelihoods = [LinearMixture(2, 2, (5,)), LinearMixture(1, 2, (5,), flat_prior=True)]
    models = [Autoencoder(likelihood, ClosedForm(), joint) for likelihood in likelihoods]
    models += [Autoencoder(Gaussian(nn.Linear(2, 5), 2, prior=prior), Ascent(), joint) for prior in (Flat(2), None)]
    for model in models:
        assert fit(model, x, epochs=1, progress=False).usage is None
    same = Autoencoder(Gaussian(nn.Linear(2, 5), 2), encoder(x, False), elbo)
    assert fit(same, torch.ones(30, 5), epochs=1, progress=False).usage is None


def test_probabilistic_pca_counts_its_directions() -> None:
    """Three directions in the data, five in the code: the active units are found, those of pure noise are not."""
    torch.manual_seed(1)
    x = torch.randn(500, 3) @ torch.randn(3, 8) * 3 + 0.1 * torch.randn(500, 8)
    history = fit(Autoencoder(LinearMixture(1, 3, (8,), learn_scale=True), ClosedForm(), joint), x, progress=False)
    assert history.usage is not None and history.usage.active.all()
    noise = Autoencoder(LinearMixture(1, 2, (8,), learn_scale=True), ClosedForm(), joint)
    noise.likelihood.loadings.data.mul_(1e-3)
    with torch.no_grad():
        usage = code_usage([noise.inference.infer(noise.likelihood, x).q], noise.likelihood.prior)
    assert usage.collapsed
