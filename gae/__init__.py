"""gae: a decoder alone defines a model; encoding is inference."""

from gae import data, evidence, inference, likelihood, nets, objective
from gae.analysis.gradcheck import check_gradient
from gae.autoencoder import Autoencoder, load

__version__ = "0.1.0"
__all__ = ["Autoencoder", "check_gradient", "data", "evidence", "inference", "likelihood", "load", "nets", "objective"]
