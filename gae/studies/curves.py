"""Training curves: a bound on log p(x) of held-out data after some epochs, of one kind for every way to train."""

from collections.abc import Mapping

import torch
from jaxtyping import Num
from torch import Tensor

from gae.analysis.inference_gap import widened
from gae.analysis.metrics import Entry
from gae.evidence import importance
from gae.evidence.base import without_warning
from gae.evidence.laplace import mode_approximation
from gae.likelihood import Likelihood

STARTS = 4  # of the search for a mode


def marks(epochs: Mapping[str, int], name: str) -> list[int]:
    """Epochs at which a training is measured: powers of three, and the last epochs of all trainings up to its own.

    >>> marks({"a": 20, "b": 6}, "a")
    [1, 3, 6, 9, 20]
    """
    last = epochs[name]
    return sorted({epoch for epoch in (1, 3, 9, 27, 81, 243, *epochs.values()) if epoch <= last})


@torch.no_grad()
def held_out_bound(likelihood: Likelihood, x: Num[Tensor, "B *X"], draws: int) -> Entry:
    """A lower bound on log p(x) of each sample: importance sampling around the highest of a few modes.

    It needs no encoder, so that it is the same quantity for every training. In expectation it is below log p(x), by
    little if the effective sample size is large.
    """
    with without_warning():
        evidence = importance(likelihood, x, widened(mode_approximation(likelihood, x, STARTS)), draws)
    assert evidence.ess is not None
    return {"values": evidence.log_p.tolist(), "ess": float(evidence.ess.mean())}
