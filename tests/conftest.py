"""Shared by all tests."""

from pathlib import Path

import pytest
import torch
from host_device import HostDevice, built

from noisysgd.simulators.cuda import device as gpu


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Operations here are so small that a second thread, waiting for a busy core, slows them a hundredfold."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("host"), "-ffp-contract=off")


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> gpu.Device:
    if request.param == "host":
        return HostDevice(request.getfixturevalue("library"))
    try:
        return gpu.device()
    except ValueError as error:
        pytest.skip(str(error))
