"""Learning-rate schedules, compute budgets, and the effective learning rate and temperature of a configuration."""

from noisysgd.theory.schedules.batch_growth import BatchGrowth, grow_batch
from noisysgd.theory.schedules.budget import Budget, EpochBudget, StepBudget, UnlimitedBudget
from noisysgd.theory.schedules.effective_rate import effective_learning_rate, temperature
from noisysgd.theory.schedules.schedule import Schedule, constant, half_then_decay, initial_to_final, piecewise, warmup
from noisysgd.theory.schedules.shapes import cosine, inverse_sqrt, linear, per_step, warmup_stable_decay

__all__ = [
    "BatchGrowth",
    "Budget",
    "EpochBudget",
    "Schedule",
    "StepBudget",
    "UnlimitedBudget",
    "constant",
    "cosine",
    "effective_learning_rate",
    "grow_batch",
    "half_then_decay",
    "initial_to_final",
    "inverse_sqrt",
    "linear",
    "per_step",
    "piecewise",
    "temperature",
    "warmup",
    "warmup_stable_decay",
]
