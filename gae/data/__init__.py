"""Data sets and readers: arrays, idx files, text, image folders and photographs as tensors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
