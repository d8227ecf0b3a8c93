"""The CUDA backend: the kernels of ``simulate.cu``, one thread per replica, run through CuPy.

Losses are copied back, and the host sums them tile by tile as it does for the CPU: results are the same bit for bit.

Lanes go in chunks. Whatever the number of replicas, configurations and records, arrays on the device are at any time at
most `MEMORY` bytes of states and losses (or one tile of 128 lanes, where that is more) and 8·(3D + 2050) bytes of
settings, 8·(D² + 3D + 2050) for a full covariance. CuPy may keep what was freed for later use. The host holds as much
again, and the results.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from noisysgd.simulators import cubin, kernels
from noisysgd.simulators.launch import Geometry, chunk_lanes, geometry, lane_bytes
from noisysgd.simulators.tiles import (
    LANES,
    WINDOW_STEPS,
    Configuration,
    Ensemble,
    Moments,
    merge,
    scaled_root,
    windows,
)
from noisysgd.theory import checks
from noisysgd.theory.checks import FloatArray

MEMORY = 2**28
"""Bytes of device memory for the states and losses of a chunk of lanes."""

WINDOW_WORK = 2**20
"""Updates of a lane in one launch, or products for a full covariance: well below a second, after which it can be
interrupted."""


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
class _Lanes:
    """A chunk of lanes on a device: launches kernels of its precision on all of them."""

    device: Device
    count: int
    dim: int
    suffix: str

    def __call__(self, kernel: str, *arguments: Any) -> None:
        name = f"{kernel}_{self.suffix}"
        layout = geometry(
            self.count, registers=self.device.registers(name), multiprocessors=self.device.multiprocessors
        )
        self.device.launch(name, layout, np.int64(self.count), np.int32(self.dim), *arguments)


def window_steps(shared: Ensemble) -> int:
    """Steps of a launch."""
    dim = shared.curvature.size
    return min(max(WINDOW_WORK // (dim * (dim if shared.noise_root.ndim == 2 else 1)), 1), WINDOW_STEPS)


def chunk_losses(
    target: Device, shared: Ensemble, configuration: Configuration, replica: int, lanes: int
) -> Iterator[FloatArray]:
    """Losses of `lanes` replicas from `replica` on, a block of (records, lanes) per window, as `tiles.tile_losses`."""
    precision, dim = shared.precision, shared.curvature.size
    full, moving = shared.noise_root.ndim == 2, configuration.momentum > 0
    run = _Lanes(target, lanes, dim, precision.name)
    theta = target.zeros((dim, lanes), precision.dtype)
    velocity = target.zeros((dim, lanes) if moving else (1, 1), precision.dtype)
    curvature = target.upload(shared.curvature)
    place = shared.seed, np.uint64(replica)
    run("start", theta, target.upload(shared.initial_mean), target.upload(shared.initial_deviation), *place)
    if shared.record[0] == 0:
        losses = target.zeros((1, lanes), np.float64)
        run("add_losses", losses, theta, curvature)
        copied = target.download(losses)
        del losses  # before the next ones are made: device memory is bounded
        yield copied
    scaled = scaled_root(shared, configuration)
    root = target.upload(scaled)
    mixing = (np.int32(bool((scaled != 0).any())), target.zeros((dim, lanes), precision.dtype)) if full else ()
    for window in windows(shared, configuration, window_steps(shared)):
        alive = target.zeros((1,), np.int32)
        run("look_alive", theta, alive)
        if not target.download(alive)[0]:
            yield np.full((window.records_left, lanes), np.inf)
            return
        losses = target.zeros((max(window.records, 1), lanes), np.float64)
        run(
            "advance_full" if full else "advance_diagonal",
            np.int32(window.rates.size),
            losses,
            theta,
            velocity,
            curvature,
            root,
            *mixing,
            precision.scalar(configuration.momentum),
            target.upload(window.rates),
            target.upload(window.slots),
            *place,
            np.uint64(window.step),
            np.float64(shared.law.tails),
        )
        copied = target.download(losses)
        del losses
        if window.records:
            yield copied


def simulate_all(
    target: Device,
    shared: Ensemble,
    configurations: list[Configuration],
    replicas: range,
    progress: Callable[[int, int], object] | None,
    kept: Moments | None = None,
) -> Moments:
    """Moments of every configuration over all replicas, as `tiles.simulate_all`."""
    means = np.empty((len(configurations), shared.record.size))
    spreads = np.empty_like(means)
    tiles, done = -(-len(replicas) // LANES), 0
    for row, configuration in enumerate(configurations):
        parts = (
            part
            for chunk in _chunks(shared, configuration, replicas)
            for part in _tile_moments(target, shared, configuration, chunk)
        )
        for tile, part in enumerate(parts):
            if kept is not None:
                kept[0][row, :, tile], kept[1][row, :, tile] = part
            if tile > 0:
                size = min(LANES, len(replicas) - LANES * tile)
                part = merge((means[row], spreads[row]), LANES * tile, part, size)
            means[row], spreads[row] = part
            done += 1
            if progress is not None:
                progress(done, tiles * len(configurations))
    return means, spreads


def _chunks(shared: Ensemble, configuration: Configuration, replicas: range) -> list[range]:
    size = lane_bytes(
        shared.curvature.size,
        itemsize=shared.precision.dtype.itemsize,
        momentum=configuration.momentum > 0,
        full=shared.noise_root.ndim == 2,
        records=min(shared.record.size, window_steps(shared)),
    )
    moments = -(-16 * shared.record.size // LANES)  # of tiles, on the host
    lanes = chunk_lanes(size + moments, memory=MEMORY, tile=LANES)
    return [replicas[first : first + lanes] for first in range(0, len(replicas), lanes)]


def _tile_moments(target: Device, shared: Ensemble, configuration: Configuration, replicas: range) -> Iterator[Moments]:
    """Moments of the tiles of a chunk, in their order."""
    firsts = range(0, len(replicas), LANES)
    means = np.empty((len(firsts), shared.record.size))
    spreads = np.empty_like(means)
    done = 0
    for losses in chunk_losses(target, shared, configuration, replicas[0], len(replicas)):
        rows = slice(done, done + len(losses))
        for tile, first in enumerate(firsts):
            part = np.ascontiguousarray(losses[:, first : first + LANES])
            kernels.moments(part, means[tile, rows], spreads[tile, rows])
        done += len(losses)
    yield from zip(means, spreads, strict=True)
