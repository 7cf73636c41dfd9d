"""Variants of mixtures: nearest neighbours, shortlisted charts, blended charts and Gaussian kernels."""

import math
import sys
import types
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from gae import Autoencoder, systems
from gae.data import Dataset
from gae.inference import (
    LBFGS,
    Adam,
    Argmax,
    Ascent,
    ChartGate,
    CheckpointedUnroll,
    Clipped,
    ClosedForm,
    Constant,
    Detach,
    Encoding,
    GradientAscent,
    Inference,
    Langevin,
    MaskedStep,
    Momentum,
    Nearest,
    Shortlist,
    Status,
    Zeros,
)
from gae.likelihood import BlendedCharts, Flat, Gaussian, GaussianKernel, LinearMixture
from gae.likelihood.relational.neighbours import nearest
from gae.objective import joint
from gae.training import fit, restore

train = partial(fit, progress=False)
fast = pytest.mark.usefixtures("unchecked_types")  # thousands of small calls, of which checks are most of the time


def points(count: int, dim: int = 6, **options: Any) -> LinearMixture:
    return LinearMixture(count, 0, (dim,), means=2 * torch.randn(count, dim), **options).double()


def atlas(count: int = 12, latent: int = 2, dim: int = 6) -> LinearMixture:
    """Charts with different weights and scales, and directions that are neither orthogonal nor of unit length."""
    model = LinearMixture(
        count, latent, (dim,), means=2 * torch.randn(count, dim), flat_prior=True, learn_scale=True, learn_weights=True
    ).double()
    model.loadings.data += 0.3 * torch.randn_like(model.loadings)
    model.log_scale.data += 0.2 * torch.randn(count)
    model.logits.data += torch.randn(count)
    return model


def observations(count: int = 40, dim: int = 6) -> Tensor:
    return 2 * torch.randn(count, dim).double()


def flattened(x: Tensor) -> np.ndarray:
    return x.flatten(1).double().numpy()


# The k-NN limit.


def test_means_of_as_many_components_as_samples_are_the_data() -> None:
    x = torch.randn(30, 2, 3)
    model = LinearMixture(30, 0, (2, 3))
    model.initialize(x, seed=0)
    assert torch.equal(model.means, x.flatten(1))


@pytest.fixture(scope="module")
def neighbours(digits: Dataset) -> Autoencoder:
    model = systems.build("knn", digits.event_shape, components=len(digits.train))
    history = train(model, digits, epochs=5)
    assert history.stopped_early and len(history.rows) < 5
    return model


def test_knn_is_scikit_learns(neighbours: Autoencoder, digits: Dataset) -> None:
    """The same neighbour if it is unique, by exact integer distances; otherwise one of the nearest."""
    found = neighbours.encode(digits.test).component
    search = NearestNeighbors(n_neighbors=1).fit(flattened(digits.train))
    theirs = search.kneighbors(flattened(digits.test), return_distance=False)[:, 0]
    train, test = (np.rint(16 * flattened(x)).astype(int) for x in (digits.train, digits.test))
    square = (test**2).sum(1)[:, None] + (train**2).sum(1) - 2 * test @ train.T
    least = square.min(1, keepdims=True)
    single = (square == least).sum(1) == 1
    assert found is not None and single.mean() > 0.95
    assert np.array_equal(found.numpy()[single], theirs[single])
    assert np.array_equal(np.take_along_axis(square, found.numpy()[:, None], 1), least)


def test_knn_reconstructs_its_training_set(neighbours: Autoencoder, digits: Dataset) -> None:
    with torch.no_grad():
        assert torch.equal(neighbours.reconstruct(digits.train), digits.train)


def test_knn_of_more_components_than_samples() -> None:
    with pytest.raises(ValueError, match=r"K=21 .* N=20"):
        train(systems.build("knn", (4,), components=21), torch.randn(20, 4))


@pytest.mark.parametrize("entries", [1, 7, 100, 2**22])
@pytest.mark.parametrize("unequal", [(), ("log_scale",), ("logits",), ("log_scale", "logits")])
def test_nearest_is_the_argmax(entries: int, unequal: tuple[str, ...]) -> None:
    model, x = points(37, learn_scale=True, learn_weights=True), observations()
    for name in unequal:
        getattr(model, name).data += torch.randn(37)
    log_p = (
        model.log_weights - 6 * model.log_scale - torch.cdist(x, model.means).square() / 2 / model.log_scale.exp() ** 2
    )
    found = Nearest(entries=entries)(model, x)
    assert found.k is not None and torch.equal(found.k[0], log_p.argmax(1))
    assert torch.allclose(found.log_joint[0], log_p.amax(1) - 3 * math.log(2 * math.pi))
    if unequal:  # the check would not see weights or scales that no choice depends on
        assert not torch.equal(log_p.argmax(1), torch.cdist(x, model.means).argmin(1))


def test_nearest_holds_blocks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product exceeds the limit, for any B and K."""
    sizes = []

    def product(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        sizes.append(len(a) * b.shape[1])
        return bias + a @ b

    monkeypatch.setattr(torch, "addmm", product)
    Nearest(entries=500).infer(points(300), observations(1200))
    assert max(sizes) <= 500 and sum(sizes) == 1200 * 300


def test_nearest_of_far_data() -> None:
    """In float32 relative to a common centre: far from the origin, distances still distinguish the points."""
    means = torch.randn(50, 6)
    model = LinearMixture(50, 0, (6,), means=means + 1000)
    found = Nearest()(model, model.means.detach() + 0.01).k
    assert found is not None and torch.equal(found[0], torch.arange(50))


def quantised(x: Tensor) -> Tensor:
    """Multiples of 1/1024 in float32, whose squared distances are exact in float64."""
    return ((1024 * x.double()).round() / 1024).float()


def narrow(rows: int, offset: float) -> Tensor:
    """Clusters of spread 0.05 at distances of 100 from each other."""
    return quantised(offset + 100 * torch.eye(6).repeat(rows // 6, 1) + 0.05 * torch.randn(rows, 6))


SEARCHES = {
    "offset": lambda: (quantised(1e3 + torch.randn(60, 6)), quantised(1e3 + torch.randn(200, 6))),
    "narrow clusters": lambda: (narrow(60, 0.0), narrow(240, 0.0)),
    "narrow clusters with offset": lambda: (narrow(60, 2e3), narrow(240, 2e3)),
    "far from all": lambda: (quantised(torch.randn(60, 6)), quantised(1e3 * torch.randn(100, 6))),
    "duplicates": lambda: (torch.randint(2, (60, 6)).float(), torch.randint(3, (200, 6)).float()),
    "one feature is large": lambda: (
        quantised(torch.randn(60, 6) * torch.tensor([1e3] + 5 * [0.1])),
        quantised(torch.randn(200, 6) * torch.tensor([1e3] + 5 * [0.1])),
    ),
}


@pytest.mark.parametrize("case", SEARCHES)
@pytest.mark.parametrize("engine", [Argmax(), Nearest(), Nearest(entries=70)], ids=["argmax", "nearest", "blocks"])
def test_nearest_points_in_float32_are_the_nearest(case: str, engine: Inference) -> None:
    """By exact differences, the first of equally near ones; and the squared distance is as exact."""
    means, x = SEARCHES[case]()
    model = LinearMixture(len(means), 0, (6,), means=means)
    square = (x.double()[:, None] - means.double()).square().sum(2)
    code = engine.infer(model, x)
    assert code.k is not None and torch.equal(code.k[0], square.argmin(1)) and code.log_joint is not None
    wanted = -0.5 * square.amin(1) - 3 * math.log(2 * math.pi) - math.log(len(means))
    torch.testing.assert_close(code.log_joint[0], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("entries", [70, 2**22])
def test_best_points_of_unlike_scales_in_float32(entries: int) -> None:
    means, x = SEARCHES["narrow clusters with offset"]()
    model = LinearMixture(len(means), 0, (6,), means=means, learn_scale=True, learn_weights=True)
    model.log_scale.data = torch.linspace(-4, -2, len(means))
    model.logits.data = torch.linspace(-3, 3, len(means))
    double = deepcopy(model).double()
    score = double.log_weights - 6 * double.log_scale
    score = score - 0.5 * (x.double()[:, None] - double.means).square().sum(2) * (-2 * double.log_scale).exp()
    assert torch.equal(Nearest(entries=entries).infer(model, x).k[0], score.argmax(1))  # type: ignore[index]


def test_kmeans_assigns_as_scikit_learn_in_float64() -> None:
    means, x = SEARCHES["narrow clusters with offset"]()
    found = Argmax().infer(LinearMixture(len(means), 0, (6,), means=means), x).k
    nearest = NearestNeighbors(n_neighbors=1, algorithm="kd_tree").fit(flattened(means))
    distance, theirs = nearest.kneighbors(flattened(x))
    assert found is not None
    chosen = np.linalg.norm(flattened(x) - flattened(means)[found[0]], axis=1)
    assert np.array_equal(found[0].numpy(), theirs[:, 0]) or np.array_equal(chosen, distance[:, 0])


@pytest.mark.parametrize("case", SEARCHES)
def test_neighbours_of_float64_points_are_the_nearest(case: str) -> None:
    """Also where clusters are 1e8 times narrower than their distances."""
    points = torch.cat(SEARCHES[case]()).double()
    if "narrow" in case:
        points = points.round() + (points - points.round()) * 1e-9
    square = (points[:, None] - points).square().sum(2)
    found = nearest(points.unsqueeze(0), 3)[0]
    wanted = square.fill_diagonal_(torch.inf).sort(1).values[:, :3]
    torch.testing.assert_close(square.gather(1, found).sort(1).values, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_nearest_refuses_what_has_no_points(index: str) -> None:
    with pytest.raises(TypeError, match=r"charts with codes of shape \(2,\).*`Argmax\(ClosedForm\(\)\)`"):
        Nearest(index)(atlas(), observations())
    with pytest.raises(TypeError, match=r"LinearMixture, got Gaussian"):
        Nearest(index)(Gaussian(torch.nn.Linear(2, 6), 2), torch.zeros(1, 6))
    with pytest.raises(ValueError, match="chooses k itself"):
        Nearest(index).infer(points(3), observations(), torch.zeros(1, 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Nearest("annoy"), r"Unknown index 'annoy'\. Valid indices: exact, faiss"),
        (lambda: Nearest(entries=0), "entries must be at least 1"),
        (lambda: Shortlist(probes=0), r"1 <= probes <= cells, got probes=0"),
        (lambda: Shortlist(probes=4, cells=3), "got probes=4, cells=3"),
        (lambda: ChartGate(0.0), "temperature must be positive"),
        (lambda: ChartGate(by="mean"), r"Unknown gate 'mean'\. Valid gates: residual, centre"),
        (lambda: BlendedCharts(3, 0, (4,)), r"1 <= latent <= 4, got \(4,\), K=3, E=0"),
        (lambda: BlendedCharts(3, 5, (4,)), "got .* E=5"),
        (lambda: BlendedCharts(0, 1, (4,)), "got .* K=0"),
        (lambda: BlendedCharts(3, 1, ()), r"got \(\), K=3"),
        (lambda: GaussianKernel(0, 2, (4,)), "got .* K=0"),
        (lambda: GaussianKernel(3, 0, (4,)), "latent >= 1"),
        (lambda: GaussianKernel(3, 2, (4,), absorbing=-1.0), "absorbing >= 0"),
        (lambda: GaussianKernel(3, 2, (4,), absorbing=math.nan), "absorbing >= 0"),
        (lambda: GaussianKernel(3, 2, (4,), growth=-1.0), "growth >= 0"),
        (lambda: GaussianKernel(3, 2, (4,), absorbing=0.0, growth=1.0), "needs an absorbing component"),
        (lambda: GaussianKernel(3, 2, (4,), scale=0.0), "scale must be positive"),
    ],
)
def test_bad_arguments(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# The same by faiss: the real one where it is installed, and what we ask of it by a stand-in.


def test_faiss_finds_the_nearest() -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    model, x = points(200).float(), observations(100).float()
    assert torch.equal(Nearest("faiss").infer(model, x).k, Nearest().infer(model, x).k)


class FlatL2:
    """``faiss.IndexFlatL2`` in numpy; it counts how often one is built."""

    built = 0

    def __init__(self, dim: int):
        self.rows = np.empty((0, dim), np.float32)
        FlatL2.built += 1

    def add(self, rows: np.ndarray) -> None:
        assert rows.dtype == np.float32 and rows.flags["C_CONTIGUOUS"] and rows.shape[1] == self.rows.shape[1]
        self.rows = np.concatenate([self.rows, rows])

    def search(self, x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        assert x.dtype == np.float32 and x.flags["C_CONTIGUOUS"]
        square = ((x[:, None] - self.rows) ** 2).sum(2)
        order = square.argsort(1)[:, :count]
        return np.take_along_axis(square, order, 1), order


def test_faiss_settles_near_ties_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds the stand-in's float32 differences to the lower accuracy of faiss's products."""

    class Coarse(FlatL2):
        def search(self, x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
            square, order = super().search(x, len(self.rows))
            size = (x**2).sum(1, keepdims=True) + (self.rows**2).sum(1).max()
            rounded = (square / size * 2**18).round() * size / 2**18
            again = rounded.argsort(1, kind="stable")[:, :count]
            return np.take_along_axis(rounded, again, 1), np.take_along_axis(order, again, 1)

    monkeypatch.setitem(sys.modules, "faiss", types.SimpleNamespace(IndexFlatL2=Coarse))
    for make in SEARCHES.values():
        means, x = make()
        model = LinearMixture(len(means), 0, (6,), means=means)
        assert torch.equal(Nearest("faiss").infer(model, x).k, Nearest().infer(model, x).k)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[FlatL2]:
    monkeypatch.setitem(sys.modules, "faiss", types.SimpleNamespace(IndexFlatL2=FlatL2))
    FlatL2.built = 0
    return FlatL2


def test_faiss_is_asked_for_the_nearest_mean(stand_in: type[FlatL2]) -> None:
    """One index per state of the means, also if they change without autograd; copies build separate ones."""
    model, x, engine = points(20), observations(), Nearest("faiss")
    for _ in range(2):
        assert torch.equal(engine.infer(model, x).k, Nearest().infer(model, x).k)
    assert stand_in.built == 1
    model.means.data[3] += 1
    assert torch.equal(engine.infer(model, x).k, Nearest().infer(model, x).k)
    assert stand_in.built == 2
    assert torch.equal(deepcopy(engine).infer(model, x).k, Nearest().infer(model, x).k)
    assert stand_in.built == 3


@pytest.mark.parametrize(("name", "what"), [("logits", "weights"), ("log_scale", "scales")])
def test_faiss_refuses_what_is_not_nearest(stand_in: type[FlatL2], name: str, what: str) -> None:
    model = points(5, learn_scale=True, learn_weights=True)
    getattr(model, name).data[2] += 0.1
    with pytest.raises(ValueError, match=rf"when {what} differ.*`Nearest\('exact'\)`"):
        Nearest("faiss").infer(model, observations())


def test_faiss_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"needs faiss-cpu: pip install 'gae\[faiss\]'\. `Nearest\('exact'\)`"):
        systems.build("knn", (6,), components=5, index="faiss").double().encode(observations())


# Shortlisted charts.

INNER = {
    "closed": lambda: ClosedForm(),
    "ascent": lambda: Ascent(Zeros(), GradientAscent(0.05), 4, trace=True),
    "lbfgs": lambda: Ascent(step=LBFGS(), max_steps=60, grad_tol=1e-8, trace=True),
    "checkpoint": lambda: Ascent(Zeros(), GradientAscent(0.05), 4, adjoint=CheckpointedUnroll()),
    "detached": lambda: Ascent(Zeros(), Momentum(0.05), 4, adjoint=Detach()),
}


@pytest.mark.parametrize("inner", INNER)
def test_shortlist_of_all_cells_is_the_argmax(inner: str) -> None:
    model, x = atlas(), observations()
    whole, part = Argmax(INNER[inner]())(model, x), Shortlist(INNER[inner](), probes=4)(model, x)
    assert torch.equal(whole.k, part.k)
    for name in ("z", "log_joint"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name), rtol=1e-10, atol=1e-10)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(joint(code).sum(), parameters) for code in (part, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    if whole.solve is not None and part.solve is not None:
        for name in ("status", "steps", "evaluations"):
            assert torch.equal(getattr(part.solve, name), getattr(whole.solve, name))
        if whole.solve.trace is not None:
            torch.testing.assert_close(part.solve.trace, whole.solve.trace, rtol=1e-9, atol=1e-9)


def test_shortlist_of_points_is_nearest() -> None:
    model, x = points(30), observations()
    assert torch.equal(Shortlist(probes=6).infer(model, x).k, Nearest().infer(model, x).k)


@pytest.mark.parametrize("probes", [1, 2, 3])
def test_shortlist_is_the_argmax_over_the_charts_of_the_nearest_cells(probes: int) -> None:
    """Cells and choice by hand, from the engine's quantiser; charts of other cells are not evaluated."""
    model, x = atlas(), observations()
    engine = Shortlist(ClosedForm(), probes, cells=4)
    found = engine(model, x)
    centres, members = engine._built.value
    owner = torch.zeros(12, dtype=torch.long)
    for cell, names in enumerate(members):
        owner[names] = cell
        torch.testing.assert_close(centres[cell], model.means[names].mean(0))  # a fixed point of k-means
    assert torch.equal(torch.cdist(model.means, centres).argmin(1), owner)
    near = torch.cdist(x, centres).argsort(1)[:, :probes]
    allowed = (owner[None, :, None] == near[:, None, :]).any(2)
    k = torch.arange(12)[:, None]
    score = model.log_joint(x, ClosedForm().infer(model, x, k).z, k).T.masked_fill(~allowed, -torch.inf)
    assert found.k is not None and torch.equal(found.k[0], score.argmax(1))
    torch.testing.assert_close(found.log_joint[0], score.amax(1))
    assert torch.equal(engine.compared(model, x), allowed.sum(1))


def test_shortlist_counts_what_it_compares() -> None:
    """Counted at the inner engine for each sample; an ascent reports T steps on each of them."""

    class Counting(Inference):
        rows = 0

        def infer(self, likelihood: Any, x: Tensor, k: Tensor | None = None) -> Any:
            assert k is not None
            self.rows += len(k) * len(x)
            return ClosedForm().infer(likelihood, x, k)

    model, x, counter = atlas(30), observations(), Counting()
    engine = Shortlist(counter, probes=2)
    compared = engine.compared(model, x)
    engine.infer(model, x)
    assert counter.rows == int(compared.sum()) < 0.7 * 30 * len(x)
    climb = Ascent(Zeros(), GradientAscent(0.05), 7)
    solve = Shortlist(climb, probes=2).infer(model, x).solve
    assert solve is not None and torch.equal(solve.evaluations[0], 7 * compared)


def test_shortlist_follows_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are built once per state of the means, and anew when these change."""
    from sklearn import cluster

    built = []
    monkeypatch.setattr(cluster, "KMeans", lambda *a, make=cluster.KMeans, **o: built.append(a) or make(*a, **o))
    model, x, engine = atlas(), observations(), Shortlist(ClosedForm(), probes=4)
    engine.infer(model, x), engine.infer(model, x[:3])
    assert len(built) == 1
    model.means.data += torch.randn_like(model.means)
    assert torch.equal(engine.infer(model, x).k, Argmax(ClosedForm()).infer(model, x).k)
    assert len(built) == 2
    engine.infer(model.float(), x.float())
    assert len(built) == 3


def test_shortlist_of_equal_means() -> None:
    """Fewer distinct means than cells: fewer cells, and no warning."""
    model = LinearMixture(9, 1, (4,), means=torch.eye(2, 4).repeat(5, 1)[:9], flat_prior=True)
    assert Shortlist(ClosedForm(), probes=3)(model, torch.randn(5, 4)).z.isfinite().all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cells_are_scikit_learns_kmeans(seed: int) -> None:
    """One start with the engine's seed, and as many cells as were asked for, or as there are distinct means."""
    for means, cells, taken in ((torch.randn(40, 3), 7, 7), (torch.randn(4, 3).repeat(10, 1), 7, 4)):
        model = LinearMixture(40, 1, (3,), means=means, flat_prior=True)
        engine = Shortlist(ClosedForm(), probes=2, cells=cells, seed=seed)
        engine.infer(model, torch.randn(5, 3))
        centres, members = engine._built.value
        oracle = KMeans(taken, n_init=1, random_state=seed).fit(means.double().numpy())
        np.testing.assert_allclose(centres, oracle.cluster_centers_, atol=1e-6)
        assert [names.tolist() for names in members] == [
            np.flatnonzero(oracle.labels_ == c).tolist() for c in range(taken)
        ]


def test_shortlist_of_few_charts() -> None:
    with pytest.raises(ValueError, match="probes=5, cells=4 and K=12"):
        Shortlist(ClosedForm(), probes=5).infer(atlas(), observations())
    with pytest.raises(ValueError, match="cells=13 and K=12"):
        Shortlist(ClosedForm(), cells=13).infer(atlas(), observations())
    with pytest.raises(TypeError, match=r"LinearMixture, got GaussianKernel.*`Ascent`"):
        Shortlist(ClosedForm())(GaussianKernel(3, 2, (4,)), torch.zeros(1, 4))


def test_llgae_learns_from_a_shortlist(digits: Dataset) -> None:
    """Closed-form steps on shortlisted codes: close to those of all charts, and far below one chart."""
    losses = []
    for engine in (Argmax(ClosedForm()), Shortlist(ClosedForm(), probes=3)):
        model = Autoencoder(LinearMixture(16, 4, digits.event_shape, flat_prior=True), engine)
        losses.append(train(model, digits, epochs=8).rows[-1].train_loss)
    torch.manual_seed(0)
    one = Autoencoder(LinearMixture(1, 4, digits.event_shape, flat_prior=True), ClosedForm())
    single = train(one, digits, epochs=3).rows[-1].train_loss
    assert losses[1] - losses[0] < 0.1 * (single + math.log(16) - losses[0])


# Blended charts.


def charts(scale: float = 0.5**0.5) -> tuple[LinearMixture, BlendedCharts]:
    """The same charts as a mixture and as a blend."""
    mixture = LinearMixture(4, 2, (5,), flat_prior=True, scale=scale, means=torch.randn(4, 5)).double()
    mixture.loadings.data = mixture.loadings.data * torch.linspace(1.0, 1.4, 8).reshape(4, 2, 1).double()
    blend = BlendedCharts(4, 2, (5,), scale).double()
    for model in (mixture, blend):  # in float64, not rounded to float32 on the way
        model.log_scale.fill_(math.log(scale))
    blend.means.data, blend.loadings.data = mixture.means.data.clone(), mixture.loadings.data.clone()
    return mixture, blend


def smooth(model: BlendedCharts, temperature: float, by: str, steps: int = 300) -> Ascent:
    return Ascent(ChartGate(temperature, by), MaskedStep(GradientAscent(0.25), model.coordinates), steps)


def blended_by_hand(x: Tensor, model: LinearMixture, weights: Tensor) -> tuple[Tensor, Tensor]:
    """min_z ‖x - Σ_k f_k (mean_k + z loadings_k)‖² and its z, by least squares for each sample."""
    errors, codes = [], []
    for row, f in zip(x.numpy(), weights.numpy(), strict=True):
        centre = f @ model.means.detach().numpy()
        directions = np.einsum("k,ked->de", f, model.loadings.detach().numpy())
        z = np.linalg.lstsq(directions, row - centre, rcond=None)[0]
        errors.append(((row - centre - directions @ z) ** 2).sum())
        codes.append(z)
    return torch.tensor(np.array(errors)), torch.tensor(np.array(codes))


def residuals(x: Tensor, model: LinearMixture) -> Tensor:
    return torch.stack([blended_by_hand(x, model, torch.eye(4).double()[k].expand(len(x), -1))[0] for k in range(4)], 1)


def in_nats(square: Tensor) -> Tensor:
    """The log density of scale √½, with its constant."""
    return -square - 2.5 * math.log(math.pi)


def test_distances_to_charts_and_centres() -> None:
    mixture, blend = charts()
    x = 1.5 * torch.randn(30, 5).double()
    torch.testing.assert_close(blend.to_charts(x), residuals(x, mixture), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(blend.to_centres(x), torch.cdist(x, mixture.means).square(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("by", ["centre", "residual"])
def test_smooth_llgae_is_the_note_s(by: str, temperature: float) -> None:
    """-‖x - Σ_k softargmax_k(-distance/temperature)(mean_k + z loadings_k)‖² at its best z, up to the constant."""
    mixture, blend = charts()
    x = 1.5 * torch.randn(30, 5).double()
    distance = residuals(x, mixture) if by == "residual" else torch.cdist(x, mixture.means.detach()).square()
    square, z = blended_by_hand(x, mixture, (-distance / temperature).softmax(1))
    start = ChartGate(temperature, by).infer(blend, x).z.detach()
    best = torch.cat([start[0, :, :4], z], 1)
    climb = MaskedStep(GradientAscent(0.25), blend.coordinates)
    with torch.no_grad():
        there = Ascent(Constant(best), climb, 1)(blend, x)
        torch.testing.assert_close(blend.log_joint(x, best.unsqueeze(0))[0], in_nats(square), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(there.z[0], best, rtol=1e-9, atol=1e-9)  # where ascent stands still
        climbed = joint(Ascent(ChartGate(temperature, by), climb, 100)(blend, x))
    assert ((climbed <= in_nats(square) + 1e-9) & (climbed > in_nats(square) - 0.05)).all()


@fast
def test_the_residual_gate_tends_to_the_hierarchical_form() -> None:
    """Temperature → 0: max_k max_z, in each sample, at which point log K separates a mixture from a blend."""
    mixture, blend = charts()
    x = 1.5 * torch.randn(200, 5).double()
    with torch.no_grad():
        hierarchical = Argmax(ClosedForm())(mixture, x)
        wanted = joint(hierarchical) + math.log(4)
        gaps = [(joint(smooth(blend, t, "residual")(blend, x)) - wanted).abs() for t in (1.0, 0.1, 0.01, 1e-9)]
        found = smooth(blend, 1e-9, "residual")(blend, x)
    assert all(bool(b.mean() < a.mean()) for a, b in pairwise(gaps))
    assert gaps[0].max() > 0.1 and gaps[-1].max() < 1e-9
    assert hierarchical.k is not None and torch.equal(found.z[0, :, :4].argmax(1), hierarchical.k[0])
    torch.testing.assert_close(found.z[0, :, 4:], hierarchical.z[0])


@fast
def test_the_centre_gate_tends_to_the_chart_of_the_nearest_centre() -> None:
    """Temperature → 0, as the note writes it: never above max_k max_z, below it where another chart is better."""
    mixture, blend = charts()
    x = 1.5 * torch.randn(200, 5).double()
    nearest = torch.cdist(x, mixture.means.detach()).argmin(1, keepdim=True)
    square = residuals(x, mixture)
    with torch.no_grad():
        found = joint(smooth(blend, 1e-9, "centre")(blend, x))
    torch.testing.assert_close(found, in_nats(square.gather(1, nearest)[:, 0]), rtol=1e-8, atol=1e-8)
    best = in_nats(square.amin(1))
    agree = square.argmin(1) == nearest[:, 0]
    assert 0.2 < agree.double().mean() < 0.95
    assert (found <= best + 1e-8).all() and (found[~agree] < best[~agree] - 1e-3).any()


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_gates_of_narrow_charts_in_float32(offset: float) -> None:
    """Distances to charts and centres that are far apart for their widths, against float64 residuals."""
    torch.manual_seed(0)
    _, blend = charts()
    blend.means.data = (offset + 100 * torch.eye(4, 5).double()).round()
    x = (blend.means.detach()[torch.arange(40) % 4] + 0.05 * torch.randn(40, 5)).float()
    single = deepcopy(blend).float()
    mixture = LinearMixture(4, 2, (5,), flat_prior=True).double()
    mixture.means.data, mixture.loadings.data = (v.detach().double() for v in (single.means, single.loadings))
    torch.testing.assert_close(single.to_charts(x), residuals(x.double(), mixture), rtol=1e-4, atol=1e-9)
    square = (x.double()[:, None] - single.means.double()).square().sum(2)
    torch.testing.assert_close(single.to_centres(x), square, rtol=1e-4, atol=1e-9)
    gates = ChartGate(1e-3).infer(single, x).z[0, :, :4]
    wanted = -(residuals(x.double(), mixture) - residuals(x.double(), mixture).amin(1, keepdim=True)) / 1e-3
    torch.testing.assert_close(gates.double(), wanted, rtol=1e-4, atol=1e-4)


def test_partial_steps_leave_the_rest() -> None:
    _, blend = charts()
    x = torch.randn(6, 5).double()
    start = ChartGate(2.0).infer(blend, x).z
    for step in (GradientAscent(0.1), Momentum(0.1), Adam(0.1), Langevin(0.01)):
        z = Ascent(ChartGate(2.0), MaskedStep(step, blend.coordinates), 5)(blend, x).z
        assert torch.equal(z[..., :4], start[..., :4]) and (z[..., 4:] != 0).all()
    whole = Ascent(Zeros(), MaskedStep(Momentum(0.1), torch.ones(6, dtype=torch.bool)), 5)(blend, x).z
    assert torch.equal(whole, Ascent(Zeros(), Momentum(0.1), 5)(blend, x).z)
    clipped = Ascent(ChartGate(2.0), MaskedStep(Clipped(GradientAscent(1.0), 0.1), blend.coordinates), 1)(blend, x).z
    assert torch.allclose(
        (clipped - start)[..., 4:].norm(dim=-1), torch.tensor(0.1).double()
    )  # the others' do not count
    with pytest.raises(ValueError, match=r"points of shape \(5,\), got \(6,\)"):
        Ascent(Zeros(), MaskedStep(GradientAscent(0.1), torch.ones(5, dtype=torch.bool)), 1)(blend, x)


def test_gates_refuse_other_likelihoods() -> None:
    with pytest.raises(TypeError, match=r"`BlendedCharts`, got LinearMixture"):
        ChartGate().infer(atlas(), observations())
    with pytest.raises(ValueError, match="got a given k"):
        ChartGate().infer(charts()[1], torch.zeros(1, 5).double(), torch.zeros(1, 1, dtype=torch.long))


def test_blended_charts_start_where_a_mixture_does(digits: Dataset) -> None:
    blend, mixture = BlendedCharts(5, 3, digits.event_shape), LinearMixture(5, 3, digits.event_shape, flat_prior=True)
    for model in (blend, mixture):
        model.initialize(digits.train, seed=3)
    assert torch.equal(blend.means, mixture.means) and torch.equal(blend.loadings, mixture.loadings)
    blend.initialize(digits.train + 1, seed=4)
    assert torch.equal(blend.means, mixture.means)


# Codes in a space of kernels.


def kernels(
    absorbing: float = 0.1, growth: float = 0.0, latent: int = 2, count: int = 4, **options: Any
) -> GaussianKernel:
    model = GaussianKernel(count, latent, (3,), absorbing=absorbing, growth=growth, **options).double()
    model.centres.data.normal_()
    model.means.data.normal_()
    return model


def log_density_by_hand(model: GaussianKernel, x: np.ndarray, z: np.ndarray) -> float:
    """log Σ_k q(k|z) N(x; mean_k, scale² I), term by term."""
    centres, means = model.centres.detach().numpy(), model.means.detach().numpy()
    kernel = [math.exp(-((b - z) ** 2).sum()) for b in centres]
    total = model.absorbing * math.exp(model.growth * (z**2).sum()) + sum(kernel)
    variance = math.exp(2 * float(model.log_scale))
    parts = [
        e / total * (2 * math.pi * variance) ** (-len(x) / 2) * math.exp(-((x - m) ** 2).sum() / 2 / variance)
        for e, m in zip(kernel, means, strict=True)
    ]
    return math.log(sum(parts))


@pytest.mark.parametrize(("absorbing", "growth"), [(0.0, 0.0), (0.3, 0.0), (2.0, 1.0)])
def test_kernel_density_is_the_sum_over_k(absorbing: float, growth: float) -> None:
    model, x, z = kernels(absorbing, growth, scale=0.7), torch.randn(5, 3).double(), torch.randn(2, 5, 2).double()
    wanted = [[log_density_by_hand(model, x[b].numpy(), z[s, b].numpy()) for b in range(5)] for s in range(2)]
    for found in (model.log_joint(x, z), model(z).log_prob(x), model(z).expand((2, 5)).log_prob(x), model.bind(x)(z)):
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("absorbing", "growth"), [(0.0, 0.0), (0.3, 0.0), (2.0, 1.0)])
def test_kernel_density_integrates_to_what_is_emitted(absorbing: float, growth: float) -> None:
    """∫ q(x|z) dx = Σ_k q(k|z), by quadrature: 1 without absorption, less with it."""
    model = GaussianKernel(3, 2, (1,), absorbing=absorbing, growth=growth, scale=0.5).double()
    model.means.data.normal_()
    z, grid = torch.randn(7, 2).double(), torch.linspace(-12, 12, 6001).double()
    mass = torch.trapezoid(model(z.unsqueeze(0)).log_prob(grid[:, None, None]).exp(), grid, dim=0)
    torch.testing.assert_close(mass, model.log_mass(z).exp(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.log_gate(z).exp().sum(-1), mass, rtol=1e-8, atol=1e-8)
    assert bool((mass < 0.99).all() if absorbing else torch.allclose(mass, torch.ones(7).double()))


def test_emitted_samples_have_the_mean_that_is_stated() -> None:
    model, z = kernels(0.5, scale=0.3), torch.randn(2).double()
    decoded = model(z)
    drawn = decoded.sample((20_000,))
    weights = model.log_gate(z).softmax(-1)
    torch.testing.assert_close(decoded.mean, weights @ model.means)
    torch.testing.assert_close(
        drawn.mean(0), decoded.mean, rtol=0, atol=4 * float(drawn.std(0).max()) / math.sqrt(20_000)
    )


@pytest.mark.parametrize("absorbing", [0.0, 0.3])
def test_gradient_of_a_kernel_code(absorbing: float) -> None:
    """Central differences, and the corrected formula of ledger D18: 2 Σ_k r_k (B_k - z) - 2 Σ_k q_k (B_k - z)."""
    model, x = kernels(absorbing, scale=0.7), torch.randn(6, 3).double()
    z = torch.randn(1, 6, 2).double().requires_grad_()
    (found,) = torch.autograd.grad(model.bind(x)(z).sum(), z)
    with torch.no_grad():
        q = model.log_gate(z)
        r = (q + model.log_components(x)).softmax(-1)
        offset = model.centres - z.unsqueeze(-2)
        formula = 2 * torch.einsum("sbk,sbke->sbe", r - q.exp(), offset)
        moves = 1e-6 * torch.eye(2).double()
        differences = [(model.log_joint(x, z + m) - model.log_joint(x, z - m)) / 2e-6 for m in moves]
    torch.testing.assert_close(found, formula, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, torch.stack(differences, -1), rtol=1e-7, atol=1e-7)


def two_kernels(absorbing: float) -> tuple[GaussianKernel, Tensor]:
    """Ledger D17: centres 0 and -1, and an x that belongs to the first alone."""
    model = GaussianKernel(2, 1, (1,), absorbing=absorbing, growth=1.0 if absorbing else 0.0, scale=0.1).double()
    model.centres.data = torch.tensor([[0.0], [-1.0]]).double()
    model.means.data = torch.tensor([[0.0], [50.0]]).double()
    return model, torch.zeros(1, 1).double()


@fast
def test_absorption_bounds_the_code_of_the_ledger() -> None:
    """D17: the root of 2v exp(2v² + 2v + 1) = 1."""
    root = brentq(lambda v: 2 * v * math.exp(2 * v * v + 2 * v + 1) - 1, 0, 1, xtol=1e-14)
    model, x = two_kernels(1.0)
    with torch.no_grad():
        found = Ascent(Zeros(), LBFGS(), 60, grad_tol=1e-12)(model, x)
        plain = Ascent(Zeros(), GradientAscent(0.1), 400)(model, x)
    assert found.solve is not None and bool((found.solve.status == Status.converged).all())
    for code in (found, plain):
        assert float(code.z) == pytest.approx(root, abs=1e-9) == pytest.approx(0.1352900712, abs=1e-9)


@fast
def test_without_absorption_the_code_drifts_off() -> None:
    """∂ log u_1/∂v = 2/(1 + e^(2v+1)) > 0: v_t grows like ½ log t, as the differential equation of ascent does."""
    model, x = two_kernels(0.0)
    with torch.no_grad():
        codes = [float(Ascent(Zeros(), GradientAscent(0.5), t)(model, x).z) for t in (10, 100, 1000)]
        slope = torch.autograd.functional.jacobian(
            lambda v: model.bind(x)(v).sum(), torch.full((1, 1, 1), 3.0).double()
        )
    assert float(slope) == pytest.approx(2 / (1 + math.exp(7)), rel=1e-9)
    for before, after in pairwise(codes):
        assert after - before == pytest.approx(0.5 * math.log(10), abs=0.12)


def furthest(model: GaussianKernel, x: Tensor, start: Tensor) -> Tensor:
    """The largest distance between the nearest centre and the end of an ascent from it, by the docstring."""
    log_p = model.log_components(x).amax(1)
    count = len(model.centres)
    return (math.log(count) + log_p - math.log(model.absorbing) - model.log_joint(x, start)[0]).sqrt()


@fast
@pytest.mark.parametrize(("absorbing", "growth"), [(1e-3, 0.0), (0.3, 0.0), (0.3, 1.0)])
def test_codes_stay_bounded_with_absorption(absorbing: float, growth: float) -> None:
    model, x = kernels(absorbing, growth, count=6), 3 * torch.randn(50, 3).double()
    start = 3 * torch.randn(50, 2).double()
    with torch.no_grad():
        found = Ascent(Constant(start), LBFGS(), 300, grad_tol=1e-6)(model, x)
        distance = torch.cdist(found.z[0], model.centres).amin(1)
        assert (distance <= furthest(model, x, start.unsqueeze(0))).all()
    assert found.solve is not None and (found.solve.status == Status.converged).all()


@fast
def test_codes_at_the_rim_leave_without_absorption() -> None:
    """The same ascent with b = 0 and with b > 0, for an x of each component: those at the rim are still under way."""
    model = GaussianKernel(4, 2, (3,), absorbing=0.0, scale=0.1).double()
    model.centres.data = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8], [0.0, 0.0]]).double()
    model.means.data = 5 * torch.eye(4, 3).double()
    bounded = GaussianKernel(4, 2, (3,), absorbing=0.1, scale=0.1).double()
    bounded.load_state_dict(model.state_dict())

    def norms(likelihood: GaussianKernel, steps: int) -> Tensor:
        with torch.no_grad():
            return Ascent(Zeros(), GradientAscent(0.25), steps)(likelihood, model.means.data).z[0].norm(dim=1)

    free, held = [[norms(m, steps) for steps in (200, 1000)] for m in (model, bounded)]
    assert (free[1][:3] > free[0][:3] + 0.3).all() and free[1][3] < 0.1  # the one in the middle is not at the rim
    torch.testing.assert_close(held[0], held[1], rtol=1e-8, atol=1e-8)
    assert (held[1] < 2).all()


def test_a_kernel_code_has_no_k() -> None:
    model, z = kernels(), torch.zeros(1, 1, 2).double()
    for call in (lambda k: model(z, k), lambda k: model.log_joint(torch.zeros(1, 3).double(), z, k)):
        with pytest.raises(ValueError, match=r"marginalises its components.*got k"):
            call(torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(TypeError, match="no discrete code"):
        Argmax()(model, torch.zeros(1, 3).double())


def test_kernels_start_from_the_data() -> None:
    x = torch.cat([torch.randn(50, 3) * 0.1 + centre for centre in (-5.0, 0.0, 5.0)])
    model = GaussianKernel(3, 2, (3,), learn_scale=True)
    model.initialize(x, seed=0)
    assert torch.cdist(torch.tensor([[-5.0] * 3, [0.0] * 3, [5.0] * 3]), model.means).amin(1).max() < 0.6
    assert 0.05 < float(model.log_scale.detach().exp()) < 0.3
    before = deepcopy(model.state_dict())
    model.initialize(x + 1, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fixed = GaussianKernel(3, 2, (3,), scale=0.4)
    fixed.initialize(x, seed=0)
    assert float(fixed.log_scale.exp()) == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"K=4 .* N=3"):
        GaussianKernel(4, 2, (3,)).initialize(x[:3], seed=0)


# The systems.


def error(model: Autoencoder, x: Tensor) -> float:
    with torch.no_grad():
        return float((model.reconstruct(x) - x).square().flatten(1).sum(1).mean())


SYSTEMS: dict[str, tuple[dict[str, Any], Any]] = {
    "knn": ({"components": 1000}, None),
    "smooth-llgae": ({}, partial(torch.optim.Adam, lr=1e-3)),
    "ggae": ({}, partial(torch.optim.Adam, lr=1e-2)),
}


@fast
@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_learn_and_come_back(name: str, digits: Dataset, tmp_path: Path) -> None:
    """fit, held-out codes, and a checkpoint that gives the same ones; better than the mean image by a wide margin."""
    options, optimizer = SYSTEMS[name]
    torch.manual_seed(0)
    model = systems.build(name, digits.event_shape, **options)
    train(model, digits.train[:1000], epochs=4, optimizer=optimizer, out=tmp_path)
    torch.manual_seed(1)
    other = systems.build(name, digits.event_shape, **options)
    restore(other, tmp_path)
    wanted, found = encoded(model, digits.test), encoded(other, digits.test)
    assert torch.equal(found.z, wanted.z) and torch.equal(found.log_joint, wanted.log_joint)
    baseline = float((digits.test - digits.train.mean(0)).square().flatten(1).sum(1).mean())
    assert error(model, digits.test) < 0.75 * baseline


def encoded(model: Autoencoder, x: Tensor) -> Encoding:
    with torch.no_grad():
        return model.encode(x)


@fast
@pytest.mark.parametrize("gate", ["residual", "centre"])
def test_smooth_llgae_learns(gate: str, digits: Dataset) -> None:
    """By gradients through gate and ascent: below its own start, and below the mixture of points."""
    torch.manual_seed(0)
    model = systems.build("smooth-llgae", digits.event_shape, gate=gate)
    model.likelihood.initialize(digits.train, seed=0)  # type: ignore[operator]
    before = error(model, digits.test)
    train(model, digits, epochs=5, optimizer=partial(torch.optim.Adam, lr=1e-3))
    centres = systems.build("kmeans", digits.event_shape)
    train(centres, digits, epochs=10)
    assert error(model, digits.test) < 0.9 * before < error(centres, digits.test)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_types")
@fast
def test_ggae_codes_are_bounded_after_learning(digits: Dataset) -> None:
    torch.manual_seed(0)
    model = systems.build("ggae", digits.event_shape)
    losses = [
        row.train_loss for row in train(model, digits, epochs=3, optimizer=partial(torch.optim.Adam, lr=1e-2)).rows
    ]
    assert losses[-1] < losses[0] - 5
    likelihood = model.likelihood.double()
    assert isinstance(likelihood, GaussianKernel) and isinstance(likelihood.latent_prior, Flat)
    x = digits.test[:50].double()
    with torch.no_grad():
        found = Ascent(Zeros(), GradientAscent(0.25), 400)(likelihood, x)
        limit = furthest(likelihood, x, torch.zeros(1, 50, 2).double())
    assert (torch.cdist(found.z[0], likelihood.centres).amin(1) <= limit).all()
    assert found.solve is not None and float(found.solve.grad_norm.max()) < 1e-3
