"""The table of one mode: nearly the losses of all, and searches that use it find what searches without it find."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory.optima import fewer_modes, minimise
from noisysgd.theory.optima.mode_table import rough_losses


def random_run(rng):
    """A problem of up to six modes with oscillations that are alive at the end, and how it is run."""
    dim = rng.integers(1, 7)
    problem = theory.NoisyQuadratic(
        10 ** rng.uniform(-3, 0.5, dim),
        10 ** rng.uniform(-4, 0, dim) * (rng.random(dim) < 0.7),
        initial_variance=10 ** rng.uniform(-1, 1, dim),
        dataset_size=10_000,
        weights=rng.integers(1, 4, dim),
    )
    momentum = float(rng.choice([0.9, 0.97, 0.99]))
    steps = int(rng.uniform(41, 19 / (1 - momentum)))
    return problem, {"batch_size": 10 ** rng.uniform(0, 3), "momentum": momentum}, steps


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_rough_losses_are_nearly_the_losses(seed):
    problem, run, steps = random_run(np.random.default_rng(seed))
    schedule = theory.half_then_decay(steps)

    def losses(modes, log_rates):
        return theory.expected_loss(modes, schedule, learning_rate=np.exp(log_rates), **run)

    edge = float(np.log(theory.critical_learning_rate(problem, **run)))
    rates = minimise.waves(edge, run["momentum"], steps)
    rates = rates[rates < edge]
    # Beside the envelope of a mode: a dip of it has fewer digits.
    allowed = 0.02 * losses(problem, rates) + 1e-2 * 0.99**steps * problem.initial_loss
    assert np.all(np.abs(rough_losses(problem, losses)(rates) - losses(problem, rates)) <= allowed)


def test_modes_that_are_coupled_have_no_table():
    assert rough_losses(theory.LeastSquares([1.0, 0.5], 0.1), lambda modes, rates: rates) is None


@pytest.mark.parametrize("seed", range(12))
def test_a_search_finds_the_same_without_it(monkeypatch, seed):
    problem, run, steps = random_run(np.random.default_rng(seed))
    with_table = theory.optimal_learning_rate(problem, theory.StepBudget(steps), **run)
    monkeypatch.setattr(fewer_modes, "rough_losses", lambda problem, losses: None)
    without = theory.optimal_learning_rate(problem, theory.StepBudget(steps), **run)
    np.testing.assert_allclose(with_table, without, rtol=2e-3)


def test_rough_values_that_are_wrong_are_not_believed():
    """Valleys of which a function that is wrong by a factor knows nothing are found all the same."""

    def valleys(x):
        return 2.0 + (x / 4) ** 2 - np.exp(-(((x - 0.35) / 0.01) ** 2))

    also = np.arange(-1.0, 1.0, 0.002)
    kwargs = {"start": 0.0, "also": also}
    for rough in (None, lambda x: 1.5 * (2.0 + (x / 4) ** 2), valleys):
        assert minimise.minimise_on_log_scale(valleys, rough=rough, **kwargs) == pytest.approx(0.35, abs=2e-3)
