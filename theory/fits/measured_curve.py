"""What was measured: learning curves, and runs that diverged."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.describing import brief
from noisysgd.theory.schedules.schedule import Schedule


@dataclass(frozen=True, eq=False, init=False)
class MeasuredCurve:
    """Losses of one training run after some of its steps.

    Parameters
    ----------
    steps : (R,) array of int
        Numbers of steps taken, 0 ≤ step ≤ ``schedule.steps``, increasing. The loss after n updates stands at step n.
    losses : (R,) array
        Loss after each, > 0 and finite: of training or of fresh data, floor included, in any unit.
    schedule : Schedule
        Multipliers of the learning rate from the first step of the run on, so that a warm-up is part of it.
    learning_rate, batch_size, momentum : float
        The run's settings; rate and batch size > 0.
    errors : (R,) array or float, optional
        Standard error of each loss, > 0. Without it all relative errors are taken to be equal, and are estimated.

    Raises
    ------
    ValueError
        For curves that are empty or not finite, steps beyond the schedule or out of order, impossible settings, and
        shapes that do not match.

    Examples
    --------
    >>> from noisysgd import theory
    >>> schedule = theory.warmup(theory.constant(900), steps=100)
    >>> MeasuredCurve([250, 500, 1000], [2.1, 1.7, 1.5], schedule=schedule, learning_rate=0.1, batch_size=64).momentum
    0.0
    """

    steps: IntArray
    losses: FloatArray
    schedule: Schedule
    learning_rate: float
    batch_size: float
    momentum: float
    errors: FloatArray | None

    __repr__ = brief

    def __init__(
        self,
        steps: ArrayLike,
        losses: ArrayLike,
        *,
        schedule: Schedule,
        learning_rate: float,
        batch_size: float,
        momentum: float = 0.0,
        errors: ArrayLike | None = None,
    ) -> None:
        checks.instance("schedule", schedule, Schedule, remedy="Make one with theory.constant or theory.piecewise.")
        at = checks.real("steps", steps)
        remedy = "Pass the numbers of steps after which losses were measured."
        checks.require(at.ndim == 1 and at.size > 0, "steps", "a non-empty (R,) array", at.shape, remedy)
        inside = bool(np.all((at >= 0) & (at <= schedule.steps) & (at == np.floor(at))))
        expected = f"whole steps in 0…{schedule.steps}, those of the schedule"
        checks.require(inside, "steps", expected, steps, "Leave out later rows, or lengthen the schedule.")
        rising = bool(np.all(np.diff(at) > 0))
        checks.require(rising, "steps", "increasing steps, each once", steps, "Sort them and average repeated ones.")
        remedy = "Leave out missing losses; a run that diverged goes into fit_quadratic(…, diverged=(…))."
        loss = checks.real("losses", losses, remedy=remedy)
        checks.require(loss.shape == at.shape, "losses", f"shape {at.shape}, one per step", loss.shape, "Pair them up.")
        checks.require(bool(np.isfinite(loss).all()), "losses", "finite losses", losses, remedy)
        remedy = "Relative errors are compared: add a constant to all losses, by which the floor rises too."
        checks.require(bool(np.all(loss > 0)), "losses", "losses > 0", losses, remedy)
        values: dict[str, object] = {"steps": at.astype(np.int64), "losses": loss.copy(), "schedule": schedule}
        values |= _settings(learning_rate, batch_size, momentum)
        values["errors"] = None if errors is None else _errors(errors, loss)
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class DivergedRun:
    """A run whose loss grew without bound at a constant learning rate, or at a schedule's highest.

    >>> DivergedRun(learning_rate=0.8, batch_size=64)
    DivergedRun(learning_rate=0.8, batch_size=64.0, momentum=0.0)
    """

    learning_rate: float
    batch_size: float
    momentum: float = 0.0

    def __post_init__(self) -> None:
        for name, value in _settings(self.learning_rate, self.batch_size, self.momentum).items():
            object.__setattr__(self, name, value)


def measured_curves(curves: object) -> tuple[MeasuredCurve, ...]:
    """`curves` as a tuple, checked: one curve or several."""
    remedy = "Make them with theory.MeasuredCurve."
    given = (curves,) if isinstance(curves, MeasuredCurve) else curves
    checks.require(isinstance(given, Iterable), "curves", "MeasuredCurves", curves, remedy)
    found: tuple[MeasuredCurve, ...] = tuple(given)  # type: ignore[arg-type]  # an Iterable, as was just checked
    checks.require(len(found) > 0, "curves", "at least one MeasuredCurve", curves, remedy)
    for curve in found:
        checks.instance("curves", curve, MeasuredCurve, remedy=remedy)
    return found


def diverged_runs(diverged: object) -> tuple[DivergedRun, ...]:
    """`diverged` as a tuple of DivergedRuns; they may be given as mappings of their settings, or as curves, too."""
    remedy = "Pass theory.DivergedRun(learning_rate=…, batch_size=…), or a mapping with these names."
    given = (diverged,) if isinstance(diverged, DivergedRun | MeasuredCurve | Mapping) else diverged
    checks.require(isinstance(given, Iterable), "diverged", "DivergedRuns", diverged, remedy)
    found: list[DivergedRun] = []
    for run in given:  # type: ignore[attr-defined]
        if isinstance(run, Mapping):
            names = {"learning_rate", "batch_size"} <= run.keys() <= {"learning_rate", "batch_size", "momentum"}
            checks.require(names, "diverged", "learning_rate, batch_size and perhaps momentum", list(run), remedy)
            run = DivergedRun(**run)
        if isinstance(run, MeasuredCurve):
            run = DivergedRun(run.learning_rate * float(run.schedule.multipliers.max()), run.batch_size, run.momentum)
        checks.instance("diverged", run, DivergedRun, remedy=remedy)
        found.append(run)
    return tuple(found)


def _settings(learning_rate: object, batch_size: object, momentum: object) -> dict[str, float]:
    rate = checks.scalar("learning_rate", checks.learning_rate(learning_rate))
    checks.require(rate > 0, "learning_rate", "a learning rate > 0", learning_rate, "Nothing is learned at 0.")
    size = checks.scalar("batch_size", checks.batch_size(batch_size))
    return {"learning_rate": rate, "batch_size": size, "momentum": checks.scalar("momentum", checks.momentum(momentum))}


def _errors(errors: ArrayLike, losses: FloatArray) -> FloatArray:
    given = checks.at_least("errors", errors, 0.0, remedy="A standard error is positive; leave out unknown ones.")
    fits = given.shape in ((), losses.shape) and bool(np.all(given > 0))
    expected = f"a number > 0, or {losses.size} of them, one per loss"
    checks.require(fits, "errors", expected, errors, "Leave them out where they are not known.")
    return np.array(np.broadcast_to(given, losses.shape))
