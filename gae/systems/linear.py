"""Linear decoders and their mixtures, with inference in closed form."""

from gae.autoencoder import Autoencoder
from gae.inference import Argmax, Ascent, ClosedForm, Enumerate, GradientAscent, Unroll, Zeros
from gae.likelihood import LinearMixture, PartiallyObservedMixture
from gae.objective import elbo, joint, logsumexp
from gae.systems.parts import Shape, directions
from gae.systems.table import System


@System(
    likelihood="LinearMixture(K=1)",
    prior="flat",
    inference="ClosedForm",
    objective="joint",
    source="Pearson 1901; GAE note, LGAE",
    reads={"missing": "missing"},
)
def pca(event_shape: Shape, latent: int | None = None, *, missing: bool = False) -> Autoencoder:
    """Principal component analysis: one linear chart, orthonormal loadings, flat prior.

    The default of ``latent`` is 8, or the number of elements if that is smaller. With ``missing``, NaN marks elements
    that were not observed, and the model is fitted to the others (``PartiallyObservedMixture``).

    >>> pca((1, 8, 8)).likelihood.loadings.shape
    torch.Size([1, 8, 64])
    """
    latent = directions(event_shape, latent)
    return Autoencoder(_mixture(missing)(1, latent, event_shape, flat_prior=True), ClosedForm(), joint)


@System(
    likelihood="LinearMixture(K=1)",
    prior="N(0, I)",
    inference="ClosedForm",
    objective="elbo (tight)",
    source="Tipping & Bishop 1999",
    reads={"missing": "missing"},
)
def ppca(event_shape: Shape, latent: int | None = None, *, missing: bool = False) -> Autoencoder:
    """Probabilistic PCA (Tipping & Bishop 1999): z ~ N(0, I), learned noise; the ELBO is the evidence.

    ``latent`` and ``missing`` are as in ``pca``; with missing elements the evidence is that of the observed ones.
    """
    latent = directions(event_shape, latent)
    return Autoencoder(_mixture(missing)(1, latent, event_shape, learn_scale=True), ClosedForm(), elbo)


@System(
    likelihood="LinearMixture(E=0)",
    prior="uniform k",
    inference="Argmax",
    objective="joint",
    source="Lloyd 1982; GAE note",
    reads={"missing": "missing"},
)
def kmeans(event_shape: Shape, components: int = 10, *, missing: bool = False) -> Autoencoder:
    """k-means as an autoencoder: K means, no continuous code, argmax inference (GAE note; ledger D10).

    With ``missing``, distances and means are over observed elements (k-POD, Chi et al. 2016).
    """
    return Autoencoder(_mixture(missing)(components, 0, event_shape), Argmax(), joint)


@System(
    likelihood="LinearMixture(E=0)",
    prior="learned k",
    inference="Enumerate",
    objective="logsumexp (exact)",
    source="Dempster et al. 1977",
    reads={"missing": "missing"},
)
def gmm(event_shape: Shape, components: int = 10, *, missing: bool = False) -> Autoencoder:
    """Mixture of spherical Gaussians, fitted by EM; the evidence is a logsumexp over the components.

    With ``missing``, both are those of the observed elements.
    """
    likelihood = _mixture(missing)(components, 0, event_shape, learn_scale=True, learn_weights=True)
    return Autoencoder(likelihood, Enumerate(), logsumexp)


@System(
    likelihood="LinearMixture(K, E)",
    prior="uniform k, flat z",
    inference="Argmax(ClosedForm or Ascent)",
    objective="joint",
    source="GAE note",
    reads={"missing": "missing"},
)
def llgae(
    event_shape: Shape,
    latent: int | None = None,
    components: int = 10,
    steps: int | None = None,
    rate: float = 0.5,
    *,
    missing: bool = False,
) -> Autoencoder:
    """Locally linear autoencoder, hierarchical form: max_k max_z over K charts of width E.

    ``steps=None`` infers z in closed form; otherwise by ``steps`` gradient steps with the given ``rate`` from zero, as
    in the update rule of the notes (ledger D16). ``latent`` and ``missing`` are as in ``pca``.
    """
    latent = directions(event_shape, latent)
    likelihood = _mixture(missing)(components, latent, event_shape, flat_prior=True)
    inner = ClosedForm() if steps is None else Ascent(Zeros(), GradientAscent(rate), steps, adjoint=Unroll())
    return Autoencoder(likelihood, Argmax(inner), joint)


def _mixture(missing: bool) -> type[LinearMixture]:
    return PartiallyObservedMixture if missing else LinearMixture
