"""Moments of every tile, stored beside an ensemble's result so that parts of one ensemble can be joined.

Floating-point sums depend on their order. A simulation merges its tiles from the first to the last; whoever has the
tiles of all parts can repeat that, and gets every bit that one call would have given.
"""

import hashlib
from collections.abc import Hashable, Iterable
from dataclasses import fields
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.simulators.ensembles.tiles import Moments, tile_sizes
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray

TILE = "tile"
"""Name of the dimension that has one entry per tile."""

REPLICAS = "tile_replicas"
"""Name of the variable that says how many replicas each tile has; its attribute is the experiment's fingerprint."""


def mean_of(metric: str) -> str:
    """Name of the variable that holds every tile's mean of a loss."""
    return f"{metric}_tile_mean"


def deviations_of(metric: str) -> str:
    """Name of the variable that holds every tile's sum of squared deviations of a loss."""
    return f"{metric}_tile_deviations"


def metrics_of(dataset: xr.Dataset) -> list[str]:
    """Names of the losses of which a dataset holds the moments of every tile."""
    return [str(name) for name in dataset.data_vars if mean_of(str(name)) in dataset.variables]


def room(configurations: int, rows: int, replicas: int) -> Moments:
    """Uninitialised space for the moments of every tile: two arrays of shape (configurations, rows, tiles)."""
    shape = configurations, rows, tile_sizes(replicas).size
    return np.empty(shape), np.empty(shape)


def require_free_axis(dims: Iterable[Hashable]) -> None:
    """Check that no axis and no label of the settings has the name that tiles need."""
    names = list(dims)
    checks.require(
        TILE not in names, "keep_tiles", f"no axis or label {TILE!r}", names, "Rename it: tiles need that name."
    )


def attach(dataset: xr.Dataset, metrics: list[str], moments: Moments, counts: IntArray, experiment: str) -> xr.Dataset:
    """Add to `dataset` the moments of every tile, and return it.

    Parameters
    ----------
    dataset : xarray.Dataset
        A result with the losses `metrics`, over the axes of the settings and ``step``.
    metrics : list of str
    moments : Moments
        As of `room`; in the rows, all metrics of a record stand next to each other.
    counts : (tiles,) array of int
        Replicas of each tile.
    experiment : str
        What `fingerprint` says of the experiment.
    """
    dims = (*dataset[metrics[0]].dims, TILE)
    shape = (*dataset[metrics[0]].shape, len(metrics), counts.size)
    mean, deviations = (array.reshape(shape) for array in moments)
    for k, name in enumerate(metrics):
        about = {"long_name": f"mean {name} of a tile", "units": "loss"}
        dataset[mean_of(name)] = (dims, mean[..., k, :], about)
        text = "sum of squared deviations from the mean of a tile"
        dataset[deviations_of(name)] = (dims, deviations[..., k, :], {"long_name": text, "units": "loss²"})
    dataset[REPLICAS] = (TILE, counts, {"long_name": "replicas of a tile", "experiment": experiment})
    return dataset


def fingerprint(*things: object) -> str:
    """SHA-256 of arrays, plain values and dataclasses made of them: equal for things that are equal in every bit.

    >>> from noisysgd import theory
    >>> fingerprint(theory.power_law(3)) == fingerprint(theory.power_law(3)) != fingerprint(theory.power_law(4))
    True
    """
    digest = hashlib.sha256()
    for thing in things:
        _feed(digest, thing)
    return digest.hexdigest()


def _feed(digest: Any, thing: Any) -> None:
    if isinstance(thing, np.ndarray):
        # Bytes alone would not tell arrays of other types or shapes apart.
        digest.update(f"{thing.dtype.str}{thing.shape};".encode())
        digest.update(np.ascontiguousarray(thing).tobytes())
    elif hasattr(thing, "__dataclass_fields__"):
        digest.update(f"{type(thing).__name__};".encode())
        for field in fields(thing):
            digest.update(f"{field.name}=".encode())
            _feed(digest, getattr(thing, field.name))
    else:
        digest.update(f"{thing!r};".encode())


def standard_error(deviations: FloatArray, replicas: int) -> FloatArray:
    """Standard error of the mean over `replicas`, from the sum of squared deviations S: √(S/(R − 1)/R)."""
    error: FloatArray = np.sqrt(deviations / (replicas - 1) / replicas)
    return error
