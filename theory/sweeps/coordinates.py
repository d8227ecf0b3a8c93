"""Coordinates that are equal up to rounding are one: 0.3 and 0.1·3, or a number kept in single and in double precision.

As two points of a grid, each would have half of the runs, and one would pass for the neighbour of the other.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray

DOUBLE, SINGLE = 16 * 2.0**-52, 2 * 2.0**-23
"""Relative differences that rounding makes: some operations in double precision, or one or two in single precision."""
COUNTS = ("batch_size", "budget")
"""Names of coordinates whose integers are counts of something, and exact."""
JOINED = ("momentum", "batch_size", "learning_rate", "budget")
"""Names of the coordinates that are joined. Seeds are names, and exact."""


def checked_tolerance(tolerance: float | Mapping[str, float]) -> dict[str, float]:
    """The argument `tolerance` of functions that make a Sweep, by coordinate; one number is that of learning rates.

    >>> checked_tolerance(0.01)
    {'learning_rate': 0.01}
    """
    given = tolerance if isinstance(tolerance, Mapping) else {"learning_rate": tolerance}
    for name in given:
        checks.one_of("tolerance", name, JOINED)
    remedy = "0.001 joins 0.003906 and 0.00391."
    found = {name: checks.scalar(f"tolerance of {name}", value, remedy=remedy) for name, value in given.items()}
    small = all(0 <= value < 0.5 for value in found.values())
    checks.require(small, "tolerance", "relative differences from 0 to below 0.5", tolerance, remedy)
    return found


def joined(name: str, values: Iterable[float], tolerance: float = 0.0) -> dict[float, float]:
    """Which of the values stands for each: of those equal up to rounding the one with the shortest decimal form.

    With a `tolerance` those that differ by no more than this share of the larger are joined too; the one with the most
    digits stands for them, since tables round.

    Parameters
    ----------
    name : str
        Of the coordinate. Rounding errors of momenta are those of numbers near 1, since 1 − m is what counts; integers
        are exact in :data:`COUNTS`.
    values : iterable of float
    tolerance : float

    Raises
    ------
    ValueError
        If a value is close to two that are not close to each other: the tolerance does not say which belong together.

    Examples
    --------
    >>> joined("learning_rate", [0.1, 0.3, 0.1 * 3, 1.0])
    {0.1: 0.1, 0.3: 0.3, 0.30000000000000004: 0.3, 1.0: 1.0}
    >>> joined("learning_rate", [0.003906, 0.00391], 1e-2)
    {0.003906: 0.003906, 0.00391: 0.003906}
    """
    distinct = np.unique(np.array([float(value) for value in values]))
    by_rounding = _represented(name, distinct, _rounding(name, distinct), longest=False)
    if not tolerance:
        return by_rounding
    left = np.unique(list(by_rounding.values()))
    within = np.full(left.size, float(tolerance))
    close = _represented(name, left, within, longest=True)
    return {value: close[one] for value, one in by_rounding.items()}


def equal_pair(name: str, values: Iterable[float]) -> tuple[float, float] | None:
    """Two of the values that are the same up to rounding, or repeated; ``None`` if all are distinct.

    >>> equal_pair("learning_rate", [0.3, 1.0, 0.1 * 3])
    (0.3, 0.30000000000000004)
    """
    ordered = np.sort([float(value) for value in values])
    repeated = ordered[:-1][ordered[:-1] == ordered[1:]]
    if repeated.size:
        return float(repeated[0]), float(repeated[0])
    near = np.flatnonzero(_gaps(name, ordered, _rounding(name, ordered)))
    return (float(ordered[near[0]]), float(ordered[near[0] + 1])) if near.size else None


def _rounding(name: str, values: FloatArray) -> FloatArray:
    """Relative difference that rounding may make of each value: that of single precision if it may have been in it."""
    with np.errstate(over="ignore", under="ignore"):
        single = values.astype(np.float32) == values
    error = np.where(single, SINGLE, DOUBLE)
    return np.where(values == np.round(values), 0.0, error) if name in COUNTS else error


def _gaps(name: str, ordered: FloatArray, relative: FloatArray) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Whether each value and the next, in ascending order, are one."""
    size = np.ones(ordered.size) if name == "momentum" else np.abs(ordered)
    with np.errstate(invalid="ignore", under="ignore"):  # infinite batches
        gap = np.diff(ordered)
        return np.asarray(gap <= np.maximum(relative[:-1], relative[1:]) * np.maximum(size[:-1], size[1:]))


def _represented(name: str, ordered: FloatArray, relative: FloatArray, *, longest: bool) -> dict[float, float]:
    """Which value stands for each."""
    found: dict[float, float] = {}
    if not ordered.size:
        return found
    ends = np.flatnonzero(~_gaps(name, ordered, relative)) + 1
    for group, share in zip(np.split(ordered, ends), np.split(relative, ends), strict=True):
        size = 1.0 if name == "momentum" else abs(float(group[-1]))
        whole = group.size < 3 or bool(group[-1] - group[0] <= share.max() * size)
        expected = "values that are either equal within the tolerance or clearly apart"
        remedy = "Choose another tolerance, or round the values."
        checks.require(whole, name, expected, group.tolist(), remedy)
        one = min(group.tolist(), key=lambda value: (len(repr(value)) * (-1 if longest else 1), value))
        found |= dict.fromkeys(group.tolist(), one)
    return found
