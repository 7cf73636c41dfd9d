"""Where an ascent starts. Each is an engine, so that any other engine can take its place."""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from gae.inference.base import Code, Inference
from gae.likelihood import Likelihood


class Zeros(Inference):
    """The code 0 for every sample (the start of a gradient origin network).

    >>> from gae.likelihood import LinearMixture
    >>> Zeros()(LinearMixture(1, 2, (5,)), torch.randn(3, 5)).z.abs().sum()
    tensor(0.)
    """

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        return _code(x.new_zeros(1, len(x), *likelihood.latent_shape), k)


class Prior(Inference):
    """One draw per sample from the prior q_w(z), by torch's global generator.

    >>> from gae.likelihood import LinearMixture
    >>> Prior()(LinearMixture(1, 2, (5,)), torch.randn(3, 5)).z.shape
    torch.Size([1, 3, 2])
    """

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        shape = (1 if k is None else len(k), len(x))
        return Code(likelihood.prior.sample(torch.Size(shape)), None if k is None else k.expand(shape))


class Initial(Inference):
    """Random codes as the likelihood itself would start: for a network's weights, its own initialisation.

    Args:
        samples: S, starts per observation.

    >>> from gae import nets
    >>> from gae.likelihood import WeightLikelihood
    >>> Initial(samples=2)(WeightLikelihood(nets.mlp(2, [8], 3), torch.ones(2)), torch.zeros(1, 3)).z.shape
    torch.Size([2, 1, 51])
    """

    def __init__(self, samples: int = 1):
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}.")
        self.samples = samples

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        shape = (self.samples if k is None else len(k), len(x))
        z = likelihood.initial(shape[0] * shape[1]).unflatten(0, shape)
        return Code(z, None if k is None else k.expand(shape))


class Fixed(Inference):
    """Given codes: one for all samples, shape Z, or one each, shape (B, *Z).

    >>> from gae.likelihood import LinearMixture
    >>> Fixed(torch.ones(2))(LinearMixture(1, 2, (5,)), torch.randn(3, 5)).z.shape
    torch.Size([1, 3, 2])
    """

    z: Tensor

    def __init__(self, z: Float[Tensor, "..."]):
        super().__init__()
        self.register_buffer("z", z.detach().clone())

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        shape = (len(x), *likelihood.latent_shape)
        if self.z.shape not in (likelihood.latent_shape, torch.Size(shape)):
            raise ValueError(
                f"`Fixed` holds codes of shape {tuple(self.z.shape)}, but this batch needs "
                f"{tuple(likelihood.latent_shape)} (one for all) or {shape} (one each)."
            )
        return _code(self.z.to(x).expand(1, *shape), k)


def _code(z: Tensor, k: Tensor | None) -> Code:
    return Code(z) if k is None else Code(z).over(k)
