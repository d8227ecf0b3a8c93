"""Choosing the best pair of an initial and a final learning rate by the paper's rule (section 7.1)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.sweeps.dataset import COMPLETE, DIVERGED, MISSING, UNFINISHED
from noisysgd.theory.sweeps.directions import MAXIMIZE, stated_objective
from noisysgd.theory.sweeps.grid import LOWEST, Grid, wider
from noisysgd.theory.sweeps.optimum_rule import best_of, count_runs

if TYPE_CHECKING:
    import xarray as xr

STARTS: dict[str, Grid] = {"initial": tuple(range(-6, 1)), "final": tuple(range(-14, -3, 2))}
"""Exponents of two that grids begin with. The final learning rate matters less, and is spaced by factors of 4."""
LOWEST_FINAL = -600
"""Exponent below which no final learning rate goes: each of the ten drops is then by 2⁶⁰: nothing moves any more."""


def best_pair(pairs: "xr.Dataset", metric: str, keep: int = 5, objective: str | None = None) -> "xr.Dataset":
    """The best pair of learning rates of one metric, by the paper's rule along both axes.

    At each pair the best `keep` runs are averaged; runs that diverged count as the worst possible. The error bar of a
    learning rate spans the values whose mean, with the other learning rate at its optimum, is within one standard
    deviation of the best mean. As by :func:`noisysgd.theory.optimum`, a pair with fewer than `keep` runs that count is
    not judged, and neither learning rate is bracketed with such a pair inside of its error bar or next to it.

    Parameters
    ----------
    pairs : xarray.Dataset
        Metrics over ``initial``, ``final`` (effective learning rates) and ``seed``, and ``status``; without it, ``inf``
        says that a run diverged, and NaN that it is missing.
    metric : str
        A variable of `pairs`.
    keep : int
        Number of runs averaged at each pair; the paper keeps the best 5 of 7.
    objective : {"minimize", "maximize"}, optional
        As of :func:`noisysgd.theory.optimum`.

    Returns
    -------
    xarray.Dataset
        Without dimensions: ``initial``, ``initial_low``, ``initial_high``, ``initial_bracketed`` and
        ``initial_unjudged``, the number of pairs inside of its error bar or next to it that were not judged; these five
        of ``final``, and ``mean`` and ``std`` of the metric. Rates are NaN where no pair was judged that did not
        diverge.

    Raises
    ------
    ValueError
        If the metric is not there, its direction is not known, or `keep` exceeds the number of runs.

    Examples
    --------
    See :func:`noisysgd.simulators.bracketed_pairs`.
    """
    import xarray as xr

    checks.dataset("pairs", pairs, ("initial", "final", "seed"), remedy="Pass a sweep of pairs of learning rates.")
    checks.one_of("metric", metric, [str(name) for name in pairs.data_vars if name != "status"])
    count = checks.integer("keep", keep, 1, remedy="Keep at least one run.")
    runs = pairs.sizes["seed"]
    checks.require(count <= runs, "keep", f"at most the {runs} runs", keep, "Keep fewer or run more.")
    direction = stated_objective(metric, pairs[metric].attrs, objective)
    sign = -1.0 if direction == MAXIMIZE else 1.0
    order = ("initial", "final", "seed")
    cost = sign * pairs[metric].transpose(*order).values
    if "status" in pairs:
        status = pairs.status.transpose(*order).values
    else:
        status = np.where(np.isinf(cost), DIVERGED, np.where(np.isnan(cost), UNFINISHED, COMPLETE))
    # Every pair of the grid was meant to be tried: none of them is missing for another reason than that it is not done.
    table = count_runs(cost, np.where(status == MISSING, UNFINISHED, status), count)
    row, column = np.unravel_index(np.argmin(table.mean), table.mean.shape)
    found = bool(np.isfinite(table.mean[row, column]))
    result: dict[str, Any] = {
        "mean": sign * table.mean[row, column] if found else np.nan,
        "std": table.std[row, column] if found else np.nan,
    }
    lines = {"initial": table.at((slice(None), column)), "final": table.at((row,))}
    for name, line in lines.items():
        rates, best = pairs[name].values, best_of(line)
        ends = {name: rates[best.at], f"{name}_low": rates[best.low], f"{name}_high": rates[best.high]}
        result |= ends if found else dict.fromkeys(ends, np.nan)
        result[f"{name}_bracketed"] = bool(best.bracketed)
        result[f"{name}_unjudged"] = int((best.nearby & ~line.judged).sum())
    return xr.Dataset(result, attrs={"metric": metric, "objective": direction, "keep": count})


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
