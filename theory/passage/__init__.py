"""First passages: the exact number of steps until the expected loss is down to a target."""

from noisysgd.theory.passage import additive, least_squares  # noqa: F401  each registers how its problem is searched
from noisysgd.theory.passage.target import steps_to_target

__all__ = ["steps_to_target"]
