"""Fitting curves in log–log coordinates: checked data, their misfit, and a minimiser for functions of one variable."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray

OCTAVES_BEYOND = 20.0
"""How far beyond the data, in octaves, a boundary batch size is looked for."""
POINTS_PER_OCTAVE = 8
EXACT = 1e-6
"""Residuals in octaves below which a fit counts as exact, so that rounding errors do not decide between rules."""


@dataclass(frozen=True, kw_only=True)
class FittedRule:
    """What all rules have: the names of those parameters that the data of a fit did not identify.

    A fit always ends somewhere. Where its corner does not lie between the smallest and the largest batch size of the
    data, or a parameter ends at the edge of the range that is searched, the curve is the closest one to the data, but
    the data would agree as well, or better, with quite another value.

    Attributes
    ----------
    not_identified : tuple of str
        Empty for a rule that was not fitted. It has no part in comparisons of rules.
    """

    not_identified: tuple[str, ...] = field(default=(), compare=False)


class Data(NamedTuple):
    """Data to fit, (K,): log₂ of batch sizes and learning rates, weights 1/error², and whether errors are known."""

    log_batch: FloatArray
    log_rate: FloatArray
    weight: FloatArray
    known: bool


def fit_data(
    batch_sizes: ArrayLike, learning_rates: ArrayLike, log_errors: ArrayLike | None, *, parameters: int
) -> Data:
    """Checked data for :meth:`RuleFamily.fit`, with at least as many different batch sizes as `parameters`."""
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
    # The weights are squares of their inverses, and are squared once more in the intervals.
    ordinary = bool(np.all((error > 1e-60) & (error < 1e60)))
    checks.require(ordinary, "log_errors", "octaves, between 1e-60 and 1e60", log_errors, remedy)
    weight = np.broadcast_to(error**-2.0, size.shape)
    return Data(np.log2(size), np.log2(rate), weight, log_errors is not None)


def misfit(shape: FloatArray, data: Data) -> tuple[FloatArray, FloatArray]:
    """χ² of curves that are known up to a factor, at the best factor of each, and log₂ of that factor: shape (...).

    `shape` is log₂ of the curves at the K data, (..., K). In logarithms the best factor is a mean weighted by 1/error².
    """
    residual = data.log_rate - shape
    factor = (residual * data.weight).sum(-1) / data.weight.sum()
    return np.asarray((data.weight * (residual - factor[..., None]) ** 2).sum(-1)), np.asarray(factor)


def scan(low: float, high: float, kinks: FloatArray) -> FloatArray:
    """A grid from `low` to `high`, in octaves, with a point on every kink of the function that it is for."""
    grid = np.linspace(low, high, int(np.ceil((high - low) * POINTS_PER_OCTAVE)) + 2)
    return np.unique(np.concatenate([grid, kinks[(kinks > low) & (kinks < high)]]))


def minimise(function: Callable[[FloatArray], FloatArray], grid: FloatArray) -> float:
    """Minimiser of a function on the interval that `grid` spans, to 1e-8 of its spacing; kinks must be on the grid.

    The lowest point of the grid need not be next to the lowest minimum. So around each of the five lowest minima on the
    grid, two cells to either side are narrowed down by nested grids: two, since the minimum may lie behind a kink that
    is very close.
    """
    if grid.size == 1:
        return float(grid[0])
    values = function(grid)
    lowest = local_minima(values)[:5]
    if not lowest.size:  # the same everywhere: errors so large that the data say nothing
        lowest = np.array([np.argmin(values)])
    nearby = lowest[:, None] + np.arange(-2, 2)
    cells = np.unique(np.clip(nearby, 0, grid.size - 2))
    low, high = grid[cells], grid[cells + 1]
    rows = np.arange(cells.size)
    # Ten times every cell, all at once, is replaced by the two of fourteen around its lowest point.
    for _ in range(10):
        finer = np.linspace(low, high, 15, axis=1)
        heights = function(finer.ravel()).reshape(finer.shape)
        least = np.argmin(heights, axis=1)
        low, high = finer[rows, np.maximum(least - 1, 0)], finer[rows, np.minimum(least + 1, 14)]
    return float(finer[rows, least][np.argmin(heights[rows, least])])


def local_minima(values: FloatArray) -> IntArray:
    """Indices of local minima, lowest first. Of a plateau only the edges count: rounding makes minima all along it."""
    before, after = np.diff(values, prepend=np.inf), np.diff(values, append=np.inf)
    level = 1e-9 * np.abs(values)
    # Neither neighbour is lower by more than rounding, and at least one is higher by more than that.
    edge = (np.minimum(-before, after) >= -level) & (np.maximum(-before, after) > level)
    found = np.flatnonzero(edge)
    return found[np.argsort(values[found], kind="stable")]


def unless_inside(place: float, data: Data, *, below: tuple[str, ...], above: tuple[str, ...]) -> tuple[str, ...]:
    """Names of parameters that are not identified if the corner, at log₂ B = `place`, lies below or above all data.

    A corner on the first or the last batch size counts as outside: to one side of it there are no data.
    """
    if place <= data.log_batch.min() + 1e-9:
        return below
    return above if place >= data.log_batch.max() - 1e-9 else ()


def power(log: ArrayLike) -> float:
    """2^log, as a float."""
    return float(np.exp2(log))


def parameter(rule: object, name: str, *, zero: bool = False, infinite: bool = False) -> float:
    """Check that the field `name` of a frozen rule is a number > 0, store it as a float, and return it.

    `zero` and `infinite` allow these two values as well.
    """
    given = getattr(rule, name)
    value = checks.scalar(name, given)
    expected = f"a number {'≥' if zero else '>'} 0{'' if infinite else ', finite'}"
    inside = (value > 0 or (zero and value == 0)) and (infinite or value < np.inf)
    checks.require(inside, name, expected, given, "Fit the rule to data.")
    object.__setattr__(rule, name, value)  # rules are frozen
    return value
