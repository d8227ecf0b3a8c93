"""Choosing the best pair of an initial and a final learning rate by the paper's rule (section 7.1)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.sweeps.dataset import objective_of
from noisysgd.theory.sweeps.grid import LOWEST, Grid, wider

if TYPE_CHECKING:
    import xarray as xr

STARTS: dict[str, Grid] = {"initial": tuple(range(-6, 1)), "final": tuple(range(-14, -3, 2))}
"""Exponents of two that grids begin with. The final learning rate matters less, and is spaced by factors of 4."""
LOWEST_FINAL = -600
"""Exponent below which no final learning rate goes: each of the ten drops is then by 2⁶⁰: nothing moves any more."""


def best_pair(pairs: "xr.Dataset", metric: str, keep: int = 5) -> "xr.Dataset":
    """The best pair of learning rates of one metric, by the paper's rule along both axes.

    At each pair the best `keep` runs are averaged; runs that diverged or are missing count as the worst possible. The
    error bar of a learning rate spans the values whose mean, with the other learning rate at its optimum, is within one
    standard deviation of the best mean.

    Parameters
    ----------
    pairs : xarray.Dataset
        Metrics over ``initial``, ``final`` (effective learning rates) and ``seed``.
    metric : str
        A variable of `pairs`. Accuracies are maximized, losses minimized.
    keep : int
        Number of runs averaged at each pair; the paper keeps the best 5 of 7.

    Returns
    -------
    xarray.Dataset
        Without dimensions: ``initial``, ``initial_low``, ``initial_high`` and ``initial_bracketed``, these four of
        ``final``, and ``mean`` and ``std`` of the metric. All numbers are NaN where every pair diverged.

    Raises
    ------
    ValueError
        If the metric is not there, or `keep` exceeds the number of runs.

    Examples
    --------
    See :func:`noisysgd.simulators.bracketed_pairs`.
    """
    import xarray as xr

    checks.one_of("metric", metric, [str(name) for name in pairs.data_vars if name != "status"])
    count = checks.integer("keep", keep, 1, remedy="Keep at least one run.")
    runs = pairs.sizes["seed"]
    checks.require(count <= runs, "keep", f"at most the {runs} runs", keep, "Keep fewer or run more.")
    sign = -1.0 if objective_of(metric) == "maximize" else 1.0
    cost = sign * pairs[metric].transpose("initial", "final", "seed").values
    best_runs = np.sort(np.where(np.isnan(cost), np.inf, cost), axis=-1)[..., :count]
    mean = best_runs.mean(axis=-1)
    row, column = np.unravel_index(np.argmin(mean), mean.shape)
    best = mean[row, column]
    found = bool(np.isfinite(best))
    spread = best_runs[row, column].std(ddof=1) if count > 1 and found else 0.0
    result: dict[str, Any] = {"mean": sign * best if found else np.nan, "std": spread if found else np.nan}
    for name, line, at in (("initial", mean[:, column], row), ("final", mean[row], column)):
        rates = pairs[name].values
        within = np.flatnonzero(line <= best + spread)
        ends = {name: rates[at], f"{name}_low": rates[within[0]], f"{name}_high": rates[within[-1]]}
        result |= ends if found else dict.fromkeys(ends, np.nan)
        result[f"{name}_bracketed"] = bool(found and within[0] > 0 and within[-1] < rates.size - 1)
    return xr.Dataset(result, attrs={"metric": metric, "keep": count})


def wider_pair(axes: Mapping[str, Grid], best: Iterable["xr.Dataset"]) -> dict[str, Grid]:
    """Grids of ``initial`` and ``final`` with one more exponent at each end that an error bar touches.

    Parameters
    ----------
    axes : mapping of str to tuple of int
        Exponents of two, ascending, of both learning rates.
    best : iterable of xarray.Dataset
        Results of :func:`best_pair`, one per metric.

    Returns
    -------
    dict of str to tuple of int

    Examples
    --------
    >>> import xarray as xr
    >>> one = {"initial_low": 0.5, "initial_high": 1.0, "final_low": 0.25, "final_high": 0.25}
    >>> wider_pair({"initial": (-2, -1, 0), "final": (-4, -2, 0)}, [xr.Dataset(one)])
    {'initial': (-2, -1, 0, 1), 'final': (-4, -2, 0)}
    """
    chosen = list(best)
    grown = {}
    for name, grid in axes.items():
        bars = [(float(np.log2(b[f"{name}_low"])), float(np.log2(b[f"{name}_high"]))) for b in chosen]
        # Error bars of final learning rates may span a hundred octaves: the lower the grid, the larger the next step.
        down = 1 if name == "initial" else max(2, -grid[0] // 12 * 2)
        up = grid[-1] - grid[-2] if len(grid) > 1 else 1
        lowest = LOWEST if name == "initial" else LOWEST_FINAL
        grown[name] = wider(grid, bars, lowest=lowest, down=down, up=up)
    return grown
