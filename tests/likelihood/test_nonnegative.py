"""Non-negative factorisation: densities, updates and parts against scipy and scikit-learn."""

import math
import warnings
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.stats import poisson
from sklearn.decomposition import NMF
from sklearn.decomposition._nmf import _beta_divergence, _initialize_nmf
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from gae import Autoencoder, systems
from gae.data import Dataset
from gae.inference import Ascent, ClosedForm, Code, Constant, Detach, MeanField, MonotoneAscent, WarmStart
from gae.likelihood import Flat, Gaussian, LinearMixture, NonNegativeGaussian, NonNegativePoisson
from gae.likelihood.linear import nonnegative
from gae.likelihood.linear.nonnegative import least_squares_sweep
from gae.systems.factors import LIKELIHOODS
from gae.training import fit

train = partial(fit, progress=False)
LAWS = {"gaussian": (1.0, "frobenius", "cd"), "poisson": (16.0, "kullback-leibler", "mu")}
both = pytest.mark.parametrize("head", LAWS)


def counts(*shape: int) -> Tensor:
    return torch.poisson(torch.full(shape, 3.0)).double()


def encode(likelihood: NonNegativeGaussian | NonNegativePoisson, x: Tensor, steps: int) -> Tensor:
    start = Constant(torch.ones(likelihood.latent_shape))
    with torch.no_grad():
        return Ascent(start, MonotoneAscent(), steps, adjoint=Detach())(likelihood, x).z[0]


# The densities.


def test_the_gaussian_density() -> None:
    model, x, z = NonNegativeGaussian(3, (2, 4), 0.7).double(), torch.randn(5, 2, 4).double(), torch.rand(2, 5, 3)
    mean = (z.double() @ model.parts.flatten(1)).unflatten(-1, (2, 4))
    square = (x - mean).square().sum((-1, -2))
    wanted = -0.5 * square / 0.49 - 8 * math.log(0.7 * math.sqrt(2 * math.pi))
    assert torch.allclose(model.log_joint(x, z.double()), wanted)


def test_the_poisson_density_is_scipys() -> None:
    model, x, z = NonNegativePoisson(3, (6,)).double(), counts(5, 6), torch.rand(2, 5, 3).double()
    rate = (z @ model.parts).detach().numpy()
    wanted = poisson.logpmf(x.numpy(), rate).sum(-1)
    for found in (model.log_joint(x, z), model.bind(x)(z)):
        assert np.allclose(found.detach().numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("build", [NonNegativeGaussian, NonNegativePoisson])
def test_a_negative_code_has_no_density(build: type[NonNegativePoisson]) -> None:
    model, x = build(2, (3,)), torch.ones(3, 3)
    z = torch.tensor([[[1.0, 0.0], [1.0, -1e-6], [-1.0, -1.0]]])
    for found in (model.log_joint(x, z), model.bind(x)(z)):
        assert found[0].isfinite().tolist() == [True, False, False]
        assert found[0, 1] == found[0, 2] == -torch.inf
    assert Flat(2, nonnegative=True)().expand([4]).log_prob(z[0, 1]).tolist() == [-torch.inf] * 4


@both
def test_negative_data_are_refused(head: str) -> None:
    """As scikit-learn refuses them; the least-squares parts and codes of such data would be 0."""
    x = torch.rand(20, 3)
    x[4, 1] = -1e-3
    with pytest.raises(ValueError, match="Negative values in data"):
        NMF(2).fit(x.numpy())
    with pytest.raises(ValueError, match=r"got -0.001.* at index \(4, 1\)"):
        train(systems.build("nmf", (3,), latent=2, head=head), x if head == "gaussian" else x.ceil() - (x < 0) * 1e-3)


def test_a_rate_of_zero_allows_zero_only() -> None:
    model = NonNegativePoisson(2, (3,))
    z = torch.zeros(1, 2, 2, requires_grad=True)
    found = model.log_joint(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), z)
    assert found.tolist() == [[0.0, -torch.inf]]
    (grad,) = torch.autograd.grad(found[0, 0], z)
    assert torch.allclose(grad[0, 0], -model.parts.sum(1))


def test_parts_stay_non_negative_under_an_optimiser(digits: Dataset) -> None:
    torch.manual_seed(0)
    model = systems.build("nmf", digits.event_shape, latent=4, steps=10)
    history = train(model, digits, epochs=2, optimizer=partial(torch.optim.SGD, lr=1e-2))
    assert (model.likelihood.parts >= 0).all()
    assert history.rows[1].train_loss < history.rows[0].train_loss


def test_grey_values_are_no_counts(digits: Dataset) -> None:
    model = systems.build("nmf", digits.event_shape, head="poisson")
    with pytest.raises(ValueError, match=r"needs x in the counts .* Multiply grey values .*16 for the bundled digits"):
        model.encode(digits.test)
    model.encode(16 * digits.test)


def test_bad_sizes_and_names() -> None:
    with pytest.raises(ValueError, match=r"Need latent >= 1 .* got 0 and \(3,\)"):
        NonNegativeGaussian(0, (3,))
    with pytest.raises(ValueError, match=r"at least one dimension, got 2 and \(\)"):
        NonNegativePoisson(2, ())
    with pytest.raises(ValueError, match=r"Unknown head 'laplace'\. Valid heads: gaussian, poisson"):
        systems.build("nmf", (4,), head="laplace")


# Codes.


@pytest.mark.usefixtures("unchecked_types")
def test_gaussian_codes_are_scipys() -> None:
    model, x = NonNegativeGaussian(6, (10,), 0.3).double(), torch.randn(20, 10).double() + 1
    parts = model.parts.detach().numpy()
    wanted = np.stack([nnls(parts.T, row)[0] for row in x.numpy()])
    assert np.allclose(encode(model, x, 1000).numpy(), wanted, atol=1e-7)
    assert 0.1 < (wanted == 0).mean() < 0.9


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
def test_codes_of_the_system_at_any_scale(scale: float) -> None:
    """In nats, data much smaller than the noise scale of 1 leave nothing to gain: a tolerance of nats would stop."""
    model, x = systems.nmf((10,), latent=4).double(), scale * (torch.randn(20, 10).double() + 1).relu()
    weights = model.likelihood.decoder.weights  # type: ignore[union-attr]
    weights.data *= scale
    wanted = np.stack([nnls(weights.detach().abs().T.numpy(), row)[0] for row in x.numpy()])
    assert np.allclose(model.encode(x).point.detach().numpy(), wanted, atol=1e-4)


@pytest.mark.usefixtures("unchecked_types")
def test_poisson_codes_are_optimal() -> None:
    """A certificate from concavity: no code gains more than Σ_d x_d · max_k ∇_k / Σ_d W_kd - ∇ · z, in nats.

    For ∇ · (z* - z) bounds the gain, and z* puts out as many counts as there are.
    Half of the data have one feature and codes of one part, so that at least three eighths of all codes are 0.
    """
    model, x = NonNegativePoisson(4, (10,)).double(), counts(20, 10)
    x[:10] = 5 * torch.eye(10)
    z = encode(model, x, 100).requires_grad_()
    (grad,) = torch.autograd.grad(model.log_joint(x, z.unsqueeze(0)).sum(), z)
    gain = x.sum(1) * (grad / model.parts.sum(1)).amax(1).clamp_min(0) - (z * grad).sum(1)
    assert gain.max() < 0.05 and gain.median() < 1e-9
    assert 0.1 < (z < 1e-6).double().mean() < 0.9


@pytest.mark.parametrize("build", [NonNegativeGaussian, NonNegativePoisson])
def test_an_update_never_lowers_the_density(build: type[NonNegativePoisson]) -> None:
    model, x = build(5, (8,)).double(), counts(30, 8)
    x[0] = 0
    z = torch.rand(2, 30, 5).double()
    for _ in range(20):
        moved = model.update_codes(x, z)
        assert (moved >= 0).all()
        assert (model.log_joint(x, moved) >= model.log_joint(x, z) - 1e-9).all()
        z = moved


def test_codes_of_counts_do_not_depend_on_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, z = NonNegativePoisson(4, (6,)).double(), counts(9, 6), torch.rand(2, 9, 4).double()
    whole = model.update_codes(x, z, sweeps=3)
    monkeypatch.setattr(nonnegative, "HESSIANS", 4 * 4**2)
    assert torch.allclose(model.update_codes(x, z, sweeps=3), whole)


def test_codes_of_counts_by_blocks_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks take more updates to the same optimum, and none lowers the density."""
    model, x, z = NonNegativePoisson(5, (8,)).double(), counts(20, 8), torch.ones(1, 20, 5).double()
    best = model.log_joint(x, model.update_codes(x, z, sweeps=200))
    monkeypatch.setattr(nonnegative, "NEWTON_PARTS", 2)
    for _ in range(200):
        z, before = model.update_codes(x, z), model.log_joint(x, z)
        assert (model.log_joint(x, z) >= before - 1e-9).all()
    assert torch.allclose(model.log_joint(x, z), best, atol=1e-4)


@pytest.mark.parametrize("at_once", [2, 32])
def test_a_newton_step_never_lowers_the_density(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From codes far too large, the second-order expansion has its maximum at 0, where counts have no density."""
    monkeypatch.setattr(nonnegative, "NEWTON_PARTS", at_once)
    model, x, z = NonNegativePoisson(6, (8,)).double(), counts(200, 8), torch.randn(1, 200, 6).double().mul(3).exp()
    moved = nonnegative._newton(x, model.parts.detach(), z)
    rise = model.log_joint(x, moved) - model.log_joint(x, z)
    assert (rise >= -1e-9 * model.log_joint(x, z).abs()).all() and (rise > 1).any()


@both
def test_small_codes_recover(head: str) -> None:
    """A multiplicative update alone multiplies them by at most the ratio of data and rates: 1e-6 takes many steps."""
    model = LIKELIHOODS[head](2, (4,)).double()
    model.decoder.weights.data = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]]).double()
    x, start = torch.tensor([[2.0, 4.0, 6.0, 3.0]]).double(), torch.tensor([[[2.0, 1e-6]]]).double()
    z = model.update_codes(x, start, sweeps=6)
    assert torch.allclose(z, torch.tensor([2.0, 3.0]).double(), rtol=1e-4)


def test_a_part_of_zero_changes_no_code() -> None:
    z = least_squares_sweep(torch.diag(torch.tensor([2.0, 0.0])), torch.tensor([4.0, 0.0]), torch.ones(2))
    assert z.tolist() == [2.0, 1.0]
    model = NonNegativePoisson(2, (3,))
    model.decoder.weights.data[1] = 0
    assert (model.update_codes(torch.ones(4, 3), torch.ones(1, 4, 2))[..., 1] == 1).all()


def test_monotone_ascent_refuses_what_it_cannot_do() -> None:
    step = MonotoneAscent()
    with pytest.raises(TypeError, match=r"needs a likelihood with an update rule, which Gaussian does not have"):
        Ascent(step=step)(Gaussian(nn.Linear(2, 3), 2), torch.zeros(1, 3))
    with pytest.raises(TypeError, match=r"moves codes, got `MeanField`"):
        Ascent(Constant(torch.ones(2)), step, family=MeanField())(NonNegativeGaussian(2, (3,)), torch.zeros(1, 3))


# Parts.


@pytest.mark.parametrize("latent", [1, 7])
def test_parts_start_where_scikit_learns_do(digits: Dataset, latent: int) -> None:
    x = digits.train.double()
    model = NonNegativeGaussian(latent, digits.event_shape).double()
    model.initialize(x, 0)
    _, wanted = _initialize_nmf(x.flatten(1).numpy(), latent, init="nndsvda", random_state=0)
    assert np.allclose(model.parts.detach().flatten(1).numpy(), wanted, atol=1e-3)
    before = model.parts.detach().clone()
    model.initialize(x[:10], 1)
    assert torch.equal(model.parts, before)


def test_more_parts_than_data_start_at_random() -> None:
    models = [NonNegativeGaussian(5, (3,)) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        model.initialize(torch.rand(4, 3), seed=seed) if seed else model.initialize(torch.ones(4, 3), seed=seed)
    parts = [model.parts for model in models]
    assert torch.equal(parts[0], parts[1]) and not torch.equal(parts[0], parts[2]) and (parts[0] > 0).all()


def test_gaussian_parts_are_scipys_least_squares() -> None:
    model, x = NonNegativeGaussian(3, (7,)).double(), torch.rand(30, 7).double() - 0.2
    code = Ascent(Constant(torch.ones(3)), MonotoneAscent(), 2).infer(model, x)
    moments = model.statistics(x[:9], Code(code.z[:, :9])) + model.statistics(x[9:], Code(code.z[:, 9:]))
    changes = [model.maximize(moments) for _ in range(40)]
    wanted = np.stack([nnls(code.z[0].detach().numpy(), column)[0] for column in x.T.numpy()], 1)
    assert np.allclose(model.parts.detach().numpy(), wanted, atol=1e-4)
    assert changes[0] > 1e-2 and changes[-1] < 1e-4


def test_the_poisson_m_step_never_lowers_the_density() -> None:
    model, x = NonNegativePoisson(3, (7,)).double(), counts(30, 7)
    x[:, 2] = 0  # parts there go to their floor
    z = torch.rand(1, 30, 3).double()
    for _ in range(200):
        before = model.log_joint(x, z).sum()
        model.maximize(model.statistics(x, Code(z)))
        assert model.log_joint(x, z).sum() >= before - 1e-9
    assert 0 < model.parts[:, 2].max() < 1e-6 and model.parts.min() > 0
    assert torch.allclose(model.decoder(z[0]).sum(0), x.sum(0), atol=1e-3)  # as at any stationary point


def test_overrelaxed_factors_never_lower_the_bound() -> None:
    """The bound's own terms, c log(w'/w) - w' own in units of c, at small and large factors."""
    factor = torch.logspace(-8, 8, 4001, dtype=torch.float64)
    bold = nonnegative._overrelaxed(factor.unsqueeze(0))[0]
    rise = bold.log() * factor - bold - (0 - 1)  # c = factor · own · w
    assert (rise >= -1e-9 * factor.clamp_min(1)).all()
    assert (bold != factor).double().mean() > 0.4 and (bold[factor > 2] == factor[factor > 2]).all()


@both
def test_more_epochs_go_on_from_the_model(head: str, digits: Dataset) -> None:
    """A second fit keeps what the first one learned, though codes are inferred anew in its first epoch."""
    x = LAWS[head][0] * digits.train[:100]
    model = systems.build("nmf", digits.event_shape, latent=4, head=head)
    losses = [row.train_loss for _ in range(3) for row in train(model, x, epochs=4).rows]
    assert max(b - a for a, b in pairwise(losses)) < 0.02


def test_a_warm_start_needs_an_update_rule() -> None:
    engine = WarmStart(ClosedForm())
    with pytest.raises(
        TypeError, match=r"update rule, which LinearMixture does not have\. Use `ClosedForm` without it"
    ):
        train(Autoencoder(LinearMixture(2, 0, (3,)), engine), torch.randn(20, 3), epochs=3)
    with pytest.raises(ValueError, match="sweeps must be at least 1, got 0"):
        WarmStart(ClosedForm(), sweeps=0)


@pytest.mark.slow
@both
@pytest.mark.usefixtures("unchecked_types")
def test_nmf_is_as_good_as_scikit_learns(digits: Dataset, head: str) -> None:
    """Objectives at most 1.01 of 2,000 steps' at equal rank and start; held-out codes at most 1.01 of theirs."""
    factor, loss, solver = LAWS[head]
    x, held_out = factor * digits.train[:120], factor * digits.test[:50]
    torch.manual_seed(0)
    model = systems.build("nmf", digits.event_shape, latent=6, head=head)
    history = train(model, x)
    losses = [row.train_loss for row in history.rows]
    assert max(b - a for a, b in pairwise(losses)) < 0.02  # nats; codes are solved to a tolerance
    with torch.no_grad():
        codes, new = (model.encode(part).z[0].double().numpy() for part in (x, held_out))
    parts = model.likelihood.parts.detach().flatten(1).double().numpy()
    assert min(codes.min(), new.min(), parts.min()) >= 0
    data, test = (part.flatten(1).double().numpy() for part in (x, held_out))
    oracle = NMF(6, init="nndsvda", solver=solver, beta_loss=loss, random_state=0, tol=1e-7, max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = oracle.fit_transform(data)
    wanted = _beta_divergence(data, theirs, oracle.components_, loss)
    assert _beta_divergence(data, codes, parts, loss) <= 1.01 * wanted
    oracle.components_ = parts
    wanted = _beta_divergence(test, oracle.transform(test), parts, loss)
    assert _beta_divergence(test, new, parts, loss) <= 1.01 * wanted


def test_a_system_of_counts_draws_counts() -> None:
    model = NonNegativePoisson(2, (3,))
    drawn = model(torch.rand(5, 2)).sample()
    model.check(drawn)
    assert Autoencoder(model, Ascent(Constant(torch.ones(2)), MonotoneAscent(), 3)).reconstruct(drawn).shape == (5, 3)
