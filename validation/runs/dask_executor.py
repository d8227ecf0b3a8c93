"""Training runs on a Dask cluster: one that is running already, or one that is started on this machine.

All workers must see the file system of the run store. The cluster is disposable: if a worker dies, another starts its
run again, from the checkpoint if there is one. If the scheduler dies, the driver (the process that called
:meth:`Sweep.run`) ends with an error, and the same command on another cluster goes on from the store.
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
"""How long a scheduler is looked for in all, and how long each attempt to connect may take."""


@contextmanager
def dask_executor(scheduler: str, *, workers: int | None = None, devices: Sequence[int] = ()) -> Iterator[Executor]:
    """An executor for sweeps on a Dask cluster.

    Ctrl-C and SIGTERM cancel the runs that have not begun; those under way finish and are stored. A local cluster stays
    up until they have, or until a second Ctrl-C.

    Parameters
    ----------
    scheduler : str
        Address of a running scheduler (``tcp://host:8786``), the path of its scheduler file, or ``"local"`` for a
        cluster of worker processes on this machine, which ends with the executor.
    workers, devices
        Arguments of :func:`local_cluster`; only with ``"local"``.

    Raises
    ------
    ModuleNotFoundError
        Without ``distributed``; it comes with ``pip install 'noisysgd[cluster]'``.
    BrokenExecutor
        A ``RuntimeError``, raised inside the ``with`` block if the cluster is lost or a run has killed several workers.

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

    local = scheduler == "local"
    remedy = "A running scheduler has workers of its own."
    checks.require(local or (workers is None and not devices), "workers", "none", workers or devices, remedy)
    cluster: SpecCluster | None = None
    try:
        if local:
            # All worker processes, replacements included, are started by a thread that is created here and whose
            # signal mask they inherit: Ctrl-C in the terminal must not reach them.
            with interrupts.sheltered():
                cluster = local_cluster(workers, devices=devices)
        client = _connect(Client, cluster if local else scheduler)
        try:
            # Not pure: Dask would answer a repeated call with its earlier result, and "another process has this run
            # under way" is a result that changes.
            yield client.get_executor(pure=False)
        except KeyboardInterrupt:
            if cluster is not None:
                logger.warning(INTERRUPTED)
                # Nothing to do for abandoning: closing the cluster, below, ends whatever still runs in a few seconds.
                interrupts.finish(lambda: client.run(_until_idle), lambda: None)
            raise
        except KilledWorker as error:
            # A broken process pool raises BrokenExecutor too: the sweep then makes another executor.
            raise BrokenExecutor(f"{error} The same command goes on from the store.") from error
        except (CancelledError, CommClosedError) as error:
            raise BrokenExecutor("the Dask scheduler was lost. The same command goes on from the store.") from error
        finally:
            client.close(timeout=2)
    finally:
        if cluster is not None:
            cluster.close()


def local_cluster(workers: int | None = None, *, devices: Sequence[int] = ()) -> "SpecCluster":
    """A scheduler and worker processes on this machine, without a dashboard and not reachable from other machines.

    Parameters
    ----------
    workers : int, optional
        Number of processes, each with one thread; by default one per usable core, or one per device.
    devices : sequence of int
        Numbers of GPUs. There is then one worker for each, which sees no other GPU.

    Returns
    -------
    distributed.SpecCluster
    """
    from distributed import Nanny, Scheduler, SpecCluster

    numbers = distinct(devices)
    default = len(numbers) or usable_cores()
    count = default if workers is None else checks.integer("workers", workers, 1, remedy="Use at least one.")
    expected = f"one for each of the {len(numbers)} devices"
    checks.require(not numbers or count == len(numbers), "workers", expected, workers, "Leave it out.")
    # Workers log no more than the driver: when the cluster closes, some warn that they have lost the scheduler.
    level = max(logging.WARNING, logging.getLogger("distributed").getEffectiveLevel())
    options = {"host": "127.0.0.1", "dashboard": False, "silence_logs": level}
    return SpecCluster(  # type: ignore[no-untyped-call]  # distributed leaves it untyped
        scheduler={"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}},
        workers={k: {"cls": Nanny, "options": options | worker_options(numbers[k : k + 1])} for k in range(count)},
        silence_logs=level,
    )


def worker_options(device: Sequence[int] = ()) -> dict[str, Any]:
    """Options of a worker process: one run at a time, no memory limit of Dask's, and only the given GPU, if any.

    >>> worker_options([3])["env"]["CUDA_VISIBLE_DEVICES"]
    '3'
    """
    pinned = {"CUDA_VISIBLE_DEVICES": str(device[0])} if device else {}
    # Dask trains in a thread other than the main one, to which glibc would give a memory arena of its own. With one
    # arena for the whole process that thread keeps its buffers (KEEP_MEMORY) as the main thread does.
    return {"nthreads": 1, "memory_limit": 0, "env": KEEP_MEMORY | {"MALLOC_ARENA_MAX": "1"} | pinned}


async def _until_idle(dask_worker: Any) -> None:
    """Wait, in a worker, for the run that it has under way: cancelling a future does not stop the thread of its run."""
    while dask_worker.active_threads:
        await asyncio.sleep(0.1)


def _connect(client: Any, where: Any) -> Any:
    """Connect to a local cluster, or to a scheduler by its address or file, for which we wait up to half a minute.

    In a batch job the scheduler may start after the driver, or be started again after a failure.
    """
    if not isinstance(where, str):
        return client(where)
    from_file = ":" not in where or Path(where).suffix == ".json"
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        error: Exception
        try:
            if not from_file:
                return client(where, timeout=ATTEMPT_SECONDS)
            if Path(where).is_file():  # read anew in each attempt: a restarted scheduler writes a new address
                return client(scheduler_file=where, timeout=ATTEMPT_SECONDS)
            error = FileNotFoundError("no such file")
        except (OSError, ValueError) as failure:
            error = failure
        # A ValueError means that the address is malformed: waiting does not help.
        if isinstance(error, ValueError) or time.monotonic() > end:
            raise RuntimeError(f"no Dask scheduler at {where}: {error}. Check the address, or start one.") from error
        time.sleep(0.2)
