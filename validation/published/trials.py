"""What the readers of published sweeps share: select and check trials (training runs), and make a Sweep of them.

The published searches are random: every trial has a learning rate and a momentum of its own. A Sweep is a grid; made of
such trials it has a single run at each of very many points, which is good for a plot but not for the optimum rule. With
`fraction` the trials are moved to a grid of powers of two, and those that meet at one point become its seeds.
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
from noisysgd.theory.sweeps.coordinates import joined
from noisysgd.theory.sweeps.records import sweep_from_records

if TYPE_CHECKING:
    import xarray as xr

POINTS = 2**24
"""Largest number of points of a Sweep that is made here: it takes 128 MB for each metric."""
ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""By how much a mean of shares that was computed in float32 may be beyond 0 or 1."""
SETTINGS = ("momentum", "batch_size", "learning_rate", "seed")
"""The names of a run's place in a Sweep."""


@dataclass(frozen=True)
class PublishedTrial:
    """One training run that others published.

    Parameters
    ----------
    number : int
        The trial's number, or its line in the file, by which it can be found again.
    momentum : float
    batch_size : int
    learning_rate : float
        At the beginning of the schedule.
    status : {"complete", "diverged"}
    metrics : mapping
        Final values by name; empty for a diverged trial.
    """

    number: int
    momentum: float
    batch_size: int
    learning_rate: float
    status: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Selection:
    """Which trials to read, and up to which budget: the arguments that all readers share.

    Parameters
    ----------
    batch_sizes : collection of int, optional
        ``None`` for all.
    budget : Budget, optional
        ``None`` for the end of each trial.
    """

    batch_sizes: Collection[int] | None
    budget: Budget | None

    def __post_init__(self) -> None:
        if self.batch_sizes is None:
            return
        several = isinstance(self.batch_sizes, Collection) and not isinstance(self.batch_sizes, str | bytes)
        remedy = "Write [64] for a single one, or None for all."
        checks.require(several, "batch_sizes", "a collection of integers", self.batch_sizes, remedy)
        sizes = frozenset(
            checks.integer("batch_sizes", size, 1, remedy=remedy)
            for size in checks.several("batch_sizes", self.batch_sizes, object, remedy=remedy)
        )
        object.__setattr__(self, "batch_sizes", sizes)

    def wants(self, batch_size: int) -> bool:
        """Whether trials of a batch size are to be read.

        >>> Selection([64, 256.0], None).wants(256), Selection(None, None).wants(3)
        (True, True)
        """
        return self.batch_sizes is None or batch_size in self.batch_sizes

    def last_step(self, batch_size: int) -> float:
        """Number of steps that the budget allows at a batch size; ``inf`` without a budget."""
        if self.budget is None:
            return float("inf")
        known = isinstance(self.budget, StepBudget | EpochBudget)
        remedy = "Give one in steps or epochs."
        checks.require(known, "budget", "a StepBudget, an EpochBudget or None", self.budget, remedy)
        return float(self.budget.steps(batch_size))


def metric_names(splits: Mapping[str, str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our name of each published curve, "split/column", from our names of splits and columns.

    >>> metric_names({"val": "validation"}, {"error_rate": "accuracy"})
    {'val/error_rate': 'validation_accuracy'}
    """
    return {
        f"{split}/{column}": f"{our_split}_{metric}"
        for split, our_split in splits.items()
        for column, metric in columns.items()
    }


def checked_trial(
    where: str, number: int, momentum: object, batch_size: object, learning_rate: object
) -> PublishedTrial:
    """A trial with checked settings, as one that diverged; `where` begins error messages.

    A trial that did not diverge is passed on to :func:`completed`.
    """
    rate = checks.scalar(f"{where}: learning rate", learning_rate)
    positive = 0 < rate < float("inf")
    checks.require(positive, f"{where}: learning rate", "a positive, finite number", learning_rate, "Repair it.")
    coefficient = float(checks.momentum(checks.scalar(f"{where}: momentum", momentum), f"{where}: momentum"))
    size = checks.integer(f"{where}: batch size", batch_size, 1, remedy="Repair it.")
    return PublishedTrial(number, coefficient, size, rate, "diverged", {})


def checked_step(where: str, value: float, remedy: str) -> float:
    """`value`, if it can be the number of a step: a whole number ≥ 0; `where` begins the error message."""
    whole = math.isfinite(value) and value >= 0 and value == int(value)
    checks.require(whole, where, "a step: a whole number ≥ 0", value, remedy)
    return value


def checked_share(where: str, name: str, value: float, remedy: str) -> float:
    """`value`, if it is possible for the metric `name`: accuracies, precisions and error rates are NaN or in 0 … 1.

    A share that is beyond by no more than the rounding of sums in float32 is 0 or 1.

    >>> checked_share("t.csv:2", "train_accuracy", 1.0000001, "Fetch it again.")
    1.0
    """
    if not name.endswith(("accuracy", "precision")) or math.isnan(value):
        return value
    checks.require(-ROUNDING <= value <= 1 + ROUNDING, where, "a share from 0 to 1", value, remedy)
    return min(max(value, 0.0), 1.0)


def parsed_json(path: str, text: bytes, remedy: str, *, line: int | None = None) -> Any:
    """The value of JSON text: of a whole file, or of one `line` of it.

    Raises
    ------
    ValueError
        If the text is not JSON, with the path and the line.

    Examples
    --------
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
    """The bytes of a plain file; a ``ValueError`` with its path if it cannot be read, or never ends."""
    special = path.exists() and not path.is_file() and not path.is_dir()
    checks.require(not special, f"{path}", "a plain file", "a device or pipe", remedy)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a file, got none. {remedy}") from None
    except OSError as error:
        raise ValueError(f"{path}: expected a file that can be read, got: {error.strerror}. {remedy}") from error


def at_end(steps: Sequence[float], curves: Mapping[str, Sequence[float]], limit: float) -> dict[str, float] | None:
    """The last measurement of a trial at or before step `limit`, by metric.

    It is taken at the last step at which any metric was measured. A metric that was not measured at that step is NaN:
    an earlier value, perhaps from the very beginning, would not be that of the end.

    Parameters
    ----------
    steps : sequence of float
        Steps of the measurements, in any order.
    curves : mapping
        For every metric its values at these steps; NaN where it was not measured.
    limit : float
        Largest step; ``inf`` for none.

    Returns
    -------
    dict or None
        ``None`` if the trial ended before the limit, or has no measurement up to there.

    Examples
    --------
    >>> at_end([0, 100, 200], {"train_loss": [2.0, 1.0, 0.5]}, limit=150)
    {'train_loss': 1.0}
    >>> at_end([0, 100], {"train_loss": [2.0, 1.0]}, limit=150) is None
    True
    >>> at_end([0, 100, 200], {"train_loss": [2.0, 1.0, math.nan]}, limit=math.inf)
    {'train_loss': 1.0}
    """
    # A trial that ended before the budget does not say what it would have reached with it.
    if not len(steps) or (np.isfinite(limit) and max(steps) < limit):
        return None
    # A stable sort: of two measurements of one step the one further down in the file counts.
    within = [k for k in np.argsort(steps, kind="stable").tolist() if steps[k] <= limit]
    measured = [k for k in within if not all(math.isnan(values[k]) for values in curves.values())]
    if not within:
        return None
    return {name: float(values[(measured or within)[-1]]) for name, values in curves.items()}


def completed(
    trial: PublishedTrial,
    steps: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    names: Mapping[str, str],
    limit: float,
) -> PublishedTrial | str:
    """`trial` as a complete one, with its metrics at the end.

    Parameters
    ----------
    trial : PublishedTrial
    steps, curves
        Its measurements, under the published names.
    names : mapping
        Our name of each curve; see :func:`metric_names`.
    limit : float
        Last step that counts.

    Returns
    -------
    PublishedTrial or str
        In words, why the trial is to be left out, if it is.
    """
    metrics = at_end(steps, accuracy_or_loss(curves, names), limit)
    if metrics is None:
        return "short of the budget"
    if all(math.isnan(value) for value in metrics.values()):
        return "without measurements"
    return replace(trial, status="complete", metrics=metrics)


def on_grid(trial: PublishedTrial, fraction: int) -> tuple[float, float]:
    """The momentum m and the learning rate ε nearest to a trial's for which ε/(1−m) and 1/(1−m) are on a grid.

    The grid has the powers of 2^(1/fraction); "nearest" is in the logarithms of the two.

    >>> on_grid(PublishedTrial(1, momentum=0.9, batch_size=64, learning_rate=0.06, status="diverged", metrics={}), 1)
    (0.875, 0.0625)
    """
    effective = float(effective_learning_rate(trial.learning_rate, trial.momentum))
    level = round(np.log2(effective) * fraction)
    slowness = round(-np.log2(1.0 - trial.momentum) * fraction)
    # With 1 − m = 2^(−slowness/fraction), ε = [ε/(1−m)]·(1−m).
    return 1.0 - 2.0 ** (-slowness / fraction), 2.0 ** ((level - slowness) / fraction)


def sweep_from_trials(
    found: Iterable[PublishedTrial | str], *, fraction: int | None, configuration: Mapping[str, Any]
) -> "xr.Dataset":
    """A Sweep of published trials.

    Parameters
    ----------
    found : iterable of PublishedTrial or str
        The trials; in place of one that is left out, the reason in words.
    fraction : int, optional
        Move trials to the grid of powers of 2^(1/fraction); ``None`` leaves them where they are.
    configuration : mapping
        What else is known about all trials. It is kept as JSON in the attributes, together with `fraction`,
        ``left_out`` (the number of trials left out for each reason) and ``unmeasured`` (for each metric, how many
        complete trials lack it).

    Returns
    -------
    xarray.Dataset
        Dimensions (optimizer, batch_size, learning_rate, seed); trials at one point are its seeds 0, 1, … in the order
        given. Besides the metrics it has the variable ``trial``, the number of each.

    Raises
    ------
    ValueError
        If there is no trial, or the grid would have more than :data:`POINTS` points.
    """
    found = list(found)
    trials = [trial for trial in found if isinstance(trial, PublishedTrial)]
    left_out = collections.Counter(reason for reason in found if isinstance(reason, str))
    rows, seeds = [], collections.Counter[tuple[float, int, float]]()
    if fraction is not None:
        fraction = checks.integer("fraction", fraction, 1, remedy="Use 1 for whole powers of two, or None.")
    settings = [(t.momentum, t.learning_rate) if fraction is None else on_grid(t, fraction) for t in trials]
    # Rates that are equal up to rounding are one point of the Sweep, whose trials are numbered together.
    momenta = joined("momentum", {momentum for momentum, _ in settings})
    rates = joined("learning_rate", {rate for _, rate in settings})
    for trial, (momentum, rate) in zip(trials, settings, strict=True):
        point = (momenta[momentum], trial.batch_size, rates[rate])
        place = dict(zip(SETTINGS, (*point, seeds[point]), strict=True))
        rows.append({**place, "status": trial.status, "trial": trial.number, **trial.metrics})
        seeds[point] += 1
    checks.require(bool(rows), "trials", "at least one that completed or diverged", rows, "Choose another selection.")
    # Every value along one axis meets every value along the others: refuse the grid before memory is asked for it.
    axes = [{row[name] for row in rows} for name in SETTINGS]
    points = int(np.prod([len(values) for values in axes], dtype=object))
    remedy = "Pass fraction=1 to move trials to powers of two, or choose fewer batch sizes."
    checks.require(points <= POINTS, "trials", f"a grid of at most {POINTS} points", points, remedy)
    known = {*SETTINGS, "status", "trial"}
    metrics = [*sorted({name for row in rows for name in row} - known), "trial"]
    complete = [trial.metrics for trial in trials if trial.status == "complete"]
    lacking = {name: sum(math.isnan(values.get(name, math.nan)) for values in complete) for name in metrics[:-1]}
    unmeasured = {name: count for name, count in lacking.items() if count}
    counted = {"left_out": dict(left_out), "unmeasured": unmeasured}
    configuration = {**configuration, "fraction": fraction, **counted}
    # Sweeps know losses and accuracies by their names, precisions not.
    objective = {name: "maximize" for name in metrics if name.endswith("precision")}
    return sweep_from_records(
        rows, source="training", metrics=metrics, objective=objective, configuration=configuration
    )


def accuracy_or_loss(curves: Mapping[str, Sequence[float]], names: Mapping[str, str]) -> dict[str, list[float]]:
    """Curves under our names, by the mapping `names` from the published ones; error rates become accuracies.

    >>> accuracy_or_loss({"train/error_rate": [0.75]}, {"train/error_rate": "train_accuracy"})
    {'train_accuracy': [0.25]}
    """
    return {
        ours: [1.0 - x for x in curves[theirs]] if ours.endswith("accuracy") else list(curves[theirs])
        for theirs, ours in names.items()
        if theirs in curves
    }
