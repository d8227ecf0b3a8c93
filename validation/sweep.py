"""Sweeps over optimizers, batch sizes, learning rates and seeds, on any executor, resumable at any moment."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.theory import checks
from noisysgd.theory.optimum import optimum
from noisysgd.theory.sweep import sweep_from_records
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.executors import local_executor, run_one
from noisysgd.validation.store import RunStore

logger = logging.getLogger(__name__)

METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
Progress = Callable[[int, int, float], None]
"""Called with (runs done, runs planned, share of the work done)."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A grid of training runs that grows until the optima lie inside it.

    Parameters
    ----------
    base : TrainConfig
        Everything that the grid does not vary.
    batch_sizes : sequence of int
    momenta : sequence of float
        0 is plain SGD.
    exponents : mapping or sequence of int
        Effective learning rates ε/(1−m) = 2^k to begin with. A mapping from (momentum, batch size) gives each its own
        window.
    seeds : int
        Runs at each point.
    bracket : str or None
        Metric whose optimum, with its error bar, must come to lie inside the grid (``keep`` runs as in
        :func:`noisysgd.theory.optimum`).
    keep : int
        Runs kept of each `seeds`; the paper keeps 12 of 15.
    extensions : int
        Learning rates that a window may grow by, at each end, in search of a bracket.

    Raises
    ------
    ValueError
        For an impossible grid.

    Examples
    --------
    >>> base = TrainConfig(learning_rate=1.0, batch_size=64, steps=20)
    >>> sweep = Sweep(base=base, batch_sizes=[64, 256], momenta=[0.0, 0.9], exponents=range(-2, 2), seeds=2, keep=2)
    >>> len(sweep.plan())
    32
    """

    base: TrainConfig
    batch_sizes: Sequence[int]
    momenta: Sequence[float]
    exponents: Sequence[int] | Mapping[tuple[float, int], Sequence[int]]
    seeds: int
    bracket: str | None = "train_loss"
    keep: int = 1
    extensions: int = 4

    def __post_init__(self) -> None:
        seeds = checks.integer("seeds", self.seeds, 1, remedy="Run each point at least once.")
        keep = checks.integer("keep", self.keep, 1, remedy="Keep at least one run.")
        checks.require(keep <= seeds, "keep", f"at most the {seeds} seeds", keep, "Keep fewer or run more seeds.")
        chosen = self.exponents
        if isinstance(chosen, Mapping):
            lacking = [pair for pair in self.points if pair not in chosen]
            expected = "a window for every (momentum, batch size)"
            checks.require(not lacking, "exponents", expected, f"none for {lacking}", "Add it.")
            chosen = {pair: tuple(chosen[pair]) for pair in self.points}
        object.__setattr__(self, "exponents", chosen if isinstance(chosen, Mapping) else tuple(chosen))
        extensions = checks.integer("extensions", self.extensions, 0, remedy="Use 0 for a fixed grid.")
        object.__setattr__(self, "extensions", extensions)
        for name in ("batch_sizes", "momenta"):
            values = list(getattr(self, name))
            distinct = bool(values) and len(set(values)) == len(values)
            checks.require(distinct, name, "distinct values, at least one", values, "Name each once.")
        known = self.bracket is None or self.bracket in METRICS
        checks.require(known, "bracket", f"None or one of {METRICS}", self.bracket, "Choose a metric of the records.")
        for pair in self.points:
            window = self._window(pair)
            distinct = 0 < len(window) == len(set(window))
            checks.require(distinct, "exponents", "distinct integers k for 2^k, at least one", window, "Give a range.")
        self.plan()  # every configuration checks itself

    @property
    def points(self) -> list[tuple[float, int]]:
        """All (momentum, batch size)."""
        return list(itertools.product(self.momenta, self.batch_sizes))

    def plan(self, windows: dict[tuple[float, int], list[int]] | None = None) -> list[TrainConfig]:
        """Configurations of the grid, the costliest first: those of the given windows, or of the initial ones."""
        windows = windows or {pair: self._window(pair) for pair in self.points}
        configs = [
            self.base.with_(
                momentum=float(momentum),
                batch_size=size,
                learning_rate=2.0**exponent * (1.0 - momentum),
                seed=self.base.seed + seed,
            )
            for (momentum, size), window in windows.items()
            for exponent in window
            for seed in range(self.seeds)
        ]
        return sorted(configs, key=lambda c: (-_cost(c), c.seed, c.momentum, c.learning_rate))

    def run(
        self,
        store: RunStore,
        executor: Executor | None = None,
        *,
        work: Callable[[RunStore, TrainConfig], Any] = run_one,
        progress: Progress | None = None,
    ) -> xr.Dataset:
        """Run whatever the store lacks, grow the grid until its optima are bracketed, and return the dataset.

        Interrupt it at any time: every finished run is in the store, and the next call goes on from there. The dataset
        does not depend on the interruptions.

        Parameters
        ----------
        store : RunStore
        executor : concurrent.futures.Executor, optional
            Runs the training; by default the process pool of :func:`noisysgd.validation.local_executor`.
        work : callable, optional
            ``work(store, config)`` trains one configuration and writes its record, as
            :func:`noisysgd.validation.run_one` does; in a process pool it must be importable.
        progress : callable, optional
            ``progress(runs done, runs planned, share of the work done)``.

        Returns
        -------
        xarray.Dataset
            A Sweep over (optimizer, batch_size, learning_rate, seed).
        """
        if executor is None:
            with local_executor() as pool:
                return self.run(store, pool, work=work, progress=progress)
        windows = {pair: self._window(pair) for pair in self.points}
        room = dict.fromkeys(itertools.product(self.points, (-1, 1)), self.extensions)
        while True:
            self._run_missing(store, executor, self.plan(windows), work, progress)
            dataset = self._dataset(store, windows)
            grown = self._grow(dataset, windows, room)
            if not grown:
                return dataset
            logger.info("optima not bracketed yet: added %s", grown)

    def dataset(self, store: RunStore) -> xr.Dataset:
        """What the store holds of the initial grid, as a Sweep; unfinished runs are missing."""
        return self._dataset(store, {pair: self._window(pair) for pair in self.points})

    def _dataset(self, store: RunStore, windows: dict[tuple[float, int], list[int]]) -> xr.Dataset:
        records = [record for config in self.plan(windows) if (record := store.read(config)) is not None]
        shared = self.base.as_dict()
        for name in ("learning_rate", "batch_size", "momentum", "seed"):
            del shared[name]
        rows = [record["config"] | record for record in records]
        return sweep_from_records(rows, source="training", metrics=METRICS, configuration=shared)

    def _run_missing(
        self,
        store: RunStore,
        executor: Executor,
        configs: list[TrainConfig],
        work: Callable[[RunStore, TrainConfig], Any],
        progress: Progress | None,
    ) -> None:
        total = sum(map(_cost, configs))
        missing = [config for config in configs if store.read(config) is None]
        done = total - sum(map(_cost, missing))
        finished = len(configs) - len(missing)
        if progress is not None:
            progress(finished, len(configs), done / total)
        futures = {executor.submit(work, store, config): config for config in missing}
        try:
            for future in as_completed(futures):
                future.result()
                done += _cost(futures[future])
                finished += 1
                if progress is not None:
                    progress(finished, len(configs), done / total)
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def _grow(
        self,
        dataset: xr.Dataset,
        windows: dict[tuple[float, int], list[int]],
        room: dict[tuple[tuple[float, int], int], int],
    ) -> list[tuple[float, int, int]]:
        """Add a learning rate where the optimum or its error bar touches the end of a window; list what was added."""
        if self.bracket is None:
            return []
        best = optimum(dataset, self.bracket, keep=self.keep)
        grown = []
        for pair in self.points:
            momentum, size = pair
            here = best.isel(optimizer=int(np.argmin(np.abs(best.momentum.values - momentum)))).sel(batch_size=size)
            window = windows[pair]
            nothing = not np.isfinite(here.learning_rate)  # all diverged: look further down
            for side, end, bar in ((-1, min(window), "low"), (1, max(window), "high")):
                reached = float(here[f"effective_learning_rate_{bar}"])
                touches = nothing if side < 0 and nothing else np.isclose(reached, 2.0**end, rtol=1e-6)
                if touches and room[pair, side] > 0:
                    room[pair, side] -= 1
                    window.append(end + side)
                    grown.append((momentum, size, end + side))
        return grown

    def _window(self, pair: tuple[float, int]) -> list[int]:
        chosen = self.exponents
        window = chosen[pair] if isinstance(chosen, Mapping) else chosen
        return [checks.integer("exponents", k, -1000, remedy="Effective learning rates are 2^k.") for k in window]


def _cost(config: TrainConfig) -> float:
    """Relative cost of a run: examples seen, and a fixed cost per step worth about 40 of them."""
    if config.steps is not None:
        return config.steps * (config.batch_size + 40.0)
    return (config.epochs or 0.0) * (1.0 + 40.0 / config.batch_size)
