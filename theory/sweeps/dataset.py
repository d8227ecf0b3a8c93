"""The Sweep: one labelled dataset for theory, simulation and training, so that comparing them is a subtraction.

Its dimensions are some of :data:`DIMENSIONS`. The variable ``status`` says of every point whether it is missing,
complete or diverged; every other variable over those dimensions is a metric. The grid is the product of all values that
occur: a learning rate that was run with only one optimizer or batch size is missing for the others.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.provenance import provenance
from noisysgd.theory.schedules.effective_rate import effective_learning_rate, temperature
from noisysgd.theory.sweeps.netcdf import read_dataset, write_dataset

if TYPE_CHECKING:
    import xarray as xr

SCHEMA_VERSION = 1
DIMENSIONS = ("optimizer", "batch_size", "learning_rate", "seed", "budget", "epoch")
MISSING, COMPLETE, DIVERGED = 0, 1, 2
STATUSES = {"missing": MISSING, "complete": COMPLETE, "diverged": DIVERGED}
SOURCES = ("theory", "simulator", "training")
UNITS = {
    "train_loss": ("training loss", "nats", "minimize"),
    "expected_loss": ("expected excess training loss", "loss", "minimize"),
    "standard_error": ("standard error of the expected loss", "loss", "minimize"),
    "test_loss": ("test loss", "nats", "minimize"),
    "train_accuracy": ("training accuracy", "1", "maximize"),
    "test_accuracy": ("test accuracy", "1", "maximize"),
    "seconds": ("wall-clock time of the run", "s", "minimize"),
}
"""Long name, units and direction of improvement of the metrics known by name."""


def optimizer_name(momentum: float) -> str:
    """Label of an optimizer: ``sgd``, or ``momentum 0.9``.

    >>> optimizer_name(0.0), optimizer_name(0.9)
    ('sgd', 'momentum 0.9')
    """
    return "sgd" if momentum == 0 else f"momentum {momentum:g}"


@ignoring_underflow
def powers_of_two(low: int, high: int, fraction: int = 1) -> FloatArray:
    """The learning-rate grid 2^low … 2^high, both included, with neighbours a factor of 2^(1/fraction) apart.

    >>> powers_of_two(-2, 1)
    array([0.25, 0.5 , 1.  , 2.  ])
    """
    fraction = checks.integer("fraction", fraction, 1, remedy="Use 1 for whole powers of two.")
    remedy = "Pass exponents of two."
    low, high = (checks.integer(name, value, -1000, remedy=remedy) for name, value in (("low", low), ("high", high)))
    checks.require(low <= high <= 1000, "low, high", "integers with low ≤ high ≤ 1000", (low, high), remedy)
    return np.asarray(2.0 ** (np.arange(low * fraction, high * fraction + 1) / fraction))


@ignoring_underflow
def sweep_from_records(
    records: Iterable[Mapping[str, Any]],
    *,
    source: str,
    metrics: Iterable[str],
    configuration: Mapping[str, Any] | None = None,
) -> "xr.Dataset":
    """A Sweep from one record per run.

    Parameters
    ----------
    records : iterable of mappings
        Each has ``momentum``, ``batch_size``, ``learning_rate``, ``seed``, ``status`` ("complete" or "diverged") and
        the metrics. A metric that is absent or None becomes NaN, but a loss of a diverged run becomes ``inf``. Either
        all records have a ``budget``, a number, or none.
    source : {"theory", "simulator", "training"}
        Where the numbers come from.
    metrics : iterable of str
        Names of the metrics to store; other entries of the records are dropped.
    configuration : mapping, optional
        Everything else that determines the numbers; stored as JSON in the attributes.

    Returns
    -------
    xarray.Dataset
        Over (optimizer, batch_size, learning_rate, seed), and budget if the records have one.

    Raises
    ------
    ValueError
        For two records of one point, an incomplete record, an unknown status or source, or no records.

    Examples
    --------
    >>> run = {"momentum": 0.0, "batch_size": 16, "seed": 0, "status": "complete"}
    >>> sweep = sweep_from_records(
    ...     [run | {"learning_rate": 0.5, "train_loss": 0.1}, run | {"learning_rate": 1.0, "train_loss": 0.2}],
    ...     source="training", metrics=["train_loss"])
    >>> dict(sweep.sizes)
    {'optimizer': 1, 'batch_size': 1, 'learning_rate': 2, 'seed': 1}
    """
    import xarray as xr

    rows = list(records)
    checks.require(bool(rows), "records", "at least one record", rows, "Run something first.")
    checks.one_of("source", source, SOURCES)
    names = ["momentum", "batch_size", "learning_rate", "seed"]
    names += ["budget"] if any("budget" in row for row in rows) else []
    needed = {*names, "status"}
    lacking = next((sorted(needed - set(row)) for row in rows if needed - set(row)), None)
    checks.require(lacking is None, "records", f"{sorted(needed)} in each", f"none of {lacking}", "Complete them.")
    # The values that occur in the records are the axes; every record then has its place in the table.
    axes = {name: sorted({_key(name, row) for row in rows}) for name in names}
    shape = tuple(map(len, axes.values()))
    places = {name: {value: k for k, value in enumerate(values)} for name, values in axes.items()}
    status = np.zeros(shape, dtype=np.int8)
    table = {name: np.full(shape, np.nan) for name in metrics}
    for row in rows:
        at = tuple(places[name][_key(name, row)] for name in axes)
        expected = "one record per point"
        checks.require(status[at] == MISSING, "records", expected, f"two of {dict(row)}", "Drop the repetition.")
        status[at] = STATUSES[checks.one_of("status", row["status"], ("complete", "diverged"))]
        for name, values in table.items():
            worst = np.inf if name.endswith("loss") and status[at] == DIVERGED else np.nan
            values[at] = worst if row.get(name) is None else float(row[name])
    dims = DIMENSIONS[: len(names)]
    momenta, sizes, rates = (np.array(axes[name]) for name in ("momentum", "batch_size", "learning_rate"))
    dataset = xr.Dataset(
        {"status": (dims, status)} | {name: (dims, values) for name, values in table.items()},
        coords={
            "optimizer": [optimizer_name(m) for m in momenta],
            "batch_size": sizes.astype(np.int64)
            if np.all(sizes == np.trunc(sizes)) and np.isfinite(sizes).all()
            else sizes,
            "learning_rate": rates,
            "seed": np.array(axes["seed"], dtype=np.int64),
            "momentum": ("optimizer", momenta),
            **({"budget": np.array(axes["budget"])} if "budget" in axes else {}),
            "effective_learning_rate": (
                ("optimizer", "learning_rate"),
                effective_learning_rate(rates, momenta[:, None]),
            ),
            "temperature": (
                ("optimizer", "batch_size", "learning_rate"),
                temperature(rates, sizes[:, None], momenta[:, None, None]),
            ),
        },
        attrs={
            "schema": "noisysgd sweep",
            "schema_version": SCHEMA_VERSION,
            "source": source,
            "configuration": json.dumps(dict(configuration or {}), sort_keys=True, default=float),
        }
        | provenance(),
    )
    dataset.status.attrs = {
        "flag_values": np.array(list(STATUSES.values()), dtype=np.int8),
        "flag_meanings": " ".join(STATUSES),
        "long_name": "status of the run",
    }
    for name in table:
        long_name, units, objective = UNITS.get(name, (name, "1", objective_of(name)))
        dataset[name].attrs = {"long_name": long_name, "units": units, "objective": objective}
    dataset.learning_rate.attrs = {"long_name": "learning rate", "units": "squared parameter per loss"}
    dataset.effective_learning_rate.attrs = {"long_name": "effective learning rate", "units": "as learning_rate"}
    dataset.temperature.attrs = {"long_name": "temperature", "units": "as learning_rate"}
    return dataset


def _key(name: str, row: Mapping[str, Any]) -> Any:
    """A record's coordinate along an axis. Seeds stay integers: as floats, large ones could not be told apart."""
    return int(row[name]) if name == "seed" else float(row[name])


def objective_of(metric: str) -> str:
    """Whether a metric is to be minimized or maximized, from its name: accuracies are maximized.

    >>> objective_of("test_accuracy"), objective_of("train_loss")
    ('maximize', 'minimize')
    """
    return "maximize" if metric.endswith("accuracy") else "minimize"


@ignoring_underflow
def check_sweep(sweep: "xr.Dataset") -> "xr.Dataset":
    """Return `sweep` itself if it follows the schema; otherwise raise a ``ValueError`` that says where it does not."""
    import xarray as xr

    checks.require(isinstance(sweep, xr.Dataset), "sweep", "an xarray.Dataset", type(sweep), "Pass a Sweep.")
    version = sweep.attrs.get("schema_version")
    remedy = "Make it with sweep_from_records or read it with load_sweep."
    checks.require(version == SCHEMA_VERSION, "sweep", f"schema version {SCHEMA_VERSION}", version, remedy)
    extra = set(sweep.dims) - set(DIMENSIONS)
    checks.require(not extra, "sweep", f"dimensions among {DIMENSIONS}", sorted(map(str, extra)), remedy)
    checks.require(
        "status" in sweep and "learning_rate" in sweep.dims, "sweep", "status over learning_rate", sweep, remedy
    )
    derived = {"effective_learning_rate", "temperature"}
    absent = sorted(derived - set(map(str, sweep.coords)))
    checks.require(not absent, "sweep", f"coordinates {sorted(derived)}", f"none of {absent}", remedy)
    known = bool(np.isin(sweep.status, list(STATUSES.values())).all())
    checks.require(known, "sweep.status", f"values {STATUSES}", np.unique(sweep.status), remedy)
    return sweep


@ignoring_underflow
def save_sweep(sweep: "xr.Dataset", path: str | os.PathLike[str]) -> Path:
    """Write a Sweep as netCDF (version 3, which SciPy writes) and return the path.

    The file has a temporary name until it is complete, so that an interruption leaves no half of one, and carries a
    digest of its contents, which :func:`load_sweep` checks.

    Raises
    ------
    ValueError
        If it is no Sweep, or not one that netCDF 3 can hold, or `path` is a device, a link or a folder.
    OSError
        If the file cannot be written.
    """
    return write_dataset(check_sweep(sweep), path)


@ignoring_underflow
def load_sweep(path: str | os.PathLike[str]) -> "xr.Dataset":
    """Read a Sweep written by :func:`save_sweep`, with the integer types that netCDF 3 cannot keep restored.

    Raises
    ------
    ValueError
        If the file is no Sweep, or is damaged, or was changed by another program.
    OSError
        If it cannot be read.
    """
    return check_sweep(read_dataset(path))
