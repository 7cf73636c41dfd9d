"""The named systems as an estimator of scikit-learn."""

from gae.sklearn.estimator import GenerativeAutoencoder

__all__ = ["GenerativeAutoencoder"]
