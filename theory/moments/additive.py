"""Losses under additive noise: modes are independent, and a segment costs each one power of its step matrix.

The compiled code is in ``mode_kernels`` (SGD and heavy ball) and ``pair_kernels`` (averages, and other optimizers).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.parallel import map_slices
from noisysgd.theory.moments.segments import Pieces, Runs, add_losses
from noisysgd.theory.moments.update_rule import AveragePieces, OneRun, UpdateRule, mode_moments
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic


@add_losses.register
def _(problem: NoisyQuadratic, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    shared = (
        problem.eigenvalues,
        0.5 * problem.weights * problem.eigenvalues,
        np.ascontiguousarray(problem.noise_diagonal),
        problem.initial_second_moment,
    )
    cut_up = pieces.arrays
    plain = runs.momentum < 1e-30  # so small a momentum rounds to none beside 1

    def fill(chosen: IntArray, cost: int, table: Callable[..., None], *fields: str) -> None:
        some = runs.take(chosen)
        part = losses[chosen]

        def work(rows: slice) -> None:
            table(*shared, *(getattr(some, field)[rows] for field in fields), *cut_up, part[rows])

        map_slices(work, chosen.size, cost=cost * problem.dim * pieces.lengths.size)
        losses[chosen] = part

    # Compiled code is loaded when it is first needed, not on import.
    if plain.any():
        from noisysgd.theory.moments.mode_kernels import sgd_table

        fill(np.flatnonzero(plain), 1, sgd_table, "learning_rate", "noise_factor")
    if (~plain).any():
        from noisysgd.theory.moments.mode_kernels import momentum_table

        fill(np.flatnonzero(~plain), 4, momentum_table, "learning_rate", "noise_factor", "momentum")


@mode_moments.register
def _(
    problem: NoisyQuadratic, rule: UpdateRule, run: OneRun, average: AveragePieces, records: int
) -> tuple[FloatArray, FloatArray]:
    from noisysgd.theory.moments.pair_kernels import mean_table, variance_table

    pull, fixed = problem.eigenvalues + rule.pull(), rule.fixed_point(problem)
    moving = np.flatnonzero(pull > 0)  # flat modes have no loss
    settings = (run.learning_rate, run.momentum, rule.look(run.momentum), *average.arrays)
    second, mean = np.zeros((moving.size, records)), np.zeros((records, moving.size))
    noise = run.noise_factor * problem.noise_diagonal[moving]
    # Without a penalty no mean is asked for, and variances that start from E θ² instead of Var θ are second moments.
    start = problem.initial_second_moment if rule.l2 is None else problem.initial_variance
    arguments: tuple[Any, ...] = (pull[moving], noise, start[moving], *settings, second)
    variance_table(*arguments)
    if rule.l2 is not None:
        arguments = (pull[moving], (problem.initial_mean - fixed)[moving], *settings, mean)
        mean_table(*arguments)
    results = np.zeros((2, records, problem.dim))
    with np.errstate(over="ignore"):
        results[0][:, moving], results[1][:, moving] = second.T + mean**2, mean
    return results[0], results[1]
