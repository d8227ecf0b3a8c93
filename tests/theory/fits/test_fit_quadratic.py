"""Fits to curves whose quadratic is known: what they find, between which laws they choose, and what they leave open."""

import numpy as np
import pytest

from noisysgd import theory
from noisysgd.theory.fits.observations import observed
from noisysgd.theory.fits.power_laws import PowerLaws, Reference

FLOOR = 2.0
LARGEST = 2.0
REFERENCE = Reference(progress=300.0, temperature=0.5 / 16, loss=0.3, furthest=1000.0)
SCHEDULES = [
    theory.constant(2000),
    theory.piecewise([1000, 1000], [1.0, 0.2]),
    theory.piecewise(np.full(20, 100), np.linspace(1.0, 0.05, 20)),
]
AT = np.arange(40, 2001, 40)


def family(share: float = 0.0, **changes: float) -> PowerLaws:
    values = {"excess": 0.3, "exponent": 0.5, "noise": 0.1, "noise_exponent": 1.2, "largest_eigenvalue": LARGEST}
    return PowerLaws(**(values | changes), proportional_share=share)


def curves(
    problem: theory.Quadratic,
    *,
    scatter: float = 1e-3,
    seed: int = 0,
    runs: list[dict[str, float]] | None = None,
    schedules: list[theory.Schedule] = SCHEDULES,
) -> list[theory.MeasuredCurve]:
    """Every schedule with every setting, with independent relative errors."""
    stream = np.random.default_rng(seed)
    measured = []
    for settings in runs or [{"learning_rate": 0.5, "batch_size": 16}]:
        for schedule in schedules:
            at = AT[schedule.steps >= AT]
            loss = FLOOR + theory.loss_curve(problem, schedule, at=at, **settings)
            noisy = loss * np.exp(scatter * stream.standard_normal(at.size))
            measured.append(theory.MeasuredCurve(at, noisy, schedule=schedule, **settings))
    return measured


@pytest.mark.parametrize(("share", "noise"), [(0.0, "additive"), (1.0, "proportional"), (0.5, "both")])
def test_the_curves_choose_the_law_that_made_them(share: float, noise: str) -> None:
    truth = family(share, noise=0.3)
    fit = theory.fit_quadratic(curves(truth.problem(REFERENCE), scatter=5e-4))
    assert fit.noise == noise
    assert fit.evidence[0].noise == noise
    assert fit.evidence[0].excess_criterion == 0.0
    other = {law.noise: law.excess_criterion for law in fit.evidence}
    assert other["additive" if noise == "proportional" else "proportional"] > 10.0
    assert isinstance(fit.problem, theory.NoisyQuadratic if noise == "additive" else theory.LeastSquares)
    assert abs(fit.floor - FLOOR) < 0.01
    assert abs(fit.parameters["exponent"].estimate - 0.5) < 0.05
    assert fit.correlation < 1.5


def test_predictions_hold_for_schedules_rates_batches_and_momenta_that_were_not_fitted() -> None:
    problem = family().problem(REFERENCE)
    runs = [
        {"learning_rate": 0.5, "batch_size": 16},
        {"learning_rate": 0.02, "batch_size": 4, "momentum": 0.9},
        {"learning_rate": 0.8, "batch_size": 128},
    ]
    fit = theory.fit_quadratic(curves(problem, runs=runs, schedules=SCHEDULES[:2]))
    unseen = theory.piecewise([500, 2500, 1000], [0.3, 1.0, 0.02])
    at = np.arange(500, 4001, 500)
    for settings in [
        {"learning_rate": 0.7, "batch_size": 32},
        {"learning_rate": 0.03, "batch_size": 64, "momentum": 0.9},
        {"learning_rate": 0.2, "batch_size": 2},
    ]:
        truth = FLOOR + theory.loss_curve(problem, unseen, at=at, **settings)
        np.testing.assert_allclose(fit.loss_curve(unseen, at=at, **settings), truth, rtol=4e-3)


def test_residuals_are_what_was_measured_less_what_was_fitted() -> None:
    measured = curves(family().problem(REFERENCE))
    fit = theory.fit_quadratic(measured, noise="additive")
    assert [law.noise for law in fit.evidence] == ["additive"]
    for curve, residuals in zip(measured, fit.residuals, strict=True):
        settings = {"learning_rate": curve.learning_rate, "batch_size": curve.batch_size}
        fitted = fit.loss_curve(curve.schedule, at=curve.steps, **settings)
        np.testing.assert_allclose(curve.losses - fitted, residuals, atol=2e-4)
        assert np.abs(residuals).mean() < 3e-3


def test_power_law_problems_are_within_reach_of_the_family() -> None:
    """1500 modes λ = i^−1.5: an excess loss that falls with the exponent 1 − 1/1.5."""
    problem = theory.power_law(1500, exponent=1.5)
    fit = theory.fit_quadratic(curves(problem, scatter=3e-4), noise="additive")
    value = fit.parameters["exponent"]
    assert value.identified
    assert abs(value.estimate - 1 / 3) < 0.06
    assert abs(fit.floor - FLOOR) < 0.05


def test_far_from_the_edge_the_largest_curvature_is_left_open() -> None:
    slow = [{"learning_rate": 0.05, "batch_size": 16}]
    fit = theory.fit_quadratic(curves(family().problem(REFERENCE), runs=slow), noise="additive")
    value = fit.parameters["largest_eigenvalue"]
    assert not value.identified
    assert "edge of stability" in value.note
    assert value.low == 0.0
    assert value.high == pytest.approx(2.0 / 0.05)  # the runs were stable
    assert value.high > LARGEST
    assert fit.parameters["exponent"].identified


@pytest.mark.parametrize(("rate", "size"), [(0.5, 4), (1.0, 16), (0.3, 16)])
def test_a_spectrum_that_is_no_power_law_at_its_top_shows_no_edge_that_is_not_there(rate: float, size: int) -> None:
    """The largest curvatures are 1, 0.35, 0.19: what the family lacks there must not pass for an edge at 2/ε."""
    runs = [{"learning_rate": rate, "batch_size": size}]
    measured = curves(theory.power_law(1000, exponent=1.5), runs=runs, schedules=SCHEDULES[:2])
    value = theory.fit_quadratic(measured, noise="additive").parameters["largest_eigenvalue"]
    assert value.low <= 1.0 <= value.high
    assert not value.identified


def test_runs_near_the_edge_show_where_it_is() -> None:
    runs = [{"learning_rate": rate, "batch_size": 16} for rate in (0.2, 0.7)]
    fit = theory.fit_quadratic(curves(family(noise=0.3).problem(REFERENCE), runs=runs), noise="additive")
    value = fit.parameters["largest_eigenvalue"]
    assert value.identified
    assert value.low <= LARGEST <= value.high


def test_stable_and_diverged_runs_bracket_the_largest_curvature() -> None:
    slow = [{"learning_rate": 0.4, "batch_size": 16}]
    measured = curves(family().problem(REFERENCE), runs=slow)
    diverged = theory.DivergedRun(learning_rate=1.3, batch_size=16)
    fit = theory.fit_quadratic(measured, diverged=[diverged], noise="additive")
    value = fit.parameters["largest_eigenvalue"]
    assert value.identified
    assert 2.0 / 1.3 <= value.low <= LARGEST <= value.high <= 2.0 / 0.4
    assert value.low <= value.estimate <= value.high
    assert theory.critical_learning_rate(fit.problem) <= 1.3 * (1 + 1e-9)


def test_divergence_that_noise_makes_excludes_additive_noise() -> None:
    truth = family(1.0, noise=0.25)
    problem = truth.problem(REFERENCE)
    edge = float(theory.critical_learning_rate(problem, batch_size=1))
    measured = curves(problem, runs=[{"learning_rate": 0.5, "batch_size": 16}])
    assert edge < 0.5
    fit = theory.fit_quadratic(measured, diverged=[{"learning_rate": 1.2 * edge, "batch_size": 1}])
    assert "additive" not in [law.noise for law in fit.evidence]
    assert theory.critical_learning_rate(fit.problem, batch_size=1) <= 1.2 * edge * 1.01


def test_a_constant_rate_alone_does_not_tell_noise_from_floor() -> None:
    measured = curves(family().problem(REFERENCE), schedules=SCHEDULES[:1])
    fit = theory.fit_quadratic(measured, noise="additive")
    assert not fit.parameters["noise"].identified
    assert not fit.parameters["noise_exponent"].identified


def test_spikes_do_not_carry_the_fit_away() -> None:
    measured = curves(family().problem(REFERENCE))
    losses = [curve.losses.copy() for curve in measured]
    for loss in losses:
        loss[7::12] *= 1.3
    spiked = [
        theory.MeasuredCurve(AT, loss, schedule=curve.schedule, learning_rate=0.5, batch_size=16)
        for loss, curve in zip(losses, measured, strict=True)
    ]
    fit = theory.fit_quadratic(spiked, noise="additive")
    assert abs(fit.floor - FLOOR) < 0.02
    assert abs(fit.parameters["exponent"].estimate - 0.5) < 0.1


def test_dense_curves_are_averaged_without_bias() -> None:
    problem = family().problem(REFERENCE)
    at = np.arange(20, 2001)
    stream = np.random.default_rng(1)
    measured = []
    for schedule in SCHEDULES[:2]:
        loss = FLOOR + theory.loss_curve(problem, schedule, learning_rate=0.5, batch_size=16, at=at)
        noisy = loss * np.exp(0.01 * stream.standard_normal(at.size))
        measured.append(theory.MeasuredCurve(at, noisy, schedule=schedule, learning_rate=0.5, batch_size=16))
    fit = theory.fit_quadratic(measured, noise="additive")
    assert fit.parameters["floor"].low <= FLOOR <= fit.parameters["floor"].high
    assert fit.residuals[0].size == at.size
    assert abs(np.concatenate(fit.residuals).mean()) < 4 * 0.03 / np.sqrt(2 * at.size)


def test_known_errors_weigh_the_losses() -> None:
    """Half of the losses are off by 20 %, and said to be."""
    problem = family().problem(REFERENCE)
    stream = np.random.default_rng(2)
    measured = []
    for schedule in SCHEDULES:
        loss = FLOOR + theory.loss_curve(problem, schedule, learning_rate=0.5, batch_size=16, at=AT)
        errors = np.where(np.arange(AT.size) % 2 == 0, 0.2, 1e-3) * loss
        noisy = loss + errors * stream.standard_normal(AT.size)
        measured.append(
            theory.MeasuredCurve(AT, noisy, schedule=schedule, learning_rate=0.5, batch_size=16, errors=errors)
        )
    fit = theory.fit_quadratic(measured, noise="additive")
    assert abs(fit.floor - FLOOR) < 0.03


def test_the_fitted_problem_serves_schedules_and_regimes() -> None:
    fit = theory.fit_quadratic(curves(family().problem(REFERENCE)), noise="additive")
    budget = theory.StepBudget(1000)
    best = theory.optimal_schedule(fit.problem, budget, batch_size=16, segments=5)
    plain = {"learning_rate": 0.5, "batch_size": 16, "at": 1000}
    lowest = float(fit.loss_curve(best, learning_rate=1.0, batch_size=16, at=1000))
    assert lowest < fit.loss_curve(theory.constant(1000), **plain)
    assert lowest < fit.loss_curve(theory.piecewise([800, 200], [1.0, 0.1]), **plain)
    table = theory.regimes(fit.problem, budget, batch_sizes=[4, 16, 64])
    assert np.isfinite(table.learning_rate).all()


def test_optima_do_not_rest_on_an_edge_that_nothing_has_shown() -> None:
    slow = [{"learning_rate": 0.05, "batch_size": 64}]
    for noise in ("additive", "proportional"):
        fit = theory.fit_quadratic(curves(family().problem(REFERENCE), runs=slow), noise=noise)
        assert not fit.parameters["largest_eigenvalue"].identified
        assert theory.critical_learning_rate(fit.cautious_problem) == pytest.approx(0.05)
        budget = theory.StepBudget(2000)
        rate = theory.optimal_learning_rate(fit.cautious_problem, budget, batch_size=64, schedule=theory.constant)
        assert rate <= 0.05 * 1.01
        assert rate < theory.optimal_learning_rate(fit.problem, budget, batch_size=64, schedule=theory.constant)
        settings = {"learning_rate": 0.05, "batch_size": 64}
        both = [theory.expected_loss(each, SCHEDULES[1], **settings) for each in (fit.problem, fit.cautious_problem)]
        assert abs(both[1] / both[0] - 1) < 1e-6


def test_runs_that_branch_off_from_one_count_their_common_part_once() -> None:
    measured = curves(family().problem(REFERENCE), schedules=SCHEDULES[:2])
    common = AT <= 1000
    losses = np.where(common, measured[0].losses, measured[1].losses)
    branch = theory.MeasuredCurve(AT, losses, schedule=SCHEDULES[1], learning_rate=0.5, batch_size=16)
    runs = observed((measured[0], branch))
    assert [run.steps.size for run in runs] == [AT.size, AT.size - common.sum()]
    twice = theory.fit_quadratic([measured[0], branch, branch], noise="additive")
    once = theory.fit_quadratic([measured[0], branch], noise="additive")
    assert twice.parameters["floor"] == once.parameters["floor"]
    assert [residuals.size for residuals in twice.residuals] == [AT.size] * 3


def test_the_description_names_what_is_not_identified() -> None:
    fit = theory.fit_quadratic(curves(family().problem(REFERENCE), schedules=SCHEDULES[:1]), noise="additive")
    assert "not identified" in str(fit)
    assert "floor" in repr(fit)
