"""The choice of an estimator of log p(x), against models whose evidence is known; Pareto k against a second version."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from gae import Autoencoder, log_evidence
from gae.evidence import Evidence, automatic, importance, laplace_approximation
from gae.evidence.annealed import BDMC
from gae.evidence.automatic import estimate
from gae.evidence.base import from_log_weights, pareto_shape
from gae.evidence.coverage import misses_mass
from gae.evidence.mixture import NormalMixture
from gae.inference import Ascent, GaussNewton
from gae.inference.laws import codes_from
from gae.likelihood import Codebook, Flat, Gaussian, LinearMixture


def psis_shape(log_weight: np.ndarray) -> float:
    """Appendix of Vehtari et al. (2024), written for one column of log weights, as arviz has it."""
    size = len(log_weight)
    ordered = np.sort(log_weight - log_weight.max())
    cutoff = ordered[-math.ceil(min(size / 5, 3 * math.sqrt(size))) - 1]
    tail = np.exp(ordered[ordered > cutoff]) - np.exp(cutoff)
    n, m = len(tail), 30 + int(len(tail) ** 0.5)
    b = 1 / tail[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * tail[int(n / 4 + 0.5) - 1])
    k = np.array([np.log1p(-each * tail).mean() for each in b])
    log_likelihood = n * (np.log(-b / k) - k - 1)
    chosen = (np.exp(log_likelihood - logsumexp(log_likelihood)) * b).sum()
    return float((n * np.log1p(-chosen * tail).mean() + 0.5 * 10) / (n + 10))


@pytest.mark.parametrize("size", [100, 101, 225, 226, 1000, 4999])
def test_pareto_k_is_that_of_psis(size: int) -> None:
    """Log-normal weights of widths 0.1 to 4; in the last column, some of the largest are equal."""
    log_weight = np.random.default_rng(1).normal(size=(size, 5)) * np.array([0.1, 0.5, 1.0, 4.0, 1.0])
    log_weight[:, 4] = log_weight[:, 4].round(1)
    wanted = [psis_shape(column) for column in log_weight.T]
    found = pareto_shape(torch.from_numpy(np.exp(log_weight - log_weight.max(0))))
    assert np.allclose(found, wanted, atol=1e-6, rtol=0)


def test_pareto_k_of_weights_without_a_tail() -> None:
    """Equal weights need none; four weights over nothing but zeros are the heaviest tail there is."""
    equal, few = torch.ones(200), torch.zeros(200)
    few[:4] = torch.tensor([1.0, 0.9, 0.8, 0.7])
    found = pareto_shape(torch.stack([equal, few], 1))
    assert found[0].isnan() and found[1] == math.inf
    assert from_log_weights(torch.stack([equal, few], 1).log(), 200).unreliable.tolist() == [False, True]
    assert pareto_shape(torch.rand(99, 2)).isnan().all()


D, SCALE = 4, 0.5


def linear(latent: int = 2) -> tuple[Gaussian, Tensor, np.ndarray]:
    """A neural head that happens to be linear, draws of it, and their log p(x) by SciPy."""
    layer = nn.Linear(latent, D).double()
    model = Gaussian(layer, latent, SCALE)
    with torch.no_grad():
        layer.weight.mul_(0.5)  # for posteriors that a broad normal covers well
        x, _ = model.sample_joint(5)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return model, x, multivariate_normal(bias, weight @ weight.T + SCALE**2 * np.eye(D)).logpdf(x.numpy())


def normals(scale: float, shift: float = 0.0) -> Distribution:
    return lambda x: Independent(Normal(torch.full((len(x), 2), shift).double(), scale), 1)  # type: ignore[return-value]


def test_the_codes_of_a_codebook_are_summed() -> None:
    """An equal mixture of normals about the nine decoded pairs of three vectors."""
    prior = Codebook(3, positions=2, width=1)
    decoder = nn.Sequential(nn.Flatten(), nn.Linear(2, D)).double()
    model = Gaussian(decoder, (2, 1), SCALE, prior=prior).double()
    x = torch.randn(4, D, dtype=torch.double)
    evidence = estimate(model, x, lambda batch: pytest.fail("no proposal is needed"))
    with torch.no_grad():
        vectors = prior.vectors[:, 0]
        means = decoder(torch.cartesian_prod(vectors, vectors)).numpy()
    parts = [multivariate_normal(mean, SCALE**2 * np.eye(D)).logpdf(x.numpy()) for mean in means]
    assert np.allclose(evidence.log_p, logsumexp(parts, axis=0) - math.log(9), atol=1e-9, rtol=0)
    assert set(evidence.method) == {"exact"}


def test_good_weights_are_kept() -> None:
    model, x, wanted = linear()
    found = estimate(model, x, normals(1.2), samples=2000)  # type: ignore[arg-type]
    assert found.method == ("importance",) * 5 and found.tight is not None and found.tight.all()
    assert (np.abs(found.log_p.numpy() - wanted) < 5 * found.standard_error.numpy()).all()
    assert all(reason.startswith("tight: Pareto k") and "Laplace" not in reason for reason in found.reason)
    assert found.evaluations >= 2 * 2000 and "lower bounds" not in found.summary() and "Pareto k" in found.summary()


def test_bad_weights_are_replaced_by_those_of_a_mode() -> None:
    """Proposals far from the posterior for the first two observations: only those are estimated anew."""
    model, x, wanted = linear()

    layer = dict(model.decoder.named_parameters())
    precision = torch.eye(2).double() + layer["weight"].mT @ layer["weight"] / SCALE**2

    def propose(batch: Tensor) -> Distribution:
        loc = (batch - layer["bias"]) @ layer["weight"] @ precision.inverse() / SCALE**2  # posterior means
        loc[:2] = 9.0
        return Independent(Normal(loc.detach(), 1.2), 1)

    torch.manual_seed(3)
    first = importance(model, x, propose(x), 1000)
    torch.manual_seed(3)
    found = estimate(model, x, propose, samples=1000)
    assert found.tight is not None and found.tight.all() and found.method == ("importance",) * 5
    assert ["Laplace" in reason for reason in found.reason] == [True, True, False, False, False]
    assert torch.equal(found.log_p[2:], first.log_p[2:])
    assert (np.abs(found.log_p.numpy() - wanted) < 5 * found.standard_error.numpy())[:2].all()
    _, checks = misses_mass(model, x, propose(x), first.log_p, 1000)  # from other starts
    assert abs(found.evaluations - (1000 + checks + 2 * 10_000 // 5)) < 100


class Square(nn.Module):
    """A decoder whose posterior has modes at both roots of x."""

    def forward(self, z: Tensor) -> Tensor:
        return z.square()


@pytest.mark.parametrize("centre", [9.0, 1.0, -1.0], ids=["away from both", "right", "left"])
def test_a_posterior_of_two_modes(centre: float) -> None:
    """Half of the mass is about either root; a proposal at none or one is replaced by one at both (quadrature).

    The weights of the posterior's own half are all alike, and do not show the other.
    """
    model, x = Gaussian(Square(), 1, 0.1).double(), torch.tensor([[1.0], [2.0]]).double()
    grid = np.linspace(-6, 6, 20001)
    log_joint = [-0.5 * grid**2 - 0.5 * ((v - grid**2) / 0.1) ** 2 - math.log(2 * math.pi * 0.1) for v in (1.0, 2.0)]
    wanted = logsumexp(log_joint, axis=1) + math.log(grid[1] - grid[0])
    torch.manual_seed(0)
    spread = 0.1 if centre == 9.0 else torch.tensor([[0.06], [0.04]]).double()  # the roots differ by 0.05 x
    q = Independent(Normal(centre * (x.sqrt() if centre < 9 else torch.ones_like(x)), spread), 1)
    if centre < 9:
        alone = importance(model, x, q, 500)
        assert alone.tight is not None and alone.tight.all()
        assert np.allclose(alone.log_p, wanted - math.log(2), atol=0.1)
    found = estimate(model, x, lambda _: q, samples=500)
    assert found.method == ("importance",) * 2 and found.tight is not None and found.tight.all()
    assert (np.abs(found.log_p.numpy() - wanted) < 5 * found.standard_error.numpy()).all()


class Shoulder(nn.Module):
    """A decoder that is steep below 0 and flat above."""

    def forward(self, z: Tensor) -> Tensor:
        return -(-z).relu()


def test_a_posterior_with_a_long_shoulder() -> None:
    """Mass beyond the proposal, without a mode of its own, is seen by draws of the prior (closed form)."""
    model, x = Gaussian(Shoulder(), 1, 0.1).double(), torch.tensor([[-0.1]]).double()
    grid = np.linspace(-8, 8, 40001)
    log_joint = norm.logpdf(grid) + norm.logpdf(-0.1, np.minimum(grid, 0), 0.1)
    wanted = logsumexp(log_joint) + math.log(grid[1] - grid[0])
    q = Independent(Normal(torch.tensor([[-0.1]]).double(), 0.1), 1)
    torch.manual_seed(0)
    first = importance(model, x, q, 500)
    assert misses_mass(model, x, q, first.log_p, 500)[0].all()
    found = estimate(model, x, lambda _: q, samples=500)
    assert found.tight is not None and found.tight.all()
    assert (np.abs(found.log_p.numpy() - wanted) < 5 * found.standard_error.numpy()).all()


class Twins(nn.Module):
    """A decoder of six elements, whose posterior is as sharp in five as to have no draw of the prior near it."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z[..., :1].square(), 10 * z[..., 1:]], -1)


def test_a_sharp_mode_is_seen_by_ascents() -> None:
    model, x = Gaussian(Twins(), 6, 0.1).double(), torch.eye(1, 6).double()
    grid = np.linspace(-6, 6, 20001)
    wanted = logsumexp(norm.logpdf(grid) + norm.logpdf(1.0, grid**2, 0.1)) + math.log(grid[1] - grid[0])
    wanted += 5 * norm.logpdf(0, 0, math.sqrt(100.01))
    q = Independent(Normal(x, torch.tensor([0.06] + 5 * [0.01]).double()), 1)
    torch.manual_seed(0)
    found = estimate(model, x, lambda _: q, samples=500)
    assert "elsewhere" not in found.reason[0] and found.tight is not None and found.tight.all()
    assert (np.abs(found.log_p.numpy() - wanted) < 5 * found.standard_error.numpy()).all()


def test_a_proposal_that_misses_nothing_keeps_its_numbers() -> None:
    """Of the posterior, and of a normal that is half as broad again."""
    model, x, _ = linear()
    for width in (1.0, 1.5):
        torch.manual_seed(0)
        normal = laplace_approximation(model, x, Ascent(step=GaussNewton(), max_steps=2)(model, x).point.detach())
        q = MultivariateNormal(normal.loc, scale_tril=width * normal.scale_tril)
        first = importance(model, x, q, 1000)
        state = torch.get_rng_state()
        missed, spent = misses_mass(model, x, q, first.log_p, 1000)
        assert not missed.any() and spent > 1000 and torch.equal(torch.get_rng_state(), state)
        assert not misses_mass(model, x, q.expand(torch.Size((2, 5))), first.log_p, 1000)[0].any()
        torch.manual_seed(0)
        found = estimate(model, x, lambda _, q=q: q, samples=1000)  # type: ignore[misc]
        assert torch.equal(found.log_p, first.log_p) and torch.equal(found.standard_error, first.standard_error)


class Image(nn.Module):
    """A linear decoder of codes (1, 2), which no dense Laplace approximation takes."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z.flatten(1))


def test_codes_of_a_codebook_are_summed_over() -> None:
    from gae import vq_vae

    model, x = vq_vae((D,), positions=2, vectors=3, width=1).double(), torch.randn(3, D).double()
    vectors = model.likelihood.prior.vectors[:, 0]
    codes = torch.cartesian_prod(vectors, vectors).view(9, 1, 2, 1)
    heights = model.likelihood(codes).log_prob(x).detach().numpy()
    found = log_evidence(model, x)
    assert found.method == ("exact",) * 3 and np.allclose(found.log_p, logsumexp(heights, 0) - math.log(9))


@pytest.mark.parametrize("agree", [True, False])
def test_annealing_is_the_last_resort(agree: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three failed rows are annealed; what is not tight says that it is a lower bound."""
    layer = nn.Linear(2, D).double()
    layer.weight.data *= 0.5
    model = Gaussian(Image(layer), (1, 2), SCALE)
    with torch.no_grad():
        x, _ = model.sample_joint(5)
    weight = layer.weight.detach().numpy()
    wanted = multivariate_normal(layer.bias.detach().numpy(), weight @ weight.T + SCALE**2 * np.eye(D)).logpdf(x)

    def propose(batch: Tensor) -> Distribution:
        loc = torch.zeros(len(batch), 1, 2).double()
        loc[2:] = 30.0
        return Independent(Normal(loc, 1.2), 2)

    monkeypatch.setattr(automatic, "TEMPERATURES", 40)
    monkeypatch.setattr(automatic, "GAP", 5.0 if agree else -1.0)
    found = estimate(model, x, propose, samples=4000, annealed=2)
    assert found.method == ("importance", "importance", "ais", "ais", "importance")
    assert found.tight is not None and found.tight.tolist() == [True, True, agree, agree, False]
    assert "reverse annealing on 16 draws" in found.reason[2] and "limited to 2" in found.reason[4]
    errors = np.abs(found.log_p.numpy() - wanted)[:4]
    assert (errors < 6 * found.standard_error.numpy()[:4] + 0.1).all()
    assert f"{1 if agree else 3} lower bounds only" in found.summary()


@pytest.mark.parametrize(
    ("gap", "spread", "wanted"),
    [(0.3, 0.2, [True, False]), (0.3, 1.2, [False, False]), (0.6, 0.1, [False, False]), (-0.2, 0.2, [True, False])],
    ids=["small", "uncertain", "large", "negative"],
)
def test_annealing_is_tight_if_the_gap_to_its_reverse_is_surely_small(
    gap: float, spread: float, wanted: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean plus two standard errors of 16 gaps, with a bound of 0.5 nats; weights that fail are never tight."""
    model, x, _ = linear()
    gaps = torch.tensor([-1.0, 1.0]).double().repeat(8)
    gaps = gap + spread * gaps / gaps.std()
    zeros = torch.zeros(16).double()
    bounds = BDMC(x, x, Evidence(zeros, zeros), Evidence(gaps, zeros))
    weights = torch.zeros(16, 2).double()
    weights[1:, 1] = -50.0  # one chain has all the weight
    monkeypatch.setattr(automatic, "sandwich", lambda *arguments: bounds)
    monkeypatch.setattr(automatic, "ais", lambda *arguments: from_log_weights(weights, 1))
    found = estimate(model, x[:2], normals(1.0), method="ais")  # type: ignore[arg-type]
    assert found.tight is not None and found.tight.tolist() == wanted
    assert f"gap {gap:.2g} ± {spread / 4:.2g} nats" in found.reason[0]


def test_methods_by_name() -> None:
    model, x, wanted = linear()
    autoencoder = Autoencoder(model, Ascent(max_steps=1))
    assert set(log_evidence(autoencoder, x, 200, method="importance").method) == {"importance"}
    with pytest.raises(TypeError, match="no closed form"):
        log_evidence(autoencoder, x, method="exact")
    with pytest.raises(ValueError, match="flat prior"):
        log_evidence(Autoencoder(Gaussian(nn.Linear(2, D).double(), 2, prior=Flat(2)), Ascent()), x)
    known = LinearMixture(2, 2, (D,)).double()
    evidence = log_evidence(Autoencoder(known, Ascent(max_steps=1)), x, batch_size=2)
    assert evidence.method == ("exact",) * 5 and evidence.reason == ("closed form",) * 5
    assert evidence.tight is not None and evidence.tight.all()
    found = log_evidence(autoencoder, x)
    assert (np.abs(found.log_p.numpy() - wanted) < 5 * found.standard_error.numpy() + 1e-3).all()


@pytest.mark.usefixtures("unchecked_types")
def test_an_unknown_method(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = linear()
    monkeypatch.setattr(automatic, "TEMPERATURES", 3)
    with pytest.raises(ValueError, match="'importance' or 'ais', got 'best'"):
        estimate(model, x, normals(1.0), method="best")  # type: ignore[arg-type]
    q = MultivariateNormal(torch.zeros(5, 2).double(), torch.eye(2).double())
    assert set(estimate(model, x, lambda _: q, method="ais").method) == {"ais"}


@pytest.mark.slow
def test_a_normal_posterior_of_many_elements_is_found_from_a_poor_proposal() -> None:
    """Proposals half as wide again in each of 40 elements would leave a dozen effective samples of 5000."""
    layer = nn.Linear(40, 50).double()
    with torch.no_grad():
        layer.weight.mul_(4)  # posteriors far narrower than the prior
    model = Gaussian(layer, 40, SCALE)
    x, _ = model.sample_joint(2)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    wanted = multivariate_normal(bias, weight @ weight.T + SCALE**2 * np.eye(50)).logpdf(x.numpy())
    broad = Independent(Normal(torch.zeros(2, 40, dtype=torch.float64), 1.0), 1)
    found = estimate(model, x, lambda _: broad, annealed=0)
    assert found.tight is not None and found.tight.all()
    assert np.all(np.abs(found.log_p.detach().numpy() - wanted) < 5 * found.standard_error.numpy() + 1e-6)


@pytest.mark.parametrize("draw", [codes_from, lambda q, n: q.sample((n,))], ids=["codes_from", "sample"])
def test_draws_of_a_mixture_of_normals(draw: Callable[[NormalMixture, int], Tensor]) -> None:
    """Far apart, the components of each row are told apart by their means."""
    n, logits = 20_000, torch.tensor([[0.2, -0.5, 1.0], [0.0, 0.7, -1.0]], dtype=torch.float64)
    loc = 100 * torch.arange(12, dtype=torch.float64).view(2, 3, 2)
    tril = torch.randn(2, 3, 2, 2, dtype=torch.float64).tril()
    q = NormalMixture.of(logits, loc, tril)
    z = draw(q, n)
    assert z.shape == (n, 2, 2)
    nearest = (z.unsqueeze(2) - loc).square().sum(-1).argmin(-1)
    for row, weights in enumerate(logits.softmax(-1)):
        for k, weight in enumerate(weights):
            mine = z[:, row][nearest[:, row] == k]
            assert abs(len(mine) / n - weight) < 5 * (weight * (1 - weight) / n).sqrt()
            covariance = tril[row, k] @ tril[row, k].mT
            assert ((mine.mean(0) - loc[row, k]).abs() < 5 * (covariance.diagonal() / len(mine)).sqrt()).all()
            product = covariance.diagonal().sqrt().outer(covariance.diagonal().sqrt())
            assert ((mine.T.cov() - covariance).abs() < 5 * product * (2 / len(mine)) ** 0.5).all()
