"""Stationary states against Lyapunov equations of the full state, enumeration of inputs, and long runs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory import testing
from noisysgd.theory.limits.stationary import (
    fluctuation_dissipation,
    sde_stationary_covariance,
    stationary_covariance,
    stationary_loss,
)


def heavy_ball(curvature, rate, momentum):
    """The step of (θ, u) and what it adds of the gradient's noise, as matrices."""
    dim = curvature.size
    velocity = np.hstack([np.diag(curvature), momentum * np.eye(dim)])
    return np.vstack([np.eye(dim, 2 * dim) - rate * velocity, velocity]), np.vstack([-rate * np.eye(dim), np.eye(dim)])


@settings(max_examples=200)
@given(data=st.data(), problem=testing.problems(max_dim=4))
def test_covariances_solve_the_lyapunov_equation_of_position_and_velocity(data, problem):
    from scipy.linalg import solve_discrete_lyapunov

    curved = problem.eigenvalues > 1e-4 * problem.largest_eigenvalue  # to a dense solver the others look flat
    rate = data.draw(testing.learning_rates(problem, low=1e-2), label="learning_rate")
    size = data.draw(testing.batch_sizes(), label="batch_size")
    momentum = data.draw(testing.momenta(0.95), label="momentum")
    noise = problem.noise if problem.noise.ndim == 2 else np.diag(problem.noise)
    noise = noise[np.ix_(curved, curved)]
    update, kick = heavy_ball(problem.eigenvalues[curved], rate * (1 + momentum), momentum)
    state = solve_discrete_lyapunov(update, kick @ noise @ kick.T * problem.noise_factor(size), method="direct")
    exact = state[: len(noise), : len(noise)]
    setting = {"learning_rate": rate * (1 + momentum), "batch_size": size, "momentum": momentum}
    covariance = stationary_covariance(problem, **setting)
    deviation = np.sqrt(np.maximum(np.diag(exact), 0.0))  # the solver turns 5e-324 into −5e-324
    scale = np.outer(deviation, deviation)
    # Contractions as slow as 1 − 10⁻⁶ per step cost the dense solver that many digits.
    assert (np.abs(covariance[np.ix_(curved, curved)] - exact) <= 1e-8 * scale + 1e-15 * scale.max() + 1e-300).all()
    variances = np.diagonal(covariance)[problem.eigenvalues > 0]
    heights = problem.eigenvalues[problem.eigenvalues > 0]
    assert float(stationary_loss(problem, **setting)) == pytest.approx(float(heights @ variances) / 2, rel=1e-13)


@settings(max_examples=100)
@given(data=st.data(), problem=testing.problems(max_dim=4))
def test_covariances_solve_the_equation_of_liu_ziyin_and_ueda(data, problem):
    m = data.draw(testing.momenta(), label="momentum")
    rate = data.draw(testing.learning_rates(problem), label="learning_rate") * (1 + m)
    sigma = stationary_covariance(problem, learning_rate=rate, batch_size=4, momentum=m)
    flat = problem.eigenvalues == 0
    sigma = np.where(np.outer(flat, flat), 0.0, sigma)
    noise = problem.noise if problem.noise.ndim == 2 else np.diag(problem.noise)
    noise = np.where(np.outer(flat, flat), 0.0, rate * problem.noise_factor(4) * noise)
    curvature = np.diag(problem.eigenvalues)
    terms = [
        (1 - m) * (curvature @ sigma + sigma @ curvature),
        -rate * (1 + m**2) / (1 - m**2) * curvature @ sigma @ curvature,
        rate * m / (1 - m**2) * (curvature @ curvature @ sigma + sigma @ curvature @ curvature),
    ]
    scale = sum(np.abs(term) for term in terms)
    assert (np.abs(sum(terms) - noise) <= 1e-13 * scale + 1e-300).all()


def inputs(eigenvalues, kurtosis):
    """All values of independent three-point inputs, x ∈ {−a, 0, a} with E x² = λ, and their probabilities."""
    hit = 1 / kurtosis
    axes = [((-np.sqrt(lam / hit), hit / 2), (0.0, 1 - hit), (np.sqrt(lam / hit), hit / 2)) for lam in eigenvalues]
    for values in itertools.product(*axes):
        yield np.array([x for x, _ in values]), np.prod([p for _, p in values])


@pytest.mark.parametrize("batch_size", [2, 30])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("kurtosis", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_least_squares_covariance_by_enumeration_of_inputs(batch_size, momentum, kurtosis, share):
    """The fixed point of E (θ,u)(θ,u)ᵀ, with every input listed: no fourth moment is ever written down."""
    eigenvalues, label_noise, dim = np.array([1.0, 0.6, 0.1]), 0.3, 3
    problem = theory.LeastSquares(eigenvalues, label_noise, kurtosis=kurtosis)
    rate = share * float(theory.critical_learning_rate(problem, batch_size, momentum))
    mean, square, kicks = 0.0, 0.0, 0.0
    for x, probability in inputs(eigenvalues, kurtosis):
        update = np.block(
            [
                [np.eye(dim) - rate * np.outer(x, x), -rate * momentum * np.eye(dim)],
                [np.outer(x, x), momentum * np.eye(dim)],
            ]
        )
        kick = np.concatenate([-rate * x, x])
        mean = mean + probability * update
        square = square + probability * np.kron(update, update)
        kicks = kicks + probability * label_noise * np.kron(kick, kick)
    averaged = np.kron(mean, mean)
    map_ = averaged + (square - averaged) / batch_size
    state = np.linalg.solve(np.eye(len(map_)) - map_, kicks / batch_size).reshape(2 * dim, 2 * dim)
    setting = {"learning_rate": rate, "batch_size": batch_size, "momentum": momentum}
    scale = np.abs(state[:dim, :dim]).max()
    np.testing.assert_allclose(stationary_covariance(problem, **setting), state[:dim, :dim], 1e-9, 1e-12 * scale)
    loss = eigenvalues @ np.diag(state)[:dim] / 2
    assert float(stationary_loss(problem, **setting)) == pytest.approx(loss, rel=1e-10)


@settings(max_examples=50)
@given(problem=testing.problems(full_noise=False), momentum=testing.momenta(), data=st.data())
def test_the_stationary_loss_is_where_long_runs_end(problem, momentum, data):
    rate = data.draw(testing.learning_rates(problem, low=0.01)) * (1 + momentum)
    setting = {"learning_rate": rate, "batch_size": 8, "momentum": momentum}
    run = theory.expected_loss(problem, theory.constant(10**14), **setting)
    assert float(stationary_loss(problem, **setting)) == pytest.approx(float(run), rel=1e-9, abs=1e-300)


def test_least_squares_runs_end_there_too():
    problem = theory.LeastSquares([1.0, 0.3, 0.0], label_noise=0.2, weights=[2, 5, 9], dataset_size=50)
    rate, size = 0.2, 5
    v, w, lam = problem.initial_second_moment.copy(), problem.weights, problem.eigenvalues
    gamma = float(problem.noise_factor(size))
    for _ in range(2000):
        v = (1 - rate * lam) ** 2 * v + gamma * rate**2 * (lam**2 * v + lam * (w * lam * v).sum() + 0.2 * lam)
    sigma = stationary_covariance(problem, learning_rate=rate, batch_size=size)
    np.testing.assert_allclose(np.diag(sigma), v, rtol=1e-12)
    loss = stationary_loss(problem, learning_rate=rate, batch_size=size)
    assert float(loss) == pytest.approx(float((w * lam * v).sum()) / 2, rel=1e-12)


@settings(max_examples=100)
@given(problem=testing.problems(), data=st.data())
def test_fluctuation_balances_dissipation_exactly_where_the_state_is_stationary(problem, data):
    rate = data.draw(testing.learning_rates(problem, low=1e-3))
    left, right = fluctuation_dissipation(problem, learning_rate=rate, batch_size=7)
    diffusing = rate * problem.noise_factor(7) * problem.noise_diagonal[problem.eigenvalues == 0].sum()
    assert float(right - diffusing) == pytest.approx(float(left), rel=1e-12, abs=1e-300 + 1e-14 * float(right))
    if not diffusing:
        sigma = stationary_covariance(problem, learning_rate=rate, batch_size=7)
        given_state = fluctuation_dissipation(problem, learning_rate=rate, batch_size=7, covariance=sigma)
        np.testing.assert_allclose(given_state, (left, right), rtol=1e-12, atol=1e-300)


def test_fluctuation_dissipation_says_how_the_norm_changes_for_any_state():
    """E |θ|² after a step minus before = ε(right − left), by enumeration of inputs ±√λ."""
    eigenvalues, rate = np.array([1.0, 0.5]), 0.3
    problem = theory.LeastSquares(eigenvalues, label_noise=0.2, kurtosis=1.0)
    state = np.array([[2.0, 0.3], [0.3, 0.4]])
    change = 0.0
    for x, probability in inputs(eigenvalues, 1.0):
        update = np.eye(2) - rate * np.outer(x, x)
        change += probability * np.trace(update @ state @ update.T + rate**2 * 0.2 * np.outer(x, x) - state)
    left, right = fluctuation_dissipation(problem, learning_rate=rate, batch_size=1, covariance=state)
    assert float(rate * (right - left)) == pytest.approx(change, rel=1e-12)
    stacked = fluctuation_dissipation(
        problem, learning_rate=[[rate], [0.1]], batch_size=1, covariance=np.stack([state, 2 * state, 0 * state])
    )
    assert stacked.left.shape == stacked.right.shape == (2, 3)
    assert stacked.right[0, 0] == right
    still = fluctuation_dissipation(problem, learning_rate=rate, batch_size=np.inf, covariance=0 * state)
    assert (still.left, still.right) == (0, 0)


@settings(max_examples=50)
@given(problem=testing.problems(max_dim=4), temperature=st.floats(1e-3, 10))
def test_the_sde_s_covariance_solves_a_continuous_lyapunov_equation(problem, temperature):
    from scipy.linalg import solve_continuous_lyapunov

    curved = problem.eigenvalues > 1e-4 * problem.largest_eigenvalue
    grid = np.ix_(curved, curved)
    noise = (problem.noise if problem.noise.ndim == 2 else np.diag(problem.noise))[grid]
    exact = solve_continuous_lyapunov(np.diag(problem.eigenvalues[curved]), temperature * noise)
    scale = np.outer(np.sqrt(np.diag(exact)), np.sqrt(np.diag(exact)))
    covariance = sde_stationary_covariance(problem, temperature=temperature)[grid]
    assert (np.abs(covariance - exact) <= 1e-12 * scale + 1e-15 * scale.max() + 1e-300).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    "problem",
    [
        theory.NoisyQuadratic([1.0, 0.5, 0.2], noise=[[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 1.0]]),
        theory.LeastSquares([1.0, 0.5, 0.2], weights=[1, 2, 4]),
        theory.LeastSquares([1.0, 0.5, 0.2], kurtosis=2.0),
    ],
)
def test_sgd_tends_to_the_sde_at_first_order_in_the_learning_rate(problem, momentum):
    temperature, rates = 1e-4, 1e-3 * 0.5 ** np.arange(3)
    limit = sde_stationary_covariance(problem, temperature=temperature)
    sizes = rates / (temperature * (1 - momentum))
    np.testing.assert_allclose(theory.temperature(rates, sizes, momentum), temperature)
    sigma = stationary_covariance(problem, learning_rate=rates, batch_size=sizes, momentum=momentum)
    errors = np.abs(sigma - limit).max(axis=(1, 2))
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), 1, atol=0.05)


def test_homogenised_sgd_is_stationary_while_temperature_times_trace_is_below_two():
    problem = theory.LeastSquares([1.0, 0.5], label_noise=0.3, weights=[2, 4], kurtosis=2.0)
    hot = sde_stationary_covariance(problem, temperature=[0.1, 0.4999, 0.5])
    twice_loss = 0.3 * 0.2 / (1 - 0.2)  # R/(1 − R) with R = T tr H/2
    np.testing.assert_allclose(hot[0], np.eye(2) * 0.1 * (twice_loss + 0.3) / 2, rtol=1e-14)
    assert np.isfinite(hot[1]).all()
    assert (hot[2] == np.inf).all()


def test_flat_modes_diffuse_or_stay():
    noise = np.array([[1.0, 0.2, 0.1, 0.0], [0.2, 1.0, -0.3, 0.0], [0.1, -0.3, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    problem = theory.NoisyQuadratic([2.0, 0.0, 0.0, 0.0], noise, initial_variance=[1, 2, 3, 4])
    sigma = stationary_covariance(problem, learning_rate=0.5, batch_size=1)
    expected = [[0.25, 0.05, 0.025, 0], [0.05, np.inf, -np.inf, 0], [0.025, -np.inf, np.inf, 0], [0, 0, 0, 4]]
    np.testing.assert_allclose(sigma, expected, rtol=1e-15)
    assert float(stationary_loss(problem, learning_rate=0.5, batch_size=1)) == pytest.approx(0.25)
    quiet = stationary_covariance(problem, learning_rate=0.5, batch_size=np.inf, momentum=0.9)
    np.testing.assert_array_equal(quiet, np.diag([0.0, 2, 3, 4]))
    multiplicative = theory.LeastSquares([2.0, 0.0], initial_variance=[1, 5])
    assert stationary_covariance(multiplicative, learning_rate=0.1, batch_size=1)[1, 1] == 5


@settings(max_examples=50)
@given(eigenvalues=st.lists(st.floats(0.01, 3), min_size=1, max_size=4), momentum=testing.momenta())
def test_beyond_the_edge_everything_is_infinite_and_nothing_is_nan(eigenvalues, momentum):
    for problem in (
        theory.NoisyQuadratic([*eigenvalues, 0.0], 0.1),
        theory.LeastSquares([*eigenvalues, 0.0]),
        theory.LeastSquares([*eigenvalues, 0.0], label_noise=0.0, kurtosis=1.0),
    ):
        for size in (1, 100, np.inf):
            critical = float(theory.critical_learning_rate(problem, size, momentum))
            setting = {"batch_size": size, "momentum": momentum}
            for rate in (critical, 1.5 * critical, 1e200):
                assert (stationary_covariance(problem, learning_rate=rate, **setting) == np.inf).all()
                assert stationary_loss(problem, learning_rate=rate, **setting) == np.inf
            below = stationary_loss(problem, learning_rate=[0.0, 0.9 * critical], **setting)
            assert np.isfinite(below).all()
            assert below[0] == 0
        edge = theory.critical_learning_rate(problem, 3)
        assert fluctuation_dissipation(problem, learning_rate=edge, batch_size=3) == (np.inf, np.inf)


def test_weights_count_modes_and_settings_broadcast():
    rates, sizes = np.array([[0.01], [0.05]]), np.array([1, 4, 16])
    for counted, listed in (
        (
            theory.NoisyQuadratic([1.0, 0.2], [0.5, 2.0], weights=[1, 3]),
            theory.NoisyQuadratic([1.0, 0.2, 0.2, 0.2], [0.5, 2.0, 2.0, 2.0]),
        ),
        (theory.LeastSquares([1.0, 0.2], weights=[1, 3]), theory.LeastSquares([1.0, 0.2, 0.2, 0.2])),
    ):
        setting = {"learning_rate": rates, "batch_size": sizes}
        one, two = stationary_loss(counted, momentum=0.5, **setting), stationary_loss(listed, momentum=0.5, **setting)
        assert one.shape == (2, 3)
        np.testing.assert_allclose(one, two, rtol=1e-14)
        sigma = stationary_covariance(listed, momentum=0.5, **setting)
        assert sigma.shape == (2, 3, 4, 4)
        np.testing.assert_allclose(
            (np.diagonal(sigma, axis1=-2, axis2=-1) * listed.eigenvalues).sum(-1) / 2, two, rtol=1e-14
        )
        np.testing.assert_allclose(
            fluctuation_dissipation(counted, **setting), fluctuation_dissipation(listed, **setting), rtol=1e-13
        )


def test_small_learning_rates_leave_a_quarter_of_temperature_times_the_trace_of_the_noise():
    problem = theory.power_law(10)
    for noisy in (problem, theory.LeastSquares(problem.eigenvalues, label_noise=1.0)):
        rate, size = 1e-7, 8
        loss = stationary_loss(noisy, learning_rate=rate, batch_size=size, momentum=[0.0, 0.9])
        expected = theory.temperature(rate, size, [0.0, 0.9]) * problem.noise.sum() / 4
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


PROBLEM = theory.NoisyQuadratic([1.0, 0.5], 1.0, dataset_size=100)
GOOD = {"learning_rate": 0.1, "batch_size": 4}
FUNCTIONS = [stationary_covariance, stationary_loss, fluctuation_dissipation]
CHANGES = [
    ({"learning_rate": -1}, "learning_rate: expected values ≥ 0"),
    ({"batch_size": 101}, "batch_size: expected batch sizes ≤"),
    ({"learning_rate": [0.1, 0.2], "batch_size": [1, 2, 3]}, "shapes that broadcast"),
    ({"problem": "hard"}, "problem: expected a Quadratic"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_impossible_settings_are_refused(function, change, message):
    with pytest.raises(ValueError, match=message):
        function(**({"problem": PROBLEM} | GOOD | change))


CALLS = {
    "momentum": (lambda: stationary_covariance(PROBLEM, momentum=1.0, **GOOD), "momentum: expected 0 ≤ momentum < 1"),
    "state shape": (lambda: fluctuation_dissipation(PROBLEM, covariance=[1.0, 2.0], **GOOD), r"shape \(..., 2, 2\)"),
    "state NaN": (
        lambda: fluctuation_dissipation(PROBLEM, covariance=np.full((2, 2), np.nan), **GOOD),
        "covariance: expected numbers without NaN",
    ),
    "states of another number": (
        lambda: fluctuation_dissipation(PROBLEM, learning_rate=[0.1] * 3, batch_size=1, covariance=np.ones((2, 2, 2))),
        "shapes that broadcast",
    ),
    "cold": (lambda: sde_stationary_covariance(PROBLEM, temperature=-1), "temperature: expected values ≥ 0"),
    "too hot": (lambda: sde_stationary_covariance(PROBLEM, temperature=np.inf), "temperature: expected finite"),
}


@pytest.mark.parametrize("case", CALLS)
def test_impossible_input_is_refused(case):
    call, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        call()
