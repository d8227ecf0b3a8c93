"""Exact theory of SGD and heavy ball on noisy quadratics: no sampling, milliseconds.

Start with :func:`power_law` or :class:`NoisyQuadratic`, a budget, and :func:`regimes`.
"""

from noisysgd.theory.budget import Budget, EpochBudget, StepBudget
from noisysgd.theory.moments import expected_loss, loss_curve
from noisysgd.theory.optimal import optimal_learning_rate
from noisysgd.theory.optimum import optimum
from noisysgd.theory.predict import predict_sweep
from noisysgd.theory.problem import NoisyQuadratic, power_law
from noisysgd.theory.regimes import regimes
from noisysgd.theory.schedule import Schedule, constant, half_then_decay, initial_to_final, piecewise, warmup
from noisysgd.theory.stability import critical_learning_rate
from noisysgd.theory.sweep import (
    check_sweep,
    load_sweep,
    powers_of_two,
    save_sweep,
    sweep_from_records,
)
from noisysgd.theory.temperature import effective_learning_rate, temperature

__all__ = [
    "Budget",
    "EpochBudget",
    "NoisyQuadratic",
    "Schedule",
    "StepBudget",
    "check_sweep",
    "constant",
    "critical_learning_rate",
    "effective_learning_rate",
    "expected_loss",
    "half_then_decay",
    "initial_to_final",
    "load_sweep",
    "loss_curve",
    "optimal_learning_rate",
    "optimum",
    "piecewise",
    "power_law",
    "powers_of_two",
    "predict_sweep",
    "regimes",
    "save_sweep",
    "sweep_from_records",
    "temperature",
    "warmup",
]
