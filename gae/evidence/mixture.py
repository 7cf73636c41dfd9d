"""Mixtures of normals as proposals of importance sampling."""

from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily


class NormalMixture(MixtureSameFamily):
    """A mixture of normals that draws from the chosen components only, where torch's draws from all of them."""

    @staticmethod
    def of(
        logits: Float[Tensor, "B K"], loc: Float[Tensor, "B K Z"], tril: Float[Tensor, "B K Z Z"]
    ) -> "NormalMixture":
        """The mixture with weights in proportion to exp(logits)."""
        normals = MultivariateNormal(loc, scale_tril=tril, validate_args=False)
        return NormalMixture(Categorical(logits=logits), normals, validate_args=False)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Draws (*sample_shape, *batch, Z)."""
        normals, shape = self.component_distribution, self._extended_shape(sample_shape)
        assert isinstance(normals, MultivariateNormal)
        place = self.mixture_distribution.sample(sample_shape)[..., None, None]
        loc = normals.loc.expand(*sample_shape, *normals.loc.shape)
        tril = normals.scale_tril.expand(*sample_shape, *normals.scale_tril.shape)
        width = shape[-1]
        centre = loc.gather(-2, place.expand(*shape[:-1], 1, width)).squeeze(-2)
        factor = tril.gather(-3, place.unsqueeze(-1).expand(*shape[:-1], 1, width, width)).squeeze(-3)
        noise = torch.randn(shape, dtype=loc.dtype, device=loc.device)
        return centre + (factor @ noise.unsqueeze(-1)).squeeze(-1)
