"""Gradient estimators of the bounds: the value and expected gradient of the plain one, with the promised variance."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from margins import within
from problems import difference, neural, posterior, ppca
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from gae import Autoencoder, fit, iwae, load, vae
from gae.inference import (
    Amortized,
    Ascent,
    ClosedForm,
    Code,
    Encoding,
    FullCovariance,
    GradientAscent,
    Inference,
    MeanField,
    Zeros,
)
from gae.likelihood import Likelihood, LinearMixture
from gae.objective import Objective, elbo
from gae.objective import iwae as iwae_bound

STL = partial(elbo, gradient="stl")
DREG = partial(iwae_bound, gradient="dreg")
PLAIN: dict[Objective, Objective] = {STL: elbo, DREG: iwae_bound}

both = pytest.mark.parametrize("bound", [STL, DREG], ids=["stl", "dreg"])


class Rows(nn.Module):
    """q(z|x) with parameters of its own for each observation, so that gradients of observations are independent."""

    def __init__(self, start: Tensor, law: Callable[[Tensor], Distribution]):
        super().__init__()
        self.values, self.law = nn.Parameter(start), law

    def forward(self, x: Tensor) -> Distribution:
        return self.law(self.values)


def normal(values: Tensor) -> Distribution:
    loc, log_scale = values.chunk(2, -1)
    return Independent(Normal(loc, log_scale.exp()), 1)


def full(values: Tensor) -> Distribution:
    loc, factor = values[:, :2], values[:, 2:].unflatten(1, (2, 2))
    return MultivariateNormal(loc, scale_tril=factor.tril(-1) + factor.diagonal(dim1=-2, dim2=-1).exp().diag_embed())


def squashed(values: Tensor) -> Distribution:
    """Normal draws in a box, with parameters in the base distribution and in a transform."""
    loc, log_scale, size = values.unflatten(1, (3, 2)).unbind(1)
    steps = [TanhTransform(), AffineTransform(0.0, 1 + size.exp())]
    return Independent(TransformedDistribution(Normal(loc, log_scale.exp()), steps), 1)


LAWS = [(normal, 4), (full, 6), (squashed, 6)]
every_law = pytest.mark.parametrize(("law", "width"), LAWS, ids=["normal", "full", "transformed"])


def fixed(values: Tensor, law: Callable[[Tensor], Distribution]) -> Distribution:
    return law(values.detach())


# The value, and the gradient by its definition.


@both
@every_law
def test_the_value_is_that_of_the_plain_bound(
    bound: Objective, law: Callable[[Tensor], Distribution], width: int
) -> None:
    model, x = neural(), torch.randn(7, 5).double()
    encoding = Amortized(Rows(0.3 * torch.randn(7, width).double(), law), 4)(model, x)
    assert torch.equal(bound(encoding), PLAIN[bound](encoding))
    with torch.no_grad():
        assert torch.equal(bound(encoding), PLAIN[bound](encoding))


@every_law
def test_stl_stops_the_gradient_of_the_parameters_of_q(law: Callable[[Tensor], Distribution], width: int) -> None:
    """Against the same law built from detached parameters, for z, decoder, and x."""
    model, x = neural(), torch.randn(7, 5).double().requires_grad_()
    guide = Rows(0.3 * torch.randn(7, width).double(), law)
    encoding = Amortized(guide, 4)(model, x)
    variables = [*guide.parameters(), *model.parameters(), x]
    wanted = encoding.log_joint - fixed(guide.values, law).log_prob(encoding.z)
    for found, other in zip(
        torch.autograd.grad(elbo(encoding, gradient="stl").sum(), variables, retain_graph=True),
        torch.autograd.grad(wanted.mean(0).sum(), variables),
        strict=True,
    ):
        torch.testing.assert_close(found, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_stl_with_a_weighted_kl(beta: float) -> None:
    model, x = neural(), torch.randn(7, 5).double()
    guide = Rows(0.3 * torch.randn(7, 4).double(), normal)
    encoding = Amortized(guide, 4)(model, x)
    log_ratio = fixed(guide.values, normal).log_prob(encoding.z) - model.prior.log_prob(encoding.z)
    wanted = (model(encoding.z).log_prob(x) - beta * log_ratio).mean(0)
    found = elbo(encoding, beta, gradient="stl")
    for one, other in zip(
        torch.autograd.grad(found.sum(), guide.parameters(), retain_graph=True),
        torch.autograd.grad(wanted.sum(), guide.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_dreg_by_the_formula_of_the_paper() -> None:
    """Tucker et al. (2019), eq. 8, with every derivative of a linear-Gaussian model and a normal q written out."""
    model, x = ppca(latent=2), torch.randn(3, 6).double()
    values = 0.3 * torch.randn(3, 4).double()
    guide = Rows(values, normal)
    encoding = Amortized(guide, 5)(model, x)
    z, loc, scale = encoding.z.detach(), values[:, :2], values[:, 2:].exp()
    loadings, variance = model.loadings[0].detach(), (2 * model.log_scale[0]).exp().detach()
    residual = x - model.means[0].detach() - z @ loadings
    slope = -z + residual @ loadings.mT / variance + (z - loc) / scale.square()  # ∂ log w_s / ∂z_s
    log_weight = Normal(0, 1).log_prob(z).sum(-1) + Normal(0, variance.sqrt()).log_prob(residual).sum(-1)
    log_weight = log_weight - Normal(loc, scale).log_prob(z).sum(-1)
    weight = log_weight.softmax(0).unsqueeze(-1)
    moved = torch.cat([torch.ones_like(z), z - loc], -1)  # ∂z_s by the mean, and by the log scale
    (found,) = torch.autograd.grad(DREG(encoding).sum(), guide.values, retain_graph=True)
    wanted = (weight.square() * torch.cat([slope, slope], -1) * moved).sum(0)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    decoder = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(DREG(encoding).sum(), decoder, retain_graph=True),
        torch.autograd.grad(iwae_bound(encoding).sum(), decoder),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@both
@pytest.mark.parametrize("family", [MeanField(), FullCovariance(samples=2)], ids=["mean-field", "full"])
def test_densities_found_by_ascent(bound: Objective, family: MeanField) -> None:
    """The parameters of q come from unrolled steps, and the gradient reaches the decoder both ways."""
    model, x = neural(), torch.randn(4, 5).double()
    encoding = Ascent(Zeros(), GradientAscent(0.01), 3, family=family)(model, x)
    assert encoding.q is not None
    frozen = (
        Independent(Normal(encoding.q.mean.detach(), encoding.q.stddev.detach()), 1)
        if type(family) is MeanField
        else MultivariateNormal(encoding.q.mean.detach(), scale_tril=encoding.q.scale_tril.detach())
    )
    wanted = (encoding.log_joint - frozen.log_prob(encoding.z)).mean(0)  # of one draw, both estimators are this one
    for found, other in zip(
        torch.autograd.grad(bound(encoding).sum(), model.parameters(), retain_graph=True),
        torch.autograd.grad(wanted.sum(), model.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-9)


@both
def test_gradients_under_torch_func(bound: Objective) -> None:
    model, x = neural(), torch.randn(4, 5).double()
    trained = Autoencoder(model, Amortized(Rows(0.3 * torch.randn(4, 4).double(), normal), 3), bound)
    names = dict(trained.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(2)
        return torch.func.functional_call(trained, values, (x,))

    wanted = torch.autograd.grad(loss(names), list(names.values()))
    found = torch.func.grad(loss)({name: value.detach() for name, value in names.items()})
    for name, value in zip(names, wanted, strict=True):
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


# The expected gradient.


NODES, WEIGHTS = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(48))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class Nodes(Inference):
    """q(z|x) = N(loc, scale²) in one dimension at given noise (S, B): a quadrature rule in place of draws."""

    def __init__(self, noise: Tensor):
        super().__init__()
        self.noise = noise.unsqueeze(-1)
        self.values = nn.Parameter(torch.tensor([0.4, -0.3]).double())

    def infer(self, likelihood: Likelihood, x: Tensor, k: Tensor | None = None) -> Code:
        q = normal(self.values.expand(len(x), 2))
        z = self.values[0] + self.values[1].exp() * self.noise
        return Code(z, log_q=q.log_prob(z), q=q)


@both
def test_the_expected_gradient_by_quadrature(bound: Objective) -> None:
    """In one dimension, of two draws: the mean gradient is the derivative of the mean value, of every parameter."""
    model, value = neural(latent=1, scale=1.5), torch.randn(1, 5).double()
    noise = torch.cartesian_prod(NODES, NODES).mT.contiguous()
    weight = torch.outer(WEIGHTS, WEIGHTS).flatten()
    x = value.expand(len(weight), 5)
    engine = Nodes(noise)
    parameters = [engine.values, *model.parameters()]
    found = torch.autograd.grad(weight @ bound(engine(model, x)), parameters)
    for parameter, slope in zip(parameters, found, strict=True):
        move = torch.randn_like(parameter)
        wanted = difference(lambda: weight @ PLAIN[bound](engine(model, x)), [parameter], [move], 1e-4)
        assert float((slope * move).sum()) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@both
@pytest.mark.parametrize(("law", "width"), LAWS[:2], ids=["normal", "full"])
def test_the_expected_gradient_by_draws(bound: Objective, law: Callable[[Tensor], Distribution], width: int) -> None:
    """Paired differences from the plain estimator: mean 0, and not 0 themselves.

    Those of the transformed law have a kurtosis of 10,000, for which no mean of draws is normal; formulas check it.
    """
    model, x = neural(), torch.randn(1, 5).double().expand(20_000, 5)
    guide = Rows((0.3 * torch.randn(1, width).double()).repeat(len(x), 1), law)
    encoding = Amortized(guide, 2)(model, x)
    (plain,) = torch.autograd.grad(PLAIN[bound](encoding).sum(), guide.values, retain_graph=True)
    (other,) = torch.autograd.grad(bound(encoding).sum(), guide.values)
    gap = other - plain
    moved = gap.std(0) > 1e-12  # entries of a factor above the diagonal do nothing
    within("mean in standard errors", (gap.mean(0) / gap.std(0))[moved].abs().max() * len(x) ** 0.5, below=5)
    assert moved.sum() >= 4


# Variance.


def test_stl_has_no_variance_at_the_exact_posterior() -> None:
    model, x = ppca(latent=2), torch.randn(4, 6).double()
    loc, covariance = (part.detach() for part in posterior(model, x))
    factor = torch.linalg.cholesky(covariance)
    packed = factor.tril(-1) + factor.diagonal().log().diag_embed()
    guide = Rows(torch.cat([loc, packed.flatten().expand(4, 4)], 1), full)
    encoding = Amortized(guide)(model, x)
    (exact,) = torch.autograd.grad(STL(encoding).sum(), guide.values, retain_graph=True)
    (plain,) = torch.autograd.grad(elbo(encoding).sum(), guide.values, retain_graph=True)
    assert exact.abs().max() < 1e-9
    assert plain.abs().max() > 1e-3
    (exact,) = torch.autograd.grad(DREG(Amortized(guide, 3)(model, x)).sum(), guide.values)
    assert exact.abs().max() < 1e-9


def signal_to_noise(bound: Objective, samples: int) -> float:
    """|mean| / standard deviation of the gradient in the mean of q, which is wider than the posterior and beside it."""
    torch.manual_seed(0)
    model, x = ppca(latent=1), torch.randn(1, 6).double().expand(4000, 6)
    loc, covariance = (part.detach() for part in posterior(model, x))
    guide = Rows(torch.cat([loc + covariance.sqrt(), (1.5 * covariance.sqrt()).log().expand(len(x), 1)], 1), normal)
    (grad,) = torch.autograd.grad(bound(Amortized(guide, samples)(model, x)).sum(), guide.values)
    return float(grad[:, 0].mean().abs() / grad[:, 0].std())


def test_signal_to_noise_of_more_draws() -> None:
    """It falls for IWAE as 1 / √S, and grows for DReG as √S (Rainforth et al. 2018; Tucker et al. 2019)."""
    few, many = (4, 64)
    within("IWAE", signal_to_noise(iwae_bound, many) / signal_to_noise(iwae_bound, few), below=0.6)
    within("DReG", signal_to_noise(DREG, many) / signal_to_noise(DREG, few), above=2)


# Refusals and systems.


def test_refusals() -> None:
    model, x = neural(), torch.randn(4, 5).double()
    encoding = Amortized(Rows(torch.zeros(4, 4).double(), normal), 3)(model, x)
    with pytest.raises(ValueError, match=r"Unknown gradient 'dreg'. Valid gradients: total, stl"):
        elbo(encoding, gradient="dreg")
    with pytest.raises(ValueError, match=r"Unknown gradient 'stl'. Valid gradients: total, dreg"):
        iwae_bound(encoding, gradient="stl")
    with pytest.raises(ValueError, match=r"needs draws of log q.*Use `analytic=False`"):
        elbo(encoding, analytic=True, gradient="stl")
    with pytest.raises(ValueError, match="not computed from its z"):
        DREG(encoding.rows(0, 2))
    mixture = ClosedForm()(LinearMixture(3, 2, (5,)).double(), x)
    for bound in (STL, DREG):
        with pytest.raises(ValueError, match=r"continuous codes .*`ClosedForm`.*Use gradient=.total"):
            bound(mixture)


def test_draws_without_a_gradient_leave_that_of_the_decoder() -> None:
    model, x = neural(), torch.randn(4, 5).double()
    z = torch.randn(3, 4, 2).double()
    q = Independent(Normal(torch.zeros(4, 2).double(), 1.0), 1)
    encoding = Encoding(z, None, model.log_joint(x, z), q.log_prob(z), q, model.prior, "Handmade")
    for bound in (STL, DREG):
        for one, other in zip(
            torch.autograd.grad(bound(encoding).sum(), model.parameters(), retain_graph=True),
            torch.autograd.grad(PLAIN[bound](encoding).sum(), model.parameters(), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "build",
    [partial(vae, analytic=False, gradient="stl"), partial(iwae, samples=3, gradient="dreg")],
    ids=["vae", "iwae"],
)
def test_systems_train_and_load(build: Callable[..., Autoencoder], tmp_path: Path) -> None:
    model, x = build((5,), latent=2, hidden=(4,)), torch.randn(20, 5)
    fit(model, x, epochs=2, out=tmp_path / "run", progress=False)
    again = load(tmp_path / "run")
    assert again.objective.keywords["gradient"] in ("stl", "dreg")  # type: ignore[attr-defined]
    torch.manual_seed(0)
    wanted = model.eval()(x)
    torch.manual_seed(0)
    assert torch.equal(again(x), wanted)
