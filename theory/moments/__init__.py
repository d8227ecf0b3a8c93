"""Exact moments of the parameters after any number of steps: losses, means, covariances."""

from noisysgd.theory.moments import additive, least_squares  # noqa: F401  each registers how the moments of its problem advance
from noisysgd.theory.moments.losses import expected_loss, loss_curve
from noisysgd.theory.moments.moment_map import second_moment_map, spectral_radius
from noisysgd.theory.moments.parameter_moments import covariance, expected_parameters

__all__ = [
    "covariance",
    "expected_loss",
    "expected_parameters",
    "loss_curve",
    "second_moment_map",
    "spectral_radius",
]
