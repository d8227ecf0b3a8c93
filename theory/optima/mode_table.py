"""Losses of additive noise, roughly but at many learning rates, from a table of those of a single mode.

What n steps make of a mode depends on x = ελ alone, up to its scale: with g(x) and h(x) the losses of the mode λ = 1
that starts with E θ² = 1 without noise, and at θ = 0 with F = 1, the loss of a problem is Σ w (λ E θ₀² g(ελ) + F/λ
h(ελ)). So one table of g and h serves every mode and every learning rate, for the price of a few learning rates of a
long spectrum. It is even in √x, as the phases of heavy ball are, and interpolated linearly.
"""

from collections.abc import Callable

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.optima.robustness import LogFunction
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic

FINENESS = 8
"""Entries of the table for each learning rate asked for; these resolve the oscillations of the steepest mode."""


def rough_losses(problem: Quadratic, losses: Callable[[Quadratic, FloatArray], FloatArray]) -> LogFunction | None:
    """Nearly ``losses(problem, ·)``, of logarithms of learning rates that resolve the losses' oscillations.

    NaN where a moment overflows. None for a problem whose modes are coupled.
    """
    if not isinstance(problem, NoisyQuadratic):
        return None
    curved = problem.eigenvalues > 0
    eigenvalues, weights = problem.eigenvalues[curved], problem.weights[curved]
    start = weights * eigenvalues * problem.initial_second_moment[curved]
    noise = weights * problem.noise_diagonal[curved] / eigenvalues
    moving = NoisyQuadratic([1.0], 0.0, dataset_size=problem.dataset_size)
    driven = NoisyQuadratic([1.0], 1.0, initial_variance=0.0, dataset_size=problem.dataset_size)
    roots = np.sqrt(eigenvalues)

    def rough(log_rates: FloatArray) -> FloatArray:
        steepest = float(np.exp(0.5 * log_rates.max()) * roots.max())
        places = np.linspace(0.0, steepest, FINENESS * log_rates.size + 1)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            table = [losses(mode, 2.0 * np.log(places)) for mode in (moving, driven)]
            rows = (root * roots for root in np.exp(0.5 * log_rates))
            return np.array(
                [start @ np.interp(row, places, table[0]) + noise @ np.interp(row, places, table[1]) for row in rows]
            )

    return rough
