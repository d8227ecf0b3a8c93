"""Where runs are executed: a disposable pool of local processes. The store keeps the results, not the pool."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noisysgd.theory import checks
from noisysgd.theory.parallel import usable_cores
from noisysgd.theory.provenance import provenance
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.store import RunStore

logger = logging.getLogger(__name__)

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "2000000000"}
"""For workers: the C library (glibc) would return large buffers after every training step, and fetch them anew."""


CHECKPOINT = "checkpoint.pt"


@contextmanager
def local_executor(workers: int | None = None, *, devices: Sequence[int] = ()) -> Iterator[Executor]:
    """A pool of `workers` processes (one per usable core), each training with one thread.

    With `devices` there is one worker per GPU of that list, which sees no other (``CUDA_VISIBLE_DEVICES``).

    One thread per run makes results independent of the number of cores, and two runs side by side use two cores better
    than one run with two threads. Ctrl-C goes to the parent only: waiting runs are cancelled, those under way finish
    and are stored; a second Ctrl-C abandons them. If the parent dies, even by ``kill -9``, so do the workers.

    Examples
    --------
    >>> with local_executor(workers=1) as executor:
    ...     executor.submit(pow, 2, 10).result()
    1024
    """
    context = multiprocessing.get_context("spawn")
    free = context.Queue() if devices else None
    for device in distinct(devices):
        assert free is not None
        free.put(device)
    default = len(devices) or usable_cores()
    count = default if workers is None else checks.integer("workers", workers, 1, remedy="Use at least one.")
    one_each = not devices or count <= len(devices)
    expected = f"at most one for each of the {len(devices)} devices"
    checks.require(one_each, "workers", expected, workers, "Name more devices or use fewer workers.")
    # Spawned, not forked: the parent may hold threads and locks, which do not survive a fork.
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_prepare_worker, initargs=(free,))
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


def run_one(store: RunStore, config: TrainConfig) -> bool:
    """Train one configuration and store its record, unless it is there already.

    Returns ``False`` if another process has the run under way. A run that was killed goes on from its checkpoint, to
    the record it would have had; if the checkpoint is damaged, it starts over.
    """
    if store.read(config) is not None:
        return True
    with store.claim(config) as working:
        if working is None:
            return False
        if store.read(config) is None:  # another process may have finished it meanwhile
            from noisysgd.validation.training import train  # torch is imported where training happens

            with one_thread():
                record = train(config, checkpoint=_usable(working / CHECKPOINT))
            store.write(record | {"provenance": provenance()})
    return True


def _usable(checkpoint: Path) -> Path:
    """The path, after a damaged checkpoint has been moved out of the way: its run then starts over."""
    from noisysgd.validation import checkpoint as checkpoints

    try:
        checkpoints.read(checkpoint)
    except FileNotFoundError:
        pass
    except ValueError as error:
        checkpoint.replace(checkpoint.with_suffix(".damaged"))
        logger.warning("%s; the run starts over", error)
    return checkpoint


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch with one thread, wherever a run finds itself: its last bits depend on the number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def distinct(devices: Sequence[int]) -> list[int]:
    """GPU numbers, each named once."""
    numbers = [checks.integer("devices", device, 0, remedy="Number GPUs as nvidia-smi does.") for device in devices]
    checks.require(len(set(numbers)) == len(numbers), "devices", "distinct numbers", numbers, "Name each GPU once.")
    return numbers


def _prepare_worker(free: Any = None) -> None:
    if free is not None:  # before CUDA starts, which reads it once
        os.environ["CUDA_VISIBLE_DEVICES"] = str(free.get())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
