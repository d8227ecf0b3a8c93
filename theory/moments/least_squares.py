"""Exact losses and second moments of least squares after any number of steps.

They are advanced by ``coupled``; averages of the iterates, and optimizers other than SGD and heavy ball, are followed
step by step (``averaging_kernels``).
"""

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.parallel import map_slices
from noisysgd.theory.moments.coupled import FLAT, SILENT, CoupledModes, advance, at_rest
from noisysgd.theory.moments.segments import Pieces, Runs, add_losses
from noisysgd.theory.moments.update_rule import AveragePieces, OneRun, UpdateRule, mode_moments
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic


@add_losses.register
def _(problem: LeastSquares, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    # Relative errors are about 1e-13, whatever the curvatures and the number of steps. They are larger where a rounding
    # error in ε or λ alone would change the loss by more: just below the edge of stability, where almost all of the
    # noise is made by the loss that it keeps up, and where an oscillating mode passes through zero.
    #
    # Without noise the modes are independent, and the closed forms of additive noise apply.
    silent = runs.noise_factor * pieces.noise.max() < SILENT
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
                factors = np.maximum(runs.noise_factor[c] * pieces.noise, SILENT)
                curve = advance(modes, factors, runs.momentum[c], state, rates, pieces.lengths)
                losses[c, pieces.recorded[kept]] += curve[kept] + constant

    # An estimate for the scheduler of threads: a long segment costs about as much as 30 D steps of D modes.
    steps = np.minimum(pieces.lengths, 30 * means.size).sum()
    map_slices(work, noisy.size, cost=int(steps) * means.size // 100)


def coupled_modes(problem: LeastSquares) -> tuple[CoupledModes, FloatArray, float]:
    """The curved modes, E θ² of each at the start, and the loss of the flat modes, which never changes.

    Modes of equal curvature are merged, since losses depend on their mean E θ² only.
    """
    curvatures, group = np.unique(problem.eigenvalues, return_inverse=True)
    weights = np.bincount(group, problem.weights)
    means = np.bincount(group, problem.weights / weights[group] * problem.initial_second_moment)
    curved = curvatures > FLAT * curvatures[-1]
    constant = float(0.5 * (weights * curvatures * means)[~curved].sum())
    modes = CoupledModes(curvatures[curved], weights[curved], problem.label_noise, problem.kurtosis)
    return modes, means[curved], constant


def without_noise(problem: LeastSquares) -> NoisyQuadratic:
    """The same modes and start without gradient noise, as full batches see them."""
    start = (problem.initial_mean, problem.initial_variance)
    return NoisyQuadratic(problem.eigenvalues, 0.0, *start, weights=problem.weights)


@mode_moments.register
def _(
    problem: LeastSquares, rule: UpdateRule, run: OneRun, average: AveragePieces, records: int
) -> tuple[FloatArray, FloatArray]:
    """Step by step, D operations each; ``inf`` for all moving modes once any overflows. Other modes stay put."""
    from noisysgd.theory.moments.averaging_kernels import average_steps

    fixed = rule.fixed_point(problem)
    start, mean = problem.initial_mean - fixed, np.zeros((records, problem.dim))
    second = np.zeros((records, problem.dim))
    moving = problem.eigenvalues + rule.pull() > 0
    begun = average.keep[-1] != 1.0  # an average starts at θ, a sum at 0; u starts at 0
    state, means = np.zeros((6, int(moving.sum()))), np.zeros((3, int(moving.sum())))
    state[[0, 3, 5] if begun else [0]] = (start**2 + problem.initial_variance)[moving]
    means[[0, 2] if begun else [0]] = start[moving]
    weighted = (problem.weights * problem.eigenvalues)[moving]
    law = (problem.label_noise, problem.kurtosis - 2.0)
    shared = (np.ascontiguousarray(problem.eigenvalues[moving]), weighted, fixed[moving], rule.pull())
    momentum, look = run.momentum, rule.look(run.momentum)
    with np.errstate(all="ignore"):
        for keep, fresh, length, multiplier, share, record in zip(*average.arrays, strict=True):
            rate, factor = run.learning_rate * multiplier, run.noise_factor * share
            average_steps(state, means, *shared, factor, *law, rate, momentum, look, keep, fresh, int(length))
            if record >= 0:
                # What does not move is its own average, or `total` times itself as a sum.
                total = 1.0 if begun else float((average.fresh * average.pieces.lengths).sum())
                second[record, ~moving] = total**2 * problem.initial_second_moment[~moving]
                sound = np.isfinite(state).all() and np.isfinite(means).all()
                second[record, moving] = state[5] if sound else np.inf
                mean[record, moving] = means[2] if sound else np.inf
    return second, mean


def second_moments(
    problem: LeastSquares,
    rate: float,
    factor: float | FloatArray,
    momentum: float,
    lengths: IntArray,
    multipliers: FloatArray,
) -> FloatArray:
    """E θ_i² at the end of the schedule, shape (D,); ``inf`` for all curved modes if any overflows.

    `factor` is γ, a number or one for each piece.

    Relative errors are those of the losses, but refer to the largest E θ_i² among modes that share a curvature.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = theory.LeastSquares([1.0, 0.0], label_noise=0.0)
    >>> second_moments(problem, 0.5, 1.0, 0.0, np.array([1]), np.array([1.0]))  # (1−ε)² + 2ε²; a flat mode stays
    array([0.75, 1.  ])
    """
    moments = problem.initial_second_moment.copy()
    curved = problem.eigenvalues > FLAT * problem.largest_eigenvalue
    # Modes of equal curvature and equal start never differ and are merged; those with another start stay apart.
    keys = np.stack([problem.eigenvalues, moments])[:, curved]
    (curvatures, start), group = np.unique(keys, axis=1, return_inverse=True)
    weights = np.bincount(group, problem.weights[curved]).astype(np.float64)
    state = at_rest(start)
    # A factor below SILENT is raised to it, which changes nothing where it multiplies a state that is there. Label
    # noise would build up a state from nothing, and is left out.
    label_noise = problem.label_noise if np.max(factor) >= SILENT else 0.0
    modes = CoupledModes(curvatures, weights, label_noise, problem.kurtosis)
    with np.errstate(all="ignore"):
        losses = advance(modes, np.maximum(factor, SILENT), momentum, state, rate * multipliers, lengths)
    finite = losses.size == 0 or losses[-1] < np.inf
    moments[curved] = np.maximum(state[0], 0.0)[group] if finite else np.inf
    return moments
