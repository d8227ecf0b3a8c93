"""Figures of regimes and of sweeps; see :mod:`noisysgd.theory.plots`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.plots.axes_and_colors import (
    COLORS,
    MARKERS,
    REACH,
    axes_or_new,
    batch_size_axis,
    check_style,
    learning_rate_axis,
    log_scale,
    once,
)
from noisysgd.theory.sweeps.dataset import COMPLETE, check_sweep
from noisysgd.theory.sweeps.directions import MAXIMIZE, objective_of, stated_objective
from noisysgd.theory.sweeps.optimizers import optimizer_name

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.lines import Line2D

MAPPED = ("effective_learning_rate", "critical_learning_rate", "boundary_batch_size")
FOUND = ("effective_learning_rate", "effective_learning_rate_low", "effective_learning_rate_high", "bracketed")
"""What of a map, and of optima, is drawn."""
HEADROOM = 10.0
"""Factor by which the axis of losses goes beyond the loss before training."""


def plot_regimes(regimes: "xr.Dataset", ax: "Axes | None" = None) -> "list[Line2D]":
    """Optimal effective learning rate against batch size, one line per momentum.

    In the colour of each momentum, a dashed line marks the critical effective learning rate, a tick on the curve the
    boundary batch size; the legend names them once. :func:`plot_scaling_rules` draws the fitted corner.

    Parameters
    ----------
    regimes : xarray.Dataset
        From :func:`noisysgd.theory.regimes`.
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.

    Returns
    -------
    list of Line2D
        The curve of each momentum, the critical effective learning rate of each, and the tick of each.

    Examples
    --------
    >>> from noisysgd import theory
    >>> table = theory.regimes(theory.power_law(5), theory.StepBudget(50), batch_sizes=[1, 64])
    >>> len(plot_regimes(table))
    6
    """
    checks.dataset("regimes", regimes, ("momentum", "batch_size", *MAPPED), remedy="Make it with theory.regimes.")
    with axes_or_new(ax) as ax:
        drawn: list[Line2D] = []
        shown = [(m, regimes.sel(momentum=m), COLORS[k % len(COLORS)]) for k, m in enumerate(regimes.momentum.values)]
        for m, here, color in shown:
            rate = here.effective_learning_rate
            drawn += ax.plot(here.batch_size, rate, color=color, label=f"theory, {optimizer_name(m)}")
        critical = [float(here.critical_learning_rate) / (1 - m) for m, here, _ in shown]
        for (_, _, color), height in zip(shown, critical, strict=True):
            drawn.append(ax.axhline(height, color=color, ls="--", lw=1, alpha=0.6, label=once(ax, "critical")))
        for (_, here, color), height in zip(shown, critical, strict=True):
            boundary = float(here.boundary_batch_size)
            name = once(ax, "boundary batch size") if np.isfinite(boundary) else None
            drawn += ax.plot([boundary], [height / 2], "|", color=color, ms=13, mew=1.5, label=name)
        batch_size_axis(ax, regimes.batch_size.values)
        learning_rate_axis(ax, "optimal effective learning rate  ε/(1−m)")
    return drawn


def plot_optimum(
    best: "xr.Dataset", ax: "Axes | None" = None, *, label: str = ""
) -> "list[ErrorbarContainer | Line2D]":
    """Optimal effective learning rate with error bars against batch size; hollow where it is not bracketed.

    The points of different optimizers are set slightly apart along the batch-size axis, so that equal optima are both
    seen.

    Parameters
    ----------
    best : xarray.Dataset
        From :func:`noisysgd.theory.optimum`, over (optimizer, batch_size).
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.
    label : str
        Put before the optimizer's name in the legend.

    Returns
    -------
    list
        The points of each optimizer with their error bars, then the hollow points of each optimizer that has any.

    Examples
    --------
    >>> from noisysgd import theory
    >>> sweep = theory.predict_sweep(theory.power_law(5), theory.StepBudget(50), batch_sizes=[1, 64],
    ...                              effective_learning_rates=theory.powers_of_two(-5, 5))
    >>> len(plot_optimum(theory.optimum(sweep, "expected_loss")))
    2
    """
    checks.dataset("best", best, ("optimizer", "batch_size", *FOUND), remedy="Make it with theory.optimum.")
    checks.instance("label", label, str, remedy="Say what to put before the optimizer's name.")
    with axes_or_new(ax) as ax:
        drawn: list[ErrorbarContainer | Line2D] = []
        hollows: list[Line2D] = []
        count = best.sizes["optimizer"]
        for k in range(count):
            here = best.isel(optimizer=k)
            color = COLORS[k % len(COLORS)]
            x = here.batch_size.values * 2.0 ** (0.12 * (k - (count - 1) / 2))
            y = here.effective_learning_rate.values
            low, high = here.effective_learning_rate_low.values, here.effective_learning_rate_high.values
            name = f"{label} {here.optimizer.item()}".strip()
            bars = ax.errorbar(
                x,
                y,
                [y - low, high - y],
                fmt=MARKERS[k % len(MARKERS)],
                color=color,
                ms=7,
                capsize=4,
                lw=1.5,
                label=name,
                zorder=3,
            )
            hollow = ~here.bracketed.values
            if hollow.any():
                marker = MARKERS[k % len(MARKERS)]
                look: dict[str, Any] = {"color": "white", "mec": color, "ms": 7, "zorder": 4}
                hollows += ax.plot(x[hollow], y[hollow], marker, label=once(ax, "not bracketed"), **look)
            drawn.append(bars)
        batch_size_axis(ax, best.batch_size.values)
        # Optimizers of others, such as Adam, have no ε/(1−m).
        plain = "momentum" in best.coords and bool(np.isnan(best.momentum.values).all())
        learning_rate_axis(ax, "optimal learning rate  ε" if plain else "optimal effective learning rate  ε/(1−m)")
    return drawn + hollows


def plot_losses(
    sweep: "xr.Dataset",
    metric: str,
    ax: "Axes | None" = None,
    *,
    optimizer: int = 0,
    style: str = "-",
    label: bool = True,
    keep: int | None = None,
    objective: str | None = None,
) -> "list[ErrorbarContainer]":
    """A loss against the effective learning rate, one colour per batch size, light to dark.

    If the sweep has a ``seed`` dimension, the mean of the best `keep` runs (by default of all) that did not diverge is
    drawn, with its standard error.

    The loss axis ends at ten times the loss before training, for which the largest loss at any learning rate below a
    batch size's best one is taken (if every curve rises from its first point, the largest first value). So diverging
    runs do not flatten the minima: their points lie beyond the axis, and the lines to them leave it at the top. To see
    them, or any such points in a `style` without lines, set the limits with ``ax.set_ylim``. Accuracies have a linear
    axis without such an end.

    Parameters
    ----------
    sweep : xarray.Dataset
        A Sweep, of any source.
    metric : str
        The variable of the sweep to draw.
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.
    optimizer : int
        Position of the optimizer in the sweep.
    style : str
        Matplotlib's format of the curves, such as "o" or "o-".
    label : bool
        Whether batch sizes are named in the legend.
    keep : int, optional
        Number of the best runs that are averaged at each point.
    objective : {"minimize", "maximize"}, optional
        Which runs are the best, as of :func:`noisysgd.theory.optimum`.

    Returns
    -------
    list of ErrorbarContainer
        The curve of each batch size with its error bars.

    Examples
    --------
    >>> from noisysgd import theory
    >>> sweep = theory.predict_sweep(theory.power_law(5), theory.StepBudget(50), batch_sizes=[1, 64],
    ...                              effective_learning_rates=theory.powers_of_two(-5, 5))
    >>> len(plot_losses(sweep, "expected_loss"))
    2
    """
    from matplotlib import colormaps

    label = checks.boolean("label", label)
    check_sweep(sweep)
    checks.one_of("metric", metric, [str(name) for name in sweep.data_vars])
    place = checks.integer("optimizer", optimizer, 0, remedy="Give its position in the sweep.")
    last = sweep.sizes.get("optimizer", 0) - 1
    checks.require(place <= last, "optimizer", f"at most {last}", optimizer, "Give its position in the sweep.")
    check_style(style)
    if keep is not None:
        keep = checks.integer("keep", keep, 1, remedy="Leave it out for all runs.")
    here = sweep.isel(optimizer=place)
    # Which runs are the best has to be known only where some are left out.
    attributes, asked = sweep[metric].attrs, keep is not None or objective is not None
    known = asked or "objective" in attributes or objective_of(metric) is not None
    highest = known and stated_objective(metric, attributes, objective) == MAXIMIZE
    linear = highest or "accuracy" in metric
    values = here[metric].where((here.status == COMPLETE) & (abs(here[metric]) < REACH))
    curves = [_best_runs(values.sel(batch_size=size), keep, highest) for size in here.batch_size.values]
    ceiling = np.inf if linear else _ceiling([mean for mean, _ in curves])
    shades = colormaps["viridis"](np.linspace(0.85, 0.1, here.sizes["batch_size"]))
    rates = here.effective_learning_rate.values
    with axes_or_new(ax) as ax:
        drawn: list[ErrorbarContainer] = []
        for size, (mean, error), shade in zip(here.batch_size.values, curves, shades, strict=True):
            shown = np.isfinite(mean)
            x, y, bar = rates[shown], mean[shown], None if error is None else error[shown]
            before = ax.dataLim.frozen()
            look: dict[str, Any] = {"fmt": style, "color": shade, "ms": 4, "lw": 1.5, "capsize": 2}
            drawn.append(ax.errorbar(x, y, bar, label=f"B = {size:g}" if label else None, **look))
            # The limits of the axes are to come from what is below the ceiling, and from error bars down to half of the
            # mean: one that reaches zero would take up a logarithmic axis.
            half = 0.0 if bar is None else bar
            ax.dataLim.set(before)
            for height in (y, y + half, np.maximum(y - half, y / 2.0)):
                ax.update_datalim(np.column_stack([x, np.minimum(height, ceiling)]))
        log_scale(ax, "x", base=2.0)
        if linear:
            ax.set_yscale("linear")
        else:
            log_scale(ax, "y")
        ax.set_xlabel("effective learning rate  ε/(1−m)")
        ax.set_ylabel(sweep[metric].attrs.get("long_name", metric))
    return drawn


def _best_runs(values: "xr.DataArray", keep: int | None, highest: bool) -> tuple[FloatArray, FloatArray | None]:
    """Mean of the best `keep` runs at each learning rate, and its standard error; None as the error without seeds."""
    if "seed" not in values.dims:
        return values.values, None
    runs = np.moveaxis(values.values, values.get_axis_num("seed"), 0)
    runs = np.sort(-runs if highest else runs, axis=0)[:keep]  # NaN goes last
    known = np.isfinite(runs)
    count = known.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(known, runs, 0.0).sum(0) / count
        spread = np.where(known, (runs - mean) ** 2, 0.0).sum(0)
        error = np.where(count > 1, np.sqrt(spread / (count - 1) / count), 0.0)
    return -mean if highest else mean, error


def _ceiling(curves: Sequence[FloatArray]) -> float:
    """Loss at which the axis ends; ``inf`` if there are no losses."""
    known = [curve[np.isfinite(curve)] for curve in curves if np.isfinite(curve).any()]
    falling = [curve[: curve.argmin()].max() for curve in known if curve.argmin() > 0]
    return HEADROOM * float(max(falling or [curve[0] for curve in known], default=np.inf))
