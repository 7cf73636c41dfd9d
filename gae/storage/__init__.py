"""Storage of models and runs: recorded constructor calls, nested state as JSON and tensors, and atomic checkpoints."""

from gae.storage.recipe import Part, recorded

__all__ = ["Part", "recorded"]
