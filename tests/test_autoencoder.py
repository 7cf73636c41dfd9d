"""The autoencoder: shapes and values of every method, against formulas and moments."""

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from gae import Autoencoder
from gae.inference import Amortized, Argmax, Ascent, ClosedForm, Enumerate, GradientAscent, Inference, Zeros
from gae.likelihood import Bernoulli, Flat, Gaussian, Likelihood, LinearMixture
from gae.objective import elbo, iwae, joint, logsumexp
from gae.systems import build

Z, X = 2, (2, 3)


def ppca(components: int = 1, flat_prior: bool = False) -> LinearMixture:
    means = torch.randn(components, *X)
    model = LinearMixture(components, Z, X, means=means, scale=0.7, learn_weights=True, flat_prior=flat_prior)
    model.loadings.data.normal_()
    model.logits.data.normal_()
    return model.double()


def neural(prior: nn.Module | None = None) -> Gaussian:
    network = nn.Sequential(nn.Linear(Z, 8), nn.Tanh(), nn.Linear(8, 6), nn.Unflatten(1, X))
    return Gaussian(network.double(), Z, 0.7, prior=prior)


class Density(nn.Module):
    """An encoder with a density: means by one layer, scales by another."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Sequential(nn.Flatten(), nn.Linear(6, Z)).double()
        self.log_scale = nn.Sequential(nn.Flatten(), nn.Linear(6, Z)).double()

    def forward(self, x: Tensor) -> Distribution:
        return Independent(Normal(self.loc(x), self.log_scale(x).exp()), 1)


def observations(batch: int = 5) -> Tensor:
    return torch.randn(batch, *X, dtype=torch.float64)


def means(model: LinearMixture) -> Tensor:
    return model.means.detach().unflatten(1, X)


# Encoding and decoding.

ENGINES: list[tuple[Likelihood, Inference, int]] = [
    (ppca(), ClosedForm(), 1),
    (ppca(), ClosedForm(samples=4), 4),
    (ppca(), Ascent(max_steps=3), 1),
    (ppca(3), Argmax(ClosedForm()), 1),
    (ppca(3), Enumerate(ClosedForm()), 3),
    (ppca(3), ClosedForm(samples=4), 4),
    (neural(), Zeros(), 1),
    (neural(), Ascent(max_steps=3), 1),
    (neural(), Amortized(Density(), samples=4), 4),
    (neural(Flat(Z)), Amortized(nn.Sequential(nn.Flatten(), nn.Linear(6, Z)).double()), 1),
]
engines = pytest.mark.parametrize(("likelihood", "engine", "samples"), ENGINES)


@engines
def test_shapes(likelihood: Likelihood, engine: Inference, samples: int) -> None:
    model, x = Autoencoder(likelihood, engine), observations()
    encoding = model.encode(x)
    assert encoding.z.shape == (samples, 5, Z) and encoding.log_joint.shape == (samples, 5)
    assert (encoding.k is None) == (likelihood.components <= 1)
    assert encoding.point.shape == (5, Z)
    decoded = model.decode(encoding.z, encoding.k)
    assert decoded.batch_shape == (samples, 5) and decoded.event_shape == X
    assert model.reconstruct(x).shape == (5, *X)
    assert model(x).shape == ()


@engines
def test_log_joint_is_prior_times_decoder(likelihood: Likelihood, engine: Inference, samples: int) -> None:
    """Any codes of an engine are scored by the densities of the model."""
    model, x = Autoencoder(likelihood, engine), observations()
    encoding = model.encode(x)
    z, mean = encoding.z, model.decode(encoding.z, encoding.k).mean
    wanted = -0.5 * ((x - mean) / 0.7).square().sum((-1, -2)) - 6 * math.log(0.7 * math.sqrt(2 * math.pi))
    if not (isinstance(likelihood.latent_prior, Flat)):
        wanted = wanted - 0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    if encoding.k is not None and isinstance(likelihood, LinearMixture):
        wanted = wanted + likelihood.logits.log_softmax(0)[encoding.k]
    assert torch.allclose(encoding.log_joint, wanted, atol=1e-10)
    assert torch.allclose(encoding.log_prior, model.likelihood.prior.log_prob(z))


@engines
def test_the_point_is_always_the_same(likelihood: Likelihood, engine: Inference, samples: int) -> None:
    model, x = Autoencoder(likelihood, engine), observations()
    random = likelihood.components > 1 and isinstance(engine, ClosedForm)  # the best of S draws
    first, second = model.encode(x).point, model.encode(x).point
    assert random or torch.equal(first, second)


def test_the_point_of_a_density_is_its_mean() -> None:
    encoder, x = Density(), observations()
    encoding = Autoencoder(neural(), Amortized(encoder, samples=4)).encode(x)
    assert torch.equal(encoding.point, encoder.loc(x))
    assert not torch.equal(encoding.z[0], encoder.loc(x))


def test_the_point_of_branches_is_the_best() -> None:
    likelihood, x = ppca(3), observations(50)
    encoding = Autoencoder(likelihood, Enumerate(ClosedForm())).encode(x)
    best = encoding.log_joint.detach().numpy().argmax(0)
    assert encoding.component is not None and (encoding.component.numpy() == best).all()
    assert len(set(best.tolist())) > 1
    assert np.array_equal(encoding.point.detach().numpy(), encoding.z.detach().numpy()[best, range(50)])
    argmax = Autoencoder(likelihood, Argmax(ClosedForm())).encode(x)
    assert torch.equal(argmax.point, encoding.point)


def test_encode_by_another_engine_on_the_same_decoder() -> None:
    likelihood, x = ppca(), observations()
    model = Autoencoder(likelihood, ClosedForm())
    ascent = Ascent(Zeros(), GradientAscent(0.05), max_steps=500)
    found = model.encode(x, ascent)
    assert found.engine == "Ascent" and model.encode(x).engine == "ClosedForm"
    assert torch.allclose(found.point, model.encode(x).point, atol=1e-8)
    assert isinstance(model.inference, ClosedForm)


def test_held_out_data_encode_without_labels_one_by_one_or_together() -> None:
    likelihood = ppca(3)
    model = Autoencoder(likelihood, Argmax(ClosedForm()))
    likelihood.maximize(likelihood.statistics(observations(40), model.inference.infer(likelihood, observations(40))))
    held_out = observations(7)
    together = model.encode(held_out)
    for row in range(7):
        alone = model.encode(held_out[row : row + 1])
        assert torch.allclose(alone.point[0], together.point[row])
        assert alone.component is not None and together.component is not None
        assert alone.component[0] == together.component[row]


def test_encoding_is_differentiable_unless_asked_not_to_be() -> None:
    likelihood = neural()
    model, x = Autoencoder(likelihood, Ascent(max_steps=2)), observations().requires_grad_()
    encoding = model.encode(x)
    (grad,) = torch.autograd.grad(encoding.point.sum(), x)
    assert grad.abs().min() > 0
    with torch.no_grad():
        assert not model.encode(x).point.requires_grad


def test_decode_is_the_likelihood() -> None:
    likelihood = ppca(3)
    z, k = torch.randn(4, Z).double(), torch.tensor([0, 2, 1, 2])
    model = Autoencoder(likelihood, Argmax(ClosedForm()))
    wanted = likelihood.means[k] + torch.einsum("be,bed->bd", z, likelihood.loadings[k])
    assert torch.allclose(model.decode(z, k).mean, wanted.unflatten(1, X))
    assert torch.allclose(model.decode(z, k).stddev, torch.tensor(0.7).double(), atol=1e-6)


def test_reconstruct_projects_onto_the_chart() -> None:
    likelihood, x = ppca(flat_prior=True), observations()
    basis = np.linalg.qr(likelihood.loadings[0].detach().numpy().T)[0]
    residual = (x - means(likelihood)[0]).flatten(1).numpy()
    wanted = means(likelihood)[0].flatten().numpy() + residual @ basis @ basis.T
    found = Autoencoder(likelihood, ClosedForm()).reconstruct(x)
    assert np.allclose(found.flatten(1).detach().numpy(), wanted)


def test_reconstruct_of_an_amortised_model_decodes_the_mean() -> None:
    likelihood, encoder, x = neural(), Density(), observations()
    wanted = likelihood.decoder(encoder.loc(x))
    assert torch.allclose(Autoencoder(likelihood, Amortized(encoder)).reconstruct(x), wanted)


# Loss and score.


@pytest.mark.parametrize(
    ("likelihood", "engine", "objective"),
    [
        (ppca(), ClosedForm(), elbo),
        (ppca(3), Argmax(ClosedForm()), joint),
        (ppca(3), Enumerate(ClosedForm()), iwae),
        (ppca(3), Enumerate(), logsumexp),
        (neural(), Zeros(), joint),
    ],
)
def test_score_of_a_code_is_the_objective_of_its_encoding(
    likelihood: Likelihood, engine: Inference, objective: Any
) -> None:
    if isinstance(engine, Enumerate) and engine.inner is None and objective is logsumexp:
        likelihood = LinearMixture(3, 0, X, means=torch.randn(3, *X), learn_weights=True).double()
    model, x = Autoencoder(likelihood, engine, objective), observations()
    score = model.score(x, engine.infer(likelihood, x))
    assert torch.allclose(score, objective(model.encode(x)), atol=1e-10)
    assert torch.allclose(-score.mean(), model(x), atol=1e-10)


def test_loss_gradient_is_that_of_the_formula() -> None:
    """PPCA: the loss is minus the mean of a normal log density, written separately; autograd through both."""
    likelihood, x = ppca(), observations()
    Autoencoder(likelihood, ClosedForm(), elbo)(x).backward()
    loadings, mean = (v.detach().clone().requires_grad_() for v in (likelihood.loadings, likelihood.means))
    covariance = loadings[0].T @ loadings[0] + 0.49 * torch.eye(6).double()
    normal = torch.distributions.MultivariateNormal(mean[0], covariance)
    (-normal.log_prob(x.flatten(1)).mean()).backward()
    assert likelihood.loadings.grad is not None and likelihood.means.grad is not None
    assert torch.allclose(likelihood.loadings.grad, loadings.grad, atol=1e-6)
    assert torch.allclose(likelihood.means.grad, mean.grad, atol=1e-6)


# Sampling.


@pytest.mark.parametrize("components", [1, 3])
def test_sample_moments(components: int) -> None:
    """Mean and covariance of the exact marginal, in standard errors of each entry."""
    likelihood = ppca(components)
    n = 100_000
    x = Autoencoder(likelihood, Argmax(ClosedForm()) if components > 1 else ClosedForm()).sample(n)
    assert x.shape == (n, *X) and not x.requires_grad
    weights = likelihood.logits.softmax(0).detach().numpy()
    parts = [(m, w.T @ w + 0.49 * np.eye(6)) for m, w in zip(*arrays(likelihood), strict=True)]
    mean = sum(p * m for p, (m, _) in zip(weights, parts, strict=True))
    second = sum(p * (c + np.outer(m, m)) for p, (m, c) in zip(weights, parts, strict=True))
    rows = x.flatten(1).numpy()
    products = rows[:, :, None] * rows[:, None, :]
    for found, wanted in ((rows, mean), (products, second)):
        error = found.std(0) / math.sqrt(n)
        assert np.abs((found.mean(0) - wanted) / error).max() < 4.5


def arrays(likelihood: LinearMixture) -> tuple[np.ndarray, np.ndarray]:
    return likelihood.means.detach().numpy(), likelihood.loadings.detach().numpy()


def test_samples_lie_in_the_support() -> None:
    network = nn.Sequential(nn.Linear(Z, 4))
    x = Autoencoder(Bernoulli(network, Z), Zeros()).sample(50)
    assert x.unique().tolist() == [0.0, 1.0]


def test_a_flat_prior_has_no_samples() -> None:
    with pytest.raises(NotImplementedError, match="flat prior is improper and cannot be sampled"):
        Autoencoder(ppca(flat_prior=True), ClosedForm()).sample(3)


# The door.


NAN = torch.zeros(3, *X).double().index_fill(0, torch.tensor(1), math.nan)
INFINITE = torch.zeros(3, *X).double().index_fill(2, torch.tensor(2), math.inf)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 6).double(), ValueError, r"x must have shape \(B, 2, 3\), got \(3, 6\)"),
        (torch.zeros(2, 3).double(), ValueError, r"x must have shape \(B, 2, 3\), got \(2, 3\)"),
        (torch.zeros(0, 2, 3).double(), ValueError, "x is empty"),
        (torch.zeros(3, 2, 3).long(), TypeError, "x must be floating point, got torch.int64"),
        (torch.zeros(3, 2, 3), TypeError, "x is torch.float32 but the model is torch.float64"),
        (NAN, ValueError, r"finite, got nan at index \(1, 0, 0\) \(6 such values\)"),
        (INFINITE, ValueError, r"finite, got inf at index \(0, 0, 2\) \(6 such values\)"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "reconstruct", "log_evidence"])
def test_bad_observations_stop_at_the_door(x: Tensor, error: type[Exception], message: str, method: str) -> None:
    model = Autoencoder(ppca(), ClosedForm())
    with pytest.raises(error, match=message):
        getattr(model, method)(x)


LAWS = {
    "independent": (neural, lambda: Amortized(Density())),
    "drawn": (neural, lambda: Amortized(Density(), 3)),
    "exact": (ppca, ClosedForm),
    "exact, drawn": (ppca, lambda: ClosedForm(samples=4)),
    "mixture": (lambda: ppca(3), lambda: Enumerate(ClosedForm())),
    "solves": (neural, lambda: Ascent(Zeros(), GradientAscent(0.05), 30, tol=1e-2, trace=True)),
}


@pytest.mark.parametrize("kind", LAWS)
def test_batches_join_to_the_encoding_of_the_whole(kind: str) -> None:
    """In order, with q(z|x) and the summary of each solve; rows can be selected again."""
    likelihood, engine = (part() for part in LAWS[kind])
    model, x = Autoencoder(likelihood, engine), observations(7)
    torch.manual_seed(0)
    whole = model.encode(x)
    sizes: list[int] = []
    model.inference.register_forward_hook(lambda module, given, out: sizes.append(out.z.shape[1]))
    torch.manual_seed(0)
    joined = model.encode(x, batch_size=3)
    assert sizes == [3, 3, 1] and not joined.z.requires_grad
    some = joined.rows(2, 5)
    if whole.q is not None:
        assert joined.q.batch_shape == whole.q.batch_shape
        probe = whole.q.mean + 0.3
        assert torch.allclose(joined.q.log_prob(probe), whole.q.log_prob(probe), atol=1e-9)
        assert torch.allclose(some.q.log_prob(probe[..., 2:5, :]), whole.q.log_prob(probe)[..., 2:5], atol=1e-9)
    if kind not in ("independent", "drawn", "exact, drawn"):  # other draws
        assert torch.allclose(joined.log_joint, whole.log_joint, atol=1e-9)
        assert torch.equal(some.log_joint, joined.log_joint[:, 2:5])
    assert torch.allclose(joined.point, whole.point, atol=1e-9)
    if whole.solve is not None:
        assert torch.equal(joined.solve.evaluations, whole.solve.evaluations)
        assert torch.equal(joined.solve.status, whole.solve.status)
    if kind == "solves":
        assert torch.allclose(joined.solve.trace, whole.solve.trace, atol=1e-9)
        assert joined.solve.steps.unique().numel() > 1  # batches of other lengths were joined


def test_batches_without_a_size_or_a_law_that_joins_are_refused() -> None:
    class Odd(Normal):
        arg_constraints: ClassVar[dict[str, Any]] = {}

    model, x = Autoencoder(neural(), Amortized(lambda x: Independent(Odd(x[:, 0, :2], 1.0), 1))), observations(4)
    with pytest.raises(TypeError, match=r"Laws q\(z\|x\) of the kind Odd cannot be cut or joined.*without batch_size"):
        model.encode(x, batch_size=2)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.encode(x, batch_size=0)
    with pytest.raises(ValueError, match=r"finite, got nan at index \(1, 0, 0\)"):
        model.encode(NAN, batch_size=1)


def test_the_points_of_a_data_set_are_no_batch() -> None:
    model = build("tsne", (3,), points=12, perplexity=3.0, steps=2, early_steps=1)
    with pytest.raises(ValueError, match=r"One observation of TSNE is a whole data set of N = 12 points"):
        model.encode(torch.randn(12, 3), batch_size=4)
    sets = torch.randn(2, 12, 3)
    assert model.encode(sets, batch_size=1).point.shape == (2, 12, 2)


def test_values_outside_the_support_stop_at_the_door() -> None:
    model = Autoencoder(Bernoulli(nn.Linear(Z, 4), Z), Zeros())
    with pytest.raises(ValueError, match=r"Bernoulli needs x in \{0, 1\}, got 255 at index \(0, 0\)"):
        model.encode(torch.full((2, 4), 255.0))


# A module like any other.


def test_parts_are_registered_and_move_together() -> None:
    model = Autoencoder(neural(), Amortized(Density()))
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"likelihood", "inference"}
    single = model.float()
    assert single.encode(observations().float()).z.dtype == torch.float32
    assert single.sample(2).dtype == torch.float32


def test_state_dict_restores_the_model() -> None:
    x = observations()
    saved = Autoencoder(neural(), Ascent(max_steps=3))
    other = Autoencoder(neural(), Ascent(max_steps=3))
    assert not torch.allclose(other.reconstruct(x), saved.reconstruct(x))
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other.reconstruct(x), saved.reconstruct(x))
