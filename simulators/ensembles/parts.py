"""One ensemble in parts: how to cut it, and how to put the parts together without losing a bit."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.simulators.ensembles import tile_moments as kept
from noisysgd.simulators.ensembles import tiles
from noisysgd.simulators.ensembles.tiles import LANES, Moments
from noisysgd.simulators.randomness.stream import REPLICAS
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import IntArray

OWN = ("replicas", "replica_offset")
"""Attributes in which the parts of one ensemble differ."""

ALIKE = "Parts of one ensemble differ in their replicas only: simulate this one again, with the others' arguments."


def shares(replicas: int, parts: int, *, replica_offset: int = 0) -> list[dict[str, int]]:
    """Cut an ensemble into parts of nearly equal size, at borders of tiles: multiples of 128 replicas.

    Parameters
    ----------
    replicas : int
        Of the whole ensemble, ≥ 2.
    parts : int
        At most this many; fewer where there are fewer tiles. More parts than processes even out their speeds, and
        less is lost with a process that dies.
    replica_offset : int
        Of the whole ensemble.

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
    count = checks.integer("replicas", replicas, 2, remedy="A standard error needs two runs.")
    parts = checks.integer("parts", parts, 1, remedy="One part is the whole ensemble.")
    first = checks.integer("replica_offset", replica_offset, 0, remedy="Replicas count from 0.")
    remedy = "The random stream has no more replicas than that; change the seed instead."
    checks.require(first + count <= REPLICAS, "replica_offset + replicas", f"at most {REPLICAS}", first + count, remedy)
    # A single replica cannot be simulated alone: it stays with the tile before it.
    blocks = max((count - 2) // LANES + 1, 1)
    parts = min(parts, blocks)
    edges = [LANES * (blocks * k // parts) for k in range(parts)] + [count]
    return [{"replica_offset": first + a, "replicas": b - a} for a, b in itertools.pairwise(edges)]


def join(datasets: Iterable[xr.Dataset], *, keep_tiles: bool = False) -> xr.Dataset:
    """Join the parts of one ensemble into what one call would have returned, bit for bit.

    Parameters
    ----------
    datasets : iterable of xarray.Dataset
        Results of :func:`noisysgd.simulators.simulate` with ``keep_tiles=True`` and the replicas that :func:`shares`
        gives, in any order. All but the last in the stream have a multiple of 128 replicas.
    keep_tiles : bool
        Whether the result keeps its tiles, so that it can be joined again.

    Returns
    -------
    xarray.Dataset
        That of ``simulate`` for all replicas at once, attributes included.

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
    parts = [_part(dataset) for dataset in datasets]
    checks.require(len(parts) > 0, "datasets", "at least one part", parts, "Pass the results of simulate.")
    parts.sort(key=_first)
    for part in parts[1:]:
        _require_alike(parts[0], part)
    _require_contiguous(parts)
    counts = np.concatenate([part[kept.REPLICAS].values for part in parts])
    replicas, metrics = int(counts.sum()), kept.metrics_of(parts[0])
    own = [name(metric) for metric in metrics for name in (kept.mean_of, kept.deviations_of)] + [kept.REPLICAS]
    joined = parts[0].drop_vars(own).assign_attrs(replicas=replicas, replica_offset=_first(parts[0]))
    for metric in metrics:
        mean, deviations = _merged(parts, metric)
        for name, values in {metric: mean, f"{metric}_stderr": kept.standard_error(deviations, replicas)}.items():
            joined[name] = (joined[name].dims, values, joined[name].attrs)
    if keep_tiles:
        moments = (
            np.stack([np.concatenate([_tiles(part, of, m) for part in parts], axis=-1) for m in metrics], axis=-2)
            for of in (kept.mean_of, kept.deviations_of)
        )
        kept.attach(joined, metrics, (next(moments), next(moments)), counts, _experiment(parts[0]))
    return joined


def _merged(parts: list[xr.Dataset], metric: str) -> Moments:
    """Moments of a loss over all tiles of all parts, merged in the order in which one call would."""
    total: Moments | None = None
    done = 0
    for part in parts:
        means, deviations = (_tiles(part, of, metric) for of in (kept.mean_of, kept.deviations_of))
        for k, size in enumerate(part[kept.REPLICAS].values.tolist()):
            tile = means[..., k], deviations[..., k]
            total = tile if total is None else tiles.merge(total, done, tile, size)
            done += size
    assert total is not None
    return np.array(total[0]), np.array(total[1])


def _tiles(part: xr.Dataset, of: Callable[[str], str], metric: str) -> Any:
    return part[of(metric)].transpose(*part[metric].dims, kept.TILE).values


def _experiment(part: xr.Dataset) -> str:
    return str(part[kept.REPLICAS].attrs.get("experiment"))


def _first(part: xr.Dataset) -> int:
    return int(part.attrs["replica_offset"])


def _part(dataset: xr.Dataset) -> xr.Dataset:
    """`dataset`, if it is a result with its tiles."""
    remedy = "Pass results of simulate(..., keep_tiles=True)."
    checks.require(isinstance(dataset, xr.Dataset), "datasets", "datasets", type(dataset).__name__, remedy)
    metrics = kept.metrics_of(dataset)
    needed = {kept.REPLICAS} | {name for m in metrics for name in (f"{m}_stderr", kept.deviations_of(m))}
    complete = bool(metrics) and needed <= set(dataset.variables) and set(OWN) <= set(dataset.attrs)
    checks.require(complete, "datasets", "datasets with their tiles", list(dataset.variables), remedy)
    counts: IntArray = dataset[kept.REPLICAS].values
    whole = np.array_equal(counts, kept.sizes(int(dataset.attrs["replicas"])))
    remedy = f"Pass results as they are, with all their tiles of {LANES} replicas."
    checks.require(whole, "datasets", f"tiles of {dataset.attrs['replicas']} replicas", counts.tolist(), remedy)
    return dataset


def _require_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    """Check that two parts are of one experiment."""
    _require_equal("attribute", *({k: v for k, v in each.attrs.items() if k not in OWN} for each in (first, other)))
    _require_equal("coordinate", *({str(k): v.variable for k, v in each.coords.items()} for each in (first, other)))
    _require_equal("axes", *({str(k): v.dims for k, v in each.data_vars.items()} for each in (first, other)))
    same = _experiment(first) == _experiment(other)
    remedy = ALIKE + " If they are the same: a full covariance needs the same LAPACK, with as many threads."
    got = f"others in replicas {_first(other)}…"
    checks.require(same, "datasets", "one problem, schedule and root of its noise covariance", got, remedy)


def _require_equal(kind: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for name in sorted(first.keys() | other.keys()):
        one, two = first.get(name), other.get(name)
        one, two = (_plain(each) for each in (one, two))
        checks.require(one == two, f"{kind} {name}", f"{checks.shorten(one)} in every part", two, ALIKE)


def _plain(value: Any) -> Any:
    """What two equal values have equal: dimensions and numbers of a variable."""
    return (value.dims, value.values.tolist()) if isinstance(value, xr.Variable) else value


def _require_contiguous(parts: list[xr.Dataset]) -> None:
    """Check that sorted parts follow one another, cut at borders of tiles."""
    for part, after in itertools.pairwise(parts):
        size, start, end = int(part.attrs["replicas"]), _first(after), _first(part) + int(part.attrs["replicas"])
        remedy = "Pass every part once." if start < end else "A part is missing: simulate it too."
        checks.require(start == end, "datasets", f"the next part to begin at replica {end}", start, remedy)
        remedy = f"Cut at multiples of {LANES} from the first replica, as simulators.shares does."
        expected = f"a multiple of {LANES} in every part but the last"
        checks.require(size % LANES == 0, "replicas", expected, size, remedy)
