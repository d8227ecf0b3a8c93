"""Runs on a Dask cluster: any scheduler that workers with the same file system have joined, or one on this machine.

The cluster is disposable. A run whose worker dies is started again by another, from its checkpoint if it left one; a
scheduler that dies ends the driver with an error, and the same command goes on from the store on another cluster.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisysgd.theory.common import checks
from noisysgd.theory.common.parallel import usable_cores
from noisysgd.validation.runs import interrupts
from noisysgd.validation.runs.executors import INTERRUPTED, KEEP_MEMORY, distinct

if TYPE_CHECKING:
    from distributed import SpecCluster

logger = logging.getLogger(__name__)

CONNECT_SECONDS, ATTEMPT_SECONDS = 30.0, 5
"""How long to look for a scheduler, and how long in each attempt."""


@contextmanager
def dask_executor(scheduler: str, *, workers: int | None = None, devices: Sequence[int] = ()) -> Iterator[Executor]:
    """An executor for sweeps on a Dask cluster.

    Ctrl-C and SIGTERM cancel the runs that wait; those under way finish and are stored. A local cluster stays for as
    long as that takes, or until a second Ctrl-C.

    Parameters
    ----------
    scheduler : str
        Address of a running scheduler (``tcp://host:8786``), the path of its scheduler file, or ``"local"`` for a
        cluster of worker processes on this machine, which ends with the executor.
    workers, devices
        Of the local cluster: see :func:`local_cluster`.

    Raises
    ------
    ModuleNotFoundError
        Without ``distributed``; it comes with ``pip install 'noisysgd[cluster]'``.
    BrokenExecutor
        A ``RuntimeError``, from inside, if the cluster is lost, or a run has killed several workers.

    Examples
    --------
    >>> with dask_executor("local", workers=1) as executor:  # doctest: +SKIP
    ...     dataset = sweep.run(RunStore("runs"), executor)
    """
    try:
        from distributed import Client, KilledWorker
        from distributed.comm.core import CommClosedError
    except ModuleNotFoundError as error:
        remedy = "Install it with: pip install 'noisysgd[cluster]'"
        raise ModuleNotFoundError(f"the Dask engine needs {error.name}. {remedy}", name=error.name) from error

    one = scheduler == "local"
    checks.require(one or (workers is None and not devices), "workers", "none", workers or devices, "They are there.")
    cluster: SpecCluster | None = None
    try:
        if one:
            # Worker processes, and those that take their places, are started by a thread that starts here.
            with interrupts.sheltered():
                cluster = local_cluster(workers, devices=devices)
        client = _connect(Client, cluster if one else scheduler)
        try:
            yield client.get_executor(pure=False)
        except KeyboardInterrupt:
            if cluster is not None:
                logger.warning(INTERRUPTED)
                # What is abandoned ends with the cluster, which gives it a few seconds.
                interrupts.finish(lambda: client.run(_until_idle), lambda: None)
            raise
        except KilledWorker as error:
            raise BrokenExecutor(f"{error} The same command goes on from the store.") from error
        except (CancelledError, CommClosedError) as error:
            raise BrokenExecutor("the Dask scheduler was lost. The same command goes on from the store.") from error
        finally:
            client.close(timeout=2)
    finally:
        if cluster is not None:
            cluster.close()


def local_cluster(workers: int | None = None, *, devices: Sequence[int] = ()) -> "SpecCluster":
    """A scheduler and worker processes on this machine, reachable from nowhere else, without a dashboard.

    Parameters
    ----------
    workers : int, optional
        Processes, each with one thread; one per usable core by default.
    devices : sequence of int
        GPUs; there is then one worker for each, which sees no other.
    """
    from distributed import Nanny, Scheduler, SpecCluster

    numbers = distinct(devices)
    default = len(numbers) or usable_cores()
    count = default if workers is None else checks.integer("workers", workers, 1, remedy="Use at least one.")
    expected = f"one for each of the {len(numbers)} devices"
    checks.require(not numbers or count == len(numbers), "workers", expected, workers, "Leave it out.")
    # Workers are as quiet as the driver was told to be: at the end some may miss the scheduler, which is no news.
    level = max(logging.WARNING, logging.getLogger("distributed").getEffectiveLevel())
    options = {"host": "127.0.0.1", "dashboard": False, "silence_logs": level}
    return SpecCluster(  # type: ignore[no-untyped-call]  # distributed leaves it untyped
        scheduler={"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}},
        workers={k: {"cls": Nanny, "options": options | worker_options(numbers[k : k + 1])} for k in range(count)},
        silence_logs=level,
    )


def worker_options(device: Sequence[int] = ()) -> dict[str, Any]:
    """Of a worker: one run at a time, no limit of memory but the machine's, and one GPU if given.

    >>> worker_options([3])["env"]["CUDA_VISIBLE_DEVICES"]
    '3'
    """
    pinned = {"CUDA_VISIBLE_DEVICES": str(device[0])} if device else {}
    # Runs take place in a thread: without an arena of its own it keeps its memory as the main thread does.
    return {"nthreads": 1, "memory_limit": 0, "env": KEEP_MEMORY | {"MALLOC_ARENA_MAX": "1"} | pinned}


async def _until_idle(dask_worker: Any) -> None:
    """Wait for the run that a worker has under way; to cancel its future does not stop the thread that it runs in."""
    while dask_worker.active_threads:
        await asyncio.sleep(0.1)


def _connect(client: Any, where: Any) -> Any:
    """A client of a cluster, or of a scheduler that may take a while to come, or to come back."""
    if not isinstance(where, str):
        return client(where)
    from_file = ":" not in where or Path(where).suffix == ".json"
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        error: Exception
        try:
            if not from_file:
                return client(where, timeout=ATTEMPT_SECONDS)
            if Path(where).is_file():  # read anew each time: another scheduler may have written it
                return client(scheduler_file=where, timeout=ATTEMPT_SECONDS)
            error = FileNotFoundError("no such file")
        except (OSError, ValueError) as failure:
            error = failure
        if isinstance(error, ValueError) or time.monotonic() > end:
            raise RuntimeError(f"no Dask scheduler at {where}: {error}. Check the address, or start one.") from error
        time.sleep(0.2)
