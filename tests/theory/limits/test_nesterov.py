"""What Nesterov's step settles at and where it diverges, against long runs and the explicit moment map."""

import numpy as np
import pytest

from noisysgd import theory

FULL = theory.NoisyQuadratic([1.0, 0.4, 0.05], np.eye(3) + 0.3)
REGRESSION = theory.LeastSquares([1.0, 0.4, 0.05], 0.3, weights=[1, 2, 5])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.97])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_the_stationary_state_is_what_long_runs_end_in(momentum, share):
    for problem, steps in ((FULL, 10**6), (REGRESSION, 20_000)):
        rate = share * theory.critical_learning_rate(problem, 3, momentum, nesterov=True)
        settings = {"learning_rate": rate, "batch_size": 3, "momentum": momentum, "nesterov": True}
        if problem is REGRESSION and (share == 0.01 or momentum == 0.99):
            continue  # twenty thousand steps are not enough there
        loss = theory.expected_loss(problem, theory.constant(steps), **settings)
        assert theory.stationary_loss(problem, **settings) == pytest.approx(loss, rel=1e-9)
    long_run = theory.covariance(FULL, theory.constant(10**6), **(settings | {"learning_rate": 0.5 * rate}))
    settled = theory.stationary_covariance(FULL, **(settings | {"learning_rate": 0.5 * rate}))
    np.testing.assert_allclose(settled, long_run, rtol=1e-9)


@pytest.mark.parametrize("problem", [FULL, REGRESSION, theory.LeastSquares([1.0, 0.3], kurtosis=1.0)])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("batch_size", [1, 16, np.inf])
def test_the_moment_map_has_radius_one_at_the_edge(problem, momentum, batch_size):
    edge = theory.critical_learning_rate(problem, batch_size, momentum, nesterov=True)
    rates = edge * np.array([0.98, 1.0, 1.02])
    settings = {"batch_size": batch_size, "momentum": momentum, "nesterov": True}
    radius = theory.spectral_radius(problem, learning_rate=rates, **settings)
    assert radius[0] < 1.0 < radius[2]
    assert radius[1] == pytest.approx(1.0, abs=1e-6)


def test_the_edge_of_additive_noise_is_known_in_closed_form():
    momentum = np.array([0.0, 0.5, 0.9])
    edge = theory.critical_learning_rate(FULL, momentum=momentum, nesterov=True)
    np.testing.assert_allclose(edge, 2 * (1 + momentum) / (1 + 2 * momentum))


def test_slow_modes_know_the_temperature_alone():
    problem = theory.NoisyQuadratic([1.0, 0.5], [0.3, 0.2])
    settings = {"learning_rate": 1e-6, "batch_size": 2, "momentum": 0.9}
    heavy_ball = theory.stationary_loss(problem, **settings)
    assert theory.stationary_loss(problem, **settings, nesterov=True) == pytest.approx(heavy_ball, rel=1e-4)


def test_no_momentum_is_plain_descent():
    settings = {"learning_rate": 0.7, "batch_size": 2}
    plain = theory.stationary_covariance(FULL, **settings)
    np.testing.assert_allclose(theory.stationary_covariance(FULL, **settings, nesterov=True), plain, rtol=1e-13)
