"""Accuracy of single precision's logarithm, sine and cosine on every word there is, against double precision.

    python benchmarks/single_accuracy.py

All 2³² words take half a minute on one core of an AMD EPYC with AVX-512: the largest errors are 2.40 units in the last
place for the logarithm, 2.72 for sine and cosine, and none is NaN, infinite or of the wrong sign. What it is compared
with has itself an error of 3 units of float64, 6·10⁻⁹ of those.
"""

import numpy as np
from numba import njit

from noisysgd.simulators.randomness import float32 as single
from noisysgd.simulators.randomness import philox
from noisysgd.theory.common.arrays import FloatArray

WORDS, CHUNK = 2**32, 2**14


@njit(error_model="numpy")
def ulps(value: np.float32, exact: float) -> float:
    """Error of `value` in units of the last place of float32; an exact 0 must be met."""
    if exact == 0.0:
        return 0.0 if value == 0.0 else np.inf
    exponent = np.float64(exact).view(np.uint64) & np.uint64(0x7FF0000000000000)
    return abs(np.float64(value) - exact) / (np.uint64(exponent).view(np.float64) * 2.0**-23)


@njit(error_model="numpy")
def compare(first: int, worst: FloatArray) -> None:
    """Raise `worst` (3, n) to the errors of n words from `first` on: of the logarithm, sine and cosine."""
    for k in range(worst.shape[1]):
        word = np.uint64(first) + np.uint64(k)
        logarithm = single.log_fraction(word)
        error = ulps(logarithm, philox.log((np.float64(word) + 0.5) * 2.0**-32))
        sine, cosine = single.sin_cos(word)
        exact_sine, exact_cosine = philox.sin_cos(word << np.uint64(32))
        worst[0, k] = max(worst[0, k], error if logarithm < 0.0 else np.inf)
        worst[1, k] = max(worst[1, k], ulps(sine, exact_sine))
        worst[2, k] = max(worst[2, k], ulps(cosine, exact_cosine))


def main() -> None:
    """Print the largest errors."""
    worst = np.zeros((3, CHUNK))
    for first in range(0, WORDS, CHUNK):
        compare(first, worst)
    for name, error in zip(("log", "sin", "cos"), worst.max(axis=1), strict=True):
        print(f"{name}: at most {error:.2f} units in the last place, over {WORDS} words")


if __name__ == "__main__":
    main()
