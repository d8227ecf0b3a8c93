"""What of a measured curve enters a fit: a few hundred losses, their weights, and the steps in between, grouped."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.fits.grouped_steps import COARSE, GroupedSteps, grouped_steps
from noisysgd.theory.fits.measured_curve import MeasuredCurve
from noisysgd.theory.fits.power_laws import PowerLaws, Reference
from noisysgd.theory.schedules.schedule import Schedule

MOST_LOSSES = 400
"""Curves of more losses are averaged over neighbouring ones down to about this number."""
HELD = 100
"""A run counts as stable at a learning rate that it has had for this many steps, times 1/(1−m)."""


@dataclass(frozen=True)
class Observations:
    """Losses of one run at increasing steps, (R,), and the precision of each relative to a loss of its own size."""

    curve: MeasuredCurve
    steps: IntArray
    losses: FloatArray
    precision: FloatArray
    coarse: float = COARSE

    @cached_property
    def grouped(self) -> GroupedSteps:
        """The steps of the run, in pieces within which the learning rate changes by the share `coarse`."""
        return grouped_steps(self.curve.schedule, self.curve.learning_rate, self.steps[self.steps > 0], self.coarse)

    @cached_property
    def progress(self) -> FloatArray:
        """Sum of the effective learning rates ε/(1−m) up to each loss."""
        schedule, effective = self.curve.schedule, self.curve.learning_rate / (1.0 - self.curve.momentum)
        ends = np.concatenate([[0], np.cumsum(schedule.lengths)])
        sums = np.concatenate([[0.0], np.cumsum(schedule.lengths * schedule.multipliers)])
        return np.asarray(effective * np.interp(self.steps, ends, sums))

    @property
    def temperature(self) -> float:
        """T = ε/(B(1−m)) at the highest learning rate of the run."""
        highest = self.curve.learning_rate * float(self.curve.schedule.multipliers.max())
        return highest / (self.curve.batch_size * (1.0 - self.curve.momentum))

    @cached_property
    def held_rate(self) -> float:
        """The highest learning rate that the run had for long enough to show that it is stable there."""
        schedule, last = self.curve.schedule, int(self.steps[-1])
        lengths = np.minimum(schedule.lengths, np.maximum(last - (np.cumsum(schedule.lengths) - schedule.lengths), 0))
        order = np.argsort(-schedule.multipliers, kind="stable")
        enough = min(HELD / (1.0 - self.curve.momentum), 0.5 * last)
        place = int(np.searchsorted(np.cumsum(lengths[order]), enough))
        return self.curve.learning_rate * float(schedule.multipliers[order[min(place, order.size - 1)]])

    def excess_losses(self, laws: PowerLaws, reference: Reference) -> FloatArray:
        """Excess losses of the family's member at the steps of this run, (R,)."""
        from noisysgd.theory.fits.curve_kernels import curve_losses  # compiled code, loaded when first needed

        eigenvalues, start, noise = laws.modes(reference)
        losses = np.empty(int((self.steps > 0).sum()))
        grouped = self.grouped
        # In units in which every mode has ½wλ = λ: then E θ₀² = start/λ, and a step adds ε² noise/λ to E θ².
        curve_losses(
            eigenvalues,
            eigenvalues,
            noise / eigenvalues / self.curve.batch_size,
            start / eigenvalues,
            *laws.noise_law(reference),
            self.curve.momentum,
            grouped.lengths,
            grouped.rates,
            grouped.changes,
            grouped.recorded,
            losses,
        )
        return np.concatenate([np.full(self.steps.size - losses.size, start.sum()), losses])


def observed(curves: tuple[MeasuredCurve, ...]) -> tuple[Observations, ...]:
    """The losses of all curves, each once: runs that branch off from a common one share what they have in common."""
    seen: set[tuple[float, ...]] = set()
    runs = []
    for curve in curves:
        rates = curve.learning_rate * curve.schedule.at(np.maximum(curve.steps - 1, 0))
        columns = (curve.steps.tolist(), curve.losses.tolist(), rates.tolist())
        rows = [(*row, curve.batch_size, curve.momentum) for row in zip(*columns, strict=True)]
        new = np.array([row not in seen for row in rows])
        seen.update(rows)
        if new.any():
            runs.append(observations(curve, new))
    return tuple(runs)


def observations(curve: MeasuredCurve, new: npt.NDArray[np.bool_] | None = None) -> Observations:
    """The losses of a curve, or those that are `new`; averaged over neighbours if more than :data:`MOST_LOSSES`."""
    relative = 1.0 if curve.errors is None else curve.losses / curve.errors
    precision = np.broadcast_to(relative, curve.losses.shape)
    steps, losses = curve.steps, curve.losses
    if new is not None:
        steps, losses, precision = steps[new], losses[new], precision[new]
    if steps.size <= MOST_LOSSES:
        return Observations(curve, steps, losses, precision)
    first = _first_of_groups(steps, curve.schedule)
    weight = precision**2
    total = np.add.reduceat(weight, first)
    means = np.add.reduceat(weight * losses, first) / total
    centres = np.rint(np.add.reduceat(weight * steps, first) / total).astype(np.int64)
    return Observations(curve, centres, means, np.sqrt(total))


def _first_of_groups(steps: IntArray, schedule: Schedule) -> IntArray:
    """Indices at which groups of neighbouring losses begin: narrow after the start and after each jump of the rate."""
    before, after = schedule.multipliers[:-1], schedule.multipliers[1:]
    jumps = schedule.boundaries[np.maximum(before, after) > 1.2 * np.minimum(before, after)]
    jumps = jumps[np.diff(jumps, append=schedule.steps) > 20][:20]
    since = np.concatenate([[0], jumps])
    stretch = np.searchsorted(since, steps, side="left") - 1
    stretch = np.maximum(stretch, 0)
    # Groups as wide as a thirtieth of the steps since the last jump, or as a 200th of the run.
    age = np.maximum(steps - since[stretch], 1)
    key = np.stack([stretch, np.floor(30 * np.log(age)), np.floor(200 * steps / steps[-1])])
    return np.concatenate([[0], np.flatnonzero(np.any(np.diff(key, axis=1) != 0, axis=0)) + 1])
