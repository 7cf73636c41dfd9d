"""Log densities and draws of a fitted system."""

import warnings
from typing import Any

import numpy as np
from sklearn.base import DensityMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gae.autoencoder import log_evidence
from gae.data.checks import at_least_one
from gae.evidence import Evidence
from gae.evidence.base import UnreliableWarning, is_exact
from gae.likelihood import FlatDistribution
from gae.sklearn.base import CPU, Fitted, array, drawn, seeded
from gae.systems import SYSTEMS
from gae.training.sampling import reseed


def _has_density(estimator: Fitted) -> bool:
    """Whether the prior is proper, so that p(x) exists."""
    if hasattr(estimator, "model_"):
        return not isinstance(estimator.model_.likelihood.prior, FlatDistribution)
    return estimator.system in list(SYSTEMS) and "flat" not in SYSTEMS[estimator.system].prior


class Density(DensityMixin, Fitted):
    """The methods of a density estimator, for systems with a proper prior."""

    @available_if(_has_density)
    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x) of each row (N,) in nats, of the data as given; only for systems with a proper prior.

        Exact for linear mixtures. Otherwise by importance sampling from the encoder's density or, where that is not
        tight, from Laplace approximations at several modes, with the same random numbers for each row and at each call.
        A row takes about a tenth of a second; ``gae.log_evidence`` takes a batch at once.

        Warns:
            UnreliableWarning: if values are lower bounds only, because neither proposal covers the posterior.
        """
        X = self._checked(X)
        evidence = Evidence.join([self._evidence(batch) for batch in self._batches(X)])
        loose = 0 if evidence.tight is None else int((~evidence.tight).sum())
        if loose:
            warnings.warn(
                f"log p(x) of {loose} of {len(X)} rows is a lower bound only: the proposals miss a part of the "
                "posterior. Use more importance_samples, or `gae.log_evidence(estimator.model_, x)`, which anneals.",
                UnreliableWarning,
                stacklevel=2,
            )
        return array(evidence.log_p, X)

    def _evidence(self, x: Tensor) -> Evidence:
        if is_exact(self.model_.likelihood):
            return log_evidence(self.model_, x)
        rows = []
        with seeded(self._seed):
            for row in x.split(1):
                reseed(CPU, self._seed)  # the value of a row depends on no other row
                rows.append(log_evidence(self.model_, row, self.importance_samples, annealed=0))
        return Evidence.join(rows)

    @available_if(_has_density)
    def score(self, X: Any, y: Any = None) -> float:
        """The mean of ``score_samples``, in nats per row; y is ignored."""
        return float(self.score_samples(X).mean())

    @available_if(_has_density)
    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draws of x ~ p(x), (n_samples, D); ``random_state`` is that of the estimator by default."""
        check_is_fitted(self)
        at_least_one("n_samples", n_samples)
        with seeded(drawn(self.random_state if random_state is None else random_state)):
            return self.model_.sample(n_samples).flatten(1).numpy()
