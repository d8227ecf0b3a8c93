"""Image data sets: where their files lie, how they are verified, read and prepared, and their augmentation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
