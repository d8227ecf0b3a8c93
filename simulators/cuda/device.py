"""A CUDA device, as the backend sees it: memory, copies and launches, through CuPy."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from noisysgd.simulators.cuda import cubin
from noisysgd.simulators.cuda.launch import Geometry, geometry
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray


class Device(Protocol):
    """What the backend needs of a device; on a machine without one, tests have a host library stand in."""

    @property
    def multiprocessors(self) -> int:
        """How many it has."""

    def registers(self, kernel: str) -> int:
        """Registers of a thread of `kernel`."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of zeros in its memory."""

    def upload(self, array: npt.NDArray[Any]) -> Any:
        """Copy an array into its memory."""

    def download(self, array: Any) -> npt.NDArray[Any]:
        """Copy an array of its memory, after all launches so far."""

    def launch(self, kernel: str, layout: Geometry, *arguments: Any) -> None:
        """Run a kernel. Arguments are arrays of its memory, and NumPy scalars of the types of its parameters."""


class CupyDevice:
    """The current CUDA device, through CuPy.

    CuPy gets machine code, not the source: to what it compiles it adds ``-ftz=true``, which makes small float32 zero.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        here = cupy.cuda.Device()
        self._multiprocessors = int(here.attributes["MultiProcessorCount"])
        code, _ = cubin.compiled(f"sm_{here.compute_capability}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "simulate.cubin"
            path.write_bytes(code)
            module = cupy.RawModule(path=str(path))
            self._kernels = {name: module.get_function(name) for name in cubin.KERNELS}

    @property
    def multiprocessors(self) -> int:
        """How many it has."""
        return self._multiprocessors

    def registers(self, kernel: str) -> int:
        """Registers of a thread of `kernel`."""
        return int(self._kernels[kernel].num_regs)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of zeros in its memory."""
        return self._cupy.zeros(shape, dtype)

    def upload(self, array: npt.NDArray[Any]) -> Any:
        """Copy an array into its memory."""
        return self._cupy.asarray(array)

    def download(self, array: Any) -> npt.NDArray[Any]:
        """Copy an array of its memory, after all launches so far."""
        copied: npt.NDArray[Any] = self._cupy.asnumpy(array)
        return copied

    def launch(self, kernel: str, layout: Geometry, *arguments: Any) -> None:
        """Run a kernel."""
        self._kernels[kernel]((layout.grid,), (layout.block,), arguments)


def device() -> Device:
    """Find the current CUDA device.

    Raises
    ------
    ValueError
        Without CuPy, NVRTC or a device. Nothing falls back to the CPU.
    """
    try:
        import cupy
    except ImportError as error:
        remedy = "Install it with: pip install 'noisysgd[cuda12]' (or [cuda13]); or pass backend='cpu'."
        checks.require(False, "backend", "CuPy to be installed for 'cuda'", str(error), remedy)
    try:
        count, got = int(cupy.cuda.runtime.getDeviceCount()), "no device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        count, got = 0, str(error)
    remedy = "Run on a machine with an NVIDIA GPU and its driver; or pass backend='cpu'."
    checks.require(count > 0, "backend", "a CUDA device for 'cuda'", got, remedy)
    return _device(cupy.cuda.Device().id)


@lru_cache
def _device(_: int) -> CupyDevice:
    """Compile once for each device: it takes seconds."""
    import cupy

    return CupyDevice(cupy)


@dataclass(frozen=True, eq=False)
class Lanes:
    """So many lanes on a device, on all of which kernels are launched."""

    device: Device
    count: int

    def __call__(self, kernel: str, rows: int, *arguments: Any) -> None:
        """Run `kernel` on states of so many coordinates."""
        registers = self.device.registers(kernel)
        layout = geometry(self.count, registers=registers, multiprocessors=self.device.multiprocessors)
        self.device.launch(kernel, layout, np.int64(self.count), np.int32(rows), *arguments)

    def zeros(self, rows: int, dtype: Any) -> Any:
        """Room for `rows` numbers of every lane; for none, an array that no kernel reads."""
        return self.device.zeros((rows, self.count) if rows else (1, 1), dtype)

    def alive(self, rows: int, state: Any, kind: str) -> bool:
        """Whether all coordinates of some lane are finite."""
        found = self.device.zeros((1,), np.int32)
        self(f"look_alive_{kind}", rows, state, found)
        return bool(self.device.download(found)[0])


@dataclass(frozen=True, eq=False)
class Work:
    """One configuration on a device.

    Attributes
    ----------
    lane_bytes : int
        Of device memory that a lane needs.
    losses : callable
        ``losses(device, replica, lanes)``: blocks of (rows, lanes), as `tiles.tile_losses`.
    """

    lane_bytes: int
    losses: Callable[[Device, int, int], Iterator[FloatArray]]
