"""Components of a fitted mixture, as clusters."""

from typing import Any

import numpy as np
import torch
from sklearn.utils.metaestimators import available_if

from gae.likelihood import ExactPosterior
from gae.sklearn.base import MIXTURES, Fitted, array


def _is_mixture(estimator: Fitted) -> bool:
    return estimator.system in MIXTURES


class Components(Fitted):
    """The methods of a clusterer, for mixtures."""

    @available_if(_is_mixture)
    def predict(self, X: Any) -> np.ndarray:
        """The most probable component of each row (N,), by the system's own engine."""
        X = self._checked(X)
        with torch.no_grad():
            components = [self.model_.encode(batch).component for batch in self._batches(X)]
        return torch.cat([each for each in components if each is not None]).numpy()

    @available_if(_is_mixture)
    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """``fit(X)``, then ``predict(X)``; y is ignored."""
        return self.fit(X).predict(X)

    @available_if(_is_mixture)
    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability q(k|x) of each component, (N, K), with coordinates integrated out.

        The noise of ``"kmeans"``, ``"llgae"`` and ``"knn"`` has standard deviation 1 in the unit of X.
        """
        X = self._checked(X)
        likelihood = self.model_.likelihood
        assert isinstance(likelihood, ExactPosterior)
        with torch.no_grad():
            return array(torch.cat([likelihood.log_responsibilities(x) for x in self._batches(X)]).exp(), X)
