"""The first stage: what all other numbers were measured with."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_stages.rows import Order, Rows


def measure_all(order: Order, rows: Rows) -> None:
    """Find out what all other numbers were measured with."""
    rows.attempt("versions", versions, seconds=0)
    rows.attempt("CPU", processor, seconds=0)
    if shutil.which("nvidia-smi") is None and order.on_gpu:
        rows.add("nvidia-smi", skipped="no nvidia-smi")
    else:
        rows.attempt("nvidia-smi", system_management, gpu_only=True, seconds=0)
    rows.attempt("GPU", lambda: graphics_processor(order.device), gpu_only=True)
    rows.attempt("kernels", lambda: compiled_kernels(order.on_gpu))
    rows.attempt("kernels on the device", loaded_kernels, gpu_only=True)


def versions() -> dict[str, Any]:
    """Return versions of Python and of every library that takes part."""
    names = {"numpy", "scipy", "numba", "xarray", "torch", "cupy", "hypothesis", "pytest", "pillow", "scikit-learn"}
    found = importlib.metadata.packages_distributions()
    names = {found.get(name, [name])[0] for name in names}  # CuPy's distributions are named by their version of CUDA
    return {"python": sys.version.split()[0]} | {name: version_of(name) for name in sorted(names)}


def version_of(distribution: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> dict[str, Any]:
    """Return the name of the processor and its number of cores."""
    from noisysgd.theory.common.parallel import usable_cores

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"name": names[0] if names else "unknown", "cores": os.cpu_count(), "usable_cores": usable_cores()}


def graphics_processor(device: str) -> dict[str, Any]:
    """Return the GPU as torch sees it."""
    import torch

    seen = torch.cuda.get_device_properties(device)
    return {
        "name": seen.name,
        "capability": f"{seen.major}.{seen.minor}",
        "multiprocessors": seen.multi_processor_count,
        "memory_bytes": seen.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def system_management() -> dict[str, Any]:
    """Return what nvidia-smi says of driver, clocks and power."""
    asked = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.max.mem", "power.limit", "memory.total")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
    printed = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
    ).stdout
    return dict(zip(asked, map(str.strip, printed.splitlines()[0].split(",")), strict=True))


def compiled_kernels(on_gpu: bool) -> dict[str, Any]:
    """Return what NVIDIA's compiler makes of the kernels: the H100's code where there is no GPU."""
    from noisysgd.simulators.cuda import cubin

    architecture = "sm_90"
    if on_gpu:
        import torch

        architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    start = time.perf_counter()
    table = cubin.resources(architecture)
    return {
        "nvrtc": cubin.version(),
        "architecture": architecture,
        "compile_s": time.perf_counter() - start,
        "kernels": len(table),
        "spilling": [name for name, needs in table.items() if needs.stack or needs.spills],
        "most_registers": max(needs.registers for needs in table.values()),
    }


def loaded_kernels() -> dict[str, Any]:
    """Return what the GPU says of the kernels that it was given."""
    from noisysgd.simulators.cuda import cubin, device

    here = device.device()
    return {
        "multiprocessors": here.multiprocessors,
        "memory_of_a_call": here.memory,
        "chunks_side_by_side": here.side_by_side,
        "registers": {name: here.registers(name) for name in cubin.KERNELS},
    }
