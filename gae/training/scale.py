"""The scale of codes in training: beside that of the prior, and a warning where the objective does not fix it."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from gae.autoencoder import Autoencoder
from gae.inference import Code, Encoding, Inference, Step
from gae.likelihood import DecoderLikelihood, Likelihood
from gae.objective import joint

CODES = 3  # codes at which a rescaled decoder is compared
FACTOR, SLACK = 1.5, 1e-4  # of a rescaling, and how far two outputs may differ, relative to the largest


@dataclass(frozen=True)
class CodeScale:
    """E‖z‖² of codes, averaged over observations (and draws), and its expectation under the prior."""

    codes: float
    prior: float


@torch.no_grad()
def code_scale(codes: Iterable[Code], prior: Distribution) -> CodeScale | None:
    """The scale of codes, in batches; None without a continuous code, or if E‖z‖² under the prior is unknown.

    >>> from gae.likelihood import StandardNormal
    >>> code_scale([Code(torch.ones(1, 3, 2)), Code(torch.zeros(1, 1, 2))], StandardNormal(2)())
    CodeScale(codes=1.5, prior=2.0)
    """
    try:
        expected = float((prior.variance + prior.mean.square()).sum())
    except NotImplementedError:  # a flat prior
        return None
    if not prior.event_shape.numel() or not math.isfinite(expected):
        return None
    squares = torch.cat([code.z.flatten(2).square().sum(2) for code in codes], 1)
    return CodeScale(float(squares.mean()), expected)


def warn_of_rescaling(autoencoder: Autoencoder, groups: Sequence[Mapping[str, Any]], first: Encoding) -> None:
    """Warns if training by ``joint`` has no maximiser, since a rescaled decoder with smaller codes always raises it.

    Silent where something fixes the scale: a flat prior, unit weights, a penalty, weight decay, draws instead of modes.

    Args:
        groups: the settings of the optimiser's parameter groups.
        first: an encoding by the autoencoder's engine.
    """
    objective = autoencoder.objective
    rule = objective.func if isinstance(objective, partial) else objective
    is_joint = rule is joint and type(autoencoder).forward is Autoencoder.forward
    if not is_joint or autoencoder.accepts_rescaling or len(autoencoder.penalties):
        return
    if any(group.get("weight_decay", 0) for group in groups):
        return
    if _can_rescale(autoencoder.likelihood) and _has_points(autoencoder.inference, first):
        warnings.warn(
            "Training by `joint` under a proper prior has no maximiser: smaller codes with larger weights always "
            "raise it, while log p(x) falls. Use `laplace_evidence` with `Laplace(engine, samples=None)`, an `elbo`, "
            "or a flat prior with codes in a bounded set; weight decay fixes the scale too. If this is "
            "intended, set `autoencoder.accepts_rescaling = True`.",
            stacklevel=3,
        )


def _has_points(engine: Inference, encoding: Encoding) -> bool:
    """Whether codes are continuous points, without a density and not draws of the posterior."""
    parts = [part for part in engine.modules() if isinstance(part, (Inference, Step))]
    draws = any(part.is_sampler for part in parts)
    return not draws and encoding.log_q is None and encoding.z.shape[2:].numel() > 0


class _Outputs(nn.Module):
    """The decoder outputs of a likelihood as a module."""

    def __init__(self, likelihood: DecoderLikelihood):
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z: Float[Tensor, "S B *Z"]) -> Tensor:
        k = torch.zeros(1, 1, dtype=torch.long, device=z.device) if self.likelihood.components else None
        return self.likelihood.outputs(z, k)


@torch.no_grad()
def _can_rescale(likelihood: Likelihood) -> bool:
    """Whether multiplying one weight and dividing the codes leaves the decoder's outputs the same, and q_w(z) larger.

    A scale that several weights share, as in recurrent decoders, is not recognised.
    """
    if not isinstance(likelihood, DecoderLikelihood) or likelihood.stochastic:
        return False
    try:
        z = likelihood.initial(CODES).unsqueeze(0)
    except NotImplementedError:  # a flat prior
        return False
    prior, decode = likelihood.prior, _Outputs(likelihood)
    if not bool((prior.log_prob(z / FACTOR) > prior.log_prob(z)).all()):
        return False
    outputs = decode(z)
    weights = {name: p for name, p in decode.named_parameters() if p.requires_grad and p.dim() > 1}
    return any(
        _same(functional_call(decode, {name: FACTOR * weight}, (z / FACTOR,)), outputs)
        and not _same(functional_call(decode, {name: FACTOR * weight}, (z,)), outputs)
        for name, weight in weights.items()
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= SLACK * b.abs().max())
