"""The figure of measured learning curves beside predicted ones; see :mod:`noisysgd.theory.plots`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.plots.axes_and_colors import axes_or_new, colors_for, labels_for, log_scale, on_log_axis
from noisysgd.theory.sweeps.curves import Curve, curve_fault

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

FAR = 10.0
"""Axes are scaled to show predictions up to this factor beyond the measured losses."""
Prediction = tuple[ArrayLike, ArrayLike]
"""Steps, and the losses predicted there."""


def plot_measured_curves(
    curves: Curve | Sequence[Curve],
    ax: "Axes | None" = None,
    *,
    predicted: Prediction | Sequence[Prediction | None] | None = None,
    labels: Sequence[str] | str | None = None,
) -> "list[Line2D]":
    """Learning curves of training runs, and predicted losses beside them in the same colours.

    A dot is the mean minibatch loss of a bin, in the middle of its steps, in a band of one standard deviation of these
    losses to either side, which ends at a tenth of the mean; rings are training losses evaluated under way. Predictions
    are lines. They are drawn as they are given: a loss of the theory is an excess, to which the loss at the minimum has
    to be added first.

    Parameters
    ----------
    curves : mapping or sequence of mappings
        The entries ``curve`` of records of :func:`noisysgd.validation.train`, one for each of C runs.
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.
    predicted : (steps, losses) or sequence of these, optional
        For each run the steps, shape (R,), and the losses predicted there, shape (R,), as of
        :func:`~noisysgd.theory.loss_curve`; ``None`` for a run without a prediction. A single pair if `curves` is a
        single curve. Losses that are not positive and finite are left out; those far off leave the axes.
    labels : sequence of str, optional
        One for each run.

    Returns
    -------
    list of Line2D
        For each run its dots, its rings if it has any, and its prediction if it has one.

    Raises
    ------
    ValueError
        For what is no learning curve, numbers of predictions or labels that do not match, or steps and losses of
        different shapes.

    Examples
    --------
    >>> from noisysgd import theory
    >>> curve = {"edges": [0, 4, 8], "loss": [0.9, 0.5], "std": [0.1, 0.1]}
    >>> problem, steps = theory.power_law(5), np.arange(9)
    >>> losses = theory.loss_curve(problem, theory.constant(8), learning_rate=0.2, batch_size=4, at=steps)
    >>> dots, line = plot_measured_curves(curve, predicted=(steps, losses))
    >>> dots.get_xdata()
    array([1.5, 5.5])
    """
    alone = isinstance(curves, Mapping)
    remedy = "Pass the entry 'curve' of a record."
    runs = [curves] if isinstance(curves, Mapping) else checks.several("curves", curves, object, remedy=remedy)
    for run in runs:
        fault = "no curve" if run is None else curve_fault(run)
        checks.require(fault is None, "curves", "learning curves", fault, remedy)
    remedy = "Pass pairs (steps, losses)."
    none = [None] * len(runs) if predicted is None else predicted
    given: list[Any] = [predicted] if alone else checks.several("predicted", none, object, remedy=remedy)
    expected = f"{len(runs)} predictions, one for each curve"
    checks.require(len(given) == len(runs), "predicted", expected, len(given), "Give None for runs without one.")
    lines = [_pair(each) for each in given]
    names = labels_for(labels, len(runs))
    with axes_or_new(ax) as ax:
        drawn: list[Line2D] = []
        for run, line, name, color in zip(runs, lines, names, colors_for(len(runs)), strict=True):
            drawn += _measured(ax, run, name, color)
            if line is not None:
                label = "predicted" if name is None else f"{name}, predicted"
                at, losses = line[0], on_log_axis(line[1])
                (drawn_line,) = ax.plot(at, np.clip(losses, *_reach(run)), color=color, lw=1.6, label=label)
                drawn_line.set_ydata(losses)  # after the axes have taken their limits from what is not far off
                drawn.append(drawn_line)
        ax.set_xscale("symlog", linthresh=1.0, linscale=0.3)
        ax.set_xlim(left=0.0)
        log_scale(ax, "y")
        ax.set_xlabel("step")
        ax.set_ylabel("training loss")
    return drawn


def _reach(curve: Curve) -> tuple[float, float]:
    """The losses that a prediction may have to be shown whole: up to ten times as far as the measured ones."""
    losses = on_log_axis(np.asarray(curve["loss"], dtype=np.float64))
    seen = losses[np.isfinite(losses)]
    return (seen.min() / FAR, FAR * seen.max()) if seen.size else (0.0, np.inf)


def _measured(ax: "Axes", curve: Curve, label: str | None, color: Any) -> "list[Line2D]":
    """Draw one run's bins, and its evaluations if it has any."""
    edges = np.asarray(curve["edges"], dtype=np.float64)
    losses, spread = (np.asarray(curve[name], dtype=np.float64) for name in ("loss", "std"))
    there = np.isfinite(losses)
    middle, losses, spread = ((edges[:-1] + edges[1:] - 1) / 2)[there], losses[there], spread[there]
    look: dict[str, Any] = {"color": color, "ls": "none", "alpha": 0.8}
    drawn = ax.plot(middle, on_log_axis(losses), marker="o", ms=3, label=label or "measured", **look)
    if np.isfinite(spread).any():
        low = np.maximum(losses - spread, losses / FAR)  # a logarithmic axis has no place for what is below 0
        ax.fill_between(middle, on_log_axis(low), on_log_axis(losses + spread), color=color, alpha=0.15, lw=0)
    evaluated = curve.get("evaluated", {})
    if "train_loss" in evaluated:
        values = np.asarray(evaluated["train_loss"], dtype=np.float64)
        drawn += ax.plot(evaluated["steps"], on_log_axis(values), marker="o", ms=8, mfc="none", **look)
    return drawn


def _pair(predicted: Prediction | None) -> tuple[FloatArray, FloatArray] | None:
    """The steps and losses of a prediction, checked."""
    if predicted is None:
        return None
    pair = isinstance(predicted, Sequence) and len(predicted) == 2
    checks.require(pair, "predicted", "a pair (steps, losses)", predicted, "Give one for each run, or None.")
    steps = checks.vector("predicted", checks.real("predicted", predicted[0]))
    losses = np.asarray(predicted[1], dtype=np.float64)
    fits = losses.shape == steps.shape
    checks.require(fits, "predicted", f"shape {steps.shape}, as the steps", losses.shape, "Choose one configuration.")
    return steps, losses
