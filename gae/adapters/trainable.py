"""Training of a decoder that you have, by objectives with a maximiser under a proper prior."""

from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gae.adapters.decoders import Shaped
from gae.adapters.encoders import GivenEncoder
from gae.autoencoder import Autoencoder
from gae.inference import Adam, Amortized, Ascent, GaussNewton, Laplace, MeanField, OneStep, Unroll, Zeros
from gae.likelihood import Likelihood
from gae.objective import elbo, laplace_evidence

CLIMB = 8  # Gauss–Newton steps to a mode, as in `laplace-gae`
REFINE, RATE, DRAWS = 5, 0.02, 2  # steps, rate and draws of a semi-amortised ascent
TRAINS = ("encoder", "refine", "gauss-newton")


def trainable(model: Autoencoder, engine: str | None = None) -> Autoencoder:
    """A model of a given decoder (``from_decoder``), in training mode, with an engine and an objective to train both.

    ``"encoder"``, the default of a model with an encoder, trains by its ELBO; ``"refine"`` by the ELBO after a few
    steps from its density, which are differentiated (semi-amortised; Kim et al. 2018); ``"gauss-newton"`` needs no
    encoder and trains by the Laplace evidence of the mode. The joint density at a mode has no maximiser under N(0, I),
    so no engine trains by it. The decoder stays in evaluation mode.

    Raises:
        ValueError: for a model without an encoder, or one without a density q(z|x), where the engine needs it; for an
            unknown engine; for a decoder with dropout or batch normalisation.

    >>> from gae.adapters import from_decoder
    >>> model = from_decoder(nn.Linear(2, 5), (5,), latent=2, scale=0.3)
    >>> type(trainable(model, "gauss-newton").inference).__name__
    'Laplace'
    """
    likelihood = model.likelihood
    _need_same_in_training(likelihood)
    encoder = model.inference.guide if isinstance(model.inference, Amortized) else None
    if engine == "gauss-newton":
        if encoder is not None:
            raise ValueError("gauss-newton trains the decoder alone. Leave the encoder (--encoder) out.")
        climb = Ascent(Zeros(), GaussNewton(), CLIMB + 1, adjoint=OneStep())  # the last one evaluates the point
        return Autoencoder(likelihood, Laplace(climb, samples=None), laplace_evidence).train()
    if engine not in (None, *TRAINS):
        raise ValueError(f"Cannot train by the engine {engine!r}. Choose one of {', '.join(TRAINS)}.")
    if encoder is None:
        raise ValueError(
            "Training a decoder by the joint density at its codes has no maximiser under N(0, I): smaller codes with "
            "larger weights always raise it. Give its encoder (--encoder), to train by the ELBO, or --engine "
            "gauss-newton, to train by the Laplace evidence."
        )
    if not isinstance(encoder, GivenEncoder):
        raise ValueError(
            "Training needs an encoder with a density q(z|x), got one that returns codes. Return a distribution, such "
            "as `torch.distributions.Normal(mean, deviation)`, or leave it out and give --engine gauss-newton."
        )
    if engine != "refine":
        return Autoencoder(likelihood, model.inference, elbo).train()
    family = MeanField(samples=DRAWS)
    steps = Ascent(model.inference, Adam(RATE), REFINE, family=family, adjoint=Unroll())
    return Autoencoder(likelihood, steps, partial(elbo, analytic=True)).train()


def _need_same_in_training(likelihood: Likelihood) -> None:
    """Raises ValueError for a decoder that computes something else in training mode."""
    given = (part.network for part in likelihood.modules() if isinstance(part, Shaped))
    network = next(given, likelihood)
    for name, module in network.named_modules():
        if isinstance(module, (_BatchNorm, _DropoutNd, nn.RReLU)):
            raise ValueError(
                f"The decoder holds {type(module).__name__} ({name!r}), which is another function in training than "
                "when codes are inferred. Leave it out, or use GroupNorm."
            )
