"""Where runs are executed: a disposable pool of local processes. The store keeps the results, not the pool."""

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
"""For workers: the C library (glibc) would return large buffers after every training step, and fetch them anew."""

INTERRUPTED = "interrupted; runs under way are finishing (Ctrl-C again abandons them)"


@contextmanager
def local_executor(workers: int | None = None, *, devices: Sequence[int] = ()) -> Iterator[Executor]:
    """A pool of `workers` processes (one per usable core), each training with one thread.

    With `devices` there is one worker per GPU of that list, which sees no other (``CUDA_VISIBLE_DEVICES``).

    One thread per run makes results independent of the number of cores, and two runs side by side use two cores better
    than one run with two threads. Ctrl-C and SIGTERM go to the parent only, even if the whole process group gets them:
    waiting runs are cancelled, those under way finish and are stored; a second Ctrl-C abandons them. If the parent
    dies, even by ``kill -9``, so do the workers.

    Examples
    --------
    >>> with local_executor(workers=1) as executor:
    ...     executor.submit(pow, 2, 10).result()
    1024
    """
    context = _Spawn()
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
    all_started, stopping = context.Event(), context.RawValue("b", 0)
    given = (all_started, stopping, free)
    pool = _Pool(count, mp_context=context, initializer=_prepare_worker, initargs=given)
    try:
        with _environment(KEEP_MEMORY), interrupts.sheltered():
            for _ in range(count):
                pool.submit(os.getpid)  # which starts a process, since none is idle yet
            all_started.set()
        yield pool
    except KeyboardInterrupt:
        stopping.value = 1
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


class _Worker(SpawnProcess):
    """A worker that ignores SIGTERM and must end all the same when its pool is broken and terminates the others."""

    def terminate(self) -> None:
        self.kill()


class _Spawn(SpawnContext):
    Process = _Worker


class _Pool(ProcessPoolExecutor):
    """A pool that can be stopped: some calls wait beside the workers, where they can no longer be cancelled."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(_unless_stopping, fn, *args, **kwargs)


_stopping: Any = None


def _unless_stopping(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    if _stopping.value:
        raise CancelledError("the pool was interrupted.")
    return fn(*args, **kwargs)


def _prepare_worker(all_started: Any, stopping: Any, free: Any = None) -> None:
    global _stopping
    _stopping = stopping
    interrupts.ignore()
    if free is not None:  # before CUDA starts, which reads it once
        os.environ["CUDA_VISIBLE_DEVICES"] = str(free.get())
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)
    all_started.wait()


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
