"""Figures: what is drawn is what was computed, where it was asked for, and nothing else changes."""

import copy
import re
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from noisysgd import theory
from noisysgd.theory import plots, testing
from noisysgd.theory.limits.diffusion import weak_error
from noisysgd.theory.plots.axes_and_colors import axes_or_new, log_scale
from noisysgd.theory.scaling.corner import SharpCorner
from noisysgd.theory.scaling.noise_scale import NoiseScales, noise_scales, two_batch_noise_scale
from noisysgd.theory.scaling.rules import LinearWithCap, McCandlish

SIZES = 2.0 ** np.arange(11)
SQUARES = theory.LeastSquares(theory.power_law(200, 0.5).eigenvalues)
SCALES = NoiseScales(gradient_squared=2.0, gradient_curvature=4.0, noise_trace=30.0, noise_curvature=40.0)


@pytest.fixture(autouse=True)
def _no_windows():
    """Figures that functions make without axes are drawn on no screen and closed after the test."""
    plt.switch_backend("agg")
    yield
    plt.close("all")


def axes():
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


def render(ax):
    ax.legend()
    ax.figure.canvas.draw()


def regimes_table():
    return theory.regimes(theory.power_law(5), theory.StepBudget(50), batch_sizes=[1, 8, 64, 512])


def sweep():
    rates = theory.powers_of_two(-5, 5)
    return theory.predict_sweep(
        theory.power_law(5), theory.StepBudget(50), batch_sizes=[1, 64], effective_learning_rates=rates
    )


def optimum():
    return theory.optimum(sweep(), "expected_loss")


def tradeoff(noise=0.0, sizes=SIZES, seed=0):
    steps = 100 * (1 + 64 / sizes) * np.exp(noise * np.random.default_rng(seed).normal(size=sizes.size))
    columns = {"steps": ("batch_size", steps), "examples": ("batch_size", steps * sizes)}
    return xr.Dataset(columns, {"batch_size": sizes}, {"minimum_steps": 100.0, "minimum_examples": 6400.0})


def curves():
    steps = np.array([0, 1, 3, 10, 30])
    schedule, rates = theory.constant(30), [0.1, 0.5, 1.0]
    return steps, theory.loss_curve(theory.power_law(5), schedule, learning_rate=rates, batch_size=4, at=steps)


# Function, inputs (made anew by each test), keywords, scales of both axes, number of things drawn.
CASES = {
    "regimes": (plots.plot_regimes, lambda: [regimes_table()], {}, "log", "log", 6),
    "optimum": (plots.plot_optimum, lambda: [optimum()], {}, "log", "log", 2),
    "losses": (plots.plot_losses, lambda: [sweep(), "expected_loss"], {}, "log", "log", 2),
    "spectrum": (plots.plot_spectrum, lambda: [SQUARES], {}, "log", "log", 2),
    "schedule": (
        plots.plot_schedule,
        lambda: [[theory.half_then_decay(40), theory.constant(30)]],
        {"learning_rate": np.array([0.1, 0.2]), "labels": ["paper", "constant"]},
        "linear",
        "log",
        2,
    ),
    "loss curves": (plots.plot_loss_curves, curves, {"labels": ["a", "b", "c"], "stationary": 0.1}, "symlog", "log", 6),
    "measured curves": (
        plots.plot_measured_curves,
        lambda: [{"edges": [0, 4, 8], "loss": [0.9, 0.5], "std": [None, None]}],
        {"predicted": (np.arange(1, 9), np.linspace(1.0, 0.4, 8)), "labels": "run"},
        "symlog",
        "log",
        2,
    ),
    "covariance": (plots.plot_covariance, lambda: [np.array([[2.0, 1.0], [1.0, 2.0]])], {}, "linear", "linear", 2),
    "critical": (plots.plot_critical_learning_rate, lambda: [SQUARES, SIZES.copy()], {}, "log", "log", 5),
    "weak error": (
        plots.plot_weak_error,
        lambda: [theory.power_law(5)],
        {"time": 1.0, "steps": np.array([10, 100]), "batch_size": 4},
        "log",
        "log",
        4,
    ),
    "tradeoff": (plots.plot_tradeoff, lambda: [tradeoff(0.1)], {}, "log", "log", 7),
    "steps": (
        plots.plot_steps_to_target,
        lambda: [SIZES.copy(), 100 + 6400 / SIZES],
        {"labels": "sgd"},
        "log",
        "log",
        2,
    ),
    "rules": (
        plots.plot_scaling_rules,
        lambda: [SIZES.copy(), np.minimum(SIZES / 8, 4.0), [LinearWithCap(0.125, 4.0), McCandlish(4.0, 32.0)]],
        {"log_errors": 0.29},
        "log",
        "log",
        3,
    ),
    "noise scale": (plots.plot_noise_scale, lambda: [SCALES, SIZES.copy()], {}, "log", "log", 4),
}


def artists_of(thing):
    """Of an artist, a container of artists, or a colour bar."""
    if isinstance(thing, Artist):
        return [thing]
    return thing.ax.get_children() if hasattr(thing, "ax") else thing.get_children()


def axes_of(thing):
    return {thing.ax} if hasattr(thing, "ax") else {artist.axes for artist in artists_of(thing)}


@pytest.mark.parametrize("name", CASES)
def test_it_draws_on_the_axes_it_is_given_and_returns_what_it_drew(name):
    function, inputs, keywords, xscale, yscale, count = CASES[name]
    ax = axes()
    before = set(ax.get_children())
    drawn = function(*inputs(), ax=ax, **keywords)
    assert isinstance(drawn, list)
    assert len(drawn) == count
    assert all(axes_of(thing) <= {ax, *ax.child_axes} for thing in drawn)
    returned = {artist for thing in drawn for artist in artists_of(thing)}
    assert set(ax.get_children()) - before - set(ax.child_axes) <= returned
    assert (ax.get_xscale(), ax.get_yscale()) == (xscale, yscale)
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.figure.axes == [ax]
    if name != "covariance":
        assert ax.get_legend_handles_labels()[1]
        render(ax)
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", CASES)
def test_without_axes_it_makes_a_figure_of_its_own(name):
    function, inputs, keywords, *_ = CASES[name]
    figures = [ax.figure for drawn in (function(*inputs(), **keywords),) for ax in axes_of(drawn[0])]
    assert len(figures) == 1
    assert figures[0] is not next(ax.figure for ax in axes_of(function(*inputs(), **keywords)[0]))


@pytest.mark.parametrize("name", CASES)
def test_the_figure_it_makes_is_the_current_one_of_pyplot_and_has_a_legend(name):
    function, inputs, keywords, *_ = CASES[name]
    drawn = function(*inputs(), **keywords)
    figure = plt.gcf()
    assert plt.get_fignums() == [figure.number]
    assert figure.get_layout_engine() is not None
    (ax,) = figure.axes
    assert all(axes_of(thing) <= {ax, *ax.child_axes} for thing in drawn)
    labels = ax.get_legend_handles_labels()[1]
    assert len(labels) == len(set(labels))
    shown = [] if ax.get_legend() is None else [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == (labels if len(labels) > 1 else [])
    assert bool(shown) == (name != "covariance")
    figure.canvas.draw()


@pytest.mark.parametrize("name", CASES)
def test_given_axes_get_no_legend_and_pyplot_no_figure(name):
    function, inputs, keywords, *_ = CASES[name]
    ax = axes()
    function(*inputs(), ax=ax, **keywords)
    assert ax.get_legend() is None
    assert not plt.get_fignums()


def test_a_figure_that_fails_half_way_is_closed():
    with pytest.raises(IndexError), axes_or_new(None):
        raise IndexError
    with pytest.raises(ValueError, match=r"optimizer: expected at most 1, got 5\. Give its position"):
        plots.plot_losses(sweep(), "expected_loss", optimizer=5)
    assert not plt.get_fignums()


def contents(value):
    """The arrays of an input, copied."""
    if isinstance(value, xr.Dataset):
        return value.copy(deep=True)
    if isinstance(value, list | tuple):
        return [contents(entry) for entry in value]
    return copy.deepcopy(getattr(value, "__dict__", value))


def same(one, other):
    if isinstance(one, xr.Dataset):
        return one.identical(other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(np.array_equal(one, other))


@pytest.mark.parametrize("name", CASES)
def test_it_leaves_inputs_and_settings_of_matplotlib_as_they_are(name):
    function, inputs, keywords, *_ = CASES[name]
    given = inputs()
    before, style = contents([*given, *keywords.values()]), dict(matplotlib.rcParams)
    function(*given, **keywords)
    assert same(before, contents([*given, *keywords.values()]))
    assert dict(matplotlib.rcParams) == style


def test_importing_loads_no_matplotlib_and_drawing_on_given_axes_no_pyplot():
    code = """
import sys
from noisysgd import theory
from noisysgd.theory import plots
assert "matplotlib" not in sys.modules
assert "xarray" not in sys.modules
from matplotlib.figure import Figure
plots.plot_spectrum(theory.power_law(5), Figure().subplots())
plots.plot_covariance([[1.0]], Figure().subplots())
plots.plot_critical_learning_rate(theory.power_law(5), [1, 2], Figure().subplots())
assert "matplotlib.axes" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
plots.plot_spectrum(theory.power_law(5))
assert "matplotlib.pyplot" in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_every_plot_is_listed():
    defined = {name for name in dir(plots) if name.startswith("plot_")}
    assert defined <= set(plots.__all__)
    assert {case[0].__name__ for case in CASES.values()} == defined


def test_ranks_count_modes_and_flat_ones_are_left_out():
    problem = theory.NoisyQuadratic([0.01, 1.0, 0.0], noise=[5.0, 0.0, 7.0], weights=[10.0, 2.0, 100.0])
    curvature, noise = plots.plot_spectrum(problem)
    np.testing.assert_array_equal(curvature.get_xdata(), [1, 2, 12, 112])
    np.testing.assert_array_equal(curvature.get_ydata(), [1, 1, 0.01, np.nan])
    np.testing.assert_array_equal(noise.get_ydata(), [np.nan, np.nan, 5, 7])
    assert curvature.get_drawstyle() == "steps-pre"  # a value belongs to the ranks before its last


def test_noise_of_least_squares_is_that_of_the_start():
    problem = theory.LeastSquares(
        [1.0, 0.1], label_noise=0.3, initial_mean=2.0, initial_variance=[0.5, 3.0], weights=[2.0, 40.0], kurtosis=3.5
    )
    noise = plots.plot_spectrum(problem)[1].get_ydata()[1:]
    scales = noise_scales(problem)
    np.testing.assert_allclose((problem.weights * noise).sum(), scales.noise_trace, rtol=1e-13)
    np.testing.assert_allclose(
        (problem.weights * problem.eigenvalues * noise).sum(), scales.noise_curvature, rtol=1e-13
    )


@settings(max_examples=12)
@given(schedule=testing.schedules(), rate=st.floats(1e-6, 10.0))
def test_staircases_have_the_learning_rate_of_every_step(schedule, rate):
    (staircase,) = plots.plot_schedule(schedule, learning_rate=rate)
    values, edges, _ = staircase.get_data()
    expected = [rate * schedule.at(step) if schedule.at(step) > 0 else np.nan for step in range(schedule.steps)]
    np.testing.assert_array_equal(np.repeat(values, np.diff(edges)), expected)


NUMBERS = st.one_of(
    st.sampled_from([np.inf, np.nan, 0.0, -1.0, 1e300, 1e-300]), st.floats(1e-30, 1e30), st.floats(0.1, 10.0)
)


@settings(max_examples=10)
@given(losses=stnp.arrays(np.float64, (3, 6), elements=NUMBERS), data=st.data())
def test_losses_of_any_kind_can_be_drawn(losses, data):
    steps = np.array(data.draw(st.permutations([0, 1, 2, 5, 10, 100])))
    ax = axes()
    lines = plots.plot_loss_curves(steps, losses, ax, labels=["a", "b", "c"], stationary=losses[:, 0])
    order = np.argsort(steps)
    for line, row in zip(lines, losses, strict=False):
        shown = np.isfinite(row) & (row > 1e-100) & (row < 1e100)
        np.testing.assert_array_equal(line.get_xdata(), steps[order])
        np.testing.assert_array_equal(line.get_ydata(), np.where(shown, row, np.nan)[order])
    assert np.isfinite(ax.get_ylim()).all()
    render(ax)


def test_a_run_that_diverges_does_not_set_the_view():
    steps = np.arange(200)
    ax = axes()
    _, soaring = plots.plot_loss_curves(steps, [0.9**steps, 2.0**steps], ax)
    assert 1e3 < ax.get_ylim()[1] < 1e5
    assert ax.get_ylim()[0] > 1e-12
    np.testing.assert_array_equal(soaring.get_ydata(), 2.0**steps)
    assert ax.get_xlim()[0] == 0  # the start is on the axis


def test_steps_that_leave_out_the_start_go_on_a_logarithmic_axis():
    ax = axes()
    plots.plot_loss_curves([1, 10, 100], [3.0, 2.0, 1.0], ax)
    assert ax.get_xscale() == "log"
    plots.plot_loss_curves([0, 10, 100], [3.0, 2.0, 1.0], ax, style="--")
    plots.plot_loss_curves([1, 10, 100], [3.0, 2.0, 1.0], ax)
    assert ax.get_xscale() == "symlog"  # or the start of the second would vanish


def test_only_stationary_losses_that_exist_have_lines():
    problem = theory.power_law(5)
    from noisysgd.theory.limits.stationary import stationary_loss

    floors = stationary_loss(problem, learning_rate=[0.5, 3.0], batch_size=4)
    drawn = plots.plot_loss_curves([0, 1], [[1.0, 0.5], [1.0, 2.0]], stationary=floors)
    assert [line.get_linestyle() for line in drawn] == ["-", "-", "--"]
    np.testing.assert_array_equal(drawn[2].get_ydata(), floors[[0, 0]])
    assert drawn[2].get_color() == drawn[0].get_color()
    assert drawn[2].get_label() == "stationary loss"


@settings(max_examples=12)
@given(
    samples=stnp.arrays(np.float64, (4, 9), elements=st.floats(-1, 1, allow_subnormal=False)),
    scale=st.integers(-99, 99),
)
def test_covariances_are_shown_as_correlations(samples, scale):
    samples = samples + np.eye(4, 9)  # no mode without variance
    covariance = np.cov(samples) * 10.0**scale
    if np.diag(np.cov(samples)).min() < 1e-6:
        return
    image, _ = plots.plot_covariance(covariance)
    np.testing.assert_allclose(image.get_array(), np.corrcoef(samples), atol=1e-12)
    assert image.get_clim() == (-1, 1)


def test_modes_without_a_correlation_are_blank():
    image, _ = plots.plot_covariance([[1.0, 0.0, np.inf], [0.0, 0.0, 0.0], [np.inf, 0.0, np.inf]])
    blank = np.ma.getmaskarray(image.get_array())
    np.testing.assert_array_equal(blank, ~np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=bool))
    FigureCanvasAgg(image.axes.figure).draw()


@pytest.mark.parametrize("dataset_size", [None, 1024])
def test_critical_learning_rates_lie_on_the_curve_between_its_two_bounds(dataset_size):
    problem = SQUARES.with_dataset_size(dataset_size)
    momenta = [0.0, 0.9]
    drawn = plots.plot_critical_learning_rate(problem, SIZES, momentum=momenta)
    noise = drawn[-1]
    for m, curve, bound in zip(momenta, drawn[:2], drawn[2:4], strict=True):
        critical = theory.critical_learning_rate(problem, SIZES, m) / (1 - m)
        sizes, rates = curve.get_data()
        at = np.searchsorted(sizes, SIZES)
        np.testing.assert_array_equal(sizes[at], SIZES)
        np.testing.assert_allclose(rates[at], critical, rtol=1e-14)
        constraint = bound.get_ydata()[0]
        np.testing.assert_allclose(constraint, theory.critical_learning_rate(problem, np.inf, m) / (1 - m), rtol=1e-14)
        assert (rates <= constraint * (1 + 1e-12)).all()
        below = np.isfinite(noise.get_ydata())
        assert (rates[below] <= noise.get_ydata()[below] * (1 + 1e-12)).all()
        np.testing.assert_allclose(rates[0], noise.get_ydata()[0], rtol=0.05)  # B = 1: noise alone


def test_additive_noise_has_no_bound_by_noise():
    drawn = plots.plot_critical_learning_rate(theory.power_law(5), [1, 16, np.inf], momentum=[0.0, 0.5])
    assert len(drawn) == 4
    np.testing.assert_array_equal(drawn[0].get_ydata(), 2.0)


def test_weak_errors_stand_beside_guides_of_their_order():
    problem, steps = SQUARES, np.array([1000, 10, 100, 300])
    drawn = plots.plot_weak_error(problem, time=0.02, steps=steps, batch_size=4, orders=[1, 2])
    for order, points, guide in zip((1, 2), drawn[::2], drawn[1::2], strict=True):
        rates, errors = points.get_data()
        np.testing.assert_allclose(rates, 0.02 / np.sort(steps)[::-1], rtol=1e-15)
        expected = weak_error(problem, time=0.02, steps=np.sort(steps)[::-1], batch_size=4, order=order)
        np.testing.assert_array_equal(errors, expected)
        x, y = np.log(guide.get_data())
        np.testing.assert_allclose(np.diff(y) / np.diff(x), order, rtol=1e-12)
        assert (errors >= np.exp(y) * (1 - 1e-12)).sum() == 2  # of four
        np.testing.assert_allclose(errors, np.exp(y), rtol=0.2)


def test_errors_that_are_all_zero_leave_nothing_to_guide():
    still = theory.NoisyQuadratic([1.0], noise=0.0, initial_variance=0.0)
    ax = axes()
    points, guide = plots.plot_weak_error(still, ax, time=1.0, steps=[1, 10], batch_size=1, orders=[1])
    assert np.isnan(points.get_ydata()).all()
    assert np.isnan(guide.get_ydata()).all()
    render(ax)


@settings(max_examples=6)
@given(noise=st.floats(0.0, 0.5), seed=st.integers(0, 99), count=st.integers(2, 16))
def test_the_tradeoff_shows_the_hyperbola_and_labels_that_can_be_read(noise, seed, count):
    ax = axes()
    dots, hyperbola, left, bottom, cross, *texts = plots.plot_tradeoff(
        tradeoff(noise, 2.0 ** np.arange(count), seed), ax
    )
    steps, examples = hyperbola.get_data()
    np.testing.assert_allclose((steps / 100 - 1) * (examples / 6400 - 1), 1.0, rtol=1e-9)
    np.testing.assert_allclose(examples[[0, -1]] / steps[[0, -1]], [1, 2.0 ** (count - 1)], rtol=1e-12)
    np.testing.assert_allclose(dots.get_ydata() / dots.get_xdata(), 2.0 ** np.arange(count), rtol=1e-12)
    assert (left.get_xdata()[0], bottom.get_ydata()[0]) == (100, 6400)
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (200, 12800)
    assert [text.get_text() for text in texts] == ["B = 1", f"B = {2 ** (count - 1)}"]
    render(ax)
    boxes = [text.get_window_extent() for text in texts]
    assert not boxes[0].overlaps(boxes[1])
    for box in boxes:
        inside = (box.x0 > ax.bbox.x0, box.x1 < ax.bbox.x1, box.y0 > ax.bbox.y0, box.y1 < ax.bbox.y1)
        assert all(inside), (box, ax.bbox)


def test_a_tradeoff_without_minima_has_no_hyperbola():
    dataset = tradeoff(0.1)
    dataset.attrs["minimum_examples"] = np.nan
    dataset["steps"][3] = dataset["examples"][3] = np.inf
    ax = axes()
    dots, *texts = plots.plot_tradeoff(dataset, ax)
    assert len(texts) == 2
    assert np.isnan(dots.get_xdata()).sum() == 1
    render(ax)


def test_the_minima_may_be_variables():
    dataset = tradeoff()
    moved = dataset.assign(dataset.attrs).drop_attrs()
    one, other = plots.plot_tradeoff(dataset)[1], plots.plot_tradeoff(moved)[1]
    np.testing.assert_array_equal(one.get_data(), other.get_data())


def test_perfect_scaling_keeps_the_number_of_examples():
    steps = np.array([[np.inf, 4000.0, 1010.0, 500.0], [900.0, 300.0, 200.0, np.nan]])
    sizes = [1, 4, 16, 64]
    ax = axes()
    first, perfect, second, other = plots.plot_steps_to_target(sizes, steps, ax, labels=["sgd", "momentum 0.9"])
    np.testing.assert_array_equal(first.get_ydata(), [np.nan, 4000, 1010, 500])
    np.testing.assert_array_equal(second.get_ydata(), [900, 300, 200, np.nan])
    x, y = np.array(perfect.get_data())
    np.testing.assert_allclose(x * y, 16000)
    assert x[0] == 4
    x, y = np.array(other.get_data())
    np.testing.assert_allclose(x * y, 900)
    assert y[1] == pytest.approx(100)  # half of the fewest
    render(ax)


def test_rules_are_drawn_through_their_corner_and_data_with_bars_in_octaves():
    rates = np.array([0.1, 0.4, 1.0, 1.0])
    rule = LinearWithCap(slope=0.1, cap=1.0)
    sharp = SharpCorner(1.0, 10.0, np.inf)
    points, line, other = plots.plot_scaling_rules([1, 4, 16, 64], rates, {"corner": rule, "p": sharp}, log_errors=1.0)
    sizes, heights = line.get_data()
    np.testing.assert_allclose(heights, np.minimum(sizes / 10, 1.0), rtol=1e-14)
    assert 10.0 in sizes
    assert (sizes.min(), sizes.max()) == (1, 64)
    assert [line.get_label(), other.get_label()] == ["corner", "p"]
    segments = np.array(points.lines[2][0].get_segments())[:, :, 1]
    np.testing.assert_allclose(segments, np.stack([rates / 2, rates * 2], axis=1), rtol=1e-12)


def test_at_the_noise_scale_the_best_step_is_half_the_largest():
    curve, largest, noise, simple = plots.plot_noise_scale(SCALES, [1, 10, 1000])
    sizes, rates = curve.get_data()
    assert largest.get_ydata()[0] == 0.5
    assert noise.get_xdata()[0] == 10.0
    assert simple.get_xdata()[0] == 15.0
    assert rates[sizes == 10.0] == pytest.approx(0.25)


def test_an_unresolved_estimate_is_shaded_to_the_end():
    estimate = two_batch_noise_scale([9.0, 11.0, 10.0, 10.0], [3.0, 2.0], small_batch_size=1, big_batch_size=8)
    assert estimate.interval[1] == np.inf
    ax = axes()
    span = plots.plot_noise_scale(SCALES, [1, 8, 64], ax, estimate=estimate)[-1]
    extent = span.get_extents().transformed(ax.transData.inverted())
    np.testing.assert_allclose((extent.x0, extent.x1), (max(estimate.interval[0], 1.0), 64.0), rtol=1e-9)
    render(ax)


def test_without_noise_there_is_no_noise_scale_to_mark():
    silent = NoiseScales(gradient_squared=2.0, gradient_curvature=4.0, noise_trace=0.0, noise_curvature=0.0)
    assert len(plots.plot_noise_scale(silent, [1, 8])) == 2
    flat = NoiseScales(gradient_squared=2.0, gradient_curvature=0.0, noise_trace=0.0, noise_curvature=0.0)
    ax = axes()
    assert len(plots.plot_noise_scale(flat, [1, 8], ax)) == 1
    render(ax)


def labels_in_view(axis):
    """Texts of the major ticks of an axis that is drawn."""
    low, high = sorted(axis.get_view_interval())
    ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    return [label.get_text() for place, label in ticks if low <= place <= high and label.get_text()]


@settings(max_examples=40)
@given(low=st.floats(1e-6, 1e6), octaves=st.floats(1e-3, 8.0), base=st.sampled_from([2.0, 10.0]))
def test_every_logarithmic_axis_has_ticks_to_read_from(low, octaves, base):
    ax = axes()
    ax.plot([1, 2], [low, low * 2.0**octaves])
    log_scale(ax, "y", base=base)
    ax.figure.canvas.draw()
    labels = labels_in_view(ax.yaxis)
    assert 2 <= len(labels) <= 12
    assert len(set(labels)) == len(labels)


def test_axes_stay_readable_when_their_limits_change():
    ax = axes()
    ax.plot([1, 2], [1.1, 1.2])
    log_scale(ax, "y", base=2.0)
    ax.set_ylim(0.1, 1000.0)
    ax.figure.canvas.draw()
    assert {"1", "10", "100"} <= set(labels_in_view(ax.yaxis))


def test_the_best_step_of_large_batches_can_be_read():
    ax = axes()
    drawn = plots.plot_noise_scale(noise_scales(theory.power_law(200)), 2.0 ** np.arange(3, 16), ax)
    render(ax)
    assert len(labels_in_view(ax.yaxis)) >= 3
    assert len(drawn) == 2  # B_noise and B_simple are below the smallest batch size
    assert ax.get_xlim()[0] > 4


@pytest.mark.parametrize(("sizes", "marks"), [([10, 15], 2), ([10.5, 14], 0), ([10.5, 15], 1), ([1, 14.9], 1)])
def test_noise_scales_beyond_the_batch_sizes_have_no_mark(sizes, marks):
    assert len(plots.plot_noise_scale(SCALES, sizes)) == 2 + marks


def test_batch_sizes_too_close_for_a_tick_each_have_round_ones():
    ax = axes()
    plots.plot_scaling_rules([1, 1000, 1001, 1024], [0.1, 1.0, 1.0, 1.0], [LinearWithCap(0.1, 1.0)], ax)
    ax.figure.canvas.draw()
    assert "1001" not in labels_in_view(ax.xaxis)


def test_few_batch_sizes_on_an_axis_of_many_leave_it_its_ticks():
    ax = axes()
    plots.plot_steps_to_target(SIZES, 100 + 6400 / SIZES, ax)
    plots.plot_steps_to_target([8, 64], [900, 200], ax)
    ax.figure.canvas.draw()
    assert len(labels_in_view(ax.xaxis)) >= 5
    ax = axes()
    plots.plot_steps_to_target([8, 64], [900, 200], ax)
    assert labels_in_view(ax.xaxis) == ["8", "64"]
    ax = axes()
    plots.plot_steps_to_target([8], [900], ax)
    assert labels_in_view(ax.xaxis) == ["8"]


def sweep_of(metric, table):
    """A Sweep of sgd from losses over (batch size 1, 2, …; learning rate 1, 2, 4, …[, seed])."""
    records = []
    for index, value in np.ndenumerate(np.array(table)):
        run = {"momentum": 0.0, "batch_size": 2 ** index[0], "learning_rate": 2.0 ** index[1], "status": "complete"}
        records.append(run | {"seed": index[2] if len(index) > 2 else 0, metric: value})
    return theory.sweep_from_records(records, source="training", metrics=[metric])


def test_diverging_losses_leave_the_axis_and_do_not_flatten_the_minima():
    ax = axes()
    losses = [[2.0, 0.1, 0.2, 1e66], [3.0, 1.0, 0.01, 5.0]]
    drawn = plots.plot_losses(sweep_of("train_loss", losses), "train_loss", ax)
    assert 30 < ax.get_ylim()[1] < 60  # ten times the 3.0 of before training, and a margin
    assert 0.004 < ax.get_ylim()[0] < 0.01
    assert ax.get_xlim()[1] > 8
    for container, row in zip(drawn, losses, strict=True):
        np.testing.assert_array_equal(container.lines[0].get_ydata(), row)  # nothing is dropped
    render(ax)


def test_losses_within_the_axis_set_its_limits():
    ax = axes()
    plots.plot_losses(sweep_of("train_loss", [[2.0, 0.1, 3.0]]), "train_loss", ax)
    assert 3.0 < ax.get_ylim()[1] < 5.0


def test_a_batch_size_that_diverges_everywhere_does_not_set_the_limit_unless_all_do():
    ax = axes()
    plots.plot_losses(sweep_of("train_loss", [[1e10, 1e20, 1e30], [2.0, 1.0, 1e20]]), "train_loss", ax)
    assert 20 < ax.get_ylim()[1] < 40
    ax = axes()
    plots.plot_losses(sweep_of("train_loss", [[5.0, 1e20, 1e30]]), "train_loss", ax)
    assert 50 < ax.get_ylim()[1] < 100


def test_losses_drawn_on_one_axis_share_its_limits():
    ax = axes()
    plots.plot_losses(sweep_of("train_loss", [[2.0, 0.1, 1e66]]), "train_loss", ax)
    plots.plot_losses(sweep_of("train_loss", [[20.0, 1.0, 1e66]]), "train_loss", ax, style="o")
    assert 200 < ax.get_ylim()[1] < 500
    assert 0.03 < ax.get_ylim()[0] < 0.1


def test_accuracies_have_a_linear_axis_and_the_best_runs_are_the_highest():
    ax = axes()
    accuracies = [[[0.2, 0.3, 0.4], [0.9, 0.8, np.nan]]]
    (container,) = plots.plot_losses(sweep_of("test_accuracy", accuracies), "test_accuracy", ax, keep=2)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    np.testing.assert_allclose(container.lines[0].get_ydata(), [0.35, 0.85], rtol=1e-14)
    low, high = np.array(container.lines[2][0].get_segments())[:, :, 1].T
    np.testing.assert_allclose((high - low) / 2, [0.05, 0.05], rtol=1e-12)
    assert ax.get_ylim()[1] < 1
    (container,) = plots.plot_losses(sweep_of("test_loss", accuracies), "test_loss", keep=2)
    np.testing.assert_allclose(container.lines[0].get_ydata(), [0.25, 0.85], rtol=1e-14)


def test_noise_that_equals_the_curvature_says_so():
    curvature, noise = plots.plot_spectrum(theory.power_law(50))
    assert noise.get_label().endswith("= λ")
    assert curvature.get_linewidth() > 2 * noise.get_linewidth()
    assert "=" not in plots.plot_spectrum(theory.NoisyQuadratic([1.0, 0.1], noise=[1.0, 0.2]))[1].get_label()


def test_the_legend_of_regimes_names_critical_lines_and_boundaries_once():
    ax = axes()
    table = theory.regimes(theory.power_law(20), theory.EpochBudget(20, 4096), batch_sizes=[1, 64, 4096])
    drawn = plots.plot_regimes(table, ax)
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["theory, sgd", "theory, momentum 0.9", "critical", "boundary batch size"]
    for line in drawn[2:4]:
        assert line.get_linestyle() == "--"
    np.testing.assert_array_equal([tick.get_xdata()[0] for tick in drawn[4:]], table.boundary_batch_size.values)
    plots.plot_regimes(table, ax)
    assert ax.get_legend_handles_labels()[1].count("critical") == 1


def test_a_boundary_outside_the_batch_sizes_has_no_name():
    table = regimes_table()
    table["boundary_batch_size"][:] = np.nan
    ax = axes()
    plots.plot_regimes(table, ax)
    assert "boundary batch size" not in ax.get_legend_handles_labels()[1]


def test_perfect_scaling_is_named_once_and_looks_the_same_for_all():
    ax = axes()
    sizes, steps = [1, 4, 16], [[900.0, 300.0, 200.0], [900.0, 250.0, 100.0], [np.inf, np.inf, np.inf]]
    drawn = plots.plot_steps_to_target(sizes, steps, ax, labels=["a", "b", "none"])
    assert sorted(ax.get_legend_handles_labels()[1]) == ["a", "b", "none", "perfect scaling,  ∝ 1/B"]
    assert {line.get_color() for line in drawn[1::2]} == {drawn[1].get_color()}
    assert drawn[1].get_color() not in {line.get_color() for line in drawn[::2]}
    assert drawn[3].get_label().startswith("perfect")  # that of the last curve that has one


def test_a_single_curve_of_steps_has_a_name_beside_its_guide():
    plots.plot_steps_to_target([1, 4, 16], [900.0, 300.0, 200.0])
    labels = [text.get_text() for text in plt.gca().get_legend().get_texts()]
    assert labels == ["fewest steps", "perfect scaling,  ∝ 1/B"]


def test_optima_at_the_end_of_the_grid_are_hollow_and_named():
    ax = axes()
    best = theory.optimum(sweep_of("train_loss", [[2.0, 1.0, 3.0], [3.0, 2.0, 1.0]]), "train_loss", keep=1)
    points, hollow = plots.plot_optimum(best, ax)
    np.testing.assert_array_equal(hollow.get_xdata(), [2.0])
    assert hollow.get_label() == "not bracketed"
    assert {artist for thing in (points, hollow) for artist in artists_of(thing)} >= set(ax.lines)


def test_a_sweep_in_which_all_diverged_can_be_drawn():
    rates = theory.powers_of_two(8, 9)
    diverged = theory.predict_sweep(
        theory.power_law(5), theory.StepBudget(5000), batch_sizes=[1], effective_learning_rates=rates
    )
    assert not (diverged.status == 1).any()
    ax = axes()
    plots.plot_losses(diverged, "expected_loss", ax)
    render(ax)


def test_infinite_batches_and_diverged_runs_are_left_out():
    ax = axes()
    table = theory.regimes(theory.power_law(5), theory.StepBudget(50), batch_sizes=[1, 64, np.inf])
    plots.plot_regimes(table, ax)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "64"]
    render(ax)
    ax = axes()
    plots.plot_loss_curves([0, 1], np.full((2, 2), np.inf), ax, labels=["a", "b"])
    render(ax)
    ax = axes()
    plots.plot_steps_to_target([1, 2, np.inf], [np.inf, np.inf, 5.0], ax, labels="none")
    render(ax)


BAD = [
    (lambda: plots.plot_spectrum([1.0, 0.5]), "problem: expected a NoisyQuadratic or LeastSquares"),
    (lambda: plots.plot_schedule([theory.constant]), "schedules: expected a Schedule"),
    (lambda: plots.plot_schedule(theory.constant(5), learning_rate=[1.0, 2.0]), r"learning_rate: .* shape \(1,\)"),
    (lambda: plots.plot_schedule(theory.constant(5), labels=["a", "b"]), "labels: expected 1 labels"),
    (lambda: plots.plot_loss_curves([0, 1], [1.0, 2.0, 3.0]), r"losses: expected shape \(\.\.\., 2\)"),
    (lambda: plots.plot_loss_curves([0, 1], [[1.0, 2.0]], stationary=[1.0, 2.0]), "stationary: expected a number"),
    (lambda: plots.plot_covariance([1.0, 2.0]), r"covariance: expected a \(D, D\) array"),
    (lambda: plots.plot_covariance([[np.nan]]), "covariance: expected numbers without NaN"),
    (lambda: plots.plot_critical_learning_rate(SQUARES, [np.inf]), "batch_sizes: expected at least one finite"),
    (lambda: plots.plot_critical_learning_rate(SQUARES, [0.5]), "batch_sizes: expected values ≥ 1"),
    (lambda: plots.plot_critical_learning_rate(SQUARES, [2], momentum=1.0), "momentum: expected 0 ≤ momentum < 1"),
    (
        lambda: plots.plot_weak_error(SQUARES, time=1.0, steps=[10], batch_size=1, momentum=0.9),
        "momentum: expected no momentum at order 2",
    ),
    (lambda: plots.plot_tradeoff(tradeoff().expand_dims(momentum=2)), "dataset: .* over batch_size alone"),
    (lambda: plots.plot_tradeoff(tradeoff().drop_attrs()), "dataset: .*none of .*minimum_steps"),
    (lambda: plots.plot_steps_to_target([1, 2], [1.0]), r"steps: expected shape \(2,\)"),
    (lambda: plots.plot_scaling_rules(SIZES, SIZES, [LinearWithCap]), "rules: expected fitted rules"),
    (lambda: plots.plot_scaling_rules(SIZES, SIZES[1:], []), "batch_sizes, learning_rates: expected two"),
    (
        lambda: plots.plot_noise_scale(NoiseScales([1.0, 2.0], 1.0, 1.0, 1.0), [1]),
        "scales: expected those of one place",
    ),
    (lambda: plots.plot_noise_scale(2.0, [1]), "scales: expected a NoiseScales"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_refused_before_anything_is_drawn(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert re.search(r", got .+\. [A-Z]", str(caught.value))  # says what was given, and what to do
