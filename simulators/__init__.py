"""Simulators: ensembles of trajectories of SGD, from one counter-based random stream.

`simulate` runs them, `simulate_sweep` over a whole grid; `shares` cuts one ensemble into parts, for several processes,
and `join` puts them together; `TimeLeft` shows how far a simulation is. `random_bits`, `random_words` and `normals`
show the random numbers they use.
"""

from noisysgd.simulators.engine import simulate
from noisysgd.simulators.ensembles import Configuration, join, shares
from noisysgd.simulators.models import DiagonalNetwork, FiniteLeastSquares, sparse_regression
from noisysgd.simulators.progress import TimeLeft
from noisysgd.simulators.randomness import STREAM_VERSION, NoiseLaw, Purpose, noise, normals, random_bits, random_words
from noisysgd.simulators.sweeps import best_pair, bracketed_pairs, bracketed_sweep, final_losses, simulate_sweep

__all__ = [
    "STREAM_VERSION",
    "Configuration",
    "DiagonalNetwork",
    "FiniteLeastSquares",
    "NoiseLaw",
    "Purpose",
    "TimeLeft",
    "best_pair",
    "bracketed_pairs",
    "bracketed_sweep",
    "final_losses",
    "join",
    "noise",
    "normals",
    "random_bits",
    "random_words",
    "shares",
    "simulate",
    "simulate_sweep",
    "sparse_regression",
]


def __dir__() -> list[str]:
    return sorted(__all__)
