"""What is best under a compute budget: learning rates, initial and final ones, whole schedules."""

from noisysgd.theory.optima.fewest_steps import fastest_on_grid, minimum_steps, steps_examples_tradeoff
from noisysgd.theory.optima.learning_rates import optimal_learning_rate
from noisysgd.theory.optima.schedules import InitialFinal, optimal_initial_final, optimal_schedule

__all__ = [
    "InitialFinal",
    "fastest_on_grid",
    "minimum_steps",
    "optimal_initial_final",
    "optimal_learning_rate",
    "optimal_schedule",
    "steps_examples_tradeoff",
]
