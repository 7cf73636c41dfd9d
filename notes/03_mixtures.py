"""Checks of ``03_mixtures.md``: mixtures as autoencoders, k-means and EM."""

import itertools
import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.distributions import Categorical, Dirichlet, Normal, kl_divergence
from torch.nn.functional import one_hot

from gae import systems
from gae.autoencoder import Autoencoder
from gae.inference import Argmax, ClosedForm, Encoding, Enumerate, Inference
from gae.ledger.claims import Check, Relation, at_most, check, equal
from gae.likelihood import LinearMixture
from gae.objective import Objective, elbo, joint, logsumexp
from gae.training import fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 5  # few enough to try every partition into two
ROUNDS = 12  # of an alternation


@check
def check_D09() -> Check:
    """Every code and every partition by enumeration, Lloyd, k-subspaces and EM by hand, against gae's ``fit``."""
    x, model = 1.5 * torch.randn(POINTS, 2), LinearMixture(2, 0, (2,), means=torch.randn(2, 2))
    codes = torch.tensor(list(itertools.product(range(2), repeat=POINTS)))
    at_codes = Normal(model.means[codes], 1.0).log_prob(x).sum(2).mean(1) - math.log(2)
    encoded = joint(Argmax()(model, x)).mean()
    climbs, highest = _climbs(x), _best_partition(x, codes)

    y, start = _three_groups(60)
    points, charts = LinearMixture(3, 0, (3,), means=start), LinearMixture(3, 1, (3,), flat_prior=True, means=start)
    lloyd, subspaces = (_subspaces_by_hand(y, start, w) for w in (torch.zeros(3, 0, 3), charts.loadings.detach()))
    code = Argmax(ClosedForm())(charts, y)
    spread = torch.linspace(0, 1, 200).reshape(-1, 1, 1)  # the first of 200 sets of codes is the engine's own
    k = torch.where(torch.rand(200, 60) < 0.1 * spread[..., 0], torch.randint(3, (200, 60)), _component(code))
    near_codes = charts.log_joint(y, code.z + spread * torch.randn(200, 60, 1), k).mean(1)
    return Check(
        [
            at_most("E max_z l at every stage of k-means ≤ max_m E max_z l", torch.cat(climbs), highest),
            equal("equality at the optimal model", torch.cat(climbs).max(), highest),
            at_most("L(m) at any code ≤ E max_z l", at_codes, encoded),
            equal("equality at the optimal code", at_codes.max(), encoded),
            equal("LLGAE: the largest L(m) of 200 codes (k, z) = E max_z l", near_codes.max(), subspaces[0][0]),
            *_alternation("k-means", _alternate(points, Argmax(), y), lloyd),
            *_alternation("LLGAE", _alternate(charts, Argmax(ClosedForm()), y), subspaces),
            *_alternation("EM", _alternate(_gmm(start), Enumerate(), y, logsumexp), _em_by_hand(y, start)),
        ]
    )


@check
def check_D10() -> Check:
    """A lattice and random points of the simplex, by hand and by gae; scikit-learn's k-means."""
    model, x = LinearMixture(4, 0, (3,), scale=0.7, learn_weights=True, means=torch.randn(4, 3)), torch.randn(30, 3)
    log_parts = Normal(model.means.detach(), 0.7).log_prob(x[:, None]).sum(2)
    at_vertex = joint(Argmax()(model, x)) + math.log(4)  # without gae's own uniform weights
    vertex = one_hot(_component(Argmax()(model, x)), 4)
    weights = torch.cat([_lattice(4, 5), Dirichlet(torch.full((4,), 0.3)).sample((40,))])
    by_hand = (log_parts + weights[:, None].log()).logsumexp(2)  # (f, B)
    by_gae = []
    for f in weights:
        model.logits.data = f.clamp_min(1e-300).log()
        by_gae.append(model.log_evidence(x).log_p)
    (y, start), new = _three_groups(90), 3 * torch.randn(200, 3)
    theirs = KMeans(3, init=start.numpy(), n_init=1, max_iter=ROUNDS, tol=0.0).fit(y.numpy())
    predicted, misfit = torch.from_numpy(theirs.predict(new.numpy())), theirs.inertia_ / (2 * 0.5**2 * 90)
    ours = LinearMixture(3, 0, (3,), scale=0.5, means=start)
    constant = 3 * Normal(0.0, 0.5).log_prob(torch.tensor(0.0)) - math.log(3)
    _alternate(ours, Argmax(), y)
    return Check(
        [
            equal("max over f of log Σ_k f_k p(x|k) = max_k log p(x|k)", by_hand.amax(0), at_vertex),
            equal("its maximiser is δ(argmax_k p(x|k))", weights[by_hand.argmax(0)], vertex),
            equal("log Σ_k f_k p(x|k) in gae", torch.stack(by_gae), by_hand),
            equal("Argmax = KMeans.predict, new points", _component(Argmax()(ours, new)), predicted),
            equal("centres = those of KMeans", ours.means, torch.from_numpy(theirs.cluster_centers_)),
            equal("L = −inertia / 2σ²N + constants", joint(Argmax()(ours, y)).mean(), constant - misfit),
        ]
    )


@check
def check_D11() -> Check:
    """gae's reconstructions and assignments against scikit-learn's ``NearestNeighbors``."""
    x, new = torch.randn(25, 4), torch.randn(200, 4)
    centres = torch.cat([x, torch.randn(5, 4)])
    stored, trained = Autoencoder(LinearMixture(30, 0, (4,), means=centres), Argmax()), systems.kmeans((4,), 25)
    fit(trained, x, progress=False)
    search = NearestNeighbors(n_neighbors=5).fit(centres.numpy())
    distance, index = (torch.from_numpy(found) for found in search.kneighbors(new.numpy()))
    ranked = Enumerate()(stored.likelihood, new).log_joint.topk(5, dim=0).indices.T

    scales = (0.1, 1.0, 2.0)
    models = [LinearMixture(25, 0, (4,), scale=scale, means=x) for scale in scales]
    density = torch.stack([joint(Argmax()(model, x)).mean() for model in models])
    constant = torch.tensor([-2 * math.log(2 * math.pi * scale**2) - math.log(25) for scale in scales])
    return Check(
        claim=[
            equal("−L(X) = E ‖x − x̂‖² = 0, K = N + 5", _square(stored.reconstruct(x) - x), 0.0, 1e-12),
            equal("the same after k-means, K = N", _square(trained.reconstruct(x) - x), 0.0, 1e-12),
            equal("code of a new point = its nearest neighbour", _component(stored.encode(new)), index[:, 0]),
            equal("L of new points = −distance²", -_square(stored.reconstruct(new) - new), -distance[:, 0].square()),
            equal("five best components = five nearest neighbours", ranked, index),
        ],
        without=[
            equal("E max_k log q(k) q(x|k) = 0, σ = 0.1", density[0], 0.0),
            equal("E max_k log q(k) q(x|k) = 0, σ = 2", density[2], 0.0),
        ],
        correction=[
            equal("E max_k log q(k) q(x|k) = −D/2 log 2πσ² − log K", density, constant),
            equal("the same after k-means, σ = 1", -trained(x), constant[1]),
        ],
    )


@check
def check_D32() -> Check:
    """The bound from torch's densities against gae's evidence and responsibilities; scikit-learn's EM against gae's."""
    model, x = _gmm(torch.randn(4, 3)), 2 * torch.randn(50, 3)
    model.logits.data, model.log_scale.data = torch.randn(4), 0.3 * torch.randn(4)
    log_joint = _log_joint(x, model.means, model.log_scale.exp(), model.logits.softmax(0)).T  # (B, K)
    log_p, posterior = model.log_evidence(x).log_p, model.log_responsibilities(x).exp()
    others = torch.cat([Dirichlet(torch.full((4,), shape)).sample((30, 50)) for shape in (0.3, 3.0)])
    others = torch.cat([others, torch.lerp(posterior.expand_as(others), others, 0.03)])
    bound = _elbo(others, log_joint)
    gap = kl_divergence(Categorical(others), Categorical(logits=posterior.log()))
    even, tilted = torch.tensor([0.5, 0.5]), torch.tensor([0.51, 0.49])

    y, start = _three_groups(60)
    ours = _gmm(start)
    values = _alternate(ours, Enumerate(), y, logsumexp)
    theirs, bounds = _sklearn_em(y, start)
    return Check(
        [
            equal("ELBO(Q) = log p(x) − KL(Q ‖ p(z|x))", bound, log_p - gap),
            equal("equality at Q = p(z|x)", _elbo(posterior, log_joint), log_p),
            at_most("½ ‖Q − p(z|x)‖₁² ≤ log p(x) − ELBO(Q)", _pinsker(others, posterior), log_p - bound),
            equal("... nearly equal for even p(z|x)", _pinsker(tilted, even), -_elbo(tilted, even.log()), 1e-7),
            equal("gae's elbo over exact draws", elbo(ClosedForm(samples=8)(model, x)), log_joint.logsumexp(1)),
            equal("log p(x) per step of EM: gae's = scikit-learn's", values, bounds[: len(values)], 1e-9),
            *_alternation("EM", values, _em_by_hand(y, start)),
            equal("means after EM", ours.means, torch.from_numpy(theirs.means_), 1e-9),
            equal("variances after EM", (2 * ours.log_scale).exp(), torch.from_numpy(theirs.covariances_), 1e-9),
            equal("weights after EM", ours.log_weights.exp(), torch.from_numpy(theirs.weights_), 1e-9),
        ]
    )


def figure_D09() -> "Figure":
    """k-means from every pair of points, below the best of all partitions."""
    from matplotlib.figure import Figure

    x = 1.5 * torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    highest = _best_partition(x, torch.tensor(list(itertools.product(range(2), repeat=len(x)))))
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    climbs = _climbs(x)
    for climb in climbs:
        axes.plot(range(1, len(climb) + 1), climb, color="#0072B2", marker=".", lw=0.8, alpha=0.6)
    axes.axhline(float(highest), color="#D55E00", ls="--", label="max over m of E max_z l, by enumeration")
    axes.set(xlabel="round of k-means", ylabel="E max_z l, nats", xticks=range(1, 1 + max(map(len, climbs))))
    axes.legend(loc="lower right")
    return figure


def _three_groups(size: int) -> tuple[Tensor, Tensor]:
    """Three overlapping groups of equal size in three dimensions, and a start near their centres."""
    centres = 2 * torch.randn(3, 3)
    return centres.repeat(size // 3, 1) + torch.randn(size, 3), centres + 0.3 * torch.randn(3, 3)


def _gmm(means: Tensor) -> LinearMixture:
    return LinearMixture(len(means), 0, means.shape[1:], learn_scale=True, learn_weights=True, means=means)


def _alternate(model: LinearMixture, engine: Inference, x: Tensor, objective: Objective = joint) -> Tensor:
    """The mean objective before each M-step of gae's ``fit``, which ends when nothing changes any more."""
    history = fit(Autoencoder(model, engine, objective), x, epochs=ROUNDS, tol=1e-300, progress=False)
    return torch.tensor([-row.train_loss for row in history.rows])


def _alternation(name: str, values: Tensor, by_hand: tuple[Tensor, Tensor]) -> list[Relation]:
    """gae's values against those by hand: before each M-step, and after it at the old codes."""
    expected, between = (series[: len(values)] for series in by_hand)
    return [
        equal(f"{name}: gae's values = those by hand", values, expected),
        at_most(f"{name}: no M-step lowers them", values, between),
        at_most(f"{name}: no encoding lowers them", between[: len(values) - 1], values[1:]),
    ]


def _climbs(x: Tensor) -> list[Tensor]:
    """k-means in gae from every pair of points: the values of each run."""
    starts = itertools.combinations(range(len(x)), 2)
    return [_alternate(LinearMixture(2, 0, (2,), means=x[list(pair)]), Argmax(), x) for pair in starts]


def _best_partition(x: Tensor, codes: Tensor) -> Tensor:
    """max_m E max_z l for two points of unit noise: every partition at its own centroids."""
    scatter = []
    for k in codes:
        centroids = torch.stack([x[k == j].mean(0) for j in range(2)])  # that of no points is never looked up
        scatter.append(_square(x - centroids[k]).sum())
    return _level(2, 2) - 0.5 * torch.stack(scatter).min() / len(x)


def _subspaces_by_hand(x: Tensor, means: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """k-subspaces (with directions (K, 0, D): Lloyd): values before each M-step, and after it at the same k."""
    means, directions, values, between = means.clone(), directions.clone(), [], []
    for _ in range(ROUNDS):
        k = _residuals(x, means, directions).argmin(1)
        values.append(_residuals(x, means, directions).amin(1).mean())
        for j in k.unique().tolist():
            means[j] = x[k == j].mean(0)
            directions[j] = torch.linalg.svd(x[k == j] - means[j])[2][: directions.shape[1]]
        between.append(_residuals(x, means, directions).gather(1, k[:, None]).mean())
    level = _level(x.shape[1], len(means))
    return level - 0.5 * torch.stack(values), level - 0.5 * torch.stack(between)


def _residuals(x: Tensor, means: Tensor, directions: Tensor) -> Tensor:
    """Squared distances (N, K) to the affine subspaces."""
    centred = x[:, None] - means  # (N, K, D)
    codes = torch.einsum("nkd,ked->nke", centred, directions)
    return _square(centred - torch.einsum("nke,ked->nkd", codes, directions))


def _em_by_hand(x: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """EM of a spherical mixture: E log p(x) before each M-step, and the bound after it at the old responsibilities."""
    scale, weights, values, between = torch.ones(len(means)), torch.full((len(means),), 1 / len(means)), [], []
    for _ in range(ROUNDS):
        log_joint = _log_joint(x, means, scale, weights)
        values.append(log_joint.logsumexp(0).mean())
        share = log_joint.softmax(0)
        weights, means = share.mean(1), share @ x / share.sum(1, keepdim=True)
        square = (share * _square(x - means[:, None])).sum(1) / share.sum(1)
        scale = (square / x.shape[1]).sqrt()
        between.append(_elbo(share.T, _log_joint(x, means, scale, weights).T).mean())
    return torch.stack(values), torch.stack(between)


def _sklearn_em(x: Tensor, means: Tensor) -> tuple[GaussianMixture, Tensor]:
    """scikit-learn's EM from the same start, one step at a time, and E log p(x) before each step."""
    ones, bounds = np.ones(len(means)), []
    start = {"means_init": means.numpy(), "weights_init": ones / len(means), "precisions_init": ones}
    mixture = GaussianMixture(
        len(means), covariance_type="spherical", reg_covar=0.0, max_iter=1, warm_start=True, **start
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one step is what is asked for
        for _ in range(ROUNDS):
            bounds.append(mixture.fit(x.numpy()).lower_bound_)
    return mixture, torch.tensor(bounds)


def _log_joint(x: Tensor, means: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
    """log q(k) q(x|k), (K, N)."""
    return weights.log()[:, None] + Normal(means[:, None], scale[:, None, None]).log_prob(x).sum(2)


def _elbo(q: Tensor, log_joint: Tensor) -> Tensor:
    """E_Q[log q(x, k) − log Q(k)] over the last dimension."""
    return (q * log_joint + torch.special.entr(q)).sum(-1)


def _pinsker(q: Tensor, p: Tensor) -> Tensor:
    return (q - p).abs().sum(-1).square() / 2


def _lattice(size: int, steps: int) -> Tensor:
    """All points of the simplex whose coordinates are multiples of 1 / steps; its vertices are among them."""
    counts = itertools.product(range(steps + 1), repeat=size)
    return torch.tensor([point for point in counts if sum(point) == steps]) / steps


def _component(code: Encoding) -> Tensor:
    """The component of every point."""
    assert code.component is not None
    return code.component


def _square(difference: Tensor) -> Tensor:
    return difference.square().sum(-1)


def _level(dim: int, components: int) -> float:
    """log q(k) q(x|k) at a centre, for uniform k and unit noise."""
    return -0.5 * dim * math.log(2 * math.pi) - math.log(components)
