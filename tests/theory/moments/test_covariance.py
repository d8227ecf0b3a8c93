"""Covariances, means and iterate averages against step loops, extended precision, enumeration and closed forms."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory import testing
from noisysgd.theory.moments.parameter_moments import covariance, expected_parameters

mpmath = pytest.importorskip("mpmath")

SCHEDULE = theory.half_then_decay(60)


def averages():
    return st.one_of(st.just(0.0), st.floats(0.01, 0.9999))


def full_problem(dim, seed=0, **changes):
    """Noise that does not commute with the curvature, and a start that is neither centred nor isotropic."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(dim, dim))
    noise = factor @ factor.T / dim
    start = {"initial_mean": rng.normal(size=dim), "initial_variance": rng.uniform(size=dim)}
    return theory.NoisyQuadratic(1.0 / np.arange(1, dim + 1), (noise + noise.T) / 2, **(start | changes))


def loop_over_steps(problem, schedule, rate, batch_size, momentum, averaging):
    """Means (T, D) and covariances (T, D, D) of θ̄ after 0, 1, … steps, from all of (θ, u, θ̄) in long double.

    Also the scales (T, D) of the variances: the largest of those of θ, εu and θ̄. Where an oscillation passes through
    zero, a variance is a small difference, known to no more digits than that.
    """
    dim = problem.dim
    curvature = np.diag(problem.eigenvalues).astype(np.longdouble)
    identity, zero = np.eye(dim, dtype=np.longdouble), np.zeros((dim, dim), dtype=np.longdouble)
    noise = problem.noise if problem.noise.ndim == 2 else np.diag(problem.noise)
    noise = noise * np.longdouble(problem.noise_factor(batch_size))
    momentum, averaging = np.longdouble(momentum), np.longdouble(averaging)
    spread = np.diag(problem.initial_variance).astype(np.longdouble)
    state = np.block([[spread, zero, spread], [zero, zero, zero], [spread, zero, spread]])
    mean = np.concatenate([problem.initial_mean, np.zeros(dim), problem.initial_mean]).astype(np.longdouble)
    means, covariances, scales = [mean[2 * dim :]], [spread], [problem.initial_variance]
    for step in range(schedule.steps):
        eps = np.longdouble(rate) * schedule.at(step)
        velocity = np.hstack([curvature, momentum * identity, zero])
        position = np.hstack([identity, zero, zero]) - eps * velocity
        average = (1 - averaging) * position + np.hstack([zero, zero, averaging * identity])
        update = np.vstack([position, velocity, average])
        kick = np.vstack([-eps * identity, identity, -eps * (1 - averaging) * identity])
        mean = update @ mean
        state = update @ state @ update.T + kick @ noise @ kick.T
        means.append(mean[2 * dim :])
        covariances.append(state[2 * dim :, 2 * dim :])
        theta, u, bar = np.diag(state).reshape(3, dim)
        scales.append(np.max([theta, eps**2 * u, bar], axis=0))
    return np.array(means), np.array(covariances), np.array(scales)


@settings(max_examples=100)
@given(data=st.data(), problem=testing.problems(), schedule=testing.schedules())
def test_covariances_equal_a_loop_over_steps(data, problem, schedule):
    rate = data.draw(testing.learning_rates(problem, high=1.3), label="learning_rate")
    batch_size = data.draw(testing.batch_sizes(), label="batch_size")
    momentum = data.draw(testing.momenta(), label="momentum")
    averaging = data.draw(averages(), label="averaging")
    means, slow, scales = loop_over_steps(problem, schedule, rate, batch_size, momentum, averaging)
    arguments = {"learning_rate": rate, "momentum": momentum, "averaging": averaging}
    # A record cuts the schedule: only sparse ones leave long pieces.
    at = np.arange(0, schedule.steps + 1, data.draw(st.integers(1, schedule.steps), label="stride"))
    largest = np.maximum.accumulate(np.abs(means), axis=0)[at]
    means, slow, scales = means[at], slow[at], scales[at]
    fast = covariance(problem, schedule, batch_size=batch_size, at=at, **arguments)
    variances = np.diagonal(slow, axis1=1, axis2=2)
    tolerance = np.sqrt(1e-10 * variances + 1e-12 * scales + 1e-300)
    assert (np.abs(fast - slow) <= tolerance[:, :, None] * tolerance[:, None, :]).all()
    fast = expected_parameters(problem, schedule, at=at, **arguments)
    assert (np.abs(fast - means) <= 1e-10 * np.abs(means) + 1e-12 * largest + 1e-300).all()


def exact_pair(curvatures, noise, rate, momentum, averaging, count, start):
    """E z_i z_jᵀ of two modes z = (θ, u, θ̄) after `count` steps, by plain squaring, and the powers of both steps."""
    eps, m, beta = map(mpmath.mpf, (rate, momentum, averaging))
    kick = mpmath.matrix([-eps, 1, -eps * (1 - beta)])
    steps, powers = [], []
    for lam in map(mpmath.mpf, curvatures):
        stay = 1 - eps * lam
        step = mpmath.matrix([[stay, -eps * m, 0], [lam, m, 0], [(1 - beta) * stay, -(1 - beta) * eps * m, beta]])
        steps.append(step)
        powers.append(step.copy())
    one = mpmath.mpf(noise) * kick * kick.T
    total = one.copy()
    for digit in bin(count)[3:]:
        total = total + powers[0] * total * powers[1].T
        powers = [power * power for power in powers]
        if digit == "1":
            total = steps[0] * total * steps[1].T + one
            powers = [step * power for step, power in zip(steps, powers, strict=True)]
    spread = mpmath.mpf(start) * mpmath.matrix([[1, 0, 1], [0, 0, 0], [1, 0, 1]])
    return powers[0] * spread * powers[1].T + total, powers


# Learning rates are powers of two: then ε·λ has no rounding error of its own, to which ε at the edge is infinitely
# sensitive, and the comparison sees the algorithm alone.
HARD = {
    "flat": lambda m: 0.0,
    "nearly flat": lambda m: 1e-12,
    "slow": lambda m: 1e-6,
    "lower critical damping": lambda m: (1 - np.sqrt(m)) ** 2,
    "near lower critical damping": lambda m: (1 - np.sqrt(m)) ** 2 * (1 + 1e-9),
    "complex roots": lambda m: 1.25,
    "where roots turn negative": lambda m: 1 + m,
    "upper critical damping": lambda m: (1 + np.sqrt(m)) ** 2,
    "just stable": lambda m: 2 * (1 + m) * (1 - 1e-12),
    "at the edge": lambda m: 2 * (1 + m),
    "just unstable": lambda m: 2 * (1 + m) * (1 + 1e-9),
}


@pytest.mark.parametrize(("start", "noise"), [(1.0, 0.0), (1e-6, 1.0)])
@pytest.mark.parametrize(("averaging", "count"), [(0.0, 10**7), (0.9, 59), (0.9999, 10**7 - 1)])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("place", HARD)
def test_no_digits_are_lost_where_it_is_hard(place, momentum, averaging, count, start, noise):
    rate = 0.25
    curvatures = np.array([float(HARD[place](momentum)), 0.5 if place == "flat" else 1e-9]) / rate
    problem = theory.NoisyQuadratic(
        curvatures, [[noise, noise], [noise, noise]], initial_mean=1.0, initial_variance=start
    )
    arguments = {"learning_rate": rate, "momentum": momentum, "averaging": averaging}
    result = covariance(problem, theory.constant(count), batch_size=1, **arguments)
    means = expected_parameters(problem, theory.constant(count), **arguments)
    with mpmath.workdps(60):
        own, (power, _) = exact_pair(curvatures[[0, 0]], noise, rate, momentum, averaging, count, start)
        other, _ = exact_pair(curvatures[[1, 1]], noise, rate, momentum, averaging, count, start)
        both, _ = exact_pair(curvatures, noise, rate, momentum, averaging, count, 0.0)
        expected = np.array([[own[2, 2], both[2, 2]], [both[2, 2], other[2, 2]]]).astype(np.longdouble)
        mean = float(power[2, 0] + power[2, 2])
    deviations = np.sqrt(np.diag(expected))
    assert (np.abs(result - expected) <= 1e-10 * np.outer(deviations, deviations) + 1e-290).all()
    np.testing.assert_allclose(means[0], mean, rtol=1e-10, atol=1e-290)


def test_a_rate_of_zero_lets_the_average_catch_up_and_the_velocity_rest():
    """θ̄ − θ shrinks by β per step; u forgets with m, so that the last segment starts as if from rest."""
    problem = full_problem(3)
    arguments = {"learning_rate": 0.5, "batch_size": 4, "averaging": [0.0, 0.9]}
    pause = theory.piecewise([20, 1000], [1.0, 0.0])
    before, after = np.moveaxis(covariance(problem, pause, momentum=0.9, at=[20, 1020], **arguments), 1, 0)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(after[1], before[0], rtol=1e-12)
    assert np.abs(before[1] - before[0]).max() > 0.1 * np.abs(before[0]).max()


@settings(max_examples=60)
@given(data=st.data(), problem=testing.problems(), schedule=testing.schedules())
def test_means_and_variances_add_up_to_the_loss(data, problem, schedule):
    rate = data.draw(testing.learning_rates(problem))
    momentum, averaging = data.draw(testing.momenta()), data.draw(averages())
    if problem.noise.ndim == 1:
        weights = data.draw(st.lists(st.floats(0.5, 1e6), min_size=problem.dim, max_size=problem.dim))
        problem = theory.NoisyQuadratic(
            problem.eigenvalues,
            problem.noise,
            problem.initial_mean,
            problem.initial_variance,
            problem.dataset_size,
            weights=weights,
        )
    arguments = {"learning_rate": rate, "momentum": momentum, "averaging": averaging}
    variances = np.diagonal(covariance(problem, schedule, batch_size=16, **arguments))
    means = expected_parameters(problem, schedule, **arguments)
    loss = (problem.weights * problem.eigenvalues * (means**2 + variances)).sum() / 2
    expected = theory.expected_loss(problem, schedule, batch_size=16, **arguments)
    assert abs(loss - expected) <= 1e-10 * expected + 1e-13 * problem.initial_loss


def test_hardly_any_averaging_is_none():
    problem = full_problem(4)
    arguments = {"learning_rate": 0.7, "batch_size": 4, "momentum": [0.0, 0.9]}
    none = covariance(problem, theory.constant(50), **arguments)
    hardly, some = covariance(problem, theory.constant(50), averaging=[[1e-15], [1e-3]], **arguments)
    np.testing.assert_allclose(hardly, none, rtol=1e-12)
    assert (np.abs(some - none) > 1e-5 * np.abs(none)).all()


def test_stationary_average_of_sgd():
    """θ is an AR(1) process of coefficient ρ = 1 − ελ: Var θ̄ / Var θ = (1−β)/(1+β) · (1+βρ)/(1−βρ)."""
    eigenvalues, rate, beta = np.array([1.9, 1.0, 0.5, 0.1]), 1.0, np.array([0.5, 0.9, 0.99])
    problem = theory.NoisyQuadratic(eigenvalues, noise=[1.0, 2.0, 3.0, 4.0])
    schedule = theory.constant(10_000)
    variances = np.diagonal(
        covariance(problem, schedule, learning_rate=rate, batch_size=2, averaging=beta), axis1=1, axis2=2
    )
    rho, beta = 1 - rate * eigenvalues, beta[:, None]
    of_theta = rate**2 * problem.noise / 2 / (1 - rho**2)
    expected = (1 - beta) / (1 + beta) * (1 + beta * rho) / (1 - beta * rho) * of_theta
    np.testing.assert_allclose(variances, expected, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_slower_averaging_lowers_the_stationary_loss(momentum):
    losses = theory.expected_loss(
        theory.power_law(50),
        theory.constant(100_000),
        learning_rate=0.2,
        batch_size=4,
        momentum=momentum,
        averaging=[0.0, 0.5, 0.9, 0.99, 0.999],
    )
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 0.1 * losses[0]


def test_rotating_the_noise_of_an_isotropic_problem_rotates_the_covariance():
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    noise = np.diag([4.0, 1.0, 0.25, 0.0])
    turned = rotation @ noise @ rotation.T
    arguments = {"learning_rate": 0.3, "batch_size": 8, "momentum": 0.9, "averaging": [0.0, 0.9]}
    one = covariance(theory.NoisyQuadratic(np.ones(4), noise), SCHEDULE, **arguments)
    two = covariance(theory.NoisyQuadratic(np.ones(4), (turned + turned.T) / 2), SCHEDULE, **arguments)
    np.testing.assert_allclose(two, rotation @ one @ rotation.T, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_stationary_covariance_solves_its_matrix_equation(momentum):
    """Liu, Ziyin & Ueda 2020, for curvature and noise that do not commute; its left side vanishes for Σ = 0 alone."""
    problem, rate, batch_size, m = full_problem(5), 1.2, 4, momentum
    sigma = covariance(problem, theory.constant(20_000), learning_rate=rate, batch_size=batch_size, momentum=m)
    h = np.diag(problem.eigenvalues)
    left = (1 - m) * (h @ sigma + sigma @ h) - rate * (1 + m**2) / (1 - m**2) * h @ sigma @ h
    left += rate * m / (1 - m**2) * (h @ h @ sigma + sigma @ h @ h)
    np.testing.assert_allclose(left, rate * problem.noise / batch_size, rtol=1e-11, atol=1e-13)


def test_small_learning_rates_reach_the_diffusion_limit():
    """HΣ + ΣH = T F (Mandt et al. 2017), with an error of the order of ε."""
    problem = full_problem(4)
    target = problem.noise / (problem.eigenvalues[:, None] + problem.eigenvalues)
    errors = []
    for rate in (0.02, 0.01):
        sigma = covariance(problem, theory.constant(10**6), learning_rate=rate, batch_size=8, momentum=0.5)
        errors.append(np.abs(sigma / theory.temperature(rate, 8, 0.5) - target).max())
    assert errors[0] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.05)


@settings(max_examples=60)
@given(data=st.data(), problem=testing.problems(), schedule=testing.schedules(max_length=10**6))
def test_covariances_are_positive_semi_definite(data, problem, schedule):
    result = covariance(
        problem,
        schedule,
        learning_rate=data.draw(testing.learning_rates(problem)),
        batch_size=data.draw(testing.batch_sizes()),
        momentum=data.draw(testing.momenta()),
        averaging=data.draw(averages()),
    )
    np.testing.assert_array_equal(result, result.T)
    deviation = np.sqrt(np.maximum(np.diag(result), 1e-300))
    assert (np.diag(result) >= 0).all()
    assert np.linalg.eigvalsh(result / np.outer(deviation, deviation))[0] >= -1e-10


def test_diagonal_noise_as_a_matrix_gives_the_same():
    noise = np.array([1.0, 0.5, 0.0])
    flat, full = (theory.NoisyQuadratic([1.0, 0.1, 0.0], noise) for noise in (noise, np.diag(noise)))
    arguments = {"learning_rate": [0.5, 1.5], "batch_size": 2, "momentum": 0.5, "averaging": 0.9, "at": [60, 0]}
    result = covariance(flat, SCHEDULE, **arguments)
    np.testing.assert_array_equal(result, covariance(full, SCHEDULE, **arguments))
    assert not (result * (1 - np.eye(3))).any()
    hardly = np.diag(noise) + 1e-300 * (np.eye(3, k=1) + np.eye(3, k=-1))  # takes the other road
    other = covariance(theory.NoisyQuadratic([1.0, 0.1, 0.0], hardly), SCHEDULE, **arguments)
    np.testing.assert_allclose(other, result, rtol=1e-14, atol=1e-290)


def test_shapes_and_order_of_records():
    problem = full_problem(3)
    arguments = {"learning_rate": [[0.1], [0.2]], "momentum": [0.0, 0.5, 0.9], "averaging": 0.5}
    at = [60, 0, 7, 7]
    curve = covariance(problem, SCHEDULE, batch_size=4, at=at, **arguments)
    means = expected_parameters(problem, SCHEDULE, at=at, **arguments)
    assert curve.shape == (2, 3, 4, 3, 3)
    assert means.shape == (2, 3, 4, 3)
    for record, step in enumerate(at):
        single = covariance(problem, SCHEDULE, batch_size=4, at=step, **arguments)
        np.testing.assert_allclose(curve[:, :, record], single, rtol=1e-12)
        single = expected_parameters(problem, SCHEDULE, at=step, **arguments)
        np.testing.assert_allclose(means[:, :, record], single, rtol=1e-12)
    np.testing.assert_array_equal(curve[0, 0, 1], np.diag(problem.initial_variance))
    np.testing.assert_array_equal(means[1, 2, 1], problem.initial_mean)
    end = covariance(problem, SCHEDULE, batch_size=4, **arguments)
    np.testing.assert_allclose(end, curve[:, :, 0], rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_divergence_is_silent_and_infinite(momentum, averaging):
    problem = full_problem(3)
    # The last segment would wipe out what it has no right to.
    schedule = theory.piecewise([100_000, 50], [1.0, 1.0 / 4.0])
    arguments = {"learning_rate": [0.5, 4.0], "momentum": momentum, "averaging": averaging, "at": [100_000, 100_050]}
    result = covariance(problem, schedule, batch_size=1, **arguments)
    means = expected_parameters(problem, schedule, **arguments)
    assert np.isfinite(result[0]).all()
    assert (result[1, :, 0, 0] == np.inf).all()
    assert (means[1, :, 0] == np.inf).all()
    assert not np.isnan(result).any()
    assert not np.isnan(means).any()
    flat = theory.NoisyQuadratic(problem.eigenvalues, 1.0, initial_mean=1.0)
    losses = theory.loss_curve(flat, schedule, batch_size=1, **arguments)
    assert np.isfinite(losses[0]).all()
    assert (losses[1] == np.inf).all()


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    problem = full_problem(120)
    arguments = {"learning_rate": [0.1, 0.5], "batch_size": 8, "momentum": 0.9, "averaging": 0.9}
    many = covariance(problem, SCHEDULE, **arguments)
    monkeypatch.setattr("noisysgd.theory.common.parallel.usable_cores", lambda: 1)
    np.testing.assert_array_equal(covariance(problem, SCHEDULE, **arguments), many)


def enumerate_batches(problem, batch_size):
    """All batches of ±√λ inputs that are equally likely: with replacement from them all, or without if N is known."""
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=problem.dim))) * np.sqrt(problem.eigenvalues)
    if problem.dataset_size is None:
        choices = list(itertools.product(corners, repeat=batch_size))
    else:  # the population is every corner once
        assert problem.dataset_size == len(corners)
        choices = list(itertools.combinations(corners, batch_size))
    return [np.array(batch) for batch in choices]


def loop_over_batches(problem, schedule, rate, batch_size, momentum, averaging=0.0):
    """Covariance of θ̄ after the schedule, as the average over every batch of what it does to E z zᵀ, z = (θ, u, θ̄).

    Also the mean of θ̄. Without averaging θ̄ is θ.
    """
    dim = problem.dim
    batches = enumerate_batches(problem, batch_size)
    mean = np.concatenate([problem.initial_mean, np.zeros(dim), problem.initial_mean])
    moment = np.outer(mean, mean)
    for row, column in itertools.product((0, 2), repeat=2):
        block = np.s_[row * dim : (row + 1) * dim, column * dim : (column + 1) * dim]
        moment[block] += np.diag(problem.initial_variance)
    identity, zero = np.eye(dim), np.zeros((dim, dim))
    for step in range(schedule.steps):
        eps = rate * schedule.at(step)
        kick = np.vstack([-eps * identity, identity, -eps * (1 - averaging) * identity])
        new_moment, new_mean = np.zeros_like(moment), np.zeros_like(mean)
        for x in batches:
            velocity = np.hstack([x.T @ x / batch_size, momentum * identity, zero])
            position = np.hstack([identity, zero, zero]) - eps * velocity
            average = (1 - averaging) * position + np.hstack([zero, zero, averaging * identity])
            update = np.vstack([position, velocity, average])
            labels = problem.label_noise * x.T @ x / batch_size**2
            if problem.dataset_size is not None:
                labels = 0 * labels
            new_moment += (update @ moment @ update.T + kick @ labels @ kick.T) / len(batches)
            new_mean += update @ mean / len(batches)
        moment, mean = new_moment, new_mean
    return (moment - np.outer(mean, mean))[2 * dim :, 2 * dim :], mean[2 * dim :]


@pytest.mark.parametrize("averaging", [0.0, 0.8])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize(
    ("dim", "batch_size", "dataset_size"),
    [(2, 1, None), (2, 3, None), (3, 1, None), (3, 2, None), (2, 2, 4), (3, 5, 8)],
)
def test_least_squares_covariance_by_enumeration_of_batches(dim, batch_size, dataset_size, momentum, averaging):
    problem = theory.LeastSquares(
        [1.0, 0.6, 0.1][:dim],
        label_noise=0.0 if dataset_size else 0.3,
        initial_mean=[1.0, -2.0, 0.5][:dim],
        initial_variance=[0.1, 0.0, 1.0][:dim],
        dataset_size=dataset_size,
        kurtosis=1.0,
    )
    schedule = theory.piecewise([5, 8, 2, 3], [1.0, 0.25, 0.0, 0.5])
    expected, mean = loop_over_batches(problem, schedule, 0.4, batch_size, momentum, averaging)
    settings = {"learning_rate": 0.4, "momentum": momentum, "averaging": averaging}
    result = covariance(problem, schedule, batch_size=batch_size, **settings)
    np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-14)
    assert np.abs(result[0, 1]) > 1e-4  # it is not zero that is compared
    np.testing.assert_allclose(expected_parameters(problem, schedule, **settings), mean, rtol=1e-12)
    loss = theory.expected_loss(problem, schedule, batch_size=batch_size, **settings)
    exact = 0.5 * problem.eigenvalues @ (np.diag(expected) + mean**2)
    np.testing.assert_allclose(loss, exact, rtol=1e-11)


def test_averages_on_least_squares_join_those_known_otherwise():
    """Hardly any is none, no noise is additive, flat modes stay, weights count modes, records do not matter."""
    problem = theory.LeastSquares([1.0, 0.3, 0.0], 0.2, initial_mean=[1.0, 0.5, 2.0], initial_variance=0.3)
    schedule, run = theory.half_then_decay(60), {"learning_rate": [0.1, 0.5], "momentum": [[0.0], [0.9]]}
    plain, hardly = (theory.expected_loss(problem, schedule, batch_size=8, averaging=a, **run) for a in (0.0, 1e-15))
    np.testing.assert_allclose(hardly, plain, rtol=1e-12)
    silent = theory.NoisyQuadratic([1.0, 0.3, 0.0], 0.0, initial_mean=[1.0, 0.5, 2.0], initial_variance=0.3)
    for measure in (theory.expected_loss, covariance):
        both = [measure(p, schedule, batch_size=np.inf, averaging=0.9, **run) for p in (problem, silent)]
        np.testing.assert_allclose(*both, rtol=1e-11, atol=1e-15)
    assert covariance(problem, schedule, learning_rate=0.1, batch_size=8, averaging=0.9)[2, 2] == pytest.approx(0.3)
    weighted = theory.LeastSquares([1.0, 0.3], 0.2, weights=[2, 1])
    repeated = theory.LeastSquares([1.0, 1.0, 0.3], 0.2)
    one, two = (theory.expected_loss(p, schedule, batch_size=2, averaging=0.9, **run) for p in (weighted, repeated))
    np.testing.assert_allclose(one, two, rtol=1e-12)
    curve = theory.loss_curve(
        repeated, schedule, at=[0, 7, 60, 30], batch_size=2, averaging=[0.0, 0.9], learning_rate=0.2
    )
    for k, at in enumerate([0, 7, 60, 30]):
        alone = theory.loss_curve(repeated, schedule, at=at, batch_size=2, averaging=[0.0, 0.9], learning_rate=0.2)
        np.testing.assert_allclose(curve[:, k], alone, rtol=1e-12)
    diverged = theory.expected_loss(repeated, theory.constant(5000), learning_rate=1.5, batch_size=1, averaging=0.9)
    assert diverged == np.inf


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("place", ["nearly flat", "slow", "lower critical damping", "complex roots", "just stable"])
def test_least_squares_correlations_keep_their_digits(place, momentum):
    """The map of a pair of modes on (θθ, θu, uθ, uu), in 60 digits; a large batch, so that covariances are small."""
    count, rate, factor = 10**6 + 1, 0.25, 1e-6
    curvatures = np.array([float(HARD[place](momentum)), 1e-7]) / rate
    problem = theory.LeastSquares(curvatures, 0.0, initial_mean=1.0, initial_variance=0.0)
    result = covariance(problem, theory.constant(count), learning_rate=rate, batch_size=1 / factor, momentum=momentum)
    with mpmath.workdps(60):
        eps, m, one, two = map(mpmath.mpf, (rate, momentum, *curvatures))
        a, b = (mpmath.matrix([[1 - eps * lam, -eps * m], [lam, m]]) for lam in (one, two))
        quiet = mpmath.matrix(4, 4)
        for row, column in itertools.product(range(4), repeat=2):
            quiet[row, column] = a[row // 2, column // 2] * b[row % 2, column % 2]
        noisy = quiet.copy()
        for row, kick in enumerate([eps**2, -eps, -eps, 1]):
            noisy[row, 0] += kick * one * two / mpmath.mpf(1 / factor)
        difference = noisy**count - quiet**count
        expected = float(difference[0, 0])
    np.testing.assert_allclose(result[0, 1], expected, rtol=1e-10, atol=1e-290)


def test_least_squares_without_noise_or_mean():
    arguments = {"learning_rate": 0.5, "momentum": [0.0, 0.9]}
    still = theory.LeastSquares([1.0, 0.5], initial_mean=1.0, initial_variance=[0.0, 1.0])
    quiet = theory.NoisyQuadratic([1.0, 0.5], 0.0, initial_mean=1.0, initial_variance=[0.0, 1.0])
    result = covariance(still, SCHEDULE, batch_size=np.inf, **arguments)
    np.testing.assert_array_equal(result, covariance(quiet, SCHEDULE, batch_size=1, **arguments))
    assert not result[:, 0, 0].any()
    centred = covariance(theory.LeastSquares([1.0, 0.5]), SCHEDULE, batch_size=1, **arguments)
    assert not centred[:, 0, 1].any()
    assert (np.diagonal(centred, axis1=1, axis2=2) > 0).all()


@settings(max_examples=30)
@given(data=st.data(), schedule=testing.schedules(), kurtosis=st.sampled_from([1.0, 3.0, 5.0]))
def test_least_squares_covariance_is_positive_semi_definite_and_adds_up(data, schedule, kurtosis):
    quadratic = data.draw(testing.problems(full_noise=False))
    problem = theory.LeastSquares(
        quadratic.eigenvalues, 0.1, quadratic.initial_mean, quadratic.initial_variance, kurtosis=kurtosis
    )
    trace = problem.eigenvalues.sum() + kurtosis * problem.largest_eigenvalue
    rate = data.draw(st.floats(0.01, 0.5)) / trace
    momentum, batch_size = data.draw(testing.momenta(0.9)), data.draw(testing.batch_sizes(100))
    arguments = {"learning_rate": rate * (1 - momentum), "momentum": momentum}
    result = covariance(problem, schedule, batch_size=batch_size, **arguments)
    mean = expected_parameters(problem, schedule, **arguments)
    deviation = np.sqrt(np.diag(result) + mean**2 + 1e-290)
    assert np.linalg.eigvalsh(result / np.outer(deviation, deviation))[0] >= -1e-10
    loss = (problem.eigenvalues * (np.diag(result) + mean**2)).sum() / 2
    np.testing.assert_allclose(
        loss, theory.expected_loss(problem, schedule, batch_size=batch_size, **arguments), rtol=1e-10, atol=1e-14
    )


GOOD = {"learning_rate": 0.1, "batch_size": 4, "momentum": 0.5, "averaging": 0.9}
BAD = [
    ({"learning_rate": -1.0}, "learning_rate: expected values ≥ 0"),
    ({"learning_rate": np.inf}, "learning_rate: expected finite"),
    ({"momentum": 1.0}, "momentum: expected 0 ≤ momentum < 1"),
    ({"averaging": 1.0}, "averaging: expected 0 ≤ averaging < 1"),
    ({"averaging": -0.1}, "averaging: expected 0 ≤ averaging < 1"),
    ({"averaging": float("nan")}, "averaging: expected numbers without NaN"),
    ({"at": 61}, r"at: expected whole steps in 0…60"),
    ({"at": []}, r"at: expected whole steps in 0…60"),
    ({"learning_rate": [1, 2], "momentum": [0, 0.1, 0.2]}, "shapes that broadcast"),
    ({"problem": np.eye(2)}, "problem: expected a Quadratic"),
    ({"schedule": 60}, "schedule: expected a Schedule"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_refused(change, message):
    arguments = {"problem": full_problem(2), "schedule": SCHEDULE} | GOOD | change
    with pytest.raises(ValueError, match=message):
        covariance(**arguments)
    del arguments["batch_size"]
    with pytest.raises(ValueError, match=message):
        expected_parameters(**arguments)


def test_bad_batch_sizes_and_averages_of_least_squares_are_refused():
    with pytest.raises(ValueError, match="batch_size: expected values ≥ 1"):
        covariance(full_problem(2), SCHEDULE, **(GOOD | {"batch_size": 0}))
    with pytest.raises(ValueError, match="batch_size: expected batch sizes ≤ the data set's 10"):
        covariance(full_problem(2, dataset_size=10), SCHEDULE, **(GOOD | {"batch_size": 11}))


def test_a_first_call_warns_of_nothing():
    """Compiled code caches the types it has seen, and the warnings of their first use: only a new process tells."""
    code = "from noisysgd import theory as t\n"
    code += "p = t.NoisyQuadratic([1, 0.5], [[1, 0.5], [0.5, 1]])\n"
    code += "t.covariance(p, t.constant(2), learning_rate=[0.1], batch_size=4)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
