"""A sweep as one netCDF file, and back: what is exported can be imported into a store, and the sweep goes on."""

import json
import logging
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.theory.common import checks
from noisysgd.theory.sweeps.dataset import MISSING, STATUSES, load_sweep, save_sweep
from noisysgd.validation.configuration import METRICS, TrainConfig
from noisysgd.validation.runs.store import RunStore
from noisysgd.validation.sweeps.plan import Plan
from noisysgd.validation.sweeps.trained_pairs import SCHEMA as PAIRS

logger = logging.getLogger(__name__)

NO_NUMBERS = {"config", "status", "provenance", *METRICS}
WHOLE = {"steps"}
"""Numbers of records that are integers; netCDF 3 has none wide enough."""


def export(plan: Plan, store: RunStore) -> xr.Dataset:
    """What a store has of a plan, as the dataset of the sweep with all further numbers of its records.

    Learning rates that the sweep has grown by are included, unfinished runs are missing. The attribute ``plan`` is the
    plan's TOML text.

    Raises
    ------
    ValueError
        If the store has none of the runs.
    """
    state = plan.sweep.state(store)
    expected = "at least one finished run of this sweep"
    checks.require(bool(state.found), str(store.root), expected, "none", "Run the sweep, or name its store.")
    numbers = {
        name
        for record in state.found
        for name, value in record.items()
        if name not in NO_NUMBERS and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return plan.sweep.collect(state.windows, state.found, sorted(numbers)).assign_attrs(plan=plan.text)


def save(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write an exported dataset as netCDF, under a temporary name until it is whole."""
    path = Path(path)
    if dataset.attrs.get("schema") != PAIRS:
        return save_sweep(dataset, path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        # netCDF 3 has no 64-bit integers; seeds may need them.
        dataset.assign_coords(seed=dataset.seed.astype(str)).to_netcdf(partial, engine="scipy")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read what :func:`save` wrote.

    Raises
    ------
    ValueError
        For a file that is not an exported sweep, or is damaged.
    """
    try:
        return load_sweep(path)
    except ValueError:
        try:
            with xr.open_dataset(path, engine="scipy") as stored:
                dataset = stored.load()
        except Exception:
            dataset = xr.Dataset()
        if dataset.attrs.get("schema") != PAIRS:
            raise
        return dataset.assign_coords(seed=dataset.seed.astype(np.int64))


@dataclass(frozen=True)
class Imported:
    """What became of the runs of an imported dataset."""

    added: int
    known: int
    different: tuple[str, ...]
    """Names of runs that the store has with another result; the store's stays."""


def import_runs(dataset: xr.Dataset, store: RunStore) -> Imported:
    """Add the runs of an exported dataset to a store, as if they had taken place there.

    Raises
    ------
    ValueError
        If the dataset does not say what its runs were: one of theory or a simulator, or of another program, such as
        what :func:`noisysgd.validation.read_pd1` reads.
    """
    source = dataset.attrs.get("source")
    remedy = "Pass one made by `noisysgd sweep export` or Sweep.run."
    checks.require(source == "training", "dataset", "a sweep of training runs", f"source {source!r}", remedy)
    shared = json.loads(dataset.attrs.get("configuration") or "{}")
    origin = shared.get("origin")
    expected = "runs of this package, each with a TrainConfig"
    remedy = "A store can neither repeat them nor go on from them: use the file itself, as theory.load_sweep reads it."
    checks.require(origin is None, "dataset", expected, f"trials of others, which have none: {origin}", remedy)
    added, known, different = 0, 0, []
    provenance = json.loads(dataset.attrs.get("runs_provenance") or "[]")
    provenance = provenance[0] if len(provenance) == 1 else provenance
    for config, record in _records(dataset):
        stored = store.read(config)
        if stored is None:
            store.write(record | {"config": config.as_dict(), "provenance": provenance})
            added += 1
        elif all(stored.get(name) == record[name] for name in ("status", *METRICS)):
            known += 1
        else:
            different.append(config.key)
    return Imported(added, known, tuple(different))


def _records(dataset: xr.Dataset) -> Iterator[tuple[TrainConfig, dict[str, Any]]]:
    """Configuration and record of every run in a dataset."""
    shared = json.loads(dataset.attrs.get("configuration") or "{}")
    dims = [str(dim) for dim in dataset.status.dims]
    numbers = [str(name) for name in dataset.data_vars if name != "status" and set(dataset[name].dims) == set(dims)]
    values = {name: dataset[name].transpose(*dims).values for name in numbers}
    names = {code: name for name, code in STATUSES.items()}
    for index in np.argwhere(dataset.status.values != MISSING):
        at = tuple(index)
        place = {dim: dataset[dim].values[k] for dim, k in zip(dims, at, strict=True)}
        record: dict[str, Any] = {"status": names[int(dataset.status.values[at])]}
        for name, table in values.items():
            record |= _number(name, float(table[at]))
        yield TrainConfig.from_dict(shared | _varied(dataset, place, dims, at)), record


def _varied(dataset: xr.Dataset, place: Mapping[str, Any], dims: Sequence[str], at: Sequence[int]) -> dict[str, Any]:
    """What a run's configuration has of its own."""
    own: dict[str, Any] = {"seed": int(place["seed"])}
    if "initial" in place:
        unit = 1.0 - float(dataset.attrs["momentum"])
        own |= {"learning_rate": place["initial"] * unit, "final_learning_rate": place["final"] * unit}
    else:
        momentum = float(dataset.momentum.values[at[dims.index("optimizer")]])
        own |= {"momentum": momentum, "batch_size": int(place["batch_size"]), "learning_rate": place["learning_rate"]}
    if "budget" in place:
        own[dataset.budget.attrs["units"]] = place["budget"]
    return own


def _number(name: str, value: float) -> dict[str, Any]:
    """A metric, ``None`` where a diverged run has none; any other number, if the record had it."""
    finite = math.isfinite(value)
    if name in METRICS:
        return {name: value if finite else None}
    return {name: int(value) if name in WHOLE else value} if finite else {}
