"""Fitting curves in log–log coordinates: data, misfit, and a search that no local minimum catches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray

OCTAVES_BEYOND = 20.0
"""How far beyond the data, in octaves, a boundary batch size is looked for."""
POINTS_PER_OCTAVE = 8
EXACT = 1e-6
"""Residuals in octaves below which a fit counts as exact, so that rounding errors choose no rule."""


class Data(NamedTuple):
    """Data to fit: logarithms to base 2, inverse squared errors, and whether these are known."""

    log_batch: FloatArray
    log_rate: FloatArray
    weight: FloatArray
    known: bool


def fit_data(batch_sizes: Any, learning_rates: Any, log_errors: Any, *, parameters: int) -> Data:
    """Checked data, with at least as many different batch sizes as `parameters`."""
    size = checks.vector("batch_sizes", checks.batch_size(batch_sizes, name="batch_sizes"))
    remedy = "Leave infinite batches out of a fit."
    checks.require(bool(np.isfinite(size).all()), "batch_sizes", "finite batch sizes", batch_sizes, remedy)
    rate = checks.vector("learning_rates", checks.learning_rate(learning_rates, "learning_rates"))
    positive = bool(np.all(rate > 0))
    checks.require(positive, "learning_rates", "learning rates > 0", learning_rates, "They are fitted as logarithms.")
    got = f"{size.shape} and {rate.shape}"
    paired = size.shape == rate.shape
    checks.require(paired, "batch_sizes, learning_rates", "two (K,) arrays of one size", got, "Pair them up.")
    distinct = np.unique(size).size
    expected = f"at least {parameters} different batch sizes, one for each parameter"
    checks.require(distinct >= parameters, "batch_sizes", expected, distinct, "Measure more, or fit a simpler rule.")
    remedy = "Pass standard errors of log₂ of the learning rate, 0.29 for rounding to powers of two."
    error = checks.at_least("log_errors", 1.0 if log_errors is None else log_errors, 0.0, remedy=remedy)
    usable = bool(np.all(error > 0)) and error.shape in ((), size.shape)
    checks.require(usable, "log_errors", "a value > 0, or one for each batch size", log_errors, remedy)
    weight = np.broadcast_to(error**-2.0, size.shape)
    return Data(np.log2(size), np.log2(rate), weight, log_errors is not None)


def misfit(shape: FloatArray, data: Data) -> tuple[FloatArray, FloatArray]:
    """χ² of curves known up to a factor, log₂ of which is given as (..., K), at their best factor; and its log₂."""
    residual = data.log_rate - shape
    factor = (residual * data.weight).sum(-1) / data.weight.sum()
    return np.asarray((data.weight * (residual - factor[..., None]) ** 2).sum(-1)), np.asarray(factor)


def scan(low: float, high: float, kinks: FloatArray) -> FloatArray:
    """A grid from `low` to `high`, in octaves, that resolves a function with those kinks."""
    grid = np.linspace(low, high, int(np.ceil((high - low) * POINTS_PER_OCTAVE)) + 2)
    return np.unique(np.concatenate([grid, kinks[(kinks > low) & (kinks < high)]]))


def minimise(function: Callable[[FloatArray], FloatArray], grid: FloatArray) -> float:
    """Minimiser of a function on an interval that `grid` resolves, kinks being on it; to 1e-8 of the grid's spacing.

    The lowest on the grid need not be the lowest of all: around the five lowest minima there, two cells to either side
    are narrowed down by nested grids. Two, since the minimum may lie behind a kink that is just beside the first.
    """
    if grid.size == 1:
        return float(grid[0])
    values = function(grid)
    nearby = local_minima(values)[:5, None] + np.arange(-2, 2)
    cells = np.unique(np.clip(nearby, 0, grid.size - 2))
    low, high = grid[cells], grid[cells + 1]
    rows = np.arange(cells.size)
    for _ in range(10):
        finer = np.linspace(low, high, 15, axis=1)
        heights = function(finer.ravel()).reshape(finer.shape)
        least = np.argmin(heights, axis=1)
        low, high = finer[rows, np.maximum(least - 1, 0)], finer[rows, np.minimum(least + 1, 14)]
    return float(finer[rows, least][np.argmin(heights[rows, least])])


def local_minima(values: FloatArray) -> IntArray:
    """Indices of local minima, lowest first; of a plateau only its edges, or else rounding would make many."""
    before, after = np.diff(values, prepend=np.inf), np.diff(values, append=np.inf)
    level = 1e-9 * np.abs(values)
    edge = (np.minimum(-before, after) >= -level) & (np.maximum(-before, after) > level)
    found = np.flatnonzero(edge)
    return found[np.argsort(values[found], kind="stable")]


def power(log: Any) -> float:
    """Two to that power."""
    return float(np.exp2(log))


def parameter(rule: object, name: str, *, zero: bool = False, infinite: bool = False) -> float:
    """The field `name` of a rule as a float in its range, put back as such."""
    given = getattr(rule, name)
    value = checks.scalar(name, given)
    expected = f"a number {'≥' if zero else '>'} 0{'' if infinite else ', finite'}"
    inside = (value > 0 or (zero and value == 0)) and (infinite or value < np.inf)
    checks.require(inside, name, expected, given, "Fit the rule to data.")
    object.__setattr__(rule, name, value)
    return value
