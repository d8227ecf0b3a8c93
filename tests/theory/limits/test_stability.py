"""Edges of stability against spectra of explicit maps, enumeration of all inputs, published equations and limits."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory import testing
from noisysgd.theory.moments.moment_map import second_moment_map, spectral_radius


@st.composite
def regressions(draw, max_dim=5, decades=3.0):
    """Least squares with flat modes, weights, tails lighter and heavier than Gaussian, sometimes of known size."""
    dim = draw(st.integers(1, max_dim))
    exponents = st.one_of(st.just(-np.inf), st.floats(-decades, 0))
    eigenvalues = 10.0 ** np.array([draw(st.floats(-1, 2)), *(draw(exponents) for _ in range(dim - 1))])
    return theory.LeastSquares(
        eigenvalues,
        label_noise=draw(st.sampled_from([0.0, 0.3])),
        initial_mean=draw(st.floats(-1, 1)),
        initial_variance=draw(st.floats(0, 1)),
        dataset_size=draw(st.sampled_from([None, 1000])),
        weights=[draw(st.sampled_from([1.0, 2.5, 40.0])) for _ in range(dim)],
        kurtosis=draw(st.sampled_from([1.0, 1.5, 2.0, 3.0, 9.0])),
    )


CLOSE = 1e-7
"""Relative distance from the edge at which the dense eigenvalue problem is asked on which side it is."""


@settings(max_examples=200)
@given(data=st.data())
def test_the_edge_is_where_the_spectral_radius_crosses_one(data):
    problem = data.draw(st.one_of(regressions(), testing.problems(max_dim=4, full_noise=False)))
    setting = {
        "batch_size": data.draw(testing.batch_sizes(), label="batch_size"),
        "momentum": data.draw(testing.momenta(), label="momentum"),
    }
    critical = theory.critical_learning_rate(problem, **setting)
    below, above = spectral_radius(problem, learning_rate=critical * [1 - CLOSE, 1 + CLOSE], **setting)
    assert below < 1 < above


@pytest.mark.parametrize("batch_size", [1, 2, 30, 1000])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kurtosis", [1.0, 2.0, 3.0])
def test_bisection_on_the_spectral_radius_finds_the_same_edge(batch_size, momentum, kurtosis):
    from scipy.optimize import brentq

    problem = theory.LeastSquares([1.0, 0.7, 0.2, 0.05], kurtosis=kurtosis, dataset_size=1001, weights=[1, 3, 3, 10])
    setting = {"batch_size": batch_size, "momentum": momentum}

    def excess(rate):
        return float(spectral_radius(problem, learning_rate=rate, **setting)) - 1

    edge = brentq(excess, 1e-5, 2 * (1 + momentum) * 1.5, xtol=1e-300, rtol=1e-14)
    assert float(theory.critical_learning_rate(problem, **setting)) == pytest.approx(edge, rel=1e-10)


def inputs(eigenvalues, kurtosis):
    """All values of independent three-point inputs, x ∈ {−a, 0, a} with E x² = λ, and their probabilities."""
    hit = 1 / kurtosis
    axes = [((-np.sqrt(lam / hit), hit / 2), (0.0, 1 - hit), (np.sqrt(lam / hit), hit / 2)) for lam in eigenvalues]
    for values in itertools.product(*axes):
        yield np.array([x for x, _ in values]), np.prod([p for _, p in values])


def radius_by_enumeration(eigenvalues, kurtosis, rate, noise_factor, momentum):
    """Growth of E (θ, u)(θ, u)ᵀ per step, from E A⊗A over all inputs: no fourth moment is ever written down."""
    dim = len(eigenvalues)
    identity, mean, square = np.eye(dim), 0.0, 0.0
    for x, probability in inputs(eigenvalues, kurtosis):
        velocity = np.hstack([np.outer(x, x), momentum * identity])
        update = np.vstack([np.hstack([identity, 0 * identity]) - rate * velocity, velocity])
        mean = mean + probability * update
        square = square + probability * np.kron(update, update)
    averaged = np.kron(mean, mean)
    return np.abs(np.linalg.eigvals(averaged + noise_factor * (square - averaged))).max()


@pytest.mark.parametrize("batch_size", [1, 2, 50])
@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.95])
@pytest.mark.parametrize("kurtosis", [1.0, 1.7, 3.0, 6.0])
def test_the_edge_is_right_for_inputs_that_can_be_enumerated(batch_size, momentum, kurtosis):
    eigenvalues = [1.0, 0.6, 0.1]
    problem = theory.LeastSquares(eigenvalues, kurtosis=kurtosis)
    critical = float(theory.critical_learning_rate(problem, batch_size, momentum))
    rates = critical * np.array([1 - 1e-6, 1 + 1e-6])
    below, above = (radius_by_enumeration(eigenvalues, kurtosis, e, 1 / batch_size, momentum) for e in rates)
    assert below < 1 < above


@settings(max_examples=100)
@given(problem=regressions(decades=8.0), data=st.data())
def test_the_edge_solves_the_published_equations(problem, data):
    """Twelve digits: the residual of the equation, not of a root finder, measures the error of ε."""
    size = data.draw(testing.batch_sizes(), label="batch_size")
    m = data.draw(testing.momenta(), label="momentum")
    critical = np.longdouble(theory.critical_learning_rate(problem, size, m))
    factor = np.longdouble(problem.noise_factor(size))

    def excess(rate):
        x = rate * problem.eigenvalues
        room = 2 * (1 + np.longdouble(m)) - x
        if (room <= 0).any():
            return np.inf
        g = x * (1 + m) / ((1 - np.longdouble(m)) * room)
        own = factor * (problem.kurtosis - 2) * g
        return np.inf if (own >= 1).any() else (problem.weights * factor * g / (1 - own)).sum() - 1

    assert excess(critical * (1 - 1e-12)) < 0 < excess(critical * (1 + 1e-12))


@settings(max_examples=50)
@given(problem=regressions(), size=testing.batch_sizes())
def test_sgd_on_gaussian_inputs_has_the_edge_of_bordelon_and_pehlevan(problem, size):
    gaussian = theory.LeastSquares(problem.eigenvalues, weights=problem.weights)
    x = float(theory.critical_learning_rate(gaussian, size)) * gaussian.eigenvalues
    assert (x * (size + 1) < 2 * size).all()
    assert (gaussian.weights * x / (2 * size - (size + 1) * x)).sum() == pytest.approx(1, rel=1e-9)


def test_light_tails_need_the_weights_of_whole_modes():
    """At κ = 1 a single mode has inputs ±√λ: no noise, so the curvature constraint. A second mode brings some."""
    one = theory.LeastSquares([2.0], kurtosis=1.0)
    np.testing.assert_allclose(theory.critical_learning_rate(one, 1, [0.0, 0.9]), [1.0, 1.9], rtol=1e-14)
    two = theory.LeastSquares([2.0, 0.01], kurtosis=1.0)
    assert theory.critical_learning_rate(two, 1) < 0.999


@settings(max_examples=50)
@given(problem=regressions(), momentum=testing.momenta())
def test_large_batches_meet_the_curvature_constraint(problem, momentum):
    curvature = 2 * (1 + momentum) / problem.largest_eigenvalue
    assert theory.critical_learning_rate(problem, momentum=momentum) == curvature
    full = problem.with_dataset_size(64)
    assert theory.critical_learning_rate(full, 64, momentum) == curvature
    without = problem.with_dataset_size(None)
    sizes = 10.0 ** np.arange(8, 320, 12)
    rates = theory.critical_learning_rate(without, np.append(sizes[sizes < 1e308], 1e308), momentum)
    assert (rates <= curvature).all()
    assert (np.diff(rates) >= 0).all()
    np.testing.assert_allclose(rates[1:], curvature, rtol=1e-12)


def test_small_batches_bound_the_effective_learning_rate_in_proportion():
    """tr H = 10⁵ λ_max: far below the curvature constraint, ε_crit/(1−m) = 2B/tr H whatever the momentum."""
    problem = theory.LeastSquares([1.0, 0.5], weights=[50_000, 100_000])
    sizes, momenta = np.array([1, 2, 4, 8]), np.array([[0.0], [0.5], [0.9], [0.99]])
    effective = theory.critical_learning_rate(problem, sizes, momenta) / (1 - momenta)
    np.testing.assert_allclose(effective, np.broadcast_to(2e-5 * sizes, (4, 4)), rtol=2e-4)
    assert (effective < 2e-5 * sizes).all()


@settings(max_examples=50)
@given(problem=regressions(), momentum=testing.momenta(), size=testing.batch_sizes(500))
def test_noise_only_lowers_the_edge_and_larger_batches_raise_it(problem, momentum, size):
    low, high, limit = theory.critical_learning_rate(problem, [size, 2 * size, np.inf], momentum)
    assert 0 < low <= high <= limit


@settings(max_examples=50)
@given(problem=regressions(max_dim=3), momentum=testing.momenta(), size=testing.batch_sizes())
def test_weights_count_modes(problem, momentum, size):
    weights = [1, 2, 3][: problem.dim]
    counted = theory.LeastSquares(problem.eigenvalues, weights=weights, kurtosis=problem.kurtosis)
    listed = theory.LeastSquares(np.repeat(problem.eigenvalues, weights), kurtosis=problem.kurtosis)
    one, two = (float(theory.critical_learning_rate(p, size, momentum)) for p in (counted, listed))
    assert one == pytest.approx(two, rel=1e-13)
    setting = {"learning_rate": 0.7 * one, "batch_size": size, "momentum": momentum}
    np.testing.assert_allclose(spectral_radius(counted, **setting), spectral_radius(listed, **setting), rtol=1e-6)


@settings(max_examples=50)
@given(problem=regressions(), data=st.data())
def test_the_moment_map_is_a_step_of_the_full_second_moment(problem, data):
    """One heavy-ball step on E (θ,u)(θ,u)ᵀ as matrices, noise from E F = γ(Λ tr ΛΣ + (κ−2) diag …), label noise off."""
    m = data.draw(testing.momenta(), label="momentum")
    size = data.draw(testing.batch_sizes(), label="batch_size")
    rate = data.draw(st.floats(0.01, 1.5)) * float(theory.critical_learning_rate(problem, size, m))
    curved = problem.eigenvalues > 0
    curvature, weights = problem.eigenvalues[curved], problem.weights[curved]
    n = curvature.size
    factor = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=4 * n * n, max_size=4 * n * n))).reshape(2 * n, -1)
    state = factor @ factor.T
    theta2 = np.diag(state)[:n]
    noise = problem.noise_factor(size) * (
        curvature * (weights * curvature * theta2).sum() + (problem.kurtosis - 2) * curvature**2 * theta2
    )
    velocity = np.hstack([np.diag(curvature), m * np.eye(n)])
    update = np.vstack([np.eye(n, 2 * n) - rate * velocity, velocity])
    kick = np.vstack([-rate * np.eye(n), np.eye(n)])
    after = update @ state @ update.T + kick @ np.diag(noise) @ kick.T

    def stacked(matrix):
        parts = np.diag(matrix)[:n], np.diag(matrix[:n, n:]), np.diag(matrix)[n:]
        return np.concatenate(parts) if m > 0 else parts[0]

    before = stacked(state) if m > 0 else theta2
    matrix = second_moment_map(problem, learning_rate=rate, batch_size=size, momentum=m)
    scale = np.abs(matrix) @ np.abs(before)
    assert (np.abs(matrix @ before - stacked(after)) <= 1e-13 * scale).all()


def test_an_overflowing_map_has_an_infinite_radius():
    problem = theory.LeastSquares([1.0, 0.5])
    assert spectral_radius(problem, learning_rate=1e300, batch_size=1) == np.inf


PROBLEM = theory.LeastSquares([1.0, 0.5], dataset_size=100)
CALLS = {
    "not a problem": (lambda: theory.critical_learning_rate([1.0]), "problem: expected a Quadratic"),
    "batch beyond the data": (lambda: theory.critical_learning_rate(PROBLEM, 101), "batch_size: expected batch sizes"),
    "momentum": (lambda: theory.critical_learning_rate(PROBLEM, 1, 1.0), "momentum: expected 0 ≤ momentum < 1"),
    "shapes": (lambda: theory.critical_learning_rate(PROBLEM, [1, 2], [0, 0.5, 0.9]), "shapes that broadcast"),
    "map of many": (
        lambda: second_moment_map(PROBLEM, learning_rate=[0.1, 0.2], batch_size=1),
        "learning_rate: expected a single number",
    ),
    "map of no problem": (lambda: second_moment_map(1.0, learning_rate=1, batch_size=1), "problem: expected"),
    "negative rate": (lambda: second_moment_map(PROBLEM, learning_rate=-1, batch_size=1), "learning_rate: expected"),
    "radius of no problem": (lambda: spectral_radius(None, learning_rate=1, batch_size=1), "problem: expected"),
    "radius of momentum": (
        lambda: spectral_radius(PROBLEM, learning_rate=1, batch_size=1, momentum=-0.1),
        "momentum: expected",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_impossible_input_is_refused(case):
    call, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        call()
