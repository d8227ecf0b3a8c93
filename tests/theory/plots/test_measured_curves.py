"""Measured over predicted learning curves: what is drawn is what was measured and predicted."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from noisysgd import theory
from noisysgd.theory.plots import plot_measured_curves

CURVE = {"edges": [0, 0, 1, 4, 10], "loss": [None, 2.0, 1.0, 0.5], "std": [None, None, 0.25, 0.75]}
EVALUATED = CURVE | {"evaluated": {"steps": [0, 10], "train_loss": [2.5, None], "test_loss": [3.0, 1.0]}}
STEPS = np.arange(11)
LOSSES = theory.loss_curve(theory.power_law(5), theory.constant(10), learning_rate=0.5, batch_size=4, at=STEPS)


@pytest.fixture(autouse=True)
def _no_windows():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def test_bins_are_dots_in_the_middle_of_their_steps_and_predictions_lines_in_their_colour():
    dots, rings, line, other = plot_measured_curves(
        [EVALUATED, CURVE | {"edges": [0, 0, 2, 8, 20]}], predicted=[(STEPS, LOSSES), None], labels=["a", "b"]
    )
    np.testing.assert_array_equal(dots.get_xdata(), [0.0, 2.0, 6.5])
    np.testing.assert_array_equal(dots.get_ydata(), [2.0, 1.0, 0.5])
    np.testing.assert_array_equal(other.get_xdata(), [0.5, 4.5, 13.5])
    np.testing.assert_array_equal(rings.get_xdata(), [0, 10])
    np.testing.assert_array_equal(rings.get_ydata(), [2.5, np.nan])
    np.testing.assert_array_equal(line.get_ydata(), LOSSES)
    assert line.get_color() == dots.get_color() == rings.get_color() != other.get_color()
    assert [text.get_text() for text in line.axes.get_legend().get_texts()] == ["a", "a, predicted", "b"]
    band = line.axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.05)  # a tenth of the mean: 0.5 − 0.75 is below 0
    line.axes.figure.canvas.draw()


def test_a_prediction_that_soars_leaves_the_axes():
    _, line = plot_measured_curves(CURVE, predicted=(STEPS, np.append(np.logspace(0, 80, 10), np.inf)))
    low, high = line.axes.get_ylim()
    assert 0.01 < low < high < 100
    assert line.get_ydata()[9] == 1e80
    line.axes.figure.canvas.draw()


def test_given_axes_are_drawn_on():
    _, ax = plt.subplots()
    plot_measured_curves(CURVE, ax)
    assert len(ax.lines) == 1
    assert ax.get_legend() is None


def test_a_curve_without_a_loss_is_drawn_empty():
    nothing = {"edges": [0, 4], "loss": [None], "std": [None]}
    (dots,) = plot_measured_curves(nothing)
    assert len(dots.get_xdata()) == 0
    dots.axes.figure.canvas.draw()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"curves": None}, "curves: expected a sequence, got None. Pass the entry 'curve'"),
        ({"curves": [CURVE, None]}, "curves: expected learning curves, got 'no curve'. Pass the entry 'curve'"),
        ({"curves": {"loss": [1.0]}}, "0 edges for 1 losses"),
        ({"curves": CURVE, "predicted": (STEPS, LOSSES[1:])}, r"predicted: expected shape \(11,\), as the steps"),
        ({"curves": CURVE, "predicted": LOSSES}, r"predicted: expected a pair \(steps, losses\)"),
        ({"curves": [CURVE, CURVE], "predicted": [(STEPS, LOSSES)]}, "predicted: expected 2 predictions"),
        ({"curves": [CURVE], "labels": ["a", "b"]}, "1 labels"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        plot_measured_curves(**arguments)
