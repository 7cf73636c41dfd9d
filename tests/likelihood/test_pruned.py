"""Lloyd's passes that skip bounded distances, exact sums, and one-step learning of a single component."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from gae.likelihood import LinearMixture
from gae.likelihood.geometry import principal_directions
from gae.likelihood.linear import pruned
from gae.likelihood.linear.exact_sums import ExactSums
from gae.likelihood.linear.moments import _gram as gram
from gae.likelihood.linear.moments import gram_by_halves, one_chart_moments
from gae.systems import pca, ppca
from gae.training import fit


def clouds(n: int, dim: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(n, dim) + 2 * torch.randn(6, dim)[torch.randint(6, (n,))]).to(dtype)


def swept(x: Tensor, start: Tensor, passes: int) -> tuple[LinearMixture, Tensor]:
    """Means after some passes, and the sum of log_joint at the last one."""
    model = LinearMixture(len(start), 0, x.shape[1:], means=start).to(x)
    model.means.data.copy_(start)  # which were rounded to float32
    sweep, total = model.sweep_of_points(x), x.new_zeros(())
    assert sweep is not None
    for _ in range(passes):
        total, moments = sweep()
        model.maximize(moments)
    return model, total


@pytest.mark.parametrize("passes", [1, 4, 12])
def test_means_are_those_of_scikit_learns_lloyd(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.cluster import KMeans

    x = clouds(900, 12, torch.float64)
    monkeypatch.setattr(pruned, "MOST", 300)
    monkeypatch.setattr(pruned, "LEAST", 200)
    model, total = swept(x, x[:9].clone(), passes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fit that has not converged
        oracle = KMeans(9, init=x[:9].numpy(), n_init=1, algorithm="lloyd", max_iter=passes, tol=0).fit(x.numpy())
        before = KMeans(9, init=x[:9].numpy(), n_init=1, max_iter=max(1, passes - 1), tol=0).fit(x.numpy())
    assert oracle.n_iter_ == passes or (oracle.labels_ == before.labels_).all()  # nothing changes any more
    np.testing.assert_allclose(model.means.detach(), oracle.cluster_centers_, atol=1e-10)
    if passes > 1:
        constant = np.log(9) + 6 * np.log(2 * np.pi)
        square = ((x.numpy()[:, None] - before.cluster_centers_) ** 2).sum(2).min(1)
        assert total.item() == pytest.approx(-(0.5 * square + constant).sum(), rel=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_every_pass_is_that_of_a_search_among_all_means(ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assignments and moments depend on the data and the means alone, bit by bit, with exact ties too."""
    pairs, real = [], pruned._Pass.products
    monkeypatch.setattr(pruned._Pass, "products", lambda *given: pairs.append(len(given[2])) or real(*given))
    x = clouds(700, 6, torch.float32)
    x = (2 * x).round() if ties else x
    model = LinearMixture(6, 0, (6,), means=x[:6].clone())
    lloyd = pruned.PrunedLloyd(x, 6)
    for _ in range(8):
        points = model._points()
        moments, fresh = lloyd(points), pruned.PrunedLloyd(x, 6)(points)
        assert torch.equal(lloyd.owner, model.nearest(x)[0])
        assert all(map(torch.equal, vars(moments).values(), vars(fresh).values()))
        model.maximize(moments)
        if ties:
            model.means.data = (4 * model.means.data).round() / 4
    assert pairs and sum(pairs) < 0.25 * 8 * 6 * len(x)


def test_empty_means_move_as_without_pruning() -> None:
    x = clouds(300, 5, torch.float64)
    far = torch.cat([x[:3], x[:2] + 50])
    fast, slow = (LinearMixture(5, 0, (5,), means=far).double() for _ in range(2))
    sweep = fast.sweep_of_points(x)
    assert sweep is not None
    fast.maximize(sweep()[1])
    k, square = slow._points(), slow.nearest(x)[0]
    slow.maximize(slow._hard_moments(x, square, k.square(x, square)))
    assert bool((fast.means.abs() < 20).all())
    torch.testing.assert_close(fast.means, slow.means, atol=1e-9, rtol=0)


def test_no_pruning_where_bounds_do_not_pay() -> None:
    x = torch.randn(50, 4)
    assert LinearMixture(3, 0, (4,), means=x[:3]).sweep_of_points(x) is not None
    assert LinearMixture(3, 0, (4,), means=x[:3] + 99).sweep_of_points(x + 99) is None
    assert LinearMixture(5, 0, (4,), means=x[:5]).sweep_of_points(x) is None
    assert LinearMixture(3, 1, (4,), means=x[:3]).sweep_of_points(x) is None
    assert LinearMixture(3, 0, (4,), means=x[:3], learn_scale=True).sweep_of_points(x) is None


def test_sums_do_not_depend_on_the_order() -> None:
    x, k = 1e3 * torch.randn(5000, 3) ** 5, torch.randint(4, (5000,))
    order = torch.randperm(5000)
    sums = [ExactSums(4, float(x.abs().max()), len(x), 3) for _ in range(2)]
    sums[0].add(x, k)
    sums[1].add(x[order], torch.zeros(5000, dtype=torch.long))
    away = (k[order] > 0).nonzero().squeeze(1)
    sums[1].move(x[order], away, torch.zeros_like(away), k[order][away])
    assert torch.equal(sums[0].value, sums[1].value)
    exact = torch.zeros(4, 3, dtype=torch.float64).index_add_(0, k, x.double())
    torch.testing.assert_close(sums[0].value, exact, rtol=0, atol=5000**2 * 2.0**-52 * float(x.abs().max()))


@pytest.mark.parametrize("noise", [0.5, 1e-3])
@pytest.mark.parametrize("system", [pca, ppca])
def test_one_pass_is_scikit_learns_pca(system: type, noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With low noise float32 products do not suffice, and are computed again in float64."""
    from sklearn.decomposition import PCA

    visits, real = [], LinearMixture.moments_of_one
    monkeypatch.setattr(
        LinearMixture, "moments_of_one", lambda self, x, wide: visits.append(wide) or real(self, x, wide)
    )
    x = torch.randn(600, 3) @ torch.randn(3, 150) + noise * torch.randn(600, 150) + 1
    model = system((150,), 3)
    history = fit(model, x, progress=False, batch_size=250)
    assert visits == [False] * 3 + [True] * 3 * (noise < 0.1)
    assert history.stopped_early and len(history.rows) == 2
    oracle = PCA(3, svd_solver="full").fit(x.double().numpy())
    loadings = model.likelihood.loadings[0].detach().double().numpy()
    projector = np.linalg.pinv(loadings) @ loadings
    np.testing.assert_allclose(projector, oracle.components_.T @ oracle.components_, atol=1e-4)
    if system is ppca:
        n = len(x) / (len(x) - 1)  # scikit-learn's variances are unbiased
        variance = model.likelihood.log_scale.double().mul(2).exp().item()
        assert variance == pytest.approx(oracle.noise_variance_ / n, rel=2e-5)
    exact = model.double()(x.double()).item()
    assert history.rows[1].train_loss == pytest.approx(exact, rel=1e-5)


def test_half_a_gram_matrix_is_all_of_it() -> None:
    rows = torch.randn(300, 333)
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.float64, 1e-10)):
        for compute in (gram, gram_by_halves):
            out = torch.empty(333, 333, dtype=torch.float64)
            compute(rows.to(dtype), out)
            torch.testing.assert_close(out, rows.double().mT @ rows.double(), rtol=0, atol=tolerance)


def test_leading_eigenvectors_are_those_of_all() -> None:
    x = torch.randn(2, 90, 40, dtype=torch.float64)
    x[1, :, 20:] = 0
    covariance = x.mT @ x / 90
    top, rest, directions = principal_directions(covariance, 5)
    values, vectors = torch.linalg.eigh(covariance)
    torch.testing.assert_close(top, values[:, -5:].flip(1))
    torch.testing.assert_close(rest, values[:, :-5].sum(1))
    overlap = (directions @ vectors[..., -5:].flip(-1)).abs()
    torch.testing.assert_close(overlap, torch.eye(5, dtype=torch.float64).expand(2, 5, 5), atol=1e-8, rtol=0)
    assert bool((directions.gather(2, directions.abs().argmax(2, keepdim=True)) > 0).all())


@pytest.mark.parametrize("offset", [0.0, 0.9, 30.0])
def test_products_about_zero_lose_no_digits(offset: float) -> None:
    """In units of the spread; 30 of them would lose three digits, so that there the mean is subtracted first."""
    x = torch.randn(2000, 150) * torch.rand(150) + offset
    mean = x.mean(0, keepdim=True) + 0.01
    moments = one_chart_moments(x, mean, wide=False)
    residual = x.double() - mean.double()
    scatter = residual.mT @ residual
    assert float((moments.second[0] - scatter).abs().max()) < 2e-6 * float(scatter.abs().max())
    torch.testing.assert_close(moments.first[0], residual.sum(0), rtol=1e-3, atol=0)
    assert moments.count.tolist() == [2000] and moments.first.dtype == moments.second.dtype == torch.float64


def test_products_about_zero_that_would_overflow_are_left_alone() -> None:
    """Squares of x exceed float32, those of its residuals do not."""
    x = 1e15 * torch.randn(300, 150) + 1e20
    mean = x.double().mean(0, keepdim=True).float()
    residual = x.double() - mean.double()
    moments = one_chart_moments(x, mean, wide=False)
    torch.testing.assert_close(moments.second[0].diagonal(), residual.square().sum(0), rtol=1e-5, atol=0)
