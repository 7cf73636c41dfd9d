"""Simulation-based calibration of an engine's densities q(z|x) (Talts et al. 2018)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gae.analysis.rate_distortion import densities
from gae.autoencoder import Autoencoder
from gae.data.checks import at_least_one
from gae.evidence.base import need_proper
from gae.inference.laws import codes_from
from gae.likelihood import Likelihood

LEAST = 5  # expected count of a bin, below which a χ² test is not valid


@dataclass(frozen=True)
class Calibration:
    """Ranks of true codes among draws from q(z|x), on observations simulated from the model.

    Ranks lie between 0 and ``draws``, and are uniform for the exact posterior. A density that is too narrow has too
    many extreme ranks; one that is too wide, too many in the middle. The prior itself, as q of a collapsed code, has
    uniform ranks in every dimension, but not of the log joint density (Modrák et al. 2023).

    Attributes:
        ranks: of the elements of a code.
        log_joint_ranks: of log q_w(z) q_r(x|z).
        draws: number of draws from each q(z|x).
    """

    ranks: Int[Tensor, "N *Z"]
    log_joint_ranks: Int[Tensor, " N"]
    draws: int

    def histogram(self, bins: int = 10) -> Int[Tensor, "bins Q"]:
        """Counts of ranks in equal bins, for each flattened element of a code, then for the log joint density.

        Raises:
            ValueError: unless bins divides draws + 1.
        """
        if bins < 2 or (self.draws + 1) % bins:
            raise ValueError(
                f"bins must divide the number of possible ranks, draws + 1 = {self.draws + 1}, got {bins}."
            )
        index = self._columns() * bins // (self.draws + 1)
        return torch.stack([(index == i).sum(0) for i in range(bins)])

    def p_values(self, bins: int = 10) -> Float[Tensor, " Q"]:
        """p values of Pearson's χ² test of uniform ranks, in the columns of ``histogram``.

        Small values indicate miscalibration. There are as many tests as columns: compare the smallest with 0.05 / Q.

        Raises:
            ValueError: as in ``histogram``; for fewer than 5 observations per bin, for which the distribution of the
                statistic is not that of χ² (Cochran 1954).
        """
        expected = len(self.ranks) / bins
        if expected < LEAST:
            raise ValueError(
                f"The χ² test of {bins} bins needs at least {LEAST * bins} observations, got {len(self.ranks)}. "
                "Simulate more `samples`, or use fewer bins."
            )
        square = (self.histogram(bins).double() - expected).square().sum(0) / expected
        return torch.special.gammaincc(torch.full_like(square, (bins - 1) / 2), square / 2)

    def ecdf_difference(self) -> Float[Tensor, "R Q"]:
        """Empirical minus uniform distribution function at each possible rank, in the columns of ``histogram``.

        Above 0, ranks are smaller than they should be: true codes lie too far to the left of q(z|x).
        """
        counts = torch.stack([(self._columns() <= rank).double().mean(0) for rank in range(self.draws + 1)])
        uniform = torch.arange(1, self.draws + 2, dtype=counts.dtype) / (self.draws + 1)
        return counts - uniform.to(counts).unsqueeze(1)

    def _columns(self) -> Int[Tensor, "N Q"]:
        return torch.cat([self.ranks.flatten(1), self.log_joint_ranks.unsqueeze(1)], 1)


@torch.no_grad()
def simulation_based_calibration(
    model: Autoencoder, samples: int = 1000, draws: int = 99, batch_size: int = 100
) -> Calibration:
    """Simulation-based calibration: z ~ q_w(z), x ~ q_r(x|z), and the rank of z among draws of the engine's q(z|x).

    Args:
        samples: number of simulated observations.
        draws: number of independent draws from each q(z|x).
        batch_size: number of observations encoded at a time.

    Raises:
        ValueError: for an engine without a density q(z|x) over z alone; under a flat prior.

    >>> from gae.systems import ppca
    >>> calibration = simulation_based_calibration(ppca((5,), latent=2), samples=200)
    >>> calibration.ranks.shape, bool(calibration.p_values().min() > 1e-4)
    (torch.Size([200, 2]), True)
    """
    at_least_one("samples", samples)
    at_least_one("draws", draws)
    need_proper(model.likelihood)
    x, z = model.likelihood.sample_joint(samples)
    ranks, heights = [], []
    for (batch, q), true in zip(densities(model, x, batch_size), z.split(batch_size), strict=True):
        drawn = codes_from(q, draws)
        ranks.append((drawn < true).sum(0))
        heights.append(_height_ranks(model.likelihood, batch, drawn, true))
    return Calibration(torch.cat(ranks), torch.cat(heights), draws)


def _height_ranks(likelihood: Likelihood, x: Tensor, drawn: Tensor, true: Tensor) -> Int[Tensor, " B"]:
    log_joint = likelihood.log_joint(x, torch.cat([true.unsqueeze(0), drawn]))
    return (log_joint[1:] < log_joint[:1]).sum(0)
