"""The CUDA source, bit for bit against the Numba kernels: built for the host by g++, and on a GPU where there is one.

What the host library cannot show is what NVIDIA's compiler makes of the kernels. NVRTC shows that much: no contraction,
no approximation, no local memory. Here are updates of noisy quadratics; other dynamics are in `test_cuda_dynamics.py`.
"""

import contextlib
import ctypes
import functools
import itertools
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import xarray as xr
from host_device import HostDevice, assert_same_bits, mutant

from noisysgd import simulators, theory
from noisysgd.simulators import NoiseLaw
from noisysgd.simulators.cuda import backend as cuda
from noisysgd.simulators.cuda import cubin, launch, nvrtc
from noisysgd.simulators.cuda import device as gpu
from noisysgd.simulators.cuda.launch import Geometry, chunk_lanes, geometry, lane_bytes
from noisysgd.simulators.ensembles import tiles
from noisysgd.simulators.ensembles import trajectory_kernels as kernels
from noisysgd.simulators.ensembles.tiles import Configuration
from noisysgd.simulators.randomness.number_formats import precision

DTYPES = ["float64", "float32", "mixed"]
STATES = ["float64", "float32"]
DIMS = [1, 2, 3, 5, 7, 64]
LANES = [1, 31, 127, 128, 129, 1000]
PLACES = [(0, 0, 0), (2**63 + 11, 2**32 - 1000, 2**32 - 2), (2**64 - 1, 7, 2**47 + 12345)]
"""Seed, first replica and first step; the second window crosses from a step of 32 bits to one of 33."""
needs_nvrtc = pytest.mark.skipif(sys.platform != "linux", reason="the NVRTC wheel is for Linux")


# Kernels


def window(dim: int, lanes: int, dtype: str, momentum: float, full: bool) -> tuple[np.ndarray, ...]:
    """Arguments of `kernels.advance_*` up to the slots. Five updates, of which three are recorded."""
    generator = np.random.default_rng(dim * lanes)
    theta = generator.standard_normal((dim, lanes))
    velocity = generator.standard_normal((dim if momentum else 0, lanes))
    curvature = generator.uniform(0.5, 1.5, dim)
    scale = generator.standard_normal((dim, dim)) if full else generator.uniform(0.5, 1.5, dim)
    scale[dim // 2 :] *= generator.random(dim - dim // 2).reshape(-1, *[1] * full) < 0.5  # some are without noise
    rates = generator.uniform(0.1, 0.5, 5)
    kind = precision(dtype)
    theta, velocity, curvature, scale, rates = map(kind.of, (theta, velocity, curvature, scale, rates))
    z = np.full((kind.noise_rows(dim if full else 1), lanes), np.nan, kind.noise_dtype)  # nothing may be left of it
    slots = np.array([0, -1, 1, -1, 2])
    return np.zeros((3, lanes)), theta, velocity, z, curvature, scale, kind.scalar(momentum), rates, slots


def name_of(state: np.ndarray, z: np.ndarray) -> str:
    return state.dtype.name if z.dtype == state.dtype else "mixed"


def here(arguments: tuple[np.ndarray, ...]) -> tuple[object, ...]:
    """The same arguments for the CPU's kernels, which have penalties, Nesterov's step and averages too: none here."""
    losses, theta, velocity, z, curvature, scale, momentum, rates, slots = arguments
    none, off = np.zeros_like(curvature), np.zeros_like(rates)
    average = np.zeros((0, theta.shape[1]), theta.dtype)
    state = (losses, theta, velocity, average, z)
    return (*state, curvature, curvature, none, scale, momentum, False, rates, off, off, slots)


def advanced(
    device: gpu.Device, arguments: tuple[np.ndarray, ...], place: tuple[int, int, int], tails: float, block: int
) -> tuple[np.ndarray, ...]:
    """Losses, states and velocities after a window on `device`."""
    losses, theta, velocity, z, curvature, scale, momentum, rates, slots = arguments
    dim, lanes = theta.shape
    there = [device.upload(array) for array in (losses, theta, velocity if velocity.size else np.zeros_like(theta))]
    full = scale.ndim == 2
    mixing = (np.int32((scale != 0).any()), device.zeros((dim, lanes), z.dtype)) if full else ()
    seed, replica, step = map(np.uint64, place)
    device.launch(
        f"advance_{'full' if full else 'diagonal'}_{name_of(theta, z)}",
        Geometry(-(-lanes // block), block),
        np.int64(lanes),
        np.int32(dim),
        np.int32(rates.size),
        *there,
        device.upload(curvature),
        device.upload(scale),
        *mixing,
        momentum,
        device.upload(rates),
        device.upload(slots),
        seed,
        replica,
        step,
        np.float64(tails),
    )
    found = [device.download(array) for array in there]
    return found[0], found[1], found[2][: velocity.shape[0]]


def compare(
    device: gpu.Device, dim: int, lanes: int, dtype: str, momentum: float, full: bool, place: tuple, tails: float
) -> None:
    arguments = window(dim, lanes, dtype, momentum, full)
    found = advanced(device, arguments, place, tails, block=32 if lanes < 200 else 128)
    advance = kernels.advance_full if full else kernels.advance_diagonal
    advance(*here(arguments), *map(np.uint64, place), tails)  # in place
    for there, mine in zip(found, arguments, strict=False):
        assert_same_bits(there, mine)
    assert np.isfinite(arguments[0]).all()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_is_numba_s_bit_for_bit(device: gpu.Device, dtype: str, momentum: float, full: bool) -> None:
    for dim, lanes in itertools.product(DIMS, LANES):
        place = PLACES[(dim + lanes) % len(PLACES)]
        compare(device, dim, lanes, dtype, momentum, full, place, 0.0)
    for place in PLACES:
        compare(device, 5, 129, dtype, momentum, full, place, 0.0)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("tails", [-1.0, 0.5, 1.0, 3.0, 8.5])
def test_other_laws_are_numba_s_bit_for_bit(device: gpu.Device, tails: float, momentum: float, full: bool) -> None:
    for dim, lanes in itertools.product([1, 2, 7], [1, 129, 1000]):
        for place in PLACES:
            compare(device, dim, lanes, "float64", momentum, full, place, tails)


@pytest.mark.parametrize("dtype", STATES)
def test_the_initial_state_and_its_loss_are_numba_s_bit_for_bit(device: gpu.Device, dtype: str) -> None:
    kind = precision(dtype)
    for dim, lanes in itertools.product(DIMS, LANES):
        seed, replica, _ = map(np.uint64, PLACES[(dim + lanes) % len(PLACES)])
        mean, deviation, curvature = (kind.of(np.linspace(a, b, dim)) for a, b in ((-1, 2), (0.1, 3), (0.5, 1.5)))
        theta, losses = device.zeros((dim, lanes), kind.dtype), device.zeros((1, lanes), np.float64)
        layout = geometry(lanes, registers=64, multiprocessors=4), np.int64(lanes), np.int32(dim)
        here = device.upload(curvature)
        device.launch(f"start_{dtype}", *layout, theta, device.upload(mean), device.upload(deviation), seed, replica)
        device.launch(f"add_losses_{dtype}", *layout, losses, theta, here)
        expected = np.empty((kind.rows(dim), lanes), kind.dtype)
        kind.fill(expected, seed, np.uint64(kind.initial_state), replica, np.uint64(0))
        expected = expected[:dim] * deviation[:, None] + mean[:, None]
        assert_same_bits(device.download(theta), expected)
        loss = np.zeros((1, lanes))
        kernels.initial_loss(loss, expected, curvature, np.zeros_like(curvature))
        assert_same_bits(device.download(losses), loss)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", STATES)
def test_subnormal_numbers_are_not_flushed_to_zero(device: gpu.Device, dtype: str, momentum: float) -> None:
    arguments = window(6, 129, dtype, momentum, False)
    _, theta, velocity, _, _, scale, *_ = arguments
    for array in (theta, velocity):
        array *= np.finfo(dtype).tiny / 8
    scale[:] = 0
    found = advanced(device, arguments, PLACES[0], 0.0, block=64)
    kernels.advance_diagonal(*here(arguments), *map(np.uint64, PLACES[0]), 0.0)
    for there, mine in zip(found, arguments, strict=False):
        assert_same_bits(there, mine)
    assert 0 < np.abs(theta).max() < np.finfo(dtype).tiny


@pytest.mark.parametrize("dtype", STATES)
def test_a_lane_is_alive_while_all_its_coordinates_are_finite(device: gpu.Device, dtype: str) -> None:
    for bad in (np.inf, -np.inf, np.nan):
        theta = np.ones((3, 130), dtype)
        theta[np.arange(130) % 3, np.arange(130)] = bad
        for saved, expected in ((None, 0), (129, 1)):
            if saved is not None:
                theta[:, saved] = np.finfo(dtype).max
            alive = device.zeros((1,), np.int32)
            arguments = np.int64(130), np.int32(3), device.upload(theta), alive
            device.launch(f"look_alive_{dtype}", Geometry(3, 64), *arguments)
            assert device.download(alive)[0] == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_multiply_adds_would_show(dtype: str, tmp_path: Path) -> None:
    device = mutant(tmp_path)
    with pytest.raises(AssertionError, match="not equal"):
        compare(device, 5, 129, dtype, 0.9, False, PLACES[0], 0.0)


# The backend


def problem_of(dim: int, full: bool) -> theory.NoisyQuadratic:
    eigenvalues = np.linspace(0.7, 1.3, dim)
    factors = np.random.default_rng(5).standard_normal((dim, dim))
    noise = factors @ factors.T / dim if full else np.linspace(2.0, 1.0, dim)
    return theory.NoisyQuadratic(eigenvalues, noise, initial_mean=0.3, initial_variance=0.5)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("dtype", "law"),
    [
        ("float64", NoiseLaw()),
        ("float32", NoiseLaw()),
        ("mixed", NoiseLaw()),
        ("float64", NoiseLaw("student_t", 3.0)),
        ("float64", NoiseLaw("uniform")),
    ],
    ids=str,
)
def test_the_ensemble_is_the_cpu_s_however_it_is_cut(
    device: gpu.Device, dtype: str, law: NoiseLaw, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = theory.piecewise([5, 8, 9], [1.0, 0.25, 2.0])
    record = np.array([0, 5, 6, 21, 22])
    shared = tiles.ensemble(problem_of(5, full), schedule, record, 11, law=law, precision=precision(dtype))
    # The last one diverges within its first steps; without noise nothing is drawn.
    settings = [(0.3, 0.0, 0.25), (0.2, 0.9, 0.25), (0.2, 0.5, 0.0), (1e30, 0.0, 1.0)]
    configurations = [Configuration(*setting) for setting in settings]
    replicas, seen = range(2**32 - 700, 2**32), []
    expected = tiles.simulate_all(shared, configurations, replicas, 1, None)
    assert np.isinf(expected[0][-1, -1])
    for memory, work in ((2**28, 2**20), (1, 2**20), (2**28, 50), (100_000, 1)):
        monkeypatch.setattr(type(device), "memory", memory)
        monkeypatch.setattr(launch, "LAUNCH_WORK", work)
        seen.clear()
        found = cuda.simulate_all(device, shared, configurations, replicas, lambda *done: seen.append(done))
        for there, here in zip(found, expected, strict=True):
            assert_same_bits(there, here)
        assert seen == [(done, 24) for done in range(1, 25)]


@pytest.mark.parametrize("at_once", [2, 5])
def test_chunks_side_by_side_give_the_same_bits_in_the_same_order(
    device: gpu.Device, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many threads sum their losses, and whatever ends first."""
    shared = tiles.ensemble(problem_of(7, True), theory.constant(60), np.arange(61), 3)
    configurations = [Configuration(0.01 * k, 0.9, 0.25) for k in range(1, 6)]
    monkeypatch.setattr(type(device), "memory", 2 * 10**6)
    monkeypatch.setattr(type(device), "side_by_side", 1)
    expected = cuda.simulate_all(device, shared, configurations, range(900), None)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(type(device), "side_by_side", at_once)
    found = cuda.simulate_all(device, shared, configurations, range(900), lambda *done: seen.append(done))
    for there, here in zip(found, expected, strict=True):
        assert_same_bits(there, here)
    assert seen == [(done, 40) for done in range(1, 41)]


def test_jobs_side_by_side_are_bounded_and_end_with_the_one_who_asked() -> None:
    under_way, most, done = 0, 0, []
    lock = threading.Lock()

    def job(number: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.002 * (number % 3))
        with lock:
            under_way -= 1
            done.append(number)
        return number

    jobs = [functools.partial(job, number) for number in range(30)]
    assert list(cuda._in_order(jobs, 4, threading.Event())) == list(range(30))
    assert 1 < most <= 4
    done.clear()
    stopped = threading.Event()
    results = cuda._in_order(jobs, 4, stopped)
    assert next(results) == 0
    results.close()
    assert stopped.is_set()
    assert len(done) < 10


def test_chunks_under_way_end_at_their_next_window_when_nobody_waits(library: Path) -> None:
    shared = tiles.ensemble(problem_of(5, False), theory.constant(5000), np.arange(5001), 3)
    work = cuda.work_of(shared, Configuration(0.1, 0.9, 0.25))
    stopped, windows = threading.Event(), []

    def watched(*arguments: object) -> Iterator[np.ndarray]:
        for losses in work.losses(*arguments):
            windows.append(len(losses))
            stopped.set()
            yield losses

    partly = types.SimpleNamespace(losses=watched)
    assert cuda._tile_moments(HostDevice(library), partly, shared.rows, range(128), stopped) == []
    assert len(windows) == 1


@pytest.mark.parametrize("dynamics", ["sgd", "sde"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_simulate_on_a_device_is_simulate_on_the_cpu(
    device: gpu.Device, dtype: str, dynamics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "device", lambda: device)
    settings = {"learning_rate": [0.1, 0.3], "batch_size": 4, "momentum": 0.9, "record": 5, "replicas": 300}
    run = settings | {"dtype": dtype, "dynamics": dynamics}
    here = simulators.simulate(problem_of(7, False), theory.half_then_decay(40), **run)
    there = simulators.simulate(problem_of(7, False), theory.half_then_decay(40), **run, backend="cuda")
    assert there.attrs.pop("backend") == "cuda"
    assert here.attrs.pop("backend") == "cpu"
    xr.testing.assert_identical(here, there)


@pytest.mark.parametrize("dtype", DTYPES)
def test_diverged_is_infinite_and_cheap(device: gpu.Device, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "device", lambda: device)
    run = {"learning_rate": 5.0, "batch_size": 1, "record": 20, "replicas": 200, "dtype": dtype, "backend": "cuda"}
    result = simulators.simulate(problem_of(16, False), theory.constant(10**7), **run)
    assert np.isposinf(result.loss).all()
    assert np.isposinf(result.loss_stderr).all()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_device_memory_is_bounded(library: Path, dtype: str, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dim, memory = 6, 2**20
    monkeypatch.setattr(HostDevice, "memory", memory)
    device = HostDevice(library)
    schedule, record = theory.constant(2100), np.arange(2101)
    shared = tiles.ensemble(problem_of(dim, full), schedule, record, 0, precision=precision(dtype))
    cuda.simulate_all(device, shared, [Configuration(0.1, 0.9, 1.0)] * 2, range(400), None)
    kind = precision(dtype)
    mixed = kind.noise_dtype.itemsize * full
    lane = lane_bytes(dim, itemsize=kind.dtype.itemsize, momentum=True, mixed=mixed, records=1024)
    bound = max(memory, 128 * lane) + 8 * (3 * dim + (dim**2 if full else 0) + 2050)
    assert 0.5 * bound < device.peak <= bound


def test_without_cupy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    run = {"learning_rate": 0.1, "batch_size": 1, "backend": "cuda"}
    expected = r"backend: expected CuPy to be installed for 'cuda', got .*pip install 'noisysgd\[cuda12\]'"
    with pytest.raises(ValueError, match=expected):
        simulators.simulate(problem_of(2, False), theory.constant(1), **run)


@needs_nvrtc
def test_cupy_is_given_machine_code_and_typed_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be said of the calls without a GPU: `CupyDevice` against a stand-in of the few names that it uses."""
    loaded, calls = {}, []

    class RawModule:
        def __init__(self, path: str) -> None:
            loaded["code"] = Path(path).read_bytes()

        def get_function(self, name: str) -> object:
            assert name.encode() in loaded["code"]

            def launch(*arguments: object) -> None:
                calls.append((name, *arguments))

            launch.num_regs = 40
            return launch

    class Current(contextlib.nullcontext):
        id, compute_capability, attributes = 0, "80", {"MultiProcessorCount": 108}

    class Stream(contextlib.nullcontext):
        made: ClassVar[list[object]] = []

        def __init__(self, non_blocking: bool) -> None:
            super().__init__()
            assert non_blocking
            self.waits = 0
            self.made.append(self)

        def synchronize(self) -> None:
            self.waits += 1

    runtime = types.SimpleNamespace(CUDARuntimeError=RuntimeError, getDeviceCount=lambda: 1)
    runtime.memGetInfo = lambda: (8 * 10**9, 10**10)
    pool = types.SimpleNamespace(free_bytes=lambda: 2 * 10**9)
    parts = {"RawModule": RawModule, "get_default_memory_pool": lambda: pool}
    parts |= {"cuda": types.SimpleNamespace(runtime=runtime, Device=Current, Stream=Stream)}
    parts |= {"zeros": np.zeros, "asarray": np.asarray, "asnumpy": np.asarray}
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(**parts))
    gpu._device.cache_clear()
    try:
        device = gpu.device()
        assert device is gpu.device()
    finally:
        gpu._device.cache_clear()
    assert loaded["code"] == cubin.compiled("sm_80")[0]
    assert (device.multiprocessors, device.registers("start_float32")) == (108, 40)
    assert device.memory == 5 * 10**9
    with device.stream(), device.stream():  # two threads have two
        pass
    assert [stream.waits for stream in Stream.made] == [1, 1, *[0] * (gpu.STREAMS - 2)]
    shared = tiles.ensemble(
        problem_of(3, True), theory.constant(2), np.array([0, 2]), 0, precision=precision("float32")
    )
    next(cuda.work_of(shared, Configuration(0.1, 0.9, 1.0)).losses(device, 5, 4000))
    (name, grid, block, arguments), (following, *_) = calls
    assert (name, following) == ("start_float32", "add_losses_float32")
    assert (grid, block) == ((125,), (32,))
    kinds = [(value.dtype.name, value.ndim) for value in arguments]
    assert kinds == [("int64", 0), ("int32", 0), ("float32", 2), *[("float32", 1)] * 2, *[("uint64", 0)] * 2]


@pytest.fixture
def searched_anew() -> Iterator[None]:
    nvrtc.library.cache_clear()
    yield
    nvrtc.library.cache_clear()


def libraries(root: Path, *places: str) -> list[Path]:
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(b"no library")
    return [root / place for place in places]


def test_the_compiler_is_looked_for_where_it_really_is(tmp_path: Path) -> None:
    """Wheels of CUDA 13 and of CUDA 12, a toolkit, and what the process has loaded; not builtins or alternatives."""
    wheels = libraries(tmp_path / "nvidia", "cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12")
    toolkit = libraries(tmp_path / "cuda", "lib64/libnvrtc.so.13.0.88")
    loaded = libraries(tmp_path / "elsewhere", "libnvrtc.so.12", "libc.so.6", "libnvrtc-builtins.so.12.9")
    libraries(tmp_path / "nvidia", "cu13/lib/libnvrtc-builtins.so.13.0", "cu13/lib/libnvrtc.alt.so.13")
    environment = {"CUDA_HOME": str(tmp_path / "cuda")}
    found = nvrtc.candidates([tmp_path / "nvidia"], environment, [*loaded, wheels[0]])
    assert [path for path in found if not str(path).startswith("/usr/local/cuda")] == [*wheels, *toolkit, loaded[0]]


@needs_nvrtc
def test_what_is_loaded_counts() -> None:
    nvrtc.library()
    assert any(path.name.startswith("libnvrtc.so.") for path in nvrtc._loaded())


@pytest.mark.usefixtures("searched_anew")
def test_without_nvrtc_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "candidates", lambda *_: [])
    with pytest.raises(ValueError, match=r"nvrtc: expected .*, got .*no libnvrtc in .*pip install nvidia"):
        cubin.compiled("sm_90")
    broken = libraries(tmp_path, "libnvrtc.so.13")
    monkeypatch.setattr(nvrtc, "candidates", lambda *_: broken)
    with pytest.raises(ValueError, match=r"nvrtc: expected .*, got .*libnvrtc\.so\.13 \("):
        cubin.compiled("sm_90")


@needs_nvrtc
@pytest.mark.usefixtures("searched_anew")
def test_the_library_of_builtin_functions_is_loaded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every release says where it lies; without it compilation fails with an error about builtins."""
    opened: list[str] = []
    load = ctypes.CDLL

    def watched(name: str, **more: int) -> ctypes.CDLL:
        opened.append(Path(name).name)
        return load(name, **more)

    monkeypatch.setattr(nvrtc.ctypes, "CDLL", watched)
    nvrtc.library()
    assert [name.partition(".so")[0] for name in opened][-2:] == ["libnvrtc-builtins", "libnvrtc"]


@needs_nvrtc
def test_a_source_that_does_not_compile_shows_the_compiler_s_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.cu"
    broken.write_text("int f() { return nothing; }")
    monkeypatch.setattr(cubin, "SOURCE", broken)
    with pytest.raises(ValueError, match=r"nvrtc: expected status 0, got .*broken\.cu"):
        cubin.compiled("sm_90")


@pytest.mark.parametrize("count", [0, None])
def test_without_a_device_it_says_so(count: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class CUDARuntimeError(RuntimeError):
        pass

    def devices() -> int:
        if count is None:
            raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
        return count

    runtime = types.SimpleNamespace(CUDARuntimeError=CUDARuntimeError, getDeviceCount=devices)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime)))
    run = {"learning_rate": 0.1, "batch_size": 1, "backend": "cuda"}
    with pytest.raises(ValueError, match=r"backend: expected a CUDA device for 'cuda', got .*backend='cpu'"):
        simulators.simulate(problem_of(2, False), theory.constant(1), **run)


# Launches


@pytest.mark.parametrize(
    ("lanes", "registers", "multiprocessors", "expected"),
    [
        (1, 32, 108, Geometry(1, 32)),
        (32, 32, 108, Geometry(1, 32)),
        (33, 32, 108, Geometry(2, 32)),
        (107 * 256 + 1, 64, 108, Geometry(108, 256)),
        (107 * 256, 64, 108, Geometry(214, 128)),
        (2**20, 255, 132, Geometry(4096, 256)),
        (2**20, 32, 1, Geometry(4096, 256)),
    ],
)
def test_blocks_are_large_where_every_multiprocessor_gets_one(
    lanes: int, registers: int, multiprocessors: int, expected: Geometry
) -> None:
    assert geometry(lanes, registers=registers, multiprocessors=multiprocessors) == expected


def test_every_lane_has_a_thread_and_no_block_is_idle() -> None:
    for lanes, registers, count in itertools.product([*range(1, 600), 10**6], [16, 64, 255], [1, 20, 132]):
        layout = geometry(lanes, registers=registers, multiprocessors=count)
        assert (layout.grid - 1) * layout.block < lanes <= layout.grid * layout.block
        assert layout.block % 32 == 0


@pytest.mark.parametrize(
    "change", [{"lanes": 0}, {"registers": 0}, {"registers": 256}, {"multiprocessors": 0}], ids=str
)
def test_impossible_launches_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected .*, got "):
        geometry(**({"lanes": 1, "registers": 32, "multiprocessors": 1} | change))


def test_chunks_are_whole_tiles_within_memory() -> None:
    lane = lane_bytes(64, itemsize=4, momentum=True, mixed=4, records=10)
    assert lane == 4 * 64 * 3 + 80
    lanes = chunk_lanes(lane, memory=10**7, tile=128)
    assert lanes % 128 == 0
    assert lane * lanes <= 10**7 < lane * (lanes + 128)
    assert chunk_lanes(lane, memory=1, tile=128) == 128


# What NVIDIA's compiler makes of it


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_no_kernel_spills_or_uses_local_memory(architecture: str) -> None:
    code, _ = cubin.compiled(architecture)
    assert code.startswith(b"\x7fELF")
    table = cubin.resources(architecture)
    assert set(table) == set(cubin.KERNELS)
    for name, needs in table.items():
        assert needs.stack == needs.spills == 0, name
        assert 0 < needs.registers <= 72, name  # 28 warps of a multiprocessor


@needs_nvrtc
def test_nothing_is_contracted_or_approximated() -> None:
    assembly = cubin.compiled("compute_80", "PTX")[0].decode()
    assert all(word in assembly for word in ("div.rn.f64", "sqrt.rn.f64", "div.rn.f32", "sqrt.rn.f32"))
    assert not any(word in assembly for word in ("fma.", "mad.rn.f", ".approx", ".ftz"))


@needs_nvrtc
@pytest.mark.checkout
def test_the_documented_registers_are_what_the_compiler_says() -> None:
    root = Path(__file__).resolve().parents[3]
    page = (root / "docs" / "gpu.md").read_text()
    if f"NVRTC {cubin.version()}," not in page:
        pytest.skip("the table is of another version of NVRTC")
    script = [sys.executable, root / "benchmarks" / "cuda_registers.py"]
    assert subprocess.run(script, capture_output=True, text=True, check=True).stdout in page


def test_the_source_is_ascii_and_shipped() -> None:
    assert cubin.SOURCE.read_text("ascii")
