"""Windows: the steps that a kernel takes in one call, and how a schedule is cut into them.

Between two windows a simulation can be cancelled, the losses of the one are handed on, and replicas that have all
diverged are followed no further. Where windows begin and end never changes a bit of a result.
"""

import bisect
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.schedules.schedule import Schedule

WINDOW_STEPS = 1024
"""Most steps of a window, CPU or GPU. It bounds what the losses of a window take: 1 MiB for a tile of 128 replicas."""

WINDOW_WORK = 2**25
"""Most work of a window on the CPU: updates of one coordinate of one replica, or products where an update takes many.

About a tenth of a second, after which it can be cancelled.
"""


class Cancelled(Exception):  # noqa: N818 — not an error: the caller asked for it
    """Raised inside a job whose result nobody waits for any more."""


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive steps that a kernel takes in one call.

    Attributes
    ----------
    step : int
        The first of them.
    rates : (steps,) array
        Learning rate of each step.
    slots : (steps,) array of int
        The window's record that is taken after each step, counted from 0; −1 where none is.
    records : int
        Records taken in this window.
    records_left : int
        Records taken in this window and all that follow.
    """

    step: int
    rates: FloatArray
    slots: IntArray
    records: int
    records_left: int


def window_length(step_work: int, window_work: int = WINDOW_WORK) -> int:
    """Steps of a window, given the work of one step and the most work of a window.

    >>> window_length(2**23), window_length(2**30), window_length(1)
    (4, 1, 1024)
    """
    return min(max(window_work // max(step_work, 1), 1), WINDOW_STEPS)


def windows(
    schedule: Schedule,
    record: IntArray,
    learning_rate: float,
    length: int,
    stop: threading.Event | None = None,
    noise: Schedule | None = None,
) -> Iterator[Window]:
    """Cut a schedule into windows of at most `length` steps, in each of which `noise`, if there is one, is constant.

    Raises `Cancelled` instead of the next one once `stop` is set.
    """
    total = schedule.steps
    changes = [*(() if noise is None else noise.boundaries.tolist()), total]
    end = 0
    while end < total:
        if stop is not None and stop.is_set():
            raise Cancelled
        # One after the other: a list of the windows of very many steps would itself take seconds, and the memory.
        step, end = end, (end // length + 1) * length
        end = min(end, changes[bisect.bisect_right(changes, step)])
        steps = np.arange(step, end)
        # A learning rate that overflows makes the run diverge, which its losses say: it is no reason to warn.
        with np.errstate(over="ignore"):
            rates = learning_rate * schedule.at(steps)
        slots = record_slots(record, steps)
        yield Window(step, rates, slots, int(slots.max()) + 1, int(np.count_nonzero(record > step)))


def record_slots(record: IntArray, steps: IntArray) -> IntArray:
    """For each update in `steps`, the window's record that is taken after it, counted from 0; −1 for none.

    >>> record_slots(np.array([0, 3, 4, 9]), np.arange(2, 6))
    array([ 0,  1, -1, -1])
    """
    # Record s is the state after s updates, so that the update at step s − 1 makes it.
    first, beyond = np.searchsorted(record, [steps[0] + 1, steps[-1] + 2])
    slots = np.full(steps.size, -1)
    slots[record[first:beyond] - 1 - steps[0]] = np.arange(beyond - first)
    return slots
