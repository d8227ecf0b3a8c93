"""Figures of problems, schedules and single runs; see :mod:`noisysgd.theory.plots`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.limits.diffusion import weak_error
from noisysgd.theory.plots.axes_and_colors import (
    COLORS,
    GUIDE,
    LINES,
    MARKERS,
    axes_or_new,
    check_style,
    colors_for,
    labels_for,
    log_scale,
    on_log_axis,
    once,
)
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.scaling.noise_scale import one_example_noise
from noisysgd.theory.schedules.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.patches import StepPatch

FEW = 40
"""Largest number of modes that are marked one by one."""
SOARED = 1e3
"""Axes are scaled to show losses up to this many times the first one; a curve that grows further leaves them."""


def plot_spectrum(problem: NoisyQuadratic | LeastSquares, ax: "Axes | None" = None) -> "list[Line2D]":
    """Curvatures λ, largest first, and the gradient noise F_ii of the same modes, against rank.

    The rank counts modes: an eigenvalue of weight w takes up w ranks. Noise that depends on θ is shown at the start.
    Modes with λ = 0 are left out, since the axis is logarithmic. If F = Λ, the dashed line of F lies on the wider one
    of λ, and its label ends in "= λ".

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.

    Returns
    -------
    list of Line2D
        The lines of λ and of F.

    Examples
    --------
    >>> from noisysgd import theory
    >>> curvature, noise = plot_spectrum(theory.measured_spectrum([1.0, 0.01], weights=[3, 97]))
    >>> curvature.get_xdata()
    array([  1.,   3., 100.])
    """
    kinds = isinstance(problem, NoisyQuadratic | LeastSquares)
    remedy = "Make one with theory.power_law or theory.LeastSquares."
    checks.require(kinds, "problem", "a NoisyQuadratic or LeastSquares", problem, remedy)
    with axes_or_new(ax) as ax:
        order = np.argsort(-problem.eigenvalues, kind="stable")
        rank = np.cumsum(problem.weights[order])
        # The step of each value ends at its last rank and begins at the last rank before it; the first begins at 1.
        rank = np.concatenate([[min(1.0, float(rank[0]))], rank])
        counted = bool(np.any(problem.weights > 1))
        step = "steps-pre" if counted else "default"
        marker = "o" if problem.dim <= FEW and not counted else ""
        noise = one_example_noise(problem, problem.initial_second_moment)
        # λ is drawn wider, so that both lines are seen if F = Λ; the legend says so too.
        equal = " = λ" if np.allclose(noise, problem.eigenvalues, rtol=1e-9, atol=0.0) else ""
        looks: tuple[dict[str, Any], ...] = (
            {"lw": 4.5 if equal else 3, "ms": 8, "label": "curvature  λ"},
            {"ls": "--", "lw": 1.5, "ms": 3.5, "label": "gradient noise  F$_{\\mathrm{ii}}$" + equal},
        )
        drawn: list[Line2D] = []
        for values, look, color in zip((problem.eigenvalues, noise), looks, COLORS, strict=False):
            height = on_log_axis(values[order])
            height = np.concatenate([height[:1], height])
            drawn += ax.plot(rank, height, drawstyle=step, marker=marker, color=color, **look)
        log_scale(ax, "x")
        log_scale(ax, "y")
        ax.set_xlabel("rank of the mode")
        ax.set_ylabel("curvature  λ,   gradient noise  F$_{\\mathrm{ii}}$")
    return drawn


def plot_schedule(
    schedules: Schedule | Sequence[Schedule],
    ax: "Axes | None" = None,
    *,
    learning_rate: ArrayLike = 1.0,
    labels: Sequence[str] | str | None = None,
) -> "list[StepPatch]":
    """Learning rate against step, a staircase for each schedule.

    Parameters
    ----------
    schedules : Schedule or sequence of them
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.
    learning_rate : scalar or (C,) array
        Learning rates that the multipliers multiply, one for all schedules or one for each. It is 1 if the multipliers
        are learning rates themselves, like those of :func:`~noisysgd.theory.optimal_schedule`.
    labels : sequence of str, optional
        One for each schedule.

    Returns
    -------
    list of StepPatch
        The staircases.

    Raises
    ------
    ValueError
        For numbers of learning rates or labels that do not match.

    Examples
    --------
    >>> from noisysgd import theory
    >>> staircase, = plot_schedule(theory.half_then_decay(100), learning_rate=0.1)
    >>> staircase.get_data().edges[:4]
    array([ 0, 50, 55, 60])
    """
    remedy = "Make one with theory.half_then_decay(steps)."
    one = isinstance(schedules, Schedule)
    several = [schedules] if one else checks.several("schedules", schedules, object, remedy=remedy)
    for schedule in several:
        checks.instance("schedules", schedule, Schedule, remedy=remedy)
    rates = checks.learning_rate(learning_rate)
    fits = rates.shape in ((), (len(several),))
    expected = f"a number or shape ({len(several)},), as the schedules"
    checks.require(fits, "learning_rate", expected, rates.shape, "Give one for each schedule.")
    with axes_or_new(ax) as ax:
        drawn: list[StepPatch] = []
        shown = zip(several, np.broadcast_to(rates, len(several)), labels_for(labels, len(several)), strict=True)
        for k, ((schedule, rate, label), color) in enumerate(zip(shown, colors_for(len(several)), strict=True)):
            edges = np.cumsum(np.concatenate([[0], schedule.lengths]))
            heights = on_log_axis(rate * schedule.multipliers)
            style = LINES[k % len(LINES)]
            drawn.append(ax.stairs(heights, edges, baseline=None, color=color, lw=1.8, ls=style, label=label))
        log_scale(ax, "y", base=2.0)
        ax.set_xlabel("step")
        ax.set_ylabel("learning rate  ε")
    return drawn


def plot_loss_curves(
    steps: ArrayLike,
    losses: ArrayLike,
    ax: "Axes | None" = None,
    *,
    labels: Sequence[str] | str | None = None,
    stationary: ArrayLike | None = None,
    style: str = "-",
) -> "list[Line2D]":
    """Expected losses against step, a curve for each configuration, with dashed lines at their stationary losses.

    To compare a diffusion with SGD, draw both on the same axes in two styles: equal configurations get equal colours.

    Parameters
    ----------
    steps : (R,) array
        Steps at which the losses were recorded: the argument `at` of :func:`~noisysgd.theory.loss_curve`. If step 0 is
        among them, the axis is linear from 0 to 1.
    losses : (..., R) array
        Results of :func:`~noisysgd.theory.loss_curve` or :func:`~noisysgd.theory.diffusion_curve`, for C configurations
        along the leading axes. Losses that are not positive and finite are left out; curves that diverge leave the axes
        at the top.
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.
    labels : sequence of str, optional
        One for each configuration.
    stationary : scalar or array of the leading shape of `losses`, optional
        Results of :func:`~noisysgd.theory.stationary_loss`; ``inf`` has no line.
    style : str
        Matplotlib's format of the curves, such as "--" or "o".

    Returns
    -------
    list of Line2D
        The C curves, then the stationary lines.

    Raises
    ------
    ValueError
        For shapes that do not match.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem, steps = theory.power_law(5), np.arange(11)
    >>> losses = theory.loss_curve(problem, theory.constant(10), learning_rate=[0.1, 1.0], batch_size=4, at=steps)
    >>> len(plot_loss_curves(steps, losses, labels=["ε = 0.1", "ε = 1"]))
    2
    """
    at = checks.vector("steps", checks.real("steps", steps))
    table = checks.numbers("losses", losses)
    fits = table.ndim > 0 and table.shape[-1] == at.size
    checks.require(
        fits, "losses", f"shape (..., {at.size}), as the steps", table.shape, "Steps go along the last axis."
    )
    curves = table.reshape(-1, at.size)
    floors = np.full(table.shape[:-1], np.nan) if stationary is None else checks.numbers("stationary", stationary)
    expected = f"a number or shape {table.shape[:-1]}, one for each curve"
    fits = floors.shape in ((), table.shape[:-1])
    checks.require(fits, "stationary", expected, floors.shape, "Compute it for the same configurations.")
    floors = on_log_axis(np.broadcast_to(floors, table.shape[:-1])).ravel()
    names = labels_for(labels, len(curves))
    check_style(style)
    with axes_or_new(ax) as ax:
        order = np.argsort(at, kind="stable")
        drawn: list[Line2D] = []
        colors = colors_for(len(curves))
        curves = on_log_axis(curves[:, order])
        ceiling = SOARED * max(
            (curve[np.isfinite(curve)][0] for curve in curves if np.isfinite(curve).any()), default=1.0
        )
        for curve, name, color in zip(curves, names, colors, strict=True):
            (line,) = ax.plot(at[order], np.minimum(curve, ceiling), style, color=color, label=name)
            line.set_ydata(curve)  # after the axes have taken their limits from the curve cut off at the ceiling
            line.sticky_edges.x[:] = [0.0]  # no margin to the left of the start
            drawn.append(line)
        for floor, color in zip(floors, colors, strict=True):
            if floor > 0:
                name = once(ax, "stationary loss")
                drawn.append(ax.axhline(floor, color=color, ls="--", lw=1, alpha=0.7, label=name))
        if at.min() < 1 or ax.get_xscale() == "symlog":
            ax.set_xscale("symlog", linthresh=1.0, linscale=0.3)
        else:
            log_scale(ax, "x")
        log_scale(ax, "y")
        ax.set_xlabel("step")
        ax.set_ylabel("expected excess training loss")
    return drawn


def plot_covariance(covariance: ArrayLike, ax: "Axes | None" = None) -> list[Any]:
    """The correlations Σ_ij/√(Σ_ii Σ_jj) of a covariance, from −1 (blue) over 0 (white) to 1 (red).

    Modes whose variance is zero or infinite have no correlations and are grey.

    Parameters
    ----------
    covariance : (D, D) array
        Of parameters (:func:`~noisysgd.theory.stationary_covariance`) or of gradient noise.
    ax : matplotlib Axes, optional
        By default those of a new figure.

    Returns
    -------
    list
        The AxesImage and its Colorbar, which is drawn beside the axes.

    Raises
    ------
    ValueError
        If `covariance` is not a single square matrix.

    Examples
    --------
    >>> image, bar = plot_covariance([[4.0, 1.0], [1.0, 1.0]])
    >>> image.get_array()[0, 1].item()
    0.5
    """
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    matrix = checks.real("covariance", covariance)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] and matrix.size > 0
    checks.require(square, "covariance", "a (D, D) array", matrix.shape, "Choose one configuration.")
    with axes_or_new(ax) as ax:
        variance = matrix.diagonal()
        scale = np.sqrt(np.where((variance > 0) & np.isfinite(variance), variance, np.nan))
        correlation = np.where(np.isfinite(matrix), matrix, np.nan) / scale / scale[:, None]
        dim = len(matrix)
        extent = (0.5, dim + 0.5, dim + 0.5, 0.5)
        colors = colormaps["RdBu_r"].with_extremes(bad="#bbbbbb")
        image = ax.imshow(np.ma.masked_invalid(correlation), cmap=colors, vmin=-1.0, vmax=1.0, extent=extent)
        bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.04, 0.0, 0.045, 1.0)), label="correlation")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=1))
        ax.set_xlabel("mode  j")
        ax.set_ylabel("mode  i")
    return [image, bar]


def plot_weak_error(
    problem: NoisyQuadratic | LeastSquares,
    ax: "Axes | None" = None,
    *,
    time: float,
    steps: ArrayLike,
    batch_size: float,
    momentum: float = 0.0,
    orders: Sequence[int] = (1, 2),
) -> "list[Line2D]":
    """Weak errors of the diffusion limits against the learning rate ε = time/steps, with guides of slope 1 and 2.

    A guide has the height at which half of the errors lie above it and half below. Errors that are zero or infinite are
    left out.

    Parameters
    ----------
    problem, time, steps, batch_size, momentum
        As for :func:`~noisysgd.theory.weak_error`; `steps` is a (K,) array.
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.
    orders : sequence of {1, 2}
        Weak orders to show; with momentum there is only order 1.

    Returns
    -------
    list of Line2D
        For each order, its errors and its guide.

    Raises
    ------
    ValueError
        As for :func:`~noisysgd.theory.weak_error`.

    Examples
    --------
    >>> from noisysgd import theory
    >>> len(plot_weak_error(theory.power_law(5), time=1.0, steps=[10, 100, 1000], batch_size=4))
    4
    """
    counts = np.sort(checks.vector("steps", checks.real("steps", steps)))[::-1]
    orders = checks.several("orders", orders, int, remedy="Pass (1, 2), or (1,) with momentum.")
    errors = [
        weak_error(problem, time=time, steps=counts, batch_size=batch_size, momentum=momentum, order=order)
        for order in orders
    ]
    with axes_or_new(ax) as ax:
        rates = time / counts
        drawn: list[Line2D] = []
        for k, (order, error) in enumerate(zip(orders, errors, strict=True)):
            shown = on_log_axis(error)
            look: dict[str, Any] = {"color": COLORS[k % len(COLORS)], "marker": MARKERS[k % len(MARKERS)], "ms": 5}
            drawn += ax.plot(rates, shown, ls="none", zorder=3, label=f"diffusion of order {order}", **look)
            known = np.isfinite(shown)
            middle = np.median(shown[known] / rates[known] ** order) if known.any() else np.nan
            name = f"∝ ε{'' if order == 1 else '²'}"
            drawn += ax.plot(
                rates, middle * rates**order, color=GUIDE, ls=LINES[1 + k % (len(LINES) - 1)], lw=1, label=name
            )
        log_scale(ax, "x")
        log_scale(ax, "y")
        ax.set_xlabel("learning rate  ε")
        ax.set_ylabel("|E loss of SGD − E loss of the diffusion|")
    return drawn
