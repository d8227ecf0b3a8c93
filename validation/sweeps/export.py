"""Sweeps as netCDF files: export what a store has of a sweep, and import it into another store, to go on there."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.theory.common import checks
from noisysgd.theory.sweeps.coordinates import DOUBLE
from noisysgd.theory.sweeps.curves import curves_of
from noisysgd.theory.sweeps.dataset import MISSING, STATUSES, UNFINISHED, check_sweep, save_sweep
from noisysgd.theory.sweeps.netcdf import read_dataset, write_dataset
from noisysgd.validation.configuration import METRICS, TrainConfig
from noisysgd.validation.runs.records import fault
from noisysgd.validation.runs.store import RunStore
from noisysgd.validation.sweeps.plan import Plan, parse_plan
from noisysgd.validation.sweeps.trained_pairs import SCHEMA as PAIRS

NOT_EXTRA = {"config", "status", "provenance", *METRICS}
"""Entries of records that every dataset has in one form or another."""
INTEGERS = {"steps"}
"""Entries of records that are integers. They are floats in the file: netCDF 3 has no integers of 64 bits."""


def export(plan: Plan, store: RunStore) -> xr.Dataset:
    """The dataset of a sweep, from the records that a store has.

    Parameters
    ----------
    plan : Plan
    store : RunStore

    Returns
    -------
    xarray.Dataset
        As :meth:`Sweep.run` returns it, with a variable for every further number in the records, and the TOML text of
        the plan as the attribute ``plan``. It includes what the grid has grown by. Unfinished runs are missing.

    Raises
    ------
    ValueError
        If the store has none of the runs.
    """
    state = plan.sweep.state(store, _further_numbers)
    expected = "at least one finished run of this sweep"
    checks.require(bool(state.found), str(store.root), expected, "none", "Run the sweep, or name its store.")
    dataset = state.dataset
    if dataset is None:
        dataset = plan.sweep.collect(state.windows, state.found, _further_numbers(state.found))
    return dataset.assign_attrs(plan=plan.text)


def _further_numbers(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the numbers in records besides those that every dataset has."""
    kinds = {(name, type(value)) for record in records for name, value in record.items() if name not in NOT_EXTRA}
    return sorted({name for name, kind in kinds if issubclass(kind, int | float) and kind is not bool})


def save(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write an exported dataset as netCDF with a digest, as :func:`noisysgd.theory.save_sweep` does; returns the path.

    Raises
    ------
    ValueError
        If `path` is a device, a link or a folder.
    """
    return write_dataset(dataset, path) if dataset.attrs.get("schema") == PAIRS else save_sweep(dataset, path)


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read what :func:`save` wrote.

    Raises
    ------
    ValueError
        For a file that is not an exported sweep, or is damaged.
    """
    dataset = read_dataset(path)
    return dataset if dataset.attrs.get("schema") == PAIRS else check_sweep(dataset)


@dataclass(frozen=True)
class Imported:
    """What became of the runs of an imported dataset.

    Parameters
    ----------
    added, known : int
        Number of runs that are new in the store, and of those that it had with the same result.
    different : tuple of str
        Names of the runs that the store had with another result, which stays.
    """

    added: int
    known: int
    different: tuple[str, ...]


def import_runs(dataset: xr.Dataset, store: RunStore) -> Imported:
    """Add the runs of an exported dataset to a store, as if they had been trained there.

    Raises
    ------
    ValueError
        If the runs have no :class:`TrainConfig`: a dataset of theory or of a simulator, or one that others published,
        as :func:`noisysgd.validation.read_pd1` returns it. Or if a run has a result that none can have, such as an
        accuracy of 99, or is complete without a training loss; nothing is added then.
    """
    source = dataset.attrs.get("source")
    remedy = "Pass one made by `noisysgd sweep export` or Sweep.run."
    checks.require(source == "training", "dataset", "a sweep of training runs", f"source {source!r}", remedy)
    origin = _attribute(dataset, "configuration", dict).get("origin")
    expected = "runs of this package, each with a TrainConfig"
    remedy = "A store can neither repeat them nor go on from them: use the file itself, as theory.load_sweep reads it."
    checks.require(origin is None, "dataset", expected, f"trials of others, which have none: {origin}", remedy)
    provenance = _attribute(dataset, "runs_provenance", list)
    # The dataset does not say which run has which provenance: if there are several, every record is given the list.
    provenance = provenance[0] if len(provenance) == 1 else provenance
    runs = list(_records(dataset))
    # All are judged before the first is written: half of an import would be hard to undo.
    for config, record in runs:
        wrong = fault(record)
        at = f"dataset, the run of {config.as_dict()}"
        checks.require(wrong is None, at, "a result that a run can have", wrong, "Export it anew from its store.")
    added, known, different = 0, 0, []
    for config, record in runs:
        stored = store.read(config)
        if stored is None:
            store.write(record | {"config": config.as_dict(), "provenance": provenance})
            added += 1
        # Status and metrics decide: a repeated run takes another time and may have another provenance.
        elif all(stored.get(name) == record.get(name) for name in ("status", *METRICS)):
            known += 1
        else:
            different.append(config.key)
    return Imported(added, known, tuple(different))


def plan_of(dataset: xr.Dataset) -> Plan:
    """The plan of an exported dataset, with which its sweep can go on.

    Raises
    ------
    ValueError
        If it has none, or a text that is no plan, or one that no run of the dataset comes from.
    """
    text = dataset.attrs.get("plan")
    remedy = "Export it with noisysgd sweep."
    checks.require(isinstance(text, str), "dataset", "the text of a plan in its attribute 'plan'", text, remedy)
    try:
        plan = parse_plan(str(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"dataset: expected a plan in its attribute 'plan', got another text: {error}") from error
    planned = {config.key for config in plan.sweep.plan(plan.sweep.limits(plan.sweep.start()))}
    others = [config.as_dict() for config, _ in _records(dataset) if config.key not in planned]
    expected = "the plan of its runs in the attribute 'plan'"
    checks.require(not others, "dataset", expected, f"one without the run of {others[:1]}", remedy)
    return plan


def _attribute(dataset: xr.Dataset, name: str, kind: type) -> Any:
    """An attribute that holds JSON, empty if there is none."""
    text = dataset.attrs.get(name) or json.dumps(kind())
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        value = None
    remedy = "Pass one made by `noisysgd sweep export` or Sweep.run."
    expected = f"a JSON {kind.__name__} in its attribute {name!r}"
    checks.require(isinstance(value, kind), "dataset", expected, text, remedy)
    return value


def _records(dataset: xr.Dataset) -> Iterator[tuple[TrainConfig, dict[str, Any]]]:
    """The configuration and the record of every run in a dataset, rebuilt from its variables and attributes."""
    shared = _attribute(dataset, "configuration", dict)
    dims = [str(dim) for dim in dataset.status.dims]
    # Variables over all dimensions of the status are numbers of single runs.
    whole = [each for name, each in dataset.data_vars.items() if name != "status" and set(each.dims) == set(dims)]
    numbers = [str(each.name) for each in whole if each.dtype.kind in "iuf"]
    values = {name: dataset[name].transpose(*dims).values for name in numbers}
    names = {code: name for name, code in STATUSES.items()}
    curves = curves_of(dataset)
    codes = dataset.status.values
    odd = codes[~np.isin(codes, list(names))]
    checks.require(odd.size == 0, "dataset.status", f"values {STATUSES}", odd[:1].tolist(), "Export it anew.")
    for index in np.argwhere(~np.isin(codes, (MISSING, UNFINISHED))):
        at = tuple(index)
        place = {dim: dataset[dim].values[k] for dim, k in zip(dims, at, strict=True)}
        record: dict[str, Any] = {"status": names[int(codes[at])]}
        for name, table in values.items():
            record |= _entry(name, float(table[at]), record["status"])
        record |= {"curve": curves[at]} if at in curves else {}
        yield TrainConfig.from_dict(shared | _varied(dataset, place, dims, at)), record


def _varied(dataset: xr.Dataset, place: Mapping[str, Any], dims: Sequence[str], at: Sequence[int]) -> dict[str, Any]:
    """The part of a run's configuration that its coordinates give: seed, rates, batch size, momentum and budget."""
    own: dict[str, Any] = {"seed": place["seed"]}
    # Pairs of rates are stored as effective ones, of a sweep at one momentum; other sweeps store the rates themselves.
    if "initial" in place:
        unit = 1.0 - float(dataset.attrs["momentum"])
        own |= {"learning_rate": place["initial"] * unit, "final_learning_rate": place["final"] * unit}
    else:
        momentum = float(dataset.momentum.values[at[dims.index("optimizer")]])
        rate = _planned_rate(float(place["learning_rate"]), momentum)
        own |= {"momentum": momentum, "batch_size": place["batch_size"], "learning_rate": rate}
    if "budget" in place:
        own[dataset.budget.attrs["units"]] = place["budget"]
    return own


def _planned_rate(rate: float, momentum: float) -> float:
    """The learning rate 2^k·(1−m) of a sweep's plan, of which a coordinate is the same up to rounding.

    A coordinate stands for the rates of all optimizers that round to it, but a run is named after its own.

    >>> _planned_rate(0.1, 0.9)
    0.09999999999999998
    """
    exponent = np.log2(rate / (1.0 - momentum)) if rate > 0 else np.nan
    planned = float(2.0 ** np.round(exponent)) * (1.0 - momentum)
    return planned if abs(planned - rate) <= DOUBLE * rate else rate


def _entry(name: str, value: float, status: str) -> dict[str, Any]:
    """The entry that a record had for a number in a dataset.

    Metrics that a run lacks are ``None`` in its record, as all are that diverged, whose losses are infinite in the
    dataset. Of other numbers a record that lacked them has no entry.
    """
    if name in METRICS:
        lacking = math.isnan(value) or (status == "diverged" and not math.isfinite(value))
        return {name: None if lacking else value}
    if not math.isfinite(value):
        return {}
    return {name: int(value) if name in INTEGERS and value.is_integer() else value}
