"""The fitted model of an estimator, and the way from arrays to tensors and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gae.autoencoder import Autoencoder
from gae.nets import first_tensor
from gae.training.sampling import isolated, reseed

MIXTURES = ("kmeans", "gmm", "llgae", "knn")  # systems whose code has a component k
FLOATS = [np.float64, np.float32]
CPU = torch.device("cpu")
BATCH = 1000  # rows encoded, decoded or scored at once


class Fitted(BaseEstimator):
    """Base class of the methods of an estimator: a system's name, and its fitted model."""

    system: str
    missing: str
    random_state: Any
    importance_samples: int
    model_: Autoencoder
    _seed: int  # of a fit, and of the random numbers of its methods

    def _batches(self, X: np.ndarray) -> tuple[Tensor, ...]:
        """Rows in the dtype of the model, a batch at a time."""
        return torch.tensor(X, dtype=first_tensor(self.model_).dtype).split(BATCH)

    def _checked(self, X: Any) -> np.ndarray:
        """X as an array of floats with the features of the fit."""
        check_is_fitted(self)
        return self._validated(X, reset=False)

    def _validated(self, X: Any, **options: Any) -> np.ndarray:
        """X as an array of floats, with NaN only if it marks elements that were not observed.

        With ``reset``, the features of X are recorded, else compared with those of the fit.
        """
        finite = "allow-nan" if self.missing == "mask" else True
        try:
            from sklearn.utils.validation import validate_data
        except ImportError:  # scikit-learn before 1.6
            return self._validate_data(X, dtype=FLOATS, force_all_finite=finite, **options)
        return validate_data(self, X, dtype=FLOATS, ensure_all_finite=finite, **options)

    @property
    def _widths(self) -> tuple[int, int]:
        """The columns of a code: indicators of the component of a mixture, and elements of z."""
        likelihood = self.model_.likelihood
        return likelihood.components if self.system in MIXTURES else 0, likelihood.latent_shape.numel()


def array(values: Tensor, like: np.ndarray) -> np.ndarray:
    """Values as an array of the dtype of another."""
    return values.detach().numpy().astype(like.dtype, copy=False)


def drawn(random_state: Any) -> int:
    """A seed from a random state of scikit-learn's kind: None, an int, or a generator."""
    return int(check_random_state(random_state).randint(2**31 - 1))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generator, and restores its state on exit."""
    with isolated(CPU):
        reseed(CPU, seed)
        yield
