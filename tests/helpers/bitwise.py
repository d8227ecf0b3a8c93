"""For tests of ensembles in parts: comparison of every bit, and a place where processes meet.

A module of its own, so that the processes that tests start can import it.
"""

import os
import time
from pathlib import Path

import xarray as xr

PATIENCE = 50.0
"""Seconds after which a meeting has failed."""


def assert_bitwise(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Same names in the same order, same dtypes, same bytes, same attributes of the same types."""
    xr.testing.assert_identical(found, expected)
    assert list(found.variables) == list(expected.variables)
    assert list(found.attrs.items()) == list(expected.attrs.items())
    assert [type(value) for value in found.attrs.values()] == [type(value) for value in expected.attrs.values()]
    for name in expected.variables:
        one, two = found[name].variable, expected[name].variable
        assert one.dtype == two.dtype, name
        assert one.values.tobytes() == two.values.tobytes(), name


class Meeting:
    """A `progress` that, in the midst of a simulation, says which process it is in and waits until it may go on."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._sign = folder, folder / "go on"

    def __call__(self, done: int, total: int) -> None:
        if done == 1 < total and not self._sign.exists():
            (self._folder / str(os.getpid())).touch()
            wait_until(self._sign.exists)

    def await_processes(self, count: int) -> list[int]:
        """Ids of the first processes that came."""
        wait_until(lambda: len(list(self._folder.iterdir())) >= count)
        return [int(path.name) for path in self._folder.iterdir()]

    def let_go(self) -> None:
        self._sign.touch()


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "nobody came"
        time.sleep(0.01)
