"""A Sweep from one record per run: the records are checked here, each fault with its row and field."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.sweeps.coordinates import JOINED, checked_tolerance, joined
from noisysgd.theory.sweeps.curves import Curve, add_curves, curve_fault
from noisysgd.theory.sweeps.dataset import (
    COMPLETE,
    DIMENSIONS,
    DIVERGED,
    MISSING,
    SOURCES,
    STATUSES,
    UNFINISHED,
    labelled,
)
from noisysgd.theory.sweeps.directions import MINIMIZE, given_objectives, kind_of
from noisysgd.theory.sweeps.optimizers import in_order, optimizers_of

if TYPE_CHECKING:
    import xarray as xr

REPAIR = "Repair the record, or leave it out."
RESERVED = {*DIMENSIONS, "status", "momentum", "effective_learning_rate", "temperature"}
"""Names that a metric cannot have."""
LARGEST_SEED = 2**63 - 1


@ignoring_underflow
def sweep_from_records(
    records: Iterable[Mapping[str, Any]],
    *,
    source: str,
    metrics: str | Iterable[str],
    objective: str | Mapping[str, str] | None = None,
    tolerance: float | Mapping[str, float] = 0.0,
    configuration: Mapping[str, Any] | None = None,
) -> "xr.Dataset":
    """A Sweep from one record per run.

    Learning rates, momenta, batch sizes and budgets that are equal up to rounding, in double or in single precision,
    are one coordinate: 0.3 stands for 0.1·3 too.

    Parameters
    ----------
    records : iterable of mappings
        Each has ``momentum``, ``batch_size``, ``learning_rate``, ``seed``, ``status`` and the metrics. Either all
        records have a ``budget``, a number, or none. The same holds of ``optimizer``, a name such as "adam", beside
        which the momentum may be None; without it all are the paper's, or Nesterov's where ``nesterov`` is True, as a
        run's configuration has it. If no record has a seed, runs of one point are numbered in their order. The status
        is "complete", "diverged" or "unfinished", of a run that was planned and has no result. A metric that is absent,
        None or NaN was not measured, but a loss of a diverged run becomes ``inf``. A run that is called complete has
        diverged if a loss is infinite, and is unfinished if none of its losses was measured (of a sweep without losses:
        none of its metrics). Learning curves, each the entry ``curve`` of a record, become variables along ``step`` and
        ``evaluation`` (:func:`noisysgd.theory.sweeps.curves.add_curves`).
    source : {"theory", "simulator", "training"}
        Where the numbers come from.
    metrics : str or iterable of str
        Names of the metrics to store; other entries of the records are dropped.
    objective : str or mapping, optional
        "minimize" or "maximize": whether the metric is better small or large, for several metrics a mapping from their
        names. What is plainly a loss, an error or an accuracy by its name need not be in it.
        :func:`~noisysgd.theory.optimum` asks for the direction of other metrics if it is not stated here.
    tolerance : float or mapping
        Relative difference up to which learning rates are one, for tables that round them; a mapping for several of
        learning_rate, momentum, batch_size and budget.
    configuration : mapping, optional
        Everything else that determines the numbers; stored as JSON in the attributes.

    Returns
    -------
    xarray.Dataset
        Over (optimizer, batch_size, learning_rate, seed), and budget if the records have one.

    Raises
    ------
    ValueError
        For two records of one point, an incomplete record, a value that cannot be, an unknown status or source, a
        metric that no complete record has, or no records.

    Examples
    --------
    >>> run = {"momentum": 0.0, "batch_size": 16, "seed": 0, "status": "complete"}
    >>> sweep = sweep_from_records(
    ...     [run | {"learning_rate": 0.5, "train_loss": 0.1}, run | {"learning_rate": 1.0, "train_loss": 0.2}],
    ...     source="training", metrics="train_loss")
    >>> dict(sweep.sizes)
    {'optimizer': 1, 'batch_size': 1, 'learning_rate': 2, 'seed': 1}
    """
    several = isinstance(records, Iterable) and not isinstance(records, Mapping)
    checks.require(several, "records", "a list of records", records, "Pass dictionaries, one per run.")
    named = configuration is None or isinstance(configuration, Mapping)
    checks.require(named, "configuration", "a dictionary", configuration, "Give every setting a name.")
    rows = checks.several("records", records, object, remedy="Pass one mapping for each run.")
    checks.require(bool(rows), "records", "at least one record", rows, "Run something first.")
    checks.one_of("source", source, SOURCES)
    names = _metric_names(metrics)
    objectives = given_objectives(names, objective)
    tolerances = checked_tolerance(tolerance)
    axes = _complete_rows(rows)
    seeded = "seed" in rows[0]
    places = {name: _column(rows, name, tolerances.get(name, 0.0)) for name in axes if name != "seed" or seeded}
    optimizers = optimizers_of(rows, places.pop("momentum"))
    places = {"optimizer": [label for label, _ in optimizers], **places}
    # The values that occur in the records are the axes; every record then has its place in the table.
    if not seeded:
        places["seed"] = _numbered(list(zip(*places.values(), strict=True)))
        places = {name: places[name] for name in ("optimizer", *axes[1:])}
    values: dict[str, list[Any]] = {name: sorted(set(column)) for name, column in places.items()}
    ordered = in_order(optimizers)
    values["optimizer"] = [label for label, _ in ordered]
    index = {name: {value: k for k, value in enumerate(axis)} for name, axis in values.items()}
    at = tuple(np.array([index[name][value] for value in column]) for name, column in places.items())
    shape = tuple(map(len, values.values()))
    _check_distinct(rows, np.ravel_multi_index(at, shape))
    columns = {name: _measurements(rows, name) for name in names}
    losses = [name for name in names if kind_of(name) == "loss" or objectives.get(name) == MINIMIZE]
    found = _statuses(rows, columns, losses)
    _check_metrics(rows, names, found)
    status = np.full(shape, MISSING, dtype=np.int8)
    status[at] = found
    table = {}
    for name, column in columns.items():
        worst = np.isnan(column) & (found == DIVERGED) & (name in losses)
        table[name] = np.full(shape, np.nan)
        table[name][at] = np.where(worst, np.inf, column)
    values["optimizer"] = ordered
    sweep = labelled(values, status, table, source=source, objectives=objectives, configuration=configuration or {})
    return add_curves(sweep, dict(zip(zip(*at, strict=True), _curves(rows), strict=True)))


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[Curve | None]:
    """The learning curve of every record, if it has one."""
    curves = [row.get("curve") for row in rows]
    for k, curve in enumerate(curves):
        if curve is not None:
            fault = curve_fault(curve)
            checks.require(fault is None, f"records[{k}]: curve", "a learning curve", fault, REPAIR)
    return curves


def _metric_names(metrics: str | Iterable[str]) -> list[str]:
    """Names of metrics as a list; one string is one name."""
    remedy = "Name the entries of the records to store."
    checks.require(isinstance(metrics, Iterable), "metrics", "a name, or distinct names", metrics, remedy)
    names = [metrics] if isinstance(metrics, str) else checks.several("metrics", metrics, object, remedy=remedy)
    usable = all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)
    checks.require(usable, "metrics", "a name, or distinct names", names, remedy)
    reserved = sorted(RESERVED & set(names))
    checks.require(not reserved, "metrics", "names other than those of coordinates and the status", reserved, remedy)
    return names


def _complete_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the axes, after checking that every record is a mapping with all of them and a status."""
    other = next((k for k, row in enumerate(rows) if not isinstance(row, Mapping)), None)
    remedy = "Pass dictionaries, one per run."
    checks.require(other is None, f"records[{other}]", "a mapping", rows[other or 0], remedy)
    axes: tuple[str, ...] = ("momentum", "batch_size", "learning_rate", "seed")
    axes += ("budget",) if any("budget" in row for row in rows) else ()
    needed = {*axes, "status"} - (set() if any("seed" in row for row in rows) else {"seed"})
    if any("optimizer" in row for row in rows):
        needed = needed - {"momentum"} | {"optimizer"}
    first = next((k for k, row in enumerate(rows) if not needed <= row.keys()), 0)
    lacking = sorted(needed - rows[first].keys())
    checks.require(not lacking, f"records[{first}]", f"{sorted(needed)} in each", f"none of {lacking}", "Complete it.")
    return axes


def _numbered(points: Sequence[tuple[Any, ...]]) -> list[int]:
    """How many runs of the same point came before each."""
    seen: dict[tuple[Any, ...], int] = {}
    numbers = []
    for point in points:
        numbers.append(seen.get(point, 0))
        seen[point] = numbers[-1] + 1
    return numbers


def _momentum(name: str, value: object) -> float:
    return float(checks.momentum(checks.scalar(name, value, remedy=REPAIR), name))


def _seed(name: str, value: object) -> int:
    seed = checks.integer(name, value, 0, remedy="Number the runs 0, 1, ….")
    checks.require(seed <= LARGEST_SEED, name, "a seed below 2⁶³", value, "Number the runs 0, 1, ….")
    return seed


CHECKS: Mapping[str, Callable[[str, object], Any]] = {
    "momentum": _momentum,
    "batch_size": lambda name, value: float(checks.batch_size(checks.scalar(name, value, remedy=REPAIR), name=name)),
    "learning_rate": lambda name, value: float(checks.learning_rate(checks.scalar(name, value, remedy=REPAIR), name)),
    "budget": lambda name, value: float(checks.at_least(name, checks.scalar(name, value), 0.0, remedy=REPAIR)),
    "seed": _seed,  # an integer: as floats, large ones could not be told apart
}
"""For every axis the check of one value."""


def _column(rows: Sequence[Mapping[str, Any]], name: str, tolerance: float) -> list[Any]:
    """The records' coordinates along an axis, checked and joined."""
    # Values recur: each is checked once. Its type is part of the key, since True equals 1.
    known: dict[tuple[type, Any], Any] = {}
    column = []
    for k, row in enumerate(rows):
        value = row.get(name)
        if name == "momentum" and value is None and "optimizer" in row:
            column.append(float("nan"))
            continue
        key = (type(value), value if isinstance(value, float | int | np.generic) else id(value))
        if key not in known:
            known[key] = CHECKS[name](f"records[{k}]: {name}", value)
        column.append(known[key])
    if name not in JOINED:
        return column
    stands = joined(name, {value for value in column if value == value}, tolerance)
    return [stands.get(value, value) for value in column]


def _check_distinct(rows: Sequence[Mapping[str, Any]], places: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
    """Raise if two records have the same place in the table."""
    order = np.argsort(places, kind="stable")
    again = np.flatnonzero(np.diff(places[order]) == 0)
    if again.size:
        first, second = (int(order[again[0] + j]) for j in (0, 1))
        got = f"records[{first}] and records[{second}] of one: {dict(rows[second])}"
        raise ValueError(
            f"records: expected one record per point, got {got}. Drop the repetition, or tell seeds apart."
        )


def _measurements(rows: Sequence[Mapping[str, Any]], name: str) -> FloatArray:
    """A metric of every record; NaN where it was not measured."""
    values = [row.get(name) for row in rows]
    if set(map(type, values)) <= {float, type(None)}:  # of many records, ten times as fast as one by one
        return np.array(values, dtype=np.float64)
    return np.array([_measured(k, name, value) for k, value in enumerate(values)])


def _measured(row: int, name: str, value: object) -> float:
    """A metric of a record; NaN if it was not measured."""
    if value is None:
        return float("nan")
    if isinstance(value, float | np.floating) or type(value) is int:
        try:
            return float(value)
        except OverflowError:
            pass  # the message below
    return checks.scalar(f"records[{row}]: {name}", value, remedy="Leave out what was not measured.")


def _statuses(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, FloatArray], losses: Sequence[str]
) -> "np.ndarray[Any, np.dtype[np.int8]]":
    """Status of every record: what it says, unless its numbers say that the run diverged or has no result."""
    options = [name for name in STATUSES if name != "missing"]
    names = [row["status"] for row in rows]
    odd = next((k for k, name in enumerate(names) if name not in options), 0)
    checks.one_of(f"records[{odd}]: status", names[odd], options)
    said = np.array([STATUSES[str(name)] for name in names], dtype=np.int8)
    complete = said == COMPLETE
    for name in losses:
        below = np.flatnonzero(complete & (columns[name] == -np.inf))
        where = f"records[{below[0]}]: {name}" if below.size else name
        checks.require(not below.size, where, "a loss", -np.inf, REPAIR)
        said[complete & (columns[name] == np.inf)] = DIVERGED
    judging = [columns[name] for name in losses or columns]
    if judging:
        said[(said == COMPLETE) & np.isnan(judging).all(axis=0)] = UNFINISHED
    return said


def _check_metrics(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], status: "np.ndarray[Any, np.dtype[np.int8]]"
) -> None:
    """Raise for a metric that is no entry of any record, if runs ended that could have it."""
    if not (status != DIVERGED).any():
        return
    entries = sorted({str(name) for name in set().union(*rows)} - RESERVED)
    absent = [name for name in names if name not in entries]
    remedy = "Name metrics as the records do."
    checks.require(not absent, "metrics", f"names of entries, such as {entries}", absent, remedy)
