"""Figures. Every function takes ``ax``, draws, and returns what it drew; style is the user's.

What is drawn has labels, so that ``ax.legend()`` explains it. Values that a logarithmic axis cannot show, such as the
``inf`` of runs that diverged, are left out. Matplotlib is imported when something is drawn, not before.

Regimes and sweeps are drawn here, problems and single runs in :mod:`noisysgd.theory.problem_plots`, what depends on the
batch size in :mod:`noisysgd.theory.batch_size_plots`; all have their names here.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.batch_size_plots import (
    plot_critical_learning_rate,
    plot_noise_scale,
    plot_scaling_rules,
    plot_steps_to_target,
    plot_tradeoff,
)
from noisysgd.theory.drawing import COLORS, MARKERS, REACH, axes_or_new, batch_size_axis, learning_rate_axis, log_scale
from noisysgd.theory.problem_plots import (
    plot_covariance,
    plot_loss_curves,
    plot_schedule,
    plot_spectrum,
    plot_weak_error,
)
from noisysgd.theory.sweep import COMPLETE, optimizer_name

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = [
    "COLORS",
    "MARKERS",
    "plot_covariance",
    "plot_critical_learning_rate",
    "plot_loss_curves",
    "plot_losses",
    "plot_noise_scale",
    "plot_optimum",
    "plot_regimes",
    "plot_scaling_rules",
    "plot_schedule",
    "plot_spectrum",
    "plot_steps_to_target",
    "plot_tradeoff",
    "plot_weak_error",
]


def plot_regimes(regimes: "xr.Dataset", ax: "Axes | None" = None) -> list[Any]:
    """Optimal effective learning rate against batch size, one line per momentum.

    Dashed lines mark the critical effective learning rates, a tick on the curve the boundary batch size. For the fitted
    corner see :func:`plot_scaling_rules`.

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
    with axes_or_new(ax) as ax:
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
        batch_size_axis(ax, regimes.batch_size.values)
        learning_rate_axis(ax, "optimal effective learning rate  ε/(1−m)")
    return drawn


def plot_optimum(best: "xr.Dataset", ax: "Axes | None" = None, *, label: str = "") -> list[Any]:
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
    with axes_or_new(ax) as ax:
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
                ax.plot(x[hollow], y[hollow], MARKERS[k % len(MARKERS)], color="white", mec=color, ms=7, zorder=4)
            drawn.append(bars)
        batch_size_axis(ax, best.batch_size.values)
        learning_rate_axis(ax, "optimal effective learning rate  ε/(1−m)")
    return drawn


def plot_losses(
    sweep: "xr.Dataset",
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

    with axes_or_new(ax) as ax:
        drawn: list[Any] = []
        here = sweep.isel(optimizer=optimizer)
        values = here[metric].where((here.status == COMPLETE) & (abs(here[metric]) < REACH))
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
        log_scale(ax, "x", base=2.0)
        log_scale(ax, "y")
        ax.set_xlabel("effective learning rate  ε/(1−m)")
        ax.set_ylabel(sweep[metric].attrs.get("long_name", metric))
    return drawn
