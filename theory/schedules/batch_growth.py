"""Schedules of the batch size: growing the batch instead of decaying the learning rate (Smith et al. 2018).

A schedule of the batch size is a :class:`Schedule` whose multipliers are batch sizes. It goes with one of the learning
rate, of as many steps.
"""

from typing import NamedTuple

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.schedules.schedule import Schedule

MOST_EXAMPLES = 2**53
"""In a batch: the whole numbers that floats hold exactly."""


class BatchGrowth(NamedTuple):
    """Schedules of the learning rate and of the batch size, of the same number of steps."""

    schedule: Schedule
    batch_size: Schedule


def grow_batch(schedule: Schedule, batch_size: int, *, largest: float = np.inf, multiple_of: int = 1) -> BatchGrowth:
    """The schedule that increases the batch where `schedule` decays the learning rate.

    Wherever the multiplier is k, the batch size becomes B/k, or as near to it as it may be, and the learning rate kε is
    raised by the same factor. So the temperature is what it was at every moment, and so is the number of examples;
    steps are as many times fewer and larger. In the limit of small learning rates the loss is then that of the decaying
    learning rate, at the end and all along. S. Smith et al. (2018, arXiv 1711.00489) trained networks so.

    Parameters
    ----------
    schedule : Schedule
        Of the learning rate, for a constant batch size. Multipliers above 1 shrink the batch.
    batch_size : int
        The batch size B where the multiplier is 1.
    largest : float
        Where B/m would be larger, the batch has this size and the learning rate decays for the rest.
    multiple_of : int
        Batch sizes are multiples of this number, such as the size of ghost batches: the nearest ones, at least one of
        them. The learning rate makes up for rounding.

    Returns
    -------
    BatchGrowth
        ``schedule`` and ``batch_size``, also as a tuple. A segment of n steps becomes one of n·B/B′ steps; ends are
        rounded to whole steps, each by itself, and segments that shrink to nothing are left out.

    Raises
    ------
    ValueError
        For a multiplier of 0, a batch size that is no multiple of `multiple_of`, or a `largest` below it.

    Examples
    --------
    >>> from noisysgd import theory
    >>> decaying = theory.piecewise([100, 100], [1.0, 0.25])
    >>> rates, sizes = grow_batch(decaying, 16)
    >>> rates.multipliers, sizes.multipliers, sizes.lengths
    (array([1.]), array([16., 64.]), array([100,  25]))
    >>> rates, sizes = grow_batch(decaying, 16, largest=32)
    >>> rates.multipliers, sizes.multipliers
    (array([1. , 0.5]), array([16., 32.]))
    """
    checks.instance("schedule", schedule, Schedule, remedy="Make one with theory.half_then_decay(steps).")
    size = checks.integer(
        "batch_size", batch_size, 1, maximum=MOST_EXAMPLES, remedy="A batch has at least one example."
    )
    group = checks.integer("multiple_of", multiple_of, 1, maximum=MOST_EXAMPLES, remedy="Use 1 for any batch size.")
    divides = size % group == 0
    checks.require(divides, "batch_size", f"a multiple of {group}", batch_size, "Change one of the two.")
    most = checks.scalar("largest", largest)
    checks.require(most >= size, "largest", f"at least the batch size {size}", largest, "Batches grow.")
    positive = bool(np.all(schedule.multipliers > 0))
    remedy = "No batch is so large that it has no noise: end the schedule before, or at a positive multiplier."
    checks.require(positive, "schedule", "positive multipliers", schedule.multipliers.min(), remedy)
    wanted = np.minimum(size / schedule.multipliers, most)
    sizes = np.maximum(1.0, np.floor(np.minimum(wanted / group + 0.5, most / group))) * group
    # Multipliers times sizes stay what they were times B: the temperature.
    rates = schedule.multipliers * sizes / size
    ends = np.rint(np.cumsum(schedule.lengths * size / sizes))
    ends[-1] = max(1.0, ends[-1])
    lengths = np.diff(ends, prepend=0.0)
    return BatchGrowth(Schedule(lengths, rates), Schedule(lengths, sizes))
