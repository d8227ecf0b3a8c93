"""The lowest of possibly several minima of a positive function of a learning rate that are no needles."""

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.optima.robustness import TOLERANCE, LogFunction, worst_nearby

POINTS_PER_DECADE = 16
DECADES_AT_MOST = 60
NEEDLE = 2.0 * TOLERANCE
"""Width in log ε below which no minimum can be the most robust one: 1 %."""
SPLITS_AT_MOST = 4000
CAUTION = 2.0
"""How much steeper than the chords nearby a function is assumed to be, at most, between two points."""


def minimise_on_log_scale(function: LogFunction, *, start: float, also: FloatArray | None = None) -> float:
    """Where the worst value nearby of a function is lowest, as ``robustness`` has it; arguments are logarithms.

    The function falls at first and rises without bound in the end.

    1. A grid from two decades below `start` to one above it grows by decades until the function falls throughout the
       lowest decade and rises throughout the highest.
    2. The points in `also` are added, where oscillations are known to be too short for the grid.
    3. Every interval in which the function could still go below the lowest worst value found is split, on the
       assumption that it is at most twice as steep there as the chords nearby (the method of Piyavskii 1972 and Shubert
       1972, with local slopes). So the grid is fine where it matters, and down to the width of a needle.
    4. Local minima are narrowed down to 5e-4, lowest first, and beside each the point with the lowest worst value is
       looked for. A worst value is at least the lowest one nearby; so the search ends at the first local minimum that
       is above the lowest worst value.
    """
    grid, values = _bracket(function, start)
    if also is not None:
        more = np.setdiff1d(also, grid)
        order = np.argsort(np.concatenate([grid, more]))
        grid = np.concatenate([grid, more])[order]
        values = np.concatenate([values, function(more)])[order]
    _, level = _most_robust(function, grid, values)
    return _most_robust(function, *_split(function, grid, values, level))[0]


def waves(edge: float, momentum: float, steps: int) -> FloatArray | None:
    """Logarithms of learning rates close enough to resolve oscillations of the loss; None where there are none.

    Losses oscillate as functions of ε for two reasons. With momentum a mode has turned after n steps through a phase of
    about n√(ελ), at most nπ at the critical learning rate exp(`edge`); after 20/(1−m) steps no oscillation is left. And
    under a schedule of few steps, each step with a learning rate of its own may wipe out a mode, by ελ = 1.
    """
    grids = []
    if momentum > 0.0 and steps * (1.0 - momentum) < 20.0:
        phases = min(steps, 10.0 / (1.0 - momentum))
        count = int(min(max(8 * phases, 64), 4000))
        # The phase goes with √ε, so points equally spaced in √ε are equally spaced in phase.
        grids.append(edge + 2.0 * np.log(np.linspace(0.0, 1.1, count + 1)[1:]))
    if steps <= 40:
        grids.append(edge + np.arange(-3.0, 4.0, NEEDLE))
    return np.unique(np.concatenate(grids)) if grids else None


def narrow(function: LogFunction, low: float, high: float, width: float = 1e-3) -> float:
    """Minimiser between `low` and `high` of a function with one minimum there, to half of `width`, by nested grids.

    Of ten points the lowest has the minimum between its neighbours; these are the ends of the next grid.
    """
    while True:
        grid = np.linspace(low, high, 10)
        values = function(grid)
        best = int(np.argmin(values))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 9)]
        if high - low < width:
            return float(grid[best])


def _bracket(function: LogFunction, start: float) -> tuple[FloatArray, FloatArray]:
    """A grid, and values on it, that fall throughout its lowest decade and rise throughout its highest."""
    decade, n = np.log(10.0), POINTS_PER_DECADE
    block = np.arange(n) * decade / n
    grid = np.concatenate([start + (k * decade) + block for k in (-2, -1, 0)])
    values = function(grid)
    for _ in range(DECADES_AT_MOST):
        # A function that is flat to rounding falls no further: learning rates this small change nothing.
        fall = np.diff(values[: n + 1])
        if np.all(fall < 0) or np.all(np.abs(fall) < 1e-13 * values[0]):
            break
        lower = grid[0] - decade + block
        grid, values = np.concatenate([lower, grid]), np.concatenate([function(lower), values])
    # Beyond the edge of stability values may be infinite throughout, which counts as rising.
    for _ in range(DECADES_AT_MOST):
        with np.errstate(invalid="ignore"):  # inf − inf
            rises = (np.diff(values[-n - 1 :]) > 0) | np.isinf(values[-n:])
        if rises.all():
            break
        upper = grid[-1] + block + decade / n
        grid, values = np.concatenate([grid, upper]), np.concatenate([values, function(upper)])
    return grid, values


def _most_robust(function: LogFunction, grid: FloatArray, values: FloatArray) -> tuple[float, float]:
    """The point with the lowest worst value, beside one of the local minima of `values`, and that worst value."""
    worst = worst_nearby(function)
    inner = np.arange(1, grid.size - 1)
    minima = inner[(values[inner] <= values[inner - 1]) & (values[inner] <= values[inner + 1])]
    best, level = float(grid[minima[np.argmin(values[minima])]]), np.inf
    for k in minima[np.argsort(values[minima], kind="stable")]:
        if values[k] >= level:
            break
        lowest = narrow(function, grid[k - 1], grid[k + 1])
        # Where the worst value is lowest, a local minimum lies within the tolerance: otherwise a shift would lower it.
        place = narrow(worst, lowest - 1.5 * TOLERANCE, lowest + 1.5 * TOLERANCE)
        height = float(worst(np.array([place]))[0])
        if height < level:
            best, level = place, height
    return best, level


def _split(function: LogFunction, grid: FloatArray, values: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    """`grid` with midpoints added wherever the function may be lower than `level`, and its values there."""
    while grid.size < SPLITS_AT_MOST:
        # Slopes are those of log against log: losses vary over many decades.
        heights = np.log(np.clip(values, 1e-300, 1e300))
        width = np.diff(grid)
        slope = np.abs(np.diff(heights)) / width
        around = np.pad(slope, 1, mode="edge")
        steepest = CAUTION * np.maximum(slope, np.maximum(around[:-2], around[2:]))
        # Two lines of that slope, down from both ends of an interval, meet at this height: the lowest that is possible.
        lowest = 0.5 * (heights[1:] + heights[:-1] - steepest * width)
        open_ = np.flatnonzero((lowest < np.log(np.clip(level, 1e-300, 1e300)) - 1e-3) & (width > 0.5 * NEEDLE))
        if open_.size == 0:
            break
        middle = 0.5 * (grid[open_] + grid[open_ + 1])
        grid, values = np.insert(grid, open_ + 1, middle), np.insert(values, open_ + 1, function(middle))
    return grid, values
