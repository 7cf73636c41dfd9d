"""Encoders of densities q(z|x) richer than a mean-field normal one."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from jaxtyping import Num
from torch import Tensor, nn

from gae.systems.parts import LOG_BOUND, NormalEncoder


class FullNormalEncoder(NormalEncoder):
    """Normal encoder with a full covariance, q(z|x) = N(mean(x), L(x) L(x)ᵀ), as a Pyro guide.

    The factor is L = diag(scale) (I + lower), with a strictly lower triangular matrix: ``lower = 0`` is the density of
    ``NormalEncoder``.

    Args:
        network: maps observations (B, *X) to mean, log scale and lower, (B, 2 Z + Z (Z - 1) / 2).
        latent: Z.

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
        loc, log_scale, lower = self.network(x).tensor_split((self.latent, 2 * self.latent), dim=1)
        scale = log_scale.clamp(-LOG_BOUND, LOG_BOUND).exp()
        unit = torch.eye(self.latent, dtype=loc.dtype, device=loc.device).repeat(len(loc), 1, 1)
        rows, columns = torch.tril_indices(self.latent, self.latent, -1, device=loc.device)
        unit[:, rows, columns] = lower
        return dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * unit, validate_args=False)


def encoder_of(posterior: str, latent: int, network: Callable[[int], nn.Module]) -> NormalEncoder:
    """Encoder of the named family of densities, with a network of the width that its parameters need.

    Args:
        posterior: ``"diagonal"`` or ``"full"``, the covariance of a normal.
        latent: Z.
        network: builds the network for a number of outputs.

    >>> type(encoder_of("full", 2, lambda width: nn.Linear(3, width))).__name__
    'FullNormalEncoder'
    """
    if posterior == "diagonal":
        return NormalEncoder(network(2 * latent))
    return FullNormalEncoder(network(FullNormalEncoder.width(latent)), latent)
