"""What a problem has to answer so that its loss can be followed: one method, :func:`add_losses`.

Second moments obey an affine map that is constant within a segment of the schedule. Callers therefore cut the schedule
where the learning rate changes and where a loss is asked for, and each kind of problem advances its moments from cut to
cut, in a file of its own (``additive``, ``least_squares``) that registers its method here.
"""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.schedule import Schedule


@dataclass(frozen=True)
class Runs:
    """Configurations as flat arrays of one length C: learning rate, factor of the noise, momentum, averaging."""

    learning_rate: FloatArray
    noise_factor: FloatArray
    momentum: FloatArray
    averaging: FloatArray

    def take(self, chosen: Any) -> "Runs":
        """Some of them."""
        return Runs(
            self.learning_rate[chosen], self.noise_factor[chosen], self.momentum[chosen], self.averaging[chosen]
        )


@dataclass(frozen=True)
class Pieces:
    """A schedule cut at the recorded steps too: lengths, multipliers, and the record each piece ends in, or −1."""

    lengths: IntArray
    multipliers: FloatArray
    recorded: IntArray


@singledispatch
def add_losses(problem: Quadratic, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    """Add the expected losses of C runs after each recorded piece into `losses`, (C, R); one method per problem."""
    raise NotImplementedError(f"no exact moments for a {type(problem).__name__}; register some with add_losses")


def recorded_steps(at: Any, schedule: Schedule) -> FloatArray:
    """`at` as an array of steps within the schedule."""
    steps = checks.real("at", at)
    inside = bool(np.all((steps >= 0) & (steps <= schedule.steps) & (steps == np.floor(steps)))) and steps.ndim <= 1
    inside = inside and steps.size > 0
    expected = f"whole steps in 0…{schedule.steps}, a scalar or a (R,) array"
    checks.require(inside, "at", expected, at, "Lengthen the schedule or record earlier.")
    return steps


def cut(schedule: Schedule, at: FloatArray) -> Pieces:
    """The schedule up to the last of the steps `at` (increasing), cut at each of them."""
    ends = np.unique(np.concatenate([np.cumsum(schedule.lengths), at[at > 0].astype(np.int64)]))
    ends = ends[ends <= at.max()]
    lengths = np.diff(ends, prepend=0)
    column = np.searchsorted(at, ends)
    recorded = np.where(at[np.minimum(column, at.size - 1)] == ends, column, -1)
    return Pieces(lengths, np.ascontiguousarray(schedule.at(ends - 1)), recorded.astype(np.int64))
