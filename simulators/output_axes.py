"""Axes of a result: which labelled dimensions it has, from the optimizer settings that were passed."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray

RESERVED = "step"
"""Name of the dimension of the records."""

DERIVED = ("effective_learning_rate", "temperature")
"""Names of the coordinates that are computed from the settings."""


def labelled(**given: ArrayLike | xr.DataArray) -> tuple[dict[str, xr.DataArray], xr.Dataset]:
    """Broadcast settings, given by name, against each other.

    - Scalars make no axis.
    - A setting that is an ``xarray.DataArray`` brings its own dimensions. A 1-D array beside one, or the only array
      that is given, has a dimension of the setting's name. These broadcast by name.
    - Several plain arrays broadcast by position, NumPy-style, to ``axis_0``, ``axis_1``, …

    Returns
    -------
    settings : dict of str to xarray.DataArray
        The settings, all of the broadcast shape.
    coordinates : xarray.Dataset
        Their coordinates, and no data.

    Raises
    ------
    ValueError
        If the settings do not broadcast, or a dimension's name is taken.

    Examples
    --------
    >>> full, coordinates = labelled(learning_rate=[0.1, 0.2], batch_size=8, momentum=0.0)
    >>> full["batch_size"].values, full["batch_size"].dims
    (array([8., 8.]), ('learning_rate',))
    """
    settings = {n: v if isinstance(v, xr.DataArray) else checks.real(n, v) for n, v in given.items()}
    for name, value in settings.items():
        checks.require(np.size(value) > 0, name, "at least one value", value, "Pass a number or several.")
    axes = [name for name, value in settings.items() if np.ndim(value) > 0]
    by_name = any(isinstance(settings[name], xr.DataArray) for name in axes)
    if by_name or (len(axes) == 1 and np.ndim(settings[axes[0]]) == 1):
        arrays = {name: _by_name(name, value) for name, value in settings.items()}
    else:
        arrays = _by_position(settings)
    try:
        full = dict(zip(arrays, xr.broadcast(*xr.align(*arrays.values(), join="exact", copy=False)), strict=True))
    except ValueError as error:
        got = {name: dict(array.sizes) for name, array in arrays.items()}
        remedy = "Give axes that differ different names, and equal axes equal labels."
        raise ValueError(f"{', '.join(arrays)}: expected axes that broadcast by name, got {got}. {remedy}") from error
    _require_free_names(arrays)
    return full, xr.Dataset(coords=_coordinates(arrays))


def require_free_names(metrics: Iterable[str], **settings: object) -> None:
    """Check that no axis of a setting has the name of a variable of the result, and no label that of a loss.

    >>> require_free_names(["loss"], learning_rate=xr.DataArray([0.1], dims="loss"))
    Traceback (most recent call last):
    ValueError: learning_rate: expected no axis or label named 'loss', got ['loss']. The result needs it: rename it.
    """
    losses = [full for name in metrics for full in (name, f"{name}_stderr")]
    for name, value in settings.items():
        if isinstance(value, xr.DataArray):
            used = [str(axis) for axis in value.dims]
            used += [str(label) for label in value.coords if label in losses]
            for result in (*losses, *DERIVED):
                free = result not in used
                checks.require(
                    free, name, f"no axis or label named {result!r}", used, "The result needs it: rename it."
                )


def _by_name(name: str, value: xr.DataArray | FloatArray) -> xr.DataArray:
    """A setting with named dimensions: its own, or one of the setting's name."""
    if isinstance(value, xr.DataArray):
        array = value.rename(None)
    else:
        remedy = "Pass an xarray.DataArray to name its axes."
        checks.require(np.ndim(value) < 2, name, "at most one axis beside a DataArray", np.shape(value), remedy)
        array = xr.DataArray(value, dims=[name][: np.ndim(value)])
    # A setting labels its own axis with its values; any labels it came with would contradict them.
    return array.assign_coords({name: array.values}) if array.dims == (name,) else array


def _by_position(settings: Mapping[str, xr.DataArray | FloatArray]) -> dict[str, xr.DataArray]:
    """Plain arrays, broadcast against each other, with dimensions that are numbered."""
    arrays = checks.broadcast(**{name: np.asarray(value) for name, value in settings.items()})
    dims = [f"axis_{axis}" for axis in range(arrays[0].ndim)]
    return {name: xr.DataArray(array, dims=dims) for name, array in zip(settings, arrays, strict=True)}


def _require_free_names(arrays: dict[str, xr.DataArray]) -> None:
    """Check that only a setting's own axis has the name of a setting, and that none has the name of the records."""
    dims = [array.dims for array in arrays.values()]
    for name in (RESERVED, *arrays):
        free = not any(name in each for each in dims) or (name in arrays and arrays[name].dims == (name,))
        remedy = "The coordinate of that name needs it: rename the axis."
        checks.require(free, ", ".join(arrays), f"no axis {name!r}", dims, remedy)


def _coordinates(arrays: dict[str, xr.DataArray]) -> dict[str, Any]:
    """All coordinates of a result: labels that came with the settings, and the settings on their own dimensions."""
    labels: dict[str, Any] = {str(label): values for array in arrays.values() for label, values in array.coords.items()}
    return labels | {name: array.variable for name, array in arrays.items()}
