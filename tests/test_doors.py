"""Every public entry point refuses what does not fit, and says so; laws that are no densities are not taken for one."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, StickBreakingTransform, TanhTransform, TransformedDistribution

from gae import Autoencoder, nets
from gae.analysis.anomaly import anomaly_scores
from gae.analysis.chains import contractive_walk, denoising_walk
from gae.analysis.inference_gap import inference_gap, lower_bound
from gae.evidence import ais, exact, importance, laplace, laplace_approximation, nuts, reverse_ais
from gae.inference import (
    Amortized,
    Ascent,
    ClosedForm,
    Encoding,
    Enumerate,
    Inference,
    Mode,
    Nearest,
    Prior,
    Zeros,
    to_pyro,
)
from gae.likelihood import TSNE, Bernoulli, Gaussian, LinearMixture
from gae.objective import elbo, iwae, joint, logsumexp

EVENT, B = (1, 4, 4), 5
Call = Callable[[Autoencoder, Tensor], Any]


def image_model() -> Autoencoder:
    decoder = nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, EVENT))
    return Autoencoder(Gaussian(decoder, 2), Amortized(nn.Sequential(nn.Flatten(1), nn.Linear(16, 2))))


def chart_model() -> Autoencoder:
    return Autoencoder(LinearMixture(1, 2, EVENT), ClosedForm(), elbo)


def points_model() -> Autoencoder:
    return Autoencoder(LinearMixture(3, 0, EVENT, means=torch.randn(3, *EVENT)), Enumerate(), logsumexp)


def codes(x: Tensor) -> Tensor:
    return torch.zeros(1, len(x), 2)


def normals(x: Tensor) -> torch.distributions.Distribution:
    return dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1)


ENTRIES: dict[str, tuple[Callable[[], Autoencoder], Call]] = {
    "loss": (image_model, lambda m, x: m(x)),
    "encode": (image_model, lambda m, x: m.encode(x)),
    "encode-by-ascent": (image_model, lambda m, x: m.encode(x, Ascent(max_steps=1))),
    "reconstruct": (image_model, lambda m, x: m.reconstruct(x)),
    "model-evidence": (image_model, lambda m, x: m.log_evidence(x)),
    "score": (image_model, lambda m, x: m.score(x, m.inference.infer(m.likelihood, torch.zeros(len(x), *EVENT)))),
    "log_joint": (image_model, lambda m, x: m.likelihood.log_joint(x, codes(x))),
    "bind": (image_model, lambda m, x: m.likelihood.bind(x)(codes(x))),
    "engine": (image_model, lambda m, x: Zeros()(m.likelihood, x)),
    "infer": (image_model, lambda m, x: Prior().infer(m.likelihood, x)),
    "ascent": (image_model, lambda m, x: Ascent(max_steps=1)(m.likelihood, x)),
    "objective": (image_model, lambda m, x: joint(Zeros()(m.likelihood, x))),
    "importance": (image_model, lambda m, x: importance(m.likelihood, x, normals(x), 4)),
    "ais": (image_model, lambda m, x: ais(m.likelihood, x, 2, 2)),
    "reverse_ais": (image_model, lambda m, x: reverse_ais(m.likelihood, x, codes(x)[0], 2, 2)),
    "laplace": (image_model, lambda m, x: laplace(m.likelihood, x)),
    "laplace_approximation": (image_model, lambda m, x: laplace_approximation(m.likelihood, x, codes(x)[0])),
    "nuts": (image_model, lambda m, x: nuts(m.likelihood, x, 4, 1)),
    "to_pyro": (image_model, lambda m, x: to_pyro(m.likelihood)(x)),
    "inference_gap": (image_model, lambda m, x: inference_gap(m, x)),
    "lower_bound": (image_model, lambda m, x: lower_bound(m.likelihood, x, normals(x))),
    "anomaly_scores": (image_model, lambda m, x: anomaly_scores(m, x)),
    "denoising_walk": (image_model, lambda m, x: denoising_walk(m, x, 1, lambda seen: seen)),
    "contractive_walk": (image_model, lambda m, x: contractive_walk(m, x, 1, 0.1)),
    "chart-loss": (chart_model, lambda m, x: m(x)),
    "exact": (chart_model, lambda m, x: exact(m.likelihood, x)),
    "posterior": (chart_model, lambda m, x: m.likelihood.posterior(x)),
    "chart-log_joint": (chart_model, lambda m, x: m.likelihood.log_joint(x, codes(x))),
    "log_evidence": (points_model, lambda m, x: m.likelihood.log_evidence(x).log_p),
    "log_responsibilities": (points_model, lambda m, x: m.likelihood.log_responsibilities(x)),
    "enumerate": (points_model, lambda m, x: m.encode(x)),
    "nearest": (points_model, lambda m, x: Nearest()(m.likelihood, x)),
}

every_entry = pytest.mark.parametrize("name", ENTRIES)


@every_entry
@pytest.mark.usefixtures("unchecked_types")
def test_what_does_not_fit_is_refused(name: str) -> None:
    """Images without their channel axis broadcast; NaN makes an argmax 0; whole numbers and float64 are promoted."""
    build, call = ENTRIES[name]
    model = build()
    x = torch.randn(B, *EVENT)
    for bad in (x[:, 0], x[0], x.flatten(1), x.expand(2, B, *EVENT)):
        with pytest.raises(ValueError, match=r"x must have shape \(B, 1, 4, 4\), got .*Reshape each observation"):
            call(model, bad)
    for value in (math.nan, math.inf):
        spoilt = x.clone()
        spoilt[3, 0, 1, 2] = value
        with pytest.raises(ValueError, match=r"x must be finite, got .* at index \(3, 0, 1, 2\)"):
            call(model, spoilt)
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        call(model, x.long())
    with pytest.raises(TypeError, match=r"x is torch\.float64 but the model is torch\.float32"):
        call(model, x.double())
    with pytest.raises(ValueError, match="x is empty"):
        call(model, x[:0])


@pytest.mark.usefixtures("unchecked_types")
def test_modes_of_relations_are_checked() -> None:
    from gae.likelihood import LLE

    for call in (lambda x: Mode()(LLE(8, (3,)), x), lambda x: TSNE(8, (3,), perplexity=2.0).relation(x)):
        with pytest.raises(ValueError, match=r"whole data set of N = 8 points.*got \(8, 3\)"):
            call(torch.randn(8, 3))


@pytest.mark.usefixtures("unchecked_types")
def test_another_device_is_named() -> None:
    with pytest.raises(ValueError, match=r"x is on meta but the model on cpu"):
        image_model().likelihood.check_device(torch.zeros(2, *EVENT, device="meta"))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("model", [image_model(), chart_model()], ids=["head", "chart"])
def test_codes_that_do_not_fit_are_refused(model: Autoencoder) -> None:
    x, log_joint = torch.randn(B, *EVENT), model.likelihood.log_joint
    for bad in (torch.zeros(B, 2), torch.zeros(1, B, 4), torch.zeros(1, B + 1, 2), torch.zeros(1, 1, B, 2)):
        with pytest.raises(ValueError, match=r"z must have shape \(S, B, 2\) with B = 5"):
            log_joint(x, bad)
    assert torch.equal(log_joint(x, torch.ones(7, 1, 2)), log_joint(x, torch.ones(7, B, 2)))  # one code for all
    with pytest.raises(ValueError, match=r"Codes must have shape \(\*L, 2\), got \(1, 4\)"):
        model.decode(torch.zeros(1, 4))


@pytest.mark.usefixtures("unchecked_types")
def test_components_that_do_not_exist_are_refused() -> None:
    """An index of -1 would be the last component."""
    likelihood, x = points_model().likelihood, torch.randn(B, *EVENT)
    z = torch.zeros(1, B, 0)
    for bad in (-1, 3):
        with pytest.raises(ValueError, match=r"k must lie in 0 \.\.\. 2"):
            likelihood.log_joint(x, z, torch.full((1, B), bad))
    with pytest.raises(TypeError, match=r"k must be a torch\.Tensor of dtype torch\.long, got torch\.float32"):
        likelihood.log_joint(x, z, torch.zeros(1, B))
    with pytest.raises(ValueError, match=r"k must have shape \(S, 1\) or \(S, B\) with B = 5, got \(5,\)"):
        ClosedForm().infer(likelihood, x, torch.zeros(B, dtype=torch.long))


@pytest.mark.usefixtures("unchecked_types")
def test_tensors_without_plain_values_are_refused() -> None:
    model, x = image_model(), torch.rand(B, *EVENT)
    with pytest.raises(TypeError, match=r"must be a dense tensor, got layout torch\.sparse_coo"):
        model(x.to_sparse())
    with pytest.raises(ValueError, match="x is on meta but the model on cpu"):
        model(x.to("meta"))


@pytest.mark.usefixtures("unchecked_types")
def test_log_densities_of_grey_values_are_refused() -> None:
    """A cross-entropy of grey pixels is no log density; an engine alone may see corrupted ones."""
    model = Autoencoder(Bernoulli(nets.mlp(2, [4], 3), 2), Amortized(nn.Linear(3, 2)))
    grey = torch.full((2, 3), 0.5)
    for call in (model, lambda x: model.likelihood.log_joint(x, torch.zeros(1, 2, 2)), model.encode):
        with pytest.raises(ValueError, match=r"Bernoulli needs x in \{0, 1\}"):
            call(grey)
    assert model.inference.infer(model.likelihood, grey).z.shape == (1, 2, 2)


def test_values_are_looked_at_once() -> None:
    """One pass over x for a public call, however many steps and calls it makes; and again at the next."""
    model, looks = image_model(), []
    model.likelihood.check_values = lambda x: looks.append(len(x))  # type: ignore[method-assign]
    x = torch.randn(B, *EVENT)
    calls: list[Callable[[], Any]] = [
        lambda: model(x),
        lambda: model.encode(x, Ascent(Ascent(max_steps=2), max_steps=3)),
        lambda: model.log_evidence(x, 8),
        lambda: ais(model.likelihood, x, 3, 2),
        lambda: laplace(model.likelihood, x),
    ]
    for call in calls:
        looks.clear()
        call()
        assert looks == [B]


def test_a_refusal_leaves_the_door_closed() -> None:
    model = image_model()
    for _ in range(2):
        with pytest.raises(ValueError, match="finite"):
            model(torch.full((B, *EVENT), math.nan))


class Custom(Inference):
    """A user's own engine."""

    def __init__(self, q: Callable[[Tensor], torch.distributions.Distribution]):
        super().__init__()
        self.law = q

    def infer(self, likelihood: Any, x: Tensor, k: Tensor | None = None) -> Any:
        from gae.inference import Code

        q = self.law(x)
        z = q.sample().unsqueeze(0)
        return Code(z, log_q=q.log_prob(z), q=q)


@pytest.mark.usefixtures("unchecked_types")
def test_an_encoding_whose_parts_do_not_fit_is_refused() -> None:
    z, values, q = torch.zeros(2, 3, 1), torch.zeros(2, 3), normals(torch.zeros(1))
    with pytest.raises(ValueError, match=r"'log_q': \(3,\)"):
        Encoding(z, None, values, torch.zeros(3), None, q, "Handmade")


# Laws that are no density over all elements of a code.


def gaussian(width: int = 2) -> Gaussian:
    return Gaussian(nn.Linear(width, 4), width)


def points(x: Tensor) -> torch.distributions.Distribution:
    return dist.Delta(x[:, :2]).to_event(1)


def guide(x: Tensor) -> None:
    import pyro

    with pyro.plate("data", len(x)):
        pyro.sample("z", points(x))


def moved(x: Tensor) -> torch.distributions.Distribution:
    return TransformedDistribution(points(x), [torch.distributions.AffineTransform(1.0, 2.0)])


@pytest.mark.parametrize("law", [Amortized(points), Amortized(guide), Amortized(moved), Custom(points)])
def test_a_delta_is_a_point(law: Inference) -> None:
    """Its "density" of 1 at the draw would make log_joint a bound: -9.32 ± 0 where -7.62 is exact."""
    model = LinearMixture(1, 2, (4,), scale=0.6)
    x = torch.randn(3, 4)
    encoding = law(model, x)
    assert encoding.log_q is None and encoding.q is None
    assert torch.equal(encoding.point, 1 + 2 * x[:, :2] if getattr(law, "guide", None) is moved else x[:, :2])
    assert torch.equal(joint(encoding), encoding.log_joint[0])
    for objective in (elbo, iwae):
        with pytest.raises(ValueError, match="no density q"):
            objective(encoding)
    with pytest.raises(ValueError, match="returns no density"):
        importance(model, x, law)


def test_evidence_around_a_delta_is_that_of_the_model() -> None:
    """By the Laplace approximation at the point, on a nonlinear decoder, against importance sampling from the prior."""
    model = Gaussian(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2)), 1).double()
    x = torch.randn(2, 2).double()
    found = Autoencoder(model, Amortized(lambda x: dist.Delta(x[:, :1]).to_event(1))).log_evidence(x, 4000)
    z = torch.linspace(-9, 9, 4001).double().view(-1, 1, 1).expand(-1, 2, 1)
    wanted = model.log_joint(x, z).logsumexp(0) + math.log(18 / 4000)
    assert (found.standard_error > 0).all() and (found.standard_error < 0.1).all()
    assert ((found.log_p - wanted).abs() < 5 * found.standard_error).all()


def test_the_gap_of_a_delta_has_no_encoder() -> None:
    gap = inference_gap(Autoencoder(LinearMixture(1, 2, (4,)), Amortized(points)), torch.randn(2, 4), draws=8)
    assert gap.encoder is None and gap.amortisation is None


def on_simplex(x: Tensor) -> torch.distributions.Distribution:
    return dist.Dirichlet(torch.ones(len(x), 2))


DEGENERATE: dict[str, Callable[[Tensor], torch.distributions.Distribution]] = {
    "simplex": on_simplex,
    "relaxed": lambda x: dist.RelaxedOneHotCategorical(torch.tensor(0.5), torch.ones(len(x), 2)),
    "sphere": lambda x: dist.ProjectedNormal(torch.ones(len(x), 2)),
    "one-hot": lambda x: dist.OneHotCategoricalStraightThrough(torch.ones(len(x), 2)),
    "sticks": lambda x: TransformedDistribution(
        dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1), [StickBreakingTransform()]
    ),
    "masked": lambda x: normals(x[:, :2]).mask(torch.arange(len(x)) > 0),
    "one number for two": lambda x: TransformedDistribution(
        dist.Normal(x[:, :1], 1.0).to_event(1), [AffineTransform(torch.zeros(2), 1.0, event_dim=1)]
    ),
}


def test_a_mixture_of_points_is_no_proposal() -> None:
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(3, 2)), dist.Delta(torch.randn(3, 2, 2), event_dim=1)
    )
    with pytest.raises(ValueError, match="is not a density over all elements of a code"):
        importance(gaussian(), torch.randn(3, 4), mixture)


@pytest.mark.parametrize("name", DEGENERATE)
def test_laws_on_fewer_dimensions_are_refused(name: str) -> None:
    law, model, x = DEGENERATE[name], gaussian(), torch.randn(3, 4)
    calls: list[Callable[[], Any]] = [
        lambda: Amortized(law)(model, x),
        lambda: Custom(law)(model, x),
        lambda: importance(model, x, law(x)),
        lambda: lower_bound(model, x, law(x)),
        lambda: Autoencoder(model, Amortized(law)).log_evidence(x),
        lambda: inference_gap(Autoencoder(model, Amortized(law)), x),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="is not a density over all elements of a code"):
            call()


PARTIAL: dict[str, Callable[[Tensor], torch.distributions.Distribution]] = {
    "positive": lambda x: dist.LogNormal(x[:, :2], 1.0).to_event(1),
    "tanh": lambda x: TransformedDistribution(normals(x[:, :2]), [TanhTransform()]),
    "scaled tanh": lambda x: TransformedDistribution(normals(x[:, :2]), [TanhTransform(), AffineTransform(0.0, 2.0)]),
    "elementwise": lambda x: dist.TransformedDistribution(dist.Normal(x[:, :2], 1.0), [TanhTransform()]).to_event(1),
    "interval": lambda x: dist.Uniform(x[:, :2] - 1, x[:, :2] + 1).to_event(1),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_laws_on_a_part_of_the_codes_bound_and_are_no_proposals(name: str) -> None:
    """Their ELBO is a lower bound, but importance weights miss the rest: -8.81 ± 0.04 where -5.73 is exact."""
    law, model, x = PARTIAL[name], gaussian(), torch.randn(3, 4)
    autoencoder = Autoencoder(model, Amortized(law), elbo)
    assert bool(torch.isfinite(autoencoder(x)))
    before = torch.random.get_rng_state()
    calls: list[Callable[[], Any]] = [
        lambda: importance(model, x, law(x)),
        lambda: ais(model, x, 3, start=law(x)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="does not cover the prior"):
            call()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_law_on_the_support_of_the_prior_is_a_proposal() -> None:
    """A positive code under an exponential prior, against quadrature."""

    class Exponential(nn.Module):
        def forward(self) -> torch.distributions.Distribution:
            return dist.Exponential(torch.ones(1, dtype=torch.float64)).to_event(1)

    model = Gaussian(nn.Linear(1, 2).double(), 1, prior=Exponential())
    x = torch.randn(3, 2).double()
    found = importance(model, x, dist.Exponential(torch.full((3, 1), 0.5).double()).to_event(1), 4000)
    z = (torch.arange(20000).double() + 0.5) / 1000
    wanted = model.log_joint(x, z.view(-1, 1, 1).expand(-1, 3, 1)).logsumexp(0) - math.log(1000)
    assert ((found.log_p - wanted).abs() < 5 * found.standard_error).all()
    flow = dist.TransformedDistribution(normals(torch.zeros(3, 2)), [AffineTransform(0.0, 1.0), TanhTransform()])
    wide = dist.TransformedDistribution(flow, [TanhTransform().inv])  # all of space again
    assert torch.isfinite(importance(gaussian(), torch.randn(3, 4), wide, 50).log_p).all()


def mixed(x: Tensor) -> torch.distributions.Distribution:
    """Two equal components each, at x ± 5: a sample shape makes Pyro draw all rows from the first one's."""
    means = torch.stack([x - 5, x + 5], 1)
    return dist.MixtureOfDiagNormals(means, torch.full_like(means, 0.1), torch.zeros(len(x), 2))


@pytest.mark.parametrize("samples", [1, 4])
def test_draws_of_a_mixture_are_of_their_own_row(samples: int) -> None:
    model, x = gaussian(), torch.randn(3, 4)
    codes = Amortized(lambda x: mixed(x[:, :2]), samples)(model, x).z
    assert codes.shape == (samples, 3, 2)
    assert (((codes - x[:, :2]).abs() - 5).abs() < 1).all()
    wide = dist.MixtureOfDiagNormals(torch.zeros(3, 2, 2), torch.full((3, 2, 2), 2.0), torch.zeros(3, 2))
    exact_model = LinearMixture(1, 2, (4,), scale=0.6)
    found = importance(exact_model, x, wide, 4000)
    assert ((found.log_p - exact_model.log_evidence(x).log_p).abs() < 5 * found.standard_error).all()


def test_the_gap_needs_one_law_for_each_observation() -> None:
    """With S draws, q has the batch (S, B); a normal of the same moments is no stand-in for another law."""

    def laplace(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Laplace(x[:, :2], 0.5).to_event(1))

    x, model = torch.randn(3, 4).double(), gaussian().double()
    with pytest.raises(ValueError, match=r"One density q\(z\|x\) per observation is needed, got Independent"):
        inference_gap(Autoencoder(model, Amortized(laplace, 3)), x, ("mean-field",), 8, 8, steps=1)


def test_a_transformed_normal_is_represented_by_the_image_of_its_mean() -> None:
    def flow(x: Tensor) -> torch.distributions.Distribution:
        return TransformedDistribution(dist.Normal(x[:, :2], 1.0).to_event(1), [AffineTransform(0.1, 0.5)])

    autoencoder = Autoencoder(gaussian().double(), Amortized(flow))
    x = torch.randn(3, 4).double()
    assert torch.equal(autoencoder.encode(x).point, 0.1 + 0.5 * x[:, :2])
    assert autoencoder.reconstruct(x).shape == x.shape
    assert inference_gap(autoencoder, x, ("mean-field",), 400, 8, steps=2).encoder is not None


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("dtype", [torch.float64, torch.long])
def test_codes_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="codes are torch"):
        Amortized(lambda x: x[:, :2].to(dtype))(gaussian(), torch.randn(3, 4))


@pytest.mark.parametrize("scale", [0.0, math.nan])
def test_scales_of_zero_are_refused_as_proposals_and_starts(scale: float) -> None:
    law = torch.distributions.Normal(torch.zeros(3, 2), torch.tensor([1.0, scale]), validate_args=False)
    law, x = torch.distributions.Independent(law, 1), torch.randn(3, 4)
    for estimate in (lambda: importance(gaussian(), x, law), lambda: ais(gaussian(), x, 4, 2, start=law)):
        with pytest.raises(ValueError, match="not finite at its own draws"):
            estimate()


@pytest.mark.parametrize(
    "law",
    [
        lambda x: dist.LogNormal(torch.zeros(len(x), 2), 1.0).to_event(1),
        lambda x: dist.Uniform(-1.0, torch.ones(len(x), 2)).to_event(1),
        lambda x: dist.Beta(torch.ones(len(x), 2), 2.0).to_event(1),
        lambda x: dist.StudentT(5.0, torch.zeros(len(x), 2)).to_event(1),
        lambda x: dist.LowRankMultivariateNormal(torch.zeros(len(x), 2), torch.ones(2, 1), torch.ones(2)),
    ],
)
def test_densities_on_a_part_of_the_space_are_kept(law: Any) -> None:
    assert Amortized(law, samples=3)(gaussian(), torch.randn(3, 4)).log_q.shape == (3, 3)


# A sum over codes counts each once.


def test_logsumexp_counts_a_mode_once_or_refuses() -> None:
    """Eight restarts that end at one mode would add log 8 to it."""
    x = torch.randn(4, 4)
    for engine in (Ascent(Prior(), restarts=2, max_steps=3), Ascent(max_steps=1), Amortized(normals, samples=8)):
        with pytest.raises(ValueError, match=r"would count S times.*Enumerate.*`iwae`.*`joint`"):
            logsumexp(engine(gaussian(), x))
    charts = LinearMixture(3, 2, (4,), means=torch.randn(3, 4))
    with pytest.raises(ValueError, match="densities at points do not add up"):
        logsumexp(Enumerate(ClosedForm())(charts, x))
    mixture = LinearMixture(3, 0, (4,), means=torch.randn(3, 4))
    with pytest.raises(ValueError, match="the same k more than once"):
        logsumexp(ClosedForm(samples=8)(mixture, x))
    exact_value = torch.distributions.Normal(mixture.means, 1.0).log_prob(x.unsqueeze(1)).sum(2).logsumexp(1)
    assert torch.allclose(logsumexp(Enumerate()(mixture, x)), exact_value - math.log(3), atol=1e-5)
