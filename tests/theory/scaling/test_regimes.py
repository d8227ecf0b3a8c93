"""Critical and optimal learning rates, and the two regimes between them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory import testing


@settings(max_examples=30)
@given(problem=testing.problems(full_noise=False), momentum=st.sampled_from([0.0, 0.5, 0.9]))
def test_loss_stays_bounded_below_the_critical_learning_rate_and_grows_beyond(problem, momentum):
    kicked = theory.NoisyQuadratic(problem.eigenvalues, 0.0, initial_mean=1.0)
    critical = float(theory.critical_learning_rate(problem, momentum=momentum))
    long = theory.constant(20_000)
    start = float(kicked.initial_loss)
    below, beyond = theory.expected_loss(
        kicked, long, learning_rate=[critical * 0.99, critical * 1.01], batch_size=1, momentum=momentum
    )
    assert below < start
    assert beyond > 10 * start


def test_critical_learning_rate_in_effective_units_is_19_times_larger_at_momentum_09():
    rates = theory.critical_learning_rate(theory.power_law(5), momentum=[0.0, 0.9])
    effective = theory.effective_learning_rate(rates, [0.0, 0.9])
    assert effective[1] / effective[0] == pytest.approx(19)


def beaten_by(problem, steps, family, **arguments):
    """The optimal learning rate's loss, and the best of 3000 others over four decades around it that are no needles."""
    rate = float(theory.optimal_learning_rate(problem, theory.StepBudget(steps), schedule=family, **arguments))
    grid = rate * np.geomspace(1e-2, 1e2, 3001)
    if family is not theory.constant:
        # Beyond, a drop that lands on ελ = 1 makes minima too narrow for any grid to be sure of.
        grid = grid[grid < theory.critical_learning_rate(problem, momentum=arguments["momentum"])]
    best, *others = theory.expected_loss(problem, family(steps), learning_rate=[rate, *grid], **arguments)
    if len(others) < 10:
        return best, np.inf
    # Four points are 1.2 %: as good as a neighbour that far away, on one side at least.
    losses = np.array(others)
    return best, np.maximum(losses[4:-4], np.minimum(losses[8:], losses[:-8])).min()


families = st.sampled_from([theory.constant, theory.half_then_decay])


@settings(max_examples=25)
@given(
    problem=testing.problems(full_noise=False).filter(lambda p: (p.eigenvalues * p.initial_second_moment).max() > 1e-3),
    steps=st.integers(1, 300),
    batch_size=st.sampled_from([1, 30, np.inf]),
    family=families,
)
def test_no_learning_rate_of_a_fine_grid_beats_the_optimal_one(problem, steps, batch_size, family):
    best, other = beaten_by(problem, steps, family, batch_size=batch_size, momentum=0.0)
    # Without noise a loss can have exact zeros; a thousandth beside one, it is only small against where it began.
    assert best <= other * (1 + 1e-5) + 1e-6 * problem.initial_loss


@settings(max_examples=25)
@given(
    problem=testing.problems(full_noise=False).filter(lambda p: (p.eigenvalues * p.initial_second_moment).max() > 1e-3),
    steps=st.integers(1, 300),
    batch_size=st.sampled_from([1, 30]),
    family=families,
)
def test_nor_with_momentum(problem, steps, batch_size, family):
    """With noise in every mode: without it, modes that oscillate through zero together make ever finer needles."""
    noisy = theory.NoisyQuadratic(
        problem.eigenvalues, problem.noise + 1.0, problem.initial_mean, problem.initial_variance
    )
    best, other = beaten_by(noisy, steps, family, batch_size=batch_size, momentum=0.9)
    assert best <= 1.05 * other + 1e-3 * problem.initial_loss


def test_optimal_rate_of_one_step_is_the_closed_form():
    """One SGD step: ε = Σ λ² E θ² / Σ λ (λ² E θ² + F/B)."""
    problem = theory.NoisyQuadratic([1.0, 0.3], [2.0, 1.0], initial_mean=[1.0, 2.0], initial_variance=0.0)
    lam, second, noise = problem.eigenvalues, problem.initial_second_moment, problem.noise / 4
    expected = (lam**2 * second).sum() / (lam * (lam**2 * second + noise)).sum()
    found = theory.optimal_learning_rate(
        problem, theory.StepBudget(1), batch_size=4, schedule=lambda steps: theory.constant(steps)
    )
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_a_problem_at_its_minimum_is_left_alone():
    problem = theory.NoisyQuadratic([1.0], 1.0, initial_variance=0.0)
    assert theory.optimal_learning_rate(problem, theory.StepBudget(10), batch_size=1) == 0.0


def test_the_papers_figure_1c():
    """Linear scaling and equal optima at small batches; at large ones a plateau, and momentum far above it."""
    budget = theory.EpochBudget(epochs=20, dataset_size=4096)
    sizes = 2.0 ** np.arange(0, 13)
    table = theory.regimes(theory.power_law(64), budget, batch_sizes=sizes)
    effective = table.effective_learning_rate
    np.testing.assert_allclose(np.diff(np.log2(effective[0, :6])), 1, atol=0.03)
    np.testing.assert_allclose(effective[1, :4], effective[0, :4], rtol=0.05)
    assert effective[0, -3:].max() < 1.5 * effective[0, -3:].min()
    assert effective[1, -1] > 5 * effective[0, -1]
    assert (table.regime[:, 0] == "noise dominated").all()
    assert (table.regime[:, -1] == "curvature dominated").all()
    assert table.boundary_batch_size[1] > 3 * table.boundary_batch_size[0]


def test_regimes_are_on_either_side_of_the_boundary():
    budget = theory.EpochBudget(epochs=20, dataset_size=4096)
    table = theory.regimes(theory.power_law(20), budget, batch_sizes=2.0 ** np.arange(13), momentum=0.0).squeeze()
    noisy = table.batch_size.values[table.regime.values == "noise dominated"]
    curved = table.batch_size.values[table.regime.values == "curvature dominated"]
    assert noisy.max() < float(table.boundary_batch_size) < curved.min()


def test_budget_brings_the_finite_population_with_it():
    budget = theory.EpochBudget(epochs=5, dataset_size=256)
    problem = theory.power_law(8)
    with_n = theory.optimal_learning_rate(problem.with_dataset_size(256), budget, batch_size=[128, 256])
    np.testing.assert_array_equal(theory.optimal_learning_rate(problem, budget, batch_size=[128, 256]), with_n)
    with pytest.raises(ValueError, match="data set of 100 examples"):
        theory.optimal_learning_rate(problem.with_dataset_size(100), budget, batch_size=10)


def test_optima_held_down_by_an_instability_that_noise_makes_have_a_label_of_their_own():
    """Least squares of 100 equal modes: the edge of small batches is 2B/(101 + B), far below the 2 of curvature."""
    problem = theory.LeastSquares([1.0], label_noise=0.0, weights=100)
    sizes = np.array([1.0, 4.0, 16.0, 10_000.0])
    table = theory.regimes(problem, theory.StepBudget(30), batch_sizes=sizes, momentum=0.0, schedule=theory.constant)
    table = table.squeeze("momentum")
    np.testing.assert_allclose(table.stability_edge, 2 * sizes / (101 + sizes), rtol=1e-12)
    # Without label noise every mode shrinks by 1 − 2ε + ε²(101 + B)/B a step: fastest at exactly half of the edge.
    np.testing.assert_allclose(table.learning_rate / table.stability_edge, 0.5, rtol=2e-3)
    noisy = theory.LeastSquares([1.0, 0.01], label_noise=0.0, weights=[10, 10])
    table = theory.regimes(noisy, theory.StepBudget(3000), batch_sizes=[1, 2, 10_000], momentum=0.0).squeeze()
    assert (table.learning_rate / table.stability_edge > 0.9)[:2].all()
    assert table.regime.values.tolist() == ["noise instability"] * 2 + ["curvature dominated"]
    assert float(table.critical_learning_rate) == float(theory.critical_learning_rate(noisy))
    np.testing.assert_array_equal(table.stability_edge, theory.critical_learning_rate(noisy, [1, 2, 10_000]))


def test_label_noise_keeps_least_squares_below_the_edge_and_noise_dominated():
    problem = theory.LeastSquares([1.0, 0.01], label_noise=100.0)
    table = theory.regimes(problem, theory.StepBudget(300), batch_sizes=[1, 2], momentum=0.0)
    assert (table.learning_rate < 0.5 * table.stability_edge).all()
    assert (table.regime == "noise dominated").all()


def test_additive_noise_moves_no_edge():
    table = theory.regimes(theory.power_law(5), theory.StepBudget(50), batch_sizes=[1, 64])
    assert (table.stability_edge == table.critical_learning_rate).all()
    assert "noise instability" not in table.regime.values


def test_a_corner_that_batch_sizes_do_not_reach_is_not_reported():
    problem, budget = theory.power_law(20), theory.EpochBudget(epochs=20, dataset_size=4096)
    small = theory.regimes(problem, budget, batch_sizes=[1, 2, 4, 8], momentum=0.0)
    assert np.isnan([small.sharpness.item(), small.corner_batch_size.item()]).all()
    whole = theory.regimes(problem, budget, batch_sizes=2.0 ** np.arange(13), momentum=0.0)
    assert 1 < whole.corner_batch_size.item() < 4096
    assert whole.sharpness.item() > 0.125


def test_nesterov_and_heavy_ball_differ_where_curvature_dominates_only():
    budget = theory.EpochBudget(epochs=20, dataset_size=4096)
    problem = theory.power_law(20).with_dataset_size(4096)
    settings = {"batch_sizes": [1, 2, 1024, 4096], "momentum": 0.9}
    heavy_ball = theory.regimes(problem, budget, **settings)
    nesterov = theory.regimes(problem, budget, **settings, nesterov=True)
    ratio = (nesterov.learning_rate / heavy_ball.learning_rate).values.ravel()
    np.testing.assert_allclose(ratio[:2], 1.0, rtol=0.02)
    assert nesterov.critical_learning_rate.item() == pytest.approx(2 * 1.9 / 2.8)
    # No better rate of a fine grid, at every batch size.
    rates = float(nesterov.critical_learning_rate.item()) * np.geomspace(1e-4, 1.2, 2000)
    for size, loss in zip(settings["batch_sizes"], nesterov.loss.values.ravel(), strict=True):
        steps = int(budget.steps(size))
        curve = theory.expected_loss(
            problem, theory.half_then_decay(steps), learning_rate=rates, batch_size=size, momentum=0.9, nesterov=True
        )
        assert loss <= curve.min() * 1.01
    with pytest.raises(ValueError, match="nesterov: expected False with an UnlimitedBudget"):
        theory.regimes(problem, theory.UnlimitedBudget(0.1), **settings, nesterov=True)
