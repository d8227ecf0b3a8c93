"""What all runs on given examples share: the ensemble that tiles are cut from, and windows of steps."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from noisysgd.simulators.ensembles.tiles import WINDOW_STEPS, WINDOW_WORK, Cancelled, Configuration, record_slots
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.schedules.schedule import Schedule

MOST_DRAWN = 2**27
"""Examples of a batch that is drawn with replacement: each is drawn, and takes 24 bytes."""


class ExampleModel(Protocol):
    """A model and its examples. A new one is one file: these members, and a kernel."""

    dynamics: tuple[str, ...]
    """Those it can follow, its own first."""
    metrics: tuple[str, ...]
    """Names of the losses that it records."""

    @property
    def dataset_size(self) -> int:
        """Number of examples."""

    def check_batches(self, sizes: FloatArray, sampling: str) -> None:
        """Raise for batch sizes that it cannot sample that way."""

    def losses(
        self,
        run: "ExampleEnsemble",
        configuration: Configuration,
        replica: int,
        lanes: int,
        stop: threading.Event | None,
    ) -> Iterator[FloatArray]:
        """Blocks of (records · metrics, lanes), the metrics of one record next to each other."""


@dataclass(frozen=True, eq=False)
class ExampleEnsemble:
    """What all configurations of one call share; `tiles.Ensemble` is that of noisy quadratics."""

    model: ExampleModel
    schedule: Schedule
    record: IntArray
    seed: np.uint64
    dynamics: str
    sampling: str
    substeps: int = 1

    @property
    def rows(self) -> int:
        """Losses of one replica."""
        return self.record.size * len(self.model.metrics)

    def losses(
        self, configuration: Configuration, replica: int, lanes: int, stop: threading.Event | None
    ) -> Iterator[FloatArray]:
        """Blocks of (rows, lanes) that add up to all rows."""
        yield from self.model.losses(self, configuration, replica, lanes, stop)


def window_length(work: int) -> int:
    """Steps of a window on the CPU, given the work of one step of a tile."""
    return min(max(WINDOW_WORK // max(work, 1), 1), WINDOW_STEPS)


def windows(
    run: ExampleEnsemble, learning_rate: float, length: int, stop: threading.Event | None = None
) -> Iterator[tuple[int, FloatArray, IntArray]]:
    """First step, learning rates and record slots of one window of `length` steps after another."""
    total = run.schedule.steps
    for step in range(0, total, length):
        if stop is not None and stop.is_set():
            raise Cancelled
        steps = np.arange(step, min(step + length, total))
        with np.errstate(over="ignore"):
            rates = learning_rate * run.schedule.at(steps)
        yield step, rates, record_slots(run.record, steps)


def check_drawn(sizes: FloatArray, sampling: str) -> None:
    """Raise for batches of more examples than can be counted, or than fit into memory one by one."""
    finite = sizes[np.isfinite(sizes)]
    most = MOST_DRAWN if sampling == "with_replacement" else 2**53
    remedy = "Pass inf for a batch without noise."
    checks.require(bool((finite <= most).all()), "batch_size", f"at most {most}, or inf", sizes, remedy)


def check_whole(sizes: FloatArray) -> None:
    """Raise unless batches are whole numbers of examples, or infinite."""
    whole = bool(np.all((sizes == np.floor(sizes)) | np.isinf(sizes)))
    checks.require(whole, "batch_size", "whole numbers of examples, or inf", sizes, "Round them.")
