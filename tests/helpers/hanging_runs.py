"""Runs that hang in a process of an executor: one seed's network never returns from a pass."""

import time

from torch import nn

from noisysgd.validation import RunStore, TrainConfig, run_one
from noisysgd.validation.training import time_limit

HANGS = 1


class Perceptron(nn.Module):
    def __init__(self, hangs):
        super().__init__()
        self.linear, self.hangs = nn.Linear(64, 10), hangs

    def forward(self, images):
        while self.hangs:
            time.sleep(0.1)
        return self.linear(images.flatten(1))


def network(config, data):
    return Perceptron(config.seed == HANGS)


def work(store: RunStore, config: TrainConfig) -> bool:
    """Ten seconds each, in which a busy machine can train the others, and two seconds of grace."""
    time_limit.GRACE = 2.0
    return run_one(store, config, time_limit=10.0)
