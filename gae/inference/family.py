"""What an ascent moves: the code itself, or the parameters of a density over codes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from pyro.distributions import Independent, Normal
from torch import Size, Tensor, nn

from gae.inference.base import Code
from gae.likelihood import Likelihood

Objective = Callable[[Tensor], Tensor]


class Family(nn.Module, ABC):
    """A family of densities q(z; u), with the per-sample objective that its parameters u ascend."""

    @abstractmethod
    def start(self, likelihood: Likelihood, start: Code) -> Float[Tensor, "S B *U"]:
        """The first u, from the code or density of another engine."""

    @abstractmethod
    def objective(self, likelihood: Likelihood, u: Tensor, log_joint: Callable[[Tensor], Tensor]) -> Objective:
        """u -> (S, B) in nats, a deterministic function for the whole solve (its noise is drawn once, here)."""

    @abstractmethod
    def code(self, likelihood: Likelihood, u: Float[Tensor, "S B *U"]) -> Code:
        """The code that u stands for."""

    evaluations: int = 1  # decoder evaluations per objective value


class Delta(Family):
    """A point: the code itself ascends ``log_joint`` (MAP).

    >>> Delta().evaluations
    1
    """

    def start(self, likelihood: Likelihood, start: Code) -> Float[Tensor, "S B *U"]:
        if start.q is None:
            return start.z
        mean = start.q.mean
        return mean if mean.dim() == start.z.dim() else mean.unsqueeze(0)

    def objective(self, likelihood: Likelihood, u: Tensor, log_joint: Callable[[Tensor], Tensor]) -> Objective:
        return log_joint

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

    def start(self, likelihood: Likelihood, start: Code) -> Float[Tensor, "S B *U"]:
        if start.q is None:
            return torch.stack([start.z, torch.full_like(start.z, self.log_scale)], 2)
        loc, scale = start.q.mean, start.q.stddev
        if loc.dim() < start.z.dim():
            loc, scale = loc.unsqueeze(0), scale.unsqueeze(0)
        return torch.stack([loc, scale.log()], 2)

    def objective(self, likelihood: Likelihood, u: Tensor, log_joint: Callable[[Tensor], Tensor]) -> Objective:
        noise = self._noise(u[:, :, 0])

        def elbo(u: Tensor) -> Tensor:
            loc, log_scale = u[:, :, 0], u[:, :, 1]
            expected = sum(log_joint(loc + log_scale.exp() * draw) for draw in noise) / len(noise)
            entropy = (log_scale + 0.5 * math.log(2 * math.pi * math.e)).flatten(2).sum(2)
            return expected + entropy

        return elbo

    def _noise(self, like: Tensor) -> list[Tensor]:
        if self.evaluations % 2:
            return [torch.randn_like(like) for _ in range(self.evaluations)]
        half = [torch.randn_like(like) for _ in range(self.evaluations // 2)]
        return half + [-draw for draw in half]

    def code(self, likelihood: Likelihood, u: Float[Tensor, "S B *U"]) -> Code:
        base = Normal(u[:, :, 0], u[:, :, 1].exp(), validate_args=False)
        q = Independent(base, len(likelihood.latent_shape), validate_args=False)
        z = q.rsample(Size())
        return Code(z, log_q=q.log_prob(z), q=q)
