"""Where runs are executed: a disposable pool of local processes. The store keeps the results, not the pool."""

import logging
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
from noisysgd.theory.provenance import provenance
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.store import RunStore

logger = logging.getLogger(__name__)

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "2000000000"}
"""For workers: the C library (glibc) would return large buffers after every training step, and fetch them anew."""


@contextmanager
def local_executor(workers: int | None = None) -> Iterator[Executor]:
    """A pool of `workers` processes (one per usable core), each training with one thread.

    One thread per run makes results independent of the number of cores, and two runs side by side use two cores better
    than one run with two threads. Ctrl-C goes to the parent only: waiting runs are cancelled, those under way finish
    and are stored; a second Ctrl-C abandons them. If the parent dies, even by ``kill -9``, so do the workers.

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
        with _environment(KEEP_MEMORY):
            yield pool
    except KeyboardInterrupt:
        logger.warning("interrupted; runs under way are finishing (Ctrl-C again abandons them)")
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_one(store: RunStore, config: TrainConfig) -> None:
    """Train one configuration and store its record, unless it is there already."""
    if store.read(config) is None:
        from noisysgd.validation.training import train  # torch is imported where training happens

        store.write(train(config) | {"provenance": provenance()})


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables, where they are not set already, for the processes started meanwhile."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


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
