"""Exact theory of SGD and heavy ball on quadratics: no sampling, milliseconds.

Start with :func:`power_law` or :class:`NoisyQuadratic`, a budget, and :func:`regimes`; ``docs/theory.md`` lists the
rest by formula.
"""

import importlib
import warnings
from typing import Any

from noisysgd.theory.fits import (
    DivergedRun,
    FittedParameter,
    LawEvidence,
    MeasuredCurve,
    QuadraticFit,
    fit_quadratic,
)
from noisysgd.theory.limits import (
    FluctuationDissipation,
    critical_learning_rate,
    diffusion_curve,
    diffusion_loss,
    fluctuation_dissipation,
    sde_stationary_covariance,
    stationary_covariance,
    stationary_loss,
    svag_coefficients,
    svag_loss,
    weak_error,
)
from noisysgd.theory.moments import (
    covariance,
    expected_loss,
    expected_parameters,
    loss_curve,
    second_moment_map,
    spectral_radius,
)
from noisysgd.theory.optima import (
    InitialFinal,
    fastest_on_grid,
    minimum_steps,
    optimal_initial_final,
    optimal_learning_rate,
    optimal_schedule,
    steps_examples_tradeoff,
)
from noisysgd.theory.passage import steps_to_target
from noisysgd.theory.problems import (
    L2,
    Compressed,
    LeastSquares,
    NoisyQuadratic,
    Quadratic,
    marchenko_pastur,
    measured_spectrum,
    power_law,
    source_capacity,
    two_scale,
)
from noisysgd.theory.scaling import (
    CornerFit,
    LinearWithCap,
    MaBassilyBelkin,
    McCandlish,
    NoiseScaleEstimate,
    NoiseScales,
    NoisyQuadraticRule,
    ScalingRule,
    SharpCorner,
    SquareRoot,
    compare_rules,
    fit_corner,
    interpolation_batch_size,
    linear_scaling_exponent,
    noise_scales,
    optima_scaling,
    regimes,
    steps_and_examples,
    two_batch_noise_scale,
)
from noisysgd.theory.schedules import (
    BatchGrowth,
    Budget,
    EpochBudget,
    Schedule,
    StepBudget,
    UnlimitedBudget,
    constant,
    cosine,
    effective_learning_rate,
    grow_batch,
    half_then_decay,
    initial_to_final,
    inverse_sqrt,
    linear,
    per_step,
    piecewise,
    temperature,
    warmup,
    warmup_stable_decay,
)
from noisysgd.theory.sweeps import (
    check_sweep,
    join_sweeps,
    load_sweep,
    optimum,
    powers_of_two,
    predict_sweep,
    save_sweep,
    sweep_from_records,
    sweep_from_table,
)

__all__ = [
    "L2",
    "BatchGrowth",
    "Budget",
    "Compressed",
    "CornerFit",
    "DivergedRun",
    "EpochBudget",
    "FittedParameter",
    "FluctuationDissipation",
    "InitialFinal",
    "LawEvidence",
    "LeastSquares",
    "LinearWithCap",
    "MaBassilyBelkin",
    "McCandlish",
    "MeasuredCurve",
    "NoiseScaleEstimate",
    "NoiseScales",
    "NoisyQuadratic",
    "NoisyQuadraticRule",
    "Quadratic",
    "QuadraticFit",
    "ScalingRule",
    "Schedule",
    "SharpCorner",
    "SquareRoot",
    "StepBudget",
    "UnlimitedBudget",
    "check_sweep",
    "compare_rules",
    "constant",
    "cosine",
    "covariance",
    "critical_learning_rate",
    "diffusion_curve",
    "diffusion_loss",
    "effective_learning_rate",
    "expected_loss",
    "expected_parameters",
    "fastest_on_grid",
    "fit_corner",
    "fit_quadratic",
    "fluctuation_dissipation",
    "grow_batch",
    "half_then_decay",
    "initial_to_final",
    "interpolation_batch_size",
    "inverse_sqrt",
    "join_sweeps",
    "linear",
    "linear_scaling_exponent",
    "load_sweep",
    "loss_curve",
    "marchenko_pastur",
    "measured_spectrum",
    "minimum_steps",
    "noise_scales",
    "optima_scaling",
    "optimal_initial_final",
    "optimal_learning_rate",
    "optimal_schedule",
    "optimum",
    "per_step",
    "piecewise",
    "power_law",
    "powers_of_two",
    "predict_sweep",
    "regimes",
    "save_sweep",
    "sde_stationary_covariance",
    "second_moment_map",
    "source_capacity",
    "spectral_radius",
    "stationary_covariance",
    "stationary_loss",
    "steps_and_examples",
    "steps_examples_tradeoff",
    "steps_to_target",
    "svag_coefficients",
    "svag_loss",
    "sweep_from_records",
    "sweep_from_table",
    "temperature",
    "two_batch_noise_scale",
    "two_scale",
    "warmup",
    "warmup_stable_decay",
    "weak_error",
]


_RENAMED = {"SharpnessFit": "CornerFit", "fit_sharpness": "fit_corner"}
"""Former public names, which still work, and what they are called now."""


def __getattr__(name: str) -> Any:
    if name in ("plots", "testing"):  # which need matplotlib and Hypothesis
        return importlib.import_module(f"{__name__}.{name}")
    if name in _RENAMED:
        warnings.warn(f"theory.{name} is now called theory.{_RENAMED[name]}.", DeprecationWarning, stacklevel=2)
        return globals()[_RENAMED[name]]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "plots", "testing"])
