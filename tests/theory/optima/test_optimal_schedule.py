"""Tuned schedules and unlimited budgets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from noisysgd import theory
from noisysgd.theory import testing
from noisysgd.theory.optima.minimise import minimise_on_log_scale


@settings(max_examples=10)
@given(noise=st.floats(0.1, 10.0), curvature=st.floats(0.1, 10.0), steps=st.integers(1, 6))
def test_best_steps_of_one_mode_are_the_greedy_ones(noise, curvature, steps):
    """Of one mode every step should minimise its own loss: ε = λv/(λ²v + s), after which v is vs/(λ²v + s)."""
    problem = theory.NoisyQuadratic([curvature], noise)
    best = theory.optimal_schedule(problem, theory.StepBudget(steps), batch_size=1, segments=steps)
    v, expected = 1.0, []
    for _ in range(steps):
        expected.append(curvature * v / (curvature**2 * v + noise))
        v = v * noise / (curvature**2 * v + noise)
    loss = theory.expected_loss(problem, best, learning_rate=1.0, batch_size=1)
    # An optimum that is judged by the worst within ±0.5 % gives up a little where the noise is small.
    assert loss == pytest.approx(0.5 * curvature * v, rel=5e-4)
    np.testing.assert_allclose(best.at(np.arange(steps)), expected, rtol=2e-2)


def test_best_noiseless_steps_are_those_of_a_grid():
    """Two steps on three modes with equal λ E θ₀²: what a grid of pairs of steps finds, and no more."""
    curvatures = np.array([1.0, 0.3, 0.1])
    problem = theory.NoisyQuadratic(curvatures, 0.0, initial_variance=1 / curvatures)
    best = theory.optimal_schedule(problem, theory.StepBudget(2), batch_size=1, segments=2)
    rates = np.geomspace(0.3, 20.0, 400)
    one, two = np.meshgrid(rates, rates)
    left = sum(0.5 * (1 - one * lam) ** 2 * (1 - two * lam) ** 2 for lam in curvatures)
    loss = float(theory.expected_loss(problem, best, learning_rate=1.0, batch_size=1))
    assert loss <= left.min() + 1e-12
    assert loss == pytest.approx(left.min(), abs=1e-4)


@settings(max_examples=5)
@given(
    problem=testing.problems(full_noise=False).filter(lambda p: p.noise.min() > 1e-2 and p.initial_loss > 1e-2),
    steps=st.integers(20, 500),
    momentum=st.sampled_from([0.0, 0.9]),
)
def test_more_freedom_never_hurts(problem, steps, momentum):
    budget = theory.StepBudget(steps)
    settings_ = {"batch_size": 3, "momentum": momentum}
    try:
        coupled = theory.optimal_learning_rate(problem, budget, **settings_)
    except ValueError:  # noise so strong that standing still is best
        return
    loss = theory.expected_loss(problem, theory.half_then_decay(steps), learning_rate=coupled, **settings_)
    pair = theory.optimal_initial_final(problem, budget, **settings_)
    assert pair.loss <= loss * (1 + 1e-6) + 1e-5 * problem.initial_loss
    schedule = theory.initial_to_final(steps, float(pair.initial), float(pair.final))
    assert theory.expected_loss(problem, schedule, learning_rate=1.0, **settings_) == pytest.approx(pair.loss, rel=1e-9)
    staircase = theory.optimal_schedule(problem, budget, **settings_, segments=20)
    found = theory.expected_loss(problem, staircase, learning_rate=1.0, **settings_)
    flat = theory.optimal_learning_rate(problem, budget, **settings_, schedule=theory.constant)
    constant = theory.expected_loss(problem, theory.constant(steps), learning_rate=flat, **settings_)
    assert found <= constant * (1 + 1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_pair_is_a_minimum_of_both_at_once(momentum):
    """Against a dense grid of pairs around it, and a simplex from elsewhere."""
    problem, budget = theory.power_law(30), theory.StepBudget(1000)
    best = theory.optimal_initial_final(problem, budget, batch_size=16, momentum=momentum)

    def loss(logs):
        schedule = theory.initial_to_final(1000, *np.exp(logs))
        return float(theory.expected_loss(problem, schedule, learning_rate=1.0, batch_size=16, momentum=momentum))

    around = [
        loss(np.log([best.initial * a, best.final * b]))
        for a in (0.5, 0.9, 1.1, 2.0)
        for b in (0.2, 0.8, 1.0, 1.2, 5.0)
    ]
    assert min(around) > best.loss
    other = minimize(loss, np.log([best.initial / 3, best.initial / 10]), method="Nelder-Mead")
    assert best.loss <= other.fun * (1 + 1e-6)


def test_minimum_hidden_between_the_points_of_a_scan_is_found():
    def bumpy(x):
        return (1 + 0.2 * x**2) * (1.02 + np.cos(12 * x) * np.exp(-((x / 2) ** 2)))

    dense = np.linspace(-3, 3, 400_001)
    assert bumpy(np.array([minimise_on_log_scale(bumpy, start=1.3)])) <= bumpy(dense).min() * 1.001


def test_unlimited_budget_asks_for_the_fewest_steps():
    problem = theory.power_law(50)
    target = 0.2
    rate = float(theory.optimal_learning_rate(problem, theory.UnlimitedBudget(target), batch_size=32))
    table = theory.regimes(problem, theory.UnlimitedBudget(target), batch_sizes=[8, 32], momentum=0.0)
    steps = theory.steps_to_target(problem, target, learning_rate=rate * np.geomspace(0.1, 3, 300), batch_size=32)
    assert float(table.steps.sel(batch_size=32).item()) <= steps.min()
    assert float(table.loss.sel(batch_size=32).item()) <= target
    assert float(table.learning_rate.sel(batch_size=32).item()) == rate


def test_unlimited_budget_of_noisy_sgd_scales_linearly():
    table = theory.regimes(
        theory.power_law(50), theory.UnlimitedBudget(0.02), batch_sizes=2.0 ** np.arange(0, 4), momentum=0.0
    )
    assert float(table.linear_scaling_exponent.item()) == pytest.approx(1, abs=0.02)


def test_target_out_of_reach_has_no_optimum():
    """In a flat direction with noise nothing is lost, but a mode that cannot fall below the target never will."""
    problem = theory.NoisyQuadratic([1.0], 0.0)
    with pytest.raises(ValueError, match="target"):
        theory.UnlimitedBudget(0.0)
    with pytest.raises(ValueError, match="fixes the number of steps"):
        theory.predict_sweep(problem, theory.UnlimitedBudget(0.1), batch_sizes=[1], effective_learning_rates=[1.0])
    with pytest.raises(ValueError, match="none with an UnlimitedBudget"):
        theory.optimal_learning_rate(problem, theory.UnlimitedBudget(0.1), batch_size=1, schedule=theory.constant)


def test_a_problem_at_its_minimum_is_best_left_alone():
    problem, budget = theory.NoisyQuadratic([1.0], 1.0, 0.0, 0.0), theory.StepBudget(10)
    assert theory.optimal_learning_rate(problem, budget, batch_size=1) == 0
    assert theory.optimal_initial_final(problem, budget, batch_size=1) == (0, 0, 0)
    assert not theory.optimal_schedule(problem, budget, batch_size=1, segments=2).multipliers.any()


def test_noise_that_nothing_can_be_gained_against_is_refused():
    problem, budget = theory.NoisyQuadratic([1.0], 1e12), theory.StepBudget(10)
    for best in (theory.optimal_learning_rate, theory.optimal_initial_final, theory.optimal_schedule):
        with pytest.raises(ValueError, match="noise: expected a problem that some learning rate improves"):
            best(problem, budget, batch_size=1)


def test_bad_requests_for_schedules_are_refused():
    problem, budget = theory.power_law(3), theory.StepBudget(4)
    with pytest.raises(ValueError, match="at most one per step"):
        theory.optimal_schedule(problem, budget, batch_size=1, segments=5)
    with pytest.raises(ValueError, match="batch_size: expected a single number"):
        theory.optimal_schedule(problem, budget, batch_size=[1, 2])
    with pytest.raises(ValueError, match="budget: expected"):
        theory.optimal_initial_final(problem, 4, batch_size=1)
