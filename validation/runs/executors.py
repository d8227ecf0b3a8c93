"""A pool of worker processes on this machine. It may be lost at any time: results are in the store, not in the pool."""

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from noisysgd.theory.common import checks
from noisysgd.theory.common.parallel import usable_cores
from noisysgd.validation.runs import interrupts

logger = logging.getLogger(__name__)

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "2000000000"}
"""Environment of workers: without it glibc returns large buffers to the system after every training step and requests
them again in the next."""

INTERRUPTED = "interrupted; runs under way are finishing (Ctrl-C again abandons them)"


@contextmanager
def local_executor(
    workers: int | None = None, *, devices: Sequence[int] = (), runs_per_device: int = 1
) -> Iterator[Executor]:
    """A pool of worker processes on this machine, each of which trains with one thread.

    With one thread per run results do not depend on the number of cores, and two runs side by side use two cores better
    than one run with two threads. Only the parent reacts to Ctrl-C and SIGTERM, even if they are sent to the whole
    process group: runs that have not begun are cancelled, those under way finish and are stored; a second Ctrl-C
    abandons them. If the parent dies, even by ``kill -9``, so do the workers.

    Parameters
    ----------
    workers : int, optional
        Number of processes; by default one per usable core, or `runs_per_device` for every device.
    devices : sequence of int
        Numbers of GPUs. Every worker is given one of them and sees no other (``CUDA_VISIBLE_DEVICES``).
    runs_per_device : int
        Number of workers that share a GPU. One small network leaves most of a large GPU idle.

    Yields
    ------
    concurrent.futures.Executor

    Raises
    ------
    ValueError
        For less than one worker, more workers than devices have room for, or a device named twice.

    Examples
    --------
    >>> with local_executor(workers=1) as executor:
    ...     executor.submit(pow, 2, 10).result()
    1024
    """
    context = _Spawn()
    # Each worker takes one device from this queue when it starts, in whichever order they start.
    free = context.Queue() if devices else None
    shared = checks.integer("runs_per_device", runs_per_device, 1, remedy="Use 1 for a GPU to every run.")
    for device in distinct(devices) * shared:  # each GPU once before any for the second time
        assert free is not None
        free.put(device)
    room = len(devices) * shared
    default = room or usable_cores()
    count = default if workers is None else checks.integer("workers", workers, 1, remedy="Use at least one.")
    expected = f"at most {'one' if shared == 1 else shared} for each of the {len(devices)} devices"
    remedy = "Name more devices, use fewer workers, or set runs_per_device."
    checks.require(not devices or count <= room, "workers", expected, workers, remedy)
    # Spawned, not forked: a fork copies locks that threads of the parent hold, and nobody would release the copies.
    all_started, stopping = context.Event(), context.RawValue("b", 0)
    given = (all_started, stopping, free)
    pool = _Pool(count, mp_context=context, initializer=_prepare_worker, initargs=given)
    try:
        with _environment(KEEP_MEMORY), interrupts.sheltered():
            # All processes must start in here, to inherit environment and signal mask. The pool starts one for a
            # submitted call only if none is idle, so every worker waits at its start until all have been started.
            for _ in range(count):
                pool.submit(os.getpid)
            all_started.set()
        yield pool
    except KeyboardInterrupt:
        stopping.value = 1  # also stops the calls that the pool has already handed to its workers' queue
        logger.warning(INTERRUPTED)
        closing = interrupts.Background(lambda: pool.shutdown(wait=True, cancel_futures=True))

        def abandon() -> None:
            interrupts.kill_children()
            closing.wait()

        interrupts.finish(closing.wait, abandon)
        raise
    finally:
        interrupts.Background(lambda: pool.shutdown(wait=True, cancel_futures=True)).wait()


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables that are not set already, for the processes that are started inside."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def distinct(devices: Sequence[int]) -> list[int]:
    """`devices` as a list of integers ≥ 0.

    Raises
    ------
    ValueError
        If one is no such integer, or is named twice.
    """
    numbers = [checks.integer("devices", device, 0, remedy="Number GPUs as nvidia-smi does.") for device in devices]
    checks.require(len(set(numbers)) == len(numbers), "devices", "distinct numbers", numbers, "Name each GPU once.")
    return numbers


class _Worker(SpawnProcess):
    """A worker process that is ended by SIGKILL: it ignores SIGTERM, with which a broken pool ends its workers."""

    def terminate(self) -> None:
        self.kill()


class _Spawn(SpawnContext):
    """Makes :class:`_Worker` processes."""

    Process = _Worker


class _Pool(ProcessPoolExecutor):
    """A process pool whose calls look at a shared flag before they begin.

    ``shutdown(cancel_futures=True)`` does not reach the calls that already are in the queue to the workers.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(_unless_stopping, fn, *args, **kwargs)


_stopping: Any = None
"""In a worker: the shared flag, not zero once the pool was interrupted."""


def _unless_stopping(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call `fn` in a worker, unless the pool was interrupted in the meantime."""
    if _stopping.value:
        raise CancelledError("the pool was interrupted.")
    return fn(*args, **kwargs)


def _prepare_worker(all_started: Any, stopping: Any, free: Any = None) -> None:
    """Initialise a worker process: signals, its GPU, its end with the parent, one thread; then wait for the others.

    Parameters
    ----------
    all_started : multiprocessing.Event
        Set when all workers have been started.
    stopping : shared integer
        Not zero once the pool was interrupted.
    free : multiprocessing.Queue, optional
        Numbers of the GPUs that no worker has taken yet.
    """
    global _stopping
    _stopping = stopping
    interrupts.ignore()
    if free is not None:  # before torch is imported: CUDA reads the variable only once
        os.environ["CUDA_VISIBLE_DEVICES"] = str(free.get())
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)
    all_started.wait()


def _die_with(parent: Any) -> None:
    """Wait for the end of the parent process, in a thread, and end this one at once, whatever it is doing."""
    parent.join()
    os._exit(1)
