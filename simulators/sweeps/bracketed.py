"""The paper's protocol on a simulated model: single runs on grids of learning rates that grow until they are enough.

Every learning rate is run `runs` times, of which the best `keep` count (:func:`noisysgd.theory.optimum`). The grid of a
batch size and momentum, of powers of two, is extended at either end until it contains the optimum of every loss of the
model, with its error bar.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from noisysgd.simulators.ensembles import tiles
from noisysgd.simulators.ensembles.tiles import Configuration
from noisysgd.simulators.models.example_model import ExampleEnsemble, ExampleModel, check_whole
from noisysgd.simulators.randomness import stream
from noisysgd.simulators.randomness.batches import SAMPLINGS
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.describing import plain
from noisysgd.theory.common.parallel import checked_threads
from noisysgd.theory.schedules.budget import Budget
from noisysgd.theory.schedules.schedule import Schedule, ScheduleFamily, half_then_decay, of_length
from noisysgd.theory.sweeps.grid import Grid, error_bar, wider
from noisysgd.theory.sweeps.optimum_rule import optimum
from noisysgd.theory.sweeps.records import sweep_from_records

Point = tuple[Schedule, Configuration]
"""What the runs of one point of a grid follow."""
MOST_RUNS = 2**24
"""At one point."""
PAIR = "Pass (theory.half_then_decay(steps), simulators.Configuration(...)) for each."


def final_losses(
    model: ExampleModel,
    points: Sequence[Point],
    runs: int,
    *,
    seed: int = 0,
    dynamics: str = "minibatch",
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> FloatArray:
    """Losses at the end of every run, (points, metrics, runs); ``inf`` where one diverged.

    Run k is replica k of the random stream: points share their random numbers.

    Parameters
    ----------
    model : DiagonalNetwork, FiniteLeastSquares or another model made of training examples
    points : sequence of (Schedule, Configuration)
        What the runs of each point follow.
    runs : int
        Runs of each point.
    seed, dynamics, threads
        As in :func:`bracketed_sweep`.
    progress : callable, optional
        Called as ``progress(done, total)`` after every point, in updates of one run of it.

    Raises
    ------
    ValueError
        For batch sizes, learning rates, momenta or dynamics that the model cannot have.

    Examples
    --------
    >>> from noisysgd import simulators, theory
    >>> network = simulators.sparse_regression(dim=10, examples=4, nonzero=1)
    >>> point = theory.constant(50), simulators.Configuration(learning_rate=0.01, momentum=0.0, batch_size=2)
    >>> final_losses(network, [point], 3).shape
    (1, 2, 3)
    """
    simulable = check_model(model)
    for point in checks.several("points", points, tuple, remedy=PAIR):
        right = len(point) == 2 and isinstance(point[0], Schedule) and isinstance(point[1], Configuration)
        checks.require(right, "points", "pairs of a Schedule and a Configuration", point, PAIR)
    if progress is not None:
        checks.function(
            "progress", progress, remedy="Pass a function of what is done and the total, such as TimeLeft()."
        )
    check_dynamics(simulable, dynamics)
    key = stream.index("seed", seed, stream.SEEDS)
    count = checks.integer("runs", runs, 1, maximum=MOST_RUNS, remedy="Run it once at least.")
    workers = checked_threads(threads)
    check_sizes(simulable, np.array([configuration.batch_size for _, configuration in points]))
    checks.learning_rate([configuration.learning_rate for _, configuration in points])
    checks.momentum([configuration.momentum for _, configuration in points])
    stop = threading.Event()

    def job(point: Point) -> FloatArray:
        schedule, configuration = point
        shared = ExampleEnsemble(simulable, schedule, np.array([schedule.steps]), key, dynamics, SAMPLINGS[0])
        # A single record, at the end: all blocks together are one row per metric.
        last = np.concatenate(list(tiles.tile_losses(shared, configuration, 0, count, stop)))
        return np.where(np.isfinite(last), last, np.inf)

    # The longest first, so that at the end no thread is still busy with a long one while the others are idle.
    order = sorted(range(len(points)), key=lambda k: -points[k][0].steps)
    result = np.empty((len(points), len(simulable.metrics), count))
    done, total = 0, sum(schedule.steps for schedule, _ in points)
    with ThreadPoolExecutor(workers, thread_name_prefix="noisysgd") as pool:
        try:
            for k, losses in zip(order, pool.map(job, [points[k] for k in order]), strict=True):
                result[k] = losses
                done += points[k][0].steps
                if progress is not None:
                    progress(done, total)
        except BaseException:  # KeyboardInterrupt above all: let the workers go before the pool waits for them
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return result


def check_model(model: ExampleModel) -> ExampleModel:
    """`model`, after checking that it is one made of training examples."""
    members = ("dynamics", "metrics", "dataset_size", "check_batches", "losses")
    fits = all(hasattr(model, member) for member in members)
    remedy = "simulate_sweep takes noisy quadratics."
    checks.require(fits, "model", "a DiagonalNetwork or FiniteLeastSquares", model, remedy)
    return model


def check_dynamics(model: ExampleModel, dynamics: str) -> None:
    """Raise for dynamics that single runs of the model cannot follow."""
    checks.one_of("dynamics", dynamics, [name for name in model.dynamics if name != "sde"])


def check_sizes(model: ExampleModel, sizes: FloatArray) -> FloatArray:
    """`sizes`, after checking that the model can draw batches of these sizes."""
    sizes = checks.batch_size(sizes)
    check_whole(sizes)
    model.check_batches(sizes, SAMPLINGS[0])
    return sizes


def check_budget(budget: Budget, model: ExampleModel) -> None:
    """Raise for a budget that is stated for a data set of another size."""
    remedy = "Make one with theory.StepBudget or theory.EpochBudget."
    states = callable(getattr(budget, "steps", None)) and hasattr(budget, "dataset_size")
    checks.require(states, "budget", "a budget", budget, remedy)
    known = budget.dataset_size in (None, model.dataset_size)
    remedy = "Give the budget the model's dataset_size."
    checks.require(known, "budget", f"one of {model.dataset_size} examples", budget, remedy)


def check_runs(runs: int, keep: int) -> tuple[int, int]:
    """`runs` and `keep` as integers, after checking that 1 ≤ keep ≤ runs."""
    count = checks.integer("runs", runs, 1, maximum=MOST_RUNS, remedy="Run it once at least.")
    few = checks.integer("keep", keep, 1, remedy="Keep at least one run.")
    checks.require(few <= count, "keep", f"at most the {count} runs", keep, "Keep fewer or run more.")
    return count, few


def bracketed_sweep(
    model: ExampleModel,
    budget: Budget,
    *,
    batch_sizes: ArrayLike,
    momentum: ArrayLike = 0.9,
    schedule: ScheduleFamily = half_then_decay,
    dynamics: str = "minibatch",
    runs: int = 15,
    keep: int = 12,
    start: tuple[int, int] = (-6, 0),
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> xr.Dataset:
    """Single runs over grids of learning rates that grow until the optimum of every loss is bracketed.

    Every batch size and momentum has a grid of its own.

    Parameters
    ----------
    model : DiagonalNetwork, FiniteLeastSquares or another model made of training examples
    budget : EpochBudget or StepBudget
        Fixes the number of steps at each batch size.
    batch_sizes, momentum : float or 1-D array
        The grids are made for every combination of them.
    schedule : callable
        Schedule of a given number of steps.
    dynamics : str
        As in :func:`simulate`, except "sde".
    runs, keep : int
        Runs per learning rate, and how many of them count, the best; the paper's 15 and 12.
    start : tuple of two int
        Exponents of two of the effective learning rates ε/(1−m) that the grids begin with.
    seed : int
        Run k is replica k of the random stream of this seed.
    threads : int, optional
        Threads of the CPU to use; all usable cores by default.
    progress : callable, optional
        ``progress(done, total)`` in every round of runs, such as :class:`TimeLeft`; how many rounds it takes is not
        known beforehand.

    Returns
    -------
    xarray.Dataset
        A Sweep of the model's losses, whose seeds 0 … runs − 1 are the runs. Grids grow no further than 2⁻⁶⁰ and 2²⁰:
        :func:`~noisysgd.theory.optimum` reports an optimum that is not inside them as not bracketed.

    Raises
    ------
    ValueError
        For impossible batch sizes, momenta or numbers of runs, and a budget of another data set.

    Examples
    --------
    >>> from noisysgd import simulators, theory
    >>> network = simulators.sparse_regression(dim=10, examples=8, nonzero=1)
    >>> sweep = bracketed_sweep(network, theory.StepBudget(200), batch_sizes=[2, 8], runs=5, keep=4)
    >>> bool(theory.optimum(sweep, "test_loss", keep=4).bracketed.all())
    True
    """
    model = check_model(model)
    sizes = checks.vector("batch_sizes", checks.batch_size(batch_sizes, name="batch_sizes"))
    check_sizes(model, sizes)
    check_dynamics(model, dynamics)
    check_budget(budget, model)
    momenta = checks.vector("momentum", checks.momentum(momentum))
    runs, keep = check_runs(runs, keep)
    pair = np.shape(start) == (2,) and all(isinstance(k, int | np.integer) for k in start) and start[0] <= start[1]
    checks.require(pair, "start", "two exponents of two, the lower first", start, "The default is (-6, 0).")
    low, high = start
    windows: dict[tuple[float, float], Grid] = {
        (float(m), float(b)): tuple(range(low, high + 1)) for m in momenta for b in sizes
    }
    schedules = {float(b): of_length(schedule, int(n)) for b, n in zip(sizes, budget.steps(sizes), strict=True)}
    seed = int(stream.index("seed", seed, stream.SEEDS))
    about = {"model": model, "budget": budget, "schedule": schedule, "dynamics": dynamics, "seed": seed, "keep": keep}
    records: list[dict[str, Any]] = []
    done: set[tuple[float, float, int]] = set()
    sweep = xr.Dataset()
    # Every round runs what the grids have gained, all batch sizes together, so that no thread waits for one of them.
    while True:
        wanted = [(m, b, k) for (m, b), window in windows.items() for k in window]
        new = [place for place in wanted if place not in done]
        if not new:
            break
        rates = [2.0**k * (1.0 - m) for m, _, k in new]
        points = [
            (schedules[b], Configuration(rate, m, batch_size=b)) for (m, b, _), rate in zip(new, rates, strict=True)
        ]
        losses = final_losses(model, points, runs, seed=seed, dynamics=dynamics, threads=threads, progress=progress)
        for (m, b, _), rate, table in zip(new, rates, losses, strict=True):
            records += _records(model, m, b, rate, table)
        done.update(new)
        sweep = sweep_from_records(records, source="simulator", metrics=model.metrics, configuration=plain(about))
        best = [optimum(sweep, metric, keep=keep) for metric in model.metrics]
        windows = {
            (m, b): wider(window, [error_bar(each, momentum=m, batch_size=b) for each in best])
            for (m, b), window in windows.items()
        }
    for name in model.metrics:
        sweep[name].attrs["units"] = "loss"
    return sweep


def _records(model: ExampleModel, momentum: float, size: float, rate: float, losses: FloatArray) -> Iterator[Any]:
    """One record per run, from its final losses, (metrics, runs)."""
    for run, values in enumerate(losses.T):
        status = "complete" if np.isfinite(values).all() else "diverged"
        place = {"momentum": momentum, "batch_size": size, "learning_rate": rate, "seed": run, "status": status}
        yield place | dict(zip(model.metrics, values.tolist(), strict=True))
