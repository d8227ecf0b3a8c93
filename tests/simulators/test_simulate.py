"""The simulator: bit for bit against NumPy, independent of how the work is cut, and exact on average.

Statistical checks compare a mean over replicas with the exact mean, in *exact* standard errors: the loss of a Gaussian
state has a known variance. A correct simulator fails one of them when a standard normal exceeds `LIMIT` in absolute
value: 2·10⁻⁹ each, below 10⁻⁶ for all the checks of this file together. Each has a mutant that must fail it.
"""

import itertools
import math
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr

from noisysgd import simulators, theory
from noisysgd.simulators import Purpose
from noisysgd.simulators.ensembles import jump, tiles, windows
from noisysgd.simulators.ensembles import trajectory_kernels as kernels
from noisysgd.simulators.ensembles.tiles import Configuration
from noisysgd.simulators.randomness.number_formats import DOUBLE, Precision, precision

LIMIT = 6.0
DTYPES = ["float64", "float32", "mixed"]
DRAWS = {"learning_rate": 0.3, "batch_size": 4, "momentum": 0.7}


def noise_dominated(
    dim: int = 64, *, noise: float = 1.0, full: bool = False, mean: float = 0.0
) -> theory.NoisyQuadratic:
    """Curvatures of one order of magnitude and noise that forgets the start in a few steps."""
    eigenvalues = np.linspace(0.7, 1.3, dim)
    diagonal = noise * np.linspace(2.0, 1.0, dim)
    if not full:
        return theory.NoisyQuadratic(eigenvalues, diagonal, initial_mean=mean, initial_variance=0.5)
    # Of rank dim/2 and far from diagonal.
    factors = np.random.default_rng(5).standard_normal((dim, dim // 2)) * np.sqrt(diagonal)[:, None]
    return theory.NoisyQuadratic(eigenvalues, factors @ factors.T / dim, initial_mean=mean, initial_variance=0.5)


def replica_losses(
    problem: theory.NoisyQuadratic,
    schedule: theory.Schedule,
    replicas: range,
    *,
    record: list[int],
    seed: int = 0,
    learning_rate: float,
    batch_size: float,
    momentum: float,
    dtype: str = "float64",
) -> np.ndarray:
    """Loss of every replica at every record, (records, replicas)."""
    shared = tiles.ensemble(problem, schedule, np.array(record), seed, precision=precision(dtype))
    configuration = Configuration(learning_rate, momentum, float(problem.noise_factor(batch_size)))
    return np.concatenate(list(tiles.tile_losses(shared, configuration, replicas[0], len(replicas))))


def numpy_losses(
    problem: theory.NoisyQuadratic,
    schedule: theory.Schedule,
    replicas: range,
    *,
    learning_rate: float,
    batch_size: float,
    momentum: float,
    kind: Precision = DOUBLE,
) -> np.ndarray:
    """The same from the definition, at every step from 0 on."""
    coordinates = range(problem.dim)

    def normals(purpose: Purpose, step: int, dtype: np.dtype) -> np.ndarray:
        return simulators.normals(0, purpose, replicas=replicas, step=step, coordinates=coordinates, dtype=dtype.name)

    def losses_of(theta: np.ndarray) -> np.ndarray:
        return sum(0.5 * curvature.astype(float) * theta.astype(float) ** 2)

    mean, deviation = kind.of(problem.initial_mean), kind.of(np.sqrt(problem.initial_variance))
    theta = mean[:, None] + deviation[:, None] * normals(kind.initial_state, 0, kind.dtype)
    curvature = kind.of(problem.eigenvalues)[:, None]
    velocity = np.zeros_like(theta)
    losses = [losses_of(theta)]
    root = kind.of(tiles.square_root(problem.noise) * np.sqrt(problem.noise_factor(batch_size)))
    for step in range(schedule.steps):
        z = normals(kind.gradient_noise, step, kind.noise_dtype)
        noise = root[:, None] * z if root.ndim == 1 else sum(root[:, j, None] * z[j] for j in coordinates)
        velocity = kind.scalar(momentum) * velocity + (curvature * theta + noise)
        theta = theta - kind.scalar(learning_rate * schedule.at(step)) * velocity
        losses.append(losses_of(theta))
    assert theta.dtype == velocity.dtype == kind.dtype
    return np.array(losses)


# Bit for bit


@pytest.mark.parametrize("dim", [1, 2, 5, 7])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_trajectories_are_those_of_the_definition_bit_for_bit(
    dim: int, momentum: float, full: bool, dtype: str
) -> None:
    problem = noise_dominated(dim, full=full and dim > 1, mean=0.3)
    schedule = theory.piecewise([5, 4, 3], [1.0, 0.25, 2.0])
    settings = {"learning_rate": 0.3, "batch_size": 3, "momentum": momentum}
    compiled = replica_losses(problem, schedule, range(3, 140), record=list(range(13)), **settings, dtype=dtype)
    defined = numpy_losses(problem, schedule, range(3, 140), **settings, kind=precision(dtype))
    np.testing.assert_array_equal(compiled, defined)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_replica_does_not_depend_on_how_many_run_beside_it(full: bool, dtype: str) -> None:
    problem, schedule = noise_dominated(5, full=full), theory.half_then_decay(30)
    together = replica_losses(problem, schedule, range(261), record=[0, 7, 30], **DRAWS, dtype=dtype)
    for part in (range(1), range(127, 131), range(260, 261), range(3, 200)):
        alone = replica_losses(problem, schedule, part, record=[0, 7, 30], **DRAWS, dtype=dtype)
        np.testing.assert_array_equal(alone, together[:, part[0] : part[-1] + 1])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_leave_no_trace(full: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, schedule = noise_dominated(5, full=full), theory.half_then_decay(30)
    whole = replica_losses(problem, schedule, range(9), record=[0, 7, 8, 29, 30], **DRAWS, dtype=dtype)
    for length in (1, 7, 29):
        monkeypatch.setattr(windows, "WINDOW_STEPS", length)
        cut = replica_losses(problem, schedule, range(9), record=[0, 7, 8, 29, 30], **DRAWS, dtype=dtype)
        np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(dtype: str) -> None:
    problem, schedule = noise_dominated(9), theory.half_then_decay(40)
    settings = {"learning_rate": [0.1, 0.3, 5.0], "batch_size": 4, "momentum": 0.9}
    arguments = settings | {"replicas": 700, "record": 5, "dtype": dtype}
    one, two, five = (simulators.simulate(problem, schedule, **arguments, threads=n) for n in (1, 2, 5))
    xr.testing.assert_identical(one, two)
    xr.testing.assert_identical(one, five)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_companions(dtype: str) -> None:
    problem, schedule = noise_dominated(9), theory.half_then_decay(40)
    grid = simulators.simulate(
        problem,
        schedule,
        learning_rate=np.array([[0.1], [0.3]]),
        batch_size=np.array([2, 8, np.inf]),
        momentum=0.5,
        replicas=200,
        record=[10],
        dtype=dtype,
    )
    alone = simulators.simulate(
        problem, schedule, learning_rate=0.3, batch_size=8, momentum=0.5, replicas=200, record=[0, 10], dtype=dtype
    )
    np.testing.assert_array_equal(grid.loss[1, 1], alone.loss[1:])
    np.testing.assert_array_equal(grid.loss_stderr[1, 1], alone.loss_stderr[1:])


def test_mean_and_standard_error_are_those_of_the_replicas() -> None:
    problem, schedule = noise_dominated(3), theory.constant(12)
    result = simulators.simulate(problem, schedule, **DRAWS, replicas=300, record=[0, 5], replica_offset=1000, seed=3)
    losses = replica_losses(problem, schedule, range(1000, 1300), record=[0, 5, 12], seed=3, **DRAWS)
    np.testing.assert_allclose(result.loss, losses.mean(axis=1), rtol=1e-14)
    np.testing.assert_allclose(result.loss_stderr, losses.std(axis=1, ddof=1) / math.sqrt(300), rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_offset_replicas_complete_a_run(dtype: str) -> None:
    problem, schedule = noise_dominated(3), theory.constant(12)
    first, second, whole = (
        simulators.simulate(problem, schedule, **DRAWS, replicas=n, replica_offset=offset, dtype=dtype).loss.item()
        for n, offset in ((100, 0), (300, 100), (400, 0))
    )
    assert whole == pytest.approx((100 * first + 300 * second) / 400, rel=1e-14)
    assert first != second


# Exact on average


def exact_loss(
    problem: theory.NoisyQuadratic, steps: int, *, learning_rate: float, batch_size: float, momentum: float
) -> tuple[float, float]:
    """Mean and variance of ½ θᵀΛθ after `steps` steps, by iterating the Gaussian law of (θ, u)."""
    dim = problem.dim
    noise = (np.diag(problem.noise) if problem.noise.ndim == 1 else problem.noise) * problem.noise_factor(batch_size)
    curvature, identity = np.diag(problem.eigenvalues), np.eye(dim)
    step = np.block(
        [
            [identity - learning_rate * curvature, -learning_rate * momentum * identity],
            [curvature, momentum * identity],
        ]
    )
    kick = np.block([[learning_rate**2 * noise, -learning_rate * noise], [-learning_rate * noise, noise]])
    mean = np.concatenate([problem.initial_mean, np.zeros(dim)])
    covariance = np.diag(np.concatenate([problem.initial_variance, np.zeros(dim)]))
    for _ in range(steps):
        mean, covariance = step @ mean, step @ covariance @ step.T + kick
    mean, covariance = mean[:dim], covariance[:dim, :dim]
    spread = curvature @ covariance
    expected = 0.5 * (mean @ curvature @ mean + np.trace(spread))
    return expected, 0.5 * np.trace(spread @ spread) + mean @ curvature @ covariance @ curvature @ mean


def score(
    simulated: theory.NoisyQuadratic,
    claimed: theory.NoisyQuadratic,
    steps: int,
    replicas: int,
    dynamics: str = "sgd",
    dtype: str = "float64",
    **settings: float,
) -> float:
    """Deviation of the mean loss of one problem from the exact one of another, in exact standard errors."""
    run = {"replicas": replicas, "seed": 17, "dynamics": dynamics, "dtype": dtype}
    result = simulators.simulate(simulated, theory.constant(steps), **run, **settings)
    mean, variance = exact_loss(claimed, steps, **settings)
    return (result.loss.item() - mean) / math.sqrt(variance / replicas)


CASES = {
    "sgd": (False, {"learning_rate": 0.6, "batch_size": 8, "momentum": 0.0}),
    "heavy ball": (False, {"learning_rate": 0.5, "batch_size": 8, "momentum": 0.5}),
    "full covariance": (True, {"learning_rate": 0.6, "batch_size": 8, "momentum": 0.0}),
    "full covariance, heavy ball": (True, {"learning_rate": 0.5, "batch_size": 8, "momentum": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_loss_is_exact(case: str, dtype: str) -> None:
    full, settings = CASES[case]
    dim, replicas = (32, 2**18) if full else (64, 2**17)
    problem = noise_dominated(dim, full=full, noise=4.0)
    assert abs(score(problem, problem, 12, replicas, dtype=dtype, **settings)) < LIMIT
    mutant = noise_dominated(dim, full=full, noise=4.04)
    assert score(mutant, problem, 12, replicas, dtype=dtype, **settings) > LIMIT, "1 % more noise would go unseen"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_loss_is_the_theory_s_at_every_record(dtype: str) -> None:
    problem = theory.NoisyQuadratic([1.5, 1.0, 0.2, 0.0], [1.0, 3.0, 0.5, 0.1], initial_mean=[1.0, -2.0, 3.0, 0.0])
    schedule = theory.half_then_decay(60)
    settings = {"learning_rate": [[0.1], [0.9]], "batch_size": 4, "momentum": [0.0, 0.5]}
    record = [0, 1, 5, 30, 33, 60]
    result = simulators.simulate(problem, schedule, **settings, replicas=2**14, record=record, dtype=dtype)
    exact = theory.loss_curve(problem, schedule, **settings, at=record)
    assert np.abs((result.loss - exact) / result.loss_stderr).max() < LIMIT


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_standard_error_is_exact(dtype: str) -> None:
    settings = {"learning_rate": 0.6, "batch_size": 8, "momentum": 0.0}
    replicas = 2**17
    run = {"replicas": replicas, "seed": 4, "dtype": dtype}
    result = simulators.simulate(noise_dominated(), theory.constant(12), **run, **settings)
    variance = exact_loss(noise_dominated(), 12, **settings)[1]
    # The loss is a sum over 64 modes, nearly normal: its sample variance has relative variance 2/R · (1 + κ/2),
    # κ = 12/64 the excess kurtosis of a chi-square of 64 degrees of freedom.
    error = math.sqrt(2 / replicas * (1 + 6 / 64))
    measured = replicas * result.loss_stderr.item() ** 2 / variance
    assert abs(measured - 1) / error < LIMIT
    mutant = measured * 1.04
    assert (mutant - 1) / error > LIMIT, "2 % more noise would go unseen"


def test_a_known_data_set_has_no_noise_at_full_batch() -> None:
    problem = noise_dominated(3).with_dataset_size(50)
    settings = {"learning_rate": 0.1, "momentum": 0.0, "replicas": 64}
    full = simulators.simulate(problem, theory.constant(9), batch_size=50, **settings)
    limit = simulators.simulate(noise_dominated(3), theory.constant(9), batch_size=np.inf, **settings)
    assert full.loss.item() == limit.loss.item()
    some = simulators.simulate(problem, theory.constant(9), batch_size=49, **settings)
    assert some.loss.item() != full.loss.item()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_noise_nothing_is_drawn(full: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("drew gradient noise")

    for name in ("advance_diagonal", "advance_full", "_step", "_add_loss", "_combine"):
        monkeypatch.setattr(kernels, name, getattr(kernels, name).py_func)
    for name in ("_draw_block", "_draw_all"):
        monkeypatch.setattr(kernels, name, refuse)
    problem, settings = noise_dominated(3, full=full), {"learning_rate": 0.1, "momentum": 0.5, "dtype": dtype}
    losses = replica_losses(problem, theory.constant(4), range(2), record=[4], batch_size=np.inf, **settings)
    assert np.isfinite(losses).all()
    with pytest.raises(AssertionError, match="drew gradient noise"):
        replica_losses(problem, theory.constant(4), range(2), record=[4], batch_size=1e6, **settings)


# Divergence


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_diverged_is_infinite_silent_and_cheap(full: bool, momentum: float, dtype: str) -> None:
    problem = noise_dominated(16, full=full)
    rates = [5.0, 1e38 if dtype == "float32" else 1e300]
    run = {"momentum": momentum, "record": 20, "dtype": dtype}
    result = simulators.simulate(problem, theory.constant(10**7), learning_rate=rates, batch_size=1, **run)
    assert np.isposinf(result.loss).all()
    assert np.isposinf(result.loss_stderr).all()


def test_losses_before_the_overflow_are_numbers() -> None:
    problem = noise_dominated(16)
    result = simulators.simulate(problem, theory.constant(1000), learning_rate=5.0, batch_size=1, record=1000)
    finite = np.isfinite(result.loss.values)
    assert finite[:100].all()
    assert not finite[-1]
    assert (np.diff(finite.astype(int)) <= 0).all()
    assert not np.isnan(result.loss_stderr).any()


def test_a_diverged_tile_merges_to_infinity() -> None:
    good, bad = (np.array([1.0]), np.array([2.0])), (np.array([np.inf]), np.array([np.inf]))
    for left, right in ((good, bad), (bad, good), (bad, bad)):
        assert tiles.merge(left, 2, right, 3) == bad
    mean, spread = tiles.merge((np.array([1.0]), np.array([2.0])), 2, (np.array([6.0]), np.array([8.0])), 3)
    values = np.array([0.0, 2.0, 4.0, 6.0, 8.0])
    assert mean[0] == values.mean()
    assert spread[0] == ((values - values.mean()) ** 2).sum()


# Axes and records


def shape(**settings: object) -> dict[str, int]:
    arguments = {"learning_rate": 0.1, "batch_size": 4, "momentum": 0.0} | settings
    result = simulators.simulate(noise_dominated(2), theory.constant(3), replicas=2, **arguments)
    assert result.loss.dims[-1] == "step"
    return {str(name): size for name, size in result.loss.sizes.items() if name != "step"}


def test_axes_are_named_after_what_made_them() -> None:
    assert shape() == {}
    assert shape(learning_rate=[0.1]) == {"learning_rate": 1}
    assert shape(batch_size=[1, 2]) == {"batch_size": 2}
    assert shape(momentum=(0.0, 0.9, 0.5)) == {"momentum": 3}
    assert shape(batch_size=[[1, 2]]) == {"axis_0": 1, "axis_1": 2}
    assert shape(learning_rate=[[0.1], [0.2]], momentum=[0.0, 0.9, 0.5]) == {"axis_0": 2, "axis_1": 3}
    assert shape(learning_rate=xr.DataArray([0.1, 0.2], dims="run"), batch_size=[1, 2, 3]) == {
        "run": 2,
        "batch_size": 3,
    }


def test_settings_are_attached_as_coordinates() -> None:
    rates = xr.DataArray([0.1, 0.2], dims="optimizer", coords={"optimizer": ["a", "b"]})
    sizes = xr.DataArray([1.0, 2.0, np.inf], dims="batch_size")
    result = simulators.simulate(
        noise_dominated(2), theory.constant(3), learning_rate=rates, batch_size=sizes, momentum=0.5, replicas=2
    )
    assert result.loss.dims == ("optimizer", "batch_size", "step")
    assert result.optimizer.values.tolist() == ["a", "b"]
    assert result.learning_rate.dims == ("optimizer",)
    assert result.momentum.item() == 0.5
    np.testing.assert_allclose(result.effective_learning_rate, [0.2, 0.4])
    np.testing.assert_allclose(result.temperature.transpose("optimizer", "batch_size"), [[0.2, 0.1, 0], [0.4, 0.2, 0]])
    assert result.sel(batch_size=2.0).loss.sizes == {"optimizer": 2, "step": 1}
    plane = simulators.simulate(
        noise_dominated(2), theory.constant(3), learning_rate=[[0.1], [0.2]], batch_size=[1, 2, 4], replicas=2
    )
    assert plane.batch_size.dims == plane.learning_rate.dims == ("axis_0", "axis_1")


def test_attributes_say_what_was_run() -> None:
    result = simulators.simulate(
        noise_dominated(2), theory.constant(3), learning_rate=0.1, batch_size=4, replicas=5, seed=2**64 - 1
    )
    assert result.attrs == {
        "source": "simulator",
        "dynamics": "sgd",
        "noise": "gaussian",
        "replicas": 5,
        "replica_offset": 0,
        "seed": 2**64 - 1,
        "stream_version": simulators.STREAM_VERSION,
        "backend": "cpu",
        "dtype": "float64",
    }
    for variable in result.variables.values():
        assert variable.attrs["long_name"]


@pytest.mark.parametrize(
    ("record", "steps"),
    [
        (None, [10]),
        (1, [10]),
        (3, [3, 6, 10]),
        (10, list(range(1, 11))),
        ([0], [0, 10]),
        ([7, 2, 7, 10], [2, 7, 10]),
        (np.array([5.0]), [5, 10]),
    ],
    ids=str,
)
def test_records_end_with_the_schedule(record: object, steps: list[int]) -> None:
    result = simulators.simulate(
        noise_dominated(2), theory.constant(10), learning_rate=0.1, batch_size=4, replicas=2, record=record
    )
    assert result.step.values.tolist() == steps


# Boundary


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": -0.1},
        {"learning_rate": np.nan},
        {"learning_rate": [0.1, np.inf]},
        {"batch_size": 0.5},
        {"batch_size": 101},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"replicas": 1},
        {"replicas": 2.5},
        {"replicas": 2**32, "replica_offset": 1},
        {"replica_offset": -1},
        {"record": 0},
        {"record": 11},
        {"record": [-1]},
        {"record": [11]},
        {"record": [0.5]},
        {"seed": -1},
        {"seed": 2**64},
        {"threads": 0},
        {"dynamics": "minibatch"},
        {"noise": "cauchy"},
        {"backend": "tpu"},
        {"backend": "cuda", "dynamics": "jump", "dtype": "float32"},
        {"dtype": "float16"},
        {"dtype": "float32", "dynamics": "jump"},
        {"dtype": "float32", "noise": "uniform"},
        {"dtype": "float32", "noise": "student_t"},
        {"dtype": "mixed", "dynamics": "jump"},
        {"dtype": "mixed", "noise": "student_t"},
        {"dtype": "float32", "learning_rate": 1e-40},
        {"dtype": "float32", "problem": theory.NoisyQuadratic([1.0, 1e-39], 1.0)},
        {"dtype": "float32", "problem": theory.NoisyQuadratic([1.0, 1.0], 1e80)},
        {"problem": "quadratic"},
        {"schedule": 10},
        {"schedule": theory.constant(2**49)},
        {"learning_rate": "fast"},
        {"learning_rate": None},
        {"learning_rate": xr.DataArray([0.1], dims="batch_size")},
        {"learning_rate": [0.1, 0.2], "batch_size": [1, 2, 3]},
        {"learning_rate": xr.DataArray([0.1], dims="step")},
        {"learning_rate": xr.DataArray([[0.1]], dims=["learning_rate", "x"])},
        {"learning_rate": xr.DataArray([0.1], dims="x"), "batch_size": [[1]]},
        {"learning_rate": xr.DataArray([0.1], dims="x"), "batch_size": xr.DataArray([1, 2], dims="x")},
    ],
    ids=str,
)
def test_bad_input_is_rejected_with_a_remedy(change: dict[str, object]) -> None:
    arguments = {"learning_rate": 0.1, "batch_size": 4, "schedule": theory.constant(10)} | change
    problem = arguments.pop("problem", noise_dominated(2).with_dataset_size(100))
    with pytest.raises(ValueError, match=r"expected .*, got .*\. \S.*\."):
        simulators.simulate(problem, **arguments)


# Jobs


def test_progress_counts_every_tile_in_the_calling_thread() -> None:
    seen, caller = [], threading.get_ident()

    def progress(done: int, total: int) -> None:
        assert threading.get_ident() == caller
        seen.append((done, total))

    simulators.simulate(
        noise_dominated(2),
        theory.constant(3),
        learning_rate=[0.1, 0.2],
        batch_size=1,
        replicas=300,
        threads=2,
        progress=progress,
    )
    assert seen == [(done, 6) for done in range(1, 7)]


def test_an_interruption_stops_the_workers() -> None:
    started = threading.active_count()

    def interrupt(done: int, total: int) -> None:
        assert total == 10**5
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulators.simulate(
            noise_dominated(8),
            theory.constant(100),
            learning_rate=np.full(10**5, 0.1),
            batch_size=1,
            replicas=128,
            progress=interrupt,
        )
    assert threading.active_count() == started


def test_a_running_tile_stops_at_its_next_window() -> None:
    stop = threading.Event()
    shared = tiles.ensemble(noise_dominated(2), theory.constant(10**9), np.arange(10**6) * 1000 + 1000, 0)
    losses = tiles.tile_losses(shared, Configuration(0.1, 0.0, 1.0), 0, 2, stop)
    assert next(losses).shape == (1, 2)
    stop.set()
    with pytest.raises(windows.Cancelled):
        next(losses)


def test_only_a_few_jobs_wait_at_a_time() -> None:
    started = []

    def jobs():
        for k in range(100):
            started.append(k)
            yield lambda k=k: k

    with ThreadPoolExecutor(2) as executor:
        results = tiles.in_order(executor, jobs(), ahead=8)
        assert next(results) == 0
        assert len(started) == 8
        assert list(results) == list(range(1, 100))


# Exact jumps, and the diffusion


def joint_law(
    problem: theory.NoisyQuadratic,
    schedule: theory.Schedule,
    *,
    learning_rate: float,
    batch_size: float,
    momentum: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Power of the step matrix of (θ, u), and the covariance that noise builds up from rest, step by step."""
    dim = problem.dim
    noise = (np.diag(problem.noise) if problem.noise.ndim == 1 else problem.noise) * problem.noise_factor(batch_size)
    curvature, identity = np.diag(problem.eigenvalues), np.eye(dim)
    power, covariance = np.eye(2 * dim), np.zeros((2 * dim, 2 * dim))
    for t in range(schedule.steps):
        rate = learning_rate * schedule.at(t)
        step = np.block([[identity - rate * curvature, -rate * momentum * identity], [curvature, momentum * identity]])
        kick = np.vstack([-rate * identity, identity])
        power, covariance = step @ power, step @ covariance @ step.T + kick @ noise @ kick.T
    return power, covariance


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_a_transition_has_the_law_of_its_steps(full: bool, momentum: float) -> None:
    problem = noise_dominated(5, full=full)
    schedule = theory.piecewise([7, 1, 12], [1.0, 0.0, 0.25])
    settings = {"learning_rate": 0.4, "batch_size": 3, "momentum": momentum}
    power, covariance = joint_law(problem, schedule, **settings)
    noise = problem.noise * problem.noise_factor(3)
    law = jump.transition(problem.eigenvalues, noise, 0.4 * schedule.multipliers, schedule.lengths, momentum)
    size = 2 if momentum else 1
    for a in range(size):
        for b in range(size):
            block = slice(5 * a, 5 * a + 5), slice(5 * b, 5 * b + 5)
            np.testing.assert_allclose(np.diag(power[block]), law.power[:, a, b], rtol=1e-13, atol=1e-15)
            if full:
                found = (law.root @ law.root.T)[a::size, b::size]
            else:
                found = np.diag((law.root @ law.root.transpose(0, 2, 1))[:, a, b])
            np.testing.assert_allclose(covariance[block], found, rtol=1e-10, atol=1e-13)


def numpy_jumps(problem: theory.NoisyQuadratic, laws: list[jump.Transition], ends: list[int], replicas: range) -> list:
    """Losses after every transition, from the definition."""
    dim, size = problem.dim, laws[0].power.shape[1]
    z = simulators.normals(0, Purpose.INITIAL_STATE, replicas=replicas, step=0, coordinates=range(dim))
    state = np.zeros((dim, size, len(replicas)))
    state[:, 0] = problem.initial_mean[:, None] + np.sqrt(problem.initial_variance)[:, None] * z
    losses = []
    for law, end in zip(laws, ends, strict=True):
        z = simulators.normals(0, Purpose.JUMP, replicas=replicas, step=end - 1, coordinates=range(dim * size))
        if law.root.ndim == 2:
            noise = sum(law.root[:, j, None] * z[j] for j in range(dim * size)).reshape(dim, size, -1)
        else:
            z = z.reshape(dim, size, -1)
            noise = law.root[:, :, 0, None] * z[:, None, 0]
            if size == 2:
                noise[:, 1] += law.root[:, 1, 1, None] * z[:, 1]
        moved = law.power[:, :, 0, None] * state[:, None, 0]
        if size == 2:
            moved = moved + law.power[:, :, 1, None] * state[:, None, 1]
        state = moved + noise
        losses.append(sum(0.5 * problem.eigenvalues[:, None] * state[:, 0] ** 2))
    return losses


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_jumps_are_those_of_the_definition_bit_for_bit(full: bool, momentum: float) -> None:
    problem, schedule = noise_dominated(5, full=full, mean=0.3), theory.half_then_decay(40)
    record = [3, 17, 40]
    shared = tiles.ensemble(problem, schedule, np.array(record), 0, exact_jumps=True)
    configuration = Configuration(0.3, momentum, 0.25)
    laws = tiles.Transitions(shared, configuration)
    edges = [0, *record]
    each = [laws.between(a, b) for a, b in itertools.pairwise(edges)]
    compiled = np.concatenate(list(tiles.tile_losses(shared, configuration, 3, 130, transitions=laws)))
    np.testing.assert_array_equal(compiled, numpy_jumps(problem, each, record, range(3, 133)))


@pytest.mark.parametrize("case", CASES)
def test_the_mean_loss_after_a_jump_is_exact(case: str) -> None:
    full, settings = CASES[case]
    dim, replicas = (32, 2**18) if full else (64, 2**17)
    problem = noise_dominated(dim, full=full, noise=4.0)
    mutant = noise_dominated(dim, full=full, noise=4.04)
    assert abs(score(problem, problem, 12, replicas, dynamics="jump", **settings)) < LIMIT
    assert score(mutant, problem, 12, replicas, dynamics="jump", **settings) > LIMIT


def test_jumps_between_many_records_follow_the_theory() -> None:
    """Velocity is carried from record to record, and across drops of the learning rate."""
    problem = theory.NoisyQuadratic([1.5, 1.0, 0.2, 0.0], [1.0, 3.0, 0.5, 0.1], initial_mean=[1.0, -2.0, 3.0, 0.0])
    schedule = theory.half_then_decay(60)
    settings = {"learning_rate": [[0.1], [0.9]], "batch_size": 4, "momentum": [0.0, 0.9]}
    record = [0, 1, 5, 30, 33, 60]
    result = simulators.simulate(problem, schedule, **settings, replicas=2**16, record=record, dynamics="jump")
    exact = theory.loss_curve(problem, schedule, **settings, at=record)
    assert np.abs((result.loss - exact) / result.loss_stderr).max() < LIMIT


def test_jumps_cost_nothing_by_the_step_and_diverge_in_silence() -> None:
    problem = noise_dominated(8)
    result = simulators.simulate(
        problem, theory.constant(10**9), learning_rate=[0.1, 5.0], batch_size=8, momentum=0.5, dynamics="jump", record=4
    )
    floor = float(theory.stationary_loss(problem, learning_rate=0.1, batch_size=8, momentum=0.5))
    assert np.abs((result.loss[0] - floor) / result.loss_stderr[0]).max() < LIMIT
    assert np.isposinf(result.loss[1]).all()


@pytest.mark.parametrize(("dynamics", "dtype"), [("jump", "float64"), *(("sde", dtype) for dtype in DTYPES)])
def test_neither_threads_nor_companions_nor_cuts_change_other_dynamics(dynamics: str, dtype: str) -> None:
    problem, schedule = noise_dominated(9), theory.half_then_decay(40)
    arguments = {"batch_size": 4, "record": [10], "dynamics": dynamics, "momentum": 0.5, "dtype": dtype}
    rates = [0.1, 0.3]
    one, two = (
        simulators.simulate(problem, schedule, learning_rate=rates, replicas=700, threads=n, **arguments)
        for n in (1, 2)
    )
    xr.testing.assert_identical(one, two)
    alone = simulators.simulate(problem, schedule, learning_rate=0.3, replicas=700, **arguments)
    np.testing.assert_array_equal(alone.loss, one.loss[1])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sde_has_the_moments_of_svag_and_tends_to_the_diffusion(momentum: float, dtype: str) -> None:
    """SVAG with factor l is SGD with ε/l and lF: in exact standard errors; and l → ∞ is the diffusion."""
    problem, schedule = noise_dominated(64, noise=4.0), theory.constant(12)
    settings = {"learning_rate": 0.6 * (1 - momentum), "batch_size": 8}
    replicas, fine = 2**17, 4
    run = {"momentum": momentum, "dynamics": "sde", "dtype": dtype}
    result = simulators.simulate(problem, schedule, **settings, **run, replicas=replicas, substeps=fine, seed=17)
    # With ε/(1−m) = 0.6 in both cases: momentum is in the temperature alone.
    finer = theory.NoisyQuadratic(problem.eigenvalues, fine * problem.noise, 0.0, 0.5)
    mean, variance = exact_loss(finer, 12 * fine, learning_rate=0.6 / fine, batch_size=8, momentum=0.0)
    assert mean == pytest.approx(float(theory.svag_loss(problem, schedule, l=fine, learning_rate=0.6, batch_size=8)))
    assert abs(result.loss.item() - mean) / math.sqrt(variance / replicas) < LIMIT
    # The diffusion differs from that by more than the error bar, and from the finest by less.
    limit = float(theory.diffusion_loss(problem, schedule, **settings, momentum=momentum))
    assert abs(limit - mean) > LIMIT * math.sqrt(variance / replicas)
    close = simulators.simulate(problem, schedule, **settings, **run, replicas=2**13, substeps=64)
    assert abs(close.loss.item() - limit) < LIMIT * close.loss_stderr.item()


def test_bad_dynamics_are_refused() -> None:
    problem, schedule = noise_dominated(2), theory.constant(3)
    settings = {"learning_rate": 0.1, "batch_size": 1}
    with pytest.raises(ValueError, match="dynamics: expected one of 'sgd', 'sde', 'jump', got 'langevin'"):
        simulators.simulate(problem, schedule, **settings, dynamics="langevin")
    with pytest.raises(ValueError, match="substeps: expected an integer ≥ 1"):
        simulators.simulate(problem, schedule, **settings, dynamics="sde", substeps=0)
    with pytest.raises(ValueError, match="substeps: expected at most"):
        simulators.simulate(problem, schedule, **settings, dynamics="sde", substeps=2**48)


# Scale


def test_a_hundred_thousand_modes_and_a_million_replicas() -> None:
    """The stated limits, in memory that goes with threads and tiles, never with replicas times steps."""
    wide, steps = theory.power_law(100_000), theory.constant(2)
    result = simulators.simulate(wide, steps, learning_rate=0.5, batch_size=8, replicas=128).squeeze()
    exact = theory.expected_loss(wide, steps, learning_rate=0.5, batch_size=8)
    assert abs(float(result.loss - exact)) < LIMIT * float(result.loss_stderr)
    narrow = theory.NoisyQuadratic([1.0], 1.0)
    tracemalloc.start()
    result = simulators.simulate(narrow, steps, learning_rate=0.5, batch_size=8, replicas=10**6).squeeze()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    exact = theory.expected_loss(narrow, steps, learning_rate=0.5, batch_size=8)
    assert abs(float(result.loss - exact)) < LIMIT * float(result.loss_stderr)
    assert peak < 8 * 10**6  # less than the states of all replicas would take


@pytest.mark.parametrize(
    ("option", "value", "where"),
    [
        ("substeps", 3, "dynamics='sde'"),
        ("degrees_of_freedom", 2.5, "noise='student_t'"),
        ("sampling", "reshuffle", "a model made of examples"),
    ],
)
def test_options_that_would_be_ignored_are_refused(option, value, where):
    settings = {"learning_rate": 0.1, "batch_size": 4, "replicas": 2}
    with pytest.raises(ValueError, match=f"{option}: expected nothing without {where}"):
        simulators.simulate(theory.power_law(3), theory.constant(5), **settings, **{option: value})


@pytest.mark.parametrize("momentum", [0.999999, 1 - 1e-8])
def test_single_precision_refuses_momenta_that_it_would_round_to_others(momentum):
    settings = {"learning_rate": 1e-3, "batch_size": 4, "momentum": momentum, "replicas": 2}
    with pytest.raises(ValueError, match=r"momentum: expected values not so close to 1.*dtype='mixed'"):
        simulators.simulate(theory.power_law(3), theory.constant(5), **settings, dtype="float32")
    simulators.simulate(theory.power_law(3), theory.constant(5), **settings, dtype="mixed")
    settings["momentum"] = 0.999
    simulators.simulate(theory.power_law(3), theory.constant(5), **settings, dtype="float32")


@pytest.mark.parametrize("rate", [1e-9, 1e-6, 0.1])
def test_jumps_with_a_full_covariance_are_exact_at_minute_learning_rates(rate):
    """θ then spreads by many orders less than u does. The law itself, against the sum over steps in closed form."""
    covariance, momentum, steps = np.array([[1.0, 0.5], [0.5, 1.0]]), 0.9, 4
    curvature = np.array([1.0, 0.3])
    law = jump.transition(curvature, covariance, np.array([rate]), np.array([steps]), momentum)
    expected = np.zeros((4, 4))  # of (θ₁, u₁, θ₂, u₂)
    step = np.zeros((4, 4))
    kick = np.zeros((4, 2))
    for i, value in enumerate(curvature):
        step[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[1 - rate * value, -rate * momentum], [value, momentum]]
        kick[2 * i : 2 * i + 2, i] = [-rate, 1.0]
    for _ in range(steps):
        expected = step @ expected @ step.T + kick @ covariance @ kick.T
    scale = np.sqrt(np.diagonal(expected))
    np.testing.assert_allclose(
        (law.root @ law.root.T) / scale / scale[:, None], expected / scale / scale[:, None], atol=1e-12
    )


def test_laws_of_jumps_take_bounded_memory_and_results_do_not_depend_on_it():
    problem = noise_dominated(30, full=True, mean=0.3)
    record = np.arange(1, 41) ** 2
    shared = tiles.ensemble(problem, theory.constant(1600), record, 0, exact_jumps=True)
    configuration = Configuration(0.05, 0.7, 0.25)
    losses = []
    for memory in (tiles.TRANSITIONS_MEMORY, 10**6, 0):
        laws = tiles.Transitions(shared, configuration, memory)
        losses.append(np.concatenate(list(tiles.tile_losses(shared, configuration, 0, 8, transitions=laws))))
        held = sum(law.nbytes for law in laws._known.values())
        single = max(law.nbytes for law in laws._known.values())
        assert held <= max(memory, single)
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[0], losses[2])


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (xr.DataArray([0.1, 0.4], dims="loss"), "no axis or label named 'loss'"),
        (xr.DataArray([0.1, 0.4], dims="x", coords={"loss_stderr": 1.0}), "no axis or label named 'loss_stderr'"),
        (xr.DataArray([0.1, 0.4], dims="effective_learning_rate"), "'effective_learning_rate'"),
        (xr.DataArray([0.1, 0.4], dims="temperature"), "'temperature'"),
        (xr.DataArray([0.1, 0.4], dims="x", coords={"tile": 1.0}), "no axis or label 'tile'"),
        ([], "learning_rate: expected at least one value"),
    ],
)
def test_axes_leave_the_names_of_results_free(axis, message):
    run = {"batch_size": 4, "momentum": 0.5, "replicas": 4, "keep_tiles": True}
    with pytest.raises(ValueError, match=message):
        simulators.simulate(theory.power_law(3), theory.constant(5), learning_rate=axis, **run)


def test_progress_is_something_that_can_be_called():
    with pytest.raises(ValueError, match="progress: expected a function"):
        simulators.simulate(theory.power_law(3), theory.constant(5), learning_rate=0.1, batch_size=4, progress=3)
