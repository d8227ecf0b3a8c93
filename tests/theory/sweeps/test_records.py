"""Records become a Sweep; what they cannot be is refused with its row and field."""

import math

import numpy as np
import pytest

from noisysgd import theory
from noisysgd.theory.sweeps.dataset import COMPLETE, DIVERGED, UNFINISHED

RUN = {"momentum": 0.0, "batch_size": 8, "learning_rate": 0.5, "seed": 0, "status": "complete", "train_loss": 1.0}


def sweep_from(*changes, metrics=("train_loss",), **options):
    """A Sweep of one record for each of the changes, at learning rates 1, 2, …."""
    rows = [RUN | {"learning_rate": 1.0 + k} | change for k, change in enumerate(changes)]
    return theory.sweep_from_records(rows, source="training", metrics=metrics, **options)


def test_one_string_is_the_name_of_one_metric():
    assert list(sweep_from({}, metrics="train_loss").data_vars) == ["status", "train_loss"]


def test_a_metric_that_no_record_has_is_refused():
    with pytest.raises(
        ValueError, match=r"metrics: expected names of entries, such as \['train_loss'\], got \['los'\]"
    ):
        sweep_from({}, metrics=["train_loss", "los"])
    for names in (["train_loss", "train_loss"], [1], [""]):
        with pytest.raises(ValueError, match="metrics: expected a name, or distinct names"):
            sweep_from({}, metrics=names)
    with pytest.raises(ValueError, match="metrics: expected names other than those of coordinates"):
        sweep_from({}, metrics=["learning_rate"])
    # Of runs that all diverged nothing was measured.
    sweep = sweep_from({"status": "diverged"}, metrics=["test_loss", "test_accuracy"])
    assert (float(sweep.test_loss.squeeze()), math.isnan(sweep.test_accuracy.squeeze())) == (math.inf, True)


FAULTS = {
    "fraction of a seed": ({"seed": 0.7}, r"records\[1\]: seed: expected an integer ≥ 0, got 0.7"),
    "boolean seed": ({"seed": True}, r"records\[1\]: seed: expected an integer"),
    "seed beyond 64 bits": ({"seed": 2**63}, r"records\[1\]: seed: expected a seed below"),
    "rate None": ({"learning_rate": None}, r"records\[1\]: learning_rate: expected numbers without NaN, got None"),
    "rate text": ({"learning_rate": ""}, r"records\[1\]: learning_rate: expected real numbers, got ''"),
    "rate NaN": ({"learning_rate": math.nan}, r"records\[1\]: learning_rate: expected numbers without NaN"),
    "rate negative": ({"learning_rate": -1.0}, r"records\[1\]: learning_rate: expected values ≥ 0"),
    "rate list": ({"learning_rate": [1.0, 2.0]}, r"records\[1\]: learning_rate: expected a single number"),
    "momentum 1": ({"momentum": 1.0}, r"records\[1\]: momentum: expected 0 ≤ momentum < 1"),
    "batch size 0": ({"batch_size": 0}, r"records\[1\]: batch_size: expected values ≥ 1"),
    "budget": ({"budget": "9"}, r"records\[0\]: expected \['batch_size', 'budget'.* got .none of \['budget'\]"),
    "metric text": ({"train_loss": ""}, r"records\[1\]: train_loss: expected real numbers, got ''"),
    "metric boolean": ({"train_loss": True}, r"records\[1\]: train_loss: expected real numbers, got True"),
    "metric huge": ({"train_loss": 10**400}, r"records\[1\]: train_loss: expected real numbers, got 1000"),
    "metric list": ({"train_loss": [1.0, 2.0]}, r"records\[1\]: train_loss: expected a single number"),
    "loss -inf": ({"train_loss": -math.inf}, r"records\[1\]: train_loss: expected a loss, got -inf"),
    "status": ({"status": "done"}, r"records\[1\]: status: expected one of 'complete', 'diverged', 'unfinished'"),
    "status list": ({"status": ["complete"]}, r"records\[1\]: status: expected one of"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_records_are_named_with_row_and_field(name):
    change, message = FAULTS[name]
    with pytest.raises(ValueError, match=message):
        sweep_from({}, change)


def test_arguments_of_other_types_are_named():
    for records in (5, RUN):
        with pytest.raises(ValueError, match="records: expected a list of records, got"):
            theory.sweep_from_records(records, source="training", metrics="train_loss")
    with pytest.raises(ValueError, match="metrics: expected a name, or distinct names, got 5"):
        sweep_from({}, metrics=5)
    with pytest.raises(ValueError, match="configuration: expected a dictionary, got 5"):
        sweep_from({}, configuration=5)
    with pytest.raises(ValueError, match="sweeps: expected a list of Sweeps, got 5"):
        theory.join_sweeps(5)


def test_records_have_to_be_mappings_and_have_all_fields():
    with pytest.raises(ValueError, match=r"records\[1\]: expected a mapping, got 3"):
        theory.sweep_from_records([RUN, 3], source="training", metrics="train_loss")
    row = {name: value for name, value in RUN.items() if name not in ("seed", "status")}
    with pytest.raises(ValueError, match=r"records\[0\]: expected .* got .none of \['status'\]"):
        theory.sweep_from_records([row], source="training", metrics="train_loss")


def test_two_records_of_one_point_are_refused():
    for rate in (0.1 * 3, float(np.float32(0.3))):
        with pytest.raises(ValueError, match=r"one record per point, got records\[0\] and records\[1\] of one"):
            sweep_from({"learning_rate": 0.3}, {"learning_rate": rate})


def test_a_complete_record_needs_a_finite_loss():
    absent = {name: value for name, value in RUN.items() if name != "train_loss"}
    rows = [RUN, RUN | {"train_loss": math.inf}, RUN | {"train_loss": math.nan}, RUN | {"train_loss": None}, absent]
    rows = [row | {"seed": k, "test_accuracy": 0.5} for k, row in enumerate(rows)]
    for metrics in ("train_loss", ["train_loss", "test_accuracy"]):
        sweep = theory.sweep_from_records(rows, source="training", metrics=metrics)
        assert sweep.status.values.ravel().tolist() == [COMPLETE, DIVERGED, UNFINISHED, UNFINISHED, UNFINISHED]
    # One of two losses, such as that of a test set, may not have been measured.
    rows = [row | {"valid_loss": 2.0} for row in rows]
    sweep = theory.sweep_from_records(rows, source="training", metrics=["train_loss", "valid_loss"])
    assert sweep.status.values.ravel().tolist() == [COMPLETE, DIVERGED, COMPLETE, COMPLETE, COMPLETE]
    assert theory.optimum(sweep, "train_loss", keep=2).unjudged == 0
    assert theory.optimum(sweep, "train_loss", keep=3).unjudged == 1
    assert theory.optimum(sweep, "valid_loss", keep=4)["mean"] == 2.0


def test_what_is_minimized_by_statement_is_a_loss_too():
    sweep = sweep_from({"nll": math.inf}, {"nll": 2.0, "status": "diverged"}, metrics="nll", objective="minimize")
    assert sweep.status.values.ravel().tolist() == [DIVERGED, DIVERGED]
    assert sweep.nll.attrs["objective"] == "minimize"


def test_optimizers_that_differ_in_the_seventh_digit_have_different_names():
    sweep = sweep_from({"momentum": 0.9}, {"momentum": 0.9000001}, {"momentum": 0.5})
    assert sweep.optimizer.values.tolist() == ["momentum 0.5", "momentum 0.9", "momentum 0.9000001"]


def test_a_tolerance_joins_the_rates_of_a_table_and_the_end_of_the_grid_is_judged_after_that():
    rates = [0.00195, 0.003906, 0.00391, 0.0078]
    rows = [
        RUN | {"learning_rate": rate, "seed": seed, "train_loss": loss}
        for rate, losses in zip(rates, ({0: 5.0, 1: 5.0}, {0: 1.0}, {1: 1.0}, {0: 3.0, 1: 3.0}), strict=True)
        for seed, loss in losses.items()
    ]
    apart = theory.sweep_from_records(rows, source="training", metrics="train_loss")
    assert not theory.optimum(apart, "train_loss", keep=2).bracketed.any()
    sweep = theory.sweep_from_records(rows, source="training", metrics="train_loss", tolerance=2e-3)
    best = theory.optimum(sweep, "train_loss", keep=2).squeeze()
    assert (best.learning_rate, bool(best.bracketed)) == (0.003906, True)


def test_a_sweep_whose_coordinates_are_equal_up_to_rounding_is_refused():
    sweep = sweep_from({}, {}, {})
    doubled = sweep.assign_coords(learning_rate=[1.0, 0.3, 0.1 * 3])
    with pytest.raises(ValueError, match="learning_rate: expected values that differ by more than rounding"):
        theory.optimum(doubled, "train_loss", keep=1)


def test_records_of_training_say_themselves_which_optimizer_they_had():
    """A configuration beside its metrics: Nesterov's step has a name of its own, dampening another ε/(1−m)."""
    run = {"momentum": 0.9, "batch_size": 16, "seed": 0, "status": "complete", "learning_rate": 0.1, "train_loss": 0.5}
    rows = [run, run | {"nesterov": True, "train_loss": 0.4}, run | {"seed": 1, "nesterov": False, "dampening": 0.0}]
    sweep = theory.sweep_from_records(rows, source="training", metrics="train_loss")
    assert sweep.optimizer.values.tolist() == ["momentum 0.9", "nesterov 0.9"]
    np.testing.assert_allclose(sweep.effective_learning_rate, 1.0)
    assert float(sweep.train_loss.sel(optimizer="nesterov 0.9", seed=0).squeeze()) == 0.4
    with pytest.raises(ValueError, match=r"records\[1\]: dampening: expected none beside a learning rate, got 0\.5"):
        theory.sweep_from_records([run, run | {"seed": 1, "dampening": 0.5}], source="training", metrics="train_loss")
