"""The family of quadratics that is fitted: power laws for the descent and for the noise, up to a largest curvature.

The excess loss per e-fold of curvature λ is A λ^α at the start, so that without noise it falls as S^−α in the sum of
learning rates S. Each step adds noise worth ε² γ C λ^β per e-fold, times 1 − f + f · L/L₀ at an excess loss of L: f = 0
is additive noise, f = 1 noise proportional to the excess loss. Both laws end at λ_max.
"""

import math
from dataclasses import dataclass

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic

MODES = 48
"""Curvatures in a problem, equally spaced on a logarithmic scale: about three per decade."""
SLOWEST = 1e-4
"""The smallest curvature moves by this share in the longest of the runs that are fitted; the rest is in the floor."""
NEXT_TO_NOTHING = 1e-12
"""Share of the loss and of the noise that a mode has whose only purpose is to be unstable."""


@dataclass(frozen=True)
class Reference:
    """Where amplitudes are stated: within the measured runs, where they depend least on the exponents.

    `progress` is a sum of effective learning rates, `temperature` is γε/(1−m) of a run at its highest rate, and `loss`
    the excess loss L₀. `furthest` is the largest sum of effective learning rates of a run.
    """

    progress: float
    temperature: float
    loss: float
    furthest: float


@dataclass(frozen=True)
class PowerLaws:
    """One member of the family, by numbers that mean the same in all of it.

    Parameters
    ----------
    excess : float
        Excess loss A Γ(α) (2S)^−α that descent without noise leaves at the reference progress.
    exponent : float
        α > 0.
    noise : float
        Loss that noise of the strength it has at an excess loss of L₀ keeps up at the reference temperature T, in the
        limit of small rates: ½ T ∫ C λ^(β−1) dλ/λ.
    noise_exponent : float
        β.
    largest_eigenvalue : float
        λ_max.
    proportional_share : float
        f.
    """

    excess: float
    exponent: float
    noise: float
    noise_exponent: float
    largest_eigenvalue: float
    proportional_share: float

    def modes(self, reference: Reference) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Curvatures, and per curvature the loss at the start and the noise C λ^β, each times its share of e-folds."""
        depth = np.log(self.largest_eigenvalue * reference.furthest / SLOWEST)
        logs = np.log(self.largest_eigenvalue) - np.linspace(0.0, depth, MODES)
        # The trapezoidal rule; below the last curvature the integrand has died out, or does not move.
        width = np.full(MODES, depth / (MODES - 1))
        width[0] *= 0.5
        scale = np.log(self.excess) + self.exponent * np.log(2.0 * reference.progress) - math.lgamma(self.exponent)
        start = np.exp(scale + self.exponent * logs) * width
        shape = np.exp((self.noise_exponent - 1.0) * (logs - logs[0])) * width
        noise = 2.0 * self.noise / reference.temperature * shape / shape.sum() * np.exp(logs)
        return np.exp(logs), start, noise

    def noise_law(self, reference: Reference) -> tuple[float, float]:
        """Noise as a constant plus a factor times the excess loss: 1 − f and f/L₀."""
        return 1.0 - self.proportional_share, self.proportional_share / reference.loss

    def problem(self, reference: Reference, steepest: float = 0.0) -> Quadratic:
        """The quadratic itself: a NoisyQuadratic for additive noise, else LeastSquares of kurtosis 2.

        With a curvature `steepest` beyond λ_max it has one more mode there, of next to no loss and noise: all that it
        does is to make larger learning rates than 2(1+m)/steepest unstable.
        """
        eigenvalues, start, noise = self.modes(reference)
        if steepest > eigenvalues[0]:
            traces = (steepest, NEXT_TO_NOTHING * start.max(), NEXT_TO_NOTHING * noise.max())
            eigenvalues, start, noise = (
                np.append(t, a) for t, a in zip(traces, (eigenvalues, start, noise), strict=True)
            )
        constant, feedback = self.noise_law(reference)
        if feedback == 0.0:
            return NoisyQuadratic(eigenvalues, 2.0 * noise / eigenvalues, 0.0, 2.0 * start / eigenvalues)
        # There the noise of a mode is λ(2L + σ²), so that the number of modes sets how much of it there is.
        weights = noise * feedback / eigenvalues**2
        variance = 2.0 * start / (weights * eigenvalues)
        return LeastSquares(eigenvalues, 2.0 * constant / feedback, 0.0, variance, weights=weights, kurtosis=2.0)
