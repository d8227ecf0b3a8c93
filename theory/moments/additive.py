"""Losses under additive noise: modes are independent, and a segment costs each one power of its step matrix.

The compiled code is in ``mode_kernels`` (moments of θ and u) and ``pair_kernels`` (those of moving averages of θ).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.parallel import map_slices
from noisysgd.theory.moments.segments import Pieces, Runs, add_losses
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic


@add_losses.register
def _(problem: NoisyQuadratic, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    shared = (
        problem.eigenvalues,
        0.5 * problem.weights * problem.eigenvalues,
        np.ascontiguousarray(problem.noise_diagonal),
        problem.initial_second_moment,
    )
    cut_up = (pieces.lengths, pieces.multipliers, pieces.recorded)
    averaged = runs.averaging > 0
    plain = ~averaged & (runs.momentum < 1e-30)  # so small a momentum rounds to none beside 1

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
    if (~plain & ~averaged).any():
        from noisysgd.theory.moments.mode_kernels import momentum_table

        fields = ("learning_rate", "noise_factor", "momentum")
        fill(np.flatnonzero(~plain & ~averaged), 4, momentum_table, *fields)
    if averaged.any():
        _add_averaged(problem, np.flatnonzero(averaged), runs, pieces, losses)


def _add_averaged(problem: NoisyQuadratic, chosen: IntArray, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    """Add the losses of moving averages, for the configurations `chosen`."""
    from noisysgd.theory.moments.pair_kernels import variance_table

    curved = problem.eigenvalues > 0  # flat modes have no loss
    half = (0.5 * problem.weights * problem.eigenvalues)[curved]
    eigenvalues, noise, start = (
        array[curved] for array in (problem.eigenvalues, problem.noise_diagonal, problem.initial_second_moment)
    )
    cut_up = (pieces.lengths, pieces.multipliers, pieces.recorded)

    def work(rows: slice) -> None:
        for c in chosen[rows]:
            settings = (runs.learning_rate[c], runs.momentum[c], runs.averaging[c])
            # Started from E θ² instead of Var θ, variances are second moments.
            moments = np.zeros((half.size, losses.shape[1]))
            arguments: list[Any] = [eigenvalues, runs.noise_factor[c] * noise, start, *settings, *cut_up, moments]
            variance_table(*arguments)
            losses[c] += half @ moments

    map_slices(work, chosen.size, cost=100 * problem.dim * pieces.lengths.size)
