"""What is asked about first passages and what is known of them; each kind of problem adds the :func:`search` it needs.

``additive`` and ``least_squares`` register theirs here; ``target`` asks.
"""

from dataclasses import dataclass, fields
from functools import singledispatch
from typing import Any, Self

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.problems.quadratic import Quadratic

LAST_STEP = 2.0**52
"""Steps are floats, and one more than this is exact; later ones are never reached."""
PENDING, REACHED, NEVER = 0, 1, 2
TINY = 1e-30
"""Momentum below this is none, as for the moments."""


@dataclass(frozen=True)
class Questions:
    """Configurations as arrays of one length C: target, learning rate, factor of the noise, momentum."""

    targets: FloatArray
    rates: FloatArray
    factors: FloatArray
    momenta: FloatArray

    def take(self, chosen: Any) -> Self:
        """Some of them."""
        return type(self)(*(getattr(self, entry.name)[chosen] for entry in fields(self)))


@dataclass(frozen=True)
class Passages:
    """What is known about C configurations.

    Attributes
    ----------
    status : (C,) array of int
        PENDING, REACHED or NEVER.
    steps : (C,) array
        The passage; of a pending configuration, a step before which there is none.
    losses : (C, 2) array
        Just before the passage, ``inf`` if not known, and there.
    """

    status: IntArray
    steps: FloatArray
    losses: FloatArray

    @classmethod
    def unknown(cls, count: int) -> Self:
        """Nothing yet."""
        return cls(np.zeros(count, np.int64), np.zeros(count), np.full((count, 2), np.inf))

    def at(self, chosen: IntArray) -> Self:
        """A copy of some."""
        return type(self)(self.status[chosen], self.steps[chosen], self.losses[chosen])

    def of(self, part: slice) -> Self:
        """A view of some."""
        return type(self)(self.status[part], self.steps[part], self.losses[part])

    def settle(self, chosen: Any, steps: Any) -> None:
        """Some have passed there; infinite: never."""
        self.status[chosen] = np.where(np.isinf(steps), NEVER, REACHED)
        self.steps[chosen] = steps

    def crossing(self, targets: FloatArray) -> FloatArray:
        """When the losses meet the targets between two steps, by interpolating their logarithms."""
        before, at = self.losses.T
        known = (self.status == REACHED) & (before > targets) & (before < np.inf) & (at > 0) & (at < before)
        late = np.zeros(self.steps.size)
        late[known] = np.log(targets[known] / at[known]) / np.log(before[known] / at[known])
        return np.where(self.status == REACHED, self.steps - late, np.inf)


@singledispatch
def search(problem: Quadratic, asked: Questions, known: Passages, last: float) -> None:
    """Add to what is known all passages up to the step `last`; one method per problem."""
    raise NotImplementedError(f"no first passages for a {type(problem).__name__}")


def settle_at_once(problem: Quadratic, asked: Questions, known: Passages) -> None:
    """Configurations that start at their target or do not move."""
    start = float(problem.initial_loss)
    there = (known.status == PENDING) & (asked.targets >= start)
    known.settle(there, 0.0)
    known.losses[there] = start
    known.settle((known.status == PENDING) & (asked.rates == 0), np.inf)
