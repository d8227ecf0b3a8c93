"""Tiles: blocks of replicas that are simulated alone, side by side, and merged in order.

A tile is `LANES` replicas of one configuration. Its result depends on nothing outside it, and tiles are merged in the
order of their replicas, so that no number of threads changes a bit.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from noisysgd.simulators.ensembles import trajectory_kernels as kernels
from noisysgd.simulators.ensembles.jump import Transition, between, transition
from noisysgd.simulators.randomness.number_formats import DOUBLE, Precision, StateArray
from noisysgd.simulators.randomness.stream import NoiseLaw
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.schedules.schedule import Schedule

LANES = 128
"""Replicas of a tile. Part of the meaning of a result's last bits: tiles fix the order in which losses are summed."""

WINDOW_STEPS = 1024
WINDOW_WORK = 2**25
"""A window is what a kernel does in one call: a tenth of a second, after which it can be cancelled."""
LAWS_MEMORY = 2**28
"""Bytes of the laws of jumps that are kept for a configuration, unless a single one is larger."""

GAUSSIAN = NoiseLaw()

Moments = tuple[FloatArray, FloatArray]
"""Mean and sum of squared deviations, each of shape (records,)."""


class Cancelled(Exception):  # noqa: N818 — not an error: the caller asked for it
    """Raised inside a job whose result nobody waits for any more."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """What all configurations of one call share. Arrays are writable and contiguous, as the kernels were compiled.

    They have the precision of the state, but for `noise_root`, which is rounded after it was scaled.
    """

    curvature: StateArray
    noise_root: FloatArray
    initial_mean: StateArray
    initial_deviation: StateArray
    schedule: Schedule
    record: IntArray
    seed: np.uint64
    exact_jumps: bool = False
    law: NoiseLaw = GAUSSIAN
    precision: Precision = DOUBLE

    @property
    def rows(self) -> int:
        """Losses of one replica."""
        return self.record.size


@dataclass(frozen=True)
class Configuration:
    """One point of the broadcast arguments; `noise_factor` multiplies F, where noise is not that of real batches."""

    learning_rate: float
    momentum: float
    noise_factor: float = 0.0
    batch_size: float = np.inf


class Tiled(Protocol):
    """What runs of other models than noisy quadratics are cut from: `examples.ExampleEnsemble`."""

    @property
    def rows(self) -> int:
        """Losses of one replica."""

    def losses(
        self, configuration: Configuration, replica: int, lanes: int, stop: threading.Event | None
    ) -> Iterator[FloatArray]:
        """Blocks of (rows, lanes) that add up to all rows."""


def ensemble(
    problem: NoisyQuadratic,
    schedule: Schedule,
    record: IntArray,
    seed: int,
    *,
    exact_jumps: bool = False,
    law: NoiseLaw = GAUSSIAN,
    precision: Precision = DOUBLE,
) -> Ensemble:
    """Prepare a problem: a square root of F, (D,) or (D, D), and plain copies of everything else."""
    return Ensemble(
        curvature=precision.of(np.array(problem.eigenvalues)),
        noise_root=square_root(problem.noise),
        initial_mean=precision.of(np.array(problem.initial_mean)),
        initial_deviation=precision.of(np.sqrt(problem.initial_variance)),
        schedule=schedule,
        record=record,
        seed=np.uint64(seed),
        exact_jumps=exact_jumps,
        law=law,
        precision=precision,
    )


def square_root(covariance: FloatArray) -> FloatArray:
    """Find S with SSᵀ = F: the symmetric root, which semi-definite F have too; entrywise for a diagonal (D,).

    >>> square_root(np.array([[2.0, 2.0], [2.0, 2.0]])).round(12)
    array([[1., 1.],
           [1., 1.]])
    """
    if covariance.ndim == 1:
        return np.sqrt(covariance)
    values, vectors = np.linalg.eigh(covariance)
    # eigh leaves rounding where an eigenvalue is zero.
    return np.ascontiguousarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def tile_losses(
    shared: Ensemble | Tiled,
    configuration: Configuration,
    replica: int,
    lanes: int,
    stop: threading.Event | None = None,
    laws: "Laws | None" = None,
) -> Iterator[FloatArray]:
    """Losses of replicas replica…replica + lanes − 1, a block of (records, lanes) per window; inf where diverged.

    Exact jumps have laws, which the tiles of a configuration share.
    """
    if not isinstance(shared, Ensemble):
        yield from shared.losses(configuration, replica, lanes, stop)
        return
    dim, precision = shared.curvature.size, shared.precision
    theta = np.empty((precision.rows(dim), lanes), precision.dtype)
    precision.fill(theta, shared.seed, np.uint64(precision.initial_state), np.uint64(replica), np.uint64(0))
    theta = theta[:dim]
    theta *= shared.initial_deviation[:, None]
    theta += shared.initial_mean[:, None]
    velocity = np.zeros((dim if configuration.momentum > 0 else 0, lanes), precision.dtype)
    if shared.record[0] == 0:
        yield _initial_losses(shared, theta)
    if shared.exact_jumps:
        yield from _jumps(shared, laws or Laws(shared, configuration), theta, velocity, replica, stop)
    else:
        yield from _steps(shared, configuration, theta, velocity, replica, stop)


class Laws:
    """Exact transitions of one configuration between its records, made when a tile asks for them.

    The latest are kept, up to `memory` bytes of them: tiles go from record to record side by side, and share them.
    """

    def __init__(self, shared: Ensemble, configuration: Configuration, memory: int = LAWS_MEMORY) -> None:
        self._shared, self._configuration, self._memory = shared, configuration, memory
        self._known: dict[tuple[bytes, bytes], Transition] = {}
        self._lock = threading.Lock()

    def between(self, start: int, stop: int) -> Transition:
        """The law of the steps from `start` to `stop`."""
        shared, configuration = self._shared, self._configuration
        multipliers, lengths = between(shared.schedule, start, stop)
        key = (multipliers.tobytes(), lengths.tobytes())
        with self._lock:
            if key not in self._known:
                root = shared.noise_root
                covariance = (root**2 if root.ndim == 1 else root @ root.T) * configuration.noise_factor
                with np.errstate(over="ignore"):
                    rates = configuration.learning_rate * multipliers
                made = transition(shared.curvature, covariance, rates, lengths, configuration.momentum)
                while self._known and sum(law.nbytes for law in self._known.values()) + made.nbytes > self._memory:
                    del self._known[next(iter(self._known))]
                self._known[key] = made
            self._known[key] = self._known.pop(key)  # the last to be forgotten
            return self._known[key]


def _jumps(
    shared: Ensemble, laws: Laws, theta: StateArray, velocity: StateArray, replica: int, stop: threading.Event | None
) -> Iterator[FloatArray]:
    """From record to record by exact transitions."""
    jump = kernels.jump_full if shared.noise_root.ndim == 2 else kernels.jump_diagonal
    ends = shared.record[shared.record > 0]
    before = 0
    for k, end in enumerate(ends.tolist()):
        if stop is not None and stop.is_set():
            raise Cancelled
        law = laws.between(before, end)
        if not law.finite:
            yield np.full((ends.size - k, theta.shape[1]), np.inf)
            return
        losses = np.zeros((1, theta.shape[1]))
        place = (shared.seed, np.uint64(replica), np.uint64(end - 1))
        jump(losses, theta, velocity, shared.curvature, law.power, law.root, law.noisy, *place)
        yield losses
        before = end


def _steps(
    shared: Ensemble,
    configuration: Configuration,
    theta: StateArray,
    velocity: StateArray,
    replica: int,
    stop: threading.Event | None,
) -> Iterator[FloatArray]:
    """Update after update."""
    dim, lanes = theta.shape
    full = shared.noise_root.ndim == 2
    advance = kernels.advance_full if full else kernels.advance_diagonal
    noise_root = scaled_root(shared, configuration)
    z = np.zeros((shared.precision.noise_rows(dim if full else 1), lanes), shared.precision.noise_dtype)
    work = dim * lanes * (dim if full else 1)
    for window in windows(shared, configuration, min(max(WINDOW_WORK // work, 1), WINDOW_STEPS)):
        if stop is not None and stop.is_set():
            raise Cancelled
        if not np.isfinite(theta).all(axis=0).any():
            yield np.full((window.records_left, lanes), np.inf)
            return
        losses = np.zeros((window.records, lanes))
        advance(
            losses,
            theta,
            velocity,
            z,
            shared.curvature,
            noise_root,
            shared.precision.scalar(configuration.momentum),
            window.rates,
            window.slots,
            shared.seed,
            np.uint64(replica),
            np.uint64(window.step),
            shared.law.tails,
        )
        yield losses


def scaled_root(shared: Ensemble, configuration: Configuration) -> StateArray:
    """What gradient noise of variance 1 is multiplied with."""
    root: StateArray = shared.precision.of(shared.noise_root * (shared.law.scale * np.sqrt(configuration.noise_factor)))
    return root


@dataclass(frozen=True, eq=False)
class Window:
    """A few steps in a row, from `step` on, and which of their losses are recorded."""

    step: int
    rates: StateArray
    slots: IntArray
    records: int
    records_left: int


def windows(shared: Ensemble, configuration: Configuration, length: int) -> Iterator[Window]:
    """Cut a schedule into windows of `length` steps."""
    total = shared.schedule.steps
    for step in range(0, total, length):
        steps = np.arange(step, min(step + length, total))
        with np.errstate(over="ignore"):
            rates = configuration.learning_rate * shared.schedule.at(steps)
        slots = record_slots(shared.record, steps)
        left = int(np.count_nonzero(shared.record > step))
        yield Window(step, shared.precision.of(rates), slots, int(slots.max()) + 1, left)


def _initial_losses(shared: Ensemble, theta: StateArray) -> FloatArray:
    losses = np.zeros((1, theta.shape[1]))
    kernels.initial_loss(losses, theta, shared.curvature)
    return losses


def record_slots(record: IntArray, steps: IntArray) -> IntArray:
    """For each update t in `steps`, which of the window's records is taken after it; −1 for none.

    >>> record_slots(np.array([0, 3, 4, 9]), np.arange(2, 6))
    array([ 0,  1, -1, -1])
    """
    first, beyond = np.searchsorted(record, [steps[0] + 1, steps[-1] + 2])
    slots = np.full(steps.size, -1)
    slots[record[first:beyond] - 1 - steps[0]] = np.arange(beyond - first)
    return slots


def tile_moments(
    shared: Ensemble | Tiled,
    configuration: Configuration,
    replica: int,
    lanes: int,
    stop: threading.Event,
    laws: "Laws | None",
) -> Moments:
    """Mean loss and its sum of squared deviations over one tile, at every record."""
    mean, spread = np.empty(shared.rows), np.empty(shared.rows)
    done = 0
    for losses in tile_losses(shared, configuration, replica, lanes, stop, laws):
        part = slice(done, done + len(losses))
        kernels.moments(losses, mean[part], spread[part])
        done += len(losses)
    return mean, spread


def merge(left: Moments, left_size: int, right: Moments, right_size: int) -> Moments:
    """Moments of two groups taken together (Chan, Golub & LeVeque 1979); inf where either diverged."""
    size = left_size + right_size
    with np.errstate(invalid="ignore", over="ignore"):
        gap = right[0] - left[0]
        mean = left[0] + gap * (right_size / size)
        spread = left[1] + right[1] + gap**2 * (left_size * right_size / size)
    diverged = ~np.isfinite(mean)
    return np.where(diverged, np.inf, mean), np.where(diverged | np.isnan(spread), np.inf, spread)


def simulate_all(
    shared: Ensemble | Tiled,
    configurations: list[Configuration],
    replicas: range,
    threads: int,
    progress: Callable[[int, int], object] | None,
    kept: Moments | None = None,
) -> Moments:
    """Moments of every configuration over all replicas, each of shape (configurations, rows).

    Those of every tile are written to `kept`, (configurations, rows, tiles), if it is given.
    """
    means = np.empty((len(configurations), shared.rows))
    spreads = np.empty_like(means)
    tiles = [replicas[first : first + LANES] for first in range(0, len(replicas), LANES)]
    stop = threading.Event()

    def job(configuration: Configuration, tile: range, laws: Laws | None) -> Callable[[], Moments]:
        return lambda: tile_moments(shared, configuration, tile[0], len(tile), stop, laws)

    # Laws go with the last job of their configuration: a full covariance has large ones.
    every = (
        (configuration, Laws(shared, configuration) if isinstance(shared, Ensemble) else None)
        for configuration in configurations
    )
    jobs = (job(configuration, tile, laws) for configuration, laws in every for tile in tiles)
    with ThreadPoolExecutor(threads, thread_name_prefix="noisysgd") as executor:
        try:
            for done, part in enumerate(in_order(executor, jobs, ahead=4 * threads)):
                row, tile = divmod(done, len(tiles))
                if kept is not None:
                    kept[0][row, :, tile], kept[1][row, :, tile] = part
                if tile > 0:
                    part = merge((means[row], spreads[row]), LANES * tile, part, len(tiles[tile]))
                means[row], spreads[row] = part
                if progress is not None:
                    progress(done + 1, len(configurations) * len(tiles))
        except BaseException:  # KeyboardInterrupt above all: let the workers go before the executor waits for them
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return means, spreads


def in_order(executor: ThreadPoolExecutor, jobs: Iterable[Callable[[], Moments]], ahead: int) -> Iterator[Moments]:
    """Results of `jobs` in their order, with at most `ahead` of them submitted and not yet taken."""
    pending: deque[Future[Moments]] = deque()
    for job in jobs:
        pending.append(executor.submit(job))
        if len(pending) == ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
