"""Long schedules in few pieces: neighbouring steps of nearly equal learning rate are advanced together."""

from dataclasses import dataclass

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.moments.segments import cut
from noisysgd.theory.schedules.schedule import Schedule

COARSE = 0.05
"""Relative change of the learning rate, and of the steps taken so far, within a piece."""


@dataclass(frozen=True)
class GroupedSteps:
    """A schedule in P pieces: steps in each, their mean learning rate, its change over the piece, and the record due.

    `changes` extrapolates the trend inside a piece to its two ends, 0 for a constant rate; `recorded` is the index of
    the loss that is asked for at the end of a piece, or −1.
    """

    lengths: IntArray
    rates: FloatArray
    changes: FloatArray
    recorded: IntArray


def grouped_steps(schedule: Schedule, learning_rate: float, at: IntArray, coarse: float = COARSE) -> GroupedSteps:
    """The steps up to the last of `at` (increasing, positive), grouped.

    A piece ends where a loss is asked for, and before the learning rate or the number of steps since the start (or
    since the last jump of the rate) has changed by the share `coarse`. Within a piece the rate counts as linear in the
    step, so that the error of what is computed from it is of the second order in `coarse`.
    """
    ends = np.unique(np.concatenate([at, _growing(schedule, int(at[-1]), coarse)]))
    pieces = cut(schedule, ends.astype(np.float64))
    rates = learning_rate * pieces.multipliers
    stops = np.cumsum(pieces.lengths)
    with np.errstate(divide="ignore"):
        level = np.floor(np.log(pieces.multipliers) / np.log1p(coarse))
    closed = np.isin(stops, ends)
    # A piece is a first one if the rate has reached another level, or if the one before it had to end.
    first = np.ones(stops.size, dtype=np.bool_)
    first[1:] = (level[1:] != level[:-1]) | closed[:-1]
    starts = np.flatnonzero(first)
    lengths = np.add.reduceat(pieces.lengths, starts)
    means = np.add.reduceat(pieces.lengths * rates, starts) / lengths
    # The trend by least squares: Σ (t − t̄) ε over Σ (t − t̄)² = n(n² − 1)/12, for the n steps t of a piece.
    group = np.cumsum(first) - 1
    middles = stops - 0.5 * pieces.lengths
    centres = (np.cumsum(lengths) - 0.5 * lengths)[group]
    moments = np.add.reduceat(pieces.lengths * (middles - centres) * (rates - means[group]), starts)
    last = np.append(starts[1:], stops.size) - 1
    column = np.minimum(np.searchsorted(at, stops[last]), at.size - 1)
    recorded = np.where(at[column] == stops[last], column, -1)
    changes = 12.0 * moments / np.maximum(lengths.astype(np.float64) ** 2 - 1.0, 1.0)
    return GroupedSteps(lengths, means, changes, recorded.astype(np.int64))


def _growing(schedule: Schedule, last: int, coarse: float) -> IntArray:
    """Steps up to `last` whose distances from the start, and from each jump of the rate, grow by the share `coarse`."""
    offsets = np.unique(np.ceil((1.0 + coarse) ** np.arange(np.log(last) / np.log1p(coarse) + 1)).astype(np.int64))
    before, after = schedule.multipliers[:-1], schedule.multipliers[1:]
    jumps = schedule.boundaries[np.maximum(before, after) > 1.2 * np.minimum(before, after)]
    # Where every step is a jump there is nothing to resolve between them.
    starts = np.concatenate([[0], jumps[np.diff(jumps, append=last) > 20]])
    spread = [start + offsets[offsets <= stop - start] for start, stop in zip(starts, [*starts[1:], last], strict=True)]
    steps = np.concatenate([*spread, starts[1:]])
    return np.unique(steps[(steps > 0) & (steps <= last)])
