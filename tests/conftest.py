"""Shared by all tests."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Operations here are so small that a second thread, waiting for a busy core, slows them a hundredfold."""
    torch.set_num_threads(1)
