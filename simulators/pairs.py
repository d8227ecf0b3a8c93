"""Initial and final learning rates tuned separately, as in the paper's section 7.1, on a simulated model."""

from typing import Any

import numpy as np
import xarray as xr

from noisysgd.simulators.batches import SAMPLINGS
from noisysgd.simulators.bracketing import HIGHEST, LOWEST, final_losses
from noisysgd.simulators.examples import ExampleModel
from noisysgd.simulators.tiles import Configuration
from noisysgd.theory import checks
from noisysgd.theory.budget import Budget
from noisysgd.theory.checks import FloatArray
from noisysgd.theory.schedule import initial_to_final
from noisysgd.theory.sweep import objective_of

STARTS = {"initial": tuple(range(-6, 1)), "final": tuple(range(-14, -3, 2))}
"""Exponents of two that grids begin with. The final learning rate matters less, and is spaced by factors of 4."""
LOWEST_FINAL = -600
"""Exponent that no final learning rate is below: the first drop is then by 2⁶⁰, and nothing moves any more."""

Grid = tuple[int, ...]


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
) -> xr.Dataset:
    """Single runs over a grid of initial and final learning rates, grown until :func:`best_pair` is bracketed.

    The schedule is :func:`~noisysgd.theory.initial_to_final`: constant for half the steps, then ten equal drops.

    Parameters
    ----------
    model : DiagonalNetwork or another model made of examples
    budget : EpochBudget or StepBudget
    batch_size, momentum : float
    runs, keep : int
        Runs per pair, and how many of them count: the paper's 7 and 5.
    dynamics, seed, threads
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
    size = checks.scalar("batch_size", checks.batch_size(batch_size))
    model.check_batches(np.array([size]), SAMPLINGS[0])
    inertia = checks.scalar("momentum", checks.momentum(momentum))
    few = checks.integer("keep", keep, 1, remedy="Keep at least one run.")
    checks.require(few <= runs, "keep", f"at most the {runs} runs", keep, "Keep fewer or run more.")
    steps = int(budget.steps(size))
    axes: dict[str, Grid] = dict(STARTS)
    known: dict[tuple[int, int], FloatArray] = {}
    while True:
        new = [(i, f) for i in axes["initial"] for f in axes["final"] if (i, f) not in known]
        points = [
            (
                initial_to_final(steps, 1.0, 2.0 ** (f - i)),
                Configuration(2.0**i * (1 - inertia), inertia, batch_size=size),
            )
            for i, f in new
        ]
        losses = final_losses(model, points, runs, seed=seed, dynamics=dynamics, threads=threads)
        known.update(zip(new, losses, strict=True))
        table = np.array([[known[i, f] for f in axes["final"]] for i in axes["initial"]])
        coordinates = {name: 2.0 ** np.array(exponents, dtype=np.float64) for name, exponents in axes.items()}
        dims = ("initial", "final", "seed")
        pairs = xr.Dataset(
            {name: (dims, table[:, :, k]) for k, name in enumerate(model.metrics)},
            coordinates | {"seed": np.arange(runs)},
            {"momentum": inertia, "batch_size": size, "steps": steps, "source": "simulator"},
        )
        for name in coordinates:
            pairs[name].attrs = {"long_name": f"{name} effective learning rate", "units": "1"}
        wider = _wider(pairs, model, few, axes)
        if wider == axes:
            return pairs
        axes = wider


def best_pair(pairs: xr.Dataset, metric: str, keep: int = 5) -> xr.Dataset:
    """The best pair of learning rates of one metric, by the paper's rule along both axes.

    At each pair the best `keep` runs are averaged. The error bar of either learning rate spans those that, with the
    other at its optimum, come within one standard deviation of the best mean.

    Returns
    -------
    xarray.Dataset
        ``initial``, ``initial_low``, ``initial_high``, ``initial_bracketed``, the same of ``final``, and ``mean`` and
        ``std`` of the metric.

    Raises
    ------
    ValueError
        If the metric is not there, or `keep` exceeds the number of runs.

    Examples
    --------
    See :func:`bracketed_pairs`.
    """
    checks.one_of("metric", metric, [str(name) for name in pairs.data_vars])
    few = checks.integer("keep", keep, 1, remedy="Keep at least one run.")
    runs = pairs.sizes["seed"]
    checks.require(few <= runs, "keep", f"at most the {runs} runs", keep, "Keep fewer or run more.")
    sign = -1.0 if objective_of(metric) == "maximize" else 1.0
    kept = np.sort(sign * pairs[metric].transpose("initial", "final", "seed").values, axis=-1)[..., :few]
    mean = kept.mean(axis=-1)
    row, column = np.unravel_index(np.argmin(mean), mean.shape)
    best = mean[row, column]
    spread = kept[row, column].std(ddof=1) if few > 1 and np.isfinite(best) else 0.0
    found: dict[str, Any] = {"mean": sign * best, "std": spread}
    lines = {"initial": (mean[:, column], row), "final": (mean[row], column)}
    for name, (line, at) in lines.items():
        rates = pairs[name].values
        within = np.flatnonzero(line <= best + spread)
        found |= {name: rates[at], f"{name}_low": rates[within[0]], f"{name}_high": rates[within[-1]]}
        found[f"{name}_bracketed"] = bool(np.isfinite(best) and within[0] > 0 and within[-1] < rates.size - 1)
    return xr.Dataset(found, attrs={"metric": metric, "keep": few})


def _wider(pairs: xr.Dataset, model: ExampleModel, keep: int, axes: dict[str, Grid]) -> dict[str, Grid]:
    """Grids with one more point wherever an optimum or its error bar is at an end."""
    wider = {}
    best = [best_pair(pairs, metric, keep) for metric in model.metrics]
    for name, grid in axes.items():
        rates = pairs[name].values
        if any(float(b[f"{name}_high"]) == rates[-1] for b in best) and grid[-1] < HIGHEST:
            grid = (*grid, 2 * grid[-1] - grid[-2])
        if any(float(b[f"{name}_low"]) == rates[0] for b in best):
            # Error bars of final learning rates may span a hundred octaves: the lower, the longer the steps.
            step = 1 if name == "initial" else max(2, -grid[0] // 12 * 2)
            grid = (
                (grid[0] - step, *grid) if grid[0] - step >= (LOWEST if name == "initial" else LOWEST_FINAL) else grid
            )
        wider[name] = grid
    return wider
