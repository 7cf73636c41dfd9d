"""Encoders of densities q(z|x) richer than a mean-field normal one."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor, nn

from gae.inference.flows import NormalizingFlow
from gae.likelihood.distributions import bounded_exp
from gae.likelihood.hierarchical import HierarchicalNormal, Moments, TopDown
from gae.nets import flows
from gae.systems.parts import Encoder, NormalEncoder

FLOWS = {"maf": flows.maf, "iaf": flows.iaf, "nsf": flows.nsf}
POSTERIORS = ("diagonal", "full", *FLOWS)
CONTEXT = 16  # elements of the vector on which a flow is conditioned


class FullNormalEncoder(Encoder):
    """Normal encoder with a full covariance, q(z|x) = N(mean(x), L(x) L(x)ᵀ), as a Pyro guide.

    The factor is L = diag(scale) (I + lower), with a strictly lower triangular matrix: ``lower = 0`` is the density of
    ``NormalEncoder``.

    Args:
        network: maps observations (B, *X) to mean, log scale and lower, (B, 2 Z + Z (Z - 1) / 2).
        latent: Z.

    Raises:
        ValueError: for a network of another width, at the first call.

    >>> import torch
    >>> encoder = FullNormalEncoder(nn.Linear(3, FullNormalEncoder.width(2)), latent=2)
    >>> encoder.density(torch.zeros(5, 3)).covariance_matrix.shape
    torch.Size([5, 2, 2])
    """

    def __init__(self, network: nn.Module, latent: int):
        super().__init__(network)
        self.latent = latent

    @staticmethod
    def width(latent: int) -> int:
        """The number of outputs of the network.

        >>> FullNormalEncoder.width(3)
        9
        """
        return 2 * latent + latent * (latent - 1) // 2

    def density(self, x: Num[Tensor, "B *X"]) -> dist.MultivariateNormal:
        loc, scale, lower = _split(self.network(x), self.latent, self.width(self.latent))
        unit = torch.eye(self.latent, dtype=loc.dtype, device=loc.device).repeat(len(loc), 1, 1)
        rows, columns = torch.tril_indices(self.latent, self.latent, -1, device=loc.device)
        unit[:, rows, columns] = lower
        return dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * unit, validate_args=False)


class FlowEncoder(Encoder):
    """Encoder whose density is a normalizing flow, q(z|x) = loc(x) + scale(x) flow(ε; context(x)), as a Pyro guide.

    Args:
        network: maps observations (B, *X) to location, log scale and context, (B, 2 Z + C).
        flow: a conditional transform of ``pyro.distributions.transforms``, or a flow of zuko
            (``gae.nets.flows``), of Z features and a context of C elements.
        latent: Z.
        context: C.

    Raises:
        TypeError: for another kind of flow, at the first call.
        ValueError: for a network of another width, at the first call.

    >>> from pyro.distributions.transforms import conditional_affine_coupling
    >>> flow = conditional_affine_coupling(2, context_dim=3)
    >>> encoder = FlowEncoder(nn.Linear(4, 7), flow, latent=2, context=3)
    >>> encoder.density(torch.zeros(5, 4)).batch_shape
    torch.Size([5])
    """

    def __init__(self, network: nn.Module, flow: nn.Module, latent: int, context: int):
        super().__init__(network)
        self.flow, self.latent, self.context = flow, latent, context

    def density(self, x: Num[Tensor, "B *X"]) -> NormalizingFlow:
        loc, scale, context = _split(self.network(x), self.latent, 2 * self.latent + self.context)
        return NormalizingFlow(self.flow, loc, scale, context)


class LadderEncoder(Encoder):
    """Ladder encoder of two layers, q(z2|x) q(z1|x, z2), as a Pyro guide (Sønderby et al. 2016, eqs. 8 to 14).

    The network proposes a normal density for either layer. That of z1 is multiplied by the prior p(z1|z2), so that the
    moments of q(z1|x, z2) are those of both weighted by their precisions.

    Args:
        network: maps observations (B, *X) to mean and log scale of z1, then of z2, (B, 2 (Z1 + Z2)).
        prior: the prior of the likelihood, whose parameters the encoder shares.

    >>> from gae import nets
    >>> prior = HierarchicalNormal(nn.Linear(1, 4), bottom=2, top=1)
    >>> LadderEncoder(nets.mlp(5, (8,), 6), prior).density(torch.zeros(4, 5)).rsample().shape
    torch.Size([4, 3])
    """

    def __init__(self, network: nn.Module, prior: HierarchicalNormal):
        super().__init__(network)
        self.flow = _Ladder(prior)

    def density(self, x: Num[Tensor, "B *X"]) -> NormalizingFlow:
        context = self.network(x)
        loc = context.new_zeros(len(x), self.flow.prior.bottom + self.flow.prior.top)
        return NormalizingFlow(self.flow, loc, torch.ones_like(loc), context)


class _Ladder(ConditionalTransformModule):
    """The transform from noise to codes of a ladder encoder, given its network's output."""

    def __init__(self, prior: HierarchicalNormal):
        super().__init__()
        self.prior = prior

    def condition(self, context: Float[Tensor, "..."]) -> TopDown:
        bottom, top = self.prior.bottom, self.prior.top
        loc1, log_scale1, loc2, log_scale2 = context.split((bottom, bottom, top, top), -1)
        scale1 = bounded_exp(log_scale1)

        def conditional(z2: Tensor) -> Moments:
            loc, scale = self.prior.conditional(z2)
            share = scale.square() / (scale.square() + scale1.square())  # of the proposal in the mean
            return loc + share * (loc1 - loc), scale1 * share.sqrt()

        return TopDown(bottom, (loc2, bounded_exp(log_scale2)), conditional)


def _split(
    output: Float[Tensor, "B _"], latent: int, width: int
) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"], Float[Tensor, "B _"]]:
    """Location, scale, and the rest of a network's output; raises ValueError for an output of another width."""
    if output.dim() != 2 or output.shape[1] != width:
        raise ValueError(
            f"The network of an encoder of {latent} code elements must return (B, {width}), got {tuple(output.shape)}."
        )
    loc, log_scale, rest = output.tensor_split((latent, 2 * latent), dim=1)
    return loc, bounded_exp(log_scale), rest


def encoder_of(posterior: str, latent: int, network: Callable[[int], nn.Module]) -> Encoder:
    """Encoder of the named family of densities, with a network of the width that its parameters need.

    Args:
        posterior: ``"diagonal"`` or ``"full"`` for a normal of such a covariance, or a flow, ``"maf"``, ``"iaf"`` or
            ``"nsf"`` (``gae.nets.flows``).
        latent: Z.
        network: builds the network for a number of outputs.

    Raises:
        ValueError: for an unknown family.
        ImportError: for a flow without zuko.

    >>> type(encoder_of("full", 2, lambda width: nn.Linear(3, width))).__name__
    'FullNormalEncoder'
    """
    if posterior == "diagonal":
        return NormalEncoder(network(2 * latent))
    if posterior == "full":
        return FullNormalEncoder(network(FullNormalEncoder.width(latent)), latent)
    if posterior not in POSTERIORS:
        raise ValueError(f"Unknown posterior {posterior!r}. Valid posteriors: {', '.join(POSTERIORS)}.")
    flow = FLOWS[posterior](latent, CONTEXT)
    return FlowEncoder(network(2 * latent + CONTEXT), flow, latent, CONTEXT)
