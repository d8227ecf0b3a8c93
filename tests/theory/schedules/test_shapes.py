"""Schedules by name: torch's, where torch has them, and the formulas of their papers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory

SHARES = st.floats(0.0, 0.5)
FINALS = st.floats(0.0, 1.0)


def values(schedule):
    """The multiplier of every step."""
    return schedule.at(np.arange(schedule.steps))


def by_torch(make, steps):
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("steps", "final"), [(1, 0.5), (7, 0.0), (100, 0.1), (33, 1.0)])
def test_cosine_and_linear_are_torchs(steps, final):
    cosine = by_torch(lambda s, o: s.CosineAnnealingLR(o, T_max=steps, eta_min=final), steps)
    np.testing.assert_allclose(values(theory.cosine(steps, final)), cosine, rtol=1e-10, atol=1e-12)
    linear = by_torch(lambda s, o: s.LinearLR(o, 1.0, final, total_iters=steps), steps)
    np.testing.assert_allclose(values(theory.linear(steps, final=final)), linear, rtol=1e-10, atol=1e-12)


@given(st.integers(1, 300), SHARES, SHARES, FINALS, st.sampled_from(["linear", "cosine", "sqrt"]))
def test_warmup_stable_decay_has_three_parts(steps, warmup, decay, final, shape):
    schedule = theory.warmup_stable_decay(steps, warmup=warmup, decay=decay, final=final, shape=shape)
    found = values(schedule)
    rise, fall = int(steps * warmup + 1e-9), int(steps * decay + 1e-9)
    assert found.size == steps
    np.testing.assert_allclose(found[:rise], np.arange(1, rise + 1) / (rise + 1))
    assert (found[rise : steps - fall] == 1).all()
    t = np.arange(fall) / max(fall, 1)
    left = {"linear": 1 - t, "cosine": (1 + np.cos(np.pi * t)) / 2, "sqrt": 1 - t**0.5}[shape]
    np.testing.assert_allclose(found[steps - fall :], final + (1 - final) * left, atol=1e-15)


@given(st.integers(1, 300), SHARES)
def test_inverse_sqrt_rises_and_falls_as_vaswani_et_al_have_it(steps, warmup):
    rise = max(1, int(steps * warmup + 1e-9))
    found = values(theory.inverse_sqrt(steps, warmup=warmup))
    expected = [min(n**-0.5, n * rise**-1.5) * rise**0.5 for n in range(1, steps + 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.max() == 1.0
    # The schedule so far does not depend on the steps to come: √(w/n), from the end of the rise on.
    longer = values(theory.inverse_sqrt(2 * steps, warmup=rise / (2 * steps)))
    np.testing.assert_allclose(longer[:steps], found)


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=50))
def test_one_value_per_step_may_be_an_array_or_a_function(multipliers):
    array, function = theory.per_step(multipliers), theory.per_step(multipliers.__getitem__, len(multipliers))
    assert array == function
    np.testing.assert_array_equal(values(array), multipliers)


@pytest.mark.parametrize("problem", [theory.power_law(20), theory.LeastSquares([1.0, 0.3, 0.01], label_noise=0.1)])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("name", ["cosine", "linear", "warmup_stable_decay", "inverse_sqrt"])
def test_losses_are_those_of_single_steps(problem, momentum, name):
    """The moment map, applied step by step with the learning rate of each."""
    schedule = getattr(theory, name)(40)
    run = {"batch_size": 4, "momentum": momentum}
    dim = problem.dim
    # Second moments (E θ², E θu, E u²) of every mode, by the definition of an update.
    eigenvalues = problem.eigenvalues
    tt, tu, uu = np.array(problem.initial_second_moment), np.zeros(dim), np.zeros(dim)
    for multiplier in values(schedule):
        eps = 0.3 * multiplier
        if isinstance(problem, theory.LeastSquares):
            feedback = (problem.weights * eigenvalues * tt).sum() + problem.label_noise
            noise = eigenvalues * (feedback + (problem.kurtosis - 2) * eigenvalues * tt) / 4
        else:
            noise = problem.noise_diagonal / 4
        new_u = momentum**2 * uu + 2 * momentum * eigenvalues * tu + eigenvalues**2 * tt + noise
        cross = momentum * tu + eigenvalues * tt  # E θ u′
        tt, tu, uu = tt - 2 * eps * cross + eps**2 * new_u, cross - eps * new_u, new_u
    expected = 0.5 * (problem.weights * eigenvalues * tt).sum()
    found = theory.expected_loss(problem, schedule, learning_rate=0.3, **run)
    assert float(found) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("family", [theory.cosine, theory.linear, theory.warmup_stable_decay, theory.inverse_sqrt])
def test_named_schedules_are_families_with_optimal_learning_rates(family):
    problem, budget = theory.power_law(20), theory.StepBudget(100)
    best = theory.optimal_learning_rate(problem, budget, batch_size=[1, 64], schedule=family)
    for rate, size in zip(best, (1, 64), strict=True):
        tried = rate * np.array([0.9, 1.0, 1.1])
        losses = theory.expected_loss(problem, family(100), learning_rate=tried, batch_size=size)
        assert losses.argmin() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.cosine(0), "steps: expected .* ≥ 1"),
        (lambda: theory.cosine(2.5), "steps"),
        (lambda: theory.cosine(10, final=-0.1), "final: expected a finite multiplier ≥ 0"),
        (lambda: theory.linear(10, final=np.inf), "final: expected a finite multiplier ≥ 0"),
        (lambda: theory.linear(10**9), "steps: expected at most 1e\\+08, with a multiplier each"),
        (lambda: theory.warmup_stable_decay(10, decay=0.6, warmup=0.6), "shares of at most 1 together"),
        (lambda: theory.warmup_stable_decay(10, decay=100), "decay: expected a share of the steps"),
        (lambda: theory.warmup_stable_decay(10, shape="steep"), "shape"),
        (lambda: theory.inverse_sqrt(10, warmup=np.nan), "warmup"),
        (lambda: theory.per_step([]), "multipliers"),
        (lambda: theory.per_step([1.0, -1.0]), "multipliers"),
        (lambda: theory.per_step([1.0, 1.0], steps=3), "steps: expected 2, as multipliers, got 3"),
        (lambda: theory.per_step(lambda step: 1.0), "steps: expected a number of steps beside a function, got None"),
        (lambda: theory.per_step(lambda step: [1.0], 2), r"multipliers\(0\)"),
    ],
)
def test_impossible_schedules_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
