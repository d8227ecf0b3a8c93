"""Learning curves in a Sweep: the bins of every run along the dimension ``step``, its evaluations along ``evaluation``.

All runs have the same number of bins, each the same share of its run, so that runs of different lengths fit into one
table. Which updates a bin holds is said exactly, by the coordinates ``step_start`` and ``step_stop``: those numbered
step_start, …, step_stop − 1, counted from 0. The coordinates have only the dimensions on which they depend, such as the
batch size under a budget of epochs. Nothing is interpolated.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common.arrays import FloatArray

if TYPE_CHECKING:
    import xarray as xr

Curve = Mapping[str, Any]
"""The entry ``curve`` of a record. It has lists of ``edges`` (of K bins, K + 1 steps), ``loss`` and ``std`` (K values,
``None`` where there is none), and perhaps ``evaluated``, with a list of ``steps`` and one of each metric there."""

LOSS, SPREAD, START, STOP = "minibatch_loss", "minibatch_loss_std", "step_start", "step_stop"
EVALUATED, EVALUATED_AT = "evaluated_", "evaluation_step"
ATTRIBUTES = {
    LOSS: {"long_name": "minibatch loss, mean over a bin of steps", "units": "nats", "objective": "minimize"},
    SPREAD: {"long_name": "standard deviation of the minibatch losses in a bin", "units": "nats"},
    START: {"long_name": "first step of the bin", "units": "1"},
    STOP: {"long_name": "step after the last of the bin", "units": "1"},
    EVALUATED_AT: {"long_name": "step of the evaluation", "units": "1"},
}


def curve_fault(curve: object) -> str | None:
    """What is wrong with the entry ``curve`` of a record, in words; ``None`` if nothing is, or there is no curve.

    >>> curve_fault({"edges": [0, 2, 4], "loss": [1.0, None], "std": [0.1, None]})
    >>> curve_fault({"edges": [0, 2, 4], "loss": [1.0], "std": [0.1]})
    '3 edges for 1 losses and 1 spreads'
    """
    if curve is None:
        return None
    if not isinstance(curve, Mapping):
        return f"{type(curve).__name__} instead of a mapping"
    edges, losses, spreads = (curve.get(name, ()) for name in ("edges", "loss", "std"))
    if not (_steps(edges) and _numbers(losses) and _numbers(spreads)):
        return "no lists of edges, losses and spreads"
    if not len(edges) - 1 == len(losses) == len(spreads) > 0:
        return f"{len(edges)} edges for {len(losses)} losses and {len(spreads)} spreads"
    if sorted(edges) != list(edges):
        return "edges that do not ascend"
    evaluated = curve.get("evaluated", {"steps": []})
    if not isinstance(evaluated, Mapping) or not _steps(evaluated.get("steps")):
        return "evaluations without steps"
    odd = [name for name, values in evaluated.items() if not _numbers(values, len(evaluated["steps"]))]
    return f"evaluated {odd[0]} that does not fit its steps" if odd else None


def add_curves(dataset: "xr.Dataset", curves: Mapping[tuple[int, ...], Curve | None]) -> "xr.Dataset":
    """A dataset of runs, with their learning curves; itself if none of them has one.

    Parameters
    ----------
    dataset : xarray.Dataset
        With ``status`` over its dimensions.
    curves : mapping
        Curves of runs by their indices along the dimensions of ``status``.

    Returns
    -------
    xarray.Dataset
        With ``minibatch_loss`` and ``minibatch_loss_std`` over these and ``step``, and ``evaluated_train_loss`` and the
        like over these and ``evaluation`` if there were evaluations. NaN stands for what a run has not: for the bins
        after it diverged, for all bins if none were recorded, and for the spread of a single step.

    Examples
    --------
    >>> from noisysgd import theory
    >>> run = {"momentum": 0.0, "batch_size": 16, "seed": 0, "learning_rate": 0.5, "status": "complete"}
    >>> curve = {"edges": [0, 5, 10], "loss": [2.0, 1.0], "std": [0.5, 0.25]}
    >>> sweep = theory.sweep_from_records([run | {"curve": curve}], source="training", metrics=[])
    >>> sweep.minibatch_loss.squeeze().values, sweep.step_stop.values
    (array([2., 1.]), array([ 5., 10.]))
    """
    found = {at: curve for at, curve in curves.items() if curve is not None}
    if not found:
        return dataset
    dims = tuple(map(str, dataset.status.dims))
    bins = max(len(curve["loss"]) for curve in found.values())
    table = _Tables(dataset.status.shape, dims)
    for at, curve in found.items():
        for name, values in ((LOSS, curve["loss"]), (SPREAD, curve["std"])):
            table.fill(name, at, values, bins, "step")
        for name, values in ((START, curve["edges"][:-1]), (STOP, curve["edges"][1:])):
            table.fill(name, at, values, bins, "step")
    evaluated = {at: curve["evaluated"] for at, curve in found.items() if curve.get("evaluated")}
    most = max((len(each["steps"]) for each in evaluated.values()), default=0)
    for at, each in evaluated.items():
        for name, values in each.items():
            table.fill(EVALUATED_AT if name == "steps" else EVALUATED + name, at, values, most, "evaluation")
    places = (START, STOP, EVALUATED_AT)
    added = dataset.assign({name: table.variable(name) for name in table.values if name not in places})
    added = added.assign_coords({name: table.variable(name, reduced=True) for name in table.values if name in places})
    for name in table.values:
        metric = name.removeprefix(EVALUATED)
        known = dataset[metric].attrs if metric in dataset and metric != name else {}
        long_name = f"{known.get('long_name', metric)}, evaluated under way"
        added[name].attrs = ATTRIBUTES.get(name, dict(known) | {"long_name": long_name})
    return added


def curves_of(dataset: "xr.Dataset") -> dict[tuple[int, ...], Curve]:
    """The curves in a dataset, as records have them, by the indices of their runs: what :func:`add_curves` takes."""
    if START not in dataset.coords:
        return {}
    dims = tuple(map(str, dataset.status.dims))
    losses, spreads, starts, stops = (_whole_table(dataset, name, dims, "step") for name in (LOSS, SPREAD, START, STOP))
    names = [str(name) for name in dataset.data_vars if str(name).startswith(EVALUATED)]
    metrics = {name.removeprefix(EVALUATED): _whole_table(dataset, name, dims, "evaluation") for name in names}
    steps = _whole_table(dataset, EVALUATED_AT, dims, "evaluation") if metrics else np.zeros((*dataset.status.shape, 0))
    # At what steps runs were evaluated is a coordinate that they may share: those that some did not come to have no
    # values there.
    seen = np.any([np.isfinite(values) for values in metrics.values()], axis=0) if metrics else steps > 0
    curves: dict[tuple[int, ...], Curve] = {}
    for index in np.argwhere(np.isfinite(losses).any(axis=-1) | seen.any(axis=-1)):
        at = tuple(map(int, index))
        bins = int(np.isfinite(stops[at]).sum())
        edges = [int(starts[at][0]), *map(int, stops[at][:bins])]
        curve: dict[str, Any] = {"edges": edges, "loss": _plain(losses[at][:bins]), "std": _plain(spreads[at][:bins])}
        if seen[at].any():
            evaluated = {name: _plain(values[at][seen[at]]) for name, values in metrics.items()}
            curve["evaluated"] = {"steps": [int(step) for step in steps[at][seen[at]]]} | evaluated
        curves[at] = curve
    return curves


def without_curves(dataset: "xr.Dataset") -> "xr.Dataset":
    """A dataset without the variables and coordinates of curves."""
    return dataset.drop_dims([dim for dim in ("step", "evaluation") if dim in dataset.dims])


def _whole_table(dataset: "xr.Dataset", name: str, dims: tuple[str, ...], last: str) -> FloatArray:
    """A variable's values over all runs, whatever dimensions it has."""
    variable = dataset[name].variable
    lacking = [dim for dim in dims if dim not in variable.dims]
    known = variable.transpose(*(dim for dim in dims if dim in variable.dims), last).values
    shape = (*(dataset.sizes[dim] for dim in dims), dataset.sizes[last])
    return np.broadcast_to(np.expand_dims(known, [dims.index(dim) for dim in lacking]), shape).astype(np.float64)


class _Tables:
    """Tables over all runs, filled row by row, NaN where nothing is filled in."""

    def __init__(self, shape: tuple[int, ...], dims: tuple[str, ...]) -> None:
        self.shape, self.dims = shape, dims
        self.values: dict[str, FloatArray] = {}
        self._last: dict[str, str] = {}

    def fill(self, name: str, at: tuple[int, ...], row: Sequence[float | None], length: int, last: str) -> None:
        """Write one run's row into a table, whose last dimension has this length and this name."""
        table = self.values.setdefault(name, np.full((*self.shape, length), np.nan))
        table[at][: len(row)] = np.array(row, dtype=np.float64)
        self._last[name] = last

    def variable(self, name: str, *, reduced: bool = False) -> tuple[list[str], FloatArray]:
        """Dimensions and values of a table; if `reduced`, without the dimensions along which all runs agree."""
        table, dims = self.values[name], [*self.dims, self._last[name]]
        for axis in reversed(range(len(self.shape))) if reduced else ():
            low = np.where(np.isnan(table), np.inf, table).min(axis=axis)
            high = np.where(np.isnan(table), -np.inf, table).max(axis=axis)
            if np.all((low == high) | (low > high)):
                table = np.where(low == high, low, np.nan)
                del dims[axis]
        return dims, table


def _steps(values: Any) -> bool:
    """Whether these are whole numbers ≥ 0."""
    return isinstance(values, list | tuple) and all(type(value) is int and value >= 0 for value in values)


def _numbers(values: Any, length: int | None = None) -> bool:
    """Whether these are numbers or ``None``, and so many of them."""
    listed = isinstance(values, list | tuple) and (length is None or len(values) == length)
    return listed and all(value is None or type(value) in (int, float) for value in values)


def _plain(values: npt.NDArray[Any]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
