"""Readers of hyperparameter sweeps that others have published, which return them as Sweeps of this package."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
