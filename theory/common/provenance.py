"""Where a number came from: versions, commit and hardware, for the attributes of a sweep's dataset."""

import functools
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType


def provenance() -> dict[str, str]:
    """Versions (JSON), commit and hardware of this process, as netCDF-ready strings.

    Where PyTorch or CuPy has been working on a GPU, ``gpu`` says which, with its driver, clocks in MHz as they were
    this was asked first, and the versions of CUDA and cuDNN.
    """
    return _here() | _gpu()


@functools.cache
def _here() -> dict[str, str]:
    """What does not change while a process lives."""
    names = ("noisysgd", "numpy", "scipy", "numba", "xarray", "torch")
    versions = {"python": platform.python_version()} | {name: v for name in names if (v := _version(name))}
    return {
        "versions": json.dumps(versions, sort_keys=True),
        "commit": _commit(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores, {sys.platform}",
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """Commit of the checkout that holds this module, with '+' if it has changes; 'installed' outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "installed"
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _gpu() -> dict[str, str]:
    """The GPU that this process works on, as JSON; nothing where it works on none.

    Libraries are asked only if they are loaded: none is loaded for this, and no GPU is woken up.
    """
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    by_torch = torch is not None and torch.cuda.is_initialized()
    by_cupy = cupy is not None and _has_memory(cupy)
    return _named_gpu(by_torch, by_cupy) if by_torch or by_cupy else {}


def _has_memory(cupy: ModuleType) -> bool:
    """Whether CuPy has been given memory of a GPU."""
    try:
        return bool(cupy.get_default_memory_pool().total_bytes() > 0)
    except Exception:  # of CuPy's own, which says so that there is no GPU
        return False


@functools.cache
def _named_gpu(by_torch: bool, by_cupy: bool) -> dict[str, str]:
    """The GPU that PyTorch, or CuPy, or both work on."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    about: dict[str, object] = {}
    if torch is not None and by_torch:
        about |= {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        about |= {"cudnn": torch.backends.cudnn.version()}
    if cupy is not None and by_cupy:
        runtime = cupy.cuda.runtime
        about |= {
            "cupy": cupy.__version__,
            "cupy_cuda": runtime.runtimeGetVersion(),
            "driver_api": runtime.driverGetVersion(),
        }
    return {"gpu": json.dumps(about | _asked_of_the_driver(), sort_keys=True, default=str)}


def _asked_of_the_driver() -> dict[str, str]:
    """What ``nvidia-smi`` says of the first GPU that this process sees, where there is such a command."""
    fields = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    command += [f"--id={visible}"] if visible else []
    try:
        found = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in found[0].split(",")), strict=False)) if found else {}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
