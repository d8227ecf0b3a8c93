"""The simulator's side of a comparison: ensembles over a grid of learning rates, as a Sweep."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.simulators.engine import simulate
from noisysgd.theory.common import checks
from noisysgd.theory.common.describing import plain
from noisysgd.theory.optima.learning_rates import sampled_from
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.budget import Budget
from noisysgd.theory.schedules.schedule import ScheduleFamily, half_then_decay, of_length
from noisysgd.theory.sweeps.dataset import sweep_from_records


def simulate_sweep(
    problem: NoisyQuadratic,
    budget: Budget,
    *,
    batch_sizes: Any,
    effective_learning_rates: Any,
    momentum: Any = (0.0, 0.9),
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

    The counterpart of :func:`noisysgd.theory.predict_sweep`, on the same grid. Each of the `seeds` is the mean over an
    independent ensemble of `replicas`. Points of one seed share random numbers: their errors are correlated along the
    learning rates.

    Parameters
    ----------
    seeds : int
        Ensembles per point; they use the seeds ``seed``, ``seed + 1``, ….
    replicas : int
        Trajectories per ensemble.
    backend, dtype, threads
        As in :func:`simulate`.
    progress : callable, optional
        ``progress(share of the work done)``.

    Returns
    -------
    xarray.Dataset
        A Sweep with the metrics ``expected_loss`` and its ``standard_error`` within each ensemble.

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
    sizes = checks.vector("batch_sizes", checks.batch_size(batch_sizes, problem.dataset_size, "batch_sizes"))
    rates = checks.learning_rate(effective_learning_rates, "effective_learning_rates")
    rates = checks.vector("effective_learning_rates", rates)
    inertia = checks.vector("momentum", checks.momentum(momentum))
    seed = checks.integer("seed", seed, 0, remedy="Seeds count from 0.")
    count = checks.integer("seeds", seeds, 1, remedy="Simulate at least one ensemble.")
    steps = budget.steps(sizes)
    work, done = float(steps.sum() * count), 0.0
    records = []
    for size, length in zip(sizes, steps, strict=True):
        for k in range(count):
            ensemble = simulate(
                problem,
                of_length(schedule, int(length)),
                learning_rate=rates * (1 - inertia[:, None]),
                batch_size=size,
                momentum=inertia[:, None],
                replicas=replicas,
                seed=seed + k,
                backend=backend,
                dtype=dtype,
                threads=threads,
            )
            losses, errors = (ensemble[name].isel(step=-1).values for name in ("loss", "loss_stderr"))
            records += [
                {
                    "momentum": m,
                    "batch_size": size,
                    "learning_rate": rate * (1 - m),
                    "seed": seed + k,
                    "status": "complete" if np.isfinite(losses[i, j]) else "diverged",
                    "expected_loss": losses[i, j],
                    "standard_error": errors[i, j],
                }
                for i, m in enumerate(inertia)
                for j, rate in enumerate(rates)
            ]
            done += float(length)
            if progress is not None:
                progress(done / work)
    about = plain({"problem": problem, "budget": budget, "schedule": schedule, "replicas": replicas, "dtype": dtype})
    metrics = ["expected_loss", "standard_error"]
    return sweep_from_records(records, source="simulator", metrics=metrics, configuration=about)
