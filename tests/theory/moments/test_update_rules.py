"""Nesterov's step, penalties and averages, against the sum over all gradients that each iterate is made of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory


def iterates(problem, schedule, *, learning_rate, momentum, nesterov, l2, steps):
    """θ after each of `steps` updates in every mode, as coefficients of θ₀, the noise of every step, and 1."""
    curvature = problem.eigenvalues[:, None] + (l2.strength if l2 else 0.0)
    pull = l2.strength * l2.place(problem) if l2 else np.zeros(problem.dim)
    theta, u = np.zeros((2, problem.dim, steps + 2))
    theta[:, 0] = 1.0
    history = []
    for step in range(steps):
        gradient = curvature * theta
        gradient[:, 1 + step] += 1.0
        gradient[:, -1] -= pull
        u = momentum * u + gradient
        theta = theta - learning_rate * schedule.at(step) * (gradient + momentum * u if nesterov else u)
        history.append(theta)
    return np.array(history)


def averaged(history, tail):
    """The mean of the last ⌈tail · n⌉ of n iterates; the last one without a tail."""
    return history[-max(1, int(np.ceil(round(tail * len(history), 6)))) :].mean(axis=0)


def moments(problem, coefficients, batch_size):
    """Mean and covariance of the parameters that have the given coefficients, under additive noise."""
    start, noise, shift = coefficients[:, 0], coefficients[:, 1:-1], coefficients[:, -1]
    covariance = problem.noise if problem.noise.ndim == 2 else np.diag(problem.noise)
    covariance = covariance * problem.noise_factor(batch_size) * (noise @ noise.T)
    return start * problem.initial_mean + shift, covariance + np.diag(start**2 * problem.initial_variance)


ADDITIVE = theory.NoisyQuadratic([1.0, 0.1, 2.2], [1.0, 0.1, 0.3], initial_mean=[1.0, 0.0, 2.0])
CORRELATED = theory.NoisyQuadratic(
    [1.0, 0.1, 2.2], [[1.0, 0.2, 0.1], [0.2, 0.1, 0.0], [0.1, 0.0, 0.3]], [1.0, 0.0, 2.0]
)
SCHEDULE = theory.piecewise([37, 21, 5], [1.0, 0.5, 0.0])
PENALTY = theory.L2(0.3, [1.0, 2.0, -1.0])


@pytest.mark.parametrize("tail", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("l2", [None, PENALTY], ids=["free", "penalty"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(
    "learning_rate", [0.3, 0.9, 1.2]
)  # ελ on both sides of 1, where Nesterov's momentum is negative
def test_losses_are_those_of_the_sum_over_gradients(learning_rate, momentum, nesterov, l2, tail):
    settings = {"learning_rate": learning_rate, "momentum": momentum, "nesterov": nesterov, "l2": l2}
    at = [1, 2, 40, 63]
    given = {"batch_size": 4, "tail": tail, "at": at}
    free = theory.loss_curve(ADDITIVE, SCHEDULE, **settings, **given)
    penalized = theory.loss_curve(ADDITIVE, SCHEDULE, **settings, **given, penalized=True)
    history = iterates(ADDITIVE, SCHEDULE, **settings, steps=63)
    for place, steps in enumerate(at):
        coefficients = averaged(history[:steps, :, :], tail)
        mean, covariance = moments(ADDITIVE, coefficients, 4)
        square = mean**2 + np.diag(covariance)
        assert free[place] == pytest.approx(0.5 * ADDITIVE.eigenvalues @ square, rel=1e-10)
        away = (mean - PENALTY.origin) ** 2 + np.diag(covariance)
        penalty = 0.5 * PENALTY.strength * away.sum() if l2 else 0.0
        assert penalized[place] == pytest.approx(free[place] + penalty, rel=1e-10)


@pytest.mark.parametrize("tail", [0.0, 0.5])
@pytest.mark.parametrize("l2", [None, PENALTY], ids=["free", "penalty"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("problem", [ADDITIVE, CORRELATED], ids=["diagonal", "full"])
def test_means_and_covariances_are_those_of_the_sum_over_gradients(problem, nesterov, l2, tail):
    settings = {"learning_rate": 0.7, "momentum": 0.8, "nesterov": nesterov, "l2": l2}
    at = [0, 3, 50]
    covariances = theory.covariance(problem, SCHEDULE, **settings, batch_size=4, tail=tail, at=at)
    means = theory.expected_parameters(problem, SCHEDULE, **settings, tail=tail, at=at)
    history = iterates(problem, SCHEDULE, **settings, steps=50)
    np.testing.assert_array_equal(means[0], problem.initial_mean)
    np.testing.assert_array_equal(covariances[0], np.diag(problem.initial_variance))
    for place, steps in enumerate(at[1:], start=1):
        mean, covariance = moments(problem, averaged(history[:steps], tail), 4)
        np.testing.assert_allclose(means[place], mean, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(covariances[place], covariance, rtol=1e-10, atol=1e-13)


def least_squares_moments(problem, schedule, *, learning_rate, batch_size, momentum, nesterov, l2, tail, steps):
    """E zzᵀ of z = (θ, u, sum of the last θ, 1) in every mode, (D, 4, 4), step by step with explicit matrices."""
    mu = l2.strength if l2 else 0.0
    origin = l2.place(problem) if l2 else np.zeros(problem.dim)
    count = max(1, int(np.ceil(round(tail * steps, 6))))
    state = np.zeros((problem.dim, 4, 4))
    state[:, 0, 0], state[:, 3, 3] = problem.initial_second_moment, 1.0
    state[:, 0, 3] = state[:, 3, 0] = problem.initial_mean
    for step in range(steps):
        rate = learning_rate * float(schedule.at(step))
        loss = (problem.weights * problem.eigenvalues * state[:, 0, 0]).sum()
        new = np.empty_like(state)
        for i, lam in enumerate(problem.eigenvalues):
            own = (problem.kurtosis - 2.0) * lam * state[i, 0, 0]
            noise = problem.noise_factor(batch_size) * lam * (loss + problem.label_noise + own)
            gradient = np.array([lam + mu, 0.0, 0.0, -mu * origin[i]])
            velocity = gradient + np.array([0.0, momentum, 0.0, 0.0])
            move, kick = (gradient + momentum * velocity, 1.0 + momentum) if nesterov else (velocity, 1.0)
            theta = np.array([1.0, 0.0, 0.0, 0.0]) - rate * move
            counts = step >= steps - count
            summed = np.array([0.0, 0.0, 1.0, 0.0]) + (theta if counts else 0.0)
            matrix = np.stack([theta, velocity, summed, [0.0, 0.0, 0.0, 1.0]])
            push = np.array([-rate * kick, 1.0, -rate * kick if counts else 0.0, 0.0])
            new[i] = matrix @ state[i] @ matrix.T + noise * np.outer(push, push)
        state = new
    return state[:, 2, 2] / count**2, state[:, 2, 3] / count


@pytest.mark.parametrize("tail", [0.0, 0.3])
@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_least_squares_is_followed_with_noise_that_sees_the_penalty(momentum, nesterov, penalty, tail):
    weights = [1, 3, 1, 1]
    problem = theory.LeastSquares([1.0, 0.1, 0.0, 2.0], 0.3, initial_mean=[1.0, 0.0, 0.4, 2.0], weights=weights)
    l2 = theory.L2(0.3, [1.0, 2.0, -1.0, 0.4]) if penalty else None
    settings = {"learning_rate": 0.2, "momentum": momentum, "nesterov": nesterov, "l2": l2, "tail": tail}
    second, mean = least_squares_moments(problem, SCHEDULE, **settings, batch_size=4, steps=45)
    loss = theory.loss_curve(problem, SCHEDULE, **settings, batch_size=4, at=45)
    assert loss == pytest.approx(0.5 * (problem.weights * problem.eigenvalues) @ second, rel=1e-11)
    np.testing.assert_allclose(theory.expected_parameters(problem, SCHEDULE, **settings, at=45), mean, atol=1e-12)
    if l2 is None:
        covariance = theory.covariance(problem, SCHEDULE, **settings, batch_size=4, at=45)
        np.testing.assert_allclose(np.diag(covariance), second - mean**2, atol=1e-12)
        # Correlations against the enumeration of one step: the mean of ξᵢξⱼ is γ λᵢ λⱼ θᵢθⱼ.
        first = theory.covariance(problem, theory.constant(1), **settings, batch_size=4)
        kick = 0.2 * (1.0 + momentum if nesterov else 1.0)
        lam, theta = problem.eigenvalues, problem.initial_mean
        assert first[0, 3] == pytest.approx(kick**2 / 4 * lam[0] * lam[3] * theta[0] * theta[3], rel=1e-12)


@given(
    st.floats(1e-8, 1.9),
    st.floats(0.0, 0.999),
    st.integers(1, 5000),
    st.floats(0.0, 1.0),
)
def test_many_steps_of_nesterov_at_once_are_single_steps(x, momentum, steps, tail):
    # Up to and beyond the edge of stability 2(1+m)/(1+2m), in one mode.
    edge = 2.0 * (1.0 + momentum) / (1.0 + 2.0 * momentum)
    rate = x / 2.0 * edge * 1.05
    problem = theory.NoisyQuadratic([1.0], 1.0, initial_mean=1.0, initial_variance=0.0)
    at = np.unique([1, max(1, steps // 3), steps])
    settings = {"learning_rate": rate, "batch_size": 2, "momentum": momentum, "nesterov": True}
    curve = theory.loss_curve(problem, theory.constant(steps), **settings, at=at)
    expected = {}
    matrix = np.array([[1 - rate * (1 + momentum), -rate * momentum**2], [1.0, momentum]])
    push = np.array([-rate * (1 + momentum), 1.0])
    state, mean = np.zeros((2, 2)), np.array([1.0, 0.0])
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(1, steps + 1):
            state = matrix @ state @ matrix.T + 0.5 * np.outer(push, push)
            mean = matrix @ mean
            expected[step] = 0.5 * (state[0, 0] + mean[0] ** 2)
    for value, step in zip(curve, at, strict=True):
        if expected[step] < 1e290:
            assert value == pytest.approx(expected[step], rel=1e-8)


def test_a_tail_of_one_is_the_mean_of_all_iterates_and_a_short_one_is_the_last():
    settings = {"learning_rate": 0.5, "batch_size": 4, "momentum": 0.5}
    last = theory.expected_loss(ADDITIVE, theory.constant(50), **settings)
    assert theory.expected_loss(ADDITIVE, theory.constant(50), **settings, tail=0.001) == pytest.approx(last, rel=1e-12)
    # The variance of a long mean falls like 1/n: Polyak and Ruppert's tr(H⁻¹F)/(2Bn), whatever the learning rate.
    problem = theory.NoisyQuadratic([1.0, 0.25], [0.5, 0.5], initial_variance=0.0)
    for nesterov in (False, True):
        loss = theory.expected_loss(problem, theory.constant(10**6), **settings, tail=1.0, nesterov=nesterov)
        assert loss == pytest.approx(0.5 * (0.5 / 1.0 + 0.5 / 0.25) / (4 * 10**6), rel=1e-4)


def test_a_penalty_moves_the_stationary_point_between_minimum_and_origin():
    settings = {"learning_rate": 0.2, "batch_size": np.inf, "l2": PENALTY}
    mean = theory.expected_parameters(ADDITIVE, theory.constant(5000), learning_rate=0.2, l2=PENALTY)
    # The minimum of ½ Σ λθ² + ½ μ Σ (θ−o)², by its normal equations.
    solved = np.linalg.solve(np.diag(ADDITIVE.eigenvalues) + 0.3 * np.eye(3), 0.3 * PENALTY.origin)
    np.testing.assert_allclose(mean, solved, rtol=1e-12)
    free = theory.expected_loss(ADDITIVE, theory.constant(5000), **settings)
    assert free == pytest.approx(0.5 * ADDITIVE.eigenvalues @ solved**2, rel=1e-12)


def test_preconditioning_any_optimizer_is_a_change_of_variables():
    scale = np.array([0.5, 3.0, 0.2])
    changed = ADDITIVE.precondition(diagonal=scale)
    settings = {"batch_size": 4, "momentum": 0.9, "nesterov": True, "at": 20}
    loss = theory.loss_curve(changed, SCHEDULE, learning_rate=0.4, **settings)
    # Mode by mode: descent along p ĝ is a learning rate of p ε.
    parts = 0.0
    for i, p in enumerate(scale):
        one = theory.NoisyQuadratic(
            [ADDITIVE.eigenvalues[i]], ADDITIVE.noise[i], ADDITIVE.initial_mean[i], ADDITIVE.initial_variance[i]
        )
        parts += theory.loss_curve(one, SCHEDULE, learning_rate=0.4 * p, **settings)
    assert loss == pytest.approx(parts, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nesterov": 1}, "nesterov: expected True or False"),
        ({"l2": 0.1}, r"Pass theory\.L2"),
        ({"tail": 1.5}, "share of the steps"),
        ({"tail": 0.5, "averaging": 0.9}, "averaging: expected 0 beside tail"),
        ({"penalized": "yes"}, "penalized"),
        ({"l2": theory.L2(0.1, [1.0, 2.0])}, r"l2\.origin"),
    ],
)
def test_impossible_rules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        theory.expected_loss(ADDITIVE, SCHEDULE, learning_rate=0.1, batch_size=1, momentum=0.5, **options)


def test_a_penalty_on_least_squares_has_no_covariance():
    problem = theory.LeastSquares([1.0, 0.5])
    with pytest.raises(ValueError, match="exact losses and means only"):
        theory.covariance(problem, SCHEDULE, learning_rate=0.1, batch_size=1, l2=theory.L2(0.1, 1.0))
