"""Where numbers came from."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from noisysgd.theory.common import provenance as module
from noisysgd.theory.common.provenance import provenance


@pytest.fixture
def asked_anew():
    module._named_gpu.cache_clear()
    yield
    module._named_gpu.cache_clear()


@pytest.mark.checkout
def test_a_checkout_names_its_commit():
    """A move of the module must not make it look one folder too high, and answer 'installed'."""
    root = Path(__file__).resolve().parents[3]
    command = ["git", "-C", root, "rev-parse", "--short=12", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert module._commit().rstrip("+") == head


@pytest.mark.usefixtures("asked_anew")
def test_without_a_gpu_nothing_is_said_of_one(monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert set(provenance()) == {"versions", "commit", "hardware"}


@pytest.mark.usefixtures("asked_anew")
def test_a_gpu_is_named_with_driver_clocks_and_libraries(monkeypatch, tmp_path):
    cuda = types.SimpleNamespace(is_initialized=lambda: True, get_device_name=lambda: "NVIDIA H100 80GB HBM3")
    cudnn = types.SimpleNamespace(version=lambda: 91002)
    torch = types.SimpleNamespace(
        cuda=cuda, version=types.SimpleNamespace(cuda="13.0"), backends=types.SimpleNamespace(cudnn=cudnn)
    )
    runtime = types.SimpleNamespace(runtimeGetVersion=lambda: 13000, driverGetVersion=lambda: 13010)
    memory = types.SimpleNamespace(total_bytes=lambda: 512)
    cupy = types.SimpleNamespace(__version__="14.2.0", cuda=types.SimpleNamespace(runtime=runtime))
    cupy.get_default_memory_pool = lambda: memory
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H100 80GB HBM3, 580.159.04, 1980, 1980, 700.00\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    about = json.loads(provenance()["gpu"])
    assert about["name"] == "NVIDIA H100 80GB HBM3"
    assert (about["driver_version"], about["clocks.sm"], about["power.limit"]) == ("580.159.04", "1980", "700.00")
    assert (about["cuda"], about["cudnn"], about["cupy"]) == ("13.0", 91002, "14.2.0")
    cuda.is_initialized = lambda: False
    assert "cudnn" not in json.loads(provenance()["gpu"])  # asked again when torch has not worked on it yet
    cuda.is_initialized = lambda: True
    module._named_gpu.cache_clear()
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert json.loads(provenance()["gpu"])["name"] == "NVIDIA H100 80GB HBM3"
