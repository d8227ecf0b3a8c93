"""Impossible input is refused at the boundary, in words: what was expected, what came, what to do."""

import numpy as np
import pytest

from noisysgd import simulators, theory
from noisysgd.validation import Sweep, TrainConfig, calibrated_quadratic, predict_regimes

PROBLEM = theory.power_law(3, dataset_size=100)
SCHEDULE = theory.constant(5)
BUDGET = theory.EpochBudget(epochs=2, dataset_size=100)
NAN = float("nan")
STATE = {"lambda_max": {"value": 2.0}, "gradient_norm_squared": {"value": 1.0}, "trace_noise": {"value": 9.0}}

GOOD = {"learning_rate": 0.1, "batch_size": 4, "momentum": 0.5}
BAD_SETTINGS = [
    ({"learning_rate": -0.1}, "learning_rate: expected values ≥ 0"),
    ({"learning_rate": NAN}, "learning_rate: expected numbers without NaN"),
    ({"learning_rate": np.inf}, "learning_rate: expected finite"),
    ({"learning_rate": "fast"}, "learning_rate: expected real numbers"),
    ({"learning_rate": 1j}, "learning_rate: expected real numbers"),
    ({"learning_rate": [[0.1], [0.1, 0.2]]}, "learning_rate: expected real numbers"),
    ({"batch_size": 0.5}, "batch_size: expected values ≥ 1"),
    ({"batch_size": 101}, "batch_size: expected batch sizes ≤ the data set's 100"),
    ({"batch_size": NAN}, "batch_size: expected numbers without NaN"),
    ({"momentum": 1.0}, "momentum: expected 0 ≤ momentum < 1"),
    ({"momentum": -0.1}, "momentum: expected 0 ≤ momentum < 1"),
    ({"momentum": NAN}, "momentum: expected numbers without NaN"),
    ({"learning_rate": [0.1, 0.2], "batch_size": [1, 2, 3]}, "shapes that broadcast"),
]
TAKE_SETTINGS = {
    "expected_loss": lambda **s: theory.expected_loss(PROBLEM, SCHEDULE, **s),
    "loss_curve": lambda **s: theory.loss_curve(PROBLEM, SCHEDULE, at=[1], **s),
    "simulate": lambda **s: simulators.simulate(PROBLEM, SCHEDULE, replicas=2, **s),
}


@pytest.mark.parametrize(("change", "message"), BAD_SETTINGS)
@pytest.mark.parametrize("function", TAKE_SETTINGS)
def test_settings(function, change, message):
    with pytest.raises(ValueError, match=message):
        TAKE_SETTINGS[function](**(GOOD | change))


CALLS = {
    "negative curvature": (lambda: theory.NoisyQuadratic([1, -1], 1.0), "eigenvalues: expected values ≥ 0"),
    "no curvature": (lambda: theory.NoisyQuadratic([0.0], 1.0), "at least one positive curvature"),
    "curvature matrix": (lambda: theory.NoisyQuadratic(np.eye(2), 1.0), r"non-empty \(D,\) array"),
    "noise shape": (lambda: theory.NoisyQuadratic([1, 2], [1, 2, 3]), r"noise: expected a scalar, shape \(2,\)"),
    "noise NaN": (lambda: theory.NoisyQuadratic([1, 2], [1, NAN]), "noise: expected numbers without NaN"),
    "noise negative": (lambda: theory.NoisyQuadratic([1, 2], [1, -1]), "noise: expected variances ≥ 0"),
    "noise asymmetric": (lambda: theory.NoisyQuadratic([1, 2], [[1, 0.5], [0, 1]]), "symmetric covariance"),
    "noise indefinite": (lambda: theory.NoisyQuadratic([1, 2], [[1, 2], [2, 1]]), "positive semi-definite"),
    "initial variance": (lambda: theory.NoisyQuadratic([1], 1, initial_variance=-1), "initial_variance: expected"),
    "initial mean shape": (lambda: theory.NoisyQuadratic([1], 1, initial_mean=[0, 0]), "initial_mean: expected"),
    "data-set size": (lambda: theory.NoisyQuadratic([1], 1, dataset_size=2.5), "dataset_size: expected an integer"),
    "power law dim": (lambda: theory.power_law(0), "dim: expected an integer ≥ 1"),
    "power law exponent": (lambda: theory.power_law(2, -1), "exponent: expected values ≥ 0"),
    "no steps": (lambda: theory.half_then_decay(0), "steps: expected an integer ≥ 1"),
    "fractional steps": (lambda: theory.constant(2.5), "steps: expected an integer"),
    "factor": (lambda: theory.half_then_decay(10, factor=0), "factor: expected a positive"),
    "final rate": (lambda: theory.initial_to_final(10, 1.0, 0.0), "final: expected a positive"),
    "warmup levels": (lambda: theory.warmup(SCHEDULE, 2, levels=3), "levels: expected at most one level per step"),
    "unpaired segments": (lambda: theory.piecewise([1, 2], [1.0]), "lengths, multipliers: expected two"),
    "negative multiplier": (lambda: theory.piecewise([1], [-1.0]), "multipliers: expected values ≥ 0"),
    "epochs": (lambda: theory.EpochBudget(0, 100), "epochs: expected a positive"),
    "step budget": (lambda: theory.StepBudget(0), "steps: expected an integer ≥ 1"),
    "budget batch": (lambda: BUDGET.steps(101), "batch_size: expected batch sizes ≤ the data set's 100"),
    "less than a step": (lambda: theory.EpochBudget(0.1, 100).steps(50), "budget of at least one step"),
    "at": (lambda: theory.loss_curve(PROBLEM, SCHEDULE, at=6, **GOOD), "at: expected whole steps in 0…5"),
    "regimes order": (lambda: theory.regimes(PROBLEM, BUDGET, batch_sizes=[4, 2]), "increasing batch sizes"),
    "regimes batch": (lambda: theory.regimes(PROBLEM, BUDGET, batch_sizes=[101]), "batch_sizes: expected"),
    "optimal momentum": (
        lambda: theory.optimal_learning_rate(PROBLEM, BUDGET, batch_size=1, momentum=1),
        "momentum: expected",
    ),
    "critical momentum": (lambda: theory.critical_learning_rate(PROBLEM, momentum=2), "momentum: expected"),
    "temperature": (lambda: theory.temperature(0.1, 0), "batch_size: expected values ≥ 1"),
    "grid": (lambda: theory.powers_of_two(3, 1), "low ≤ high"),
    "no records": (lambda: theory.sweep_from_records([], source="theory", metrics=[]), "at least one record"),
    "source": (lambda: theory.sweep_from_records([{}], source="guess", metrics=[]), "source: expected one of"),
    "not a sweep": (lambda: theory.optimum({}), "sweep: expected an xarray.Dataset"),
    "dynamics": (lambda: simulators.simulate(PROBLEM, SCHEDULE, dynamics="magic", **GOOD), "dynamics: expected"),
    "backend": (lambda: simulators.simulate(PROBLEM, SCHEDULE, backend="cuda", **GOOD), "backend: expected 'cpu'"),
    "replicas": (lambda: simulators.simulate(PROBLEM, SCHEDULE, replicas=1, **GOOD), "replicas: expected"),
    "record": (lambda: simulators.simulate(PROBLEM, SCHEDULE, record=[9], **GOOD), "record: expected"),
    "seed": (lambda: simulators.simulate(PROBLEM, SCHEDULE, seed=-1, **GOOD), "seed: expected"),
    "config rate": (lambda: TrainConfig(learning_rate=-1, batch_size=64, epochs=1), "learning_rate: expected"),
    "config grid": (lambda: TrainConfig(learning_rate=[1, 2], batch_size=64, epochs=1), "a single number"),
    "config ghost": (lambda: TrainConfig(learning_rate=1, batch_size=40, epochs=1), "multiple of the ghost batch"),
    "config budget": (lambda: TrainConfig(learning_rate=1, batch_size=64), "exactly one of the two"),
    "config budgets": (lambda: TrainConfig(learning_rate=1, batch_size=64, epochs=1, steps=1), "exactly one"),
    "config spelling": (lambda: TrainConfig.from_dict({"learningrate": 1}), "configuration: expected names among"),
    "sweep seeds": (
        lambda: Sweep(
            base=TrainConfig(learning_rate=1, batch_size=64, epochs=1),
            batch_sizes=[64],
            momenta=[0.0],
            exponents=[0],
            seeds=1,
            keep=2,
        ),
        "keep: expected at most the 1 seeds",
    ),
    "no measurements": (lambda: predict_regimes([]), "measurements: expected at least one"),
    "unmeasured gradient": (
        lambda: calibrated_quadratic(STATE | {"gradient_norm_squared": {"value": None}}, loss=2.0),
        "gradient_norm_squared: expected a positive",
    ),
    "too small a loss": (lambda: calibrated_quadratic(STATE, loss=0.1), "loss: expected at least"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls(case):
    call, message = CALLS[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "got" in str(caught.value)


def test_optimum_names_what_it_has():
    sweep = theory.predict_sweep(PROBLEM, BUDGET, batch_sizes=[1], effective_learning_rates=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"metric: expected one of \['expected_loss'\], got 'test_accuracy'"):
        theory.optimum(sweep)
    seeds = sweep.expand_dims("seed")
    with pytest.raises(ValueError, match="keep: expected at most the sweep's 1 seeds, got 2"):
        theory.optimum(seeds, "expected_loss", keep=2)
