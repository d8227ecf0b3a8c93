"""The simulator's side of a comparison: ensembles over a grid of learning rates, as a Sweep."""

from collections.abc import Callable

import xarray as xr
from numpy.typing import ArrayLike

from noisysgd.simulators.engine import simulate
from noisysgd.theory.common import checks
from noisysgd.theory.common.describing import plain
from noisysgd.theory.optima.learning_rates import sampled_from
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.budget import Budget
from noisysgd.theory.schedules.schedule import ScheduleFamily, half_then_decay, of_length
from noisysgd.theory.sweeps.rate_grid import RateGrid
from noisysgd.theory.sweeps.records import sweep_from_records

MOST_SEEDS = 10_000
"""Ensembles at each point of a sweep."""


def simulate_sweep(
    problem: NoisyQuadratic,
    budget: Budget,
    *,
    batch_sizes: ArrayLike,
    effective_learning_rates: ArrayLike,
    momentum: ArrayLike = (0.0, 0.9),
    schedule: ScheduleFamily = half_then_decay,
    seeds: int = 8,
    replicas: int = 64,
    seed: int = 0,
    backend: str = "cpu",
    dtype: str = "float64",
    threads: int | None = None,
    progress: Callable[[float], object] | None = None,
) -> xr.Dataset:
    """Simulated expected losses over optimizers × batch sizes × learning rates × seeds.

    The counterpart of :func:`noisysgd.theory.predict_sweep`, on the same grid. Each of the `seeds` is an independent
    ensemble, and its loss the mean over `replicas` trajectories. Points of one seed share random numbers: their errors
    are correlated along the learning rates.

    Parameters
    ----------
    problem, budget, batch_sizes, effective_learning_rates, momentum, schedule
        As in :func:`noisysgd.theory.predict_sweep`; the problem is a NoisyQuadratic.
    seeds : int
        Ensembles per point; they use the seeds ``seed``, ``seed + 1``, ….
    replicas : int
        Trajectories per ensemble.
    seed : int
        Seed of the first ensemble.
    backend, dtype, threads
        As in :func:`simulate`.
    progress : callable, optional
        Called as ``progress(share)`` with the share of the work done, such as :class:`TimeLeft`.

    Returns
    -------
    xarray.Dataset
        A Sweep with the metrics ``expected_loss``, the mean loss of each ensemble, and ``standard_error``, the standard
        error of that mean.

    Raises
    ------
    ValueError
        For impossible batch sizes, learning rates, momenta, seeds or replicas, and as :func:`simulate` does.

    Examples
    --------
    >>> from noisysgd import theory
    >>> sweep = simulate_sweep(theory.power_law(10), theory.StepBudget(50), batch_sizes=[1, 1024],
    ...                        effective_learning_rates=[0.25, 0.5, 1.0], momentum=0.0, seeds=2, replicas=16)
    >>> dict(sweep.sizes)
    {'optimizer': 1, 'batch_size': 2, 'learning_rate': 3, 'seed': 2}
    """
    remedy = "simulators.bracketed_sweep takes models made of examples."
    checks.require(isinstance(problem, Quadratic), "problem", "a theory.Quadratic", type(problem).__name__, remedy)
    problem = sampled_from(problem, budget)
    grid = RateGrid.checked(batch_sizes, effective_learning_rates, momentum, problem.dataset_size)
    seed = checks.integer("seed", seed, 0, remedy="Seeds count from 0.")
    count = checks.integer("seeds", seeds, 1, maximum=MOST_SEEDS, remedy="Simulate at least one ensemble.")
    if progress is not None:
        checks.function("progress", progress, remedy="Pass a function of the share that is done, such as TimeLeft().")
    steps = budget.steps(grid.batch_sizes)
    work, done = float(steps.sum() * count), 0.0
    records = []
    for size, length in zip(grid.batch_sizes, steps, strict=True):
        for k in range(count):
            ensemble = simulate(
                problem,
                of_length(schedule, int(length)),
                learning_rate=grid.learning_rates,
                batch_size=size,
                momentum=grid.optimizers,
                replicas=replicas,
                seed=seed + k,
                backend=backend,
                dtype=dtype,
                threads=threads,
            )
            last = ensemble.isel(step=-1)
            metrics = {"expected_loss": last.loss.values, "standard_error": last.loss_stderr.values}
            records += grid.records(size, seed + k, metrics)
            done += float(length)
            if progress is not None:
                progress(done / work)
    about = plain({"problem": problem, "budget": budget, "schedule": schedule, "replicas": replicas, "dtype": dtype})
    names = ["expected_loss", "standard_error"]
    return sweep_from_records(records, source="simulator", metrics=names, configuration=about)
