"""NVIDIA's compiler for CUDA sources, NVRTC, wherever it is. It is a library, and needs no GPU."""

import ctypes
import functools
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from noisysgd.theory.common import checks

WHEELS = ("cu13/lib", "cuda_nvrtc/lib")
"""Where wheels put it, below the package ``nvidia``: those of CUDA 13, and those of CUDA 12."""

TOOLKITS = ("CUDA_HOME", "CUDA_PATH")
"""Environment variables that name the folder of a CUDA toolkit."""

REMEDY = (
    "Install it with: pip install nvidia-cuda-nvrtc-cu12 (drivers of CUDA 12), or 'nvidia-cuda-nvrtc>=13' (CUDA 13)."
)


@functools.cache
def library() -> ctypes.CDLL:
    """The first NVRTC that can be loaded, of those in wheels, in toolkits, and loaded by CuPy or PyTorch before.

    Raises
    ------
    ValueError
        If there is none, or none can be loaded; the message says why, and what to install.
    """
    failures = []
    for path in candidates(_packages(), os.environ, _loaded()):
        try:
            # The compiler opens its library of built-in functions by name alone, and not every release of it says where
            # to look: what is loaded already is found.
            for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(path))
        except OSError as error:
            failures.append(f"{path} ({error})")
    got = "; ".join(failures) or "no libnvrtc in wheels, CUDA_HOME or /usr/local/cuda"
    checks.require(False, "nvrtc", "NVIDIA's compiler NVRTC", got, REMEDY)
    raise AssertionError


def candidates(packages: Iterable[Path], environment: Mapping[str, str], loaded: Iterable[Path]) -> list[Path]:
    """Libraries that may be NVRTC, the best first, each once.

    Parameters
    ----------
    packages : iterable of Path
        Folders of the package ``nvidia``.
    environment : mapping
        Variables such as ``CUDA_HOME``.
    loaded : iterable of Path
        Shared libraries of this process.
    """
    toolkits = [Path(environment[name]) for name in TOOLKITS if environment.get(name)] + [Path("/usr/local/cuda")]
    folders = [package / wheel for package in packages for wheel in WHEELS]
    folders += [toolkit / place for toolkit in toolkits for place in ("lib64", "targets/x86_64-linux/lib", "lib")]
    found = [path for folder in folders for path in sorted(folder.glob("libnvrtc.so.*"), reverse=True)]
    return list(dict.fromkeys([*found, *(path for path in loaded if re.fullmatch(r"libnvrtc\.so\.\d.*", path.name))]))


def _packages() -> list[Path]:
    try:
        spec = importlib.util.find_spec("nvidia")
    except ModuleNotFoundError:
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations if spec is not None else None) or ()]


def _loaded() -> list[Path]:
    """Shared libraries that this process has mapped, where the system says."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return list(
        dict.fromkeys(Path(line.split(maxsplit=5)[5]) for line in lines if ".so" in line and len(line.split()) > 5)
    )
