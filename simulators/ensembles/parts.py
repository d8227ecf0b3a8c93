"""One ensemble in parts: how to cut it, and how to put the parts together without losing a bit."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.simulators.ensembles import tile_moments
from noisysgd.simulators.ensembles.tiles import LANES, Moments, merge, replica_range, tile_sizes
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray

OWN = ("replicas", "replica_offset")
"""Attributes of a result in which the parts of one ensemble differ."""

ALIKE = "Parts of one ensemble differ in their replicas only: simulate this one again, with the others' arguments."


def shares(replicas: int, parts: int, *, replica_offset: int = 0) -> list[dict[str, int]]:
    """Cut an ensemble into parts of nearly equal size, at borders of tiles: multiples of 128 replicas.

    Parameters
    ----------
    replicas : int
        Replicas of the whole ensemble, ≥ 2.
    parts : int
        The most parts to make; there are fewer where there are fewer tiles. More parts than processes even out the
        processes' speeds, and less is lost with a process that dies.
    replica_offset : int
        First replica of the whole ensemble in the random stream.

    Returns
    -------
    list of dict
        Keyword arguments ``replica_offset`` and ``replicas`` for :func:`noisysgd.simulators.simulate`.

    Raises
    ------
    ValueError
        If a number is not an integer or too small, or the random stream has fewer replicas.

    Examples
    --------
    >>> shares(600, 2)
    [{'replica_offset': 0, 'replicas': 256}, {'replica_offset': 256, 'replicas': 344}]
    """
    whole = replica_range(replicas, replica_offset)
    parts = checks.integer("parts", parts, 1, remedy="One part is the whole ensemble.")
    # A last tile of a single replica cannot be a part of its own, which needs two: it is not counted here.
    full = (len(whole) - 2) // LANES + 1
    parts = min(parts, full)
    # Cut between tiles only: a tile is summed as a whole, and parts of one could not be merged to the same bits.
    edges = [LANES * (full * k // parts) for k in range(parts)] + [len(whole)]
    return [{"replica_offset": whole.start + a, "replicas": b - a} for a, b in itertools.pairwise(edges)]


def join(datasets: Iterable[xr.Dataset], *, keep_tiles: bool = False) -> xr.Dataset:
    """Join the parts of one ensemble into what one call would have returned, bit for bit.

    Parameters
    ----------
    datasets : iterable of xarray.Dataset
        Results of :func:`noisysgd.simulators.simulate` with ``keep_tiles=True`` and the replicas that :func:`shares`
        gives, in any order. All but the one with the last replicas have a multiple of 128 of them.
    keep_tiles : bool
        Whether the result keeps its tiles, so that it can be joined again.

    Returns
    -------
    xarray.Dataset
        What ``simulate`` returns for all replicas at once, attributes included.

    Raises
    ------
    ValueError
        If the parts are not of one experiment (problem, schedule, settings, records, seed, options), if replicas are
        missing or simulated twice, or if a part was cut within a tile or lacks its tiles.

    Notes
    -----
    Tiles take 16 bytes per configuration, record and tile of 128 replicas, in the parts; joining takes the result's
    16 bytes per configuration and record on top, and with `keep_tiles` a copy of all tiles.

    A full noise covariance, or a jump with one, is only as reproducible as LAPACK: processes must load the same one and
    give it the same number of threads. Parts whose root of F differs in any bit are refused.

    Examples
    --------
    >>> from noisysgd import theory
    >>> from noisysgd.simulators import simulate
    >>> experiment = {"problem": theory.power_law(5), "schedule": theory.constant(9), "learning_rate": 0.1}
    >>> parts = [simulate(**experiment, batch_size=1, keep_tiles=True, **share) for share in shares(300, 2)]
    >>> join(parts).identical(simulate(**experiment, batch_size=1, replicas=300))
    True
    """
    keep_tiles = checks.boolean("keep_tiles", keep_tiles)
    given = checks.several("datasets", datasets, xr.Dataset, remedy="Pass results of simulate(..., keep_tiles=True).")
    parts = [_part(dataset) for dataset in given]
    checks.require(len(parts) > 0, "datasets", "at least one part", parts, "Pass the results of simulate.")
    # Parts may come in any order; tiles have to be merged in the order of their replicas.
    parts.sort(key=_first)
    for part in parts[1:]:
        _require_alike(parts[0], part)
    _require_contiguous(parts)
    counts = np.concatenate([part[tile_moments.REPLICAS].values for part in parts])
    replicas, metrics = int(counts.sum()), tile_moments.metrics_of(parts[0])
    kinds = tile_moments.mean_of, tile_moments.deviations_of
    per_tile = [name_of(metric) for metric in metrics for name_of in kinds] + [tile_moments.REPLICAS]
    joined = parts[0].drop_vars(per_tile).assign_attrs(replicas=replicas, replica_offset=_first(parts[0]))
    for metric in metrics:
        mean, deviations = _merged(parts, metric)
        stderr = tile_moments.standard_error(deviations, replicas)
        for name, values in {metric: mean, f"{metric}_stderr": stderr}.items():
            joined[name] = (joined[name].dims, values, joined[name].attrs)
    if keep_tiles:
        moments = (
            np.stack([np.concatenate([_tiles(part, name_of, m) for part in parts], axis=-1) for m in metrics], axis=-2)
            for name_of in kinds
        )
        tile_moments.attach(joined, metrics, (next(moments), next(moments)), counts, _experiment(parts[0]))
    return joined


def _merged(parts: list[xr.Dataset], metric: str) -> Moments:
    """Moments of a loss over all tiles of all parts, merged in the order in which one call merges them."""
    total: Moments | None = None
    done = 0
    # Tile by tile over all parts: merging the parts' own moments would round differently from one call.
    for part in parts:
        means, deviations = (_tiles(part, of, metric) for of in (tile_moments.mean_of, tile_moments.deviations_of))
        for k, size in enumerate(part[tile_moments.REPLICAS].values.tolist()):
            tile = means[..., k], deviations[..., k]
            total = tile if total is None else merge(total, done, tile, size)
            done += size
    assert total is not None
    return np.array(total[0]), np.array(total[1])


def _tiles(part: xr.Dataset, name_of: Callable[[str], str], metric: str) -> FloatArray:
    """Means or deviations of every tile, tiles innermost: whoever stored the part may have reordered its dimensions."""
    values: FloatArray = part[name_of(metric)].transpose(*part[metric].dims, tile_moments.TILE).values
    return values


def _experiment(part: xr.Dataset) -> str:
    """Fingerprint of the problem, the schedule and the root of the noise covariance."""
    return str(part[tile_moments.REPLICAS].attrs.get("experiment"))


def _first(part: xr.Dataset) -> int:
    """First replica of a part in the random stream."""
    return int(part.attrs["replica_offset"])


def _part(dataset: xr.Dataset) -> xr.Dataset:
    """`dataset`, after checking that it is a result with the moments of all its tiles."""
    remedy = "Pass results of simulate(..., keep_tiles=True)."
    checks.require(isinstance(dataset, xr.Dataset), "datasets", "datasets", type(dataset).__name__, remedy)
    metrics = tile_moments.metrics_of(dataset)
    needed = {tile_moments.REPLICAS} | {
        name for m in metrics for name in (f"{m}_stderr", tile_moments.deviations_of(m))
    }
    complete = bool(metrics) and needed <= set(dataset.variables) and set(OWN) <= set(dataset.attrs)
    checks.require(complete, "datasets", "datasets with their tiles", list(dataset.variables), remedy)
    # A selection of the tiles would give plausible moments of fewer replicas: the sizes show it.
    counts: IntArray = dataset[tile_moments.REPLICAS].values
    whole = np.array_equal(counts, tile_sizes(int(dataset.attrs["replicas"])))
    remedy = f"Pass results as they are, with all their tiles of {LANES} replicas."
    checks.require(whole, "datasets", f"tiles of {dataset.attrs['replicas']} replicas", counts.tolist(), remedy)
    return dataset


def _require_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    """Check that two parts are of one experiment."""
    # First what can be named in words; the fingerprint says only that something differs.
    _require_equal("attribute", *({k: v for k, v in each.attrs.items() if k not in OWN} for each in (first, other)))
    _require_equal("coordinate", *({str(k): v.variable for k, v in each.coords.items()} for each in (first, other)))
    _require_equal("axes", *({str(k): v.dims for k, v in each.data_vars.items()} for each in (first, other)))
    same = _experiment(first) == _experiment(other)
    remedy = ALIKE + " If they are the same: a full covariance needs the same LAPACK, with as many threads."
    got = f"others in replicas {_first(other)}…"
    checks.require(same, "datasets", "one problem, schedule and root of its noise covariance", got, remedy)


def _require_equal(kind: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Check that two mappings have the same entries; the message names the first that differs."""
    for name in sorted(first.keys() | other.keys()):
        one, two = first.get(name), other.get(name)
        one, two = (_plain(each) for each in (one, two))
        checks.require(one == two, f"{kind} {name}", f"{checks.shorten(one)} in every part", two, ALIKE)


def _plain(value: Any) -> Any:
    """`value` as something that == compares as a whole: of a variable, its dimensions and numbers."""
    return (value.dims, value.values.tolist()) if isinstance(value, xr.Variable) else value


def _require_contiguous(parts: list[xr.Dataset]) -> None:
    """Check that parts, in the order of their replicas, leave no gap, do not overlap, and were cut between tiles."""
    for part, after in itertools.pairwise(parts):
        size, start, end = int(part.attrs["replicas"]), _first(after), _first(part) + int(part.attrs["replicas"])
        remedy = "Pass every part once." if start < end else "A part is missing: simulate it too."
        checks.require(start == end, "datasets", f"the next part to begin at replica {end}", start, remedy)
        remedy = f"Cut at multiples of {LANES} from the first replica, as simulators.shares does."
        expected = f"a multiple of {LANES} in every part but the last"
        checks.require(size % LANES == 0, "replicas", expected, size, remedy)
