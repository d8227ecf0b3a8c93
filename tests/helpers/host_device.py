"""The CUDA source as a host library, for tests of the backend on machines without a GPU.

The library runs the very same kernels, with a loop over blocks and threads in place of the grid.
"""

import contextlib
import ctypes
import re
import shutil
import subprocess
import weakref
from pathlib import Path

import numpy as np
import pytest

from noisysgd.simulators.cuda import cubin
from noisysgd.simulators.cuda.launch import Geometry

CONTRACTING = ("-ffp-contract=fast", "-mfma")
"""Options of a mutant whose multiplications and additions are fused."""


TYPES = {"double": "float64", "float": "float32", "int": "int32", "u32": "uint32", "i64": "int64", "u64": "uint64"}


def parameters(preprocessed: str) -> dict[str, list[tuple[str, bool]]]:
    """NumPy's type of every parameter of every kernel, and whether it is a pointer."""
    found = re.findall(r'extern "C" void (\w+)\(u32 grid, u32 block, ([^)]*)\)', preprocessed)
    return {
        kernel: [(TYPES[part.replace("const ", "").split()[0]], "*" in part) for part in declared.split(",")]
        for kernel, declared in found
    }


class HostDevice:
    """The source as a host library: its memory is NumPy's, and `peak` the most of it that was in use.

    CuPy passes arguments as they are typed, and so launches insist on the types that the source declares.
    """

    multiprocessors = 4
    memory = 2**28
    side_by_side = 1
    stream = staticmethod(contextlib.nullcontext)

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._parameters = parameters(library.with_suffix(".i").read_text())
        self._held = self.peak = 0

    def _keep(self, array: np.ndarray) -> np.ndarray:
        self._held += array.nbytes
        self.peak = max(self.peak, self._held)
        weakref.finalize(array, self._free, array.nbytes)
        return array

    def _free(self, size: int) -> None:
        self._held -= size

    def registers(self, kernel: str) -> int:
        return 64

    def zeros(self, shape: tuple[int, ...], dtype: object) -> np.ndarray:
        return self._keep(np.zeros(shape, dtype))

    def upload(self, array: np.ndarray) -> np.ndarray:
        return self._keep(array.copy())

    def download(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def launch(self, kernel: str, layout: Geometry, *arguments: object) -> None:
        def passed(value: object) -> object:
            if isinstance(value, np.ndarray):
                return ctypes.c_void_p(value.ctypes.data)
            return np.ctypeslib.as_ctypes_type(value.dtype)(value)

        types = [(value.dtype.name, isinstance(value, np.ndarray)) for value in arguments]
        assert types == self._parameters[kernel], kernel
        function = getattr(self._library, kernel)
        function(ctypes.c_uint(layout.grid), ctypes.c_uint(layout.block), *map(passed, arguments))


def built(folder: Path, *options: str) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the host library with")
    library = folder / "simulate.so"
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", *options, "-shared", "-fPIC"]
    subprocess.run([*command, "-x", "c++", cubin.SOURCE, "-o", library], check=True)
    subprocess.run([compiler, "-E", "-P", "-x", "c++", cubin.SOURCE, "-o", library.with_suffix(".i")], check=True)
    return library


def mutant(folder: Path) -> "HostDevice":
    """A device whose results differ in the last bits."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or " fma " not in cpu.read_text():
        pytest.skip("this CPU has no fused multiply-add to make a mutant with")
    return HostDevice(built(folder, *CONTRACTING))


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    bits = f"u{found.dtype.itemsize}"
    np.testing.assert_array_equal(found.view(bits), expected.view(bits))
