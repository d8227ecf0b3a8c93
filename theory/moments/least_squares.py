"""Second moments of least squares, exactly: after any number of steps, and at stationarity.

How they advance is the matter of ``coupled``; averages of iterates take the steps one by one (``averaging_kernels``).
"""

from typing import Any

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.parallel import map_slices
from noisysgd.theory.moments.coupled import FLAT, SILENT, CoupledModes, advance, at_rest
from noisysgd.theory.moments.segments import Pieces, Runs, add_losses
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic


@add_losses.register
def _(problem: LeastSquares, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    averaged = runs.averaging > 0
    if averaged.any():
        _add_averaged(problem, np.flatnonzero(averaged), runs, pieces, losses)
    if not averaged.all():
        part = losses[~averaged]
        _add_plain(problem, runs.take(~averaged), pieces, part)
        losses[~averaged] = part


def _add_plain(problem: LeastSquares, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    """The losses of θ itself.

    Relative errors are about 1e-13, whatever the curvatures and the number of steps. They are larger where rounding ε
    or λ would change as much: just below the edge of stability, where the loss feeds almost all of its noise, and where
    an oscillating mode passes through zero.
    """
    silent = runs.noise_factor < SILENT
    if silent.any():
        quiet = losses[silent]
        add_losses(without_noise(problem), runs.take(silent), pieces, quiet)
        losses[silent] = quiet
    modes, means, constant = coupled_modes(problem)
    kept = pieces.recorded >= 0
    noisy = np.flatnonzero(~silent)

    def work(part: slice) -> None:
        with np.errstate(all="ignore"):
            for c in noisy[part]:
                state = at_rest(means)
                rates = runs.learning_rate[c] * pieces.multipliers
                curve = advance(modes, runs.noise_factor[c], runs.momentum[c], state, rates, pieces.lengths)
                losses[c, pieces.recorded[kept]] += curve[kept] + constant

    steps = np.minimum(pieces.lengths, 30 * means.size).sum()
    map_slices(work, noisy.size, cost=int(steps) * means.size // 100)


def coupled_modes(problem: LeastSquares) -> tuple[CoupledModes, FloatArray, float]:
    """The curved modes, E θ_i² of each at the start, and the loss of the flat ones, which never changes.

    Modes of one curvature are merged, since they act as their mean.
    """
    curvatures, group = np.unique(problem.eigenvalues, return_inverse=True)
    weights = np.bincount(group, problem.weights)
    means = np.bincount(group, problem.weights / weights[group] * problem.initial_second_moment)
    curved = curvatures > FLAT * curvatures[-1]
    constant = float(0.5 * (weights * curvatures * means)[~curved].sum())
    modes = CoupledModes(curvatures[curved], weights[curved], problem.label_noise, problem.kurtosis)
    return modes, means[curved], constant


def without_noise(problem: LeastSquares) -> NoisyQuadratic:
    """The same modes and start without gradient noise: what full batches follow."""
    start = (problem.initial_mean, problem.initial_variance)
    return NoisyQuadratic(problem.eigenvalues, 0.0, *start, weights=problem.weights)


def _add_averaged(problem: LeastSquares, chosen: IntArray, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    """The same for the losses of moving averages, where noise grows with the loss of θ itself."""
    half = 0.5 * problem.weights * problem.eigenvalues
    curved, kept = half > 0, pieces.recorded[pieces.recorded >= 0]

    def work(rows: slice) -> None:
        for c in chosen[rows]:
            settings = (runs.learning_rate[c], runs.noise_factor[c], runs.momentum[c], runs.averaging[c])
            with np.errstate(all="ignore"):
                moments = average_moments(problem, *settings, pieces, losses.shape[1])
            losses[c, kept] += moments[kept][:, curved] @ half[curved]

    map_slices(work, chosen.size, cost=problem.dim * int(pieces.lengths.sum()) // 50)


def average_moments(
    problem: LeastSquares, rate: float, factor: float, momentum: float, averaging: float, pieces: Pieces, records: int
) -> FloatArray:
    """E θ̄ᵢ² after each recorded piece, (records, D); ``inf`` for all moving modes once any overflows."""
    from noisysgd.theory.moments.averaging_kernels import average_steps

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


def second_moments(
    problem: LeastSquares,
    rate: float,
    factor: float,
    momentum: float,
    lengths: IntArray,
    multipliers: FloatArray,
) -> FloatArray:
    """E θ_i² at the end of the schedule, shape (D,); ``inf`` for all curved modes if any overflows.

    Errors are those of the losses, but relative to the largest of modes that share a curvature.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = theory.LeastSquares([1.0, 0.0], label_noise=0.0)
    >>> second_moments(problem, 0.5, 1.0, 0.0, np.array([1]), np.array([1.0]))  # (1−ε)² + 2ε²; a flat mode stays
    array([0.75, 1.  ])
    """
    moments = problem.initial_second_moment.copy()
    curved = problem.eigenvalues > FLAT * problem.largest_eigenvalue
    # Modes that never differ are one; others of the same curvature stay apart.
    keys = np.stack([problem.eigenvalues, moments])[:, curved]
    (curvatures, start), group = np.unique(keys, axis=1, return_inverse=True)
    weights = np.bincount(group, problem.weights[curved]).astype(np.float64)
    state = at_rest(start)
    # So small a factor multiplies what is there by 1; alone it would make something of nothing.
    label_noise = problem.label_noise if factor >= SILENT else 0.0
    modes = CoupledModes(curvatures, weights, label_noise, problem.kurtosis)
    with np.errstate(all="ignore"):
        losses = advance(modes, max(factor, SILENT), momentum, state, rate * multipliers, lengths)
    finite = losses.size == 0 or losses[-1] < np.inf
    moments[curved] = np.maximum(state[0], 0.0)[group] if finite else np.inf
    return moments


def stationary_second_moments(problem: LeastSquares, rate: float, factor: float, momentum: float) -> FloatArray:
    """E θ_i² to which SGD or heavy ball settles at a constant learning rate, shape (D,).

    With x = ελ and M = (1−m)(2(1+m) − x) − γ(κ−2)(1+m)x,

        v_i = γεσ²(1+m) / ((1−K) M_i),    K = γ Σ w x (1+m)/M.

    There is such a state iff all x < 2(1+m), all M > 0 and K < 1; otherwise ``inf``. For plain SGD on Gaussian inputs
    K < 1 reads Σ ελ/(2B − (B+1)ελ) < 1 (Bordelon & Pehlevan 2021), at κ = 2 it is the condition of Velikanov,
    Kuznedelev & Yarotsky 2023. Modes that do not move, λ = 0 or ε = 0, stay where they start.

    Examples
    --------
    One mode, plain SGD on Gaussian inputs: v = (1−ε)² v + 2γε² v + γε²σ².

    >>> from noisysgd import theory
    >>> problem = theory.LeastSquares([1.0, 0.0], label_noise=0.5)
    >>> stationary_second_moments(problem, 0.5, 0.5, 0.0)
    array([0.125, 1.   ])
    """
    x = rate * problem.eigenvalues
    moving = x > 0
    edge = 2.0 * momentum - (x - 2.0)
    margin = (1.0 - momentum) * edge - factor * (problem.kurtosis - 2.0) * (1.0 + momentum) * x
    moments = problem.initial_second_moment.copy()
    if np.all(edge[moving] > 0) and np.all(margin[moving] > 0):
        gain = factor * (1.0 + momentum) / margin[moving]
        feedback = (problem.weights[moving] * x[moving] * gain).sum()
        moments[moving] = rate * problem.label_noise * gain / (1.0 - feedback) if feedback < 1 else np.inf
    else:
        moments[moving] = np.inf
    return moments
