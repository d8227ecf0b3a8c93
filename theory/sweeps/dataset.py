"""The Sweep: one labelled dataset for theory, simulation and training, so that comparing them is a subtraction.

Its dimensions are some of :data:`DIMENSIONS`. The variable ``status`` says of every point whether it is missing,
complete, diverged or unfinished; every other variable over those dimensions is a metric. The grid is the product of all
values that occur: a learning rate that was run with only one optimizer or batch size is missing for the others. A run
that was meant to be there and has no result is unfinished.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.provenance import provenance
from noisysgd.theory.schedules.effective_rate import effective_learning_rate, temperature
from noisysgd.theory.sweeps.coordinates import JOINED, equal_pair
from noisysgd.theory.sweeps.directions import objective_of
from noisysgd.theory.sweeps.netcdf import read_dataset, write_dataset

if TYPE_CHECKING:
    import xarray as xr

SCHEMA_VERSION = 1
DIMENSIONS = ("optimizer", "batch_size", "learning_rate", "seed", "budget", "step", "evaluation")
MISSING, COMPLETE, DIVERGED, UNFINISHED = 0, 1, 2, 3
STATUSES = {"missing": MISSING, "complete": COMPLETE, "diverged": DIVERGED, "unfinished": UNFINISHED}
SOURCES = ("theory", "simulator", "training")
UNITS: Mapping[str, tuple[str, str, str | None]] = {
    "train_loss": ("training loss", "nats", "minimize"),
    "expected_loss": ("expected excess training loss", "loss", "minimize"),
    "standard_error": ("standard error of the expected loss", "loss", "minimize"),
    "test_loss": ("test loss", "nats", "minimize"),
    "train_accuracy": ("training accuracy", "1", "maximize"),
    "test_accuracy": ("test accuracy", "1", "maximize"),
    "seconds": ("wall-clock time of the run", "s", "minimize"),
}
"""Long name, units and direction of improvement of the metrics known by name."""


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


def labelled(
    axes: Mapping[str, Sequence[Any]],
    status: "npt.NDArray[np.int8]",
    table: Mapping[str, FloatArray],
    *,
    source: str,
    objectives: Mapping[str, str],
    configuration: Mapping[str, Any],
) -> "xr.Dataset":
    """The Sweep of a status and of metrics over axes, with derived coordinates and attributes.

    Parameters
    ----------
    axes : mapping of str to sequence
        Optimizers (:data:`~noisysgd.theory.sweeps.optimizers.Optimizer`), batch sizes, learning rates, seeds and, if
        there are, budgets, in this order.
    status, table
        Statuses, and values of every metric, over these axes.
    source : str
        One of :data:`SOURCES`.
    objectives : mapping of str to str
        Directions of metrics; those that are not in it have the one of :data:`UNITS` or of their plain names, or none.
    configuration : mapping
        Everything else that determines the numbers.
    """
    import xarray as xr

    dims = DIMENSIONS[: len(axes)]
    sizes, rates = np.array(axes["batch_size"]), np.array(axes["learning_rate"])
    momenta = np.array([momentum for _, momentum in axes["optimizer"]])
    inertia = np.where(np.isnan(momenta), 0.0, momenta)  # without ε/(1−m) the learning rate stands for itself
    whole = bool(np.isfinite(sizes).all() and np.all(sizes == np.trunc(sizes)))
    dataset = xr.Dataset(
        {"status": (dims, status)} | {name: (dims, values) for name, values in table.items()},
        coords={
            "optimizer": [label for label, _ in axes["optimizer"]],
            "batch_size": sizes.astype(np.int64) if whole else sizes,
            "learning_rate": rates,
            "seed": np.array(axes["seed"], dtype=np.int64),
            "momentum": ("optimizer", momenta),
            **({"budget": np.array(axes["budget"])} if "budget" in axes else {}),
            "effective_learning_rate": (
                ("optimizer", "learning_rate"),
                effective_learning_rate(rates, inertia[:, None]),
            ),
            "temperature": (
                ("optimizer", "batch_size", "learning_rate"),
                temperature(rates, sizes[:, None], inertia[:, None, None]),
            ),
        },
        attrs={
            "schema": "noisysgd sweep",
            "schema_version": SCHEMA_VERSION,
            "source": source,
            "configuration": _as_json(configuration),
        }
        | provenance(),
    )
    dataset.status.attrs = status_attributes()
    for name in table:
        dataset[name].attrs = metric_attributes(name, objectives.get(name))
    dataset.learning_rate.attrs = {"long_name": "learning rate", "units": "squared parameter per loss"}
    dataset.effective_learning_rate.attrs = {"long_name": "effective learning rate", "units": "as learning_rate"}
    dataset.temperature.attrs = {"long_name": "temperature", "units": "as learning_rate"}
    return dataset


def status_attributes() -> dict[str, Any]:
    """Attributes of a variable ``status``: what its numbers mean."""
    return {
        "flag_values": np.array(list(STATUSES.values()), dtype=np.int8),
        "flag_meanings": " ".join(STATUSES),
        "long_name": "status of the run",
    }


def metric_attributes(name: str, objective: str | None = None) -> dict[str, str]:
    """Long name, units and direction of a metric; no direction if it is neither given nor plain from the name.

    >>> metric_attributes("test_error"), metric_attributes("auc")
    ({'long_name': 'test_error', 'units': '1', 'objective': 'minimize'}, {'long_name': 'auc', 'units': '1'})
    """
    long_name, units, usual = UNITS.get(name, (name, "1", objective_of(name)))
    direction = objective or usual
    return {"long_name": long_name, "units": units} | ({"objective": direction} if direction else {})


@ignoring_underflow
def _as_json(configuration: Mapping[str, Any]) -> str:
    """A configuration as it stands in the attributes; its numbers may be of any kind that ``float`` takes."""
    try:
        return json.dumps(dict(configuration), sort_keys=True, default=float)
    except Exception as error:  # whatever the values' own classes raise
        expected = "names with numbers, texts, lists and mappings"
        got = f"what JSON cannot hold ({type(error).__name__})"
        raise ValueError(
            f"configuration: expected {expected}, got {got}. Leave it out, or write it as text."
        ) from error


def check_sweep(sweep: "xr.Dataset") -> "xr.Dataset":
    """Return `sweep` itself if it follows the schema; otherwise raise a ``ValueError`` that says where it does not."""
    remedy = "Put the points together with join_sweeps([sweep])."
    for name in sorted(set(JOINED) & set(map(str, check_schema(sweep).dims))):
        twice = equal_pair(name, sweep[name].values)
        expected = "values that differ by more than rounding"
        checks.require(twice is None, f"sweep.{name}", expected, twice, remedy)
    for name in sorted({"optimizer", "seed"} & set(map(str, sweep.dims))):
        names = sweep[name].values
        checks.require(len(set(names.tolist())) == names.size, f"sweep.{name}", "distinct names", names, remedy)
    known = bool(np.isin(sweep.status, list(STATUSES.values())).all())
    checks.require(known, "sweep.status", f"values {STATUSES}", np.unique(sweep.status), remedy)
    return sweep


def check_schema(sweep: "xr.Dataset") -> "xr.Dataset":
    """Return `sweep` itself if it has the version, dimensions and coordinates of Sweeps, whatever values these have."""
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
    needed = {"effective_learning_rate", "temperature", *map(str, sweep.status.dims)} - {"seed"}
    absent = sorted(needed - set(map(str, sweep.coords)))
    checks.require(not absent, "sweep", f"coordinates {sorted(needed)}", f"none of {absent}", remedy)
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
