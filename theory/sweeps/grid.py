"""Extending a grid of learning rates, powers of two, until the optimum and its error bar lie inside it.

The paper "always verif[ies] that both the optimal learning rate and the error bars are not at the boundary of [the]
learning rate grid" (section 4). Sweeps of simulated models and of networks share this rule.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

LOWEST, HIGHEST = -60, 20
"""Exponents of two beyond which no grid is extended."""

Grid = tuple[int, ...]
"""Exponents of two, ascending."""
Bar = tuple[float, float]
"""Exponents of two at the ends of an optimum's error bar; NaN where every learning rate diverged."""


def wider(
    grid: Grid, bars: Iterable[Bar], *, lowest: int = LOWEST, highest: int = HIGHEST, down: int = 1, up: int = 1
) -> Grid:
    """`grid` with one more exponent at each end that some metric's error bar touches; `grid` itself if none does.

    Parameters
    ----------
    grid : tuple of int
        Exponents of two, ascending.
    bars : iterable of (float, float)
        One error bar per metric. If it is NaN, since every learning rate diverged, the grid is extended downwards.
    lowest, highest : int
        Exponents beyond which the grid is not extended.
    down, up : int
        How far below the first and above the last exponent the new ones lie.

    Returns
    -------
    tuple of int
        Exponents of two, ascending.

    Examples
    --------
    >>> wider((-2, -1, 0), [(-1.0, -1.0), (-1.0, 0.0)])
    (-2, -1, 0, 1)
    >>> wider((-2, -1, 0), [(-1.0, -1.0)])
    (-2, -1, 0)
    """
    ends = list(bars)
    lower = any(np.isnan(first) or first < grid[0] + 0.5 for first, _ in ends)
    higher = any(last > grid[-1] - 0.5 for _, last in ends)
    below = (grid[0] - down,) if lower and grid[0] - down >= lowest else ()
    above = (grid[-1] + up,) if higher and grid[-1] + up <= highest else ()
    return (*below, *grid, *above)


def error_bar(best: "xr.Dataset", **place: float) -> Bar:
    """Error bar of one optimum, as exponents of two of the effective learning rate.

    Parameters
    ----------
    best : xarray.Dataset
        Result of :func:`noisysgd.theory.optimum`.
    **place : float
        Coordinates, among them ``momentum``, that select one of its optima.

    Returns
    -------
    (float, float)
        Both NaN where every learning rate diverged.

    Examples
    --------
    >>> from noisysgd import theory
    >>> sweep = theory.predict_sweep(theory.power_law(10), theory.StepBudget(50), batch_sizes=[4],
    ...     effective_learning_rates=theory.powers_of_two(-6, 2), momentum=[0.0, 0.9])
    >>> error_bar(theory.optimum(sweep, "expected_loss"), momentum=0.0, batch_size=4)
    (-1.0, -1.0)
    """
    here = optimum_at(best, **place)
    with np.errstate(invalid="ignore"):
        low, high = (float(np.log2(here[f"effective_learning_rate_{end}"])) for end in ("low", "high"))
    return low, high


def optimum_at(best: "xr.Dataset", *, momentum: float, **place: float) -> "xr.Dataset":
    """The one optimum in `best` at this momentum and these other coordinates."""
    optimizer = int(np.argmin(np.abs(best.momentum.values - momentum)))
    return best.isel(optimizer=optimizer).sel(place)
