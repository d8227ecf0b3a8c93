"""Where runs are executed: a disposable pool of local processes. The store keeps the results, not the pool."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from noisysgd.theory import checks
from noisysgd.theory.parallel import usable_cores
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.store import RunStore


@contextmanager
def local_executor(workers: int | None = None) -> Iterator[Executor]:
    """A pool of `workers` processes (one per usable core), each training with one thread.

    One thread per run makes results independent of the number of cores, and two runs side by side use two cores better
    than one run with two threads. Ctrl-C goes to the parent only: runs under way finish and are stored, waiting ones
    are cancelled. If the parent dies, even by ``kill -9``, so do the workers.

    Examples
    --------
    >>> with local_executor(workers=1) as executor:
    ...     executor.submit(pow, 2, 10).result()
    1024
    """
    count = usable_cores() if workers is None else checks.integer("workers", workers, 1, remedy="Use at least one.")
    # Spawned, not forked: the parent may hold threads and locks, which do not survive a fork.
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_one(store: RunStore, config: TrainConfig) -> None:
    """Train one configuration and store its record, unless it is there already."""
    if store.read(config) is None:
        _import_training()(store, config)


@functools.cache
def _import_training() -> Any:
    from noisysgd.theory.provenance import provenance
    from noisysgd.validation.training import train  # torch is imported where training happens

    def work(store: RunStore, config: TrainConfig) -> None:
        store.write(train(config) | {"provenance": provenance()})

    return work


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
