"""Training: one loop for closed-form M-steps and for any torch optimiser."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
