"""Variational autoencoders."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Size, Tensor

from gae import nets, objective
from gae.autoencoder import Autoencoder
from gae.inference import (
    HMC,
    MCMC,
    Amortized,
    Ascent,
    DetachedDraws,
    GaussNewton,
    GradientAscent,
    IterativeAmortized,
    Laplace,
    MeanField,
    Unroll,
    Zeros,
)
from gae.likelihood import HierarchicalNormal
from gae.objective import Objective, elbo, monte_carlo_em, stepwise_elbo, wake_sleep, wake_wake
from gae.systems.encoders import FlowEncoder, LadderEncoder, encoder_of
from gae.systems.parts import NormalEncoder, Shape, decoder_of, encoder_network
from gae.systems.table import System


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Amortized (guide)",
    objective="elbo",
    source="Kingma & Welling 2014",
    reads={"missing": "missing"},
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
    posterior: str = "diagonal",
    gradient: str = "total",
    *,
    missing: bool = False,
) -> Autoencoder:
    """Variational autoencoder (Kingma & Welling 2014); ``beta`` weighs the KL (Higgins et al. 2017).

    ``gradient="stl"``, with ``analytic=False``, is sticking the landing (Roeder et al. 2017; ``gae.objective.elbo``).

    For a Gaussian or Laplace head, ``scale`` is the initial value of a learned scale (``learn="scalar"``: one value,
    ``"pixel"``: one for each pixel), or the value of a fixed one (``"fixed"``), in data units. The default is the unit
    of the data, as estimated by ``fit`` (``nets.InDataUnits``); for columns with different units, the noise is in
    proportion to them. A fixed variance c = scale² has the optimum of ``beta=c`` at unit variance (Doersch 2016; ledger
    D26); the optimum of a learned variance is the expected squared error (Rybkin et al. 2021). For a constant pixel
    this is zero, and its scale ends at 1e-4 of the unit: do not use ``"pixel"`` with constant pixels.

    ``posterior`` is the encoder's family of densities: a normal with a ``"diagonal"`` or ``"full"`` covariance, or a
    normalizing flow, ``"iaf"`` (Kingma et al. 2016), ``"maf"`` (Papamakarios et al. 2017) or ``"nsf"`` (Durkan et al.
    2019), which needs zuko; of these ``"iaf"`` draws in one pass of its networks, and so trains faster. With
    ``analytic``, the KL of a normal is computed in closed form; that of a flow is always estimated from the draws.

    With ``missing``, NaN marks elements that were not observed: the bound is that of the observed elements
    (``PartiallyObserved``), and the encoder gets 0 in place of the others, and the mask (``nets.Standardized``).
    """
    network = nets.mlp(latent, hidden[::-1], event_shape)
    decoder = decoder_of(network, latent, event_shape, head, scale, learn, missing=missing)
    encoder = encoder_of(
        posterior,
        latent,
        lambda width: encoder_network(event_shape, lambda shape: nets.mlp(shape, hidden, width), missing),
    )
    closed_form = analytic and not isinstance(encoder, FlowEncoder)
    bound = partial(elbo, beta=beta, analytic=closed_form)
    return Autoencoder(decoder, Amortized(encoder, samples), _estimated(bound, gradient))


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Amortized (guide)",
    objective="elbo",
    source="Kingma & Welling 2014",
    reads={"missing": "missing"},
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
    *,
    missing: bool = False,
) -> Autoencoder:
    """Convolutional VAE for images (C, H, W) of any size; ``scale``, ``learn`` and ``missing`` as in ``vae``."""
    network = nets.conv_decoder(latent, event_shape, channels[::-1])
    decoder = decoder_of(network, latent, event_shape, head, scale, learn, missing=missing)
    encoder = encoder_network(event_shape, lambda shape: nets.conv_encoder(shape, 2 * latent, channels), missing)
    return Autoencoder(decoder, Amortized(NormalEncoder(encoder)), partial(elbo, beta=beta, analytic=analytic))


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Amortized (guide), S",
    objective="iwae",
    source="Burda et al. 2016",
    reads={"missing": "missing"},
)
def iwae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    samples: int = 5,
    gradient: str = "total",
    *,
    missing: bool = False,
) -> Autoencoder:
    """Importance-weighted autoencoder (Burda et al. 2016): the networks of a VAE with a tighter bound.

    ``gradient="dreg"`` is the doubly reparameterised gradient (Tucker et al. 2019; ``gae.objective.iwae``).
    """
    model = vae(event_shape, latent, hidden, head, samples=samples, missing=missing)
    return Autoencoder(model.likelihood, model.inference, _estimated(objective.iwae, gradient))


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Ascent(Amortized, MeanField)",
    objective="elbo",
    source="Kim et al. 2018",
    reads={"missing": "missing"},
)
def savae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    steps: int = 5,
    rate: float = 0.01,
    *,
    missing: bool = False,
) -> Autoencoder:
    """Semi-amortised VAE (Kim et al. 2018): the encoder's density is refined by unrolled ascent on the ELBO."""
    model = vae(event_shape, latent, hidden, head, missing=missing)
    refine = Ascent(model.inference, GradientAscent(rate), steps, family=MeanField(samples=2), adjoint=Unroll())
    return Autoencoder(model.likelihood, refine, partial(elbo, analytic=True))


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Laplace(Ascent(Amortized, Gauss–Newton))",
    objective="elbo",
    source="Park et al. 2019",
    reads={"missing": "missing"},
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
    *,
    missing: bool = False,
) -> Autoencoder:
    """Variational Laplace autoencoder (Park et al. 2019): Gauss–Newton steps from an encoder, then a full covariance.

    Each step linearises the decoder; the density is the normal of mean and curvature at the last point, exact after
    one step if the decoder is linear. Gradients pass through the steps. Other options are as in ``vae``.
    """
    network = nets.mlp(latent, hidden[::-1], event_shape)
    decoder = decoder_of(network, latent, event_shape, head, scale, learn, missing=missing)
    encoder = encoder_network(event_shape, lambda shape: nets.mlp(shape, hidden, latent), missing)
    climb = Ascent(Amortized(encoder), GaussNewton(), steps + 1, adjoint=Unroll())  # the last one evaluates the point
    return Autoencoder(decoder, Laplace(climb, samples=samples), elbo)


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Ascent(Zeros, IterativeAmortized, MeanField)",
    objective="stepwise_elbo",
    source="Marino et al. 2018",
    reads={"missing": "missing"},
)
def iterative_vae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    steps: int = 5,
    samples: int = 2,
    *,
    missing: bool = False,
) -> Autoencoder:
    """Iterative amortised inference (Marino et al. 2018): a network updates q(z|x) from its gradient, from N(0, I).

    ``samples`` is the number of draws for each gradient. The decoder is that of ``vae``.
    """
    nets.need_sizes(steps=steps)
    decoder = vae(event_shape, latent, hidden, head, missing=missing).likelihood
    step = IterativeAmortized((2, latent), hidden, event_shape, missing)
    family = MeanField(samples, scale=1.0)
    return Autoencoder(decoder, Ascent(Zeros(), step, steps, family=family, trace=True), stepwise_elbo)


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="DetachedDraws(Amortized), S",
    objective="wake_wake",
    source="Bornschein & Bengio 2015; Le et al. 2019",
    reads={"missing": "missing"},
)
def rws_vae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    samples: int = 10,
    sleep: bool = False,
    *,
    missing: bool = False,
) -> Autoencoder:
    """Reweighted wake-sleep (Bornschein & Bengio 2015) with a VAE's networks; both phases are those of Le et al. 2019.

    The decoder learns in a wake phase, and so does the encoder; with ``sleep`` the encoder learns from draws of the
    model (``gae.objective.wake_sleep``), which costs one more evaluation of either network.
    """
    model = vae(event_shape, latent, hidden, head, samples=samples, missing=missing)
    return Autoencoder(model.likelihood, DetachedDraws(model.inference, sleep), wake_sleep if sleep else wake_wake)


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="MCMC(Amortized, HMC)",
    objective="monte_carlo_em",
    source="Hoffman 2017",
    reads={"missing": "missing"},
)
def mcmc_em(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    steps: int = 5,
    leapfrog: int = 5,
    rate: float = 0.1,
    samples: int = 1,
    adapt_steps: int = 0,
    *,
    missing: bool = False,
) -> Autoencoder:
    """MCMC inside EM (Hoffman 2017): Hamiltonian chains from a VAE's encoder give the codes that train the decoder.

    ``steps`` trajectories of ``leapfrog`` moves of mean size ``rate``, in units of the code, for each of ``samples``.
    ``adapt_steps`` trajectories come before them, in which each chain adapts that size from ``rate`` to an acceptance
    of 80 %, by dual averaging (``gae.inference.HMC``): a fixed one may reject all moves once the decoder has sharpened.
    """
    model = vae(event_shape, latent, hidden, head, samples=samples, missing=missing)
    chains = MCMC(model.inference, HMC(rate, leapfrog, adapt_steps), adapt_steps + steps + 1)
    return Autoencoder(model.likelihood, chains, monte_carlo_em)


@System(
    likelihood="neural head",
    prior="learned, two layers",
    inference="Amortized (guide)",
    objective="elbo",
    source="Sønderby et al. 2016",
    reads={"missing": "missing"},
)
def ladder_vae(
    event_shape: Shape,
    latent: int = 8,
    top: int = 4,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    beta: float = 1.0,
    samples: int = 1,
    *,
    missing: bool = False,
) -> Autoencoder:
    """Ladder VAE (Sønderby et al. 2016) of two stochastic layers: z1 of ``latent`` elements, z2 of ``top`` elements.

    A code is the vector (z1, z2) under the prior p(z2) p(z1|z2), so any other engine can infer both layers; the decoder
    sees z1. The paper raises the weight of the KL from 0 to 1 over the first epochs; here ``beta`` is constant.
    """
    prior = HierarchicalNormal(nets.mlp(top, hidden[-1:], 2 * latent), latent, top)
    network = nets.Leading(nets.mlp(latent, hidden[::-1], event_shape), latent)
    decoder = decoder_of(network, latent + top, event_shape, head, prior=prior, missing=missing)
    width = hidden[-1] if hidden else Size(event_shape).numel()

    def bottom_up(shape: Shape) -> nets.BottomUp:
        first, second = nets.mlp(shape, hidden[:-1], width), nets.mlp(width, hidden[-1:], width)
        return nets.BottomUp(first, second, width, (2 * latent, 2 * top))

    encoder = LadderEncoder(encoder_network(event_shape, bottom_up, missing), prior)
    return Autoencoder(decoder, Amortized(encoder, samples), partial(elbo, beta=beta))


def _estimated(bound: Callable[..., Tensor], gradient: str) -> Objective:
    """The bound with a gradient estimator."""
    return bound if gradient == "total" else partial(bound, gradient=gradient)
