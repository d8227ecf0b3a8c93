"""What all sweeps of training runs share: plan, run what the store lacks, widen the grid, and repeat.

A sweep tunes learning rates separately at every *setting*, a combination of momentum, batch size and budget. There it
has a *window* of exponents k of effective learning rates 2^k along every axis, which is widened until the optimum lies
inside.
"""

import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import xarray as xr

from noisysgd.theory.common import checks
from noisysgd.theory.sweeps.grid import Grid
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.networks.users_code import not_ending_the_program
from noisysgd.validation.runs.executors import local_executor
from noisysgd.validation.runs.single_run import run_one
from noisysgd.validation.runs.store import RunStore
from noisysgd.validation.sweeps.cost import costliest_first, relative_cost
from noisysgd.validation.sweeps.protocol import (
    MOST_RUNS,
    bracketed_metrics,
    distinct_values,
    extension,
    listed,
    runs_kept,
)
from noisysgd.validation.sweeps.waiting import as_they_finish
from noisysgd.validation.training.time_limit import OverdueError

logger = logging.getLogger(__name__)

ReportProgress = Callable[[int, int, float], None]
"""Called with (runs done, runs planned, share of the work done)."""
Work = Callable[[RunStore, TrainConfig], object]
"""Trains one configuration and writes its record; returns ``False`` if another process is training it."""
ExecutorFactory = Callable[[], AbstractContextManager[Executor]]
"""Makes an executor, as a context manager that closes it."""
Record = Mapping[str, Any]
"""What the store has of a finished run, by name."""
Setting = tuple[float, int, float | None]
"""Momentum, batch size and budget; the budget is ``None`` where all runs have that of the sweep's base."""
RateWindows = Mapping[Setting, Mapping[str, Grid]]
"""For every setting, and every axis of learning rates by name, the exponents k of the rates 2^k to try."""

PATIENCE = 0.5
"""Seconds between looks at runs that another driver is training."""
TRIES = 3
"""Times that a run is started because its record, reported as written, cannot be read."""


@dataclass(frozen=True)
class SweepState:
    """How far a sweep has come.

    Parameters
    ----------
    windows : mapping
        The windows, grown as far as complete records call for.
    configs : sequence of TrainConfig
        The runs planned in these windows.
    records : mapping
        Records that the store has, by the key of their configuration.
    dataset : xarray.Dataset or None
        That of the sweep, if it is finished.
    """

    windows: RateWindows
    configs: Sequence[TrainConfig]
    records: Mapping[str, Record]
    dataset: xr.Dataset | None = None

    @property
    def finished(self) -> bool:
        """Whether all planned runs have records, and these call for no further growth."""
        return self.dataset is not None

    @property
    def found(self) -> list[Record]:
        """Records of the planned runs that the store has."""
        return [self.records[config.key] for config in self.configs if config.key in self.records]

    @property
    def missing(self) -> list[TrainConfig]:
        """Planned runs of which the store has no record."""
        return [config for config in self.configs if config.key not in self.records]


class GrowingSweep(ABC):
    """A sweep whose grid grows until its optima lie inside; base of :class:`Sweep` and :class:`PairSweep`.

    Its windows and its dataset are functions of its arguments and of the records alone, so that a sweep can be
    interrupted and resumed at any time. Subclasses are dataclasses with at least these fields, which they document.
    """

    base: TrainConfig
    seeds: int
    keep: int
    bracket: str | Sequence[str] | None
    extensions: int
    budgets: Sequence[float] | None

    def _check_shared_fields(self) -> None:
        """Check the fields that all sweeps have, and keep the numbers of runs as integers."""
        checks.instance("base", self.base, TrainConfig, remedy="Make one with validation.TrainConfig.")
        seeds, keep = runs_kept(self.seeds, self.keep)
        self._set(base=self.base.pinned(), seeds=seeds, keep=keep, extensions=extension(self.extensions))
        # The effective learning rates of grids and their datasets are ε/(1−m).
        remedy = "Leave it out: a dampened run is one at the learning rate (1−d) ε, which the grid has or can have."
        checks.require(self.base.dampening == 0, "dampening", "0 in a sweep", self.base.dampening, remedy)
        if self.bracket is not None and not isinstance(self.bracket, str):
            self._set(bracket=bracketed_metrics(self.bracket))
        bracketed_metrics(self.metrics)
        if self.budgets is not None:
            distinct_values(
                "budgets", [checks.scalar("budgets", budget) for budget in listed("budgets", self.budgets)], "budget"
            )

    def _check_runs(self) -> None:
        """Check every configuration of the plan, and that these are not more than a sweep can be made of."""
        each = [math.prod(map(len, axes.values())) for axes in self.start().values()]
        runs, remedy = sum(each) * self.seeds, "Use fewer values, or several sweeps."
        checks.require(runs <= MOST_RUNS, "sweep", f"at most {MOST_RUNS} runs to begin with", runs, remedy)
        self.plan()  # every configuration checks itself

    def _set(self, **fields: object) -> None:
        """Replace fields of a frozen dataclass by their checked values."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics whose optima are to be bracketed."""
        if self.bracket is None:
            return ()
        return (self.bracket,) if isinstance(self.bracket, str) else tuple(self.bracket)

    @property
    def unit(self) -> str:
        """Unit of the budgets: ``epochs`` or ``steps``."""
        return "epochs" if self.base.steps is None else "steps"

    @property
    def _several_budgets(self) -> bool:
        """Whether the dataset has a dimension ``budget``."""
        return self.budgets is not None

    def _budgets(self) -> list[float | None]:
        """Budgets to begin with; ``None`` for that of the base."""
        return [None] if self.budgets is None else list(self.budgets)

    @abstractmethod
    def start(self) -> RateWindows:
        """The windows to begin with."""

    def plan(self, windows: RateWindows | None = None) -> list[TrainConfig]:
        """The runs in the given windows, or in the initial ones.

        Parameters
        ----------
        windows : mapping, optional
            From :meth:`start`, :meth:`grow` or :meth:`state`.

        Returns
        -------
        list of TrainConfig
            The costliest first.
        """
        windows = windows or self.start()
        known, configs = vars(self).get("_planned", (None, []))
        if known != windows:  # of many runs it takes a while, and it is asked for again and again
            configs = costliest_first(
                [
                    config
                    for setting, axes in windows.items()
                    for changes in self._variations(setting, axes)
                    for config in self.base.with_(
                        **changes, **({} if setting[2] is None else {self.unit: setting[2]})
                    ).repeated(self.seeds)
                ]
            )
            self._set(_planned=(windows, configs))
        return list(configs)

    @abstractmethod
    def _variations(self, setting: Setting, axes: Mapping[str, Grid]) -> Iterator[dict[str, Any]]:
        """What each learning rate (or pair) of a window changes in the base, apart from budget and seed."""

    @abstractmethod
    def collect(self, windows: RateWindows, records: Sequence[Record], more: Sequence[str] = ()) -> xr.Dataset:
        """The records as a dataset.

        Parameters
        ----------
        windows : mapping
            The windows that were planned; runs in them without a record have the status "unfinished".
        records : sequence of mappings
            Records as the store has them.
        more : sequence of str
            Names of further numbers in the records, which become variables beside the metrics.

        Returns
        -------
        xarray.Dataset
        """

    def _shared_configuration(self, *varied: str) -> dict[str, Any]:
        """The base without the names in `varied`, nor the budget if that varies: what all runs have in common."""
        own = {*varied, self.unit} if self._several_budgets else set(varied)
        return {name: value for name, value in self.base.as_dict().items() if name not in own}

    @abstractmethod
    def grow(self, windows: RateWindows, dataset: xr.Dataset) -> RateWindows:
        """The windows, with more learning rates or budgets where their complete `dataset` calls for them."""

    @abstractmethod
    def limits(self, windows: RateWindows) -> RateWindows:
        """The windows, grown as far as the sweep allows."""

    def extra(self, windows: RateWindows) -> list[TrainConfig]:
        """The runs that growing from these windows to the limits would add: an upper bound on what may come."""
        known = {config.key for config in self.plan(windows)}
        return [config for config in self.plan(self.limits(windows)) if config.key not in known]

    @abstractmethod
    def unbracketed(self, windows: RateWindows, dataset: xr.Dataset) -> list[str]:
        """In words, at which settings and for which metrics an optimum or its error bar is at an end of the grid."""

    def run(
        self,
        store: RunStore,
        executor: Executor | ExecutorFactory | None = None,
        *,
        work: Work = run_one,
        progress: ReportProgress | None = None,
    ) -> xr.Dataset:
        """Run whatever the store lacks, grow the grid until its optima are bracketed, and return the dataset.

        It may be interrupted at any time: every finished run is in the store, and the next call goes on from there. The
        dataset does not depend on interruptions, nor on other drivers that work on the same store.

        Parameters
        ----------
        store : RunStore
        executor : concurrent.futures.Executor or callable, optional
            Trains the runs. A function that makes an executor, as a context manager, is called again if that executor
            breaks. By default :func:`noisysgd.validation.local_executor`, a process pool.
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
            If the given executor broke; if executors can be made anew, when two in a row have finished no run. If runs
            took longer than the time limit that `work` sets (an ``OverdueError``), when all others have finished.
        """
        records: dict[str, Record] = {}
        overdue: dict[str, str] = {}
        # If it breaks, there is no other to go on with: the error reaches the caller.
        if isinstance(executor, Executor):
            return self._rounds(store, executor, records, overdue, work, progress)
        # A finished sweep needs no workers, and its store may be one that can only be read.
        state = self.state(store)
        if state.dataset is not None:
            if progress is not None:
                progress(len(state.configs), len(state.configs), 1.0)
            store.tidy(state.configs)
            return state.dataset
        in_vain = 0
        while True:
            before = len(records) + len(overdue)
            try:
                with (executor or local_executor)() as one:
                    return self._rounds(store, one, records, overdue, work, progress)
            except BrokenExecutor as error:
                # The workers may have finished runs that were not yet reported when the executor broke.
                _read(store, self.plan(), records)
                # A worker that hung beyond its time limit was ended, which breaks a pool: its run is not begun again.
                hung = {config.key: store.overdue(config) for config in self.plan(self.state(store).windows)}
                overdue |= {key: text for key, text in hung.items() if text is not None}
                in_vain = in_vain + 1 if len(records) + len(overdue) == before else 0
                if in_vain == 2:
                    remedy = "Look for lack of memory, use fewer workers, or look for os._exit in code of your own."
                    raise RuntimeError(f"two executors in a row broke and finished no run: {error} {remedy}") from error
                logger.warning("%s Starting again.", error)

    def _rounds(
        self,
        store: RunStore,
        executor: Executor,
        records: dict[str, Record],
        overdue: dict[str, str],
        work: Work,
        progress: ReportProgress | None,
    ) -> xr.Dataset:
        """Complete the windows and grow them, again and again until they stay the same; returns their dataset.

        A round grows the windows only when all their runs are finished, never by those that happen to be: the result
        would otherwise depend on the order in which runs finish.
        """
        windows = self.start()
        while True:
            configs = self.plan(windows)
            _complete(executor, store, configs, records, overdue, work, progress)
            late = [overdue[config.key] for config in configs if config.key not in records]
            if late:
                rest = "Their last checkpoints are kept: the same command tries them again from there."
                raise OverdueError(f"{len(late)} of {len(configs)} runs exceeded their time limit. {rest} {late[0]}")
            dataset = self.collect(windows, [records[config.key] for config in configs])
            grown = self.grow(windows, dataset)
            # Windows only ever grow, and up to limits: this point is reached.
            if grown == windows:
                store.tidy(configs)
                return dataset
            logger.info("optima not bracketed yet: %d runs more", len(self.plan(grown)) - len(configs))
            windows = grown

    def state(self, store: RunStore, more: Callable[[Sequence[Record]], Sequence[str]] = lambda _: ()) -> SweepState:
        """How far the sweep has come, from the records in a store; nothing is trained.

        Parameters
        ----------
        store : RunStore
        more : callable, optional
            Names of further numbers, as a function of the records, for the dataset of a finished sweep: see
            :meth:`collect`.
        """
        windows = self.start()
        records: dict[str, Record] = {}
        # The same rounds as in run, up to the first that has not all its records.
        while True:
            configs = self.plan(windows)
            if _read(store, configs, records) < len(configs):
                return SweepState(windows, configs, records)
            found = [records[config.key] for config in configs]
            dataset = self.collect(windows, found, more(found))
            grown = self.grow(windows, dataset)
            if grown == windows:
                return SweepState(windows, configs, records, dataset)
            windows = grown

    def dataset(self, store: RunStore) -> xr.Dataset:
        """The records that a store has of the sweep, as a dataset; planned runs without one are missing in it."""
        state = self.state(store)
        return self.collect(state.windows, state.found)


def provenances(records: Sequence[Record]) -> str:
    """The distinct versions, commits and machines behind records, as a JSON list.

    >>> provenances([{"provenance": {"commit": "a"}}, {"provenance": [{"commit": "b"}, {"commit": "a"}]}])
    '[{"commit": "a"}, {"commit": "b"}]'
    """
    each = [record.get("provenance", []) for record in records]
    # An imported record may have a list: those of all runs of the file that it came from.
    flat = [one for some in each for one in (some if isinstance(some, list) else [some])]
    distinct = {repr(one): one for one in flat}.values()  # mostly the same few, of which JSON would take longer
    return "[" + ", ".join(sorted({json.dumps(one, sort_keys=True) for one in distinct})) + "]"


def in_words(setting: Setting, unit: str) -> str:
    """A setting in words; `unit` is that of its budget.

    >>> in_words((0.9, 64, 50.0), "epochs")
    'momentum 0.9, B = 64, 50 epochs'
    """
    momentum, size, budget = setting
    return f"momentum {momentum:g}, B = {size}" + ("" if budget is None else f", {budget:g} {unit}")


def _complete(
    executor: Executor,
    store: RunStore,
    configs: list[TrainConfig],
    records: dict[str, Record],
    overdue: dict[str, str],
    work: Work,
    progress: ReportProgress | None,
) -> None:
    """Train whatever of `configs` the store lacks, and add the records of all of them to `records`.

    Or to `overdue` the reasons of those that took longer than their time limit.
    """
    tries: Counter[str] = Counter()
    # Progress is measured by cost, not by number of runs: the costliest come first, and may take many times longer.
    total = sum(map(relative_cost, configs))
    finished = _read(store, configs, records)
    done = sum(relative_cost(config) for config in configs if config.key in records)
    if progress is not None:
        progress(finished, len(configs), done / total)
    while missing := [config for config in configs if config.key not in records and config.key not in overdue]:
        futures = {executor.submit(work, store, config): config for config in missing}
        try:
            for future in as_they_finish(futures, store):
                config = futures[future]
                try:
                    with not_ending_the_program(f"{store.path(config)}: the run"):
                        done_here = future.result() is not False  # not a try if another process has the run
                except OverdueError as error:
                    overdue[config.key] = str(error)
                    continue
                tries[config.key] += done_here
                # The record is read from the store and not returned by the worker: what counts is what was kept.
                if _read(store, [config], records):
                    done, finished = done + relative_cost(config), finished + 1
                    if progress is not None:
                        progress(finished, len(configs), done / total)
                elif tries[config.key] == TRIES:
                    raise RuntimeError(
                        f"{store.path(config)}: a run reports success and its record is not there. All workers "
                        "must see the same store: put it on a file system that they share."
                    )
        except BaseException:  # Ctrl-C included: what has not begun shall not begin
            for future in futures:
                future.cancel()
            raise
        # What is still missing is being trained by another driver, or has to be tried again: submit it anew, which
        # also takes over runs whose driver has died in the meantime.
        if finished + len(overdue.keys() - records.keys()) < len(configs):
            logger.info("%d runs are under way elsewhere", len(configs) - finished)
            time.sleep(PATIENCE)


def _read(store: RunStore, configs: Sequence[TrainConfig], records: dict[str, Record]) -> int:
    """Add to `records` what the store has of `configs`; returns how many of them have a record now."""
    records |= store.read_many(config for config in configs if config.key not in records)
    return sum(config.key in records for config in configs)
