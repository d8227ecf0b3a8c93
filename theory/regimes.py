"""The two regimes: where the optimal learning rate is set by gradient noise, and where by curvature."""

from typing import Any

import numpy as np
import xarray as xr

from noisysgd.theory import checks
from noisysgd.theory.budget import Budget
from noisysgd.theory.checks import FloatArray
from noisysgd.theory.moments import expected_loss
from noisysgd.theory.optimal import optimal_learning_rate, sampled_from
from noisysgd.theory.problem import NoisyQuadratic
from noisysgd.theory.schedule import ScheduleFamily, half_then_decay, of_length
from noisysgd.theory.stability import critical_learning_rate
from noisysgd.theory.temperature import effective_learning_rate, temperature

NOISE_DOMINATED = "noise dominated"
CURVATURE_DOMINATED = "curvature dominated"


def regimes(
    problem: NoisyQuadratic,
    budget: Budget,
    *,
    batch_sizes: Any,
    momentum: Any = (0.0, 0.9),
    schedule: ScheduleFamily = half_then_decay,
) -> xr.Dataset:
    """Optimal learning rate, its loss and its regime at each batch size.

    A point is *curvature dominated* when its optimal learning rate lies within a factor of two of the critical one (or
    beyond it: under a decaying schedule a finite budget can profit from a transient instability), and *noise
    dominated* below that, where ε ≪ ε_crit and the SDE of eq. 3 holds. On McCandlish's curve ε_crit/(1 + B*/B) the two
    meet exactly at B = B*.

    Parameters
    ----------
    problem : NoisyQuadratic
    budget : EpochBudget or StepBudget
    batch_sizes : (K,) array_like
        Batch sizes, increasing.
    momentum : scalar or (M,) array_like
        Heavy-ball coefficients.
    schedule : callable
        Schedule for a given number of steps.

    Returns
    -------
    xarray.Dataset
        Over (momentum, batch_size): ``learning_rate``, ``effective_learning_rate``, ``temperature``, ``loss``,
        and ``regime``. Over batch_size: ``steps``. Over momentum: ``critical_learning_rate`` and
        ``boundary_batch_size``, the batch size at which a point would sit on the border of the two regimes,
        interpolated between the given ones and good to their spacing; NaN if they do not straddle it. With momentum the
        optimum can jump from one local minimum to another: then that is the boundary.

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

    steps = budget.steps(sizes)
    rate = optimal_learning_rate(problem, budget, batch_size=sizes, momentum=inertia[:, None], schedule=schedule)
    critical = critical_learning_rate(problem, momentum=inertia)
    loss = np.stack(
        [
            expected_loss(
                problem, of_length(schedule, int(n)), learning_rate=rate[:, k], batch_size=sizes[k], momentum=inertia
            )
            for k, n in enumerate(steps)
        ],
        axis=1,
    )
    share = rate / critical[:, None]
    dims = ("momentum", "batch_size")
    return xr.Dataset(
        {
            "learning_rate": (dims, rate),
            "effective_learning_rate": (dims, effective_learning_rate(rate, inertia[:, None])),
            "temperature": (dims, temperature(rate, sizes, inertia[:, None])),
            "loss": (dims, loss),
            "regime": (dims, np.where(share < 0.5, NOISE_DOMINATED, CURVATURE_DOMINATED)),
            "critical_learning_rate": ("momentum", critical),
            "boundary_batch_size": ("momentum", np.array([_crossing(sizes, row) for row in share])),
            "steps": ("batch_size", steps),
        },
        coords={"momentum": inertia, "batch_size": sizes},
        attrs={"source": "theory"},
    )


def _crossing(sizes: FloatArray, share: FloatArray) -> float:
    """Batch size at which `share` of the critical learning rate passes ½, log-log interpolated; NaN if it does not."""
    below = np.flatnonzero((share[:-1] < 0.5) & (share[1:] >= 0.5))
    if below.size == 0:
        return float("nan")
    k = below[-1]
    x, y = np.log(sizes[k : k + 2]), np.log(share[k : k + 2])
    return float(np.exp(x[0] + (np.log(0.5) - y[0]) * (x[1] - x[0]) / (y[1] - y[0])))
