"""Every implementation, once: a new likelihood, engine, step or objective adds one line, and the contracts run."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pyro
import torch
from conftest import FULL
from offset import seed
from pyro.distributions import Independent, Normal
from pyro.distributions.transforms import ConditionalAffineAutoregressive
from pyro.nn import ConditionalAutoRegressiveNN, PyroModule
from torch import Tensor, nn
from torch.distributions import Distribution

import gae.inference
import gae.likelihood
from gae import Autoencoder, nets, systems
from gae.adapters import PyroLikelihood
from gae.inference import (
    ESWMV,
    HMC,
    LBFGS,
    MCMC,
    Adam,
    Amortized,
    Argmax,
    Ascent,
    AutoDecoder,
    Box,
    ChartGate,
    CheckpointedUnroll,
    Clipped,
    ClosedForm,
    Constant,
    DecoderInit,
    Delta,
    DeltaBarDelta,
    Detach,
    DetachedDraws,
    EarlyExaggeration,
    Enumerate,
    FullCovariance,
    GaussNewton,
    GradientAscent,
    Implicit,
    Inference,
    IteratedConditionalModes,
    IterativeAmortized,
    LanczosLaplace,
    Langevin,
    MaskedStep,
    MeanField,
    Mode,
    Momentum,
    MonotoneAscent,
    Nearest,
    NonNegative,
    OneStep,
    PrincipalComponents,
    Prior,
    Projected,
    ProximalAscent,
    Scheduled,
    Shortlist,
    Simplex,
    Status,
    Step,
    Truncate,
    UnitSphere,
    Unroll,
    VectorQuantizer,
    WarmStart,
    Whiten,
    Zeros,
    to_pyro,
)
from gae.likelihood import (
    LLE,
    TSNE,
    AcceptsMissing,
    Activation,
    Bernoulli,
    BlendedCharts,
    Blur,
    Categorical,
    CategoricalSequence,
    ClosedFormLearning,
    Codebook,
    CodebookDistribution,
    ContinuousBernoulli,
    Crop,
    DecoderLikelihood,
    Downsample,
    ExactMode,
    ExactPosterior,
    Flat,
    FlatDistribution,
    Gaussian,
    GaussianKernel,
    GaussianProjection,
    HierarchicalNormal,
    Laplace,
    LaplacePrior,
    Likelihood,
    LinearMixture,
    LinearRegression,
    Mask,
    Measured,
    Multinomial,
    NonNegativeGaussian,
    NonNegativePoisson,
    PartiallyObserved,
    PartiallyObservedMixture,
    Poisson,
    Relational,
    StandardNormal,
    StandardUnits,
    VonMisesFisher,
    WeightLikelihood,
)
from gae.nets import hierarchical
from gae.nets import sequence as sequence_nets
from gae.objective import (
    Aggregate,
    Objective,
    elbo,
    iwae,
    joint,
    laplace_evidence,
    logsumexp,
    mean,
    minimum,
    monte_carlo_em,
    soft_minimum,
    stepwise_elbo,
    wake_sleep,
    wake_wake,
)
from gae.systems.encoders import FlowEncoder

Shape = tuple[int, ...]


# Observations (B, *X) inside a likelihood's support.


def real(shape: Shape) -> Tensor:
    return torch.randn(shape)


def unit(shape: Shape) -> Tensor:
    return torch.rand(shape)


def sphere(shape: Shape) -> Tensor:
    x = torch.randn(shape).double()
    return x / x.flatten(1).norm(dim=1).view(-1, *(1 for _ in shape[1:]))


def binary(shape: Shape) -> Tensor:
    return torch.rand(shape).round()


def count(shape: Shape) -> Tensor:
    return torch.poisson(torch.full(shape, 2.0))


def classes(shape: Shape) -> Tensor:
    return torch.randint(4, shape).float()


def frequencies(shape: Shape) -> Tensor:
    """Of the classes in the last dimension, in 6 draws."""
    return torch.distributions.Multinomial(6, torch.ones(shape)).sample().double() / 6


def sequences(shape: Shape) -> Tensor:
    """Of the classes 2 and 3, ended by 1 and padded by 0; the first is cut at the last step."""
    x, ends = torch.randint(2, 4, shape), torch.randint(shape[1], (shape[0], 1))
    ends[0] = shape[1]
    steps = torch.arange(shape[1])
    return x.masked_fill(steps == ends, 1).masked_fill(steps > ends, 0).float()


def unended(shape: Shape) -> Tensor:
    return sequences(shape).masked_fill(torch.arange(shape[1]) == 0, 2)


def partly(draw: Callable[[Shape], Tensor]) -> Callable[[Shape], Tensor]:
    """Every third element is NaN, not observed, in other places for each row; each row has at least half."""

    def observations(shape: Shape) -> Tensor:
        x = draw(shape)
        size = x[0].numel()
        hidden = (torch.arange(len(x)).unsqueeze(1) + torch.arange(size)) % 3 == 0
        return x.masked_fill(hidden.view(x.shape), torch.nan)

    return observations


@dataclass(frozen=True)
class LikelihoodCase:
    name: str
    build: Callable[[], Likelihood]
    data: Callable[[Shape], Tensor] = real


def net(latent: int | Shape, event: int | Shape) -> nn.Sequential:
    return nets.mlp(latent, (5,), event)


def chart(components: int, latent: int, event: Shape = (4,), **options: Any) -> LinearMixture:
    return LinearMixture(components, latent, event, means=torch.randn(components, *event), **options)


def partial_chart(components: int, latent: int, event: Shape = (4,), **options: Any) -> PartiallyObservedMixture:
    return PartiallyObservedMixture(components, latent, event, means=torch.randn(components, *event), **options)


def painter() -> nn.Sequential:
    """A small convolutional network with 20 weights."""
    return nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Tanh(), nn.Conv2d(1, 1, 3, padding=1), nn.Tanh())


def drawn_by(prior: nn.Module | None = None) -> WeightLikelihood:
    return WeightLikelihood(painter(), torch.linspace(-1, 1, 16).view(1, 4, 4), learned, prior)


def learned(*args: Any, **options: Any) -> Gaussian:
    return Gaussian(*args, scale=2.0, learn="scalar", **options)


def image_head() -> Gaussian:
    return Gaussian(net(2, (1, 4, 4)), 2, 0.7, learn="scalar")


def lstm(latent: int) -> nn.Module:
    return sequence_nets.LSTMDecoder(latent, 4, 2, 3)


def hierarchical_lstm(latent: int) -> nn.Module:
    return hierarchical.HierarchicalLSTMDecoder(latent, 4, 3, 2, 3)


def attention(latent: int) -> nn.Module:
    return sequence_nets.TransformerDecoder(latent, 4, 4, 2, 1, autoregressive=False)


def masked(shape: Shape) -> Mask:
    return Mask(torch.tensor([[True, False], [True, True]]), shape)


def in_units(likelihood: Likelihood) -> StandardUnits:
    """In units of some data with means and deviations."""
    return StandardUnits.of(likelihood, 1 + 3 * torch.randn(9, *likelihood.event_shape))


class PyroPixels(PyroModule):
    """A Pyro model of rows of three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = net(2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            code = pyro.sample("code", Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("pixels", Normal(self.decoder(code), 0.7).to_event(1), obs=x)


EVERYTHING: dict[str, bool] = {"learn_scale": True, "learn_weights": True}

LIKELIHOODS = [
    LikelihoodCase("gaussian", lambda: Gaussian(net(2, 3), 2, 0.7)),
    LikelihoodCase("gaussian-scalar", lambda: Gaussian(net((3, 2), (3, 2)), (3, 2), 0.7, learn="scalar")),
    LikelihoodCase("gaussian-pixel", lambda: Gaussian(net(2, (3, 2)), 2, 0.7, learn="pixel")),
    LikelihoodCase("gaussian-flat", lambda: Gaussian(net(2, 3), 2, 0.7, prior=Flat(2))),
    LikelihoodCase("gaussian-sparse", lambda: Gaussian(net(2, 3), 2, 0.7, prior=LaplacePrior(2))),
    LikelihoodCase("gaussian-conv", lambda: Gaussian(nets.conv_decoder(2, (1, 4, 4), (2,)), 2)),
    LikelihoodCase("pyro", lambda: PyroLikelihood(PyroPixels(), torch.randn(3, 3))),
    LikelihoodCase("laplace", lambda: Laplace(net(2, 3), 2, 0.7)),
    LikelihoodCase("laplace-pixel", lambda: Laplace(net(2, 3), 2, 0.7, learn="pixel")),
    LikelihoodCase("bernoulli", lambda: Bernoulli(net(2, (1, 2, 2)), 2), binary),
    LikelihoodCase("continuous-bernoulli", lambda: ContinuousBernoulli(net(2, 3), 2), unit),
    LikelihoodCase("poisson", lambda: Poisson(net(2, 3), 2), count),
    LikelihoodCase("categorical", lambda: Categorical(net(2, (3, 4)), 2), classes),
    LikelihoodCase("multinomial", lambda: Multinomial(net(2, 3), 2, 6), frequencies),
    LikelihoodCase("multinomial-rows", lambda: Multinomial(net(2, (2, 3)), 2, 6), frequencies),
    LikelihoodCase("von-mises-fisher", lambda: VonMisesFisher(net(2, (3, 2)), 2), sphere),
    LikelihoodCase("von-mises-fisher-fixed", lambda: VonMisesFisher(net(2, 3), 2, 5.0, "fixed"), sphere),
    LikelihoodCase("pca", lambda: chart(1, 2, flat_prior=True)),
    LikelihoodCase("ppca", lambda: chart(1, 2, (2, 2), learn_scale=True)),
    LikelihoodCase("one-normal", lambda: chart(1, 0, learn_scale=True)),
    LikelihoodCase("kmeans", lambda: chart(3, 0)),
    LikelihoodCase("gmm", lambda: chart(3, 0, **EVERYTHING)),
    LikelihoodCase("llgae", lambda: chart(3, 2, flat_prior=True)),
    LikelihoodCase("mixture-of-ppca", lambda: chart(3, 2, (2, 2), **EVERYTHING)),
    LikelihoodCase("nmf-gaussian", lambda: NonNegativeGaussian(2, (2, 2), 0.7)),
    LikelihoodCase("nmf-poisson", lambda: NonNegativePoisson(2, (4,)), count),
    LikelihoodCase("weights", lambda: WeightLikelihood(net(1, 3), torch.ones(1), learned)),
    LikelihoodCase("weights-conv", lambda: drawn_by(StandardNormal(20))),
    LikelihoodCase("activation", lambda: Activation(net((2, 2), 4), (2, 2), prior=StandardNormal(2, 2)), classes),
    LikelihoodCase("activation-logit", lambda: Activation(net(2, 4), 2, "logit", StandardNormal(2)), classes),
    LikelihoodCase("activation-channel", lambda: Activation(net(2, (4, 2, 2)), 2, "channel"), classes),
    LikelihoodCase("sequence", lambda: CategoricalSequence(lstm(2), 2, 4, 4, end=1), sequences),
    LikelihoodCase(
        "sequence-hierarchical", lambda: CategoricalSequence(hierarchical_lstm(2), 2, 4, 4, end=1), sequences
    ),
    LikelihoodCase("sequence-parallel", lambda: CategoricalSequence(attention(2), 2, 4, 4), unended),
    LikelihoodCase("masked", lambda: Measured(Bernoulli(net(2, (1, 2, 2)), 2), masked((1, 2, 2))), binary),
    LikelihoodCase("downsampled", lambda: Measured(image_head(), Downsample((1, 4, 4), 2))),
    LikelihoodCase("blurred", lambda: Measured(Bernoulli(net(2, (1, 4, 4)), 2), Blur((1, 4, 4), 1.0), 0.5)),
    LikelihoodCase("projected-ppca", lambda: Measured(chart(1, 2, (2, 2)), GaussianProjection(3, (2, 2)), 0.5)),
    LikelihoodCase("regression", lambda: LinearRegression(torch.randn(5, 2), learn_scale=True)),
    LikelihoodCase("ridge", lambda: LinearRegression(torch.randn(2, 3, 2), 0.7, False, 0.5, learn_scale=True)),
    LikelihoodCase("ridge-intercept", lambda: LinearRegression(torch.randn(5, 2), 0.7, learn_scale=True)),
    LikelihoodCase("tsne", lambda: TSNE(6, (3,), perplexity=2.5, degrees=1.3, learn_degrees=True)),
    LikelihoodCase("lle", lambda: LLE(7, (2, 2), neighbours=3, reg=0.1, learn_scale=True)),
    LikelihoodCase("blended", lambda: BlendedCharts(3, 2, (2, 2), learn="scalar")),
    LikelihoodCase("kernel", lambda: GaussianKernel(3, 2, (2, 2), learn_scale=True, prior=StandardNormal(2))),
    LikelihoodCase("kernel-growth", lambda: GaussianKernel(3, 1, (4,), absorbing=0.5, growth=1.0)),
    LikelihoodCase("kernel-free", lambda: GaussianKernel(3, 2, (4,), absorbing=0.0)),
    LikelihoodCase("hierarchical", lambda: Gaussian(net(3, 4), 3, 0.7, prior=HierarchicalNormal(net(1, 4), 2, 1))),
    LikelihoodCase("codebook", lambda: Gaussian(net((2, 3), 3), (2, 3), 0.7, prior=Codebook(4, 2, 3))),
    LikelihoodCase("codebook-learned", lambda: Bernoulli(net((2, 1), 4), (2, 1), Codebook(4, 2, 1, None)), binary),
    LikelihoodCase("standard-head", lambda: in_units(Gaussian(net(2, 3), 2, 0.7))),
    LikelihoodCase("standard-mixture", lambda: in_units(chart(3, 2, (2, 2), **EVERYTHING))),
    LikelihoodCase(
        "standard-partly-head", lambda: in_units(PartiallyObserved(Gaussian(net(2, 3), 2, 0.7))), partly(real)
    ),
    LikelihoodCase("standard-partly-mixture", lambda: in_units(partial_chart(3, 2, (2, 2))), partly(real)),
    LikelihoodCase("standard-kernel", lambda: in_units(GaussianKernel(3, 2, (2, 2), prior=StandardNormal(2)))),
    LikelihoodCase("cropped-weights", lambda: Measured(drawn_by(), Crop((1, 4, 4), 3, 2))),
    LikelihoodCase(
        "partly-gaussian", lambda: PartiallyObserved(Gaussian(net(2, (3, 2)), 2, 0.7, learn="pixel")), partly(real)
    ),
    LikelihoodCase("partly-categorical", lambda: PartiallyObserved(Categorical(net(2, (3, 4)), 2)), partly(classes)),
    LikelihoodCase("partly-ppca", lambda: partial_chart(1, 2, (2, 2), learn_scale=True), partly(real)),
    LikelihoodCase("partly-gmm", lambda: partial_chart(3, 0, **EVERYTHING), partly(real)),
    LikelihoodCase("partly-llgae", lambda: partial_chart(3, 2, flat_prior=True), partly(real)),
    LikelihoodCase("partly-mixture-of-ppca", lambda: partial_chart(3, 2, (2, 2), **EVERYTHING), partly(real)),
]


# Which engines suit which likelihoods.


def quantised(likelihood: Likelihood) -> bool:
    return isinstance(likelihood.prior, CodebookDistribution)


def codes(likelihood: Likelihood) -> bool:
    return likelihood.latent_shape.numel() > 0 and not quantised(likelihood)


def signed(likelihood: Likelihood) -> bool:
    """A continuous code whose entries may be negative."""
    return codes(likelihood) and not orthant(likelihood)


def apart(likelihood: Likelihood) -> bool:
    """Not t-SNE, for which codes that all coincide say nothing, and have gradient 0, and any code is one."""
    return not isinstance(likelihood, TSNE) and not quantised(likelihood)


def exact(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, ExactPosterior)


def points(likelihood: Likelihood) -> bool:
    return likelihood.components > 0 and not likelihood.latent_shape.numel()


def charts(likelihood: Likelihood) -> bool:
    return likelihood.components > 0 and likelihood.latent_shape.numel() > 0


def kinds(cases: list[LikelihoodCase]) -> list[LikelihoodCase]:
    """One case for each class of likelihood and prior, for what depends on neither heads' options nor sizes.

    In full, all of them.
    """
    models = [(case, case.build()) for case in reversed(cases)]
    first = {(type(model), type(model.latent_prior)): case for case, model in models}
    return cases if FULL else list(first.values())[::-1]


def orthant(likelihood: Likelihood) -> bool:
    """Codes must not be negative, so most engines find none."""
    prior = likelihood.prior
    return isinstance(prior, FlatDistribution) and prior.nonnegative


def anywhere(likelihood: Likelihood) -> bool:
    return apart(likelihood) and not orthant(likelihood)


def continuous(likelihood: Likelihood) -> bool:
    return codes(likelihood) and anywhere(likelihood)


def proper(likelihood: Likelihood) -> bool:
    return continuous(likelihood) and not isinstance(likelihood.prior, FlatDistribution)


def exact_code(likelihood: Likelihood) -> bool:
    return exact(likelihood) and continuous(likelihood) and likelihood.components == 1


def one_output(likelihood: Likelihood) -> bool:
    return continuous(likelihood) and isinstance(likelihood, DecoderLikelihood) and likelihood.components <= 1


def sparse(likelihood: Likelihood) -> bool:
    return isinstance(likelihood.latent_prior, LaplacePrior)


def several(likelihood: Likelihood) -> bool:
    return charts(likelihood) and likelihood.components > 1


def blended(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, BlendedCharts)


def weights(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, WeightLikelihood)


def sets(likelihood: Likelihood) -> bool:
    """Codes that are whole sets of points, more of them than dimensions."""
    shape = likelihood.latent_shape
    return proper(likelihood) and len(shape) == 2 and shape[0] > shape[1]


def relational(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, Relational)


def layouts(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, TSNE)


def best(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, ExactMode)


def vector(likelihood: Likelihood) -> bool:
    return continuous(likelihood) and len(likelihood.latent_shape) == 1


def plane(likelihood: Likelihood) -> bool:
    """Vector codes with more than one element."""
    return vector(likelihood) and likelihood.latent_shape.numel() > 1


def curved(likelihood: Likelihood) -> bool:
    """Vector codes of a single decoder output, whose curvature is positive definite."""
    return vector(likelihood) and one_output(likelihood) and not isinstance(likelihood, Laplace)


def bent(likelihood: Likelihood) -> bool:
    """Codes of a single decoder output, whose curvature the prior makes positive definite."""
    return (
        one_output(likelihood) and proper(likelihood) and not sparse(likelihood) and not isinstance(likelihood, Laplace)
    )


def complete(suits: Callable[[Likelihood], bool]) -> Callable[[Likelihood], bool]:
    return lambda likelihood: suits(likelihood) and not isinstance(likelihood, AcceptsMissing)


def uncertain(likelihood: Likelihood) -> bool:
    return exact(likelihood) and (continuous(likelihood) or likelihood.components > 1)


# Encoders, one of each kind that `Amortized` takes.


def encoder(likelihood: Likelihood, *lead: int) -> nn.Module:
    return encoder_of_width(likelihood, (*lead, *likelihood.latent_shape))


def encoder_of_width(likelihood: Likelihood, outputs: int | Shape) -> nn.Module:
    if isinstance(likelihood, AcceptsMissing):
        network = nets.mlp(nets.with_mask(likelihood.event_shape), (5,), outputs)
        return nets.Standardized(network, likelihood.event_shape, missing=True)
    return nets.mlp(likelihood.event_shape, (5,), outputs)


def normal(output: Tensor) -> Distribution:
    loc, log_scale = output.unbind(1)
    return Independent(Normal(loc, log_scale.exp(), validate_args=False), loc.dim() - 1, validate_args=False)


def callable_guide(network: nn.Module) -> Callable[[Tensor], Tensor]:
    def guide(x: Tensor) -> Tensor:
        pyro.module("encoder", network)
        shift = pyro.param("shift", lambda: x.new_zeros(()))
        with pyro.plate("data", len(x)):
            return pyro.sample("z", normal(network(x) + shift))

    return guide


def flow_encoder(likelihood: Likelihood) -> FlowEncoder:
    """An inverse autoregressive flow of Pyro, smooth for differences of gradients."""
    latent = likelihood.latent_shape.numel()
    network = ConditionalAutoRegressiveNN(
        latent, 3, [max(4, latent)], permutation=torch.arange(latent), nonlinearity=nn.Tanh()
    )
    flow = ConditionalAffineAutoregressive(network)
    return FlowEncoder(encoder_of_width(likelihood, 2 * latent + 3), flow, latent, 3)


def called(engine: Inference, likelihood: Likelihood) -> Inference:
    """After one call: a plain callable declares its parameters at the first, and until then nothing can move them."""
    with torch.no_grad():
        engine.infer(likelihood, torch.zeros(1, *likelihood.event_shape))
    return engine


class ModuleGuide(PyroModule):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", normal(self.network(x)))


class Density(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Distribution:
        return normal(self.network(x))


@dataclass(frozen=True)
class EngineCase:
    """``samples`` is S, with 0 for one branch per component; ``density`` says whether the encoding has a ``log_q``.

    ``stochastic`` engines draw from torch's generator; ``detached`` ones pass no gradient through the code, and
    ``surrogate`` ones another than the code's.
    """

    name: str
    build: Callable[[Likelihood], Inference]
    suits: Callable[[Likelihood], bool] = continuous
    stochastic: bool = False
    density: bool = False
    detached: bool = False
    samples: int = 1
    surrogate: bool = False


@dataclass(frozen=True)
class Part:
    """A part of an ascent, and what it makes of the engine."""

    name: str
    build: Callable[[], Any]
    suits: Callable[[Likelihood], bool] = continuous
    stochastic: bool = False
    density: bool = False
    detached: bool = False


EARLY = partial(ESWMV, window=4, every=2, patience=2, delay=0.1, decay=0.5)

STEPS = [
    Part("gradient", lambda: GradientAscent(0.05)),
    Part("momentum", lambda: Momentum(0.05)),
    Part("adam", lambda: Adam(0.05)),
    Part("delta-bar-delta", lambda: DeltaBarDelta(0.05)),
]
FAMILIES = [
    Part("delta", Delta),
    Part("mean-field", MeanField, stochastic=True, density=True),
    Part("mean-field-antithetic", lambda: MeanField(samples=2), stochastic=True, density=True),
    Part("full-covariance", lambda: FullCovariance(samples=2), vector, stochastic=True, density=True),
]
BACKPROPS = [
    Part("unroll", Unroll),
    Part("detach", Detach, detached=True),
]
GUIDES = [
    EngineCase(
        "amortized-callable",
        lambda m: called(Amortized(callable_guide(encoder(m, 2))), m),
        signed,
        stochastic=True,
        density=True,
    ),
    EngineCase(
        "amortized-module", lambda m: Amortized(ModuleGuide(encoder(m, 2))), signed, stochastic=True, density=True
    ),
    EngineCase("amortized-density", lambda m: Amortized(Density(encoder(m, 2))), signed, stochastic=True, density=True),
    EngineCase("amortized-deterministic", lambda m: Amortized(encoder(m)), signed),
    EngineCase("amortized-flow", lambda m: Amortized(flow_encoder(m)), plane, stochastic=True, density=True),
]
STARTS = [
    *GUIDES,
    EngineCase("zeros", lambda m: Zeros(), anywhere),
    EngineCase("fixed", lambda m: Constant(torch.full(m.latent_shape, 0.3)), apart),
    EngineCase("prior", lambda m: Prior(), proper, stochastic=True),
    EngineCase("closed-form", lambda m: ClosedForm(), exact, density=True),
]


def ascent(step: Part = STEPS[0], family: Part = FAMILIES[0], adjoint: Part = BACKPROPS[0]) -> EngineCase:
    def build(likelihood: Likelihood) -> Inference:
        return Ascent(step=step.build(), max_steps=3, family=family.build(), adjoint=adjoint.build(), trace=True)

    parts = (step, family, adjoint)
    name = "-".join(["ascent", *(part.name for part in parts)])
    flags = {flag: any(getattr(part, flag) for part in parts) for flag in ("stochastic", "density", "detached")}
    return EngineCase(name, build, lambda m: all(part.suits(m) for part in parts), **flags)


def step_case(name: str, step: Callable[[], Step]) -> EngineCase:
    return EngineCase(f"ascent-{name}", lambda m: Ascent(step=step(), max_steps=3))


def ascent_from(start: EngineCase) -> EngineCase:
    def build(likelihood: Likelihood) -> Inference:
        return Ascent(start.build(likelihood), max_steps=3)

    def suits(likelihood: Likelihood) -> bool:
        return signed(likelihood) and start.suits(likelihood)

    return EngineCase(f"ascent-from-{start.name}", build, suits, start.stochastic)


def iterative(family: Part, lead: Callable[[Shape], Shape]) -> EngineCase:
    """A learned step on points of the family, which have more dimensions than codes."""

    def build(likelihood: Likelihood) -> Inference:
        shape = (*lead(likelihood.latent_shape), *likelihood.latent_shape)
        missing = isinstance(likelihood, AcceptsMissing)
        step = IterativeAmortized(shape, (5,), likelihood.event_shape or None, missing)
        return Ascent(step=step, max_steps=3, family=family.build(), trace=True)

    flags = {"stochastic": family.stochastic, "density": family.density}
    return EngineCase(f"iterative-{family.name}", build, family.suits, **flags)


SEMI_AMORTISED = EngineCase(
    "semi-amortised",
    lambda m: Ascent(Amortized(Density(encoder(m, 2))), max_steps=3, family=MeanField()),
    signed,
    stochastic=True,
    density=True,
)

ENGINES = [
    *STARTS,
    *(ascent(step=step) for step in STEPS),
    *(ascent(family=family) for family in FAMILIES[1:]),
    *(ascent(family=family, adjoint=adjoint) for family in FAMILIES for adjoint in BACKPROPS[1:]),
    *(ascent_from(start) for start in STARTS if start.name not in ("zeros", "amortized-callable", "amortized-module")),
    SEMI_AMORTISED,
    *(
        step_case(name, step)
        for name, step in [
            ("lbfgs", lambda: LBFGS()),
            ("clipped", lambda: Clipped(GradientAscent(0.05), 0.1)),
            ("scheduled", lambda: Scheduled(GradientAscent(0.05), lambda t: 1 / (1 + t))),
            ("box", lambda: Projected(GradientAscent(0.05), Box(-0.1, 0.1))),
            ("non-negative", lambda: Projected(GradientAscent(0.05), NonNegative())),
            ("sphere", lambda: Projected(GradientAscent(0.05), UnitSphere())),
            ("simplex", lambda: Projected(GradientAscent(0.05), Simplex())),
        ]
    ),
    iterative(FAMILIES[0], lambda code: ()),
    iterative(FAMILIES[1], lambda code: (2,)),
    iterative(FAMILIES[3], lambda code: (1 + code[0],)),
    EngineCase("free-codes", lambda m: AutoDecoder(m.latent_shape, Ascent(max_steps=3)).eval()),
    EngineCase(
        "ascent-monotone",
        lambda m: Ascent(Constant(torch.full(m.latent_shape, 0.3)), MonotoneAscent(), max_steps=3),
        orthant,
    ),
    EngineCase(
        "warm-start",
        lambda m: WarmStart(Ascent(Constant(torch.full(m.latent_shape, 0.3)), MonotoneAscent(), 3)),
        orthant,
    ),
    EngineCase("ascent-ista", lambda m: Ascent(step=ProximalAscent(0.1), max_steps=3), sparse),
    EngineCase("ascent-fista", lambda m: Ascent(step=ProximalAscent(0.1, accelerated=True), max_steps=4), sparse),
    EngineCase(
        "ascent-fista-backtracking",
        lambda m: Ascent(step=ProximalAscent(accelerated=True), max_steps=6, adjoint=Detach()),
        sparse,
        detached=True,
    ),
    EngineCase("ascent-whiten", lambda m: Ascent(Prior(), Projected(GradientAscent(0.05), Whiten()), 2), sets, True),
    EngineCase("ascent-gauss-newton", lambda m: Ascent(step=GaussNewton(), max_steps=2), exact_code),
    *(
        EngineCase(
            f"ascent-lbfgs-curvature-{name}",
            lambda m, family=family: Ascent(step=LBFGS(curvature="gauss-newton"), max_steps=3, family=family()),
            exact_code,
            stochastic=name != "delta",
            density=name != "delta",
        )
        for name, family in [
            ("delta", Delta),
            ("mean-field", lambda: MeanField(2)),
            ("full-covariance", lambda: FullCovariance(2)),
        ]
    ),
    EngineCase("ascent-langevin", lambda m: Ascent(step=Langevin(0.01), max_steps=3), stochastic=True),
    EngineCase("ascent-hmc", lambda m: Ascent(step=HMC(0.02, 3), max_steps=3), stochastic=True),
    EngineCase(
        "mcmc",
        lambda m: MCMC(Amortized(Density(encoder(m, 2)), 2), HMC(0.02, 2), 3),
        signed,
        stochastic=True,
        detached=True,
        samples=2,
    ),
    EngineCase("ascent-checkpoint", lambda m: Ascent(max_steps=3, adjoint=CheckpointedUnroll())),
    EngineCase("ascent-truncate", lambda m: Ascent(max_steps=3, adjoint=Truncate(3))),
    EngineCase("ascent-one-step", lambda m: Ascent(step=GaussNewton(), max_steps=3, adjoint=OneStep()), exact_code),
    EngineCase("ascent-implicit", lambda m: Ascent(step=GaussNewton(), max_steps=3, adjoint=Implicit()), exact_code),
    EngineCase(
        "ascent-variance",
        lambda m: Ascent(step=GradientAscent(0.02), max_steps=9, adjoint=Detach(), stop=EARLY(), watch=[].append),
        one_output,
        detached=True,
    ),
    EngineCase("principal-components", lambda m: PrincipalComponents(), relational),
    EngineCase("mode", lambda m: Mode(), best),
    EngineCase(
        "ascent-exaggerated",
        lambda m: Ascent(EarlyExaggeration(Ascent(PrincipalComponents(0.5), max_steps=2), 4.0), DeltaBarDelta(0.5), 3),
        layouts,
    ),
    EngineCase(
        "ascent-whiten-components",
        lambda m: Ascent(PrincipalComponents(), Projected(GradientAscent(0.05), Whiten()), 2),
        relational,
    ),
    EngineCase("ascent-initial", lambda m: Ascent(DecoderInit(), Adam(0.05), 3), weights, stochastic=True),
    EngineCase("ascent-stopping", lambda m: Ascent(step=LBFGS(), max_steps=60, grad_tol=1e-9), exact_code),
    EngineCase("ascent-no-steps", lambda m: Ascent(Constant(torch.full(m.latent_shape, 0.3)), max_steps=0)),
    EngineCase(
        "amortized-callable-3",
        lambda m: called(Amortized(callable_guide(encoder(m, 2)), 3), m),
        stochastic=True,
        density=True,
        samples=3,
    ),
    EngineCase(
        "amortized-module-3",
        lambda m: Amortized(ModuleGuide(encoder(m, 2)), 3),
        stochastic=True,
        density=True,
        samples=3,
    ),
    EngineCase(
        "amortized-density-3", lambda m: Amortized(Density(encoder(m, 2)), 3), stochastic=True, density=True, samples=3
    ),
    EngineCase(
        "detached-draws",
        lambda m: DetachedDraws(Amortized(Density(encoder(m, 2)), 3)),
        signed,
        stochastic=True,
        density=True,
        detached=True,
        samples=3,
    ),
    EngineCase(
        "asleep",
        lambda m: DetachedDraws(Amortized(Density(encoder(m, 2)), 3), sleep=True),
        proper,
        stochastic=True,
        density=True,
        detached=True,
        samples=3,
    ),
    EngineCase("closed-form-3", lambda m: ClosedForm(samples=3), uncertain, stochastic=True, density=True, samples=3),
    EngineCase(
        "laplace",
        lambda m: gae.inference.Laplace(Ascent(max_steps=3), samples=3),
        curved,
        stochastic=True,
        density=True,
        samples=3,
    ),
    EngineCase(
        "laplace-amortized",
        lambda m: gae.inference.Laplace(Amortized(encoder(m)), "diagonal", "hessian"),
        vector,
        stochastic=True,
        density=True,
    ),
    EngineCase("laplace-mode", lambda m: gae.inference.Laplace(Ascent(max_steps=3), samples=None), curved),
    EngineCase("lanczos", lambda m: LanczosLaplace(Ascent(max_steps=3), probes=2), bent, stochastic=True),
    EngineCase("argmax", lambda m: Argmax(), points),
    EngineCase("enumerate", lambda m: Enumerate(), points, samples=0),
    EngineCase("argmax-closed-form", lambda m: Argmax(ClosedForm()), charts),
    EngineCase("argmax-ascent", lambda m: Argmax(Ascent(max_steps=3)), charts),
    EngineCase("argmax-ascent-detach", lambda m: Argmax(Ascent(max_steps=3, adjoint=Detach())), charts, detached=True),
    EngineCase("argmax-amortized", lambda m: Argmax(Amortized(encoder(m))), charts),
    EngineCase("enumerate-closed-form", lambda m: Enumerate(ClosedForm()), charts, density=True, samples=0),
    EngineCase("enumerate-ascent", lambda m: Enumerate(Ascent(max_steps=3)), charts, samples=0),
    EngineCase(
        "argmax-ascent-amortized",
        lambda m: Argmax(Ascent(Amortized(Density(encoder(m, 2))), max_steps=3)),
        charts,
        stochastic=True,
    ),
]


def gated(likelihood: Likelihood, by: str) -> Inference:
    """The engine of smooth LLGAE."""
    assert isinstance(likelihood, BlendedCharts)
    return Ascent(ChartGate(2.0, by), MaskedStep(Momentum(0.05), likelihood.coordinates), max_steps=3)


ENGINES += [
    EngineCase("nearest", lambda m: Nearest(entries=4), complete(points)),
    EngineCase("shortlist", lambda m: Shortlist(), complete(points)),
    EngineCase("shortlist-closed-form", lambda m: Shortlist(ClosedForm()), complete(charts)),
    EngineCase("shortlist-ascent", lambda m: Shortlist(Ascent(max_steps=3, trace=True), 2, 3), complete(several)),
    EngineCase(
        "shortlist-checkpoint",
        lambda m: Shortlist(Ascent(max_steps=3, adjoint=CheckpointedUnroll()), 2),
        complete(several),
    ),
    EngineCase("chart-gate", lambda m: ChartGate(), blended),
    EngineCase("gated-residual", lambda m: gated(m, "residual"), blended),
    EngineCase("quantizer", lambda m: VectorQuantizer(encoder(m)), quantised, surrogate=True),
    EngineCase("conditional-modes", lambda m: IteratedConditionalModes(VectorQuantizer(encoder(m)), 3), quantised),
    EngineCase("argmax-codes", lambda m: Argmax(), quantised),
    EngineCase("enumerate-codes", lambda m: Enumerate(), quantised, samples=16),
    EngineCase("gated-centre", lambda m: gated(m, "centre"), blended),
]


@dataclass(frozen=True)
class ObjectiveCase:
    name: str
    build: Callable[[], Objective]
    engine: str
    likelihood: str = "bernoulli"
    surrogate: bool = False  # its gradient is not that of its value


@dataclass(frozen=True)
class AggregateCase:
    name: str
    build: Callable[[], Aggregate]


OBJECTIVES = [
    ObjectiveCase("joint", lambda: joint, "zeros"),
    ObjectiveCase("laplace-evidence", lambda: laplace_evidence, "laplace-mode"),
    ObjectiveCase("laplace-evidence-lanczos", lambda: laplace_evidence, "lanczos", surrogate=True),
    ObjectiveCase("elbo", lambda: elbo, "amortized-density-3"),
    ObjectiveCase("elbo-analytic", lambda: partial(elbo, analytic=True), "amortized-density-3"),
    ObjectiveCase("elbo-beta", lambda: partial(elbo, beta=0.5), "amortized-density-3"),
    ObjectiveCase("iwae", lambda: iwae, "amortized-density-3"),
    ObjectiveCase("stepwise-elbo", lambda: stepwise_elbo, "iterative-mean-field"),
    ObjectiveCase("wake-wake", lambda: wake_wake, "detached-draws", surrogate=True),
    ObjectiveCase("wake-sleep", lambda: wake_sleep, "asleep", surrogate=True),
    ObjectiveCase("monte-carlo-em", lambda: monte_carlo_em, "mcmc", surrogate=True),
    ObjectiveCase("logsumexp", lambda: logsumexp, "enumerate", "gmm"),
]
AGGREGATES = [
    AggregateCase("mean", lambda: mean),
    AggregateCase("minimum", lambda: minimum),
    AggregateCase("soft-minimum", lambda: soft_minimum(2.0)),
    AggregateCase("soft-minimum-sum", lambda: soft_minimum(2.0, "sum")),
]


@dataclass(frozen=True)
class SystemCase:
    """A named system, small; its flags are those of ``EngineCase`` and ``ObjectiveCase``."""

    name: str
    options: dict[str, Any]
    event_shape: Shape = (4,)
    data: Callable[[Shape], Tensor] = real
    stochastic: bool = False
    density: bool = False
    samples: int = 1
    detached: bool = False
    surrogate: bool = False


SMALL: dict[str, Any] = {"latent": 2, "hidden": (5,)}
RECURRENT: dict[str, Any] = {"latent": 2, "classes": 4, "embedding": 3, "hidden": 5, "word_dropout": 0.0}
ATTENTIVE: dict[str, Any] = {"latent": 2, "classes": 4, "width": 4, "heads": 2, "layers": 1, "word_dropout": 0.0}

SYSTEMS = [
    SystemCase("pca", {"latent": 2}, density=True),
    SystemCase("ppca", {"latent": 2}, density=True),
    SystemCase("kmeans", {"components": 3}),
    SystemCase("gmm", {"components": 3}, samples=0),
    SystemCase("llgae", {"latent": 2, "components": 3}),
    SystemCase("llgae", {"latent": 2, "components": 3, "steps": 3}),
    SystemCase("ae", SMALL),
    SystemCase("sparse-ae", SMALL | {"penalty": "l1"}),
    SystemCase("vae", SMALL, stochastic=True, density=True),
    SystemCase("vae", SMALL | {"head": "bernoulli"}, data=binary, stochastic=True, density=True),
    SystemCase("vae", SMALL | {"posterior": "full"}, stochastic=True, density=True),
    SystemCase("vae", SMALL | {"posterior": "maf"}, stochastic=True, density=True),
    SystemCase("vae", SMALL | {"posterior": "iaf"}, stochastic=True, density=True),
    SystemCase("ladder-vae", SMALL | {"top": 1}, stochastic=True, density=True),
    SystemCase("conv-vae", {"latent": 2, "channels": (2,)}, (1, 4, 4), stochastic=True, density=True),
    SystemCase("vq-vae", {"positions": 2, "vectors": 3, "width": 2, "hidden": (5,)}, surrogate=True),
    SystemCase("gon", SMALL),
    SystemCase("nmf", {"latent": 2, "steps": 3}, data=unit, detached=True),
    SystemCase("nmf", {"latent": 2, "steps": 3, "head": "poisson"}, data=count, detached=True),
    SystemCase("savae", SMALL, stochastic=True, density=True),
    SystemCase("iterative-vae", SMALL, stochastic=True, density=True),
    SystemCase("rws-vae", SMALL, stochastic=True, density=True, detached=True, samples=10, surrogate=True),
    SystemCase(
        "rws-vae", SMALL | {"sleep": True}, stochastic=True, density=True, detached=True, samples=10, surrogate=True
    ),
    SystemCase("mcmc-em", SMALL | {"steps": 2}, stochastic=True, detached=True, surrogate=True),
    SystemCase("vlae", SMALL | {"steps": 1}, stochastic=True, density=True),
    SystemCase("linear-regression", {"learn_scale": True}, density=True),
    SystemCase("knn", {"components": 20}),
    SystemCase("smooth-llgae", {"latent": 2, "components": 3, "steps": 3}),
    SystemCase("ggae", {"components": 3, "steps": 3}),
    SystemCase("sequence-vae", RECURRENT, data=sequences, stochastic=True, density=True),
    SystemCase("attention-vae", ATTENTIVE, data=sequences, stochastic=True, density=True),
    SystemCase("music-vae", RECURRENT, data=sequences, stochastic=True, density=True),
    SystemCase("vae", SMALL | {"missing": True}, data=partly(real), stochastic=True, density=True),
    SystemCase("iterative-vae", SMALL | {"missing": True}, data=partly(real), stochastic=True, density=True),
]

BRIDGES = [to_pyro]


@dataclass(frozen=True)
class Pair:
    """An autoencoder and what is true of it: one likelihood with one engine, or a system."""

    name: str
    make: Callable[[], Autoencoder]
    draw: Callable[[Shape], Tensor]
    stochastic: bool
    density: bool
    detached: bool
    samples: int
    surrogate: bool = False

    @property
    def copied(self) -> bool:
        """Whether copies are independent; networks that a plain callable closes over would be shared."""
        return "amortized-callable" not in self.name

    def build(self, dtype: torch.dtype = torch.float64, start: int = 0) -> Autoencoder:
        """A fresh instance with generic parameters: none is zero, no two components are alike."""
        seed(start)
        model = self.make()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        return model.to(dtype)

    def data(self, model: Autoencoder, batch: int = 5) -> Tensor:
        """Observations (B, *X) inside the support, in the model's dtype."""
        seed(1)
        x = self.draw((batch, *model.likelihood.event_shape))
        return x.to(next(model.likelihood.parameters()).dtype)


def pair(likelihood: LikelihoodCase, engine: EngineCase, objective: Objective, aggregate: Aggregate = mean) -> Pair:
    def make() -> Autoencoder:
        model = likelihood.build()
        return Autoencoder(model, engine.build(model), objective, aggregate)

    flags = (engine.stochastic, engine.density, engine.detached, engine.samples, engine.surrogate)
    return Pair(f"{likelihood.name}+{engine.name}", make, likelihood.data, *flags)


def system(case: SystemCase) -> Pair:
    def make() -> Autoencoder:
        model = systems.build(case.name, case.event_shape, **case.options)
        if isinstance(model.likelihood, ClosedFormLearning):
            model.likelihood.initialize(case.data((20, *case.event_shape)), 0)
        return model

    name = "-".join(
        [
            case.name,
            *(str(case.options[key]) for key in ("head", "steps", "posterior") if key in case.options),
            *(["missing"] * case.options.get("missing", False)),
        ]
    )
    flags = (case.stochastic, case.density, case.detached, case.samples, case.surrogate)
    return Pair(f"system-{name}", make, case.data, *flags)


def covering(options: list[tuple[Any, Any]], partners: Callable[[Any], int]) -> list[tuple[Any, Any]]:
    """A few of the options, in which each case, left or right, has the partners it wants, or as many as it can have.

    In turn, each right case with too few takes its least used partner, then each left case that still has too few.
    """
    uses: Counter[Any] = Counter()
    chosen: dict[tuple[Any, Any], None] = {}
    for side in (1, 0):
        cases = list(dict.fromkeys(option[side] for option in options))
        for _ in range(max(map(partners, cases))):
            for case in cases:
                rest = [option for option in options if option[side] == case and option not in chosen]
                if rest and uses[case] < partners(case):
                    option = min(rest, key=lambda option: uses[option[1 - side]])
                    chosen[option] = None
                    uses.update(option)
    return list(chosen)


def partners_of(case: LikelihoodCase | EngineCase) -> int:
    """How many partners a case has: an ascent that differs from the first in one of its parts needs only one."""
    if isinstance(case, LikelihoodCase):
        return 2
    return 1 if case.name.startswith("ascent-") and case.name != ascent().name else 3


def pairs() -> tuple[list[Pair], list[Pair]]:
    """Each engine on three likelihoods, each part of an ascent on one, each likelihood under two engines.

    The first list has each engine and each likelihood at least once, the second has the rest. In full, the first has
    every engine with every likelihood that suits it.
    """
    models = [(case, case.build()) for case in LIKELIHOODS]
    options = [(case, engine) for case, model in models for engine in ENGINES if engine.suits(model)]
    chosen = options if FULL else covering(options, partners_of)
    once = chosen if FULL else covering(chosen, lambda case: 1)
    parts = once, [option for option in chosen if option not in once]
    once, rest = ([pair(case, engine, elbo if engine.density else joint) for case, engine in part] for part in parts)
    return once, rest


def objective_pairs() -> list[Pair]:
    """Each objective and each aggregate once; in full, every one with every other."""
    likelihoods = {case.name: case for case in LIKELIHOODS}
    engines = {case.name: case for case in ENGINES}
    options = [(case, aggregate) for case in OBJECTIVES for aggregate in AGGREGATES]
    found = []
    for case, aggregate in options if FULL else covering(options, lambda case: 1):
        made = pair(likelihoods[case.likelihood], engines[case.engine], case.build(), aggregate.build())
        found.append(replace(made, name=f"{case.name}+{aggregate.name}", surrogate=case.surrogate))
    return found


ONCE, REST = pairs()
ONCE += [system(case) for case in SYSTEMS]
PAIRS = ONCE + REST
OBJECTIVE_PAIRS = objective_pairs()


@cache
def covered_names() -> set[str]:
    """Public names that the cases reach: functions, and classes of what is built and found with bases and protocols."""
    protocols = [
        c for m in (gae.likelihood, gae.inference) for c in vars(m).values() if getattr(c, "_is_protocol", False)
    ]
    names = {function.__name__ for function in BRIDGES}
    for case in _one_of_each(PAIRS + OBJECTIVE_PAIRS):
        for thing in _things(case):
            names |= {base.__name__ for base in type(thing).__mro__}
            names |= {protocol.__name__ for protocol in protocols if isinstance(thing, protocol)}
            # a function, a function with some arguments given, or a function that another one of that name made
            names.add(getattr(getattr(thing, "func", thing), "__qualname__", "").partition(".")[0].lstrip("_"))
    return names


def _one_of_each(cases: list[Pair]) -> Iterator[Pair]:
    """A case for each likelihood, engine, objective, aggregate and system: not their product."""
    seen: set[str] = set()
    for case in cases:
        parts = set(case.name.split("+"))
        if not parts <= seen:
            seen |= parts
            yield case


def _things(case: Pair) -> Iterator[Any]:
    model = case.build()
    x = case.data(model, 2)
    code = model.inference.infer(model.likelihood, x)
    encoding = model.encode(x)
    yield from (*model.modules(), model.objective, model.aggregate, code, encoding, encoding.prior)
    yield model.decode(code.z, code.k)
    if getattr(model.inference, "stop", None) is not None:
        progress = model.inference.watch.__self__[-1]
        yield from (
            progress,
            model.inference.stop(progress.reconstruction, model.inference.stop.start(progress.reconstruction), 0),
        )
    if encoding.solve is not None:
        yield from (encoding.solve, *(Status(status) for status in encoding.solve.status.flatten().tolist()))
    if isinstance(model.likelihood, ClosedFormLearning) and code.k is not None and len(code.k) == 1:
        yield model.likelihood.statistics(x, code)
    if code.encoded is not None and isinstance(model.likelihood.latent_prior, Codebook):
        yield model.likelihood.latent_prior.statistics(code)
