"""The paper's rule for choosing the best learning rate from a sweep (section 4), whatever the sweep's source."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.sweeps.dataset import COMPLETE, DIVERGED, MISSING, check_sweep
from noisysgd.theory.sweeps.directions import MAXIMIZE, stated_objective

if TYPE_CHECKING:
    import xarray as xr

BoolArray = npt.NDArray[np.bool_]


@ignoring_underflow
def optimum(
    sweep: "xr.Dataset", metric: str = "test_accuracy", keep: int = 12, objective: str | None = None
) -> "xr.Dataset":
    """Best learning rate at each point of a sweep, with the paper's error bar.

    At every learning rate the best `keep` runs are averaged; the optimum is the learning rate with the best mean. Its
    error bar spans all learning rates whose mean is within one standard deviation of the best mean: the sample standard
    deviation of the `keep` runs at the optimum, zero for a single run. A diverged run counts as the worst possible.

    A learning rate with fewer than `keep` runs that diverged, or were complete with a finite value of the metric, was
    *not judged* and is left out. The optimum is *bracketed* if neither it nor its error bar touches an end of the grid
    that was judged, and if every learning rate that was tried inside the error bar or next to it was judged.

    The error bar says nothing of what lies between the points of the grid, and may have no width. The optimum of a
    curve with a single minimum lies between the next learning rates outside the error bar, *lower* and *upper*, which
    include the steps of the grid; so does ``log_error``, which fits take.

    Parameters
    ----------
    sweep : xarray.Dataset
        A Sweep. Without a ``seed`` dimension every value is taken as exact, and `keep` is ignored.
    metric : str
        A variable of the sweep.
    keep : int
        Number of runs averaged at each learning rate; the paper keeps the best 12 of 15.
    objective : {"minimize", "maximize"}, optional
        Which values of the metric are better. By default what the variable's attribute ``objective`` says; without it,
        accuracies are maximized, losses and errors minimized.

    Returns
    -------
    xarray.Dataset
        Over the remaining dimensions: ``learning_rate``, ``learning_rate_low`` and ``learning_rate_high`` (the error
        bar), ``learning_rate_lower`` and ``learning_rate_upper`` (the next ones that were judged; 0 and ``inf`` if
        there is none), the same five for ``effective_learning_rate``, ``log_error`` (the standard error of log₂ of the
        learning rate: half the length of the error bar, and the standard deviation between the steps on either side of
        it, (a + b)/√12 for steps of a and b octaves, added in squares; NaN where not bracketed), ``temperature``,
        ``mean`` and ``std`` of the metric, ``bracketed``, ``unjudged``, the number of learning rates inside the error
        bar or next to it that were tried and not judged, and ``unjudged_rates``, which they are, in words. Learning
        rates are NaN where none was judged that did not diverge; all that were not judged are counted then.

    Raises
    ------
    ValueError
        If the metric is not in the sweep, its direction is neither given nor stated nor plain from its name, or `keep`
        exceeds the number of seeds.

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
    >>> float(best.learning_rate_lower), float(best.learning_rate_upper), round(float(best.log_error), 3)
    (0.5, 4.0, 0.764)
    """
    import xarray as xr

    check_sweep(sweep)
    metrics = sorted(str(name) for name in sweep.data_vars if name != "status")
    checks.require(
        isinstance(metric, str) and metric in metrics,
        "metric",
        f"one of {metrics}",
        metric,
        "Choose a variable of the sweep.",
    )
    direction = stated_objective(metric, sweep[metric].attrs, objective)
    keep = checks.integer("keep", keep, 1, remedy="Keep at least one run.")
    if "seed" not in sweep.dims:
        sweep, keep = sweep.expand_dims("seed"), 1
    seeds = sweep.sizes["seed"]
    checks.require(keep <= seeds, "keep", f"at most the sweep's {seeds} seeds", keep, "Keep fewer or run more seeds.")

    sweep = sweep.sortby("learning_rate")
    outer = [str(d) for d in sweep[metric].dims if d not in ("learning_rate", "seed")]
    order = [*outer, "learning_rate", "seed"]
    # As costs, accuracies and losses are treated alike: the smaller the better.
    sign = -1.0 if direction == MAXIMIZE else 1.0
    cost = (sign * sweep[metric]).transpose(*order)
    runs = count_runs(cost.values, sweep.status.broadcast_like(cost).transpose(*order).values, keep)
    best = best_of(runs)

    rates = np.broadcast_to(sweep.learning_rate.values, runs.mean.shape)
    effective = sweep.effective_learning_rate.broadcast_like(cost.isel(seed=0)).transpose(*order[:-1]).values
    heat = sweep.temperature.broadcast_like(cost.isel(seed=0)).transpose(*order[:-1]).values

    def pick(values: FloatArray, at: IntArray, beyond: float = np.nan) -> tuple[list[str], FloatArray]:
        """`values` at these places of the learning rates; `beyond` where they are outside the grid."""
        inside = np.take_along_axis(values, np.clip(at, 0, rates.shape[-1] - 1)[..., None], -1)[..., 0]
        inside = np.where((at >= 0) & (at < rates.shape[-1]), inside, beyond)
        return outer, np.where(best.found, inside, np.nan)

    variables = {}
    for name, values in (("learning_rate", rates), ("effective_learning_rate", effective)):
        variables[name] = pick(values, best.at)
        variables |= {f"{name}_low": pick(values, best.low), f"{name}_high": pick(values, best.high)}
        variables |= {f"{name}_lower": pick(values, best.below, 0.0), f"{name}_upper": pick(values, best.above, np.inf)}
    ends = [variables[f"effective_learning_rate_{end}"][1] for end in ("lower", "low", "high", "upper")]
    one = best.at[..., None]
    unjudged = best.nearby & (runs.tried > 0) & ~runs.judged
    return xr.Dataset(
        variables
        | {
            "log_error": (outer, np.where(best.bracketed, _log_error(*ends), np.nan)),
            "temperature": pick(heat, best.at),
            "mean": (
                outer,
                np.where(best.found, sign * np.take_along_axis(runs.mean, one, -1)[..., 0], np.nan),
                sweep[metric].attrs,
            ),
            "std": (outer, np.where(best.found, np.take_along_axis(runs.std, one, -1)[..., 0], np.nan)),
            "bracketed": (outer, best.bracketed),
            "unjudged": (outer, unjudged.sum(axis=-1)),
            "unjudged_rates": (outer, _in_words(rates, runs, unjudged, keep)),
        },
        coords={name: c for name, c in sweep.coords.items() if set(c.dims) <= set(outer)},
        attrs={"metric": metric, "objective": direction, "keep": keep, "source": sweep.attrs.get("source", "")},
    )


class Runs(NamedTuple):
    """What is known of each learning rate, over (…, learning rate).

    ``tried`` and ``counted`` are the numbers of runs that were meant to be there, and of those that count; ``judged``
    says whether these are enough. ``mean`` and ``std`` are those of the costs of the best, ``inf`` and 0 where not
    judged, or where one of the best diverged.
    """

    tried: IntArray
    counted: IntArray
    judged: BoolArray
    mean: FloatArray
    std: FloatArray

    def at(self, place: tuple[int | slice | np.integer, ...]) -> "Runs":
        """Those at an index of the arrays."""
        return Runs(self.tried[place], self.counted[place], self.judged[place], self.mean[place], self.std[place])


def count_runs(cost: FloatArray, status: IntArray, keep: int) -> Runs:
    """Mean and spread of the best `keep` runs at each learning rate, from costs and statuses (…, learning rate, seed).

    A run counts if it diverged, or if it is complete and its cost is finite. A complete run without a cost has not been
    measured, and says nothing.
    """
    counts = (status == DIVERGED) | ((status == COMPLETE) & np.isfinite(cost))
    counted = counts.sum(axis=-1)
    judged = counted >= keep
    best = np.sort(np.where(counts & (status != DIVERGED), cost, np.inf), axis=-1)[..., :keep]
    with np.errstate(over="ignore"):  # losses on their way to divergence
        mean = np.where(judged, best.mean(axis=-1), np.inf)
        std = np.zeros_like(mean)
        finite = np.isfinite(mean)
        if keep > 1:
            std[finite] = best[finite].std(axis=-1, ddof=1)
    return Runs((status != MISSING).sum(axis=-1), counted, judged, mean, std)


class Best(NamedTuple):
    """Where the optimum is, over (…): indices of learning rates, which ascend.

    ``low`` and ``high`` are the ends of the error bar; ``below`` and ``above`` the next learning rates beyond it that
    were judged, −1 and the number of learning rates where there is none. ``nearby``, over (…, learning rate), is what
    lies between these two. Where nothing is ``found`` it is everything.
    """

    found: BoolArray
    at: IntArray
    low: IntArray
    high: IntArray
    below: IntArray
    above: IntArray
    nearby: BoolArray
    bracketed: BoolArray


def best_of(runs: Runs) -> Best:
    """The best learning rate along the last axis, and its error bar."""
    finite = np.isfinite(runs.mean)
    at = runs.mean.argmin(axis=-1)
    found = np.take_along_axis(finite, at[..., None], -1)[..., 0]
    with np.errstate(over="ignore", invalid="ignore"):
        limit = sum(np.take_along_axis(a, at[..., None], -1) for a in (runs.mean, runs.std))
        within = finite & (runs.mean <= limit)
    count = runs.mean.shape[-1]
    low = within.argmax(axis=-1)
    high = count - 1 - within[..., ::-1].argmax(axis=-1)
    place = np.arange(count)
    # The grid is the product of all learning rates in the sweep, of which each point has judged its own.
    below = np.where(runs.judged & (place < low[..., None]), place, -1).max(axis=-1)
    above = np.where(runs.judged & (place > high[..., None]), place, count).min(axis=-1)
    nearby = (place > below[..., None]) & (place < above[..., None]) | ~found[..., None]
    unjudged = nearby & (runs.tried > 0) & ~runs.judged
    bracketed = found & (below >= 0) & (above < count) & ~unjudged.any(axis=-1)
    return Best(found, at, low, high, below, above, nearby, bracketed)


def _log_error(lower: FloatArray, low: FloatArray, high: FloatArray, upper: FloatArray) -> FloatArray:
    """Standard error of log₂ of an optimum, from its error bar and the next learning rates beyond."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.log2(low / lower) + np.log2(upper / high)
        return np.asarray(np.hypot(np.log2(high / low) / 2, steps / np.sqrt(12.0)))


def _in_words(rates: FloatArray, runs: Runs, unjudged: BoolArray, keep: int) -> "npt.NDArray[np.str_]":
    """Which learning rates were not judged, and how many runs of each count."""
    words = np.full(unjudged.shape[:-1], "", dtype=object)
    for index in np.argwhere(unjudged):
        at, point = tuple(index), tuple(index[:-1])
        text = f"{rates[at]:.6g} ({runs.counted[at]} of {keep} runs)"
        words[point] = f"{words[point]}, {text}" if words[point] else text
    return words.astype(np.str_)
