"""Moving averages of iterates on least squares: exact, at a cost that grows with the number of steps."""

from typing import Any

import numpy as np

from noisysgd.theory.checks import FloatArray
from noisysgd.theory.least_squares import LeastSquares
from noisysgd.theory.moments import Pieces


def average_moments(
    problem: LeastSquares, rate: float, factor: float, momentum: float, averaging: float, pieces: Pieces, records: int
) -> FloatArray:
    """E θ̄ᵢ² after each recorded piece, (records, D); ``inf`` for all moving modes once any overflows."""
    from noisysgd.theory.averaging_kernels import average_steps

    moments = np.zeros((records, problem.dim))
    start = problem.initial_second_moment
    moving = problem.eigenvalues > 0
    state = np.zeros((6, int(moving.sum())))
    state[[0, 3, 5]] = start[moving]
    eigenvalues = problem.eigenvalues[moving]
    law: tuple[Any, ...] = (eigenvalues, problem.weights[moving] * eigenvalues, factor, problem.label_noise)
    for length, multiplier, record in zip(pieces.lengths, pieces.multipliers, pieces.recorded, strict=True):
        settings: list[Any] = [problem.kurtosis - 2.0, rate * multiplier, momentum, averaging, int(length)]
        average_steps(state, *law, *settings)
        if record >= 0:
            moments[record, ~moving] = start[~moving]
            moments[record, moving] = state[5] if np.isfinite(state).all() else np.inf
    return moments
