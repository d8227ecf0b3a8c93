"""Schedules of the batch size in simulations: the theory's losses, and bit for bit those of a number if constant."""

import numpy as np
import pytest
from bitwise import assert_bitwise

from noisysgd import simulators, theory

NOISE = np.array([[1.0, 0.3, 0.0], [0.3, 0.5, -0.1], [0.0, -0.1, 0.2]])
PROBLEMS = {
    "diagonal": theory.NoisyQuadratic([1.0, 0.4, 0.05], [1.0, 0.6, 0.1], dataset_size=1000),
    "full": theory.NoisyQuadratic([1.0, 0.4, 0.05], NOISE),
}
RATES = theory.piecewise([30, 30, 40], [1.0, 0.5, 0.25])
SIZES = theory.piecewise([20, 50, 30], [2, 8, 64])


def run(problem, size, **more):
    settings = {"learning_rate": 0.3, "momentum": 0.5, "replicas": 512, "record": [0, 20, 21, 60, 100], "seed": 4}
    return simulators.simulate(PROBLEMS[problem], RATES, batch_size=size, **(settings | more))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("dynamics", ["sgd", "jump"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_losses_are_the_theorys(problem, dynamics, momentum):
    """Within five standard errors: 32 numbers, a false alarm in 50 000 runs of this test if they were normal.

    With any one of the batch sizes throughout, some loss is off by more.
    """
    more = {"dynamics": dynamics, "momentum": momentum, "replicas": 4096}
    found = run(problem, SIZES, **more)
    settings = {"learning_rate": 0.3, "momentum": momentum, "at": found.step.values}
    exact = theory.loss_curve(PROBLEMS[problem], RATES, batch_size=SIZES, **settings)
    assert (np.abs(found.loss - exact) < 5 * found.loss_stderr)[1:].all()
    for size in (2, 8, 64):
        other = theory.loss_curve(PROBLEMS[problem], RATES, batch_size=size, **settings)
        assert (np.abs(found.loss - other) > 5 * found.loss_stderr)[1:].any()


def test_the_sde_has_the_temperature_of_every_moment():
    """Against the theory of SGD at a learning rate so small that the two agree, within five standard errors."""
    problem = PROBLEMS["diagonal"]
    rates, sizes = theory.constant(400), theory.piecewise([200, 200], [1, 16])
    settings = {"learning_rate": 0.02, "batch_size": sizes}
    found = simulators.simulate(problem, rates, dynamics="sde", substeps=4, replicas=4096, **settings)
    exact = theory.expected_loss(problem, rates, **settings)
    assert abs(float(found.loss[0]) - exact) < 5 * float(found.loss_stderr[0])
    assert abs(float(found.loss[0]) - theory.expected_loss(problem, rates, learning_rate=0.02, batch_size=1)) > (
        5 * float(found.loss_stderr[0])
    )


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("more", [{}, {"dynamics": "sde"}, {"dynamics": "jump"}, {"noise": "student_t"}, {"tail": 1.0}])
def test_a_constant_schedule_is_that_batch_size_bit_for_bit(problem, more):
    assert_bitwise(run(problem, theory.piecewise([100], [8]), **more), run(problem, 8, **more))


def test_threads_change_no_bit_and_coordinates_are_those_of_the_first_step():
    one, other = (run("full", SIZES, threads=threads) for threads in (1, 3))
    assert_bitwise(one, other)
    assert float(one.batch_size) == 2
    assert float(one.temperature) == 0.3 / (2 * 0.5)


@pytest.mark.parametrize(
    ("size", "more", "message"),
    [
        (theory.constant(99), {}, "batch_size: expected a schedule of 100 steps, got 99"),
        (theory.piecewise([100], [2000]), {}, "batch_size"),
        (SIZES, {"backend": "cuda"}, "batch_size: expected numbers with backend='cuda'"),
    ],
)
def test_what_cannot_be_is_refused(size, more, message):
    with pytest.raises(ValueError, match=message):
        run("diagonal", size, **more)


def test_models_made_of_examples_refuse_schedules():
    model = simulators.FiniteLeastSquares(np.eye(4), np.zeros(4), initial_mean=1.0)
    with pytest.raises(ValueError, match="batch_size: expected numbers for a model made of examples"):
        simulators.simulate(
            model, theory.constant(2), learning_rate=0.1, batch_size=theory.piecewise([2], [2]), dynamics="minibatch"
        )
