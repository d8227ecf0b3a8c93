"""The paper's rule for choosing the best learning rate from a sweep (section 4), whatever the sweep's source."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.sweeps.dataset import DIVERGED, MISSING, check_sweep, objective_of

if TYPE_CHECKING:
    import xarray as xr


@ignoring_underflow
def optimum(sweep: "xr.Dataset", metric: str = "test_accuracy", keep: int = 12) -> "xr.Dataset":
    """Best learning rate at each point of a sweep, with the paper's error bar.

    At every learning rate the best `keep` runs are averaged; the optimum is the learning rate with the best mean. Its
    error bar spans all learning rates whose mean is within one standard deviation of the best mean: the sample standard
    deviation of the `keep` runs at the optimum, zero for a single run. The optimum is *bracketed* if neither it nor its
    error bar touches an end of the grid that was tried. A diverged run counts as the worst possible; a learning rate
    with fewer than `keep` runs is left out.

    Parameters
    ----------
    sweep : xarray.Dataset
        A Sweep. Without a ``seed`` dimension every value is taken as exact, and `keep` is ignored.
    metric : str
        A variable of the sweep. Accuracies are maximized and losses minimized, unless the variable's ``objective``
        attribute says otherwise.
    keep : int
        Number of runs averaged at each learning rate; the paper keeps the best 12 of 15.

    Returns
    -------
    xarray.Dataset
        Over the remaining dimensions: ``learning_rate``, ``learning_rate_low`` and ``learning_rate_high`` (the error
        bar), the same three for ``effective_learning_rate``, ``temperature``, ``mean`` and ``std`` of the metric, and
        ``bracketed``. NaN where no learning rate has enough runs that did not diverge.

    Raises
    ------
    ValueError
        If the metric is not in the sweep or `keep` exceeds its number of seeds.

    Examples
    --------
    >>> from noisysgd import theory
    >>> run = {"momentum": 0.0, "batch_size": 16, "status": "complete"}
    >>> losses = {0.5: (3.0, 5.0), 1.0: (1.0, 2.0), 2.0: (1.2, 1.8), 4.0: (7.0, 9.0)}
    >>> sweep = theory.sweep_from_records(
    ...     [run | {"learning_rate": rate, "seed": seed, "train_loss": loss}
    ...      for rate, pair in losses.items() for seed, loss in enumerate(pair)],
    ...     source="training", metrics=["train_loss"])
    >>> best = theory.optimum(sweep, "train_loss", keep=2).squeeze()
    >>> float(best.learning_rate), float(best.learning_rate_low), float(best.learning_rate_high), bool(best.bracketed)
    (1.0, 1.0, 2.0, True)
    """
    import xarray as xr

    check_sweep(sweep)
    metrics = sorted(str(name) for name in sweep.data_vars if name != "status")
    checks.require(metric in metrics, "metric", f"one of {metrics}", metric, "Choose a variable of the sweep.")
    keep = checks.integer("keep", keep, 1, remedy="Keep at least one run.")
    if "seed" not in sweep.dims:
        sweep, keep = sweep.expand_dims("seed"), 1
    seeds = sweep.sizes["seed"]
    checks.require(keep <= seeds, "keep", f"at most the sweep's {seeds} seeds", keep, "Keep fewer or run more seeds.")

    sweep = sweep.sortby("learning_rate")
    # As costs, accuracies and losses are treated alike: the smaller the better, infinite if the run diverged.
    sign = -1.0 if sweep[metric].attrs.get("objective", objective_of(metric)) == "maximize" else 1.0
    outer = [str(d) for d in sweep[metric].dims if d not in ("learning_rate", "seed")]
    order = [*outer, "learning_rate", "seed"]
    cost = (sign * sweep[metric]).where(sweep.status != DIVERGED, np.inf).transpose(*order)
    status = sweep.status.broadcast_like(cost).transpose(*order)
    judged = ((status != MISSING).sum("seed") >= keep).values
    best_runs = np.sort(cost.where(status != MISSING, np.inf).values, axis=-1)[..., :keep]
    best_runs = np.where(np.isnan(best_runs), np.inf, best_runs)  # NaN without having diverged is no better
    with np.errstate(over="ignore"):  # losses on their way to divergence
        mean = np.where(judged, best_runs.mean(axis=-1), np.inf)
    std = np.zeros_like(mean)
    finite = np.isfinite(mean)
    if keep > 1:
        with np.errstate(over="ignore"):  # losses on their way to divergence
            std[finite] = best_runs[finite].std(axis=-1, ddof=1)

    best = mean.argmin(axis=-1)[..., None]
    found = np.take_along_axis(finite, best, -1)[..., 0]
    best_mean, best_std = (np.take_along_axis(a, best, -1) for a in (mean, std))
    within = finite & (mean <= best_mean + best_std)
    low, high = _first(within), _last(within)
    # The ends of the grid are those of the learning rates that count, which differ between points of the sweep.
    bracketed = found & (low > _first(judged)) & (high < _last(judged))

    rates = np.broadcast_to(sweep.learning_rate.values, mean.shape)
    effective = sweep.effective_learning_rate.broadcast_like(cost.isel(seed=0)).transpose(*order[:-1]).values
    heat = sweep.temperature.broadcast_like(cost.isel(seed=0)).transpose(*order[:-1]).values

    def pick(values: FloatArray, at: IntArray) -> tuple[list[str], FloatArray]:
        return outer, np.where(found, np.take_along_axis(values, at[..., None], -1)[..., 0], np.nan)

    middle = best[..., 0]
    result = xr.Dataset(
        {
            "learning_rate": pick(rates, middle),
            "learning_rate_low": pick(rates, low),
            "learning_rate_high": pick(rates, high),
            "effective_learning_rate": pick(effective, middle),
            "effective_learning_rate_low": pick(effective, low),
            "effective_learning_rate_high": pick(effective, high),
            "temperature": pick(heat, middle),
            "mean": (outer, np.where(found, sign * best_mean[..., 0], np.nan), sweep[metric].attrs),
            "std": (outer, np.where(found, best_std[..., 0], np.nan)),
            "bracketed": (outer, bracketed),
        },
        coords={name: c for name, c in sweep.coords.items() if set(c.dims) <= set(outer)},
        attrs={"metric": metric, "keep": keep, "source": sweep.attrs.get("source", "")},
    )
    return result


def _first(mask: npt.NDArray[np.bool_]) -> IntArray:
    """Index of the first True along the last axis; 0 if there is none."""
    return np.asarray(mask.argmax(axis=-1))


def _last(mask: npt.NDArray[np.bool_]) -> IntArray:
    """Index of the last True along the last axis; the last index if there is none."""
    return np.asarray(mask.shape[-1] - 1 - mask[..., ::-1].argmax(axis=-1))
