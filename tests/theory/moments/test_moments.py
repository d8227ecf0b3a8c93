"""Exact moments against independent routes: step loops, extended precision, limits, published numbers."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory import testing

mpmath = pytest.importorskip("mpmath")


def loop_over_steps(problem, schedule, learning_rate, batch_size, momentum):
    """Losses after 0, 1, … steps from the covariance of (θ, u), one step at a time, in long double.

    Also the scale of each: that of every mode is its loss and that of the kick that its velocity is about to give, or
    what is left of an earlier scale after decaying at the mode's own rate. Where a mode passes through zero its loss is
    a small difference of contributions of that size, known to no more digits than that.
    """
    dim = problem.dim
    curvature = np.diag(problem.eigenvalues).astype(np.longdouble)
    identity = np.eye(dim, dtype=np.longdouble)
    noise = problem.noise if problem.noise.ndim == 2 else np.diag(problem.noise)
    noise = noise * np.longdouble(problem.noise_factor(batch_size))
    moment = np.zeros((2 * dim, 2 * dim), dtype=np.longdouble)
    mean = problem.initial_mean.astype(np.longdouble)
    moment[:dim, :dim] = np.outer(mean, mean) + np.diag(problem.initial_variance)
    losses = [np.trace(curvature @ moment[:dim, :dim]) / 2]
    own = problem.eigenvalues * np.diag(moment[:dim, :dim]) / 2
    scales = [own.sum()]
    for step in range(schedule.steps):
        rate = np.longdouble(learning_rate) * schedule.at(step)
        velocity = np.hstack([curvature, momentum * identity])  # u after the step, from (θ, u)
        position = np.hstack([identity, 0 * identity]) - rate * velocity
        update = np.vstack([position, velocity])
        kick = np.vstack([-rate * identity, identity])
        moment = update @ moment @ update.T + kick @ noise @ kick.T
        losses.append(np.trace(curvature @ moment[:dim, :dim]) / 2)
        both = np.diag(moment[:dim, :dim]) + rate**2 * np.diag(moment[dim:, dim:])
        own = np.maximum(decay_rates(problem.eigenvalues, rate, momentum) ** 2 * own, problem.eigenvalues * both / 2)
        scales.append(own.sum())
    return np.array(losses, dtype=np.float64), np.array(scales, dtype=np.float64)


def decay_rates(eigenvalues, rate, momentum):
    """Spectral radius of each mode's step in (θ, u)."""
    steps = np.empty((eigenvalues.size, 2, 2))
    steps[:, 0, 0], steps[:, 0, 1] = 1 - rate * eigenvalues, -rate * momentum
    steps[:, 1, 0], steps[:, 1, 1] = eigenvalues, momentum
    return np.abs(np.linalg.eigvals(steps)).max(axis=1)


@settings(max_examples=200)
@given(data=st.data(), problem=testing.problems(), schedule=testing.schedules())
def test_moments_equal_a_loop_over_steps(data, problem, schedule):
    learning_rate = data.draw(testing.learning_rates(problem, high=1.3), label="learning_rate")
    batch_size = data.draw(testing.batch_sizes(), label="batch_size")
    momentum = data.draw(testing.momenta(), label="momentum")
    slow, scale = loop_over_steps(problem, schedule, learning_rate, batch_size, momentum)
    fast = theory.loss_curve(
        problem,
        schedule,
        learning_rate=learning_rate,
        batch_size=batch_size,
        momentum=momentum,
        at=np.arange(schedule.steps + 1),
    )
    assert (np.abs(fast - slow) <= 1e-10 * slow + 1e-12 * scale + 1e-300).all()


def exact_mode(curvature, noise, rate, momentum, count, start=(1.0, 0.0, 0.0)):
    """(E θ², E θu, E u²) of one mode after `count` steps, in 60 digits, from a power of the affine map."""
    with mpmath.workdps(60):
        lam, s, eps, m = map(mpmath.mpf, (curvature, noise, rate, momentum))
        a, b = 1 - eps * lam, -eps * m
        step = mpmath.matrix(
            [
                [a * a, 2 * a * b, b * b, eps * eps * s],
                [a * lam, a * m + b * lam, b * m, -eps * s],
                [lam * lam, 2 * lam * m, m * m, s],
                [0, 0, 0, 1],
            ]
        )
        result = step**count * mpmath.matrix([*start, 1])
        return [float(x) for x in result[:3]]


# Learning rates are powers of two: then ε·λ has no rounding error of its own, to which ε at the edge is infinitely
# sensitive, and the comparison sees the algorithm alone.
HARD = {
    "flat": lambda m: 1e-14,
    "nearly flat": lambda m: 1e-6,
    "lower critical damping": lambda m: (1 - np.sqrt(m)) ** 2,
    "near lower critical damping": lambda m: (1 - np.sqrt(m)) ** 2 * (1 + 1e-9),
    "complex roots": lambda m: 1.0,
    "upper critical damping": lambda m: (1 + np.sqrt(m)) ** 2,
    "just stable": lambda m: 2 * (1 + m) * (1 - 1e-12),
    "at the edge": lambda m: 2 * (1 + m),
    "just unstable": lambda m: 2 * (1 + m) * (1 + 1e-9),
}


@pytest.mark.parametrize("count", [1, 2, 37, 1000, 10**7])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9, 0.99])
@pytest.mark.parametrize("place", HARD)
@pytest.mark.parametrize(("start", "noise"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1e-6)])
def test_no_digits_are_lost_where_it_is_hard(place, momentum, count, start, noise):
    rate = 0.25
    curvature = float(HARD[place](momentum)) / rate
    expected = exact_mode(curvature, noise, rate, momentum, count, (start, 0.0, 0.0))[0] * curvature / 2
    problem = theory.NoisyQuadratic([curvature], noise, initial_mean=np.sqrt(start), initial_variance=0.0)
    loss = theory.expected_loss(problem, theory.constant(count), learning_rate=rate, batch_size=1, momentum=momentum)
    np.testing.assert_allclose(loss, expected, rtol=1e-10, atol=1e-290)


TABLE = [  # batch size, smallest number of steps to loss 0.01, learning rate that attains it (d = 10 000)
    (4, 1_515_845, 0.01292),
    (64, 95_989, 0.2154),
    (256, 25_778, 0.7743),
    (4096, 7_870, 1.8957),
    (65536, 7_079, 1.8957),
]


@pytest.mark.parametrize(("batch_size", "steps", "rate"), TABLE)
def test_reference_table_of_steps_to_target(batch_size, steps, rate):
    problem = theory.power_law(10_000)
    grid = np.logspace(-5, 0.5, 100)
    reached = theory.expected_loss(problem, theory.constant(steps), learning_rate=grid, batch_size=batch_size) <= 0.01
    before = theory.expected_loss(problem, theory.constant(steps - 1), learning_rate=grid, batch_size=batch_size)
    assert not (before <= 0.01).any()
    np.testing.assert_allclose(grid[reached], [rate], rtol=5e-4)


def test_reference_initial_loss():
    assert float(theory.power_law(10_000).initial_loss) == pytest.approx(4.893803, abs=5e-7)


@settings(max_examples=50)
@given(problem=testing.problems(full_noise=False), schedule=testing.schedules(), data=st.data())
def test_rescaling_the_parameters_changes_nothing(problem, schedule, data):
    """θ → θ/c turns (λ, F, E θ₀²) into (c²λ, c²F, E θ₀²/c²); with ε/c² the losses are the same."""
    c = 2.0 ** data.draw(st.integers(-8, 8))
    rate = data.draw(testing.learning_rates(problem))
    other = theory.NoisyQuadratic(
        problem.eigenvalues * c**2,
        problem.noise * c**2,
        problem.initial_mean / c,
        problem.initial_variance / c**2,
        problem.dataset_size,
    )
    arguments = {"batch_size": 8, "momentum": np.array([0.0, 0.9])}
    one = theory.expected_loss(problem, schedule, learning_rate=rate, **arguments)
    two = theory.expected_loss(other, schedule, learning_rate=rate / c**2, **arguments)
    np.testing.assert_allclose(two, one, rtol=1e-12, atol=1e-300)  # rescaled, subnormal numbers lose digits


def test_full_batch_is_noiseless_and_infinite_batch_too():
    noisy = theory.power_law(5, dataset_size=100)
    silent = theory.NoisyQuadratic(noisy.eigenvalues, 0.0)
    schedule = theory.half_then_decay(40)
    arguments = {"learning_rate": 0.7, "momentum": np.array([0.0, 0.9])}
    expected = theory.expected_loss(silent, schedule, batch_size=1, **arguments)
    for batch_size in (100, np.inf):
        np.testing.assert_array_equal(
            theory.expected_loss(noisy, schedule, batch_size=batch_size, **arguments), expected
        )
    assert (theory.expected_loss(noisy, schedule, batch_size=99, **arguments) > expected).all()


def test_finite_population_factor_by_enumeration():
    """All batches of 2 from 5 gradients: the covariance of their means is F/B · (N−B)/(N−1)."""
    gradients = np.array([0.3, -1.0, 2.0, 0.1, -1.4])
    means = [(gradients[i] + gradients[j]) / 2 for i in range(5) for j in range(i)]
    factor = theory.NoisyQuadratic([1.0], 1.0, dataset_size=5).noise_factor(2)
    assert np.var(means) == pytest.approx(np.var(gradients) * float(factor))


def test_divergence_is_silent_and_infinite():
    problem = theory.power_law(10)
    losses = theory.expected_loss(
        problem, theory.constant(100_000), learning_rate=[0.1, 3.0], batch_size=1, momentum=[[0.0], [0.5]]
    )
    assert np.isfinite(losses[:, 0]).all()
    assert losses[0, 1] == np.inf
    brief = theory.expected_loss(problem, theory.constant(10), learning_rate=3.0, batch_size=1)
    assert 1 < brief < np.inf  # a finite number of unstable steps has an exact, finite loss


def test_curve_takes_steps_in_any_order_and_repeated():
    problem, schedule = theory.power_law(7), theory.half_then_decay(100)
    at = [100, 3, 0, 3, 55]
    curve = theory.loss_curve(problem, schedule, learning_rate=[0.1, 0.2], batch_size=4, momentum=0.9, at=at)
    singles = [
        theory.loss_curve(problem, schedule, learning_rate=[0.1, 0.2], batch_size=4, momentum=0.9, at=t) for t in at
    ]
    np.testing.assert_allclose(curve, np.stack(singles, axis=-1), rtol=1e-13)
    assert curve.shape == (2, 5)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    problem, schedule = theory.power_law(500), theory.half_then_decay(1000)
    arguments = {"learning_rate": np.logspace(-3, 0, 40), "batch_size": 8, "momentum": 0.9}
    many = theory.expected_loss(problem, schedule, **arguments)
    monkeypatch.setattr("noisysgd.theory.common.parallel.usable_cores", lambda: 1)
    np.testing.assert_array_equal(theory.expected_loss(problem, schedule, **arguments), many)


def test_a_first_call_warns_of_nothing():
    """Compiled code caches the types it has seen, and the warnings of their first use: only a new process tells."""
    code = "from noisysgd import theory as t\n"
    code += "t.expected_loss(t.power_law(3), t.constant(2), learning_rate=[0.1], batch_size=4)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_losses_that_underflow_are_not_negative():
    run = {"learning_rate": 3.79688221617179, "batch_size": 64, "momentum": 0.9}
    curve = theory.loss_curve(theory.NoisyQuadratic([1.0], 0.0), theory.constant(7078), at=np.arange(7079), **run)
    assert (curve >= 0).all()


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
def test_records_do_not_cost_digits_at_the_edge_of_stability(momentum):
    problem, at = theory.NoisyQuadratic([1.0], 1.0), [1000, 1500, 3000]
    run = {"learning_rate": 2 * (1 + momentum), "batch_size": 64, "momentum": momentum}
    curve = theory.loss_curve(problem, theory.constant(3000), at=at, **run)
    ends = [float(theory.expected_loss(problem, theory.constant(n), **run)) for n in at]
    np.testing.assert_allclose(curve, ends, rtol=1e-13)
