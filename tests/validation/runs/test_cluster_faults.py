"""Sweeps on a real Dask cluster of separate processes, disturbed: nothing lost, nothing counted twice, the same bits.

Every test compares with one undisturbed sweep, run in this process without any cluster.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import xarray as xr
from bitwise import assert_bitwise

from noisysgd.validation.runs.store import RunStore
from noisysgd.validation.sweeps.plan import Plan, parse_plan

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")]
pytest.importorskip("distributed")

TEXT = """
[run]
ghost_batch_size = 16
[budget]
kind = "step"
steps = 20
[grid]
batch_sizes = [32]
momenta = [0.0, 0.9]
exponents = [-1, 0]
[protocol]
runs = 2
keep = 2
metrics = ["train_loss"]
extensions = 1
[cost]
seconds_per_step = 0.01
"""
FULL = """
import errno, os
from pathlib import Path

if not hasattr(os, "flush"):  # Dask loads this twice
    os.flush = os.fsync

def full(descriptor):
    if Path({flag!r}).exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.flush(descriptor)

os.fsync = full
"""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return parse_plan(TEXT)


@pytest.fixture(scope="module")
def undisturbed_store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return RunStore(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def undisturbed(plan: Plan, undisturbed_store: RunStore) -> xr.Dataset:
    with ThreadPoolExecutor(1) as executor:
        dataset = plan.sweep.run(undisturbed_store, executor)
    assert dataset.sizes["learning_rate"] > 4, "the sweep is to grow"
    return dataset


PATIENCE = 90.0


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


class Processes:
    """A scheduler, workers and drivers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scheduler_file = folder, folder / "scheduler.json"
        self.running: list[subprocess.Popen[str]] = []
        self.store = RunStore(folder / "runs")
        self.sweep_file = folder / "sweep.toml"
        self.sweep_file.write_text(TEXT)

    def start(self, *arguments: str, **options: object) -> subprocess.Popen[str]:
        # Not the fifteen seconds for which clients usually try to reach a dead scheduler again.
        quick = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=os.environ | quick, cwd=self.folder, text=True, **options
        )
        self.running.append(process)
        return process

    def scheduler(self) -> subprocess.Popen[str]:
        self.scheduler_file.unlink(missing_ok=True)
        where = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.scheduler_file)]
        process = self.start("distributed.cli.dask_scheduler", *where, stderr=subprocess.DEVNULL)
        wait_until(self.scheduler_file.exists)
        return process

    def worker(self, *more: str) -> subprocess.Popen[str]:
        alone = ["--no-nanny", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1", "--memory-limit", "0"]
        place = ["--scheduler-file", str(self.scheduler_file), "--local-directory", str(self.folder / "scratch")]
        return self.start("distributed.cli.dask_worker", *alone, *place, *more, stderr=subprocess.DEVNULL)

    def driver(self) -> subprocess.Popen[str]:
        command = ["sweep", "run", str(self.sweep_file), "--store", str(self.store.root)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return self.start("noisysgd.validation.cli", *command, "--dask", str(self.scheduler_file), **pipes)

    def records(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.store.root.glob("[0-9a-f]*/record.json")}

    def await_records(self, count: int, driver: subprocess.Popen[str]) -> dict[Path, int]:
        wait_until(lambda: len(self.records()) >= count or driver.poll() is not None)
        assert driver.poll() is None, driver.communicate()
        return self.records()


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    them = Processes(folder)
    try:
        yield them
    finally:
        for process in them.running:
            with suppress(ProcessLookupError):
                process.kill()
            process.communicate()


def finish(driver: subprocess.Popen[str]) -> str:
    output, errors = driver.communicate(timeout=100)
    assert driver.returncode in (0, 3), errors  # 3: not bracketed within the extension allowed
    assert "Traceback" not in errors
    return output + errors


def assert_whole(them: Processes, plan: Plan, undisturbed: xr.Dataset, before: dict[Path, int]) -> None:
    """Bit for bit the undisturbed dataset; every planned run once; what was finished earlier was left alone."""
    state = plan.sweep.state(them.store)
    assert state.finished
    assert_bitwise(plan.sweep.collect(state.windows, state.found), undisturbed)
    after = them.records()
    assert len(after) == len(state.configs) == int((undisturbed.status != 0).sum())
    assert {path: after[path] for path in before} == before, "a finished run was repeated"
    assert not list(them.store.root.glob(".running-*"))


def test_a_killed_worker(plan: Plan, undisturbed: xr.Dataset, tmp_path: Path) -> None:
    with processes(tmp_path) as them:
        them.scheduler()
        workers = [them.worker() for _ in range(2)]
        driver = them.driver()
        before = them.await_records(2, driver)
        workers[0].kill()
        finish(driver)
        assert workers[0].wait() == -signal.SIGKILL
        assert workers[1].poll() is None
        assert_whole(them, plan, undisturbed, before)


def test_a_killed_scheduler(plan: Plan, undisturbed: xr.Dataset, tmp_path: Path) -> None:
    """The driver says so and connects to the next scheduler; what the old one's workers finish meanwhile counts too."""
    with processes(tmp_path) as them:
        scheduler = them.scheduler()
        them.worker()
        driver = them.driver()
        before = them.await_records(2, driver)
        scheduler.kill()
        scheduler.wait()
        them.scheduler()
        them.worker()
        assert "scheduler was lost" in finish(driver)
        assert_whole(them, plan, undisturbed, before)


def test_two_drivers_on_one_store(plan: Plan, undisturbed: xr.Dataset, tmp_path: Path) -> None:
    with processes(tmp_path) as them:
        them.scheduler()
        for _ in range(2):
            them.worker()
        drivers = [them.driver() for _ in range(2)]
        for driver in drivers:
            finish(driver)
        assert_whole(them, plan, undisturbed, {})


def test_a_full_disk(plan: Plan, undisturbed: xr.Dataset, tmp_path: Path) -> None:
    """The driver names the reason and ends; with room made, the same command goes on."""
    flag = tmp_path / "full"
    (tmp_path / "full_disk.py").write_text(FULL.format(flag=str(flag)))
    with processes(tmp_path) as them:
        them.scheduler()
        them.worker("--preload", str(tmp_path / "full_disk.py"))
        driver = them.driver()
        before = them.await_records(2, driver)
        flag.touch()
        _, errors = driver.communicate(timeout=100)
        assert driver.returncode == 1
        assert f"{them.store.root}: {os.strerror(errno.ENOSPC)}. Make room there" in errors
        assert "Traceback" not in errors
        held = plan.sweep.state(them.store)
        assert not held.finished
        assert len(held.found) == len(them.records())
        flag.unlink()
        finish(them.driver())
        assert_whole(them, plan, undisturbed, before)


def test_corrupted_records(plan: Plan, undisturbed: xr.Dataset, undisturbed_store: RunStore, tmp_path: Path) -> None:
    """Half of the sweep is done, and two of its records are damaged: those two runs are repeated, no others."""
    with processes(tmp_path) as them:
        for run in sorted(undisturbed_store.root.glob("[0-9a-f]*"))[::2]:
            shutil.copytree(run, them.store.root / run.name)
        before = them.records()
        cut, flipped = sorted(before)[:2]
        cut.write_bytes(cut.read_bytes()[:100])
        flipped.write_text(flipped.read_text().replace("complete", "complote"))
        them.scheduler()
        them.worker()
        finish(them.driver())
        untouched = {path: stamp for path, stamp in before.items() if path not in (cut, flipped)}
        assert len(untouched) >= 4
        assert_whole(them, plan, undisturbed, untouched)
        assert len(list(them.store.root.glob(".damaged-*"))) == 2


def test_a_disk_that_is_really_full(plan: Plan, undisturbed: xr.Dataset, tmp_path: Path) -> None:
    """A file system of 32 KiB, where mounting one is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        small = RunStore(disk / "runs")
        with ThreadPoolExecutor(1) as executor, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            plan.sweep.run(small, executor)
        held = plan.sweep.state(small)
        assert 0 < len(held.found) < len(held.configs)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        with ThreadPoolExecutor(1) as executor:
            assert_bitwise(plan.sweep.run(small, executor), undisturbed)
        assert not list(small.root.glob(".*"))

    finally:
        subprocess.run(["umount", str(disk)], check=True)
