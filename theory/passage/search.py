"""What is asked about first passages, what is known of them, and the generic function that finds them.

A *first passage* is the first step at which the expected loss is at most a target. ``additive`` and ``least_squares``
each register the :func:`search` for their kind of problem; ``target`` and ``optima.fewest_steps`` call it.
"""

from dataclasses import dataclass, fields
from functools import singledispatch
from typing import Self

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.problems.quadratic import Quadratic

LAST_STEP = 2.0**52
"""Last step that is searched. Steps are floats, and up to here counting one step further is exact."""
PENDING, REACHED, NEVER = 0, 1, 2
TINY = 1e-30
"""Momentum below this counts as none, as it does for the moments."""

Selection = slice | list[int] | IntArray | npt.NDArray[np.bool_]
"""Index of some of C configurations."""


@dataclass(frozen=True)
class Questions:
    """C configurations, as arrays of shape (C,).

    Attributes
    ----------
    targets, rates, momenta : (C,) array
        Target losses, learning rates and heavy-ball coefficients.
    factors : (C,) array
        Noise factors γ: the covariance of a minibatch gradient is γF.
    """

    targets: FloatArray
    rates: FloatArray
    factors: FloatArray
    momenta: FloatArray

    def take(self, chosen: Selection) -> Self:
        """The chosen configurations alone."""
        return type(self)(*(getattr(self, entry.name)[chosen] for entry in fields(self)))


@dataclass(frozen=True)
class Passages:
    """What is known about the first passages of C configurations; a search fills the arrays in place.

    Attributes
    ----------
    status : (C,) array of int
        PENDING, REACHED or NEVER.
    steps : (C,) array
        The first passage. While it is pending, the first step that has not been ruled out.
    losses : (C, 2) array
        The losses one step before the passage and at it; ``inf`` where not known.
    """

    status: IntArray
    steps: FloatArray
    losses: FloatArray

    @classmethod
    def unknown(cls, count: int) -> Self:
        """`count` configurations of which nothing is known yet: all are pending from step 0 on."""
        return cls(np.zeros(count, np.int64), np.zeros(count), np.full((count, 2), np.inf))

    def at(self, chosen: IntArray) -> Self:
        """A copy of the chosen entries."""
        return type(self)(self.status[chosen], self.steps[chosen], self.losses[chosen])

    def of(self, part: slice) -> Self:
        """A view of the entries in `part`: what is written to it is written here."""
        return type(self)(self.status[part], self.steps[part], self.losses[part])

    def settle(self, chosen: Selection, steps: float | FloatArray) -> None:
        """Record the first passages of the chosen configurations; ``inf`` means that they never pass."""
        self.status[chosen] = np.where(np.isinf(steps), NEVER, REACHED)
        self.steps[chosen] = steps

    def crossing(self, targets: FloatArray) -> FloatArray:
        """Times, shape (C,), at which log losses interpolated between two steps meet the targets; ``inf`` if never.

        Where the loss before the passage is not known, this is the whole number of steps.
        """
        before, at = self.losses.T
        known = (self.status == REACHED) & (before > targets) & (before < np.inf) & (at > 0) & (at < before)
        late = np.zeros(self.steps.size)
        late[known] = np.log(targets[known] / at[known]) / np.log(before[known] / at[known])
        return np.where(self.status == REACHED, self.steps - late, np.inf)


@singledispatch
def search(problem: Quadratic, asked: Questions, known: Passages, last: float) -> None:
    """Write to `known` every first passage up to the step `last`; one method for each kind of problem."""
    raise NotImplementedError(f"no first passages for a {type(problem).__name__}")


def settle_at_once(problem: Quadratic, asked: Questions, known: Passages) -> None:
    """Settle what needs no search: configurations that start at their target or below, and those that never move."""
    start = float(problem.initial_loss)
    there = (known.status == PENDING) & (asked.targets >= start)
    known.settle(there, 0.0)
    known.losses[there] = start
    known.settle((known.status == PENDING) & (asked.rates == 0), np.inf)
