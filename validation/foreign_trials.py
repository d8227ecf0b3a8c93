"""Trials that others ran, as a Sweep: what the readers of foreign measurements share.

Others search at random: every trial has a learning rate and momentum of its own. A Sweep is a grid, so that such
trials make one with a single run at each of many points, which is good for a plot but not for the optimum rule.
`fraction` puts them on the grid of powers of two instead, where the trials that meet at a point become its seeds.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory import checks
from noisysgd.theory.budget import Budget, EpochBudget, StepBudget
from noisysgd.theory.sweep import sweep_from_records
from noisysgd.theory.temperature import effective_learning_rate

if TYPE_CHECKING:
    import xarray as xr

POINTS = 2**24
"""Largest number of points of a Sweep made here: 128 MB for each metric."""


@dataclass(frozen=True)
class ForeignTrial:
    """One training run of somebody else's.

    Parameters
    ----------
    number : int
        Where it is found again: the trial's number, or its line.
    momentum, learning_rate : float
        The latter at its largest, where the schedule begins.
    batch_size : int
    status : {"complete", "diverged"}
    metrics : mapping
        Values by name; none for a diverged trial.
    """

    number: int
    momentum: float
    batch_size: int
    learning_rate: float
    status: str
    metrics: Mapping[str, float]


def checked_trial(where: str, number: int, momentum: Any, batch_size: Any, learning_rate: Any) -> ForeignTrial:
    """A diverged trial with checked settings; `where` begins an error message."""
    rate = checks.scalar(f"{where}: learning rate", learning_rate)
    positive = 0 < rate < float("inf")
    checks.require(positive, f"{where}: learning rate", "a positive, finite number", learning_rate, "Repair it.")
    coefficient = float(checks.momentum(checks.scalar(f"{where}: momentum", momentum), f"{where}: momentum"))
    size = checks.integer(f"{where}: batch size", batch_size, 1, remedy="Repair it.")
    return ForeignTrial(number, coefficient, size, rate, "diverged", {})


def last_step(budget: Budget | None, batch_size: int) -> float:
    """Steps that a budget allows at a batch size; without a budget, any number."""
    if budget is None:
        return float("inf")
    known = isinstance(budget, StepBudget | EpochBudget)
    checks.require(known, "budget", "a StepBudget, an EpochBudget or None", budget, "Give one in steps or epochs.")
    return float(budget.steps(batch_size))


def at_end(steps: Sequence[float], curves: Mapping[str, Sequence[float]], limit: float) -> dict[str, float] | None:
    """What was measured last at or before step `limit`; None for a trial that never got as far as the limit.

    >>> at_end([0, 100, 200], {"train_loss": [2.0, 1.0, 0.5]}, limit=150)
    {'train_loss': 1.0}
    >>> at_end([0, 100], {"train_loss": [2.0, 1.0]}, limit=150) is None
    True
    """
    if not len(steps) or (np.isfinite(limit) and max(steps) < limit):
        return None
    within = [k for k in np.argsort(steps, kind="stable").tolist() if steps[k] <= limit]
    return {name: float(values[within[-1]]) for name, values in curves.items()} if within else None


def on_grid(trial: ForeignTrial, fraction: int) -> tuple[float, float]:
    """The (momentum, learning rate) nearest to a trial's whose ε/(1−m) and 1/(1−m) are powers of 2^(1/fraction).

    >>> on_grid(ForeignTrial(1, momentum=0.9, batch_size=64, learning_rate=0.06, status="diverged", metrics={}), 1)
    (0.875, 0.0625)
    """
    effective = float(effective_learning_rate(trial.learning_rate, trial.momentum))
    level = round(np.log2(effective) * fraction)
    slowness = round(-np.log2(1.0 - trial.momentum) * fraction)
    return 1.0 - 2.0 ** (-slowness / fraction), 2.0 ** ((level - slowness) / fraction)


def sweep_from_trials(
    trials: Iterable[ForeignTrial], *, fraction: int | None, configuration: Mapping[str, Any]
) -> "xr.Dataset":
    """A Sweep of foreign trials.

    Parameters
    ----------
    trials : iterable of ForeignTrial
    fraction : int, optional
        Move trials to the grid of powers of 2^(1/fraction); ``None`` leaves them where they are.
    configuration : mapping
        What else is known; kept as JSON in the attributes, with `fraction`.

    Returns
    -------
    xarray.Dataset
        Dimensions (optimizer, batch_size, learning_rate, seed); trials of one point are its seeds 0, 1, … in the order
        given. Besides the metrics it holds ``trial``, the number of each.

    Raises
    ------
    ValueError
        If there is no trial, or the grid would have more than :data:`POINTS` points.
    """
    rows, seeds = [], collections.Counter[tuple[float, int, float]]()
    if fraction is not None:
        fraction = checks.integer("fraction", fraction, 1, remedy="Use 1 for whole powers of two, or None.")
    for trial in trials:
        momentum, rate = (trial.momentum, trial.learning_rate) if fraction is None else on_grid(trial, fraction)
        point = (momentum, trial.batch_size, rate)
        place = {"momentum": momentum, "batch_size": trial.batch_size, "learning_rate": rate, "seed": seeds[point]}
        rows.append({**place, "status": trial.status, "trial": trial.number, **trial.metrics})
        seeds[point] += 1
    checks.require(bool(rows), "trials", "at least one that completed or diverged", rows, "Choose another selection.")
    axes = [{row[name] for row in rows} for name in ("momentum", "batch_size", "learning_rate", "seed")]
    points = int(np.prod([len(values) for values in axes], dtype=object))
    remedy = "Pass fraction=1 to move trials to powers of two, or choose fewer batch sizes."
    checks.require(points <= POINTS, "trials", f"a grid of at most {POINTS} points", points, remedy)
    known = {"momentum", "batch_size", "learning_rate", "seed", "status", "trial"}
    metrics = [*sorted({name for row in rows for name in row} - known), "trial"]
    configuration = {**configuration, "fraction": fraction}
    sweep = sweep_from_records(rows, source="training", metrics=metrics, configuration=configuration)
    for name in metrics:
        if name.endswith("precision"):
            sweep[name].attrs["objective"] = "maximize"
    return sweep


def accuracy_or_loss(curves: Mapping[str, Sequence[float]], names: Mapping[str, str]) -> dict[str, list[float]]:
    """Curves under this project's names: a foreign error rate becomes an accuracy.

    >>> accuracy_or_loss({"train/error_rate": [0.75]}, {"train/error_rate": "train_accuracy"})
    {'train_accuracy': [0.25]}
    """
    return {
        ours: [1.0 - x for x in curves[theirs]] if ours.endswith("accuracy") else list(curves[theirs])
        for theirs, ours in names.items()
        if theirs in curves
    }
