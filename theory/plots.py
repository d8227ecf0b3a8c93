"""Figures of regimes and sweeps. Every function takes ``ax``, draws, and returns what it drew; style is the user's.

Matplotlib is imported when something is drawn, not before.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from noisysgd.theory.sweep import COMPLETE, optimizer_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Colours of optimizers, in order; distinguishable without colour vision."""

MARKERS = ("o", "s", "^", "D")


def plot_regimes(regimes: xr.Dataset, ax: "Axes | None" = None) -> list[Any]:
    """Optimal effective learning rate against batch size, one line per momentum.

    Dashed lines mark the critical effective learning rates, a tick on the curve the boundary batch size.

    Parameters
    ----------
    regimes : xarray.Dataset
        From :func:`noisysgd.theory.regimes`.
    ax : matplotlib Axes, optional

    Examples
    --------
    >>> from noisysgd import theory
    >>> table = theory.regimes(theory.power_law(5), theory.StepBudget(50), batch_sizes=[1, 64])
    >>> len(plot_regimes(table))
    6
    """
    ax = _axes(ax)
    drawn: list[Any] = []
    for k, m in enumerate(regimes.momentum.values):
        here = regimes.sel(momentum=m)
        color = COLORS[k % len(COLORS)]
        rate = here.effective_learning_rate
        drawn += ax.plot(here.batch_size, rate, color=color, label=f"theory, {optimizer_name(m)}")
        critical = float(here.critical_learning_rate) / (1 - m)
        drawn.append(ax.axhline(critical, color=color, ls="--", lw=1, alpha=0.6))
        boundary = float(here.boundary_batch_size)
        drawn += ax.plot([boundary], [critical / 2], "|", color=color, ms=18, mew=1.5)
    _power_axes(ax, regimes.batch_size.values)
    ax.set_ylabel("optimal effective learning rate  ε/(1−m)")
    return drawn


def plot_optimum(best: xr.Dataset, ax: "Axes | None" = None, *, label: str = "") -> list[Any]:
    """Optimal effective learning rate with error bars against batch size; hollow where not bracketed.

    Parameters
    ----------
    best : xarray.Dataset
        From :func:`noisysgd.theory.optimum`, over (optimizer, batch_size).
    ax : matplotlib Axes, optional
    label : str
        Put before the optimizer's name in the legend.

    Examples
    --------
    >>> from noisysgd import theory
    >>> sweep = theory.predict_sweep(theory.power_law(5), theory.StepBudget(50), batch_sizes=[1, 64],
    ...                              effective_learning_rates=theory.powers_of_two(-5, 5))
    >>> len(plot_optimum(theory.optimum(sweep, "expected_loss")))
    2
    """
    ax = _axes(ax)
    drawn: list[Any] = []
    count = best.sizes["optimizer"]
    for k in range(count):
        here = best.isel(optimizer=k)
        color = COLORS[k % len(COLORS)]
        # Neighbouring optimizers often share an optimum: set them slightly apart so that both are seen.
        x = here.batch_size.values * 2.0 ** (0.12 * (k - (count - 1) / 2))
        y = here.effective_learning_rate.values
        low, high = here.effective_learning_rate_low.values, here.effective_learning_rate_high.values
        name = f"{label} {here.optimizer.item()}".strip()
        bars = ax.errorbar(
            x, y, [y - low, high - y], fmt=MARKERS[k % 4], color=color, ms=7, capsize=4, lw=1.5, label=name, zorder=3
        )
        hollow = ~here.bracketed.values
        if hollow.any():
            ax.plot(x[hollow], y[hollow], MARKERS[k % 4], color="white", mec=color, ms=7, zorder=4)
        drawn.append(bars)
    _power_axes(ax, best.batch_size.values)
    ax.set_ylabel("optimal effective learning rate  ε/(1−m)")
    return drawn


def plot_losses(
    sweep: xr.Dataset,
    metric: str,
    ax: "Axes | None" = None,
    *,
    optimizer: int = 0,
    style: str = "-",
    label: bool = True,
    keep: int | None = None,
) -> list[Any]:
    """A loss against the effective learning rate, one colour per batch size, light to dark.

    With a ``seed`` dimension, the mean of the best `keep` runs (by default of all) that did not diverge, and its
    standard error.

    Examples
    --------
    >>> from noisysgd import theory
    >>> sweep = theory.predict_sweep(theory.power_law(5), theory.StepBudget(50), batch_sizes=[1, 64],
    ...                              effective_learning_rates=theory.powers_of_two(-5, 5))
    >>> len(plot_losses(sweep, "expected_loss"))
    2
    """
    from matplotlib import colormaps

    ax = _axes(ax)
    drawn: list[Any] = []
    here = sweep.isel(optimizer=optimizer)
    # Values beyond the reach of any axis would only overflow on the way to it.
    values = here[metric].where((here.status == COMPLETE) & (abs(here[metric]) < 1e100))
    shades = colormaps["viridis"](np.linspace(0.85, 0.1, here.sizes["batch_size"]))
    for size, shade in zip(here.batch_size.values, shades, strict=True):
        runs = values.sel(batch_size=size)
        mean, error = runs, None
        if "seed" in runs.dims:
            runs = runs.copy(data=np.sort(runs.values, axis=runs.get_axis_num("seed")))  # NaN goes last
            runs = runs.isel(seed=slice(keep))
            count = runs.count("seed").values
            mean = runs.mean("seed", skipna=True)
            with np.errstate(divide="ignore", invalid="ignore"):
                spread = ((runs - mean) ** 2).sum("seed").values
                error = np.where(count > 1, np.sqrt(spread / (count - 1) / count), 0.0)
        shown = np.isfinite(mean.values)
        x, y = here.effective_learning_rate.values[shown], mean.values[shown]
        drawn.append(
            ax.errorbar(
                x,
                y,
                None if error is None else error[shown],
                fmt=style,
                color=shade,
                ms=4,
                lw=1.5,
                capsize=2,
                label=f"B = {size:g}" if label else None,
            )
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("effective learning rate  ε/(1−m)")
    ax.set_ylabel(sweep[metric].attrs.get("long_name", metric))
    return drawn


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure().subplots()


def _power_axes(ax: "Axes", sizes: Any) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    if len(sizes) <= 8:
        ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
        ax.minorticks_off()
    ax.set_xlabel("batch size  B")
