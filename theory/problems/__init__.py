"""Quadratic problems: curvature, gradient noise and start, with named spectra."""

from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.problems.spectra import marchenko_pastur, measured_spectrum, power_law, two_scale

__all__ = [
    "LeastSquares",
    "NoisyQuadratic",
    "Quadratic",
    "marchenko_pastur",
    "measured_spectrum",
    "power_law",
    "two_scale",
]
