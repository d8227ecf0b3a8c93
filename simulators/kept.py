"""Moments of every tile, kept beside an ensemble's result so that parts of one ensemble can be joined.

Floating-point sums depend on their order. A simulation merges its tiles from the first to the last; whoever has the
tiles of all parts can repeat that, and gets every bit that one call would have given.
"""

import hashlib
from collections.abc import Hashable, Iterable
from dataclasses import fields
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.simulators.tiles import LANES, Moments
from noisysgd.theory import checks
from noisysgd.theory.checks import FloatArray, IntArray

TILE = "tile"
"""The dimension of what is kept."""

MEAN, DEVIATIONS, REPLICAS = NAMES = ("tile_mean", "tile_deviations", "tile_replicas")


def room(configurations: int, records: int, replicas: int) -> Moments:
    """Space for the moments of every tile, each of shape (configurations, records, tiles)."""
    shape = configurations, records, sizes(replicas).size
    return np.empty(shape), np.empty(shape)


def sizes(replicas: int) -> IntArray:
    """How many replicas each tile has.

    >>> sizes(300)
    array([128, 128,  44])
    """
    return np.diff(np.append(np.arange(0, replicas, LANES), replicas))


def require_free_axis(dims: Iterable[Hashable]) -> None:
    """Check that no axis of the settings has the name that tiles need."""
    names = list(dims)
    checks.require(TILE not in names, "keep_tiles", f"no axis {TILE!r}", names, "Rename it: tiles need that name.")


def attach(dataset: xr.Dataset, moments: Moments, counts: IntArray, experiment: str) -> xr.Dataset:
    """`dataset` with its tiles: means and sums of squared deviations, (…, step, tile), and their replicas, (tile,)."""
    dims = (*dataset["loss"].dims, TILE)
    shape = (*dataset["loss"].shape, counts.size)
    mean, deviations = (array.reshape(shape) for array in moments)
    dataset[MEAN] = (dims, mean, {"long_name": "mean loss of a tile", "units": "loss", "experiment": experiment})
    text = "sum of squared deviations from the mean of a tile"
    dataset[DEVIATIONS] = (dims, deviations, {"long_name": text, "units": "loss²"})
    dataset[REPLICAS] = (TILE, counts, {"long_name": "replicas of a tile"})
    return dataset


def fingerprint(*things: Any) -> str:
    """SHA-256 of arrays, plain values and the dataclasses made of them: equal if and only if every bit is.

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
    """Standard error of the mean from the sum of squared deviations."""
    error: FloatArray = np.sqrt(deviations / (replicas - 1) / replicas)
    return error
