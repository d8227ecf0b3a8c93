"""Training runs on the digits that tests take step by step."""

from torch import nn

from noisysgd.validation import load_dataset
from noisysgd.validation.training.loop import TrainingRun


def linear(config, data):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, data.classes))


def run_of(config, **more):
    """The run of a configuration, whose network is linear where it says so."""
    return TrainingRun(config, load_dataset("digits"), linear if config.model == "linear" else None, **more)


def to_the_end(run):
    while not run.finished:
        run.advance()
    return run
