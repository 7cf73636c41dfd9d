"""Posterior collapse at the end of training: codes that do not depend on the data."""

import warnings

import torch
from jaxtyping import Num
from torch import Tensor

from gae.autoencoder import Autoencoder
from gae.evidence.usage import ACTIVE, CodeUsage
from gae.inference import Code
from gae.likelihood import FlatDistribution

SAMPLES = 256  # observations that show whether a code is used
STEPS = 200  # of an optimiser, before which a code counts as not yet trained
CHUNK = 64  # of them in memory


class CollapseWarning(UserWarning):
    """Warning that a trained model ignores its code: q(z|x) is the same for all x."""


@torch.no_grad()
def codes_with_density(autoencoder: Autoencoder, x: Num[Tensor, "N *X"], device: torch.device) -> list[Code]:
    """Codes with densities q(z|x) of about 256 of the observations, at equal distances, in batches.

    Empty for an engine without a density or with a choice of component, under a flat prior, and for observations that
    are all equal.
    """
    likelihood, engine = autoencoder.likelihood, autoencoder.inference
    if isinstance(likelihood.prior, FlatDistribution) or not likelihood.latent_shape.numel():
        return []
    x = x[:: max(1, len(x) // SAMPLES)][:SAMPLES].to(device)
    if bool((x == x[:1]).all()):
        return []
    probe = engine.infer(likelihood, x[:2])  # an engine without a density may be slow
    if probe.q is None or probe.k is not None:
        return []
    return [engine.infer(likelihood, batch) for batch in x.split(CHUNK)]


def warn_of_collapse(usage: CodeUsage) -> None:
    """Warns if no unit is active."""
    if usage.collapsed:
        warnings.warn(
            f"The code has collapsed: {usage.summary()}. In every dimension, the variance over x of the mean of q(z|x) "
            f"is below {ACTIVE} of the prior's: this is a model without a code, on which every encoder is as good as "
            "any other. Train with a smaller `beta` or a lower noise scale, with a weaker decoder, or with codes that "
            "are refined in training (`savae`).",
            CollapseWarning,
            stacklevel=3,
        )
