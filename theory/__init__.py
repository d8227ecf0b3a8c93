"""Exact theory of SGD and heavy ball on quadratics: no sampling, milliseconds.

Start with :func:`power_law` or :class:`NoisyQuadratic`, a budget, and :func:`regimes`; ``docs/theory.md`` lists the
rest by formula.
"""

import importlib
from typing import Any

from noisysgd.theory.budget import Budget, EpochBudget, StepBudget, UnlimitedBudget
from noisysgd.theory.covariance import covariance, expected_parameters
from noisysgd.theory.diffusion import diffusion_curve, diffusion_loss, weak_error
from noisysgd.theory.least_squares import LeastSquares
from noisysgd.theory.moment_map import second_moment_map, spectral_radius
from noisysgd.theory.moments import expected_loss, loss_curve
from noisysgd.theory.noise_scale import (
    NoiseScaleEstimate,
    NoiseScales,
    interpolation_batch_size,
    noise_scales,
    steps_and_examples,
    two_batch_noise_scale,
)
from noisysgd.theory.optimal import optimal_learning_rate
from noisysgd.theory.optimal_schedule import InitialFinal, optimal_initial_final, optimal_schedule
from noisysgd.theory.optimum import optimum
from noisysgd.theory.predict import predict_sweep
from noisysgd.theory.problem import NoisyQuadratic
from noisysgd.theory.quadratic import Quadratic
from noisysgd.theory.regimes import regimes
from noisysgd.theory.scaling_rules import (
    LinearWithCap,
    MaBassilyBelkin,
    McCandlish,
    NoisyQuadraticRule,
    ScalingRule,
    SquareRoot,
    compare_rules,
    linear_scaling_exponent,
)
from noisysgd.theory.schedule import Schedule, constant, half_then_decay, initial_to_final, piecewise, warmup
from noisysgd.theory.sharpness import SharpCorner, SharpnessFit, fit_sharpness
from noisysgd.theory.spectra import marchenko_pastur, measured_spectrum, power_law, two_scale
from noisysgd.theory.stability import critical_learning_rate
from noisysgd.theory.stationary import (
    FluctuationDissipation,
    fluctuation_dissipation,
    sde_stationary_covariance,
    stationary_covariance,
    stationary_loss,
)
from noisysgd.theory.steps_to_target import fastest_on_grid, minimum_steps, steps_examples_tradeoff, steps_to_target
from noisysgd.theory.svag import svag_coefficients, svag_loss
from noisysgd.theory.sweep import check_sweep, load_sweep, powers_of_two, save_sweep, sweep_from_records
from noisysgd.theory.temperature import effective_learning_rate, temperature

__all__ = [
    "Budget",
    "EpochBudget",
    "FluctuationDissipation",
    "InitialFinal",
    "LeastSquares",
    "LinearWithCap",
    "MaBassilyBelkin",
    "McCandlish",
    "NoiseScaleEstimate",
    "NoiseScales",
    "NoisyQuadratic",
    "NoisyQuadraticRule",
    "Quadratic",
    "ScalingRule",
    "Schedule",
    "SharpCorner",
    "SharpnessFit",
    "SquareRoot",
    "StepBudget",
    "UnlimitedBudget",
    "check_sweep",
    "compare_rules",
    "constant",
    "covariance",
    "critical_learning_rate",
    "diffusion_curve",
    "diffusion_loss",
    "effective_learning_rate",
    "expected_loss",
    "expected_parameters",
    "fastest_on_grid",
    "fit_sharpness",
    "fluctuation_dissipation",
    "half_then_decay",
    "initial_to_final",
    "interpolation_batch_size",
    "linear_scaling_exponent",
    "load_sweep",
    "loss_curve",
    "marchenko_pastur",
    "measured_spectrum",
    "minimum_steps",
    "noise_scales",
    "optimal_initial_final",
    "optimal_learning_rate",
    "optimal_schedule",
    "optimum",
    "piecewise",
    "power_law",
    "powers_of_two",
    "predict_sweep",
    "regimes",
    "save_sweep",
    "sde_stationary_covariance",
    "second_moment_map",
    "spectral_radius",
    "stationary_covariance",
    "stationary_loss",
    "steps_and_examples",
    "steps_examples_tradeoff",
    "steps_to_target",
    "svag_coefficients",
    "svag_loss",
    "sweep_from_records",
    "temperature",
    "two_batch_noise_scale",
    "two_scale",
    "warmup",
    "weak_error",
]


def __getattr__(name: str) -> Any:
    if name in ("plots", "testing"):  # which need matplotlib and Hypothesis
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "plots", "testing"])
