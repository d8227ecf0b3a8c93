"""The two regimes: where the optimal learning rate is set by gradient noise, and where by curvature."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.limits.stability import critical_learning_rate
from noisysgd.theory.optima.learning_rates import optimal_runs, sampled_from
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.scaling.corner import SharpCorner
from noisysgd.theory.scaling.rules import linear_scaling_exponent
from noisysgd.theory.schedules.budget import Budget
from noisysgd.theory.schedules.effective_rate import effective_learning_rate, temperature
from noisysgd.theory.schedules.schedule import ScheduleFamily

if TYPE_CHECKING:
    import xarray as xr

NOISE_DOMINATED = "noise dominated"
CURVATURE_DOMINATED = "curvature dominated"


def regimes(
    problem: Quadratic,
    budget: Budget,
    *,
    batch_sizes: Any,
    momentum: Any = (0.0, 0.9),
    schedule: ScheduleFamily | None = None,
) -> "xr.Dataset":
    """Optimal learning rate, its loss and its regime at each batch size.

    A point is *curvature dominated* when its optimal learning rate lies within a factor of two of the curvature
    constraint 2(1+m)/λ_max (or beyond it: under a decaying schedule a finite budget can profit from a transient
    instability), and *noise dominated* below that, where ε ≪ ε_crit and the SDE of eq. 3 holds. On McCandlish's curve
    ε_crit/(1 + B*/B) the two meet exactly at B = B*.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    budget : EpochBudget, StepBudget or UnlimitedBudget
    batch_sizes : (K,) array_like
        Batch sizes, increasing.
    momentum : scalar or (M,) array_like
        Heavy-ball coefficients.
    schedule : callable, optional
        Schedule for a given number of steps: the paper's by default. An unlimited budget has none.

    Returns
    -------
    xarray.Dataset
        Over (momentum, batch_size): ``learning_rate``, ``effective_learning_rate``, ``temperature``, ``steps``,
        ``loss`` and ``regime``. Over momentum:

        - ``critical_learning_rate``, the curvature constraint;
        - ``boundary_batch_size``, at which a point sits on the border of the two regimes, to 1 % within the range
          of the given ones; NaN if they do not straddle it. With momentum the optimum can jump from one local minimum
          to another: then that is the boundary;
        - ``sharpness`` p and ``corner_batch_size`` B* of the fit ε_c/(1 + (B*/B)^p)^(1/p) to all points (see
          :class:`~noisysgd.theory.SharpCorner`); NaN below four batch sizes;
        - ``linear_scaling_exponent``, the slope of log ε against log B over the noise-dominated points: 1 where linear
          scaling holds; NaN below two of them.

    Raises
    ------
    ValueError
        For impossible batch sizes or momenta, or batch sizes that do not increase.

    Examples
    --------
    >>> from noisysgd import theory
    >>> budget = theory.EpochBudget(epochs=20, dataset_size=4096)
    >>> table = theory.regimes(theory.power_law(20), budget, batch_sizes=[1, 4096], momentum=0.0)
    >>> table.regime.values.tolist()
    [['noise dominated', 'curvature dominated']]
    """
    problem = sampled_from(problem, budget)
    sizes = checks.vector("batch_sizes", checks.batch_size(batch_sizes, problem.dataset_size, "batch_sizes"))
    rising = bool(np.all(np.diff(sizes) > 0))
    checks.require(rising, "batch_sizes", "a (K,) array of increasing batch sizes", batch_sizes, "Sort them.")
    inertia = checks.vector("momentum", checks.momentum(momentum))
    distinct = np.unique(inertia).size == inertia.size
    checks.require(distinct, "momentum", "a scalar or an (M,) array of distinct values", momentum, "Drop repetitions.")

    best = optimal_runs(problem, budget, batch_size=sizes, momentum=inertia[:, None], schedule=schedule)
    critical = critical_learning_rate(problem, momentum=inertia)
    share = best.learning_rate / critical[:, None]

    def share_at(m: float, size: float) -> float:
        rate = optimal_runs(problem, budget, batch_size=size, momentum=m, schedule=schedule).learning_rate
        return float(rate / critical_learning_rate(problem, momentum=m))

    boundary = [_crossing(sizes, row, partial(share_at, m)) for row, m in zip(share, inertia, strict=True)]
    corners = [_corner(sizes, row) for row in best.learning_rate]
    exponents = [
        _exponent(sizes[row < 0.5], rates[row < 0.5]) for row, rates in zip(share, best.learning_rate, strict=True)
    ]
    dims = ("momentum", "batch_size")
    import xarray as xr

    return xr.Dataset(
        {
            "learning_rate": (dims, best.learning_rate),
            "effective_learning_rate": (dims, effective_learning_rate(best.learning_rate, inertia[:, None])),
            "temperature": (dims, temperature(best.learning_rate, sizes, inertia[:, None])),
            "steps": (dims, best.steps),
            "loss": (dims, best.loss),
            "regime": (dims, np.where(share < 0.5, NOISE_DOMINATED, CURVATURE_DOMINATED)),
            "critical_learning_rate": ("momentum", critical),
            "boundary_batch_size": ("momentum", np.array(boundary)),
            "sharpness": ("momentum", np.array([sharpness for sharpness, _ in corners])),
            "corner_batch_size": ("momentum", np.array([place for _, place in corners])),
            "linear_scaling_exponent": ("momentum", np.array(exponents)),
        },
        coords={"momentum": inertia, "batch_size": sizes},
        attrs={"source": "theory"},
    )


def _crossing(sizes: FloatArray, share: FloatArray, share_at: Callable[[float], float]) -> float:
    """Batch size at which `share` of the critical learning rate passes ½, by bisection to 1 %; NaN if it does not."""
    below = np.flatnonzero((share[:-1] < 0.5) & (share[1:] >= 0.5))
    if below.size == 0:
        return float("nan")
    low, high = (float(size) for size in sizes[below[-1] : below[-1] + 2])
    if np.isinf(high):
        return float("nan")
    while high > 1.01 * low:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if share_at(middle) < 0.5 else (low, middle)
    return float(np.sqrt(low * high))


def _corner(sizes: FloatArray, rates: FloatArray) -> tuple[float, float]:
    """Sharpness and batch size of the corner, or NaN."""
    usable = np.isfinite(sizes) & np.isfinite(rates) & (rates > 0)
    if np.count_nonzero(usable) < 4:
        return float("nan"), float("nan")
    corner = SharpCorner.fit(sizes[usable], rates[usable])
    return corner.sharpness, corner.boundary_batch_size


def _exponent(sizes: FloatArray, rates: FloatArray) -> float:
    """Slope of log ε against log B, or NaN."""
    usable = np.isfinite(rates) & (rates > 0)
    if np.count_nonzero(usable) < 2:
        return float("nan")
    return linear_scaling_exponent(sizes[usable], rates[usable], log_errors=1e-3)[0]
