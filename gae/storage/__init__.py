"""Models and runs on disk: how a part was built, nested state as JSON and tensors, checkpoints that lose nothing."""

from gae.storage.recipe import Part, recorded

__all__ = ["Part", "recorded"]
