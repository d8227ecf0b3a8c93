"""Quadratic problems: curvature, gradient noise and start, with named spectra."""

from noisysgd.theory.problems.l2 import L2
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import Compressed, NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.problems.spectra import marchenko_pastur, measured_spectrum, power_law, source_capacity, two_scale

__all__ = [
    "L2",
    "Compressed",
    "LeastSquares",
    "NoisyQuadratic",
    "Quadratic",
    "marchenko_pastur",
    "measured_spectrum",
    "power_law",
    "source_capacity",
    "two_scale",
]
