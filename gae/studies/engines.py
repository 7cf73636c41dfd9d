"""Engines and baselines of ``gae compare``, and their common configuration."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Num
from torch import Size, Tensor

from gae import nets
from gae.analysis.matrix import MatrixBudget
from gae.analysis.metrics import EvaluationBudget, encode
from gae.autoencoder import Autoencoder
from gae.data import Dataset
from gae.inference import Adam, Adjoint, Amortized, Ascent, Detach, Inference, MeanField, Unroll, Zeros
from gae.likelihood import Likelihood, LinearMixture, StandardUnits
from gae.objective import Objective, elbo, joint
from gae.storage import recorded
from gae.systems import HEADS, build
from gae.systems.encoders import FLOWS, FlowEncoder, encoder_of
from gae.systems.parts import Encoder, decoder_of, directions

QUICK_MATRIX = MatrixBudget(samples=24, importance_samples=1000, draws=50, steps=(4,), tuning_samples=12)
QUICK_EFFORT = EvaluationBudget(evidence_samples=100, neighbour_samples=500)


@dataclass(frozen=True)
class Configuration:
    """Everything that determines the numbers of a comparison; stored in ``results.json``.

    Attributes:
        epochs: epochs of every training, or None for the default ``training_epochs``.
        seed: of the first training; the others of ``seeds`` trainings count on from it.
        training_epochs: epochs of the decoder's training, by engine.
        encoder_epochs: epochs of each encoder that is fitted to a frozen decoder.
        steps, rate, betas: options of the MAP ascent by Adam. The learned noise scale shrinks in training, so a fixed
            gradient step would diverge; Adam's steps do not depend on the scale of the gradient.
        refine_steps, refine_rate, refine_samples: options of the semi-amortised ascent on the ELBO.
        clip: largest norm of a gradient; several times the typical norm, so it only limits rare jumps.
        matrix: budget of the bounds on each fixed decoder.
        curve_samples, curve_draws: test samples, and draws for each, of a point of the training curves.
        device, precision: of the trainings; None for the CPU and 32 bits. Bounds are measured in double precision.
        given: names and content hash of a given decoder that is compared instead of trained ones, else None.
        flow: the flow of a third family, ``"maf"``, ``"iaf"`` or ``"nsf"``, else None.
        wide: whether diagonal encoders of twice the width are fitted too; None if not.
    """

    data: str
    data_hash: str
    binarize: str
    engines: tuple[str, ...]
    epochs: int | None
    latent: int
    hidden: tuple[int, ...]
    head: str
    seed: int
    quick: bool
    seeds: int = 1
    standardize: bool | None = None
    training_epochs: dict[str, int] = field(default_factory=dict)
    encoder_epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 3e-3
    clip: float = 50.0
    steps: int = 25
    rate: float = 0.1
    betas: tuple[float, float] = (0.8, 0.9)
    refine_steps: int = 5
    refine_rate: float = 0.02
    refine_samples: int = 2
    components: int = 10
    baseline_epochs: int = 30
    curve_samples: int = 32
    curve_draws: int = 200
    device: str | None = None
    precision: str | None = None
    matrix: MatrixBudget = field(default_factory=MatrixBudget)
    effort: EvaluationBudget = field(default_factory=EvaluationBudget)
    given: dict[str, Any] | None = None
    flow: str | None = None
    wide: bool | None = None

    def ascent(self, steps: int | None = None, adjoint: Adjoint | None = None, init: Inference | None = None) -> Ascent:
        """MAP ascent on the code, from 0 unless another start is given."""
        steps = self.steps if steps is None else steps
        return Ascent(init or Zeros(), Adam(self.rate, self.betas), steps, adjoint=adjoint)

    def refinement(self, encoder: Encoder, steps: int | None = None, draws: int | None = None) -> Ascent:
        """Ascent on the ELBO of a mean-field normal, from the encoder's density."""
        family = MeanField(samples=draws or self.refine_samples)
        steps = self.refine_steps if steps is None else steps
        return Ascent(Amortized(encoder), Adam(self.refine_rate, self.betas), steps, family=family)


@dataclass(frozen=True)
class Engine:
    """A named engine of the comparison.

    Attributes:
        training: training of a decoder, in words.
        encoding: encoding, in words.
        build: makes the engine from the configuration and an encoder.
        objective: training objective, (B,) in nats.
        trains_encoder: whether an encoder is trained together with the decoder.
        evaluations: decoder evaluations per sample of a training step.
        share: share of the default epochs, since a step of some engines takes many evaluations.
    """

    training: str
    encoding: str
    build: Callable[[Configuration, Encoder], Inference]
    objective: Objective
    trains_encoder: bool
    evaluations: Callable[[Configuration], int]
    share: float


ENGINES: dict[str, Engine] = {
    "unrolled": Engine(
        "joint log density at the code, differentiated through every ascent step",
        "ascent on the code, from 0 (MAP)",
        lambda configuration, encoder: configuration.ascent(adjoint=Unroll()),
        joint,
        trains_encoder=False,
        evaluations=lambda configuration: configuration.steps + 1,
        share=0.25,
    ),
    "detached": Engine(
        "joint log density at the code, the code taken as a constant",
        "ascent on the code, from 0 (MAP)",
        lambda configuration, encoder: configuration.ascent(adjoint=Detach()),
        joint,
        trains_encoder=False,
        evaluations=lambda configuration: configuration.steps + 1,
        share=0.25,
    ),
    "amortised": Engine(
        "ELBO of the encoder's normal density (a VAE)",
        "one pass of an encoder network",
        lambda configuration, encoder: Amortized(encoder),
        partial(elbo, analytic=True),
        trains_encoder=True,
        evaluations=lambda configuration: 1,
        share=1.0,
    ),
    "semi-amortised": Engine(
        "ELBO after ascent from the encoder's density, differentiated through every step",
        "encoder, then ascent on the mean and scale of its density",
        lambda configuration, encoder: configuration.refinement(encoder),
        partial(elbo, analytic=True),
        trains_encoder=True,
        evaluations=lambda configuration: configuration.refine_steps * configuration.refine_samples + 1,
        share=0.5,
    ),
}

BASELINES: dict[str, Callable[[Dataset, Configuration], Autoencoder]] = {
    "pca": lambda data, c: build("pca", data, latent=c.latent),
    "ppca": lambda data, c: build("ppca", data, latent=c.latent),
    "kmeans": lambda data, c: build("kmeans", data, components=c.latent),
    "llgae": lambda data, c: build("llgae", data, latent=c.latent, components=c.components),
}


def configure(
    data: Dataset,
    engines: Sequence[str],
    epochs: int | None = None,
    latent: int | None = None,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    seed: int = 0,
    quick: bool = False,
    seeds: int = 1,
) -> Configuration:
    """Configuration of a comparison, checked against the data.

    The default number of epochs takes about 60,000 training samples (``quick``: 10,000), and is at least 5
    (``quick``: 1); engines that evaluate the decoder often, and encoders fitted afterwards, take a share of it. The
    default code has 8 elements, or as many as an observation if that is fewer.

    Raises:
        ValueError: unknown names (the valid ones are listed), or sizes that do not fit the data.
    """
    size, width = len(data.train), data.event_shape.numel()
    unknown = [name for name in engines if name not in ENGINES]
    if unknown or not engines or len(set(engines)) < len(engines):
        got = repr(unknown[0]) if unknown else list(engines)
        raise ValueError(f"Unknown or repeated engine: {got}. Choose some of {', '.join(ENGINES)}.")
    if head not in HEADS:
        raise ValueError(f"Unknown head {head!r}. Valid heads: {', '.join(HEADS)}.")
    latent = directions(data.event_shape, latent)
    if not 1 <= latent <= width:
        raise ValueError(f"latent must be between 1 and the {width} elements of an observation, got {latent}.")
    if size < max(latent, 10):
        raise ValueError(f"A comparison needs at least {max(latent, 10)} training samples, got {size}.")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}.")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}.")
    longest = epochs or (max(1, 10_000 // size) if quick else max(5, 60_000 // size))
    share = {name: 1.0 if epochs else ENGINES[name].share for name in engines}
    chosen = Configuration(
        *(data.name, data.hash, data.binarization, tuple(engines), epochs, latent, tuple(hidden), head, seed, quick),
        seeds=seeds,
        standardize=data.standardize or None,
        training_epochs={name: max(1, round(share[name] * longest)) for name in engines},
        encoder_epochs=max(1, round(longest * (1.0 if epochs else 0.5))),
    )
    return replace(chosen, matrix=QUICK_MATRIX, effort=QUICK_EFFORT) if quick else chosen


def initial(
    configuration: Configuration, shape: Size | tuple[int, ...], posterior: str = "diagonal"
) -> tuple[Likelihood, Encoder]:
    """Initial decoder and encoder of every training, as a function of the seed."""
    latent = configuration.latent
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(configuration.seed)
        network = nets.mlp(latent, configuration.hidden[::-1], shape)
        decoder: Likelihood = decoder_of(network, latent, shape, configuration.head)
        decoder = StandardUnits.of(decoder) if configuration.standardize else decoder
        return decoder, initial_encoder(configuration, shape, posterior)


def need_encoders(configuration: Configuration, shape: Size | tuple[int, ...]) -> None:
    """Raises ValueError for an unknown flow or a width that cannot be doubled, ImportError for a flow without zuko."""
    encoder = (configuration.given or {}).get("encoder")
    if configuration.wide and (encoder or not configuration.hidden):
        reason = f"that of the given {encoder} is not known" if encoder else "hidden is empty"
        raise ValueError(f"wide=True doubles the width of an encoder's hidden layers, and {reason}. Leave it out.")
    if configuration.flow is not None:
        if configuration.flow not in FLOWS:
            raise ValueError(f"Unknown flow {configuration.flow!r}. Valid flows: {', '.join(FLOWS)}.")
        initial(configuration, shape, configuration.flow)


def initial_encoder(configuration: Configuration, shape: Size | tuple[int, ...], posterior: str) -> Encoder:
    """Encoder of a family of densities (``gae.systems.encoders.encoder_of``), with random weights.

    ``"wide"`` is a diagonal one with hidden layers of twice the width.
    """
    wide, hidden = posterior == "wide", configuration.hidden
    hidden = tuple(2 * units for units in hidden) if wide else hidden
    return encoder_of(
        "diagonal" if wide else posterior,
        configuration.latent,
        lambda width: nets.Standardized(nets.mlp(shape, hidden, width), shape),
    )


@torch.no_grad()
def calibrate_noise(model: Autoencoder, x: Num[Tensor, "N *X"], effort: EvaluationBudget) -> None:
    """Sets the noise scale of a linear mixture that does not learn it to the root mean square residual over x.

    This makes its log densities comparable and leaves its codes unchanged. A model without a residual keeps its scale.
    """
    likelihood, values = model.likelihood.in_standard_units(x)
    if isinstance(likelihood, LinearMixture) and not likelihood.learn_scale:
        restored = model.likelihood.in_standard_units(encode(model, x, effort).mean)[1]
        square = float((restored - values).square().mean())
        if square > 1e-12:
            likelihood.log_scale.fill_(0.5 * math.log(square))


def assemble(configuration: Configuration, name: str, likelihood: Likelihood, encoder: Encoder) -> Autoencoder:
    """Autoencoder of a named engine on a decoder, with the engine's training objective.

    The KL of a flow is estimated from the draws, since it has no closed form.
    """
    engine = ENGINES[name]
    objective = elbo if isinstance(encoder, FlowEncoder) else engine.objective
    parts = likelihood, engine.build(configuration, encoder), objective
    return Autoencoder(*parts, accepts_rescaling=True)  # the comparison shows where MAP training leads


def describe_engine(
    configuration: Configuration, name: str, data: Dataset, posterior: str = "diagonal"
) -> dict[str, Any]:
    """JSON-able description from which ``rebuild`` makes the same autoencoder, without its parameters."""
    return {
        "comparison": asdict(configuration),
        "engine": name,
        "posterior": posterior,
        **data.preparation.note(),
    }


@recorded
def rebuild(description: dict[str, Any]) -> Autoencoder:
    """Autoencoder of a description by ``describe_engine``, with initial parameters."""
    known = {each.name for each in fields(Configuration)} - {"matrix", "effort"}
    configuration = Configuration(**{key: value for key, value in description["comparison"].items() if key in known})
    shape, posterior = tuple(description["event_shape"]), description.get("posterior", "diagonal")
    return assemble(configuration, description["engine"], *initial(configuration, shape, posterior))
