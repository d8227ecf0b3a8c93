"""Exact covariances of pairs of modes under plain SGD, in closed form, compiled.

Without momentum and averaging a pair obeys Σ ← pΣ + ε²s with p = (1−ελᵢ)(1−ελⱼ), so that n steps make of it
pⁿΣ + ε²s (1 − pⁿ)/(1 − p). Both differences come from log |p|, the sum of a logarithm of each mode, by expm1: so
nothing cancels at λ → 0, at the edge of stability, or where one mode grows as fast as the other shrinks.
"""

import math

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, helper


@helper
def sgd_pair_segment(moment: float, kick: float, log_p: float, alternating: bool, count: int) -> float:
    """Σ after `count` steps, `kick` = ε²s; p is negative, and so alternates, where just one mode has ελ > 1."""
    log_power = count * log_p
    odd = alternating and count % 2 == 1
    result = 0.0
    if moment != 0.0:
        power = math.exp(log_power)
        result = -moment * power if odd else moment * power
    if kick != 0.0:
        if alternating:
            built_up = (1.0 + math.exp(log_power) if odd else -math.expm1(log_power)) / (1.0 + math.exp(log_p))
        else:
            built_up = math.expm1(log_power) / math.expm1(log_p) if log_p != 0.0 else float(count)
        result += kick * built_up
    return result if abs(result) < np.inf else np.inf


@entry
def sgd_covariance_rows(
    eigenvalues: FloatArray,
    noise: FloatArray,
    variance: FloatArray,
    rate: float,
    lengths: IntArray,
    multipliers: FloatArray,
    shares: FloatArray,
    recorded: IntArray,
    first: int,
    last: int,
    covariances: FloatArray,
) -> None:
    """Write Cov θᵢθⱼ for first ≤ i < last and j ≥ i, and for j, i, into `covariances`, (R, D, D); `noise` is (D, D).

    An entry that overflows is ``inf``, and stays so.
    """
    dim = eigenvalues.size
    moments, logs, beyond = np.zeros((last - first, dim)), np.empty(dim), np.empty(dim, np.bool_)
    for i in range(first, last):
        moments[i - first, i] = variance[i]
    for piece in range(lengths.size):
        eps, count, record = rate * multipliers[piece], lengths[piece], recorded[piece]
        for i in range(first, dim):
            x = eps * eigenvalues[i]
            # log |1−x|, written so that neither 1−x near 1 nor 1−x near −1 loses digits.
            logs[i] = math.log1p(-min(x, 2.0 - x)) if x != 1.0 else -math.inf
            beyond[i] = x > 1.0
        for i in range(first, last):
            for j in range(i, dim):
                moment = moments[i - first, j]
                if moment < np.inf:
                    alternating = beyond[i] != beyond[j]
                    kick = eps * eps * (noise[i, j] * shares[piece])
                    moment = sgd_pair_segment(moment, kick, logs[i] + logs[j], alternating, count)
                    moments[i - first, j] = moment
                if record >= 0:
                    covariances[record, i, j] = covariances[record, j, i] = moment
