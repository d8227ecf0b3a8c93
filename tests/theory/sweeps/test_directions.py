"""Directions of metrics: plain names, and what is not plain."""

import pytest

from noisysgd.theory.sweeps.directions import given_objectives, objective_of
from noisysgd.validation.configuration import METRICS

PLAIN = {
    "train_loss": "minimize",
    "expected_loss": "minimize",
    "val/loss": "minimize",
    "ValidationLoss": "minimize",
    "cross_entropy_loss_mean": "minimize",
    "test_error": "minimize",
    "standard_error": "minimize",
    "top-1 error rate": "minimize",
    "accuracy": "maximize",
    "TestAccuracy": "maximize",
    "accuracy@5": "maximize",
    "validation accuracy (best)": "maximize",
}
UNCLEAR = ["acc", "accuracy_loss", "loss_scale", "accuracy_std", "std_of_accuracy", "neg_mean_squared_error"]
UNCLEAR += ["lossless", "inaccuracy", "nll", "perplexity", "f1", "", "seconds", "one_minus_accuracy", "accuracy_drop"]


def test_plain_names_say_their_direction():
    assert {name: objective_of(name) for name in PLAIN} == PLAIN
    assert {objective_of(name) for name in METRICS} == {"minimize", "maximize"}


@pytest.mark.parametrize("name", UNCLEAR)
def test_other_names_say_none(name):
    assert objective_of(name) is None


def test_directions_are_stated_per_metric():
    assert given_objectives(["auc"], "maximize") == {"auc": "maximize"}
    with pytest.raises(ValueError, match="a mapping from metrics to directions, of the 2 metrics, got 'maximize'"):
        given_objectives(["auc", "train_loss"], "maximize")
    with pytest.raises(ValueError, match="objective: expected metrics among"):
        given_objectives(["auc"], {"acu": "maximize"})
    with pytest.raises(ValueError, match="objective of auc: expected one of 'minimize', 'maximize', got 1"):
        given_objectives(["auc"], {"auc": 1})
