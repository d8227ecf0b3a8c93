"""One Sweep of several: their runs on one grid, if their attributes say that they belong together."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.sweeps.coordinates import JOINED, checked_tolerance, joined
from noisysgd.theory.sweeps.curves import Curve, add_curves, curves_of, without_curves
from noisysgd.theory.sweeps.dataset import MISSING, STATUSES, UNFINISHED, check_schema, labelled
from noisysgd.theory.sweeps.optimizers import NESTEROV, Optimizer, in_order, optimizers_of

if TYPE_CHECKING:
    import xarray as xr

AXES = ("optimizer", "batch_size", "learning_rate", "seed", "budget")
"""The dimensions that can be joined."""
SAME = ("schema", "schema_version", "source", "configuration")
"""Attributes that have to be the same in all Sweeps that are joined."""
LISTS = ("runs_provenance",)
"""Attributes that are lists in JSON."""


def join_sweeps(sweeps: "Iterable[xr.Dataset]", *, tolerance: float | Mapping[str, float] = 0.0) -> "xr.Dataset":
    """One Sweep with the runs of several, such as sweeps of more batch sizes, more seeds or a finer grid.

    Coordinates that are equal up to rounding become one, as by :func:`~noisysgd.theory.sweep_from_records`. What no
    Sweep has is missing. A run that several have counts once; an unfinished one gives way to its result. What
    ``xarray.concat`` makes of Sweeps, with gaps and repeated coordinates, becomes one again by ``join_sweeps([it])``.

    Parameters
    ----------
    sweeps : iterable of xarray.Dataset
        With the same dimensions.
    tolerance : float or mapping
        As of :func:`~noisysgd.theory.sweep_from_records`.

    Returns
    -------
    xarray.Dataset
        A Sweep. Attributes in which the Sweeps differ, such as versions and commits, become lists.

    Raises
    ------
    ValueError
        If the Sweeps have different dimensions, source, configuration, units or directions of a metric, or different
        results of one run.

    Examples
    --------
    >>> from noisysgd import theory
    >>> grid = dict(effective_learning_rates=theory.powers_of_two(-6, 2), momentum=[0.0, 0.9])
    >>> parts = [theory.predict_sweep(theory.power_law(10), theory.StepBudget(50), batch_sizes=[size], **grid)
    ...          for size in (16, 4)]
    >>> join_sweeps(parts).batch_size.values
    array([ 4, 16])
    """
    checks.require(isinstance(sweeps, Iterable), "sweeps", "a list of Sweeps", sweeps, "Pass [sweep] for a single one.")
    given = list(sweeps)
    checks.require(bool(given), "sweeps", "at least one", given, "Pass a list of Sweeps.")
    parts = [without_curves(check_schema(part)) for part in given]
    tolerances = checked_tolerance(tolerance)
    dims = _shared_dimensions(parts)
    attributes = {str(name): _agreeing(name, [part.attrs for part in parts], SAME) for name in _names(parts)}
    metrics = sorted({str(name) for part in parts for name in part.data_vars} - {"status"})
    described = {name: _variable_attributes(name, parts) for name in [*metrics, *(d for d in dims if d != "optimizer")]}

    axes: dict[str, list[Any]] = {}
    places: list[list[IntArray]] = [[] for _ in parts]
    for dim in dims:
        values: list[list[Any]] = [part[dim].values.tolist() for part in parts]
        if dim == "optimizer":
            values = _optimizers(parts)
        everything = {each for some in values for each in some}
        # Seeds are exact; of the others those that round to one value are one coordinate.
        stands: Mapping[Any, Any]
        if dim == "optimizer":
            stands = _joined_optimizers(everything, tolerances.get("momentum", 0.0))
            axes[dim] = in_order(list(stands.values()))
        else:
            itself = dict(zip(everything, everything, strict=True))
            stands = joined(dim, everything, tolerances.get(dim, 0.0)) if dim in JOINED else itself
            axes[dim] = sorted(set(stands.values()))
        index = {value: k for k, value in enumerate(axes[dim])}
        for some, place in zip(values, places, strict=True):
            place.append(np.array([index[stands[value]] for value in some]))

    status, table = _filled(parts, dims, places, tuple(map(len, axes.values())), metrics, axes)
    without_seed = "seed" not in dims
    if without_seed:
        axes = {name: axes[name] for name in ("optimizer", "batch_size", "learning_rate")} | {"seed": [0]}
        status, table = status[..., None], {name: values[..., None] for name, values in table.items()}
    sweep = labelled(axes, status, table, source=attributes["source"], objectives={}, configuration={})
    for name, each in described.items():
        sweep[name].attrs = each
    sweep = add_curves(sweep.squeeze("seed", drop=True) if without_seed else sweep, _joined_curves(given, dims, places))
    sweep.attrs = attributes
    return sweep


def _optimizers(parts: "Sequence[xr.Dataset]") -> list[list[tuple[str, float | None]]]:
    """Label and momentum of every optimizer of each Sweep; ``None`` for a momentum that is NaN, which equals itself."""
    return [
        [
            (str(label), float(m) if m == m else None)
            for label, m in zip(part.optimizer.values.tolist(), part.momentum.values.tolist(), strict=True)
        ]
        for part in parts
    ]


def _joined_optimizers(everything: Iterable[tuple[str, float | None]], tolerance: float) -> dict[Any, Optimizer]:
    """Which optimizer each stands for: those of the paper whose momenta are equal up to rounding are one."""
    given = list(everything)
    stands = joined("momentum", {m for _, m in given if m is not None}, tolerance)
    families = [label.split()[0] if label.split()[0] in NESTEROV else "sgd" for label, _ in given]
    rows = [{"optimizer": label if m is None else name} for (label, m), name in zip(given, families, strict=True)]
    found = optimizers_of(rows, [np.nan if m is None else stands[m] for _, m in given])
    # NaN is not equal to itself: one of each label stands for all.
    one = {label: (label, momentum) for label, momentum in found}
    return {each: one[label] for each, (label, _) in zip(given, found, strict=True)}


def _names(parts: "Sequence[xr.Dataset]") -> list[str]:
    """Names of the attributes that any of the Sweeps has, in order."""
    return list(dict.fromkeys(str(name) for part in parts for name in part.attrs))


def _shared_dimensions(parts: "Sequence[xr.Dataset]") -> list[str]:
    """The dimensions of all Sweeps, in order, after checking that they are the same, with coordinates and variables."""
    for part in parts:
        check_schema(part)
        dims = set(map(str, part.status.dims))
        needed = {"optimizer", "batch_size", "learning_rate"}
        usable = needed <= dims <= set(AXES) and "momentum" in part.coords and ("budget" not in dims or "seed" in dims)
        remedy = "Add what is lacking with .expand_dims."
        checks.require(usable, "sweeps", f"dimensions {sorted(needed)}, perhaps seed and budget", sorted(dims), remedy)
        other = sorted(str(name) for name, values in part.data_vars.items() if set(map(str, values.dims)) != dims)
        checks.require(not other, "sweeps", "variables over all dimensions of the status", other, "Drop the others.")
    each = [sorted(map(str, part.status.dims)) for part in parts]
    remedy = "Add what is lacking with .expand_dims."
    checks.require(all(dims == each[0] for dims in each), "sweeps", "the same dimensions in all", each, remedy)
    return [dim for dim in AXES if dim in each[0]]


def _agreeing(name: str, attributes: Sequence[Mapping[Any, Any]], same: Iterable[str], where: str = "sweeps") -> Any:
    """The value that an attribute has in all that have it; a list of the different ones if it need not be the same."""
    values = [each[name] for each in attributes if name in each]
    if all(_equal(value, values[0]) for value in values) and (name not in same or len(values) == len(attributes)):
        return values[0]
    if name in same:
        got: object = [each.get(name) for each in attributes]
        if name == "configuration":
            got = _differences([json.loads(each.get(name) or "{}") for each in attributes])
        checks.require(False, where, f"the same {name} in all", got, "Join what belongs to one experiment only.")
    if name in LISTS:
        flat = [one for value in values for one in json.loads(value)]
        return json.dumps([json.loads(text) for text in sorted({json.dumps(one, sort_keys=True) for one in flat})])
    distinct: list[Any] = []
    for value in values:
        for one in value if isinstance(value, list) else [value]:
            distinct += [one] if not any(_equal(one, other) for other in distinct) else []
    return distinct


def _equal(one: object, other: object) -> bool:
    """Whether two attributes are the same, which may be arrays."""
    return type(one) is type(other) and bool(np.array_equal(np.asarray(one), np.asarray(other)))


def _differences(configurations: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The entries in which configurations differ."""
    names = dict.fromkeys(name for each in configurations for name in each)
    every = {name: [each.get(name) for each in configurations] for name in names}
    return {name: values for name, values in every.items() if any(value != values[0] for value in values)}


def _variable_attributes(name: str, parts: "Sequence[xr.Dataset]") -> dict[str, Any]:
    """Attributes of a variable or coordinate, which have to be the same in all Sweeps that have it."""
    each = [part[name].attrs for part in parts if name in part.variables]
    names = list(dict.fromkeys(str(key) for attributes in each for key in attributes))
    return {key: _agreeing(key, each, ("units", "objective"), f"sweeps: {name}") for key in names}


def _filled(
    parts: "Sequence[xr.Dataset]",
    dims: Sequence[str],
    places: Sequence[Sequence[IntArray]],
    shape: tuple[int, ...],
    metrics: Sequence[str],
    axes: Mapping[str, Sequence[Any]],
) -> tuple[npt.NDArray[np.int8], dict[str, FloatArray]]:
    """Statuses and metrics on the common grid."""
    status = np.full(shape, MISSING, dtype=np.int8).ravel()
    table = {name: np.full(status.size, np.nan) for name in metrics}
    codes = list(STATUSES.values())
    for part, place in zip(parts, places, strict=True):
        own = part.status.transpose(*dims).values
        own = np.where(np.isnan(own), MISSING, own) if own.dtype.kind == "f" else own  # gaps that xarray has filled
        remedy = "Pass Sweeps."
        checks.require(bool(np.isin(own, codes).all()), "sweeps: status", f"values {STATUSES}", np.unique(own), remedy)
        values = {name: part[name].transpose(*dims).values for name in metrics if name in part}
        # Finished runs after unfinished ones, so that within one Sweep too a result comes last.
        for kind in ((UNFINISHED,), [code for code in codes if code not in (MISSING, UNFINISHED)]):
            here = np.nonzero(np.isin(own, kind))
            at = np.ravel_multi_index([along[k] for along, k in zip(place, here, strict=True)], shape)
            for k, point in enumerate(at.tolist()):
                source = tuple(index[k] for index in here)
                if own[source] == UNFINISHED and status[point] != MISSING:
                    continue
                result = {name: float(each[source]) for name, each in values.items()}
                known = {name: float(table[name][point]) for name in metrics}
                different = [name for name, value in result.items() if _conflict(value, known[name])]
                if different or status[point] not in (MISSING, UNFINISHED, own[source]):
                    _refuse(axes, np.unravel_index(point, shape), known, result)
                status[point] = own[source]
                for name, value in result.items():
                    table[name][point] = known[name] if np.isnan(value) else value
    return status.reshape(shape), {name: values.reshape(shape) for name, values in table.items()}


def _joined_curves(
    parts: "Sequence[xr.Dataset]", dims: Sequence[str], places: Sequence[Sequence[IntArray]]
) -> dict[tuple[int, ...], Curve]:
    """Learning curves on the common grid; of a run that several Sweeps have, the first curve."""
    curves: dict[tuple[int, ...], Curve] = {}
    for part, place in zip(parts, places, strict=True):
        own = part.transpose(*dims, ...)
        for at, curve in curves_of(own).items():
            curves.setdefault(tuple(int(along[k]) for along, k in zip(place, at, strict=True)), curve)
    return curves


def _conflict(one: float, other: float) -> bool:
    """Whether two values of a metric are known and differ."""
    return not (np.isnan(one) or np.isnan(other) or one == other)


def _refuse(axes: Mapping[str, Sequence[Any]], index: tuple[Any, ...], known: object, result: object) -> None:
    """Raise for two results of one run."""
    run = {name: along[int(k)] for (name, along), k in zip(axes.items(), index, strict=True)}
    run["optimizer"], _ = run["optimizer"]
    remedy = "Give the runs seeds of their own, or drop one of the Sweeps."
    checks.require(False, f"sweeps: {run}", f"one result, {known}", result, remedy)
