"""The module a user holds: a likelihood, an engine that encodes for it, and what is maximised."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.distributions import Distribution

from gae.evidence import Evidence, exact, importance, laplace_approximation
from gae.inference import Code, Encoding, Inference
from gae.likelihood import ExactPosterior, Likelihood
from gae.likelihood.door import door
from gae.objective import Aggregate, Objective, joint, mean


class Autoencoder(nn.Module):
    """likelihood + inference + objective: swapping the engine leaves the model as it is.

    Calling it with x (B, *X) gives the scalar training loss, -aggregate(objective(encoding)), in nats per sample.

    Args:
        likelihood: what the model is.
        inference: how codes are found.
        objective: what is maximised, per sample.
        aggregate: how the samples' values become one number.
        corruption: what the engine sees of x in training (``gae.training.corruption``); the clean x is scored.
        penalties: terms of the training loss besides (``gae.training.penalty``).

    Attributes:
        optimizer: parameters -> the optimiser that ``fit`` takes unless given another; None: ``fit`` chooses.

    >>> from gae.inference import ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> model = Autoencoder(LinearMixture(1, 2, (5,)), ClosedForm())
    >>> model.reconstruct(torch.randn(3, 5)).shape
    torch.Size([3, 5])
    """

    optimizer: Callable[..., torch.optim.Optimizer] | None = None

    def __init__(
        self,
        likelihood: Likelihood,
        inference: Inference,
        objective: Objective = joint,
        aggregate: Aggregate = mean,
        corruption: nn.Module | None = None,
        penalties: Sequence[nn.Module] = (),
    ):
        super().__init__()
        self.likelihood = likelihood
        self.inference = inference
        self.objective = objective
        self.aggregate = aggregate
        self.corruption = corruption
        self.penalties = nn.ModuleList(penalties)

    def forward(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, ""]:
        """The training loss, in nats per sample: minus the aggregated objective, plus the penalties.

        Corruption and penalties act in training mode only; in evaluation mode the loss is that of clean data.

        Raises:
            ValueError, TypeError: as ``encode`` does.
        """
        with door(self.likelihood, x):
            return self._regularised(x) if self.training and self.regularised else self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        return -self.aggregate(self.objective(self.inference(self.likelihood, x)))

    def _regularised(self, x: Tensor) -> Tensor:
        seen = x if self.corruption is None else self.corruption(x)
        if self.penalties and not seen.requires_grad:
            seen = seen.detach().requires_grad_()
        code = replace(self.inference.infer(self.likelihood, seen), log_joint=None)
        encoding = self.inference.scored(self.likelihood, x, code)
        loss = -self.aggregate(self.objective(encoding))
        return sum((penalty(seen, encoding) for penalty in self.penalties), loss)

    @property
    def regularised(self) -> bool:
        """Whether the training loss is another than that of the objective."""
        return self.corruption is not None or len(self.penalties) > 0

    def encode(self, x: Num[Tensor, "B *X"], inference: Inference | None = None) -> Encoding:
        """Codes of x, by this model's engine or by another one on the same decoder.

        Differentiable in parameters and x unless called under ``torch.no_grad()``.

        Raises:
            ValueError, TypeError: for x of a wrong shape, dtype or device, empty, non-finite or outside the support.
        """
        return (inference or self.inference)(self.likelihood, x)

    def score(self, x: Num[Tensor, "B *X"], code: Code) -> Float[Tensor, " B"]:
        """The objective of codes already found, (B,) in nats, from the engine's own score where it kept one."""
        with door(self.likelihood, x):
            log_joint = self.likelihood.log_joint(x, code.z, code.k) if code.log_joint is None else code.log_joint
        name = type(self.inference).__name__
        return self.objective(Encoding(code.z, code.k, log_joint, code.log_q, code.q, self.likelihood.prior, name))

    def decode(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Distribution:
        """q_r(x|z): codes (*L, *Z) give batch L, event X."""
        return self.likelihood(z, k)

    def reconstruct(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "B *X"]:
        """The decoder's mean (for classes: the most probable ones) at ``encode(x).point``."""
        encoding = self.encode(x)
        return self.likelihood.point(self.decode(encoding.point, encoding.component))

    @torch.no_grad()
    def sample(self, n: int) -> Float[Tensor, "n *X"]:
        """n draws x ~ q_r(x|z), z ~ q_w(z). Raises NotImplementedError under a flat prior."""
        z = self.likelihood.prior.sample(torch.Size((n,)))
        return self.decode(z).sample().to(z.dtype)

    def log_evidence(self, x: Num[Tensor, "B *X"], samples: int = 500) -> Evidence:
        """log p(x) in nats: exact where the likelihood knows it, else by importance sampling.

        The proposal is the engine's own q(z|x); for a point estimate, the Laplace approximation at the code.
        """
        with door(self.likelihood, x):
            if isinstance(self.likelihood, ExactPosterior):
                return exact(self.likelihood, x)
            with torch.no_grad():
                encoding = self.inference(self.likelihood, x)
            return importance(self.likelihood, x, proposal(self.likelihood, x, encoding), samples)


def proposal(likelihood: Likelihood, x: Num[Tensor, "B *X"], encoding: Encoding) -> Distribution:
    """A density over codes to draw from: the encoding's q, or for a point estimate its Laplace approximation."""
    return laplace_approximation(likelihood, x, encoding.point) if encoding.q is None else encoding.q
