"""Variational autoencoders."""

from collections.abc import Sequence
from functools import partial

from gae import nets, objective
from gae.autoencoder import Autoencoder
from gae.inference import Amortized, Ascent, GaussNewton, GradientAscent, Laplace, MeanField, Unroll
from gae.objective import elbo
from gae.systems.parts import NormalEncoder, Shape, decoder_of
from gae.systems.table import System


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Amortized (guide)",
    objective="elbo",
    source="Kingma & Welling 2014",
)
def vae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    beta: float = 1.0,
    samples: int = 1,
    analytic: bool = True,
    scale: float | None = None,
    learn: str = "scalar",
) -> Autoencoder:
    """Variational autoencoder (Kingma & Welling 2014); ``beta`` weighs the KL (Higgins et al. 2017).

    For a Gaussian or Laplace head, ``scale`` is the initial value of a learned scale (``learn="scalar"``: one value,
    ``"pixel"``: one for each pixel), or the value of a fixed one (``"fixed"``), in data units. The default is the unit
    of the data, as estimated by ``fit`` (``nets.InDataUnits``); for columns with different units, the noise is in
    proportion to them. A fixed variance c = scale² has the optimum of ``beta=c`` at unit variance (Doersch 2016; ledger
    D26); the optimum of a learned variance is the expected squared error (Rybkin et al. 2021). For a constant pixel
    this is zero, and its scale ends at 1e-4 of the unit: do not use ``"pixel"`` with constant pixels.
    """
    decoder = decoder_of(nets.mlp(latent, hidden[::-1], event_shape), latent, event_shape, head, scale, learn)
    encoder = NormalEncoder(nets.Standardized(nets.mlp(event_shape, hidden, 2 * latent), event_shape))
    return Autoencoder(decoder, Amortized(encoder, samples), partial(elbo, beta=beta, analytic=analytic))


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Amortized (guide)",
    objective="elbo",
    source="Kingma & Welling 2014",
)
def conv_vae(
    event_shape: Shape,
    latent: int = 8,
    channels: Sequence[int] = (32, 64),
    head: str = "gaussian",
    beta: float = 1.0,
    analytic: bool = True,
    scale: float | None = None,
    learn: str = "scalar",
) -> Autoencoder:
    """Convolutional VAE for images (C, H, W) of any size; ``scale`` and ``learn`` as in ``vae``."""
    network = nets.conv_decoder(latent, event_shape, channels[::-1])
    decoder = decoder_of(network, latent, event_shape, head, scale, learn)
    encoder = NormalEncoder(nets.Standardized(nets.conv_encoder(event_shape, 2 * latent, channels), event_shape))
    return Autoencoder(decoder, Amortized(encoder), partial(elbo, beta=beta, analytic=analytic))


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Amortized (guide), S",
    objective="iwae",
    source="Burda et al. 2016",
)
def iwae(
    event_shape: Shape, latent: int = 8, hidden: Sequence[int] = (128, 128), head: str = "gaussian", samples: int = 5
) -> Autoencoder:
    """Importance-weighted autoencoder (Burda et al. 2016): the networks of a VAE with a tighter bound."""
    model = vae(event_shape, latent, hidden, head, samples=samples)
    return Autoencoder(model.likelihood, model.inference, objective.iwae)


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Ascent(Amortized, MeanField)",
    objective="elbo",
    source="Kim et al. 2018",
)
def savae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    steps: int = 5,
    rate: float = 0.01,
) -> Autoencoder:
    """Semi-amortised VAE (Kim et al. 2018): the encoder's density is refined by unrolled ascent on the ELBO."""
    model = vae(event_shape, latent, hidden, head)
    refine = Ascent(model.inference, GradientAscent(rate), steps, family=MeanField(samples=2), adjoint=Unroll())
    return Autoencoder(model.likelihood, refine, partial(elbo, analytic=True))


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Laplace(Ascent(Amortized, Gauss–Newton))",
    objective="elbo",
    source="Park et al. 2019",
)
def vlae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    steps: int = 4,
    samples: int = 1,
    scale: float | None = None,
    learn: str = "scalar",
) -> Autoencoder:
    """Variational Laplace autoencoder (Park et al. 2019): Gauss–Newton steps from an encoder, then a full covariance.

    Each step linearises the decoder; the density is the normal of mean and curvature at the last point, exact after
    one step if the decoder is linear. Gradients pass through the steps. ``scale`` and ``learn`` are as in ``vae``.
    """
    decoder = decoder_of(nets.mlp(latent, hidden[::-1], event_shape), latent, event_shape, head, scale, learn)
    encoder = nets.Standardized(nets.mlp(event_shape, hidden, latent), event_shape)
    climb = Ascent(Amortized(encoder), GaussNewton(), steps + 1, adjoint=Unroll())  # the last one evaluates the point
    return Autoencoder(decoder, Laplace(climb, samples=samples), elbo)
