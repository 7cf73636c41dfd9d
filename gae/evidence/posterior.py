"""Posterior draws by Pyro's NUTS: the ground truth for small models."""

import warnings
from dataclasses import dataclass

import pyro
from jaxtyping import Float, Num
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from gae.evidence.base import need_proper
from gae.inference import to_pyro
from gae.likelihood import Likelihood
from gae.likelihood.door import checked


@dataclass(frozen=True)
class PosteriorDraws:
    """Posterior draws of all codes, their effective sample sizes, and the number of divergent transitions."""

    z: Float[Tensor, "S B *Z"]
    ess: Float[Tensor, "B *Z"]
    divergences: int


@checked
def nuts(likelihood: Likelihood, x: Num[Tensor, "B *X"], samples: int = 1000, warmup: int = 500) -> PosteriorDraws:
    """S draws from q(z|x) of each observation by the no-U-turn sampler (Hoffman & Gelman 2014), one chain for all.

    Pyro moves the codes of all B observations together, so B · Z should stay below a few hundred. A discrete code is
    summed out. Noise comes from torch's global generator; Pyro's parameter store is not changed.

    Raises:
        ValueError: under a flat prior; for fewer than 4 samples.

    >>> import torch
    >>> from gae.likelihood import LinearMixture
    >>> draws = nuts(LinearMixture(1, 2, (5,)), torch.zeros(3, 5), samples=20, warmup=20)
    >>> draws.z.shape, draws.ess.shape
    (torch.Size([20, 3, 2]), torch.Size([3, 2]))
    """
    need_proper(likelihood)
    if samples < 4 or warmup < 1:
        raise ValueError(f"Need samples >= 4 and warmup >= 1, got {samples} and {warmup}.")
    with pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        sampler = MCMC(NUTS(to_pyro(likelihood)), samples, warmup, disable_progbar=True)
        sampler.run(x)
    z = sampler.get_samples()["z"].detach()
    divergences = sum(len(transitions) for transitions in sampler.diagnostics()["divergences"].values())
    return PosteriorDraws(z, effective_sample_size(z.unsqueeze(0), 0, 1), divergences)
