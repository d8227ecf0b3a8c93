"""Initial and final learning rates tuned separately, as in the paper's section 7.1, on a simulated model."""

import json
from collections.abc import Callable

import numpy as np
import xarray as xr

from noisysgd.simulators.ensembles.tiles import Configuration
from noisysgd.simulators.models.example_model import ExampleModel
from noisysgd.simulators.randomness import stream
from noisysgd.simulators.sweeps.bracketed import (
    check_budget,
    check_dynamics,
    check_model,
    check_runs,
    check_sizes,
    final_losses,
)
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.describing import plain
from noisysgd.theory.common.provenance import provenance
from noisysgd.theory.schedules.budget import Budget
from noisysgd.theory.schedules.schedule import initial_to_final
from noisysgd.theory.sweeps.dataset import metric_attributes
from noisysgd.theory.sweeps.grid import Grid
from noisysgd.theory.sweeps.rate_pairs import STARTS, best_pair, wider_pair

__all__ = ["best_pair", "bracketed_pairs"]


def bracketed_pairs(
    model: ExampleModel,
    budget: Budget,
    *,
    batch_size: float,
    momentum: float = 0.9,
    runs: int = 7,
    keep: int = 5,
    dynamics: str = "minibatch",
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> xr.Dataset:
    """Single runs over a grid of initial and final learning rates, grown until :func:`best_pair` is bracketed.

    The schedule is :func:`~noisysgd.theory.initial_to_final`: constant for half the steps, then ten equal drops.

    Parameters
    ----------
    model : DiagonalNetwork or another model made of training examples
    budget : EpochBudget or StepBudget
        Fixes the number of steps.
    batch_size, momentum : float
        The optimizer; the learning rates alone are tuned.
    runs, keep : int
        Runs per pair of learning rates, and how many of them count, the best; the paper's 7 and 5.
    dynamics, seed, threads, progress
        As in :func:`bracketed_sweep`.

    Returns
    -------
    xarray.Dataset
        The model's losses over ``initial``, ``final`` (effective learning rates) and ``seed``; ``inf`` where diverged.

    Raises
    ------
    ValueError
        As :func:`bracketed_sweep`.

    Examples
    --------
    >>> from noisysgd import simulators, theory
    >>> network = simulators.sparse_regression(dim=10, examples=8, nonzero=1)
    >>> pairs = bracketed_pairs(network, theory.StepBudget(200), batch_size=2, runs=3, keep=2)
    >>> bool(best_pair(pairs, "test_loss", keep=2).initial_bracketed)
    True
    """
    model = check_model(model)
    size = checks.scalar("batch_size", checks.batch_size(batch_size))
    check_sizes(model, np.array([size]))
    check_dynamics(model, dynamics)
    check_budget(budget, model)
    momentum = checks.scalar("momentum", checks.momentum(momentum))
    runs, keep = check_runs(runs, keep)
    steps = int(budget.steps(size))
    seed = int(stream.index("seed", seed, stream.SEEDS))
    about = {"model": model, "budget": budget, "dynamics": dynamics, "seed": seed, "keep": keep}
    described = json.dumps(plain(about), sort_keys=True)
    axes: dict[str, Grid] = dict(STARTS)
    known: dict[tuple[int, int], FloatArray] = {}
    # Every round runs the pairs that the grids have gained; those that are known are not run again.
    while True:
        new = [(i, f) for i in axes["initial"] for f in axes["final"] if (i, f) not in known]
        points = [
            (
                initial_to_final(steps, 1.0, 2.0 ** (f - i)),
                Configuration(2.0**i * (1 - momentum), momentum, batch_size=size),
            )
            for i, f in new
        ]
        losses = final_losses(model, points, runs, seed=seed, dynamics=dynamics, threads=threads, progress=progress)
        known.update(zip(new, losses, strict=True))
        table = np.array([[known[i, f] for f in axes["final"]] for i in axes["initial"]])
        coordinates = {name: 2.0 ** np.array(exponents, dtype=np.float64) for name, exponents in axes.items()}
        dims = ("initial", "final", "seed")
        pairs = xr.Dataset(
            {name: (dims, table[:, :, k]) for k, name in enumerate(model.metrics)},
            coordinates | {"seed": np.arange(runs)},
            {
                "momentum": momentum,
                "batch_size": size,
                "steps": steps,
                "source": "simulator",
                "configuration": described,
            }
            | provenance(),
        )
        for name in model.metrics:
            pairs[name].attrs = metric_attributes(name) | {"units": "loss"}
        for name in coordinates:
            pairs[name].attrs = {"long_name": f"{name} effective learning rate", "units": "1"}
        # The optimum of one loss may be bracketed before that of another: both grids grow until all of them are.
        wider = wider_pair(axes, [best_pair(pairs, metric, keep) for metric in model.metrics])
        if wider == axes:
            return pairs
        axes = wider
