"""The figures of the demonstration's report."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from noisysgd import theory
from noisysgd.theory import plots
from noisysgd.validation.demo.demonstration import DemoResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def make_figures(results: DemoResults) -> "dict[str, Figure]":
    """All figures of the report, by file name without extension."""
    return {
        "theory": figure_theory(results),
        "losses": figure_simulation(results),
        "training": figure_training(results),
        "measurement": figure_measurement(results),
        "prediction": figure_prediction(results),
    }


def _figure(columns: int, width: float = 5.6, height: float = 4.2) -> "Figure":
    """A figure for so many panels, each `width` × `height` inches, that needs no display and leaves pyplot alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def figure_theory(results: DemoResults) -> "Figure":
    """(a) The optimal learning rate of the quadratic against batch size: exact, and simulated on powers of two."""
    figure = _figure(1, width=7.2, height=4.8)
    ax = figure.subplots()
    plots.plot_regimes(results.regimes, ax)
    best = theory.optimum(results.simulated, "expected_loss", keep=results.plan.ensembles)
    plots.plot_optimum(best, ax, label="simulated,")
    ax.set_title("Two regimes of a noisy quadratic", fontsize=11)
    ax.legend(fontsize=9)
    return figure


def figure_simulation(results: DemoResults) -> "Figure":
    """(b) Exact loss against learning rate, with simulated ensembles as points; one panel per optimizer."""
    count = results.exact.sizes["optimizer"]
    figure = _figure(count)
    axes = np.atleast_1d(figure.subplots(1, count, sharey=True))
    ceiling = 4 * float(results.plan.problem.initial_loss)
    for k, ax in enumerate(axes):
        plots.plot_losses(results.exact, "expected_loss", ax, optimizer=k)
        plots.plot_losses(results.simulated, "expected_loss", ax, optimizer=k, style="o", label=False)
        ax.set_ylim(0.5 * float(results.exact.expected_loss.min()), ceiling)
        ax.set_title(f"{results.exact.optimizer.values[k]}: lines exact, points simulated", fontsize=11)
    axes[0].legend(fontsize=9)
    for ax in axes[1:]:
        ax.set_ylabel("")
    return figure


def figure_training(results: DemoResults) -> "Figure":
    """(c) Final training loss of real networks against the effective learning rate, one panel per optimizer."""
    count = results.trained.sizes["optimizer"]
    figure = _figure(count)
    axes = np.atleast_1d(figure.subplots(1, count, sharey=True, sharex=True))
    best = theory.optimum(results.trained, "train_loss", keep=results.plan.sweep.keep)
    for k, ax in enumerate(axes):
        plots.plot_losses(results.trained, "train_loss", ax, optimizer=k, style="o-", keep=results.plan.sweep.keep)
        here = best.isel(optimizer=k)
        ax.plot(here.effective_learning_rate, here["mean"], "o", ms=12, mfc="none", mec="black", label="optimum")
        ax.set_title(f"{results.trained.optimizer.values[k]}", fontsize=11)
        ax.set_ylabel("final training loss (nats)" if k == 0 else "")
    axes[0].legend(fontsize=9)
    return figure


def figure_measurement(results: DemoResults) -> "Figure":
    """(d) Curvature and gradient noise along the reference run."""
    states = results.reference["measurements"]
    steps = [state["step"] for state in states]
    figure = _figure(2)
    left, right = figure.subplots(1, 2)
    values = [state["lambda_max"]["value"] for state in states]
    errors = [state["lambda_max"]["residual"] for state in states]
    left.errorbar(steps, values, errors, fmt="o-", color="black", capsize=3)
    left.set(xlabel="step of the reference run", ylabel="largest Hessian eigenvalue  λ_max", ylim=(0, None))
    left.set_title("curvature", fontsize=11)
    for name, color, marker in (("B_simple", "black", "o"), ("B_noise", "#999999", "s")):
        points = [(s, state[name]["value"], state[name]["stderr"]) for s, state in zip(steps, states, strict=True)]
        shown = [p for p in points if p[1] is not None and p[1] > 0]
        if shown:
            x, y, error = zip(*shown, strict=True)
            # On a logarithmic axis a bar down to zero or below would fill the panel: it ends at a tenth of the value.
            below = [min(e or 0.0, 0.9 * v) for v, e in zip(y, error, strict=True)]
            above = [e or 0.0 for e in error]
            right.errorbar(x, y, [below, above], fmt=f"{marker}-", color=color, capsize=3, label=name)
    right.set(xlabel="step of the reference run", ylabel="noise scale (examples)", yscale="log")
    right.set_title("gradient noise over signal", fontsize=11)
    right.legend(fontsize=9)
    return figure


def figure_prediction(results: DemoResults) -> "Figure":
    """(e) Optima found by training, beside those of the quadratic that is calibrated to the untrained network."""
    figure = _figure(1, width=7.2, height=4.8)
    ax = figure.subplots()
    plots.plot_regimes(results.predicted, ax)
    best = theory.optimum(results.trained, "train_loss", keep=results.plan.sweep.keep)
    plots.plot_optimum(best, ax, label="trained,")
    ax.set_title("Predicted from the initial curvature and noise; measured by training", fontsize=11)
    ax.legend(fontsize=9)
    return figure


def log_mean(values: xr.DataArray) -> xr.DataArray:
    """Geometric mean along ``step``, the measured states; states that gave no prediction (NaN) are left out."""
    result: xr.DataArray = xr.ufuncs.exp(xr.ufuncs.log(values).mean("step"))
    return result
