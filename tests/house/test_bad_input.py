"""Impossible input is refused at the boundary, in words: what was expected, what came, what to do."""

import numpy as np
import pytest
import torch
import xarray as xr

from noisysgd import simulators, theory
from noisysgd.validation import GhostBatchNorm2d, Sweep, TrainConfig, calibrated_quadratic, predict_regimes

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


def a_sweep(**changes):
    base = TrainConfig(learning_rate=1, batch_size=64, epochs=1)
    return Sweep(**({"base": base, "batch_sizes": [64], "momenta": [0.0], "exponents": [0], "seeds": 1} | changes))


CALLS = {
    "negative curvature": (lambda: theory.NoisyQuadratic([1, -1], 1.0), "eigenvalues: expected values ≥ 0"),
    "no curvature": (lambda: theory.NoisyQuadratic([0.0], 1.0), "at least one positive curvature"),
    "curvature matrix": (lambda: theory.NoisyQuadratic(np.eye(2), 1.0), r"non-empty \(D,\) array"),
    "noise shape": (lambda: theory.NoisyQuadratic([1, 2], [1, 2, 3]), r"noise: expected a scalar, shape \(2,\)"),
    "noise NaN": (lambda: theory.NoisyQuadratic([1, 2], [1, NAN]), "noise: expected numbers without NaN"),
    "noise negative": (lambda: theory.NoisyQuadratic([1, 2], [1, -1]), "noise: expected values ≥ 0, got .*variances"),
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
    "backend": (lambda: simulators.simulate(PROBLEM, SCHEDULE, backend="tpu", **GOOD), "backend: expected one of"),
    "replicas": (lambda: simulators.simulate(PROBLEM, SCHEDULE, replicas=1, **GOOD), "replicas: expected"),
    "record": (lambda: simulators.simulate(PROBLEM, SCHEDULE, record=[9], **GOOD), "record: expected"),
    "seed": (lambda: simulators.simulate(PROBLEM, SCHEDULE, seed=-1, **GOOD), "seed: expected"),
    "config rate": (lambda: TrainConfig(learning_rate=-1, batch_size=64, epochs=1), "learning_rate: expected"),
    "config grid": (lambda: TrainConfig(learning_rate=[1, 2], batch_size=64, epochs=1), "a single number"),
    "config ghost": (lambda: TrainConfig(learning_rate=1, batch_size=40, epochs=1), "multiple of the ghost batch"),
    "config budget": (lambda: TrainConfig(learning_rate=1, batch_size=64), "exactly one of the two"),
    "config budgets": (lambda: TrainConfig(learning_rate=1, batch_size=64, epochs=1, steps=1), "exactly one"),
    "config spelling": (lambda: TrainConfig.from_dict({"learningrate": 1}), "configuration: expected names among"),
    "sweep seeds": (lambda: a_sweep(keep=2), "keep: expected at most the 1 seeds"),
    "not a problem": (lambda: theory.expected_loss(SCHEDULE, SCHEDULE, **GOOD), "problem: expected a Quadratic"),
    "steps as schedule": (lambda: theory.expected_loss(PROBLEM, 100, **GOOD), "schedule: expected a Schedule, got 100"),
    "schedule as family": (
        lambda: theory.optimal_learning_rate(PROBLEM, BUDGET, batch_size=1, schedule=SCHEDULE),
        "schedule: expected a function of the number of steps",
    ),
    "family of wrong length": (
        lambda: theory.regimes(PROBLEM, BUDGET, batch_sizes=[1], schedule=lambda n: theory.constant(5)),
        "expected a schedule of the budget's 200 steps, got 5",
    ),
    "steps as budget": (lambda: theory.optimal_learning_rate(PROBLEM, 100, batch_size=1), "budget: expected an Epoch"),
    "epochs list": (lambda: theory.EpochBudget([1, 2], 100), "epochs: expected a single number"),
    "endless budget": (lambda: theory.EpochBudget(1e300, 100).steps(1), "fewer than 2⁵³ steps"),
    "huge steps": (lambda: theory.half_then_decay(10**19), "fewer than 2⁵³"),
    "factor list": (lambda: theory.half_then_decay(10, factor=[2, 3]), "factor: expected a single number"),
    "no records asked": (lambda: theory.loss_curve(PROBLEM, SCHEDULE, at=[], **GOOD), "at: expected whole steps"),
    "no batch sizes": (lambda: theory.regimes(PROBLEM, BUDGET, batch_sizes=[]), "batch_sizes: expected a number or"),
    "table of batch sizes": (
        lambda: theory.predict_sweep(PROBLEM, BUDGET, batch_sizes=[[1]], effective_learning_rates=[1]),
        "batch_sizes: expected a number or",
    ),
    "labelled arrays": (
        lambda: theory.temperature(xr.DataArray([0.1, 0.2], dims="a"), xr.DataArray([1, 2], dims="b")),
        "learning_rate, batch_size: expected labelled arrays with the same dimensions in the same order",
    ),
    "boolean rate": (lambda: theory.temperature(True, 1), "learning_rate: expected real numbers"),
    "overflowing start": (lambda: theory.NoisyQuadratic([1], 1, initial_mean=1e200), "a finite initial loss"),
    "hopeless noise": (
        lambda: theory.optimal_learning_rate(theory.NoisyQuadratic([1.0], 1e20), theory.StepBudget(9), batch_size=1),
        "a problem that some learning rate improves",
    ),
    "empty record": (
        lambda: theory.sweep_from_records([{}], source="theory", metrics=[]),
        r"records\[0\]: expected .*'batch_size'",
    ),
    "unlabelled sweep": (
        lambda: theory.optimum(
            theory.predict_sweep(PROBLEM, BUDGET, batch_sizes=[1], effective_learning_rates=[1]).drop_vars(
                "temperature"
            )
        ),
        "sweep: expected coordinates",
    ),
    "config of nothing": (lambda: TrainConfig.from_dict({}), "a learning_rate and a batch_size"),
    "config depth": (lambda: TrainConfig(learning_rate=1, batch_size=64, epochs=1, depth=11), "depth: expected 6n"),
    "config data": (lambda: TrainConfig(learning_rate=1, batch_size=64, epochs=1, dataset="x"), "dataset: expected"),
    "sweep window": (lambda: a_sweep(exponents={(0.0, 32): [0]}), "a window for every"),
    "sweep repetition": (lambda: a_sweep(exponents=[0, 0]), "distinct integers"),
    "sweep batch": (lambda: a_sweep(batch_sizes=[64.5]), "batch_size: expected an integer"),
    "sweep extensions": (lambda: a_sweep(extensions=-1), "extensions: expected an integer ≥ 0"),
    "state without fields": (lambda: predict_regimes([{}]), "measurements: expected the fields"),
    "too large a loss": (lambda: calibrated_quadratic(STATE, loss=1e9), "loss: expected at most"),
    "wrong channels": (lambda: GhostBatchNorm2d(3, 2)(torch.zeros(4, 2, 3, 3)), r"images of shape \(B, 3, H, W\)"),
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
