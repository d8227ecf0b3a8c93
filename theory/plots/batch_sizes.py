"""Figures of what depends on the batch size; see :mod:`noisysgd.theory.plots`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.limits.stability import critical_learning_rate
from noisysgd.theory.plots.axes_and_colors import (
    COLORS,
    GUIDE,
    LINES,
    MARKERS,
    axes_or_new,
    batch_size_axis,
    colors_for,
    labels_for,
    learning_rate_axis,
    log_scale,
    on_log_axis,
    once,
)
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.scaling.curve_fit import fit_data
from noisysgd.theory.scaling.noise_scale import NoiseScaleEstimate, NoiseScales
from noisysgd.theory.scaling.rules import ScalingRule
from noisysgd.theory.schedules.effective_rate import effective_learning_rate
from noisysgd.theory.sweeps.optimizers import optimizer_name

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

PER_OCTAVE = 8
"""Points per octave with which smooth curves are drawn."""
MINIMA = ("minimum_steps", "minimum_examples")


def plot_critical_learning_rate(
    problem: Quadratic, batch_sizes: ArrayLike, ax: "Axes | None" = None, *, momentum: ArrayLike = (0.0, 0.9)
) -> "list[Line2D]":
    """Critical effective learning rate against batch size, one line per momentum.

    Dashed lines mark the curvature constraint 2(1+m)/((1−m)λ_max). For least squares the dotted line is 2/(γ tr H), the
    constraint that noise sets at small batch sizes, which is the same for every momentum; γ is 1/B, or less for a data
    set of known size.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    batch_sizes : (K,) array
        The curve goes through these and is smooth in between.
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.
    momentum : scalar or (M,) array

    Returns
    -------
    list of Line2D
        The curve of each momentum, the curvature constraint of each, and for least squares the constraint by noise.

    Raises
    ------
    ValueError
        For impossible batch sizes or momenta, or if no batch size is finite.

    Examples
    --------
    >>> from noisysgd import theory
    >>> len(plot_critical_learning_rate(theory.LeastSquares([1.0], weights=100), [1, 10, 100, 1000]))
    5
    """
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.power_law or theory.LeastSquares.")
    given, sizes = _sizes(batch_sizes, problem.dataset_size)
    inertia = checks.vector("momentum", checks.momentum(momentum))
    with axes_or_new(ax) as ax:
        drawn: list[Line2D] = []
        colors = colors_for(inertia.size)
        rates = effective_learning_rate(critical_learning_rate(problem, sizes, inertia[:, None]), inertia[:, None])
        for m, row, color in zip(inertia, rates, colors, strict=True):
            drawn += ax.plot(sizes, on_log_axis(row), color=color, lw=1.8, label=optimizer_name(m))
        for m, color in zip(inertia, colors, strict=True):
            constraint = float(2.0 * (1.0 + m) / ((1.0 - m) * problem.largest_eigenvalue))
            label = once(ax, "curvature:  2(1+m) / ((1−m) λ$_{\\mathrm{max}}$)")
            drawn.append(ax.axhline(constraint, color=color, ls="--", lw=1, alpha=0.6, label=label))
        if isinstance(problem, LeastSquares):
            trace = float((problem.weights * problem.eigenvalues).sum())
            with np.errstate(divide="ignore"):  # a batch of all examples has no noise
                bound = 2.0 / (problem.noise_factor(sizes) * trace)
            label = "noise:  2B / tr H" if problem.dataset_size is None else "noise:  2 / (γ tr H)"
            bound = np.where(bound <= 2.0 * rates.max(), bound, np.nan)
            drawn += ax.plot(sizes, on_log_axis(bound), color=GUIDE, ls=":", lw=1.5, label=label)
        batch_size_axis(ax, given)
        learning_rate_axis(ax, "critical effective learning rate  ε$_{\\mathrm{crit}}$/(1−m)")
    return drawn


def plot_noise_scale(
    scales: NoiseScales, batch_sizes: ArrayLike, ax: "Axes | None" = None, *, estimate: NoiseScaleEstimate | None = None
) -> "list[Artist]":
    """The best single step ε_opt = ε_max/(1 + B_noise/B) against batch size, with B_noise and B_simple marked.

    A noise scale below the smallest or above the largest finite batch size has no mark: widen `batch_sizes` to see it.

    Parameters
    ----------
    scales : NoiseScales
        Made of four numbers, for a single point.
    batch_sizes : (K,) array
        The curve goes through these and is smooth in between.
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.
    estimate : NoiseScaleEstimate, optional
        A measurement of B_simple; its interval is shaded as far as the batch sizes go.

    Returns
    -------
    list of Artist
        The curve, ε_max, B_noise, B_simple and the estimate's interval, except for those that are zero, infinite or
        beyond the batch sizes.

    Raises
    ------
    ValueError
        For scales of more than one point, impossible batch sizes, or if no batch size is finite.

    Examples
    --------
    >>> from noisysgd import theory
    >>> from noisysgd.theory.scaling.noise_scale import noise_scales
    >>> scales = noise_scales(theory.NoisyQuadratic([1.0, 0.1], noise=[10.0, 2.0]))
    >>> len(plot_noise_scale(scales, [1, 8, 64, 512]))
    4
    """
    checks.instance("scales", scales, NoiseScales, remedy="Make them with theory.noise_scales(problem).")
    shape = scales.gradient_squared.shape
    checks.require(shape == (), "scales", "those of one place", f"shape {shape}", "Make NoiseScales of four numbers.")
    given, sizes = _sizes(batch_sizes, scales.dataset_size)
    with axes_or_new(ax) as ax:
        rates = on_log_axis(scales.optimal_learning_rate(sizes))
        drawn: list[Artist] = list(ax.plot(sizes, rates, color=COLORS[0], lw=2, label="best step  ε$_{\\mathrm{opt}}$"))
        largest = float(on_log_axis(scales.largest_learning_rate))
        if largest > 0:
            drawn.append(ax.axhline(largest, color=COLORS[0], ls="--", lw=1, alpha=0.6, label="ε$_{\\mathrm{max}}$"))
        places = (("noise", scales.curvature_weighted, "-."), ("simple", scales.simple, ":"))
        for (name, place, style), color in zip(places, COLORS[1:], strict=False):
            where = float(on_log_axis(place))
            if sizes[0] <= where <= sizes[-1]:
                label = f"B$_{{\\mathrm{{{name}}}}}$ = {where:.3g}"
                drawn.append(ax.axvline(where, color=color, ls=style, lw=1.5, label=label))
        if estimate is not None:
            remedy = "Make one with theory.two_batch_noise_scale."
            checks.instance("estimate", estimate, NoiseScaleEstimate, remedy=remedy)
            low, high = np.clip(estimate.interval, sizes[0], sizes[-1])
            level = f"B$_{{\\mathrm{{simple}}}}$ measured, {100 * estimate.confidence:g} %"
            if high > low:
                drawn.append(ax.axvspan(float(low), float(high), color=COLORS[2], alpha=0.2, lw=0, label=level))
        batch_size_axis(ax, given)
        learning_rate_axis(ax, "learning rate  ε")
    return drawn


def plot_scaling_rules(
    batch_sizes: ArrayLike,
    learning_rates: ArrayLike,
    rules: Mapping[str, ScalingRule] | Sequence[ScalingRule],
    ax: "Axes | None" = None,
    *,
    log_errors: ArrayLike | None = None,
    name: str = "effective learning rate  ε/(1−m)",
) -> list[Any]:
    """Optimal learning rates against batch size, and rules fitted to them over the same range.

    Parameters
    ----------
    batch_sizes, learning_rates : (K,) arrays
        Data.
    rules : mapping of labels to rules, or sequence of rules
        Fitted rules, as ``fit`` returns them. Without labels, they are named after their classes.
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.
    log_errors : scalar or (K,) array, optional
        Standard errors of log₂ of the learning rates, in octaves, which are drawn as error bars.
    name : str
        Label of the axis of learning rates.

    Returns
    -------
    list
        The data as an ErrorbarContainer, then the Line2D of each rule.

    Raises
    ------
    ValueError
        For data that cannot be fitted, or rules that are not.

    Examples
    --------
    >>> from noisysgd.theory.scaling.rules import LinearWithCap, McCandlish
    >>> sizes, rates = [1, 4, 16, 64], [0.1, 0.4, 1.0, 1.0]
    >>> rules = [rule.fit(sizes, rates) for rule in (LinearWithCap, McCandlish)]
    >>> len(plot_scaling_rules(sizes, rates, rules, log_errors=0.29))
    3
    """
    data = fit_data(batch_sizes, learning_rates, log_errors, parameters=1)
    remedy = "Pass what fit returned, such as theory.McCandlish.fit(batch_sizes, learning_rates)."
    if isinstance(rules, Mapping):
        named = list(rules.items())
    else:
        named = [(type(rule).__name__, rule) for rule in checks.several("rules", rules, object, remedy=remedy)]
    checks.instance("name", name, str, remedy="Name the axis of learning rates.")
    for _, rule in named:
        fitted = hasattr(rule, "learning_rate") and not isinstance(rule, type)
        checks.require(fitted, "rules", "fitted rules", rule, remedy)
    given, sizes = _sizes(batch_sizes, None)
    with axes_or_new(ax) as ax:
        error = data.weight**-0.5
        centre = np.exp2(data.log_rate)
        bars = (
            [centre - np.exp2(data.log_rate - error), np.exp2(data.log_rate + error) - centre] if data.known else None
        )
        look: dict[str, Any] = {"fmt": "o", "color": "black", "ms": 5, "capsize": 3, "lw": 1.2, "zorder": 3}
        drawn: list[Any] = [ax.errorbar(np.exp2(data.log_batch), centre, bars, label="optimum", **look)]
        for k, ((label, rule), color) in enumerate(zip(named, colors_for(len(named)), strict=True)):
            # A sharp corner between two points of the grid would be cut off.
            corner = getattr(rule, "boundary_batch_size", sizes[0])
            fine = np.union1d(sizes, np.clip(corner, sizes[0], sizes[-1]))
            rates = on_log_axis(rule.learning_rate(fine))
            drawn += ax.plot(fine, rates, color=color, ls=LINES[k % len(LINES)], lw=1.8, label=label)
        batch_size_axis(ax, given)
        learning_rate_axis(ax, name)
    return drawn


def plot_steps_to_target(
    batch_sizes: ArrayLike, steps: ArrayLike, ax: "Axes | None" = None, *, labels: Sequence[str] | str | None = None
) -> "list[Line2D]":
    """Steps to a target loss against batch size, with dashed guides of perfect scaling from the smallest batch.

    Perfect scaling is steps ∝ 1/B. The guides of all curves are grey and share one entry of the legend; they coincide
    if curves start at the same number of steps.

    Parameters
    ----------
    batch_sizes : (K,) array
    steps : (K,) or (C, K) array
        Fewest steps to the target, one curve for each of C optimizers; ``inf``, where it is not reached, is left out.
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.
    labels : sequence of str, optional
        One for each curve.

    Returns
    -------
    list of Line2D
        For each curve, the curve and its guide.

    Raises
    ------
    ValueError
        For impossible batch sizes, or shapes that do not match.

    Examples
    --------
    >>> sizes = np.array([1, 8, 64, 512])
    >>> len(plot_steps_to_target(sizes, 100 + 6400 / sizes, labels="sgd"))
    2
    """
    sizes = checks.vector("batch_sizes", checks.batch_size(batch_sizes, name="batch_sizes"))
    table = np.atleast_2d(checks.numbers("steps", steps))
    fits = table.ndim == 2 and table.shape[1] == sizes.size
    remedy = "Batch sizes go along the last axis."
    checks.require(
        fits, "steps", f"shape ({sizes.size},) or (C, {sizes.size}), as the batch sizes", table.shape, remedy
    )
    alone = labels is None and len(table) == 1
    names = labels_for("fewest steps" if alone else labels, len(table))
    with axes_or_new(ax) as ax:
        shown = np.flatnonzero(np.isfinite(sizes))[np.argsort(sizes[np.isfinite(sizes)], kind="stable")]
        drawn: list[Line2D] = []
        for k, (row, label, color) in enumerate(zip(table[:, shown], names, colors_for(len(table)), strict=True)):
            count = on_log_axis(row)
            drawn += ax.plot(sizes[shown], count, marker=MARKERS[k % len(MARKERS)], ms=5, color=color, label=label)
            known = np.flatnonzero(np.isfinite(count))
            ends = np.full((2, 2), np.nan)
            if known.size:
                first, least = sizes[shown][known[0]], float(np.nanmin(count))
                # The guide ends at half of the fewest steps: further down there is no curve to compare it with.
                last = min(sizes[shown][-1], 2.0 * first * count[known[0]] / least)
                ends = np.array([[first, last], [count[known[0]], count[known[0]] * first / last]])
            drawn += ax.plot(*ends, color=GUIDE, ls="--", lw=1)
        guides = [line for line in drawn[1::2] if np.isfinite(line.get_xdata()).any()]
        if guides:
            guides[-1].set_label(once(ax, "perfect scaling,  ∝ 1/B"))
        batch_size_axis(ax, sizes)
        log_scale(ax, "y")
        ax.set_ylabel("steps to the target loss")
    return drawn


def plot_tradeoff(
    dataset: "xr.Dataset", ax: "Axes | None" = None, *, label: str = "fewest steps at each B"
) -> "list[Artist]":
    """Training examples against steps to a target loss, with the hyperbola (S/S_min − 1)(E/E_min − 1) = 1.

    The dots go from the smallest batch (most steps, fewest training examples) to the largest. The hyperbola is dashed,
    its asymptotes S_min and E_min are dotted. The cross at twice S_min and E_min is where the hyperbola has B = B* =
    E_min/S_min.

    Parameters
    ----------
    dataset : xarray.Dataset
        From :func:`~noisysgd.theory.steps_examples_tradeoff`, for one optimizer: ``steps`` and ``examples`` over
        ``batch_size``, ``minimum_steps`` and ``minimum_examples`` as variables or attributes.
    ax : matplotlib Axes, optional
        By default those of a new figure with a legend; a given `ax` gets none.
    label : str
        Label of the dots.

    Returns
    -------
    list of Artist
        The dots, the hyperbola, its two asymptotes, the cross, and the texts at the first and the last dot. If a
        minimum is not finite and positive, there is no hyperbola, and nothing that belongs to it.

    Raises
    ------
    ValueError
        For a dataset that lacks one of these, or has dimensions other than ``batch_size``.

    Examples
    --------
    >>> import xarray as xr
    >>> from noisysgd.theory.scaling.noise_scale import steps_and_examples
    >>> sizes = 2.0 ** np.arange(12)
    >>> least = {"minimum_steps": 100.0, "minimum_examples": 6400.0}
    >>> steps, examples = steps_and_examples(batch_size=sizes, **least)
    >>> columns = {"steps": ("batch_size", steps), "examples": ("batch_size", examples)}
    >>> len(plot_tradeoff(xr.Dataset(columns, {"batch_size": sizes}, least)))
    7
    """
    remedy = "Make it with theory.steps_examples_tradeoff."
    checks.dataset("dataset", dataset, ("batch_size", "steps", "examples"), remedy=remedy)
    checks.instance("label", label, str, remedy="Name the dots.")
    lacking = [name for name in MINIMA if name not in dataset and name not in dataset.attrs]
    checks.require(not lacking, "dataset", "both minima", f"none of {lacking}", remedy)
    one = dataset["steps"].dims == dataset["examples"].dims == ("batch_size",)
    remedy = "Choose one optimizer, such as dataset.sel(momentum=0.9)."
    checks.require(one, "dataset", "steps and examples over batch_size alone", dict(dataset["steps"].sizes), remedy)
    least = [float(getattr(dataset, name)) for name in MINIMA]
    with axes_or_new(ax) as ax:
        ordered = dataset.sortby("batch_size")
        steps, examples = on_log_axis(ordered["steps"].values), on_log_axis(ordered["examples"].values)
        drawn: list[Artist] = list(ax.plot(steps, examples, "o-", color=COLORS[0], ms=5, lw=1, zorder=3, label=label))
        known = np.flatnonzero(np.isfinite(steps * examples))
        if all(0 < value < np.inf for value in least):
            _, sizes = _sizes(dataset.batch_size.values, None)
            ratio = least[1] / least[0] / sizes
            curve = (least[0] * (1.0 + ratio), least[1] * (1.0 + 1.0 / ratio))
            drawn += ax.plot(
                *curve,
                color=COLORS[1],
                ls="--",
                lw=1.5,
                label="(S/S$_{\\mathrm{min}}$ − 1)(E/E$_{\\mathrm{min}}$ − 1) = 1",
            )
            drawn += [ax.axvline(least[0], color=GUIDE, ls=":", lw=1), ax.axhline(least[1], color=GUIDE, ls=":", lw=1)]
            name = f"B* = {least[1] / least[0]:.3g}"
            drawn += ax.plot(
                [2 * least[0]], [2 * least[1]], "x", color="black", ms=9, mew=2, ls="none", zorder=4, label=name
            )
        if known.size > 1:
            look: dict[str, Any] = {"textcoords": "offset points", "fontsize": "small"}
            for place, offset, side in ((known[0], (5, 7), "right"), (known[-1], (8, 0), "left")):
                text = f"B = {float(ordered.batch_size[place]):g}"
                drawn.append(ax.annotate(text, (steps[place], examples[place]), xytext=offset, ha=side, **look))
        log_scale(ax, "x")
        log_scale(ax, "y")
        ax.set_xlabel("steps to the target loss  S")
        ax.set_ylabel("examples to the target loss  E = BS")
    return drawn


def _sizes(batch_sizes: ArrayLike, dataset_size: int | None) -> tuple[FloatArray, FloatArray]:
    """The finite ones among the batch sizes, and a grid through them that is fine enough for a smooth curve."""
    sizes = checks.vector("batch_sizes", checks.batch_size(batch_sizes, dataset_size, "batch_sizes"))
    given = np.unique(sizes[np.isfinite(sizes)])
    checks.require(given.size > 0, "batch_sizes", "at least one finite batch size", batch_sizes, "Say where to draw.")
    count = int(np.ceil(PER_OCTAVE * np.log2(given[-1] / given[0]))) + 1
    return given, np.union1d(given, np.clip(np.geomspace(given[0], given[-1], count), given[0], given[-1]))
