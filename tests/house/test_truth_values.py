"""True and False are the only truth values: whatever else is given for one is refused, not counted as True."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import errors, find

from noisysgd import simulators, theory, validation
from noisysgd.theory import plots, testing

PROBLEM, SCHEDULE, BUDGET = theory.power_law(3), theory.constant(5), theory.StepBudget(5)
SETTING = {"learning_rate": 0.1, "batch_size": 4}
RUN = {"learning_rate": 0.1, "batch_size": 64, "steps": 1}


def sweep():
    return theory.predict_sweep(PROBLEM, BUDGET, batch_sizes=[4], effective_learning_rates=[0.1, 0.2])


def losses(**flag):
    return theory.expected_loss(PROBLEM, SCHEDULE, **SETTING, **flag)


def curve(**flag):
    return theory.loss_curve(PROBLEM, SCHEDULE, at=[5], **SETTING, **flag)


def parts():
    return [simulators.simulate(PROBLEM, SCHEDULE, **SETTING, replicas=2, keep_tiles=True)]


def measured(value):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    return validation.measure(
        model, validation.load_dataset("digits"), eigenvectors=value, units=2, products=1, probes=0
    )


CALLS = {
    "theory.covariance.nesterov": lambda v: theory.covariance(PROBLEM, SCHEDULE, **SETTING, nesterov=v),
    "theory.critical_learning_rate.nesterov": lambda v: theory.critical_learning_rate(PROBLEM, nesterov=v),
    "theory.expected_loss.nesterov": lambda v: losses(nesterov=v),
    "theory.expected_loss.penalized": lambda v: losses(penalized=v),
    "theory.expected_parameters.nesterov": lambda v: theory.expected_parameters(
        PROBLEM, SCHEDULE, learning_rate=0.1, nesterov=v
    ),
    "theory.loss_curve.nesterov": lambda v: curve(nesterov=v),
    "theory.loss_curve.penalized": lambda v: curve(penalized=v),
    "theory.optimal_learning_rate.nesterov": lambda v: theory.optimal_learning_rate(
        PROBLEM, BUDGET, batch_size=4, nesterov=v
    ),
    "theory.regimes.nesterov": lambda v: theory.regimes(PROBLEM, BUDGET, batch_sizes=[4], nesterov=v),
    "theory.second_moment_map.nesterov": lambda v: theory.second_moment_map(PROBLEM, **SETTING, nesterov=v),
    "theory.spectral_radius.nesterov": lambda v: theory.spectral_radius(PROBLEM, **SETTING, nesterov=v),
    "theory.stationary_covariance.nesterov": lambda v: theory.stationary_covariance(PROBLEM, **SETTING, nesterov=v),
    "theory.stationary_loss.nesterov": lambda v: theory.stationary_loss(PROBLEM, **SETTING, nesterov=v),
    "theory.two_batch_noise_scale.paired": lambda v: theory.two_batch_noise_scale(
        [3.0, 4.0], [1.0, 1.5], small_batch_size=1, big_batch_size=4, paired=v
    ),
    "simulators.TimeLeft.always": lambda v: simulators.TimeLeft(always=v),
    "simulators.join.keep_tiles": lambda v: simulators.join(parts(), keep_tiles=v),
    "simulators.simulate.nesterov": lambda v: simulators.simulate(PROBLEM, SCHEDULE, **SETTING, nesterov=v),
    "simulators.simulate.keep_tiles": lambda v: simulators.simulate(PROBLEM, SCHEDULE, **SETTING, keep_tiles=v),
    "validation.TrainConfig.augment": lambda v: validation.TrainConfig(**RUN, augment=v),
    "validation.TrainConfig.channels_last": lambda v: validation.TrainConfig(**RUN, channels_last=v),
    "validation.TrainConfig.compile": lambda v: validation.TrainConfig(**RUN, compile=v),
    "validation.TrainConfig.cuda_graph": lambda v: validation.TrainConfig(**RUN, cuda_graph=v),
    "validation.TrainConfig.deterministic": lambda v: validation.TrainConfig(**RUN, deterministic=v),
    "validation.TrainConfig.nesterov": lambda v: validation.TrainConfig(**RUN, momentum=0.9, nesterov=v),
    "validation.augment.flip": lambda v: validation.augment(
        torch.zeros(1, 1, 8, 8), indices=[0], seed=0, step=0, flip=v
    ),
    "validation.load_dataset.allow_altered": lambda v: validation.load_dataset("digits", allow_altered=v),
    "validation.measure.eigenvectors": measured,
    "testing.problems.full_noise": lambda v: find(testing.problems(full_noise=v), lambda _: True),
    "testing.problems.weights": lambda v: find(testing.problems(weights=v), lambda _: True),
    "testing.least_squares_problems.weights": lambda v: find(testing.least_squares_problems(weights=v), lambda _: True),
    "plots.plot_losses.label": lambda v: plots.plot_losses(sweep(), "expected_loss", label=v),
}
RESULTS = {"NoiseScaleEstimate", "Calibration", "Measurement", "SpectralDensity", "FittedParameter"}
"""Classes that this package makes: their fields are no arguments of a user's."""
NOT_TRUTH_VALUES = {"text": "no", "number": 1, "nothing": None, "array": np.array([True]), "list": []}


def truth_values():
    """Every argument of a public function or class that is declared a truth value."""
    rooms = {"theory": theory, "simulators": simulators, "validation": validation, "testing": testing, "plots": plots}
    for room, module in rooms.items():
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and name not in RESULTS:
                for parameter in inspect.signature(value).parameters.values():
                    if parameter.annotation in (bool, "bool", "bool | None"):
                        yield f"{room}.{name}.{parameter.name}"


def test_the_table_is_complete():
    assert set(CALLS) == set(truth_values())


@pytest.mark.parametrize("kind", NOT_TRUTH_VALUES)
@pytest.mark.parametrize("name", CALLS)
def test_nothing_else_counts_as_true_or_false(name, kind):
    argument = Path(name).suffix.removeprefix(".")
    with pytest.raises(
        (ValueError, errors.InvalidArgument), match=rf"{argument}: expected (True or False|a bool), got"
    ):
        CALLS[name](NOT_TRUTH_VALUES[kind])


def test_numpys_truth_values_count():
    estimate = CALLS["theory.two_batch_noise_scale.paired"]
    assert estimate(np.True_) == estimate(True)
