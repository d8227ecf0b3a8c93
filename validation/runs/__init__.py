"""Training runs: the store of their records, the executors that train them, the TOML files that describe them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
