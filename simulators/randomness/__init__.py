"""The one random stream, a pure function of (seed, purpose, replica, step, coordinate), and what is drawn from it."""

from noisysgd.simulators.randomness.stream import (
    STREAM_VERSION,
    NoiseLaw,
    Purpose,
    noise,
    normals,
    random_bits,
    random_words,
)

__all__ = [
    "STREAM_VERSION",
    "NoiseLaw",
    "Purpose",
    "noise",
    "normals",
    "random_bits",
    "random_words",
]
