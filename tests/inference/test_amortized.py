"""Amortised inference and ``to_pyro``: every kind of guide gives one density; Pyro's own ELBOs, SVI and NUTS agree."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import (
    LIKELIHOODS,
    Density,
    LikelihoodCase,
    ModuleGuide,
    callable_guide,
    chart,
    continuous,
    encoder,
    kinds,
    net,
    normal,
)
from pyro.infer import MCMC, NUTS, SVI, RenyiELBO, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import AbsTransform, constraints

from gae import Autoencoder
from gae.inference import Amortized, ClosedForm, Encoding, to_pyro
from gae.likelihood import FlatDistribution, Gaussian, Likelihood
from gae.objective import elbo, iwae

B, D, E = 8, 3, 2

CONTINUOUS = [case for case in LIKELIHOODS if continuous(case.build())]
SAMPLED = [case for case in CONTINUOUS if not isinstance(case.build().prior, FlatDistribution)]


def each(cases: list[LikelihoodCase]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(autouse=True)
def double_and_empty_store() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(B, D)


def gaussian() -> Gaussian:
    return Gaussian(net(E, D), E, scale=0.8, learn="scalar")


def built(case: LikelihoodCase, batch: int = B) -> tuple[Likelihood, Tensor]:
    likelihood = case.build()
    return likelihood, case.data((batch, *likelihood.event_shape)).double()


def seeded(call: Callable[[], Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return call()


# Guides.

GUIDES: list[Callable[[nn.Module], Any]] = [
    callable_guide,
    ModuleGuide,
    Density,
    lambda network: lambda x: normal(network(x)),
]


@pytest.mark.parametrize("samples", [1, 3])
def test_every_kind_of_guide_gives_the_same_density(samples: int, x: Tensor) -> None:
    model = gaussian()
    network = encoder(model, 2)
    found: list[Encoding] = [
        seeded(lambda guide=guide: Amortized(guide(network), samples)(model, x)) for guide in GUIDES
    ]
    loc, log_scale = network(x).unbind(1)
    for encoding in found:
        assert encoding.log_q is not None
        wanted = dist.Normal(loc, log_scale.exp()).log_prob(encoding.z).sum(2)
        torch.testing.assert_close(encoding.log_q, wanted)
        torch.testing.assert_close(encoding.z, found[0].z)
        torch.testing.assert_close(encoding.log_joint, found[0].log_joint)


def test_a_deterministic_encoder_is_its_output(x: Tensor) -> None:
    model = gaussian()
    network = encoder(model)
    found = Amortized(network)(model, x)
    assert torch.equal(found.z[0], network(x))
    assert found.log_q is None and found.q is None


def test_each_sample_has_its_own_draw(x: Tensor) -> None:
    """Draws differ between observations and between samples."""
    model = gaussian()
    same = x[:1].expand(B, D)
    for guide in GUIDES:
        z = Amortized(guide(encoder(model, 2)), samples=3)(model, same).z
        assert len(z.flatten(0, 1).unique(dim=0)) == 3 * B


def test_draws_follow_the_density() -> None:
    model, n = gaussian(), 4000
    found = Amortized(ModuleGuide(encoder(model, 2)), samples=n)(model, torch.randn(1, D))
    assert found.q is not None
    noise = (found.z - found.q.mean) / found.q.stddev
    assert (noise.mean(0).abs() < 4 / math.sqrt(n)).all()
    assert ((noise.square().mean(0) - 1).abs() < 4 * math.sqrt(2 / n)).all()


# Parameters that guides declare.


def constrained_guide(network: nn.Module) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        pyro.module("encoder", network)
        scale = pyro.param("inner.scale", lambda: torch.full((E,), 0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(network(x), scale).to_event(1))

    return guide


class ConstrainedGuide(PyroModule):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.scale = PyroParam(torch.full((E,), 0.5), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.network(x), self.scale).to_event(1))


CONSTRAINED = pytest.mark.parametrize("guide", [constrained_guide, ConstrainedGuide])


@CONSTRAINED
def test_declared_parameters_belong_to_the_engine(guide: Callable[[nn.Module], Any], x: Tensor) -> None:
    model = gaussian()
    network = encoder(model)
    engine = Amortized(guide(network))
    found = engine(model, x)
    assert found.q is not None
    torch.testing.assert_close(found.q.stddev, torch.full((B, E), 0.5))
    parameters = list(engine.parameters())
    assert {id(p) for p in network.parameters()} < {id(p) for p in parameters}
    (free,) = [p for p in parameters if id(p) not in {id(q) for q in network.parameters()}]
    torch.testing.assert_close(free.exp(), torch.full((E,), 0.5))
    assert len(pyro.get_param_store()) == 0


@CONSTRAINED
def test_declared_parameters_are_trained(guide: Callable[[nn.Module], Any], x: Tensor) -> None:
    model = gaussian()
    autoencoder = Autoencoder(model, Amortized(guide(encoder(model))), elbo)
    before = seeded(lambda: autoencoder(x)).item()
    start = {name: p.clone() for name, p in autoencoder.named_parameters()}
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=0.05)
    for seed in range(30):
        optimizer.zero_grad()
        seeded(lambda: autoencoder(x), seed).backward()
        optimizer.step()
    after = autoencoder.inference(model, x)
    assert all(not torch.equal(p, start[name]) for name, p in autoencoder.named_parameters())
    assert seeded(lambda: autoencoder(x)).item() < before
    assert after.q is not None and (after.q.stddev > 0).all()
    assert len(pyro.get_param_store()) == 0


@CONSTRAINED
def test_declared_parameters_survive_a_checkpoint(guide: Callable[[nn.Module], Any], x: Tensor) -> None:
    model = gaussian()
    engines = [Amortized(guide(encoder(model))) for _ in range(2)]
    for engine in engines:
        engine(model, x)
    for p in engines[0].parameters():
        p.data += 0.3
    engines[1].load_state_dict(engines[0].state_dict())
    first, second = (seeded(lambda engine=engine: engine(model, x)) for engine in engines)
    assert torch.equal(first.z, second.z) and torch.equal(first.log_q, second.log_q)


@CONSTRAINED
def test_a_constraint_holds_under_any_step(guide: Callable[[nn.Module], Any], x: Tensor) -> None:
    model = gaussian()
    engine = Amortized(guide(encoder(model)))
    engine(model, x)
    for p in engine.parameters():
        p.data -= 10
    q = engine(model, x).q
    assert q is not None
    torch.testing.assert_close(q.stddev, torch.full((B, E), 0.5 * math.exp(-10)))


def test_the_parameter_store_of_a_user_is_left_alone(x: Tensor) -> None:
    """Even if their names collide."""
    model = gaussian()
    mine = pyro.param("inner.scale", torch.tensor(7.0))
    q = Amortized(constrained_guide(encoder(model)))(model, x).q
    assert q is not None
    torch.testing.assert_close(q.stddev, torch.full((B, E), 0.5))
    assert dict(pyro.get_param_store().items()) == {"inner.scale": mine}


def test_the_parameter_store_is_left_alone_when_a_guide_fails(x: Tensor) -> None:
    def guide(x: Tensor) -> None:
        pyro.param("scale", torch.ones(()))
        raise ArithmeticError

    pyro.param("mine", torch.tensor(7.0))
    with pytest.raises(ArithmeticError):
        Amortized(guide)(gaussian(), x)
    assert list(pyro.get_param_store().keys()) == ["mine"]


# Pyro's objectives on ``to_pyro``.


def in_its_units(likelihood: Likelihood, guide: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """The guide of x as given: engines show it x in the units of the likelihood."""
    return lambda x: guide(likelihood.in_standard_units(x)[1])


@each(CONTINUOUS)
def test_elbo_is_that_of_pyro(case: LikelihoodCase) -> None:
    likelihood, x = built(case)
    guide = ModuleGuide(encoder(likelihood, 2))
    model = Autoencoder(likelihood, Amortized(guide), elbo)
    parameters = list(model.parameters())
    ours = seeded(lambda: B * model(x))
    found = torch.autograd.grad(ours, parameters)
    seen = in_its_units(likelihood, guide)
    theirs = seeded(lambda: Trace_ELBO().differentiable_loss(to_pyro(likelihood), seen, x))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, torch.autograd.grad(theirs, parameters), rtol=1e-8, atol=1e-10)
    assert ours.item() == pytest.approx(seeded(lambda: Trace_ELBO().loss(to_pyro(likelihood), seen, x)), rel=1e-10)


def replayed(guide: Callable[[Tensor], Any], draws: Tensor) -> Callable[[Tensor], Any]:
    """The guide with given draws, one for each call."""
    rest = iter(draws)

    def again(x: Tensor) -> Any:
        trace = pyro.poutine.Trace()
        trace.add_node("z", name="z", type="sample", value=next(rest), is_observed=False, infer={})
        return pyro.poutine.replay(guide, trace)(x)

    return again


@each(kinds(CONTINUOUS))
def test_iwae_is_that_of_pyro_sample_by_sample(case: LikelihoodCase) -> None:
    """``RenyiELBO`` at α = 0 on the same draws, for one observation at a time and for the batch."""
    likelihood, x = built(case, batch=3)
    guide, samples = ModuleGuide(encoder(likelihood, 2)), 5
    encoding = Amortized(guide, samples)(likelihood, x)
    found, z = iwae(encoding), encoding.z
    renyi, model = RenyiELBO(alpha=0, num_particles=samples), to_pyro(likelihood)
    seen = in_its_units(likelihood, guide)
    for b in range(3):
        row = slice(b, b + 1)
        assert found[b].item() == pytest.approx(-renyi.loss(model, replayed(seen, z[:, row]), x[row]), rel=1e-10)
    assert found.sum().item() == pytest.approx(-renyi.loss(model, replayed(seen, z), x), rel=1e-10)


@each(kinds(CONTINUOUS))
def test_svi_trains_any_likelihood(case: LikelihoodCase) -> None:
    likelihood, x = built(case)
    guide, model = ModuleGuide(encoder(likelihood, 2)), to_pyro(likelihood)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = seeded(lambda: svi.evaluate_loss(x))
    start = [p.clone() for p in likelihood.parameters()]
    for _ in range(10):
        seeded(lambda: svi.step(x))  # the same noise each time, so that the loss is a function of the parameters
    assert seeded(lambda: svi.evaluate_loss(x)) < before
    moved = [not torch.equal(p, q) for p, q in zip(likelihood.parameters(), start, strict=True)]
    assert all(moved), "the store holds the likelihood's own parameters"


def posterior_draws(likelihood: Likelihood, x: Tensor, samples: int, warmup: int, **options: Any) -> Tensor:
    kernel = NUTS(to_pyro(likelihood), **options)
    mcmc = MCMC(kernel, num_samples=samples, warmup_steps=warmup, disable_progbar=True)
    seeded(lambda: mcmc.run(x))
    return mcmc.get_samples()["z"]


@each(kinds(SAMPLED))
def test_nuts_runs_on_any_likelihood(case: LikelihoodCase) -> None:
    likelihood, x = built(case, batch=2)
    z = posterior_draws(likelihood, x, 4, 0, max_tree_depth=3, step_size=0.01, adapt_step_size=False)
    assert z.shape == (4, 2, *likelihood.latent_shape)
    assert z.isfinite().all() and len(z.unique(dim=0)) > 1


@pytest.mark.slow
def test_nuts_finds_the_posterior_of_ppca() -> None:
    likelihood, x = chart(1, E, (D,), scale=0.7), torch.randn(2, D)
    draws, q = posterior_draws(likelihood, x, 200, 50), likelihood.posterior(x)
    error = q.stddev[0] / math.sqrt(100)  # at least 100 effective draws
    assert ((draws.mean(0) - q.mean[0]).abs() < 4 * error).all()
    torch.testing.assert_close(draws.var(0), q.variance[0], rtol=0.5, atol=0)


def test_a_flat_prior_cannot_be_drawn_from_by_nuts(x: Tensor) -> None:
    with pytest.raises(NotImplementedError, match="flat prior is improper and cannot be sampled"):
        posterior_draws(chart(1, E, (D,), flat_prior=True), x, 1, 1)


def test_the_bridge_declares_what_it_says(x: Tensor) -> None:
    likelihood = gaussian()
    trace = pyro.poutine.trace(to_pyro(likelihood)).get_trace(x)
    assert trace.stochastic_nodes == ["data", "z"] and trace.observation_nodes == ["x"]
    assert trace.nodes["z"]["value"].shape == (B, E)
    assert torch.equal(trace.nodes["x"]["value"], x)
    assert {
        id(p) for p in trace.param_nodes and [trace.nodes[n]["value"].unconstrained() for n in trace.param_nodes]
    } == {id(p) for p in likelihood.parameters()}


def test_the_exact_posterior_is_a_guide_without_a_gap() -> None:
    """``Trace_ELBO`` at the exact posterior is the exact evidence for any draw."""
    likelihood, x = chart(1, E, (D,), scale=0.7), torch.randn(B, D)

    def guide(x: Tensor) -> None:
        q = likelihood.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(q.mean[0], scale_tril=q.scale_tril[0]))

    loss = Trace_ELBO().loss(to_pyro(likelihood), guide, x)
    assert -loss == pytest.approx(likelihood.log_evidence(x).log_p.sum().item(), rel=1e-10)
    found = Amortized(guide, samples=3)(likelihood, x)
    exact = ClosedForm(samples=3)(likelihood, x)
    assert found.log_q is not None and exact.log_q is not None
    torch.testing.assert_close(found.log_joint - found.log_q, exact.log_joint - exact.log_q)


# Errors.


def site(name: str, q: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        pyro.sample(name, q(x))

    return guide


def two_sites(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(x[:, :E], 1.0).to_event(1))
    pyro.sample("extra", dist.Normal(x[:, 0], 1.0))


REFUSED: list[tuple[str, Any, type[Exception], str]] = [
    (
        "other-site",
        site("code", lambda x: dist.Normal(x[:, :E], 1.0).to_event(1)),
        ValueError,
        "site \"z\", got a site 'code'",
    ),
    ("two-sites", two_sites, ValueError, "one sample site \"z\", got a site 'extra'"),
    (
        "no-site",
        lambda x: None,
        TypeError,
        'must have a sample site "z", or return a distribution .*; got NoneType and no site',
    ),
    ("tuple", lambda x: (x, x), TypeError, "got tuple and no site"),
    (
        "discrete",
        lambda x: dist.Poisson(x[:, :E].exp()).to_event(1),
        ValueError,
        "must have reparameterised samples, and Indep",
    ),
    (
        "discrete-site",
        site("z", lambda x: dist.Poisson(x[:, :E].exp()).to_event(1)),
        ValueError,
        "reparameterised samples",
    ),
    (
        "no-event",
        lambda x: dist.Normal(x[:, :E], 1.0),
        ValueError,
        r"batch shape \(8, 2\) and event shape \(\), .*to_event",
    ),
    (
        "no-event-site",
        site("z", lambda x: dist.Normal(x[:, :E], 1.0)),
        ValueError,
        r"event shape \(\), .*`.to_event\(n\)`",
    ),
    (
        "all-event",
        lambda x: dist.Normal(x[:, :E], 1.0).to_event(2),
        ValueError,
        r"event shape \(8, 2\), but one density",
    ),
    (
        "wide",
        lambda x: x,
        ValueError,
        r"codes have shape \(8, 3\), but the likelihood needs \(8, 2\). Check the encoder's",
    ),
    (
        "wide-density",
        lambda x: dist.Normal(x, 1.0).to_event(1),
        ValueError,
        r"shape \(8, 3\), but the likelihood needs \(8, 2\)",
    ),
    (
        "wide-site",
        site("z", lambda x: dist.Normal(x, 1.0).to_event(1)),
        ValueError,
        r"shape \(8, 3\), but the likelihood needs",
    ),
    (
        "scale-0",
        lambda x: dist.Normal(x[:, :E], 0 * x[:, :E], validate_args=False).to_event(1),
        ValueError,
        "Independent is not finite at its own draws: a scale is NaN, infinite, 0",
    ),
    (
        "scale-nan-site",
        site("z", lambda x: dist.Normal(x[:, :E], torch.nan * x[:, :E], validate_args=False).to_event(1)),
        ValueError,
        "not finite at its own draws",
    ),
    (
        "no-bijection",
        lambda x: dist.TransformedDistribution(dist.Normal(x[:, :E], 1.0).to_event(1), [AbsTransform()]),
        ValueError,
        "cannot compute log q.* AbsTransform has no inverse or no Jacobian determinant. Use transforms that are bij",
    ),
    ("half-a-batch", lambda x: x[:4, :E], ValueError, r"shape \(4, 2\), but the likelihood needs \(8, 2\)"),
]


@pytest.mark.parametrize(
    ("guide", "error", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused_guides(guide: Any, error: type[Exception], message: str, x: Tensor) -> None:
    with pytest.raises(error, match=message):
        Amortized(guide)(gaussian(), x)
    assert len(pyro.get_param_store()) == 0


def test_a_deterministic_encoder_has_one_code(x: Tensor) -> None:
    model = gaussian()
    with pytest.raises(ValueError, match="deterministic encoder has one code per sample, got samples=3"):
        Amortized(encoder(model), samples=3)(model, x)


def test_at_least_one_sample() -> None:
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        Amortized(nn.Identity(), samples=0)
