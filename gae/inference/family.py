"""What an ascent moves: the code itself, or the parameters of a density over codes."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from pyro.distributions import Independent, Normal
from torch import Size, Tensor, nn

from gae.inference.base import Code
from gae.likelihood import Likelihood
from gae.likelihood.base import LogJoint


class Family(nn.Module, ABC):
    """A family of densities q(z; u), with the per-sample objective that its parameters u ascend."""

    evaluations: int = 1  # decoder evaluations per objective value

    @abstractmethod
    def start(self, start: Code) -> Float[Tensor, "S B *U"]:
        """The first u, from the code or density of another engine."""

    def noise(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B M *Z"] | None:
        """The noise of one solve, drawn once; None for a family without."""
        return None

    @abstractmethod
    def objective(self, u: Float[Tensor, "S B *U"], noise: Tensor | None, log_joint: LogJoint) -> Float[Tensor, "S B"]:
        """The objective of each row in nats, a deterministic function of u and the noise."""

    @abstractmethod
    def code(self, likelihood: Likelihood, u: Float[Tensor, "S B *U"]) -> Code:
        """The code that u stands for."""


class Delta(Family):
    """A point: the code itself ascends ``log_joint`` (MAP).

    >>> Delta().evaluations
    1
    """

    def start(self, start: Code) -> Float[Tensor, "S B *U"]:
        if start.q is None:
            return start.z
        mean = start.q.mean
        return mean if mean.dim() == start.z.dim() else mean.unsqueeze(0)

    def objective(self, u: Float[Tensor, "S B *U"], noise: Tensor | None, log_joint: LogJoint) -> Float[Tensor, "S B"]:
        return log_joint(u)

    def code(self, likelihood: Likelihood, u: Float[Tensor, "S B *U"]) -> Code:
        return Code(u)


class MeanField(Family):
    """An independent normal per latent dimension: its mean and log scale ascend the ELBO (semi-amortised inference).

    The inner objective E_q[log_joint] + H(q) uses ``samples`` reparameterised draws, in antithetic pairs when that
    number is even, whose noise is fixed for the whole solve; the code returned is drawn afresh, so that the ELBO of
    the encoding is unbiased. From a start without a density, the scales begin at ``scale``.

    >>> MeanField(samples=2).evaluations
    2
    """

    def __init__(self, samples: int = 1, scale: float = 0.1):
        super().__init__()
        if samples < 1 or not scale > 0:
            raise ValueError(f"Need samples >= 1 and scale > 0, got samples={samples}, scale={scale}.")
        self.evaluations = samples
        self.log_scale = math.log(scale)

    def start(self, start: Code) -> Float[Tensor, "S B *U"]:
        if start.q is None:
            return torch.stack([start.z, torch.full_like(start.z, self.log_scale)], 2)
        loc, scale = start.q.mean, start.q.stddev
        if loc.dim() < start.z.dim():
            loc, scale = loc.unsqueeze(0), scale.unsqueeze(0)
        return torch.stack([loc, scale.log()], 2)

    def noise(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B M *Z"]:
        halves, odd = divmod(self.evaluations, 2)
        like = u[:, :, 0].detach()
        draws = [torch.randn_like(like) for _ in range(self.evaluations if odd else halves)]
        return torch.stack(draws if odd else draws + [-draw for draw in draws], 2)

    def objective(self, u: Float[Tensor, "S B *U"], noise: Tensor | None, log_joint: LogJoint) -> Float[Tensor, "S B"]:
        assert noise is not None
        loc, log_scale = u[:, :, 0], u[:, :, 1]
        expected = sum(log_joint(loc + log_scale.exp() * draw) for draw in noise.unbind(2)) / noise.shape[2]
        entropy = (log_scale + 0.5 * math.log(2 * math.pi * math.e)).flatten(2).sum(2)
        return expected + entropy

    def code(self, likelihood: Likelihood, u: Float[Tensor, "S B *U"]) -> Code:
        base = Normal(u[:, :, 0], u[:, :, 1].exp(), validate_args=False)
        q = Independent(base, len(likelihood.latent_shape), validate_args=False)
        z = q.rsample(Size())
        return Code(z, log_q=q.log_prob(z), q=q)
