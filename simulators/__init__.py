"""Simulators: ensembles of trajectories of SGD, from one counter-based random stream.

`simulate` runs them, `simulate_sweep` over a whole grid; `random_bits`, `random_words` and `normals` show the random
numbers they use.
"""

from noisysgd.simulators.bracketing import bracketed_sweep, final_losses
from noisysgd.simulators.diagonal_network import DiagonalNetwork, sparse_regression
from noisysgd.simulators.engine import simulate
from noisysgd.simulators.finite_least_squares import FiniteLeastSquares
from noisysgd.simulators.pairs import best_pair, bracketed_pairs
from noisysgd.simulators.stream import STREAM_VERSION, NoiseLaw, Purpose, noise, normals, random_bits, random_words
from noisysgd.simulators.sweep import simulate_sweep
from noisysgd.simulators.tiles import Configuration

__all__ = [
    "STREAM_VERSION",
    "Configuration",
    "DiagonalNetwork",
    "FiniteLeastSquares",
    "NoiseLaw",
    "Purpose",
    "best_pair",
    "bracketed_pairs",
    "bracketed_sweep",
    "final_losses",
    "noise",
    "normals",
    "random_bits",
    "random_words",
    "simulate",
    "simulate_sweep",
    "sparse_regression",
]
