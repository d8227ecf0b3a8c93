"""Rounds of runs: plan, run what the store lacks, look, grow the grid, and again until nothing is to be added."""

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import xarray as xr

from noisysgd.theory.sweeps.grid import Grid
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.runs.executors import local_executor
from noisysgd.validation.runs.single_run import run_one
from noisysgd.validation.runs.store import RunStore
from noisysgd.validation.sweeps.cost import passes_per_batch

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""Called with (runs done, runs planned, share of the work done)."""
Work = Callable[[RunStore, TrainConfig], Any]
"""Trains one configuration and writes its record; ``False`` says that another process has it under way."""
MakeExecutor = Callable[[], AbstractContextManager[Executor]]
Place = tuple[float, int, float | None]
"""Momentum, batch size and budget."""
Windows = Mapping[Place, Mapping[str, Grid]]
"""At each place the exponents of two along every axis of learning rates."""

PATIENCE = 0.5
"""Seconds between looks at runs that another driver has under way."""
TRIES = 3
"""Times that a run is repeated because its record, reported as written, cannot be read."""


@dataclass(frozen=True)
class State:
    """How far a sweep has come: the windows that its records have made it grow to, and what is still to be run."""

    windows: Windows
    configs: Sequence[TrainConfig]
    records: Mapping[str, Mapping[str, Any]]
    finished: bool

    @property
    def found(self) -> list[Mapping[str, Any]]:
        """Records of the planned runs that the store has."""
        return [self.records[config.key] for config in self.configs if config.key in self.records]

    @property
    def missing(self) -> list[TrainConfig]:
        """Planned runs that the store lacks."""
        return [config for config in self.configs if config.key not in self.records]


class Growing(ABC):
    """What sweeps share: they are functions of their definition and of the records, and of nothing else."""

    @abstractmethod
    def start(self) -> Windows:
        """The windows to begin with."""

    @abstractmethod
    def plan(self, windows: Windows | None = None) -> list[TrainConfig]:
        """Configurations of the given windows, or of the initial ones, the costliest first."""

    @abstractmethod
    def collect(self, windows: Windows, records: Sequence[Mapping[str, Any]], more: Sequence[str] = ()) -> xr.Dataset:
        """Records as a dataset, with variables for `more` of their numbers; planned runs without one are missing."""

    @abstractmethod
    def grow(self, windows: Windows, dataset: xr.Dataset) -> Windows:
        """Windows with more learning rates or budgets where the complete `dataset` asks for them; else the same."""

    @abstractmethod
    def limits(self, windows: Windows) -> Windows:
        """The given windows, grown as far as the sweep allows."""

    def extra(self, windows: Windows) -> list[TrainConfig]:
        """Runs that growing to the limits would add."""
        known = {config.key for config in self.plan(windows)}
        return [config for config in self.plan(self.limits(windows)) if config.key not in known]

    @abstractmethod
    def unbracketed(self, windows: Windows, dataset: xr.Dataset) -> list[str]:
        """Where, and for which metric, an optimum or its error bar is at an end of the grid, in words."""

    def run(
        self,
        store: RunStore,
        executor: Executor | MakeExecutor | None = None,
        *,
        work: Work = run_one,
        progress: Progress | None = None,
    ) -> xr.Dataset:
        """Run whatever the store lacks, grow the grid until its optima are bracketed, and return the dataset.

        Interrupt it at any time: every finished run is in the store, and the next call goes on from there. The dataset
        does not depend on the interruptions, nor on other drivers at work on the same store.

        Parameters
        ----------
        store : RunStore
        executor : concurrent.futures.Executor or callable, optional
            Runs the training. Or a function that makes an executor, as a context manager: if that one breaks, another
            takes its place. By default :func:`noisysgd.validation.local_executor`, a process pool.
        work : callable, optional
            ``work(store, config)`` trains one configuration and writes its record, as
            :func:`noisysgd.validation.run_one` does; in a process pool it must be importable.
        progress : callable, optional
            ``progress(runs done, runs planned, share of the work done)``.

        Returns
        -------
        xarray.Dataset

        Raises
        ------
        RuntimeError
            If the executor broke; one that can be made again, if two in a row have finished no run.
        """
        records: dict[str, dict[str, Any]] = {}
        if isinstance(executor, Executor):
            return self._rounds(store, executor, records, work, progress)
        state = self.state(store)
        if state.finished:
            if progress is not None:
                progress(len(state.configs), len(state.configs), 1.0)
            store.tidy(state.configs)
            return self.collect(state.windows, state.found)
        vain = 0
        while True:
            before = len(records)
            try:
                with (executor or local_executor)() as one:
                    return self._rounds(store, one, records, work, progress)
            except BrokenExecutor as error:
                _read(store, self.plan(), records)
                vain = vain + 1 if len(records) == before else 0
                if vain == 2:
                    remedy = "Look for lack of memory, or use fewer workers."
                    raise RuntimeError(f"two executors in a row broke and finished no run: {error} {remedy}") from error
                logger.warning("%s Starting again.", error)

    def _rounds(
        self, store: RunStore, executor: Executor, records: dict[str, Any], work: Work, progress: Progress | None
    ) -> xr.Dataset:
        windows = self.start()
        while True:
            configs = self.plan(windows)
            _complete(executor, store, configs, records, work, progress)
            dataset = self.collect(windows, [records[config.key] for config in configs])
            grown = self.grow(windows, dataset)
            if grown == windows:
                store.tidy(configs)
                return dataset
            logger.info("optima not bracketed yet: %d runs more", len(self.plan(grown)) - len(configs))
            windows = grown

    def state(self, store: RunStore) -> State:
        """How far the sweep has come, by what the store holds; nothing is run."""
        windows = self.start()
        records: dict[str, dict[str, Any]] = {}
        while True:
            configs = self.plan(windows)
            _read(store, configs, records)
            whole = all(config.key in records for config in configs)
            if not whole:
                return State(windows, configs, records, False)
            grown = self.grow(windows, self.collect(windows, [records[config.key] for config in configs]))
            if grown == windows:
                return State(windows, configs, records, True)
            windows = grown

    def dataset(self, store: RunStore) -> xr.Dataset:
        """What the store holds of the sweep; runs planned and unfinished are missing."""
        state = self.state(store)
        return self.collect(state.windows, state.found)


def relative_cost(config: TrainConfig) -> float:
    """Relative cost of a run: examples seen, and a fixed cost per pass worth about 40 of them."""
    fixed = 40.0 * passes_per_batch(config)
    if config.steps is not None:
        cost = config.steps * (config.batch_size + fixed)
    else:
        cost = (config.epochs or 0.0) * (1.0 + fixed / config.batch_size)
    return cost * config.svag * config.batches_per_update


def costliest_first(configs: list[TrainConfig]) -> list[TrainConfig]:
    """The order in which runs are started, so that no process is left with a long one at the end."""
    final = [config.final_learning_rate or 0.0 for config in configs]
    keys = [(-relative_cost(c), c.seed, c.momentum, c.learning_rate, f) for c, f in zip(configs, final, strict=True)]
    return [config for _, config in sorted(zip(keys, configs, strict=True), key=lambda pair: pair[0])]


def _complete(
    executor: Executor,
    store: RunStore,
    configs: list[TrainConfig],
    records: dict[str, Any],
    work: Work,
    progress: Progress | None,
) -> None:
    """Run whatever of `configs` the store lacks, and add all their records to `records`."""
    tries: Counter[str] = Counter()
    total = sum(map(relative_cost, configs))
    _read(store, configs, records)
    done = sum(relative_cost(config) for config in configs if config.key in records)
    finished = sum(config.key in records for config in configs)
    if progress is not None:
        progress(finished, len(configs), done / total)
    while missing := [config for config in configs if config.key not in records]:
        futures = {executor.submit(work, store, config): config for config in missing}
        try:
            for future in as_completed(futures):
                config = futures[future]
                tries[config.key] += future.result() is not False
                if _read(store, [config], records):
                    done, finished = done + relative_cost(config), finished + 1
                    if progress is not None:
                        progress(finished, len(configs), done / total)
                elif tries[config.key] == TRIES:
                    raise RuntimeError(
                        f"{store.path(config)}: a run reports success and its record is not there. All workers "
                        "must see the same store: put it on a file system that they share."
                    )
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        if finished < len(configs):
            logger.info("%d runs are under way elsewhere", len(configs) - finished)
            time.sleep(PATIENCE)


def _read(store: RunStore, configs: Sequence[TrainConfig], records: dict[str, Any]) -> int:
    """Add to `records` what the store has of `configs`; returns how many of them are there now."""
    for config in configs:
        if config.key not in records and (record := store.read(config)) is not None:
            records[config.key] = record
    return sum(config.key in records for config in configs)
