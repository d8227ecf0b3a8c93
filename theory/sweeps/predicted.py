"""Theory's side of a comparison: exact losses on a grid of learning rates, as a Sweep."""

from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.describing import plain
from noisysgd.theory.moments.losses import expected_loss
from noisysgd.theory.optima.learning_rates import sampled_from
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.budget import Budget
from noisysgd.theory.schedules.schedule import ScheduleFamily, half_then_decay, of_length
from noisysgd.theory.sweeps.dataset import sweep_from_records

if TYPE_CHECKING:
    import xarray as xr


def predict_sweep(
    problem: Quadratic,
    budget: Budget,
    *,
    batch_sizes: Any,
    effective_learning_rates: Any,
    momentum: Any = (0.0, 0.9),
    schedule: ScheduleFamily = half_then_decay,
) -> "xr.Dataset":
    """Exact expected losses over optimizers × batch sizes × learning rates.

    The grid is one of *effective* learning rates, so that optimizers are compared at the same ones.

    Returns
    -------
    xarray.Dataset
        A Sweep with the metric ``expected_loss`` and no ``seed`` dimension.

    Raises
    ------
    ValueError
        For impossible batch sizes, learning rates or momenta.

    Examples
    --------
    >>> from noisysgd import theory
    >>> sweep = theory.predict_sweep(
    ...     theory.power_law(20), theory.StepBudget(50), batch_sizes=[1, 4096],
    ...     effective_learning_rates=theory.powers_of_two(-8, 5))
    >>> theory.optimum(sweep, "expected_loss").effective_learning_rate.values
    array([[ 0.5 ,  4.  ],
           [ 0.25, 16.  ]])
    """
    problem = sampled_from(problem, budget)
    sizes = checks.vector("batch_sizes", checks.batch_size(batch_sizes, problem.dataset_size, "batch_sizes"))
    rates = checks.learning_rate(effective_learning_rates, "effective_learning_rates")
    rates = checks.vector("effective_learning_rates", rates)
    inertia = checks.vector("momentum", checks.momentum(momentum))[:, None]
    modes = problem.merged()
    records = []
    for size, steps in zip(sizes, budget.steps(sizes), strict=True):
        losses = expected_loss(
            modes,
            of_length(schedule, int(steps)),
            learning_rate=rates * (1 - inertia),
            batch_size=size,
            momentum=inertia,
        )
        for m, row in zip(inertia[:, 0], losses, strict=True):
            records += [
                {
                    "momentum": m,
                    "batch_size": size,
                    "learning_rate": rate * (1 - m),
                    "seed": 0,
                    "status": "complete" if np.isfinite(loss) else "diverged",
                    "expected_loss": loss,
                }
                for rate, loss in zip(rates, row, strict=True)
            ]
    about = plain({"problem": problem, "budget": budget, "schedule": schedule})
    sweep = sweep_from_records(records, source="theory", metrics=["expected_loss"], configuration=about)
    return sweep.squeeze("seed", drop=True)
