"""Trials that others ran, as a Sweep: what the readers of foreign measurements share.

Others search at random: every trial has a learning rate and momentum of its own. A Sweep is a grid, so that such
trials make one with a single run at each of many points, which is good for a plot but not for the optimum rule.
`fraction` puts them on the grid of powers of two instead, where the trials that meet at a point become its seeds.
"""

import collections
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.schedules.budget import Budget, EpochBudget, StepBudget
from noisysgd.theory.schedules.effective_rate import effective_learning_rate
from noisysgd.theory.sweeps.dataset import sweep_from_records

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


def checked_step(where: str, value: float, remedy: str) -> float:
    """A step at which something was measured: a whole number, not negative; `where` begins an error message."""
    whole = math.isfinite(value) and value >= 0 and value == int(value)
    checks.require(whole, where, "a step: a whole number ≥ 0", value, remedy)
    return value


def checked_share(where: str, name: str, value: float, remedy: str) -> float:
    """A measured value; one of an accuracy or a precision, or of the error that becomes it, lies in 0 … 1, or is NaN.

    >>> checked_share("t.csv:2", "train_accuracy", 0.25, "Fetch it again.")
    0.25
    """
    share = name.endswith(("accuracy", "precision"))
    possible = not share or math.isnan(value) or 0 <= value <= 1
    checks.require(possible, where, "a share from 0 to 1", value, remedy)
    return value


def chosen_sizes(batch_sizes: Collection[int] | None) -> frozenset[int] | None:
    """Batch sizes to read; ``None`` for all.

    >>> chosen_sizes([64, 256.0]) == {64, 256}
    True
    """
    if batch_sizes is None:
        return None
    several = isinstance(batch_sizes, Collection) and not isinstance(batch_sizes, str | bytes)
    remedy = "Write [64] for a single one, or None for all."
    checks.require(several, "batch_sizes", "a collection of integers", batch_sizes, remedy)
    return frozenset(checks.integer("batch_sizes", size, 1, remedy=remedy) for size in batch_sizes)


def parsed_json(path: str, text: bytes, remedy: str, *, line: int | None = None) -> Any:
    """What JSON text says, a whole file's or one line's; what is wrong with it becomes a ``ValueError`` with the place.

    >>> parsed_json("t.json", b'{"status": "done"}', "Fetch it again.")
    {'status': 'done'}
    """
    where, expected = (path, "JSON") if line is None else (f"{path}:{line}", "one JSON object")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"{path}:{line or error.lineno}: expected {expected}, got {error.msg}. {remedy}"
        raise ValueError(message) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected {expected} in UTF-8, got other bytes. {remedy}") from error
    except RecursionError:
        raise ValueError(f"{where}: expected {expected} of a few levels, got too many to read. {remedy}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"{where}: expected {expected}, got {error}. {remedy}") from error


def whole_file(path: Path, remedy: str) -> bytes:
    """The bytes of a file; a ``ValueError`` with its path if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a file, got none. {remedy}") from None
    except OSError as error:
        raise ValueError(f"{path}: expected a file that can be read, got: {error.strerror}. {remedy}") from error


def last_step(budget: Budget | None, batch_size: int) -> float:
    """Steps that a budget allows at a batch size; without a budget, any number."""
    if budget is None:
        return float("inf")
    known = isinstance(budget, StepBudget | EpochBudget)
    checks.require(known, "budget", "a StepBudget, an EpochBudget or None", budget, "Give one in steps or epochs.")
    return float(budget.steps(batch_size))


def at_end(steps: Sequence[float], curves: Mapping[str, Sequence[float]], limit: float) -> dict[str, float] | None:
    """What the last measurement at or before step `limit` says; None for a trial that never got as far as the limit.

    Steps at which nothing at all was measured do not count. A metric that was not measured at that last one is NaN: an
    earlier value, perhaps of the very beginning, would not be the trial's at its end.

    >>> at_end([0, 100, 200], {"train_loss": [2.0, 1.0, 0.5]}, limit=150)
    {'train_loss': 1.0}
    >>> at_end([0, 100], {"train_loss": [2.0, 1.0]}, limit=150) is None
    True
    >>> at_end([0, 100, 200], {"train_loss": [2.0, 1.0, math.nan]}, limit=math.inf)
    {'train_loss': 1.0}
    """
    if not len(steps) or (np.isfinite(limit) and max(steps) < limit):
        return None
    within = [k for k in np.argsort(steps, kind="stable").tolist() if steps[k] <= limit]
    measured = [k for k in within if not all(math.isnan(values[k]) for values in curves.values())]
    if not within:
        return None
    return {name: float(values[(measured or within)[-1]]) for name, values in curves.items()}


def at_its_end(
    trial: ForeignTrial, steps: Sequence[float], curves: Mapping[str, Sequence[float]], limit: float
) -> ForeignTrial | str:
    """The trial as complete, with its metrics at the end; or why it is left out."""
    metrics = at_end(steps, curves, limit)
    if metrics is None:
        return "short of the budget"
    if all(math.isnan(value) for value in metrics.values()):
        return "without measurements"
    return replace(trial, status="complete", metrics=metrics)


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
        What else is known; kept as JSON in the attributes, with `fraction`, and ``unmeasured``: by metric, how many
        complete trials lack it.

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
    trials = list(trials)
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
    complete = [trial.metrics for trial in trials if trial.status == "complete"]
    lacking = {name: sum(math.isnan(values.get(name, math.nan)) for values in complete) for name in metrics[:-1]}
    unmeasured = {name: count for name, count in lacking.items() if count}
    configuration = {**configuration, "fraction": fraction, "unmeasured": unmeasured}
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
