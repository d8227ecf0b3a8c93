"""The corner between linear scaling and a constant learning rate: where it is and how sharp, fitted with intervals.

*Sharpness* is that of the corner here, a number p of the curve ε(B); it has nothing to do with the Hessian.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.scaling.curve_fit import (
    EXACT,
    OCTAVES_BEYOND,
    Data,
    FittedRule,
    fit_data,
    local_minima,
    minimise,
    misfit,
    parameter,
    power,
    scan,
    unless_inside,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SHARPEST = 64.0
"""Largest finite sharpness that fits consider; sharper corners count as infinitely sharp."""
BLUNTEST = 0.125
"""Smallest sharpness that fits consider: at 1/8 the curve is nearly a power law with exponent ½ over 16 octaves."""
BLUNTNESS = np.geomspace(1 / SHARPEST, 1 / BLUNTEST, 25)
"""Grid of 1/p, in which misfits are smooth; 0, an infinitely sharp corner, is treated separately."""


@dataclass(frozen=True)
class SharpCorner(FittedRule):
    """ε = ε_c/(1 + (B*/B)^p)^(1/p): linear far below B*, constant far above, with a corner of sharpness p in between.

    p = 1 is :class:`~noisysgd.theory.McCandlish`, p = ∞ :class:`~noisysgd.theory.LinearWithCap`. The formula is not
    derived from a model; it is a family between the two, to measure with p how sharp the corner of data is.

    Parameters
    ----------
    maximum : float
        ε_c, the learning rate of infinite batches.
    boundary_batch_size : float
        B*, where the two asymptotes meet; 0 is a constant learning rate.
    sharpness : float
        p > 0 of the corner, ``inf`` allowed. Fits consider 1/8 to 64, and ``inf``.

    Examples
    --------
    >>> rule = SharpCorner(maximum=1.0, boundary_batch_size=16, sharpness=2.0)
    >>> rule.learning_rate([1, 16, 256]).round(4)
    array([0.0624, 0.7071, 0.9981])
    >>> sizes = [1, 4, 16, 64, 256]
    >>> round(SharpCorner.fit(sizes, rule.learning_rate(sizes)).sharpness, 6)
    2.0
    """

    maximum: float
    boundary_batch_size: float
    sharpness: float

    def __post_init__(self) -> None:
        parameter(self, "maximum")
        parameter(self, "boundary_batch_size", zero=True)
        parameter(self, "sharpness", infinite=True)

    @property
    def parameters(self) -> dict[str, float]:
        """The fitted parameters by name."""
        names = ("maximum", "boundary_batch_size", "sharpness")
        return {name: getattr(self, name) for name in names}

    @ignoring_underflow
    def learning_rate(self, batch_size: ArrayLike) -> FloatArray:
        """Learning rate at each batch size."""
        with np.errstate(divide="ignore"):
            distance = np.log2(checks.batch_size(batch_size)) - np.log2(self.boundary_batch_size)
        return np.asarray(self.maximum * np.exp2(corner(distance, self.sharpness)))

    @classmethod
    @ignoring_underflow
    def fit(cls, batch_sizes: ArrayLike, learning_rates: ArrayLike, *, log_errors: ArrayLike | None = None) -> Self:
        """The rule closest to data: see :meth:`RuleFamily.fit`. A corner beyond sharpness 64 gets sharpness ``inf``.

        One as blunt as 1/8 is hardly a corner: then no parameter is identified.
        """
        data = fit_data(batch_sizes, learning_rates, log_errors, parameters=3)
        factor, place, sharpness, _ = _fit(data)
        return cls(power(factor), power(place), sharpness, not_identified=_lacking(place, sharpness, data))


@dataclass(frozen=True)
class CornerFit:
    """A fitted corner with profile-likelihood intervals, made by :func:`fit_corner`.

    Attributes
    ----------
    rule : SharpCorner
        The best fit.
    sharpness_interval : (float, float)
        Interval of the corner's sharpness p. Its upper end is ``inf`` if the data agree with an infinitely sharp one.
        Its lower end is 0 if they agree with p = 1/8: then there may be no corner at all, and `boundary_interval` means
        little.
    boundary_interval : (float, float)
        Interval of B*; an end is 0 or ``inf`` if the data agree with a corner as far as 2²⁰ beyond them on that side.
    confidence : float
        Level of both intervals.
    """

    rule: SharpCorner
    sharpness_interval: tuple[float, float]
    boundary_interval: tuple[float, float]
    confidence: float


@ignoring_underflow
def fit_corner(
    batch_sizes: ArrayLike, learning_rates: ArrayLike, *, log_errors: ArrayLike | None = None, confidence: float = 0.95
) -> CornerFit:
    """:class:`SharpCorner` fitted to data, with intervals for its sharpness p and its boundary batch size B*.

    An interval holds the values for which the best choice of the other parameters fits the data acceptably. With known
    errors, χ² may exceed its minimum by z²; with unknown errors, by the share t²/(K−3) of the minimum, with Student's t
    for K−3 degrees of freedom. So an interval need not be symmetric, nor finite. Where acceptable values come in
    several pieces, it spans them all.

    Parameters
    ----------
    batch_sizes, learning_rates, log_errors
        As of :meth:`RuleFamily.fit`. Give `log_errors` for data that were read off a coarse grid: their scatter says
        little about their errors. If batch sizes lie on the same grid, rounding can shift the boundary by one grid step
        beyond its interval.
    confidence : float
        Level of the intervals, between 0 and 1.

    Returns
    -------
    CornerFit

    Raises
    ------
    ValueError
        For fewer than three different batch sizes, or four data without `log_errors`.

    Examples
    --------
    Powers of two alone cannot tell how sharp a corner is.

    >>> sizes = 2.0 ** np.arange(9)
    >>> rates = np.minimum(sizes / 16, 1.0)
    >>> fit_corner(sizes, rates, log_errors=0.29).sharpness_interval[1]
    inf
    """
    data = fit_data(batch_sizes, learning_rates, log_errors, parameters=3)
    level = checks.scalar("confidence", confidence)
    checks.require(0 < level < 1, "confidence", "a level between 0 and 1", confidence, "0.95 is usual.")
    spare = data.log_batch.size - 3
    remedy = "Pass log_errors, or more data."
    checks.require(data.known or spare > 0, "batch_sizes", "four data to tell their scatter", spare + 3, remedy)
    factor, place, sharpness, least = _fit(data)

    from scipy.special import ndtri, stdtrit

    tail = 0.5 + level / 2
    margin = float(ndtri(tail)) ** 2 if data.known else least * float(stdtrit(spare, tail)) ** 2 / spare
    limit = least + margin + _slack(data)

    # Profiles of χ²: one parameter is given, the others are fitted.
    def height_of_bluntness(bluntness: float) -> float:
        return _fit_boundary(data, 1.0 / bluntness if bluntness > 0 else np.inf)[2]

    def height_of_place(place: float) -> float:
        distance = data.log_batch - place
        grid = np.concatenate([[0.0], BLUNTNESS])
        blunt = minimise(lambda b: misfit(corner(distance, _inverse(b)[:, None]), data)[0], grid)
        return float(misfit(corner(distance, _inverse(np.array(blunt))), data)[0])

    bluntness = np.concatenate([[0.0], BLUNTNESS])
    sharp, blunt = _hull(height_of_bluntness, bluntness, float(_inverse(np.array(sharpness))), limit)
    places = _places(data)[::4]  # fine enough to bracket the ends of the interval
    low, high = _hull(height_of_place, places, place, limit)
    return CornerFit(
        rule=SharpCorner(power(factor), power(place), sharpness, not_identified=_lacking(place, sharpness, data)),
        sharpness_interval=(1.0 / blunt if blunt < bluntness[-1] else 0.0, float(_inverse(np.array(sharp)))),
        boundary_interval=(
            power(low) if low > places[0] else 0.0,
            power(high) if high < places[-1] else float("inf"),
        ),
        confidence=level,
    )


def corner(distance: FloatArray, sharpness: ArrayLike) -> FloatArray:
    """Log₂ of (1 + 2^(−p·distance))^(−1/p) for p = `sharpness` and distances log₂(B/B*); the two broadcast."""
    # Infinite p is replaced by 1e18: the difference is below rounding, and p·0 stays 0.
    p = np.minimum(sharpness, 1e18)
    with np.errstate(under="ignore"):  # far from a sharp corner nothing is left of it
        rounding = np.log1p(np.exp2(-p * np.abs(distance))) / (np.log(2.0) * p)
    return np.asarray(np.minimum(distance, 0.0) - rounding)


def fit_boundary(data: Data, sharpness: float) -> tuple[float, float]:
    """Log₂ of the maximum and of the boundary batch size of the best corner of given sharpness."""
    factor, place, _ = _fit_boundary(data, sharpness)
    return factor, place


def _places(data: Data) -> FloatArray:
    """Places where a corner is looked for, as log₂ of batch sizes: from far below the data to far beyond."""
    x = data.log_batch
    return scan(float(x.min()) - OCTAVES_BEYOND, float(x.max()) + OCTAVES_BEYOND, kinks=x)


def _fit_boundary(data: Data, sharpness: float) -> tuple[float, float, float]:
    """Best corner of given sharpness: log₂ of its maximum, log₂ of its batch size, and χ²."""

    def height(places: FloatArray) -> FloatArray:
        return misfit(corner(data.log_batch - places[:, None], sharpness), data)[0]

    place = minimise(height, _places(data))
    value, factor = misfit(corner(data.log_batch - place, sharpness), data)
    return float(factor), place, float(value)


def _fit(data: Data) -> tuple[float, float, float, float]:
    """Best corner of any sharpness: log₂ of its maximum, log₂ of its batch size, its sharpness, and χ²."""
    from scipy.optimize import least_squares

    root = np.sqrt(data.weight)

    def residual(point: FloatArray) -> FloatArray:
        shape = corner(data.log_batch - point[0], 1 / point[1])
        return np.asarray(root * (data.log_rate - shape - misfit(shape, data)[1]))

    # An infinitely sharp corner is fitted by itself: close to it χ² hardly depends on p, and no slope leads there.
    factor, place, least = _fit_boundary(data, np.inf)
    sharpness = float("inf")
    profile = [_fit_boundary(data, 1 / bluntness) for bluntness in BLUNTNESS]
    limit = float(np.abs(_places(data)).max())
    limits = ([-limit, BLUNTNESS[0]], [limit, BLUNTNESS[-1]])
    # From the three lowest minima of the profile over a grid of 1/p, place and 1/p are refined together; the maximum is
    # solved for at every step. A finite p has to fit better by more than rounding to replace the infinite one.
    for k in local_minima(np.array([height for _, _, height in profile]))[:3]:
        start = np.array([profile[k][1], BLUNTNESS[k]])
        found = least_squares(residual, start, "3-point", limits, xtol=1e-15, ftol=1e-15, gtol=1e-15).x
        value, height = misfit(corner(data.log_batch - found[0], 1 / found[1]), data)
        if value < least * (1 - 1e-9) - _slack(data):
            factor, place, sharpness, least = float(height), float(found[0]), float(1 / found[1]), float(value)
    return factor, place, sharpness, least


def _lacking(place: float, sharpness: float, data: Data) -> tuple[str, ...]:
    """Names of the parameters that data do not identify which are fitted by that corner."""
    every = ("maximum", "boundary_batch_size", "sharpness")
    # Refinement stops just short of the end of its range.
    blunt = sharpness < 1.01 * BLUNTEST
    return every if blunt else unless_inside(place, data, below=every[1:], above=every)


def _slack(data: Data) -> float:
    """Difference in χ² that rounding can make."""
    return (EXACT * 1e-3) ** 2 * float(data.weight.sum())


def _inverse(value: FloatArray) -> FloatArray:
    """1/value, with 1/0 = ∞ and 1/∞ = 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(1.0 / value)


def _hull(height: "Callable[[float], float]", grid: FloatArray, best: float, limit: float) -> tuple[float, float]:
    """First and last place, within the grid, at which `height` is at most `limit`; at `best` it certainly is."""
    from scipy.optimize import brentq

    # Each end is refined between the outermost acceptable point of the grid and its neighbour; all in between counts.
    grid = np.union1d(grid, best)
    inside = np.array([point == best or height(float(point)) <= limit for point in grid])
    first, last = (int(k) for k in np.flatnonzero(inside)[[0, -1]])

    def excess(point: float) -> float:
        # At `best`, which may be an end of the bracket, rounding must not give the excess the wrong sign.
        return -1e-300 if point == best else height(point) - limit

    low = float(grid[0]) if first == 0 else float(brentq(excess, grid[first - 1], grid[first]))
    high = float(grid[-1]) if last == grid.size - 1 else float(brentq(excess, grid[last], grid[last + 1]))
    return low, high
