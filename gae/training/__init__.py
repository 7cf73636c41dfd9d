"""Training: one loop for closed-form M-steps and for any torch optimiser."""

from gae.training.fitting import fit, restore
from gae.training.history import Epoch, History

__all__ = ["Epoch", "History", "fit", "restore"]
