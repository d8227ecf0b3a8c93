"""Where a number came from: versions, commit and hardware, for the attributes of a sweep's dataset."""

import functools
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path


@functools.cache
def provenance() -> dict[str, str]:
    """Versions (JSON), commit and hardware of this process, as netCDF-ready strings."""
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
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
