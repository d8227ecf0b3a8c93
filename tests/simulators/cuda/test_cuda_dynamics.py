"""Jumps, minibatches and the diagonal network on a device: every lane's loss at every step, bit for bit the CPU's."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from host_device import HostDevice, assert_same_bits, mutant

from noisysgd import simulators, theory
from noisysgd.simulators import DiagonalNetwork, FiniteLeastSquares
from noisysgd.simulators.cuda import backend as cuda
from noisysgd.simulators.cuda import device as gpu
from noisysgd.simulators.cuda import example_models, launch
from noisysgd.simulators.ensembles import tiles, windows
from noisysgd.simulators.ensembles.tiles import Configuration, Ensemble
from noisysgd.simulators.models import diagonal_network, finite_least_squares
from noisysgd.simulators.models.example_model import ExampleEnsemble
from noisysgd.simulators.randomness.batches import SAMPLINGS

LANES = [1, 31, 129]
SCHEDULE = theory.piecewise([5, 4, 3], [1.0, 0.25, 2.0])
EVERY = np.arange(13)


def lane_losses(
    device: gpu.Device, shared: Ensemble | ExampleEnsemble, configuration: Configuration, replica: int, lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Losses of every lane, (rows, lanes), on the device and on the CPU."""
    there = cuda.work_of(shared, configuration).losses(device, replica, lanes)
    here = tiles.tile_losses(shared, configuration, replica, lanes)
    return np.concatenate(list(there)), np.concatenate(list(here))


def compare(device: gpu.Device, shared: Ensemble | ExampleEnsemble, configuration: Configuration, lanes: int) -> None:
    replica = 2**32 - lanes if lanes > 1 else 3
    found, expected = lane_losses(device, shared, configuration, replica, lanes)
    assert np.isfinite(expected).all()
    assert_same_bits(found, expected)


# Problems


def quadratic(dim: int, full: bool, noise: float = 1.0) -> theory.NoisyQuadratic:
    eigenvalues = np.linspace(0.7, 1.3, dim)
    factors = np.random.default_rng(5).standard_normal((dim, dim))
    covariance = factors @ factors.T / dim if full else np.linspace(2.0, 1.0, dim) * (np.arange(dim) % 3 != 1)
    return theory.NoisyQuadratic(eigenvalues, noise * covariance, initial_mean=0.3, initial_variance=0.5)


def jumping(dim: int, full: bool, schedule: theory.Schedule = SCHEDULE, record: np.ndarray = EVERY) -> Ensemble:
    return tiles.ensemble(quadratic(dim, full), schedule, record, 2**63 + 11, exact_jumps=True)


def least_squares(dim: int, population: int, sampling: str, schedule: theory.Schedule = SCHEDULE) -> ExampleEnsemble:
    generator = np.random.default_rng(dim + population)
    inputs = generator.standard_normal((population, dim)) / np.sqrt(dim)
    data = FiniteLeastSquares(inputs, generator.standard_normal(population), 0.4, generator.uniform(0, 1, dim))
    record = np.arange(schedule.steps + 1)
    return ExampleEnsemble(data, schedule, record, np.uint64(2**63 + 11), "minibatch", sampling)


def network(
    dim: int,
    population: int,
    dynamics: str = "minibatch",
    sampling: str = SAMPLINGS[0],
    label_noise: float = 0.7,
    schedule: theory.Schedule = SCHEDULE,
) -> ExampleEnsemble:
    generator = np.random.default_rng(dim + population)
    inputs, truth = generator.standard_normal((population, dim)) / np.sqrt(dim), generator.standard_normal(dim)
    model = DiagonalNetwork(inputs, inputs @ truth, truth, 0.4, label_noise)
    record = np.arange(schedule.steps + 1)
    return ExampleEnsemble(model, schedule, record, np.uint64(5), dynamics, sampling, 2 if dynamics == "sde" else 1)


ONE_OF_EACH = {
    "diagonal jump": (jumping(5, False), Configuration(0.3, 0.9, 0.25)),
    "full jump": (jumping(5, True), Configuration(0.3, 0.9, 0.25)),
    "least squares": (least_squares(35, 9, SAMPLINGS[0]), Configuration(0.1, 0.9, batch_size=4)),
    "network": (network(35, 9), Configuration(0.02, 0.9, batch_size=4)),
    "gaussian network": (network(35, 9, "sgd"), Configuration(0.02, 0.9, batch_size=4)),
}


# Lane by lane


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_jumps_are_numba_s_bit_for_bit(device: gpu.Device, momentum: float, full: bool) -> None:
    for dim, lanes, factor in itertools.product([1, 2, 3, 7, 64], [*LANES, 1000], [0.25, 0.0]):
        compare(device, jumping(dim, full), Configuration(0.3, momentum, factor), lanes)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_jumps_over_very_many_steps_are_numba_s_bit_for_bit(device: gpu.Device, momentum: float, full: bool) -> None:
    schedule = theory.piecewise([2**32 - 2, 3, 2**47], [1.0, 0.5, 0.1])
    record = np.array([1, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**47])
    compare(device, jumping(5, full, schedule, record), Configuration(0.01, momentum, 0.25), 129)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_minibatches_are_numba_s_bit_for_bit(device: gpu.Device, momentum: float, sampling: str) -> None:
    for dim, population in itertools.product([1, 5, 31, 32, 33, 64, 100], [7, 40]):
        for size in (1, 3, population, np.inf):
            lanes = LANES[(dim + population) % len(LANES)]
            configuration = Configuration(0.05, momentum, batch_size=size)
            compare(device, least_squares(dim, population, sampling), configuration, lanes)
    for lanes in [*LANES, 1000]:
        compare(device, least_squares(5, 11, sampling), Configuration(0.1, momentum, batch_size=4), lanes)


def test_more_draws_than_examples_are_numba_s_bit_for_bit(device: gpu.Device) -> None:
    compare(device, least_squares(5, 11, "with_replacement"), Configuration(0.1, 0.5, batch_size=50), 129)
    compare(device, network(5, 11, sampling="with_replacement"), Configuration(0.01, 0.5, batch_size=50), 129)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("label_noise", [0.0, 0.7])
def test_the_network_s_batches_are_numba_s_bit_for_bit(device: gpu.Device, label_noise: float, sampling: str) -> None:
    for dim, population in itertools.product([1, 5, 31, 32, 33, 70], [3, 8]):
        sizes = (1, 3, population, population + 2, 5 * population + 1)
        for size in sizes[: 3 if sampling == "reshuffle" else 5]:
            momentum, lanes = 0.9 * (dim % 2), LANES[(dim + population) % len(LANES)]
            run = network(dim, population, sampling=sampling, label_noise=label_noise)
            compare(device, run, Configuration(0.02, momentum, batch_size=size), lanes)


@pytest.mark.parametrize("dynamics", ["minibatch", "sgd", "sde"])
@pytest.mark.parametrize("label_noise", [0.0, 0.7])
def test_the_network_s_gaussian_noise_is_numba_s_bit_for_bit(
    device: gpu.Device, label_noise: float, dynamics: str
) -> None:
    for dim, population in itertools.product([1, 5, 31, 32, 33, 70], [3, 8]):
        for size in (1, population, population + 2, np.inf):  # a full batch has label noise alone
            momentum, lanes = 0.9 * (dim % 2), LANES[(dim + population) % len(LANES)]
            run = network(dim, population, dynamics, label_noise=label_noise)
            compare(device, run, Configuration(0.02, momentum, batch_size=size), lanes)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("first", [2**32 - 3, 2**47 + 12345])
def test_late_steps_of_examples_are_numba_s_bit_for_bit(
    device: gpu.Device, first: int, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*arguments: object) -> object:
        return (dataclasses.replace(window, step=window.step + first) for window in windows.windows(*arguments))

    for module in (finite_least_squares, diagonal_network, example_models):
        monkeypatch.setattr(module, "windows", late)
    compare(device, least_squares(5, 11, sampling), Configuration(0.1, 0.9, batch_size=4), 129)
    compare(device, network(5, 11, sampling=sampling), Configuration(0.02, 0.9, batch_size=4), 129)
    compare(device, network(5, 11, "sgd", sampling=sampling), Configuration(0.02, 0.9, batch_size=4), 129)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_fused_multiply_adds_would_show(name: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not equal"):
        compare(mutant(tmp_path), *ONE_OF_EACH[name], 129)


# The backend


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_ensemble_is_the_cpu_s_however_it_is_cut(
    device: gpu.Device, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, one = ONE_OF_EACH[name]
    # The last one diverges; infinite batches are without noise.
    settings = [(one.learning_rate, 0.0, 0.25, 3.0), (one.learning_rate, 0.9, 0.0, np.inf), (1e200, 0.5, 1.0, 2.0)]
    configurations = [Configuration(*setting) for setting in settings]
    replicas, seen = range(2**32 - 300, 2**32), []
    expected = tiles.simulate_all(shared, configurations, replicas, 1, None)
    assert np.isfinite(expected[0][:2]).all()
    assert np.isposinf(expected[0][-1, -1])
    for memory, work in ((2**28, 2**20), (1, 2**20), (2**28, 2000), (300_000, 1)):
        monkeypatch.setattr(type(device), "memory", memory)
        monkeypatch.setattr(launch, "LAUNCH_WORK", work)
        seen.clear()
        found = cuda.simulate_all(device, shared, configurations, replicas, lambda *done: seen.append(done))
        for there, here in zip(found, expected, strict=True):
            assert_same_bits(there, here)
        assert seen == [(done, 9) for done in range(1, 10)]


def bound_of(shared: Ensemble | ExampleEnsemble, lane: int, memory: int) -> int:
    """What `noisysgd.simulators.cuda.backend` says."""
    chunk = max(memory, 128 * lane)
    if isinstance(shared, Ensemble):
        dim = shared.curvature.size
        return chunk + 8 * (3 * dim + (4 * dim + 4 * dim**2 if shared.noise_root.ndim == 2 else 2 * 4 * dim))
    count, dim = shared.model.inputs.shape
    square = dim**2 if isinstance(shared.model, FiniteLeastSquares) else dim
    return chunk + 8 * (4 * dim + 2050 + count * dim + count + square)


def large(name: str, sampling: str) -> tuple[Ensemble | ExampleEnsemble, Configuration]:
    """Few steps of many coordinates or examples; for "records", more records than a window has steps."""
    batch, schedule = Configuration(0.01, 0.9, batch_size=40), theory.constant(3)
    if "jump" in name:
        full = "full" in name
        return jumping(100 if full else 1000, full, schedule, np.arange(4)), Configuration(0.1, 0.9, 1.0)
    if name == "records":
        return network(2, 3, schedule=theory.constant(1100)), batch
    if name == "least squares":
        return least_squares(30, 500, sampling, schedule), batch
    return network(30, 500, "sgd" if "gaussian" in name else "minibatch", sampling, schedule=schedule), batch


@pytest.mark.parametrize("memory", [1, 2**22])
@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        *((name, "") for name in ("diagonal jump", "full jump", "records")),
        *itertools.product(["least squares", "network"], SAMPLINGS),
        ("gaussian network", SAMPLINGS[0]),
    ],
)
def test_device_memory_is_bounded(
    library: Path, name: str, memory: int, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostDevice, "memory", memory)
    device = HostDevice(library)
    shared, configuration = large(name, sampling)
    lane = cuda.work_of(shared, configuration).lane_bytes
    lanes = launch.chunk_lanes(lane, memory=memory, tile=128)
    cuda.simulate_all(device, shared, [configuration], range(lanes + 1), None)
    bound = bound_of(shared, lane, memory)
    assert 0.5 * bound < device.peak <= bound


RUNS = {
    "jump": (quadratic(7, False), {"dynamics": "jump"}),
    "full jump": (quadratic(7, True), {"dynamics": "jump"}),
    **{
        sampling: (least_squares(6, 11, sampling).model, {"dynamics": "minibatch", "sampling": sampling})
        for sampling in SAMPLINGS
    },
    **{
        f"network {dynamics}": (network(6, 11).model, {"dynamics": dynamics})
        for dynamics in ("minibatch", "sgd", "sde")
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_simulate_on_a_device_is_simulate_on_the_cpu(
    device: gpu.Device, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "device", lambda: device)
    problem, dynamics = RUNS[name]
    run = dynamics | {"learning_rate": [0.01, 0.03], "batch_size": 4, "momentum": 0.9, "record": 5, "replicas": 300}
    run |= {"keep_tiles": True, "seed": 7, "replica_offset": 256}
    here = simulators.simulate(problem, theory.half_then_decay(40), **run)
    there = simulators.simulate(problem, theory.half_then_decay(40), **run, backend="cuda")
    assert there.attrs.pop("backend") == "cuda"
    assert here.attrs.pop("backend") == "cpu"
    xr.testing.assert_identical(here, there)


@pytest.mark.parametrize("name", [name for name in RUNS if "jump" not in name])
def test_diverged_is_infinite_and_cheap(device: gpu.Device, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "device", lambda: device)
    problem, dynamics = RUNS[name]
    run = dynamics | {"learning_rate": 100.0, "batch_size": 1, "record": 20, "replicas": 200, "backend": "cuda"}
    result = simulators.simulate(problem, theory.constant(10**7), **run)
    for metric in getattr(problem, "metrics", ("loss",)):
        assert np.isposinf(result[metric]).all()


def test_models_without_kernels_are_refused() -> None:
    class Model(FiniteLeastSquares):
        pass

    class Other:
        dynamics, metrics, dataset_size = ("minibatch",), ("loss",), 2
        check_batches = losses = None

    assert cuda.runs(Model([[1.0], [2.0]], [1.0, 2.0]))
    run = {"learning_rate": 0.1, "batch_size": 1, "dynamics": "minibatch", "backend": "cuda"}
    with pytest.raises(ValueError, match="backend: expected 'cpu' for this model, got 'cuda'"):
        simulators.simulate(Other(), theory.constant(3), **run)


@pytest.mark.parametrize("dtype", ["float32", "mixed"])
@pytest.mark.parametrize("name", RUNS)
def test_only_double_precision_is_offered(name: str, dtype: str) -> None:
    problem, dynamics = RUNS[name]
    run = dynamics | {"learning_rate": 0.1, "batch_size": 1, "dtype": dtype, "backend": "cuda"}
    with pytest.raises(ValueError, match=f"dtype: expected 'float64' .*, got '{dtype}'"):
        simulators.simulate(problem, theory.constant(3), **run)


@pytest.mark.parametrize("dtype", ["float64", "float32", "mixed"])
def test_a_sweep_on_a_device_is_the_sweep_on_the_cpu(
    device: gpu.Device, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "device", lambda: device)
    grid = {"batch_sizes": [1, 64], "effective_learning_rates": [0.25, 0.5], "seeds": 2, "replicas": 16}
    here, there = (
        simulators.simulate_sweep(theory.power_law(10), theory.StepBudget(30), **grid, dtype=dtype, backend=backend)
        for backend in ("cpu", "cuda")
    )
    xr.testing.assert_identical(here, there)
    double = simulators.simulate_sweep(theory.power_law(10), theory.StepBudget(30), **grid)
    assert double.equals(here) == (dtype == "float64")
