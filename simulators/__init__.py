"""Simulators: ensembles of trajectories of SGD, from one counter-based random stream.

`simulate` runs them, `simulate_sweep` over a whole grid; `shares` cuts one ensemble into parts, for several processes,
and `join` puts them together; `TimeLeft` shows how far a simulation is. `random_bits`, `random_words` and `normals`
show the random numbers they use.
"""

from noisysgd.simulators.engine import simulate
from noisysgd.simulators.join import join, shares
from noisysgd.simulators.progress import TimeLeft
from noisysgd.simulators.stream import STREAM_VERSION, NoiseLaw, Purpose, noise, normals, random_bits, random_words
from noisysgd.simulators.sweep import simulate_sweep

__all__ = [
    "STREAM_VERSION",
    "NoiseLaw",
    "Purpose",
    "TimeLeft",
    "join",
    "noise",
    "normals",
    "random_bits",
    "random_words",
    "shares",
    "simulate",
    "simulate_sweep",
]
