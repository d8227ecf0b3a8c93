"""Ensembles over processes, clusters, forks and threads: the same bits, also where a process dies."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr
from bitwise import PATIENCE, Meeting, assert_bitwise

from noisysgd import simulators, theory

EXPERIMENT = {
    "problem": theory.NoisyQuadratic(np.linspace(0.5, 1.5, 20), 1.0, 0.3, 1.0),
    "schedule": theory.half_then_decay(200),
    "learning_rate": [0.1, 0.4],
    "batch_size": 4,
    "momentum": 0.5,
    "record": 3,
}
REPLICAS = 128 * 18 + 5
"""So that each of nine parts has two tiles: one before the meeting, one after."""


@contextmanager
def no_process_left() -> Iterator[None]:
    """Checks that all processes started inside have ended; ends them if they have not."""
    before = set(psutil.Process().children(recursive=True))
    try:
        yield
    finally:
        # The helper that multiprocessing keeps for semaphores stays until this process ends.
        left = [
            child for child in psutil.Process().children(recursive=True) if child not in before and not tracker(child)
        ]
        _, alive = psutil.wait_procs(left, timeout=10)
        for child in alive:
            child.kill()
    assert not alive


def tracker(process: psutil.Process) -> bool:
    try:
        return "resource_tracker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def unsplit() -> xr.Dataset:
    return simulators.simulate(**EXPERIMENT, replicas=REPLICAS)


# Other processes


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_gives_the_same_bits(unsplit: xr.Dataset, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    meeting = Meeting(tmp_path)

    def part(share: dict[str, int]) -> xr.Dataset:
        return simulators.simulate(**EXPERIMENT, **share, threads=1, keep_tiles=True, progress=meeting)

    network = {"host": "127.0.0.1", "dashboard_address": None}
    with (
        no_process_left(),
        distributed.LocalCluster(n_workers=3, threads_per_worker=1, processes=True, **network) as cluster,
        distributed.Client(cluster) as client,
    ):
        futures = client.map(part, simulators.shares(REPLICAS, 9), pure=False)
        workers = meeting.await_processes(3)
        os.kill(workers[0], signal.SIGKILL)
        meeting.let_go()
        parts = client.gather(futures)
    assert os.getpid() not in workers
    assert len(parts) == 9
    assert_bitwise(simulators.join(parts), unsplit)


def submit(pool: ProcessPoolExecutor, share: dict[str, int], meeting: Meeting) -> Future:
    return pool.submit(simulators.simulate, **EXPERIMENT, **share, threads=1, keep_tiles=True, progress=meeting)


@pytest.mark.slow
def test_a_pool_of_spawned_processes_that_loses_one_gives_the_same_bits(unsplit: xr.Dataset, tmp_path: Path) -> None:
    """A pool with a dead process is broken: what it has not finished is done again by another."""
    meeting, spawn = Meeting(tmp_path), multiprocessing.get_context("spawn")
    parts, missing = [], simulators.shares(REPLICAS, 9)
    with no_process_left():
        for attempt in range(2):
            with ProcessPoolExecutor(2, mp_context=spawn) as pool:
                tasks = [(share, submit(pool, share, meeting)) for share in missing]
                if attempt == 0:
                    os.kill(meeting.await_processes(2)[0], signal.SIGKILL)
                    meeting.let_go()
                missing = []
                for share, task in tasks:
                    try:
                        parts.append(task.result())
                    except BrokenProcessPool:
                        missing.append(share)
            assert bool(missing) == (attempt == 0)
    assert_bitwise(simulators.join(parts), unsplit)


# Forks

# Python 3.12 and later warn of what these tests are about.
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def in_fork(work) -> None:
    """Do `work` in a forked child; an error or a deadlock there is an error here."""
    with no_process_left():
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join(PATIENCE)
        stuck = child.is_alive()
        child.kill()
        child.join()
    assert not stuck, "the forked process hangs"
    assert child.exitcode == 0


FULL = EXPERIMENT | {"problem": theory.NoisyQuadratic(np.linspace(0.5, 1.5, 60), np.eye(60) + 0.01, 0.3, 1.0)}
MODEL = EXPERIMENT | {"dynamics": "minibatch", "batch_size": 2, "learning_rate": 0.05}
CASES = {
    "sgd": EXPERIMENT,
    "sde": EXPERIMENT | {"dynamics": "sde", "substeps": 3},
    "jump": EXPERIMENT | {"dynamics": "jump"},
    "student": EXPERIMENT | {"noise": "student_t"},
    "full": FULL | {"record": 1, "schedule": theory.constant(10)},
    "minibatch": MODEL | {"problem": simulators.FiniteLeastSquares(np.eye(5, 3) + 0.1, np.arange(5.0))},
    "network": MODEL | {"problem": simulators.sparse_regression(6, 4, nonzero=2)},
    "full jump": FULL | {"record": 1, "dynamics": "jump"},
}


@FORKS
@pytest.mark.parametrize("case", CASES)
def test_a_fork_after_threads_gives_the_same_bits(case: str) -> None:
    expected = simulators.simulate(**CASES[case], replicas=300, threads=3)
    in_fork(lambda: assert_bitwise(simulators.simulate(**CASES[case], replicas=300, threads=3), expected))


@FORKS
@pytest.mark.parametrize("dynamics", ["sgd", "jump"])
def test_a_fork_in_the_midst_of_a_simulation_gives_the_same_bits(dynamics: str) -> None:
    """Worker threads, and the locks they hold, are not in the child: it starts its own."""
    arguments = EXPERIMENT | {"dynamics": dynamics, "replicas": 1000, "threads": 2}
    expected = simulators.simulate(**arguments)

    def progress(done: int, total: int) -> None:
        if done == 2:
            in_fork(lambda: assert_bitwise(simulators.simulate(**arguments), expected))

    assert_bitwise(simulators.simulate(**arguments, progress=progress), expected)


@FORKS
def test_a_fork_while_another_thread_compiles_can_compile() -> None:
    """The compiler's lock would stay locked in the child, whose holder is not there to release it."""
    from numba import njit
    from numba.core.compiler_lock import global_compiler_lock

    held, expected = threading.Event(), simulators.simulate(**EXPERIMENT, replicas=200)

    def compile_for_a_while() -> None:
        with global_compiler_lock:
            held.set()
            time.sleep(0.5)  # a fork within this time would inherit the lock; a later one proves nothing

    def work() -> None:
        assert njit(lambda x: x + 1)(1) == 2
        assert_bitwise(simulators.simulate(**EXPERIMENT, replicas=200), expected)

    other = threading.Thread(target=compile_for_a_while)
    other.start()
    held.wait(PATIENCE)
    in_fork(work)
    other.join()
    assert not global_compiler_lock.is_locked()


@pytest.mark.slow
def test_spawned_processes_give_the_same_bits() -> None:
    expected = {case: simulators.simulate(**CASES[case], replicas=300, threads=3) for case in CASES}
    with no_process_left(), ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = {case: pool.submit(simulators.simulate, **CASES[case], replicas=300, threads=2) for case in CASES}
        for case in CASES:
            assert_bitwise(found[case].result(), expected[case])


# Threads


def test_simultaneous_calls_give_the_same_bits() -> None:
    expected = {case: simulators.simulate(**CASES[case], replicas=300, threads=1) for case in CASES}
    start = threading.Barrier(len(CASES))

    def call(case: str) -> xr.Dataset:
        start.wait(PATIENCE)
        return simulators.simulate(**CASES[case], replicas=300, threads=2)

    with ThreadPoolExecutor(len(CASES)) as pool:
        for case, found in zip(CASES, pool.map(call, CASES), strict=True):
            assert_bitwise(found, expected[case])


# Interruption


@pytest.mark.alone
@pytest.mark.parametrize("dynamics", ["sgd", "sde", "jump"])
def test_ctrl_c_in_the_midst_of_a_tile_stops_within_a_second(dynamics: str) -> None:
    """The first tile would take hours: nothing but a window's end can stop it."""
    problem, steps = theory.power_law(1000), 10**9
    record = np.arange(10**5) * 1000 if dynamics == "jump" else None
    settings = {"learning_rate": 0.1, "batch_size": 1, "threads": 2}
    # Kernels that are not in the cache yet are compiled now: no interrupt ends the compiler.
    few = {"replicas": 2, "record": None if record is None else record[:2]}
    simulators.simulate(problem, theory.constant(1000), **settings, **few, dynamics=dynamics)
    before, sent = threading.active_count(), []

    def press() -> None:
        wanted = before + 1 + 2
        while threading.active_count() < wanted:
            time.sleep(0.01)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        simulators.simulate(
            problem, theory.constant(steps), **settings, replicas=2**14, record=record, dynamics=dynamics
        )
    assert time.monotonic() - sent[0] < 1.0
    presser.join()
    # An interrupt in the midst of starting a thread leaves one that the pool does not know: it ends by itself.
    until = time.monotonic() + 5.0
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before
