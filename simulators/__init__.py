"""Simulators: ensembles of trajectories of SGD, from one counter-based random stream.

`simulate` runs them, `simulate_sweep` over a whole grid; `shares` cuts one ensemble into parts, for several processes,
and `join` puts them together; `TimeLeft` shows how far a simulation is. `random_bits`, `random_words` and `normals`
show the random numbers they use.

Names are listed in ``__init__.pyi``, for type checkers, and loaded from there when they are first used: training needs
the random stream alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
