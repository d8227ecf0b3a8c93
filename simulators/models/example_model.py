"""What models made of training examples share: the ensemble that tiles are cut from, and checks of batch sizes."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from noisysgd.simulators.ensembles.tiles import Configuration
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.schedules.schedule import Schedule

MOST_DRAWN = 2**27
"""Largest batch that is drawn with replacement: its examples are drawn one by one, and each takes 24 bytes."""


class ExampleModel(Protocol):
    """A model and the training examples that its minibatches are drawn from.

    A new model is a class with these members, and a kernel.
    """

    dynamics: tuple[str, ...]
    """Names of the dynamics that it can follow, "minibatch" first."""
    metrics: tuple[str, ...]
    """Names of the losses that it records."""

    @property
    def dataset_size(self) -> int:
        """Number N of training examples."""

    def check_batches(self, sizes: FloatArray, sampling: str) -> None:
        """Raise for batch sizes that cannot be drawn by this way of sampling."""

    def losses(
        self,
        run: "ExampleEnsemble",
        configuration: Configuration,
        replica: int,
        lanes: int,
        stop: threading.Event | None,
    ) -> Iterator[FloatArray]:
        """Losses of replicas replica…replica + lanes − 1, as blocks of (rows, lanes) that make up all rows.

        In the rows, all metrics of a record stand next to each other.
        """


@dataclass(frozen=True, eq=False)
class ExampleEnsemble:
    """What all configurations of one call on such a model share, as `tiles.Ensemble` for noisy quadratics."""

    model: ExampleModel
    schedule: Schedule
    record: IntArray
    seed: np.uint64
    dynamics: str
    sampling: str
    substeps: int = 1

    @property
    def rows(self) -> int:
        """How many losses one replica records."""
        return self.record.size * len(self.model.metrics)

    def losses(
        self, configuration: Configuration, replica: int, lanes: int, stop: threading.Event | None
    ) -> Iterator[FloatArray]:
        """Blocks of losses, (some rows, lanes), that make up all rows one below the other."""
        yield from self.model.losses(self, configuration, replica, lanes, stop)


def check_drawn(sizes: FloatArray, sampling: str) -> None:
    """Raise for batches of more examples than can be counted, or than fit into memory one by one."""
    finite = sizes[np.isfinite(sizes)]
    # Beyond 2⁵³ a float is no longer an exact count of examples.
    most = MOST_DRAWN if sampling == "with_replacement" else 2**53
    remedy = "Pass inf for a batch without noise."
    checks.require(bool((finite <= most).all()), "batch_size", f"at most {most}, or inf", sizes, remedy)


def check_whole(sizes: FloatArray) -> None:
    """Raise unless batches are whole numbers of examples, or infinite."""
    whole = bool(np.all((sizes == np.floor(sizes)) | np.isinf(sizes)))
    checks.require(whole, "batch_size", "whole numbers of examples, or inf", sizes, "Round them.")
