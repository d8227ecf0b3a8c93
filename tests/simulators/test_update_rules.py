"""Simulated Nesterov steps, penalties and averages, against the exact theory; three in a million may fail by chance."""

import numpy as np
import pytest

from noisysgd import simulators, theory

NOISE = np.diag([1.0, 0.1, 0.3])
PROBLEM = theory.NoisyQuadratic([1.0, 0.1, 2.2], np.diag(NOISE), initial_mean=[1.0, 0.0, 2.0])
CORRELATED = theory.NoisyQuadratic(PROBLEM.eigenvalues, NOISE + 0.1, PROBLEM.initial_mean)
SCHEDULE = theory.piecewise([37, 21, 5], [1.0, 0.5, 0.0])
PENALTY = theory.L2(0.3, [1.0, 2.0, -1.0])
RULES = {
    "nesterov": {"nesterov": True},
    "penalty": {"l2": PENALTY},
    "all": {"nesterov": True, "l2": PENALTY, "tail": 1.0},
    "tail": {"tail": 0.3, "l2": PENALTY},
}


def distance(problem, rule, *, momentum=0.9, dynamics="sgd", record=(0, 10, 63), **changed):
    """Standard errors between simulation and theory, at the records."""
    record = None if rule.get("tail", 0.0) not in (0.0, 1.0) else list(record)
    run = {"learning_rate": 0.3, "batch_size": 4, "momentum": momentum}
    result = simulators.simulate(
        problem, SCHEDULE, **run, **rule, dynamics=dynamics, record=record, replicas=20_000, seed=3, **changed
    )
    exact = theory.loss_curve(problem, SCHEDULE, **run, **(rule | changed_rule(changed)), at=result.step.values)
    return np.abs((result.loss - exact) / result.loss_stderr).values


def changed_rule(changed):
    """What is changed in a simulation but not a rule of theory."""
    return {name: value for name, value in changed.items() if name not in ("dtype", "threads")}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("problem", [PROBLEM, CORRELATED], ids=["diagonal", "full"])
def test_updates_agree_with_theory(problem, rule, momentum):
    # The largest of up to 3 correlated deviates; 5 standard errors are passed by 2 · 10⁻⁶ of all runs.
    assert distance(problem, RULES[rule], momentum=momentum).max() < 5


@pytest.mark.parametrize("rule", ["nesterov", "penalty"])
@pytest.mark.parametrize("problem", [PROBLEM, CORRELATED], ids=["diagonal", "full"])
def test_jumps_agree_with_theory(problem, rule):
    assert distance(problem, RULES[rule], dynamics="jump").max() < 5


@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_other_precisions_agree_with_theory(dtype):
    assert distance(PROBLEM, RULES["all"], dtype=dtype).max() < 5


def test_the_heavy_ball_is_not_nesterovs_step():
    """The mutant that must fail: without the option, the simulation is many standard errors away."""
    run = {"learning_rate": 0.3, "batch_size": 4, "momentum": 0.9}
    result = simulators.simulate(PROBLEM, SCHEDULE, **run, replicas=20_000).isel(step=-1)
    exact = theory.expected_loss(PROBLEM, SCHEDULE, **run, nesterov=True)
    assert abs(float((result.loss - exact) / result.loss_stderr)) > 20


def test_threads_and_windows_change_no_bit_of_an_average():
    run = {"learning_rate": 0.3, "batch_size": 4, "momentum": 0.9, "nesterov": True, "tail": 0.5, "replicas": 300}
    schedule = theory.constant(2500)  # more than one window
    alone = simulators.simulate(PROBLEM, schedule, **run, threads=1).isel(step=-1)
    together = simulators.simulate(PROBLEM, schedule, **run, threads=2).isel(step=-1)
    assert alone.loss.values == together.loss.values
    exact = theory.expected_loss(PROBLEM, schedule, **{k: v for k, v in run.items() if k != "replicas"})
    assert abs(float((alone.loss - exact) / alone.loss_stderr)) < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nesterov": True, "dynamics": "sde"}, "heavy ball's"),
        ({"nesterov": True, "backend": "cuda"}, "no CUDA kernels"),
        ({"tail": 0.5, "dynamics": "jump"}, "pass over the iterates"),
        ({"tail": 0.5, "record": 3}, "record the end alone"),
        ({"l2": 0.5}, "L2"),
    ],
)
def test_what_has_no_kernel_is_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        simulators.simulate(PROBLEM, SCHEDULE, learning_rate=0.1, batch_size=1, **options)


def test_models_made_of_examples_follow_the_papers_updates():
    data = simulators.FiniteLeastSquares.sample(theory.LeastSquares([1.0, 0.5], dataset_size=8))
    with pytest.raises(ValueError, match="made of examples"):
        simulators.simulate(
            data, SCHEDULE, learning_rate=0.1, batch_size=1, momentum=0.5, nesterov=True, dynamics="minibatch"
        )
