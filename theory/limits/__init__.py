"""Limits of many steps (stability, stationary states) and of small ones (the diffusions that SGD tends to)."""

from noisysgd.theory.limits.diffusion import diffusion_curve, diffusion_loss, weak_error
from noisysgd.theory.limits.stability import critical_learning_rate
from noisysgd.theory.limits.stationary import (
    FluctuationDissipation,
    fluctuation_dissipation,
    sde_stationary_covariance,
    stationary_covariance,
    stationary_loss,
)
from noisysgd.theory.limits.svag import svag_coefficients, svag_loss

__all__ = [
    "FluctuationDissipation",
    "critical_learning_rate",
    "diffusion_curve",
    "diffusion_loss",
    "fluctuation_dissipation",
    "sde_stationary_covariance",
    "stationary_covariance",
    "stationary_loss",
    "svag_coefficients",
    "svag_loss",
    "weak_error",
]
