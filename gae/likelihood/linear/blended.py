"""Smooth LLGAE: local linear charts blended by a softargmax."""

import math

import torch
from jaxtyping import Bool, Float, Num
from torch import Size, Tensor, nn

from gae.likelihood.geometry import squared_distances
from gae.likelihood.heads import Gaussian, Learn
from gae.likelihood.linear.mixture import LinearMixture
from gae.likelihood.linear.quadratic import Charts, height, precision_factor, quadratic
from gae.likelihood.priors import Flat


class BlendedCharts(Gaussian):
    """Smooth LLGAE of the GAE note: x ~ N(Σ_k f_k (mean_k + z loadings_k), scale²), f = softargmax(g) (ledger D15).

    The note computes the weights f from x, so that its objective is not a density of x. Here they are part of the code,
    u = (g, z) of K + E numbers, and the engine computes g from x (``ChartGate``). So ``log_joint`` is a log density in
    nats, under a flat prior, and at ``scale=√½`` equals the note's -‖·‖² up to -D/2 log π. Each x has one code: no
    component k is chosen.

    Args:
        components: K.
        latent: E >= 1, the width of z.
        event_shape: X; D is its number of elements.
        scale, learn: noise standard deviation in data units, as for ``Gaussian``.

    Raises:
        ValueError: for sizes out of range.

    >>> model = BlendedCharts(3, 2, (5,))
    >>> model.latent_shape, model(torch.zeros(4, 5)).mean.shape
    (torch.Size([5]), torch.Size([4, 5]))
    """

    initialized: Tensor

    def __init__(
        self,
        components: int,
        latent: int,
        event_shape: Size | tuple[int, ...],
        scale: float = 0.5**0.5,
        learn: Learn = "fixed",
    ):
        dim = math.prod(event_shape)
        if not event_shape or components < 1 or not 1 <= latent <= dim:
            raise ValueError(
                f"Need an event shape of at least one dimension, components >= 1 and 1 <= latent <= {dim}, got "
                f"{tuple(event_shape)}, K={components}, E={latent}. For latent=0 use LinearMixture."
            )
        width = components + latent
        super().__init__(_Blend(components, latent, Size(event_shape)), width, scale, learn, prior=Flat(width))
        self.charts, self.width = components, latent
        self.register_buffer("initialized", torch.tensor(False))

    @property
    def coordinates(self) -> Bool[Tensor, " Z"]:
        """Mask of the elements of a code that are coordinates z; the others weight the charts."""
        return torch.arange(self.charts + self.width, device=self.means.device) >= self.charts

    @property
    def means(self) -> Float[Tensor, "K D"]:
        """The means of the charts, in data units."""
        return self._blend.means

    @property
    def loadings(self) -> Float[Tensor, "K E D"]:
        """The directions of the charts."""
        return self._blend.loadings

    def to_centres(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "B K"]:
        """‖x - mean_k‖² in squared data units, in float64, since their differences matter."""
        return squared_distances(x.flatten(1).double(), self.means.double())

    def to_charts(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "B K"]:
        """min_z ‖x - mean_k - z loadings_k‖² in squared data units, in float64.

        Raises:
            ValueError: for linearly dependent loadings.
        """
        constant = x.new_zeros(self.charts)
        charts = Charts(self.means, self.loadings, constant, constant, prior=0.0)
        form = quadratic(x.flatten(1).double(), charts, tolerance=1e-9)
        return (-2 * height(form, precision_factor(charts), prior=0.0)).clamp_min(0)

    @torch.no_grad()
    def initialize(self, x: Num[Tensor, "N *X"], seed: int) -> None:
        """Initialises the charts as ``LinearMixture`` does; does nothing once initialised."""
        if self.initialized:
            return
        start = LinearMixture(self.charts, self.width, self.event_shape, flat_prior=True).to(x)
        start.initialize(x, seed)
        self.means.copy_(start.means)
        self.loadings.copy_(start.loadings)
        self.initialized.fill_(True)

    @property
    def _blend(self) -> "_Blend":
        assert isinstance(self.decoder, _Blend)
        return self.decoder


class _Blend(nn.Module):
    """Decoder of codes (N, K + E) to (N, *X): one matrix product for the K E directions, one for the means."""

    def __init__(self, components: int, latent: int, event_shape: Size):
        super().__init__()
        dim = math.prod(event_shape)
        self.event_shape = event_shape
        self.means = nn.Parameter(torch.zeros(components, dim))
        self.loadings = nn.Parameter(torch.linalg.qr(torch.randn(components, dim, latent))[0].mT.contiguous())

    def forward(self, code: Float[Tensor, "N Z"]) -> Float[Tensor, "N *X"]:
        gate, z = code.split([len(self.means), self.loadings.shape[1]], 1)
        weights = gate.softmax(1)
        spread = (weights.unsqueeze(2) * z.unsqueeze(1)).flatten(1)
        return (weights @ self.means + spread @ self.loadings.flatten(0, 1)).unflatten(1, self.event_shape)
