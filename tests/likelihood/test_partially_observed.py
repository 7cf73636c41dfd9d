"""Partially observed data: row by row against the density of the observed elements alone."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from cases import net
from scipy import stats
from torch import Tensor, nn

import gae
from gae import Autoencoder, nets, systems
from gae.evidence import ais, importance, laplace, laplace_approximation
from gae.inference import (
    Amortized,
    Argmax,
    Ascent,
    ClosedForm,
    Enumerate,
    GaussNewton,
    Inference,
    IterativeAmortized,
    MeanField,
    Nearest,
    VectorQuantizer,
)
from gae.likelihood import (
    Bernoulli,
    BlendedCharts,
    Categorical,
    CategoricalSequence,
    Codebook,
    ContinuousBernoulli,
    Gaussian,
    Head,
    Laplace,
    Likelihood,
    LinearMixture,
    Mask,
    Measured,
    Multinomial,
    NonNegativeGaussian,
    PartiallyObserved,
    PartiallyObservedMixture,
    Poisson,
    VonMisesFisher,
)
from gae.objective import elbo, joint, laplace_evidence, logsumexp
from gae.systems.parts import NormalEncoder
from gae.training import fit
from gae.training.corruption import MaskingNoise

D, E, K = 5, 2, 3


def holes(x: Tensor, share: float = 0.4) -> Tensor:
    """Elements of x missing at random; the first row has none, the second nothing else."""
    hidden = torch.rand(x.shape) < share
    hidden[0], hidden[1] = False, True
    return x.double().masked_fill(hidden, torch.nan)


def mixture(components: int = K, latent: int = E) -> PartiallyObservedMixture:
    model = PartiallyObservedMixture(
        components, latent, (D,), learn_scale=True, learn_weights=True, means=torch.randn(components, D)
    ).double()
    model.loadings.data.copy_(torch.randn_like(model.loadings))
    model.log_scale.data.copy_(0.3 * torch.randn(components) - 0.5)
    model.logits.data.copy_(torch.randn(components))
    return model


def numbers(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


def parts(model: LinearMixture) -> tuple[np.ndarray, ...]:
    """Log weights, means, covariances and loadings of the components."""
    weights, means, loadings, scale = numbers(model.log_weights, model.means, model.loadings, model.log_scale.exp())
    covariance = np.swapaxes(loadings, 1, 2) @ loadings + scale[:, None, None] ** 2 * np.eye(means.shape[1])
    return weights, means, covariance, loadings


def observed_log_densities(model: LinearMixture, x: Tensor) -> np.ndarray:
    """log q(k) N(x_obs; mean_obs, covariance_obs) of each row and component, by scipy."""
    weights, means, covariances, _ = parts(model)
    table = np.tile(weights, (len(x), 1))
    for row, values in enumerate(x.numpy()):
        seen = ~np.isnan(values)
        for k in range(len(weights)) if seen.any() else ():
            law = stats.multivariate_normal(means[k][seen], covariances[k][np.ix_(seen, seen)])
            table[row, k] += law.logpdf(values[seen])
    return table


@pytest.mark.parametrize("latent", [0, E])
def test_evidence_and_responsibilities_of_a_mixture_are_scipys_of_the_observed_part(latent: int) -> None:
    model, x = mixture(latent=latent), holes(2 * torch.randn(12, D))
    wanted = observed_log_densities(model, x)
    evidence = np.logaddexp.reduce(wanted, axis=1)
    np.testing.assert_allclose(model.log_evidence(x).log_p.detach(), evidence, atol=1e-10)
    np.testing.assert_allclose(model.log_responsibilities(x).detach(), wanted - evidence[:, None], atol=1e-10)
    assert model.log_evidence(x).log_p[1].abs() < 1e-12  # nothing was observed
    if not latent:
        best = Argmax()(model, x)
        np.testing.assert_array_equal(best.k[0], wanted.argmax(1))
        np.testing.assert_allclose(best.log_joint[0].detach(), wanted.max(1), atol=1e-10)


def test_evidence_stays_exact_where_the_noise_is_small_and_the_data_are_far() -> None:
    """Against 50 digits: a covariance with eigenvalues of 1e-8 beside ones of 1 is beyond scipy's float64."""
    model, x = mixture(1), holes(1e3 + torch.randn(12, D).double())
    model.log_scale.data.fill_(np.log(1e-4))
    model.means.data += 1e3
    (mean,), (loadings,) = numbers(model.means, model.loadings)
    wanted = []
    with mpmath.workdps(50):
        noise = mpmath.exp(2 * mpmath.mpf(model.log_scale.item()))
        for values in x.numpy():
            seen = np.flatnonzero(~np.isnan(values))
            if not len(seen):
                wanted.append(0.0)
                continue
            chart = mpmath.matrix(loadings[:, seen].T.tolist())
            covariance = chart * chart.T + noise * mpmath.eye(len(seen))
            residual = mpmath.matrix([mpmath.mpf(values[d]) - mpmath.mpf(mean[d]) for d in seen])
            square = (residual.T * mpmath.lu_solve(covariance, residual))[0]
            volume = mpmath.log(mpmath.det(covariance)) + len(seen) * mpmath.log(2 * mpmath.pi)
            wanted.append(float(-(square + volume) / 2))
    np.testing.assert_allclose(model.log_evidence(x).log_p.detach(), wanted, rtol=1e-10, atol=1e-8)


def test_posterior_is_the_conditional_normal_of_the_joint() -> None:
    model, x = mixture(1), holes(2 * torch.randn(12, D))
    _, (mean,), (covariance,), (loadings,) = parts(model)
    q = model.posterior(x)
    code = q.mean[0].detach().numpy()
    imputed = Autoencoder(model, ClosedForm()).reconstruct(x).detach().numpy()
    for row, values in enumerate(x.numpy()):
        seen = ~np.isnan(values)
        gain = loadings[:, seen] @ np.linalg.pinv(covariance[np.ix_(seen, seen)])
        residual = values[seen] - mean[seen]
        np.testing.assert_allclose(code[row], gain @ residual, atol=1e-10)
        spread = np.eye(E) - gain @ loadings[:, seen].T
        np.testing.assert_allclose(q.covariance_matrix[0, row].detach(), spread, atol=1e-10)
        across = covariance[np.ix_(~seen, seen)] @ np.linalg.pinv(covariance[np.ix_(seen, seen)])
        np.testing.assert_allclose(imputed[row, ~seen], mean[~seen] + across @ residual, atol=1e-8)
    assert np.isfinite(imputed).all()


def test_complete_rows_are_those_of_the_plain_mixture() -> None:
    model, x = mixture(), torch.randn(7, D).double()
    plain = LinearMixture(K, E, (D,), learn_scale=True, learn_weights=True).double()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.log_evidence(x).log_p, plain.log_evidence(x).log_p, rtol=1e-12, atol=1e-12)
    for k in (None, torch.arange(K).unsqueeze(1)):
        z = torch.randn(K, 7, E).double()
        torch.testing.assert_close(model.log_joint(x, z, k), plain.log_joint(x, z, k), rtol=1e-12, atol=1e-12)
    k = torch.arange(K).unsqueeze(1)
    torch.testing.assert_close(model.scores(x, z, k), plain.scores(x, z, k), rtol=1e-10, atol=1e-10)


# Heads: against ``Measured`` with the mask of each row, and against scipy.

HEADS: dict[str, tuple[Callable[[], Head], Callable[[Tensor], Tensor]]] = {
    "gaussian": (lambda: Gaussian(net(E, (2, 3)), E, 0.7, learn="scalar"), lambda noise: noise),
    "laplace": (lambda: Laplace(net(E, (2, 3)), E, 0.7, learn="scalar"), lambda noise: noise),
    "bernoulli": (lambda: Bernoulli(net(E, (2, 3)), E), lambda noise: (noise > 0).double()),
    "continuous": (lambda: ContinuousBernoulli(net(E, (2, 3)), E), lambda noise: noise.sigmoid()),
    "poisson": (lambda: Poisson(net(E, (2, 3)), E), lambda noise: noise.abs().round()),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_has_the_density_and_gradients_of_each_rows_own_measurement(name: str) -> None:
    build, support = HEADS[name]
    head = build().double()
    model = PartiallyObserved(head)
    x = holes(support(torch.randn(6, 2, 3).double()))
    z = torch.randn(3, 6, E).double().requires_grad_()
    variables = [z, *head.parameters()]
    wanted = []
    for row in range(len(x)):
        seen = ~x[row].isnan()
        if seen.any():
            measured = Measured(head, Mask(seen, (2, 3)))
            wanted.append(measured.log_joint(x[row : row + 1][:, seen], z[:, row : row + 1]))
        else:
            wanted.append(head.prior.log_prob(z[:, row : row + 1]))
    expected = torch.cat(wanted, 1)
    slopes = torch.autograd.grad(expected.sum(), variables)
    for log_joint in (model.log_joint(x, z), model.bind(x)(z), model.prior.log_prob(z) + model(z).log_prob(x)):
        torch.testing.assert_close(log_joint, expected, rtol=1e-12, atol=1e-12)
        for slope, other in zip(torch.autograd.grad(log_joint.sum(), variables), slopes, strict=True):
            torch.testing.assert_close(slope, other, rtol=1e-10, atol=1e-10)


def test_classes_are_observed_one_by_one() -> None:
    model = PartiallyObserved(Categorical(net(E, (3, 4)), E).double())
    x, z = torch.tensor([[0.0, torch.nan, 3.0]]).double(), torch.randn(1, 1, E).double()
    mass = model.outputs(z)[0, 0].log_softmax(-1)
    torch.testing.assert_close(
        model.log_joint(x, z) - model.prior.log_prob(z), (mass[0, 0] + mass[2, 3]).view(1, 1), rtol=1e-12, atol=1e-12
    )


def test_an_overflow_at_an_unobserved_element_reaches_no_gradient() -> None:
    decoder = nn.Linear(E, 2).double()
    decoder.bias.data[1] = 1e5  # a rate of e^100000
    model = PartiallyObserved(Poisson(decoder, E))
    x, z = torch.tensor([[2.0, torch.nan]]).double(), torch.zeros(1, 1, E).double().requires_grad_()
    for log_joint in (model.log_joint(x, z), model.bind(x)(z)):
        slopes = torch.autograd.grad(log_joint.sum(), [z, *decoder.parameters()])
        assert all(slope.isfinite().all() for slope in slopes)
        assert (slopes[1][1] == 0).all() and slopes[2][1] == 0 and slopes[2][0] != 0


# Inference without closed forms: factor analysis, whose evidence scipy knows.


def factor_analysis() -> tuple[PartiallyObserved, Callable[[Tensor], np.ndarray]]:
    """x ~ N(W z + b, diag(scale²)), and log N(x_obs) by scipy."""
    head = Gaussian(nn.Linear(E, D), E, 0.6, learn="pixel").double()
    head.log_scale.data += 0.3 * torch.randn(D)
    weight, bias, scale = numbers(head.decoder.weight, head.decoder.bias, head.scale)
    covariance = weight @ weight.T + np.diag(scale**2)

    def evidence(x: Tensor) -> np.ndarray:
        rows = []
        for values in x.numpy():
            seen = ~np.isnan(values)
            law = stats.multivariate_normal(bias[seen], covariance[np.ix_(seen, seen)]) if seen.any() else None
            rows.append(0.0 if law is None else law.logpdf(values[seen]))
        return np.array(rows)

    return PartiallyObserved(head), evidence


def test_ascent_laplace_and_importance_give_the_evidence_of_factor_analysis() -> None:
    model, evidence = factor_analysis()
    x = holes(torch.randn(8, D))
    wanted = torch.from_numpy(evidence(x))
    newton = Ascent(step=GaussNewton(), max_steps=3)  # exact after one step: the curvature is of observed elements
    torch.testing.assert_close(laplace(model, x, newton).log_p, wanted, rtol=1e-8, atol=1e-8)
    engine = systems.laplace_gae((D,), latent=E).inference
    torch.testing.assert_close(laplace_evidence(engine(model, x)), wanted, rtol=1e-8, atol=1e-8)
    code = newton(model, x).point
    torch.testing.assert_close(code[1], torch.zeros(E).double(), rtol=0, atol=1e-12)  # nothing was observed
    q = laplace_approximation(model, x, code)
    torch.testing.assert_close(importance(model, x, q, samples=4).log_p, wanted, rtol=1e-8, atol=1e-8)


def test_annealed_importance_sampling_estimates_the_evidence_of_the_observed_part() -> None:
    model, evidence = factor_analysis()
    x = holes(torch.randn(4, D))
    estimate = ais(model, x, temperatures=60, chains=100, leapfrog=5)
    error = (estimate.log_p - torch.from_numpy(evidence(x))).abs()
    assert (error < 5 * estimate.standard_error + 0.05).all()


def test_the_inference_gap_of_the_exact_family_is_zero() -> None:
    model, evidence = factor_analysis()
    x = holes(torch.randn(3, D))
    gap = gae.inference_gap(model, x, families=("full covariance",), samples=200, draws=50)
    bound = gap.best["full covariance"].value
    torch.testing.assert_close(bound, torch.from_numpy(evidence(x)), rtol=0, atol=1e-5)


# Closed-form learning.

LEARNERS: dict[str, tuple[Callable[[], LinearMixture], Inference, Any]] = {
    "ppca": (lambda: PartiallyObservedMixture(1, E, (D,), learn_scale=True), ClosedForm(), elbo),
    "pca": (lambda: PartiallyObservedMixture(1, E, (D,), flat_prior=True), ClosedForm(), joint),
    "kmeans": (lambda: PartiallyObservedMixture(K, 0, (D,)), Argmax(), joint),
    "gmm": (
        lambda: PartiallyObservedMixture(K, 0, (D,), learn_scale=True, learn_weights=True),
        Enumerate(),
        logsumexp,
    ),
    "llgae": (lambda: PartiallyObservedMixture(2, 1, (D,), flat_prior=True), Argmax(ClosedForm()), joint),
}


def table(rows: int = 200) -> Tensor:
    """Three clusters with two directions of variance, in units of 5 about 20; each row has at least three elements."""
    x = torch.randn(rows, E) @ torch.randn(E, D) + 4 * torch.randn(K, D)[torch.arange(rows) % K]
    x = holes(20 + 5 * x + torch.randn(rows, D), 0.3)
    known = (~x.isnan()).sum(1) >= 3
    return x[known]


@pytest.mark.parametrize("name", LEARNERS)
def test_no_pass_over_the_data_raises_the_loss(name: str) -> None:
    build, engine, objective = LEARNERS[name]
    model = Autoencoder(build().double(), engine, objective)
    losses = [row.train_loss for row in fit(model, table(), epochs=12, progress=False).rows]
    assert all(later <= earlier + 1e-9 * abs(earlier) for earlier, later in pairwise(losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("components", [1, K])
def test_no_step_of_em_lowers_the_evidence(components: int) -> None:
    """From parameters that no closed form has made, with codes far from their prior."""
    model, x = mixture(components), table()
    model.means.data += 20
    engine = ClosedForm() if components == 1 else Enumerate(ClosedForm())
    evidence = [model.log_evidence(x).log_p.sum().detach()]
    for _ in range(6):
        model.maximize(model.statistics(x, engine.infer(model, x)))
        evidence.append(model.log_evidence(x).log_p.sum().detach())
    assert all(later > earlier for earlier, later in pairwise(evidence))


def test_one_step_of_em_finds_the_mean_of_complete_data() -> None:
    """Plain EM would only approach it: the mean of the codes is absorbed into that of the data."""
    model, x = mixture(1), 3 + torch.randn(30, D).double()
    model.maximize(model.statistics(x, ClosedForm().infer(model, x)))
    torch.testing.assert_close(model.means.detach()[0], x.mean(0), rtol=1e-10, atol=1e-10)


def test_learning_ends_at_a_maximum_of_the_exact_evidence() -> None:
    """The gradient of log p(x_obs), which EM does not use, vanishes in every parameter."""
    x = table()
    for model, engine, objective in (
        (PartiallyObservedMixture(1, E, (D,), learn_scale=True).double(), ClosedForm(), elbo),
        (LEARNERS["gmm"][0]().double(), Enumerate(), logsumexp),
        (mixture(2, 1), Enumerate(ClosedForm()), elbo),
    ):
        trained = Autoencoder(model, engine, objective)
        model.initialized.fill_(False)
        fit(trained, x, epochs=600, tol=1e-8, progress=False)
        names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.numel()), strict=True)
        slopes = torch.autograd.grad(model.log_evidence(x).log_p.mean(), parameters)
        deviations = {"means": 5.0, "loadings": 5.0}  # of the data; logarithms of scales and weights have no unit
        sizes = [
            deviations.get(name, 1.0) * float(slope.abs().max()) for name, slope in zip(names, slopes, strict=True)
        ]
        assert max(sizes) < 1e-4


@pytest.mark.parametrize("flat_prior", [False, True])
def test_learning_from_complete_data_is_the_closed_form(flat_prior: bool) -> None:
    """Eigenvectors of the covariance (Tipping & Bishop 1999), which EM reaches by passes over the data."""
    x = 20 + 5 * torch.randn(100, E).double() @ torch.randn(E, D).double() + torch.randn(100, D).double()
    models = []
    for build in (PartiallyObservedMixture, LinearMixture):
        model = build(1, E, (D,), flat_prior=flat_prior, learn_scale=not flat_prior).double()
        fit(Autoencoder(model, ClosedForm(), joint if flat_prior else elbo), x, epochs=300, tol=1e-9, progress=False)
        models.append(model)
    for name in ("means", "loadings", "log_scale"):
        torch.testing.assert_close(*(getattr(model, name) for model in models), rtol=1e-5, atol=1e-5)


def test_kmeans_ends_where_means_and_observed_distances_agree() -> None:
    x = table()
    trained = Autoencoder(PartiallyObservedMixture(K, 0, (D,)).double(), Argmax(), joint)
    fit(trained, x, progress=False)
    means, values = trained.likelihood.means.detach().numpy(), x.numpy()
    distance = np.nansum((values[:, None] - means) ** 2, 2)
    np.testing.assert_array_equal(trained.encode(x).k[0], distance.argmin(1))
    for k in range(K):
        np.testing.assert_allclose(np.nanmean(values[distance.argmin(1) == k], 0), means[k], rtol=1e-8)


def test_an_element_without_observations_in_a_component_keeps_its_parameters() -> None:
    x = torch.tensor([[0.0, 0.0], [0.2, 0.1], [9.0, torch.nan], [9.1, torch.nan]]).double()
    model = PartiallyObservedMixture(2, 0, (2,), means=torch.tensor([[0.0, 1.0], [9.0, 5.0]])).double()
    model.maximize(model.statistics(x, Argmax().infer(model, x)))
    wanted = torch.tensor([[0.1, 0.05], [9.05, 5.0]]).double()
    torch.testing.assert_close(model.means.detach(), wanted, rtol=1e-12, atol=1e-12)


# Encoders.


def test_an_encoders_statistics_are_those_of_observed_elements() -> None:
    x = table()
    encoder = nets.Standardized(nn.Identity(), (D,), missing=True).double()
    encoder.initialize(None, x, seed=0)
    np.testing.assert_allclose(encoder.loc, np.nanmean(x, 0), rtol=1e-6)  # buffers were float32
    seen = ~np.isnan(x.numpy())
    output = encoder(x).numpy()
    np.testing.assert_array_equal(output[:, D:], seen)
    assert (output[:, :D][~seen] == 0).all()
    np.testing.assert_allclose((output[:, :D] ** 2).sum(0) / seen.sum(0), np.nanvar(x / encoder.scale, 0), rtol=1e-5)


class Checked(nn.Module):
    """Returns a distribution that checks its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(D, E)

    def forward(self, x: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Normal(self.network(x), 1.0, validate_args=True), 1)


@pytest.mark.parametrize(
    "engine",
    [
        lambda: Amortized(nn.Linear(D, E)),
        lambda: Amortized(NormalEncoder(nn.Linear(D, 2 * E))),
        lambda: Amortized(Checked()),
        lambda: Ascent(Amortized(nn.Linear(D, E))),
    ],
)
def test_an_encoder_that_takes_no_mask_is_refused(engine: Callable[[], Inference]) -> None:
    model = PartiallyObserved(Gaussian(nn.Linear(E, D), E))
    complete = torch.randn(3, D)
    assert engine()(model, complete).z.isfinite().all()
    with pytest.raises(ValueError, match=r"takes no mask\. Build it as .*missing=True.*or infer codes .*Ascent"):
        engine()(model, holes(complete).float())


def test_other_engines_that_cannot_take_the_mask_are_refused() -> None:
    x = holes(torch.randn(3, D)).float()
    coded = PartiallyObserved(Gaussian(nets.mlp((2, 1), (), D), (2, 1), prior=Codebook(4, 2, 1)))
    with pytest.raises(ValueError, match="takes no mask"):
        VectorQuantizer(nets.mlp(D, (), (2, 1)))(coded, x)
    learned = Ascent(step=IterativeAmortized((2, E), (4,), (D,)), max_steps=2, family=MeanField())
    with pytest.raises(TypeError, match=r"Use `IterativeAmortized\(\.\.\., missing=True\)`"):
        learned(PartiallyObserved(Gaussian(nn.Linear(E, D), E)), x)
    with pytest.raises(TypeError, match=r"compares complete observations.*Use `Argmax\(\)`"):
        Nearest()(PartiallyObservedMixture(K, 0, (D,)), x)


def test_corruption_observes_nothing() -> None:
    """Masking noise sets an observed element to 0 with its mask at 1; an unobserved one stays unobserved."""
    inputs: list[Tensor] = []
    model = systems.ae((D,), latent=E, hidden=(), missing=True)
    model.inference.guide.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    noisy = Autoencoder(model.likelihood, model.inference, joint, corruption=MaskingNoise(1.0))
    x = holes(torch.randn(4, D)).float()
    assert noisy(x).isfinite()
    assert torch.equal(inputs[0].isnan(), x.isnan()) and (inputs[0][~x.isnan()] == 0).all()


# What is refused.

DEPENDENT: dict[str, Callable[[], Likelihood]] = {
    "Multinomial": lambda: Multinomial(nn.Linear(E, D), E, 6),
    "VonMisesFisher": lambda: VonMisesFisher(nn.Linear(E, D), E),
    "CategoricalSequence": lambda: CategoricalSequence(nets.sequence.LSTMDecoder(E, 4, 2, 3), E, 4, 4),
    "NonNegativeGaussian": lambda: NonNegativeGaussian(E, (D,)),
    "BlendedCharts": lambda: BlendedCharts(2, E, (D,)),
    "LinearMixture": lambda: LinearMixture(K, 0, (D,)),
    "PartiallyObserved": lambda: PartiallyObserved(Gaussian(nn.Linear(E, D), E)),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_likelihood_without_a_density_of_single_elements_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=rf"\b{name}\b.*(Use|remove)"):
        PartiallyObserved(DEPENDENT[name]())


def test_nan_is_refused_by_default_and_the_message_names_the_option() -> None:
    x = holes(torch.randn(3, D)).float()
    with pytest.raises(ValueError, match=r'got nan at index .*`missing=True`.*missing="mask".*PartiallyObserved'):
        Gaussian(nn.Linear(E, D), E).check(x)
    x[0, 0] = torch.inf
    model = PartiallyObserved(Bernoulli(nn.Linear(E, D), E))
    with pytest.raises(ValueError, match=r"x must be finite, got inf at index \(0, 0\) \(1 such values\)"):
        model.check(x)
    with pytest.raises(ValueError, match=r"needs x in \{0, 1\}, got 0.5 at index \(0, 0\) \(1 such values\)"):
        model.check(torch.tensor([[0.5, torch.nan, 0.0, 1.0, 1.0]]))


def test_training_data_that_determine_nothing_are_refused() -> None:
    x = table().float()
    never = x.clone()
    never[:, 2] = torch.nan
    for name in ("ppca", "vae"):
        with pytest.raises(ValueError, match=r"x\[:, 2\] is NaN in all \d+ training observations"):
            fit(systems.build(name, (D,), missing=True), never, progress=False)
    x[3, :4] = torch.nan
    with pytest.raises(ValueError, match=r"Sample 3 has 1 observed elements.*code of 2 elements.*ppca instead of pca"):
        fit(systems.pca((D,), latent=E, missing=True), x, progress=False)
    model = PartiallyObservedMixture(1, E, (D,), flat_prior=True)
    with pytest.raises(ValueError, match="Sample 0 has 1 observed elements"):
        model.posterior(x[3:4])


def test_a_system_without_the_option_refuses_such_data() -> None:
    from dataclasses import replace

    data = replace(gae.data.load("circles"), missing=True)
    with pytest.raises(ValueError, match=r"nmf needs complete observations.*ppca, gmm, vae"):
        systems.nmf(data)
    assert isinstance(systems.kmeans(data).likelihood, PartiallyObservedMixture)


# Systems.


@pytest.mark.parametrize(
    ("name", "options"), [("vae", {"hidden": (8,)}), ("laplace-gae", {"hidden": (8,), "steps": 2}), ("ppca", {})]
)
def test_a_system_is_saved_with_its_mask(name: str, options: dict[str, Any], tmp_path: Any) -> None:
    x = table().float()
    model = systems.build(name, (D,), latent=E, missing=True, **options)
    fit(model, x, epochs=2, progress=False)
    again = gae.load(model.eval().save(tmp_path / "model"))
    restored = again.reconstruct(x)
    assert restored.isfinite().all()
    torch.testing.assert_close(restored, model.reconstruct(x), rtol=0, atol=0)
    assert model.encode(x).log_joint.isfinite().all() and model.log_evidence(x[:3], samples=20).log_p.isfinite().all()


def test_an_image_encoder_gets_a_channel_of_the_mask_for_each_of_its_own() -> None:
    model = systems.conv_vae((3, 8, 8), channels=(2,), missing=True)
    assert model.inference.guide.network[0].in_channels == 6
    x = torch.rand(4, 3, 8, 8)
    assert model.reconstruct(x.masked_fill(x < 0.3, torch.nan)).isfinite().all()


def test_the_codes_of_two_masks_of_one_row_differ() -> None:
    """The encoder sees which elements are 0 because they are unknown."""
    model = systems.vae((D,), latent=E, hidden=(8,), missing=True).eval()
    x = torch.zeros(2, D)
    x[0, 1] = torch.nan
    point = model.encode(x).point
    assert (point[0] - point[1]).abs().max() > 1e-3
