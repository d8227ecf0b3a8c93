"""Curves and fits that cannot be: a clear error at the boundary."""

import numpy as np
import pytest

from noisysgd import theory

NAN = float("nan")
SCHEDULE = theory.constant(100)
AT = np.arange(10, 101, 10)
GOOD = {"schedule": SCHEDULE, "learning_rate": 0.1, "batch_size": 16}


def curve(steps=AT, losses=None, **changes):
    losses = 2.0 + 1.0 / np.asarray(steps) if losses is None else losses
    return theory.MeasuredCurve(steps, losses, **(GOOD | changes))


BAD_CURVES = {
    "empty": (lambda: curve([], []), "steps: expected a non-empty"),
    "steps beyond": (lambda: curve([50, 101], [2.0, 1.0]), "steps: expected whole steps in 0…100"),
    "half a step": (lambda: curve([0.5, 1], [2.0, 1.0]), "steps: expected whole steps"),
    "steps out of order": (lambda: curve([50, 20], [2.0, 1.0]), "steps: expected increasing"),
    "a step twice": (lambda: curve([50, 50], [2.0, 1.0]), "steps: expected increasing"),
    "NaN": (lambda: curve([10, 20], [2.0, NAN]), "losses: expected numbers without NaN.*diverged"),
    "infinite": (lambda: curve([10, 20], [2.0, np.inf]), "losses: expected finite.*diverged"),
    "negative": (lambda: curve([10, 20], [2.0, -1.0]), "losses: expected losses > 0.*add a constant"),
    "shapes": (lambda: curve([10, 20], [2.0]), "losses: expected shape"),
    "no schedule": (lambda: curve(schedule=100), "schedule: expected a Schedule"),
    "no rate": (lambda: curve(learning_rate=0.0), "learning_rate: expected a learning rate > 0"),
    "rates": (lambda: curve(learning_rate=[0.1, 0.2]), "learning_rate: expected a single number"),
    "batch": (lambda: curve(batch_size=0.5), "batch_size: expected values ≥ 1"),
    "momentum": (lambda: curve(momentum=1.0), "momentum: expected 0 ≤ momentum < 1"),
    "errors": (lambda: curve(errors=0.0), "errors: expected a number > 0"),
    "errors of another shape": (lambda: curve(errors=[0.1, 0.1]), "errors: expected a number > 0, or 10"),
}

FLAT = np.full(AT.size, 2.0)
BAD_FITS = {
    "no curves": (lambda: theory.fit_quadratic([]), "curves: expected at least one MeasuredCurve"),
    "not curves": (lambda: theory.fit_quadratic([AT]), "curves: expected a MeasuredCurve"),
    "a number": (lambda: theory.fit_quadratic(3), "curves: expected MeasuredCurves"),
    "one point": (lambda: theory.fit_quadratic(curve([50], [2.0])), "curves: expected at least 8 losses.*got '?1"),
    "flat": (lambda: theory.fit_quadratic(curve(losses=FLAT)), "curves: expected a loss that falls"),
    "rising": (lambda: theory.fit_quadratic(curve(losses=FLAT + 0.01 * AT)), "curves: expected a loss that falls"),
    "nothing moves": (
        lambda: theory.fit_quadratic(curve(schedule=theory.piecewise([100], [0.0]))),
        "curves: expected steps that move",
    ),
    "noise": (lambda: theory.fit_quadratic(curve(), noise="pink"), "noise: expected one of"),
    "level": (lambda: theory.fit_quadratic(curve(), level=95), "level: expected a confidence level"),
    "diverged": (lambda: theory.fit_quadratic(curve(), diverged=[0.3]), "diverged: expected a DivergedRun"),
    "diverged without a batch": (
        lambda: theory.fit_quadratic(curve(), diverged=[{"learning_rate": 1.0}]),
        "diverged: expected learning_rate, batch_size",
    ),
    "diverged below a stable run": (
        lambda: theory.fit_quadratic(curve(), diverged=[theory.DivergedRun(0.05, 16)]),
        "diverged: expected higher learning rates than those of stable runs",
    ),
}


@pytest.mark.parametrize("case", BAD_CURVES | BAD_FITS)
def test_what_cannot_be_is_refused_in_words(case: str) -> None:
    call, message = (BAD_CURVES | BAD_FITS)[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "got" in str(caught.value)


def test_curves_do_not_change_after_they_are_made() -> None:
    losses = 2.0 + 1.0 / AT
    made = curve(losses=losses)
    losses[0] = 9.0
    assert made.losses[0] != 9.0
    with pytest.raises(ValueError, match="read-only"):
        made.losses[0] = 1.0


def test_a_curve_may_stand_for_a_diverged_run() -> None:
    run = curve(losses=FLAT * np.arange(1, 11), learning_rate=0.9)
    with pytest.raises(ValueError, match="higher learning rates"):
        theory.fit_quadratic(curve(learning_rate=1.0), diverged=run)


def test_a_curve_without_a_descent_beside_one_with_is_no_error() -> None:
    """A run may rise, as one with a small batch does, as long as there is a descent to fit."""
    problem = theory.power_law(200, exponent=1.5)
    measured = []
    for size in (1, 64):
        loss = 1.0 + theory.loss_curve(problem, SCHEDULE, learning_rate=0.3, batch_size=size, at=AT)
        measured.append(curve(losses=loss, learning_rate=0.3, batch_size=size))
    assert np.isfinite(theory.fit_quadratic(measured, noise="additive").floor)
