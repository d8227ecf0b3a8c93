"""Shared by all tests."""

import faulthandler
import fcntl
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest
import torch
from host_device import HostDevice, built

from noisysgd.simulators.cuda import device as gpu

# No example has a deadline: the first may compile code, and any may meet a busy machine.
hypothesis.settings.register_profile("no deadlines", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("no deadlines")

TIME_LIMIT, GRACE = 300, 60
"""Seconds that any test may take, after which pytest-timeout ends it with a traceback, by a signal to the main thread;
and how long after that the whole process is ended, where the test does not come back to Python to be told."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIME_LIMIT))


@pytest.fixture(autouse=True)
def ended_if_all_else_fails(request: pytest.FixtureRequest) -> Generator[None, None, None]:
    """A timer in C, which neither compiled code that holds the interpreter nor an ignored signal can hold up."""
    marker = request.node.get_closest_marker("timeout")
    limit = marker.args[0] if marker is not None and marker.args else TIME_LIMIT
    faulthandler.dump_traceback_later(limit + GRACE, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes give a test no name: a compressed file holds the time, and all workers must see the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With NOISYSGD_REQUIRE_GPU=1 a test marked gpu that is skipped has failed: a green run then means that all ran."""
    report = yield
    if report.skipped and os.environ.get("NOISYSGD_REQUIRE_GPU") == "1" and item.get_closest_marker("gpu") is not None:
        report.outcome = "failed"
        report.longrepr = f"NOISYSGD_REQUIRE_GPU=1, yet it was skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Operations here are so small that a second thread, waiting for a busy core, slows them a hundredfold."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def interruptible() -> None:
    """Whoever starts the tests in the background may have Ctrl-C ignored; tests that send it wait for its effect.

    For each test anew: libraries that an earlier one used may have left a handler after which system calls restart, so
    that a thread that waits for a lock would go on waiting.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA source built for the host, once for all workers of a run."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "host-library"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = folder / "simulate.so"
        return library if library.exists() else built(folder, "-ffp-contract=off")


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> gpu.Device:
    if request.param == "host":
        return HostDevice(request.getfixturevalue("library"))
    try:
        return gpu.device()
    except ValueError as error:
        pytest.skip(str(error))
