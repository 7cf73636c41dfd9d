"""Codes of codebook vectors: their prior, engines, training and uses, against enumeration, k-means and formulas."""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from margins import within
from problems import difference
from scipy.spatial.distance import cdist
from scipy.special import logsumexp as scipy_logsumexp
from scipy.stats import entropy, norm
from sklearn.cluster import KMeans
from torch import Tensor, nn

import gae
from gae import Autoencoder, nets
from gae.analysis.metrics import EvaluationBudget, codebook_perplexity, evaluate
from gae.data import Dataset
from gae.evidence import exact, importance
from gae.inference import (
    Amortized,
    Argmax,
    Ascent,
    Code,
    Enumerate,
    Inference,
    IteratedConditionalModes,
    Prior,
    VectorQuantizer,
    Zeros,
)
from gae.likelihood import Codebook, CodebookDistribution, Gaussian
from gae.objective import joint, logsumexp
from gae.training import fit
from gae.training.penalty import Commitment

train = partial(fit, progress=False)
K, P, E, D = 3, 4, 2, 5


def decoder(positions: int = P, vectors: int = K, decay: float | None = 0.99, scale: float = 0.5) -> Gaussian:
    prior = Codebook(vectors, positions, E, decay)
    return Gaussian(nets.mlp((positions, E), (6,), D), (positions, E), scale, prior=prior).double()


def quantizer(positions: int = P) -> VectorQuantizer:
    return VectorQuantizer(nets.mlp(D, (6,), (positions, E))).double()


def data(n: int = 7) -> Tensor:
    return torch.randn(n, D).double()


def every_code(model: Gaussian) -> Tensor:
    """All codes (K^P, P, E), written out."""
    vectors = model.prior.vectors.detach()  # type: ignore[attr-defined]
    return torch.stack([vectors[list(index)] for index in itertools.product(range(len(vectors)), repeat=P)])


def every_log_joint(model: Gaussian, x: Tensor) -> np.ndarray:
    """log p(x, z) of all codes, (K^P, B), by scipy."""
    mean = model.decoder(every_code(model)).detach().numpy()
    return norm.logpdf(x.numpy(), mean[:, None], model.scale.item()).sum(2) - P * math.log(K)


# The prior.


@pytest.mark.parametrize("coincide", [False, True])
def test_the_prior_is_a_mass(coincide: bool) -> None:
    vectors = torch.randn(K, E).double()
    vectors[1] = vectors[0] if coincide else vectors[1]
    prior = CodebookDistribution(vectors, P)
    distinct = prior.enumerate_support().unique(dim=0)
    assert len(distinct) == ((K - 1) if coincide else K) ** P
    assert prior.log_prob(distinct).exp().sum().item() == pytest.approx(1)
    assert (prior.log_prob(distinct + 1e-12) == -torch.inf).all()
    assert prior.support.is_discrete and not prior.support.check(distinct[:1] + 1e-12).any()  # type: ignore[attr-defined]
    drawn = prior.expand((2,)).sample((500,))
    assert drawn.shape == (500, 2, P, E) and prior.log_prob(drawn).isfinite().all()
    share = np.bincount(prior.nearest(drawn).flatten().numpy(), minlength=K) / 4000
    within("share", np.abs(share - (np.array([2, 0, 1]) / 3 if coincide else 1 / 3)).max(), below=0.05)


def test_nearest_vectors() -> None:
    prior = CodebookDistribution(torch.randn(20, E).double(), P)
    z = torch.randn(6, 3, P, E).double()
    wanted = cdist(z.view(-1, E).numpy(), prior.vectors.numpy()).argmin(1)
    assert np.array_equal(prior.nearest(z).flatten().numpy(), wanted)


def test_enumeration() -> None:
    model = decoder()
    assert torch.equal(model.prior.enumerate_support(), every_code(model))
    wide = model.prior.expand((2, 5))
    assert wide.enumerate_support().shape == (K**P, 2, 5, P, E)
    assert wide.enumerate_support(expand=False).shape == (K**P, 1, 1, P, E)
    with pytest.raises(ValueError, match=r"4 positions with 9 vectors each has 6.56e\+03 values, .*4096"):
        Argmax()(decoder(vectors=9), data())


# Engines: bounds on log p(x), and the maximum.


def test_joint_bounds_the_evidence_and_argmax_is_the_maximum() -> None:
    model, x = decoder(), data()
    everything = every_log_joint(model, x)
    log_p = torch.tensor(scipy_logsumexp(everything, 0))
    found = Enumerate()(model, x)
    np.testing.assert_allclose(found.log_joint.detach().numpy(), everything, rtol=1e-10)
    torch.testing.assert_close(logsumexp(found).detach(), log_p)
    torch.testing.assert_close(exact(model, x).log_p, log_p)
    torch.testing.assert_close(Autoencoder(model, quantizer()).log_evidence(x).log_p, log_p)
    for engine in (quantizer(), IteratedConditionalModes(quantizer()), IteratedConditionalModes(Zeros()), Argmax()):
        assert (joint(engine(model, x)) < log_p).all()
    best = Argmax()(model, x)
    np.testing.assert_allclose(joint(best).detach().numpy(), everything.max(0), rtol=1e-10)
    assert torch.equal(best.z[0], every_code(model)[everything.argmax(0)])


@pytest.mark.parametrize("start", [quantizer, Prior, Zeros])
def test_iterated_conditional_modes(start: Any) -> None:
    """Not below its start or any neighbour; the evaluations are those made; more starts reach the maximum."""
    model, x = decoder(), data(20)
    init = start()
    torch.manual_seed(1)
    first = model.prior.vectors[model.prior.nearest(init.infer(model, x).z)]
    torch.manual_seed(1)
    found = IteratedConditionalModes(init)(model, x)
    assert (found.log_joint >= model.log_joint(x, first)).all()
    everything, codes = every_log_joint(model, x), every_code(model)
    for b in range(len(x)):
        beside = (codes != found.z[0, b]).any(2).sum(1) <= 1
        assert found.log_joint[0, b].item() == pytest.approx(everything[beside.numpy(), b].max())
    assert found.solve is not None and "converged: 20" in found.summary()
    assert torch.equal(found.solve.evaluations, 1 + found.solve.steps * K * P)
    one = IteratedConditionalModes(init, sweeps=1)(model, x)
    assert one.solve is not None and (one.solve.steps == 1).all()


def test_restarts_find_the_maximum() -> None:
    class Draws(Inference):
        def infer(self, likelihood: Any, x: Tensor, k: Tensor | None = None) -> Code:
            return Code(likelihood.prior.sample((60, len(x))))

    model, x = decoder(), data()
    found = IteratedConditionalModes(Draws())(model, x)
    np.testing.assert_allclose(found.log_joint.amax(0).detach().numpy(), every_log_joint(model, x).max(0))
    rows = IteratedConditionalModes(Draws())
    assert rows(model, x).z.shape == (60, len(x), P, E)


def test_the_gradient_passes_straight_through() -> None:
    """To the encoder's output as if it were the code; to decoder and a learned codebook at the indices of the code."""
    model, engine, x = decoder(decay=None), quantizer(), data()
    encoding = engine(model, x)
    code = encoding.z.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.log_likelihood(x, model.outputs(code)).sum(), code)
    weights = list(engine.parameters())
    found = torch.autograd.grad(encoding.log_joint.sum(), [*weights, *model.parameters()])
    wanted = torch.autograd.grad((engine.encoder(x) * slope[0]).sum(), weights)
    for one, other in zip(found, wanted, strict=False):
        torch.testing.assert_close(one, other)
    for parameter, one in zip(model.parameters(), found[len(weights) :], strict=True):
        move = torch.randn_like(parameter)
        index = model.prior.nearest(encoding.z)

        def loss(index: Tensor = index) -> Tensor:
            return model.log_joint(x, model.prior.vectors[index]).sum()

        assert float((one * move).sum()) == pytest.approx(difference(loss, [parameter], [move], 1e-5), rel=1e-6)


# Training the codebook.


def identity(vectors: int, width: int, **options: Any) -> Autoencoder:
    """A decoder and an encoder that do nothing, so that vectors are means of points."""
    prior = Codebook(vectors, 1, width, **options)
    likelihood = Gaussian(nn.Flatten(), (1, width), learn="scalar", prior=prior)
    return Autoencoder(likelihood, VectorQuantizer(nn.Unflatten(1, (1, width)))).double()


@pytest.mark.parametrize("iterations", [1, 2, 40])
def test_an_identity_decoder_is_k_means(iterations: int, digits: Dataset) -> None:
    x = digits.train[:400].flatten(1).double()
    start = x[:: 400 // 12][:12]
    model = identity(12, 64, decay=0.0, dead=0.0)
    prior = model.likelihood.latent_prior
    prior.vectors.copy_(start)  # type: ignore[operator, union-attr]
    prior.initialized.fill_(True)  # type: ignore[operator, union-attr]
    train(model, x, epochs=iterations, batch_size=len(x))
    wanted = KMeans(12, init=start.numpy(), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(x.numpy())
    np.testing.assert_allclose(prior.vectors.numpy(), wanted.cluster_centers_, atol=1e-10)  # type: ignore[union-attr]
    code = model.likelihood.prior.nearest(model.encode(x).point)[:, 0]  # type: ignore[attr-defined]
    assert iterations < 40 or np.array_equal(code.numpy(), wanted.labels_)


def test_moving_averages_by_their_formula() -> None:
    """N ← γ N + (1 - γ) n, m ← γ m + (1 - γ) Σ z, e = m / N (van den Oord et al. 2017, eqs. 6-8)."""
    prior = Codebook(2, 1, 1, decay=0.9, dead=0.0).double()
    prior.vectors.copy_(torch.tensor([[0.0], [10.0]]))
    for outputs in ([1.0, 2.0, 9.0], [-1.0, 8.0, 7.0]):
        encoded = torch.tensor(outputs).double().view(1, 3, 1, 1)
        moments = prior.statistics(Code(encoded, encoded=encoded))
        assert moments is not None
        prior.update(moments)
    n, m = np.array([0.9 * 2 + 1, 0.9 * 1 + 2]), np.array([0.9 * 3 - 1, 0.9 * 9 + 15])
    np.testing.assert_allclose(prior.vectors.flatten().numpy(), m / n)
    np.testing.assert_allclose(prior.count.numpy(), 0.1 * n)


def test_dead_vectors_move_to_the_furthest_outputs() -> None:
    prior = Codebook(4, 1, 1, decay=0.5).double()
    prior.vectors.copy_(torch.tensor([[0.0], [100.0], [-100.0], [200.0]]))
    encoded = torch.tensor([0.0, 0.5, 6.0, 6.0, -5.0]).double().view(1, 5, 1, 1)
    moments = prior.statistics(Code(encoded, encoded=encoded))
    assert moments is not None
    prior.update(moments)
    assert prior.vectors.flatten().tolist() == pytest.approx([1.5, 6.0, -5.0, 0.5])
    assert (prior.count > 0).all()
    torch.testing.assert_close(prior.total, prior.count.unsqueeze(1) * prior.vectors)  # so that they stay
    single = torch.zeros(1, 5, 1, 1).double()  # no output is apart from its vector: nothing to move to
    prior.vectors.copy_(torch.tensor([[0.0], [100.0], [-100.0], [200.0]]))
    prior.count.zero_(), prior.total.zero_()
    moments = prior.statistics(Code(single, encoded=single))
    assert moments is not None
    prior.update(moments)
    assert prior.vectors.flatten().tolist() == [0.0, 100.0, -100.0, 200.0]


def test_moments_add_over_batches() -> None:
    prior, encoded = Codebook(6, P, E).double(), torch.randn(1, 9, P, E).double()
    whole, *parts = (prior.statistics(Code(e, encoded=e)) for e in (encoded, encoded[:, :1], encoded[:, 1:]))
    assert whole is not None and parts[0] is not None and parts[1] is not None
    total = parts[0] + parts[1]
    for name in ("count", "total", "far"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name))


def test_the_codebook_starts_among_the_outputs() -> None:
    model, engine, x = decoder(), quantizer(), data(50)
    prior = model.latent_prior
    engine.initialize(model, x, 0)
    outputs = {tuple(row) for row in engine.encoder(x).view(-1, E).tolist()}
    started = {tuple(row) for row in prior.vectors.tolist()}  # type: ignore[operator, union-attr]
    assert started <= outputs and len(started) == K
    kept = prior.vectors.clone()  # type: ignore[operator]
    engine.initialize(model, -x, 1)
    assert torch.equal(prior.vectors, kept)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"K=9 vectors need at least as many encoder outputs .* got 8"):
        engine.initialize(decoder(vectors=9), x[:2], 0)


def test_fit_starts_the_codebook_from_standardised_data() -> None:
    """The encoder takes its units from the data before its outputs start the codebook."""
    model, x = decoder(decay=None), 50 + 9 * data(40)
    encoder = nets.Standardized(nets.mlp(D, (6,), (P, E)), (D,)).double()
    train(Autoencoder(model, VectorQuantizer(encoder)), x, epochs=1, optimizer=partial(torch.optim.SGD, lr=0.0))
    outputs = encoder(x).detach().view(-1, E).numpy()
    assert encoder.loc.mean() > 40
    assert cdist(model.latent_prior.vectors.detach().numpy(), outputs).min(1).max() < 1e-9  # type: ignore[operator, union-attr]


def test_a_codebook_is_learned_by_gradients_without_an_encoder() -> None:
    torch.manual_seed(0)
    model = Autoencoder(decoder(2, decay=None), IteratedConditionalModes(Prior(), 2))
    before, x = model.likelihood.latent_prior.vectors.clone(), data(40)  # type: ignore[operator, union-attr]
    history = train(model, x, epochs=20, batch_size=40, optimizer=partial(torch.optim.Adam, lr=0.02))
    assert history.rows[-1].train_loss < history.rows[0].train_loss
    assert not torch.equal(model.likelihood.latent_prior.vectors, before)  # type: ignore[arg-type, union-attr]


# The system.


def test_the_commitment_loss_by_its_formula() -> None:
    model, x = Autoencoder(decoder(), quantizer(), penalties=[Commitment(0.3)]), data()
    encoded = model.inference.encoder(x)  # type: ignore[operator]
    vectors = model.likelihood.latent_prior.vectors  # type: ignore[union-attr]
    square = torch.cdist(encoded.view(-1, E), vectors).amin(1).square().sum() / len(x)  # type: ignore[arg-type]
    plain = -joint(model.encode(x)).mean()
    torch.testing.assert_close(model(x), plain + 0.3 * square)
    torch.testing.assert_close(model.eval()(x), plain)


def test_it_learns_digits_and_the_search_does_better(digits: Dataset) -> None:
    torch.manual_seed(0)
    model = gae.vq_vae(digits, positions=6, vectors=16, hidden=(32,))
    train(model, digits, epochs=8, batch_size=64, optimizer=partial(torch.optim.Adam, lr=3e-3))
    x, mean = digits.test[:100], digits.train.mean(0)
    encoding = model.eval().encode(x)
    error = (model.reconstruct(x) - x).square().mean() / (x - mean).square().mean()
    within("error relative to the mean image", error, below=0.7)
    search = model.encode(x, IteratedConditionalModes(model.inference, 2))
    gain = (search.log_joint - encoding.log_joint)[0]
    assert (gain > -1e-3).all()
    within("nats that the encoder gives up", gain.mean(), above=0.1)
    numbers = evaluate(model, digits, EvaluationBudget(evidence_samples=10), 0)
    index = model.likelihood.prior.nearest(model.encode(digits.test).point)  # type: ignore[attr-defined]
    share = np.bincount(index.flatten().numpy(), minlength=16)
    assert numbers["perplexity"] == pytest.approx(np.exp(entropy(share)))
    within("perplexity", numbers["perplexity"], above=4, below=16 + 1e-9)
    assert "sum over all codes" in numbers["log_p"]["reason"] and "no density" in numbers["elbo"]["reason"]


def test_perplexity() -> None:
    prior = CodebookDistribution(torch.arange(4.0).unsqueeze(1), 2)
    z = torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 1.0]]).unsqueeze(2)
    assert codebook_perplexity(prior, z) == pytest.approx(np.exp(entropy([3, 2, 0, 1])))
    assert codebook_perplexity(prior, torch.zeros(5, 2, 1)) == 1


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    """Vectors and their averages are part of a checkpoint."""

    def made() -> Autoencoder:
        torch.manual_seed(0)
        return gae.vq_vae((D,), positions=2, vectors=4, width=2, hidden=(5,))

    x, whole, parts = data(40).float(), made(), made()
    train(whole, x, epochs=4, batch_size=16)
    train(parts, x, epochs=2, batch_size=16, out=tmp_path / "run")
    parts = made()
    train(parts, x, epochs=4, batch_size=16, out=tmp_path / "run", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    again = gae.load(tmp_path / "run")
    assert torch.equal(again.encode(x).point, whole.eval().encode(x).point)


# Refusals.


def test_refusals() -> None:
    model, x = decoder(), data()
    normal = Gaussian(nn.Linear(2, D).double(), 2)
    for engine in (quantizer(), IteratedConditionalModes(Zeros())):
        with pytest.raises(TypeError, match="infers codes of codebook vectors, but the prior of this Gaussian is not"):
            engine(normal, x)
        with pytest.raises(ValueError, match="takes no component"):
            engine(model, x, torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(TypeError, match=r"`Ascent` follows gradients.*`IteratedConditionalModes`"):
        Ascent()(model, x)
    with pytest.raises(ValueError, match=r"outputs have shape \(7, 2, 2\), but codes have \(7, 4, 2\)"):
        quantizer(2)(model, x)
    with pytest.raises(ValueError, match="Codes of codebook vectors are discrete"):
        importance(model, x, model.prior)
    with pytest.raises(ValueError, match="has the same code more than once"):
        twice = Enumerate()(model, x)
        logsumexp(gae.inference.Encoding(twice.z[[0, 0]], None, twice.log_joint[[0, 0]], None, None, model.prior, "X"))
    with pytest.raises(ValueError, match=r"commitment loss needs an encoder.*got codes of `Amortized`"):
        Autoencoder(normal, Amortized(nn.Linear(D, 2).double()), penalties=[Commitment(1.0)])(x)
    with pytest.raises(ValueError, match="moving averages needs the outputs of an encoder"):
        train(Autoencoder(model, Argmax()), x, epochs=1)
    for options in ({"decay": 1.0}, {"dead": -0.1}, {"vectors": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Codebook(**({"vectors": 2, "positions": 1, "width": 1} | options))
