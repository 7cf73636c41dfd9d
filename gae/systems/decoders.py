"""Systems without an encoder: a neural decoder, with codes by gradient ascent."""

from collections.abc import Sequence

from gae import nets
from gae.autoencoder import Autoencoder
from gae.inference import (
    Adam,
    Ascent,
    AutoDecoder,
    Detach,
    GaussNewton,
    GradientAscent,
    Langevin,
    Laplace,
    OneStep,
    Prior,
    ProximalAscent,
    Unroll,
    Zeros,
)
from gae.likelihood import DecoderLikelihood, Flat, Gaussian, LaplacePrior, PartiallyObserved
from gae.objective import joint, laplace_evidence
from gae.systems.parts import Shape, decoder_of
from gae.systems.table import System


@System(
    likelihood="Gaussian head",
    prior="flat",
    inference="Ascent(Zeros, 1 step)",
    objective="joint",
    source="Bond-Taylor & Willcocks 2021",
    reads={"missing": "missing"},
)
def gon(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    scale: float | None = None,
    rate: float = 1.0,
    *,
    missing: bool = False,
) -> Autoencoder:
    """Gradient origin network (Bond-Taylor & Willcocks 2021): codes by one unrolled gradient step from the origin.

    ``scale=√½`` makes log q_r(x|z) = -‖x - f(z)‖² up to a constant; the prior is flat. The default scale is 2.6 units
    of the data (``nets.InDataUnits``), which is about as large for grey values in [0, 1]. With ``missing``, NaN marks
    elements that were not observed, and codes are those of the others (``PartiallyObserved``).
    """
    network = nets.mlp(latent, hidden[::-1], event_shape)
    decoder = decoder_of(
        network, latent, event_shape, scale=scale, learn="fixed", prior=Flat(latent), default=2.6, missing=missing
    )
    return Autoencoder(decoder, Ascent(Zeros(), GradientAscent(rate), max_steps=1, adjoint=Unroll()), joint)


@System(
    likelihood="Gaussian, unit atoms",
    prior="Laplace",
    inference="Ascent(Zeros, FISTA)",
    objective="joint",
    source="Olshausen & Field 1996",
    reads={"missing": "missing"},
)
def sparse_coding(
    event_shape: Shape,
    latent: int = 128,
    rate: float | None = None,
    scale: float | None = None,
    steps: int = 50,
    *,
    missing: bool = False,
) -> Autoencoder:
    """Sparse coding (Olshausen & Field 1996): unit atoms, a Laplace prior with the given rate, codes by FISTA.

    ``rate`` and the noise ``scale`` are in data units, in which atoms have length 1; if one of them is given, the other
    defaults to a rate of 10 or a scale of 0.1. If neither is given, the data are centred and scaled first
    (``nets.InDataUnits``), with a rate of 2.5 and a noise scale of 0.4 in their unit, about the same for grey values in
    [0, 1]. The step size of each code is chosen by backtracking, so FISTA converges even for similar atoms.
    ``missing`` is as in ``gon``.
    """
    atoms = nets.Dictionary(latent, event_shape)
    decoder: DecoderLikelihood
    if rate is None and scale is None:
        prior = LaplacePrior(latent, rate=2.5)
        decoder = decoder_of(atoms, latent, event_shape, learn="fixed", prior=prior, default=0.4, missing=missing)
    else:
        prior = LaplacePrior(latent, rate=10.0 if rate is None else rate)
        decoder = Gaussian(atoms, latent, 0.1 if scale is None else scale, prior=prior)
        decoder = PartiallyObserved(decoder) if missing else decoder
    climb = Ascent(Zeros(), ProximalAscent(accelerated=True), steps, adjoint=Detach())
    return Autoencoder(decoder, climb, joint)


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="AutoDecoder(Ascent)",
    objective="joint",
    source="Bojanowski et al. 2018; Park et al. 2019",
    reads={"missing": "missing"},
)
def glo(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    steps: int = 100,
    rate: float = 0.05,
    *,
    missing: bool = False,
) -> Autoencoder:
    """Auto-decoder: learned codes of the training data (Bojanowski et al. 2018), prior N(0, I) (Park et al. 2019).

    New data are encoded by ``steps`` steps of Adam from the origin. The decoder is trained by maximum a posteriori
    codes, as published. That objective has no maximiser under N(0, I): codes shrink and weights grow as long as it is
    trained, and log p(x) suffers. ``laplace-gae`` has one. ``missing`` is as in ``gon``.
    """
    decoder = decoder_of(nets.mlp(latent, hidden[::-1], event_shape), latent, event_shape, head, missing=missing)
    inner = Ascent(Zeros(), Adam(rate), steps, adjoint=Detach())
    return Autoencoder(decoder, AutoDecoder(latent, inner), joint, accepts_rescaling=True)


@System(
    likelihood="neural head",
    prior="N(0, I)",
    inference="Laplace(Ascent(Zeros, Gauss–Newton))",
    objective="laplace_evidence",
    source="ledger D02; MacKay 1992",
    reads={"missing": "missing"},
)
def laplace_gae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    steps: int = 8,
    scale: float | None = None,
    learn: str = "scalar",
    *,
    missing: bool = False,
) -> Autoencoder:
    """Decoder without an encoder, trained by the Laplace evidence of the mode that ``steps`` Gauss–Newton steps reach.

    Unlike ``joint``, this objective has a maximiser under N(0, I): the codes keep the scale of the prior, and a linear
    decoder becomes that of probabilistic PCA. The mode is differentiated by one step at it (``OneStep``). ``scale`` and
    ``learn`` are as in ``vae``, ``missing`` as in ``gon``.
    """
    network = nets.mlp(latent, hidden[::-1], event_shape)
    decoder = decoder_of(network, latent, event_shape, head, scale, learn, missing=missing)
    climb = Ascent(Zeros(), GaussNewton(), steps + 1, adjoint=OneStep())  # the last one evaluates the point
    return Autoencoder(decoder, Laplace(climb, samples=None), laplace_evidence)


@System(
    likelihood="Gaussian head",
    prior="N(0, I)",
    inference="Ascent(Prior, Langevin)",
    objective="joint",
    source="Han et al. 2017; Nijkamp et al. 2019",
    reads={"missing": "missing"},
)
def short_run(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    scale: float | None = None,
    steps: int = 30,
    rate: float = 0.03,
    *,
    missing: bool = False,
) -> Autoencoder:
    """Alternating back-propagation (Han et al. 2017): codes by short-run Langevin dynamics from the prior.

    The gradient of ``joint`` in the decoder, averaged over posterior draws, is that of log p(x) (Fisher's identity). A
    chain of a few steps ends between the prior and the posterior, so that training follows neither exactly.

    ``missing`` is as in ``gon``.
    """
    network = nets.mlp(latent, hidden[::-1], event_shape)
    decoder = decoder_of(network, latent, event_shape, scale=scale, learn="fixed", default=0.7, missing=missing)
    return Autoencoder(decoder, Ascent(Prior(), Langevin(rate), steps, adjoint=Detach()), joint)
