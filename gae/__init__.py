"""gae: a decoder alone defines a model; encoding is inference."""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # what it offers: __init__.pyi
