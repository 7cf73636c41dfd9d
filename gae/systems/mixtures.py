"""Variants of mixtures: nearest neighbours, blended charts and Gaussian kernels."""

from gae.autoencoder import Autoencoder
from gae.inference import Ascent, ChartGate, GradientAscent, MaskedStep, Nearest, Unroll, Zeros
from gae.likelihood import BlendedCharts, GaussianKernel, LinearMixture
from gae.objective import joint
from gae.systems.parts import Shape, directions
from gae.systems.table import System


@System(
    likelihood="LinearMixture(E=0, K=N)",
    prior="uniform k",
    inference="Nearest",
    objective="joint",
    source="GAE note; ledger D11",
    reads={"components": "observations"},
)
def knn(event_shape: Shape, components: int = 10, index: str = "exact") -> Autoencoder:
    """Nearest neighbours as a mixture whose means are the training samples (GAE note; ledger D11).

    ``components`` is the number of training samples; with fewer, the model is k-means. ``index`` is ``"exact"`` or
    ``"faiss"``.

    >>> knn((1, 8, 8), components=1437).likelihood.means.shape
    torch.Size([1437, 64])
    """
    return Autoencoder(LinearMixture(components, 0, event_shape), Nearest(index), joint)


@System(
    likelihood="BlendedCharts",
    prior="flat",
    inference="Ascent(ChartGate, z alone)",
    objective="joint",
    source="GAE note; ledger D15",
)
def smooth_llgae(
    event_shape: Shape,
    latent: int | None = None,
    components: int = 10,
    temperature: float = 1.0,
    gate: str = "residual",
    steps: int = 5,
    rate: float = 0.5,
) -> Autoencoder:
    """Locally linear autoencoder, smooth form: charts blended by a softargmax, z by unrolled ascent.

    ``gate="centre"`` at temperature 1 is the form of the GAE note; ``"residual"`` converges to ``llgae`` as the
    temperature tends to zero (ledger D15). The default of ``latent`` is 8, or the number of elements if smaller.
    """
    latent = directions(event_shape, latent)
    likelihood = BlendedCharts(components, latent, event_shape)
    step = MaskedStep(GradientAscent(rate), likelihood.coordinates)
    return Autoencoder(likelihood, Ascent(ChartGate(temperature, gate), step, steps, adjoint=Unroll()), joint)


@System(
    likelihood="GaussianKernel (absorbing)",
    prior="flat",
    inference="Ascent(Zeros)",
    objective="joint (sub-density)",
    source="GAE note; ledger D17, D18",
)
def ggae(
    event_shape: Shape,
    latent: int = 2,
    components: int = 10,
    absorbing: float = 0.1,
    growth: float = 0.0,
    steps: int = 30,
    rate: float = 0.25,
) -> Autoencoder:
    """Gaussian-kernel latent space with an absorbing component (GAE note; ledger D17, D18).

    Codes are inferred by unrolled ascent from the origin; the noise has one learned scale. The learning rate is in data
    units: give data whose standard deviations are of the order of 1.
    """
    likelihood = GaussianKernel(components, latent, event_shape, absorbing=absorbing, growth=growth, learn_scale=True)
    return Autoencoder(likelihood, Ascent(Zeros(), GradientAscent(rate), steps, adjoint=Unroll()), joint)
