"""Learning-rate schedules, compute budgets, and the effective learning rate and temperature of a configuration."""

from noisysgd.theory.schedules.budget import Budget, EpochBudget, StepBudget, UnlimitedBudget
from noisysgd.theory.schedules.effective_rate import effective_learning_rate, temperature
from noisysgd.theory.schedules.schedule import Schedule, constant, half_then_decay, initial_to_final, piecewise, warmup

__all__ = [
    "Budget",
    "EpochBudget",
    "Schedule",
    "StepBudget",
    "UnlimitedBudget",
    "constant",
    "effective_learning_rate",
    "half_then_decay",
    "initial_to_final",
    "piecewise",
    "temperature",
    "warmup",
]
