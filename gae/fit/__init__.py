"""Training: one loop for closed-form M-steps and for any torch optimiser."""

from gae.fit.history import Epoch, History
from gae.fit.train import fit, restore

__all__ = ["Epoch", "History", "fit", "restore"]
