"""Stationary states of Nesterov's step, u ← m u + g, θ ← θ − ε (g + m u).

A mode of curvature λ, x = ελ, whose gradient noise has variance s, settles at

    λ E θ² = s ε (1 + m + m(1+2m) x) / [(1 − m + mx) (2(1+m) − (1+2m) x)].

The heavy ball has 1 + m above, and (1−m)(2(1+m) − x) below: the same at x → 0, where temperature alone counts, but the
edge of stability is 1/(1+2m) times as far. All follows from
θ_{n+1} = (1+m)(1−x) θ_n − m(1−x) θ_{n−1} − ε((1+m) ξ_n − m ξ_{n−1}).
"""

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.quadratic import Quadratic


def curvature_edge(problem: Quadratic, momentum: FloatArray) -> FloatArray:
    """2(1+m)/((1+2m) λ_max), where the noiseless iteration stops to contract."""
    return np.asarray(2.0 * (1.0 + momentum) / ((1.0 + 2.0 * momentum) * problem.largest_eigenvalue))


def gains(problem: Quadratic, rate: FloatArray, momentum: FloatArray) -> FloatArray:
    """λ E θ² of every mode for gradient noise of variance 1, (..., D); ``inf`` at and beyond a mode's own edge."""
    m = momentum[..., None]
    x = rate[..., None] * problem.eigenvalues
    room = 2.0 * (1.0 + m) - (1.0 + 2.0 * m) * x
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = rate[..., None] * (1.0 + m + m * (1.0 + 2.0 * m) * x) / ((1.0 - m + m * x) * room)
    return np.where(room > 0, gain, np.inf)


def shares(problem: LeastSquares, rate: FloatArray, noise_factor: FloatArray, momentum: FloatArray) -> FloatArray:
    """Each mode's share of the feedback R that ``stability`` describes, (..., D); ``inf`` beyond a pole."""
    strength = noise_factor[..., None] * problem.eigenvalues
    with np.errstate(invalid="ignore", divide="ignore"):
        drive = strength * gains(problem, rate, momentum)
        room = 1.0 - (problem.kurtosis - 2.0) * drive
        return np.where(strength == 0.0, 0.0, np.where((room > 0) & (drive < np.inf), drive / room, np.inf))


def edge(problem: Quadratic, noise_factor: FloatArray, momentum: FloatArray) -> FloatArray:
    """The critical learning rate for checked arrays of one shape, of γ and of m."""
    curvature = curvature_edge(problem, momentum)
    if not isinstance(problem, LeastSquares):
        return curvature
    edges = curvature.copy()
    for at in np.ndindex(curvature.shape):
        if noise_factor[at] > 0:
            edges[at] = _root(problem, float(noise_factor[at]), float(momentum[at]), float(curvature[at]))
    return edges


def _root(problem: LeastSquares, noise_factor: float, momentum: float, highest: float) -> float:
    """The ε below `highest` at which the feedback R is 1: R rises with ε, from 0 to infinity at the highest."""
    from scipy.optimize import brentq

    factor, m = np.asarray(noise_factor), np.asarray(momentum)

    def excess(log_rate: float) -> float:
        feedback = (problem.weights * shares(problem, np.asarray(np.exp(log_rate)), factor, m)).sum()
        # Between −1 and 1, so that an infinite R is a number too.
        return float(1.0 - 2.0 / (1.0 + feedback)) if feedback < np.inf else 1.0

    top = float(np.log(highest))
    low = top - 1.0
    while excess(low) >= 0:
        low -= 2.0 * (top - low)
    return float(np.exp(brentq(excess, low, top, xtol=1e-15, rtol=1e-15)))


def additive_covariance(
    eigenvalues: FloatArray, noise: FloatArray, initial_variance: FloatArray, rate: FloatArray, momentum: FloatArray
) -> FloatArray:
    """The stationary covariance (..., D, D) under additive noise of covariance `noise`, (..., D, D), below the edge.

    Two modes with x = ελᵢ and y = ελⱼ have

        ε² Nᵢⱼ/Dᵢⱼ times the covariance of their noise, with s = x + y and q = xy,
        N = 1 − m² + m(1+m−m²) s + m²(1+2m) q,
        D = (1−m)²(1+m) s + m(1+m−m²)(x−y)² + (1−m)(6m²+3m−1) q + m(3m²−1) s q − m²(1+2m) q²,

    from the Yule–Walker equations of the pair. For i = j, D = x (1−m+mx)² (2(1+m) − (1+2m)x) without cancellation.
    """
    m, step = momentum[..., None, None], rate[..., None, None]
    row, column = eigenvalues[:, None], eigenvalues
    total, product = row + column, row * column
    above = 1.0 - m * m + m * (1.0 + m - m * m) * step * total + m * m * (1.0 + 2.0 * m) * step**2 * product
    # Everything below is divided by ε, which leaves the sum of curvatures at ε = 0.
    below = (1.0 - m) ** 2 * (1.0 + m) * total + step * m * (1.0 + m - m * m) * (row - column) ** 2
    below = below + step * (1.0 - m) * (6.0 * m * m + 3.0 * m - 1.0) * product
    below = below + step**2 * m * (3.0 * m * m - 1.0) * total * product
    below = below - step**3 * m * m * (1.0 + 2.0 * m) * product**2
    x = step * row
    single = row * (1.0 - m + m * x) ** 2 * (2.0 * (1.0 + m) - (1.0 + 2.0 * m) * x)
    below = np.where(np.eye(eigenvalues.size, dtype=bool), single, below)
    push = step * above * noise
    flat = (row == 0) & (column == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        diffusing = np.where(push == 0.0, np.diag(initial_variance), np.copysign(np.inf, push))
        return np.where(flat, diffusing, push / below)
