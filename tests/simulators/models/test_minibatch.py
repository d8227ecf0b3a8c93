"""Minibatches of real examples: which they are, what they do step by step, and what they do on average, exactly.

Statistical checks are in standard errors of the mean over a million numbers or so; `LIMIT` of them are exceeded with
probability 2·10⁻⁹ by a correct simulator, and each check has a mutant, off by 1 %, that must exceed it.
"""

import itertools

import numpy as np
import pytest
import xarray as xr
from drawn_batches import drawn_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import simulators, theory
from noisysgd.simulators import FiniteLeastSquares, Purpose
from noisysgd.simulators.randomness.batches import SAMPLINGS

LIMIT = 6.0
SEED = 3


def batch(size, population, sampling="without_replacement", replica=0, step=0, seed=SEED):
    return drawn_batch(size, population, sampling, seed=seed, replica=replica, step=step)


def words_to_batch(size, population, sampling, replica, step, seed=SEED):
    """The same from the definition: integers of Python, shuffled one by one."""
    batches = population // size
    reshuffle = sampling == "reshuffle"
    purpose = Purpose.RESHUFFLE if reshuffle else Purpose.MINIBATCH
    count = population if reshuffle else size
    index = step // batches if reshuffle else step
    words = simulators.random_words(seed, purpose, replica=replica, step=index, count=count)
    if sampling == "with_replacement":
        return [int(word) * population >> 64 for word in words]
    order = list(range(population))
    for k, word in enumerate(words):
        pick = k + (int(word) * (population - k) >> 64)
        order[k], order[pick] = order[pick], order[k]
    start = step % batches * size if reshuffle else 0
    return order[start : start + size]


@settings(max_examples=200)
@given(data=st.data(), population=st.integers(1, 60), sampling=st.sampled_from(SAMPLINGS))
def test_batches_are_those_of_the_definition(data, population, sampling):
    size = data.draw(st.integers(1, population))
    replica, step = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(0, 2**40))
    assert batch(size, population, sampling, replica, step).tolist() == words_to_batch(
        size, population, sampling, replica, step
    )


def test_subsets_are_uniform():
    """All 10 pairs of 5, in either order, equally often: χ² with 19 degrees of freedom; beyond 75 once in 10⁸."""
    counts = np.zeros((5, 5))
    for step in range(40_000):
        counts[tuple(batch(2, 5, step=step))] += 1
    assert (np.diag(counts) == 0).all()
    off = counts[~np.eye(5, dtype=bool)]
    assert ((off - 2000) ** 2 / 2000).sum() < 75


def test_an_epoch_of_reshuffled_batches_visits_every_example_once():
    for epoch in range(5):
        seen = np.concatenate([batch(3, 11, "reshuffle", step=3 * epoch + k) for k in range(3)])
        assert len(set(seen)) == 9
    first, second = (tuple(batch(3, 11, "reshuffle", step=3 * epoch)) for epoch in (0, 1))
    assert first != second


def data_set(examples=12, dim=4, mean=0.4):
    generator = np.random.default_rng(2)
    inputs = generator.standard_normal((examples, dim)) * np.linspace(1.5, 0.5, dim)
    targets = inputs @ np.ones(dim) + generator.standard_normal(examples)
    return FiniteLeastSquares(inputs, targets, initial_mean=mean, initial_variance=np.linspace(0.1, 0.8, dim))


def loop_over_steps(data, schedule, *, rate, size, momentum, sampling, replica):
    """Excess losses of one replica after every step, from the definition."""
    dim = data.inputs.shape[1]
    z = simulators.normals(0, Purpose.INITIAL_STATE, replicas=[replica], step=0, coordinates=range(dim))[:, 0]
    omega = data.initial_mean + np.sqrt(data.initial_variance) * z
    velocity, best = np.zeros(dim), np.mean((data.inputs @ data.minimizer - data.targets) ** 2) / 2
    losses = [np.mean((data.inputs @ omega - data.targets) ** 2) / 2 - best]
    for step in range(schedule.steps):
        chosen = words_to_batch(size, len(data.targets), sampling, replica, step, seed=0)
        x, y = data.inputs[chosen], data.targets[chosen]
        velocity = momentum * velocity + x.T @ (x @ omega - y) / size
        omega = omega - rate * schedule.at(step) * velocity
        losses.append(np.mean((data.inputs @ omega - data.targets) ** 2) / 2 - best)
    return losses


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("size", "momentum"), [(1, 0.0), (5, 0.9), (12, 0.5)])
def test_trajectories_are_those_of_the_definition(sampling, size, momentum):
    data, schedule, runs = data_set(), theory.half_then_decay(40), range(2, 5)
    result = simulators.simulate(
        data,
        schedule,
        learning_rate=0.05,
        batch_size=size,
        momentum=momentum,
        dynamics="minibatch",
        sampling=sampling,
        replicas=len(runs),
        replica_offset=runs[0],
        record=range(41),
    )
    setting = {"rate": 0.05, "size": size, "momentum": momentum, "sampling": sampling}
    slow = np.mean([loop_over_steps(data, schedule, **setting, replica=run) for run in runs], axis=0)
    np.testing.assert_allclose(result.loss, slow, rtol=1e-10, atol=1e-13)


def exact_losses(data, schedule, rate, factor):
    """E of the excess loss after every step, from the mean and the second moment of the distance to the minimizer.

    A batch's gradient has mean Hδ and covariance `factor` times that of the examples' gradients x(xᵀδ − e): averaged
    over δ, Σ x xᵀ E(xᵀδ − e)²/N less E Hδ(Hδ)ᵀ.
    """
    x, e, h = data.inputs, data.residuals, data.hessian
    mean = data.initial_mean - data.minimizer
    second = np.outer(mean, mean) + np.diag(data.initial_variance)
    losses = [np.trace(h @ second) / 2]
    for step in range(schedule.steps):
        eps = rate * schedule.at(step)
        squares = np.einsum("ni,ij,nj->n", x, second, x) - 2 * e * (x @ mean) + e**2
        noise = factor * ((x * squares[:, None]).T @ x / len(e) - h @ second @ h)
        shrink = np.eye(len(h)) - eps * h
        second, mean = shrink @ second @ shrink.T + eps**2 * noise, shrink @ mean
        losses.append(np.trace(h @ second) / 2)
    return np.array(losses)


@pytest.mark.parametrize("sampling", SAMPLINGS[:2])
@pytest.mark.parametrize("size", [1, 4, 11])
def test_the_mean_loss_is_exact(sampling, size):
    data, schedule, rate = data_set(), theory.piecewise([15, 10], [1.0, 0.5]), 0.08
    factor = 1 / size if sampling == "with_replacement" else (12 - size) / (11 * size)
    result = simulators.simulate(
        data,
        schedule,
        learning_rate=rate,
        batch_size=size,
        dynamics="minibatch",
        sampling=sampling,
        replicas=400_000,
        record=[1, 5, 15, 25],
    )
    exact = exact_losses(data, schedule, rate, factor)[[1, 5, 15, 25]]
    error = result.loss_stderr.values
    assert (np.abs(result.loss.values - exact) < LIMIT * error).all()
    wrong = result.loss.values * 1.01
    assert (np.abs(wrong - exact) > LIMIT * error).any()


def test_reshuffled_epochs_have_the_mean_loss_of_all_permutations():
    """Every order of four examples in two batches of two, twice: 24² runs, each linear in δ."""
    data, rate = data_set(examples=4, dim=2), 0.1
    x, e, h = data.inputs, data.residuals, data.hessian
    mean = data.initial_mean - data.minimizer
    maps = []
    for order in itertools.permutations(range(4)):
        step, shift = np.eye(2), np.zeros(2)
        for chosen in (list(order[:2]), list(order[2:])):
            one = np.eye(2) - rate * x[chosen].T @ x[chosen] / 2
            step, shift = one @ step, one @ shift + rate * x[chosen].T @ e[chosen] / 2
        maps.append((step, shift))
    losses = []
    for (a, b), (c, d) in itertools.product(maps, maps):
        step, shift = c @ a, c @ b + d
        end = step @ mean + shift
        losses.append((end @ h @ end + np.trace(step.T @ h @ step @ np.diag(data.initial_variance))) / 2)
    exact = np.mean(losses)
    run = {"learning_rate": rate, "batch_size": 2, "dynamics": "minibatch", "replicas": 400_000}
    result = simulators.simulate(data, theory.constant(4), sampling="reshuffle", **run).squeeze()
    assert abs(float(result.loss) - exact) < LIMIT * float(result.loss_stderr)
    independent = simulators.simulate(data, theory.constant(4), **run).squeeze()
    assert abs(float(independent.loss) - exact) > LIMIT * float(result.loss_stderr)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("size", [12, np.inf])
def test_full_batches_are_gradient_descent_and_theory_knows_it(size, momentum):
    data, schedule = data_set(), theory.half_then_decay(60)
    run = {"learning_rate": 0.05, "batch_size": size, "momentum": momentum}
    result = simulators.simulate(data, schedule, **run, dynamics="minibatch", replicas=300_000, record=4)
    exact = theory.loss_curve(data.noisy_quadratic(), schedule, **run, at=result.step.values)
    assert (np.abs(result.loss - exact) < LIMIT * result.loss_stderr).all()


def test_the_additive_model_has_the_gradient_noise_of_the_minimizer():
    data = data_set()
    problem = data.noisy_quadratic()
    gradients = -data.residuals[:, None] * data.inputs
    np.testing.assert_allclose(np.trace(problem.noise), np.var(gradients, axis=0).sum(), rtol=1e-12)
    np.testing.assert_allclose(problem.eigenvalues, np.linalg.eigvalsh(data.hessian), rtol=1e-10)
    initial = exact_losses(data, theory.constant(1), 0.1, 0.0)[0]
    assert float(problem.initial_loss) == pytest.approx(initial, rel=1e-12)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_neither_threads_nor_windows_nor_offsets_nor_companions_change_a_bit(sampling, monkeypatch):
    data, schedule = data_set(), theory.half_then_decay(30)
    run = {"dynamics": "minibatch", "sampling": sampling, "record": 3, "momentum": 0.9, "learning_rate": 0.1}
    sizes = [1, 5, 12]
    one, two = (simulators.simulate(data, schedule, batch_size=sizes, **run, replicas=300, threads=n) for n in (1, 2))
    xr.testing.assert_identical(one, two)
    alone = simulators.simulate(data, schedule, batch_size=5, **run, replicas=300)
    np.testing.assert_array_equal(one.loss.sel(batch_size=5), alone.loss)
    monkeypatch.setattr("noisysgd.simulators.ensembles.windows.WINDOW_STEPS", 7)
    cut = simulators.simulate(data, schedule, batch_size=sizes, **run, replicas=300)
    xr.testing.assert_identical(one, cut)
    monkeypatch.undo()
    late = simulators.simulate(data, schedule, batch_size=5, **run, replicas=100, replica_offset=200)
    early = simulators.simulate(data, schedule, batch_size=5, **run, replicas=200)
    np.testing.assert_allclose((2 * early.loss + late.loss) / 3, alone.loss, rtol=1e-13)


def test_divergence_is_infinite_and_silent():
    run = {"learning_rate": [0.1, 100.0], "batch_size": 2, "dynamics": "minibatch", "replicas": 4}
    result = simulators.simulate(data_set(), theory.constant(3000), **run, record=2)
    assert np.isfinite(result.loss[0]).all()
    assert np.isinf(result.loss[1]).all()


def test_a_sampled_data_set_has_the_moments_it_was_drawn_from():
    problem = theory.LeastSquares([2.0, 1.0, 0.5], label_noise=0.3, dataset_size=20_000, initial_mean=0.1)
    data = FiniteLeastSquares.sample(problem, seed=4)
    np.testing.assert_allclose(data.hessian, np.diag(problem.eigenvalues), atol=0.08)
    assert np.var(data.residuals) == pytest.approx(0.3, rel=0.05)
    np.testing.assert_array_equal(data.initial_mean, 0.1)
    assert (data.inputs != FiniteLeastSquares.sample(problem, seed=5).inputs).any()


DATA = data_set()
GOOD = {"learning_rate": 0.1, "batch_size": 2, "dynamics": "minibatch", "replicas": 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FiniteLeastSquares([1.0], [1.0]), r"inputs: expected an \(N, D\) array"),
        (lambda: FiniteLeastSquares([[1.0], [2.0]], [1.0]), r"targets: expected shape \(2,\)"),
        (lambda: FiniteLeastSquares([[1.0], [np.inf]], [1.0, 2.0]), "finite numbers"),
        (lambda: FiniteLeastSquares([[1.0], [2.0]], [1.0, 2.0], initial_mean=[1.0, 2.0]), "initial_mean: expected"),
        (lambda: FiniteLeastSquares([[1.0], [2.0]], [1.0, 2.0], initial_variance=-1), "initial_variance: expected"),
        (lambda: FiniteLeastSquares.sample(theory.LeastSquares([1.0])), "a data-set size"),
        (lambda: simulators.simulate(DATA, theory.constant(3), **(GOOD | {"dynamics": "sgd"})), "dynamics: expected"),
        (lambda: simulators.simulate(DATA, theory.constant(3), **(GOOD | {"batch_size": 13})), "the data set's 12"),
        (lambda: simulators.simulate(DATA, theory.constant(3), **(GOOD | {"batch_size": 2.5})), "whole numbers"),
        (lambda: simulators.simulate(DATA, theory.constant(3), **GOOD, sampling="all"), "sampling: expected one of"),
        (lambda: simulators.simulate(DATA, theory.constant(3), **GOOD, noise="uniform"), "noise: expected 'gaussian'"),
        (
            lambda: simulators.simulate(theory.LeastSquares([1.0]), theory.constant(3), **GOOD),
            "FiniteLeastSquares.sample",
        ),
    ],
)
def test_impossible_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_reshuffling_many_examples_costs_about_an_epochs_permutation():
    """Windows are as long as it takes to be worth the permutation that begins them, and change nothing."""
    problem = theory.LeastSquares([1.0, 0.5], label_noise=0.1, dataset_size=30_000)
    data = simulators.FiniteLeastSquares.sample(problem)
    assert 100 <= data.permuting(32) <= 30_000 // 32
    run = {"learning_rate": 0.05, "batch_size": 32, "dynamics": "minibatch", "sampling": "reshuffle", "replicas": 4}
    schedule = theory.constant(2 * (30_000 // 32) + 5)
    whole = simulators.simulate(data, schedule, **run, record=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulators.FiniteLeastSquares, "permuting", lambda self, drawn: 7)
        patch.setattr("noisysgd.simulators.models.finite_least_squares.window_length", lambda work: 7)
        np.testing.assert_array_equal(simulators.simulate(data, schedule, **run, record=3).loss, whole.loss)
