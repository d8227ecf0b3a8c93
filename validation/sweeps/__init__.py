"""The paper's protocol over many runs: grids that grow, what they cost, the files that say so."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
