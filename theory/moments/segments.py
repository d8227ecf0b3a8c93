"""The interface between schedules and problems: one function, :func:`add_losses`, with a method per kind of problem.

Second moments obey an affine map that is constant within a segment of the schedule. Callers therefore cut the schedule
where the learning rate changes, where the batch size does, and where a loss is asked for. Each kind of problem advances
its moments from cut to cut, in a module of its own (``additive``, ``least_squares``) that registers its method here.
"""

from dataclasses import dataclass
from functools import singledispatch

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.schedule import Schedule


@dataclass(frozen=True)
class Runs:
    """C configurations as arrays of shape (C,); `noise_factor` is γ and `averaging` is β, 0 for none."""

    learning_rate: FloatArray
    noise_factor: FloatArray
    momentum: FloatArray
    averaging: FloatArray

    @property
    def fields(self) -> tuple[FloatArray, ...]:
        """Learning rates, noise factors, momenta and averaging, in this order."""
        return (self.learning_rate, self.noise_factor, self.momentum, self.averaging)

    def take(self, chosen: IntArray | npt.NDArray[np.bool_]) -> "Runs":
        """The chosen configurations, by index or by mask."""
        return Runs(*(each[chosen] for each in self.fields))


@dataclass(frozen=True)
class Pieces:
    """A schedule that is cut at the recorded steps too: `recorded` is the record that a piece ends in, or −1.

    `noise`, (P,), multiplies the noise factor of the run in each piece; it is 1 unless the batch size has a schedule.
    """

    lengths: IntArray
    multipliers: FloatArray
    recorded: IntArray
    noise: FloatArray

    @classmethod
    def of_one_batch_size(cls, lengths: IntArray, multipliers: FloatArray, recorded: IntArray) -> "Pieces":
        """Pieces in which the noise factor is that of the run."""
        return cls(lengths, multipliers, recorded, np.ones(lengths.size))

    @property
    def arrays(self) -> tuple[IntArray, FloatArray, FloatArray, IntArray]:
        """Lengths, multipliers, noise and records, as the compiled tables take them."""
        return self.lengths, self.multipliers, self.noise, self.recorded


@singledispatch
def add_losses(problem: Quadratic, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    """Add the expected losses of C runs after each recorded piece into `losses`, (C, R); one method per problem."""
    raise NotImplementedError(f"no exact moments for a {type(problem).__name__}; register some with add_losses")


def recorded_steps(at: ArrayLike, schedule: Schedule) -> FloatArray:
    """`at` as an array of steps within the schedule, checked: a scalar or (R,)."""
    steps = checks.real("at", at)
    inside = bool(np.all((steps >= 0) & (steps <= schedule.steps) & (steps == np.floor(steps)))) and steps.ndim <= 1
    inside = inside and steps.size > 0
    expected = f"whole steps in 0…{schedule.steps}, a scalar or a (R,) array"
    checks.require(inside, "at", expected, at, "Lengthen the schedule or record earlier.")
    return steps


def noise_schedule(problem: Quadratic, schedule: Schedule, batch_size: object) -> Schedule | None:
    """The noise factors γ(B) of a schedule of the batch size; ``None`` for batch sizes that are numbers.

    Raises
    ------
    ValueError
        If it has another number of steps than `schedule`, or batch sizes that cannot be.
    """
    if not isinstance(batch_size, Schedule):
        return None
    steps = batch_size.steps
    remedy = "Give the batch size as many steps as the learning rate."
    checks.require(steps == schedule.steps, "batch_size", f"a schedule of {schedule.steps} steps", steps, remedy)
    return Schedule(batch_size.lengths, problem.noise_factor(batch_size.multipliers))


def cut(schedule: Schedule, at: FloatArray, noise: Schedule | None = None) -> Pieces:
    """The schedule up to the last of the steps `at` (increasing), cut at each of them, and where `noise` changes."""
    # Pieces end where the multiplier changes or a record is due; nothing is needed beyond the last record.
    changes = [np.cumsum(each.lengths) for each in (schedule, noise) if each is not None]
    ends = np.unique(np.concatenate([*changes, at[at > 0].astype(np.int64)]))
    ends = ends[ends <= at.max()]
    lengths = np.diff(ends, prepend=0)
    # The first record at or after the end of each piece: a record of that piece only if it is at the end itself.
    column = np.searchsorted(at, ends)
    recorded = np.where(at[np.minimum(column, at.size - 1)] == ends, column, -1)
    multipliers, factors = (np.ones(ends.size) if each is None else each.at(ends - 1) for each in (schedule, noise))
    return Pieces(lengths, np.ascontiguousarray(multipliers), recorded.astype(np.int64), np.ascontiguousarray(factors))
