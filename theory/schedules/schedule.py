"""Learning-rate schedules: piecewise-constant multipliers of one learning rate."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.describing import brief
from noisysgd.theory.common.values import ByValue

DROPS = 10
"""Number of drops in the paper's schedule: after half of the budget, one every twentieth of it."""
MOST_SEGMENTS = 1_000_000
"""Of a schedule that is made from a number: each is a constant learning rate that every computation goes through."""


@dataclass(frozen=True, eq=False, init=False)
class Schedule(ByValue):
    """Segment after segment, ``multipliers[s]`` times the learning rate for ``lengths[s]`` steps.

    Usually made by :func:`half_then_decay`, :func:`constant` or :func:`piecewise`. Segments without steps are dropped,
    and neighbours with equal multipliers are joined. The arrays are read-only. Schedules are equal if all their steps
    are.

    Parameters
    ----------
    lengths : (S,) array of int
        Steps of each segment.
    multipliers : (S,) array
        Multiplier of the learning rate in each segment, ≥ 0 and finite.

    Raises
    ------
    ValueError
        For lengths that are not whole, fewer than one step in all, negative multipliers, or shapes that do not match.

    Examples
    --------
    >>> schedule = Schedule([50, 50], [1.0, 0.1])
    >>> schedule.steps
    100
    >>> schedule.at([0, 49, 50])
    array([1. , 1. , 0.1])
    """

    lengths: IntArray
    multipliers: FloatArray

    __repr__ = brief

    @ignoring_underflow
    def __init__(self, lengths: ArrayLike, multipliers: ArrayLike) -> None:
        given = checks.at_least("lengths", lengths, 0.0, remedy="Give each segment's number of steps.")
        factors = checks.at_least("multipliers", multipliers, 0.0, remedy="Give one multiplier ≥ 0 per segment.")
        match = given.ndim == 1 and given.shape == factors.shape
        got = f"{given.shape} and {factors.shape}"
        checks.require(match, "lengths, multipliers", "two (S,) arrays of one size", got, "Pair them up.")
        whole = bool(np.all(given == np.floor(given))) and float(given.sum()) < 2.0**53
        checks.require(whole, "lengths", "whole numbers of steps", lengths, "Round them.")
        starts = np.flatnonzero(given > 0)
        checks.require(starts.size > 0, "lengths", "at least one step", lengths, "Give a longer schedule.")
        # Multipliers are not negative, so that the −1 before them makes the first segment differ from what it follows.
        new = np.flatnonzero(np.diff(factors[starts], prepend=-1.0) != 0)
        merged = np.add.reduceat(given[starts], new).astype(np.int64)
        self._freeze(lengths=merged, multipliers=factors[starts][new])

    @property
    def steps(self) -> int:
        """Total number of steps."""
        return int(self.lengths.sum())

    @property
    def boundaries(self) -> IntArray:
        """First step of each segment but the first, shape (S−1,): the steps at which the learning rate changes."""
        return np.cumsum(self.lengths)[:-1]

    @ignoring_underflow
    def at(self, step: ArrayLike) -> FloatArray:
        """Multiplier in force at each `step` in 0…steps−1; an array of the shape of `step`."""
        step = checks.real("step", step)
        inside = bool(np.all((step >= 0) & (step < self.steps) & (step == np.floor(step))))
        checks.require(inside, "step", f"whole steps in 0…{self.steps - 1}", step, "Steps count from 0.")
        return np.asarray(self.multipliers[np.searchsorted(self.boundaries, step, side="right")])


ScheduleFamily = Callable[[int], Schedule]
"""A schedule for any number of steps, such as :func:`half_then_decay` or :func:`constant`."""


@ignoring_underflow
def constant(steps: int) -> Schedule:
    """The learning rate itself, for `steps` steps.

    >>> constant(5).multipliers
    array([1.])
    """
    return Schedule([_steps(steps)], [1.0])


@ignoring_underflow
def half_then_decay(steps: int, factor: float = 2.0, drops: int = DROPS) -> Schedule:
    """The paper's schedule: constant for half the steps, then divided `drops` times by `factor`.

    The k-th drop comes at step ⌊steps/2 + (k−1)·steps/(2·drops)⌋, k = 1…drops (section 4: every twentieth of training
    after half of it). With fewer than 2·drops steps some drops coincide, and their factors multiply.

    Raises
    ------
    ValueError
        If `steps` or `drops` is not a positive integer, or `factor` is not positive and finite.

    Examples
    --------
    >>> schedule = half_then_decay(9765)
    >>> schedule.boundaries
    array([4882, 5370, 5859, 6347, 6835, 7323, 7812, 8300, 8788, 9276])
    >>> float(schedule.multipliers[-1]) == 2.0**-10
    True
    """
    steps = _steps(steps)
    drops = checks.integer("drops", drops, 1, maximum=MOST_SEGMENTS, remedy="Use theory.constant for no drops.")
    factor = checks.scalar("factor", factor)
    checks.require(1e-30 < factor < 1e30, "factor", "a positive factor of sensible size", factor, "The paper's is 2.")
    # Integer arithmetic: steps/2 + (k−1)·steps/(2·drops) = steps·(drops + k − 1)/(2·drops), floored exactly.
    edges = np.array([steps * (drops + k) // (2 * drops) for k in range(drops)] + [steps], dtype=np.int64)
    return Schedule(np.diff(edges, prepend=0), factor ** -np.arange(drops + 1.0))


@ignoring_underflow
def initial_to_final(steps: int, initial: float, final: float) -> Schedule:
    """The shape of :func:`half_then_decay` with a multiplier that falls from `initial` to `final` (paper, section 7.1).

    Each of the 10 drops divides it by γ = (initial/final)^(1/10). At a learning rate of 1 the multipliers are the
    learning rates themselves.

    >>> initial_to_final(20, initial=0.4, final=0.1).multipliers[[0, -1]]
    array([0.4, 0.1])
    """
    first, last = checks.scalar("initial", initial), checks.scalar("final", final)
    for name, value in (("initial", first), ("final", last)):
        checks.require(0 < value < np.inf, name, "a positive, finite multiplier", value, "Pass a learning rate > 0.")
    shape = half_then_decay(_steps(steps), factor=(first / last) ** (1 / DROPS)) if first != last else constant(steps)
    return Schedule(shape.lengths, first * shape.multipliers)


@ignoring_underflow
def warmup(schedule: Schedule, steps: int, levels: int = 10) -> Schedule:
    """`schedule` after a warm-up of `steps` extra steps that rise to its first multiplier in `levels` equal levels.

    Linear warm-up (Goyal et al. 2017) as a staircase, so that the result stays piecewise constant.

    >>> warmup(constant(100), steps=10, levels=2).multipliers
    array([0.33333333, 0.66666667, 1.        ])
    """
    checks.instance("schedule", schedule, Schedule, remedy="Make one with theory.half_then_decay(steps).")
    steps = _steps(steps)
    levels = checks.integer("levels", levels, 1, maximum=MOST_SEGMENTS, remedy="A staircase has at least one level.")
    checks.require(levels <= steps, "levels", f"at most one level per step ({steps})", levels, "Warm up for longer.")
    edges = np.array([steps * level // levels for level in range(levels + 1)])
    rise = schedule.multipliers[0] * np.arange(1, levels + 1) / (levels + 1)
    return Schedule(
        np.concatenate([np.diff(edges), schedule.lengths]),
        np.concatenate([rise, schedule.multipliers]),
    )


@ignoring_underflow
def piecewise(lengths: ArrayLike, multipliers: ArrayLike) -> Schedule:
    """Any piecewise-constant schedule: ``multipliers[s]`` for ``lengths[s]`` steps.

    >>> piecewise([3, 0, 2, 5], [1.0, 9.0, 0.5, 0.5]).lengths
    array([3, 7])
    """
    return Schedule(lengths, multipliers)


def of_length(family: ScheduleFamily, steps: int) -> Schedule:
    """The schedule that a family gives for `steps` steps; a ``ValueError`` if it is none, or of another length."""
    remedy = "Pass a function of the number of steps, such as theory.half_then_decay, not a schedule."
    checks.require(callable(family), "schedule", "a function of the number of steps", family, remedy)
    schedule = family(steps)
    checks.instance("schedule(steps)", schedule, Schedule, remedy=remedy)
    fits = schedule.steps == steps
    remedy = "Use up the budget exactly: a warm-up of w steps goes before a schedule of steps − w."
    checks.require(fits, "schedule(steps)", f"a schedule of the budget's {steps} steps", schedule.steps, remedy)
    return schedule


def _steps(steps: ArrayLike) -> int:
    count = checks.integer("steps", steps, 1, remedy="A schedule has at least one step.")
    checks.require(count < 2**53, "steps", "fewer than 2⁵³", steps, "Shorten it.")
    return count
