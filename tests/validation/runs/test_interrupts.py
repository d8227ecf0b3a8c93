"""Ctrl-C and SIGTERM sent to the whole process group, as terminals and batch systems do, at awkward moments."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from pathlib import Path

import psutil
import pytest

from noisysgd.validation.runs import executors, interrupts
from noisysgd.validation.runs.store import RunStore
from noisysgd.validation.sweeps.plan import read_plan

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX")

TEXT = """
[budget]
kind = "step"
steps = 120
[grid]
batch_sizes = [64]
momenta = [0.0]
exponents = [-2, -1]
[protocol]
runs = 4
keep = 1
metrics = []
[cost]
seconds_per_step = 0.01
"""
ENGINES = {"pool": [], "dask": ["--dask", "local"]}
PATIENCE = 90.0


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param == "dask":
        pytest.importorskip("distributed")
    return request.param


class Driver:
    """The command in a session, and so a process group, of its own."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.file, self.store = folder / "sweep.toml", RunStore(folder / "sweep-runs")
        self.file.write_text(TEXT)
        command = [
            sys.executable,
            "-m",
            "noisysgd.validation.cli",
            "sweep",
            "run",
            str(self.file),
            "--workers",
            "2",
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*command, *ENGINES[engine]], **pipes, start_new_session=True)

    def workers(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children(recursive=True) if spawned(child)]

    def under_way(self) -> set[str]:
        return {path.name.removeprefix(".running-") for path in self.store.root.glob(".running-*")}

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)

    def send(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> str:
        _, errors = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 130, errors
        assert "Traceback" not in errors
        assert "Nothing finished is lost" in errors
        _, alive = psutil.wait_procs(self.group(), timeout=10)
        assert not alive
        return errors

    def group(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if group_of(process.pid) == self.process.pid]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        self.process.communicate()


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def spawned(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def importing(process: psutil.Process) -> bool:
    """Whether a process has begun to import what a pool's workers need before any code of ours runs in them."""
    try:
        return not hasattr(process, "memory_maps") or any("numpy" in part.path for part in process.memory_maps())
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def driver(tmp_path, engine):
    one = Driver(tmp_path, engine)
    yield one
    one.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_runs_under_way_finish_and_are_stored_and_the_others_never_begin(driver, number):
    driver.until(lambda: len(driver.under_way()) == 2)
    at_work, before = driver.under_way(), {path.parent.name for path in driver.store.root.glob("*/record.json")}
    driver.send(number)
    errors = driver.end()
    assert "runs under way are finishing" in errors
    done = {path.parent.name for path in driver.store.root.glob("*/record.json")}
    assert at_work <= done
    assert len(done) < len(before) + 4, "runs began after the interrupt"
    assert driver.under_way() == set()
    state = read_plan(driver.file).sweep.state(driver.store)
    assert len(state.found) == len(done)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_that_are_starting_say_nothing(driver, engine, number):
    driver.until(lambda: len(driver.workers()) == 2)
    if engine == "pool":
        driver.until(lambda: any(map(importing, driver.workers())))
    else:
        time.sleep(0.3)
    driver.send(number)
    driver.end()
    assert not list(driver.store.root.glob("*/record.json"))


@pytest.mark.slow
def test_a_pool_that_loses_a_worker_ends_the_others_although_they_ignore_sigterm():
    started = time.monotonic()
    with executors.local_executor(2) as pool:
        tasks = [pool.submit(time.sleep, 60) for _ in range(2)]
        pids = pool.submit(os.getpid), pool.submit(os.getpid)
        # A process that has been forked, and has not yet become an interpreter of its own, does not count as spawned.
        while len(workers := [child for child in psutil.Process().children() if spawned(child)]) < 2:
            assert time.monotonic() - started < PATIENCE
            time.sleep(0.01)
        for worker in workers:
            worker.terminate()
        time.sleep(0.5)
        assert all(worker.is_running() for worker in workers)
        workers[0].kill()
        for task in (*tasks, *pids):
            with pytest.raises(BrokenExecutor):
                task.result(timeout=30)
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert time.monotonic() - started < 45


def test_signals_that_arrive_in_shelter_are_delivered_after_it():
    reached = []

    def interrupted():
        with interrupts.sheltered():
            signal.raise_signal(signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached == [True]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupts_that_come_together_are_one(monkeypatch):
    calls, abandoned = [], []

    def wait():
        calls.append(0)
        if len(calls) < 3:
            raise KeyboardInterrupt

    interrupts.finish(wait, lambda: abandoned.append(0))
    assert (len(calls), abandoned) == (3, [])
    calls.clear()
    monkeypatch.setattr(interrupts, "TOGETHER", -1.0)
    with pytest.raises(KeyboardInterrupt):
        interrupts.finish(wait, lambda: abandoned.append(0))
    assert (len(calls), abandoned) == (1, [0])


@pytest.mark.slow
def test_a_second_interrupt_abandons_what_is_under_way(driver):
    driver.until(lambda: len(driver.under_way()) == 2)
    driver.send(signal.SIGINT)
    time.sleep(1.5 * interrupts.TOGETHER)
    assert driver.process.poll() is None, "runs are too short for this test"
    driver.send(signal.SIGINT)
    sent = time.monotonic()
    driver.end()
    assert time.monotonic() - sent < 15


def test_an_interrupt_ends_the_waiting_for_a_call_and_not_the_call():
    """Joining the thread itself again would return at once, on Python 3.11, with the call under way."""
    go, ended = threading.Event(), threading.Event()

    def call():
        go.wait(30)
        ended.set()

    background = interrupts.Background(call)
    threading.Timer(0.3, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        background.wait()
    assert not ended.is_set()
    threading.Timer(0.3, go.set).start()
    background.wait()
    assert ended.is_set()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_was_started_with_signals_ignored_reacts_to_those_sent_to_it(tmp_path, number):
    """As the shells of batch systems start what runs in the background."""
    file = tmp_path / "run.toml"
    file.write_text("learning_rate = 0.1\nbatch_size = 64\nsteps = 1000000\n")
    command = [sys.executable, "-m", "noisysgd.validation.cli", "train", str(file), "--store", str(tmp_path / "runs")]
    ignoring = (
        "import os, signal, sys; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", ignoring, *command], stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + PATIENCE
        while not list(tmp_path.glob("runs/.running-*")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert "Interrupted." in errors
