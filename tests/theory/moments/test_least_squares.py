"""Moments of least squares against enumerated batches, step loops in extended precision, powers of a dense matrix."""

import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory import testing
from noisysgd.theory.moments.coupled import GONE, CoupledUpdate
from noisysgd.theory.moments.least_squares import second_moments
from noisysgd.theory.moments.segments import Runs, add_losses, cut

mpmath = pytest.importorskip("mpmath")

ROUTES = ("walk", "jump")


def along(route, monkeypatch):
    """Make every segment take one of the two routes, however long it is."""
    update = CoupledUpdate
    monkeypatch.setattr(update, "segment", getattr(update, route))


def loop_over_steps(problem, schedule, learning_rate, batch_size, momentum):
    """Losses after 0, 1, … steps, the last E θ², and for each loss the scale of what it is a difference of.

    The scale is that of the last two losses and of the kicks that the velocity gives: an oscillating mode that passes
    through zero is known to no more digits than that.
    """
    lam, weights, moment = (
        np.asarray(array, np.longdouble)
        for array in (problem.eigenvalues, problem.weights, problem.initial_second_moment)
    )
    factor, kurtosis = np.longdouble(problem.noise_factor(batch_size)), np.longdouble(problem.kurtosis)
    cross, square = np.zeros_like(lam), np.zeros_like(lam)
    losses, scales = [(weights * lam * moment).sum() / 2], [0.0]
    for step in range(schedule.steps):
        rate = np.longdouble(learning_rate * schedule.at(step))
        feedback = (weights * lam * moment).sum() + problem.label_noise
        noise = factor * lam * (feedback + (kurtosis - 2) * lam * moment)
        square = momentum**2 * square + 2 * momentum * lam * cross + lam**2 * moment + noise
        cross = momentum * cross + lam * moment  # E θu with the old θ and the new u
        moment, cross = moment - 2 * rate * cross + rate**2 * square, cross - rate * square
        losses.append((weights * lam * moment).sum() / 2)
        scales.append(losses[-1] + losses[-2] + rate**2 * (weights * lam * square).sum())
    return np.array(losses, dtype=np.float64), moment.astype(np.float64), np.array(scales, dtype=np.float64)


def exact(problem, rate, factor, momentum, count):
    """(loss, E θ²) after `count` steps, from a power of the affine map of all (E θ², E θu, E u²) in 60 digits."""
    with mpmath.workdps(60):
        lam, weights, start = (
            [mpmath.mpf(float(value)) for value in array]
            for array in (problem.eigenvalues, problem.weights, problem.initial_second_moment)
        )
        eps, gamma, m, sigma2 = map(mpmath.mpf, (rate, factor, momentum, problem.label_noise))
        kappa = mpmath.mpf(problem.kurtosis)
        dim = len(lam)
        step, state = mpmath.matrix(3 * dim + 1, 3 * dim + 1), mpmath.matrix(3 * dim + 1, 1)
        for i in range(dim):
            theta, both, velocity = 3 * i, 3 * i + 1, 3 * i + 2
            for j in range(dim):
                step[velocity, 3 * j] = gamma * lam[i] * weights[j] * lam[j]
            step[velocity, theta] += (1 + gamma * (kappa - 2)) * lam[i] ** 2
            step[velocity, both], step[velocity, velocity] = 2 * m * lam[i], m * m
            step[velocity, 3 * dim] = gamma * lam[i] * sigma2
            for j in range(3 * dim + 1):
                step[both, j], step[theta, j] = -eps * step[velocity, j], eps**2 * step[velocity, j]
            step[both, theta] += lam[i]
            step[both, both] += m
            step[theta, theta] += 1 - 2 * eps * lam[i]
            step[theta, both] -= 2 * eps * m
            state[theta] = start[i]
        state[3 * dim] = step[3 * dim, 3 * dim] = 1
        state = step**count * state
        loss = sum(w * x * state[3 * i] for i, (w, x) in enumerate(zip(weights, lam, strict=True))) / 2
        return float(loss), np.array([float(state[3 * i]) for i in range(dim)])


def examples(curvatures, label_noise, kurtosis):
    """All (probability, input, label) of inputs that are 0 or ±√(κλ), so that κ is their kurtosis, and labels ±σ."""
    values = [(1 / (2 * kurtosis), 1.0), (1 / (2 * kurtosis), -1.0), (1 - 1 / kurtosis, 0.0)]
    values = [value for value in values if value[0] > 0]
    for parts in itertools.product(values, repeat=len(curvatures)):
        chance = np.prod([part[0] for part in parts])
        x = np.sqrt(kurtosis * curvatures) * [part[1] for part in parts]
        for sign in (-1, 1):
            yield chance / 2, x, sign * np.sqrt(label_noise)


def enumerate_steps(batches, states, rate, momentum):
    """All (probability, θ, u) after one more step on the batch's mean of ½(⟨x, θ⟩ − label)²."""
    for (chance, theta, velocity), (likelihood, x, label) in itertools.product(states, batches):
        gradient = (x * (x @ theta - label)[:, None]).mean(axis=0)
        after = momentum * velocity + gradient
        yield chance * likelihood, theta - rate * after, after


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("kurtosis", [1.0, 1.5, 3.0, 5.0])
@pytest.mark.parametrize(("dim", "batch_size", "steps"), [(3, 1, 1), (2, 1, 2), (1, 1, 4), (2, 2, 1), (1, 2, 2)])
def test_moments_by_enumeration_of_batches(dim, batch_size, steps, kurtosis, momentum):
    curvatures, label_noise = np.array([1.0, 0.3, 0.1])[:dim], 0.2
    start = np.array([0.7, -1.1, 2.0])[:dim]
    single = list(examples(curvatures, label_noise, kurtosis))
    batches = [
        (np.prod([p for p, _, _ in batch]), np.array([x for _, x, _ in batch]), np.array([y for _, _, y in batch]))
        for batch in itertools.product(single, repeat=batch_size)
    ]
    states = [(1.0, start, np.zeros(dim))]
    for _ in range(steps):
        states = list(enumerate_steps(batches, states, 0.4, momentum))
    expected = sum(chance * theta**2 for chance, theta, _ in states)
    problem = theory.LeastSquares(curvatures, label_noise, initial_mean=start, initial_variance=0.0, kurtosis=kurtosis)
    moments = second_moments(problem, 0.4, 1 / batch_size, momentum, np.array([steps]), np.array([1.0]))
    np.testing.assert_allclose(moments, expected, rtol=1e-13)


@pytest.mark.parametrize(("dim", "batch_size"), [(1, 2), (2, 3), (3, 2), (2, 7), (2, 8)])
def test_finite_population_by_enumeration_of_batches(dim, batch_size):
    """Inputs ±√λ and labels ±σ, every combination once, are a population with exactly the moments of the model."""
    curvatures, label_noise = np.array([1.0, 0.3, 0.1])[:dim], 0.2
    start = np.array([0.7, -1.1, 2.0])[:dim]
    population = [(x, y) for _, x, y in examples(curvatures, label_noise, 1.0)]
    size = len(population)
    batches = [
        (np.array([x for x, _ in batch]), np.array([y for _, y in batch]))
        for batch in itertools.combinations(population, batch_size)
    ]
    batches = [(1 / len(batches), x, y) for x, y in batches]
    expected = sum(p * theta**2 for p, theta, _ in enumerate_steps(batches, [(1.0, start, 0.0)], 0.4, 0.0))
    problem = theory.LeastSquares(
        curvatures, label_noise, initial_mean=start, initial_variance=0.0, kurtosis=1.0, dataset_size=size
    )
    loss = theory.expected_loss(problem, theory.constant(1), learning_rate=0.4, batch_size=batch_size)
    np.testing.assert_allclose(loss, 0.5 * curvatures @ expected, rtol=1e-13)


@st.composite
def least_squares(draw, max_dim=6):
    """Problems with curvatures over ten decades, equal and flat ones among them."""
    dim = draw(st.integers(1, max_dim))
    pool = [10.0 ** draw(st.floats(-2, 2))]
    for _ in range(dim - 1):
        pool.append(draw(st.one_of(st.sampled_from([0.0, *pool]), st.floats(-8, 2).map(lambda x: 10.0**x))))
    values = st.lists(st.floats(0, 2), min_size=dim, max_size=dim)
    return theory.LeastSquares(
        pool,
        label_noise=draw(st.sampled_from([0.0, 1e-6, 0.3])),
        initial_mean=draw(values),
        initial_variance=draw(values),
        dataset_size=draw(st.sampled_from([None, 1000])),
        weights=np.array(draw(values)) * 10 + 1,
        kurtosis=draw(st.sampled_from([3.0, 2.0, 1.0, 1.7, 10.0])),
    )


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=60)
@given(data=st.data(), problem=least_squares(), schedule=testing.schedules())
def test_moments_equal_a_loop_over_steps(route, data, problem, schedule):
    batch_size = data.draw(testing.batch_sizes(), label="batch_size")
    momentum = data.draw(testing.momenta(), label="momentum")
    critical = float(theory.critical_learning_rate(problem, batch_size, momentum))
    # Nearer to the edge rounding ε would change as much as there is to see: the next test.
    away = st.one_of(st.floats(-3, -0.01), st.floats(0.01, 0.1))
    rate = critical * 10.0 ** data.draw(away, label="log rate")
    slow, moments, scale = loop_over_steps(problem, schedule, rate, batch_size, momentum)
    steps = np.arange(schedule.steps + 1)
    arguments = {"learning_rate": rate, "batch_size": batch_size, "momentum": momentum}
    with pytest.MonkeyPatch.context() as monkeypatch:
        along(route, monkeypatch)
        fast = theory.loss_curve(problem, schedule, **arguments, at=steps)
        factor = float(problem.noise_factor(batch_size))
        states = second_moments(problem, rate, factor, momentum, schedule.lengths, schedule.multipliers)
    assert (np.abs(fast - slow) <= 1e-11 * slow + 1e-12 * scale + GONE).all()
    gone = 0.5 * problem.weights * problem.eigenvalues * np.abs(states - moments) <= GONE
    assert (gone | (np.abs(states - moments) <= 1e-10 * moments.max())).all()


@pytest.mark.parametrize("distance", [0.0, 1e-8, 1e-4, -1e-4])
def test_at_the_edge_of_stability_nine_digits_are_left(distance):
    """A quiet mode that starts and a loud one that it feeds: their eigenvalues nearly meet there."""
    problem = theory.LeastSquares([1.0, 1e-4], label_noise=0.0, initial_variance=[0.0, 1.0])
    rate = float(theory.critical_learning_rate(problem, 1)) * 10.0**-distance
    steps = np.arange(31)
    slow, _, _ = loop_over_steps(problem, theory.constant(30), rate, 1, 0.0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        along("jump", monkeypatch)
        fast = theory.loss_curve(problem, theory.constant(30), learning_rate=rate, batch_size=1, at=steps)
    np.testing.assert_allclose(fast, slow, rtol=3e-9)


@pytest.mark.parametrize("route", ROUTES)
def test_full_batches_make_no_noise(route):
    problem = theory.LeastSquares([1.0, 0.3], label_noise=0.5, initial_variance=0.0, dataset_size=10)
    with pytest.MonkeyPatch.context() as monkeypatch:
        along(route, monkeypatch)
        states = second_moments(problem, 0.1, 0.0, 0.5, np.array([300]), np.array([1.0]))
    assert (states == 0.0).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_minute_states_are_followed_to_the_end_of_a_short_schedule(momentum):
    problem = theory.LeastSquares([1.0], label_noise=0.0, initial_variance=1e-290)
    arguments = 0.1, 1.0, momentum, np.array([1]), np.array([0.01])
    with pytest.MonkeyPatch.context() as monkeypatch:
        along("jump", monkeypatch)
        states = second_moments(problem, *arguments)
    np.testing.assert_allclose(states, 1e-290 * ((1 - 0.001) ** 2 + 2 * 0.001**2), rtol=1e-12)


def losses_of(problem, schedule, rate, factor, momentum):
    """Loss at the end of the schedule, for a noise factor rather than a batch size."""
    loss = np.zeros((1, 1))
    runs = Runs(*(np.array([value]) for value in (rate, factor, momentum, 0.0)))
    add_losses(problem, runs, cut(schedule, np.array([schedule.steps])), loss)
    return loss[0, 0]


# Learning rates are powers of two: then ε·λ has no rounding error, to which the edge would be infinitely sensitive.
SPECTRA = {
    "spread": ([1.0, 0.1, 0.01], 0.25),
    "over ten decades": ([1.0, 1e-5, 1e-10], 0.5),
    "all but equal": ([1.0, 1e-5, 1e-5 * (1 + 1e-12)], 0.25),
    "equal but for the start": ([1.0, 1e-6, 1e-6], 0.25),
    "almost mirror images": ([2.0 - 1e-5, 1e-5, 1e-6], 1.0),
    "just unstable": ([2.0 + 1e-5, 1e-5, 1e-6], 1.0),
}


@pytest.mark.parametrize(
    ("momentum", "factor", "count"),
    [(0.0, 0.5, 10**7), (0.0, 1e-6, 50_000), (0.9, 0.25, 10**7), (0.9, 1e-9, 50_000), (0.99, 1e-3, 10**6)],
)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_no_digits_are_lost_in_many_steps(spectrum, momentum, factor, count):
    curvatures, largest_rate = SPECTRA[spectrum]
    # With momentum the edge is at 2(1+m), and 1+m no power of two: the modes there lie elsewhere.
    rate = largest_rate * (1.0 if momentum < 0.9 else 2.0**-4 if momentum < 0.99 else 2.0**-7)
    for kurtosis, label_noise in ((3.0, 0.0), (1.5, 1e-9)):
        start = {"initial_mean": 0.0, "initial_variance": [2.0, 1.0, 0.1]}
        problem = theory.LeastSquares(curvatures, label_noise, weights=[1, 2, 5], kurtosis=kurtosis, **start)
        expected, moments = exact(problem, rate, factor, momentum, count)
        schedule = theory.constant(count)
        loss = losses_of(problem, schedule, rate, factor, momentum)
        states = second_moments(problem, rate, factor, momentum, schedule.lengths, schedule.multipliers)
        if expected < 1e300:
            np.testing.assert_allclose(loss, expected, rtol=1e-11, atol=1e-290)
            np.testing.assert_allclose(states, moments, rtol=1e-10, atol=1e-15 * moments.max())
        else:
            assert loss == np.inf
            assert (states == np.inf).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("exponent", [0.5, 1.5])
def test_both_routes_agree_on_large_problems(exponent, momentum, monkeypatch):
    problem = theory.LeastSquares(theory.power_law(300, exponent).eigenvalues, label_noise=1e-3)
    schedule = theory.piecewise([2000, 1000], [1.0, 0.1])
    rate = 0.5 * float(theory.critical_learning_rate(problem, 16, momentum))
    at = [1, 10, 100, 1000, 1999, 2000, 2001, 3000]
    expected = loop_over_steps(problem, schedule, rate, 16, momentum)[0][at]
    for route in ROUTES:
        along(route, monkeypatch)
        losses = theory.loss_curve(problem, schedule, learning_rate=rate, batch_size=16, momentum=momentum, at=at)
        np.testing.assert_allclose(losses, expected, rtol=1e-12)


def test_a_dense_spectrum_around_critical_damping(monkeypatch):
    """Poles of the secular equation bunch up where (1−√m)² separates slow modes from oscillating ones."""
    problem = theory.LeastSquares(np.linspace(1e-4, 1.0, 200), label_noise=0.1, kurtosis=2.5)
    schedule = theory.constant(2000)
    for scale, momentum in ((1.0, 0.9), (4.0, 0.9), (1.0, 0.5)):
        rate = scale * (1 - np.sqrt(momentum)) ** 2
        expected = loop_over_steps(problem, schedule, rate, 50, momentum)[0]
        along("jump", monkeypatch)
        arguments = {"learning_rate": rate, "batch_size": 50, "momentum": momentum}
        losses = theory.loss_curve(problem, schedule, **arguments, at=np.arange(2001))
        np.testing.assert_allclose(losses, expected, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_cost_does_not_grow_with_the_number_of_steps(momentum, monkeypatch):
    problem = theory.LeastSquares(theory.power_law(50).eigenvalues, label_noise=0.1)
    taken = []
    iterate = CoupledUpdate.iterate

    def counting(self, state, kick, count):
        taken.append(count)
        return iterate(self, state, kick, count)

    monkeypatch.setattr(CoupledUpdate, "iterate", counting)
    schedule = theory.half_then_decay(10**12)
    arguments = {"learning_rate": 0.2 * (1 - momentum), "batch_size": 4, "momentum": momentum}
    loss = theory.expected_loss(problem, schedule, **arguments)
    waits = 0 if momentum == 0 else 11 * 2 * (80 / (1 - momentum) + 1)  # per segment, with label noise and without
    assert sum(taken) <= waits
    # Steps enough to settle at the last learning rate of all.
    arguments["learning_rate"] *= 2.0**-10
    np.testing.assert_allclose(loss, theory.stationary_loss(problem, **arguments), rtol=1e-12)


@settings(max_examples=40)
@given(data=st.data(), problem=least_squares())
def test_weights_stand_for_modes(data, problem):
    counts = np.array(data.draw(st.lists(st.integers(1, 4), min_size=problem.dim, max_size=problem.dim)))
    same = {"label_noise": problem.label_noise, "kurtosis": problem.kurtosis, "initial_mean": 0.0}
    start = problem.initial_second_moment
    weighted = theory.LeastSquares(problem.eigenvalues, weights=counts, initial_variance=start, **same)
    listed = theory.LeastSquares(
        np.repeat(problem.eigenvalues, counts), initial_variance=np.repeat(start, counts), **same
    )
    rate = 0.5 * theory.critical_learning_rate(weighted, 8, momentum=[0.0, 0.9])
    arguments = {"learning_rate": rate, "batch_size": 8, "momentum": np.array([0.0, 0.9])}
    schedule = theory.piecewise([20_000, 50_000], [1.0, 0.25])
    one, other = (theory.expected_loss(p, schedule, **arguments) for p in (weighted, listed))
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-290)
    lengths, multipliers = schedule.lengths, schedule.multipliers
    one, other = (second_moments(p, rate[1], 0.125, 0.9, lengths, multipliers) for p in (weighted, listed))
    np.testing.assert_allclose(np.repeat(one, counts), other, rtol=1e-12, atol=1e-15 * one.max())


@settings(max_examples=60)
@given(data=st.data(), problem=least_squares(), momentum=testing.momenta(), batch_size=testing.batch_sizes())
def test_stationary_moments_exist_below_the_edge_where_sgd_keeps_them(data, problem, momentum, batch_size):
    edge = float(theory.critical_learning_rate(problem, batch_size, momentum))
    rate = edge * data.draw(st.sampled_from([1e-6, 0.1, 0.999, 1.001, 3.0]), label="rate / edge")
    factor = float(problem.noise_factor(batch_size))
    settings = {"learning_rate": rate, "batch_size": batch_size, "momentum": momentum}
    moments = np.diagonal(theory.stationary_covariance(problem, **settings))
    flat = problem.eigenvalues == 0
    assert (np.isfinite(moments[~flat]) == (rate < edge)).all()
    if rate < edge:
        np.testing.assert_array_equal(moments[flat], problem.initial_variance[flat])
    if rate < edge and momentum == 0:
        there = replace(problem, initial_mean=0.0, initial_variance=moments)
        after = second_moments(there, rate, factor, momentum, np.array([1]), np.array([1.0]))
        np.testing.assert_allclose(after, moments, rtol=1e-9, atol=1e-80)  # below SILENT, noise is nothing


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
def test_runs_settle_at_the_stationary_moments(momentum):
    problem = theory.LeastSquares([1.0, 0.1, 1e-4, 0.0], label_noise=0.3, weights=[1, 4, 20, 3], kurtosis=4.0)
    rate = 0.7 * float(theory.critical_learning_rate(problem, 5, momentum))
    moments = second_moments(problem, rate, 0.2, momentum, np.array([10**9]), np.array([1.0]))
    covariance = theory.stationary_covariance(problem, learning_rate=rate, batch_size=5, momentum=momentum)
    np.testing.assert_allclose(moments, np.diag(covariance), rtol=1e-11)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_without_noise_it_is_the_noisy_quadratic(momentum):
    problem = theory.LeastSquares([2.0, 0.3, 1e-5], label_noise=1.0, dataset_size=64, weights=[1, 2, 3])
    silent = theory.NoisyQuadratic([2.0, 0.3, 1e-5], 0.0, weights=[1, 2, 3])
    schedule = theory.half_then_decay(10**5)
    arguments = {"learning_rate": [0.01, 0.4], "momentum": momentum}
    expected = theory.expected_loss(silent, schedule, batch_size=1, **arguments)
    for batch_size in (64, np.inf):
        losses = theory.expected_loss(problem, schedule, batch_size=batch_size, **arguments)
        np.testing.assert_array_equal(losses, expected)
    # Next to no noise is next to the same, on the other route.
    almost = theory.LeastSquares([2.0, 0.3, 1e-5], label_noise=0.0, weights=[1, 2, 3])
    losses = theory.expected_loss(almost, schedule, batch_size=1e30, **arguments)
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1000, 10**6])
def test_divergence_is_silent_infinite_and_for_good(steps, momentum):
    problem = theory.LeastSquares([1.0, 1e-3, 0.0], label_noise=0.1, weights=[1, 100, 1])
    critical = float(theory.critical_learning_rate(problem, 2, momentum))
    schedule = theory.piecewise([100 * steps, steps, steps], [1.0, 0.0, 0.01])
    at = [0, 100 * steps, 101 * steps, 102 * steps]
    arguments = {"batch_size": 2, "momentum": momentum, "at": at}
    losses = theory.loss_curve(problem, schedule, learning_rate=[0.9 * critical, 2.0 * critical], **arguments)
    assert np.isfinite(losses[0]).all()
    np.testing.assert_array_equal(losses[1], [problem.initial_loss, np.inf, np.inf, np.inf])
    moments = second_moments(problem, 2.0 * critical, 0.5, momentum, schedule.lengths, schedule.multipliers)
    np.testing.assert_array_equal(moments, [np.inf, np.inf, 1.0])
    brief = theory.expected_loss(problem, theory.constant(3), learning_rate=9.0, batch_size=2, momentum=momentum)
    assert 1 < brief < np.inf  # a finite number of unstable steps has an exact, finite loss


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_a_diverging_loss_is_positive_at_every_step_up_to_infinity(momentum):
    problem = theory.LeastSquares([1.0], label_noise=0.0)
    rate = 1.2 * float(theory.critical_learning_rate(problem, 1000, momentum))
    curve = theory.loss_curve(
        problem, theory.constant(5000), learning_rate=rate, batch_size=1000, momentum=momentum, at=np.arange(5001)
    )
    assert curve.min() > 0
    first = int(np.isinf(curve).argmax())
    assert first > 0
    assert np.isinf(curve[first:]).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [3, 10**6])
@pytest.mark.parametrize("unit", [1e-140, 1.0, 1e140])
def test_extreme_numbers_never_make_nan(unit, steps, momentum):
    curvatures = unit * np.array([1.0, 1e-3, 1e-30, 1e-60, 1e-160])
    problem = theory.LeastSquares(curvatures, label_noise=unit, dataset_size=1000)
    rates = np.array([0.0, 1e-160, 1e-70, 1e-50, 1e-20, 1.0, 1e20, 1e100, 1e160]) / unit
    arguments = {"batch_size": [[1], [999], [1000]], "momentum": momentum}
    with np.errstate(all="ignore"):
        rates = rates[np.isfinite(rates)]
    losses = theory.expected_loss(problem, theory.half_then_decay(steps), learning_rate=rates, **arguments)
    assert not np.isnan(losses).any()
    np.testing.assert_allclose(losses[:, 0], problem.initial_loss)


def test_nothing_moves_without_a_start_or_noise():
    problem = theory.LeastSquares([1.0, 0.1], label_noise=0.0, initial_variance=0.0)
    arguments = {"learning_rate": [0.1, 10.0, 1e200], "batch_size": 1, "momentum": [[0.0], [0.9]]}
    losses = theory.expected_loss(problem, theory.half_then_decay(10**6), **arguments)
    np.testing.assert_array_equal(losses, np.zeros((2, 3)))


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    problem = theory.LeastSquares(theory.power_law(100).eigenvalues)
    arguments = {"learning_rate": np.logspace(-3, 0, 12), "batch_size": 8, "momentum": [[0.0], [0.9]]}
    many = theory.expected_loss(problem, theory.half_then_decay(10**5), **arguments)
    monkeypatch.setattr("noisysgd.theory.common.parallel.usable_cores", lambda: 1)
    np.testing.assert_array_equal(theory.expected_loss(problem, theory.half_then_decay(10**5), **arguments), many)


def test_a_first_call_warns_of_nothing():
    """Compiled code caches the types it has seen, and the warnings of their first use: only a new process tells."""
    code = "from noisysgd import theory as t\n"
    code += (
        "t.expected_loss(t.LeastSquares([1.0]), t.constant(9**6), learning_rate=0.1, batch_size=4, momentum=[0, 0.9])"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


GOOD = {"learning_rate": 0.1, "batch_size": 4}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"learning_rate": -0.1}, r"learning_rate: expected values ≥ 0, got -0.1"),
        ({"learning_rate": np.inf}, r"learning_rate: expected finite values"),
        ({"batch_size": 0}, r"batch_size: expected values ≥ 1, got 0"),
        ({"batch_size": 101}, r"batch_size: expected batch sizes ≤ the data set's 100 examples, got 101"),
        ({"momentum": 1.0}, r"momentum: expected 0 ≤ momentum < 1, got 1.0"),
        ({"momentum": [0.1, 0.2], "batch_size": [1, 2, 3]}, r"expected shapes that broadcast"),
    ],
)
def test_bad_settings_are_refused(bad, message):
    problem = theory.LeastSquares([1.0, 0.5], dataset_size=100)
    with pytest.raises(ValueError, match=message):
        theory.expected_loss(problem, theory.constant(10), **(GOOD | bad))
