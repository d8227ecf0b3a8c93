"""A CUDA device, as the backend sees it: memory, copies and launches, through CuPy."""

import queue
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from noisysgd.simulators.cuda import cubin
from noisysgd.simulators.cuda.launch import Geometry, geometry
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.parallel import usable_cores

SHARE_OF_MEMORY = 0.5
"""Of the free memory of a device, for one call: other processes may be beside it."""
STREAMS = 8
"""Most chunks of lanes that a device is given at a time."""


class Device(Protocol):
    """What the backend needs of a device. Its arrays are opaque here: they are only passed back to it.

    In the tests a library on the host stands in for it where there is no GPU.
    """

    @property
    def multiprocessors(self) -> int:
        """How many multiprocessors it has."""

    @property
    def memory(self) -> int:
        """How many bytes of its memory a call may take."""

    @property
    def side_by_side(self) -> int:
        """How many chunks of lanes it is given at a time, each by a thread of the host."""

    def stream(self) -> AbstractContextManager[object]:
        """Within the block, what this thread asks of the device does not wait for what others ask."""

    def registers(self, kernel: str) -> int:
        """How many registers a thread of `kernel` takes."""

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> object:
        """An array of zeros in the memory of the device."""

    def upload(self, array: npt.NDArray[Any]) -> object:
        """Copy an array into the memory of the device."""

    def download(self, array: object) -> npt.NDArray[Any]:
        """Copy an array of the device to the host, once all launches so far have ended."""

    def launch(self, kernel: str, layout: Geometry, *arguments: object) -> None:
        """Run a kernel on arrays of the device and NumPy scalars, of the types of the kernel's parameters."""


class CupyDevice:
    """The current CUDA device, through CuPy.

    CuPy is given machine code, not the source. What CuPy compiles itself gets the option ``-ftz=true``, which turns
    small float32 numbers into zero.
    """

    def __init__(self, cupy: ModuleType) -> None:
        self._cupy = cupy
        self._here = here = cupy.cuda.Device()
        self._streams: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(STREAMS):
            self._streams.put(cupy.cuda.Stream(non_blocking=True))
        self._multiprocessors = int(here.attributes["MultiProcessorCount"])
        code, _ = cubin.compiled(f"sm_{here.compute_capability}")
        # RawModule takes machine code from a file only; what it is given as a string it compiles.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "simulate.cubin"
            path.write_bytes(code)
            module = cupy.RawModule(path=str(path))
            self._kernels = {name: module.get_function(name) for name in cubin.KERNELS}

    @property
    def multiprocessors(self) -> int:
        """How many multiprocessors it has."""
        return self._multiprocessors

    @property
    def memory(self) -> int:
        """How many bytes of its memory a call may take: a share of what is free, or kept by CuPy for later use."""
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        return int(SHARE_OF_MEMORY * (free + self._cupy.get_default_memory_pool().free_bytes()))

    @property
    def side_by_side(self) -> int:
        """How many chunks of lanes it is given at a time: one for each core of the host, up to STREAMS."""
        return min(usable_cores(), STREAMS)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """One of its streams, for this thread alone. They are few and kept: CuPy keeps memory for each stream apart."""
        stream = self._streams.get()
        try:
            with self._here, stream:  # a new thread begins on the first device, which need not be this one
                yield
                stream.synchronize()
        finally:
            self._streams.put(stream)

    def registers(self, kernel: str) -> int:
        """How many registers a thread of `kernel` takes."""
        return int(self._kernels[kernel].num_regs)

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> object:
        """An array of zeros in the memory of the device."""
        return self._cupy.zeros(shape, dtype)

    def upload(self, array: npt.NDArray[Any]) -> object:
        """Copy an array into the memory of the device."""
        return self._cupy.asarray(array)

    def download(self, array: object) -> npt.NDArray[Any]:
        """Copy an array of the device to the host, once all launches so far have ended."""
        copied: npt.NDArray[Any] = self._cupy.asnumpy(array)
        return copied

    def launch(self, kernel: str, layout: Geometry, *arguments: object) -> None:
        """Run a kernel."""
        self._kernels[kernel]((layout.grid,), (layout.block,), arguments)


def device() -> Device:
    """Find the current CUDA device.

    Raises
    ------
    ValueError
        If CuPy, NVRTC or a device is missing: nothing falls back to the CPU.
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
    # Code compiled for one device may not run on another: the cache goes by the device that is current now.
    return _device(cupy.cuda.Device().id)


@lru_cache
def _device(_: int) -> CupyDevice:
    """The device of this index, as the current one. Compiling takes seconds, and is done once for each device."""
    import cupy

    return CupyDevice(cupy)


@dataclass(frozen=True, eq=False)
class Lanes:
    """A number of lanes on a device, on all of which every kernel is launched."""

    device: Device
    count: int

    def __call__(self, kernel: str, rows: int, *arguments: object) -> None:
        """Run `kernel` on states of `rows` numbers per lane."""
        # Kernels differ in how many registers they take, and with it in how large a block may be.
        registers = self.device.registers(kernel)
        layout = geometry(self.count, registers=registers, multiprocessors=self.device.multiprocessors)
        self.device.launch(kernel, layout, np.int64(self.count), np.int32(rows), *arguments)

    def zeros(self, rows: int, dtype: npt.DTypeLike) -> object:
        """Zeros, (rows, lanes), in the memory of the device; for 0 rows a placeholder, which no kernel reads."""
        return self.device.zeros((rows, self.count) if rows else (1, 1), dtype)

    def alive(self, rows: int, state: object, kind: str) -> bool:
        """Whether any lane has not diverged: all its `rows` numbers are finite."""
        # One number comes back instead of all states.
        found = self.device.zeros((1,), np.int32)
        self(f"look_alive_{kind}", rows, state, found)
        return bool(self.device.download(found)[0])


@dataclass(frozen=True, eq=False)
class Work:
    """How one configuration runs on a device.

    Attributes
    ----------
    lane_bytes : int
        Bytes of device memory that a lane needs.
    losses : callable
        ``losses(device, replica, lanes)`` gives blocks of (some rows, lanes), as `tiles.tile_losses` does.
    """

    lane_bytes: int
    losses: Callable[[Device, int, int], Iterator[FloatArray]]
