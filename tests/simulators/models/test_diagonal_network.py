"""The diagonal linear network against its definition, its first step exactly, and the paper's three results."""

import json

import numpy as np
import pytest
import xarray as xr
from drawn_batches import drawn_batch

from noisysgd import simulators, theory
from noisysgd.simulators import DiagonalNetwork, Purpose
from noisysgd.simulators.randomness.batches import SAMPLINGS

LIMIT = 6.0
"""Standard errors that a correct simulator exceeds with probability 2·10⁻⁹."""


def small(label_noise=1.0, examples=6, dim=5):
    generator = np.random.default_rng(1)
    inputs, truth = generator.standard_normal((examples, dim)), np.linspace(1.0, -0.5, dim)
    targets = inputs @ truth + 0.3 * generator.standard_normal(examples)
    return DiagonalNetwork(inputs, targets, truth, initialization=0.5, label_noise=label_noise)


def losses_of(network, weights):
    """Training and test loss, and the mean over examples as a function of the weights alone."""
    plus, minus = np.split(weights, 2)
    beta = plus**2 - minus**2
    return np.mean((network.inputs @ beta - network.targets) ** 2) / 2, ((beta - network.truth) ** 2).sum() / 2


def gradient(network, weights, share, labels):
    """Σ share_i ∇ ½(f(x_i) − labels_i)², by complex steps: exact to rounding, and from the loss alone."""
    result = np.empty_like(weights)
    for j in range(weights.size):
        moved = weights.astype(complex)
        moved[j] += 1e-30j
        plus, minus = np.split(moved, 2)
        residual = network.inputs @ (plus**2 - minus**2) - labels
        result[j] = (share @ (residual**2 / 2)).imag / 1e-30
    return result


def loop_over_steps(network, schedule, *, rate, size, momentum, replica):
    """Losses of one replica after every step, from the definition."""
    count, dim = network.inputs.shape
    weights = np.full(2 * dim, network.initialization)
    velocity, losses = np.zeros(2 * dim), [losses_of(network, weights)]
    whole, rest = divmod(size, count)
    for step in range(schedule.steps):
        chosen = drawn_batch(rest, count, SAMPLINGS[0], seed=0, replica=replica, step=step)
        visited = np.arange(count) if whole else chosen
        times = np.bincount(chosen, minlength=count) + whole
        z = simulators.normals(0, Purpose.LABEL_NOISE, replicas=[replica], step=step, coordinates=range(visited.size))
        labels = network.targets.copy()
        labels[visited] += np.sqrt(network.label_noise / times[visited]) * z[:, 0]
        velocity = momentum * velocity + gradient(network, weights, times / size, labels)
        weights = weights - rate * schedule.at(step) * velocity
        losses.append(losses_of(network, weights))
    return np.array(losses)


@pytest.mark.parametrize(("size", "momentum"), [(1, 0.0), (4, 0.9), (6, 0.9), (15, 0.5)])
def test_trajectories_are_those_of_the_definition(size, momentum):
    network, schedule = small(), theory.half_then_decay(30)
    run = {"learning_rate": 0.02, "batch_size": size, "momentum": momentum, "dynamics": "minibatch"}
    result = simulators.simulate(network, schedule, **run, replicas=2, replica_offset=3, record=range(31))
    slow = np.mean(
        [loop_over_steps(network, schedule, rate=0.02, size=size, momentum=momentum, replica=k) for k in (3, 4)], axis=0
    )
    np.testing.assert_allclose(result.train_loss, slow[:, 0], rtol=1e-10)
    np.testing.assert_allclose(result.test_loss, slow[:, 1], rtol=1e-10)


def exact_first_step(network, rate, size, sampling="without_replacement"):
    """E of both losses after one step from equal weights, where β′ = −4αε·2α·Xᵀc is linear in the noise of c.

    c has mean r/n, and covariance from label noise σ²/B I/n and from sampling γ/n diag(r²) less the mean's share.
    """
    count, alpha = network.dataset_size, network.initialization
    residual = -network.targets
    label, sampled = network.noise_factors(size, sampling)
    mean = residual / count
    centring = np.eye(count) - 1 / count
    covariance = label / count * np.eye(count)
    covariance += sampled / count * np.diag(residual) @ centring @ np.diag(residual)
    out = -8 * alpha**2 * rate * network.inputs.T
    beta, spread = out @ mean, out @ covariance @ out.T
    error = network.inputs @ beta - network.targets
    train = (np.mean(error**2) + np.trace(network.inputs @ spread @ network.inputs.T) / count) / 2
    return train, (((beta - network.truth) ** 2).sum() + np.trace(spread)) / 2


@pytest.mark.parametrize("dynamics", ["minibatch", "sgd"])
@pytest.mark.parametrize(
    ("size", "sampling"), [(1, SAMPLINGS[0]), (4, SAMPLINGS[0]), (10, SAMPLINGS[0]), (4, SAMPLINGS[1])]
)
def test_the_first_step_has_the_exact_mean_losses(dynamics, size, sampling):
    network, rate = small(label_noise=0.5), 0.1
    run = {"learning_rate": rate, "batch_size": size, "dynamics": dynamics, "sampling": sampling}
    result = simulators.simulate(network, theory.constant(1), **run, replicas=400_000).squeeze()
    for name, exact in zip(network.metrics, exact_first_step(network, rate, size, sampling), strict=True):
        error = float(result[f"{name}_stderr"])
        assert abs(float(result[name]) - exact) < LIMIT * error
        assert abs(1.01 * float(result[name]) - exact) > LIMIT * error


def test_gaussian_noise_follows_minibatches_and_the_sde_both():
    """At a small learning rate the three agree, at a large one the SDE's training loss is another."""
    network, schedule = small(), theory.constant(100)
    run = {"learning_rate": [0.002, 0.05], "batch_size": 3, "replicas": 4_000}
    one, two, three = (simulators.simulate(network, schedule, **run, dynamics=name) for name in network.dynamics)
    for other in (two, three):
        gap = np.abs(one.test_loss - other.test_loss).isel(learning_rate=0)
        assert (gap < 0.01 * one.test_loss.isel(learning_rate=0)).all()
    gap = (one.train_loss - three.train_loss).isel(learning_rate=1, step=0)
    assert abs(float(gap)) > 6 * float(one.train_loss_stderr.isel(learning_rate=1, step=0))


def test_one_substep_of_the_sde_is_an_update_with_gaussian_noise():
    network, run = small(), {"learning_rate": 0.03, "batch_size": 4, "replicas": 50, "record": 3}
    one = simulators.simulate(network, theory.half_then_decay(20), **run, dynamics="sgd")
    two = simulators.simulate(network, theory.half_then_decay(20), **run, dynamics="sde", substeps=1)
    np.testing.assert_array_equal(one.test_loss, two.test_loss)


@pytest.mark.parametrize("dynamics", ["minibatch", "sgd", "sde"])
def test_without_noise_all_dynamics_descend_the_gradient(dynamics):
    network = small(label_noise=0.0)
    run = {"learning_rate": 0.001, "batch_size": np.inf, "replicas": 2, "dynamics": dynamics}
    result = simulators.simulate(network, theory.constant(300), **run, record=3)
    assert (result.train_loss_stderr == 0).all()
    full = simulators.simulate(network, theory.constant(300), **(run | {"batch_size": 6}), record=3)
    np.testing.assert_allclose(full.test_loss, result.test_loss, rtol=1e-12)
    weights, losses = np.full(10, network.initialization), []
    share = np.full(6, 1 / 6)
    for step in range(300):
        weights = weights - 0.001 * gradient(network, weights, share, network.targets)
        if step + 1 in result.step:
            losses.append(losses_of(network, weights)[1])
    np.testing.assert_allclose(result.test_loss, losses, rtol=1e-3 if dynamics == "sde" else 1e-10)


@pytest.mark.parametrize("dynamics", ["minibatch", "sgd"])
def test_neither_threads_nor_windows_nor_companions_change_a_bit(dynamics, monkeypatch):
    network, schedule = small(), theory.half_then_decay(25)
    run = {"learning_rate": 0.02, "momentum": 0.9, "dynamics": dynamics, "record": 4, "replicas": 300}
    one, two = (simulators.simulate(network, schedule, batch_size=[2, 9], **run, threads=n) for n in (1, 2))
    xr.testing.assert_identical(one, two)
    alone = simulators.simulate(network, schedule, batch_size=9, **run)
    np.testing.assert_array_equal(one.test_loss.sel(batch_size=9), alone.test_loss)
    monkeypatch.setattr("noisysgd.simulators.ensembles.windows.WINDOW_STEPS", 4)
    xr.testing.assert_identical(one, simulators.simulate(network, schedule, batch_size=[2, 9], **run))


def test_divergence_is_infinite_and_silent():
    run = {"learning_rate": [0.01, 100.0], "batch_size": 2, "dynamics": "minibatch", "replicas": 4}
    result = simulators.simulate(small(), theory.constant(3000), **run, record=2)
    assert np.isfinite(result.test_loss[0]).all()
    assert np.isinf(result.test_loss[1]).all()
    assert np.isinf(result.train_loss[1]).all()


def test_simulated_sweeps_say_what_they_are_of():
    """The design's "full configuration": enough to tell two experiments apart."""
    network = simulators.sparse_regression(dim=10, examples=8, nonzero=1)
    budgets = theory.StepBudget(20), theory.StepBudget(21)
    texts = [
        simulators.bracketed_sweep(network, budget, batch_sizes=[2], runs=3, keep=2, seed=seed).attrs["configuration"]
        for budget, seed in [(budgets[0], 0), (budgets[1], 0), (budgets[0], 1)]
    ]
    assert len(set(texts)) == 3
    about = json.loads(texts[1])
    assert about["budget"] == {"class": "StepBudget", "total": 21}
    assert about["model"]["class"] == "DiagonalNetwork"
    pairs = simulators.bracketed_pairs(network, budgets[1], batch_size=2, runs=3, keep=2)
    assert json.loads(pairs.attrs["configuration"])["model"] == about["model"]
    grid = {"batch_sizes": [2], "effective_learning_rates": [0.1]}
    exact = theory.predict_sweep(theory.power_law(100), budgets[0], **grid)
    simulated = simulators.simulate_sweep(theory.power_law(100), budgets[0], **grid, replicas=4)
    problems = [json.loads(sweep.attrs["configuration"])["problem"] for sweep in (exact, simulated)]
    assert problems[0] == problems[1]
    assert len(problems[0]["eigenvalues"]["sha256"]) == 64


def test_long_arrays_are_not_printed():
    for thing in (theory.power_law(1000), theory.half_then_decay(10**6), simulators.sparse_regression()):
        assert len(repr(thing)) < 250


def test_sparse_regression_is_as_described():
    network = simulators.sparse_regression(dim=300, examples=2000, nonzero=7, target_noise=4.0)
    assert network.truth.sum() == 7
    assert np.var(network.targets - network.inputs @ network.truth) == pytest.approx(4.0, rel=0.1)
    assert np.var(network.inputs) == pytest.approx(1, rel=0.01)
    assert (simulators.sparse_regression(seed=1).inputs != simulators.sparse_regression().inputs).all()


# The paper's results


def test_a_sweep_grows_until_its_optima_are_bracketed():
    network = simulators.sparse_regression(dim=20, examples=10, nonzero=2)
    sweep = simulators.bracketed_sweep(
        network, theory.StepBudget(300), batch_sizes=[2, 40], momentum=[0.0, 0.9], runs=5, keep=4, start=(-3, -2)
    )
    for metric in network.metrics:
        assert theory.optimum(sweep, metric, keep=4).bracketed.all()
    assert {2.0**-3, 2.0**-2} < set(np.round(sweep.effective_learning_rate.sel(optimizer="sgd").values, 12))
    assert (sweep.status == 2).any()  # a diverged end


def test_points_of_a_sweep_are_runs_of_the_simulator():
    network, schedule = simulators.sparse_regression(dim=20, examples=10, nonzero=2), theory.half_then_decay(100)
    sweep = simulators.bracketed_sweep(network, theory.StepBudget(100), batch_sizes=4, momentum=0.0, runs=5, keep=4)
    run = {"learning_rate": 2.0**-5, "batch_size": 4, "dynamics": "minibatch", "replicas": 5}
    result = simulators.simulate(network, schedule, **run)
    point = sweep.sel(learning_rate=2.0**-5).squeeze()
    for metric in network.metrics:
        np.testing.assert_allclose(point[metric].mean(), result[metric].squeeze(), rtol=1e-12)


@pytest.mark.slow
def test_the_shapes_of_the_paper_s_results():
    """Table 1, Figure 2 and Figure 3, with the paper's numbers of runs; docs/noise_helps.py draws the whole of it."""
    network = simulators.sparse_regression()
    sizes = [1, 8, 64, 1024, 8192]
    sweep = simulators.bracketed_sweep(network, theory.StepBudget(500), batch_sizes=sizes)
    train, test = (theory.optimum(sweep, metric).squeeze() for metric in network.metrics)
    assert train.bracketed.all()
    assert test.bracketed.all()
    assert (np.diff(train["mean"]) < 0).all()  # more of a batch, less of a training loss
    best = int(np.argmin(test["mean"].values))
    assert sizes[best] in (8, 64)  # tests are best in between
    worst, spread = test["mean"].values[-1], test["std"].values
    assert worst > test["mean"].values[best] + spread[best] + spread[-1]

    rates = {metric: [] for metric in network.metrics}
    pairs = {metric: [] for metric in network.metrics}
    for epochs in (50, 3200):
        budget = theory.EpochBudget(epochs, network.dataset_size)
        sweep = simulators.bracketed_sweep(network, budget, batch_sizes=8)
        grid = simulators.bracketed_pairs(network, budget, batch_size=8)
        for metric in network.metrics:
            optimum = theory.optimum(sweep, metric).squeeze()
            pair = simulators.best_pair(grid, metric)
            assert optimum.bracketed
            assert pair.initial_bracketed
            assert pair.final_bracketed
            rates[metric].append(float(optimum.effective_learning_rate))
            pairs[metric].append((float(pair.initial), float(pair.final)))
    falls = {metric: first / last for metric, (first, last) in rates.items()}
    assert falls["train_loss"] >= 8  # 64 times the epochs
    assert falls["test_loss"] <= 2
    (train_start, _), (test_start, test_end) = pairs["train_loss"][1], pairs["test_loss"][1]
    assert test_start > train_start
    assert pairs["test_loss"][0][0] <= 2 * test_start  # the initial learning rate stays
    assert test_end < pairs["test_loss"][0][1] / 100  # the final one falls


NETWORK = small()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DiagonalNetwork([[1.0], [2.0]], [1.0, 2.0], truth=[1.0, 2.0]), "truth: expected"),
        (
            lambda: DiagonalNetwork([[1.0], [2.0]], [1.0, 2.0], truth=1.0, initialization=0.0),
            "initialization: expected",
        ),
        (lambda: DiagonalNetwork([[1.0], [2.0]], [1.0, 2.0], truth=1.0, label_noise=-1.0), "label_noise: expected"),
        (lambda: simulators.sparse_regression(dim=3, nonzero=4), "nonzero: expected at most 3"),
        (
            lambda: simulators.simulate(NETWORK, theory.constant(3), learning_rate=0.1, batch_size=2, dynamics="jump"),
            "dynamics: expected one of 'minibatch', 'sgd', 'sde'",
        ),
        (
            lambda: simulators.simulate(
                NETWORK,
                theory.constant(3),
                learning_rate=0.1,
                batch_size=7,
                dynamics="minibatch",
                sampling="reshuffle",
            ),
            "at most 6 when reshuffling",
        ),
        (
            lambda: simulators.bracketed_sweep(NETWORK, theory.EpochBudget(3, 7), batch_sizes=2),
            "budget: expected one of 6 examples",
        ),
        (
            lambda: simulators.bracketed_sweep(NETWORK, theory.StepBudget(3), batch_sizes=2, runs=3, keep=4),
            "keep: expected at most the 3 runs",
        ),
    ],
)
def test_impossible_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
