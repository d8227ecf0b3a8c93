"""Sweeps of many training runs: grids that grow until they bracket their optima, what they cost, and their files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
