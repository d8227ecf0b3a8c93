"""Schedules of the batch size: moments step by step, constant ones, and the law that temperature decides."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import theory

EIGENVALUES = [1.0, 0.4, 0.05, 0.0]
CORRELATED = np.array([[1.0, 0.3, 0.0, 0.1], [0.3, 0.5, -0.1, 0.0], [0.0, -0.1, 0.2, 0.0], [0.1, 0.0, 0.0, 0.1]])
START = {"initial_mean": [0.5, -1.0, 0.7, 0.3], "initial_variance": [1.0, 0.5, 2.0, 0.1]}
PROBLEMS = {
    "diagonal noise": theory.NoisyQuadratic(EIGENVALUES, [1.0, 0.6, 0.1, 0.0], **START, dataset_size=100),
    "full noise": theory.NoisyQuadratic(EIGENVALUES, CORRELATED, **START),
    "least squares": theory.LeastSquares(EIGENVALUES, 0.2, **START, dataset_size=100),
}
RATES = theory.piecewise([7, 5, 9], [1.0, 0.5, 0.2])
SIZES = theory.piecewise([4, 8, 9], [2.0, 16.0, 100.0])  # the last without noise, if drawn from 100 examples
RULES = {
    "sgd": {},
    "heavy ball": {"momentum": 0.8},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "average": {"momentum": 0.5, "averaging": 0.9},
    "tail": {"momentum": 0.5, "tail": 0.4},
}


def by_steps(problem, rule, rate):
    """Mean and second moment matrix of (θ, u, θ̄) after every step, by the update's own matrices."""
    m, beta = rule.get("momentum", 0.0), rule.get("averaging", 0.0)
    look = m if rule.get("nesterov") else 0.0
    lam, dim = np.diag(problem.eigenvalues), problem.dim
    mean = np.concatenate([problem.initial_mean, np.zeros(dim), problem.initial_mean])
    spread = np.zeros((3 * dim, 3 * dim))
    for a in (0, 2):
        for b in (0, 2):
            spread[a * dim : (a + 1) * dim, b * dim : (b + 1) * dim] = np.diag(problem.initial_variance)
    second = spread + np.outer(mean, mean)
    means, seconds = [mean], [second]
    eye, zero = np.eye(dim), np.zeros((dim, dim))
    for step in range(RATES.steps):
        eps, factor = rate * float(RATES.at(step)), float(problem.noise_factor(SIZES.at(step)))
        # g = λθ + ξ, u′ = m u + g and θ′ = θ − ε u′, or θ − ε (g + m u′) for Nesterov's step.
        new_u = [lam, m * eye, zero]
        direction = [lam + m * lam, m * m * eye, zero] if look else new_u
        theta = [eye - eps * direction[0], -eps * direction[1], zero]
        average = [(1 - beta) * part for part in theta]
        average[2] = average[2] + beta * eye
        update = np.block([theta, new_u, average])
        push = -eps * (1 + look)
        kick = np.concatenate([push * eye, eye, (1 - beta) * push * eye])
        if isinstance(problem, theory.LeastSquares):
            theta2 = second[:dim, :dim]
            diagonal = np.diag(theta2)
            loss = (problem.eigenvalues * diagonal).sum() + problem.label_noise
            noise = lam * loss + (problem.kurtosis - 2) * np.diag(problem.eigenvalues**2 * diagonal)
            off = theta2 - np.diag(diagonal)
            noise = noise + lam @ off @ lam  # E of the products of two principal axes
        else:
            noise = problem.noise if problem.noise.ndim == 2 else np.diag(problem.noise)
        second = update @ second @ update.T + factor * kick @ noise @ kick.T
        mean = update @ mean
        means.append(mean)
        seconds.append(second)
    return np.array(means), np.array(seconds)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("rule", [name for name in RULES if name != "tail"])
def test_losses_and_covariances_are_those_of_single_steps(problem, rule):
    means, seconds = by_steps(problem, RULES[rule], 0.3)
    dim, at = problem.dim, np.arange(RATES.steps + 1)
    block = slice(2 * dim, 3 * dim) if RULES[rule].get("averaging") else slice(0, dim)
    expected = seconds[:, block, block]
    run = {"learning_rate": 0.3, "batch_size": SIZES, "at": at} | RULES[rule]
    losses = theory.loss_curve(problem, RATES, **run)
    diagonal = expected[:, np.arange(dim), np.arange(dim)]
    np.testing.assert_allclose(losses, 0.5 * diagonal @ problem.eigenvalues, rtol=1e-11)
    spread = expected - means[:, block, None] * means[:, None, block]
    found = theory.covariance(problem, RATES, **run)
    scale = np.sqrt(np.einsum("sii,sjj->sij", expected, expected))
    assert (np.abs(found - spread) <= 1e-10 * scale + 1e-300).all()


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("rule", RULES)
def test_a_constant_schedule_is_that_batch_size(problem, rule):
    run = {"learning_rate": [0.1, 0.3]} | RULES[rule]
    constant = theory.piecewise([21], [16])
    for call in (theory.expected_loss, theory.covariance):
        found, expected = (call(problem, RATES, batch_size=size, **run) for size in (constant, 16))
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-300)


@given(
    rates=st.lists(st.sampled_from([1.0, 0.5, 0.1]), min_size=1, max_size=4),
    sizes=st.lists(st.sampled_from([1, 4, 32, 100]), min_size=1, max_size=4),
    momentum=st.sampled_from([0.0, 0.9]),
    name=st.sampled_from(sorted(PROBLEMS)),
)
@settings(max_examples=30)
def test_the_end_of_a_curve_is_the_start_of_the_rest(rates, sizes, momentum, name):
    """Records cut a segment without changing what comes after, at changes of the batch size too."""
    steps = 24
    schedule = theory.piecewise([steps // len(rates)] * len(rates), rates)
    batch = theory.piecewise([schedule.steps // len(sizes)] * (len(sizes) - 1), sizes[:-1]) if len(sizes) > 1 else None
    rest = schedule.steps - (batch.steps if batch else 0)
    lengths, values = ([*batch.lengths], [*batch.multipliers]) if batch else ([], [])
    batch = theory.piecewise([*lengths, rest], [*values, sizes[-1]])
    run = {"learning_rate": 0.4, "batch_size": batch, "momentum": momentum}
    every = theory.loss_curve(PROBLEMS[name], schedule, at=np.arange(schedule.steps + 1), **run)
    for step in range(schedule.steps + 1):
        alone = theory.loss_curve(PROBLEMS[name], schedule, at=step, **run)
        np.testing.assert_allclose(alone, every[step], rtol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["diagonal noise", "least squares"])
def test_equal_temperatures_give_equal_losses_as_the_learning_rate_falls(name, momentum):
    """Smith et al. 2018: growing the batch is decaying the learning rate, up to first order in it."""
    endless = {
        "diagonal noise": theory.NoisyQuadratic(EIGENVALUES, [1.0, 0.6, 0.1, 0.0], **START),
        "least squares": theory.LeastSquares(EIGENVALUES, 0.2, **START),
    }
    problem = endless[name]
    gaps = []
    for halvings in range(6, 10):
        rate, steps = 2.0**-halvings * (1 - momentum), 320 * 2**halvings
        decaying = theory.half_then_decay(steps, factor=2.0, drops=4)
        rates, sizes = theory.grow_batch(decaying, 4)
        run = {"learning_rate": rate, "momentum": momentum}
        one = theory.expected_loss(problem, decaying, batch_size=4, **run)
        other = theory.expected_loss(problem, rates, batch_size=sizes, **run)
        held = theory.expected_loss(problem, rates, batch_size=4, **run)
        gaps.append(abs(float(other / one) - 1))
        assert float(held / one) > 3, "without growing batches the loss is another"
    assert gaps[-1] < 0.01
    assert all(1.6 < gap / smaller < 2.5 for gap, smaller in itertools.pairwise(gaps))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (theory.constant(20), "batch_size: expected a schedule of 21 steps, got 20. Give the batch size as many"),
        (theory.piecewise([10, 11], [4, 0.5]), "batch_size"),
        (theory.piecewise([10, 11], [4, 200]), "batch_size"),
    ],
)
def test_schedules_that_cannot_be_are_refused(size, message):
    for call in (theory.expected_loss, theory.covariance):
        with pytest.raises(ValueError, match=message):
            call(PROBLEMS["diagonal noise"], RATES, learning_rate=0.1, batch_size=size)
