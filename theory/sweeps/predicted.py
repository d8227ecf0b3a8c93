"""The theory's side of a comparison: exact losses on a grid of learning rates, as a Sweep."""

from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.describing import plain
from noisysgd.theory.moments.losses import expected_loss
from noisysgd.theory.optima.learning_rates import sampled_from
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.budget import Budget
from noisysgd.theory.schedules.schedule import ScheduleFamily, half_then_decay, of_length
from noisysgd.theory.sweeps.rate_grid import RateGrid
from noisysgd.theory.sweeps.records import sweep_from_records

if TYPE_CHECKING:
    import xarray as xr


@ignoring_underflow
def predict_sweep(
    problem: Quadratic,
    budget: Budget,
    *,
    batch_sizes: ArrayLike,
    effective_learning_rates: ArrayLike,
    momentum: ArrayLike = (0.0, 0.9),
    schedule: ScheduleFamily = half_then_decay,
) -> "xr.Dataset":
    """Exact expected losses over optimizers × batch sizes × learning rates.

    The grid is one of *effective* learning rates, so that optimizers are compared at the same ones.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
        If it knows no data-set size but the budget does, batches are drawn from the budget's data set.
    budget : EpochBudget or StepBudget
        Fixes the number of steps at each batch size.
    batch_sizes, effective_learning_rates, momentum : float or 1-D array
        Values of B, ε/(1−m) and m. The grid is their product, with one optimizer for each momentum.
    schedule : callable
        Schedule of a given number of steps.

    Returns
    -------
    xarray.Dataset
        A Sweep with the metric ``expected_loss`` and no ``seed`` dimension.

    Raises
    ------
    ValueError
        For impossible batch sizes, learning rates or momenta, or a budget of another data set.

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
    grid = RateGrid.checked(batch_sizes, effective_learning_rates, momentum, problem.dataset_size)
    # Modes of equal curvature have one expected loss: it is computed once for all of them.
    modes = problem.merged()
    records = []
    for size, steps in zip(grid.batch_sizes, budget.steps(grid.batch_sizes), strict=True):
        losses = expected_loss(
            modes,
            of_length(schedule, int(steps)),
            learning_rate=grid.learning_rates,
            batch_size=size,
            momentum=grid.optimizers,
        )
        records += grid.records(size, 0, {"expected_loss": losses})
    about = plain({"problem": problem, "budget": budget, "schedule": schedule})
    sweep = sweep_from_records(records, source="theory", metrics=["expected_loss"], configuration=about)
    return sweep.squeeze("seed", drop=True)
