"""The two regimes: where the optimal learning rate is set by gradient noise, and where by curvature."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.limits.stability import critical_learning_rate
from noisysgd.theory.optima.learning_rates import OptimalRuns, optimal_runs, sampled_from
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.scaling.comparison import linear_scaling_exponent
from noisysgd.theory.scaling.corner import SharpCorner
from noisysgd.theory.schedules.budget import Budget
from noisysgd.theory.schedules.effective_rate import effective_learning_rate, temperature
from noisysgd.theory.schedules.schedule import ScheduleFamily

if TYPE_CHECKING:
    import xarray as xr

NOISE_DOMINATED = "noise dominated"
CURVATURE_DOMINATED = "curvature dominated"
NOISE_INSTABILITY = "noise instability"
"""Labels of the two regimes, and of optima that are held down by an instability which noise makes, not curvature."""


@ignoring_underflow
def regimes(
    problem: Quadratic,
    budget: Budget,
    *,
    batch_sizes: ArrayLike,
    momentum: ArrayLike = (0.0, 0.9),
    schedule: ScheduleFamily | None = None,
    nesterov: bool = False,
) -> "xr.Dataset":
    """Optimal learning rate, its loss and its regime at each batch size.

    A point is *curvature dominated* if its optimal learning rate is at least half of the critical one without noise,
    ε_crit = 2(1+m)/λ_max. (It may also be above ε_crit: under a decaying schedule a finite budget can profit from a
    transient instability.) Otherwise it is *noise dominated*: there ε ≪ ε_crit, and the SDE of eq. 3 holds. On the
    curve ε_crit/(1 + B*/B) of McCandlish et al. the regimes meet exactly at B = B*.

    Noise that grows with the loss, as in least squares, makes small batches unstable far below ε_crit. A point whose
    learning rate is below half of ε_crit but at least half of the edge of stability at its own batch size, where the
    expected loss ceases to be bounded, is neither: it is called a *noise instability*. That edge, too, is proportional
    to the batch size and bounds ε/(1−m) while batches are small, so that linear scaling alone does not tell the two
    apart.

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
    nesterov : bool
        Whether θ takes Nesterov's step, whose critical learning rate is 2(1+m)/((1+2m) λ_max).

    Returns
    -------
    xarray.Dataset
        Over (momentum, batch_size): ``learning_rate``, ``effective_learning_rate``, ``temperature``, ``steps``,
        ``loss``, ``regime``, and ``stability_edge``, :func:`~noisysgd.theory.critical_learning_rate` at that batch
        size. Over momentum:

        - ``critical_learning_rate``, the same for infinite batches: the curvature constraint;
        - ``boundary_batch_size``, at which curvature begins to dominate, to 1 %; NaN if no or all given batch sizes are
          dominated by it. With momentum the optimum can jump from one local minimum to another: then the jump is the
          boundary;
        - ``sharpness`` p of the corner and ``corner_batch_size`` B* in the fit ε_c/(1 + (B*/B)^p)^(1/p) to all points
          (see :class:`~noisysgd.theory.SharpCorner`); NaN for fewer than four batch sizes, and where these do not
          identify them, as when they show no corner;
        - ``linear_scaling_exponent``, the slope of log ε against log B over the points that curvature does not
          dominate: 1 where linear scaling holds; NaN if there are fewer than two of them.

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

    def runs(size: ArrayLike, m: ArrayLike) -> OptimalRuns:
        return optimal_runs(problem, budget, batch_size=size, momentum=m, schedule=schedule, nesterov=nesterov)

    best = runs(sizes, inertia[:, None])
    critical = critical_learning_rate(problem, momentum=inertia, nesterov=nesterov)
    share = best.learning_rate / critical[:, None]
    edge = critical_learning_rate(problem, sizes, inertia[:, None], nesterov=nesterov)

    def share_at(m: float, size: float) -> float:
        return float(runs(size, m).learning_rate / critical_learning_rate(problem, momentum=m, nesterov=nesterov))

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
            "regime": (dims, regime_labels(best.learning_rate, edge, critical[:, None])),
            "stability_edge": (dims, edge),
            "critical_learning_rate": ("momentum", critical),
            "boundary_batch_size": ("momentum", np.array(boundary)),
            "sharpness": ("momentum", np.array([sharpness for sharpness, _ in corners])),
            "corner_batch_size": ("momentum", np.array([place for _, place in corners])),
            "linear_scaling_exponent": ("momentum", np.array(exponents)),
        },
        coords={"momentum": inertia, "batch_size": sizes},
        attrs={"source": "theory"},
    )


def regime_labels(learning_rate: FloatArray, stability_edge: FloatArray, critical: FloatArray) -> npt.NDArray[np.str_]:
    """The regime of each learning rate, from the edge of stability at its batch size and that without noise."""
    calm = np.where(learning_rate < 0.5 * stability_edge, NOISE_DOMINATED, NOISE_INSTABILITY)
    return np.where(learning_rate < 0.5 * critical, calm, CURVATURE_DOMINATED)


def _crossing(sizes: FloatArray, share: FloatArray, share_at: Callable[[float], float]) -> float:
    """Batch size at which the `share` of the critical learning rate rises past ½, to 1 %; NaN if it does not.

    `share` is known at `sizes`, and `share_at` computes it at any other. The last crossing counts, and is bisected.
    """
    below = np.flatnonzero((share[:-1] < 0.5) & (share[1:] >= 0.5))
    if below.size == 0:
        return float("nan")
    low, high = (float(size) for size in sizes[below[-1] : below[-1] + 2])
    if np.isinf(high):  # there is no middle to bisect at
        return float("nan")
    while high > 1.01 * low:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if share_at(middle) < 0.5 else (low, middle)
    return float(np.sqrt(low * high))


def _corner(sizes: FloatArray, rates: FloatArray) -> tuple[float, float]:
    """Sharpness and batch size of the corner; NaN if fewer than four points can be fitted, or do not identify them."""
    usable = np.isfinite(sizes) & np.isfinite(rates) & (rates > 0)
    if np.count_nonzero(usable) < 4:
        return float("nan"), float("nan")
    corner = SharpCorner.fit(sizes[usable], rates[usable])
    known = not {"sharpness", "boundary_batch_size"} & set(corner.not_identified)
    return (corner.sharpness, corner.boundary_batch_size) if known else (float("nan"), float("nan"))


def _exponent(sizes: FloatArray, rates: FloatArray) -> float:
    """Slope of log ε against log B; NaN if fewer than two points can be fitted."""
    usable = np.isfinite(rates) & (rates > 0)
    if np.count_nonzero(usable) < 2:
        return float("nan")
    return linear_scaling_exponent(sizes[usable], rates[usable], log_errors=1e-3)[0]
