"""The rule by which every optimiser here judges an optimum: the worst that a small change of learning rates can do.

Expected losses have needles. Where a drop of the schedule lands on ελ = 1, it wipes out a mode that had been growing;
without noise, modes that oscillate may happen to end at zero together. The loss of such a point is of no use, since no
one sets a learning rate, or knows a curvature, to all digits: a change by 0.1 % may raise it from 0.004 to 10¹⁰.

So the optimum is the point whose *worst loss* is the smallest: the largest loss when every learning rate that was
optimised is changed, each by itself, by up to ±0.5 %. The loss that is reported is the one at the point itself. Where
the loss is smooth, the rule changes nothing: the worst loss exceeds the loss by 0.005 · Σ |∂L/∂ log ε| to first order,
a kink that holds its minimum at that of the loss. Beside a cliff it keeps a distance of 0.5 %.
"""

from collections.abc import Callable
from itertools import product

import numpy as np

from noisysgd.theory.common.arrays import FloatArray

TOLERANCE = -float(np.log(0.995))
"""Change of the logarithm of a learning rate by which an optimum is judged, up or down: 0.5 %."""
SMOOTH = 0.01
"""Rise of log loss by such changes up to which a minimum of the loss will do: no worst loss nearby is lower by more."""

NUDGE = 1e-5
"""Step in log ε of the central differences that stand for derivatives."""
ROUNDS = 5
"""How many changes of all learning rates a staircase is made robust against at most, one after another."""
STIFFNESS = 20.0
"""Of the rounded maximum of several log losses, which is at most log(ROUNDS)/20 below the sharp one."""

LogFunction = Callable[[FloatArray], FloatArray]
"""Values at logarithms of learning rates, many at once."""


def worst_nearby(function: LogFunction) -> LogFunction:
    """The largest of five values of a function of one learning rate, over changes by up to :data:`TOLERANCE`.

    >>> spike = worst_nearby(lambda x: np.where(abs(x) < 1e-3, 0.0, 1.0))
    >>> spike(np.array([0.0, 2.0]))
    array([1., 1.])
    """
    changes = TOLERANCE * np.linspace(-1.0, 1.0, 5)

    def worst(log_rates: FloatArray) -> FloatArray:
        values = function((log_rates[:, None] + changes).ravel())
        return np.asarray(values.reshape(-1, changes.size).max(axis=1))

    return worst


def worst_in_box(function: Callable[[FloatArray], float], point: FloatArray) -> tuple[float, FloatArray]:
    """The largest value when every coordinate changes by up to :data:`TOLERANCE`, and the change (P,) that makes it.

    Up to three coordinates, all combinations of up, down and unchanged are tried. With more, these are too many: the
    change begins as that of the steepest ascent, of all coordinates together, and of coordinates that alternate, and
    each coordinate is turned as long as that raises the value. So the result is a lower bound, one that rounding of
    every learning rate by itself is not likely to surpass.

    >>> height, change = worst_in_box(lambda x: float(x[0] - x[1]), np.zeros(2))
    >>> bool(abs(height - 2 * TOLERANCE) < 1e-15), np.sign(change).tolist()
    (True, [1.0, -1.0])
    """
    size = point.size
    if size <= 3:
        changes = TOLERANCE * np.array(list(product((0.0, -1.0, 1.0), repeat=size)))
        values = [function(point + change) for change in changes]
        return values[int(np.argmax(values))], changes[int(np.argmax(values))]
    units = TOLERANCE * np.eye(size)
    slopes = np.array([function(point + unit) - function(point - unit) for unit in units])
    ascent = np.where(slopes < 0, -1.0, 1.0)
    best: FloatArray = np.zeros(size)
    worst = function(point)
    for signs in (ascent, np.ones(size), -np.ones(size), (-1.0) ** np.arange(size), -((-1.0) ** np.arange(size))):
        change: FloatArray = np.asarray(TOLERANCE * signs)
        height, turned = function(point + change), True
        while turned:
            turned = False
            for k in range(size):
                change[k] = -change[k]
                value = function(point + change)
                if value > height:
                    height, turned = value, True
                else:
                    change[k] = -change[k]
        if height > worst:
            best, worst = change, height
    return worst, best


def robust_minimum(
    function: Callable[[FloatArray], float], start: FloatArray, edges: FloatArray, level: float
) -> tuple[FloatArray, float]:
    """Where the worst value near a point is lowest, by the method of Nelder and Mead; the point, and that worst value.

    The function itself is minimised first. Only where small changes raise that minimum does the worst value, which
    takes many values of the function, have to be minimised too, from the same start and from that minimum; and not
    where even the minimum is above the `level` that is known already.

    Parameters
    ----------
    function : callable
        Of (P,) logarithms of learning rates; logarithms of losses.
    start : (P,) array
    edges : (P, P) array
        Edges of the first simplex, which would be 5 % of the start otherwise, whatever its units.
    level : float
        Worst values that are not below this do not matter.
    """
    from scipy.optimize import minimize

    def descend(
        goal: Callable[[FloatArray], float], point: FloatArray, sides: FloatArray, **limits: float
    ) -> FloatArray:
        options = {"initial_simplex": np.vstack([point, point + sides]), **limits}
        return np.asarray(minimize(goal, point, method="Nelder-Mead", options=options).x)

    def worst(point: FloatArray) -> float:
        return worst_in_box(function, point)[0]

    lowest = descend(function, start, edges, xatol=3e-4, fatol=1e-12, maxfev=2000)
    height = worst(lowest)
    if function(lowest) >= level or height < function(lowest) + SMOOTH:
        return lowest, height
    limits = {"xatol": 0.1 * TOLERANCE, "fatol": 0.1 * SMOOTH, "maxfev": 200}
    found = [
        lowest,
        descend(worst, start, edges, **limits),
        descend(worst, lowest, 4.0 * TOLERANCE * np.eye(start.size), **limits),
    ]
    heights = [worst(point) for point in found]
    return found[int(np.argmin(heights))], min(heights)


def descend_robustly(
    function: Callable[[FloatArray], float], start: FloatArray, bounds: list[tuple[float, float]], level: float
) -> tuple[FloatArray, float]:
    """The most robust point found on the way down from `start`, for many coordinates, and the worst value nearby.

    The method of cutting sets (Mutapcic & Boyd 2009): the largest of a few values, at first that at the point alone, is
    minimised by L-BFGS; the worst change of the minimum joins them, and so on until it is no worse than they are, or
    they are above the `level` that is known already.

    Parameters
    ----------
    function : callable
        Of (P,) logarithms of learning rates; logarithms of losses.
    start : (P,) array
    bounds : list of (float, float)
        Of every coordinate.
    level : float
        Worst values that are not below this do not matter.
    """
    from scipy.optimize import minimize

    changes = [np.zeros(start.size)]
    nudges = NUDGE * np.eye(start.size)

    def values(point: FloatArray) -> FloatArray:
        return np.array([function(point + change) for change in changes])

    def rounded_maximum(point: FloatArray) -> float:
        heights = values(point)
        top = float(heights.max())
        return top + float(np.log(np.exp(STIFFNESS * (heights - top)).mean())) / STIFFNESS

    def slope(point: FloatArray) -> FloatArray:
        rises = [rounded_maximum(point + nudge) - rounded_maximum(point - nudge) for nudge in nudges]
        return np.array(rises) / (2 * NUDGE)

    best, lowest = start, worst_in_box(function, start)[0]
    point, iterations = start, 200
    for _ in range(ROUNDS):
        options = {"maxiter": iterations}
        point = minimize(rounded_maximum, point, jac=slope, method="L-BFGS-B", bounds=bounds, options=options).x
        height, change = worst_in_box(function, point)
        if height < lowest:
            best, lowest = point, height
        if float(values(point).max()) >= min(height - SMOOTH, level):
            break
        # What follows has kinks, at which many steps gain little; and it begins at the most robust point so far.
        changes.append(change)
        point, iterations = best, 30
    return best, lowest
